//! The breaker: while Redis does not answer, callers fail at once instead of waiting.

use std::time::{Duration, Instant};

use crate::store::StoreFault;

/// Failures in a row after which Redis is not asked for a while.
const FAILURES: u32 = 3;
/// The pause. After it, one caller at a time tries Redis.
const PAUSE: Duration = Duration::from_millis(250);

/// The recent outcomes of calls to Redis. A caller that was admitted as a probe must report its end, with
/// [`Breaker::fail`] or [`Breaker::end_probe`].
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    last: Option<(Instant, StoreFault)>,
    probing: bool,
}

impl Breaker {
    /// Whether to call Redis now; if so, whether as a probe.
    pub(super) fn admit(&mut self, now: Instant) -> Result<bool, StoreFault> {
        if let Some(fault) = self.turns_away(now) {
            return Err(fault.clone());
        }
        self.probing = self.failures >= FAILURES;
        Ok(self.probing)
    }

    /// The fault with which a call fails at once now, if it does.
    pub(super) fn turns_away(&self, now: Instant) -> Option<&StoreFault> {
        let (failed_at, fault) = self.last.as_ref()?;
        let pauses = self.probing || now.saturating_duration_since(*failed_at) < PAUSE;
        (self.failures >= FAILURES && pauses).then_some(fault)
    }

    /// Whether it opens now.
    pub(super) fn fail(&mut self, now: Instant, fault: &StoreFault) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.last = Some((now, fault.clone()));
        self.failures == FAILURES
    }

    /// The probe has gone away; another caller may be the next.
    pub(super) const fn end_probe(&mut self) {
        self.probing = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::clock::Clock;

    #[test]
    fn after_failures_in_a_row_redis_is_spared_until_one_caller_has_found_it_well() {
        let (mut breaker, start) = (Breaker::default(), Clock::system().now().mono);
        for n in 1..=FAILURES {
            assert_eq!(breaker.turns_away(start), None);
            assert_eq!(breaker.admit(start), Ok(false));
            assert_eq!(breaker.fail(start, &StoreFault::TimedOut), n == FAILURES);
        }
        assert_eq!(breaker.turns_away(start), Some(&StoreFault::TimedOut));
        assert_eq!(breaker.admit(start), Err(StoreFault::TimedOut));
        assert_eq!(breaker.turns_away(start + PAUSE), None, "one would not be");
        assert_eq!(breaker.admit(start + PAUSE), Ok(true), "one tries");
        assert_eq!(breaker.admit(start + PAUSE), Err(StoreFault::TimedOut), "and nobody else");
        breaker.end_probe();
        assert!(!breaker.fail(start + PAUSE, &StoreFault::TimedOut), "it is open");
        assert_eq!(breaker.admit(start + PAUSE), Err(StoreFault::TimedOut), "the pause begins again");
        assert_eq!(breaker.admit(start + 2 * PAUSE), Ok(true));
    }
}
