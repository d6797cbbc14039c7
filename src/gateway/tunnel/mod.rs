//! WebSocket (RFC 6455): a tunnel, made only after the upstream's 101 to a request that asked for one, on a
//! route that allows it.
//!
//! Everything before the 101 is an ordinary request and passes every stage. What flows afterwards is passed on
//! as it is. When nothing has passed for too long, or the tunnel has lasted for too long, each side gets a Close frame with the
//! code 1001, unless it is in the middle of a frame, and the tunnel is closed.
//!
//! When the process ends, the client gets a Close frame with the code 1001 and closes the tunnel itself: its own Close
//! goes on to the upstream, behind everything that it sent before. A client that does not has a time for it.

mod direction;
mod frames;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use self::direction::Direction;
use self::frames::CloseCode;
use super::exchange::Exchange;
use crate::upstream::answer::Upgrade;

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Whether a request is the opening handshake of RFC 6455, section 4.2.1, and asks for nothing else.
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

/// Asks for a WebSocket, or grants it, in fields without any that are hop-by-hop.
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

/// A tunnel that begins once the client has its 101.
#[derive(Debug)]
pub struct Tunnel {
    pub(super) upstream: Box<Upgrade>,
    /// How long nothing may pass.
    pub(super) idle: Duration,
    /// The request lasts as long as the tunnel: its record and its count come at the end.
    pub(super) exchange: Box<Exchange>,
}

/// The meaning of the end of the process to a tunnel, or to an event stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Departure {
    #[default]
    NotYet,
    /// Its client is to be asked to leave.
    Asked,
    /// Its time is over.
    Over,
}

impl Tunnel {
    /// Joins the client's connection with the upstream's until both have ended, or nothing has passed for too
    /// long, or the request is cut, or the process ends, which `departure` tells. `early` is what the client sent before
    /// it had its answer.
    ///
    /// # Errors
    /// When a side breaks off.
    pub async fn run<S>(
        self,
        mut client: S,
        early: Bytes,
        departure: impl FnMut(&mut Context<'_>) -> Departure,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { upstream, idle, mut exchange } = self;
        let (mut upstream, _place) = upstream.complete().await?;
        let last = Cell::new(Instant::now());
        let mut joined = Joined { to_client: Direction::new(), to_upstream: Direction::after(&early) };
        let ended = tokio::select! {
            biased;
            passed = joined.pass(&mut client, &mut upstream, &last, departure) => passed,
            () = silence(&last, idle) => Ok(End::Idle),
            () = exchange.cut().due() => Ok(if exchange.cut().is_overdue() { End::Overdue } else { End::Cut }),
        };
        exchange.note_received(joined.to_upstream.passed());
        exchange.note_sent(joined.to_client.passed());
        match ended? {
            End::Closed => exchange.note_complete(),
            End::Over | End::Idle | End::Overdue => joined.leave(&mut client, &mut upstream).await,
            End::Cut => joined.say_farewell(&mut client, CloseCode::PolicyViolation).await,
        }
        Ok(())
    }
}

/// How a tunnel ended.
enum End {
    /// Both sides have ended, or closed the WebSocket.
    Closed,
    /// The process does not wait any longer.
    Over,
    /// Nothing has passed for too long.
    Idle,
    /// It has lasted for as long as its route allows.
    Overdue,
    /// The key may no longer do what it does.
    Cut,
}

/// The two directions of a tunnel.
struct Joined {
    to_client: Direction,
    to_upstream: Direction,
}

impl Joined {
    /// Passes everything on until the tunnel ends.
    async fn pass<C, U>(
        &mut self,
        client: &mut C,
        upstream: &mut U,
        last: &Cell<Instant>,
        mut departure: impl FnMut(&mut Context<'_>) -> Departure,
    ) -> io::Result<End>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { to_client, to_upstream } = self;
        let (mut client_knows, mut upstream_knows) = (false, false);
        poll_fn(|cx| {
            match departure(cx) {
                Departure::NotYet => {}
                Departure::Asked => to_client.say(CloseCode::GoingAway.of_server()),
                Departure::Over => return Poll::Ready(Ok(End::Over)),
            }
            if !upstream_knows && let Poll::Ready(passed) = to_upstream.poll_pass(client, upstream, last, cx)
            {
                passed?;
                upstream_knows = true;
            }
            if !client_knows && let Poll::Ready(passed) = to_client.poll_pass(upstream, client, last, cx) {
                passed?;
                client_knows = true;
            }
            // Where keygate said the Close, the upstream's own is dropped, and nothing more can come.
            let has_closed = to_client.has_said_close() && to_client.is_closed() && to_upstream.is_closed();
            if client_knows && upstream_knows || has_closed {
                Poll::Ready(Ok(End::Closed))
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Ends a tunnel that its two sides did not end: each side gets a Close, if it has had none.
    async fn leave<C, U>(&self, client: &mut C, upstream: &mut U)
    where
        C: AsyncWrite + Unpin,
        U: AsyncWrite + Unpin,
    {
        self.say_farewell(client, CloseCode::GoingAway).await;
        if self.to_upstream.may_follow() {
            let close = CloseCode::GoingAway.of_client(fastrand::u32(..).to_be_bytes());
            let _ = tokio::time::timeout(FAREWELL_TAKES, upstream.write_all(&close)).await;
        }
    }

    /// Tells the client that the tunnel ends, unless it knows, or the upstream is in the middle of a frame.
    async fn say_farewell<C: AsyncWrite + Unpin>(&self, client: &mut C, why: CloseCode) {
        if !self.to_client.may_follow() {
            return;
        }
        let saying = async {
            client.write_all(&why.of_server()).await?;
            client.shutdown().await
        };
        // A client that does not read sees the tunnel closed.
        let _ = tokio::time::timeout(FAREWELL_TAKES, saying).await;
    }
}

/// How long a side has to take the farewell.
const FAREWELL_TAKES: Duration = Duration::from_millis(250);

/// Waits until nothing has passed for `idle`.
async fn silence(last: &Cell<Instant>, idle: Duration) {
    while last.get() + idle > Instant::now() {
        sleep_until(last.get() + idle).await;
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
