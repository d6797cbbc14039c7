//! One direction of a tunnel: bytes from one side to the other as they are, until a Close frame is put at their end.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::Frames;

const BUFFER: usize = 8 << 10;

/// One direction of a tunnel.
#[derive(Debug)]
pub(super) struct Direction {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The frames that were passed on, and after keygate's Close those that are dropped.
    frames: Frames,
    /// The Close that is to follow the frame under way, and how much of it is written.
    close: Option<([u8; 4], usize)>,
    /// Further bytes are dropped: nothing may follow the Close.
    has_said_close: bool,
    is_flushed: bool,
    /// The source has ended.
    has_ended: bool,
    /// The bytes that were passed on.
    passed: u64,
}

impl Direction {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            frames: Frames::default(),
            close: None,
            has_said_close: false,
            is_flushed: true,
            has_ended: false,
            passed: 0,
        }
    }

    /// The direction from a side of which these bytes have been read already.
    pub(super) fn after(early: &[u8]) -> Self {
        let mut direction = Self::new();
        if early.len() > direction.buffer.len() {
            direction.buffer = early.into();
        } else {
            direction.buffer[..early.len()].copy_from_slice(early);
        }
        direction.end = early.len();
        direction
    }

    pub(super) const fn passed(&self) -> u64 {
        self.passed
    }

    /// Whether the other side can get another frame: none is half passed on, and it has had no Close.
    pub(super) fn may_follow(&self) -> bool {
        self.frames.may_follow() && !self.has_said_close && self.close.is_none_or(|(_, written)| written == 0)
    }

    pub(super) const fn has_said_close(&self) -> bool {
        self.has_said_close
    }

    /// Whether the source has closed the WebSocket, and that is passed on or dropped.
    pub(super) const fn is_closed(&self) -> bool {
        self.start == self.end && self.is_flushed && self.frames.is_closed()
    }

    /// Lets this Close frame follow the frame under way. Bytes after it are dropped.
    pub(super) fn say(&mut self, close: [u8; 4]) {
        if !self.has_said_close && self.close.is_none() {
            self.close = Some((close, 0));
        }
    }

    /// Passes on what there is; `last` is set to the time when something passed. Ready when the source has ended, and
    /// the other side knows it.
    pub(super) fn poll_pass<R, W>(
        &mut self,
        from: &mut R,
        to: &mut W,
        last: &Cell<Instant>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while self.start < self.end || self.close_is_due() {
                ready!(self.poll_write(to, cx))?;
                last.set(Instant::now());
            }
            if self.has_ended {
                return Pin::new(to).poll_shutdown(cx);
            }
            if self.poll_read(from, cx)?.is_pending() {
                if !self.is_flushed {
                    ready!(Pin::new(to).poll_flush(cx))?;
                    self.is_flushed = true;
                }
                return Poll::Pending;
            }
            last.set(Instant::now());
        }
    }

    /// Whether the Close can be written now, or is half written.
    fn close_is_due(&self) -> bool {
        self.close.is_some_and(|(_, written)| written > 0 || self.frames.may_follow())
    }

    fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let closes = self.close_is_due();
        let part = match &self.close {
            Some((close, written)) if closes => &close[*written..],
            // The Close has its turn at the end of the frame.
            Some(_) => &self.buffer[self.start..self.end.min(self.start.saturating_add(self.frames.rest()))],
            None => &self.buffer[self.start..self.end],
        };
        let n = ready!(Pin::new(to).poll_write(cx, part))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.is_flushed = false;
        if !closes {
            self.frames.pass(&self.buffer[self.start..self.start + n]);
            self.start += n;
            self.passed += n as u64;
            return Poll::Ready(Ok(()));
        }
        if let Some((close, written)) = &mut self.close {
            *written += n;
            if *written == close.len() {
                self.close = None;
                self.has_said_close = true;
                self.drop_rest();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<()>> {
        let mut read = ReadBuf::new(&mut self.buffer);
        match Pin::new(from).poll_read(cx, &mut read) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(outcome) => outcome?,
        }
        let n = read.filled().len();
        (self.start, self.end) = (0, n);
        self.has_ended = n == 0;
        if self.has_said_close {
            self.drop_rest();
        }
        Ok(Poll::Ready(()))
    }

    /// Drops what was read, but follows it to its Close.
    fn drop_rest(&mut self) {
        self.frames.pass(&self.buffer[self.start..self.end]);
        self.start = self.end;
    }
}
