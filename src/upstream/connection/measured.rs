//! The stream beneath HTTP/2: it notes when the server was last heard, and how it began to speak; and it reads a part at a time,
//! so that a server that sends without end leaves the other requests of the thread their turns.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::upstream::dial::Stream;

/// The bytes that are read of a connection in one turn of its thread.
const OF_ONE_TURN: usize = 64 << 10;
/// How an answer begins that is not HTTP/2.
const HTTP1: &[u8] = b"HTTP/1.";

/// What was heard of a server.
pub(super) struct Traffic {
    heard: Cell<Instant>,
    has_spoken: Cell<bool>,
    /// What may still be read in this turn.
    left: Cell<usize>,
    /// How many of its first bytes are those of HTTP/1.1.
    begun: Cell<usize>,
}

impl Traffic {
    /// Another turn begins.
    pub(super) fn allow(&self) {
        self.left.set(OF_ONE_TURN);
    }

    /// When a byte last came, or the connection began.
    pub(super) fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// Whether the server has said anything.
    pub(super) fn has_spoken(&self) -> bool {
        self.has_spoken.get()
    }

    /// Whether the server answers in HTTP/1.1.
    pub(super) fn is_http1(&self) -> bool {
        self.begun.get() == HTTP1.len()
    }

    fn note(&self, came: &[u8]) {
        self.heard.set(Instant::now());
        self.has_spoken.set(true);
        self.left.set(self.left.get().saturating_sub(came.len()));
        for byte in came {
            match HTTP1.get(self.begun.get()) {
                Some(wanted) if wanted == byte => self.begun.set(self.begun.get() + 1),
                // Over: it is, or it is not.
                Some(_) => return self.begun.set(HTTP1.len() + 1),
                None => return,
            }
        }
    }
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic").field("heard", &self.heard).finish_non_exhaustive()
    }
}

pub(super) struct Measured {
    stream: Stream,
    traffic: Rc<Traffic>,
}

impl Measured {
    pub(super) fn new(stream: Stream) -> (Self, Rc<Traffic>) {
        let traffic = Traffic {
            heard: Cell::new(Instant::now()),
            has_spoken: Cell::new(false),
            left: Cell::new(OF_ONE_TURN),
            begun: Cell::new(0),
        };
        let traffic = Rc::new(traffic);
        (Self { stream, traffic: Rc::clone(&traffic) }, traffic)
    }
}

impl AsyncRead for Measured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.traffic.left.get() == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let came = &buf.filled()[before..];
        if !came.is_empty() {
            self.traffic.note(came);
        }
        polled
    }
}

impl AsyncWrite for Measured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
