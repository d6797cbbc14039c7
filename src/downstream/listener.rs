//! The public socket: it is bound once; each connection gets a place and goes to a worker, or is closed.
//!
//! Two sockets that are bound to one port with `SO_REUSEPORT` would split the traffic silently. Therefore there
//! is one socket, and one acceptor that gives each connection to the least loaded worker.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::connection_limit::{ConnectionLimit, Slot};
use super::worker::Worker;
use crate::telemetry::Throttle;
use crate::vocabulary::clock::Clock;
use crate::vocabulary::peer::Peer;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Threads that serve connections; `None` for one per processor.
    pub workers: Option<NonZeroUsize>,
    /// Connections at once; at most 40 % of the file descriptor limit, since each may need a second one to
    /// the upstream.
    pub max_connections: usize,
    /// Connections at once from one IPv4 address, or one /64 of IPv6. The limit does not hold for trusted proxies.
    pub max_connections_per_client: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            workers: None,
            max_connections: 10_000,
            max_connections_per_client: 256,
        }
    }
}

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
const FULL: &str = "refusing connections: server.max_connections or max_connections_per_client is reached";
/// How long accepting pauses after an error that lasts, such as no descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Error)]
#[error(
    "cannot listen on {listen}: {cause}; set server.listen (KEYGATE__SERVER__LISTEN) to an address that is free"
)]
pub struct BindError {
    listen: SocketAddr,
    cause: io::Error,
}

/// The bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    limit: ConnectionLimit,
    clock: Clock,
}

impl Listener {
    /// Binds. Must be called inside the control runtime.
    ///
    /// # Errors
    /// When the address is in use, or is not an address of this machine.
    pub fn bind(
        settings: &Settings,
        trusted_proxies: watch::Receiver<Vec<IpNet>>,
        clock: Clock,
    ) -> Result<Self, BindError> {
        let bind = || {
            let socket = match settings.listen {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            // It lets a restart bind while old connections are in TIME_WAIT. It does not let two processes
            // bind.
            socket.set_reuseaddr(true)?;
            socket.bind(settings.listen)?;
            let socket = socket.listen(BACKLOG)?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        };
        let (socket, address) = bind().map_err(|cause| BindError { listen: settings.listen, cause })?;
        Ok(Self {
            socket,
            address,
            limit: ConnectionLimit::new(
                settings.max_connections,
                settings.max_connections_per_client,
                trusted_proxies,
            ),
            clock,
        })
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections and hands them to the workers, for as long as it is polled.
    pub async fn run(self, workers: Arc<Vec<Worker>>) {
        let (full, failing) = (Throttle::default(), Throttle::default());
        loop {
            let (stream, address) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                // The client left before it was accepted. That is no failure of this socket.
                Err(error) if is_of_the_client(&error) => continue,
                Err(error) => {
                    let line = || format!("cannot accept connections: {error}; trying again");
                    failing.log(self.clock.mono(), line);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let peer = Peer::new(address);
            match self.limit.take(peer.address()) {
                // It is closed unread: an answer would cost a place, and there is none.
                None => full.log(self.clock.mono(), || FULL.to_owned()),
                Some(slot) => hand_over(&workers, stream, peer, slot),
            }
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
