//! `keygate store migrate`: copies everything in one store to another.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;

use super::Outcome;
use super::operator::{Failure, Open, Session, open_as, operator};
use crate::app::{open_store, open_store_to_read};
use crate::config::{Config, StoreSettings};
use crate::lifecycle::{Lifecycle, Migration, Moved, migrate};

/// The least time-out for Redis: no client waits for a migration, or a restore.
const PATIENCE: Duration = Duration::from_secs(30);

/// Copy everything in the store of --config to the empty store of --to
///
/// Stop the gateways of the source first. Start no gateway on the target before this command has finished.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The migration copies organisations, their e-mail addresses, keys in every state, the times of their last use, audit trails, and \
notifications that wait in the outbox. It does not copy the answers kept for repeated requests, or the signup counters. The source \
is only read. Secrets stay valid: if the target has a pepper and the source has none, the digests are converted.

The target must be empty. An interrupted migration continues when the command is run again; after a complete one, the command does \
nothing. At the end, both stores are compared.

If audit.key_file (or, without it, the pepper) differs between the two, --rechain is required: every intact trail gets a new chain, \
and an audit record store.migrated holds the old and the new head. Heads in earlier logs then fit only the source. To keep using them, \
keep the source, or give the target the same audit.key_file.

Environment variables KEYGATE__… apply to both configurations.

Exit code: 0 if everything is in the target, 1 if not.

Examples:
  keygate store migrate --config node.toml --to redis.toml
  keygate store migrate --config node.toml --to redis.toml --rechain")]
pub(super) struct Args {
    /// The configuration of the target store
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Create new chains for the audit trails, with the target's key
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
    check_idle(session.socket(), "the source").await?;
    check_idle(to.admin.socket.as_deref(), "the target").await?;
    let (source, target) = (open(from, open_store_to_read)?, open(&to, open_store)?);
    let mut tell = |moved: &Moved| session.show_progress(&progress(moved));
    let migrated = migrate(source, target, operator(), args.rechain, &mut tell).await;
    session.show_progress("");
    match migrated.map_err(|error| error.to_string())? {
        Migration::Done(moved) => summarise(&moved, session)?,
        Migration::DoneBefore { at } if session.json => session.print_json(&json!({ "done_before": at }))?,
        Migration::DoneBefore { at } => {
            session.print_line(&format!("nothing to do: the migration was completed at {at}"))?;
        }
    }
    Ok(Outcome::Done)
}

/// Whether both settings name the same store, also through different paths of one file. Two names of one Redis are
/// detected later, by the id of the store.
fn are_same(one: &StoreSettings, other: &StoreSettings) -> bool {
    match (one, other) {
        (StoreSettings::Embedded(one), StoreSettings::Embedded(other)) => {
            let (one, other) = (one.path.canonicalize(), other.path.canonicalize());
            one.is_ok_and(|one| other.is_ok_and(|other| one == other))
        }
        (one, other) => one == other,
    }
}

/// Fails if a gateway answers on the admin socket: nothing may change a store during the migration. A gateway without
/// a socket is not detected here.
pub(super) async fn check_idle(socket: Option<&Path>, which: &str) -> Result<(), Failure> {
    let Some(socket) = socket else { return Ok(()) };
    match UnixStream::connect(socket).await {
        Ok(_) => Err(format!("a gateway on {which} answers at {}; stop it first", socket.display()).into()),
        // So many wait for it that no more may.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(format!("a gateway on {which} hangs behind {}; stop it first", socket.display()).into())
        }
        Err(_) => Ok(()),
    }
}

/// The settings of the store, with time-outs for a command that nobody waits for.
pub(super) fn patient(config: &Config) -> StoreSettings {
    let mut store = config.store.clone();
    if let StoreSettings::Redis(redis) = &mut store {
        redis.connect_timeout = redis.connect_timeout.max(PATIENCE);
        redis.lookup_timeout = redis.lookup_timeout.max(PATIENCE);
        redis.command_timeout = redis.command_timeout.max(PATIENCE);
    }
    store
}

fn open(config: &Config, open: Open) -> Result<Arc<Lifecycle>, Failure> {
    let store = patient(config);
    Ok(Arc::new(open_as(config, &store, open, "stop it")?))
}

fn progress(moved: &Moved) -> String {
    let Moved { organizations, keys, audit_records, verified, .. } = moved;
    if *verified > 0 {
        return format!("compared: {verified} organisations and keys");
    }
    format!("copied: {organizations} organisations, {keys} keys, {audit_records} audit records")
}

fn summarise(moved: &Moved, session: &mut Session<'_>) -> Result<(), Failure> {
    for trail in &moved.damaged {
        session.remark(&format!(
            "the audit trail of {trail} is damaged in the source, and was copied as it is; see `keygate audit verify`"
        ));
    }
    if session.json {
        return session.print_json(moved);
    }
    let count = |count: u64| Some(count.to_string());
    session.print_fields(&[
        ("organisations", count(moved.organizations)),
        ("keys", count(moved.keys)),
        ("copied before", count(moved.present).filter(|_| moved.present > 0)),
        ("last-used times", count(moved.used)),
        ("notifications", count(moved.news)),
        ("audit records", count(moved.audit_records)),
        ("chains", Some(if moved.rechained { "new" } else { "unchanged" }.to_owned())),
    ])?;
    session.print_line("compared with the source: the target is complete")
}
