//! The progress of a connection, and a stream that notes it and gives up a client that takes nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::vocabulary::clock::Clock;

/// Whether a connection waits for its client, and for how long.
#[derive(Debug)]
pub(super) struct Progress {
    clock: Clock,
    begun: Instant,
    /// When bytes last passed, in milliseconds after the beginning.
    moved: AtomicU64,
    is_answering: AtomicBool,
}

impl Progress {
    pub(super) fn new(clock: Clock) -> Self {
        let begun = clock.mono();
        Self { clock, begun, moved: AtomicU64::new(0), is_answering: AtomicBool::new(false) }
    }

    /// Whether no answer is being made: the client has to send something, or to take something.
    pub(super) fn waits_for_client(&self) -> bool {
        !self.is_answering.load(Ordering::Relaxed)
    }

    /// For how many milliseconds no byte has passed.
    pub(super) fn unmoved_for(&self) -> u64 {
        self.age().saturating_sub(self.moved.load(Ordering::Relaxed))
    }

    pub(super) fn begin_answer(&self) {
        self.is_answering.store(true, Ordering::Relaxed);
    }

    pub(super) fn end_answer(&self) {
        self.is_answering.store(false, Ordering::Relaxed);
        self.move_on();
    }

    fn move_on(&self) {
        self.moved.store(self.age(), Ordering::Relaxed);
    }

    fn age(&self) -> u64 {
        let age = self.clock.mono().saturating_duration_since(self.begun);
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A stream that notes its progress. A write that is not taken within a time fails.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    progress: Arc<Progress>,
    write_timeout: Duration,
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(super) const fn new(stream: S, progress: Arc<Progress>, write_timeout: Duration) -> Self {
        Self { stream, progress, write_timeout, blocked: None }
    }

    /// Notes what came of a write; it fails when it has been waiting for too long.
    fn paced<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.blocked = None;
            self.progress.move_on();
            return written;
        }
        let timeout = self.write_timeout;
        let blocked = self.blocked.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(blocked.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.progress.move_on();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.paced(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.paced(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
