//! Another configuration for a gateway that runs: what may change, and why it did not.
//!
//! A reload replaces everything that it can, or changes nothing. Whatever needs another socket, another thread or
//! another store needs a restart: a configuration that differs there is refused, and the present one stays.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::App;
use super::in_force::{InForce, lock, serving};
use super::readiness;
use crate::config::{Config, KeySettings, Mistakes, Remarks, StoreSettings};
use crate::downstream::worker::DrainSettings;
use crate::downstream::{listener, tls, watchdog};
use crate::gateway::{self, Plan};
use crate::lifecycle::{RetentionSettings, SignupSettings};
use crate::operators::{admin, ops, outbox};
use crate::policy::route::{Route, RouteTable};
use crate::policy::wider::left_to_wider;
use crate::store::cache;
use crate::store::keeper::UnreadableFile;
use crate::telemetry::{LogSettings, Notice, RecordSettings};
use crate::tls::LoadErrors;
use crate::upstream;
use crate::vocabulary::key::scope::ScopeSet;

/// Where a gateway gets its configuration from when it must read it again.
pub type Source = Box<dyn Fn() -> Result<Config, Mistakes>>;

/// Why a reload changed nothing.
#[derive(Debug, Error)]
pub enum Refused {
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
    #[error(transparent)]
    Tls(#[from] LoadErrors<tls::LoadError>),
    #[error(transparent)]
    Upstreams(#[from] LoadErrors<upstream::tls::LoadError>),
    #[error(transparent)]
    Store(#[from] UnreadableFile),
    #[error(transparent)]
    Restart(#[from] NeedsRestart),
}

/// The settings that differ from those in force, and cannot change while the gateway runs.
#[derive(Debug)]
pub struct NeedsRestart(Vec<&'static str>);

impl fmt::Display for NeedsRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.join(", ");
        write!(f, "only a restart changes {names}; restart, or undo the change")
    }
}

impl std::error::Error for NeedsRestart {}

impl App {
    /// Puts another configuration in force, or leaves everything as it was. When it returns, every worker uses
    /// the new one. Requests under way end under the configuration that they began with.
    ///
    /// # Errors
    /// [`Refused`] names everything that speaks against it. Then nothing has changed.
    pub fn reload(&mut self, read: Result<Config, Mistakes>) -> Result<(), Refused> {
        match self.change(read) {
            Ok((routes, remarks)) => {
                lock(&self.in_force).reloads.applied += 1;
                Notice::ConfigurationRead.log(&format!("{routes} routes are in force"));
                remarks.iter().for_each(|line| Notice::Remark.log(line));
                Ok(())
            }
            Err(refused) => {
                lock(&self.in_force).reloads.refused += 1;
                Notice::ConfigurationRefused.log(&format!("the one before stays in force:\n{refused}"));
                Err(refused)
            }
        }
    }

    /// Everything that can fail comes before everything that changes. Gives the number of routes, and the lines of
    /// [`tell_remarks`] and [`tell_wider`].
    fn change(&mut self, read: Result<Config, Mistakes>) -> Result<(usize, Vec<String>), Refused> {
        let read = read?;
        let told = tell_remarks(&read.remarks);
        let (fixed, new) = divide(read);
        self.fixed.compare(&fixed)?;
        let serving = serving(&new.tls, new.watchdog, &self.clock)?;
        let upstreams = upstream::loaded::load(new.upstreams)?;
        self.store.keeper().reread_files()?;

        let routes = new.routes.routes().len();
        let remarks = told.into_iter().chain(tell_wider(new.routes.routes())).collect();
        let known = lock(&self.in_force).plan.experience();
        let plan = Arc::new(Plan::new(new.gateway, new.routes, upstreams, &known));
        self.trusted_proxies.send_replace(plan.settings().headers.trusted_proxies.clone());
        self.lifecycle.iter().for_each(|lifecycle| lifecycle.set_vocabulary(new.scopes.clone()));
        self.drain = new.drain;
        let (done, all_done) = std::sync::mpsc::channel();
        for worker in self.workers.iter() {
            worker.adopt(Arc::clone(&plan), serving.clone(), done.clone());
        }
        drop(done);
        // Nothing is ever sent. It ends when the last worker has dropped its sender, as a worker that has ended
        // has done too.
        let _ = all_done.recv();
        readiness::tell_reach(self.store.keeper(), plan.routes(), &self.fixed.cache);
        let mut now = lock(&self.in_force);
        *now = InForce::new(new.hash, &serving, &plan, now.reloads);
        Ok((routes, remarks))
    }
}

/// Log lines about variables that have no effect, and about settings that are rarely meant.
pub(super) fn tell_remarks(remarks: &Remarks) -> Vec<String> {
    remarks.ignored.iter().chain(&remarks.warnings).map(ToString::to_string).collect()
}

/// Log lines that name the requests which a narrow rule leaves to a wider one.
pub(super) fn tell_wider(routes: &[Route]) -> Vec<String> {
    const MOST: usize = 20;
    let (wider, more) = left_to_wider(routes, MOST);
    let mut lines: Vec<String> = wider.iter().map(|left| format!("policy: {left}")).collect();
    if more {
        lines.push("policy: `keygate check` lists more requests that a wider rule takes".to_owned());
    }
    lines
}

/// The settings that a reload replaces.
struct Replaceable {
    watchdog: watchdog::Settings,
    tls: tls::Settings,
    gateway: gateway::Settings,
    upstreams: Vec<upstream::Settings>,
    routes: RouteTable,
    scopes: ScopeSet,
    drain: DrainSettings,
    hash: u64,
}

/// The settings that need a restart.
#[derive(Debug)]
pub(super) struct Fixed {
    listener: listener::Settings,
    has_tls: bool,
    keys: KeySettings,
    store: StoreSettings,
    cache: cache::Settings,
    signup: SignupSettings,
    outbox: Option<outbox::Settings>,
    retention: RetentionSettings,
    admin: admin::Settings,
    ops: ops::Settings,
    log: LogSettings,
    records: RecordSettings,
}

/// Divides a configuration into what only a restart changes and what a reload replaces. It names every field, so
/// that a new one does not compile until it has its place in one of the two.
fn divide(config: Config) -> (Fixed, Replaceable) {
    let fixed = Fixed::of(&config);
    let Config {
        watchdog,
        tls,
        gateway,
        upstreams,
        routes,
        scopes,
        drain,
        remarks: _,
        places: _,
        hash,
        // Of the command line, which a reload does not read.
        role: _,
        // These are in `fixed`.
        listener: _,
        keys: _,
        store: _,
        cache: _,
        signup: _,
        outbox: _,
        retention: _,
        admin: _,
        ops: _,
        log: _,
        records: _,
    } = config;
    (fixed, Replaceable { watchdog, tls, gateway, upstreams, routes, scopes, drain, hash })
}

impl Fixed {
    #[must_use]
    pub(super) fn of(config: &Config) -> Self {
        Self {
            listener: config.listener.clone(),
            has_tls: !config.tls.certificates.is_empty(),
            keys: config.keys.clone(),
            store: config.store.clone(),
            cache: config.cache.clone(),
            signup: config.signup.clone(),
            outbox: config.outbox.clone(),
            retention: config.retention.clone(),
            admin: config.admin.clone(),
            ops: config.ops.clone(),
            log: config.log.clone(),
            records: config.records.clone(),
        }
    }

    /// # Errors
    /// Names every setting that differs in `other`.
    fn compare(&self, other: &Self) -> Result<(), NeedsRestart> {
        let Self {
            listener,
            has_tls,
            keys,
            store,
            cache,
            signup,
            outbox,
            retention,
            admin,
            ops,
            log,
            records,
        } = self;
        let listener::Settings { listen, workers, memory, max_connections, max_connections_per_client } =
            listener;
        let KeySettings {
            prefix,
            accept_without_checksum,
            pepper_files,
            audit_key_files,
            ack_wait,
            max_per_org,
        } = keys;
        let same = [
            ("server.listen", *listen == other.listener.listen),
            ("server.workers", *workers == other.listener.workers),
            ("server.memory", *memory == other.listener.memory),
            ("server.max_connections", *max_connections == other.listener.max_connections),
            (
                "server.max_connections_per_client",
                *max_connections_per_client == other.listener.max_connections_per_client,
            ),
            ("server.tls (from none to some, or back)", *has_tls == other.has_tls),
            ("keys.prefix", *prefix == other.keys.prefix),
            ("keys.accept_without_checksum", *accept_without_checksum == other.keys.accept_without_checksum),
            ("keys.pepper_files", *pepper_files == other.keys.pepper_files),
            ("keys.ack_wait", *ack_wait == other.keys.ack_wait),
            ("keys.max_per_org", *max_per_org == other.keys.max_per_org),
            ("audit.key_files", *audit_key_files == other.keys.audit_key_files),
            ("audit.retention", retention.retention == other.retention.retention),
            ("[store]", *store == other.store && retention.keep_ended == other.retention.keep_ended),
            ("[cache]", *cache == other.cache),
            ("[signup]", *signup == other.signup),
            ("[outbox]", *outbox == other.outbox),
            ("[admin]", *admin == other.admin),
            ("[ops]", *ops == other.ops),
            ("log", *log == other.log && *records == other.records),
        ];
        let differing: Vec<_> = same.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect();
        if differing.is_empty() { Ok(()) } else { Err(NeedsRestart(differing)) }
    }
}
