//! Lines about the process itself, on standard error or in a file. One thread writes them, from a bounded queue.
//!
//! A gateway writes `2026-11-28T03:00:12.345Z error event_link: the event link is down: …`, or the same as JSON.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::event::{Level, Notice};
use super::output::{Losses, Lost, Output};
use super::sink::Sink;
use super::throttle::{tell_all_withheld, tell_withheld};
use crate::vocabulary::clock::{Clock, UnixMillis};

/// Lines that may wait to be written.
const QUEUED_LINES: usize = 256;
/// The pause between two lines about lines that were lost.
const LOSSES_EVERY: Duration = Duration::from_secs(10);
/// How long the end of the process waits for an output that its reader does not read.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) level: Level,
    /// The name of the event or the notice.
    pub(super) event: &'static str,
    /// What deceives a reader is escaped.
    pub(super) message: String,
    /// How many lines were withheld, in a line that tells so.
    pub(super) withheld: u64,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineFormat {
    /// As a command writes what it has to say, without a time: somebody waits for it.
    Plain,
    #[default]
    Text,
    Json,
}

/// An order to the thread that writes lines.
enum Order {
    Write(UnixMillis, Line),
    /// Answer when everything before this is written.
    Flush(SyncSender<()>),
    /// Write like this from now on, to this file or where it went so far.
    Use(LineFormat, Option<Sink>),
    Reopen,
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
    let clock = Clock::system();
    let Ok(mut writing) = Writing::new() else { return };
    let mut wakes_at: Option<Instant> = None;
    loop {
        let order = match wakes_at {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => orders.recv_timeout(at.saturating_duration_since(clock.mono())),
        };
        let now = clock.now();
        match order {
            Ok(Order::Write(at, line)) => writing.write(at, &line, now.mono),
            Ok(Order::Flush(done)) => {
                writing.write_all(now.wall, &tell_all_withheld(now.mono));
                let _ = done.send(());
            }
            Ok(Order::Use(format, sink)) => writing.change(format, sink),
            Ok(Order::Reopen) => writing.reopen(now.wall),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let (withheld, next) = tell_withheld(now.mono);
        writing.write_all(now.wall, &withheld);
        wakes_at = next;
    }
}

/// The output, and what was told of the lines that it did not take.
struct Writing {
    format: LineFormat,
    output: Output<Sink>,
    told: u64,
    told_at: Option<Instant>,
}

impl Writing {
    fn new() -> io::Result<Self> {
        let output = Output::new(Sink::standard(&io::stderr())?);
        Ok(Self { format: LineFormat::Plain, output, told: 0, told_at: None })
    }

    fn change(&mut self, format: LineFormat, sink: Option<Sink>) {
        self.format = format;
        if let Some(sink) = sink {
            self.output = Output::new(sink);
        }
    }

    fn reopen(&mut self, at: UnixMillis) {
        let outcome = self.output.to().reopen();
        let name = self.output.to().name("standard error").into_owned();
        let (notice, message) = match outcome {
            Ok(()) => {
                (Notice::LogReopened, format!("the files of the log were opened again; this is {name}"))
            }
            Err(error) => (
                Notice::LogNotReopened,
                format!("{name} cannot be opened again: {error}; lines still go to the file that was open"),
            ),
        };
        self.write_line(at, &Line { level: notice.level(), event: notice.as_str(), message, withheld: 0 });
    }

    /// Writes a line, and now and then how many were lost before it.
    fn write(&mut self, at: UnixMillis, line: &Line, now: Instant) {
        let lost = LOST.read().all();
        let is_due = self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= LOSSES_EVERY);
        if self.write_line(at, line) && lost > self.told && is_due {
            let notice = Notice::LinesLost;
            let message = format!("{} lines of this log were lost before the line above", lost - self.told);
            self.write_line(
                at,
                &Line { level: notice.level(), event: notice.as_str(), message, withheld: 0 },
            );
            (self.told, self.told_at) = (lost, Some(now));
        }
    }

    fn write_all(&mut self, at: UnixMillis, lines: &[Line]) {
        for line in lines {
            self.write_line(at, line);
        }
    }

    /// Says whether it was written.
    fn write_line(&mut self, at: UnixMillis, line: &Line) -> bool {
        let written = self.output.write(self.format.write(at, line).as_bytes());
        if let Err(unwritten) = &written {
            LOST.unwritten.fetch_add(unwritten.lines, Ordering::Relaxed);
        }
        written.is_ok()
    }
}

#[derive(Serialize)]
struct JsonLine<'l> {
    time: String,
    level: &'static str,
    event: &'static str,
    message: &'l str,
    #[serde(skip_serializing_if = "Option::is_none")]
    withheld: Option<u64>,
}

impl LineFormat {
    /// A line with its end.
    fn write(self, at: UnixMillis, line: &Line) -> String {
        let Line { level, event, message, withheld } = line;
        let text = format!("{at} {} {event}: {message}\n", level.as_str());
        match self {
            Self::Plain => format!("keygate: {message}\n"),
            Self::Text => text,
            Self::Json => {
                let withheld = Some(*withheld).filter(|count| *count > 0);
                let line = JsonLine { time: at.to_string(), level: level.as_str(), event, message, withheld };
                // It has only strings and a number, so it cannot fail to serialise.
                serde_json::to_string(&line).map_or(text, |line| line + "\n")
            }
        }
    }
}

/// Where and how this process writes its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    pub format: LineFormat,
    /// `None` for standard error.
    pub file: Option<PathBuf>,
}

/// Writes as `settings` say from now on.
///
/// # Errors
/// When the file cannot be opened. Then nothing changes.
pub fn use_log(settings: &LogSettings) -> io::Result<()> {
    let sink = settings.file.as_deref().map(Path::new).map(Sink::file).transpose()?;
    order(Order::Use(settings.format, sink));
    Ok(())
}

/// Opens the file of the log again, if it goes to one.
pub fn reopen_log() {
    order(Order::Reopen);
}

/// Queues a line. It never waits: a worker must not stand still because the reader of its log does. A line that finds
/// the queue full is dropped and counted. Says whether it found a place.
pub(super) fn write(line: Line) -> bool {
    let at = Clock::system().now().wall;
    let has_place = |queue: &SyncSender<Order>| queue.try_send(Order::Write(at, line)).is_ok();
    let has_place = LINES.as_ref().is_some_and(has_place);
    if !has_place {
        LOST.queue_full.fetch_add(1, Ordering::Relaxed);
    }
    has_place
}

/// Waits until everything logged before is written, but about a second at most. Says whether it was written.
pub fn flush_log() -> bool {
    let (done, written) = sync_channel(1);
    order(Order::Flush(done)) && written.recv_timeout(PATIENCE).is_ok()
}

/// Gives an order, and waits about a second at most for a place in the queue. Says whether there was one.
fn order(mut order: Order) -> bool {
    const STEP: Duration = Duration::from_millis(5);
    let Some(queue) = &*LINES else { return false };
    // A reader that stands still must not keep the process from ending.
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        match queue.try_send(order) {
            Ok(()) => return true,
            Err(TrySendError::Full(refused)) => order = refused,
            Err(TrySendError::Disconnected(_)) => return false,
        }
        std::thread::sleep(STEP);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: UnixMillis = UnixMillis(1_795_834_812_345);

    #[test]
    fn a_line_has_its_time_its_level_and_its_event_in_both_forms() {
        let line =
            Line { level: Level::Warn, event: "remark", message: "a \"b\"\nc".to_owned(), withheld: 0 };
        assert_eq!(LineFormat::Text.write(AT, &line), "2026-11-28T03:00:12.345Z warn remark: a \"b\"\nc\n");
        assert_eq!(
            LineFormat::Json.write(AT, &line),
            "{\"time\":\"2026-11-28T03:00:12.345Z\",\"level\":\"warn\",\"event\":\"remark\",\"message\":\"a \\\"b\\\"\\nc\"}\n"
        );
        assert_eq!(LineFormat::Plain.write(AT, &line), "keygate: a \"b\"\nc\n");
        let told = Line { withheld: 7, ..line };
        assert!(LineFormat::Json.write(AT, &told).ends_with(",\"withheld\":7}\n"));
    }
}
