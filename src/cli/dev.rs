//! `keygate dev`: a demonstration of keygate in front of the API that it was made for, with nothing to set up.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::demo;
use super::program::{Program, word};
use super::{Outcome, refuse};
use crate::app::{App, Belongings};
use crate::config::{Config, FIRSTHAND_POLICY};
use crate::lifecycle::{Lifecycle, LifecycleError, NewKey, Origin};
use crate::store::KeysOf;
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::scope::{Scope, ScopeSet};
use crate::vocabulary::key::{ApiKey, Environment};
use crate::vocabulary::network::parse_address;

/// Try keygate: a demonstration with the routes of FirstHandAPI, demo upstreams and fresh keys
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It listens on loopback only. Everything that it keeps is in the folder .keygate: delete the folder to start afresh. Each start \
revokes the keys of the start before. In the same folder, other commands find it.

For your own API use `keygate init`.

Examples:
  keygate dev
  keygate dev --listen 127.0.0.1:8000
  keygate keys list")]
pub(super) struct Args {
    /// Where to listen, on loopback
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = parse_loopback)]
    listen: SocketAddr,
    /// The folder for its configuration and its store
    #[arg(long, value_name = "DIR", default_value = FOLDER)]
    dir: PathBuf,
}

fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    const ELSEWHERE: &str = "dev listens on loopback only; for other addresses use init and serve";
    let is_elsewhere = |ip: IpAddr| !ip.to_canonical().is_loopback();
    match parse_address(text) {
        Ok(address) if is_elsewhere(address.ip()) => Err(ELSEWHERE.to_owned()),
        Ok(address) => Ok(address),
        Err(_) if text.parse().is_ok_and(is_elsewhere) => Err(ELSEWHERE.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Where a demonstration keeps everything, and where other commands look for it.
pub(super) const FOLDER: &str = ".keygate";

/// The name of the organisation that the keys belong to, and of the operator who makes them.
const DEV: &str = "keygate dev";

pub(super) fn run(
    args: &Args,
    program: &Program,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    if let Err(error) = make_folder(&args.dir) {
        writeln!(
            err,
            "keygate: {} cannot be written: {error}; name another folder with --dir",
            args.dir.display()
        )?;
        return Ok(Outcome::Refused);
    }
    let demos = [demo::Demo::bind(Environment::Live)?, demo::Demo::bind(Environment::Test)?];
    let upstreams = [demos[0].address()?, demos[1].address()?];
    let file = args.dir.join("keygate.toml");
    fs::write(&file, configuration(args.listen, upstreams))?;
    fs::write(args.dir.join("policy.toml"), FIRSTHAND_POLICY)?;
    let config = match Config::load(&file, environment) {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes, err),
    };
    if !config.listener.listen.ip().is_loopback() {
        let listen = config.listener.listen;
        writeln!(err, "keygate: dev listens on loopback only, and {listen} is not; use init and serve")?;
        return Ok(Outcome::Refused);
    }
    let (app, signals) = match App::start(config, Belongings::default(), Clock::system()) {
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
        Ok(keys) => welcome(out, &app, (program, &file), &keys)?,
        Err(error) => {
            writeln!(err, "keygate: cannot make the keys: {error}")?;
            return Ok(Outcome::Refused);
        }
    }
    drop(lifecycle);
    // A demonstration does not begin anew.
    let _ = app.run_until_signalled(signals);
    Ok(Outcome::Done)
}

/// The folder, closed to other users, and ignored by the version control of the project around it.
fn make_folder(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::write(dir.join(".gitignore"), "*\n")
}

/// The folder's `keygate.toml`, so that other commands find the gateway too.
///
/// 256 connections are enough to try things out, and within the file descriptors of any machine. There are no long polls
/// that the drain would have to wait for.
fn configuration(listen: SocketAddr, [live, test]: [SocketAddr; 2]) -> String {
    format!(
        "\
# Written by `keygate dev` at each start.

[server]
listen = \"{listen}\"
max_connections = 256
drain_delay = \"0s\"
drain_timeout = \"2s\"

[store]
kind = \"embedded\"
path = \"keygate.redb\"

[admin]
socket = \"admin.sock\"

[ops]
listen = \"127.0.0.1:0\"

[signup]
enabled = true

[log]
requests = \"text\"

[upstreams.api]
live = [\"http://{live}\"]
test = [\"http://{test}\"]

[policy]
file = \"policy.toml\"
"
    )
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
    for key in lifecycle.list_keys(origin, KeysOf::Org(org), None, usize::MAX).await?.keys {
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

fn welcome(
    out: &mut impl Write,
    app: &App,
    (program, file): (&Program, &Path),
    keys: &Keys,
) -> io::Result<()> {
    let url = format!("http://{}", app.address());
    write!(
        out,
        "\
keygate listens on {url}
  This is a demonstration: its routes are those of FirstHandAPI. For your own API use `{program} init`.
  live and test keys go to two demo upstreams on this machine
  metrics are on http://{}/metrics

Paste this into another terminal:

export FIRSTHAND_API_KEY={}
export FIRSTHAND_TEST_KEY={}
export FIRSTHAND_READ_KEY={}

curl -i {url}/v1/jobs -H \"Authorization: Bearer $FIRSTHAND_API_KEY\"           # 200 from the live upstream
curl -i {url}/v1/jobs -H \"Authorization: Bearer $FIRSTHAND_TEST_KEY\"          # 200 from the test upstream, with sandbox data
curl -i {url}/v1/jobs -H \"Authorization: Bearer $FIRSTHAND_READ_KEY\" -d '{{}}'  # 403: the key may only read
curl -i {url}/v1/jobs                                                         # 401: no key

To look at its keys: {program} keys list --config {}

Each request is shown below. Ctrl-C ends it.

",
        app.ops_address().map_or_else(String::new, |address| address.to_string()),
        keys.live.expose(),
        keys.test.expose(),
        keys.read_only.expose(),
        word(&file.to_string_lossy()),
    )?;
    out.flush()
}
