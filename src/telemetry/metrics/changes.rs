//! How long changes that are made here take to every gateway.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto::MetricFamily;

use super::cells::read;
use super::family::{counter, histogram};
use super::histogram::Histogram;

/// What is known of changes from waiting for them.
#[derive(Debug)]
pub struct ChangeMeter {
    propagation: Histogram<14>,
    unconfirmed: AtomicU64,
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

    pub(super) fn families(&self) -> [MetricFamily; 2] {
        [
            histogram(
                "keygate_propagation_seconds",
                "From the commit of a change that was made here to its being confirmed by every gateway with a lease.",
                &self.propagation,
            ),
            counter(
                "keygate_propagation_unconfirmed_total",
                "Changes made here whose caller was answered before every gateway with a lease had confirmed them.",
                read(&self.unconfirmed),
            ),
        ]
    }
}

/// Upper bounds in nanoseconds: from one machine to what is promised, and beyond.
pub(super) const LAG_BUCKETS: [u64; 14] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];
