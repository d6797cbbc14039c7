//! Tells of a clock that is wrong. Which one it is cannot be told: the machine's or the store's.

use std::time::Duration;

use crate::telemetry::{Event, Notice};
use crate::vocabulary::clock::{AGREED, Clock, TOLERATED};

/// How often both clocks are compared.
const EVERY: Duration = Duration::from_secs(5);

/// How the machine's clock stands to the store's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    InStep,
    Off,
    /// So far that nobody can tell which of the two is right.
    Apart,
}

impl Standing {
    fn of(ahead: i64) -> Self {
        match Duration::from_millis(ahead.unsigned_abs()) {
            by if by > AGREED => Self::Apart,
            by if by > TOLERATED => Self::Off,
            _ => Self::InStep,
        }
    }
}

/// Logs when the clocks come apart, and when they are in step again, for as long as it is polled.
pub(super) async fn watch(clock: Clock) {
    let mut before = Standing::InStep;
    loop {
        if let Some(ahead) = clock.ahead_of_store() {
            let now = Standing::of(ahead);
            match now {
                _ if now == before => {}
                Standing::InStep => {
                    Notice::ClockInStep
                        .log("the clock of this machine and that of the store are in step again");
                }
                Standing::Off | Standing::Apart => {
                    Event::ClockOff.log(clock.mono(), || describe(now, ahead));
                }
            }
            before = now;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What is wrong with the clock of the machine or the store's; `None` within that is nothing, outside while the store's is not
/// known.
pub(super) fn trouble(clock: &Clock) -> Option<Option<String>> {
    let ahead = clock.ahead_of_store()?;
    let standing = Standing::of(ahead);
    Some((standing != Standing::InStep).then(|| describe(standing, ahead)))
}

fn describe(standing: Standing, ahead: i64) -> String {
    let by = humantime::format_duration(Duration::from_secs(ahead.unsigned_abs() / 1000));
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    let then = match standing {
        Standing::Apart => {
            "keys end by that of this machine, and nothing is removed for its age, until the wrong one is set"
        }
        Standing::InStep | Standing::Off => "keys end by the store's; set the one that is wrong",
    };
    format!("the clock of this machine is {by} {way} the store's: {then}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_beyond_5_s_and_apart_beyond_a_minute_in_both_directions() {
        for (ahead, standing) in [
            (5000, Standing::InStep),
            (5001, Standing::Off),
            (60_000, Standing::Off),
            (60_001, Standing::Apart),
        ] {
            assert_eq!((Standing::of(ahead), Standing::of(-ahead)), (standing, standing), "{ahead}");
        }
        assert!(
            describe(Standing::Off, -6500).starts_with("the clock of this machine is 6s behind the store's")
        );
    }
}
