//! A gateway for one test: a real configuration in its own folder, a real store, real sockets.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use keygate::app::Refused;
use keygate::app::{App, Control, KeyTools, open_store};
use keygate::config::{Config, FIRSTHAND_POLICY};
use keygate::lifecycle::{Lifecycle, Made, NewKey, Origin};
use keygate::store::Store;
use keygate::store::keeper::LinkState;
use keygate::vocabulary::clock::{Clock, Shift, UnixMillis};
use keygate::vocabulary::id::{KeyId, OrgId};
use keygate::vocabulary::key::record::KeyRecord;
use keygate::vocabulary::key::scope::{Scope, ScopeSet};
use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};
use tempfile::TempDir;

use super::client::{Answer, Call, Wire, fetch_over};
use super::front::behind_fronts;
use super::http2::runtime;
use super::transport::{CERTIFICATE, Pipe, Transport};
use super::upstream::Upstream;

/// The head of the server's section for gateways over TLS.
const TLS: &str = "[server]\ntls = [{ cert = \"server.pem\", key = \"server-key.pem\" }]\n";

type Wrap = dyn FnOnce(Arc<dyn Store>) -> Arc<dyn Store>;

/// The operator that creates the keys and organisations of tests.
pub(crate) fn operator() -> Origin {
    Origin::operator("test")
}

/// The settings of a test's gateway.
pub(crate) struct GatewayBuilder {
    settings: String,
    policy: String,
    upstreams: Vec<(String, String, String)>,
    wrap: Box<Wrap>,
    org: Option<OrgId>,
    transport: Transport,
    wall_ahead: i64,
}

impl Default for GatewayBuilder {
    fn default() -> Self {
        Self {
            settings: String::new(),
            policy: FIRSTHAND_POLICY.to_owned(),
            upstreams: Vec::new(),
            wrap: Box::new(|store| store),
            org: None,
            transport: Transport::of_this_run(),
            wall_ahead: 0,
        }
    }
}

impl GatewayBuilder {
    /// Lines of keygate.toml; sections `[server]`, `[store]`, `[policy]` and `[upstreams.…]` have their own
    /// methods or are given.
    pub(crate) fn settings(mut self, toml: &str) -> Self {
        self.settings += toml;
        self.settings += "\n";
        self
    }

    pub(crate) fn policy(mut self, toml: &str) -> Self {
        self.policy = toml.to_owned();
        self
    }

    /// The upstream `api`, one server for each environment.
    pub(crate) fn api(self, live: &Upstream, test: &Upstream) -> Self {
        self.upstream("api", &live.url(), &test.url())
    }

    pub(crate) fn upstream(mut self, name: &str, live: &str, test: &str) -> Self {
        self.upstreams.push((name.to_owned(), live.to_owned(), test.to_owned()));
        self
    }

    /// Inserts a store between the cache and the real store.
    pub(crate) fn store(mut self, wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store> + 'static) -> Self {
        self.wrap = Box::new(wrap);
        self
    }

    /// Uses an organisation that is already in the store, instead of creating one: for a gateway that shares a
    /// store, or starts without it.
    pub(crate) fn org(mut self, org: OrgId) -> Self {
        self.org = Some(org);
        self
    }

    /// The date of its machine is so many milliseconds ahead, or behind.
    pub(crate) const fn wall_ahead(mut self, by: i64) -> Self {
        self.wall_ahead = by;
        self
    }

    /// The transport of calls, instead of the transport of this run.
    pub(crate) fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// The text of keygate.toml.
    fn toml(&self) -> String {
        let mut toml = self.settings.clone();
        if !toml.contains("[server]") {
            toml += "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\nmax_connections = 2000\n";
        }
        if !toml.contains("[store]") {
            toml += "[store]\nkind = \"embedded\"\npath = \"keygate.redb\"\n";
        }
        if !toml.contains("[ops]") {
            toml += "[ops]\nlisten = \"off\"\n";
        }
        if !toml.contains("[log]") {
            toml += "[log]\nrequests = \"off\"\n";
        }
        toml += "[policy]\nfile = \"policy.toml\"\n";
        for (name, live, test) in &self.upstreams {
            let _ = write!(toml, "[upstreams.{name}]\nlive = [\"{live}\"]\ntest = [\"{test}\"]\n");
            let _ = writeln!(toml, "answer_timeout = \"10s\"");
        }
        toml
    }

    /// Writes the configuration into `folder`, for a gateway that runs as a process.
    pub(crate) fn write(&self, folder: &Path) {
        fs::write(folder.join("keygate.toml"), behind_fronts(self.toml(), folder)).unwrap();
        fs::write(folder.join("policy.toml"), &self.policy).unwrap();
    }

    #[track_caller]
    pub(crate) fn start(self) -> Gateway {
        let folder = TempDir::new().unwrap();
        self.start_in(folder)
    }

    /// Starts it in a folder that may contain certificates.
    #[track_caller]
    pub(crate) fn start_in(self, folder: TempDir) -> Gateway {
        self.write(folder.path());
        if self.transport.has_tls() && !self.settings.contains("tls = ") {
            CERTIFICATE.write(folder.path(), "server");
            let toml = self.toml().replacen("[server]\n", TLS, 1);
            fs::write(folder.path().join("keygate.toml"), behind_fronts(toml, folder.path())).unwrap();
        }
        let (clock, shift) = Clock::shifted();
        shift.step_wall(self.wall_ahead);
        let app = run(folder.path(), self.wrap, clock.clone());
        let lifecycle = Arc::clone(app.lifecycle().expect("a full gateway"));
        let org = self.org.unwrap_or_else(|| {
            app.block_on(async {
                lifecycle.keeper().begin().await.unwrap();
                lifecycle.create_org(&operator(), "an organisation").await.unwrap().id
            })
        });
        Gateway {
            app: Some(app),
            lifecycle: Some(lifecycle),
            org,
            clock,
            shift,
            transport: self.transport,
            folder,
        }
    }
}

/// A gateway on the configuration in `folder`.
#[track_caller]
fn run(folder: &Path, wrap: Box<Wrap>, clock: Clock) -> App {
    let config =
        Config::load(&folder.join("keygate.toml"), []).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let tools = KeyTools::new(&config.keys).unwrap();
    let control = Control::start().unwrap();
    let store = wrap(open_store(&config.store, tools.sealer.clone(), control.handle(), &clock).unwrap());
    App::start_with(config, tools, control, store, clock).unwrap_or_else(|error| panic!("{error}"))
}

/// A running gateway, and an organisation on it. Stopped when dropped.
pub(crate) struct Gateway {
    app: Option<App>,
    lifecycle: Option<Arc<Lifecycle>>,
    pub(crate) org: OrgId,
    clock: Clock,
    shift: Shift,
    transport: Transport,
    folder: TempDir,
}

/// A key with its secret.
#[derive(Clone, Debug)]
pub(crate) struct TestKey {
    pub(crate) record: KeyRecord,
    pub(crate) secret: String,
}

impl TestKey {
    pub(crate) fn id(&self) -> KeyId {
        self.record.id
    }
}

impl Gateway {
    pub(crate) fn builder() -> GatewayBuilder {
        GatewayBuilder::default()
    }

    /// A gateway with the shipped policy in front of these two upstreams.
    pub(crate) fn in_front_of(live: &Upstream, test: &Upstream) -> Self {
        Self::builder().api(live, test).start()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.app.as_ref().unwrap().address()
    }

    pub(crate) fn ops_address(&self) -> SocketAddr {
        self.app.as_ref().unwrap().ops_address().unwrap()
    }

    /// The address of the admin API over TCP.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.app.as_ref().unwrap().admin_address().unwrap()
    }

    /// The folder of its configuration.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Reloads its configuration, as SIGHUP does.
    pub(crate) fn reload(&mut self) -> Result<(), Refused> {
        let read = Config::load(&self.folder.path().join("keygate.toml"), []);
        self.app.as_mut().unwrap().reload(read)
    }

    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        self.lifecycle.as_ref().unwrap()
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.app.as_ref().unwrap().block_on(future)
    }

    pub(crate) const fn transport(&self) -> Transport {
        self.transport
    }

    /// A connection for HTTP/1.1, byte by byte; within TLS if the gateway's transport has it.
    pub(crate) fn connect(&self) -> Wire {
        self.wire("http/1.1")
    }

    /// The same for this protocol in ALPN.
    pub(crate) fn wire(&self, alpn: &str) -> Wire {
        Wire::over(Pipe::connect(self.address(), self.transport.has_tls().then_some(alpn)))
    }

    #[track_caller]
    pub(crate) fn fetch(&self, call: &Call) -> Answer {
        fetch_over(self.address(), self.transport, call)
    }

    /// A live key with all scopes.
    pub(crate) fn live_key(&self) -> TestKey {
        self.key(Environment::Live, None, None)
    }

    /// A test key with all scopes.
    pub(crate) fn test_key(&self) -> TestKey {
        self.key(Environment::Test, None, None)
    }

    /// A live key with these scopes.
    pub(crate) fn key_with(&self, scopes: &[&str]) -> TestKey {
        self.key(Environment::Live, Some(scopes), None)
    }

    pub(crate) fn expiring_key(&self, after: Duration) -> TestKey {
        self.key(Environment::Live, None, Some(self.clock.now().wall.plus(after)))
    }

    /// A live key with all scopes, in a new organisation.
    pub(crate) fn key_in_another_org(&self) -> TestKey {
        let org = self.block_on(self.lifecycle().create_org(&operator(), "another organisation")).unwrap().id;
        self.key_of(org, Environment::Live, None, None)
    }

    pub(crate) fn key(
        &self,
        environment: Environment,
        scopes: Option<&[&str]>,
        expires_at: Option<UnixMillis>,
    ) -> TestKey {
        self.key_of(self.org, environment, scopes, expires_at)
    }

    fn key_of(
        &self,
        org: OrgId,
        environment: Environment,
        scopes: Option<&[&str]>,
        expires_at: Option<UnixMillis>,
    ) -> TestKey {
        let scopes = match scopes {
            None => self.lifecycle().vocabulary(),
            Some(names) => names.iter().map(|name| Scope::parse(name).unwrap()).collect::<ScopeSet>(),
        };
        let new = NewKey { scopes: Some(scopes), expires_at, ..NewKey::named(org, "a key", environment) };
        let made = self.block_on(self.lifecycle().create_key(&operator(), new)).unwrap();
        let Made { key: record, secret, .. } = made;
        TestKey { record, secret: secret.expose().to_owned() }
    }

    /// The secrets of this number of new keys with all scopes, live and test in turn, created many at a time.
    pub(crate) fn keys_at_once(&self, count: usize) -> Vec<String> {
        const THREADS: usize = 16;
        let (lifecycle, org) = (self.lifecycle(), self.org);
        let new = |n: usize| NewKey {
            scopes: Some(lifecycle.vocabulary()),
            ..NewKey::named(org, &format!("key {n}"), Environment::ALL[n % 2])
        };
        let make =
            async |new| lifecycle.create_key(&operator(), new).await.unwrap().secret.expose().to_owned();
        let make_some = |first: usize| {
            runtime().block_on(async {
                let mut secrets = Vec::new();
                for n in (first..count).step_by(THREADS) {
                    secrets.push(make(new(n)).await);
                }
                secrets
            })
        };
        thread::scope(|scope| {
            let make_some = &make_some;
            let makers: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || make_some(first))).collect();
            makers.into_iter().flat_map(|maker| maker.join().unwrap()).collect()
        })
    }

    pub(crate) fn revoke(&self, key: &TestKey) {
        self.block_on(self.lifecycle().revoke_key(&operator(), key.id())).unwrap();
    }

    /// The gateway's time.
    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now().wall
    }

    pub(crate) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Moves the gateway's clock ahead.
    pub(crate) fn advance(&self, by: Duration) {
        self.shift.advance(by);
    }

    /// Sets the date of its machine, by so many milliseconds forwards or back.
    pub(crate) fn step_wall(&self, by: i64) {
        self.shift.step_wall(by);
    }

    /// Ends it, and starts another with the same configuration, store and time.
    pub(crate) fn restart(&mut self) {
        self.lifecycle = None;
        self.app.take().unwrap().drain(Duration::ZERO);
        let app = run(self.folder.path(), Box::new(|store| store), self.clock.clone());
        self.lifecycle = Some(Arc::clone(app.lifecycle().expect("a full gateway")));
        self.app = Some(app);
    }

    /// Ends it as a signal would, and waits until it has ended.
    pub(crate) fn drain(mut self, timeout: Duration) {
        self.lifecycle = None;
        self.app.take().unwrap().drain(timeout);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.lifecycle = None;
        if let Some(app) = self.app.take() {
            app.drain(Duration::ZERO);
        }
    }
}

/// Whether changes in its store arrive.
pub(crate) fn is_linked(gateway: &Gateway) -> bool {
    gateway.lifecycle().keeper().link_state() == LinkState::Up
}

/// The status of a request with the key on a route of the shipped policy.
pub(crate) fn status(gateway: &Gateway, key: &TestKey) -> u16 {
    gateway.fetch(&Call::get("/v1/jobs").key(&key.secret)).status
}

/// A key that does not exist.
pub(crate) fn guess() -> String {
    KeyFormat::new(&Prefix::default(), false).mint(Environment::Live).unwrap().expose().to_owned()
}
