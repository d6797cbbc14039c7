//! How a gateway starts: secrets, store and signals first; then the sockets, the keys, the workers, and what
//! operators look at.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::Handle;

use super::App;
use super::clocks;
use super::control::Control;
use super::in_force::{InForce, Observed, lock, serving};
use super::inherited::Inherited;
use super::key_tools::{KeyTools, SecretError, read_secret};
use super::prefixes::{self, Followers};
use super::readiness::{self, Examined};
use super::reload::{Fixed, Source, tell_remarks, tell_wider};
use super::room::{Plans, Room};
use super::signals::Signals;
use super::sockets::{SocketError, Sockets};
use super::store::{StoreError, attend_revived, attend_set_back, open_store, open_verified};
use super::take_over::{HandOver, Hatch};
use crate::api::Api;
use crate::config::Config;
use crate::downstream::connection::Serving;
use crate::downstream::tls;
use crate::downstream::worker::{Parts, Worker};
use crate::gateway::{Experience, Plan, Shapes, Shared, Shares};
use crate::lifecycle::Lifecycle;
use crate::operators::ops::{self, Readiness, Told};
use crate::operators::outbox::{self, Backlog};
use crate::operators::{Running, admin};
use crate::store::cache::ReadThrough;
use crate::store::embedded::Verified;
use crate::store::events::EventSink;
use crate::store::keeper::LinkState;
use crate::store::measured::MeasuredStore;
use crate::store::{Role, Store};
use crate::telemetry::metrics::{Metrics, Reloads, StoreMeter};
use crate::telemetry::{Notice, RecordSettings, RecordWriter, use_log};
use crate::tls::LoadErrors;
use crate::upstream;
use crate::upstream::budget::Budget;
use crate::upstream::loaded::{Loaded, load};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::{KeyFormat, Misfit, Prefix};

/// How long a start waits for the store to say which pepper belongs to it.
const ASKED_AT_START: Duration = Duration::from_secs(2);

/// How long a gateway that is to replace another one waits for its store.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Why a gateway does not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Sockets(#[from] SocketError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Pepper(#[from] Misfit),
    #[error(transparent)]
    Tls(#[from] LoadErrors<tls::LoadError>),
    #[error(transparent)]
    Upstreams(#[from] LoadErrors<upstream::tls::LoadError>),
    #[error("{key}: cannot open {}: {error}", file.display())]
    Log { key: &'static str, file: PathBuf, error: io::Error },
    #[error(
        "the store has not answered within {READY_WITHIN:?}: the gateway that was to be replaced goes on"
    )]
    NotReady,
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

impl StartError {
    /// The log cannot be written to `file`, which `key` of the configuration names.
    fn log(key: &'static str, file: Option<&Path>, error: io::Error) -> Self {
        match file {
            Some(file) => Self::Log { key, file: file.to_owned(), error },
            None => Self::Io(error),
        }
    }
}

/// What a gateway begins with beside its configuration.
#[derive(Default)]
pub struct Belongings<'o> {
    /// Where a reload reads the configuration from again; `None` where SIGHUP is not watched.
    pub source: Option<Source>,
    /// The file of an embedded store that was verified already: it is not read as a whole again.
    pub verified: Option<&'o Verified>,
    /// The sockets that are there.
    pub inherited: Inherited,
    /// Whether another gateway serves until this one can: nothing is accepted before the store has answered.
    pub is_awaited: bool,
}

impl std::fmt::Debug for Belongings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Belongings").field("inherited", &self.inherited).finish_non_exhaustive()
    }
}

impl App {
    /// Opens the store, watches the signals, opens the sockets, starts the threads. When it returns, connections
    /// are accepted.
    ///
    /// # Errors
    /// [`StartError`] says what to do. Nothing is left running.
    pub fn start(
        config: Config,
        Belongings { source, verified, inherited, is_awaited }: Belongings<'_>,
        clock: Clock,
    ) -> Result<(Self, Signals), StartError> {
        use_log(&config.log)
            .map_err(|error| StartError::log("log.file", config.log.file.as_deref(), error))?;
        let tools = KeyTools::new(&config.keys)?;
        let control = Control::start()?;
        // It may take long where a file must be repaired. Until the signals are watched, one of them kills the
        // process, so that it can be ended here at any moment.
        let store = match verified {
            Some(verified) => open_verified(verified, tools.sealer.clone(), &clock)?,
            None => open_store(&config.store, tools.sealer.clone(), control.handle(), &clock)?,
        };
        refuse_misfit(&store, control.handle())?;
        // Watched before there is a lease: a gateway that is told to end while it starts must give its lease up,
        // or every change of a key waits for it.
        let signals = Signals::watch(&control, source)?;
        let wider = tell_wider(config.routes.routes());
        tell_remarks(&config.remarks).iter().chain(&wider).for_each(|line| Notice::Remark.log(line));
        Ok((Self::assemble(config, tools, (control, store), (inherited, is_awaited), clock)?, signals))
    }

    /// As [`App::start`], but without signals, and with a store that is already open, and the control runtime on
    /// which it was opened.
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
        Self::assemble(config, tools, (control, store), (Inherited::default(), false), clock)
    }

    fn assemble(
        mut config: Config,
        tools: KeyTools,
        (control, store): (Control, Arc<dyn Store>),
        (inherited, is_awaited): (Inherited, bool),
        clock: Clock,
    ) -> Result<Self, StartError> {
        let fixed = Fixed::of(&config);
        let (threads, room, budget) = share_out_room(&mut config);
        let (serving, upstreams) = read_files(&mut config, &clock)?;
        let entered = control.handle().enter();
        let sockets = Sockets::open(&config, inherited, &clock)?;
        let keys = Keys::open(store, &config, &tools, &clock);
        wait_until_ready(is_awaited, &keys.store, control.handle())?;
        let hand_over = offer(&config, &sockets)?;
        let backlog = config.outbox.map(|outbox| start_outbox(outbox, &keys.store, &clock)).transpose()?;
        let plan = Arc::new(Plan::new(config.gateway, config.routes, upstreams, &Experience::none(threads)));
        let in_force = Arc::new(Mutex::new(InForce::new(config.hash, &serving, &plan, Reloads::default())));
        let records = start_records(&config.records)?;
        let metrics = Arc::new(Metrics::new(Arc::clone(&keys.meter)));
        let shared = keys.shared(plan, tools, (budget.clone(), threads), &clock);
        let start = |n| {
            let (records, cells, serving) = (records.sink(), metrics.cells(), serving.clone());
            let (shared, checks_upstreams) = (shared.clone(), n == 0);
            Worker::start(n, Parts { shared, records, cells, serving, checks_upstreams })
        };
        let workers = Arc::new((0..threads).map(start).collect::<Result<Vec<_>, _>>()?);
        keys.follow_prefixes(&workers);
        room.share_out_among(&workers);

        let addresses = sockets.addresses();
        let Sockets { public, trusted_proxies, admin_socket, admin_remote, ops } = sockets;
        let passed = admin_socket.as_ref().map(admin::Server::passed);
        let accepting = public.start(Arc::clone(&workers), metrics.cells());
        let mut operators = keys.start_admin((admin_socket, admin_remote), &in_force, &clock);
        let readiness = Arc::new(Readiness::default());
        if let Some(ops) = ops {
            let observed = keys.observed(Arc::clone(&in_force), &records, (budget, backlog), &clock);
            operators.push(ops.start(keys.told(metrics, Arc::clone(&readiness), observed), clock.clone()));
        }
        drop(entered);
        Ok(Self {
            addresses,
            readiness,
            operators,
            lifecycle: keys.lifecycle,
            store: keys.store,
            control,
            accepting,
            hand_over,
            admin_socket: passed,
            workers,
            records,
            drain: config.drain,
            fixed,
            trusted_proxies,
            in_force,
            clock,
        })
    }
}

/// Reads the certificates and keys for TLS to clients and to upstreams. Takes the upstreams out of the configuration.
fn read_files(config: &mut Config, clock: &Clock) -> Result<(Serving, Vec<Loaded>), StartError> {
    let serving = serving(&config.tls, config.watchdog.clone(), clock)?;
    Ok((serving, load(std::mem::take(&mut config.upstreams))?))
}

/// Where keys are looked up, and through which they are changed.
struct Keys {
    store: Arc<dyn Store>,
    meter: Arc<StoreMeter>,
    cache: Arc<ReadThrough>,
    lifecycle: Option<Arc<Lifecycle>>,
    /// What keys look like, and the prefix that the configuration gives to new ones.
    shape: (KeyFormat, Prefix),
    examined: Examined,
}

impl Keys {
    /// Must be called inside the control runtime.
    fn open(store: Arc<dyn Store>, config: &Config, tools: &KeyTools, clock: &Clock) -> Self {
        // Before events are followed, so that the first lease says it.
        readiness::tell_reach(store.keeper(), config.routes.routes(), &config.cache);
        let (store, meter) = MeasuredStore::new(store, clock.clone());
        let store: Arc<dyn Store> = store;
        let lifecycle = (config.role == Role::Full).then(|| {
            let settings = tools.lifecycle(config.signup.clone(), &config.retention);
            let scopes = config.scopes.clone();
            Arc::new(Lifecycle::new(Arc::clone(&store), settings, scopes, clock.clone()))
        });
        let (settings, runtime) = (config.cache.clone(), Handle::current());
        // A request of each connection.
        let max_waiting = config.listener.max_connections;
        let cache = ReadThrough::new(settings, max_waiting, Arc::clone(&store), runtime, clock.clone());
        if let Some(revived) = cache.revived() {
            tokio::spawn(attend_revived(lifecycle.clone(), revived));
        }
        if let Some(reported) = store.keeper().set_back() {
            let (store, lifecycle, clock) = (Arc::clone(&store), lifecycle.clone(), clock.clone());
            tokio::spawn(attend_set_back(store, lifecycle, reported, clock));
        }
        store.subscribe(Arc::clone(&meter) as Arc<dyn EventSink>);
        tokio::spawn(clocks::watch(clock.clone()));
        let shape = (tools.format.clone(), tools.prefix.clone());
        Self { store, meter, cache, lifecycle, shape, examined: Examined::of(config) }
    }

    /// Starts what a full gateway does beside requests: the chores, and the servers for operators.
    fn start_admin(
        &self,
        (socket, remote): (Option<admin::Server>, Option<admin::Remote>),
        in_force: &Arc<Mutex<InForce>>,
        clock: &Clock,
    ) -> Vec<Running> {
        let Some(lifecycle) = &self.lifecycle else { return Vec::new() };
        tokio::spawn(Lifecycle::attend(Arc::downgrade(lifecycle)));
        let in_force = Arc::clone(in_force);
        let servers = Arc::new(move || lock(&in_force).servers());
        let desk = admin::Desk { lifecycle: Arc::clone(lifecycle), servers };
        let socket = socket.map(|socket| socket.start(desk.clone(), clock.clone()));
        let remote = remote.map(|remote| remote.start(desk));
        socket.into_iter().chain(remote).collect()
    }

    /// Keeps these workers in step with the prefixes of the store.
    fn follow_prefixes(&self, workers: &Arc<Vec<Worker>>) {
        let (store, (format, own)) = (Arc::clone(&self.store), self.shape.clone());
        let lifecycle = self.lifecycle.as_ref().map(Arc::downgrade);
        tokio::spawn(prefixes::follow(Followers {
            store,
            lifecycle,
            workers: Arc::downgrade(workers),
            format,
            own,
        }));
    }

    /// The parts that all workers share.
    fn shared(
        &self,
        plan: Arc<Plan>,
        tools: KeyTools,
        (budget, threads): (Budget, usize),
        clock: &Clock,
    ) -> Shared {
        Shared {
            plan,
            shapes: Arc::new(Shapes { format: tools.format, only_these: None }),
            keys: Arc::clone(&self.cache),
            shares: Arc::new(Shares::new(budget.clone(), threads)),
            budget,
            api: self.lifecycle.clone().map(|lifecycle| Api::new(lifecycle, Handle::current())),
            clock: clock.clone(),
        }
    }

    fn observed(
        &self,
        in_force: Arc<Mutex<InForce>>,
        records: &RecordWriter,
        (budget, backlog): (Budget, Option<Arc<Backlog>>),
        clock: &Clock,
    ) -> Observed {
        let lifecycle = self.lifecycle.as_deref();
        Observed {
            store: Arc::clone(&self.store),
            cache: Arc::clone(&self.cache),
            budget,
            in_force,
            records: records.lost(),
            changes: lifecycle.map(|lifecycle| Arc::clone(lifecycle.change_meter())),
            swept: lifecycle.map(|lifecycle| lifecycle.swept().clone()),
            troubles: lifecycle.map(|lifecycle| lifecycle.troubles().clone()),
            trimming: lifecycle.map(|lifecycle| lifecycle.trimming().clone()),
            backlog,
            clock: clock.clone(),
        }
    }

    /// The data for the operators' listener.
    fn told(&self, metrics: Arc<Metrics>, readiness: Arc<Readiness>, observed: Observed) -> Told {
        let (observed, examined) = (Arc::new(observed), self.examined);
        let (seen, meter) = (Arc::clone(&observed), Arc::clone(&self.meter));
        let examine = move |is_verbose| -> ops::Examination {
            let (seen, meter) = (Arc::clone(&seen), Arc::clone(&meter));
            Box::pin(async move { examined.examine(&seen, &meter, is_verbose).await })
        };
        Told { metrics, readiness, examine: Box::new(examine), state: Box::new(move || observed.state()) }
    }
}

/// A gateway whose pepper is not that of the store takes every good key for an unknown one. Where the store does not answer
/// now, it is asked again with every lookup, and until then the gateway is not ready.
fn refuse_misfit(store: &Arc<dyn Store>, control: &Handle) -> Result<(), Misfit> {
    // Within the runtime: the time-out needs its timer.
    let asked = async { tokio::time::timeout(ASKED_AT_START, store.keeper().misfit()).await };
    match control.block_on(asked) {
        Ok(Ok(Some(misfit))) => Err(misfit),
        Ok(Ok(None) | Err(_)) | Err(_) => Ok(()),
    }
}

fn start_records(settings: &RecordSettings) -> Result<RecordWriter, StartError> {
    RecordWriter::start(settings)
        .map_err(|error| StartError::log("log.requests_file", settings.file.as_deref(), error))
}

/// Offers the sockets to a process that takes over, where there is an admin socket beside which it can ask.
fn offer(config: &Config, sockets: &Sockets) -> io::Result<Option<HandOver>> {
    let Some(hatch) = Hatch::open(config.admin.socket.as_deref())? else { return Ok(None) };
    Ok(Some(HandOver::offer(hatch, config, sockets.duplicates()?)))
}

/// For a gateway that is to replace another one: waits until keys can be looked up, and changes of them are heard of.
fn wait_until_ready(is_awaited: bool, store: &Arc<dyn Store>, control: &Handle) -> Result<(), StartError> {
    if !is_awaited {
        return Ok(());
    }
    let ready = async {
        while store.keeper().link_state() != LinkState::Up || !store.keeper().is_fit() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = control.block_on(async { tokio::time::timeout(READY_WITHIN, ready).await });
    waited.map_err(|_| StartError::NotReady)
}

/// Starts sending news to the upstream, and counting those that wait.
fn start_outbox(
    settings: outbox::Settings,
    store: &Arc<dyn Store>,
    clock: &Clock,
) -> Result<Arc<Backlog>, SecretError> {
    let keys = settings.key_files.iter().map(|file| read_secret("outbox.key_file", file));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    let backlog = Arc::<Backlog>::default();
    tokio::spawn(outbox::deliver(Arc::clone(store), settings.receiver, keys, clock.clone()));
    tokio::spawn(outbox::count(Arc::clone(store), Arc::clone(&backlog)));
    Ok(backlog)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Decides how many threads there are, limits the connections of clients by what the process may have, and gives the connections
/// to upstreams their budget.
/// [`Fixed`] must have been taken before: a reload is compared with what the file says.
fn share_out_room(config: &mut Config) -> (usize, Room, Budget) {
    let Config { listener, tls, cache, store, upstreams, .. } = config;
    let threads = listener.workers.map_or_else(processors, NonZeroUsize::get);
    let (max_connections, keys, has_tls) =
        (listener.max_connections, cache.capacity, !tls.certificates.is_empty());
    let has_upstream_tls = upstreams.iter().any(upstream::Settings::has_tls);
    let of_store = store.held();
    let plans = Plans { max_connections, keys, of_store, has_tls, has_upstream_tls, workers: threads };
    let room = Room::share_out(listener.memory, plans);
    Notice::Room.log(&room.described());
    listener.max_connections = room.clients;
    (threads, room, Budget::new(room.upstreams))
}
