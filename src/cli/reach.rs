//! How far a change has come among the gateways: told after every command that changes what a key may do, waited for with
//! `--wait`, and the exit code.

use std::time::Duration;

use serde::Serialize;

use super::operator::{Failure, Session, unexpected};
use super::{Outcome, duration};
use crate::lifecycle::KeyView;
use crate::operators::admin::{Command, KeyCommand, Reach, Reply};
use crate::vocabulary::clock::Clock;

/// The longest wait in one command to the gateway, so that it soon shows a sign of life.
const AT_ONCE: Duration = Duration::from_secs(1);

// No doc comment: clap would show it as the help of every command that has this.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Wait {
    /// Wait for so long, as in 30s, until every gateway that holds a lease has confirmed the change; without this it is waited
    /// for keys.ack_wait
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    wait: Option<Duration>,
}

/// What is known of how far a change has come.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// `None` where the store could not tell.
    pub(super) reach: Option<Reach>,
}

impl Wait {
    pub(super) const NONE: Self = Self { wait: None };

    /// How far a change has come, from what the answer to it says on, after the wait that was asked for.
    pub(super) async fn follow(
        self,
        mut reach: Option<Reach>,
        session: &mut Session<'_>,
    ) -> Result<Told, Failure> {
        let clock = Clock::system();
        let until = clock.mono() + self.wait.unwrap_or_default().min(LONGEST);
        while let Some(so_far) = reach.as_ref().filter(|reach| !reach.is_confirmed()) {
            let left = until.saturating_duration_since(clock.mono());
            if left.is_zero() {
                break;
            }
            let within_ms = u64::try_from(left.min(AT_ONCE).as_millis()).unwrap_or(u64::MAX).max(1);
            let command = KeyCommand::Reach { event: so_far.event, within_ms };
            let before = so_far.slowest_ms;
            let now = match session.ask(Command::Keys(command)).await {
                Ok(Reply::Reach { reach }) => reach,
                Ok(_) => return Err(unexpected()),
                Err(Failure::Told(message)) => {
                    session.remark(&format!(
                        "the change is made, and waiting for the gateways has failed: {message}"
                    ));
                    break;
                }
                Err(gone) => return Err(gone),
            };
            reach = Some(Reach { slowest_ms: before + now.slowest_ms, ..now });
        }
        Ok(Told { reach })
    }
}

/// No command waits longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

impl Told {
    /// The change holds at every gateway that holds a lease; or it is not known to do so.
    pub(super) fn outcome(&self) -> Outcome {
        let is_confirmed = self.reach.as_ref().is_some_and(Reach::is_confirmed);
        if is_confirmed { Outcome::Done } else { Outcome::Underway }
    }

    /// For the end of a line: `confirmed=7/7; slowest_ms=41`.
    pub(super) fn text(&self) -> String {
        self.reach.as_ref().map_or_else(|| "how far it has come is not known".to_owned(), Reach::to_string)
    }

    /// Prints a changed key as JSON.
    pub(super) fn print_key(&self, key: KeyView, session: &mut Session<'_>) -> Result<(), Failure> {
        session.print_json(&WithReach { record: &self.on(key), reach: self.reach.as_ref() })
    }

    /// A key that says what is known now.
    pub(super) fn on(&self, key: KeyView) -> KeyView {
        KeyView { propagation: self.reach.as_ref().map(Reach::to_string), ..key }
    }

    /// Tells which gateways may still act as before, and what to do.
    pub(super) fn remark(&self, session: &mut Session<'_>) {
        let Some(reach) = &self.reach else {
            session.remark(
                "the change is made, and the store did not say which gateways have confirmed it; `keygate keys show` says so \
                 when it answers",
            );
            return;
        };
        if let Some(names) = list(&reach.awaited) {
            session.remark(&format!(
                "not everywhere yet: {names} {} not confirmed it. A gateway that hears of changes does so within 1 s, and any \
                 other refuses or lapses within 10 s; see `keygate store status`, or pass --wait 30s",
                if reach.awaited.len() == 1 { "has" } else { "have" }
            ));
        }
        if let Some(names) = list(&reach.lapsed) {
            session.remark(&format!(
                "the lease of {names} has lapsed: it has ended without giving it up, or it is cut off and may let keys in that it \
                 knows. `keygate store status` says for how long; end it if it still runs"
            ));
        }
    }
}

/// The names, as a sentence has them; `None` where there are none.
pub(super) fn list(names: &[Box<str>]) -> Option<String> {
    let named: Vec<&str> = names.iter().map(|name| &**name).filter(|name| !name.is_empty()).collect();
    match (named.as_slice(), names.len()) {
        (_, 0) => None,
        ([], 1) => Some("one gateway".to_owned()),
        ([], count) => Some(format!("{count} gateways")),
        ([name], _) => Some(format!("the gateway {name}")),
        (named, _) => Some(format!("the gateways {}", named.join(", "))),
    }
}

/// A changed record with how far the change has come, for `--json`.
#[derive(Serialize)]
pub(super) struct WithReach<'r, T: Serialize> {
    #[serde(flatten)]
    pub(super) record: &'r T,
    /// `null` where the store could not tell.
    pub(super) reach: Option<&'r Reach>,
}
