//! From an endpoint to an open stream, with the handshake where there is TLS.

use std::io;
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
use super::tls::Identity;
use crate::dial::{self, Preference};
use crate::vocabulary::clock::Clock;

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

/// Opens streams to one endpoint.
#[derive(Debug)]
pub(super) struct Dialer {
    endpoint: Endpoint,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Tcp(dial::Dialer),
    Unix(Box<Path>),
    Tls(dial::Dialer, ServerName<'static>, Arc<Identity>),
}

impl Dialer {
    /// Each attempt beside the first takes one of `places`. `identity` is for endpoints with TLS.
    pub(super) fn new(endpoint: Endpoint, places: Arc<Semaphore>, identity: &Arc<Identity>) -> Self {
        let way = match endpoint.address() {
            Address::Unix(path) => Way::Unix(path.clone()),
            Address::Tcp { host, port } => {
                let server = dial::Dialer::new(host, *port, Preference::InTurn).sharing(places);
                match endpoint.scheme() {
                    Scheme::Http => Way::Tcp(server),
                    Scheme::Https(name) => Way::Tls(server, name.clone(), Arc::clone(identity)),
                }
            }
        };
        Self { endpoint, way }
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether new streams may lead to another address than those before.
    pub(super) fn may_move(&self) -> bool {
        match &self.way {
            Way::Tcp(server) | Way::Tls(server, ..) => server.has_name(),
            Way::Unix(_) => false,
        }
    }

    /// Opens a stream within this time, the handshake included. See [`dial::Dialer::dial`].
    ///
    /// # Errors
    /// Of the resolver, of the last address that failed, of the handshake, or that there was no time left.
    pub(super) async fn dial(&self, within: Duration, clock: &Clock) -> Result<Stream, Unopened> {
        let until = Instant::now() + within;
        match &self.way {
            Way::Tcp(server) => in_time(until, server.dial(within, clock)).await.map(Stream::Tcp),
            Way::Unix(path) => in_time(until, UnixStream::connect(path)).await.map(Stream::Unix),
            Way::Tls(server, name, identity) => {
                let stream = in_time(until, server.dial(within, clock)).await?;
                let handshake = timeout_at(until, identity.handshake(name, stream)).await;
                let stream = handshake.unwrap_or_else(|_| Err(identity.explain_silence()));
                stream.map(|stream| Stream::Tls(Box::new(stream))).map_err(Unopened::Tls)
            }
        }
    }
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
