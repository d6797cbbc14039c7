//! `keygate dev`: the whole thing on one's own machine, with nothing to set up.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::demo;
use super::{Outcome, refuse};
use crate::app::App;
use crate::config::{Config, DEFAULT_POLICY};
use crate::downstream::worker::DrainSettings;
use crate::lifecycle::{Lifecycle, LifecycleError, NewKey, Origin};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::scope::{Scope, ScopeSet};
use crate::vocabulary::key::{ApiKey, Environment};
use crate::vocabulary::network::parse_address;

/// Try keygate: a gateway with demo upstreams, fresh keys and the shipped policy
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Everything it keeps is in the folder .keygate; delete it to start afresh. The keys of the last start are revoked. It listens on loopback only.

Examples:
  keygate dev
  keygate dev --listen 127.0.0.1:8000")]
pub(super) struct Args {
    /// Where to listen, on loopback
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = parse_address)]
    listen: SocketAddr,
    /// The folder for the store
    #[arg(long, value_name = "DIR", default_value = ".keygate")]
    dir: PathBuf,
}

/// Whose keys these are, and who made them.
const DEV: &str = "keygate dev";
/// Where the configuration's text would stand if it were a file.
const CONFIG: &str = "keygate-dev.toml";
const POLICY: &str = "policy.toml";
/// Enough to try things out, and within the file descriptors of any machine.
const CONNECTIONS: usize = 256;
/// A demo has no long polls to wait for.
const DRAIN: Duration = Duration::from_secs(2);

pub(super) fn run(
    args: &Args,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    make_folder(&args.dir)?;
    let demos = [demo::Demo::bind(Environment::Live)?, demo::Demo::bind(Environment::Test)?];
    let upstreams = [demos[0].address()?, demos[1].address()?];
    let config = match configuration(args, upstreams, environment) {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes, err),
    };
    if !config.listener.listen.ip().is_loopback() {
        writeln!(err, "keygate: dev is for one's own machine: {} is not loopback", config.listener.listen)?;
        return Ok(Outcome::Refused);
    }
    let (app, signals) = match App::start(config, None, Clock::system()) {
        Ok(started) => started,
        Err(error) => {
            writeln!(err, "keygate: {error}")?;
            return Ok(Outcome::Refused);
        }
    };
    for demo in demos {
        app.block_on(async { demo.start() })?;
    }
    // A gateway whose configuration says nothing of its role is a full one.
    let Some(lifecycle) = app.lifecycle().cloned() else { return Ok(Outcome::Refused) };
    match app.block_on(fresh_keys(&lifecycle)) {
        Ok(keys) => welcome(out, &app, upstreams, &keys)?,
        Err(error) => {
            writeln!(err, "keygate: cannot make the keys: {error}")?;
            return Ok(Outcome::Refused);
        }
    }
    drop(lifecycle);
    app.run_until_signalled(signals);
    Ok(Outcome::Done)
}

/// The folder of the store, for nobody else's eyes, and out of the way of the project it is tried in.
fn make_folder(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::write(dir.join(".gitignore"), "*\n")
}

fn configuration(
    args: &Args,
    [live, test]: [SocketAddr; 2],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, crate::config::Mistakes> {
    let store = args.dir.join("keygate.redb");
    let socket = args.dir.join("admin.sock");
    // A JSON string is a TOML string.
    let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let text = format!(
        "[server]\nlisten = \"{}\"\n[store]\nkind = \"embedded\"\npath = {}\n[admin]\nsocket = {}\n[ops]\nlisten = \"127.0.0.1:0\"\n[signup]\nenabled = true\n[log]\nrequests = \"text\"\n\
         [upstreams.api]\nlive = [\"http://{live}\"]\ntest = [\"http://{test}\"]\n[policy]\nfile = \"{POLICY}\"\n",
        args.listen,
        quoted(&store),
        quoted(&socket),
    );
    let files = |path: &Path| match path.to_str() {
        Some(CONFIG) => Ok(text.clone()),
        Some(POLICY) => Ok(DEFAULT_POLICY.to_owned()),
        _ => fs::read_to_string(path),
    };
    let mut config = Config::load_from(&files, Path::new(CONFIG), environment)?;
    config.listener.max_connections = CONNECTIONS;
    config.drain = DrainSettings { delay: Duration::ZERO, timeout: DRAIN };
    Ok(config)
}

/// The secrets of one start.
struct Keys {
    live: ApiKey,
    read_only: ApiKey,
    test: ApiKey,
}

/// Revokes the keys of the last start and makes new ones.
async fn fresh_keys(lifecycle: &Lifecycle) -> Result<Keys, LifecycleError> {
    let origin = &Origin::operator(DEV);
    let org = match lifecycle.list_orgs(None, usize::MAX).await?.into_iter().find(|org| org.name == DEV) {
        Some(org) => org.id,
        None => lifecycle.create_org(origin, DEV).await?.id,
    };
    for key in lifecycle.list_keys(origin, Some(org), None, usize::MAX).await?.keys {
        if key.created_by == DEV && key.revoked_at.is_none() {
            lifecycle.revoke_key(origin, key.id).await?;
        }
    }
    let all = lifecycle.vocabulary();
    let read_only: ScopeSet = all.iter().filter(|scope| is_read(scope)).cloned().collect();
    Ok(Keys {
        live: make_key(lifecycle, org, "live, all scopes", Environment::Live, all.clone()).await?,
        read_only: make_key(lifecycle, org, "live, read only", Environment::Live, read_only).await?,
        test: make_key(lifecycle, org, "test, all scopes", Environment::Test, all).await?,
    })
}

fn is_read(scope: &Scope) -> bool {
    scope.as_str().ends_with(":read")
}

async fn make_key(
    lifecycle: &Lifecycle,
    org: OrgId,
    name: &str,
    environment: Environment,
    scopes: ScopeSet,
) -> Result<ApiKey, LifecycleError> {
    let new = NewKey { scopes: Some(scopes), ..NewKey::named(org, name, environment) };
    Ok(lifecycle.create_key(&Origin::operator(DEV), new).await?.secret)
}

fn welcome(out: &mut impl Write, app: &App, [live, test]: [SocketAddr; 2], keys: &Keys) -> io::Result<()> {
    let url = format!("http://{}", app.address());
    write!(
        out,
        "\
keygate listens on {url}
  live keys go to the demo upstream on http://{live}
  test keys go to the demo upstream on http://{test}
  metrics are on http://{}/metrics

Paste this into another terminal:

export FIRSTHAND_API_KEY={}
export FIRSTHAND_TEST_KEY={}
export FIRSTHAND_READ_KEY={}

curl -i {url}/v1/jobs -H \"Authorization: Bearer $FIRSTHAND_API_KEY\"           # 200 from the live upstream
curl -i {url}/v1/jobs -H \"Authorization: Bearer $FIRSTHAND_TEST_KEY\"          # 200 from the test upstream, with sandbox data
curl -i {url}/v1/jobs -H \"Authorization: Bearer $FIRSTHAND_READ_KEY\" -d '{{}}'  # 403: the key may only read
curl -i {url}/v1/jobs                                                         # 401: no key

Each request is shown below. Ctrl-C ends it.

",
        app.ops_address().map_or_else(String::new, |address| address.to_string()),
        keys.live.expose(),
        keys.test.expose(),
        keys.read_only.expose(),
    )?;
    out.flush()
}
