//! The public socket: bound once; connections are counted here and handed to the workers.
//!
//! Two sockets bound to one port with `SO_REUSEPORT` would split the traffic in silence, so there is one, and one acceptor
//! that gives each connection to the least loaded worker.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use rustix::process::{Resource, getrlimit};
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::gateway::headers::Peer;
use crate::telemetry;
use crate::worker::Worker;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Threads that serve connections; `None` for one per processor.
    pub workers: Option<NonZeroUsize>,
    /// Connections at once; at most 40 % of the file descriptor limit, since each may need a second one to the upstream.
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
/// How long accepting rests after an error that will not go away at once, such as no descriptors left.
const REST: Duration = Duration::from_millis(50);
/// How often a full house is written to the log.
const LOG_EVERY: Duration = Duration::from_secs(10);

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
    places: Places,
    trusted_proxies: Vec<IpNet>,
}

impl Listener {
    /// Binds. Runs inside the control runtime.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub fn bind(settings: &Settings, trusted_proxies: Vec<IpNet>) -> Result<Self, BindError> {
        let bind = || {
            let socket = match settings.listen {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            // Lets a restart bind while old connections linger in TIME_WAIT; it does not let two processes bind.
            socket.set_reuseaddr(true)?;
            socket.bind(settings.listen)?;
            let socket = socket.listen(BACKLOG)?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        };
        let (socket, address) = bind().map_err(|cause| BindError { listen: settings.listen, cause })?;
        Ok(Self { socket, address, places: Places::new(settings), trusted_proxies })
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts and hands out, for as long as it is polled.
    pub async fn run(self, workers: Arc<Vec<Worker>>) {
        let mut full = LogSometimes::default();
        loop {
            let (stream, address) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                // A client that left before it was accepted concerns nobody else.
                Err(error) if is_the_clients(&error) => continue,
                Err(error) => {
                    telemetry::log(&format!("cannot accept connections: {error}; trying again"));
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            let peer = Peer::new(address);
            let trusted = self.trusted_proxies.iter().any(|network| network.contains(&peer.address.ip()));
            match self.places.take(peer.address.ip(), trusted) {
                // Dropped unread: answering would cost what there is too little of.
                None => full.log(
                    "refusing connections: server.max_connections or max_connections_per_client is reached",
                ),
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

/// How many connections there may be, and are.
#[derive(Clone, Debug)]
struct Places {
    at_most: usize,
    per_client: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

impl Places {
    fn new(settings: &Settings) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // A connection can need a second descriptor, to the upstream; stores, logs and listeners need some too.
        let at_most = usize::try_from(descriptors / 10 * 8 / 2).unwrap_or(usize::MAX);
        if at_most < settings.max_connections {
            telemetry::log(&format!(
                "the limit of {descriptors} open files allows {at_most} connections, not the {} of server.max_connections; raise it (LimitNOFILE, ulimit -n)",
                settings.max_connections
            ));
        }
        Self {
            at_most: at_most.min(settings.max_connections),
            per_client: settings.max_connections_per_client,
            taken: Arc::default(),
        }
    }

    fn take(&self, address: IpAddr, trusted: bool) -> Option<Slot> {
        let client = client_of(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= self.at_most {
            return None;
        }
        if !trusted {
            let held = taken.by_client.entry(client).or_default();
            if *held >= self.per_client {
                return None;
            }
            *held += 1;
        }
        taken.total += 1;
        Some(Slot { client: (!trusted).then_some(client), taken: Arc::clone(&self.taken) })
    }
}

/// A connection's place among those that may be open; given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    client: Option<IpAddr>,
    taken: Arc<Mutex<Taken>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        let Some(client) = self.client else { return };
        if let Some(held) = taken.by_client.get_mut(&client) {
            *held -= 1;
            if *held == 0 {
                taken.by_client.remove(&client);
            }
        }
    }
}

/// Who counts as one client: an address, and of IPv6 the /64 that one customer commonly has.
const fn client_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// Says a thing at most every [`LOG_EVERY`].
#[derive(Default)]
struct LogSometimes {
    last: Option<tokio::time::Instant>,
}

impl LogSometimes {
    fn log(&mut self, line: &str) {
        let now = tokio::time::Instant::now();
        if self.last.is_none_or(|last| now - last >= LOG_EVERY) {
            self.last = Some(now);
            telemetry::log(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(max_connections: usize, max_connections_per_client: usize) -> Places {
        Places::new(&Settings { max_connections, max_connections_per_client, ..Settings::default() })
    }

    #[test]
    fn a_client_has_its_own_limit_and_all_together_have_one() {
        let places = places(3, 2);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = places.take(a, false);
        let second = places.take(a, false);
        assert!(first.is_some() && second.is_some());
        assert!(places.take(a, false).is_none());
        let third = places.take(b, false);
        assert!(third.is_some());
        assert!(places.take(b, false).is_none(), "the house is full");
        drop((first, third));
        assert!(places.take(a, false).is_some());
        drop(second);
        assert_eq!(places.taken.lock().unwrap().total, 0);
        assert!(places.taken.lock().unwrap().by_client.is_empty());
    }

    #[test]
    fn a_trusted_proxy_stands_for_many_clients() {
        let places = places(10, 1);
        let proxy = "192.0.2.1".parse().unwrap();
        let held: Vec<_> = (0..10).map(|_| places.take(proxy, true)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(proxy, true).is_none());
    }

    #[test]
    fn addresses_of_one_64_are_one_client() {
        let places = places(10, 1);
        let _held = places.take("2001:db8::1".parse().unwrap(), false).unwrap();
        assert!(places.take("2001:db8::2".parse().unwrap(), false).is_none());
        assert!(places.take("2001:db8:0:1::1".parse().unwrap(), false).is_some());
    }
}
