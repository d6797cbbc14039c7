//! A limit on how often one thing is logged.

use std::cell::Cell;
use std::time::Instant;

use super::log::log;
use super::pace::is_due;

/// Lets one thing be logged at most every ten seconds.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Cell<Option<Instant>>,
}

impl Throttle {
    /// Logs the line, unless this throttle logged one less than ten seconds before `now`. Says whether it did.
    pub fn log(&self, now: Instant, line: impl FnOnce() -> String) -> bool {
        let mut last = self.last.get();
        let is_due = is_due(&mut last, now);
        if is_due {
            self.last.set(last);
            log(&line());
        }
        is_due
    }
}
