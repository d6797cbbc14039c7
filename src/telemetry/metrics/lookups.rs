//! Lookups of keys that had to wait for their turn, or did not get one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto::MetricFamily;

use super::cell::read;
use super::family::{counters, histograms};
use super::histogram::Histogram;

/// Measures the queue of lookups.
#[derive(Debug)]
pub struct LookupMeter {
    waited: Histogram<9>,
    /// By [`NoTurn`].
    refused: [AtomicU64; NoTurn::ALL.len()],
}

impl Default for LookupMeter {
    fn default() -> Self {
        Self { waited: Histogram::new(&WAIT_BUCKETS), refused: NoTurn::ALL.map(|_| AtomicU64::new(0)) }
    }
}

impl LookupMeter {
    /// A request got its turn after this time in the queue.
    pub fn waited(&self, time: Duration) {
        self.waited.observe_shared(time);
    }

    /// A request was refused without a turn.
    pub fn refused(&self, cause: NoTurn) {
        self.refused[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn families(&self) -> [MetricFamily; 2] {
        let causes = NoTurn::ALL.into_iter();
        [
            histograms(
                "keygate_lookup_wait_seconds",
                "How long requests waited for the turn of their lookup, of those that had to wait and got one.",
                [([], std::iter::once(&self.waited))],
            ),
            counters(
                "keygate_lookups_refused_total",
                "Requests refused with 503 because their lookup got no turn: the queue was full, or it came too late, or \
                 the store failed meanwhile.",
                causes.map(|cause| ([("cause", cause.label())], read(&self.refused[cause as usize]))),
            ),
        ]
    }
}

/// Why a lookup got no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// The queue was full.
    Full,
    /// It waited for the longest time.
    Late,
    /// Another lookup found that the store does not answer.
    Store,
}

impl NoTurn {
    const ALL: [Self; 3] = [Self::Full, Self::Late, Self::Store];

    const fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Late => "late",
            Self::Store => "store",
        }
    }
}

/// Upper bounds in nanoseconds: from one lookup in memory to the longest wait.
const WAIT_BUCKETS: [u64; 9] =
    [100_000, 500_000, 1_000_000, 5_000_000, 10_000_000, 50_000_000, 100_000_000, 500_000_000, 1_000_000_000];
