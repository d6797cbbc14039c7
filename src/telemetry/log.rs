//! Lines about the process itself, on standard error. One thread writes them, from a bounded queue.

use std::io;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use super::output::{Losses, Lost, Output};
use super::throttle::{tell_all_withheld, tell_withheld};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::text::escaped_lines;

/// Lines that may wait to be written.
const QUEUED_LINES: usize = 256;
/// The pause between two lines about lines that were lost.
const LOSSES_EVERY: Duration = Duration::from_secs(10);
/// How long the end of the process waits for an output that its reader does not read.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// An order to the thread that writes lines.
enum Order {
    Write(String),
    /// Answer when everything before this is written.
    Flush(SyncSender<()>),
}

/// The queue to the thread that writes lines; `None` where the thread could not be started.
static LINES: LazyLock<Option<SyncSender<Order>>> = LazyLock::new(|| {
    let (queue, orders) = sync_channel(QUEUED_LINES);
    let thread = std::thread::Builder::new().name("keygate-log".to_owned());
    thread.spawn(move || write_lines(&orders)).ok().map(|_| queue)
});

/// Lines of this log that were lost.
static LOST: Lost = Lost::new();

/// How many lines of this log were lost since the process began.
#[must_use]
pub fn lost_lines() -> Losses {
    LOST.read()
}

fn write_lines(orders: &Receiver<Order>) {
    let (mut writing, clock) = (Writing::new(), Clock::system());
    let mut wakes_at: Option<Instant> = None;
    loop {
        let order = match wakes_at {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => orders.recv_timeout(at.saturating_duration_since(clock.mono())),
        };
        match order {
            Ok(Order::Write(line)) => writing.write(&line, clock.mono()),
            Ok(Order::Flush(done)) => {
                writing.write_all(&tell_all_withheld(clock.mono()));
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let (withheld, next) = tell_withheld(clock.mono());
        writing.write_all(&withheld);
        wakes_at = next;
    }
}

/// Standard error, and what was told of the lines that it did not take.
struct Writing {
    output: Output<io::Stderr>,
    told: u64,
    told_at: Option<Instant>,
}

impl Writing {
    fn new() -> Self {
        Self { output: Output::new(io::stderr()), told: 0, told_at: None }
    }

    /// Writes a line, and now and then how many were lost before it.
    fn write(&mut self, line: &str, now: Instant) {
        let lost = LOST.read().all();
        let is_due = self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= LOSSES_EVERY);
        if self.write_line(line) && lost > self.told && is_due {
            self.write_line(&format!(
                "{} lines of this log were lost before the line above",
                lost - self.told
            ));
            (self.told, self.told_at) = (lost, Some(now));
        }
    }

    fn write_all(&mut self, lines: &[String]) {
        for line in lines {
            self.write_line(line);
        }
    }

    /// Says whether it was written.
    fn write_line(&mut self, line: &str) -> bool {
        let written = self.output.write(format!("keygate: {line}\n").as_bytes());
        if let Err(unwritten) = &written {
            LOST.unwritten.fetch_add(unwritten.lines, Ordering::Relaxed);
        }
        written.is_ok()
    }
}

/// Logs one line about the process itself, to standard error.
///
/// It never waits: a worker must not stand still because the reader of its log does. A line that finds the queue
/// full is dropped and counted. Characters that deceive a reader are escaped.
///
/// Not for what strangers or an outage can cause many times: see [`Event`](super::Event).
pub fn log(line: &str) {
    let _ = try_log(line);
}

/// As [`log`], and says whether the line found a place in the queue.
#[must_use]
pub fn try_log(line: &str) -> bool {
    let has_place =
        |queue: &SyncSender<Order>| queue.try_send(Order::Write(escaped_lines(line).into_owned())).is_ok();
    let has_place = LINES.as_ref().is_some_and(has_place);
    if !has_place {
        LOST.queue_full.fetch_add(1, Ordering::Relaxed);
    }
    has_place
}

/// Waits until everything logged before is written, but about a second at most. Says whether it was written.
pub fn flush_log() -> bool {
    const STEP: Duration = Duration::from_millis(5);
    let Some(queue) = &*LINES else { return false };
    let (done, written) = sync_channel(1);
    let mut order = Order::Flush(done);
    // A reader that stands still must not keep the process from ending.
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        match queue.try_send(order) {
            Ok(()) => return written.recv_timeout(PATIENCE).is_ok(),
            Err(TrySendError::Full(refused)) => order = refused,
            Err(TrySendError::Disconnected(_)) => return false,
        }
        std::thread::sleep(STEP);
    }
    false
}
