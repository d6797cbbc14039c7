//! Metrics: each thread counts for itself, and the counts are added up when somebody asks.
//!
//! A count on the request's path is one store to memory that no other thread writes: no lock, no shared cache
//! line, no looking up of labels. Label values come from closed sets (the policy's routes, the
//! configuration's upstreams, the lists below), so the number of series does not depend on keys,
//! organisations or anything that a client sends.

mod changes;
mod store;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use crate::clock::UnixMillis;
use crate::key::Environment;
use crate::rejection::Rejection;
use crate::store::cache::Level;
use crate::store::keeper::{Standing, Vitals};
use crate::upstream::health::Health;

pub use changes::ChangeMeter;
pub use store::{MeasuredStore, StoreMeter};

/// Methods that have a label of their own; the last is for every other.
const METHODS: [&str; 10] =
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "_OTHER"];
/// An upstream's statuses by class, keygate's own by number, and 499 for a client that left without an
/// answer.
const CODES: [&str; 19] = [
    "1xx", "2xx", "3xx", "4xx", "5xx", "400", "401", "403", "404", "409", "413", "414", "429", "431", "500",
    "502", "503", "504", "499",
];
const ENVIRONMENTS: [&str; 3] = ["live", "test", "none"];
/// What authentication and authorisation came to.
const AUTH_REASONS: [&str; 19] = [
    "authenticated",
    "key_missing",
    "key_not_bearer",
    "key_malformed",
    "key_unknown",
    "key_revoked",
    "key_disabled",
    "key_expired",
    "key_rotated",
    "key_wrong_environment",
    "organisation_suspended",
    "organisation_pending",
    "address_not_allowed",
    "scope_missing",
    "escalation",
    "no_route",
    "not_served_here",
    "store_unavailable",
    "lookups_exhausted",
];
/// Why an answer that had begun was cut.
const CUT_REASONS: [&str; 10] = [
    "key_unknown",
    "key_revoked",
    "key_disabled",
    "key_expired",
    "key_rotated",
    "organisation_suspended",
    "address_not_allowed",
    "scope_missing",
    "store_unavailable",
    "_other",
];
/// The label of requests that fall under no route.
const NO_ROUTE: &str = "_none";

/// Upper bounds in nanoseconds: from a fast answer to the longest poll.
const REQUEST_BUCKETS: [u64; 14] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];
/// Upper bounds in nanoseconds: from 10 µs, since keygate's own share is small.
const OVERHEAD_BUCKETS: [u64; 11] = [
    10_000,
    20_000,
    35_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    5_000_000,
    25_000_000,
    100_000_000,
];

/// Upper bounds in nanoseconds: from memory to a time-out.
const STORE_BUCKETS: [u64; 9] =
    [50_000, 100_000, 250_000, 1_000_000, 5_000_000, 25_000_000, 100_000_000, 250_000_000, 1_000_000_000];

/// Upper bounds in nanoseconds: from one machine to what is promised, and beyond.
const LAG_BUCKETS: [u64; 14] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// A histogram whose cells one thread writes, or several that take the trouble.
#[derive(Debug)]
struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    /// Not cumulative; what is above every bound is only in `count`.
    buckets: [AtomicU64; N],
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            buckets: [const { AtomicU64::new(0) }; N],
            count: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        }
    }

    fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(at) = self.bounds.iter().position(|bound| nanoseconds <= *bound) {
            add(&self.buckets[at], 1);
        }
        add(&self.nanoseconds, nanoseconds);
        add(&self.count, 1);
    }

    /// The same from any thread.
    fn observe_shared(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(at) = self.bounds.iter().position(|bound| nanoseconds <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Adds to a cell that only this thread writes: a plain load and store, where `fetch_add` would lock the bus.
fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// The same for a cell that can go down.
fn change(cell: &AtomicI64, by: i64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// One thread's counts.
///
/// Those of routes and upstreams are found by their names when a policy is loaded, and kept by whoever counts
/// in them. They stay when a policy no longer has the name: what was counted is never taken back.
#[derive(Debug)]
pub struct Cells {
    routes: Named<RouteCells>,
    upstreams: Named<UpstreamCells>,
    auth: [AtomicU64; AUTH_REASONS.len()],
    cut: [AtomicU64; CUT_REASONS.len()],
    cache: [AtomicU64; Level::ALL.len()],
    in_flight: AtomicI64,
    connections: [AtomicI64; Protocol::ALL.len()],
}

/// Locked when a policy is loaded and when somebody scrapes.
type Named<T> = Mutex<BTreeMap<Box<str>, Arc<T>>>;

/// The cells of this name, made if need be.
fn named<T>(cells: &Named<T>, name: &str, new: impl FnOnce() -> T) -> Arc<T> {
    let mut cells = cells.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(cells.entry(name.into()).or_insert_with(|| Arc::new(new())))
}

/// One thread's counts of one route's requests.
#[derive(Debug)]
pub struct RouteCells {
    /// By method, code, environment.
    requests: Box<[AtomicU64]>,
    duration: Histogram<14>,
    overhead: Histogram<11>,
}

/// One thread's counts of one upstream.
#[derive(Debug)]
pub struct UpstreamCells {
    duration: Histogram<14>,
}

/// One finished request, as it is counted.
#[derive(Debug)]
pub struct Finished {
    pub method: &'static str,
    pub code: Code,
    pub environment: Option<Environment>,
    pub duration: Duration,
    /// keygate's own share of the time, where the request was forwarded.
    pub overhead: Option<Duration>,
}

/// The `code` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// keygate's own answer.
    Own(StatusCode),
    /// An upstream's.
    Upstream(StatusCode),
    /// The client left before there was an answer.
    ClientGone,
}

impl Code {
    #[must_use]
    pub const fn status(self) -> Option<StatusCode> {
        match self {
            Self::Own(status) | Self::Upstream(status) => Some(status),
            Self::ClientGone => None,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::ClientGone => "499",
            Self::Upstream(status) => match status.as_u16() / 100 {
                1 => "1xx",
                2 => "2xx",
                3 => "3xx",
                4 => "4xx",
                _ => "5xx",
            },
            Self::Own(status) => match status.as_u16() {
                200..=299 => "2xx",
                400 => "400",
                401 => "401",
                403 => "403",
                404 => "404",
                409 => "409",
                413 => "413",
                414 => "414",
                429 => "429",
                431 => "431",
                502 => "502",
                503 => "503",
                504 => "504",
                _ => "500",
            },
        }
    }
}

/// What a client's connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Not known yet: TLS is being agreed on, or nothing has come.
    Opening,
    Http1,
    Http2,
    WebSocket,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Opening, Self::Http1, Self::Http2, Self::WebSocket];

    const fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::WebSocket => "websocket",
        }
    }
}

/// A client's connection, counted for as long as this lives. It stays on its thread.
#[derive(Debug)]
pub struct Connected {
    cells: Arc<Cells>,
    protocol: Cell<Protocol>,
}

impl Connected {
    /// It has become clear what the connection speaks from now on.
    pub fn speaks(&self, protocol: Protocol) {
        change(&self.cells.connections[self.protocol.replace(protocol) as usize], -1);
        change(&self.cells.connections[protocol as usize], 1);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        change(&self.cells.connections[self.protocol.get() as usize], -1);
    }
}

impl RouteCells {
    fn new() -> Self {
        let requests = METHODS.len() * CODES.len() * ENVIRONMENTS.len();
        Self {
            requests: (0..requests).map(|_| AtomicU64::new(0)).collect(),
            duration: Histogram::new(&REQUEST_BUCKETS),
            overhead: Histogram::new(&OVERHEAD_BUCKETS),
        }
    }

    /// A request has ended.
    pub fn finish(&self, finished: &Finished) {
        let environment =
            finished.environment.map_or(ENVIRONMENTS.len() - 1, |environment| environment as usize);
        let at = position(&CODES, finished.code.label()) + CODES.len() * position(&METHODS, finished.method);
        add(&self.requests[environment + ENVIRONMENTS.len() * at], 1);
        self.duration.observe(finished.duration);
        if let Some(overhead) = finished.overhead {
            self.overhead.observe(overhead);
        }
    }
}

impl UpstreamCells {
    /// The upstream has begun its answer after this time.
    pub fn answered(&self, after: Duration) {
        self.duration.observe(after);
    }
}

impl Cells {
    fn new() -> Self {
        Self {
            routes: Mutex::default(),
            upstreams: Mutex::default(),
            auth: [const { AtomicU64::new(0) }; AUTH_REASONS.len()],
            cut: [const { AtomicU64::new(0) }; CUT_REASONS.len()],
            cache: [const { AtomicU64::new(0) }; Level::ALL.len()],
            in_flight: AtomicI64::new(0),
            connections: [const { AtomicI64::new(0) }; Protocol::ALL.len()],
        }
    }

    /// The cells of a route, by its id; of the requests that fall under none, with `None`.
    #[must_use]
    pub fn route(&self, id: Option<&str>) -> Arc<RouteCells> {
        named(&self.routes, id.unwrap_or(NO_ROUTE), RouteCells::new)
    }

    /// The cells of an upstream, by its name.
    #[must_use]
    pub fn upstream(&self, name: &str) -> Arc<UpstreamCells> {
        named(&self.upstreams, name, || UpstreamCells { duration: Histogram::new(&REQUEST_BUCKETS) })
    }

    /// A client has connected.
    #[must_use]
    pub fn connected(self: &Arc<Self>) -> Connected {
        change(&self.connections[Protocol::Opening as usize], 1);
        Connected { cells: Arc::clone(self), protocol: Cell::new(Protocol::Opening) }
    }

    /// A request has begun.
    pub fn begin(&self) {
        change(&self.in_flight, 1);
    }

    /// A request has ended.
    pub fn end(&self) {
        change(&self.in_flight, -1);
    }

    /// A key was found to open its request.
    pub fn authenticated(&self) {
        add(&self.auth[0], 1);
    }

    /// A request was refused; counted here if that was about its key.
    pub fn refused(&self, rejection: &Rejection) {
        let reason = rejection.reason();
        if let Some(at) = AUTH_REASONS.iter().position(|known| *known == reason) {
            add(&self.auth[at], 1);
        }
    }

    /// An answer that had begun was ended, because its key may no longer do what it did.
    pub fn cut(&self, why: &Rejection) {
        add(&self.cut[position(&CUT_REASONS, why.reason())], 1);
    }

    /// A key was looked up, and this level answered.
    pub fn looked_up(&self, level: Level) {
        add(&self.cache[level as usize], 1);
    }
}

/// A label's number; the last for what has none.
fn position(labels: &[&str], label: &str) -> usize {
    labels.iter().position(|known| *known == label).unwrap_or(labels.len() - 1)
}

/// The label of a method.
#[must_use]
pub fn method_label(method: &Method) -> &'static str {
    METHODS[position(&METHODS, method.as_str())]
}

/// What is read rather than counted, at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The end of each certificate, by its file.
    pub certificates: Vec<(Box<str>, UnixMillis)>,
    pub health: Arc<Health>,
    pub cache_entries: u64,
    pub event_link_up: bool,
    pub vitals: Vitals,
    /// `None` at a gateway where nothing is changed.
    pub changes: Option<Arc<ChangeMeter>>,
    /// `None` where nobody is told of anything.
    pub news_waiting: Option<u64>,
    pub troubles_dropped: u64,
    pub records_dropped: u64,
    pub config_hash: u64,
    pub reloads: Reloads,
}

/// How often another configuration was taken, and how often it was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloads {
    pub applied: u64,
    pub refused: u64,
}

/// All threads' counts.
#[derive(Debug)]
pub struct Metrics {
    store: Arc<StoreMeter>,
    threads: Mutex<Vec<Arc<Cells>>>,
}

/// The cells of all threads by their names.
type Gathered<T> = BTreeMap<Box<str>, Vec<Arc<T>>>;

fn gather<T>(threads: &[Arc<Cells>], cells: impl Fn(&Cells) -> &Named<T>) -> Gathered<T> {
    let mut gathered = Gathered::new();
    for thread in threads {
        for (name, cells) in &*cells(thread).lock().unwrap_or_else(PoisonError::into_inner) {
            gathered.entry(name.clone()).or_default().push(Arc::clone(cells));
        }
    }
    gathered
}

impl Metrics {
    #[must_use]
    pub fn new(store: Arc<StoreMeter>) -> Self {
        Self { store, threads: Mutex::default() }
    }

    /// Cells for one more thread.
    #[must_use]
    pub fn cells(&self) -> Arc<Cells> {
        let cells = Arc::new(Cells::new());
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&cells));
        cells
    }

    /// Everything in Prometheus' text format, version 0.0.4.
    ///
    /// # Errors
    /// When a family cannot be written, which no family of ours is.
    pub fn render(&self, state: &State) -> prometheus::Result<Vec<u8>> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let routes = gather(&threads, |cells| &cells.routes);
        let mut families = counters(&threads, &routes, state);
        families.extend(self.histograms(&threads, &routes, state));
        families.extend(gauges(&threads, self.store.is_up(), state));
        families.retain(|family| !family.get_metric().is_empty());
        families.extend(ProcessCollector::for_self().collect());
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }

    fn histograms(
        &self,
        threads: &[Arc<Cells>],
        routes: &Gathered<RouteCells>,
        state: &State,
    ) -> Vec<MetricFamily> {
        let durations = routes.iter().filter_map(|(route, cells)| {
            histogram(&[("route", route)], cells.iter().map(|cells| &cells.duration))
        });
        let overheads = routes.iter().filter_map(|(route, cells)| {
            histogram(&[("route", route)], cells.iter().map(|cells| &cells.overhead))
        });
        let upstreams = gather(threads, |cells| &cells.upstreams);
        let upstreams = upstreams.iter().filter_map(|(upstream, cells)| {
            histogram(&[("upstream", upstream)], cells.iter().map(|cells| &cells.duration))
        });
        let store = self.store.operations.iter();
        let operations =
            store.filter_map(|(operation, times)| sum(&[("op", operation)], std::iter::once(times)));
        vec![
            family(
                "keygate_request_duration_seconds",
                "From a request's parsed head to the last byte of its answer.",
                MetricType::HISTOGRAM,
                durations.collect(),
            ),
            family(
                "keygate_overhead_seconds",
                "keygate's own share: request head parsed to upstream request begun, and answer head in to answer head out.",
                MetricType::HISTOGRAM,
                overheads.collect(),
            ),
            family(
                "keygate_upstream_duration_seconds",
                "From the beginning of an upstream request to the head of its answer.",
                MetricType::HISTOGRAM,
                upstreams.collect(),
            ),
            family(
                "keygate_store_request_duration_seconds",
                "How long the store took.",
                MetricType::HISTOGRAM,
                operations.collect(),
            ),
            family(
                "keygate_revocation_lag_seconds",
                "From an event's being written to its being applied here. In Redis it is dated by Redis' clock, which is read \
                 once a second (half that reading's round trip is the error); with the embedded store it is from commit on.",
                MetricType::HISTOGRAM,
                histogram(&[], std::iter::once(&self.store.lag)).into_iter().collect(),
            ),
            family(
                "keygate_propagation_seconds",
                "From the commit of a change that was made here to its being confirmed by every gateway with a lease.",
                MetricType::HISTOGRAM,
                histogram(&[], state.changes.iter().map(|changes| &changes.propagation))
                    .into_iter()
                    .collect(),
            ),
        ]
    }
}

fn counters(threads: &[Arc<Cells>], routes: &Gathered<RouteCells>, state: &State) -> Vec<MetricFamily> {
    let by = |label, names: &[&str], cell: &dyn Fn(&Cells, usize) -> u64| {
        let sum = |n: usize| threads.iter().map(|cells| cell(cells, n)).sum();
        names.iter().enumerate().map(|(n, name)| counter(&[(label, name)], sum(n))).collect()
    };
    vec![
        family(
            "keygate_requests_total",
            "Requests that ended, by what they were answered.",
            MetricType::COUNTER,
            requests(routes),
        ),
        family(
            "keygate_auth_decisions_total",
            "What authentication and authorisation came to.",
            MetricType::COUNTER,
            by("reason", &AUTH_REASONS, &|cells, n| read(&cells.auth[n])),
        ),
        family(
            "keygate_answers_cut_total",
            "Answers and tunnels ended because their keys may no longer do what they did.",
            MetricType::COUNTER,
            by("reason", &CUT_REASONS, &|cells, n| read(&cells.cut[n])),
        ),
        family(
            "keygate_cache_lookups_total",
            "Lookups of keys, by the level of the cache that answered.",
            MetricType::COUNTER,
            by("result", &Level::ALL.map(Level::as_str), &|cells, n| read(&cells.cache[n])),
        ),
        family(
            "keygate_stale_served_total",
            "Requests let through on a stale key while the store could not answer.",
            MetricType::COUNTER,
            vec![counter(&[], threads.iter().map(|cells| read(&cells.cache[Level::Stale as usize])).sum())],
        ),
        family(
            "keygate_rate_limited_total",
            "Requests that keygate answered with 429.",
            MetricType::COUNTER,
            routes.iter().map(|(route, cells)| counter(&[("route", route)], rate_limited(cells))).collect(),
        ),
        family(
            "keygate_propagation_unconfirmed_total",
            "Changes made here whose caller was answered before every gateway with a lease had confirmed them.",
            MetricType::COUNTER,
            state.changes.iter().map(|changes| counter(&[], read(&changes.unconfirmed))).collect(),
        ),
        family(
            "keygate_audit_troubles_dropped_total",
            "Signs of trouble that did not come into the audit trail: too many at once, or the store was away.",
            MetricType::COUNTER,
            vec![counter(&[], state.troubles_dropped)],
        ),
        family(
            "keygate_records_dropped_total",
            "Records of requests that found the queue to the log full.",
            MetricType::COUNTER,
            vec![counter(&[], state.records_dropped)],
        ),
        family(
            "keygate_config_reloads_total",
            "How often the configuration was read again, and whether it was taken.",
            MetricType::COUNTER,
            vec![
                counter(&[("result", "applied")], state.reloads.applied),
                counter(&[("result", "refused")], state.reloads.refused),
            ],
        ),
    ]
}

/// What keygate itself answered with 429; an upstream's are counted as a class.
fn rate_limited(cells: &[Arc<RouteCells>]) -> u64 {
    let code = position(&CODES, "429");
    let of_route = |cells: &Arc<RouteCells>| -> u64 {
        let methods = cells.requests.chunks(CODES.len() * ENVIRONMENTS.len());
        methods.flat_map(|codes| codes.chunks(ENVIRONMENTS.len()).nth(code)).flatten().map(read).sum()
    };
    cells.iter().map(of_route).sum()
}

/// A series for what has occurred, and none for the many things that have not.
fn requests(routes: &Gathered<RouteCells>) -> Vec<proto::Metric> {
    let mut requests = Vec::new();
    for (route, cells) in routes {
        let mut at = 0;
        for method in METHODS {
            for code in CODES {
                for environment in ENVIRONMENTS {
                    let n: u64 = cells.iter().map(|cells| read(&cells.requests[at])).sum();
                    at += 1;
                    if n > 0 {
                        let labels = [
                            ("route", &**route),
                            ("method", method),
                            ("code", code),
                            ("environment", environment),
                        ];
                        requests.push(counter(&labels, n));
                    }
                }
            }
        }
    }
    requests
}

fn gauges(threads: &[Arc<Cells>], store_up: bool, state: &State) -> Vec<MetricFamily> {
    let in_flight: i64 = threads.iter().map(|cells| cells.in_flight.load(Ordering::Relaxed)).sum();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    let one = |name, help, value| family(name, help, MetricType::GAUGE, vec![gauge(&[], value)]);
    let certificates = state
        .certificates
        .iter()
        .map(|(file, end)| gauge(&[("cert", file)], (end.0 / 1000) as f64))
        .collect();
    let connections = Protocol::ALL.into_iter().map(|protocol| {
        let open: i64 =
            threads.iter().map(|cells| cells.connections[protocol as usize].load(Ordering::Relaxed)).sum();
        gauge(&[("listener", "server"), ("protocol", protocol.label())], open as f64)
    });
    let (held, leases) = match state.vitals.standing {
        Standing::Alone => (None, None),
        Standing::Out => (Some(false), None),
        Standing::Among(leases) => (Some(true), Some(leases)),
    };
    let breakers = state.vitals.breakers.iter();
    let breakers = breakers.map(|(link, open)| gauge(&[("link", link)], f64::from(u8::from(*open))));
    let endpoints = state.health.endpoints().map(|(upstream, endpoint, healthy)| {
        gauge(&[("upstream", upstream), ("endpoint", endpoint)], f64::from(u8::from(healthy)))
    });
    vec![
        family(
            "keygate_tls_cert_not_after_timestamp_seconds",
            "When each certificate ends.",
            MetricType::GAUGE,
            certificates,
        ),
        one("keygate_requests_in_flight", "Requests that have begun and not ended.", in_flight as f64),
        one("keygate_cache_entries", "Known keys in the process's cache.", state.cache_entries as f64),
        one(
            "keygate_event_link_up",
            "Whether changes made through other gateways arrive.",
            f64::from(u8::from(state.event_link_up)),
        ),
        family(
            "keygate_leases",
            "Gateways that held a lease when this one renewed its own; there while it holds one.",
            MetricType::GAUGE,
            leases.iter().map(|leases| gauge(&[], *leases as f64)).collect(),
        ),
        family(
            "keygate_lease_held",
            "Whether this gateway holds a lease, so that whoever takes a right away waits for it.",
            MetricType::GAUGE,
            held.iter().map(|held| gauge(&[], f64::from(u8::from(*held)))).collect(),
        ),
        family(
            "keygate_store_breaker_open",
            "Whether callers of a link are turned away at the moment without the store's being asked.",
            MetricType::GAUGE,
            breakers.collect(),
        ),
        family(
            "keygate_outbox_waiting",
            "News that the upstream has not taken yet, all gateways' together; there where an outbox is set up.",
            MetricType::GAUGE,
            state.news_waiting.iter().map(|waiting| gauge(&[], *waiting as f64)).collect(),
        ),
        one(
            "keygate_store_up",
            "Whether the store answered the last time it was asked.",
            f64::from(u8::from(store_up)),
        ),
        family(
            "keygate_connections",
            "Open client connections, by what they speak; opening until that is known.",
            MetricType::GAUGE,
            connections.collect(),
        ),
        family(
            "keygate_upstream_healthy",
            "Whether the last attempt to connect to the endpoint did not fail; 1 before the first.",
            MetricType::GAUGE,
            endpoints.collect(),
        ),
        one(
            "keygate_config_hash",
            "The first 48 bits of a hash of the configuration that is in force, its policy and its variables.",
            state.config_hash as f64,
        ),
        family(
            "keygate_build_info",
            "Always 1; the label tells the version.",
            MetricType::GAUGE,
            vec![gauge(&version, 1.0)],
        ),
    ]
}

fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<proto::Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labels(pairs: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    pairs.iter().map(pair).collect()
}

fn counter(pairs: &[(&str, &str)], n: u64) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(n as f64);
    let mut metric = proto::Metric::from_label(labels(pairs));
    metric.set_counter(counter);
    metric
}

fn gauge(pairs: &[(&str, &str)], value: f64) -> proto::Metric {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(value);
    let mut metric = proto::Metric::from_label(labels(pairs));
    metric.set_gauge(gauge);
    metric
}

/// The sum of some threads' histograms; `None` while it is empty.
fn histogram<'h, const N: usize>(
    pairs: &[(&str, &str)],
    threads: impl Iterator<Item = &'h Histogram<N>> + Clone,
) -> Option<proto::Metric> {
    sum(pairs, threads).filter(|sum| sum.get_histogram().get_sample_count() > 0)
}

/// The sum of some threads' histograms, also while it is empty; `None` for no threads.
fn sum<'h, const N: usize>(
    pairs: &[(&str, &str)],
    threads: impl Iterator<Item = &'h Histogram<N>> + Clone,
) -> Option<proto::Metric> {
    let count: u64 = threads.clone().map(|histogram| read(&histogram.count)).sum();
    let bounds = threads.clone().next()?.bounds;
    let mut cumulative = 0;
    let mut buckets = Vec::with_capacity(N);
    for (n, bound) in bounds.iter().enumerate() {
        cumulative += threads.clone().map(|histogram| read(&histogram.buckets[n])).sum::<u64>();
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(seconds(*bound));
        // A thread may have counted on between two reads; a cumulative count never exceeds the whole.
        bucket.set_cumulative_count(cumulative.min(count));
        buckets.push(bucket);
    }
    let nanoseconds: u64 = threads.map(|histogram| read(&histogram.nanoseconds)).sum();
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(count);
    histogram.set_sample_sum(seconds(nanoseconds));
    let mut metric = proto::Metric::from_label(labels(pairs));
    metric.set_histogram(histogram);
    Some(metric)
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            certificates: vec![("api.pem".into(), UnixMillis(1_790_000_000_123))],
            cache_entries: 3,
            config_hash: (1 << 48) - 1,
            reloads: Reloads { applied: 2, refused: 1 },
            ..State::default()
        }
    }

    #[track_caller]
    fn assert_has(metrics: &Metrics, lines: &[&str]) {
        let text = String::from_utf8(metrics.render(&state()).unwrap()).unwrap();
        for line in lines {
            assert!(text.contains(&format!("{line}\n")), "{line} in\n{text}");
        }
    }

    fn finished(code: Code) -> Finished {
        Finished {
            method: "POST",
            code,
            environment: Some(Environment::Test),
            duration: Duration::from_millis(2),
            overhead: Some(Duration::from_micros(15)),
        }
    }

    #[test]
    fn what_threads_counted_apart_is_one_sum() {
        let metrics = Metrics::new(Arc::default());
        for _ in 0..2 {
            let cells = metrics.cells();
            for code in [Code::Upstream(StatusCode::CREATED), Code::Own(StatusCode::FORBIDDEN)] {
                cells.begin();
                cells.route(Some("jobs.read")).finish(&finished(code));
                cells.end();
            }
            cells.upstream("api").answered(Duration::from_secs(100));
        }
        let expected = [
            r#"keygate_requests_total{route="jobs.read",method="POST",code="2xx",environment="test"} 2"#,
            r#"keygate_requests_total{route="jobs.read",method="POST",code="403",environment="test"} 2"#,
            r#"keygate_request_duration_seconds_bucket{route="jobs.read",le="0.001"} 0"#,
            r#"keygate_request_duration_seconds_bucket{route="jobs.read",le="0.0025"} 4"#,
            r#"keygate_request_duration_seconds_count{route="jobs.read"} 4"#,
            r#"keygate_overhead_seconds_bucket{route="jobs.read",le="0.00001"} 0"#,
            r#"keygate_overhead_seconds_bucket{route="jobs.read",le="0.00002"} 4"#,
            r#"keygate_upstream_duration_seconds_bucket{upstream="api",le="60"} 0"#,
            r#"keygate_upstream_duration_seconds_bucket{upstream="api",le="+Inf"} 2"#,
            "keygate_requests_in_flight 0",
            "keygate_cache_entries 3",
            "keygate_config_hash 281474976710655",
            r#"keygate_config_reloads_total{result="refused"} 1"#,
            r#"keygate_tls_cert_not_after_timestamp_seconds{cert="api.pem"} 1790000000"#,
        ];
        assert_has(&metrics, &expected);
    }

    #[test]
    fn a_route_that_comes_back_goes_on_counting_where_it_stopped() {
        let metrics = Metrics::new(Arc::default());
        let cells = metrics.cells();
        for _ in 0..3 {
            cells.route(Some("jobs.read")).finish(&finished(Code::ClientGone));
        }
        let series =
            r#"keygate_requests_total{route="jobs.read",method="POST",code="499",environment="test"} 3"#;
        assert_has(&metrics, &[series]);
    }

    #[test]
    fn only_what_keygate_itself_limits_is_counted_as_limited() {
        let metrics = Metrics::new(Arc::default());
        for code in [StatusCode::TOO_MANY_REQUESTS, StatusCode::FORBIDDEN] {
            let cells = metrics.cells();
            cells.route(Some("auth.signup")).finish(&finished(Code::Own(code)));
            cells.route(Some("auth.signup")).finish(&finished(Code::Own(StatusCode::TOO_MANY_REQUESTS)));
            cells.route(Some("jobs.read")).finish(&finished(Code::Upstream(code)));
        }
        let expected = [
            r#"keygate_rate_limited_total{route="auth.signup"} 3"#,
            r#"keygate_rate_limited_total{route="jobs.read"} 0"#,
        ];
        assert_has(&metrics, &expected);
    }

    #[test]
    fn a_connection_is_counted_under_what_it_speaks_and_as_long_as_it_is_open() {
        let metrics = Metrics::new(Arc::default());
        let cells = metrics.cells();
        let (first, second) = (cells.connected(), cells.connected());
        let open = |protocol: &str, n: usize| {
            let series = format!("keygate_connections{{listener=\"server\",protocol=\"{protocol}\"}} {n}");
            assert_has(&metrics, &[&series]);
        };
        open("opening", 2);
        first.speaks(Protocol::Http1);
        second.speaks(Protocol::Http2);
        first.speaks(Protocol::WebSocket);
        open("opening", 0);
        open("http1", 0);
        open("http2", 1);
        open("websocket", 1);
        drop((first, second));
        open("http2", 0);
        open("websocket", 0);
    }

    #[test]
    fn every_reason_of_the_list_is_one_that_a_refusal_can_have() {
        use crate::key::record::Dead;
        use crate::key::scope::Scope;
        use crate::rejection::{Forbidden, NotFound, Unauthenticated, Unavailable};
        let dead = [Dead::Revoked, Dead::Disabled, Dead::Expired, Dead::SecretEnded, Dead::WrongEnvironment];
        let causes = [
            Unauthenticated::Missing,
            Unauthenticated::NotBearer,
            Unauthenticated::Malformed,
            Unauthenticated::Unknown,
        ];
        let refusals =
            causes.into_iter().chain(dead.map(Unauthenticated::Dead)).map(Rejection::Unauthenticated).chain(
                [
                    Rejection::Forbidden(Forbidden::OrganisationSuspended),
                    Rejection::Forbidden(Forbidden::OrganisationPending),
                    Rejection::Forbidden(Forbidden::Address),
                    Rejection::MissingScope(Scope::parse("a:b").unwrap()),
                    Rejection::Escalation(""),
                    Rejection::NotFound(NotFound::NoRoute),
                    Rejection::NotFound(NotFound::NotServedHere),
                    Rejection::Unavailable(Unavailable::Store),
                    Rejection::Unavailable(Unavailable::Lookups),
                ],
            );
        let reasons: Vec<&str> = refusals.map(|refusal| refusal.reason()).collect();
        assert_eq!(reasons, AUTH_REASONS[1..]);
    }
}
