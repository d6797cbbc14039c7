//! From an endpoint to an open stream, with the handshake where there is TLS.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

use super::endpoint::{Address, Endpoint, Scheme};
use super::error::Unopened;
use super::tls::{HTTP2, Identity, Needs};
use crate::dial::{Raced, last_of, race};

/// An open stream to an endpoint, on which nothing was said yet.
///
/// Where TLS ends without its own word of the end (`close_notify`), reading ends with an error: whoever can cut a connection must not
/// be able to make a body look whole.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed, since it is large, and moved often before it is used.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether the handshake of TLS has agreed on HTTP/2; `None` where there was none.
    pub(super) fn has_agreed_on_http2(&self) -> Option<bool> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => None,
            Self::Tls(stream) => Some(stream.get_ref().1.alpn_protocol() == Some(HTTP2)),
        }
    }
}

/// Opens streams to one server: an endpoint, or one address of its name.
#[derive(Debug)]
pub(super) struct Dialer {
    /// Its name in messages.
    shown: Box<str>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Tcp(SocketAddr),
    Unix(Box<Path>),
    Tls(SocketAddr, ServerName<'static>, Arc<Identity>),
}

/// How attempts to open one stream ended.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) stream: Result<Stream, Unopened>,
    /// The server to which the stream leads, or where it was tried last, by its place in the list.
    pub(super) at: usize,
    /// The others that could not be connected to.
    pub(super) failed: Vec<(usize, io::Error)>,
    /// The others that took longer than what was reached.
    pub(super) overtaken: Vec<usize>,
}

impl Dialled {
    const fn alone(stream: Result<Stream, Unopened>) -> Self {
        Self { stream, at: 0, failed: Vec::new(), overtaken: Vec::new() }
    }
}

impl Dialer {
    /// `address` is one of those that the name of the endpoint has, if it has a name. `identity` is for endpoints with TLS.
    pub(super) fn new(endpoint: &Endpoint, address: Option<SocketAddr>, identity: &Arc<Identity>) -> Self {
        let way = match (endpoint.address(), endpoint.scheme()) {
            (Address::Unix(path), _) => Way::Unix(path.clone()),
            (Address::Tcp { port, .. }, scheme) => {
                // An endpoint with a name and without an address leads nowhere, and nobody makes one.
                let nowhere = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port);
                let address = address.or_else(|| endpoint.literal()).unwrap_or(nowhere);
                match scheme {
                    Scheme::Http => Way::Tcp(address),
                    Scheme::Https(name) => Way::Tls(address, name.clone(), Arc::clone(identity)),
                }
            }
        };
        let shown = match address {
            Some(address) => format!("{endpoint} at {}", address.ip()),
            None => endpoint.to_string(),
        };
        Self { shown: shown.into(), way }
    }

    /// Its name in messages: the endpoint, and the address of its name.
    pub(super) const fn shown(&self) -> &str {
        &self.shown
    }

    pub(super) const fn has_tls(&self) -> bool {
        matches!(self.way, Way::Tls(..))
    }

    /// `None` for a socket of this machine.
    pub(super) const fn address(&self) -> Option<SocketAddr> {
        match &self.way {
            Way::Tcp(address) | Way::Tls(address, ..) => Some(*address),
            Way::Unix(_) => None,
        }
    }

    /// Opens a stream within this time, the handshake included.
    ///
    /// # Errors
    /// Of connecting, of the handshake, or that there was no time left.
    pub(super) async fn dial(&self, within: Duration, needs: Needs) -> Result<Stream, Unopened> {
        let until = Instant::now() + within;
        match &self.way {
            Way::Tcp(address) => in_time(until, connect(*address)).await.map(Stream::Tcp),
            Way::Unix(path) => in_time(until, UnixStream::connect(path)).await.map(Stream::Unix),
            Way::Tls(address, ..) => {
                let stream = in_time(until, connect(*address)).await?;
                self.secured(until, stream, needs).await
            }
        }
    }

    /// The handshake, where there is TLS.
    async fn secured(&self, until: Instant, stream: TcpStream, needs: Needs) -> Result<Stream, Unopened> {
        let Way::Tls(_, name, identity) = &self.way else { return Ok(Stream::Tcp(stream)) };
        let handshake = timeout_at(until, identity.handshake(name, stream, needs)).await;
        let stream = handshake.unwrap_or_else(|_| Err(identity.explain_silence()));
        stream.map(|stream| Stream::Tls(Box::new(stream))).map_err(Unopened::Tls)
    }
}

/// Opens a stream to one of these servers, which are addresses of one name, within this time, the handshake included. Attempts
/// run side by side, see [`race`].
pub(super) async fn dial_any(
    all: &[&Dialer],
    (within, needs): (Duration, Needs),
    places: &Arc<Semaphore>,
) -> Dialled {
    if let [one] = all {
        return Dialled::alone(one.dial(within, needs).await);
    }
    let until = Instant::now() + within;
    let order = all.iter().filter_map(|one| one.address()).collect();
    let place_of = |address| all.iter().position(|one| one.address() == Some(address)).unwrap_or_default();
    let Raced { won, mut failed, overtaken } = race(order, within, Some(places)).await;
    let (stream, at) = match won {
        Some((address, stream)) => {
            let at = place_of(address);
            let stream = match stream.set_nodelay(true) {
                Ok(()) => all[at].secured(until, stream, needs).await,
                Err(error) => Err(Unopened::Connect(error)),
            };
            (stream, at)
        }
        None => {
            let at = failed.last().map_or(0, |(address, _)| place_of(*address));
            (Err(Unopened::Connect(last_of(&mut failed))), at)
        }
    };
    let failed = failed.into_iter().map(|(address, error)| (place_of(address), error)).collect();
    Dialled { stream, at, failed, overtaken: overtaken.into_iter().map(place_of).collect() }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn in_time<S>(until: Instant, connecting: impl Future<Output = io::Result<S>>) -> Result<S, Unopened> {
    let connected = timeout_at(until, connecting).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(Unopened::Connect)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
