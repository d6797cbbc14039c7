//! WebSocket (RFC 6455): a tunnel, made only after the upstream's 101 to a request that asked for one, on a
//! route that allows it.
//!
//! Everything before the 101 is an ordinary request and passes every stage. What flows afterwards is nobody's
//! business here but for its end: a tunnel through which nothing comes for too long is closed.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep_until};

use super::body::RequestBody;
use super::exchange::Exchange;
use crate::upstream::pool::Lease;

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Whether a request is the opening handshake of RFC 6455, section 4.2.1, and nothing besides.
pub(super) fn is_handshake(method: &Method, headers: &HeaderMap) -> bool {
    let once = |name: HeaderName| {
        let mut fields = headers.get_all(name).iter();
        fields.next().filter(|_| fields.next().is_none())
    };
    *method == Method::GET
        && once(UPGRADE).is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers.get_all(CONNECTION).iter().any(names_upgrade)
        && once(SEC_WEBSOCKET_KEY).is_some()
        && once(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13")
}

fn names_upgrade(connection: &HeaderValue) -> bool {
    let mut options = connection.as_bytes().split(|byte| *byte == b',');
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

/// Asks for a WebSocket, or grants it, in fields from which everything hop-by-hop was removed.
pub(super) fn upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

/// Whether a 101 grants a WebSocket and not something else.
pub(super) fn is_granted(headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(UPGRADE).iter();
    let websocket =
        upgrades.next().is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"));
    websocket && upgrades.next().is_none()
}

/// What is left to do once the client has its 101.
#[derive(Debug)]
pub struct Tunnel {
    pub(super) upstream: OnUpgrade,
    /// The connection that becomes the tunnel; kept until it has.
    pub(super) lease: Lease<RequestBody>,
    pub(super) idle: Duration,
    /// The request goes on for as long as the tunnel, and so do its record and its count.
    pub(super) exchange: Exchange,
}

impl Tunnel {
    /// Joins the client's connection with the upstream's until both have ended, or neither has said anything
    /// for too long. `early` is what the client sent before it had its answer.
    ///
    /// # Errors
    /// When a side breaks off.
    pub async fn run<S>(self, client: S, early: Bytes) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { upstream, lease, idle, mut exchange } = self;
        let mut upstream = TokioIo::new(upstream.await.map_err(io::Error::other)?);
        drop(lease);
        upstream.write_all(&early).await?;
        let last = Rc::new(Cell::new(Instant::now()));
        let mut client = Timed { stream: client, last: Rc::clone(&last) };
        tokio::select! {
            joined = copy_bidirectional(&mut client, &mut upstream) => {
                joined?;
                exchange.note_complete();
            }
            () = silence(&last, idle) => {}
        }
        Ok(())
    }
}

/// Waits until nothing has passed for `idle`.
async fn silence(last: &Cell<Instant>, idle: Duration) {
    while last.get() + idle > Instant::now() {
        sleep_until(last.get() + idle).await;
    }
}

/// A stream that remembers when something last passed.
struct Timed<S> {
    stream: S,
    last: Rc<Cell<Instant>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            self.last.set(Instant::now());
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if polled.is_ready() {
            self.last.set(Instant::now());
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            })
    }

    const HANDSHAKE: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
    ];

    #[test]
    fn only_a_whole_handshake_asks_for_a_tunnel() {
        assert!(is_handshake(&Method::GET, &headers(&HANDSHAKE)));
        assert!(!is_handshake(&Method::POST, &headers(&HANDSHAKE)));
        for left_out in HANDSHAKE {
            let fields: Vec<_> = HANDSHAKE.into_iter().filter(|field| *field != left_out).collect();
            assert!(!is_handshake(&Method::GET, &headers(&fields)), "without {left_out:?}");
        }
        for (at, value) in [(1, "h2c"), (1, "websocket, h2c"), (3, "8"), (0, "close")] {
            let mut fields = HANDSHAKE.to_vec();
            fields[at].1 = value;
            assert!(!is_handshake(&Method::GET, &headers(&fields)), "{value}");
        }
        let twice = [&HANDSHAKE[..], &[("upgrade", "h2c")]].concat();
        assert!(!is_handshake(&Method::GET, &headers(&twice)));
    }
}
