//! `keygate keys`: creating, changing, revoking, importing and exporting keys.

use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::operator::{Act, Failure, Session, to_the_second, unexpected};
use super::orgs::only_org;
use super::revoke::{self, Confirmation};
use super::table::Column;
use super::{Outcome, duration, transfer};
use crate::lifecycle::{KeyFilter, KeyView, NewKey, OVERLAP, Patch, parse_network};
use crate::operators::admin::{Command, KeyCommand, Reply, Secret};
use crate::secret_file;
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::Status;
use crate::vocabulary::key::scope::Scope;
use crate::vocabulary::key::{Digest, Environment};

/// The number of keys that one request for a list returns.
const PAGE: usize = 500;

/// Create, list, change, rotate, revoke, import and export keys
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Exit code: 0 on success; 1 if anything failed; 2 if the arguments or the configuration cannot be read.

Examples:
  keygate keys create --name 'billing service' --scopes jobs:read,jobs:write
  keygate keys create --name sandbox --environment test --expires-in 90d
  keygate keys list --unused 90d --status active
  keygate keys list --owner billing --json | keygate keys revoke --stdin --yes
  keygate keys show --secret-stdin < leaked.txt
  keygate keys rotate key_01J9ZQ6T5N8XKD3V4WPYB7C2HM --overlap 1h
  keygate keys revoke key_01J9ZQ6T5N8XKD3V4WPYB7C2HM
  keygate keys revoke key_01J9ZQ6T5N8XKD3V4WPYB7C2HM --with-children
  keygate keys import keys.jsonl --dry-run")]
pub(super) enum Action {
    /// Create a key and print its secret on standard output; the secret is never shown again
    Create(Create),
    /// List keys, newest first; secrets are masked
    List(Filter),
    /// Show a key, by its id or by its secret
    Show {
        /// The id of the key
        #[arg(value_name = "KEY_ID", value_parser = KeyId::parse, required_unless_present_any = ["secret_stdin", "secret_file"])]
        id: Option<KeyId>,
        /// Read a secret from standard input; show its key, and whether the secret is still valid
        #[arg(long, conflicts_with_all = ["id", "secret_file"])]
        secret_stdin: bool,
        /// Read the secret from a file of mode 0600 instead
        #[arg(long, value_name = "FILE", conflicts_with = "id")]
        secret_file: Option<PathBuf>,
    },
    /// Change a key; scopes can only be removed, and the expiry can only become earlier
    Edit {
        /// The id of the key
        #[arg(value_name = "KEY_ID", value_parser = KeyId::parse)]
        id: KeyId,
        #[command(flatten)]
        change: Change,
    },
    /// Give a key a new secret and print it on standard output; it is never shown again
    Rotate {
        /// The id of the key
        #[arg(value_name = "KEY_ID", value_parser = KeyId::parse)]
        id: KeyId,
        /// How long the old secret stays valid: from 0s, for a leaked secret, to 7d [default: 24h]
        #[arg(long, value_name = "DURATION", value_parser = parse_overlap)]
        overlap: Option<Duration>,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Revoke keys; this cannot be undone
    Revoke {
        /// The ids of the keys
        #[arg(value_name = "KEY_ID", value_parser = KeyId::parse, required_unless_present = "stdin", conflicts_with = "stdin")]
        ids: Vec<KeyId>,
        /// Read the ids from standard input: the first word of each line, or the output of `keys list --json`
        #[arg(long)]
        stdin: bool,
        /// Also revoke the keys that were made with these keys, and the keys that were made with those
        #[arg(long)]
        with_children: bool,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Disable a key until it is enabled again
    Disable {
        /// The id of the key
        #[arg(value_name = "KEY_ID", value_parser = KeyId::parse)]
        id: KeyId,
    },
    /// Enable a disabled key
    Enable {
        /// The id of the key
        #[arg(value_name = "KEY_ID", value_parser = KeyId::parse)]
        id: KeyId,
    },
    /// Import hashed keys, one line of JSON for each
    Import(transfer::Import),
    /// Export hashed keys in the form that `import` reads, one line of JSON for each
    Export(transfer::Export),
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// The purpose of the key
    #[arg(long)]
    name: String,
    /// The organisation that owns the key [default: the only organisation; it is created if there is none]
    #[arg(long, value_name = "ORG_ID", value_parser = OrgId::parse)]
    org: Option<OrgId>,
    /// The environment of the key: its requests go to the live or to the test servers
    #[arg(long, value_name = "live|test", default_value = "live", value_parser = parse_environment)]
    environment: Environment,
    /// Scopes, separated by commas [default: every scope of the policy]
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', value_parser = Scope::parse)]
    scopes: Option<Vec<Scope>>,
    /// The time until the key expires, as in 90d [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_optional_lifetime)]
    expires_in: Option<Duration>,
    /// The networks and addresses that may use the key, separated by commas [default: any]
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', value_parser = parse_network)]
    allow: Vec<IpNet>,
    /// The person or team responsible for the key
    #[arg(long)]
    owner: Option<String>,
    /// A note about the key
    #[arg(long)]
    note: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// Only keys of this organisation
    #[arg(long, value_name = "ORG_ID", value_parser = OrgId::parse)]
    org: Option<OrgId>,
    /// Only keys for which this person or team is responsible
    #[arg(long)]
    owner: Option<String>,
    /// Only live keys, or only test keys
    #[arg(long, value_name = "live|test", value_parser = parse_environment)]
    environment: Option<Environment>,
    /// Only keys with this status: active, disabled, expired or revoked
    #[arg(long, value_name = "STATUS", value_parser = parse_status)]
    status: Option<Status>,
    /// Only keys that have not been used for this time, as in 90d; for a key that was never used, its age counts
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    unused: Option<Duration>,
    /// Only keys that are older than this, as in 365d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    older_than: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(super) struct Change {
    /// The purpose of the key
    #[arg(long)]
    name: Option<String>,
    /// The person or team responsible for the key
    #[arg(long)]
    owner: Option<String>,
    /// Remove the owner
    #[arg(long, conflicts_with = "owner")]
    no_owner: bool,
    /// A note about the key
    #[arg(long)]
    note: Option<String>,
    /// Remove the note
    #[arg(long, conflicts_with = "note")]
    no_note: bool,
    /// The scopes that the key keeps, separated by commas
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', value_parser = Scope::parse)]
    scopes: Option<Vec<Scope>>,
    /// The time until the key expires, as in 30d; it can only become earlier
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_changed_lifetime)]
    expires_in: Option<Duration>,
    /// The networks and addresses that may use the key, separated by commas; they replace the previous ones
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', value_parser = parse_network)]
    allow: Option<Vec<IpNet>>,
    /// Allow any address to use the key
    #[arg(long, conflicts_with = "allow")]
    allow_any: bool,
}

fn parse_environment(text: &str) -> Result<Environment, &'static str> {
    Environment::ALL.into_iter().find(|environment| environment.as_str() == text).ok_or("write live or test")
}

fn parse_status(text: &str) -> Result<Status, &'static str> {
    let status = Status::ALL.into_iter().find(|status| status.as_str() == text);
    status.ok_or("write active, disabled, expired or revoked")
}

/// Parses an overlap. Less than a second would be rounded to zero, and the old secret would end at once.
fn parse_overlap(text: &str) -> Result<Duration, String> {
    let overlap = duration::parse(text)?;
    if overlap.subsec_nanos() == 0 { Ok(overlap) } else { Err("write whole seconds, as in 90s".to_owned()) }
}

impl Act for Action {
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure> {
        match self {
            Self::Create(create) => {
                let new = new_key(create, session).await?;
                let reply = session.ask(Command::Keys(KeyCommand::Create(new))).await?;
                show_secret(&reply, "created", session)
            }
            Self::List(filter) => list(filter, session).await,
            Self::Show { id: Some(id), .. } => ask_and_show(KeyCommand::Show { id }, None, session).await,
            Self::Show { secret_file, .. } => find(read_secret(secret_file)?, session).await,
            Self::Edit { id, change } => {
                let patch = patch(change);
                ask_and_show(KeyCommand::Update { id, patch }, Some("changed"), session).await
            }
            Self::Rotate { id, overlap, yes } => {
                let overlap = overlap.unwrap_or(OVERLAP);
                if overlap.is_zero() {
                    session.confirm(&format!("End the present secret of {id} immediately?"), yes)?;
                }
                let command = KeyCommand::Rotate { id, overlap_seconds: overlap.as_secs() };
                let reply = session.ask(Command::Keys(command)).await?;
                show_secret(&reply, "rotated", session)
            }
            Self::Revoke { ids, stdin, with_children, yes } => {
                let ids = if stdin { read_ids(&mut io::stdin().lock())? } else { ids };
                revoke::revoke(&ids, with_children, Confirmation { stdin, yes }, session).await
            }
            Self::Disable { id } => ask_and_show(KeyCommand::Disable { id }, Some("disabled"), session).await,
            Self::Enable { id } => ask_and_show(KeyCommand::Enable { id }, Some("enabled"), session).await,
            Self::Import(import) => transfer::import(import, session).await,
            Self::Export(export) => transfer::export(&export, session).await,
        }
    }
}

fn from_now(after: Duration) -> UnixMillis {
    Clock::system().now().wall.plus(after)
}

async fn new_key(create: Create, session: &mut Session<'_>) -> Result<NewKey, Failure> {
    let Create { name, org, environment, scopes, expires_in, allow, owner, note } = create;
    let org = match org {
        Some(org) => org,
        None => only_org(session).await?,
    };
    let (scopes, expires_at) = (scopes.map(Into::into), expires_in.map(from_now));
    Ok(NewKey { org, name, environment, scopes, expires_at, allowed_addresses: allow, owner, note })
}

fn patch(change: Change) -> Patch {
    let Change { name, owner, no_owner, note, no_note, scopes, expires_in, allow, allow_any } = change;
    Patch {
        name,
        owner: owner.map(Some).or(no_owner.then_some(None)),
        note: note.map(Some).or(no_note.then_some(None)),
        scopes: scopes.map(Into::into),
        expires_at: expires_in.map(|after| Some(from_now(after))),
        allowed_addresses: allow.or(allow_any.then(Vec::new)),
    }
}

async fn list(filter: Filter, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    const COLUMNS: [Column; 7] = [
        Column::new("ID", KeyId::LEN, 9),
        Column::new("KEY", 16, 7),
        Column::new("STATUS", 8, 8),
        Column::new("CREATED", 20, 3),
        Column::new("LAST USED", 20, 5),
        Column::elastic("OWNER", 12, 24, 2),
        Column::new("NAME", 10, 6),
    ];
    let Filter { org, owner, environment, status, unused, older_than } = filter;
    let filter = KeyFilter { org, owner, environment, status, unused_for: unused, older_than };
    let table = session.table(&COLUMNS)?;
    let mut after = None;
    loop {
        let command = KeyCommand::List { filter: filter.clone(), after, limit: PAGE };
        let Reply::Keys { keys, next } = session.ask(Command::Keys(command)).await? else {
            return Err(unexpected());
        };
        for key in keys {
            if session.json {
                session.print_json(&key)?;
                continue;
            }
            let (id, created) = (key.id.to_string(), to_the_second(&key.created_at));
            let last_used = key.last_used_at.as_deref().map_or_else(|| "never".to_owned(), to_the_second);
            let owner = key.owner.as_deref().unwrap_or_default();
            let row = table.row(&[&id, &key.key, &key.status, &created, &last_used, owner, &key.name]);
            session.out.write_all(row.as_bytes())?;
        }
        if next.is_none() {
            return Ok(Outcome::Done);
        }
        after = next;
    }
}

/// Sends a command and prints the key in the answer: one line after a change, else all fields.
async fn ask_and_show(
    command: KeyCommand,
    done: Option<&str>,
    session: &mut Session<'_>,
) -> Result<Outcome, Failure> {
    let Reply::Key { key } = session.ask(Command::Keys(command)).await? else { return Err(unexpected()) };
    match done {
        _ if session.json => session.print_json(&key)?,
        Some(done) => writeln!(session.out, "{done} {} ({})", key.id, key.name)?,
        None => show(&key, session)?,
    }
    Ok(Outcome::Done)
}

fn show(key: &KeyView, session: &mut Session<'_>) -> Result<(), Failure> {
    let joined = |list: &[Scope]| list.iter().map(Scope::as_str).collect::<Vec<_>>().join(" ");
    let filled = |text: String| Some(text).filter(|text| !text.is_empty());
    session.print_fields(&[
        ("id", Some(key.id.to_string())),
        ("name", Some(key.name.clone())),
        ("organisation", Some(key.organization_id.to_string())),
        ("key", Some(key.key.clone())),
        ("environment", Some(key.environment.to_string())),
        ("status", Some(key.status.clone())),
        ("scopes", Some(joined(&key.scopes))),
        ("scopes used", filled(joined(&key.used_scopes))),
        ("created", Some(format!("{} by {}", key.created_at, key.created_by))),
        ("last used", Some(key.last_used_at.clone().unwrap_or_else(|| "never".to_owned()))),
        ("expires", key.expires_at.clone()),
        ("disabled", key.disabled_at.clone()),
        ("revoked", key.revoked_at.clone()),
        ("old secret until", key.old_secret_ends_at.clone()),
        ("allowed from", filled(key.allowed_addresses.join(" "))),
        ("owner", key.owner.clone()),
        ("note", key.note.clone()),
        ("last change", key.propagation.clone()),
    ])
}

/// The most bytes that are read as a secret; every key is shorter.
const SECRET_LEN: u64 = 4096;

fn read_secret(file: Option<PathBuf>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let bytes = match file {
        Some(path) => secret_file::read("--secret-file", &path).map_err(|error| error.to_string())?,
        None => {
            let mut bytes = Zeroizing::new(Vec::new());
            let read = io::stdin().lock().take(SECRET_LEN).read_to_end(&mut bytes);
            read.map_err(|error| format!("cannot read the secret: {error}"))?;
            bytes
        }
    };
    Ok(Zeroizing::new(bytes.trim_ascii().to_vec()))
}

/// Finds the key of a secret. Only the secret's hash leaves this process.
async fn find(secret: Zeroizing<Vec<u8>>, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    if secret.is_empty() {
        return Err("the input is empty; write the secret into it".into());
    }
    let sha256 = Digest::from_bytes(Sha256::digest(&*secret).into());
    match session.ask(Command::Keys(KeyCommand::Find { sha256 })).await? {
        Reply::KeyFound { key, opens } => {
            if session.json {
                session.print_json(&serde_json::json!({ "key": key, "opens": opens }))?;
            } else {
                show(&key, session)?;
                let opens = if opens { "valid" } else { "no longer valid" };
                session.print_fields(&[("this secret     ", Some(opens.to_owned()))])?;
            }
            Ok(Outcome::Done)
        }
        Reply::KeyNotFound => Err("no key has this secret".into()),
        _ => Err(unexpected()),
    }
}

/// Reads ids from the output of `keys list`, or from any text with an id at the beginning of each line.
fn read_ids(lines: &mut impl BufRead) -> Result<Vec<KeyId>, Failure> {
    let mut ids = Vec::new();
    for (n, line) in lines.lines().enumerate() {
        let line = line.map_err(|error| format!("cannot read the ids: {error}"))?;
        let line = line.trim();
        if line.is_empty() || n == 0 && line.starts_with("ID ") {
            continue;
        }
        let id = if line.starts_with('{') {
            serde_json::from_str::<serde_json::Value>(line)
                .ok()
                .and_then(|key| Some(key.get("id")?.as_str()?.to_owned()))
        } else {
            line.split_whitespace().next().map(str::to_owned)
        };
        let id = id.and_then(|id| KeyId::parse(&id).ok());
        ids.push(id.ok_or_else(|| format!("line {} contains no key id; no key was revoked", n + 1))?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn show_secret(reply: &Reply, done: &str, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let Reply::NewKey { key, secret } = reply else { return Err(unexpected()) };
    if session.json {
        session.print_json(&serde_json::json!({ "key": key, "secret": secret }))?;
        return Ok(Outcome::Done);
    }
    print_secret(key, secret, done, session)?;
    Ok(Outcome::Done)
}

fn print_secret(
    key: &KeyView,
    secret: &Secret,
    done: &str,
    session: &mut Session<'_>,
) -> Result<(), Failure> {
    let scopes: Vec<&str> = key.scopes.iter().map(Scope::as_str).collect();
    let until =
        key.old_secret_ends_at.as_deref().map(|end| format!("; the old secret stays valid until {end}"));
    // On standard error, so that standard output is the secret alone. If this fails, the secret is still printed.
    let _ = writeln!(
        session.err,
        "{done} {} for {} ({}, {}){}; the secret is shown only now:",
        key.id,
        key.organization_id,
        key.environment,
        scopes.join(" "),
        until.unwrap_or_default(),
    );
    Ok(writeln!(session.out, "{}", secret.expose())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_is_whole_seconds() {
        assert_eq!(parse_overlap("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_overlap("0s"), Ok(Duration::ZERO));
        for odd in ["500ms", "1s 1ns", "1", "-1s", ""] {
            assert!(parse_overlap(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn ids_are_read_from_tables_and_from_json_and_a_line_without_an_id_is_an_error() {
        let (one, two) = ("key_01J9ZQ6T5N8XKD3V4WPYB7C2HM", "key_01J9ZQ6T5N8XKD3V4WPYB7C2HN");
        let read = |text: &str| read_ids(&mut text.as_bytes()).map_err(|failure| format!("{failure:?}"));
        let ids = vec![KeyId::parse(one).unwrap(), KeyId::parse(two).unwrap()];
        assert_eq!(read(&format!("ID   KEY\n{two}  fh_live_sk_…wxyz\n\n{one}\n{two}")), Ok(ids.clone()));
        assert_eq!(
            read(&format!("{{\"object\":\"api_key\",\"id\":\"{one}\"}}\n{{\"id\":\"{two}\"}}")),
            Ok(ids)
        );
        assert!(read(&format!("{one}\nfh_live_sk_")).unwrap_err().contains("line 2"));
        assert!(read("{\"name\":\"x\"}").unwrap_err().contains("line 1"));
    }
}
