//! The operators' listener: metrics, liveness, readiness.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::desk::write_secret;
use crate::harness::metrics::{scrape, value};
use crate::harness::{Call, ClosedPort, Gateway, Upstream, Wire, eventually, fetch};

fn gateway(live: &Upstream, test: &Upstream) -> Gateway {
    Gateway::builder().settings("[ops]\nlisten = \"127.0.0.1:0\"").api(live, test).start()
}

fn metrics(gateway: &Gateway) -> String {
    scrape(gateway.ops_address())
}

#[test]
fn every_request_is_counted_once_by_its_answer() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = gateway(&live, &test);
    let (live_key, narrow) = (gateway.live_key(), gateway.key_with(&["usage:read"]));
    for _ in 0..3 {
        gateway.fetch(&Call::get("/v1/jobs").key(&live_key.secret));
    }
    gateway.fetch(&Call::get("/v1/jobs").key(&gateway.test_key().secret));
    gateway.fetch(&Call::get("/v1/jobs").key(&narrow.secret));
    gateway.fetch(&Call::get("/v1/jobs"));
    gateway.fetch(&Call::new("BREW", "/coffee").key(&live_key.secret));
    gateway.fetch(&Call::get("//"));
    let expected = [
        (r#"keygate_requests_total{route="jobs.read",method="GET",code="2xx",environment="live"}"#, 3.0),
        (r#"keygate_requests_total{route="jobs.read",method="GET",code="2xx",environment="test"}"#, 1.0),
        (r#"keygate_requests_total{route="jobs.read",method="GET",code="403",environment="live"}"#, 1.0),
        (r#"keygate_requests_total{route="jobs.read",method="GET",code="401",environment="none"}"#, 1.0),
        (r#"keygate_requests_total{route="_none",method="_OTHER",code="404",environment="live"}"#, 1.0),
        (r#"keygate_requests_total{route="_none",method="GET",code="400",environment="none"}"#, 1.0),
        (r#"keygate_auth_decisions_total{reason="authenticated"}"#, 6.0),
        (r#"keygate_auth_decisions_total{reason="key_missing"}"#, 1.0),
        (r#"keygate_auth_decisions_total{reason="scope_missing"}"#, 1.0),
        (r#"keygate_request_duration_seconds_count{route="jobs.read"}"#, 6.0),
        (r#"keygate_overhead_seconds_count{route="jobs.read"}"#, 4.0),
        (r#"keygate_upstream_duration_seconds_count{upstream="api"}"#, 4.0),
        (r#"keygate_store_request_duration_seconds_count{op="lookup"}"#, 3.0),
        ("keygate_requests_in_flight", 0.0),
        ("keygate_store_up", 1.0),
        (r#"keygate_build_info{version="0.1.0"}"#, 1.0),
    ];
    // A request is counted after its last byte was written; a client may read that byte earlier.
    eventually("all requests are counted", || {
        let text = metrics(&gateway);
        expected.iter().all(|(series, n)| value(&text, series) == Some(*n))
    });
    let text = metrics(&gateway);
    let looked_up: f64 = ["thread", "process", "store", "stale"]
        .iter()
        .filter_map(|result| value(&text, &format!("keygate_cache_lookups_total{{result=\"{result}\"}}")))
        .sum();
    assert_eq!(looked_up, 6.0);
    assert!(value(&text, "process_resident_memory_bytes").unwrap() > 0.0);
}

#[test]
fn store_requests_are_measured_by_operation() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let folder = tempfile::tempdir().unwrap();
    write_secret(&folder.path().join("outbox-key"), "a key of thirty-two bytes or more");
    let gateway = Gateway::builder()
        .settings("[ops]\nlisten = \"127.0.0.1:0\"\n[signup]\nenabled = true")
        .settings(&format!("[outbox]\nurl = \"{}/news\"\nkey_file = \"outbox-key\"", live.url()))
        .api(&live, &test)
        .start_in(folder);
    let asked = |gateway: &Gateway, operation: &str| {
        let series = format!("keygate_store_request_duration_seconds_count{{op=\"{operation}\"}}");
        value(&metrics(gateway), &series).unwrap_or_else(|| panic!("{operation} from the start"))
    };
    let more = |gateway: &Gateway, operation: &str, act: &dyn Fn()| {
        let before = asked(gateway, operation);
        act();
        eventually(&format!("{operation} is counted"), || asked(gateway, operation) > before);
    };
    let key = gateway.live_key();
    let sign_up = Call::post("/v1/auth/signup", r#"{"name":"Ada","email":"ada@example.com"}"#);
    let make = Call::post("/v1/api_keys", r#"{"name":"another"}"#).key(&key.secret);
    let make = make.field("idempotency-key", "once");
    let get = |target: &str| Call::get(target).key(&key.secret);
    for (operation, call) in [
        ("lookup", get("/v1/jobs")),
        ("quota", sign_up),
        ("answer", make),
        ("commit", Call::post("/v1/api_keys", r#"{"name":"a third"}"#).key(&key.secret)),
        ("read", get("/v1/api_keys")),
        ("usage", get("/v1/api_keys")),
        ("trail", get("/v1/audit_events")),
    ] {
        more(&gateway, operation, &|| assert_eq!(gateway.fetch(&call).status, 200, "{operation}"));
    }
    more(&gateway, "outbox", &|| {});
}

#[test]
fn the_number_of_series_depends_neither_on_keys_nor_on_what_clients_send() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = gateway(&live, &test);
    let series = |text: &str| -> BTreeSet<String> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, _)| name.to_owned())
            .collect()
    };
    let visit = |n: usize| {
        let key = gateway.live_key();
        gateway.fetch(&Call::get(&format!("/v1/jobs/{n}")).key(&key.secret));
        gateway.fetch(&Call::get(&format!("/{n}")).key(&key.secret));
        gateway.fetch(&Call::new(&format!("M{n}"), "/v1/jobs").key(&key.secret));
        gateway.fetch(&Call::get("/v1/jobs").key(&format!("{}x", key.secret)));
    };
    visit(0);
    let before = series(&metrics(&gateway));
    (1..20).for_each(visit);
    let after = series(&metrics(&gateway));
    let new: Vec<&String> = after.difference(&before).collect();
    // A request that was still ending at the first scrape may add the series of its own kind.
    assert!(new.iter().all(|name| !name.contains("key_0") && !name.contains("M1")), "{new:#?}");
    assert!(new.len() <= 4, "{new:#?}");
}

#[test]
fn open_connections_are_counted_by_protocol() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = gateway(&live, &test);
    let open = |expected: [f64; 3]| {
        eventually("connections are counted", || {
            let text = metrics(&gateway);
            let series = ["opening", "http1", "http2"].map(|protocol| {
                format!("keygate_connections{{listener=\"server\",protocol=\"{protocol}\"}}")
            });
            series.map(|series| value(&text, &series)) == expected.map(Some)
        });
    };
    open([0.0; 3]);
    let silent = Wire::connect(gateway.address());
    let mut one = Wire::connect(gateway.address());
    one.send(&Call::get("/v1/jobs").to_bytes());
    assert_eq!(one.answer().unwrap().status, 401);
    let mut two = Wire::connect(gateway.address());
    two.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    open([1.0, 1.0, 1.0]);
    drop((silent, one, two));
    open([0.0; 3]);
}

#[test]
fn an_endpoint_is_healthy_unless_the_last_attempt_to_connect_failed() {
    let (live, test) = (ClosedPort::reserve(), Upstream::start("test"));
    let url = live.url();
    let gateway = Gateway::builder()
        .settings("[ops]\nlisten = \"127.0.0.1:0\"")
        .upstream("api", &url, &test.url())
        .start();
    let key = gateway.live_key();
    let healthy = |url: &str| {
        let endpoint = url.trim_start_matches("http://");
        let series = format!("keygate_upstream_healthy{{upstream=\"api\",endpoint=\"{endpoint}\"}}");
        value(&metrics(&gateway), &series)
    };
    assert_eq!(healthy(&url), Some(1.0), "nobody has tried yet");
    assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(&key.secret)).status, 502);
    assert_eq!((healthy(&url), healthy(&test.url())), (Some(0.0), Some(1.0)));
    let listener = live.open();
    std::thread::spawn(move || listener.accept().map(|(stream, _)| Wire::from(stream).request_head()));
    gateway.fetch(&Call::get("/v1/jobs").key(&key.secret));
    assert_eq!(healthy(&url), Some(1.0));
}

#[test]
fn the_ops_listener_has_metrics_and_probes_only() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = gateway(&live, &test);
    let ask = |call: &Call| fetch(gateway.ops_address(), call).status;
    assert_eq!(ask(&Call::get("/livez")), 200);
    for target in
        ["/livez?verbose", "/readyz?verbose", "/readyz?", "/metrics?x=1", "/metrics?name[]=up&x=%20"]
    {
        assert_eq!(ask(&Call::get(target)), 200, "{target}");
    }
    assert_eq!(ask(&Call::get("/metricsx?x=1")), 404);
    assert_eq!(ask(&Call::get("/readyz")), 200);
    assert_eq!(ask(&Call::get("/v1/jobs")), 404);
    assert_eq!(ask(&Call::get("/metrics/../livez")), 404);
    assert_eq!(ask(&Call::post("/metrics", "x")), 405);
    assert_eq!(gateway.fetch(&Call::get("/metrics")).status, 401, "the public listener knows nothing of it");
    gateway.drain(Duration::ZERO);
}
