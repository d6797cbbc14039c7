//! The store's own clock: the newest time recorded in the file, carried on by the boot clock.
//!
//! It tells a machine whose date is wrong from one whose date is right, so that nothing is deleted for its age by a wrong one. It
//! comes to agree with the machine's date by itself, but no faster than time passes: after a night without power it is behind, and
//! agrees as long after the start as the night was; and a date that is a year ahead is believed after a year.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable};

use super::tables::{META, TIME, Tables, number};
use super::writer::Stop;
use crate::store::StoreFault;
use crate::vocabulary::clock::{AGREED, Clock, UnixMillis};

#[derive(Clone)]
pub(super) struct FileTime {
    clock: Clock,
    /// The store's date, and when it was worked out.
    last: Arc<Mutex<(UnixMillis, Instant)>>,
}

impl FileTime {
    /// Goes on from the time in the file. A file without one is new, or an older release has made it: the machine is believed.
    pub(super) fn of(database: &Database, clock: Clock) -> Result<Self, StoreFault> {
        let now = recorded(database)?.unwrap_or_else(|| clock.own());
        let time = Self { last: Arc::new(Mutex::new((now, clock.mono()))), clock };
        time.now();
        Ok(time)
    }

    /// The store's date.
    pub(super) fn now(&self) -> UnixMillis {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, at) = (self.clock.own(), self.clock.mono());
        let now = carried(last.0, at.saturating_duration_since(last.1), own);
        *last = (now, at);
        self.clock.follow(now, at);
        now
    }
}

/// The newest time in the file.
pub(super) fn recorded(database: &Database) -> Result<Option<UnixMillis>, StoreFault> {
    let file = database.begin_read()?;
    let recorded = file.open_table(META)?.get(TIME)?.and_then(|time| number(time.value()));
    Ok(recorded.map(UnixMillis))
}

/// The store's date after so much time, of which the machine says that its date is `own`.
fn carried(before: UnixMillis, passed: Duration, own: UnixMillis) -> UnixMillis {
    let now = before.plus(passed);
    if now.0.abs_diff(own.0) <= u64::try_from(AGREED.as_millis()).unwrap_or(u64::MAX) {
        return own;
    }
    // One of the two is wrong. The store's goes at twice the speed, or stands still.
    if own > now { now.plus(passed).min(own) } else { before.max(own) }
}

impl Tables<'_> {
    /// Writes the store's date down, so that the next start goes on from it.
    pub(super) fn note_time(&mut self, time: UnixMillis) -> Result<(), Stop> {
        let recorded = self.meta.get(TIME)?.and_then(|time| number(time.value()));
        if recorded.is_none_or(|recorded| recorded < time.0) {
            self.meta.insert(TIME, &time.0.to_be_bytes()[..])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const AT: UnixMillis = UnixMillis(1_790_000_000_000);

    #[test]
    fn it_goes_with_the_machine_while_both_agree() {
        let own = AT.plus(HOUR).plus(Duration::from_secs(59));
        assert_eq!(carried(AT, HOUR, own), own);
        let own = AT.plus(HOUR).minus(Duration::from_secs(59));
        assert_eq!(carried(AT, HOUR, own), own);
    }

    #[test]
    fn a_date_that_is_far_off_is_approached_no_faster_than_time_passes() {
        assert_eq!(carried(AT, HOUR, AT.plus(HOUR * 24 * 402)), AT.plus(HOUR * 2));
        assert_eq!(carried(AT, HOUR, AT.minus(HOUR * 24 * 402)), AT);
        // A machine that was off for three hours is believed three hours after its start.
        let (mut store, mut own) = (AT, AT.plus(HOUR * 3));
        for hour in 1..=3 {
            own = own.plus(HOUR);
            store = carried(store, HOUR, own);
            assert_eq!(store == own, hour == 3, "after {hour} h");
        }
        // So is one whose date was ahead for as long.
        let (mut store, mut own) = (AT.plus(HOUR * 3), AT);
        for hour in 1..=3 {
            own = own.plus(HOUR);
            store = carried(store, HOUR, own);
            assert_eq!(store == own, hour == 3, "after {hour} h");
        }
    }
}
