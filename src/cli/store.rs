//! `keygate store`: showing the state of the store, accepting it after a loss, sealing it under a new pepper, making it smaller,
//! migrating it, backing it up and restoring it.

use clap::Subcommand;

use super::operator::{Act, Failure, Session, unexpected};
use super::{Outcome, backup, compact, migrate, reseal};
use crate::operators::admin::{Command, Reply, StoreCommand};
use crate::store::keeper::{Acceptance, Lapsed, Lease, MemoryVitals, Status};
use crate::vocabulary::key::record::RecordFormat;
use crate::vocabulary::key::{Prefix, Prefixes};

/// Show the state of the store, accept it after a loss, seal it under a new pepper, make it smaller, migrate it, back it up, restore it
#[derive(Debug, Subcommand)]
#[command(after_help = "\
If Redis loses its data, or another Redis takes its place, the gateways do not trust it: they accept the keys that they have in \
memory, and answer 503 to all others. To recover, restore the data; the gateways then continue without a restart. Or accept the \
store as it is; then all keys that it does not contain are refused.

To replace the pepper, name the file of the new one first and that of the old one second, keys.pepper_files = [\"new\", \"old\"], and \
restart the gateways one after the other. When the last one has both, the new pepper comes into force. Then `keygate store reseal` moves \
everything that is under the old one, while the gateways run. When it has ended, remove the old file.

Exit code: 0 if the store is in order or the command has done its work, 1 if not.

Examples:
  keygate store status
  keygate store accept --yes
  keygate store accept-prefix acme
  keygate store reseal
  keygate store compact
  keygate store backup keygate-2026-11-28.backup
  keygate store migrate --config node.toml --to redis.toml")]
pub(super) enum Action {
    /// Show the place of the store, its state and its gateways
    Status,
    /// Accept the store as it is now, in all gateways that knew the same store as this one; create an empty store if there is
    /// none
    Accept {
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
        /// Accept records that are older than gateways remember, too: after an older backup was restored on purpose
        #[arg(long)]
        older: bool,
    },
    /// Seal everything anew that is under the pepper before, while the gateways run. It may be interrupted, and run again
    Reseal,
    /// Accept keys that begin with another prefix, such as imported ones; keys.prefix of a configuration is accepted by itself
    AcceptPrefix {
        /// The prefix, as acme in acme_live_sk_…
        #[arg(value_parser = Prefix::parse)]
        prefix: Prefix,
    },
    /// Accept keys that begin with a prefix no longer; refused while a key that can be used has it
    RemovePrefix {
        /// The prefix, as acme in acme_live_sk_…
        #[arg(value_parser = Prefix::parse)]
        prefix: Prefix,
    },
    /// Make the file of the embedded store smaller, while the gateway runs or at rest: what was removed leaves room in it that only
    /// new records take. A gateway does it by itself, once a day, if half of the file is free, and at least 64 MiB
    Compact,
    Migrate(migrate::Args),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
}

impl Act for Action {
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure> {
        match self {
            Self::Migrate(args) => migrate::run(args, session).await,
            Self::Backup(args) => backup::back_up(args, session).await,
            Self::Restore(args) => backup::restore(args, session).await,
            Self::Compact => compact::run(session).await,
            Self::Reseal => reseal::run(session).await,
            Self::Status => {
                let status = reseal::status(session).await?;
                show_status(&status, session)?;
                Ok(if status.trouble.is_none() { Outcome::Done } else { Outcome::Refused })
            }
            Self::Accept { yes, older } => {
                let (question, command) = if older {
                    const OLDER: &str = "Accept the store, refuse all keys that it does not contain, and let go of every \
                        change that gateways remember and the store does not have, also revocations?";
                    (OLDER, StoreCommand::AcceptOlder)
                } else {
                    ("Accept the store, and refuse all keys that it does not contain?", StoreCommand::Accept)
                };
                if !yes {
                    session.confirm(question)?;
                }
                let Reply::StoreAccepted { acceptance } = session.ask(Command::Store(command)).await? else {
                    return Err(unexpected());
                };
                if older && !session.json {
                    session.print_line("what gateways remembered until now does not count any more")?;
                }
                show_acceptance(&acceptance, session)?;
                Ok(Outcome::Done)
            }
            Self::AcceptPrefix { prefix } => {
                change_prefixes(StoreCommand::AcceptPrefix { prefix }, session).await
            }
            Self::RemovePrefix { prefix } => {
                change_prefixes(StoreCommand::RemovePrefix { prefix }, session).await
            }
        }
    }
}

async fn change_prefixes(command: StoreCommand, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let Reply::Prefixes { accepted } = session.ask(Command::Store(command)).await? else {
        return Err(unexpected());
    };
    if session.json {
        session.print_json(&serde_json::json!({ "accepted": accepted }))?;
    } else {
        let accepted: Vec<&str> = accepted.iter().map(Prefix::as_str).collect();
        session.print_line(&format!("accepted prefixes: {}", accepted.join(", ")))?;
    }
    Ok(Outcome::Done)
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
        ("format", or_none(status.format.map(|format| describe_format(format, status.keeps)))),
        ("prefixes", status.prefixes.as_deref().map(describe_prefixes)),
        ("events", or_none(status.events.map(|events| events.to_string()))),
        ("state", Some(status.trouble.clone().unwrap_or_else(|| "fine".to_owned()))),
    ];
    let held = (status.held_news > 0).then(|| {
        format!("{} have no proof and are not told; `keygate store accept` makes them anew", status.held_news)
    });
    fields.push(("news", held));
    let memory = status.memory.map(|MemoryVitals { records, bytes, set_back, .. }| {
        format!(
            "{records} changed records ({} KiB), the store had an older one {set_back} times",
            bytes.div_ceil(1024)
        )
    });
    fields.push(("memory", memory));
    let pepper = status.pepper.iter().flat_map(reseal::describe_pepper);
    fields.extend(pepper.map(|(name, text)| (name, Some(text))));
    fields.extend(gateways.into_iter().map(|gateway| ("gateway", Some(gateway))));
    fields.extend(status.lapsed.iter().map(|lapsed| ("lapsed", Some(describe_lapsed(lapsed)))));
    session.print_fields(&fields)
}

/// `2 (this gateway keeps formats up to 2)`
fn describe_format(format: RecordFormat, keeps: RecordFormat) -> String {
    format!("{format} (this gateway keeps formats up to {keeps})")
}

/// `fh, kg; not accepted any more: old`
fn describe_prefixes(text: &str) -> String {
    let Ok(list) = text.parse::<Prefixes>() else { return text.to_owned() };
    let accepted: Vec<&str> = list.accepted().map(Prefix::as_str).collect();
    let removed: Vec<&str> = list.removed().map(Prefix::as_str).collect();
    let others = if list.is_complete() { "" } else { ", and keys with others are looked up" };
    let removed = if removed.is_empty() {
        String::new()
    } else {
        format!("; not accepted any more: {}", removed.join(", "))
    };
    format!("{}{others}{removed}", accepted.join(", "))
}

/// `0123456789abcdef, event 41, keeps format 3, accepts fh kg (this one)`
fn describe_lease(lease: &Lease, events: Option<u64>) -> String {
    let behind = events.map_or(0, |events| events.saturating_sub(lease.event));
    let behind = if behind > 0 { format!(", {behind} behind") } else { String::new() };
    let own = if lease.own { " (this one)" } else { "" };
    let accepts: Vec<&str> =
        lease.prefixes.split(' ').filter(|word| word.starts_with(char::is_alphabetic)).collect();
    let accepts = if accepts.is_empty() { String::new() } else { format!(", accepts {}", accepts.join(" ")) };
    format!("{}, event {}{behind}, keeps format {}{accepts}{own}", lease.gateway, lease.event, lease.format)
}

/// `0123456789abcdef, event 41: has ended without a word, or is cut off; may let keys in that it knows for 352 s more`
fn describe_lapsed(lapsed: &Lapsed) -> String {
    let Lapsed { gateway, event, serves_for_ms } = lapsed;
    format!(
        "{gateway}, event {event}: has ended without a word, or is cut off; may let keys in that it knows for {} s more",
        serves_for_ms.div_ceil(1000)
    )
}

fn show_acceptance(acceptance: &Acceptance, session: &mut Session<'_>) -> Result<(), Failure> {
    if session.json {
        return session.print_json(acceptance);
    }
    let Acceptance { store, changed, news, news_removed } = acceptance;
    if *changed {
        session.print_line(&format!("accepted: the store is now {store}"))?;
    } else if *news + *news_removed == 0 {
        session.print_line(&format!("nothing to accept: the store is still {store}"))?;
    }
    if *news > 0 {
        session.print_line(&format!(
            "news of {news} organizations were made anew and are told to the upstream"
        ))?;
    }
    if *news_removed > 0 {
        session
            .print_line(&format!("news of {news_removed} organizations that do not exist were removed"))?;
    }
    Ok(())
}
