//! Finished requests, by route and upstream: how they were answered, and how long that took.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::proto::MetricFamily;

use super::cell::{add, read};
use super::family::{counters, gauge, histograms};
use super::histogram::Histogram;
use super::named::Gathered;
use crate::vocabulary::believed::Removed;
use crate::vocabulary::key::Environment;
use crate::vocabulary::reason::ErrorStatus;

/// One thread's fields that were removed from requests, by [`Removed`].
#[derive(Debug)]
pub(super) struct RemovedFields([AtomicU64; Removed::COUNT]);

impl Default for RemovedFields {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Removed::COUNT])
    }
}

impl RemovedFields {
    pub(super) fn count(&self, removed: Removed) {
        add(&self.0[removed.number()], 1);
    }
}

pub(super) fn removed_family<'t>(
    threads: &(impl Iterator<Item = &'t RemovedFields> + Clone),
) -> MetricFamily {
    let removed =
        |name: Removed| -> u64 { threads.clone().map(|fields| read(&fields.0[name.number()])).sum() };
    counters(
        "keygate_request_headers_removed_total",
        "Requests from which a header was removed because upstreams believe it.",
        Removed::all().map(|name| ([("name", name.label())], removed(name))),
    )
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

/// The `code` label: an upstream's statuses and keygate's own successes by class, refusals by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// keygate served the request itself.
    Own(StatusCode),
    /// keygate refused the request.
    Refused(ErrorStatus),
    /// An upstream answered.
    Upstream(StatusCode),
    /// The client left before there was an answer.
    ClientGone,
}

impl Code {
    /// The status of the answer; `None` without an answer.
    #[must_use]
    pub const fn status(self) -> Option<StatusCode> {
        match self {
            Self::Own(status) | Self::Upstream(status) => Some(status),
            Self::Refused(status) => Some(status.code()),
            Self::ClientGone => None,
        }
    }

    const COUNT: usize = CLASSES.len() + ErrorStatus::ALL.len() + 1;

    /// Its place among all labels, below [`Code::COUNT`]; [`Code::labels`] has the same order.
    const fn number(self) -> usize {
        match self {
            Self::Own(status) | Self::Upstream(status) => class(status),
            Self::Refused(status) => CLASSES.len() + status as usize,
            Self::ClientGone => Self::COUNT - 1,
        }
    }

    fn labels() -> impl Iterator<Item = &'static str> + Clone {
        let refused = ErrorStatus::ALL.into_iter().map(ErrorStatus::as_str);
        CLASSES.into_iter().chain(refused).chain(std::iter::once(CLIENT_GONE))
    }
}

/// The place of a status among [`CLASSES`].
const fn class(status: StatusCode) -> usize {
    match status.as_u16() {
        ..200 => 0,
        200..300 => 1,
        300..400 => 2,
        400..500 => 3,
        // Above 599 is no class. A client takes such a status for a 5xx (RFC 9110, section 15).
        500.. => 4,
    }
}

/// The label of every method that has no label of its own.
pub const OTHER_METHOD: &str = METHODS[METHODS.len() - 1];

/// The label of a method: the method itself if it is of RFC 9110 or 5789, else `_OTHER`.
#[must_use]
pub fn method_label(method: &Method) -> &'static str {
    METHODS[position(method.as_str())]
}

/// The place of a method among [`METHODS`].
fn position(method: &str) -> usize {
    METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len() - 1)
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
        let requests = METHODS.len() * Code::COUNT * ENVIRONMENTS.len();
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
        let at = finished.code.number() + Code::COUNT * position(finished.method);
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

    /// The upstream began its answer this time after the request was sent.
    pub fn answered(&self, after: Duration) {
        self.duration.observe(after);
    }
}

pub(super) fn families(
    routes: &Gathered<RouteCells>,
    upstreams: &Gathered<UpstreamCells>,
    in_flight: i64,
) -> [MetricFamily; 6] {
    [
        counters(
            "keygate_requests_total",
            "Requests that ended, by their answers.",
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
            by_name("route", routes, |cells| &cells.duration),
        ),
        histograms(
            "keygate_overhead_seconds",
            "keygate's own share: from the parsed request head to the beginning of the upstream request, and from the upstream's \
             answer head to the client's.",
            by_name("route", routes, |cells| &cells.overhead),
        ),
        histograms(
            "keygate_upstream_duration_seconds",
            "From the beginning of an upstream request to the head of its answer.",
            by_name("upstream", upstreams, |cells| &cells.duration),
        ),
        gauge("keygate_requests_in_flight", "Requests that have begun and not ended.", in_flight as f64),
    ]
}

/// The series of a route that have counted. Most combinations of labels never occur.
fn answered<'r>(route: &'r str, cells: &[Arc<RouteCells>]) -> Vec<([(&'static str, &'r str); 4], u64)> {
    let labels = METHODS.iter().flat_map(|method| {
        Code::labels()
            .flat_map(move |code| ENVIRONMENTS.iter().map(move |environment| (method, code, environment)))
    });
    let counted = labels.enumerate().filter_map(|(at, (method, code, environment))| {
        let n: u64 = cells.iter().map(|cells| read(&cells.requests[at])).sum();
        let labels = [("route", route), ("method", method), ("code", code), ("environment", environment)];
        (n > 0).then_some((labels, n))
    });
    counted.collect()
}

/// Requests that keygate itself refused with 429. An upstream's 429 counts in its class.
fn rate_limited(cells: &[Arc<RouteCells>]) -> u64 {
    let code = Code::Refused(ErrorStatus::TooManyRequests).number();
    let of_route = |cells: &Arc<RouteCells>| -> u64 {
        let methods = cells.requests.chunks(Code::COUNT * ENVIRONMENTS.len());
        methods.flat_map(|codes| codes.chunks(ENVIRONMENTS.len()).nth(code)).flatten().map(read).sum()
    };
    cells.iter().map(of_route).sum()
}

/// For each route or upstream the histograms of all threads, once one of them has counted.
fn by_name<'c, T, const N: usize>(
    label: &'c str,
    cells: &'c Gathered<T>,
    histogram: impl Fn(&T) -> &Histogram<N> + Copy + 'c,
) -> impl Iterator<Item = ([(&'c str, &'c str); 1], impl Iterator<Item = &'c Histogram<N>> + Clone)> {
    let counted = move |cells: &[Arc<T>]| cells.iter().any(|cells| !histogram(cells).is_empty());
    let filled = cells.iter().filter(move |(_, cells)| counted(cells));
    filled.map(move |(name, cells)| ([(label, &**name)], cells.iter().map(move |cells| histogram(cells))))
}

/// Methods with a label of their own; the last is for every other method.
const METHODS: [&str; 10] =
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "_OTHER"];
/// The classes of statuses, for answers that are not refusals.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const CLIENT_GONE: &str = "499";
const ENVIRONMENTS: [&str; 3] = ["live", "test", "none"];

/// Upper bounds in nanoseconds: from a fast answer to the longest long poll.
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
