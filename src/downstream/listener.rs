//! The public socket: it is bound once, here or by a service manager; each connection gets a place and goes to a worker, or is closed.
//!
//! Two sockets that are bound to one port with `SO_REUSEPORT` would split the traffic silently. Therefore there
//! is one socket, and one acceptor that gives each connection to the least loaded worker.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::connection_limit::{ConnectionLimit, Slot};
use super::worker::Worker;
use crate::telemetry::Event;
use crate::telemetry::metrics::{Cells, Unserved};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::network::CannotListen;
use crate::vocabulary::peer::Peer;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Threads that serve connections; `None` for one per processor.
    pub workers: Option<NonZeroUsize>,
    /// The memory that the process may plan with, in bytes; `None`: what the machine or the control group has.
    pub memory: Option<u64>,
    /// Connections at once. The start of the process lowers it to what the limit of open files and the memory allow.
    pub max_connections: usize,
    /// Connections at once from one IPv4 address, or one /64 of IPv6. The limit does not hold for trusted proxies.
    pub max_connections_per_client: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            workers: None,
            memory: None,
            max_connections: 10_000,
            max_connections_per_client: 256,
        }
    }
}

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// How long accepting pauses after an error that lasts, such as no descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// The bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    limit: ConnectionLimit,
    clock: Clock,
    is_kept: bool,
}

impl Listener {
    /// Takes the socket that is there, and whether a service manager keeps it open, or binds one. Must be called inside the control
    /// runtime.
    ///
    /// # Errors
    /// When the address is in use, or is not an address of this machine.
    pub fn open(
        settings: &Settings,
        there: Option<(StdListener, bool)>,
        trusted_proxies: watch::Receiver<Vec<IpNet>>,
        clock: Clock,
    ) -> Result<Self, CannotListen> {
        let is_kept = there.as_ref().is_some_and(|(_, is_kept)| *is_kept);
        let take = |(socket, _): (StdListener, bool)| {
            // Who bound it may have let fewer wait. A connection beyond them gets no answer, and its client tries again after a
            // second: while no process accepts, many can come.
            rustix::net::listen(&socket, BACKLOG.cast_signed())?;
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket)
        };
        let bind = || {
            let socket = match settings.listen {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            // It lets a restart bind while old connections are in TIME_WAIT. It does not let two processes
            // bind.
            socket.set_reuseaddr(true)?;
            socket.bind(settings.listen)?;
            socket.listen(BACKLOG)
        };
        let opened = there.map_or_else(bind, take).and_then(|socket| Ok((socket.local_addr()?, socket)));
        let (address, socket) =
            opened.map_err(|cause| CannotListen { listen: settings.listen, cause, key: "server.listen" })?;
        Ok(Self {
            socket,
            address,
            limit: ConnectionLimit::new(
                settings.max_connections,
                settings.max_connections_per_client,
                trusted_proxies,
            ),
            clock,
            is_kept,
        })
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether a service manager keeps the socket open.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Accepts connections and hands them to the workers, until it is stopped. `cells` are its own. Must be called inside the
    /// control runtime.
    #[must_use]
    pub fn start(self, workers: Arc<Vec<Worker>>, cells: Arc<Cells>) -> Accepting {
        let (stop, stopped) = oneshot::channel();
        let is_kept = self.is_kept;
        Accepting { task: Some(tokio::spawn(self.run(workers, cells, stopped))), stop: Some(stop), is_kept }
    }

    async fn run(self, workers: Arc<Vec<Worker>>, cells: Arc<Cells>, mut stop: oneshot::Receiver<Waiting>) {
        let Self { socket, limit, clock, .. } = self;
        let intake = Intake { workers, limit, clock, cells };
        let waiting = loop {
            let accepted = tokio::select! {
                biased;
                order = &mut stop => break order.unwrap_or(Waiting::Taken),
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => intake.take(stream, address),
                // The client left before it was accepted. That is no failure of this socket.
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    let line = || format!("cannot accept connections: {error}; trying again");
                    Event::CannotAccept.log_of("requests", intake.clock.mono(), line);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        if waiting == Waiting::Left {
            return;
        }
        // They would be reset with the socket.
        let Ok(socket) = socket.into_std() else { return };
        for _ in 0..BACKLOG {
            let Ok((stream, address)) = socket.accept() else { return };
            // It does not inherit this from the socket.
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                intake.take(stream, address);
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket whose connections are accepted.
#[derive(Debug)]
pub struct Accepting {
    task: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<Waiting>>,
    is_kept: bool,
}

impl Accepting {
    /// Whether somebody else keeps the socket open: then connections wait in it while no process accepts them.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Ends accepting, unless that was done before. Nothing else then holds the workers.
    pub async fn stop(&mut self, waiting: Waiting) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(waiting);
        }
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

/// The connections that wait to be accepted when accepting ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// They are served: the socket is closed.
    Taken,
    /// They wait for the next process, which has the same socket.
    Left,
}

/// Where accepted connections go.
struct Intake {
    workers: Arc<Vec<Worker>>,
    limit: ConnectionLimit,
    clock: Clock,
    cells: Arc<Cells>,
}

impl Intake {
    fn take(&self, stream: TcpStream, address: SocketAddr) {
        let peer = Peer::new(address);
        match self.limit.take(peer.address()) {
            Ok(slot) => hand_over(&self.workers, stream, peer, slot),
            // It is closed unread: an answer would cost a place, and there is none.
            Err(limit) => self.refuse(&peer, limit),
        }
    }

    fn refuse(&self, peer: &Peer, limit: Unserved) {
        self.cells.connection_unserved(limit);
        if limit == Unserved::MaxConnectionsPerClient {
            let client = peer.address();
            let line = || {
                format!(
                    "refusing connections: {client} has server.max_connections_per_client; a proxy belongs in server.trusted_proxies"
                )
            };
            Event::ClientFull.log(self.clock.mono(), line);
        } else {
            let line = || "refusing connections: server.max_connections is reached".to_owned();
            Event::ConnectionsFull.log(self.clock.mono(), line);
        }
    }
}

fn hand_over(workers: &[Worker], stream: TcpStream, peer: Peer, slot: Slot) {
    // The head of an answer must not wait until the client has acknowledged what was sent before.
    let Ok(stream) = stream.set_nodelay(true).and_then(|()| stream.into_std()) else { return };
    if let Some(worker) = workers.iter().min_by_key(|worker| worker.load()) {
        worker.serve(stream, peer, slot);
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
