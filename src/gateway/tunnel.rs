//! WebSocket (RFC 6455): a tunnel, made only after the upstream's 101 to a request that asked for one, on a
//! route that allows it.
//!
//! Everything before the 101 is an ordinary request and passes every stage. What flows afterwards is passed on
//! as it is; a tunnel through which nothing passes for too long is closed.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep_until};

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

impl Tunnel {
    /// Joins the client's connection with the upstream's until both have ended, or nothing has passed for too
    /// long, or the request is cut. `early` is what the client sent before it had its answer.
    ///
    /// # Errors
    /// When a side breaks off.
    pub async fn run<S>(self, client: S, early: Bytes) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { upstream, idle, mut exchange } = self;
        let mut upstream = upstream.complete().await?;
        upstream.write_all(&early).await?;
        let last = Rc::new(Cell::new(Instant::now()));
        let mut client = Timed { stream: client, last: Rc::clone(&last), frames: Frames::default() };
        tokio::select! {
            biased;
            joined = copy_bidirectional(&mut client, &mut upstream) => {
                joined?;
                exchange.note_complete();
            }
            () = silence(&last, idle) => {}
            () = exchange.cut().due() => client.say_farewell().await,
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

/// The client's stream, which remembers when something last passed and where a frame ended.
struct Timed<S> {
    stream: S,
    last: Rc<Cell<Instant>>,
    frames: Frames,
}

/// A Close frame of a server with the code 1008, "policy violation" (RFC 6455, sections 5.5.1 and 7.4.1).
const FAREWELL: [u8; 4] = [0x88, 2, 0x03, 0xf0];
/// How long a client has to take the farewell.
const FAREWELL_TAKES: Duration = Duration::from_millis(250);

impl<S: AsyncWrite + Unpin> Timed<S> {
    /// Tells the client that the tunnel ends, unless the upstream is in the middle of a frame.
    async fn say_farewell(&mut self) {
        if !self.frames.may_follow() {
            return;
        }
        let saying = async {
            self.stream.write_all(&FAREWELL).await?;
            self.stream.shutdown().await
        };
        // A client that does not read sees the tunnel closed.
        let _ = tokio::time::timeout(FAREWELL_TAKES, saying).await;
    }
}

/// Follows the frames of one direction (RFC 6455, section 5.2), to know where one ends. It checks nothing.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 14],
    /// How many bytes of the head have come.
    seen: usize,
    /// How many bytes of the payload are still to come.
    payload: u64,
    /// Whether a Close frame, which is the last one, has come.
    closed: bool,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload > 0 {
                let n = usize::try_from(self.payload).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.payload -= n as u64;
                bytes = &bytes[n..];
                continue;
            }
            self.head[self.seen] = *first;
            self.seen += 1;
            bytes = rest;
            if let Some(payload) = self.whole_head() {
                self.closed |= self.head[0] & 0x0f == 8;
                self.payload = payload;
                self.seen = 0;
            }
        }
    }

    /// The length of the payload, once the head has come.
    fn whole_head(&self) -> Option<u64> {
        let [_, second, rest @ ..] = &self.head;
        let short = u64::from(second & 0x7f);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        if self.seen < 2 + extended + mask {
            return None;
        }
        let long = rest[..extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        Some(if extended == 0 { short } else { long })
    }

    /// Whether another frame may come next.
    const fn may_follow(&self) -> bool {
        self.seen == 0 && self.payload == 0 && !self.closed
    }
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
        if let Poll::Ready(written) = &polled {
            self.last.set(Instant::now());
            self.frames.pass(&bytes[..written.as_ref().map_or(0, |n| *n)]);
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
    fn frames_are_followed_in_parts_of_any_size() {
        let masked = [&[0x81, 0x83, 9, 9, 9, 9][..], b"abc"].concat();
        let long = [&[0x82, 126, 1, 0][..], &[0; 256]].concat();
        let longest = [&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0][..], &[0; 65_536]].concat();
        let frames = [vec![0x89, 0], masked, vec![0x01, 1, b'x'], long, longest];
        let said = frames.concat();
        for step in [1, 2, 3, 7, 300, 100_000] {
            let (mut followed, mut ends, mut at) = (Frames::default(), Vec::new(), 0);
            for part in said.chunks(step) {
                followed.pass(part);
                at += part.len();
                if followed.may_follow() {
                    ends.push(at);
                }
            }
            let expected = frames.iter().scan(0, |end, frame| {
                *end += frame.len();
                Some(*end)
            });
            let reached = expected.filter(|end| end % step == 0 || *end == said.len()).collect::<Vec<_>>();
            assert_eq!(ends, reached, "in steps of {step}");
        }
        let mut closed = Frames::default();
        closed.pass(&FAREWELL);
        assert!(!closed.may_follow(), "nothing follows a Close frame");
    }

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
