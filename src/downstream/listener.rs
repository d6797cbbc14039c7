//! The public socket: bound once; each connection is given a place, or closed, and handed to a worker.
//!
//! Two sockets bound to one port with `SO_REUSEPORT` would split the traffic in silence, so there is one, and
//! one acceptor that gives each connection to the least loaded worker.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::downstream::connection_limit::{ConnectionLimit, Slot};
use crate::downstream::worker::Worker;
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
    /// Connections at once from one address, or one /64 of IPv6. Trusted proxies are not counted.
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
/// How long accepting rests after an error that will not go away at once, such as no descriptors left.
const REST: Duration = Duration::from_millis(50);

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
    trusted_proxies: watch::Receiver<Vec<IpNet>>,
    clock: Clock,
}

impl Listener {
    /// Binds. Runs inside the control runtime.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
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
            // Lets a restart bind while old connections linger in TIME_WAIT; it does not let two processes
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
            limit: ConnectionLimit::new(settings.max_connections, settings.max_connections_per_client),
            trusted_proxies,
            clock,
        })
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts and hands out, for as long as it is polled.
    pub async fn run(self, workers: Arc<Vec<Worker>>) {
        let (full, failing) = (Throttle::default(), Throttle::default());
        loop {
            let (stream, address) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                // A client that left before it was accepted concerns nobody else.
                Err(error) if is_the_clients(&error) => continue,
                Err(error) => {
                    let line = || format!("cannot accept connections: {error}; trying again");
                    failing.log(self.clock.mono(), line);
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            let peer = Peer::new(address);
            let contains = |network: &IpNet| network.contains(&peer.address());
            let trusted = self.trusted_proxies.borrow().iter().any(contains);
            match self.limit.take(peer.address(), trusted) {
                // Dropped unread: answering would cost what there is too little of.
                None => full.log(self.clock.mono(), || FULL.to_owned()),
                Some(slot) => hand_over(&workers, stream, peer, slot),
            }
        }
    }
}

fn hand_over(workers: &[Worker], stream: TcpStream, peer: Peer, slot: Slot) {
    // An answer's head must not wait for the acknowledgement of what went before it.
    let Ok(stream) = stream.set_nodelay(true).and_then(|()| stream.into_std()) else { return };
    if let Some(worker) = workers.iter().min_by_key(|worker| worker.load()) {
        worker.serve(stream, peer, slot);
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
