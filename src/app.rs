//! The whole, put together: store, cache, workers, listeners; and taken apart again in order when it ends.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin;
use crate::api::Api;
use crate::audit::Chain;
use crate::clock::{Clock, UnixMillis};
use crate::config::{Config, KeySettings, Mistakes, StoreSettings};
use crate::connection;
use crate::gateway::{Plan, Shared};
use crate::id::KeyId;
use crate::key::record::Sealer;
use crate::key::{Digester, KeyFormat, Pepper};
use crate::lifecycle::{self, By, Lifecycle, LifecycleError, SignupSettings, Trouble};
use crate::listener::{self, Listener};
use crate::metrics::{MeasuredStore, Metrics, Reloads, State};
use crate::ops::{self, Readiness, Told};
use crate::outbox::{self, Backlog};
use crate::reload::{Fixed, Refused, Source};
use crate::secret_file::{self, SecretFileError};
use crate::store::cache::ReadThrough;
use crate::store::embedded::{self, Embedded};
use crate::store::events::EventSink;
use crate::store::keeper::LinkState;
use crate::store::redis::{self, Redis};
use crate::store::{LEASE, Role, Store, StoreFault};
use crate::telemetry::{self, RecordWriter};
use crate::tls;
use crate::upstream::health::Health;
use crate::worker::{DrainSettings, Serving, Worker};

#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] listener::BindError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ops(#[from] ops::BindError),
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Tls(#[from] tls::LoadErrors),
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

/// Why a secret of the installation cannot be had.
#[derive(Debug, Error)]
pub enum SecretError {
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error(
        "{what} {path} is too short: write at least 32 random bytes, for instance with `openssl rand -base64 48`"
    )]
    TooShort { what: &'static str, path: PathBuf },
}

/// What every part needs that handles keys, made from the configuration.
#[derive(Debug)]
pub struct KeyTools {
    pub format: KeyFormat,
    pub digester: Digester,
    pub sealer: Sealer,
    pub pepper: Option<Pepper>,
    /// The key of the audit trail.
    pub chain: Chain,
    /// How long whoever takes a right away waits for all gateways.
    pub ack_wait: Duration,
}

impl KeyTools {
    /// # Errors
    /// When a secret cannot be read.
    pub fn new(settings: &KeySettings) -> Result<Self, SecretError> {
        let read =
            |what, path: &Option<PathBuf>| path.as_deref().map(|path| read_secret(what, path)).transpose();
        let pepper = read("keys.pepper_file", &settings.pepper_file)?;
        let audit = read("audit.key_file", &settings.audit_key_file)?;
        Ok(Self {
            format: KeyFormat::new(&settings.prefix, settings.accept_without_checksum),
            digester: Digester::new(pepper.clone()),
            sealer: Sealer::new(pepper.clone()),
            chain: Chain::new(audit.or_else(|| pepper.clone())),
            pepper,
            ack_wait: settings.ack_wait,
        })
    }

    /// What a lifecycle is told of them.
    #[must_use]
    pub fn lifecycle(&self, signup: SignupSettings) -> lifecycle::Settings {
        lifecycle::Settings {
            format: self.format.clone(),
            digester: self.digester.clone(),
            pepper: self.pepper.clone(),
            chain: self.chain.clone(),
            signup,
            ack_wait: self.ack_wait,
        }
    }
}

fn read_secret(what: &'static str, path: &Path) -> Result<Pepper, SecretError> {
    let text = secret_file::read(what, path)?;
    let too_short = |_| SecretError::TooShort { what, path: path.to_owned() };
    Pepper::new(text.trim_ascii_end().to_vec()).map_err(too_short)
}

/// Why there is no store.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error(transparent)]
    Embedded(#[from] embedded::OpenError),
    #[error(transparent)]
    Redis(#[from] redis::OpenError),
}

/// Opens the store that the configuration names. What it has to do beside its answers it does on `control`.
///
/// # Errors
/// [`StoreError`] says what to do. A Redis that is down is no error: the store begins to answer once it is
/// up.
pub fn open_store(
    settings: &StoreSettings,
    sealer: Sealer,
    control: &Handle,
) -> Result<Arc<dyn Store>, StoreError> {
    match settings {
        StoreSettings::Embedded(settings) => Ok(Arc::new(Embedded::open(settings, sealer)?)),
        StoreSettings::Redis(settings) => {
            Ok(Arc::new(Redis::open((**settings).clone(), sealer, control.clone())?))
        }
    }
}

/// Opens the store that the configuration names, only to be read: of an embedded one the file stays as it is.
///
/// # Errors
/// As [`open_store`], and where there is no embedded store.
pub fn open_store_to_read(
    settings: &StoreSettings,
    sealer: Sealer,
    control: &Handle,
) -> Result<Arc<dyn Store>, StoreError> {
    match settings {
        StoreSettings::Embedded(settings) => Ok(Arc::new(Embedded::open_to_read(settings, sealer)?)),
        StoreSettings::Redis(_) => open_store(settings, sealer, control),
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    ops_address: Option<SocketAddr>,
    admin_address: Option<SocketAddr>,
    readiness: Arc<Readiness>,
    /// `None` at a gateway that only lets requests through.
    lifecycle: Option<Arc<Lifecycle>>,
    store: Arc<dyn Store>,
    control: Control,
    acceptor: tokio::task::JoinHandle<()>,
    workers: Arc<Vec<Worker>>,
    records: RecordWriter,
    drain: DrainSettings,
    fixed: Fixed,
    trusted_proxies: watch::Sender<Vec<IpNet>>,
    in_force: Arc<Mutex<InForce>>,
    clock: Clock,
}

/// What a reload replaces, as metrics tell of it.
#[derive(Debug)]
struct InForce {
    config_hash: u64,
    /// The end of each certificate, by its file.
    certificates: Vec<(Box<str>, UnixMillis)>,
    health: Arc<Health>,
    reloads: Reloads,
}

/// What is in it can be used also when whoever held it panicked.
fn lock(in_force: &Mutex<InForce>) -> MutexGuard<'_, InForce> {
    in_force.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// Opens the store, binds the sockets, starts the threads. When it returns, connections are taken.
    ///
    /// # Errors
    /// [`StartError`] says what to do; nothing is left running.
    pub fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let tools = KeyTools::new(&config.keys)?;
        let control = Control::start()?;
        let store = open_store(&config.store, tools.sealer.clone(), control.handle())?;
        Self::start_with(config, tools, control, store, clock)
    }

    /// The same with a store that is open already, and the control runtime that it was opened on.
    ///
    /// # Errors
    /// As [`App::start`].
    pub fn start_with(
        config: Config,
        tools: KeyTools,
        control: Control,
        store: Arc<dyn Store>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        raise_descriptor_limit();
        let fixed = Fixed::of(&config);
        let serving = serving(&config.tls, config.connection, &clock)?;
        let (trusted_proxies, trusted) = watch::channel(config.gateway.headers.trusted_proxies.clone());
        let entered = control.handle.enter();
        let listener = Listener::bind(&config.listener, trusted, clock.clone())?;
        let socket = admin::Server::bind(&config.admin)?;
        let remote = admin::Remote::bind(&config.admin, clock.clone())?;
        let admin_address = remote.as_ref().map(admin::Remote::address);
        let ops = ops::Server::bind(&config.ops)?;
        let (address, ops_address) = (listener.address(), ops.as_ref().map(ops::Server::address));
        let (store, meter) = MeasuredStore::new(store, clock.clone());
        let store: Arc<dyn Store> = store;
        let metrics = Arc::new(Metrics::new(Arc::clone(&meter)));
        let lifecycle = (config.role == Role::Full).then(|| {
            let settings = tools.lifecycle(config.signup);
            Arc::new(Lifecycle::new(Arc::clone(&store), settings, config.scopes, clock.clone()))
        });
        let keys = ReadThrough::new(config.cache, Arc::clone(&store), control.handle.clone(), clock.clone());
        if let Some(revived) = keys.revived() {
            tokio::spawn(attend_revived(lifecycle.clone(), revived));
        }
        store.subscribe(Arc::clone(&meter) as Arc<dyn EventSink>);
        let plan = Arc::new(Plan::new(config.gateway, config.routes, config.upstreams, &Health::default()));
        let in_force = Arc::new(Mutex::new(InForce {
            config_hash: config.hash,
            certificates: certificates(&serving),
            health: Arc::clone(plan.health()),
            reloads: Reloads::default(),
        }));
        let shared = Shared {
            plan,
            format: tools.format,
            digester: tools.digester,
            keys: Arc::clone(&keys),
            api: lifecycle.clone().map(|lifecycle| Api::new(lifecycle, control.handle.clone())),
            clock: clock.clone(),
        };
        let records = RecordWriter::start(config.request_log)?;
        let count = config.listener.workers.map_or_else(processors, NonZeroUsize::get);
        let workers: Result<Vec<Worker>, io::Error> = (0..count)
            .map(|n| Worker::start(n, shared.clone(), records.sink(), metrics.cells(), serving.clone()))
            .collect();
        let workers = Arc::new(workers?);
        let acceptor = tokio::spawn(listener.run(Arc::clone(&workers)));
        let mut backlog = None;
        if let Some(outbox) = config.outbox {
            let key = read_secret("outbox.key_file", &outbox.key_file)?;
            tokio::spawn(outbox::deliver(Arc::clone(&store), outbox.receiver, key, clock.clone()));
            let backlog = backlog.insert(Arc::<Backlog>::default());
            tokio::spawn(outbox::count(Arc::clone(&store), Arc::clone(backlog)));
        }
        if let Some(lifecycle) = &lifecycle {
            tokio::spawn(Lifecycle::attend(Arc::downgrade(lifecycle), config.retention));
            socket.map(|socket| tokio::spawn(socket.run(Arc::clone(lifecycle))));
            remote.map(|remote| tokio::spawn(remote.run(Arc::clone(lifecycle))));
        }
        let readiness = Arc::new(Readiness::default());
        if let Some(ops) = ops {
            let asked = Arc::clone(&store);
            let store_has_answered =
                move || meter.has_answered() || asked.keeper().link_state() == LinkState::Up;
            let (store, in_force) = (Arc::clone(&store), Arc::clone(&in_force));
            let state = state(store, keys, in_force, &records, lifecycle.as_deref(), backlog);
            let told = Told {
                metrics,
                readiness: Arc::clone(&readiness),
                store_has_answered: Box::new(store_has_answered),
                state: Box::new(state),
            };
            tokio::spawn(ops.run(Arc::new(told)));
        }
        drop(entered);
        Ok(Self {
            address,
            ops_address,
            admin_address,
            readiness,
            lifecycle,
            store,
            control,
            acceptor,
            workers,
            records,
            drain: config.drain,
            fixed,
            trusted_proxies,
            in_force,
            clock,
        })
    }

    /// Goes by another configuration from now on, or goes on as it was. When it returns, every worker has
    /// changed over; requests under way end under what they began with.
    ///
    /// # Errors
    /// [`Refused`], with everything that stands against it; nothing has changed then.
    pub fn reload(&mut self, read: Result<Config, Mistakes>) -> Result<(), Refused> {
        match self.change(read) {
            Ok(routes) => {
                lock(&self.in_force).reloads.applied += 1;
                telemetry::log(&format!("the configuration was read again: {routes} routes"));
                Ok(())
            }
            Err(refused) => {
                lock(&self.in_force).reloads.refused += 1;
                telemetry::log(&format!(
                    "the configuration was read again, and refused; the one before goes on:\n{refused}"
                ));
                Err(refused)
            }
        }
    }

    /// Everything that can fail comes before anything that changes. Gives the number of routes.
    fn change(&mut self, read: Result<Config, Mistakes>) -> Result<usize, Refused> {
        let config = read?;
        self.fixed.compare(&config)?;
        let serving = serving(&config.tls, config.connection, &self.clock)?;

        let routes = config.routes.routes().len();
        let health = Arc::clone(&lock(&self.in_force).health);
        let plan = Arc::new(Plan::new(config.gateway, config.routes, config.upstreams, &health));
        self.trusted_proxies.send_replace(plan.settings().headers.trusted_proxies.clone());
        self.lifecycle.iter().for_each(|lifecycle| lifecycle.set_vocabulary(config.scopes.clone()));
        self.drain = config.drain;
        let (done, all_done) = std::sync::mpsc::channel();
        for worker in self.workers.iter() {
            worker.adopt(Arc::clone(&plan), serving.clone(), done.clone());
        }
        drop(done);
        // Nothing is ever sent: it ends when the last worker has dropped its side, as one that has ended has.
        let _ = all_done.recv();
        let mut in_force = lock(&self.in_force);
        in_force.config_hash = config.hash;
        in_force.certificates = certificates(&serving);
        in_force.health = Arc::clone(plan.health());
        Ok(routes)
    }

    /// Where it listens; the port is the real one, also when the configuration said 0.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and probes are.
    #[must_use]
    pub const fn ops_address(&self) -> Option<SocketAddr> {
        self.ops_address
    }

    /// Where the admin API is, if it is served over TCP.
    #[must_use]
    pub const fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Through which keys are changed here; `None` at a gateway that only lets requests through.
    #[must_use]
    pub const fn lifecycle(&self) -> Option<&Arc<Lifecycle>> {
        self.lifecycle.as_ref()
    }

    /// Runs a future on the control runtime and waits for it. Not to be called from a runtime's own thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.control.handle.block_on(future)
    }

    /// From now on a signal is kept for [`App::run_until_signalled`] and does not kill the process: SIGHUP
    /// only where there is a `source` to read the configuration from again.
    ///
    /// # Errors
    /// When signals cannot be watched.
    pub fn watch_signals(&self, source: Option<Source>) -> io::Result<Signals> {
        let _entered = self.control.handle.enter();
        let hangup = |source| signal(SignalKind::hangup()).map(|hangup| (hangup, source));
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: source.map(hangup).transpose()?,
        })
    }

    /// Serves until SIGTERM or SIGINT, then drains. A second signal ends it at once. SIGHUP reloads.
    pub fn run_until_signalled(mut self, mut signals: Signals) {
        let handle = self.control.handle.clone();
        while let Asked::ToReload(read) = handle.block_on(signals.next()) {
            // Whatever stands against it has been logged.
            let _ = self.reload(*read);
        }
        let delay = self.drain.delay;
        self.readiness.stop();
        telemetry::log("stopping: finishing the requests under way; a second signal ends them");
        let (hurry, hurried) = std::sync::mpsc::channel();
        // SIGHUP is watched still, and ignored.
        let Signals { mut terminate, mut interrupt, reload: _reload } = signals;
        handle.spawn(async move {
            end(&mut terminate, &mut interrupt).await;
            let _ = hurry.send(());
        });
        let at_once = hurried.recv_timeout(delay).is_ok();
        let timeout = if at_once { Duration::ZERO } else { self.drain.timeout };
        self.stop(timeout, &hurried);
        telemetry::log("stopped");
        telemetry::flush_log();
    }

    /// Takes no more connections, lets the requests under way take up to `timeout`, and ends.
    pub fn drain(self, timeout: Duration) {
        // The sender is kept so that nothing hurries this.
        let (_hurry, hurried) = std::sync::mpsc::channel();
        self.stop(timeout, &hurried);
    }

    #[expect(clippy::disallowed_methods, reason = "the end of a process is nobody's argument")]
    fn stop(self, timeout: Duration, hurried: &std::sync::mpsc::Receiver<()>) {
        let Self { control, acceptor, workers, records, lifecycle, store, readiness, .. } = self;
        readiness.stop();
        acceptor.abort();
        // Only when its task is gone is the socket closed and are the workers ours alone.
        drop(control.handle.block_on(acceptor));
        let mut workers = Arc::into_inner(workers).unwrap_or_default();
        workers.iter().for_each(Worker::drain);
        let until = Instant::now() + timeout;
        while !workers.iter().all(Worker::is_finished) && Instant::now() < until {
            if hurried.recv_timeout(Duration::from_millis(10)).is_ok() {
                break;
            }
        }
        workers.drain(..).for_each(Worker::stop);
        records.finish();
        control.handle.block_on(take_leave(&*store, lifecycle.as_deref()));
        lifecycle.iter().for_each(|lifecycle| lifecycle.export_all_heads());
        drop((lifecycle, store));
        control.stop();
    }
}

/// What the store is told at the end, once the last request has been answered: until then whoever takes a right
/// away has to wait for this gateway. A store that is away now cannot be told, and keeps nobody here.
async fn take_leave(store: &dyn Store, lifecycle: Option<&Lifecycle>) {
    let leaving = async {
        let left = tokio::time::timeout(BLOCKED_AT_MOST, store.keeper().leave()).await;
        if let Err(fault) = left.unwrap_or(Err(StoreFault::TimedOut)) {
            telemetry::log(&format!(
                "the lease could not be given up: {fault}; until it ends, within {LEASE:?}, changes wait for this gateway"
            ));
        }
    };
    let writing_usage = async {
        let Some(lifecycle) = lifecycle else { return };
        // Where it cannot be written, what was used since the last minute is forgotten.
        let _ = tokio::time::timeout(BLOCKED_AT_MOST, lifecycle.write_usage()).await;
    };
    tokio::join!(leaving, writing_usage);
}

/// How connections are served, with certificates that are read now. One that clients will refuse does not
/// keep the gateway from starting: a restart must not turn one expired name into an outage of all of them.
fn serving(
    tls: &tls::Settings,
    connection: connection::Settings,
    clock: &Clock,
) -> Result<Serving, tls::LoadErrors> {
    let tls = tls::Acceptor::load(tls)?;
    let certificates = tls.iter().flat_map(tls::Acceptor::certificates);
    for complaint in certificates.filter_map(|certificate| certificate.complaint(clock.now().wall)) {
        telemetry::log(&complaint);
    }
    Ok(Serving { connection, tls })
}

/// The end of each certificate, by its file.
fn certificates(serving: &Serving) -> Vec<(Box<str>, UnixMillis)> {
    let certificates = serving.tls.iter().flat_map(tls::Acceptor::certificates);
    certificates.map(|one| (one.file.display().to_string().into(), one.not_after)).collect()
}

/// How often writing a revocation again is tried, and how long it waits in between. A key that is still not
/// written then is reported again when somebody presents it.
const REVOKED_TRIES: usize = 50;
const REVOKED_PAUSE: Duration = Duration::from_millis(100);
/// Revived keys that a gateway tells of which can do nothing about them.
const SAID_AT_MOST: usize = 65_536;

/// Attends to what this process knows to be revoked, and a store that lost its last changes does not. Whoever may
/// write to it does so; whoever may not refuses the key all the same, and says what it saw.
async fn attend_revived(lifecycle: Option<Arc<Lifecycle>>, mut revived: mpsc::Receiver<KeyId>) {
    let mut keys = Vec::new();
    // A key is reported whenever somebody presents it.
    let mut said = HashSet::new();
    while revived.recv_many(&mut keys, 64).await > 0 {
        keys.sort_unstable();
        keys.dedup();
        for key in keys.drain(..) {
            match &lifecycle {
                Some(lifecycle) => {
                    telemetry::log(&format!(
                        "the store has forgotten that {key} is revoked: it is revoked again"
                    ));
                    revoke_again(lifecycle, key).await;
                }
                None if said.len() < SAID_AT_MOST && said.insert(key) => telemetry::log(&format!(
                    "the store has forgotten that {key} is revoked: it is refused here, and a full gateway is to revoke it again"
                )),
                None => {}
            }
        }
    }
}

async fn revoke_again(lifecycle: &Lifecycle, key: KeyId) {
    for _ in 0..REVOKED_TRIES {
        match lifecycle.revoke_key(&By::gateway(), key).await {
            Ok(_) | Err(LifecycleError::NoKey(_)) => return,
            Err(_) => tokio::time::sleep(REVOKED_PAUSE).await,
        }
    }
}

/// What is read of the parts at the moment of a scrape.
fn state(
    store: Arc<dyn Store>,
    keys: Arc<ReadThrough>,
    in_force: Arc<Mutex<InForce>>,
    records: &RecordWriter,
    lifecycle: Option<&Lifecycle>,
    backlog: Option<Arc<Backlog>>,
) -> impl Fn() -> State + Send + Sync + use<> {
    let dropped = records.dropped();
    let changes = lifecycle.map(|lifecycle| Arc::clone(lifecycle.change_meter()));
    let troubles = lifecycle.map(|lifecycle| lifecycle.troubles().clone());
    move || {
        let in_force = lock(&in_force);
        State {
            certificates: in_force.certificates.clone(),
            health: Arc::clone(&in_force.health),
            cache_entries: keys.entries(),
            event_link_up: store.keeper().link_state() == LinkState::Up,
            vitals: store.keeper().vitals(),
            changes: changes.clone(),
            news_waiting: backlog.as_ref().and_then(|backlog| backlog.waiting()),
            troubles_dropped: troubles.as_ref().map_or(0, Trouble::dropped),
            records_dropped: dropped.load(Ordering::Relaxed),
            config_hash: in_force.config_hash,
            reloads: in_force.reloads,
        }
    }
}

/// The signals that mean something to a gateway. Watched from before it says that it listens, and by one
/// watch for the first and the second: one that comes between two watches would be nobody's.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Option<(Signal, Source)>,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}

/// What a signal asks for.
enum Asked {
    ToEnd,
    ToReload(Box<Result<Config, Mistakes>>),
}

impl Signals {
    async fn next(&mut self) -> Asked {
        let reload = async {
            match &mut self.reload {
                Some((hangup, source)) => {
                    hangup.recv().await;
                    source()
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end(&mut self.terminate, &mut self.interrupt) => Asked::ToEnd,
            read = reload => Asked::ToReload(Box::new(read)),
        }
    }
}

async fn end(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// How long the end waits for work that cannot be interrupted.
const BLOCKED_AT_MOST: Duration = Duration::from_secs(1);

/// The control runtime: one thread beside the workers for everything that is no request.
#[derive(Debug)]
pub struct Control {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("keygate-control".to_owned()).spawn(move || {
            drop(runtime.block_on(stopped));
            // A read that hangs on its disk must not keep the process from ending.
            runtime.shutdown_timeout(BLOCKED_AT_MOST);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

/// Also when starting fails half-way, nothing is left running.
impl Drop for Control {
    fn drop(&mut self) {
        self.end();
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Takes as many descriptors as the process may have; the usual soft limit of 1,024 is for programs that use
/// `select`.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current < maximum || maximum.is_none() && current.is_some() {
        // Where it is refused, the limit stays what it was, and the listener says how far it reaches.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}
