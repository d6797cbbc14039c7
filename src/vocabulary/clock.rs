//! Time as an argument.
//!
//! Stages do not read the machine's clock: each takes a [`Now`]. The code that starts a request, a load or a
//! sweep reads it once from its [`Clock`]. Tests move a shifted clock by hand.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A point in time on the wall clock, in milliseconds since the Unix epoch. Expiry dates are compared with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The point `by` later; saturates at `u64::MAX`.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The point `by` earlier; saturates at the epoch.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The time to the second, as HTTP writes it (RFC 9110, section 5.6.7).
    #[must_use]
    pub fn http_date(self) -> String {
        const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        // 2026-01-31T12:00:00.000Z
        let text = self.to_string();
        let days = self.0 / (24 * 60 * 60 * 1000);
        let weekday = WEEKDAYS[usize::try_from(days % 7).unwrap_or_default()];
        let month =
            text[5..7].parse().ok().and_then(|month: usize| MONTHS.get(month - 1)).unwrap_or(&MONTHS[0]);
        format!("{weekday}, {} {month} {} {} GMT", &text[8..10], &text[..4], &text[11..19])
    }

    /// Parses RFC 3339 (section 5.6), to the millisecond: in UTC or with an offset, `T` and `Z` in either case, and a blank
    /// in the place of `T`. A leap second counts as the second before it.
    ///
    /// # Errors
    /// Any other text, and times before the epoch or after the year 9999.
    pub fn parse(text: &str) -> Result<Self, InvalidTime> {
        let (local, east) = split_offset(text).ok_or(InvalidTime)?;
        let local = humantime::parse_rfc3339(&local).map_err(|_| InvalidTime)?;
        let local = local.duration_since(UNIX_EPOCH).map_err(|_| InvalidTime)?;
        let local = u64::try_from(local.as_millis()).map_err(|_| InvalidTime)?;
        let at = local.checked_add_signed(-east * 60 * 1000).ok_or(InvalidTime)?;
        if at <= LAST { Ok(Self(at)) } else { Err(InvalidTime) }
    }
}

/// The last millisecond of the year 9999, the last that RFC 3339 can write.
const LAST: u64 = 253_402_300_799_999;

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a time is RFC 3339, as in 2026-01-31T12:00:00Z or 2026-01-31T14:00:00+02:00")]
pub struct InvalidTime;

/// A time without its offset, written as in UTC, and the offset: how many minutes its clocks are ahead of UTC.
fn split_offset(text: &str) -> Option<(String, i64)> {
    let (seconds, rest) = text.split_at_checked("2026-01-31T12:00:00".len())?;
    let (date, clock) = seconds.split_once(['T', 't', ' '])?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        None => ("0", rest),
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
    };
    // Digits below the nanosecond are cut off.
    let fraction = fraction.get(..9).unwrap_or(fraction);
    if fraction.is_empty() {
        return None;
    }
    Some((format!("{date}T{clock}.{fraction}Z"), offset(zone)?))
}

fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, rest) = zone.split_at_checked(1)?;
    let (hours, minutes) = rest.split_once(':')?;
    let number = |text: &str, limit| {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i64>().ok().filter(|number| is_number && *number < limit)
    };
    let offset = number(hours, 24)? * 60 + number(minutes, 60)?;
    match sign {
        "+" => Some(offset),
        "-" => Some(-offset),
        _ => None,
    }
}

/// RFC 3339 in UTC with milliseconds, the API's notation for times.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = UNIX_EPOCH + Duration::from_millis(self.0.min(LAST));
        fmt::Display::fmt(&humantime::format_rfc3339_millis(at), f)
    }
}

impl fmt::Debug for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One reading of both clocks: `mono` measures durations, `wall` gives dates.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub mono: Instant,
    pub wall: UnixMillis,
}

/// The source of a [`Now`].
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// By how many milliseconds a test has moved this clock ahead; `None` in production.
    shift: Option<Arc<AtomicU64>>,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub const fn system() -> Self {
        Self { shift: None }
    }

    /// The machine's clock, moved ahead by the returned [`Shift`].
    #[must_use]
    pub fn shifted() -> (Self, Shift) {
        let millis = Arc::new(AtomicU64::new(0));
        (Self { shift: Some(Arc::clone(&millis)) }, Shift { millis })
    }

    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the wrapper that hands time on")]
    pub fn now(&self) -> Now {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX));
        let now = Now { mono: Instant::now(), wall };
        match &self.shift {
            None => now,
            Some(shift) => {
                let by = Duration::from_millis(shift.load(Ordering::Relaxed));
                Now { mono: now.mono + by, wall: now.wall.plus(by) }
            }
        }
    }

    /// The monotonic clock alone.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the wrapper that hands time on")]
    pub fn mono(&self) -> Instant {
        match &self.shift {
            None => Instant::now(),
            Some(shift) => Instant::now() + Duration::from_millis(shift.load(Ordering::Relaxed)),
        }
    }
}

/// Moves a shifted [`Clock`], and all its copies, ahead.
#[derive(Clone, Debug)]
pub struct Shift {
    millis: Arc<AtomicU64>,
}

impl Shift {
    pub fn advance(&self, by: Duration) {
        self.millis.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_rfc_3339_in_utc() {
        assert_eq!(UnixMillis(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(UnixMillis(1_790_000_000_123).to_string(), "2026-09-21T14:13:20.123Z");
        assert_eq!(UnixMillis(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn http_has_a_notation_of_its_own() {
        assert_eq!(UnixMillis(0).http_date(), "Thu, 01 Jan 1970 00:00:00 GMT");
        // The example of the RFC.
        assert_eq!(UnixMillis(784_111_777_000).http_date(), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn what_is_printed_can_be_read_and_nothing_vaguer() {
        for at in [0, 1_790_000_000_123, 253_402_300_799_999] {
            assert_eq!(UnixMillis::parse(&UnixMillis(at).to_string()), Ok(UnixMillis(at)));
        }
        assert_eq!(UnixMillis::parse("2026-09-21T14:13:20Z"), Ok(UnixMillis(1_790_000_000_000)));
        for bad in ["", "2026-09-21", "2026-09-21T14:13:20", "2026-09-21T14:13Z", "1790000000"] {
            assert_eq!(UnixMillis::parse(bad), Err(InvalidTime), "{bad}");
        }
    }

    #[test]
    fn times_are_read_in_every_notation_of_rfc_3339() {
        for (text, at) in [
            ("2026-09-21T16:13:20+02:00", 1_790_000_000_000),
            ("2026-09-21T08:43:20.123-05:30", 1_790_000_000_123),
            ("2026-09-21T14:13:20-00:00", 1_790_000_000_000),
            ("2026-09-21t14:13:20z", 1_790_000_000_000),
            ("2026-09-21 14:13:20Z", 1_790_000_000_000),
            ("2026-09-22T14:12:20.5+23:59", 1_790_000_000_500),
            ("2026-09-21T14:13:20.123456789123Z", 1_790_000_000_123),
            ("2016-12-31T23:59:60Z", 1_483_228_799_000),
            ("1970-01-01T02:00:00+02:00", 0),
        ] {
            assert_eq!(UnixMillis::parse(text), Ok(UnixMillis(at)), "{text}");
        }
        for bad in [
            "2026-09-21T14:13:20+0200",
            "2026-09-21T14:13:20+2:00",
            "2026-09-21T14:13:20+24:00",
            "2026-09-21T14:13:20+02:60",
            "2026-09-21T14:13:20+-2:00",
            "2026-09-21T14:13:20.Z",
            "2026-09-21T14:13:20,5Z",
            "2026-09-21T14:13:20+02:00Z",
            "2026-09-21T14:13:20Zx",
            "2026-09-21_14:13:20Z",
            "2026-02-29T14:13:20Z",
            "2026-09-21T24:00:00Z",
            "1970-01-01T01:00:00+02:00",
            "9999-12-31T23:59:59-01:00",
            "2026-09-21T14:13:2\u{664}Z",
        ] {
            assert_eq!(UnixMillis::parse(bad), Err(InvalidTime), "{bad}");
        }
    }

    #[test]
    fn a_shifted_clock_moves_both_readings_by_the_same_amount() {
        let (clock, shift) = Clock::shifted();
        let before = clock.now();
        shift.advance(Duration::from_secs(3600));
        let after = clock.now();
        assert!(after.mono - before.mono >= Duration::from_secs(3600));
        assert!(after.wall.0 - before.wall.0 >= 3_600_000);
    }
}
