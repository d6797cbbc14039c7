//! `keygate store`: what state the store is in, the operator's word that it is the right one, and its move into
//! another.

use std::io::Write;

use clap::Subcommand;

use super::operator::{Act, Failure, Session, unexpected};
use super::{Outcome, migrate};
use crate::operators::admin::{Command, Reply, StoreCommand};
use crate::store::keeper::{Acceptance, Lease, Status};

/// See what state the store is in, accept it after a loss, move it
#[derive(Debug, Subcommand)]
#[command(after_help = "\
A Redis that lost its data, or another one in its place, is no store to the gateways that knew it: they serve the keys they have \
in memory and answer 503 for all others. Bring the data back and they go on by themselves; or accept the store as it is, and \
the keys that it does not have are refused.

Exit code: 0 if the store is well, or was accepted; 1 if not.

Examples:
  keygate store status
  keygate store accept --yes
  keygate store migrate --config node.toml --to redis.toml")]
pub(super) enum Action {
    /// Show where the store is and what is wrong with it.
    Status,
    /// Take the store as it is for the right one, in every gateway that knows the same store as this one.
    /// Makes an empty store where there is none.
    Accept {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    Migrate(migrate::Args),
}

impl Act for Action {
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure> {
        match self {
            Self::Migrate(args) => migrate::run(args, session).await,
            Self::Status => {
                let Reply::StoreStatus { status } = session.ask(Command::Store(StoreCommand::Status)).await?
                else {
                    return Err(unexpected());
                };
                show_status(&status, session)?;
                Ok(if status.trouble.is_none() { Outcome::Done } else { Outcome::Refused })
            }
            Self::Accept { yes } => {
                session.confirm("Refuse every key that the store does not have now?", yes)?;
                let Reply::StoreAccepted { acceptance } =
                    session.ask(Command::Store(StoreCommand::Accept)).await?
                else {
                    return Err(unexpected());
                };
                show_acceptance(&acceptance, session)?;
                Ok(Outcome::Done)
            }
        }
    }
}

fn show_status(status: &Status, session: &mut Session<'_>) -> Result<(), Failure> {
    if session.json {
        return session.print_json(status);
    }
    let gateways = status.gateways.iter().map(|lease| describe_lease(lease, status.events));
    let gateways: Vec<String> = gateways.collect();
    let or_none = |text: Option<String>| Some(text.unwrap_or_else(|| "none".to_owned()));
    let mut fields = vec![
        ("place", Some(status.place.clone())),
        ("store", or_none(status.found.clone())),
        ("expected", Some(status.known.clone().unwrap_or_else(|| "any".to_owned()))),
        ("events", or_none(status.events.map(|events| events.to_string()))),
        ("state", Some(status.trouble.clone().unwrap_or_else(|| "well".to_owned()))),
    ];
    fields.extend(gateways.into_iter().map(|gateway| ("gateway", Some(gateway))));
    session.print_fields(&fields)
}

/// `0123456789abcdef, event 41 (this one)`
fn describe_lease(lease: &Lease, events: Option<u64>) -> String {
    let behind = events.map_or(0, |events| events.saturating_sub(lease.event));
    let behind = if behind > 0 { format!(", {behind} behind") } else { String::new() };
    let own = if lease.own { " (this one)" } else { "" };
    format!("{}, event {}{behind}{own}", lease.gateway, lease.event)
}

fn show_acceptance(acceptance: &Acceptance, session: &mut Session<'_>) -> Result<(), Failure> {
    if session.json {
        return session.print_json(acceptance);
    }
    let Acceptance { store, changed } = acceptance;
    if *changed {
        writeln!(session.out, "accepted: the store is {store} from now on")?;
    } else {
        writeln!(session.out, "nothing to accept: the store is {store}, as it was")?;
    }
    Ok(())
}
