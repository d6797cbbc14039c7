//! Signs of trouble, on their way into the audit trail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::mpsc;

use super::Origin;
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::key::Environment;

/// Signs of trouble that may wait to be written.
const TROUBLES: usize = 1024;

/// A sign of trouble, to be written down when there is time.
#[derive(Clone, Debug)]
pub struct TroubleSeen {
    pub trail: Trail,
    pub kind: AuditKind,
    pub origin: Origin,
    /// Of the key that it is about.
    pub environment: Environment,
    pub target: Option<String>,
    pub seen: Value,
}

/// Where signs of trouble are told: a bounded queue. What finds it full is counted and dropped, because trouble
/// often comes in floods.
#[derive(Clone, Debug)]
pub struct Trouble {
    queue: mpsc::Sender<TroubleSeen>,
    waiting: Arc<Mutex<Option<mpsc::Receiver<TroubleSeen>>>>,
    dropped: Arc<AtomicU64>,
}

impl Default for Trouble {
    fn default() -> Self {
        let (queue, waiting) = mpsc::channel(TROUBLES);
        Self { queue, waiting: Arc::new(Mutex::new(Some(waiting))), dropped: Arc::default() }
    }
}

impl Trouble {
    pub fn report(&self, seen: TroubleSeen) {
        if self.queue.try_send(seen).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> Option<mpsc::Receiver<TroubleSeen>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// One was taken from the queue and could not be written.
    pub(super) fn note_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
