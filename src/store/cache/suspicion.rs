//! What a store's answers are worth that may have been replaced.
//!
//! Such a store knows nothing of keys that were made since: that it has none says nothing. Whom it knows it may tell
//! for as long as a lease. After that its word is the past's, and this process as good as cut off: it goes on with
//! what it has within the stale window, in which nothing grows younger by being looked up there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::ReadThrough;
use crate::store::{LEASE, Lookup, StoreFault};
use crate::vocabulary::clock::Now;

/// Whether the store is suspected, and since when.
#[derive(Debug)]
pub(super) struct Suspicion {
    /// In milliseconds of the cache's life; [`NEVER`] while there is none.
    since: AtomicU64,
    /// How often it has begun or ended.
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

    /// What must be the same before a lookup and after it, so that it is known whose answer it was.
    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }
}

impl ReadThrough {
    /// How long it may be that the store speaks of the past only.
    pub(super) fn suspected_for(&self, now: Now) -> Option<Duration> {
        let since = self.suspicion.since.load(Ordering::Relaxed);
        (since != NEVER).then(|| Duration::from_millis(self.since_began(now).saturating_sub(since)))
    }

    /// A lookup's answer, if it counts for anything.
    pub(super) fn weigh(&self, answer: Lookup) -> Lookup {
        match (self.suspected_for(self.clock.now()), &answer) {
            (None, _) | (Some(_), Lookup::Unavailable(_)) => answer,
            (Some(suspected), Lookup::Found(_)) if suspected < LEASE => answer,
            (Some(_), _) => Lookup::Unavailable(StoreFault::failed(SUSPECT)),
        }
    }
}

const SUSPECT: &str = "the store answers, but takes no changes: another may have taken its place";
