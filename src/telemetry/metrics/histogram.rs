//! Durations, counted by upper bounds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto;

use super::cell::{add, read};

/// A histogram. One thread writes it with [`Histogram::observe`], several with [`Histogram::observe_shared`].
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    /// In nanoseconds, ascending.
    bounds: &'static [u64; N],
    /// Not cumulative. A duration above every bound is only in `count`.
    buckets: [AtomicU64; N],
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    pub(super) fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            buckets: [const { AtomicU64::new(0) }; N],
            count: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        }
    }

    pub(super) fn observe(&self, duration: Duration) {
        let nanoseconds = nanoseconds(duration);
        if let Some(bucket) = self.bucket(nanoseconds) {
            add(bucket, 1);
        }
        add(&self.nanoseconds, nanoseconds);
        add(&self.count, 1);
    }

    /// As [`Histogram::observe`], for a histogram that several threads write.
    pub(super) fn observe_shared(&self, duration: Duration) {
        let nanoseconds = nanoseconds(duration);
        if let Some(bucket) = self.bucket(nanoseconds) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn bucket(&self, nanoseconds: u64) -> Option<&AtomicU64> {
        self.bounds.iter().position(|bound| nanoseconds <= *bound).map(|at| &self.buckets[at])
    }

    pub(super) fn is_empty(&self) -> bool {
        read(&self.count) == 0
    }

    /// The sum of the histograms of some threads; `None` for no threads.
    pub(super) fn sum<'h>(threads: &(impl Iterator<Item = &'h Self> + Clone)) -> Option<proto::Histogram> {
        let sum = |cell: &dyn Fn(&Self) -> &AtomicU64| -> u64 {
            threads.clone().map(|histogram| read(cell(histogram))).sum()
        };
        let bounds = threads.clone().next()?.bounds;
        let count = sum(&|histogram| &histogram.count);
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(N);
        for (n, bound) in bounds.iter().enumerate() {
            cumulative += sum(&|histogram| &histogram.buckets[n]);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(seconds(*bound));
            // A thread may count between two reads, but a cumulative count must never exceed the whole.
            bucket.set_cumulative_count(cumulative.min(count));
            buckets.push(bucket);
        }
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count);
        histogram.set_sample_sum(seconds(sum(&|histogram| &histogram.nanoseconds)));
        Some(histogram)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// Upper bounds in nanoseconds for the way of a change: from one machine to the time that is promised, and beyond.
pub(super) const LAG_BUCKETS: [u64; 14] = [
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
