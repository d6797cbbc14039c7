//! Lines about the process itself, on standard error. One thread writes them, from a bounded queue.

use std::io;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::output::{Losses, Lost, Output};
use super::pace::is_due;
use crate::vocabulary::clock::Clock;

/// Lines that may wait to be written.
const QUEUED_LINES: usize = 256;
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
    let (mut output, clock) = (Output::new(io::stderr()), Clock::system());
    let mut write = |line: &str| {
        let written = output.write(format!("keygate: {line}\n").as_bytes());
        if let Err(unwritten) = &written {
            LOST.unwritten.fetch_add(unwritten.lines, Ordering::Relaxed);
        }
        written.is_ok()
    };
    let (mut told, mut told_at) = (0, None);
    for order in orders {
        match order {
            Order::Write(line) => {
                let lost = LOST.read().all();
                if write(&line) && lost > told && is_due(&mut told_at, clock.mono()) {
                    write(&format!("{} lines of this log were lost before the line above", lost - told));
                    told = lost;
                }
            }
            Order::Flush(done) => drop(done.send(())),
        }
    }
}

/// Logs one line about the process itself, to standard error.
///
/// It never waits: a worker must not stand still because the reader of its log does. A line that finds the queue
/// full is dropped and counted.
pub fn log(line: &str) {
    let _ = try_log(line);
}

/// As [`log`], and says whether the line found a place in the queue.
#[must_use]
pub fn try_log(line: &str) -> bool {
    let has_place = |queue: &SyncSender<Order>| queue.try_send(Order::Write(line.to_owned())).is_ok();
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
