//! A thread's own connections to the upstreams.
//!
//! No lock and no other thread: a worker opens, keeps and closes its own. A kept connection is used again
//! only for the same upstream, the same environment and the same endpoint, and only after an exchange in
//! which nothing was odd; anything else closes it. A request is tried again, on another connection or
//! endpoint, only while nothing of it was sent.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::HOST;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::health::{Health, Reachable};
use super::{Endpoint, HostField, Settings, UpstreamId};
use crate::telemetry;
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::Environment;

/// Unused connections kept for one endpoint.
const IDLE_AT_MOST: usize = 256;
/// How long a name's addresses are used before it is looked up again.
const RESOLVED_FOR: Duration = Duration::from_secs(5);
/// Head of an answer, in bytes and fields.
const ANSWER_HEAD: usize = 64 << 10;
const ANSWER_FIELDS: usize = 200;
/// What hyper keeps of one connection's input and output, in bytes; its own choice is five times as much,
/// which a transfer that stands still holds several times over. Room for a head and what came with it.
const BUFFER: usize = ANSWER_HEAD + (16 << 10);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why no answer came. A request that nobody took is [`SendError::Unreachable`].
#[derive(Debug)]
pub enum SendError {
    /// Nothing of the request was sent: no endpoint could be connected to.
    Unreachable,
    /// The connection ended, or turned out not to speak HTTP/1.1, before a whole answer head had come.
    BrokeOff(hyper::Error),
}

/// All upstreams, as one thread sees them.
#[derive(Debug)]
pub struct Pool<B> {
    upstreams: Vec<Upstream<B>>,
    clock: Clock,
}

#[derive(Debug)]
struct Upstream<B> {
    settings: Settings,
    /// By environment.
    sides: [Rc<Side<B>>; 2],
}

/// One environment of one upstream.
#[derive(Debug)]
struct Side<B> {
    servers: Vec<Server<B>>,
    next: Cell<usize>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    /// Whether no more requests come here, so that no connection is worth keeping.
    retired: Cell<bool>,
}

#[derive(Debug)]
struct Server<B> {
    endpoint: Endpoint,
    /// Stands in the Host field, where it is not the client's that does.
    host: Option<HeaderValue>,
    resolved: tokio::sync::Mutex<Resolved>,
    idle: RefCell<Vec<Idle<B>>>,
    /// A failure is logged when it begins and when it ends.
    reachable: Reachable,
}

#[derive(Debug)]
struct Idle<B> {
    connection: Connection<B>,
    since: Instant,
}

/// An open connection. Dropping it closes it, whatever is under way on it.
#[derive(Debug)]
struct Connection<B> {
    sender: SendRequest<B>,
    driver: AbortHandle,
}

impl<B> Drop for Connection<B> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The connection on which an answer arrives. Dropped, it closes it; [`Lease::release`] keeps it for the next
/// request.
#[derive(Debug)]
pub struct Lease<B> {
    connection: Connection<B>,
    side: Rc<Side<B>>,
    server: usize,
}

impl<B> Lease<B> {
    /// Gives the connection back. Only after a whole answer to a wholly sent request.
    pub fn release(self, clock: &Clock) {
        let Self { connection, side, server } = self;
        let mut idle = side.servers[server].idle.borrow_mut();
        if !connection.sender.is_closed() && idle.len() < IDLE_AT_MOST && !side.retired.get() {
            idle.push(Idle { connection, since: clock.now().mono });
        }
    }
}

impl<B> Pool<B>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    #[must_use]
    pub fn new(upstreams: &[Settings], health: &Health, clock: Clock) -> Self {
        let upstreams = upstreams.iter().map(|settings| Upstream::new(settings, health)).collect();
        Self { upstreams, clock }
    }

    /// The pool for other upstreams, which takes the place of this one. Those that are in both go on with
    /// their connections; of the others only what is under way is finished.
    #[must_use]
    pub fn renew(&self, upstreams: &[Settings], health: &Health) -> Self {
        let kept = |settings: &Settings| self.upstreams.iter().find(|known| known.settings == *settings);
        let renewed = upstreams.iter().map(|settings| match kept(settings) {
            Some(known) => Upstream { settings: settings.clone(), sides: known.sides.clone() },
            None => Upstream::new(settings, health),
        });
        let renewed = Self { upstreams: renewed.collect(), clock: self.clock.clone() };
        for gone in self.upstreams.iter().filter(|known| !upstreams.contains(&known.settings)) {
            gone.sides.iter().for_each(|side| side.retire());
        }
        renewed
    }

    /// Sends a request to an endpoint of `upstream` for `environment`, and nowhere else.
    ///
    /// # Errors
    /// [`SendError`]. Dropping the future closes the connection it used.
    pub async fn send(
        &self,
        upstream: UpstreamId,
        environment: Environment,
        mut request: Request<B>,
    ) -> Result<(Response<Incoming>, Lease<B>), SendError> {
        let side = &self.upstreams[upstream.0].sides[environment as usize];
        let first = side.next.get();
        side.next.set(first.wrapping_add(1));
        for n in 0..side.servers.len() {
            let at = first.wrapping_add(n) % side.servers.len();
            let server = &side.servers[at];
            if let Some(host) = &server.host {
                request.headers_mut().insert(HOST, host.clone());
            }
            loop {
                let (mut connection, kept) = match server.take_idle(&self.clock, side.idle_timeout) {
                    Some(connection) => (connection, true),
                    None => match server.connect(&self.clock, side.connect_timeout).await {
                        Some(connection) => (connection, false),
                        None => break,
                    },
                };
                match connection.sender.try_send_request(request).await {
                    Ok(answer) => {
                        return Ok((answer, Lease { connection, side: Rc::clone(side), server: at }));
                    }
                    Err(mut error) => match error.take_message() {
                        // The other side had closed it; nothing was sent.
                        Some(unsent) => request = unsent,
                        None => return Err(SendError::BrokeOff(error.into_error())),
                    },
                }
                if !kept {
                    break;
                }
            }
        }
        Err(SendError::Unreachable)
    }

    /// Closes what has been unused for too long.
    pub fn sweep(&self) {
        let now = self.clock.now().mono;
        for side in self.upstreams.iter().flat_map(|upstream| &upstream.sides) {
            for server in &side.servers {
                let unused = |idle: &Idle<B>| now.saturating_duration_since(idle.since);
                server.idle.borrow_mut().retain(|idle| unused(idle) < side.idle_timeout);
            }
        }
    }
}

impl<B> Upstream<B> {
    fn new(settings: &Settings, health: &Health) -> Self {
        let server = |endpoint: &Endpoint| Server {
            endpoint: endpoint.clone(),
            host: match settings.host {
                HostField::Client => None,
                HostField::Endpoint => HeaderValue::try_from(endpoint.authority()).ok(),
            },
            resolved: tokio::sync::Mutex::default(),
            idle: RefCell::default(),
            reachable: health.find(&settings.name, endpoint).unwrap_or_default(),
        };
        let side = |environment| {
            Rc::new(Side {
                servers: settings.endpoints(environment).iter().map(server).collect(),
                next: Cell::new(0),
                connect_timeout: settings.timeouts.connect,
                idle_timeout: settings.timeouts.idle,
                retired: Cell::new(false),
            })
        };
        Self { settings: settings.clone(), sides: Environment::ALL.map(side) }
    }
}

impl<B> Side<B> {
    fn retire(&self) {
        self.retired.set(true);
        for server in &self.servers {
            server.idle.borrow_mut().clear();
        }
    }
}

impl<B> Server<B>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// The connection used last, if it is still good: the others may then age and be closed.
    fn take_idle(&self, clock: &Clock, timeout: Duration) -> Option<Connection<B>> {
        let mut idle = self.idle.borrow_mut();
        if idle.is_empty() {
            return None;
        }
        let now = clock.now().mono;
        while let Some(Idle { connection, since }) = idle.pop() {
            if connection.sender.is_ready() && now.saturating_duration_since(since) < timeout {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self, clock: &Clock, timeout: Duration) -> Option<Connection<B>> {
        let connecting = async {
            let stream = self.dial(clock).await?;
            stream.set_nodelay(true)?;
            let (sender, driver) = http1::Builder::new()
                .writev(false)
                .max_header_size(ANSWER_HEAD)
                .max_buf_size(BUFFER)
                .max_headers(ANSWER_FIELDS)
                .handshake::<_, B>(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            Ok((sender, driver))
        };
        let connected = tokio::time::timeout(timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match connected {
            Ok((sender, driver)) => {
                if !self.reachable.note(true) {
                    telemetry::log(&format!("upstream {} is reachable again", self.endpoint));
                }
                // The driver's own error reaches whoever waits for the answer.
                let driver = tokio::task::spawn_local(async move { drop(driver.with_upgrades().await) })
                    .abort_handle();
                Some(Connection { sender, driver })
            }
            Err(error) => {
                self.log_failure(&error);
                None
            }
        }
    }

    fn log_failure(&self, error: &io::Error) {
        if self.reachable.note(false) {
            telemetry::log(&format!("upstream {} cannot be reached: {error}", self.endpoint));
        }
    }
}

/// Where an endpoint's name leads.
#[derive(Debug, Default)]
struct Resolved {
    addresses: Vec<SocketAddr>,
    at: Option<Instant>,
}

impl<B> Server<B> {
    async fn dial(&self, clock: &Clock) -> io::Result<TcpStream> {
        let addresses = match self.endpoint.host().parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, self.endpoint.port())],
            Err(_) => self.resolve(clock).await?,
        };
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// The addresses of the endpoint's name, as of the last few seconds. One lookup at a time: each holds a
    /// thread for as long as the resolver takes, also when nobody waits for it any more.
    async fn resolve(&self, clock: &Clock) -> io::Result<Vec<SocketAddr>> {
        let mut resolved = self.resolved.lock().await;
        let now = clock.mono();
        if resolved.at.is_some_and(|at| now.saturating_duration_since(at) < RESOLVED_FOR) {
            return Ok(resolved.addresses.clone());
        }
        let found = tokio::net::lookup_host((self.endpoint.host(), self.endpoint.port())).await;
        match found.map(Iterator::collect::<Vec<_>>) {
            Ok(addresses) if !addresses.is_empty() => {
                *resolved = Resolved { addresses, at: Some(clock.mono()) };
                Ok(resolved.addresses.clone())
            }
            // A resolver that fails now has not moved the servers.
            _ if !resolved.addresses.is_empty() => Ok(resolved.addresses.clone()),
            Ok(_) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error),
        }
    }
}
