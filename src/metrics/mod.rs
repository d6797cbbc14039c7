//! Metrics: each thread counts for itself, and the counts are added up when somebody asks.
//!
//! A count on the request's path is one store to memory that no other thread writes: no lock, no shared cache
//! line, no looking up of labels. Label values come from closed sets (the policy's routes, the
//! configuration's upstreams, the lists below), so the number of series does not depend on keys,
//! organisations or anything that a client sends.

mod store;

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

pub use store::{MeasuredStore, StoreMeter};

/// Methods that have a label of their own; the last is for every other.
const METHODS: [&str; 10] =
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "_OTHER"];
/// An upstream's statuses by class, keygate's own by number, and 499 for a client that left without an
/// answer.
const CODES: [&str; 18] = [
    "1xx", "2xx", "3xx", "4xx", "5xx", "400", "401", "403", "404", "413", "414", "429", "431", "500", "502",
    "503", "504", "499",
];
const ENVIRONMENTS: [&str; 3] = ["live", "test", "none"];
/// What authentication and authorisation came to.
const AUTH_REASONS: [&str; 15] = [
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
    "scope_missing",
    "no_route",
    "store_unavailable",
    "lookups_exhausted",
];
/// Why an answer that had begun was cut.
const CUT_REASONS: [&str; 9] = [
    "key_unknown",
    "key_revoked",
    "key_disabled",
    "key_expired",
    "key_rotated",
    "organisation_suspended",
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

/// One thread's counts.
#[derive(Debug)]
pub struct Cells {
    /// By route, method, code, environment.
    requests: Box<[AtomicU64]>,
    durations: Box<[Histogram<14>]>,
    overheads: Box<[Histogram<11>]>,
    upstream_durations: Box<[Histogram<14>]>,
    auth: [AtomicU64; AUTH_REASONS.len()],
    cut: [AtomicU64; CUT_REASONS.len()],
    cache: [AtomicU64; Level::ALL.len()],
    in_flight: AtomicI64,
}

/// One finished request, as it is counted.
#[derive(Debug)]
pub struct Finished {
    /// The route's number in the policy.
    pub route: Option<usize>,
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

impl Cells {
    fn new(routes: usize, upstreams: usize) -> Self {
        let requests = (routes + 1) * METHODS.len() * CODES.len() * ENVIRONMENTS.len();
        Self {
            requests: (0..requests).map(|_| AtomicU64::new(0)).collect(),
            durations: (0..=routes).map(|_| Histogram::new(&REQUEST_BUCKETS)).collect(),
            overheads: (0..=routes).map(|_| Histogram::new(&OVERHEAD_BUCKETS)).collect(),
            upstream_durations: (0..upstreams).map(|_| Histogram::new(&REQUEST_BUCKETS)).collect(),
            auth: [const { AtomicU64::new(0) }; AUTH_REASONS.len()],
            cut: [const { AtomicU64::new(0) }; CUT_REASONS.len()],
            cache: [const { AtomicU64::new(0) }; Level::ALL.len()],
            in_flight: AtomicI64::new(0),
        }
    }

    /// A request has begun.
    pub fn begin(&self) {
        self.in_flight.store(self.in_flight.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub fn finish(&self, finished: &Finished) {
        self.in_flight.store(self.in_flight.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        let none = self.durations.len() - 1;
        let route = finished.route.unwrap_or(none);
        let environment =
            finished.environment.map_or(ENVIRONMENTS.len() - 1, |environment| environment as usize);
        let at = position(&METHODS, finished.method) + METHODS.len() * route;
        let at = position(&CODES, finished.code.label()) + CODES.len() * at;
        add(&self.requests[environment + ENVIRONMENTS.len() * at], 1);
        self.durations[route].observe(finished.duration);
        if let Some(overhead) = finished.overhead {
            self.overheads[route].observe(overhead);
        }
    }

    /// An upstream has begun its answer after this time.
    pub fn upstream_answered(&self, upstream: usize, after: Duration) {
        self.upstream_durations[upstream].observe(after);
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
    pub cache_entries: u64,
    pub event_link_up: bool,
    pub records_dropped: u64,
    pub connections: usize,
}

/// All threads' counts.
#[derive(Debug)]
pub struct Metrics {
    routes: Vec<Box<str>>,
    upstreams: Vec<Box<str>>,
    store: Arc<StoreMeter>,
    threads: Mutex<Vec<Arc<Cells>>>,
}

impl Metrics {
    /// For routes and upstreams of these names, in their order.
    #[must_use]
    pub fn new(routes: Vec<Box<str>>, upstreams: Vec<Box<str>>, store: Arc<StoreMeter>) -> Self {
        Self { routes, upstreams, store, threads: Mutex::default() }
    }

    /// Cells for one more thread.
    #[must_use]
    pub fn cells(&self) -> Arc<Cells> {
        let cells = Arc::new(Cells::new(self.routes.len(), self.upstreams.len()));
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&cells));
        cells
    }

    /// Everything in Prometheus' text format, version 0.0.4.
    ///
    /// # Errors
    /// When a family cannot be written, which no family of ours is.
    pub fn render(&self, state: &State) -> prometheus::Result<Vec<u8>> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut families = self.counters(&threads);
        families.extend(self.histograms(&threads));
        families.extend(gauges(&threads, self.store.is_up(), state));
        families.retain(|family| !family.get_metric().is_empty());
        families.extend(ProcessCollector::for_self().collect());
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }

    fn route_labels(&self) -> impl Iterator<Item = &str> {
        self.routes.iter().map(|id| &**id).chain([NO_ROUTE])
    }

    fn counters(&self, threads: &[Arc<Cells>]) -> Vec<MetricFamily> {
        let mut requests = Vec::new();
        let mut at = 0;
        for route in self.route_labels() {
            for method in METHODS {
                for code in CODES {
                    for environment in ENVIRONMENTS {
                        let n: u64 = threads.iter().map(|cells| read(&cells.requests[at])).sum();
                        at += 1;
                        if n > 0 {
                            let labels = [
                                ("route", route),
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
        let by = |label, names: &[&str], cell: &dyn Fn(&Cells, usize) -> u64| {
            let sum = |n: usize| threads.iter().map(|cells| cell(cells, n)).sum();
            names.iter().enumerate().map(|(n, name)| counter(&[(label, name)], sum(n))).collect()
        };
        vec![
            family(
                "keygate_requests_total",
                "Requests that ended, by what they were answered.",
                MetricType::COUNTER,
                requests,
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
                vec![counter(
                    &[],
                    threads.iter().map(|cells| read(&cells.cache[Level::Stale as usize])).sum(),
                )],
            ),
        ]
    }

    fn histograms(&self, threads: &[Arc<Cells>]) -> Vec<MetricFamily> {
        let durations = self.route_labels().enumerate().filter_map(|(n, route)| {
            histogram("route", route, threads.iter().map(|cells| &cells.durations[n]))
        });
        let overheads = self.route_labels().enumerate().filter_map(|(n, route)| {
            histogram("route", route, threads.iter().map(|cells| &cells.overheads[n]))
        });
        let upstreams = self.upstreams.iter().enumerate().filter_map(|(n, upstream)| {
            histogram("upstream", upstream, threads.iter().map(|cells| &cells.upstream_durations[n]))
        });
        let store = self.store.operations.iter();
        let operations =
            store.filter_map(|(operation, times)| histogram("op", operation, std::iter::once(times)));
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
        ]
    }
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
        one(
            "keygate_store_up",
            "Whether the store answered the last time it was asked.",
            f64::from(u8::from(store_up)),
        ),
        family(
            "keygate_connections",
            "Open client connections.",
            MetricType::GAUGE,
            vec![gauge(&[("listener", "server")], state.connections as f64)],
        ),
        family(
            "keygate_records_dropped_total",
            "Records of requests that found the queue to the log full.",
            MetricType::COUNTER,
            vec![counter(&[], state.records_dropped)],
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
    label: &str,
    value: &str,
    threads: impl Iterator<Item = &'h Histogram<N>> + Clone,
) -> Option<proto::Metric> {
    let count: u64 = threads.clone().map(|histogram| read(&histogram.count)).sum();
    let bounds = threads.clone().next()?.bounds;
    if count == 0 {
        return None;
    }
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
    let mut metric = proto::Metric::from_label(labels(&[(label, value)]));
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
            event_link_up: true,
            records_dropped: 0,
            connections: 2,
        }
    }

    #[test]
    fn what_threads_counted_apart_is_one_sum() {
        let metrics = Metrics::new(vec!["jobs.read".into()], vec!["api".into()], Arc::default());
        for _ in 0..2 {
            let cells = metrics.cells();
            for code in [Code::Upstream(StatusCode::CREATED), Code::Own(StatusCode::FORBIDDEN)] {
                cells.begin();
                cells.finish(&Finished {
                    route: Some(0),
                    method: "POST",
                    code,
                    environment: Some(Environment::Test),
                    duration: Duration::from_millis(2),
                    overhead: Some(Duration::from_micros(15)),
                });
            }
            cells.upstream_answered(0, Duration::from_secs(100));
        }
        let text = String::from_utf8(metrics.render(&state()).unwrap()).unwrap();
        for line in [
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
            r#"keygate_tls_cert_not_after_timestamp_seconds{cert="api.pem"} 1790000000"#,
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} in\n{text}");
        }
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
                    Rejection::MissingScope(Scope::parse("a:b").unwrap()),
                    Rejection::NotFound(NotFound::NoRoute),
                    Rejection::Unavailable(Unavailable::Store),
                    Rejection::Unavailable(Unavailable::Lookups),
                ],
            );
        let reasons: Vec<&str> = refusals.map(|refusal| refusal.reason()).collect();
        assert_eq!(reasons, AUTH_REASONS[1..]);
    }
}
