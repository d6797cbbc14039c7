//! `keygate keys`: make, list and revoke keys.
//!
//! The gateway that holds the store carries the command out, over its admin socket; where none runs, this process opens the store itself.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::{Outcome, load};
use crate::admin::{self, ClientError, Command, KeyView, OrgView, Reply};
use crate::app::{KeyTools, open_store};
use crate::clock::Clock;
use crate::config::Config;
use crate::id::{KeyId, OrgId};
use crate::key::Environment;
use crate::key::scope::Scope;
use crate::lifecycle::Lifecycle;
use crate::store::embedded::OpenError;

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
                None => operator.only_org().await?,
            };
            let expires_at = expires_in.map(|after| Clock::system().now().wall.plus(after));
            let scopes = scopes.map(Into::into);
            let operator_name = operator_name();
            let command =
                Command::CreateKey { org, name, environment, scopes, expires_at, operator: operator_name };
            show_new_key(&operator.ask(command).await?, json, err)
        }
        Action::List { org } => Ok(show_keys(&operator.all_keys(org).await?, json)),
        Action::Revoke { id, yes } => {
            if !yes && !confirmed(&format!("Revoke {id} for ever?"), err)? {
                return Err("nothing was revoked".to_owned());
            }
            show_revoked(&operator.ask(Command::RevokeKey { id }).await?, json)
        }
    }
}

/// Who carries commands out.
enum Operator {
    /// The gateway behind this socket; where none answers, the store itself.
    Socket {
        socket: PathBuf,
        config: Box<Config>,
    },
    Store(Lifecycle),
}

impl Operator {
    fn connect(mut config: Config) -> Result<Self, String> {
        match config.admin.socket.take() {
            Some(socket) => Ok(Self::Socket { socket, config: Box::new(config) }),
            None => open(&config).map(Self::Store),
        }
    }

    async fn ask(&self, command: Command) -> Result<Reply, String> {
        let reply = match self {
            Self::Store(lifecycle) => admin::execute(lifecycle, command).await,
            Self::Socket { socket, config } => match admin::call(socket, &command).await {
                Ok(reply) => reply,
                Err(ClientError::Absent) => admin::execute(&open(config)?, command).await,
                Err(error) => return Err(error.to_string()),
            },
        };
        match reply {
            Reply::Failed { message } => Err(message),
            reply => Ok(reply),
        }
    }

    /// The organisation that needs no name: the only one there is, or a first one.
    async fn only_org(&self) -> Result<OrgId, String> {
        let Reply::Orgs { orgs } = self.ask(Command::ListOrgs { after: None, limit: 2 }).await? else {
            return Err(unexpected());
        };
        match orgs.as_slice() {
            [OrgView { id, .. }] => Ok(*id),
            [] => match self.ask(Command::CreateOrg { name: FIRST_ORG.to_owned() }).await? {
                Reply::Org(org) => Ok(org.id),
                _ => Err(unexpected()),
            },
            _ => Err("there is more than one organisation; say whose key it is with --org".to_owned()),
        }
    }

    async fn all_keys(&self, org: Option<OrgId>) -> Result<Vec<KeyView>, String> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map(|key: &KeyView| key.id);
            let Reply::Keys { keys } = self.ask(Command::ListKeys { org, after, limit: PAGE }).await? else {
                return Err(unexpected());
            };
            let last = keys.len() < PAGE;
            all.extend(keys);
            if last {
                return Ok(all);
            }
        }
    }
}

fn open(config: &Config) -> Result<Lifecycle, String> {
    let tools = KeyTools::new(&config.keys).map_err(|error| error.to_string())?;
    let store = open_store(&config.store, tools.sealer).map_err(|error| match error {
        OpenError::InUse { .. } => format!(
            "{error}: a gateway holds it; set admin.socket in its configuration, restart it, and this command will ask it"
        ),
        error => error.to_string(),
    })?;
    Ok(Lifecycle::new(store, tools.format, tools.digester, config.scopes.clone(), Clock::system()))
}

fn unexpected() -> String {
    "the gateway answered something else than it was asked; are both the same version?".to_owned()
}

/// Who sits at the terminal, for the record.
fn operator_name() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    let name: String =
        user.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(64).collect();
    if name.is_empty() { "operator".to_owned() } else { name }
}

fn confirmed(question: &str, err: &mut impl Write) -> Result<bool, String> {
    if !io::stdin().is_terminal() {
        return Err("this cannot be undone: add --yes".to_owned());
    }
    write!(err, "{question} [y/N] ").and_then(|()| err.flush()).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| error.to_string())?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn show_new_key(reply: &Reply, json: bool, err: &mut impl Write) -> Result<String, String> {
    let Reply::NewKey { key, secret } = reply else { return Err(unexpected()) };
    if json {
        return Ok(format!("{}\n", serde_json::json!({ "key": key, "secret": secret })));
    }
    let scopes: Vec<&str> = key.scopes.iter().map(Scope::as_str).collect();
    // Apart from the secret, so that the secret alone can be piped on. Should it fail, the secret still comes out.
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
