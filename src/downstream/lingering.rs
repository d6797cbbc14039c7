//! The stream beneath TLS and hyper: it tells the watchdog what passes, lingers after a refused body, and ends with a
//! reset where an end in order would be a lie.
//!
//! A client that was refused may still be sending its body. If the connection were closed at once, it would
//! be reset, and the reset can overtake the answer, which the client then never sees (RFC 9112, section 9.6).

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::activity::Activity;

/// How long a client that was refused may go on sending its body.
const LINGER: Duration = Duration::from_secs(10);
/// Reads in one poll, before other tasks of the thread get their turn.
const READS_AT_ONCE: usize = 32;

/// The socket, as far as it can be closed with a reset.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Makes the closing of this socket a reset. Bytes that were written and not sent are lost.
    fn reset_when_closed(&self);
}

impl Socket for TcpStream {
    fn reset_when_closed(&self) {
        // Then the socket is closed in order. There is nothing better.
        let _ = self.set_zero_linger();
    }
}

/// A stream that tells the watchdog what passes.
pub(super) struct Watched<S: Socket> {
    stream: S,
    activity: Rc<Activity>,
    /// Set once keygate has ended its own direction, while the client may still be sending.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<S: Socket> Watched<S> {
    pub(super) const fn new(stream: S, activity: Rc<Activity>) -> Self {
        Self { stream, activity, lingering: None }
    }
}

impl<S: Socket> Watched<S> {
    /// Reads and drops what still comes, until the client has ended too or takes too long.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = &mut self.lingering else { return Poll::Ready(()) };
        if limit.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut bytes = [0; 8 << 10];
        for _ in 0..READS_AT_ONCE {
            let mut dropped = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(cx, &mut dropped) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !dropped.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: Socket> Drop for Watched<S> {
    fn drop(&mut self) {
        if self.activity.must_reset() {
            self.stream.reset_when_closed();
        }
    }
}

impl<S: Socket> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.note_read();
        }
        polled
    }
}

impl<S: Socket> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.note_write(polled.is_ready());
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.activity.note_end();
            if !self.activity.may_linger() {
                return Poll::Ready(Ok(()));
            }
            self.lingering = Some(Box::pin(sleep_until(Instant::now() + LINGER)));
        }
        self.poll_linger(cx).map(Ok)
    }
}
