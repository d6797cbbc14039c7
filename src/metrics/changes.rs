//! How long changes that are made here take to every gateway.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Histogram, LAG_BUCKETS};

/// What is known of changes from waiting for them.
#[derive(Debug)]
pub struct ChangeMeter {
    pub(super) propagation: Histogram<14>,
    pub(super) unconfirmed: AtomicU64,
}

impl Default for ChangeMeter {
    fn default() -> Self {
        Self { propagation: Histogram::new(&LAG_BUCKETS), unconfirmed: AtomicU64::new(0) }
    }
}

impl ChangeMeter {
    /// So long after it was committed, every gateway with a lease has confirmed a change.
    pub fn confirmed(&self, after: Duration) {
        self.propagation.observe_shared(after);
    }

    /// Whoever made a change was answered before that.
    pub fn unconfirmed(&self) {
        self.unconfirmed.fetch_add(1, Ordering::Relaxed);
    }
}
