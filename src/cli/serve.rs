//! `keygate serve`: the gateway itself.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use super::{Outcome, RoleArg, refuse};
use crate::app::App;
use crate::config::Config;
use crate::store::Role;
use crate::telemetry;
use crate::vocabulary::clock::Clock;

/// Run the gateway until SIGTERM or Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The first SIGTERM lets the requests under way finish, the second ends them.

SIGHUP reads the configuration, its policy and its certificates again. All of it holds from the next request on, or nothing changes \
and standard error says why: a mistake, or a setting that only a restart changes (address, threads, connection limits, keys, store, \
cache, admin, ops, log).

Exit code: 0 when it was stopped, 1 when it could not start, 2 if the configuration cannot be read.

Examples:
  keygate init && keygate check && keygate serve
  keygate serve --role proxy      on further machines, with a Redis user that may only read")]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = "keygate.toml")]
    config: PathBuf,
    #[command(flatten)]
    role: RoleArg,
}

pub(super) fn run(
    args: &Args,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
    let role = Role::from(args.role);
    let path = args.config.clone();
    let read = move || Config::load(&path, environment.clone()).and_then(|config| config.in_role(role));
    let config = match read() {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes, err),
    };
    let routes = config.routes.routes().len();
    let scheme = if config.tls.certificates.is_empty() { "http" } else { "https" };
    let (app, signals) = match App::start(config, Some(Box::new(read)), Clock::system()) {
        Ok(started) => started,
        Err(error) => {
            writeln!(err, "keygate: {error}")?;
            return Ok(Outcome::Refused);
        }
    };
    // What was logged on the way here, a warning perhaps, stands before the line that says it is done.
    telemetry::flush_log();
    writeln!(err, "keygate: listening on {scheme}://{} with {routes} routes", app.address())?;
    if role == Role::Proxy {
        writeln!(err, "keygate: role proxy: nothing but requests; what keygate serves itself is a 404 here")?;
    }
    if let Some(address) = app.ops_address() {
        writeln!(err, "keygate: metrics and probes on http://{address}")?;
    }
    if let Some(address) = app.admin_address() {
        writeln!(err, "keygate: admin API on http://{address}")?;
    }
    app.run_until_signalled(signals);
    Ok(Outcome::Done)
}
