//! What is read of the other parts rather than counted, at the moment of a scrape.

use std::sync::Arc;

use prometheus::proto::MetricFamily;

use super::ChangeMeter;
use super::family::{counter, counters, gauge, gauges};
use crate::store::keeper::{Standing, Vitals};
use crate::upstream::health::Health;
use crate::vocabulary::clock::UnixMillis;

/// How the other parts are at the moment of a scrape.
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

impl State {
    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        families.extend(self.of_the_store());
        families.extend(self.of_the_upstreams());
        families.extend(self.of_the_process());
        families
    }

    fn of_the_store(&self) -> [MetricFamily; 6] {
        let (held, leases) = match self.vitals.standing {
            Standing::Alone => (None, None),
            Standing::Out => (Some(false), None),
            Standing::Among(leases) => (Some(true), Some(leases)),
        };
        let breakers = self.vitals.breakers.iter();
        [
            gauge("keygate_cache_entries", "Known keys in the process's cache.", self.cache_entries as f64),
            gauge(
                "keygate_event_link_up",
                "Whether changes made through other gateways arrive.",
                f64::from(self.event_link_up),
            ),
            gauge(
                "keygate_leases",
                "Gateways that held a lease when this one renewed its own; there while it holds one.",
                leases.map(|leases| leases as f64),
            ),
            gauge(
                "keygate_lease_held",
                "Whether this gateway holds a lease, so that whoever takes a right away waits for it.",
                held.map(f64::from),
            ),
            gauge(
                "keygate_store_suspect",
                "Whether the store answers but says that it takes no changes, as one that was replaced; what it says of keys \
                 counts for 10 s only.",
                self.vitals.is_suspect.map(f64::from),
            ),
            gauges(
                "keygate_store_breaker_open",
                "Whether callers of a link are turned away at the moment without the store's being asked.",
                breakers.map(|(link, open)| ([("link", *link)], f64::from(*open))),
            ),
        ]
    }

    fn of_the_upstreams(&self) -> [MetricFamily; 2] {
        [
            gauges(
                "keygate_upstream_healthy",
                "Whether the last attempt to connect to the endpoint did not fail; 1 before the first.",
                self.health.endpoints().map(|(upstream, endpoint, healthy)| {
                    ([("upstream", upstream), ("endpoint", endpoint)], f64::from(healthy))
                }),
            ),
            gauge(
                "keygate_outbox_waiting",
                "News that the upstream has not taken yet, all gateways' together; there where an outbox is set up.",
                self.news_waiting.map(|waiting| waiting as f64),
            ),
        ]
    }

    fn of_the_process(&self) -> [MetricFamily; 6] {
        let certificates = self.certificates.iter();
        let Reloads { applied, refused } = self.reloads;
        [
            counter(
                "keygate_audit_troubles_dropped_total",
                "Signs of trouble that did not come into the audit trail: too many at once, or the store was away.",
                self.troubles_dropped,
            ),
            counter(
                "keygate_records_dropped_total",
                "Records of requests that found the queue to the log full.",
                self.records_dropped,
            ),
            counters(
                "keygate_config_reloads_total",
                "How often the configuration was read again, and whether it was taken.",
                [([("result", "applied")], applied), ([("result", "refused")], refused)],
            ),
            gauge(
                "keygate_config_hash",
                "The first 48 bits of a hash of the configuration that is in force, its policy and its variables.",
                self.config_hash as f64,
            ),
            gauges(
                "keygate_tls_cert_not_after_timestamp_seconds",
                "When each certificate ends.",
                certificates.map(|(file, end)| ([("cert", &**file)], (end.0 / 1000) as f64)),
            ),
            gauges(
                "keygate_build_info",
                "Always 1; the label tells the version.",
                [([("version", env!("CARGO_PKG_VERSION"))], 1.0)],
            ),
        ]
    }
}
