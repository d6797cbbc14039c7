//! How often a client may do what costs more than it should: so many times at once, and so many again every second.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// The number of times that a client may still do something. Time gives it back, so a connection that lives for days is not punished
/// for its age.
#[derive(Debug)]
pub(super) struct Allowance {
    most: u32,
    per_second: u32,
    spent: Cell<u32>,
    /// Up to when time has given back.
    since: Cell<Option<Instant>>,
}

impl Allowance {
    /// `most` at once; time gives back `per_second`.
    pub(super) const fn new(most: u32, per_second: u32) -> Self {
        Self { most, per_second, spent: Cell::new(0), since: Cell::new(None) }
    }

    /// The client has done it once more.
    pub(super) fn spend(&self, now: Instant) {
        self.give_back_by_time(now);
        self.spent.set(self.spent.get().saturating_add(1));
    }

    /// The client has made good for one.
    pub(super) fn give_back(&self) {
        self.spent.set(self.spent.get().saturating_sub(1));
    }

    /// Whether the client has done it more often than it may. The time is asked for only where it matters, which is
    /// nearly never.
    pub(super) fn is_spent(&self, now: impl FnOnce() -> Instant) -> bool {
        if self.spent.get() <= self.most {
            return false;
        }
        self.give_back_by_time(now());
        self.spent.get() > self.most
    }

    fn give_back_by_time(&self, now: Instant) {
        let Some(since) = self.since.get().filter(|_| self.spent.get() > 0) else {
            self.since.set(Some(now));
            return;
        };
        let due = now.saturating_duration_since(since).as_millis() * u128::from(self.per_second) / 1000;
        let Ok(due @ 1..) = u32::try_from(due.min(u128::from(u32::MAX))) else { return };
        self.spent.set(self.spent.get().saturating_sub(due));
        // A part of one is not lost.
        self.since.set(Some(since + Duration::from_secs(1) * due / self.per_second));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_spent_by_more_than_its_number_at_once() {
        let (allowance, now) = (Allowance::new(3, 10), Instant::now());
        for _ in 0..3 {
            allowance.spend(now);
            assert!(!allowance.is_spent(|| now));
        }
        allowance.spend(now);
        assert!(allowance.is_spent(|| now));
        allowance.give_back();
        assert!(!allowance.is_spent(|| now));
    }

    #[test]
    fn time_gives_back_and_no_more_than_was_spent() {
        let (allowance, begun) = (Allowance::new(3, 10), Instant::now());
        let after = |millis| begun + Duration::from_millis(millis);
        (0..4).for_each(|_| allowance.spend(begun));
        assert!(allowance.is_spent(|| after(99)));
        assert!(!allowance.is_spent(|| after(100)));
        (0..4).for_each(|_| allowance.spend(after(60_000)));
        assert!(allowance.is_spent(|| after(60_099)), "an hour of silence is no credit");
        // One every 150 ms is less than is given back, for ever.
        let steady = Allowance::new(3, 10);
        for n in 0..10_000 {
            steady.spend(after(n * 150));
            assert!(!steady.is_spent(|| after(n * 150)), "{n}");
        }
    }
}
