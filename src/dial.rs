//! From a host and a port to an open TCP stream, over all addresses of the name.
//!
//! Attempts run side by side (RFC 8305): each address has a head start of 250 ms over the next, or less where all
//! must have their turn within a shorter time. So an address that swallows everything costs one connection that much, and then it is
//! remembered and tried last.

use std::future::{pending, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::sleep;

use crate::vocabulary::clock::Clock;

/// The head start of an attempt (RFC 8305, section 8, "Connection Attempt Delay").
const HEAD_START: Duration = Duration::from_millis(250);
/// How long a name's addresses are used before the name is looked up again.
const RESOLVED_FOR: Duration = Duration::from_secs(5);
/// How long an address that failed is tried last.
const AVOIDED_FOR: Duration = Duration::from_secs(30);
/// The number of addresses of one name that are used.
const ADDRESSES: usize = 16;

/// Opens streams to one server.
#[derive(Debug)]
pub struct Dialer {
    host: Box<str>,
    port: u16,
    preference: Preference,
    resolver: Resolver,
    /// Where each attempt beside the first takes a place, since it has a descriptor of its own.
    places: Option<Arc<Semaphore>>,
    /// One lookup at a time: each holds a thread for as long as the resolver takes, even if the result is no longer
    /// awaited.
    resolved: tokio::sync::Mutex<Resolved>,
    experience: Mutex<Experience>,
}

/// Which of several addresses of a name a new connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// The next in turn, so that they share the traffic. The name is looked up at most every five seconds.
    InTurn,
    /// The one that worked last. The name is looked up for each connection.
    LastGood,
}

/// The source of the addresses of a name.
#[derive(Debug, Default)]
enum Resolver {
    #[default]
    System,
    #[cfg(test)]
    Fixed(Mutex<Vec<SocketAddr>>),
}

/// The addresses of the name, in the order of their attempts.
#[derive(Debug, Default)]
struct Resolved {
    addresses: Vec<SocketAddr>,
    at: Option<Instant>,
}

/// How connecting went before.
#[derive(Debug, Default)]
struct Experience {
    next: usize,
    last_good: Option<SocketAddr>,
    /// Addresses of the name that failed, or were slower than another, and when.
    failed: Vec<(SocketAddr, Instant)>,
}

impl Dialer {
    #[must_use]
    pub fn new(host: &str, port: u16, preference: Preference) -> Self {
        Self {
            host: host.into(),
            port,
            preference,
            resolver: Resolver::default(),
            places: None,
            resolved: tokio::sync::Mutex::default(),
            experience: Mutex::default(),
        }
    }

    /// Makes every attempt beside the first take one of `places`. Where there is none, it waits until another attempt
    /// has failed.
    #[must_use]
    pub fn sharing(self, places: Arc<Semaphore>) -> Self {
        Self { places: Some(places), ..self }
    }

    /// Whether it opens streams to `host` and `port`.
    #[must_use]
    pub fn is_for(&self, host: &str, port: u16) -> bool {
        *self.host == *host && self.port == port
    }

    /// Whether the server is given by a name, and not by an address.
    #[must_use]
    pub fn has_name(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }

    /// Opens a stream, without Nagle's algorithm. `within` is the time after which the caller gives up; there is no
    /// time limit here.
    ///
    /// # Errors
    /// Of the resolver, or of the last attempt that failed.
    pub async fn dial(&self, within: Duration, clock: &Clock) -> io::Result<TcpStream> {
        let stream = match self.host.parse::<IpAddr>() {
            Ok(address) => TcpStream::connect(SocketAddr::new(address, self.port)).await?,
            Err(_) => {
                let addresses = self.resolve(clock).await?;
                let order = self.lock().order(addresses, self.preference, clock.mono());
                self.race(order, within, clock).await?
            }
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn resolve(&self, clock: &Clock) -> io::Result<Vec<SocketAddr>> {
        let mut resolved = self.resolved.lock().await;
        let is_new = |at| clock.mono().saturating_duration_since(at) < RESOLVED_FOR;
        if self.preference == Preference::InTurn && resolved.at.is_some_and(is_new) {
            return Ok(resolved.addresses.clone());
        }
        match self.resolver.addresses(&self.host, self.port).await {
            Ok(addresses) if !addresses.is_empty() => {
                let mut addresses = interleaved(addresses);
                addresses.truncate(ADDRESSES);
                *resolved = Resolved { addresses, at: Some(clock.mono()) };
                Ok(resolved.addresses.clone())
            }
            // A failure of the resolver does not mean that the servers have moved.
            _ if !resolved.addresses.is_empty() => Ok(resolved.addresses.clone()),
            Ok(_) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error),
        }
    }

    /// The first stream that one of the addresses accepts.
    async fn race(&self, order: Vec<SocketAddr>, within: Duration, clock: &Clock) -> io::Result<TcpStream> {
        let head_start = HEAD_START.min(within / u32::try_from(order.len()).unwrap_or(1).max(1));
        let mut waiting = order.into_iter();
        let mut attempts = Vec::new();
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        loop {
            if let Ok(place) = self.place(attempts.is_empty())
                && let Some(address) = waiting.next()
            {
                let connecting = Box::pin(TcpStream::connect(address));
                attempts.push(Attempt { address, connecting, _place: place });
            }
            if attempts.is_empty() {
                return Err(failure);
            }
            let has_next = waiting.len() > 0;
            let next = async { if has_next { sleep(head_start).await } else { pending().await } };
            tokio::select! {
                biased;
                (address, ended) = first_of(&mut attempts) => match ended {
                    Ok(stream) => {
                        // The attempts that are still under way began earlier.
                        let slower = attempts.iter().map(|attempt| attempt.address);
                        self.lock().note(Some(address), slower, clock.mono());
                        return Ok(stream);
                    }
                    Err(error) => {
                        self.lock().note(None, [address], clock.mono());
                        failure = error;
                    }
                },
                () = next => {}
            }
        }
    }

    /// The place of an attempt, where it needs one: the first has its caller's.
    fn place(&self, is_first: bool) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
        match &self.places {
            Some(places) if !is_first => Arc::clone(places).try_acquire_owned().map(Some),
            _ => Ok(None),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Experience> {
        self.experience.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Attempt {
    address: SocketAddr,
    connecting: Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>,
    _place: Option<OwnedSemaphorePermit>,
}

/// Waits for the first attempt that ends, and takes it out.
async fn first_of(attempts: &mut Vec<Attempt>) -> (SocketAddr, io::Result<TcpStream>) {
    poll_fn(|cx| {
        for at in 0..attempts.len() {
            if let Poll::Ready(ended) = attempts[at].connecting.as_mut().poll(cx) {
                return Poll::Ready((attempts.remove(at).address, ended));
            }
        }
        Poll::Pending
    })
    .await
}

/// The addresses with their families taking turns, beginning with the first's (RFC 8305, section 4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(is_first_v4) = addresses.first().map(SocketAddr::is_ipv4) else { return addresses };
    let (one, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == is_first_v4);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut mixed = Vec::with_capacity(one.len() + other.len());
    while one.len() + other.len() > 0 {
        mixed.extend(one.next());
        mixed.extend(other.next());
    }
    mixed
}

impl Experience {
    fn order(
        &mut self,
        mut addresses: Vec<SocketAddr>,
        preference: Preference,
        now: Instant,
    ) -> Vec<SocketAddr> {
        let first = match preference {
            Preference::InTurn => {
                self.next = self.next.wrapping_add(1);
                self.next % addresses.len().max(1)
            }
            Preference::LastGood => {
                addresses.iter().position(|address| Some(*address) == self.last_good).unwrap_or(0)
            }
        };
        addresses.rotate_left(first);
        self.failed.retain(|(address, at)| {
            addresses.contains(address) && now.saturating_duration_since(*at) < AVOIDED_FOR
        });
        // The sort is stable, so each of the two groups keeps its order.
        addresses.sort_by_key(|address| self.failed.iter().any(|(failed, _)| failed == address));
        addresses
    }

    fn note(&mut self, good: Option<SocketAddr>, failed: impl IntoIterator<Item = SocketAddr>, now: Instant) {
        for address in failed {
            self.failed.retain(|(known, _)| *known != address);
            self.failed.push((address, now));
        }
        if let Some(good) = good {
            self.failed.retain(|(known, _)| *known != good);
            self.last_good = Some(good);
        }
    }
}

impl Resolver {
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => tokio::net::lookup_host((host, port)).await.map(Iterator::collect),
            #[cfg(test)]
            Self::Fixed(addresses) => Ok(addresses.lock().unwrap().clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::net::TcpSocket;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    const WITHIN: Duration = Duration::from_secs(20);

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn dialer(preference: Preference, addresses: &[SocketAddr]) -> Dialer {
        let resolver = Resolver::Fixed(Mutex::new(addresses.to_vec()));
        Dialer { resolver, ..Dialer::new("a.test", 1, preference) }
    }

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn refusing() -> SocketAddr {
        listener().1
    }

    /// An address that takes no connection and refuses none: its backlog is full.
    struct Swallowing {
        address: SocketAddr,
        _full: Vec<tokio::task::JoinHandle<()>>,
        _listener: tokio::net::TcpListener,
    }

    impl Swallowing {
        async fn start() -> Self {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let listener = socket.listen(1).unwrap();
            let address = listener.local_addr().unwrap();
            let connect = |_| {
                tokio::spawn(async move {
                    let _open = TcpStream::connect(address).await;
                    pending::<()>().await;
                })
            };
            let full = (0..8).map(connect).collect();
            // Until one more gets no answer.
            while tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await.is_ok()
            {
            }
            Self { address, _full: full, _listener: listener }
        }
    }

    /// The addresses that streams were opened to.
    async fn dialled(dialer: &Dialer, clock: &Clock, count: usize) -> Vec<SocketAddr> {
        let mut peers = Vec::new();
        for _ in 0..count {
            peers.push(dialer.dial(WITHIN, clock).await.unwrap().peer_addr().unwrap());
        }
        peers
    }

    #[test]
    fn an_address_that_swallows_everything_is_left_behind_and_then_avoided() {
        runtime().block_on(async {
            let (clock, shift) = Clock::shifted();
            let ((_good, good), bad) = (listener(), Swallowing::start().await);
            for preference in [Preference::InTurn, Preference::LastGood] {
                let dialer = dialer(preference, &[bad.address, good]);
                assert_eq!(dialled(&dialer, &clock, 20).await, [good; 20]);
                let order = |dialer: &Dialer| {
                    let mut experience = dialer.lock();
                    (0..4)
                        .map(|_| experience.order(vec![bad.address, good], preference, clock.mono())[0])
                        .collect()
                };
                let begin: Vec<_> = order(&dialer);
                assert_eq!(begin, [good; 4], "no attempt waits for it");
                shift.advance(AVOIDED_FOR);
                let begin: Vec<_> = order(&dialer);
                let of_bad = begin.iter().filter(|first| **first == bad.address).count();
                assert_eq!(of_bad, if preference == Preference::InTurn { 2 } else { 0 });
            }
        });
    }

    #[test]
    fn an_address_that_refuses_costs_no_wait_and_the_last_error_is_told() {
        runtime().block_on(async {
            let clock = Clock::system();
            let ((_good, good), bad) = (listener(), refusing());
            assert_eq!(dialled(&dialer(Preference::InTurn, &[bad, good]), &clock, 6).await, [good; 6]);
            let error =
                dialer(Preference::InTurn, &[bad, refusing()]).dial(WITHIN, &clock).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            let error = dialer(Preference::LastGood, &[]).dial(WITHIN, &clock).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn several_addresses_share_the_connections_or_the_last_good_one_has_them() {
        runtime().block_on(async {
            let clock = Clock::system();
            let ((_one, one), (_two, two)) = (listener(), listener());
            let peers = dialled(&dialer(Preference::InTurn, &[one, two]), &clock, 10).await;
            assert_eq!(peers.iter().filter(|peer| **peer == one).count(), 5);
            let dialer = dialer(Preference::LastGood, &[one, two]);
            assert_eq!(dialled(&dialer, &clock, 10).await, [one; 10]);
            let Resolver::Fixed(addresses) = &dialer.resolver else { unreachable!() };
            *addresses.lock().unwrap() = vec![two, one];
            assert_eq!(dialled(&dialer, &clock, 10).await, [one; 10], "in whatever order the name has them");
        });
    }

    #[test]
    fn a_changed_record_is_followed_after_five_seconds() {
        runtime().block_on(async {
            let (clock, shift) = Clock::shifted();
            let ((_old, old), (_new, new)) = (listener(), listener());
            let dialer = dialer(Preference::InTurn, &[old]);
            assert_eq!(dialled(&dialer, &clock, 2).await, [old; 2]);
            let Resolver::Fixed(addresses) = &dialer.resolver else { unreachable!() };
            *addresses.lock().unwrap() = vec![new];
            shift.advance(RESOLVED_FOR);
            assert_eq!(dialled(&dialer, &clock, 2).await, [new; 2]);
            addresses.lock().unwrap().clear();
            shift.advance(RESOLVED_FOR);
            assert_eq!(dialled(&dialer, &clock, 2).await, [new; 2], "a resolver that fails moves no server");
        });
    }

    #[test]
    fn families_take_turns() {
        let parse = |all: &[&str]| all.iter().map(|one| one.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let given = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1", "127.0.0.2:1"]);
        let mixed = parse(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "127.0.0.2:1", "[::3]:1"]);
        assert_eq!(interleaved(given), mixed);
        assert!(interleaved(Vec::new()).is_empty());
    }
}
