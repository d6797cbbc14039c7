//! How often one thing is logged.

use std::time::{Duration, Instant};

/// The pause between two lines about one thing.
const EVERY: Duration = Duration::from_secs(10);

/// Whether another line may be logged, where the last one was logged at `last`, which becomes `now` then.
pub(super) fn is_due(last: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= EVERY);
    if is_due {
        *last = Some(now);
    }
    is_due
}
