//! How long the store takes, and whether it answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::proto::MetricFamily;

use super::family::{gauge, histogram, histograms};
use super::histogram::{Histogram, LAG_BUCKETS};

/// Measures a store.
#[derive(Debug)]
pub struct StoreMeter {
    up: AtomicBool,
    has_answered: AtomicBool,
    /// By [`StoreOperation`].
    operations: [Histogram<9>; StoreOperation::ALL.len()],
    lag: Histogram<14>,
}

impl Default for StoreMeter {
    fn default() -> Self {
        Self {
            up: AtomicBool::new(true),
            has_answered: AtomicBool::new(false),
            operations: StoreOperation::ALL.map(|_| Histogram::new(&STORE_BUCKETS)),
            lag: Histogram::new(&LAG_BUCKETS),
        }
    }
}

impl StoreMeter {
    /// An operation has ended after this time, with an answer of the store or without.
    pub fn note(&self, operation: StoreOperation, took: Duration, answered: bool) {
        self.operations[operation as usize].observe_shared(took);
        self.up.store(answered, Ordering::Relaxed);
        self.has_answered.fetch_or(answered, Ordering::Relaxed);
    }

    /// An event was applied here this time after it was written.
    pub fn note_event(&self, lag: Duration) {
        self.lag.observe_shared(lag);
    }

    /// Whether the store answered the last operation.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether the store has answered any operation since the start.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    pub(super) fn families(&self) -> [MetricFamily; 3] {
        let operations = StoreOperation::ALL.into_iter().zip(&self.operations);
        [
            gauge(
                "keygate_store_up",
                "Whether the store answered the last operation.",
                f64::from(self.is_up()),
            ),
            histograms(
                "keygate_store_request_duration_seconds",
                "How long the store took.",
                operations.map(|(operation, took)| ([("op", operation.label())], std::iter::once(took))),
            ),
            histogram(
                "keygate_revocation_lag_seconds",
                "From the moment an event was written to the moment it was applied here. With Redis, the first moment is by \
                 Redis' clock, which is read once a second (the error is half the round trip of that reading); with the \
                 embedded store it is the commit.",
                &self.lag,
            ),
        ]
    }
}

/// An operation of a store.
#[derive(Clone, Copy, Debug)]
pub enum StoreOperation {
    Lookup,
    Read,
    Commit,
    Trail,
    Answer,
    Usage,
    Outbox,
    Quota,
}

impl StoreOperation {
    const ALL: [Self; 8] = [
        Self::Lookup,
        Self::Read,
        Self::Commit,
        Self::Trail,
        Self::Answer,
        Self::Usage,
        Self::Outbox,
        Self::Quota,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Read => "read",
            Self::Commit => "commit",
            Self::Trail => "trail",
            Self::Answer => "answer",
            Self::Usage => "usage",
            Self::Outbox => "outbox",
            Self::Quota => "quota",
        }
    }
}

/// Upper bounds in nanoseconds: from memory to a time-out.
const STORE_BUCKETS: [u64; 9] =
    [50_000, 100_000, 250_000, 1_000_000, 5_000_000, 25_000_000, 100_000_000, 250_000_000, 1_000_000_000];
