//! `keygate keys`: creating, changing, revoking, importing and exporting keys.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::operator::{Act, Failure, Session, unexpected};
use super::org_name::OrgName;
use super::orgs::owner_of_new_key;
use super::reach::{self, Wait, WithReach};
use super::revoke::{self, How};
use super::secrecy::{parse_key_id, parse_shown_text};
use super::{Outcome, duration, key_list, org_name, transfer};
use crate::lifecycle::{KeyView, NewKey, OVERLAP, Patch, parse_network};
use crate::operators::admin::{Command, KeyCommand, Reply, Secret};
use crate::secret_file;
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::scope::Scope;
use crate::vocabulary::key::{Digest, Environment};

/// Create, list, change, rotate, revoke, import and export keys
#[derive(Debug, Subcommand)]
#[command(after_help = "\
A command that changes what a key may do says how far that has come among the gateways, as in confirmed=2/3: two of three have applied it. Gateways that hold no lease any more and have not given it up are told as lapsed; nobody waits for them.

Exit code: 0 on success; 1 if anything failed; 2 if the arguments or the configuration cannot be read; 3 if the change is made, and a gateway with a lease has not confirmed it yet.

Examples:
  keygate keys create --org 'Example Ltd' --name 'billing service' --scopes jobs:read,jobs:write
  keygate keys create --name sandbox --environment test --expires-in 90d --all-scopes
  keygate keys list --unused 90d --status active
  keygate keys list --expires-within 14d
  keygate keys edit key_01J9ZQ6T5N8XKD3V4WPYB7C2HM --expires-in 30d --reason 'ticket 4711'
  keygate keys list --owner billing --json | keygate keys revoke --stdin --yes
  keygate keys show --secret-stdin < leaked.txt
  keygate keys rotate key_01J9ZQ6T5N8XKD3V4WPYB7C2HM --overlap 1h
  keygate keys revoke key_01J9ZQ6T5N8XKD3V4WPYB7C2HM
  keygate keys revoke key_01J9ZQ6T5N8XKD3V4WPYB7C2HM --with-children --wait 30s
  keygate keys import keys.jsonl --dry-run")]
pub(super) enum Action {
    /// Create a key and print its secret on standard output; the secret is never shown again
    Create(Create),
    /// List keys, newest first; secrets are masked
    List(key_list::Filter),
    /// Show a key, by its id or by its secret
    Show {
        /// The id of the key, as `keygate keys list` shows it
        #[arg(value_name = "KEY_ID", value_parser = parse_key_id, required_unless_present_any = ["secret_stdin", "secret_file"])]
        id: Option<KeyId>,
        /// Read a secret from standard input; show its key, and whether the secret is still valid
        #[arg(long, conflicts_with_all = ["id", "secret_file"])]
        secret_stdin: bool,
        /// Read the secret from a file of mode 0600 instead
        #[arg(long, value_name = "FILE", conflicts_with = "id")]
        secret_file: Option<PathBuf>,
    },
    /// Change a key; more scopes and a later end need a --reason
    Edit {
        /// The id of the key, as `keygate keys list` shows it
        #[arg(value_name = "KEY_ID", value_parser = parse_key_id)]
        id: KeyId,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give a key a new secret and print it on standard output; it is never shown again
    Rotate {
        /// The id of the key, as `keygate keys list` shows it
        #[arg(value_name = "KEY_ID", value_parser = parse_key_id)]
        id: KeyId,
        /// How long the old secret stays valid: from 0s, for a leaked secret, to 7d [default: 24h]
        #[arg(long, value_name = "DURATION", value_parser = parse_overlap)]
        overlap: Option<Duration>,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Revoke keys; this cannot be undone
    Revoke {
        /// The ids of the keys, as `keygate keys list` shows them
        #[arg(value_name = "KEY_ID", value_parser = parse_key_id, required_unless_present = "stdin", conflicts_with = "stdin")]
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
        #[command(flatten)]
        wait: Wait,
    },
    /// Disable a key until it is enabled again
    Disable {
        /// The id of the key, as `keygate keys list` shows it
        #[arg(value_name = "KEY_ID", value_parser = parse_key_id)]
        id: KeyId,
        #[command(flatten)]
        wait: Wait,
    },
    /// Enable a disabled key
    Enable {
        /// The id of the key, as `keygate keys list` shows it
        #[arg(value_name = "KEY_ID", value_parser = parse_key_id)]
        id: KeyId,
        #[command(flatten)]
        wait: Wait,
    },
    /// Import hashed keys, one line of JSON for each
    Import(transfer::Import),
    /// Export hashed keys in the form that `import` reads, one line of JSON for each
    Export(transfer::Export),
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// The purpose of the key
    #[arg(long, value_parser = parse_shown_text)]
    name: String,
    /// The organisation that owns the key, by its id or its name [default: the only organisation]. The first organisation of a
    /// store is created with this name
    #[arg(long, value_name = "ORG", value_parser = OrgName::parse)]
    org: Option<OrgName>,
    /// The environment of the key: its requests go to the live or to the test servers
    #[arg(long, value_name = "ENVIRONMENT", default_value = "live", value_parser = key_list::environments())]
    environment: Environment,
    /// What the key may do, separated by commas; the policy has the scopes
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', value_parser = Scope::parse)]
    scopes: Option<Vec<Scope>>,
    /// Let the key do everything: give it every scope of the policy
    #[arg(long, conflicts_with = "scopes")]
    all_scopes: bool,
    /// The time until the key expires, as in 90d [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_optional_lifetime)]
    expires_in: Option<Duration>,
    /// The networks and addresses that may use the key, separated by commas [default: any]
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', value_parser = parse_network)]
    allow: Vec<IpNet>,
    /// The person or team responsible for the key
    #[arg(long, value_parser = parse_shown_text)]
    owner: Option<String>,
    /// A note about the key
    #[arg(long, value_parser = parse_shown_text)]
    note: Option<String>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(super) struct Change {
    /// The purpose of the key
    #[arg(long, value_parser = parse_shown_text)]
    name: Option<String>,
    /// The person or team responsible for the key
    #[arg(long, value_parser = parse_shown_text)]
    owner: Option<String>,
    /// Remove the owner
    #[arg(long, conflicts_with = "owner")]
    no_owner: bool,
    /// A note about the key
    #[arg(long, value_parser = parse_shown_text)]
    note: Option<String>,
    /// Remove the note
    #[arg(long, conflicts_with = "note")]
    no_note: bool,
    /// The scopes that the key has from now on, separated by commas; more than before need --reason
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', value_parser = Scope::parse)]
    scopes: Option<Vec<Scope>>,
    /// The time until the key expires, as in 30d; a later end than before needs --reason. It lets an expired key live again
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_changed_lifetime)]
    expires_in: Option<Duration>,
    /// Let the key never expire; this needs --reason
    #[arg(long, conflicts_with = "expires_in")]
    no_expiry: bool,
    /// The networks and addresses that may use the key, separated by commas; they replace the previous ones
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', value_parser = parse_network)]
    allow: Option<Vec<IpNet>>,
    /// Allow any address to use the key
    #[arg(long, conflicts_with = "allow")]
    allow_any: bool,
}

/// Parses an overlap. Less than a second would be rounded to zero, and the old secret would end at once.
fn parse_overlap(text: &str) -> Result<Duration, String> {
    let overlap = duration::parse(text)?;
    if overlap.subsec_nanos() == 0 { Ok(overlap) } else { Err("write whole seconds, as in 90s".to_owned()) }
}

impl Act for Action {
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure> {
        match self {
            Self::Create(new) => create(new, session).await,
            Self::List(filter) => key_list::list(filter, session).await,
            Self::Show { id: Some(id), .. } => show_one(id, session).await,
            Self::Show { secret_file, .. } => find(read_secret(secret_file)?, session).await,
            Self::Edit { id, change, wait } => {
                let patch = patch(change);
                change_one(KeyCommand::Update { id, patch }, "changed", wait, session).await
            }
            Self::Rotate { id, overlap, yes, wait } => {
                let overlap = overlap.unwrap_or(OVERLAP);
                if overlap.is_zero() && !yes {
                    let key = revoke::describe(id, session).await?;
                    session.confirm(&format!("End the present secret of {key} immediately?"))?;
                }
                let command = KeyCommand::Rotate { id, overlap_seconds: overlap.as_secs() };
                show_rotated(session.ask(Command::Keys(command)).await?, wait, session).await
            }
            Self::Revoke { ids, stdin, with_children, yes, wait } => {
                let how = How { with_children, stdin, yes, wait };
                revoke::revoke(ids, how, session).await
            }
            Self::Disable { id, wait } => {
                change_one(KeyCommand::Disable { id }, "disabled", wait, session).await
            }
            Self::Enable { id, wait } => {
                change_one(KeyCommand::Enable { id }, "enabled", wait, session).await
            }
            Self::Import(import) => transfer::import(import, session).await,
            Self::Export(export) => transfer::export(&export, session).await,
        }
    }
}

fn from_now(after: Duration) -> UnixMillis {
    Clock::system().now().wall.plus(after)
}

async fn create(create: Create, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let Create { name, org, environment, scopes, all_scopes, expires_in, allow, owner, note } = create;
    if scopes.is_none() && !all_scopes {
        return Err(which_scopes(session));
    }
    let (scopes, expires_at) = (scopes.map(Into::into), expires_in.map(from_now));
    let mut new = NewKey {
        org: OrgId::NOBODY,
        name,
        environment,
        scopes,
        expires_at,
        allowed_addresses: allow,
        owner,
        note,
    };
    new.org = match org {
        Some(OrgName::Id(id)) => id,
        org => {
            // First: this may make the store and its first organisation, and a mistake must change nothing.
            session.ask(Command::Keys(KeyCommand::Check(new.clone()))).await?;
            owner_of_new_key(org.as_ref(), session).await?
        }
    };
    let Reply::NewKey { key, secret, .. } = session.ask(Command::Keys(KeyCommand::Create(new))).await? else {
        return Err(unexpected());
    };
    if session.json {
        session.print_json(&serde_json::json!({ "key": key, "secret": secret }))?;
    } else {
        print_secret(&key, &secret, "created", session)?;
    }
    Ok(Outcome::Done)
}

/// Which scopes there are, if this process knows the policy.
fn which_scopes(session: &Session<'_>) -> Failure {
    let known =
        session.config().map(|config| config.scopes.to_string().replace(' ', ", ")).unwrap_or_default();
    let known = if known.is_empty() { known } else { format!(". The policy has {known}") };
    Failure::Usage(format!(
        "say what the key may do: --scopes with some scopes of the policy, separated by commas, or --all-scopes{known}"
    ))
}

fn patch(change: Change) -> Patch {
    let Change { name, owner, no_owner, note, no_note, scopes, expires_in, no_expiry, allow, allow_any } =
        change;
    Patch {
        name,
        owner: owner.map(Some).or(no_owner.then_some(None)),
        note: note.map(Some).or(no_note.then_some(None)),
        scopes: scopes.map(Into::into),
        expires_at: expires_in.map(|after| Some(from_now(after))).or(no_expiry.then_some(None)),
        allowed_addresses: allow.or(allow_any.then(Vec::new)),
    }
}

async fn show_one(id: KeyId, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let Reply::Key { key, reach } = session.ask(Command::Keys(KeyCommand::Show { id })).await? else {
        return Err(unexpected());
    };
    match (session.json, &reach) {
        (true, None) => session.print_json(&key)?,
        (true, reach) => session.print_json(&WithReach { record: &key, reach: reach.as_ref() })?,
        (false, None) => show(&key, session).await?,
        (false, Some(reach)) => {
            show(&key, session).await?;
            session.print_fields(&[
                ("not confirmed by", reach::list(&reach.awaited)),
                ("lapsed          ", reach::list(&reach.lapsed)),
            ])?;
        }
    }
    Ok(Outcome::Done)
}

/// Makes a change that gateways must hear of, waits for them, and tells how far it has come.
async fn change_one(
    command: KeyCommand,
    done: &str,
    wait: Wait,
    session: &mut Session<'_>,
) -> Result<Outcome, Failure> {
    let Reply::Key { key, reach } = session.ask(Command::Keys(command)).await? else {
        return Err(unexpected());
    };
    let told = wait.follow(reach, session).await?;
    if session.json {
        told.print_key(key, session)?;
    } else {
        session.print_line(&format!("{done} {} ({}): {}", key.id, key.name, told.text()))?;
        told.remark(session);
    }
    Ok(told.outcome())
}

async fn show(key: &KeyView, session: &mut Session<'_>) -> Result<(), Failure> {
    let org = org_name::described(key.organization_id, session).await;
    let joined = |list: &[Scope]| list.iter().map(Scope::as_str).collect::<Vec<_>>().join(" ");
    let filled = |text: String| Some(text).filter(|text| !text.is_empty());
    session.print_fields(&[
        ("id", Some(key.id.to_string())),
        ("name", Some(key.name.clone())),
        ("organisation", Some(org)),
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
                show(&key, session).await?;
                let opens = if opens { "valid" } else { "no longer valid" };
                session.print_fields(&[("this secret     ", Some(opens.to_owned()))])?;
            }
            Ok(Outcome::Done)
        }
        Reply::KeyNotFound => Err("no key has this secret".into()),
        _ => Err(unexpected()),
    }
}

/// Prints the new secret of a key before it waits: nothing must come between the operator and the secret.
async fn show_rotated(reply: Reply, wait: Wait, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let Reply::NewKey { key, secret, reach } = reply else { return Err(unexpected()) };
    if !session.json {
        print_secret(&key, &secret, "rotated", session)?;
        session.out.flush()?;
    }
    let told = wait.follow(reach, session).await?;
    if session.json {
        let (key, reach) = (told.on(key), &told.reach);
        session.print_json(&serde_json::json!({ "key": key, "secret": secret, "reach": reach }))?;
    } else {
        let _ = writeln!(session.err, "the change of secrets: {}", told.text());
        told.remark(session);
    }
    Ok(told.outcome())
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
}
