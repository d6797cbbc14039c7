//! Durations on the command line, and what to write in the place of something else.

use std::time::Duration;

use crate::vocabulary::clock::{Clock, UnixMillis};

/// Parses a duration, as in `90d`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a number and a unit, as in 90d, 12h or 30m".to_owned())
}

/// Parses the time until a key expires that need not expire.
pub(super) fn parse_optional_lifetime(text: &str) -> Result<Duration, String> {
    lifetime(text, "without this option a key never expires: leave it out")
}

/// Parses the time until a key expires, for a key that has an end or none already.
pub(super) fn parse_changed_lifetime(text: &str) -> Result<Duration, String> {
    lifetime(text, "without this option the end of the key stays as it is")
}

/// Parses the time until an operator's token expires, as each does.
pub(super) fn parse_token_lifetime(text: &str) -> Result<Duration, String> {
    lifetime(text, "a token always expires: write a long time, as in 365d")
}

fn lifetime(text: &str, never: &str) -> Result<Duration, String> {
    parse(text).map_err(|advice| {
        if ["never", "none", "no", "off", "-"].iter().any(|word| text.eq_ignore_ascii_case(word)) {
            never.to_owned()
        } else if let Some(end) = date(text) {
            until(end, Clock::system().now().wall)
        } else {
            advice
        }
    })
}

/// The time that a date or a point in time means; a date is its beginning in UTC.
fn date(text: &str) -> Option<UnixMillis> {
    UnixMillis::parse(text).or_else(|_| UnixMillis::parse(&format!("{text}T00:00:00Z"))).ok()
}

fn until(end: UnixMillis, now: UnixMillis) -> String {
    const HOUR: u64 = 60 * 60 * 1000;
    const DAY: u64 = 24 * HOUR;
    let left = end.0.saturating_sub(now.0);
    let (left, unit) = if left >= 2 * DAY { (left / DAY, "d") } else { (left / HOUR, "h") };
    if left == 0 {
        "this time is over; write how long it shall last from now, as in 90d".to_owned()
    } else {
        format!("write how long it shall last from now: until then it is {left}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_told_as_the_time_until_then() {
        let now = UnixMillis::parse("2026-01-01T12:00:00Z").unwrap();
        for (text, advice) in [
            ("2026-02-01", "until then it is 30d"),
            ("2026-01-02T20:00:00+02:00", "until then it is 30h"),
            ("2025-12-31", "this time is over"),
        ] {
            let said = until(date(text).unwrap(), now);
            assert!(said.contains(advice), "{text}: {said}");
        }
        assert_eq!(date("soon"), None);
    }
}
