//! `keygate keys`: make, list and revoke keys.
//!
//! The [`Operator`] carries them out.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::operator::{Operator, confirmed, unexpected};
use super::{Outcome, load};
use crate::admin::{Command, Reply};
use crate::clock::Clock;
use crate::config::Config;
use crate::id::{KeyId, OrgId};
use crate::key::Environment;
use crate::key::scope::Scope;
use crate::lifecycle::{KeyView, OrgView};

/// Keys asked for at a time when all are listed.
const PAGE: usize = 500;
/// What the organisation is called that the first key makes.
const FIRST_ORG: &str = "default";

/// Make, list and revoke keys
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keygate keys create --name 'billing service' --scopes jobs:read,jobs:write
  keygate keys create --name sandbox --environment test --expires-in 90d
  keygate keys list
  keygate keys revoke key_01J9ZQ6T5N8XKD3V4WPYB7C2HM --yes")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    /// The configuration file of the gateway whose keys these are
    #[arg(long, short, value_name = "FILE", default_value = "keygate.toml", global = true)]
    config: PathBuf,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key and print its secret, once, on standard output.
    Create {
        /// What the key is for.
        #[arg(long)]
        name: String,
        /// Whose key it is. Needed once there is more than one organisation; the first is made on demand.
        #[arg(long, value_name = "ORG_ID", value_parser = OrgId::parse)]
        org: Option<OrgId>,
        #[arg(long, value_name = "live|test", default_value = "live", value_parser = parse_environment)]
        environment: Environment,
        /// Scopes, separated by commas [default: every scope of the policy].
        #[arg(long, value_name = "SCOPES", value_delimiter = ',', value_parser = Scope::parse)]
        scopes: Option<Vec<Scope>>,
        /// When it ends, as in 90d [default: never].
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        expires_in: Option<Duration>,
    },
    /// List keys, newest first; secrets are masked.
    List {
        /// Only the keys of this organisation.
        #[arg(long, value_name = "ORG_ID", value_parser = OrgId::parse)]
        org: Option<OrgId>,
    },
    /// End a key for ever.
    Revoke {
        #[arg(value_name = "KEY_ID", value_parser = KeyId::parse)]
        id: KeyId,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

fn parse_environment(text: &str) -> Result<Environment, &'static str> {
    Environment::ALL
        .into_iter()
        .find(|environment| environment.as_str() == text)
        .ok_or("an environment is live or test")
}

/// Carries out one `keys` command.
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
    let told = runtime.block_on(act(args.action, config, args.json, err));
    match told {
        Ok(text) => {
            out.write_all(text.as_bytes())?;
            Ok(Outcome::Done)
        }
        Err(message) => {
            writeln!(err, "keygate: {message}")?;
            Ok(Outcome::Refused)
        }
    }
}

/// What to print on standard output, or why nothing was done.
async fn act(action: Action, config: Config, json: bool, err: &mut impl Write) -> Result<String, String> {
    let operator = Operator::connect(config)?;
    match action {
        Action::Create { name, org, environment, scopes, expires_in } => {
            let org = match org {
                Some(org) => org,
                None => only_org(&operator, err).await?,
            };
            let expires_at = expires_in.map(|after| Clock::system().now().wall.plus(after));
            let scopes = scopes.map(Into::into);
            let command = Command::CreateKey { org, name, environment, scopes, expires_at };
            show_new_key(&operator.ask(command).await?, json, err)
        }
        Action::List { org } => Ok(show_keys(&all_keys(&operator, org).await?, json)),
        Action::Revoke { id, yes } => {
            if !yes && !confirmed(&format!("Revoke {id} for ever?"), err)? {
                return Err("nothing was revoked".to_owned());
            }
            show_revoked(&operator.ask(Command::RevokeKey { id }).await?, json)
        }
    }
}

/// The organisation that needs no name: the only one there is, or a first one.
async fn only_org(operator: &Operator, err: &mut impl Write) -> Result<OrgId, String> {
    if let Reply::StoreBegun { made: true } = operator.ask(Command::BeginStore).await? {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(err, "there was no store yet: made an empty one");
    }
    let Reply::Orgs { orgs } = operator.ask(Command::ListOrgs { after: None, limit: 2 }).await? else {
        return Err(unexpected());
    };
    match orgs.as_slice() {
        [OrgView { id, .. }] => Ok(*id),
        [] => match operator.ask(Command::CreateOrg { name: FIRST_ORG.to_owned() }).await? {
            Reply::Org(org) => Ok(org.id),
            _ => Err(unexpected()),
        },
        _ => Err("there is more than one organisation; say whose key it is with --org".to_owned()),
    }
}

async fn all_keys(operator: &Operator, org: Option<OrgId>) -> Result<Vec<KeyView>, String> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map(|key: &KeyView| key.id);
        let Reply::Keys { keys } = operator.ask(Command::ListKeys { org, after, limit: PAGE }).await? else {
            return Err(unexpected());
        };
        let last = keys.len() < PAGE;
        all.extend(keys);
        if last {
            return Ok(all);
        }
    }
}

fn show_new_key(reply: &Reply, json: bool, err: &mut impl Write) -> Result<String, String> {
    let Reply::NewKey { key, secret } = reply else { return Err(unexpected()) };
    if json {
        return Ok(format!("{}\n", serde_json::json!({ "key": key, "secret": secret })));
    }
    let scopes: Vec<&str> = key.scopes.iter().map(Scope::as_str).collect();
    // Apart from the secret, so that the secret alone can be piped on. Should it fail, the secret still comes
    // out.
    let _ = writeln!(
        err,
        "made {} for {} ({}, {}); this is the only time its secret is shown:",
        key.id,
        key.organization_id,
        key.environment,
        scopes.join(" ")
    );
    Ok(format!("{}\n", secret.expose()))
}

fn show_keys(keys: &[KeyView], json: bool) -> String {
    if json {
        return keys.iter().map(|key| format!("{}\n", serde_json::json!(key))).collect();
    }
    let row = |id: &str, key: &str, status: &str, created: &str, name: &str| {
        format!("{id:<30}  {key:<16}  {status:<8}  {created:<20}  {name}\n")
    };
    let mut table = row("ID", "KEY", "STATUS", "CREATED", "NAME");
    for key in keys {
        let created = format!("{}Z", key.created_at.get(..19).unwrap_or(&key.created_at));
        table += &row(&key.id.to_string(), &key.key, &key.status, &created, &key.name);
    }
    table
}

fn show_revoked(reply: &Reply, json: bool) -> Result<String, String> {
    let Reply::Key { key } = reply else { return Err(unexpected()) };
    Ok(if json {
        format!("{}\n", serde_json::json!(key))
    } else {
        format!("revoked {} ({})\n", key.id, key.name)
    })
}
