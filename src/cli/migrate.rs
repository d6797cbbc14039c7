//! `keygate store migrate`: everything in one store, moved into another.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Outcome;
use super::operator::{Failure, Open, Session, open_as, operator};
use crate::app::{open_store, open_store_to_read};
use crate::config::{Config, StoreSettings};
use crate::lifecycle::{Lifecycle, Migration, Moved, migrate};

/// What Redis is given at least to answer in: no request waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Move everything in the store of --config into the empty store of --to
///
/// Stop the gateways of the source first; start none on the target before this has said that it is done.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Moved are organisations, their e-mail addresses, keys in whatever state, when they were used, audit trails, and news for the \
upstream. Secrets stay what they are: with a pepper in the target and none in the source, their digests are converted. Not moved \
are answers that are kept for repeated requests, and counts of signups. The source is only read.

The target must be empty. A migration that broke off goes on when it is run again; one that was done does nothing. Both stores \
are compared in the end.

Where audit.key_file (or, without one, the pepper) differs, --rechain is needed: trails that are whole get a new chain, and an \
event store.migrated tells both heads. Heads that were exported to the log before are then true of the source only: keep it, or \
give the target the same audit.key_file.

Variables KEYGATE__… hold for both configurations.

Exit code: 0 if everything is in the target, 1 if not.

Examples:
  keygate store migrate --config node.toml --to redis.toml
  keygate store migrate --config node.toml --to redis.toml --rechain")]
pub(super) struct Args {
    /// The configuration whose store everything is moved into
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Make the chains of the audit trails anew under the target's key
    #[arg(long)]
    rechain: bool,
}

pub(super) async fn run(args: Args, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let to = match session.load(&args.to)? {
        Ok(config) => config,
        Err(outcome) => return Ok(outcome),
    };
    let from = session.config()?;
    if are_same(&from.store, &to.store) {
        return Err("both configurations name the same store".into());
    }
    check_idle(session.socket(), "the source")?;
    check_idle(to.admin.socket.as_deref(), "the target")?;
    let (source, target) = (open(from, open_store_to_read)?, open(&to, open_store)?);
    let mut tell = |moved: &Moved| session.show_progress(&progress(moved));
    let migrated = migrate(source, target, operator(), args.rechain, &mut tell).await;
    session.show_progress("");
    match migrated.map_err(|error| error.to_string())? {
        Migration::Done(moved) => summarise(&moved, session)?,
        Migration::DoneBefore { at } if session.json => session.print_json(&json!({ "done_before": at }))?,
        Migration::DoneBefore { at } => writeln!(session.out, "nothing to do: it was moved before, at {at}")?,
    }
    Ok(Outcome::Done)
}

/// However their files are called. Two names of one Redis show later, when it says which store it is.
fn are_same(one: &StoreSettings, other: &StoreSettings) -> bool {
    match (one, other) {
        (StoreSettings::Embedded(one), StoreSettings::Embedded(other)) => {
            let (one, other) = (one.path.canonicalize(), other.path.canonicalize());
            one.is_ok_and(|one| other.is_ok_and(|other| one == other))
        }
        (one, other) => one == other,
    }
}

/// Nobody changes a store while it is moved, as far as that can be seen from here.
fn check_idle(socket: Option<&Path>, which: &str) -> Result<(), Failure> {
    match socket {
        Some(socket) if UnixStream::connect(socket).is_ok() => {
            Err(format!("a gateway on {which} answers at {}: stop it first", socket.display()).into())
        }
        _ => Ok(()),
    }
}

fn open(config: &Config, open: Open) -> Result<Arc<Lifecycle>, Failure> {
    let mut store = config.store.clone();
    if let StoreSettings::Redis(redis) = &mut store {
        redis.connect_timeout = redis.connect_timeout.max(PATIENCE);
        redis.lookup_timeout = redis.lookup_timeout.max(PATIENCE);
        redis.command_timeout = redis.command_timeout.max(PATIENCE);
    }
    Ok(Arc::new(open_as(config, &store, open, "stop it")?))
}

fn progress(moved: &Moved) -> String {
    let Moved { organizations, keys, events, verified, .. } = moved;
    if *verified > 0 {
        return format!("{verified} organisations and keys compared");
    }
    format!("{organizations} organisations, {keys} keys, {events} audit events moved")
}

fn summarise(moved: &Moved, session: &mut Session<'_>) -> Result<(), Failure> {
    for trail in &moved.damaged {
        session.remark(&format!(
            "the audit trail of {trail} is not whole, there as here; see `keygate audit verify`"
        ));
    }
    if session.json {
        return session.print_json(moved);
    }
    let count = |count: u64| Some(count.to_string());
    session.print_fields(&[
        ("organisations", count(moved.organizations)),
        ("keys", count(moved.keys)),
        ("moved before", count(moved.present).filter(|_| moved.present > 0)),
        ("used keys", count(moved.used)),
        ("news", count(moved.news)),
        ("audit events", count(moved.events)),
        ("chains", Some(if moved.rechained { "made anew" } else { "as they were" }.to_owned())),
    ])?;
    Ok(writeln!(session.out, "all of it was compared: the target is complete")?)
}
