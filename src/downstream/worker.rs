//! A worker: one thread, one runtime, its own connections to clients and upstreams. It shares nothing with other
//! threads while requests run.

use std::io;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::connection::{self, Serving};
use super::connection_limit::Slot;
use super::membership::{Connections, Stage};
use super::together::Allowed;
use crate::gateway::{Departure, Gateway, Plan, Shapes, Shared};
use crate::telemetry::RecordSink;
use crate::telemetry::metrics::Cells;
use crate::vocabulary::network::ClientNetwork;
use crate::vocabulary::peer::Peer;

pub use super::held::{OF_ONE_CONNECTION, OF_ONE_PLACE, OF_TLS};
pub use super::together::STEP;

/// How long the end of the thread waits for work that cannot be interrupted.
const BLOCKED_AT_MOST: Duration = Duration::from_secs(1);
/// How often a worker does what no request does: see [`Gateway::sweep`].
const SWEEP: Duration = Duration::from_secs(1);

/// How often a worker that is leaving looks whether the requests of before have ended.
const LOOK: Duration = Duration::from_millis(10);

/// How a gateway ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long new connections are still accepted after the signal, until load balancers have noticed it.
    pub delay: Duration,
    /// How long requests under way may then take. Streams have a [share](DrainSettings::of_streams) of it.
    pub timeout: Duration,
}

impl DrainSettings {
    /// How long tunnels and event streams may take to end, where all that is under way has `timeout`. They can go on for
    /// hours, and were told to end.
    #[must_use]
    pub fn of_streams(timeout: Duration) -> Duration {
        timeout / 2
    }
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self { delay: Duration::from_secs(5), timeout: Duration::from_secs(70) }
    }
}

/// The parts that a worker needs at its start.
#[derive(Debug)]
pub struct Parts {
    pub shared: Shared,
    pub records: RecordSink,
    pub cells: Arc<Cells>,
    pub serving: Serving,
    /// Whether it checks the endpoints of upstreams, for all workers.
    pub checks_upstreams: bool,
}

/// The handle to a thread that serves connections.
#[derive(Debug)]
pub struct Worker {
    orders: UnboundedSender<Order>,
    load: Arc<AtomicUsize>,
    allowed: Arc<Allowed>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Order {
    Serve {
        stream: TcpStream,
        peer: Peer,
        slot: Slot,
    },
    /// Use another plan from the next request on, and serve every later connection by `serving`. `done` is
    /// dropped when both are in use.
    Adopt {
        plan: Arc<Plan>,
        serving: Serving,
        done: Sender<()>,
    },
    /// Accept keys of other shapes from the next request on. `done` is dropped when that is so.
    Accept {
        shapes: Arc<Shapes>,
        done: UnboundedSender<()>,
    },
    /// Tell clients that their connections end, and go on serving. `ended` is dropped when the requests that have begun by
    /// then have ended.
    Leave {
        ended: Sender<()>,
    },
    /// Finish the requests under way, begin no other, then end. Streams are ended after this time.
    Drain {
        streams: Duration,
    },
}

impl Worker {
    /// Starts the thread. `number` is for its name.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be started.
    pub fn start(number: usize, parts: Parts) -> io::Result<Self> {
        let (orders, received) = unbounded_channel();
        let load = Arc::new(AtomicUsize::new(0));
        let allowed = Arc::<Allowed>::default();
        let counts = (Arc::clone(&load), Arc::clone(&allowed));
        let (started, outcome) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("keygate-{number}"))
            .spawn(move || run(&started, received, counts, parts))?;
        outcome.recv().map_err(io::Error::other)??;
        Ok(Self { orders, load, allowed, thread })
    }

    /// The number of connections that it has, or is about to have.
    #[must_use]
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Hands a connection over.
    pub(super) fn serve(&self, stream: TcpStream, peer: Peer, slot: Slot) {
        self.load.fetch_add(1, Ordering::Relaxed);
        // A worker that has ended drops the connection: it is closed.
        let _ = self.orders.send(Order::Serve { stream, peer, slot });
    }

    /// Replaces the plan of requests and the way connections are served. `done` is dropped once both are
    /// replaced.
    pub fn adopt(&self, plan: Arc<Plan>, serving: Serving, done: Sender<()>) {
        let _ = self.orders.send(Order::Adopt { plan, serving, done });
    }

    /// Replaces the shapes of the keys that requests may present. `done` is dropped once they are replaced.
    pub fn accept(&self, shapes: Arc<Shapes>, done: UnboundedSender<()>) {
        let _ = self.orders.send(Order::Accept { shapes, done });
    }

    /// Lets the worker's clients have so many requests over HTTP/2 at once, and hold so many bytes beside those that are
    /// forwarded. More requests wait for a moment, and are then refused; where more would be held, connections are cut.
    pub fn allow(&self, places: usize, memory: usize) {
        self.allowed.set(places, memory);
    }

    /// Tells clients that their connections end. Every request is still served. `ended` is dropped when the requests that
    /// have begun by then have ended.
    pub fn leave(&self, ended: Sender<()>) {
        let _ = self.orders.send(Order::Leave { ended });
    }

    /// Lets the requests under way finish, and tunnels and event streams end within the time `streams`, then ends.
    pub fn drain(&self, streams: Duration) {
        let _ = self.orders.send(Order::Drain { streams });
    }

    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the worker and waits for its thread. Requests that are still under way are cut.
    pub fn stop(self) {
        drop(self.orders);
        // A thread that panicked has said so in the log.
        let _ = self.thread.join();
    }
}

fn run(
    started: &SyncSender<io::Result<()>>,
    orders: UnboundedReceiver<Order>,
    (load, allowed): (Arc<AtomicUsize>, Arc<Allowed>),
    Parts { shared, records, cells, serving, checks_upstreams }: Parts,
) {
    let built = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let (runtime, outcome) = match built {
        Ok(runtime) => (Some(runtime), Ok(())),
        Err(error) => (None, Err(error)),
    };
    // `Worker::start` waits for it.
    let _ = started.send(outcome);
    let Some(runtime) = runtime else { return };
    let records = Rc::new(records);
    let gateway = Gateway::new(shared, Rc::clone(&records), cells);
    let connections = Rc::new(Connections::new(allowed));
    if checks_upstreams {
        runtime.spawn_local(check_upstreams(Rc::clone(&gateway)));
    }
    runtime.block_on(work(orders, (&load, connections), Rc::clone(&gateway), records, Rc::new(serving)));
    while gateway.hand_over_usage() {}
    // A resolver that hangs must not keep the process from ending.
    runtime.shutdown_timeout(BLOCKED_AT_MOST);
}

async fn work(
    mut orders: UnboundedReceiver<Order>,
    (load, connections): (&Arc<AtomicUsize>, Rc<Connections>),
    gateway: Rc<Gateway>,
    records: Rc<RecordSink>,
    mut serving: Rc<Serving>,
) {
    tokio::task::spawn_local(async move { records.keep_flushing().await });
    tokio::task::spawn_local(sweep(Rc::clone(&gateway)));
    tokio::task::spawn_local(give_way(Rc::clone(&gateway)));
    let mut draining = false;
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = connections.closed(), if draining => return,
        };
        match order {
            None => return,
            Some(Order::Adopt { plan, serving: other, done }) => {
                gateway.adopt(plan);
                serving = Rc::new(other);
                drop(done);
            }
            Some(Order::Accept { shapes, done }) => {
                gateway.accept(shapes);
                drop(done);
            }
            Some(Order::Leave { ended }) => {
                connections.advance(Stage::Leaving);
                gateway.ask_streams_to_leave();
                tokio::task::spawn_local(outlast(Rc::clone(&gateway), ended));
            }
            Some(Order::Drain { streams }) => {
                draining = true;
                connections.advance(Stage::Finishing);
                gateway.dismiss_streams(Departure::Asked);
                let (connections, gateway) = (Rc::clone(&connections), Rc::clone(&gateway));
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(streams).await;
                    connections.advance(Stage::Closing);
                    gateway.dismiss_streams(Departure::Over);
                });
            }
            Some(Order::Serve { stream, peer, slot }) => {
                let counted = Counted(Arc::clone(load));
                let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
                let (gateway, serving) = (Rc::clone(&gateway), Rc::clone(&serving));
                let site = ClientNetwork::of(peer.address()).site();
                let member = connections.join((!slot.is_of_a_proxy()).then_some(site));
                tokio::task::spawn_local(async move {
                    let _held = (counted, slot);
                    connection::serve(stream, peer, gateway, &serving, member).await;
                });
            }
        }
    }
}

/// Drops `ended` when the requests that had begun before the end of the process have ended.
async fn outlast(gateway: Rc<Gateway>, ended: Sender<()>) {
    while gateway.has_open_from_before() {
        tokio::time::sleep(LOOK).await;
    }
    drop(ended);
}

/// Does what no request does, for as long as the worker runs.
async fn sweep(gateway: Rc<Gateway>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        gateway.sweep();
        while gateway.hand_over_usage() {
            tokio::task::yield_now().await;
        }
    }
}

/// Closes connections that are kept without use where others need their places, for as long as the worker runs.
async fn give_way(gateway: Rc<Gateway>) {
    let wanted = gateway.wanted();
    loop {
        gateway.give_way(&wanted).await;
    }
}

/// Checks the endpoints of upstreams, for as long as the worker runs.
async fn check_upstreams(gateway: Rc<Gateway>) {
    loop {
        tokio::time::sleep(gateway.check_upstreams()).await;
    }
}

/// A connection that counts in the load of a worker, until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
