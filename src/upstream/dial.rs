//! From an endpoint to an open stream: resolve its name, then try its addresses in turn.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::endpoint::{Address, Endpoint, Scheme};
use crate::vocabulary::clock::Clock;

/// How long a name's addresses are used before the name is looked up again.
const RESOLVED_FOR: Duration = Duration::from_secs(5);

/// An open stream to an endpoint, on which nothing was said yet.
pub(super) type Stream = TcpStream;

/// Opens streams to one endpoint.
#[derive(Debug)]
pub(super) struct Dialer {
    endpoint: Endpoint,
    resolved: Mutex<Resolved>,
}

/// The addresses of an endpoint's name.
#[derive(Debug, Default)]
struct Resolved {
    addresses: Vec<SocketAddr>,
    at: Option<Instant>,
}

impl Dialer {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, resolved: Mutex::default() }
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// Of the resolver, or of the last address that was tried. There is no time limit here.
    pub(super) async fn dial(&self, clock: &Clock) -> io::Result<Stream> {
        let Address::Tcp { host, port } = self.endpoint.address();
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, *port)],
            Err(_) => self.resolve(host, *port, clock).await?,
        };
        let stream = connect(addresses).await?;
        stream.set_nodelay(true)?;
        match self.endpoint.scheme() {
            Scheme::Http => Ok(stream),
        }
    }

    /// The addresses of the endpoint's name, at most [`RESOLVED_FOR`] old. One lookup at a time: each holds a
    /// thread for as long as the resolver takes, even if the result is no longer awaited.
    async fn resolve(&self, host: &str, port: u16, clock: &Clock) -> io::Result<Vec<SocketAddr>> {
        let mut resolved = self.resolved.lock().await;
        let now = clock.mono();
        if resolved.at.is_some_and(|at| now.saturating_duration_since(at) < RESOLVED_FOR) {
            return Ok(resolved.addresses.clone());
        }
        let found = tokio::net::lookup_host((host, port)).await;
        match found.map(Iterator::collect::<Vec<_>>) {
            Ok(addresses) if !addresses.is_empty() => {
                *resolved = Resolved { addresses, at: Some(clock.mono()) };
                Ok(resolved.addresses.clone())
            }
            // A failure of the resolver does not mean that the servers have moved.
            _ if !resolved.addresses.is_empty() => Ok(resolved.addresses.clone()),
            Ok(_) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error),
        }
    }
}

/// Connects to the first address that accepts.
async fn connect(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
