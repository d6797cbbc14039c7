//! `keygate check`: shows all mistakes in a configuration, or a summary.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use super::files::{self, Files};
use super::{Outcome, RoleArg, refuse};
use crate::app::KeyTools;
use crate::config::{Config, StoreSettings};
use crate::downstream::tls::Certificate;
use crate::policy::access::Access;
use crate::policy::foreign::read_as_narrow;
use crate::policy::route::Route;
use crate::policy::wider::left_to_wider;
use crate::store::Role;
use crate::store::embedded;
use crate::store::finding::Finding;
use crate::store::redis::Redis;
use crate::upstream::{Endpoint, Settings};
use crate::vocabulary::believed::NAMES;
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::key::Environment;

/// Show all mistakes in a configuration and its policy, or a summary if there are none
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A variable that has no effect, as KEYGATE_SERVER_LISTEN, is a mistake.

Exit code: 0 without mistakes, 1 with mistakes, 2 if the file cannot be read. With --online, also 1 if the gateway could not \
work with the store. Warnings, for example of an expired certificate, do not change the exit code: `keygate serve` starts with them.

Examples:
  keygate check
  keygate check --config /etc/keygate/keygate.toml
  keygate check --online
  keygate check --online --role proxy
  KEYGATE__SERVER__LISTEN=127.0.0.1:8000 keygate check")]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = "keygate.toml")]
    config: PathBuf,
    /// Also connect to the store and check it; nothing is changed
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    role: RoleArg,
}

const NO_AUDIT_KEY: &str = "neither audit.key_file nor keys.pepper_file is set, so every process that can write to the store can forge the \
         audit trail";

pub(super) fn run(
    args: &Args,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let role = args.role.into();
    let (loaded, settings) = match Config::load(&args.config, environment) {
        Ok(config) => {
            let settings = config.files();
            (Ok(config), Some(settings))
        }
        Err(mistakes) => {
            let settings = mistakes.settings().cloned();
            (Err(mistakes), settings)
        }
    };
    let Files { certificates, mistakes: mut more, .. } =
        settings.as_ref().map(files::read).unwrap_or_default();
    more.extend(settings.as_ref().and_then(|settings| settings.misfit(role)));
    let config = match loaded {
        Ok(config) => {
            more.extend(config.remarks.ignored.iter().cloned());
            if more.is_empty() { config.in_role(role) } else { Err(more.into()) }
        }
        Err(mistakes) => Err(mistakes.and(more)),
    };
    match config {
        Ok(config) => {
            writeln!(out, "{}: fine\n", args.config.display())?;
            summarise(&config, &certificates, Clock::system().now().wall, out)?;
            if args.online { show(&ask_store(&config)?, out) } else { Ok(Outcome::Done) }
        }
        Err(mistakes) => refuse(&mistakes, err),
    }
}

fn ask_store(config: &Config) -> io::Result<Vec<Finding>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match (&config.store, KeyTools::new(&config.keys)) {
        (_, Err(error)) => Ok(vec![Finding::Broken(error.to_string())]),
        (StoreSettings::Embedded(settings), Ok(tools)) => {
            Ok(vec![embedded::inspect(settings, &tools.sealer)])
        }
        (StoreSettings::Redis(settings), Ok(tools)) => {
            match Redis::open((**settings).clone(), tools.sealer, runtime.handle().clone()) {
                Ok(redis) => Ok(runtime.block_on(redis.inspect(config.role))),
                Err(error) => Ok(vec![Finding::Broken(error.to_string())]),
            }
        }
    }
}

fn show(findings: &[Finding], out: &mut impl Write) -> io::Result<Outcome> {
    writeln!(out)?;
    let mut outcome = Outcome::Done;
    for finding in findings {
        match finding {
            Finding::Fine(text) => writeln!(out, "fine       {text}")?,
            Finding::Warning(text) => writeln!(out, "warning    {text}")?,
            Finding::Broken(text) => {
                writeln!(out, "broken     {text}")?;
                outcome = Outcome::Refused;
            }
        }
    }
    Ok(outcome)
}

fn summarise(
    config: &Config,
    certificates: &[Certificate],
    now: UnixMillis,
    out: &mut impl Write,
) -> io::Result<()> {
    writeln!(out, "listen     {}", config.listener.listen)?;
    for warning in &config.remarks.warnings {
        writeln!(out, "warning    {warning}")?;
    }
    for certificate in certificates {
        let names = certificate.names.join(", ");
        writeln!(out, "tls        {names}, until {}", certificate.not_after)?;
        // A warning and not a mistake, because `serve` continues with it: if a check before each start failed, one
        // expired certificate would be an outage for all names.
        if let Some(complaint) = certificate.complaint(now) {
            writeln!(out, "warning    {complaint}")?;
        }
    }
    match &config.store {
        StoreSettings::Embedded(store) => writeln!(out, "store      embedded, {}", store.path.display())?,
        StoreSettings::Redis(store) => {
            writeln!(out, "store      redis, {}, cell {}", store.place, store.cell)?;
        }
    }
    match config.role {
        Role::Proxy => {
            writeln!(out, "role       proxy: forwards requests only; keygate's own API answers 404")?;
        }
        Role::Full => summarise_audit(config, out)?,
    }
    if let Some(remote) = &config.admin.remote {
        writeln!(out, "admin      http://{}", remote.listen)?;
    }
    let names = |names: &[http::HeaderName]| {
        names.iter().map(http::HeaderName::as_str).collect::<Vec<_>>().join(", ")
    };
    let headers = &config.gateway.headers;
    writeln!(out, "removed    from requests, in every spelling: {}", NAMES.join(", "))?;
    for (list, what) in
        [(&headers.strip, "removed    also"), (&headers.keep_from_trusted, "kept       from trusted proxies")]
    {
        if !list.is_empty() {
            writeln!(out, "{what}: {}", names(list))?;
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
    summarise_wider(routes, out)
}

/// The lines of each of the lists that are shown.
const MOST: usize = 100;

fn summarise_wider(routes: &[Route], out: &mut impl Write) -> io::Result<()> {
    let (wider, more) = left_to_wider(routes, MOST);
    for left in wider {
        writeln!(out, "wider      {left}")?;
    }
    if more {
        writeln!(out, "wider      and more")?;
    }
    let (literals, more) = read_as_narrow(routes, MOST);
    for wide in literals {
        writeln!(out, "literal    {wide}")?;
    }
    if more {
        writeln!(out, "literal    and more")?;
    }
    Ok(())
}

fn summarise_audit(config: &Config, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "audit      kept {} days", config.retention.retention.as_secs() / (24 * 60 * 60))?;
    if config.keys.audit_key_files.is_empty() && config.keys.pepper_files.is_empty() {
        writeln!(out, "warning    {NO_AUDIT_KEY}")?;
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
