//! Metrics: each thread counts for itself, and a scrape adds the counts up.
//!
//! A count on the request's path is one store to memory that no other thread writes: no lock, no shared cache
//! line, no lookup of labels. Label values come from closed sets (the routes of the policy, the upstreams of the
//! configuration, enums), so the number of series does not depend on keys, organisations or anything that a client
//! sends.

mod cell;
mod cells;
mod changes;
mod connections;
mod decisions;
mod family;
mod histogram;
mod lookups;
mod named;
mod requests;
mod state;
mod store;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder, TextEncoder};

pub use cells::Cells;
pub use changes::ChangeMeter;
pub use connections::{Connected, Excess, Protocol, ResetStreams, Unserved};
pub use lookups::{LookupMeter, NoTurn};
pub use requests::{Code, Finished, OTHER_METHOD, RouteCells, UpstreamCells, method_label};
pub use state::{CrowdState, EndpointState, NameState, Reloads, State};
pub use store::{StoreMeter, StoreOperation};

/// The counts of all threads.
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

    /// The cells of one more thread.
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
        families.extend(cells::families(&threads));
        families.extend(self.store.families());
        families.extend(state.lookups.families());
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
    use crate::vocabulary::reason::{ErrorStatus, Reason};

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
            for code in [Code::Upstream(StatusCode::CREATED), Code::Refused(ErrorStatus::Forbidden)] {
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
        for status in [ErrorStatus::TooManyRequests, ErrorStatus::Forbidden] {
            let cells = metrics.cells();
            cells.route(Some("auth.signup")).finish(&finished(Code::Refused(status)));
            cells.route(Some("auth.signup")).finish(&finished(Code::Refused(ErrorStatus::TooManyRequests)));
            cells.route(Some("jobs.read")).finish(&finished(Code::Upstream(status.code())));
        }
        let expected = [
            r#"keygate_rate_limited_total{route="auth.signup"} 3"#,
            r#"keygate_rate_limited_total{route="jobs.read"} 0"#,
        ];
        assert_has(&metrics, &expected);
    }

    /// The values of a label in a family, in the order of the text.
    fn values(metrics: &Metrics, family: &str, label: &str) -> Vec<String> {
        let text = String::from_utf8(metrics.render(&state()).unwrap()).unwrap();
        let series = text.lines().filter(|line| line.starts_with(&format!("{family}{{")));
        let value = |line: &str| {
            let (_, rest) = line.split_once(&format!("{label}=\"")).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        series.map(value).collect()
    }

    #[test]
    fn every_decision_has_its_series_from_the_beginning() {
        let metrics = Metrics::new(Arc::default());
        let cells = metrics.cells();
        cells.refused(Reason::BodyTooLarge);
        let mut decisions = values(&metrics, "keygate_auth_decisions_total", "reason");
        decisions.sort_unstable();
        let expected = [
            "address_not_allowed",
            "authenticated",
            "escalation",
            "key_disabled",
            "key_expired",
            "key_in_browser",
            "key_malformed",
            "key_missing",
            "key_not_bearer",
            "key_revoked",
            "key_rotated",
            "key_unknown",
            "key_wrong_environment",
            "lookups_exhausted",
            "no_route",
            "not_served_here",
            "organisation_pending",
            "organisation_suspended",
            "scope_missing",
            "store_unavailable",
        ];
        assert_eq!(decisions, expected);
    }

    #[test]
    fn an_answer_cut_for_an_unforeseen_reason_is_counted_under_it() {
        let metrics = Metrics::new(Arc::default());
        let cells = metrics.cells();
        cells.cut(Reason::KeyRevoked);
        cells.cut(Reason::OrganisationPending);
        let expected = [
            r#"keygate_answers_cut_total{reason="key_revoked"} 1"#,
            r#"keygate_answers_cut_total{reason="organisation_pending"} 1"#,
            r#"keygate_answers_cut_total{reason="key_expired"} 0"#,
        ];
        assert_has(&metrics, &expected);
        assert_eq!(values(&metrics, "keygate_answers_cut_total", "reason").len(), 11);
    }

    #[test]
    fn every_code_has_a_label_of_its_own() {
        let metrics = Metrics::new(Arc::default());
        let classes = [100, 204, 302, 404, 500, 999].map(|status| StatusCode::from_u16(status).unwrap());
        let codes = classes.map(Code::Upstream).into_iter().chain(ErrorStatus::ALL.map(Code::Refused));
        for code in codes.chain([Code::ClientGone]) {
            metrics.cells().route(Some("jobs.read")).finish(&finished(code));
        }
        let expected = [
            "1xx", "2xx", "3xx", "4xx", "5xx", "400", "401", "403", "404", "409", "413", "414", "429", "431",
            "500", "502", "503", "504", "499",
        ];
        assert_eq!(values(&metrics, "keygate_requests_total", "code"), expected);
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
