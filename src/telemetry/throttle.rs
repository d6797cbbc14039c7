//! A limit on how often one thing is logged.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::log::log;

/// Lets one thing be logged at most every ten seconds.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Cell<Option<Instant>>,
}

impl Throttle {
    const EVERY: Duration = Duration::from_secs(10);

    /// Logs the line, unless this throttle logged one less than ten seconds before `now`.
    pub fn log(&self, now: Instant, line: impl FnOnce() -> String) {
        if self.last.get().is_none_or(|last| now.saturating_duration_since(last) >= Self::EVERY) {
            self.last.set(Some(now));
            log(&line());
        }
    }
}
