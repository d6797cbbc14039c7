//! The stream beneath HTTP/1.1: it still reads when it can no longer write, it keeps what was sent until a byte of an
//! answer comes, and then the beginning of that answer.
//!
//! A server may answer before it has the whole request, and close: 413, 501. The rest of the request then fails, and
//! hyper gives up at the first failed write without looking for the answer. So a failed write is not told to hyper:
//! nothing more is written, and reading goes on until the server's answer, or its end, has come.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::interim::Interims;
use crate::upstream::dial::Stream;
use crate::upstream::request_body::RequestBody;

/// The longest head that is kept, in bytes. A longer one is not sent again.
const KEPT: usize = 40 << 10;
/// The room that is kept for the next head, in bytes.
const ROOM: usize = 4 << 10;

/// How much of an answer's beginning is kept, in bytes, to say what is wrong with one that cannot be read.
const BEGINNING: usize = 1 << 10;

/// A request that was sent and got not a byte in return. Never printed: it may contain a key.
pub(in crate::upstream) enum Unanswered {
    /// The bytes of HTTP/1.1.
    Bytes(Vec<u8>),
    /// A request without a body.
    Head(Box<Parts>),
}

/// The state that the two owners of a connection share: hyper has the stream, and the pool asks about it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Whether a write has failed, so that the connection must not be used again.
    is_broken: AtomicBool,
    /// Whether something was sent, and not a byte came after it.
    is_waiting: AtomicBool,
    /// Set when the server's direction has ended, or the stream is dropped.
    unanswered: Mutex<Option<Unanswered>>,
    /// Set when the stream is dropped.
    came: Mutex<Came>,
    hints: Mutex<Hints>,
}

/// The links of interim answers, for who waits for the answer.
#[derive(Debug, Default)]
struct Hints {
    links: Vec<HeaderValue>,
    /// `None`: nobody wants them.
    waits: Option<Waker>,
}

impl Outcome {
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    /// What the server said last, once the connection is over.
    pub(super) fn came(&self) -> Came {
        std::mem::take(&mut *self.came.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The links that have come since the last call. The task is woken when more come.
    pub(super) fn take_links(&self, cx: &Context<'_>) -> Vec<HeaderValue> {
        let hints = &mut *self.hints();
        if hints.waits.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            hints.waits = Some(cx.waker().clone());
        }
        std::mem::take(&mut hints.links)
    }

    /// Nobody wants links any more.
    pub(super) fn forget_links(&self) {
        *self.hints() = Hints::default();
    }

    fn note_links(&self, links: Vec<HeaderValue>) {
        let hints = &mut *self.hints();
        if let Some(waker) = &hints.waits {
            hints.links.extend(links);
            waker.wake_by_ref();
        }
    }

    fn hints(&self) -> MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn unanswered(&self) -> Option<Unanswered> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the server said last.
#[derive(Default)]
pub(super) struct Came {
    /// The beginning of it. Never printed: it may contain what only the client may read.
    pub(super) beginning: Vec<u8>,
    /// Whether nothing had been sent before.
    pub(super) is_unasked: bool,
}

impl fmt::Debug for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Came")
    }
}

pub(super) struct Wire {
    stream: Stream,
    /// The bytes that were sent since a byte last came, as far as they are kept.
    sent: Vec<u8>,
    /// Whether a byte came after that.
    is_answered: bool,
    came: Came,
    interims: Interims,
    has_ended: bool,
    write_failure: Option<io::Error>,
    /// The task that waits for a write that will not be done.
    writer: Option<Waker>,
    outcome: Arc<Outcome>,
}

impl Wire {
    pub(super) fn new(stream: Stream) -> (Self, Arc<Outcome>) {
        let outcome = Arc::<Outcome>::default();
        let wire = Self {
            stream,
            sent: Vec::new(),
            is_answered: true,
            came: Came { beginning: Vec::new(), is_unasked: true },
            interims: Interims::new(),
            has_ended: false,
            write_failure: None,
            writer: None,
            outcome: Arc::clone(&outcome),
        };
        (wire, outcome)
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.is_answered {
            self.is_answered = false;
            self.outcome.is_waiting.store(true, Ordering::Relaxed);
            self.came.is_unasked = false;
            self.came.beginning.clear();
            self.interims.ask();
            self.sent.clear();
            self.sent.shrink_to(ROOM);
        }
        let room = KEPT.saturating_sub(self.sent.len());
        self.sent.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Nothing can be written any more.
    fn fail_writing(&mut self, failure: io::Error, cx: &Context<'_>) {
        self.write_failure = Some(failure);
        self.outcome.is_broken.store(true, Ordering::Relaxed);
        // hyper reads before it writes; what came in between is to be read now.
        cx.waker().wake_by_ref();
    }

    /// Nothing will come any more.
    fn note_unanswered(&mut self) {
        if !self.is_answered {
            self.is_answered = true;
            let unanswered = Some(Unanswered::Bytes(std::mem::take(&mut self.sent)));
            *self.outcome.unanswered.lock().unwrap_or_else(PoisonError::into_inner) = unanswered;
        }
    }

    /// The server's direction has ended, in order or not.
    fn end(&mut self, ended: io::Result<()>) -> io::Result<()> {
        self.has_ended = true;
        self.note_unanswered();
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        match self.write_failure.take() {
            // A write fails with `BrokenPipe` after the server's end has come; anything else hides whether more was to
            // come. Then the end must not complete a body that only the end of the connection ends.
            Some(failure) if failure.kind() != io::ErrorKind::BrokenPipe => ended.and(Err(failure)),
            _ => ended,
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.note_unanswered();
        *self.outcome.came.lock().unwrap_or_else(PoisonError::into_inner) = std::mem::take(&mut self.came);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match ready!(Pin::new(&mut self.stream).poll_read(cx, buf)) {
            Ok(()) if buf.filled().len() > before || buf.remaining() == 0 => {
                self.is_answered = true;
                self.outcome.is_waiting.store(false, Ordering::Relaxed);
                let came = &buf.filled()[before..];
                let room = BEGINNING.saturating_sub(self.came.beginning.len());
                if room > 0 {
                    self.came.beginning.extend_from_slice(&came[..came.len().min(room)]);
                }
                let Self { interims, outcome, .. } = &mut *self;
                Poll::Ready(interims.see(came, |links| outcome.note_links(links)))
            }
            ended => Poll::Ready(self.end(ended)),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.outcome.is_broken() && !self.has_ended {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match ready!(Pin::new(&mut self.stream).poll_write(cx, bytes)) {
            Ok(count) => {
                self.keep(&bytes[..count]);
                Poll::Ready(Ok(count))
            }
            Err(failure) if !self.has_ended => {
                self.keep(bytes);
                self.fail_writing(failure, cx);
                self.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(failure) => Poll::Ready(Err(failure)),
        }
    }

    /// TLS keeps what its socket did not take, so that a write may fail as late as here.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outcome.is_broken() && !self.has_ended {
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
            Err(failure) if !self.has_ended => {
                self.fail_writing(failure, cx);
                Poll::Ready(Ok(()))
            }
            flushed => Poll::Ready(flushed),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unanswered")
    }
}

impl From<Vec<u8>> for Unanswered {
    fn from(sent: Vec<u8>) -> Self {
        Self::Bytes(sent)
    }
}

impl Unanswered {
    /// The request that was sent, if it is whole and has no body.
    ///
    /// Bytes are keygate's own, so they are in the one form that hyper writes. To keep them and to read them here is cheaper for
    /// every other request than to keep a copy of its fields.
    pub(in crate::upstream) fn request(&self) -> Option<Request<RequestBody>> {
        let bytes = match self {
            Self::Bytes(bytes) => bytes,
            Self::Head(parts) => {
                return Some(Request::from_parts(Parts::clone(parts), RequestBody::default()));
            }
        };
        let head = bytes.strip_suffix(b"\r\n\r\n")?;
        let mut lines =
            head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut words = lines.next()?.split(|byte| *byte == b' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if version != b"HTTP/1.1" || words.next().is_some() {
            return None;
        }
        let mut headers = HeaderMap::new();
        for line in lines {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii_start());
            headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
        }
        let mut request = Request::new(RequestBody::default());
        *request.method_mut() = Method::from_bytes(method).ok()?;
        *request.uri_mut() = Uri::try_from(target).ok()?;
        *request.headers_mut() = headers;
        *request.version_mut() = Version::HTTP_11;
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_sent() {
        let sent = "DELETE /a%2Fb?q={}&&c=%41 HTTP/1.1\r\nhost: h:80\r\naccept: a\r\nx-note: a: b,  c\r\naccept: \r\n\r\n";
        let request = Unanswered::Bytes(sent.as_bytes().to_vec()).request().unwrap();
        assert_eq!(
            (request.method(), request.uri().to_string().as_str()),
            (&Method::DELETE, "/a%2Fb?q={}&&c=%41")
        );
        let accept: Vec<_> = request.headers().get_all("accept").iter().collect();
        assert_eq!(accept, ["a", ""]);
        assert_eq!(request.headers()["x-note"], "a: b,  c");
        assert_eq!(request.headers().len(), 4);
    }

    #[test]
    fn what_is_no_whole_head_is_no_request() {
        for sent in ["", "GET / HTTP/1.1\r\nhost: h\r\n", "PUT / HTTP/1.1\r\nhost: h\r\n\r\nbody", "\r\n\r\n"]
        {
            assert!(Unanswered::Bytes(sent.as_bytes().to_vec()).request().is_none(), "{sent:?}");
        }
    }
}
