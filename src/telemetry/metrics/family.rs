//! The families of Prometheus' text format: a name, a help text, and a series for each set of labels.

use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::histogram::Histogram;

/// The labels of a series, and their values.
type Labels<'l, const L: usize> = [(&'l str, &'l str); L];

/// One count without labels; no family where there is none.
pub(super) fn counter(name: &str, help: &str, n: impl Into<Option<u64>>) -> MetricFamily {
    counters(name, help, n.into().map(|n| ([], n)))
}

pub(super) fn counters<'l, const L: usize>(
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels<'l, L>, u64)>,
) -> MetricFamily {
    family(name, help, MetricType::COUNTER, series, |metric, n| {
        let mut counter = proto::Counter::default();
        counter.set_value(n as f64);
        metric.set_counter(counter);
    })
}

/// One value without labels; no family where there is none.
pub(super) fn gauge(name: &str, help: &str, value: impl Into<Option<f64>>) -> MetricFamily {
    gauges(name, help, value.into().map(|value| ([], value)))
}

pub(super) fn gauges<'l, const L: usize>(
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels<'l, L>, f64)>,
) -> MetricFamily {
    family(name, help, MetricType::GAUGE, series, |metric, value| {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    })
}

/// One histogram without labels; no family while it is empty.
pub(super) fn histogram<'h, const N: usize>(
    name: &str,
    help: &str,
    histogram: impl Into<Option<&'h Histogram<N>>>,
) -> MetricFamily {
    let filled = histogram.into().filter(|histogram| !histogram.is_empty());
    histograms(name, help, filled.map(|histogram| ([], std::iter::once(histogram))))
}

/// For each set of labels the sum of some threads' histograms.
pub(super) fn histograms<'l, 'h, const L: usize, const N: usize>(
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels<'l, L>, impl Iterator<Item = &'h Histogram<N>> + Clone)>,
) -> MetricFamily {
    let summed = series.into_iter().filter_map(|(labels, threads)| Some((labels, Histogram::sum(&threads)?)));
    family(name, help, MetricType::HISTOGRAM, summed, Metric::set_histogram)
}

fn family<'l, const L: usize, V>(
    name: &str,
    help: &str,
    kind: MetricType,
    series: impl IntoIterator<Item = (Labels<'l, L>, V)>,
    set: impl Fn(&mut Metric, V),
) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    let metric = |(labels, value): (Labels<'l, L>, V)| {
        let mut metric = Metric::from_label(labels.map(label).to_vec());
        set(&mut metric, value);
        metric
    };
    family.set_metric(series.into_iter().map(metric).collect());
    family
}

fn label((name, value): (&str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}
