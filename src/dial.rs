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
use tokio::time::{sleep, sleep_until};

use crate::vocabulary::clock::Clock;

/// The head start of an attempt (RFC 8305, section 8, "Connection Attempt Delay").
const HEAD_START: Duration = Duration::from_millis(250);
/// How long an address that failed is tried last.
const AVOIDED_FOR: Duration = Duration::from_secs(30);
/// The number of addresses that one stream is tried at.
pub const AT_ONCE: usize = 16;

/// Opens streams to one server: to the address of its name that worked last, if it has several. The name is looked up for each
/// stream.
#[derive(Debug)]
pub struct Dialer {
    host: Box<str>,
    port: u16,
    resolver: Resolver,
    /// The addresses that the name had last. One lookup at a time: each holds a thread for as long as the resolver takes, even if
    /// the result is no longer awaited.
    resolved: tokio::sync::Mutex<Vec<SocketAddr>>,
    experience: Mutex<Experience>,
}

/// The source of the addresses of a name.
#[derive(Debug, Default)]
enum Resolver {
    #[default]
    System,
    #[cfg(test)]
    Fixed(Mutex<Vec<SocketAddr>>),
}

/// How connecting went before.
#[derive(Debug, Default)]
struct Experience {
    last_good: Option<SocketAddr>,
    /// Addresses of the name that failed, or were slower than another, and when.
    failed: Vec<(SocketAddr, Instant)>,
}

impl Dialer {
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            resolver: Resolver::default(),
            resolved: tokio::sync::Mutex::default(),
            experience: Mutex::default(),
        }
    }

    /// Whether it opens streams to `host` and `port`.
    #[must_use]
    pub fn is_for(&self, host: &str, port: u16) -> bool {
        *self.host == *host && self.port == port
    }

    /// Opens a stream, without Nagle's algorithm, within this time. The lookup of a name has no time limit.
    ///
    /// # Errors
    /// Of the resolver, or of the last attempt that failed.
    pub async fn dial(&self, within: Duration, clock: &Clock) -> io::Result<TcpStream> {
        let stream = match self.host.parse::<IpAddr>() {
            Ok(address) => TcpStream::connect(SocketAddr::new(address, self.port)).await?,
            Err(_) => {
                let addresses = self.resolve().await?;
                let order = self.lock().order(addresses, clock.mono());
                let Raced { won, mut failed, overtaken } = race(order, within, None).await;
                let worse = failed.iter().map(|(address, _)| *address).chain(overtaken);
                self.lock().note(won.as_ref().map(|(address, _)| *address), worse, clock.mono());
                let (_, stream) = won.ok_or_else(|| last_of(&mut failed))?;
                stream
            }
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let mut resolved = self.resolved.lock().await;
        match self.resolver.addresses(&self.host, self.port).await {
            Ok(addresses) if !addresses.is_empty() => {
                *resolved = interleaved(addresses, SocketAddr::is_ipv4);
                resolved.truncate(AT_ONCE);
                Ok(resolved.clone())
            }
            // A failure of the resolver does not mean that the servers have moved.
            _ if !resolved.is_empty() => Ok(resolved.clone()),
            Ok(_) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Experience> {
        self.experience.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of attempts to connect, side by side.
#[derive(Debug)]
pub struct Raced {
    /// The first stream, and its address.
    pub won: Option<(SocketAddr, TcpStream)>,
    /// Those that failed, in the order in which they did; without a stream all.
    pub failed: Vec<(SocketAddr, io::Error)>,
    /// Those that began earlier than what won, and had not ended. They are given up.
    pub overtaken: Vec<SocketAddr>,
}

/// Why nobody won a race.
pub fn last_of(failed: &mut Vec<(SocketAddr, io::Error)>) -> io::Error {
    failed.pop().map_or_else(|| io::ErrorKind::NotFound.into(), |(_, error)| error)
}

/// The first stream that one of the addresses accepts, within this time. Each attempt beside the first takes one of `places`, since
/// it has a descriptor of its own; where there is none, it waits until another attempt has failed.
pub async fn race(order: Vec<SocketAddr>, within: Duration, places: Option<&Arc<Semaphore>>) -> Raced {
    let until = tokio::time::Instant::now() + within;
    let head_start = HEAD_START.min(within / u32::try_from(order.len()).unwrap_or(1).max(1));
    let mut waiting = order.into_iter();
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut failed = Vec::new();
    loop {
        if let Ok(place) = place(places.filter(|_| !attempts.is_empty()))
            && let Some(address) = waiting.next()
        {
            let connecting = Box::pin(TcpStream::connect(address));
            attempts.push(Attempt { address, connecting, _place: place });
        }
        if attempts.is_empty() {
            return Raced { won: None, failed, overtaken: Vec::new() };
        }
        let has_next = waiting.len() > 0;
        let next = async { if has_next { sleep(head_start).await } else { pending().await } };
        tokio::select! {
            biased;
            (address, ended) = first_of(&mut attempts) => match ended {
                Ok(stream) => {
                    let overtaken = attempts.iter().map(|attempt| attempt.address).collect();
                    return Raced { won: Some((address, stream)), failed, overtaken };
                }
                Err(error) => failed.push((address, error)),
            },
            () = sleep_until(until) => {
                let late = attempts.iter().map(|attempt| (attempt.address, io::ErrorKind::TimedOut.into()));
                failed.extend(late);
                return Raced { won: None, failed, overtaken: Vec::new() };
            }
            () = next => {}
        }
    }
}

fn place(places: Option<&Arc<Semaphore>>) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
    places.map(|places| Arc::clone(places).try_acquire_owned()).transpose()
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

/// What has addresses, with their families taking turns, beginning with the first's (RFC 8305, section 4).
#[must_use]
pub fn interleaved<T>(all: Vec<T>, is_v4: impl Fn(&T) -> bool) -> Vec<T> {
    let Some(is_first_v4) = all.first().map(&is_v4) else { return all };
    let (one, other): (Vec<_>, Vec<_>) = all.into_iter().partition(|item| is_v4(item) == is_first_v4);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut mixed = Vec::with_capacity(one.len() + other.len());
    while one.len() + other.len() > 0 {
        mixed.extend(one.next());
        mixed.extend(other.next());
    }
    mixed
}

impl Experience {
    fn order(&mut self, mut addresses: Vec<SocketAddr>, now: Instant) -> Vec<SocketAddr> {
        let first = addresses.iter().position(|address| Some(*address) == self.last_good).unwrap_or(0);
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

    fn dialer(addresses: &[SocketAddr]) -> Dialer {
        let resolver = Resolver::Fixed(Mutex::new(addresses.to_vec()));
        Dialer { resolver, ..Dialer::new("a.test", 1) }
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
            let dialer = dialer(&[bad.address, good]);
            assert_eq!(dialled(&dialer, &clock, 20).await, [good; 20]);
            let first = |dialer: &Dialer, now| {
                dialer.lock().last_good = None;
                dialer.lock().order(vec![bad.address, good], now)[0]
            };
            assert_eq!(first(&dialer, clock.mono()), good, "no attempt waits for it");
            shift.advance(AVOIDED_FOR);
            assert_eq!(first(&dialer, clock.mono()), bad.address);
        });
    }

    #[test]
    fn an_address_that_refuses_costs_no_wait_and_the_last_error_is_told() {
        runtime().block_on(async {
            let clock = Clock::system();
            let ((_good, good), bad) = (listener(), refusing());
            assert_eq!(dialled(&dialer(&[bad, good]), &clock, 6).await, [good; 6]);
            let error = dialer(&[bad, refusing()]).dial(WITHIN, &clock).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            let error = dialer(&[]).dial(WITHIN, &clock).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn the_address_that_worked_last_has_the_connections_and_a_changed_record_is_followed() {
        runtime().block_on(async {
            let clock = Clock::system();
            let ((_one, one), (_two, two), (_new, new)) = (listener(), listener(), listener());
            let dialer = dialer(&[one, two]);
            assert_eq!(dialled(&dialer, &clock, 10).await, [one; 10]);
            let Resolver::Fixed(addresses) = &dialer.resolver else { unreachable!() };
            *addresses.lock().unwrap() = vec![two, one];
            assert_eq!(dialled(&dialer, &clock, 10).await, [one; 10], "in whatever order the name has them");
            *addresses.lock().unwrap() = vec![new];
            assert_eq!(dialled(&dialer, &clock, 2).await, [new; 2]);
            addresses.lock().unwrap().clear();
            assert_eq!(dialled(&dialer, &clock, 2).await, [new; 2], "a resolver that fails moves no server");
        });
    }

    #[test]
    fn a_race_tells_of_those_that_failed_and_of_those_that_were_overtaken() {
        runtime().block_on(async {
            let ((_good, good), refusing, silent) = (listener(), refusing(), Swallowing::start().await);
            let Raced { won, failed, overtaken } =
                race(vec![refusing, silent.address, good], WITHIN, None).await;
            assert_eq!(won.unwrap().0, good);
            assert_eq!(failed.iter().map(|(address, _)| *address).collect::<Vec<_>>(), [refusing]);
            assert_eq!(overtaken, [silent.address]);
            let short = Duration::from_millis(20);
            let Raced { won, failed, .. } = race(vec![silent.address], short, None).await;
            assert!(won.is_none() && failed[0].1.kind() == io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn families_take_turns() {
        let parse = |all: &[&str]| all.iter().map(|one| one.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let given = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1", "127.0.0.2:1"]);
        let mixed = parse(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "127.0.0.2:1", "[::3]:1"]);
        assert_eq!(interleaved(given, SocketAddr::is_ipv4), mixed);
        assert!(interleaved(Vec::new(), SocketAddr::is_ipv4).is_empty());
    }
}
