//! What requests came to, by their routes and upstreams: how they were answered, and how long that took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::proto::MetricFamily;

use super::cells::{Cells, Gathered, add, gather, position, read};
use super::family::{counters, gauge, histograms};
use super::histogram::Histogram;
use crate::vocabulary::key::Environment;

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

/// The label of a method.
#[must_use]
pub fn method_label(method: &Method) -> &'static str {
    METHODS[position(&METHODS, method.as_str())]
}

/// One thread's counts of one route's requests.
#[derive(Debug)]
pub struct RouteCells {
    /// By method, code, environment.
    requests: Box<[AtomicU64]>,
    duration: Histogram<14>,
    overhead: Histogram<11>,
}

impl RouteCells {
    pub(super) fn new() -> Self {
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

/// One thread's counts of one upstream.
#[derive(Debug)]
pub struct UpstreamCells {
    duration: Histogram<14>,
}

impl UpstreamCells {
    pub(super) fn new() -> Self {
        Self { duration: Histogram::new(&REQUEST_BUCKETS) }
    }

    /// The upstream has begun its answer after this time.
    pub fn answered(&self, after: Duration) {
        self.duration.observe(after);
    }
}

pub(super) fn families(threads: &[Arc<Cells>]) -> [MetricFamily; 6] {
    let routes = gather(threads, |cells| &cells.routes);
    let upstreams = gather(threads, |cells| &cells.upstreams);
    let in_flight: i64 = threads.iter().map(|cells| cells.in_flight.load(Ordering::Relaxed)).sum();
    [
        counters(
            "keygate_requests_total",
            "Requests that ended, by what they were answered.",
            routes.iter().flat_map(|(route, cells)| answered(route, cells)),
        ),
        counters(
            "keygate_rate_limited_total",
            "Requests that keygate answered with 429.",
            routes.iter().map(|(route, cells)| ([("route", &**route)], rate_limited(cells))),
        ),
        histograms(
            "keygate_request_duration_seconds",
            "From a request's parsed head to the last byte of its answer.",
            by_name("route", &routes, |cells| &cells.duration),
        ),
        histograms(
            "keygate_overhead_seconds",
            "keygate's own share: request head parsed to upstream request begun, and answer head in to answer head out.",
            by_name("route", &routes, |cells| &cells.overhead),
        ),
        histograms(
            "keygate_upstream_duration_seconds",
            "From the beginning of an upstream request to the head of its answer.",
            by_name("upstream", &upstreams, |cells| &cells.duration),
        ),
        gauge("keygate_requests_in_flight", "Requests that have begun and not ended.", in_flight as f64),
    ]
}

/// A route's series for what has occurred, and none for the many things that have not.
fn answered<'r>(route: &'r str, cells: &[Arc<RouteCells>]) -> Vec<([(&'static str, &'r str); 4], u64)> {
    let labels = METHODS.iter().flat_map(|method| {
        CODES
            .iter()
            .flat_map(move |code| ENVIRONMENTS.iter().map(move |environment| (method, code, environment)))
    });
    let counted = labels.enumerate().filter_map(|(at, (method, code, environment))| {
        let n: u64 = cells.iter().map(|cells| read(&cells.requests[at])).sum();
        let labels = [("route", route), ("method", method), ("code", code), ("environment", environment)];
        (n > 0).then_some((labels, n))
    });
    counted.collect()
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

/// For each route or upstream the histograms of all threads, as soon as one has counted.
fn by_name<'c, T, const N: usize>(
    label: &'c str,
    cells: &'c Gathered<T>,
    histogram: impl Fn(&T) -> &Histogram<N> + Copy + 'c,
) -> impl Iterator<Item = ([(&'c str, &'c str); 1], impl Iterator<Item = &'c Histogram<N>> + Clone)> {
    let counted = move |cells: &[Arc<T>]| cells.iter().any(|cells| !histogram(cells).is_empty());
    let filled = cells.iter().filter(move |(_, cells)| counted(cells));
    filled.map(move |(name, cells)| ([(label, &**name)], cells.iter().map(move |cells| histogram(cells))))
}

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
