//! Metrics: each thread counts for itself, and the counts are added up when somebody asks.
//!
//! A count on the request's path is one store to memory that no other thread writes: no lock, no shared cache
//! line, no looking up of labels. Label values come from closed sets (the policy's routes, the
//! configuration's upstreams, the lists below), so the number of series does not depend on keys,
//! organisations or anything that a client sends.

mod cells;
mod changes;
mod connections;
mod family;
mod histogram;
mod requests;
mod state;
mod store;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder, TextEncoder};

pub use cells::Cells;
pub use changes::ChangeMeter;
pub use connections::{Connected, Protocol};
pub use requests::{Code, Finished, RouteCells, UpstreamCells, method_label};
pub use state::{Reloads, State};
pub use store::{MeasuredStore, StoreMeter};

/// All threads' counts.
#[derive(Debug)]
pub struct Metrics {
    store: Arc<StoreMeter>,
    threads: Mutex<Vec<Arc<Cells>>>,
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
        let mut families = Vec::new();
        families.extend(requests::families(&threads));
        families.extend(cells::families(&threads));
        families.extend(connections::families(&threads));
        families.extend(self.store.families());
        families.extend(state.changes.iter().flat_map(|changes| changes.families()));
        families.extend(state.families());
        families.retain(|family| !family.get_metric().is_empty());
        families.extend(ProcessCollector::for_self().collect());
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;
    use crate::vocabulary::clock::UnixMillis;
    use crate::vocabulary::key::Environment;

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
}
