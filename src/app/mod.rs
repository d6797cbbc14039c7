//! The whole, put together: store, cache, workers, listeners; and taken apart again in order when it ends.

mod control;
mod in_force;
mod key_tools;
pub mod reload;
mod signals;
mod store;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::sync::watch;

use crate::api::Api;
use crate::app::reload::{Fixed, Refused, Source};
use crate::config::{Config, Mistakes};
use crate::downstream::connection;
use crate::downstream::listener::{self, Listener};
use crate::downstream::tls;
use crate::downstream::worker::{DrainSettings, Serving, Worker};
use crate::gateway::{Plan, Shared};
use crate::lifecycle::Lifecycle;
use crate::operators::admin;
use crate::operators::ops::{self, Readiness, Told};
use crate::operators::outbox::{self, Backlog};
use crate::store::cache::ReadThrough;
use crate::store::events::EventSink;
use crate::store::keeper::LinkState;
use crate::store::{Role, Store};
use crate::telemetry::metrics::{MeasuredStore, Metrics, Reloads};
use crate::telemetry::{self, RecordWriter};
use crate::upstream::health::Health;
use crate::vocabulary::clock::Clock;

use in_force::{InForce, lock, state};
use key_tools::read_secret;
use signals::{Asked, end};
use store::{attend_revived, take_leave};

pub use control::Control;
pub use key_tools::{KeyTools, SecretError};
pub use signals::Signals;
pub use store::{StoreError, open_store, open_store_to_read};

/// Why a gateway does not start.
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

impl App {
    /// What a process does to be a gateway: opens the store, watches its signals, binds the sockets, starts the
    /// threads. When it returns, connections are taken. SIGHUP is watched only where there is a `source` to read the
    /// configuration from again.
    ///
    /// # Errors
    /// [`StartError`] says what to do; nothing is left running.
    pub fn start(
        config: Config,
        source: Option<Source>,
        clock: Clock,
    ) -> Result<(Self, Signals), StartError> {
        let tools = KeyTools::new(&config.keys)?;
        let control = Control::start()?;
        // It may take long where a file has to be mended, and can be ended at any moment.
        let store = open_store(&config.store, tools.sealer.clone(), control.handle())?;
        // Before there is a lease: who is told to end while it starts must give it up, or every change waits for it.
        let signals = Signals::watch(&control, source)?;
        Ok((Self::start_with(config, tools, control, store, clock)?, signals))
    }

    /// The same without signals, with a store that is open already, and the control runtime that it was opened on.
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
        let entered = control.handle().enter();
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
        let keys =
            ReadThrough::new(config.cache, Arc::clone(&store), control.handle().clone(), clock.clone());
        if let Some(revived) = keys.revived() {
            tokio::spawn(attend_revived(lifecycle.clone(), revived));
        }
        store.subscribe(Arc::clone(&meter) as Arc<dyn EventSink>);

        let plan = Arc::new(Plan::new(config.gateway, config.routes, config.upstreams, &Health::default()));
        let in_force = Arc::new(Mutex::new(InForce::new(config.hash, &serving, &plan, Reloads::default())));
        let shared = Shared {
            plan,
            format: tools.format,
            digester: tools.digester,
            keys: Arc::clone(&keys),
            api: lifecycle.clone().map(|lifecycle| Api::new(lifecycle, control.handle().clone())),
            clock: clock.clone(),
        };
        let records = RecordWriter::start(config.request_log)?;
        let start = |n| Worker::start(n, shared.clone(), records.sink(), metrics.cells(), serving.clone());
        let count = config.listener.workers.map_or_else(processors, NonZeroUsize::get);
        let workers = Arc::new((0..count).map(start).collect::<Result<Vec<_>, _>>()?);
        let acceptor = tokio::spawn(listener.run(Arc::clone(&workers)));

        let backlog = config.outbox.map(|outbox| start_outbox(outbox, &store, &clock)).transpose()?;
        if let Some(lifecycle) = &lifecycle {
            tokio::spawn(Lifecycle::attend(Arc::downgrade(lifecycle), config.retention));
            socket.map(|socket| tokio::spawn(socket.run(Arc::clone(lifecycle))));
            remote.map(|remote| tokio::spawn(remote.run(Arc::clone(lifecycle))));
        }
        let readiness = Arc::new(Readiness::default());
        if let Some(ops) = ops {
            let (asked, in_force, store) = (Arc::clone(&store), Arc::clone(&in_force), Arc::clone(&store));
            let has_answered = move || meter.has_answered() || asked.keeper().link_state() == LinkState::Up;
            let state = state(store, keys, in_force, &records, lifecycle.as_deref(), backlog);
            let (readiness, store_has_answered) = (Arc::clone(&readiness), Box::new(has_answered));
            let told = Told { metrics, readiness, store_has_answered, state: Box::new(state) };
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
        let mut now = lock(&self.in_force);
        *now = InForce::new(config.hash, &serving, &plan, now.reloads);
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
        self.control.handle().block_on(future)
    }

    /// Serves until SIGTERM or SIGINT, then drains. A second signal ends it at once. SIGHUP reloads.
    pub fn run_until_signalled(mut self, mut signals: Signals) {
        let handle = self.control.handle().clone();
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
        drop(control.handle().block_on(acceptor));
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
        control.handle().block_on(take_leave(&*store, lifecycle.as_deref()));
        lifecycle.iter().for_each(|lifecycle| lifecycle.export_all_heads());
        drop((lifecycle, store));
        control.stop();
    }
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

/// Sends news from now on, and counts those that wait.
fn start_outbox(
    settings: outbox::Settings,
    store: &Arc<dyn Store>,
    clock: &Clock,
) -> Result<Arc<Backlog>, SecretError> {
    let key = read_secret("outbox.key_file", &settings.key_file)?;
    let backlog = Arc::<Backlog>::default();
    tokio::spawn(outbox::deliver(Arc::clone(store), settings.receiver, key, clock.clone()));
    tokio::spawn(outbox::count(Arc::clone(store), Arc::clone(&backlog)));
    Ok(backlog)
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
