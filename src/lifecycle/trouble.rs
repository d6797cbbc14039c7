//! Signs of trouble, on their way into the audit trail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Lifecycle;
use super::error::LifecycleError;
use super::presence::Presence;
use super::principal::{Origin, Principal};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::Refusal;

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

/// A bounded queue for signs of trouble. A sign that finds it full is counted and dropped, because trouble often comes
/// in floods.
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

impl Lifecycle {
    /// Reports a request for more rights than the calling key has; refusing it is not enough.
    pub(super) fn note_refusal(&self, origin: &Origin, target: Option<KeyId>, error: &LifecycleError) {
        let Principal::Key(calling) = &origin.principal else { return };
        let seen = match error {
            LifecycleError::MissingScope(scope) => json!({ "missing_scope": scope }),
            LifecycleError::Caller(Refusal::MissingScope(scopes)) => {
                json!({ "missing_scope": scopes.to_string() })
            }
            LifecycleError::Escalation(escalation) => json!({ "escalation": escalation.as_str() }),
            LifecycleError::SecretEnding(_) => json!({ "escalation": "secret_ending" }),
            _ => return,
        };
        self.troubles.report(TroubleSeen {
            // A caller must not be able to write into the trail of another organisation.
            trail: Trail::Org(calling.org),
            kind: AuditKind::EscalationRefused,
            // It is written down also if the caller has left.
            origin: Origin { presence: Presence::unwatched(), ..origin.clone() },
            environment: calling.environment,
            target: target.map(|key| key.to_string()),
            seen,
        });
    }
}
