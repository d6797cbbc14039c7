//! `keygate store`: what state the store is in, and the operator's word that it is the right one.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Subcommand;

use super::operator::{Operator, confirmed, unexpected};
use super::{Outcome, load};
use crate::admin::{Command, Reply};
use crate::config::Config;
use crate::store::keeper::{Acceptance, Status};

/// See what state the store is in, and accept it after a loss
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A Redis that lost its data, or another one in its place, is no store to the gateways that knew it: they serve the keys they have
in memory and answer 503 for all others. Bring the data back and they go on by themselves; or accept the store as it is, and
the keys that it does not have are refused.

Exit code: 0 if the store is well, or was accepted; 1 if not.

Examples:
  keygate store status
  keygate store accept --yes")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    /// The configuration file of the gateway whose store it is
    #[arg(long, short, value_name = "FILE", default_value = "keygate.toml", global = true)]
    config: PathBuf,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show where the store is and what is wrong with it.
    Status,
    /// Take the store as it is for the right one, in every gateway that knows the same store as this one.
    /// Makes an empty store where there is none.
    Accept {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(
    args: Args,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let config = match load(&args.config, environment, err)? {
        Ok(config) => config,
        Err(outcome) => return Ok(outcome),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(act(args.action, config, args.json, err)) {
        Ok((text, outcome)) => {
            out.write_all(text.as_bytes())?;
            Ok(outcome)
        }
        Err(message) => {
            writeln!(err, "keygate: {message}")?;
            Ok(Outcome::Refused)
        }
    }
}

async fn act(
    action: Action,
    config: Config,
    json: bool,
    err: &mut impl Write,
) -> Result<(String, Outcome), String> {
    let operator = Operator::connect(config)?;
    match action {
        Action::Status => {
            let Reply::StoreStatus { status } = operator.ask(Command::StoreStatus).await? else {
                return Err(unexpected());
            };
            let outcome = if status.trouble.is_none() { Outcome::Done } else { Outcome::Refused };
            Ok((show_status(&status, json), outcome))
        }
        Action::Accept { yes } => {
            if !yes && !confirmed("Refuse every key that the store does not have now?", err)? {
                return Err("nothing was accepted".to_owned());
            }
            let Reply::StoreAccepted { acceptance } = operator.ask(Command::AcceptStore).await? else {
                return Err(unexpected());
            };
            Ok((show_acceptance(&acceptance, json), Outcome::Done))
        }
    }
}

fn show_status(status: &Status, json: bool) -> String {
    if json {
        return format!("{}\n", serde_json::json!(status));
    }
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "place     {}", status.place);
    let _ = writeln!(text, "store     {}", or_none(&status.found));
    let _ = writeln!(text, "expected  {}", status.known.clone().unwrap_or_else(|| "any".to_owned()));
    let _ = writeln!(text, "events    {}", or_none(&status.events.map(|events| events.to_string())));
    let _ = writeln!(text, "state     {}", status.trouble.as_deref().unwrap_or("well"));
    text
}

fn show_acceptance(acceptance: &Acceptance, json: bool) -> String {
    if json {
        return format!("{}\n", serde_json::json!(acceptance));
    }
    let Acceptance { store, changed } = acceptance;
    if *changed {
        format!("accepted: the store is {store} from now on\n")
    } else {
        format!("nothing to accept: the store is {store}, as it was\n")
    }
}
