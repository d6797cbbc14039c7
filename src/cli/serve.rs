//! `keygate serve`: runs the gateway.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use super::{Outcome, RoleArg, files, refuse};
use crate::app::{App, Belongings, Ended, Inherited, Taken, take_over};
use crate::config::{Config, Mistakes};
use crate::store::Role;
use crate::telemetry::{Notice, flush_log};
use crate::vocabulary::clock::Clock;

/// Run the gateway until SIGTERM or Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "\
After the first SIGTERM, the requests in progress finish; a second SIGTERM ends them.

SIGUSR1 opens the files of the log again, after they were renamed.

Sockets that systemd passes (LISTEN_FDS) are used instead of bound ones; each must be at an address of the configuration.

SIGHUP reloads the configuration, its policy and its certificates. All of them take effect from the next request on. If there is a \
mistake, or a changed setting needs a restart (address, threads, connection limits, keys, store, cache, admin, ops, log), nothing \
changes, and standard error shows the reason.

Exit code: 0 after a signal, 1 if the gateway cannot start, 2 if the configuration cannot be read.

Examples:
  keygate init && keygate check && keygate serve
  keygate serve --take-over       a new release in the place of the running gateway
  keygate serve --role proxy      on more machines, with a Redis user that can only read")]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = "keygate.toml")]
    config: PathBuf,
    #[command(flatten)]
    role: RoleArg,
    /// Take the sockets of the gateway that runs here, and its place; start as usual where none runs
    #[arg(long)]
    take_over: bool,
    /// Let the system write core files of this process, and debuggers attach: they see keys and secrets in plain text
    #[arg(long)]
    pub(super) allow_core_dumps: bool,
}

pub(super) fn run(
    args: &Args,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
    // Before there are threads.
    let names = environment.iter().find(|(name, _)| name == "LISTEN_FDNAMES");
    let inherited = match Inherited::from_environment(names.and_then(|(_, names)| names.to_str())) {
        Ok(inherited) => inherited,
        Err(error) => {
            let _ = writeln!(err, "keygate: {error}");
            return Ok(Outcome::Refused);
        }
    };
    let role = Role::from(args.role);
    let path = args.config.clone();
    let load = move || Config::load(&path, environment.clone()).and_then(|config| config.in_role(role));
    let mut begin = Begin { take_over: args.take_over, sockets: inherited };
    loop {
        match serve(&load, begin, role, err)? {
            Ok(Ended::Stopped) => return Ok(Outcome::Done),
            Ok(Ended::ToBeginAnew(sockets)) => begin = Begin { take_over: false, sockets },
            Err(outcome) => return Ok(outcome),
        }
    }
}

/// What a gateway begins with.
struct Begin {
    take_over: bool,
    sockets: Inherited,
}

/// Runs one gateway to its end.
fn serve<L>(load: &L, begin: Begin, role: Role, err: &mut impl Write) -> io::Result<Result<Ended, Outcome>>
where
    L: Fn() -> Result<Config, Mistakes> + Clone + Send + 'static,
{
    let config = match load() {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes, err).map(Err),
    };
    let files = files::read(&config.files());
    if !files.mistakes.is_empty() {
        return refuse(&files.mistakes.into(), err).map(Err);
    }
    let taken = match begin.take_over.then(|| take_over(&config)).transpose() {
        Ok(taken) => taken.unwrap_or_default(),
        Err(error) => return told(&error, err),
    };
    let is_awaited = taken.is_some();
    let Taken { verified, inherited, line } = taken;
    let load = load.clone();
    let read = move || {
        let config = load()?;
        let settings = config.files();
        let (_, mut mistakes) = files::read_certificates(&settings);
        mistakes.extend(files::check_upstreams(&settings));
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes.into()) }
    };
    let routes = config.routes.routes().len();
    let log_file = config.log.file.clone();
    let scheme = if config.tls.certificates.is_empty() { "http" } else { "https" };
    let belongings = Belongings {
        source: Some(Box::new(read)),
        verified: verified.as_ref().or(files.store.as_ref()),
        inherited: inherited.unwrap_or(begin.sockets),
        is_awaited,
    };
    let (app, signals) = match App::start(config, belongings, Clock::system()) {
        Ok(started) => started,
        Err(error) => return told(&error, err),
    };
    if let Some(file) = &log_file {
        let _ = writeln!(err, "keygate: the log goes to {}", file.display());
    }
    greet(&app, &format!("{scheme}://{} with {routes} routes", app.address()), role);
    if let Err(error) = line.serving() {
        app.drain(Duration::ZERO);
        return told(&error, err);
    }
    Ok(Ok(app.run_until_signalled(signals)))
}

/// Says why there is no gateway.
fn told(why: &dyn std::fmt::Display, err: &mut impl Write) -> io::Result<Result<Ended, Outcome>> {
    flush_log();
    let _ = writeln!(err, "keygate: {why}");
    Ok(Err(Outcome::Refused))
}

/// A gateway whose log cannot be written, on a full disk or without a reader, serves all the same.
fn greet(app: &App, listening: &str, role: Role) {
    Notice::Started.log(&format!("listening on {listening}"));
    if role == Role::Proxy {
        Notice::Started.log("role proxy: forwards requests only; keygate's own API answers 404");
    }
    if let Some(address) = app.ops_address() {
        Notice::Started.log(&format!("metrics and probes on http://{address}"));
    }
    if let Some(address) = app.admin_address() {
        Notice::Started.log(&format!("admin API on http://{address}"));
    }
}
