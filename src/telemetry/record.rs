//! A record of every request, on standard output or in a file.
//!
//! A record is written outside the request's path: each thread gathers its records and hands them over in bunches
//! to a bounded queue, from which one thread writes. When the queue is full, or they cannot be written, records are
//! dropped and counted. No request ever waits for it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Serialize;
use tokio::sync::Notify;

use super::event::{Event, Notice};
use super::log::PATIENCE;
use super::output::{Lost, Output, Unwritten};
use super::sink::Sink;
use crate::vocabulary::cache_level::Level;
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::grpc::GrpcStatus;
use crate::vocabulary::id::{KeyId, OrgId, RequestId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::scope::OneOf;
use crate::vocabulary::reason::Reason;
use crate::vocabulary::text::escaped;

/// Where and how the record of each request is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordSettings {
    pub format: RequestLog,
    /// `None` for standard output.
    pub file: Option<PathBuf>,
    /// Whether records have the names of keys and organisations.
    pub names: bool,
}

/// How the record of each request is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestLog {
    /// Text on a terminal, else JSON. In a file JSON.
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
    /// The client's address: the peer's, or behind trusted proxies the one that they name.
    pub client: IpAddr,
    /// `None` where no rule matched, or the request was refused before routing.
    pub route: Option<RecordedRoute>,
    pub status: Option<StatusCode>,
    /// Why keygate refused it, or `None` where it did not.
    pub reason: Option<Reason>,
    /// What the key lacked, where it was refused for that.
    pub missing_scope: Option<OneOf>,
    /// What a gRPC caller was told in the place of `status`, which keygate decided.
    pub told: Option<GrpcStatus>,
    pub key: Option<KeyId>,
    pub org: Option<OrgId>,
    /// Of the key and the organisation, where they are asked for.
    pub names: Option<Box<[String; 2]>>,
    pub environment: Option<Environment>,
    /// Which level of the cache answered for the key.
    pub level: Option<Level>,
    /// From the parsed head to the answer's last byte.
    pub duration: Duration,
    /// keygate's own share of it, where the request was forwarded.
    pub overhead: Option<Duration>,
    /// From the beginning of the upstream request to the head of its answer.
    pub upstream: Option<Duration>,
    /// The endpoint that was tried last, `host:port`.
    pub endpoint: Option<Arc<str>>,
    /// Bytes of the body that the client sent, and of the one that it was sent; of a WebSocket both directions.
    pub received: u64,
    pub sent: u64,
    /// Whether the whole answer was handed to the client's connection.
    pub complete: bool,
}

/// The route of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRoute {
    pub id: Arc<str>,
    /// The pattern that the path matched, such as `/v1/jobs/{id}`.
    pub template: Arc<str>,
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
    names: bool,
    /// Whether the file is to be opened again.
    reopen: Arc<AtomicBool>,
    /// Disconnected when the thread has ended.
    ended: Option<Receiver<()>>,
}

impl RecordWriter {
    /// Starts writing; with [`RequestLog::Off`] records go nowhere.
    ///
    /// # Errors
    /// When the file cannot be opened, or the thread cannot be started.
    pub fn start(settings: &RecordSettings) -> io::Result<Self> {
        let (lost, reopen) = (Arc::<Lost>::default(), Arc::<AtomicBool>::default());
        let RecordSettings { format, file, names } = settings;
        if *format == RequestLog::Off {
            return Ok(Self { queue: None, lost, names: false, reopen, ended: None });
        }
        let on_terminal = file.is_none() && io::stdout().is_terminal();
        let form = match format {
            RequestLog::Auto if !on_terminal => Form::Json,
            RequestLog::Json => Form::Json,
            RequestLog::Auto | RequestLog::Text | RequestLog::Off => Form::Text { colour: on_terminal },
        };
        let sink = file.as_deref().map_or_else(|| Sink::standard(&io::stdout()), Sink::file)?;
        let (queue, bunches) = sync_channel(QUEUED_BUNCHES);
        let (end, ended) = sync_channel(1);
        let mut writing =
            Writing { form, lost: Arc::clone(&lost), reopen: Arc::clone(&reopen), failing_since: None };
        std::thread::Builder::new().name("keygate-records".to_owned()).spawn(move || {
            writing.write_all(&bunches, Output::new(sink));
            drop(end);
        })?;
        Ok(Self { queue: Some(queue), lost, names: *names, reopen, ended: Some(ended) })
    }

    /// Opens the file again, if there is one.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        // It wakes the thread. Where the queue is full, the thread is awake.
        let _ = self.queue.as_ref().map(|queue| queue.try_send(Vec::new()));
    }

    /// The queue's end for one thread.
    #[must_use]
    pub fn sink(&self) -> RecordSink {
        RecordSink {
            queue: self.queue.clone(),
            lost: Arc::clone(&self.lost),
            names: self.names,
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
    names: bool,
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

    /// Whether records are to have names.
    #[must_use]
    pub const fn has_names(&self) -> bool {
        self.names
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

/// The form of records.
#[derive(Clone, Copy, Debug)]
enum Form {
    Text { colour: bool },
    Json,
}

/// The thread that writes.
#[derive(Debug)]
struct Writing {
    form: Form,
    lost: Arc<Lost>,
    reopen: Arc<AtomicBool>,
    /// How many had been lost when the log was told that records cannot be written.
    failing_since: Option<u64>,
}

impl Writing {
    fn write_all(&mut self, bunches: &Receiver<Vec<Record>>, mut output: Output<Sink>) {
        let clock = Clock::system();
        let mut text = Vec::with_capacity(32 << 10);
        for bunch in bunches {
            if self.reopen.swap(false, Ordering::Acquire) {
                reopen(output.to());
            }
            text.clear();
            for record in &bunch {
                match self.form {
                    Form::Json => write_json(&mut text, record),
                    Form::Text { colour } => write_text(&mut text, record, colour),
                }
            }
            // When the operator closes the pipe, or the disk is full, the gateway must go on.
            let written = output.write(&text);
            self.tell(written, &output.to().name("standard output"), clock.mono());
        }
    }

    /// Counts what was not written, and logs when records cannot be written any more, and when they can again.
    fn tell(&mut self, written: Result<(), Unwritten>, output: &str, now: Instant) {
        match written {
            Ok(()) => {
                if let Some(before) = self.failing_since.take() {
                    let lost = self.lost.read().unwritten.saturating_sub(before);
                    Notice::RecordsWritten
                        .log(&format!("records of requests are written again; {lost} were lost"));
                }
            }
            Err(Unwritten { lines, cause }) => {
                let before = self.lost.unwritten.fetch_add(lines, Ordering::Relaxed);
                if self.failing_since.is_none() {
                    let line = || {
                        format!(
                            "records of requests cannot be written to {output}: {cause}; they are lost, and counted in \
                             keygate_records_dropped_total"
                        )
                    };
                    self.failing_since = Event::RecordsNotWritten.log(now, line).then_some(before);
                }
            }
        }
    }
}

fn reopen(sink: &mut Sink) {
    if let Err(error) = sink.reopen() {
        Notice::LogNotReopened.log(&format!(
            "{} cannot be opened again: {error}; records still go to the file that was open",
            sink.name("standard output")
        ));
    }
}

/// `13:02:11.250 200 GET jobs.read live key_01J… 192.0.2.1 0.4 ms req_01J…`
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
    let route = record.route.as_ref().map_or("-", |route| &*route.id);
    let environment = record.environment.map_or("-", Environment::as_str);
    let millis = milliseconds(record.duration);
    let _ = write!(out, "{time} {on}{status}{off} {} {route} {environment}", record.method);
    if let Some(key) = record.key {
        let _ = write!(out, " {key}");
    }
    let _ = write!(out, " {} {millis:.1} ms", record.client);
    match record.reason {
        Some(reason) => {
            let _ = write!(out, " {}", reason.as_str());
            if let Some(scope) = &record.missing_scope {
                let _ = write!(out, " ({scope})");
            }
            if let Some(told) = record.told {
                let _ = write!(out, " gRPC {}", told.number());
            }
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
    #[serde(rename = "client.address")]
    client: IpAddr,
    #[serde(rename = "http.route")]
    route: Option<&'r str>,
    #[serde(rename = "url.template")]
    template: Option<&'r str>,
    #[serde(rename = "http.response.status_code")]
    status: Option<u16>,
    reason: Option<&'static str>,
    missing_scope: Option<String>,
    #[serde(rename = "rpc.grpc.status_code", skip_serializing_if = "Option::is_none")]
    told: Option<u8>,
    key_id: Option<KeyId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_name: Option<Cow<'r, str>>,
    organization_id: Option<OrgId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    organization_name: Option<Cow<'r, str>>,
    environment: Option<Environment>,
    cache: Option<&'static str>,
    duration_ms: f64,
    overhead_ms: Option<f64>,
    upstream_ms: Option<f64>,
    endpoint: Option<&'r str>,
    #[serde(rename = "http.request.body.size")]
    received: u64,
    #[serde(rename = "http.response.body.size")]
    sent: u64,
    complete: bool,
}

fn write_json(out: &mut Vec<u8>, record: &Record) {
    let [key_name, organization_name] = match record.names.as_deref() {
        Some(names) => names.each_ref().map(|name| Some(escaped(name))),
        None => [None, None],
    };
    let line = JsonRecord {
        time: record.at.to_string(),
        request_id: record.request,
        method: record.method,
        client: record.client,
        route: record.route.as_ref().map(|route| &*route.id),
        template: record.route.as_ref().map(|route| &*route.template),
        status: record.status.map(|status| status.as_u16()),
        reason: record.reason.map(Reason::as_str),
        missing_scope: record.missing_scope.as_ref().map(ToString::to_string),
        told: record.told.map(GrpcStatus::number),
        key_id: record.key,
        key_name,
        organization_id: record.org,
        organization_name,
        environment: record.environment,
        cache: record.level.map(Level::as_str),
        duration_ms: milliseconds(record.duration),
        overhead_ms: record.overhead.map(milliseconds),
        upstream_ms: record.upstream.map(milliseconds),
        endpoint: record.endpoint.as_deref(),
        received: record.received,
        sent: record.sent,
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
