//! Whole lines to a descriptor, and how many of them were lost.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// The pause before a descriptor is tried again that takes nothing at the moment: whoever gave it to us made it
/// non-blocking.
const PAUSE: Duration = Duration::from_millis(5);

/// Lines that were lost, by what became of them.
#[derive(Debug, Default)]
pub struct Lost {
    pub(super) queue_full: AtomicU64,
    pub(super) unwritten: AtomicU64,
}

/// The same at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// They found the queue to the writer full: the reader of the output is too slow.
    pub queue_full: u64,
    /// They could not be written: the disk is full, or nobody reads.
    pub unwritten: u64,
}

impl Lost {
    pub(super) const fn new() -> Self {
        Self { queue_full: AtomicU64::new(0), unwritten: AtomicU64::new(0) }
    }

    #[must_use]
    pub fn read(&self) -> Losses {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Losses { queue_full: read(&self.queue_full), unwritten: read(&self.unwritten) }
    }
}

impl Losses {
    #[must_use]
    pub const fn all(self) -> u64 {
        self.queue_full.saturating_add(self.unwritten)
    }
}

/// Writes whole lines. After one that could be written only in part the next begins a new line.
#[derive(Debug)]
pub(super) struct Output<W> {
    to: W,
    is_torn: bool,
}

/// Lines that were not wholly written, and the first cause.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub(super) lines: u64,
    pub(super) cause: io::Error,
}

impl<W: Write> Output<W> {
    pub(super) const fn new(to: W) -> Self {
        Self { to, is_torn: false }
    }

    pub(super) const fn to(&mut self) -> &mut W {
        &mut self.to
    }

    /// Writes lines, each with its end. It waits for a reader that is slow.
    ///
    /// # Errors
    /// How many lines were not written, and why.
    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), Unwritten> {
        let unwritten = |from: usize, cause| {
            let lines = lines[from..].iter().filter(|byte| **byte == b'\n').count() as u64;
            Err(Unwritten { lines, cause })
        };
        if self.is_torn {
            if let Err((_, cause)) = self.write_all(b"\n") {
                return unwritten(0, cause);
            }
            self.is_torn = false;
        }
        match self.write_all(lines) {
            Ok(()) => Ok(()),
            Err((written, cause)) => {
                self.is_torn = written > 0 && lines[written - 1] != b'\n';
                unwritten(written, cause)
            }
        }
    }

    /// # Errors
    /// How many bytes were written, and why no more.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while written < bytes.len() {
            match self.to.write(&bytes[written..]) {
                Ok(0) => return Err((written, ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(PAUSE),
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with so much room, which takes at most five bytes at once and is interrupted now and then.
    #[derive(Default)]
    struct Disk {
        written: Vec<u8>,
        room: usize,
        calls: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            match self.calls % 3 {
                0 => return Err(ErrorKind::Interrupted.into()),
                1 => return Err(ErrorKind::WouldBlock.into()),
                _ => {}
            }
            let n = bytes.len().min(5).min(self.room);
            if n == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.written.extend_from_slice(&bytes[..n]);
            self.room -= n;
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_are_not_wholly_written_are_counted_and_the_next_one_is_whole() {
        let mut output = Output::new(Disk { room: 10, ..Disk::default() });
        let unwritten = output.write(b"first\nsecond\nthird\n").unwrap_err();
        assert_eq!((unwritten.lines, unwritten.cause.kind()), (2, ErrorKind::StorageFull));
        assert_eq!(output.write(b"fourth\n").unwrap_err().lines, 1, "still full");
        output.to.room = 100;
        output.write(b"fifth\n").unwrap();
        assert_eq!(output.to.written, b"first\nseco\nfifth\n");
        output.to.room = 6;
        assert_eq!(output.write(b"sixth\nseventh\n").unwrap_err().lines, 1);
        output.to.room = 100;
        output.write(b"eighth\n").unwrap();
        assert!(output.to.written.ends_with(b"\nsixth\neighth\n"), "no line was torn");
    }
}
