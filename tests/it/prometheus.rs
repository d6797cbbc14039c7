//! A real Prometheus reads the metrics and reports no problem.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use keygate::store::keeper::LinkState;
use tempfile::TempDir;

use crate::harness::desk::write_secret;
use crate::harness::metrics::{scrape, value};
use crate::harness::{
    Answer, Call, Gateway, Process, RedisServer, Transport, Upstream, eventually, fetch, refusing,
};

const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"";

const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");

/// Debian's prometheus with the shipped file, except for its targets and intervals.
fn prometheus(folder: &TempDir, target: SocketAddr) -> (Process, SocketAddr) {
    let shipped = include_str!("../../deploy/prometheus/prometheus.yml");
    let targets = r#"["gateway-a:9464", "gateway-b:9464"]"#;
    assert!(shipped.contains(targets) && shipped.contains("_interval: 10s"), "{shipped}");
    let config =
        shipped.replace(targets, &format!("[\"{target}\"]")).replace("_interval: 10s", "_interval: 200ms");
    fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    fs::write(folder.path().join("alerts.yml"), ALERTS).unwrap();
    let mut command = Command::new("prometheus");
    command.current_dir(folder.path());
    command.args([
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        "--web.listen-address=127.0.0.1:0",
    ]);
    let process = Process::start(command);
    let line = process.err_line("msg=\"Listening on\"");
    let address = line.rsplit("address=").next().unwrap().trim().parse().unwrap();
    eventually("it answers", || fetch(address, &Call::get("/-/ready")).status == 200);
    (process, address)
}

/// The values of the series that a query finds.
fn query(prometheus: SocketAddr, query: &str) -> Vec<String> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer: Answer = fetch(prometheus, &Call::get(&format!("/api/v1/query?query={encoded}")));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let found = answer.json()["data"]["result"].as_array().unwrap().clone();
    found.iter().map(|series| series["value"][1].as_str().unwrap().to_owned()).collect()
}

/// The health of each shipped rule, by its name.
fn rules(prometheus: SocketAddr) -> BTreeMap<String, String> {
    let answer = fetch(prometheus, &Call::get("/api/v1/rules")).json();
    let groups = answer["data"]["groups"].as_array().unwrap().clone();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    rules.map(|rule| (text(&rule["name"]), text(&rule["health"]))).collect()
}

/// The names of keygate's metrics in an expression, as their families are called.
fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    expression.match_indices("keygate_").map(|(at, _)| {
        let name = &expression[at + 8..];
        let name = name.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap();
        ["_bucket", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
    })
}

/// The expressions of the shipped dashboard.
fn dashboard() -> Vec<String> {
    let dashboard = include_str!("../../deploy/grafana/keygate.json");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn prometheus_reads_the_counters_of_a_gateway() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder().settings(OPS).api(&live, &test).start();
    let key = gateway.live_key();
    for _ in 0..3 {
        gateway.fetch(&Call::get("/v1/jobs").key(&key.secret));
    }
    let folder = TempDir::new().unwrap();
    let (_process, prometheus) = prometheus(&folder, gateway.ops_address());
    eventually("the gateway is up", || query(prometheus, "up{job=\"keygate\"}") == ["1"]);
    let counted = "sum(keygate_requests_total{route=\"jobs.read\",code=\"2xx\"})";
    eventually("the requests are known", || query(prometheus, counted) == ["3"]);
    gateway.fetch(&Call::get("/v1/jobs").key(&key.secret));
    eventually("one more is known too", || query(prometheus, counted) == ["4"]);
    for expression in dashboard() {
        query(prometheus, &expression.replace("$instance", ".*").replace("$__rate_interval", "1m"));
    }
    let alerts = ALERTS.matches("- alert: ").count();
    eventually("every rule is evaluated", || {
        let rules = rules(prometheus);
        rules.len() == alerts && rules.values().all(|health| health == "ok")
    });
    let quantile = "histogram_quantile(0.99, sum by (le) (keygate_overhead_seconds_bucket))";
    let quantile: f64 = query(prometheus, quantile)[0].parse().unwrap();
    assert!(quantile > 0.0 && quantile < 0.1, "{quantile}");
}

/// These gateways have all metrics: a Redis, certificates, an endpoint that is down, refusals, changes, notifications.
#[test]
fn promtool_reports_no_problem() {
    let redis = RedisServer::start();
    let store = format!("[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true", redis.url());
    let settings =
        "[server]\nlisten = \"127.0.0.1:0\"\ntls = [{ cert = \"server.pem\", key = \"server-key.pem\" }]";
    let folder = TempDir::new().unwrap();
    crate::harness::transport::CERTIFICATE.write(folder.path(), "server");
    write_secret(&folder.path().join("outbox-key"), "a key of thirty-two bytes or more");
    let live = Upstream::start("live");
    let outbox = format!("[outbox]\nurl = \"{}/news\"\nkey_file = \"outbox-key\"", live.url());
    let builder = Gateway::builder().settings(settings).settings(&store).settings(OPS).settings(&outbox);
    let builder = builder.transport(Transport::TlsHttp2);
    let mut gateway = builder.upstream("api", &live.url(), &refusing()).start_in(folder);
    eventually("it has a lease", || gateway.lifecycle().keeper().link_state() == LinkState::Up);
    let key = gateway.live_key();
    gateway.fetch(&Call::get("/v1/jobs").key(&key.secret));
    gateway.fetch(&Call::get("/v1/jobs").key(&gateway.test_key().secret));
    gateway.revoke(&key);
    gateway.fetch(&Call::get("/v1/jobs").key(&key.secret));
    gateway.reload().unwrap();
    eventually("the revocation is measured", || {
        scrape(gateway.ops_address()).contains("# TYPE keygate_revocation_lag_seconds ")
    });
    eventually("the news are counted", || {
        let text = scrape(gateway.ops_address());
        ["waiting", "held"].iter().all(|kind| text.contains(&format!("\nkeygate_outbox_{kind} ")))
    });
    // What only the embedded store has.
    let limited = format!("[upstreams.small]\nlive = [\"{}\"]\nshared = true\nmax_requests = 5", live.url());
    let named = "[upstreams.named]\nlive = [\"http://localhost:9\"]\nshared = true";
    let embedded = Gateway::builder().settings(OPS).settings(&limited).settings(named);
    let embedded = embedded.upstream("api", &live.url(), &refusing()).start();
    let (text, of_embedded) = (scrape(gateway.ops_address()), scrape(embedded.ops_address()));
    let families =
        text.lines().chain(of_embedded.lines()).filter_map(|line| line.strip_prefix("# TYPE keygate_"));
    let families: BTreeSet<&str> = families.filter_map(|rest| rest.split(' ').next()).collect();
    for family in [
        "requests_total",
        "request_duration_seconds",
        "overhead_seconds",
        "upstream_duration_seconds",
        "requests_in_flight",
        "connections",
        "auth_decisions_total",
        "messages_refused_total",
        "streams_reset_total",
        "request_headers_removed_total",
        "cache_lookups_total",
        "cache_entries",
        "lookups_waiting",
        "lookup_wait_seconds",
        "lookups_refused_total",
        "store_up",
        "store_request_duration_seconds",
        "revocation_lag_seconds",
        "propagation_seconds",
        "propagation_unconfirmed_total",
        "propagation_lapsed_total",
        "leases",
        "leases_lapsed",
        "lease_held",
        "store_breaker_open",
        "outbox_waiting",
        "outbox_held",
        "store_suspect",
        "store_full",
        "rate_limited_total",
        "audit_troubles_dropped_total",
        "event_link_up",
        "stale_served_total",
        "upstream_healthy",
        "upstream_addresses",
        "upstream_name_resolved",
        "config_reloads_total",
        "config_hash",
        "tls_cert_not_after_timestamp_seconds",
        "records_dropped_total",
        "log_lines_dropped_total",
        "connections_refused_total",
        "build_info",
    ] {
        assert!(families.contains(family), "{family} in {families:#?}");
    }
    let dashboard = dashboard();
    let shown: BTreeSet<&str> = dashboard.iter().flat_map(|expression| metrics_in(expression)).collect();
    for name in &shown {
        assert!(families.contains(name), "the dashboard asks for {name}, which there is not");
    }
    // The dashboard finds the gateways by it.
    let hidden: Vec<_> = families.difference(&shown).filter(|name| **name != "build_info").collect();
    assert!(hidden.is_empty(), "the dashboard does not show {hidden:?}");
    let page: BTreeSet<&str> = metrics_in(include_str!("../../deploy/README.md")).collect();
    let unnamed: Vec<_> = families.difference(&page).collect();
    assert!(unnamed.is_empty(), "deploy/README.md does not name {unnamed:?}");
    for name in &page {
        assert!(families.contains(name), "deploy/README.md names {name}, which there is not");
    }
    let rules = ALERTS.lines().filter(|line| !line.contains("action: ") && !line.contains("meaning: "));
    let rules: String = rules.collect();
    for name in metrics_in(&rules) {
        assert!(families.contains(name), "an alert asks for {name}, which there is not");
    }
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool is installed; tests/run sees to it");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && complaint.is_empty(), "{complaint}");
}

#[test]
fn the_shipped_alerts_fire_exactly_when_they_should() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus");
    for arguments in [&["check", "rules", "alerts.yml"][..], &["test", "rules", "alerts_test.yml"]] {
        let said = Command::new("promtool").args(arguments).current_dir(folder).output();
        let said = said.expect("promtool is installed; tests/run sees to it");
        let text = [said.stdout, said.stderr].concat();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&text));
    }
    let tested = include_str!("../../deploy/prometheus/alerts_test.yml");
    for alert in ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tested.contains(&format!("alertname=\"{alert}\"")), "{alert} is raised in no test");
    }
    for part in ["labels: { severity: ", "summary: ", "meaning: ", "action: "] {
        assert_eq!(ALERTS.matches(part).count(), ALERTS.matches("- alert: ").count(), "{part}");
    }
}

#[test]
fn two_thousand_keys_have_no_more_series_than_ten() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder().settings(OPS).api(&live, &test).transport(Transport::Http1).start();
    let mut used = 0;
    let mut use_all = |keys: Vec<String>| -> BTreeSet<String> {
        let mut wire = gateway.connect();
        for key in &keys {
            assert_eq!(wire.call(&Call::get("/v1/jobs").key(key)).unwrap().status, 200);
        }
        used += keys.len();
        let count = "keygate_request_duration_seconds_count{route=\"jobs.read\"}";
        eventually("all are counted", || value(&scrape(gateway.ops_address()), count) == Some(used as f64));
        let text = scrape(gateway.ops_address());
        let series = text.lines().filter(|line| !line.starts_with('#'));
        series.filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name.to_owned()).collect()
    };
    let few = use_all(gateway.keys_at_once(10));
    let many = use_all(gateway.keys_at_once(2000));
    assert_eq!(few, many);
}
