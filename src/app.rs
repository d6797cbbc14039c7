//! The whole, put together: store, cache, workers, listeners; and taken apart again in order when it ends.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::admin;
use crate::api::Api;
use crate::audit::Chain;
use crate::clock::{Clock, UnixMillis};
use crate::config::{Config, KeySettings, StoreSettings};
use crate::gateway::Shared;
use crate::key::record::Sealer;
use crate::key::scope::ScopeSet;
use crate::key::{Digester, KeyFormat, Pepper};
use crate::lifecycle::{self, Lifecycle, SignupSettings};
use crate::listener::{self, Listener};
use crate::metrics::{MeasuredStore, Metrics, State};
use crate::ops::{self, Readiness, Told};
use crate::store::Store;
use crate::store::cache::ReadThrough;
use crate::store::embedded::{self, Embedded};
use crate::store::keeper::LinkState;
use crate::store::redis::{self, Redis};
use crate::telemetry::{self, RecordWriter};
use crate::tls;
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
    Pepper(#[from] PepperError),
    #[error(transparent)]
    Tls(#[from] tls::LoadErrors),
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug, Error)]
pub enum PepperError {
    #[error("cannot read keys.pepper_file {path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error("keys.pepper_file {0} can be read by others: chmod 600 {0}")]
    Exposed(PathBuf),
    #[error(
        "keys.pepper_file {0} is too short: write at least 32 random bytes, for instance with `openssl rand -base64 48`"
    )]
    TooShort(PathBuf),
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
}

impl KeyTools {
    /// # Errors
    /// When the pepper cannot be read.
    pub fn new(settings: &KeySettings) -> Result<Self, PepperError> {
        let pepper = settings.pepper_file.as_deref().map(read_pepper).transpose()?;
        Ok(Self {
            format: KeyFormat::new(&settings.prefix, settings.accept_without_checksum),
            digester: Digester::new(pepper.clone()),
            sealer: Sealer::new(pepper.clone()),
            chain: Chain::new(pepper.clone()),
            pepper,
        })
    }

    /// What a lifecycle is told of them.
    #[must_use]
    pub fn lifecycle(&self, vocabulary: ScopeSet, signup: SignupSettings) -> lifecycle::Settings {
        lifecycle::Settings {
            format: self.format.clone(),
            digester: self.digester.clone(),
            pepper: self.pepper.clone(),
            chain: self.chain.clone(),
            vocabulary,
            signup,
        }
    }
}

fn read_pepper(path: &Path) -> Result<Pepper, PepperError> {
    let failed = |cause| PepperError::Io { path: path.to_owned(), cause };
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(PepperError::Exposed(path.to_owned()));
    }
    let text = Zeroizing::new(std::fs::read(path).map_err(failed)?);
    Pepper::new(text.trim_ascii_end().to_vec()).map_err(|_| PepperError::TooShort(path.to_owned()))
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
            Ok(Arc::new(Redis::open(settings.clone(), sealer, control.clone())?))
        }
    }
}

/// Reads the certificates. One that clients will refuse does not keep the gateway from starting: a restart
/// must not turn one expired name into an outage of all of them.
fn load_tls(settings: &tls::Settings, clock: &Clock) -> Result<Option<tls::Acceptor>, tls::LoadErrors> {
    let acceptor = tls::Acceptor::load(settings)?;
    let certificates = acceptor.iter().flat_map(tls::Acceptor::certificates);
    for complaint in certificates.filter_map(|certificate| certificate.complaint(clock.now().wall)) {
        telemetry::log(&complaint);
    }
    Ok(acceptor)
}

/// A running gateway.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    ops_address: Option<SocketAddr>,
    readiness: Arc<Readiness>,
    lifecycle: Arc<Lifecycle>,
    control: Control,
    acceptor: tokio::task::JoinHandle<()>,
    workers: Arc<Vec<Worker>>,
    records: RecordWriter,
    drain: DrainSettings,
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
        let tls = load_tls(&config.tls, &clock)?;
        let certificates = tls.iter().flat_map(tls::Acceptor::certificates);
        let certificates =
            certificates.map(|one| (one.file.display().to_string().into(), one.not_after)).collect();
        let entered = control.handle.enter();
        let listener =
            Listener::bind(&config.listener, config.gateway.headers.trusted_proxies.clone(), clock.clone())?;
        let admin = admin::Server::bind(&config.admin)?;
        let ops = ops::Server::bind(&config.ops)?;
        let (address, ops_address) = (listener.address(), ops.as_ref().map(ops::Server::address));
        let (store, meter) = MeasuredStore::new(store, clock.clone());
        let store: Arc<dyn Store> = store;
        let route_ids = config.routes.routes().iter().map(|route| route.id.clone()).collect();
        let upstream_names = config.upstreams.iter().map(|upstream| upstream.name.clone()).collect();
        let metrics = Arc::new(Metrics::new(route_ids, upstream_names, meter));
        let lifecycle = Arc::new(Lifecycle::new(
            Arc::clone(&store),
            tools.lifecycle(config.scopes, config.signup),
            clock.clone(),
        ));
        let keys = ReadThrough::new(config.cache, Arc::clone(&store), control.handle.clone(), clock.clone());
        let shared = Shared {
            settings: config.gateway,
            routes: Arc::new(config.routes),
            upstreams: config.upstreams.into(),
            format: tools.format,
            digester: tools.digester,
            keys: Arc::clone(&keys),
            api: Api::new(Arc::clone(&lifecycle), control.handle.clone()),
            clock,
        };
        let records = RecordWriter::start(config.request_log)?;
        let count = config.listener.workers.map_or_else(processors, NonZeroUsize::get);
        let serving = Serving { connection: config.connection, tls };
        let workers: Result<Vec<Worker>, io::Error> = (0..count)
            .map(|n| Worker::start(n, shared.clone(), records.sink(), metrics.cells(), serving.clone()))
            .collect();
        let workers = Arc::new(workers?);
        let acceptor = tokio::spawn(listener.run(Arc::clone(&workers)));
        if let Some(admin) = admin {
            tokio::spawn(admin.run(Arc::clone(&lifecycle)));
        }
        let readiness = Arc::new(Readiness::default());
        readiness.set(true);
        if let Some(ops) = ops {
            let state = state(store, keys, certificates, &workers, &records);
            let told = Told { metrics, readiness: Arc::clone(&readiness), state: Box::new(state) };
            tokio::spawn(ops.run(Arc::new(told)));
        }
        drop(entered);
        Ok(Self {
            address,
            ops_address,
            readiness,
            lifecycle,
            control,
            acceptor,
            workers,
            records,
            drain: config.drain,
        })
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

    #[must_use]
    pub const fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.lifecycle
    }

    /// Runs a future on the control runtime and waits for it. Not to be called from a runtime's own thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.control.handle.block_on(future)
    }

    /// From now on a signal is kept for [`App::run_until_signalled`] and does not kill the process.
    ///
    /// # Errors
    /// When signals cannot be watched.
    pub fn watch_signals(&self) -> io::Result<Signals> {
        let _entered = self.control.handle.enter();
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Serves until SIGTERM or SIGINT, then drains. A second signal ends it at once.
    pub fn run_until_signalled(self, mut signals: Signals) {
        let handle = self.control.handle.clone();
        handle.block_on(signals.next());
        let delay = self.drain.delay;
        self.readiness.set(false);
        telemetry::log("stopping: finishing the requests under way; a second signal ends them");
        let (hurry, hurried) = std::sync::mpsc::channel();
        handle.spawn(async move {
            signals.next().await;
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
        let Self { control, acceptor, workers, records, lifecycle, readiness, .. } = self;
        readiness.set(false);
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
        drop(lifecycle);
        control.stop();
    }
}

/// What is read of the parts at the moment of a scrape.
fn state(
    store: Arc<dyn Store>,
    keys: Arc<ReadThrough>,
    certificates: Vec<(Box<str>, UnixMillis)>,
    workers: &[Worker],
    records: &RecordWriter,
) -> impl Fn() -> State + Send + Sync + use<> {
    let dropped = records.dropped();
    let loads: Vec<_> = workers.iter().map(Worker::load_cell).collect();
    move || State {
        certificates: certificates.clone(),
        cache_entries: keys.entries(),
        event_link_up: store.keeper().link_state() == LinkState::Up,
        records_dropped: dropped.load(Ordering::Relaxed),
        connections: loads.iter().map(|load| load.load(Ordering::Relaxed)).sum(),
    }
}

/// The signals that end the process. Watched from before it says that it listens, and by one watch for the
/// first and the second: one that comes between two watches would be nobody's.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
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
