//! `keygate check`: every mistake in a configuration at once, or what it comes to.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use super::{Outcome, refuse};
use crate::app::KeyTools;
use crate::config::{Config, StoreSettings};
use crate::gateway::route::{Access, Route};
use crate::key::Environment;
use crate::upstream::{Endpoint, Settings};

/// Show every mistake in a configuration and its policy, or a summary if there is none
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: 0 without mistakes, 1 with mistakes, 2 if the file cannot be read.

Examples:
  keygate check
  keygate check --config /etc/keygate/keygate.toml
  KEYGATE__SERVER__LISTEN=127.0.0.1:8000 keygate check")]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = "keygate.toml")]
    config: PathBuf,
}

pub(super) fn run(
    args: &Args,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    match Config::load(&args.config, environment) {
        Ok(config) => {
            if let Err(error) = KeyTools::new(&config.keys) {
                writeln!(err, "{error}\n\n1 mistake")?;
                return Ok(Outcome::Refused);
            }
            writeln!(out, "{}: fine\n", args.config.display())?;
            summarise(&config, out)?;
            Ok(Outcome::Done)
        }
        Err(mistakes) => refuse(&mistakes, err),
    }
}

fn summarise(config: &Config, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "listen     {}", config.listener.listen)?;
    match &config.store {
        StoreSettings::Embedded(store) => writeln!(out, "store      embedded, {}", store.path.display())?,
        StoreSettings::Redis(store) => {
            writeln!(out, "store      redis, {}, cell {}", store.address, store.cell)?;
        }
    }
    for upstream in &config.upstreams {
        writeln!(out, "upstream   {}", describe_upstream(upstream))?;
    }
    let routes = config.routes.routes();
    let public: Vec<&Route> =
        routes.iter().filter(|route| matches!(route.access, Access::Public { .. })).collect();
    writeln!(out, "routes     {}, of which {} public", routes.len(), public.len())?;
    for route in public {
        writeln!(out, "public     {}", describe_route(route))?;
    }
    Ok(())
}

fn describe_upstream(upstream: &Settings) -> String {
    let join =
        |endpoints: &[Endpoint]| endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(", ");
    let [live, test] =
        [Environment::Live, Environment::Test].map(|environment| upstream.endpoints(environment));
    if live == test {
        format!("{}: live and test {}", upstream.name, join(live))
    } else {
        format!("{}: live {}; test {}", upstream.name, join(live), join(test))
    }
}

fn describe_route(route: &Route) -> String {
    let methods: Vec<&str> = route.methods.iter().map(http::Method::as_str).collect();
    let paths: Vec<&str> = route.patterns.iter().map(|pattern| pattern.as_str()).collect();
    format!("{}: {} {}", route.id, methods.join(" "), paths.join(" "))
}
