//! The state of other parts, which is not counted but read at the moment of a scrape.

use std::sync::Arc;

use prometheus::proto::MetricFamily;

use super::changes::ChangeMeter;
use super::family::{counter, counters, gauge, gauges};
use super::lookups::LookupMeter;
use crate::telemetry::output::Losses;
use crate::telemetry::throttle::Occurrences;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::upstream::Repetition;

/// The state of other parts at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The end of each certificate, by its file.
    pub certificates: Vec<(Box<str>, UnixMillis)>,
    pub endpoints: Vec<EndpointState>,
    /// Connections to upstreams, and how many there may be.
    pub upstream_connections: (usize, usize),
    /// Upstreams with a limit of their own.
    pub crowds: Vec<CrowdState>,
    pub cache_entries: u64,
    /// Requests whose lookup waits for its turn.
    pub lookups_waiting: usize,
    pub lookups: Arc<LookupMeter>,
    pub event_link_up: bool,
    /// Whether this gateway holds a lease; `None` with a store that has no leases.
    pub lease_held: Option<bool>,
    /// Gateways with a lease; `None` where this one has none.
    pub leases: Option<usize>,
    /// Gateways whose lease has lapsed without being given up and that may still let keys in; `None` where this one has
    /// none.
    pub lapsed: Option<usize>,
    /// `None` with a store that cannot be replaced by another.
    pub store_suspect: Option<bool>,
    /// `None` with a store whose disk this process does not see.
    pub store_full: Option<bool>,
    /// Whether each link to the store is closed to callers at the moment, by the name of the link.
    pub breakers: Vec<(&'static str, bool)>,
    /// Changed records that are remembered, how often the store had an older one, and how many were forgotten because there
    /// was no room; `None` with a store that cannot be set back.
    pub memory: Option<(usize, u64, u64)>,
    /// Records that are older than their audit trails say; `None` at a gateway that makes no changes.
    pub older_than_trail: Option<u64>,
    /// `None` at a gateway that makes no changes.
    pub changes: Option<Arc<ChangeMeter>>,
    /// `None` where no outbox is set up.
    pub news_waiting: Option<u64>,
    /// The same for news without a proof.
    pub news_held: Option<u64>,
    /// How many seconds the machine's clock is ahead of the store's; `None` while the store's is not known.
    pub clock_ahead: Option<f64>,
    /// Whether nothing is removed for its age now; `None` at a gateway that removes nothing.
    pub trimming_held: Option<bool>,
    pub troubles_dropped: u64,
    pub records_lost: Losses,
    pub lines_lost: Losses,
    /// What the log tells of, as often as it came.
    pub events: Vec<Occurrences>,
    pub config_hash: u64,
    pub reloads: Reloads,
}

/// The state of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointState {
    pub upstream: Box<str>,
    pub endpoint: Box<str>,
    pub is_healthy: bool,
    /// How often a request that it had, or was to get, was sent again since the process began, by [`Repetition`].
    pub repeated: [u64; Repetition::ALL.len()],
    /// `None` for one without a name.
    pub name: Option<NameState>,
}

/// The state of the name of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameState {
    /// Whether the last lookup did not fail.
    pub is_resolved: bool,
    /// Its addresses to which requests go, and those that are passed over.
    pub healthy: usize,
    pub unhealthy: usize,
}

/// The requests at an upstream that has a limit, for one environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrowdState {
    pub upstream: Box<str>,
    pub environment: &'static str,
    pub in_flight: usize,
    pub at_most: usize,
    pub waiting: usize,
}

/// How often another configuration was put in force, and how often it was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloads {
    pub applied: u64,
    pub refused: u64,
}

impl State {
    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        families.extend(self.of_the_store());
        families.extend(self.of_the_memory());
        families.extend(self.of_the_clocks());
        families.extend(self.of_the_upstreams());
        families.extend(self.of_the_names());
        families.extend(self.of_the_crowds());
        families.extend(self.of_the_process());
        families
    }

    fn of_the_store(&self) -> [MetricFamily; 9] {
        let breakers = self.breakers.iter();
        [
            gauge(
                "keygate_cache_entries",
                "Known keys in the cache of the process.",
                self.cache_entries as f64,
            ),
            gauge(
                "keygate_lookups_waiting",
                "Requests whose lookup waits for its turn.",
                self.lookups_waiting as f64,
            ),
            gauge(
                "keygate_event_link_up",
                "Whether changes made through other gateways arrive.",
                f64::from(self.event_link_up),
            ),
            gauge(
                "keygate_leases",
                "Gateways that held a lease when this one last renewed its own; absent while it holds none.",
                self.leases.map(|leases| leases as f64),
            ),
            gauge(
                "keygate_leases_lapsed",
                "Gateways whose lease has lapsed without being given up, and that may still let keys in that they know, as this \
                 one last saw them; absent while it holds none.",
                self.lapsed.map(|lapsed| lapsed as f64),
            ),
            gauge(
                "keygate_lease_held",
                "Whether this gateway holds a lease, so that a change that takes a right away waits for it.",
                self.lease_held.map(f64::from),
            ),
            gauge(
                "keygate_store_suspect",
                "Whether the store answers but takes no changes, as a replaced one does; what it says about keys counts for \
                 10 s only.",
                self.store_suspect.map(f64::from),
            ),
            gauge(
                "keygate_store_full",
                "Whether the disk of the embedded store is full, so that only changes that take rights away are written.",
                self.store_full.map(f64::from),
            ),
            gauges(
                "keygate_store_breaker_open",
                "Whether callers of a link are refused at the moment without asking the store.",
                breakers.map(|(link, open)| ([("link", *link)], f64::from(*open))),
            ),
        ]
    }

    fn of_the_memory(&self) -> [MetricFamily; 4] {
        let memory = self.memory;
        [
            gauge(
                "keygate_records_remembered",
                "Changed keys and organisations of which this gateway remembers the newest record.",
                memory.map(|(records, ..)| records as f64),
            ),
            counters(
                "keygate_records_set_back_total",
                "How often the store had an older record of a key or an organisation than this gateway remembers.",
                memory.map(|(_, set_back, _)| ([("found_by", "memory")], set_back)),
            ),
            counters(
                "keygate_records_forgotten_total",
                "Remembered records that had to make room for newer ones.",
                memory.map(|(_, _, dropped)| ([("why", "full")], dropped)),
            ),
            gauge(
                "keygate_records_older_than_trail",
                "Keys and organisations that have rights which their audit trails say were taken away, as the slow sweep found \
                 them.",
                self.older_than_trail.map(|older| older as f64),
            ),
        ]
    }

    fn of_the_clocks(&self) -> [MetricFamily; 2] {
        [
            gauge(
                "keygate_clock_ahead_seconds",
                "How far the clock of this machine is ahead of the store's; negative if it is behind. Beyond 60 s keys end by the \
                 clock of the machine, and nothing is removed for its age. Absent while the store's is not known.",
                self.clock_ahead,
            ),
            gauge(
                "keygate_audit_trimming_held",
                "Whether no audit record is removed for its age, because the clocks of machine and store differ by more than \
                 60 s or the store's cannot be read.",
                self.trimming_held.map(f64::from),
            ),
        ]
    }

    fn of_the_names(&self) -> [MetricFamily; 2] {
        let names = || {
            self.endpoints.iter().filter_map(|EndpointState { upstream, endpoint, name, .. }| {
                name.map(|name| (("upstream", &**upstream), ("endpoint", &**endpoint), name))
            })
        };
        [
            gauges(
                "keygate_upstream_name_resolved",
                "Whether the last lookup of the name of an endpoint did not fail; 1 before the first. What is known is used for as long as \
                 it fails.",
                names().map(|(upstream, endpoint, name)| ([upstream, endpoint], f64::from(name.is_resolved))),
            ),
            gauges(
                "keygate_upstream_addresses",
                "Addresses of the name of an endpoint, at most 64: those to which requests go (`healthy`), and those that are passed \
                 over.",
                names().flat_map(|(upstream, endpoint, name)| {
                    [("healthy", name.healthy), ("unhealthy", name.unhealthy)]
                        .map(|(state, count)| ([upstream, endpoint, ("state", state)], count as f64))
                }),
            ),
        ]
    }

    fn of_the_crowds(&self) -> [MetricFamily; 3] {
        let by = |number: fn(&CrowdState) -> usize| {
            self.crowds.iter().map(move |crowd| {
                let labels = [("upstream", &*crowd.upstream), ("environment", crowd.environment)];
                (labels, number(crowd) as f64)
            })
        };
        [
            gauges(
                "keygate_upstream_requests_in_flight",
                "Requests in flight at an upstream that has a limit of its own.",
                by(|crowd| crowd.in_flight),
            ),
            gauges(
                "keygate_upstream_requests_limit",
                "Requests that may be in flight at an upstream that has a limit of its own.",
                by(|crowd| crowd.at_most),
            ),
            gauges(
                "keygate_upstream_requests_waiting",
                "Requests that wait for others at an upstream that has a limit of its own.",
                by(|crowd| crowd.waiting),
            ),
        ]
    }

    fn of_the_upstreams(&self) -> [MetricFamily; 6] {
        [
            gauge(
                "keygate_upstream_connections",
                "Connections to upstreams: in use, kept, and being opened.",
                self.upstream_connections.0 as f64,
            ),
            gauge(
                "keygate_upstream_connections_limit",
                "Connections to upstreams that open files and memory allow.",
                self.upstream_connections.1 as f64,
            ),
            gauges(
                "keygate_upstream_healthy",
                "Whether the last attempt to connect to the endpoint succeeded, and it does not fail its checks; 1 before the \
                 first. Of a name: to one of its addresses.",
                self.endpoints.iter().map(|EndpointState { upstream, endpoint, is_healthy, .. }| {
                    ([("upstream", &**upstream), ("endpoint", &**endpoint)], f64::from(*is_healthy))
                }),
            ),
            counters(
                "keygate_upstream_retries_total",
                "Requests of this endpoint that were sent again, by the reason; `withheld` were not, because as many were as may be.",
                self.endpoints.iter().flat_map(|EndpointState { upstream, endpoint, repeated, .. }| {
                    Repetition::ALL.into_iter().map(move |why| {
                        let labels =
                            [("upstream", &**upstream), ("endpoint", &**endpoint), ("reason", why.as_str())];
                        (labels, repeated[why as usize])
                    })
                }),
            ),
            gauge(
                "keygate_outbox_waiting",
                "News that the upstream has not accepted yet, of all gateways together; absent without an outbox.",
                self.news_waiting.map(|waiting| waiting as f64),
            ),
            gauge(
                "keygate_outbox_held",
                "News without a proof that keygate has written them: they wait for `keygate store accept`; absent without an \
                 outbox.",
                self.news_held.map(|held| held as f64),
            ),
        ]
    }

    fn of_the_process(&self) -> [MetricFamily; 9] {
        let certificates = self.certificates.iter();
        let Reloads { applied, refused } = self.reloads;
        [
            counter(
                "keygate_audit_troubles_dropped_total",
                "Signs of trouble that are not in the audit trail: too many at once, or the store did not answer.",
                self.troubles_dropped,
            ),
            lost(
                "keygate_records_dropped_total",
                "Records of requests that were dropped: the queue to standard output was full, or it could not be written.",
                self.records_lost,
            ),
            lost(
                "keygate_log_lines_dropped_total",
                "Lines about the process that were dropped: the queue to standard error was full, or it could not be written.",
                self.lines_lost,
            ),
            counters(
                "keygate_log_lines_withheld_total",
                "Lines about the process that were not written because there were many of the same event.",
                self.events.iter().map(|came| ([("event", came.event)], came.withheld)),
            ),
            counters(
                "keygate_log_events_total",
                "How often each event came that the log tells of, whether its line was written or withheld.",
                self.events.iter().map(|came| ([("event", came.event)], came.all)),
            ),
            counters(
                "keygate_config_reloads_total",
                "How often the configuration was read again, by whether it was put in force.",
                [([("result", "applied")], applied), ([("result", "refused")], refused)],
            ),
            gauge(
                "keygate_config_hash",
                "The first 48 bits of a hash of the configuration in force, with its policy and environment variables.",
                self.config_hash as f64,
            ),
            gauges(
                "keygate_tls_cert_not_after_timestamp_seconds",
                "When each certificate expires.",
                certificates.map(|(file, end)| ([("cert", &**file)], (end.0 / 1000) as f64)),
            ),
            gauges(
                "keygate_build_info",
                "Always 1; the label is the version.",
                [([("version", env!("CARGO_PKG_VERSION"))], 1.0)],
            ),
        ]
    }
}

/// Lines of an output that were lost, by what became of them.
fn lost(name: &str, help: &str, lost: Losses) -> MetricFamily {
    let Losses { queue_full, unwritten } = lost;
    counters(
        name,
        help,
        [([("reason", "queue_full")], queue_full), ([("reason", "write_failed")], unwritten)],
    )
}
