//! A record of every request, on standard output.
//!
//! A record is written outside the request's path: each thread gathers its records and hands them over in bunches
//! to a bounded queue, from which one thread writes. When the queue is full, or they cannot be written, records are
//! dropped and counted. No request ever waits for it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Serialize;
use tokio::sync::Notify;

use super::log::{PATIENCE, log};
use super::output::{Lost, Output, Unwritten};
use super::throttle::Event;
use crate::vocabulary::cache_level::Level;
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::{KeyId, OrgId, RequestId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::reason::Reason;

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

/// The record of one request.
#[derive(Clone, Debug)]
pub struct Record {
    pub at: UnixMillis,
    pub request: RequestId,
    /// A method of RFC 9110 or 5789, else `_OTHER`: a client can send any token as its method.
    pub method: &'static str,
    /// The id of the route; `None` where no rule matched, or the request was refused before routing.
    pub route: Option<Box<str>>,
    pub status: Option<StatusCode>,
    /// Why keygate refused it, or `None` where it did not.
    pub reason: Option<Reason>,
    pub key: Option<KeyId>,
    pub org: Option<OrgId>,
    pub environment: Option<Environment>,
    /// Which level of the cache answered for the key.
    pub level: Option<Level>,
    /// From the parsed head to the answer's last byte.
    pub duration: Duration,
    /// keygate's own share of it, where the request was forwarded.
    pub overhead: Option<Duration>,
    /// From the beginning of the upstream request to the head of its answer.
    pub upstream: Option<Duration>,
    /// Whether the whole answer was handed to the client's connection.
    pub complete: bool,
}

/// The number of records that one thread gathers before it hands them over.
const BUNCH: usize = 128;
/// Bunches that may wait to be written.
const QUEUED_BUNCHES: usize = 64;
/// How long a record may wait for its bunch to fill.
const BUNCH_DELAY: Duration = Duration::from_millis(20);

/// Writes records: one thread, one queue.
#[derive(Debug)]
pub struct RecordWriter {
    queue: Option<SyncSender<Vec<Record>>>,
    lost: Arc<Lost>,
    /// Disconnected when the thread has ended.
    ended: Option<Receiver<()>>,
}

impl RecordWriter {
    /// Starts writing to standard output; with [`RequestLog::Off`] records go nowhere.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(format: RequestLog) -> io::Result<Self> {
        let lost = Arc::<Lost>::default();
        if format == RequestLog::Off {
            return Ok(Self { queue: None, lost, ended: None });
        }
        let json = match format {
            RequestLog::Auto => !io::stdout().is_terminal(),
            RequestLog::Json => true,
            RequestLog::Text | RequestLog::Off => false,
        };
        let (queue, bunches) = sync_channel(QUEUED_BUNCHES);
        let (end, ended) = sync_channel(1);
        let counted = Arc::clone(&lost);
        std::thread::Builder::new().name("keygate-records".to_owned()).spawn(move || {
            write_records(&bunches, json, &counted);
            drop(end);
        })?;
        Ok(Self { queue: Some(queue), lost, ended: Some(ended) })
    }

    /// The queue's end for one thread.
    #[must_use]
    pub fn sink(&self) -> RecordSink {
        RecordSink {
            queue: self.queue.clone(),
            lost: Arc::clone(&self.lost),
            bunch: RefCell::default(),
            begun: Notify::new(),
        }
    }

    /// The count of records that were not written.
    #[must_use]
    pub fn lost(&self) -> Arc<Lost> {
        Arc::clone(&self.lost)
    }

    /// Writes what is queued, once every sink is dropped, and ends. Waits a second at most.
    pub fn finish(mut self) {
        self.queue = None;
        if let Some(ended) = self.ended.take() {
            // The thread drops the sender when it ends. A reader that stands still must not keep the process
            // from ending.
            let _ = ended.recv_timeout(PATIENCE);
        }
    }
}

/// One thread's records on their way to the writer.
#[derive(Debug)]
pub struct RecordSink {
    queue: Option<SyncSender<Vec<Record>>>,
    lost: Arc<Lost>,
    bunch: RefCell<Vec<Record>>,
    /// Notified when a bunch gets its first record.
    begun: Notify,
}

impl RecordSink {
    /// Whether records are written, and so are worth making.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Takes a record. It is written once its bunch is full, or 20 milliseconds later.
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

    /// Hands over the bunches that do not fill. It never ends.
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
            self.lost.queue_full.fetch_add(bunch.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for RecordSink {
    fn drop(&mut self) {
        self.flush();
    }
}

fn write_records(bunches: &Receiver<Vec<Record>>, json: bool, lost: &Lost) {
    let colour = io::stdout().is_terminal();
    let (mut writing, clock) = (Writing::default(), Clock::system());
    let mut output = Output::new(unbuffered_stdout());
    let mut text = Vec::with_capacity(32 << 10);
    for bunch in bunches {
        text.clear();
        for record in &bunch {
            if json { write_json(&mut text, record) } else { write_text(&mut text, record, colour) }
        }
        // When the operator closes the pipe, or the disk is full, the gateway must go on.
        let written = output.write(&text);
        writing.tell(written, lost, clock.mono());
    }
}

/// Standard output without the buffer of the standard library, which keeps a part of what could not be written.
fn unbuffered_stdout() -> Box<dyn Write> {
    match io::stdout().as_fd().try_clone_to_owned() {
        Ok(descriptor) => Box::new(File::from(descriptor)),
        Err(_) => Box::new(io::stdout()),
    }
}

/// Whether records can be written, as far as the log was told.
#[derive(Debug, Default)]
struct Writing {
    /// How many had been lost when the log was told that they cannot be written.
    failing_since: Option<u64>,
}

impl Writing {
    /// Counts what was not written, and logs when records cannot be written any more, and when they can again.
    fn tell(&mut self, written: Result<(), Unwritten>, lost: &Lost, now: Instant) {
        match written {
            Ok(()) => {
                if let Some(before) = self.failing_since.take() {
                    let lost = lost.read().unwritten.saturating_sub(before);
                    log(&format!("records of requests are written again; {lost} were lost"));
                }
            }
            Err(Unwritten { lines, cause }) => {
                let before = lost.unwritten.fetch_add(lines, Ordering::Relaxed);
                if self.failing_since.is_none() {
                    let line = || {
                        format!(
                            "records of requests cannot be written to standard output: {cause}; they are lost, and counted \
                             in keygate_records_dropped_total"
                        )
                    };
                    self.failing_since = Event::RecordsNotWritten.log(now, line).then_some(before);
                }
            }
        }
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
            let _ = write!(out, " {}", reason.as_str());
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
    reason: Option<&'static str>,
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
        reason: record.reason.map(Reason::as_str),
        key_id: record.key,
        organization_id: record.org,
        environment: record.environment,
        cache: record.level.map(Level::as_str),
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
