//! What keygate tells its operator: a line for what happens to the process, a record for every request.
//!
//! A record is written off the request's path: a thread gathers its records and hands them over in bunches to
//! a bounded queue, from which one thread writes. When the queue is full, records are dropped and counted,
//! never waited for.
//!
//! Never in a record or a line: a key or a part of one, a query, a header value or a body of the client's.

pub mod metrics;

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Serialize;
use tokio::sync::Notify;

use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId, RequestId};
use crate::vocabulary::key::Environment;

/// How the record of each request is written to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestLog {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    Text,
    Json,
    Off,
}

/// Lines about the process that may wait to be written.
const QUEUED_LINES: usize = 256;
/// How long the end of the process waits for a log that nobody reads.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the thread that writes lines is told.
enum Order {
    Write(String),
    /// Say so when everything before this is written.
    Flush(SyncSender<()>),
}

/// The queue to the thread that writes lines; `None` where it could not be started.
static LINES: LazyLock<Option<SyncSender<Order>>> = LazyLock::new(|| {
    let (queue, orders) = sync_channel(QUEUED_LINES);
    let thread = std::thread::Builder::new().name("keygate-log".to_owned());
    thread.spawn(move || write_lines(&orders)).ok().map(|_| queue)
});

fn write_lines(orders: &Receiver<Order>) {
    for order in orders {
        match order {
            Order::Write(line) => {
                // Nobody is left to tell when standard error is gone.
                let _ = writeln!(io::stderr().lock(), "keygate: {line}");
            }
            Order::Flush(done) => drop(done.send(())),
        }
    }
}

/// One line about the process itself, to standard error.
///
/// It waits for nobody: a worker must not stand still because the reader of its log does. What finds the
/// queue full is dropped.
pub fn log(line: &str) {
    let _ = try_log(line);
}

/// As [`log`], and tells whether the line found a place.
#[must_use]
pub fn try_log(line: &str) -> bool {
    LINES.as_ref().is_some_and(|queue| queue.try_send(Order::Write(line.to_owned())).is_ok())
}

/// Waits until what was logged is written, but not for long; tells whether it was.
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

/// Lets a thing be said at most every ten seconds.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Cell<Option<Instant>>,
}

impl Throttle {
    const EVERY: Duration = Duration::from_secs(10);

    /// Logs the line, unless this throttle let one through a moment before `now`.
    pub fn log(&self, now: Instant, line: impl FnOnce() -> String) {
        if self.last.get().is_none_or(|last| now.saturating_duration_since(last) >= Self::EVERY) {
            self.last.set(Some(now));
            log(&line());
        }
    }
}

/// What is recorded of one request.
#[derive(Clone, Debug)]
pub struct Record {
    pub at: UnixMillis,
    pub request: RequestId,
    /// A method of RFC 9110 or 5789, else `_OTHER`: a token of the client's choice could be anything.
    pub method: &'static str,
    /// The route's id; `None` where no rule matched or the request was refused before.
    pub route: Option<Box<str>>,
    pub status: Option<StatusCode>,
    /// Why keygate refused it, or `None` where it did not.
    pub reason: Option<&'static str>,
    pub key: Option<KeyId>,
    pub org: Option<OrgId>,
    pub environment: Option<Environment>,
    /// Which level of the cache knew the key.
    pub level: Option<&'static str>,
    /// From the parsed head to the answer's last byte.
    pub duration: Duration,
    /// keygate's own share of it, where the request was forwarded.
    pub overhead: Option<Duration>,
    /// From asking the upstream to its answer's head.
    pub upstream: Option<Duration>,
    /// Whether the whole answer was handed to the client's connection.
    pub complete: bool,
}

/// Records gathered by one thread before they are handed over.
const BUNCH: usize = 128;
/// Bunches that may wait to be written.
const QUEUED_BUNCHES: usize = 64;
/// How long a record may wait for its bunch to fill.
const BUNCH_DELAY: Duration = Duration::from_millis(20);

/// The writing end: one thread, one queue.
#[derive(Debug)]
pub struct RecordWriter {
    queue: Option<SyncSender<Vec<Record>>>,
    dropped: Arc<AtomicU64>,
    /// Says when the thread has ended, by being hung up.
    ended: Option<Receiver<()>>,
}

impl RecordWriter {
    /// Starts writing to standard output; with [`RequestLog::Off`] records go nowhere.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(format: RequestLog) -> io::Result<Self> {
        let dropped = Arc::new(AtomicU64::new(0));
        if format == RequestLog::Off {
            return Ok(Self { queue: None, dropped, ended: None });
        }
        let json = match format {
            RequestLog::Auto => !io::stdout().is_terminal(),
            RequestLog::Json => true,
            RequestLog::Text | RequestLog::Off => false,
        };
        let (queue, bunches) = sync_channel(QUEUED_BUNCHES);
        let (end, ended) = sync_channel(1);
        std::thread::Builder::new().name("keygate-records".to_owned()).spawn(move || {
            write_records(&bunches, json);
            drop(end);
        })?;
        Ok(Self { queue: Some(queue), dropped, ended: Some(ended) })
    }

    /// A thread's own end of the queue.
    #[must_use]
    pub fn sink(&self) -> RecordSink {
        RecordSink {
            queue: self.queue.clone(),
            dropped: Arc::clone(&self.dropped),
            bunch: RefCell::default(),
            begun: Notify::new(),
        }
    }

    /// Counts the records that found the queue full.
    #[must_use]
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }

    /// Writes what is queued, once every sink is gone, and ends; but not later than in a second.
    pub fn finish(mut self) {
        self.queue = None;
        if let Some(ended) = self.ended.take() {
            // The sender goes with the thread. A reader that stands still must not keep the process from
            // ending.
            let _ = ended.recv_timeout(PATIENCE);
        }
    }
}

/// One thread's records on their way to the writer.
#[derive(Debug)]
pub struct RecordSink {
    queue: Option<SyncSender<Vec<Record>>>,
    dropped: Arc<AtomicU64>,
    bunch: RefCell<Vec<Record>>,
    /// Told when a bunch gets its first record.
    begun: Notify,
}

impl RecordSink {
    /// Whether records go anywhere, and so are worth making.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    pub fn push(&self, record: Record) {
        let mut bunch = self.bunch.borrow_mut();
        bunch.push(record);
        let gathered = bunch.len();
        drop(bunch);
        if gathered >= BUNCH {
            self.flush();
        } else if gathered == 1 {
            self.begun.notify_one();
        }
    }

    /// Hands over the bunches that do not fill. Runs for as long as the thread does.
    pub async fn keep_flushing(&self) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(BUNCH_DELAY).await;
            self.flush();
        }
    }

    fn flush(&self) {
        let bunch = self.bunch.take();
        let Some(queue) = self.queue.as_ref().filter(|_| !bunch.is_empty()) else { return };
        if let Err(TrySendError::Full(bunch) | TrySendError::Disconnected(bunch)) = queue.try_send(bunch) {
            self.dropped.fetch_add(bunch.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for RecordSink {
    fn drop(&mut self) {
        self.flush();
    }
}

fn write_records(bunches: &Receiver<Vec<Record>>, json: bool) {
    let stdout = io::stdout();
    let colour = stdout.is_terminal();
    let mut text = Vec::with_capacity(32 << 10);
    for bunch in bunches {
        text.clear();
        for record in &bunch {
            if json { write_json(&mut text, record) } else { write_text(&mut text, record, colour) }
        }
        // A closed pipe must not stop the gateway; the operator closed it.
        let _ = stdout.lock().write_all(&text);
    }
}

/// `13:02:11.250 200 GET jobs.read live key_01J… 0.4 ms req_01J…`
fn write_text(out: &mut Vec<u8>, record: &Record, colour: bool) {
    let at = record.at.to_string();
    let time = at.get(11..23).unwrap_or(&at);
    let status = record.status.map_or(499, |status| status.as_u16());
    let (on, off) = match (colour, status) {
        (false, _) => ("", ""),
        (true, 200..=399) => ("\u{1b}[32m", "\u{1b}[0m"),
        (true, 400..=498) => ("\u{1b}[33m", "\u{1b}[0m"),
        (true, _) => ("\u{1b}[31m", "\u{1b}[0m"),
    };
    let route = record.route.as_deref().unwrap_or("-");
    let environment = record.environment.map_or("-", Environment::as_str);
    let millis = milliseconds(record.duration);
    let _ = write!(out, "{time} {on}{status}{off} {} {route} {environment}", record.method);
    if let Some(key) = record.key {
        let _ = write!(out, " {key}");
    }
    let _ = write!(out, " {millis:.1} ms");
    match record.reason {
        Some(reason) => {
            let _ = write!(out, " {reason}");
        }
        None if !record.complete => out.extend_from_slice(b" incomplete"),
        None => {}
    }
    let _ = writeln!(out, " {}", record.request);
}

#[derive(Serialize)]
struct JsonRecord<'r> {
    time: String,
    request_id: RequestId,
    #[serde(rename = "http.request.method")]
    method: &'static str,
    #[serde(rename = "http.route")]
    route: Option<&'r str>,
    #[serde(rename = "http.response.status_code")]
    status: Option<u16>,
    reason: Option<&'r str>,
    key_id: Option<KeyId>,
    organization_id: Option<OrgId>,
    environment: Option<Environment>,
    cache: Option<&'static str>,
    duration_ms: f64,
    overhead_ms: Option<f64>,
    upstream_ms: Option<f64>,
    complete: bool,
}

fn write_json(out: &mut Vec<u8>, record: &Record) {
    let line = JsonRecord {
        time: record.at.to_string(),
        request_id: record.request,
        method: record.method,
        route: record.route.as_deref(),
        status: record.status.map(|status| status.as_u16()),
        reason: record.reason,
        key_id: record.key,
        organization_id: record.org,
        environment: record.environment,
        cache: record.level,
        duration_ms: milliseconds(record.duration),
        overhead_ms: record.overhead.map(milliseconds),
        upstream_ms: record.upstream.map(milliseconds),
        complete: record.complete,
    };
    // Nothing in it can fail to serialise, and a vector takes every byte.
    if serde_json::to_writer(&mut *out, &line).is_ok() {
        out.push(b'\n');
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
