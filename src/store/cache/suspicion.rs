//! The rules for the answers of a store that may have been replaced by another.
//!
//! Such a store does not know keys that were made since: "absent" proves nothing. A found key counts for the time of
//! a lease. After that its answers are outdated, and this process counts as cut off: it uses its cached entries
//! within the stale window, and a lookup there does not refresh them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::ReadThrough;
use crate::store::{LEASE, Lookup, StoreFault};
use crate::vocabulary::clock::Now;

/// Whether the store is suspected, and since when.
#[derive(Debug)]
pub(super) struct Suspicion {
    /// In milliseconds since the cache began; [`NEVER`] while there is no suspicion.
    since: AtomicU64,
    /// How often a suspicion has begun or ended.
    turns: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl Default for Suspicion {
    fn default() -> Self {
        Self { since: AtomicU64::new(NEVER), turns: AtomicU64::new(0) }
    }
}

impl Suspicion {
    pub(super) fn turn(&self, since: Option<u64>) {
        self.since.store(since.unwrap_or(NEVER), Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Release);
    }

    /// A value that must be the same before and after a lookup: then it is known which server answered.
    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }
}

impl ReadThrough {
    /// For how long the answers of the store may have been outdated.
    pub(super) fn suspected_for(&self, now: Now) -> Option<Duration> {
        let since = self.suspicion.since.load(Ordering::Relaxed);
        (since != NEVER).then(|| Duration::from_millis(self.since_began(now).saturating_sub(since)))
    }

    /// A lookup's answer, if it counts.
    pub(super) fn weigh(&self, answer: Lookup) -> Lookup {
        match (self.suspected_for(self.clock.now()), &answer) {
            (None, _) | (Some(_), Lookup::Unavailable(_)) => answer,
            (Some(suspected), Lookup::Found(_)) if suspected < LEASE => answer,
            (Some(_), _) => Lookup::Unavailable(StoreFault::failed(SUSPECT)),
        }
    }
}

const SUSPECT: &str = "the store answers, but takes no changes: another may have taken its place";
