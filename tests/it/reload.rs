//! Reloading the configuration while requests run: all of it takes effect, or nothing.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::process::Signal;
use rustls::version::TLS13;
use tempfile::TempDir;

use crate::harness::metrics::{scrape, value};
use crate::harness::transport::{CERTIFICATE, Certificate, HOST, client_config, server_name};
use crate::harness::{
    Call, Gateway, GatewayBuilder, Manual, Process, Reply, Transport, Upstream, create_key, eventually,
    hang_up,
};

/// A policy of these routes, by id and path; all of them require the first scope.
fn policy(routes: &[(&str, &str)]) -> String {
    let mut policy = "scopes = [\"jobs:read\"]\n".to_owned();
    for (id, path) in routes {
        write!(
            policy,
            "[[route]]\nid = \"{id}\"\nmethods = [\"GET\"]\npaths = [\"{path}\"]\nscopes = [\"jobs:read\"]\nupstream = \"api\"\n"
        )
        .unwrap();
    }
    policy
}

const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"";

fn gateway(live: &str, routes: &[(&str, &str)]) -> Gateway {
    builder(live, routes).start()
}

/// Always HTTP/1.1 on plain text, so that connections can be held byte by byte.
fn builder(live: &str, routes: &[(&str, &str)]) -> GatewayBuilder {
    let builder = Gateway::builder().settings(OPS).policy(&policy(routes)).transport(Transport::Http1);
    builder.upstream("api", live, "http://127.0.0.1:9")
}

fn write_policy(gateway: &Gateway, text: &str) {
    fs::write(gateway.folder().join("policy.toml"), text).unwrap();
}

/// Replaces a text in the configuration.
#[track_caller]
fn change(gateway: &Gateway, from: &str, to: &str) {
    let path = gateway.folder().join("keygate.toml");
    let before = fs::read_to_string(&path).unwrap();
    assert!(before.contains(from), "{from} in\n{before}");
    fs::write(path, before.replacen(from, to, 1)).unwrap();
}

fn reloads(ops: SocketAddr) -> [Option<f64>; 2] {
    let text = scrape(ops);
    ["applied", "refused"]
        .map(|result| value(&text, &format!("keygate_config_reloads_total{{result=\"{result}\"}}")))
}

#[test]
fn a_route_that_was_removed_is_denied_and_one_that_was_added_is_served_on_the_same_connection() {
    let live = Upstream::start("live");
    let mut gateway = gateway(&live.url(), &[("old", "/old"), ("kept", "/kept")]);
    let key = gateway.live_key();
    let mut wire = gateway.connect();
    let mut status = |path: &str| {
        wire.send(&Call::get(path).key(&key.secret).to_bytes());
        wire.answer().unwrap().status
    };
    assert_eq!([status("/old"), status("/kept"), status("/new")], [200, 200, 404]);
    write_policy(&gateway, &policy(&[("new", "/new"), ("kept", "/kept")]));
    gateway.reload().unwrap();
    assert_eq!([status("/old"), status("/kept"), status("/new")], [404, 200, 200]);
    let text = scrape(gateway.ops_address());
    for (route, n) in [("old", 1.0), ("kept", 2.0), ("new", 1.0)] {
        let series = format!(
            "keygate_requests_total{{route=\"{route}\",method=\"GET\",code=\"2xx\",environment=\"live\"}}"
        );
        eventually("the requests are counted", || value(&scrape(gateway.ops_address()), &series) == Some(n));
    }
    assert_eq!(reloads(gateway.ops_address()), [Some(1.0), Some(0.0)], "{text}");
}

#[test]
fn a_request_under_way_ends_under_the_policy_that_it_began_with() {
    let upstream = Manual::start();
    let mut gateway = gateway(&upstream.url(), &[("slow", "/slow")]);
    let key = gateway.live_key();
    let mut wire = gateway.connect();
    wire.send(&Call::get("/slow").key(&key.secret).to_bytes());
    let mut above = upstream.accept();
    above.request_head().unwrap();
    let elsewhere = Upstream::start("elsewhere");
    write_policy(&gateway, &policy(&[("other", "/other")]));
    change(&gateway, &upstream.url(), &elsewhere.url());
    gateway.reload().unwrap();
    let ask = |path: &str| gateway.fetch(&Call::get(path).key(&key.secret));
    assert_eq!(ask("/slow").status, 404, "the new policy holds");
    assert_eq!(ask("/other").text(), "elsewhere");
    above.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow");
    let answer = wire.answer().unwrap();
    assert_eq!((answer.status, answer.text()), (200, "slow".to_owned()));
    let series = r#"keygate_requests_total{route="slow",method="GET",code="2xx",environment="live"}"#;
    eventually("it is counted under the route that it came by", || {
        value(&scrape(gateway.ops_address()), series) == Some(1.0)
    });
    assert!(above.is_closed(), "no request goes there any more, so its connection is not kept");
    hang_up(&wire).unwrap();
}

#[test]
fn no_request_fails_and_none_is_lost_while_policies_change_under_load() {
    let live = Upstream::start("live");
    let policies = [policy(&[("a", "/jobs/{id}"), ("x", "/x")]), policy(&[("y", "/y"), ("b", "/jobs/{id}")])];
    let mut gateway = gateway(&live.url(), &[("a", "/jobs/{id}")]);
    let (key, address, ops) = (gateway.live_key(), gateway.address(), gateway.ops_address());
    let (ended, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut wire = crate::harness::Wire::connect(address);
                while !ended.load(Ordering::Relaxed) {
                    wire.send(&Call::get("/jobs/01JD3N0DEM0").key(&key.secret).to_bytes());
                    let answer = wire.answer().expect("an answer to every request");
                    assert_eq!((answer.status, answer.text()), (200, "live".to_owned()));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for n in 0..40 {
            let before = answered.load(Ordering::Relaxed);
            eventually("requests go on", || answered.load(Ordering::Relaxed) > before + 8);
            write_policy(&gateway, &policies[n % 2]);
            gateway.reload().unwrap();
        }
        ended.store(true, Ordering::Relaxed);
    });
    let answered = answered.load(Ordering::Relaxed) as f64;
    eventually("each request is counted once, under one of the two routes", || {
        let text = scrape(ops);
        let counted = ["a", "b"].map(|route| {
            value(&text, &format!("keygate_request_duration_seconds_count{{route=\"{route}\"}}"))
        });
        counted.iter().all(Option::is_some) && counted.into_iter().flatten().sum::<f64>() == answered
    });
    assert_eq!(reloads(ops), [Some(40.0), Some(0.0)]);
    let connections = live.connections();
    assert!(connections <= 8, "an upstream that stays keeps its connections: {connections}");
}

#[test]
fn an_invalid_policy_changes_nothing_and_all_mistakes_are_logged() {
    let live = Upstream::start("live");
    let folder = TempDir::new().unwrap();
    builder(&live.url(), &[("jobs", "/jobs")]).write(folder.path());
    let secret = create_key(folder.path());
    let mut gateway = Process::serve(folder.path());
    let (address, ops) = (gateway.address(), gateway.ops_address());
    let status = |path: &str| crate::harness::fetch(address, &Call::get(path).key(&secret)).status;
    assert_eq!(status("/jobs"), 200);
    let hash = value(&scrape(ops), "keygate_config_hash").unwrap();
    assert!(hash > 0.0);

    let bad = policy(&[("jobs", "/jobs"), ("more", "/more")])
        .replace("[\"GET\"]", "[\"get\"]")
        .replace("\"/more\"", "\"more\"");
    fs::write(folder.path().join("policy.toml"), bad).unwrap();
    gateway.signal(Signal::HUP);
    gateway.err_line("configuration_refused: the one before stays in force");
    for mistake in ["route[jobs].methods[0]", "route[more].methods[0]", "route[more].paths[0]"] {
        gateway.err_line(mistake);
    }
    assert_eq!([status("/jobs"), status("/more")], [200, 404]);
    assert_eq!(reloads(ops), [Some(0.0), Some(1.0)]);
    assert_eq!(value(&scrape(ops), "keygate_config_hash"), Some(hash));

    let good = policy(&[("jobs", "/jobs"), ("more", "/more")]);
    fs::write(folder.path().join("policy.toml"), good).unwrap();
    gateway.signal(Signal::HUP);
    gateway.err_line("2 routes are in force");
    assert_eq!([status("/jobs"), status("/more")], [200, 200]);
    assert_eq!(reloads(ops), [Some(1.0), Some(1.0)]);
    assert_ne!(value(&scrape(ops), "keygate_config_hash"), Some(hash));
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_setting_that_needs_a_restart_is_named_and_nothing_changes() {
    let live = Upstream::start("live");
    let mut gateway = gateway(&live.url(), &[("old", "/old")]);
    let key = gateway.live_key();
    write_policy(&gateway, &policy(&[("new", "/new")]));
    change(&gateway, "workers = 2", "workers = 3");
    change(&gateway, "keygate.redb", "other.redb");
    let refused = gateway.reload().unwrap_err().to_string();
    assert!(refused.contains("server.workers, [store]"), "{refused}");
    let status = |path: &str| gateway.fetch(&Call::get(path).key(&key.secret)).status;
    assert_eq!([status("/old"), status("/new")], [200, 404]);
    change(&gateway, "workers = 3", "workers = 2");
    change(&gateway, "other.redb", "keygate.redb");
    gateway.reload().unwrap();
    assert_eq!(gateway.fetch(&Call::get("/new").key(&key.secret)).status, 200);
}

#[test]
fn a_reload_changes_limits_proxies_header_names_and_upstreams() {
    let (live, moved) = (Upstream::start("live"), Upstream::start("moved"));
    let mut gateway = gateway(&live.url(), &[("jobs", "/jobs")]);
    let key = gateway.live_key();
    let call = Call::get("/jobs").key(&key.secret).field("x-forwarded-for", "203.0.113.9");
    gateway.fetch(&call);
    assert_eq!(live.only().value("x-forwarded-for"), "127.0.0.1");
    change(&gateway, "[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n");
    change(&gateway, "[policy]", "[limits]\nfields = 8\n[identity_headers]\norg_id = \"x-tenant\"\n[policy]");
    change(&gateway, &live.url(), &moved.url());
    gateway.reload().unwrap();
    gateway.fetch(&call);
    let seen = moved.only();
    assert_eq!(seen.value("x-forwarded-for"), "203.0.113.9, 127.0.0.1");
    assert_eq!(seen.value("x-tenant"), gateway.org.to_string());
    assert_eq!(live.seen().len(), 1);
    let many = (0..9).fold(Call::get("/jobs").key(&key.secret), |call, n| call.field(&format!("x-{n}"), "1"));
    assert_eq!(gateway.fetch(&many).status, 431);
    let text = scrape(gateway.ops_address());
    let healthy = |url: &str| {
        let endpoint = url.trim_start_matches("http://");
        value(&text, &format!("keygate_upstream_healthy{{upstream=\"api\",endpoint=\"{endpoint}\"}}"))
    };
    assert_eq!((healthy(&live.url()), healthy(&moved.url())), (None, Some(1.0)));
}

#[test]
fn new_connections_get_a_new_certificate_and_open_ones_continue() {
    let live = Upstream::start("live");
    let folder = TempDir::new().unwrap();
    Certificate::for_names(&[HOST]).write(folder.path(), "server");
    let settings = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\ntls = [{ cert = \"server.pem\", key = \"server-key.pem\" }]";
    let policy = policy(&[("jobs", "/jobs")]);
    let builder =
        Gateway::builder().settings(settings).settings(OPS).policy(&policy).transport(Transport::TlsHttp1);
    let mut gateway = builder.upstream("api", &live.url(), "http://127.0.0.1:9").start_in(folder);
    // The client trusts only the new certificate.
    let connects = |gateway: &Gateway| {
        let mut tcp = std::net::TcpStream::connect(gateway.address()).unwrap();
        tcp.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
        let config = client_config(&["http/1.1"], &[&TLS13]);
        let mut session = rustls::ClientConnection::new(std::sync::Arc::new(config), server_name()).unwrap();
        while session.is_handshaking() {
            if session.complete_io(&mut tcp).is_err() {
                return false;
            }
        }
        true
    };
    assert!(!connects(&gateway));

    fs::write(gateway.folder().join("server.pem"), "no certificate").unwrap();
    let refused = gateway.reload().unwrap_err().to_string();
    assert!(refused.contains("there is no certificate in"), "{refused}");
    assert!(!connects(&gateway));

    CERTIFICATE.write(gateway.folder(), "server");
    gateway.reload().unwrap();
    assert!(connects(&gateway));
    let key = gateway.live_key();
    let mut open = gateway.connect();
    let mut ask = || {
        open.send(&Call::get("/jobs").key(&key.secret).to_bytes());
        open.answer().unwrap().status
    };
    assert_eq!(ask(), 200);
    Certificate::for_names(&[HOST]).write(gateway.folder(), "server");
    gateway.reload().unwrap();
    assert!(!connects(&gateway));
    assert_eq!(ask(), 200, "a connection that is open stays open");
}

#[test]
fn a_stopping_gateway_is_not_ready_and_does_not_reload() {
    let live = Upstream::with(|_| Reply::Custom(Box::new(|_| thread::park())));
    let folder = TempDir::new().unwrap();
    builder(&live.url(), &[("jobs", "/jobs")]).write(folder.path());
    let secret = create_key(folder.path());
    let mut gateway = Process::serve(folder.path());
    let (address, ops) = (gateway.address(), gateway.ops_address());
    let mut wire = crate::harness::Wire::connect(address);
    wire.send(&Call::get("/jobs").key(&secret).to_bytes());
    eventually("the request is under way", || !live.seen().is_empty());
    gateway.terminate();
    gateway.err_line("stopping");
    let ready = crate::harness::fetch(ops, &Call::get("/readyz"));
    assert_eq!((ready.status, ready.text().as_str()), (503, "not ready: stopping\n"));
    gateway.signal(Signal::HUP);
    assert!(gateway.is_running());
    assert_eq!(reloads(ops), [Some(0.0), Some(0.0)]);
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0));
}
