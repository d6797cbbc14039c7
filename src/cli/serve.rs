//! `keygate serve`: runs the gateway.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use super::{Outcome, RoleArg, files, refuse};
use crate::app::{App, Belongings, Inherited};
use crate::config::Config;
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
  keygate serve --role proxy      on more machines, with a Redis user that can only read")]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = "keygate.toml")]
    config: PathBuf,
    #[command(flatten)]
    role: RoleArg,
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
    let config = match load() {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes, err),
    };
    let files = files::read(&config.files());
    if !files.mistakes.is_empty() {
        return refuse(&files.mistakes.into(), err);
    }
    let read = move || {
        let config = load()?;
        let (_, mistakes) = files::read_certificates(&config.files());
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes.into()) }
    };
    let routes = config.routes.routes().len();
    let log_file = config.log.file.clone();
    let scheme = if config.tls.certificates.is_empty() { "http" } else { "https" };
    let belongings = Belongings { source: Some(Box::new(read)), verified: files.store.as_ref(), inherited };
    let (app, signals) = match App::start(config, belongings, Clock::system()) {
        Ok(started) => started,
        Err(error) => {
            flush_log();
            let _ = writeln!(err, "keygate: {error}");
            return Ok(Outcome::Refused);
        }
    };
    if let Some(file) = &log_file {
        let _ = writeln!(err, "keygate: the log goes to {}", file.display());
    }
    greet(&app, &format!("{scheme}://{} with {routes} routes", app.address()), role);
    app.run_until_signalled(signals);
    Ok(Outcome::Done)
}

/// A gateway whose log cannot be written, on a full disk or without a reader, serves all the same.
fn greet(app: &App, listening: &str, role: Role) {
    Notice::Listening.log(&format!("listening on {listening}"));
    if role == Role::Proxy {
        Notice::Listening.log("role proxy: forwards requests only; keygate's own API answers 404");
    }
    if let Some(address) = app.ops_address() {
        Notice::Listening.log(&format!("metrics and probes on http://{address}"));
    }
    if let Some(address) = app.admin_address() {
        Notice::Listening.log(&format!("admin API on http://{address}"));
    }
}
