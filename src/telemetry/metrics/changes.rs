//! How long changes that are made here take to reach every gateway.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto::MetricFamily;

use super::cell::read;
use super::family::{counter, histogram};
use super::histogram::{Histogram, LAG_BUCKETS};

/// Measures how changes reach every gateway.
#[derive(Debug)]
pub struct ChangeMeter {
    propagation: Histogram<14>,
    unconfirmed: AtomicU64,
    lapsed: AtomicU64,
}

impl Default for ChangeMeter {
    fn default() -> Self {
        Self {
            propagation: Histogram::new(&LAG_BUCKETS),
            unconfirmed: AtomicU64::new(0),
            lapsed: AtomicU64::new(0),
        }
    }
}

impl ChangeMeter {
    /// Every gateway with a lease has confirmed a change, this time after its commit.
    pub fn confirmed(&self, after: Duration) {
        self.propagation.observe_shared(after);
    }

    /// The caller of a change was answered before every gateway had confirmed it.
    pub fn unconfirmed(&self) {
        self.unconfirmed.fetch_add(1, Ordering::Relaxed);
    }

    /// The caller of a change was answered while gateways whose lease has lapsed may not know of it.
    pub fn beside_lapsed(&self) {
        self.lapsed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn families(&self) -> [MetricFamily; 3] {
        [
            histogram(
                "keygate_propagation_seconds",
                "From the commit of a change that was made here to its confirmation by every gateway with a lease.",
                &self.propagation,
            ),
            counter(
                "keygate_propagation_unconfirmed_total",
                "Changes made here whose caller was answered before every gateway with a lease had confirmed them.",
                read(&self.unconfirmed),
            ),
            counter(
                "keygate_propagation_lapsed_total",
                "Changes made here whose caller was answered while gateways whose lease has lapsed could still let keys in as \
                 they were.",
                read(&self.lapsed),
            ),
        ]
    }
}
