//! The stream beneath h2: it follows the frames that are read and written, so that a GOAWAY or an interim answer can be put between
//! two of them, and h2 reads no more than there is memory for.
//!
//! h2 tells a client that its connection ends only where h2 itself ends it. keygate ends it for reasons that h2 does
//! not know, and announces the end long before it comes.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use super::allowance::Allowance;
use super::arrivals::Arrivals;
use super::frames::{CONTINUATION, END_HEADERS, Frame, GOAWAY, HEAD, HEADERS, RST_STREAM};
use super::held::Held;
use super::ledger::Ledger;
use crate::telemetry::metrics::ResetStreams;

/// How long a client has to take the frame that says why its connection ends, and to stop sending.
const END_TAKES: Duration = Duration::from_millis(250);
/// How many bytes it may still send meanwhile.
const UNREAD: u64 = 1 << 20;
/// Streams that a client may make keygate reset: malformed requests, frames for streams that have ended, streams
/// beyond the limit (`MadeYouReset`, CVE-2025-8671). h2 counts them too, but over the whole life of a connection; a load
/// balancer's connection lives for days.
const RESETS: u32 = 1024;
const RESETS_FORGIVEN_PER_SECOND: u32 = 100;

/// Error codes of RFC 9113, section 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorCode {
    /// The connection ends in good order.
    NoError = 0,
    /// The client asks for more than it may.
    EnhanceYourCalm = 11,
}

/// A stream that can put a frame of its own between those that h2 writes. Its clones share the stream, so that it can still
/// be written to when h2 is gone.
#[derive(Debug)]
pub(super) struct Http2Stream<S>(Rc<RefCell<Outgoing<S>>>);

#[derive(Debug)]
struct Outgoing<S> {
    stream: S,
    frames: Frames,
    arrivals: Arrivals,
    /// Bytes that were read and h2 has not been given, and the number of them that it was given since.
    rest: Vec<u8>,
    given: usize,
    ledger: Rc<Ledger>,
    /// Counts the streams that h2 resets by itself.
    reset: Arc<ResetStreams>,
    /// The GOAWAY that is to be written.
    goaway: Option<GoAway>,
    is_announced: bool,
    /// A frame of our own that is being written.
    between: Option<Between>,
}

/// A frame of our own, as far as it is written.
#[derive(Debug)]
struct Between {
    bytes: Vec<u8>,
    written: usize,
}

impl<S> Clone for Http2Stream<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http2Stream<S> {
    /// `reset` counts the streams that h2 resets by itself; `held` counts what the client makes h2 hold.
    pub(super) fn new(stream: S, reset: &Arc<ResetStreams>, held: &Rc<Held>) -> Self {
        Self(Rc::new(RefCell::new(Outgoing {
            stream,
            frames: Frames::default(),
            arrivals: Arrivals::default(),
            rest: Vec::new(),
            given: 0,
            ledger: Ledger::new(held),
            reset: Arc::clone(reset),
            goaway: None,
            is_announced: false,
            between: None,
        })))
    }

    /// Lets a GOAWAY follow the frame that is being written: the connection will end, and every stream that the client
    /// begins until then is served. It goes out with the next write or flush, and once at most.
    pub(super) fn announce_end(&self) {
        let outgoing = &mut *self.0.borrow_mut();
        if !outgoing.is_announced {
            outgoing.is_announced = true;
            outgoing.goaway = Some(GoAway(ErrorCode::NoError));
        }
    }

    /// What its streams hold.
    pub(super) fn ledger(&self) -> Rc<Ledger> {
        Rc::clone(&self.0.borrow().ledger)
    }

    /// Whether the client has made h2 reset more streams than it may.
    pub(super) fn has_reset_too_many(&self) -> bool {
        let outgoing = self.0.borrow();
        outgoing.frames.resets.is_spent(Instant::now) || outgoing.ledger.is_flooded()
    }

    /// Whether h2 has ended the connection because the client asked for more than it may.
    pub(super) fn was_calmed(&self) -> bool {
        self.0.borrow().frames.was_calmed
    }

    /// Ends the connection, after a GOAWAY with this code where no frame is half written. To be called when h2 is gone.
    pub(super) async fn end(self, why: Option<ErrorCode>) {
        // h2's handle is gone, so this is the only one.
        let Some(Outgoing { mut stream, frames, between, .. }) =
            Rc::into_inner(self.0).map(RefCell::into_inner)
        else {
            return;
        };
        let ending = async {
            if let Some(why) = why.filter(|_| frames.may_be_followed() && between.is_none()) {
                stream.write_all(&GoAway(why).bytes()).await?;
            }
            stream.shutdown().await?;
            // Unread bytes would reset the connection, and the reset can overtake the GOAWAY.
            tokio::io::copy(&mut stream.take(UNREAD), &mut tokio::io::sink()).await
        };
        // A client that does not read, or goes on sending, sees the connection closed.
        let _ = tokio::time::timeout(END_TAKES, ending).await;
    }
}

impl<S: AsyncWrite + Unpin> Outgoing<S> {
    /// Writes the frames of our own that wait, where a frame has ended. Ready: there is nothing to write, or it may not be
    /// written here.
    fn poll_between(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.between.is_none() && self.has_to_insert() && self.frames.may_be_followed() {
                let goaway = self.goaway.take().map(|goaway| goaway.bytes().to_vec());
                let next = goaway.or_else(|| self.ledger.next_hint());
                self.between = next.map(|bytes| Between { bytes, written: 0 });
            }
            let Some(between) = &mut self.between else { return Poll::Ready(Ok(())) };
            let rest = &between.bytes[between.written..];
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            between.written += n;
            if between.written == between.bytes.len() {
                self.between = None;
            }
        }
    }
}

impl<S> Outgoing<S> {
    /// Whether a frame of our own waits that has not begun.
    fn has_to_insert(&self) -> bool {
        self.goaway.is_some() || self.ledger.has_hints()
    }

    /// Follows what has come; returns how much of it h2 may have now.
    fn admit(arrivals: &mut Arrivals, ledger: &Ledger, bytes: &[u8]) -> usize {
        let mut taken = 0;
        ledger.pass(|arrived| taken = arrivals.pass(bytes, arrived));
        taken
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Http2Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Outgoing { stream, arrivals, rest, given, ledger, .. } = &mut *self.0.borrow_mut();
        ready!(ledger.poll_room(cx));
        if rest.is_empty() {
            let start = buf.filled().len();
            ready!(Pin::new(stream).poll_read(cx, buf))?;
            let read = &buf.filled()[start..];
            let taken = Outgoing::<S>::admit(arrivals, ledger, read);
            if taken < read.len() {
                (*rest, *given) = (read[taken..].to_vec(), 0);
                buf.set_filled(start + taken);
                ledger.note_rest(rest.len());
            }
        } else {
            let offered = &rest[*given..];
            let offered = &offered[..offered.len().min(buf.remaining())];
            let taken = Outgoing::<S>::admit(arrivals, ledger, offered);
            buf.put_slice(&offered[..taken]);
            *given += taken;
            if *given == rest.len() {
                *rest = Vec::new();
                ledger.note_rest(0);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http2Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outgoing = &mut *self.0.borrow_mut();
        let mut bytes = bytes;
        if outgoing.between.is_some() || outgoing.has_to_insert() {
            ready!(outgoing.poll_between(cx))?;
            if outgoing.has_to_insert() {
                // It has its turn at the end of the frame.
                bytes = &bytes[..bytes.len().min(outgoing.frames.rest())];
            }
        }
        let written = ready!(Pin::new(&mut outgoing.stream).poll_write(cx, bytes))?;
        outgoing.frames.pass(&bytes[..written], |told| match told {
            Told::Reset(code) => outgoing.reset.count(code),
            Told::Frame(frame) => outgoing.ledger.written(frame),
        });
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outgoing = &mut *self.0.borrow_mut();
        ready!(outgoing.poll_between(cx))?;
        ready!(Pin::new(&mut outgoing.stream).poll_flush(cx))?;
        outgoing.ledger.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_shutdown(cx)
    }
}

/// A GOAWAY with this code.
#[derive(Debug)]
struct GoAway(ErrorCode);

impl GoAway {
    /// Its last stream is the highest there can be: any stream may have been served.
    const fn bytes(&self) -> [u8; HEAD + 8] {
        [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, self.0 as u8]
    }
}

/// What a frame that was written tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// h2 has reset a stream by itself, with this error code.
    Reset(u8),
    Frame(Frame),
}

/// Follows the frames that are written, to know where one ends. Of two kinds of frames it also reads the error code.
#[derive(Debug)]
struct Frames {
    head: [u8; HEAD + 8],
    /// How many bytes of the head, and of the payload as far as it is read, have been written.
    seen: usize,
    /// How many bytes of the payload are still to be written.
    payload: usize,
    /// Whether nothing but a CONTINUATION may come next.
    is_in_block: bool,
    /// Whether a frame has been written. The first one is h2's SETTINGS.
    has_begun: bool,
    resets: Allowance,
    was_calmed: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            head: [0; HEAD + 8],
            seen: 0,
            payload: 0,
            is_in_block: false,
            has_begun: false,
            resets: Allowance::new(RESETS, RESETS_FORGIVEN_PER_SECOND),
            was_calmed: false,
        }
    }
}

impl Frames {
    /// `told` is called with what the frames tell.
    fn pass(&mut self, mut bytes: &[u8], told: impl Fn(Told)) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let n = self.payload.min(bytes.len());
                self.payload -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (self.wanted() - self.seen).min(bytes.len());
            self.head[self.seen..self.seen + n].copy_from_slice(&bytes[..n]);
            self.seen += n;
            bytes = &bytes[n..];
            if self.seen == self.wanted() {
                self.note(&told);
            }
        }
    }

    /// How many bytes of the frame are read.
    const fn wanted(&self) -> usize {
        match self.head[3] {
            _ if self.seen < HEAD => HEAD,
            RST_STREAM => HEAD + 4,
            GOAWAY => HEAD + 8,
            _ => HEAD,
        }
    }

    /// The wanted part of the frame has been written.
    fn note(&mut self, told: impl Fn(Told)) {
        let Some((head, _)) = self.head.split_first_chunk() else { return };
        let frame = Frame::parse(head);
        self.payload = frame.length.saturating_sub(self.seen - HEAD);
        self.seen = 0;
        self.has_begun = true;
        told(Told::Frame(frame));
        match frame.kind {
            HEADERS | CONTINUATION => self.is_in_block = !frame.has(END_HEADERS),
            RST_STREAM if is_by_h2(self.head[HEAD + 3]) => {
                self.resets.spend(Instant::now());
                told(Told::Reset(self.head[HEAD + 3]));
            }
            GOAWAY => self.was_calmed |= self.head[HEAD + 7] == ErrorCode::EnhanceYourCalm as u8,
            _ => {}
        }
    }

    /// Whether another frame may come next.
    const fn may_be_followed(&self) -> bool {
        self.seen == 0 && self.payload == 0 && !self.is_in_block && self.has_begun
    }

    /// How many bytes can be written without passing the end of the frame.
    const fn rest(&self) -> usize {
        if self.payload > 0 { self.payload } else { self.wanted() - self.seen }
    }
}

/// Whether h2 resets a stream by itself with this error code, because the client left it no choice. Streams that keygate
/// ends have one of the others: `NO_ERROR`, `INTERNAL_ERROR` and `CANCEL`.
const fn is_by_h2(code: u8) -> bool {
    !matches!(code, 0 | 2 | 8)
}

#[cfg(test)]
mod tests {
    use super::super::held::Owner;
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0, length[0], length[1], kind, flags, 0, 0, 0, 1][..], payload].concat()
    }

    fn written() -> [Vec<u8>; 7] {
        [
            frame(4, 0, &[]),
            frame(HEADERS, END_HEADERS, b"abc"),
            frame(0, 0, &[0; 300]),
            frame(RST_STREAM, 0, &[0, 0, 0, 5]),
            frame(GOAWAY, 0, b"\x7f\xff\xff\xff\0\0\0\0why"),
            // One unit with its continuation.
            [frame(HEADERS, 0, b"ab"), frame(CONTINUATION, END_HEADERS, b"c")].concat(),
            frame(0, 1, &[]),
        ]
    }

    #[test]
    fn frames_are_followed_in_parts_of_any_size() {
        let (units, said) = (written(), written().concat());
        let ends: Vec<usize> = units
            .iter()
            .scan(0, |end, unit| {
                *end += unit.len();
                Some(*end)
            })
            .collect();
        for step in [1, 2, 3, 7, 50, 1000] {
            let (mut frames, mut found, mut at) = (Frames::default(), Vec::new(), 0);
            for part in said.chunks(step) {
                frames.pass(part, |_| ());
                at += part.len();
                if frames.may_be_followed() {
                    found.push(at);
                }
            }
            let reached: Vec<usize> =
                ends.iter().copied().filter(|end| end % step == 0 || *end == said.len()).collect();
            assert_eq!(found, reached, "in steps of {step}");
            assert!(!frames.was_calmed);
        }
        let mut frames = Frames::default();
        assert!(!frames.may_be_followed(), "SETTINGS comes first");
        frames.pass(&GoAway(ErrorCode::EnhanceYourCalm).bytes(), |_| ());
        assert!(frames.was_calmed && frames.may_be_followed());
    }

    /// The bytes that come out when h2 writes in parts of this size, and the end is announced before part `announced`.
    async fn sent(step: usize, announced: usize) -> Vec<u8> {
        let (near, mut far) = tokio::io::duplex(5);
        let framed = Http2Stream::new(near, &Arc::default(), &Held::new(Owner::Proxy(0), &Rc::default()));
        let mut h2 = framed.clone();
        let writing = async move {
            for (n, part) in written().concat().chunks(step).enumerate() {
                if n == announced {
                    framed.announce_end();
                }
                h2.write_all(part).await.unwrap();
            }
            framed.announce_end();
            h2.flush().await.unwrap();
        };
        let mut sent = Vec::new();
        let reading = async { far.read_to_end(&mut sent).await.unwrap() };
        tokio::join!(writing, reading);
        sent
    }

    #[test]
    fn the_end_is_announced_once_and_between_two_frames() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let goaway = GoAway(ErrorCode::NoError).bytes();
        let units = written();
        let places: Vec<Vec<u8>> = (1..=units.len())
            .map(|n| [&units[..n].concat()[..], &goaway, &units[n..].concat()].concat())
            .collect();
        for step in [1, 4, 30, 1000] {
            for announced in [0, 1, 2, 9, 30, 340, 10_000] {
                let sent = runtime.block_on(sent(step, announced));
                assert!(places.contains(&sent), "parts of {step}, announced before part {announced}");
            }
        }
    }
}
