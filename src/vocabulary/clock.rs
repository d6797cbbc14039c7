//! Time as an argument.
//!
//! Stages do not read the machine's clock: each takes a [`Now`]. The code that starts a request, a load or a
//! sweep reads it once from its [`Clock`]. Tests move a shifted clock by hand.
//!
//! Durations are measured by the boot clock, which goes on while the machine is suspended: a lease that ended meanwhile has
//! ended. Dates are those of the store's clock, as far as the store has told it, so that all gateways judge by one clock. If the
//! machine's own clock differs from it by more than [`AGREED`], one of the two is wrong, and the own one counts.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
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

/// One reading of both clocks: `mono` measures durations, also those in which the machine slept; `wall` gives dates, by the
/// store's clock where the machine's own agrees with it.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub mono: Instant,
    pub wall: UnixMillis,
}

/// How far the machine's clock may be from the store's. Beyond it nobody can tell which of the two is wrong: keys end by the
/// machine's clock, and nothing is deleted for its age.
pub const AGREED: Duration = Duration::from_secs(60);

/// A difference of clocks up to this one is no reason for a word. Clocks that are kept in step differ by milliseconds.
pub const TOLERATED: Duration = Duration::from_secs(5);

/// By how many milliseconds the one date is ahead of the other; negative if it is behind.
#[must_use]
pub fn ahead(one: UnixMillis, other: UnixMillis) -> i64 {
    signed(one.0) - signed(other.0)
}

/// The source of a [`Now`].
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// How a test has moved this clock; `None` in production.
    shift: Option<Shift>,
    store: StoreTime,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// The machine's clock, moved by the returned [`Shift`].
    #[must_use]
    pub fn shifted() -> (Self, Shift) {
        let shift = Shift::default();
        (Self { shift: Some(shift.clone()), store: StoreTime::default() }, shift)
    }

    #[must_use]
    pub fn now(&self) -> Now {
        let alive = self.alive();
        let own = self.own();
        let agreed = self.store.at(alive).filter(|store| own.0.abs_diff(store.0) <= millis(AGREED));
        Now { mono: origin().instant + alive, wall: agreed.unwrap_or(own) }
    }

    /// The boot clock alone.
    #[must_use]
    pub fn mono(&self) -> Instant {
        origin().instant + self.alive()
    }

    /// The date by the machine's own clock, whatever the store says.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the wrapper that hands time on")]
    pub fn own(&self) -> UnixMillis {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = UnixMillis(millis(since_epoch));
        self.shift.as_ref().map_or(wall, |shift| shift.wall(wall))
    }

    /// From now on the store's clock shows this date at this moment. All copies of this clock follow it.
    pub fn follow(&self, store: UnixMillis, at: Instant) {
        let alive = at.saturating_duration_since(origin().instant);
        self.store.set(signed(store.0) - signed(millis(alive)));
    }

    /// As [`Clock::follow`], for a clock elsewhere that showed this date. Time that passes in a test passes there, too.
    pub fn follow_remote(&self, store: UnixMillis, at: Instant) {
        let ahead = self.shift.as_ref().map_or(0, Shift::ahead);
        self.follow(store.plus(Duration::from_millis(ahead)), at);
    }

    /// The store's date; `None` while it has not been told.
    #[must_use]
    pub fn store(&self) -> Option<UnixMillis> {
        self.store.at(self.alive())
    }

    /// The date by which a store keeps things for a time: its own, however far off the machine's is; the machine's while the
    /// store's is not known.
    #[must_use]
    pub fn kept(&self) -> UnixMillis {
        self.store().unwrap_or_else(|| self.own())
    }

    /// How many milliseconds the machine's clock is ahead of the store's; negative if it is behind, `None` while the store's is
    /// not known.
    #[must_use]
    pub fn ahead_of_store(&self) -> Option<i64> {
        self.store().map(|store| ahead(self.own(), store))
    }

    /// The moment, and how the machine's two clocks stand to each other then.
    #[must_use]
    pub fn reading(&self) -> Reading {
        let alive = self.alive();
        let drift = Drift(signed(self.own().0) - signed(millis(alive)));
        Reading { mono: origin().instant + alive, drift }
    }

    /// How long this process has known the time, by the boot clock.
    fn alive(&self) -> Duration {
        let alive = since_boot().saturating_sub(origin().since_boot);
        self.shift.as_ref().map_or(alive, |shift| alive + Duration::from_millis(shift.ahead()))
    }
}

/// A moment, and how the machine's two clocks stand to each other then.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub mono: Instant,
    pub drift: Drift,
}

/// How many milliseconds the machine's date is ahead of its boot clock, from some moment on. It stays the same, but for what is
/// slewed, while both go on alike. It jumps when the date is set; so also after a pause of a virtual machine that stopped its boot
/// clock, as soon as its date is set right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift(pub i64);

impl Drift {
    /// Whether one of the clocks jumped between the two, by more than a second: then it cannot be told how long ago the earlier
    /// one was.
    #[must_use]
    pub const fn has_jumped_since(self, earlier: Self) -> bool {
        self.0.abs_diff(earlier.0) > JUMP
    }
}

/// In milliseconds. More than slewing moves a date within the life of a lease, and than a thread waits between two readings.
const JUMP: u64 = 1000;

/// The store's clock, as the date that it showed when this process began; [`UNKNOWN`] while it was not told.
#[derive(Clone, Debug)]
struct StoreTime(Arc<AtomicI64>);

const UNKNOWN: i64 = i64::MIN;

impl Default for StoreTime {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(UNKNOWN)))
    }
}

impl StoreTime {
    fn set(&self, at_origin: i64) {
        self.0.store(at_origin, Ordering::Relaxed);
    }

    fn at(&self, alive: Duration) -> Option<UnixMillis> {
        let at_origin = self.0.load(Ordering::Relaxed);
        (at_origin != UNKNOWN)
            .then(|| UnixMillis(u64::try_from(at_origin + signed(millis(alive))).unwrap_or_default()))
    }
}

/// The moment from which this process measures: the standard library has no instants of the boot clock.
struct Origin {
    instant: Instant,
    since_boot: Duration,
}

#[expect(clippy::disallowed_methods, reason = "this is the wrapper that hands time on")]
fn origin() -> &'static Origin {
    static ORIGIN: OnceLock<Origin> = OnceLock::new();
    ORIGIN.get_or_init(|| Origin { instant: Instant::now(), since_boot: since_boot() })
}

/// The boot clock. Linux reads it without a system call, as it does the monotonic one, which stops during a suspend.
#[cfg(target_os = "linux")]
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Elsewhere the monotonic clock.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::disallowed_methods, reason = "this is the wrapper that hands time on")]
fn since_boot() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}

/// Without the wide numbers of the standard library: every request reads the clock.
const fn millis(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1000).saturating_add(duration.subsec_millis() as u64)
}

/// Dates are far below the half of their range.
fn signed(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX / 2)
}

/// Moves a shifted [`Clock`], and all its copies.
#[derive(Clone, Debug, Default)]
pub struct Shift {
    ahead: Arc<AtomicU64>,
    wall: Arc<AtomicI64>,
}

impl Shift {
    /// Time passes: both readings go ahead.
    pub fn advance(&self, by: Duration) {
        self.ahead.fetch_add(millis(by), Ordering::Relaxed);
    }

    /// The date is set by so many milliseconds, forwards or back, and no time passes.
    pub fn step_wall(&self, by: i64) {
        self.wall.fetch_add(by, Ordering::Relaxed);
    }

    fn ahead(&self) -> u64 {
        self.ahead.load(Ordering::Relaxed)
    }

    fn wall(&self, wall: UnixMillis) -> UnixMillis {
        UnixMillis(
            wall.0.saturating_add(self.ahead()).saturating_add_signed(self.wall.load(Ordering::Relaxed)),
        )
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

    #[test]
    fn dates_follow_the_store_while_the_machine_agrees_within_a_minute() {
        let (clock, shift) = Clock::shifted();
        let copy = clock.clone();
        assert_eq!((clock.ahead_of_store(), clock.store()), (None, None));
        let own = clock.own();
        clock.follow(own.minus(Duration::from_secs(50)), clock.mono());
        let near = |ahead: i64| copy.ahead_of_store().is_some_and(|found| found.abs_diff(ahead) < 2000);
        assert!(near(50_000));
        assert!(copy.now().wall < own, "the store's date counts");
        shift.step_wall(20_000);
        assert!(near(70_000));
        assert!(copy.now().wall > own, "the own date counts");
        shift.step_wall(-80_000);
        assert!(near(-10_000) && copy.now().wall > copy.own());
        // Time that passes, also in a suspend, makes no difference between the two.
        shift.advance(Duration::from_secs(3600));
        assert!(near(-10_000) && copy.now().wall > copy.own());
    }

    #[test]
    fn a_date_that_is_set_shows_and_time_that_passes_does_not() {
        let (clock, shift) = Clock::shifted();
        let before = clock.reading();
        shift.advance(Duration::from_secs(100_000));
        assert!(!clock.reading().drift.has_jumped_since(before.drift));
        for step in [5000, -10_000] {
            let before = clock.reading().drift;
            shift.step_wall(step);
            assert!(clock.reading().drift.has_jumped_since(before));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn time_is_measured_by_the_boot_clock_which_goes_on_during_a_suspend() {
        let clock = Clock::system();
        let before = (clock.mono(), since_boot());
        let after = (since_boot(), clock.mono());
        assert!(after.1 - before.0 >= after.0 - before.1);
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // The kernel tells its uptime by the boot clock.
        assert!((since_boot().as_secs_f64() - uptime).abs() < 5.0, "{:?}, {uptime}", since_boot());
    }
}
