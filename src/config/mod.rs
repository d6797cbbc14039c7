//! The configuration: `keygate.toml`, the policy file that it names, and the environment over it.
//!
//! Every module owns its settings and their defaults. This module only translates, and reports all mistakes at
//! once. A relative path, in the file or in a variable, starts at the folder of the configuration file.

mod admin;
mod encoding;
mod environment;
mod file;
mod files;
mod identity;
mod mistake;
mod outbox;
mod own;
mod policy;
mod repair;
mod request_headers;
mod secrets;
mod section;
mod server;
mod statement;
mod store;
mod upstreams;
mod value;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::files::FileSettings;
pub use self::mistake::{Mistake, Mistakes, Places, Remarks};

use sha2::{Digest as _, Sha256};

use self::mistake::{Document, Report};
use self::own::Own;
use self::policy::Policy;
use self::secrets::{KEYS_AT_MOST, PEPPERS_AT_MOST, secrets};
use self::section::Section;
use self::upstreams::{Around, Named};
use self::value::{CENTURY, DAY, INSTANT, address_or_off, choice, count, duration, flag, parsed, text};
use crate::downstream::listener;
use crate::downstream::tls;
use crate::downstream::watchdog;
use crate::downstream::worker::DrainSettings;
use crate::gateway;
use crate::lifecycle::{RetentionSettings, SignupSettings};
use crate::operators::ops;
use crate::operators::outbox::Settings as OutboxSettings;
use crate::policy::route::RouteTable;
use crate::store::cache::OnPartition;
use crate::store::{Role, cache, embedded, redis};
use crate::telemetry::{LineFormat, LogSettings, RecordSettings, RequestLog};
use crate::upstream;
use crate::vocabulary::browser_keys::BrowserKeys;
use crate::vocabulary::key::Prefix;
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::memory_plan::MemoryPlan;

/// The `keygate.toml` of `keygate init`: every key with its default.
pub const DEFAULT_CONFIGURATION: &str = include_str!("../../config/keygate.toml");
/// The `policy.toml` of `keygate init`: two sample routes, the API for keys, and every word of the language.
pub const STARTER_POLICY: &str = include_str!("../../config/starter-policy.toml");
/// The `policy.toml` of `keygate init --example firsthand`: all routes of the API that keygate was made for.
pub const FIRSTHAND_POLICY: &str = include_str!("../../config/policy.toml");

/// Everything an operator decides, checked.
#[derive(Debug)]
pub struct Config {
    /// From the command line, so that gateways of both roles can share a file.
    pub role: Role,
    pub listener: listener::Settings,
    pub watchdog: watchdog::Settings,
    pub tls: tls::Settings,
    pub gateway: gateway::Settings,
    pub keys: KeySettings,
    pub store: StoreSettings,
    pub cache: cache::Settings,
    /// An [`upstream::UpstreamId`] is a place in this list.
    pub upstreams: Vec<upstream::Settings>,
    pub routes: RouteTable,
    /// All scopes of the policy: a new key may have any of them, and signup grants all of them.
    pub scopes: ScopeSet,
    pub signup: SignupSettings,
    /// `None` if no service is notified of new organisations.
    pub outbox: Option<OutboxSettings>,
    pub retention: RetentionSettings,
    pub admin: crate::operators::admin::Settings,
    pub ops: ops::Settings,
    pub log: LogSettings,
    pub records: RecordSettings,
    pub drain: DrainSettings,
    pub remarks: Remarks,
    pub places: Places,
    /// Identifies this configuration: 48 bits of a hash of the text of both files and of the variables.
    pub hash: u64,
}

/// The format of keys, and how they are digested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySettings {
    pub prefix: Prefix,
    /// Whether keys without a checksum, which only imported keys can be, are looked up.
    pub accept_without_checksum: bool,
    /// The file with the pepper, the installation's secret; while a new one replaces it, the new one's file first. Empty for
    /// plain digests.
    pub pepper_files: Vec<PathBuf>,
    /// The file with the key of the audit trail, and those with the keys before; empty to use the pepper.
    pub audit_key_files: Vec<PathBuf>,
    /// How long revoking, narrowing or suspending waits until all gateways have confirmed it.
    pub ack_wait: Duration,
    /// The most live keys of an organisation; imports and operators may make more.
    pub max_per_org: u32,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self {
            prefix: Prefix::default(),
            accept_without_checksum: false,
            pepper_files: Vec::new(),
            audit_key_files: Vec::new(),
            ack_wait: Duration::from_millis(250),
            max_per_org: 1000,
        }
    }
}

/// The back end that keeps the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSettings {
    Embedded(embedded::Settings),
    Redis(Box<redis::Settings>),
}

const NEEDS_SHARED: &str =
    "this role creates no keys, so it needs a store that other gateways share; set store.kind = \"redis\"";

impl Config {
    /// Reads a configuration file. The variables `KEYGATE__SECTION__KEY` of `environment` override it.
    ///
    /// # Errors
    /// All mistakes in the file and in its policy.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        Self::load_from(&|path| fs::read(path), path, environment)
    }

    /// The same configuration for a gateway of this role, without the settings that the role does not use.
    ///
    /// # Errors
    /// A proxy with an embedded store: only one gateway can use it, and a proxy creates no keys.
    pub fn in_role(self, role: Role) -> Result<Self, Mistakes> {
        match (role, &self.store) {
            (Role::Full, _) => Ok(Self { role, ..self }),
            (Role::Proxy, StoreSettings::Redis(_)) => Ok(Self {
                role,
                admin: crate::operators::admin::Settings::default(),
                outbox: None,
                keys: KeySettings { audit_key_files: Vec::new(), ..self.keys },
                ..self
            }),
            (Role::Proxy, StoreSettings::Embedded(_)) => {
                Err(Mistakes::of_command_line("--role proxy", NEEDS_SHARED))
            }
        }
    }

    /// The settings that name files.
    #[must_use]
    pub fn files(&self) -> FileSettings {
        FileSettings {
            keys: self.keys.clone(),
            tls: self.tls.clone(),
            admin: self.admin.clone(),
            outbox: self.outbox.clone(),
            store: Some(self.store.clone()),
            upstreams: self.upstreams.clone(),
            places: self.places.clone(),
        }
    }

    /// As [`Config::load`]; `files` reads the files.
    ///
    /// # Errors
    /// All mistakes in the file and in its policy.
    pub fn load_from(
        files: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        let fingerprint = Fingerprint::default();
        let files = |path: &Path| files(path).inspect(|bytes| fingerprint.add(bytes));
        let bytes = files(path).map_err(|error| Mistakes::unreadable(path, &error))?;
        let (variables, others) = environment::variables(environment);
        for (name, value) in &variables {
            fingerprint.add(name.as_bytes());
            fingerprint.add(value.as_encoded_bytes());
        }
        let report = Report::default();
        let set: Vec<String> = variables.iter().map(|(name, _)| name.clone()).collect();
        let toml = file::decode(&bytes, Document::Configuration, &path.display().to_string(), &report);
        let (config, mut settings) = translate(&toml, path, variables, &files, &report);
        environment::tell_near_misses(&others, &set, &report);
        settings.places = report.places(path);
        let places = settings.places.clone();
        let (mistakes, remarks) = report.finish();
        let config = config.map(|config| Self { remarks, places, hash: fingerprint.hash(), ..config });
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            _ => Err(mistakes.knowing(settings)),
        }
    }
}

/// A hash of everything that was read.
#[derive(Default)]
struct Fingerprint(RefCell<Sha256>);

impl Fingerprint {
    /// Adds a text and its length, so that moving a boundary between texts changes the hash.
    fn add(&self, text: &[u8]) {
        let mut hasher = self.0.borrow_mut();
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text);
    }

    /// 48 bits: a metric's value, a 64-bit float, holds them exactly.
    fn hash(&self) -> u64 {
        let digest = self.0.borrow().clone().finalize();
        digest.iter().take(6).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
    }
}

/// No configuration only if the report has the reason.
fn translate(
    toml: &str,
    path: &Path,
    variables: Vec<(String, OsString)>,
    files: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
    report: &Report,
) -> (Option<Config>, FileSettings) {
    let mut root = file::parse(toml, Document::Configuration, &path.display().to_string(), report);
    let names: Vec<String> = variables.iter().map(|(name, _)| name.clone()).collect();
    environment::overlay(&mut root, variables, report);
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let config = section::read(root, report, |root| sections(root, folder, files, report));
    environment::advise(&names, report);
    config
}

fn sections(
    root: &mut Section<'_>,
    folder: &Path,
    files: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
    report: &Report,
) -> (Option<Config>, FileSettings) {
    let server = root.section("server", |section| server::read(section, folder));
    let limits = root.section("limits", server::limits);
    let mut headers =
        root.section("identity_headers", |section| identity::read(section, server.trusted_proxies.clone()));
    root.section("request_headers", |section| request_headers::read(section, &mut headers));
    let (mut keys, browser_keys) =
        root.section("keys", |section| (keys(section, folder), browser_keys(section)));
    let mut retention = root.section("audit", |section| {
        keys.audit_key_files = secrets(section, "key_file", "key_files", (folder, KEYS_AT_MOST));
        retention(section)
    });
    let sealed = !keys.pepper_files.is_empty();
    let store = root.section("store", |section| store::read(section, folder, sealed, &mut retention));
    let held = store.as_ref().map_or(0, StoreSettings::held);
    let cache = root.section("cache", |section| cache(section, server.listener.memory, held));
    let mut own = vec![Own { key: "server.listen", address: server.listener.listen }];
    let ops = root.section("ops", |section| ops(section, &own));
    own.extend(ops.listen.map(|address| Own { key: "ops.listen", address }));
    let admin = root.section("admin", |section| admin::read(section, folder, &own));
    own.extend(admin.remote.as_ref().map(|remote| Own { key: "admin.listen", address: remote.listen }));
    let store = store.map(|store| store::remembering(store, admin.socket.as_deref()));
    let (upstreams, are_known) = root.section("upstreams", |section| {
        let around = Around { folder, own: &own, admin_socket: admin.socket.as_deref() };
        let upstreams = section.named(|name, section| upstreams::read(name, section, around));
        (upstreams, !section.is_broken() && !report.is_incomplete(Document::Configuration))
    });
    let known = are_known.then_some(&upstreams[..]);
    let policy = root.section("policy", |section| policy(section, folder, known, files, report));
    let outbox = root.section("outbox", |section| outbox::read(section, folder, &own));
    let signup = root.section("signup", |section| signup(section, outbox.is_some()));
    let (log, records) = root.section("log", |section| log(section, folder));

    let settings = FileSettings {
        keys: keys.clone(),
        tls: server.tls.clone(),
        admin: admin.clone(),
        outbox: outbox.clone(),
        store: store.clone(),
        upstreams: upstreams.iter().filter_map(|named| named.settings.clone()).collect(),
        places: Places::default(),
    };
    let body_idle_timeout = server.body_idle_timeout;
    let gateway = gateway::Settings { limits, headers, browser_keys, body_idle_timeout };
    let rest = Rest { gateway, cache, admin, outbox, signup, retention, ops, log, records, keys };
    let upstreams: Option<Vec<_>> = upstreams.into_iter().map(|named| named.settings).collect();
    let config = policy.zip(store).zip(upstreams);
    (config.map(|((policy, store), upstreams)| rest.with(server, policy, store, upstreams)), settings)
}

/// The parts that are there also if something in them is wrong.
struct Rest {
    gateway: gateway::Settings,
    cache: cache::Settings,
    admin: crate::operators::admin::Settings,
    outbox: Option<OutboxSettings>,
    signup: SignupSettings,
    retention: RetentionSettings,
    ops: ops::Settings,
    log: LogSettings,
    records: RecordSettings,
    keys: KeySettings,
}

impl Rest {
    fn with(
        self,
        server: server::Server,
        policy: Policy,
        store: StoreSettings,
        upstreams: Vec<upstream::Settings>,
    ) -> Config {
        let Self { gateway, cache, admin, outbox, signup, retention, ops, log, records, keys } = self;
        let Policy { routes, scopes } = policy;
        Config {
            role: Role::default(),
            listener: server.listener,
            watchdog: server.watchdog,
            tls: server.tls,
            gateway,
            keys,
            store,
            cache,
            upstreams,
            routes,
            scopes,
            signup,
            outbox,
            retention,
            admin,
            ops,
            log,
            records,
            drain: server.drain,
            remarks: Remarks::default(),
            places: Places::default(),
            hash: 0,
        }
    }
}

fn keys(section: &mut Section<'_>, folder: &Path) -> KeySettings {
    let default = KeySettings::default();
    KeySettings {
        prefix: section.or("prefix", default.prefix, parsed(Prefix::parse)),
        accept_without_checksum: section.or("accept_without_checksum", default.accept_without_checksum, flag),
        pepper_files: secrets(section, "pepper_file", "pepper_files", (folder, PEPPERS_AT_MOST)),
        audit_key_files: default.audit_key_files,
        ack_wait: section.or("ack_wait", default.ack_wait, duration(Duration::ZERO..=DAY)),
        max_per_org: section.or("max_per_org", default.max_per_org, count(1..=1_000_000)),
    }
}

const BROWSER_KEYS: [(&str, BrowserKeys); 2] = [("note", BrowserKeys::Note), ("refuse", BrowserKeys::Refuse)];

fn browser_keys(section: &mut Section<'_>) -> BrowserKeys {
    section.or("browser_keys", gateway::Settings::default().browser_keys, choice(&BROWSER_KEYS))
}

fn retention(section: &mut Section<'_>) -> RetentionSettings {
    let default = RetentionSettings::default();
    let retention = section.or("retention", default.retention, duration(DAY..=CENTURY));
    RetentionSettings { retention, ..default }
}

const ON_PARTITION: [(&str, OnPartition); 2] =
    [("serve", OnPartition::Serve), ("refuse", OnPartition::Refuse)];

/// `memory`: what the gateway is told to plan with; `held`: what the store keeps of it; both in bytes.
fn cache(section: &mut Section<'_>, memory: Option<u64>, held: u64) -> cache::Settings {
    let default = cache::Settings::default();
    let settings = cache::Settings {
        capacity: section.or("capacity", default.capacity, count(1..=100_000_000)),
        ttl: section.or("ttl", default.ttl, duration(INSTANT..=DAY)),
        negative_ttl: section.or("negative_ttl", default.negative_ttl, duration(INSTANT..=DAY)),
        stale_window: section.or("stale_window", default.stale_window, duration(Duration::ZERO..=DAY)),
        max_lookups: section.or("max_lookups", default.max_lookups, count(1..=65_536)),
        lookup_timeout: section.or("lookup_timeout", default.lookup_timeout, duration(INSTANT..=DAY)),
        on_partition: section.or("on_partition", default.on_partition, choice(&ON_PARTITION)),
    };
    memory.into_iter().for_each(|memory| compare_with_memory(section, settings.capacity, (memory, held)));
    settings
}

/// Reports a cache that leaves clients too little of the memory.
fn compare_with_memory(section: &Section<'_>, capacity: u64, (memory, held): (u64, u64)) {
    let keys = capacity.saturating_mul(cache::OF_ONE_KEY.into());
    let plan = MemoryPlan::of(memory, keys, held);
    if plan.of_keys == keys {
        return;
    }
    let [keys, to_share, memory] = [keys.div_ceil(1 << 20), plan.to_share >> 20, memory >> 20];
    let fitting = plan.to_share / 2 / u64::from(cache::OF_ONE_KEY);
    let text = format!(
        "{capacity} cached keys can take {keys} MiB; of the {memory} MiB that server.memory says, {to_share} MiB are for keys and \
         clients together; set cache.capacity to {fitting} or less, or server.memory higher"
    );
    if section.given("capacity") && keys >= to_share {
        section.wrong("capacity", text);
    } else {
        section.warn("capacity", text);
    }
}

/// `news` tells whether an outbox is configured.
fn signup(section: &mut Section<'_>, news: bool) -> SignupSettings {
    let default = SignupSettings::default();
    SignupSettings {
        enabled: section.or("enabled", default.enabled, flag),
        free_credits_cents: section.or(
            "free_credits_cents",
            default.free_credits_cents,
            count(0..=100_000_000),
        ),
        per_network: section.or("per_network_and_hour", default.per_network, count(1..=1_000_000)),
        per_day: section.or("per_day", default.per_day, count(1..=100_000_000)),
        verification: section.or("verification", default.verification, flag),
        news,
    }
}

fn ops(section: &mut Section<'_>, own: &[Own]) -> ops::Settings {
    let listen = section.or("listen", ops::Settings::default().listen, address_or_off);
    if let Some(listen) = listen {
        admin::refuse_taken(section, listen, own);
    }
    let ready_when_cut_off =
        section.or("ready_when_cut_off", ops::Settings::default().ready_when_cut_off, flag);
    ops::Settings { listen, ready_when_cut_off }
}

fn log(section: &mut Section<'_>, folder: &Path) -> (LogSettings, RecordSettings) {
    const FORMATS: [(&str, LineFormat); 2] = [("text", LineFormat::Text), ("json", LineFormat::Json)];
    const REQUESTS: [(&str, RequestLog); 4] = [
        ("auto", RequestLog::Auto),
        ("text", RequestLog::Text),
        ("json", RequestLog::Json),
        ("off", RequestLog::Off),
    ];
    let mut file = |key| section.optional(key, text).map(|path| folder.join(path));
    let (file, requests_file) = (file("file"), file("requests_file"));
    if file.is_some() && file == requests_file {
        section.wrong("requests_file", "is the file of log.file; records of requests need one of their own");
    }
    let log = LogSettings { format: section.or("format", LineFormat::default(), choice(&FORMATS)), file };
    let records = RecordSettings {
        format: section.or("requests", RequestLog::default(), choice(&REQUESTS)),
        file: requests_file,
        names: section.or("names", false, flag),
    };
    if records.format == RequestLog::Off && (records.names || records.file.is_some()) {
        let key = if records.names { "names" } else { "requests_file" };
        section.wrong(key, "has no effect with requests = \"off\"; remove one of the two");
    }
    (log, records)
}

fn policy(
    section: &mut Section<'_>,
    folder: &Path,
    upstreams: Option<&[Named]>,
    files: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
    report: &Report,
) -> Option<Policy> {
    let file = section.required(
        "file",
        "name the policy file, which lists the routes: file = \"policy.toml\"",
        text,
    )?;
    let path = folder.join(file);
    let bytes = files(&path)
        .map_err(|error| section.wrong("file", format!("cannot read {}: {error}", path.display())))
        .ok()?;
    let name = path.display().to_string();
    let toml = file::decode(&bytes, Document::Policy, &name, report);
    let root = file::parse(&toml, Document::Policy, &name, report);
    section::read(root, report, |root| policy::read(root, upstreams))
}

#[cfg(test)]
mod tests;
