//! The stream between hyper and a client that speaks HTTP/1: it hands hyper one piece at a time, and lets nothing pass
//! that hyper writes of its own accord.
//!
//! hyper answers a head that it cannot parse by itself: with a bare status, which nobody counts and whose cause the
//! client is not told. Such an answer is written while no request is under way, behind the last byte of the answer
//! before it; so it is known by its place, whatever it says. It is dropped here, and keygate writes its own instead
//! (see [`refusal`](super::refusal)).

use std::cell::{Cell, Ref, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::Request;
use http::header::TRANSFER_ENCODING;
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;
use super::framing::{Follows, Framing};
use super::held::Held;
use crate::policy::request::Fragment;

/// The state that the stream and the service of one connection share.
#[derive(Debug)]
pub(super) struct Messages {
    activity: Rc<Activity>,
    framing: RefCell<Framing>,
    /// Whether bytes were read that hyper has not been given.
    has_rest: Cell<bool>,
    written: Cell<Written>,
}

/// Whose bytes hyper writes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// Those of an answer of the service, which has begun since the last bytes were written.
    Answer,
    /// So many bytes are left of such an answer, which has ended. Bytes behind them are hyper's own.
    Rest(usize),
    /// Something of hyper's own was dropped.
    Dropped,
    /// All bytes pass.
    Everything,
}

impl Messages {
    pub(super) fn new(activity: &Rc<Activity>) -> Rc<Self> {
        Rc::new(Self {
            activity: Rc::clone(activity),
            framing: RefCell::new(Framing::new()),
            has_rest: Cell::new(false),
            written: Cell::new(Written::Rest(0)),
        })
    }

    /// hyper has parsed a head: its request begins. To be called once for each, before it is busy.
    pub(super) fn begin<B: Body>(&self, request: &mut Request<B>) {
        self.written.set(Written::Answer);
        let mut framing = self.framing.borrow_mut();
        if framing.has_fragment() {
            request.extensions_mut().insert(Fragment);
        }
        let follows = match request.body().size_hint().exact() {
            Some(length) => Follows::Length(length),
            None if request.headers().contains_key(TRANSFER_ENCODING) => Follows::Chunked,
            None => return framing.give_up(),
        };
        framing.parsed(follows);
    }

    /// The connection stops speaking HTTP.
    pub(super) fn give_up(&self) {
        self.framing.borrow_mut().give_up();
        self.written.set(Written::Everything);
    }

    /// Whether nobody knows where the next request begins, so that the connection must end with this answer.
    pub(super) fn is_lost(&self) -> bool {
        self.framing.borrow().is_lost()
    }

    /// Whether every answer of the service was written to its end, so that keygate can write a last one behind hyper's
    /// back.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.written.get(), Written::Rest(0) | Written::Dropped)
    }

    /// The request line of the head that is being read, as far as it has come.
    pub(super) fn request_line(&self) -> Ref<'_, [u8]> {
        Ref::map(self.framing.borrow(), Framing::request_line)
    }

    /// Whether the next head, or a part of it, has come.
    fn is_next_begun(&self) -> bool {
        self.has_rest.get() || self.framing.borrow().is_in_head()
    }
}

/// The stream of a client that speaks HTTP/1.
#[derive(Debug)]
pub(super) struct Http1Stream<S> {
    stream: S,
    messages: Rc<Messages>,
    held: Rc<Held>,
    /// The bytes that were read beyond the end of a piece, and the number of them that were given already.
    rest: Vec<u8>,
    given: usize,
}

impl<S> Http1Stream<S> {
    /// `held` counts what the client makes hyper hold.
    pub(super) fn new(stream: S, messages: Rc<Messages>, held: Rc<Held>) -> Self {
        held.shelter(&messages.activity);
        Self { stream, messages, held, rest: Vec::new(), given: 0 }
    }

    /// Gives what is left of what was read, up to the end of a piece, and so many bytes at once. `is_head`: they are of a
    /// head.
    fn give_rest(&mut self, buf: &mut ReadBuf<'_>, at_once: usize, is_head: bool) -> io::Result<()> {
        let rest = &self.rest[self.given..];
        let offered = &rest[..rest.len().min(buf.remaining()).min(at_once)];
        let taken = self.messages.framing.borrow_mut().take(offered);
        if is_head {
            self.held.note_head(taken);
        }
        buf.put_slice(&offered[..taken]);
        self.given += taken;
        if self.given == self.rest.len() {
            (self.rest, self.given) = (Vec::new(), 0);
            self.messages.has_rest.set(false);
        }
        if taken == 0 { Err(broken()) } else { Ok(()) }
    }
}

/// The body that is being read has lost its framing. hyper takes the error for the body's end, as it does its own.
fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a chunked body with an octet out of place")
}

impl<S: AsyncRead + Unpin> AsyncRead for Http1Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_head = !self.messages.activity.is_busy() && self.messages.written.get() != Written::Everything;
        if is_head {
            ready!(self.held.poll_buffer(buf.remaining(), cx));
        }
        let at_once = if is_head { self.held.head_at_once() } else { usize::MAX };
        if !self.rest.is_empty() {
            return Poll::Ready(self.give_rest(buf, at_once, is_head));
        }
        let start = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = &buf.filled()[start..];
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let taken = self.messages.framing.borrow_mut().take(&read[..read.len().min(at_once)]);
        if is_head {
            self.held.note_head(taken);
        }
        if taken < read.len() {
            let rest = read[taken..].to_vec();
            buf.set_filled(start + taken);
            self.rest = rest;
            self.messages.has_rest.set(true);
            if taken == 0 {
                return Poll::Ready(Err(broken()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http1Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.messages.activity.is_busy() {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        let ours = match self.messages.written.get() {
            // hyper always flushes what it has buffered before it reads the next head, so this is all of the answer.
            Written::Answer => bytes.len(),
            Written::Rest(left) => left.min(bytes.len()),
            Written::Dropped => 0,
            Written::Everything => return Pin::new(&mut self.stream).poll_write(cx, bytes),
        };
        if ours == 0 {
            self.messages.written.set(Written::Dropped);
            return Poll::Ready(Ok(bytes.len()));
        }
        self.messages.written.set(Written::Rest(ours));
        let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, &bytes[..ours]))?;
        self.messages.written.set(Written::Rest(ours - taken));
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if self.messages.is_next_begun() {
            self.messages.activity.note_head();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.messages.written.get() == Written::Dropped {
            // keygate's own answer is still to be written.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::downstream::activity::Busy;
    use crate::downstream::held::Owner;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn stream() -> (Http1Stream<tokio::io::DuplexStream>, tokio::io::DuplexStream, Rc<Activity>) {
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let activity = Rc::new(Activity::new());
        let held = Held::new(Owner::Proxy(0), &Rc::default());
        (Http1Stream::new(ours, Messages::new(&activity), held), theirs, activity)
    }

    #[test]
    fn only_what_an_answer_wrote_reaches_the_client() {
        block_on(async {
            let (mut stream, mut client, activity) = stream();
            let messages = Rc::clone(&stream.messages);
            assert_eq!(stream.write(b"of its own accord").await.unwrap(), 17);
            assert!(messages.is_settled());
            messages.written.set(Written::Rest(0));
            messages.begin(&mut Request::new(String::new()));
            let busy = Busy::begin(&activity);
            stream.write_all(b"head, ").await.unwrap();
            assert!(!messages.is_settled());
            drop(busy);
            stream.write_all(b"body").await.unwrap();
            assert!(messages.is_settled());
            stream.write_all(b"of its own accord").await.unwrap();
            stream.shutdown().await.unwrap();
            messages.give_up();
            stream.write_all(b"; keygate's").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut seen = String::new();
            client.read_to_string(&mut seen).await.unwrap();
            assert_eq!(seen, "head, body; keygate's");
        });
    }

    #[test]
    fn the_end_of_an_answer_that_waits_is_told_from_what_is_behind_it() {
        block_on(async {
            let (mut stream, mut client, activity) = stream();
            stream.messages.begin(&mut Request::new(String::new()));
            drop(Busy::begin(&activity));
            let answer = vec![b'x'; 1500];
            assert_eq!(stream.write(&answer).await.unwrap(), 1 << 10, "the client has no room for more");
            let mut behind = answer[1 << 10..].to_vec();
            behind.extend_from_slice(b"of its own accord");
            client.read_exact(&mut [0; 1 << 10]).await.unwrap();
            assert_eq!(stream.write(&behind).await.unwrap(), 1500 - (1 << 10));
            assert_eq!(stream.write(b"of its own accord").await.unwrap(), 17);
            drop(stream);
            let mut seen = Vec::new();
            client.read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, answer[1 << 10..]);
        });
    }

    #[test]
    fn pieces_are_given_one_at_a_time_and_the_rest_is_kept() {
        block_on(async {
            let (mut stream, mut client, _) = stream();
            let messages = Rc::clone(&stream.messages);
            client.write_all(b"GET /a#b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\nGE").await.unwrap();
            let mut buffer = [0; 100];
            for (head, fragment) in [("GET /a#b HTTP/1.1\r\n\r\n", true), ("GET /c HTTP/1.1\r\n\r\n", false)]
            {
                let read = stream.read(&mut buffer).await.unwrap();
                assert_eq!(std::str::from_utf8(&buffer[..read]).unwrap(), head);
                let mut request = Request::new(String::new());
                messages.begin(&mut request);
                assert_eq!(request.extensions().get::<Fragment>().is_some(), fragment);
                assert!(messages.is_next_begun());
            }
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 2);
            assert!(messages.is_next_begun());
            assert_eq!(&*messages.request_line(), b"GE");
        });
    }
}
