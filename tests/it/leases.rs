//! The list of gateways and the position of each in the events: metrics and `keygate store status`.

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, mkfifoat, openat};
use rustix::process::Signal;
use serde_json::Value;

use keygate::store::keeper::LinkState;

use crate::harness::metrics::{scrape, value};
use crate::harness::process::keygate;
use crate::harness::{
    Call, Chaos, Gateway, GatewayBuilder, PATIENCE, Process, RedisServer, Reply, Upstream, Weather,
    eventually, guess, lenient,
};

fn on(url: &str) -> GatewayBuilder {
    in_front_of(&Upstream::start("live"), url)
}

fn in_front_of(live: &Upstream, url: &str) -> GatewayBuilder {
    Gateway::builder().api(live, &Upstream::start("test")).settings(&format!(
        "[store]\nkind = \"redis\"\nurl = \"{url}\"\nallow_without_pepper = true\nconnect_timeout = \"10s\"\n\
             command_timeout = \"10s\"\n[ops]\nlisten = \"127.0.0.1:0\"\n[admin]\nsocket = \"admin.sock\""
    ))
}

/// A started gateway with a lease.
fn start(builder: GatewayBuilder) -> Gateway {
    let gateway = builder.start();
    eventually("it is linked", || gateway.lifecycle().keeper().link_state() == LinkState::Up);
    gateway
}

fn metric(gateway: &Gateway, series: &str) -> Option<f64> {
    value(&scrape(gateway.ops_address()), series)
}

#[track_caller]
fn comes_to(gateway: &Gateway, series: &str, wanted: f64) {
    eventually(&format!("{series} is {wanted}"), || metric(gateway, series) == Some(wanted));
}

/// Exit code and output of `keygate store status` with these arguments, in this gateway's folder.
fn status(gateway: &Gateway, arguments: &[&str]) -> (i32, String) {
    let output = keygate(gateway.folder(), &[&["store", "status"], arguments].concat()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// A gateway that holds a lease and applies nothing.
fn ghost(redis: &RedisServer) {
    // In this order: a heartbeat removes a gateway from the set that has no lease.
    redis.command(&["SET", "{kg}:gateway:ghost", "0", "PX", "60000"]);
    redis.command(&["SADD", "{kg}:gateways", "ghost"]);
}

#[test]
fn every_gateway_reports_the_number_of_leases_and_whether_it_has_one() {
    let redis = RedisServer::start();
    let chaos = Chaos::before(redis.address());
    let a = start(on(&redis.url()));
    let b = start(on(&chaos.url()).org(a.org));
    for gateway in [&a, &b] {
        comes_to(gateway, "keygate_leases", 2.0);
        assert_eq!(metric(gateway, "keygate_lease_held"), Some(1.0));
    }
    // A stopped gateway counts until its lease has ended.
    ghost(&redis);
    comes_to(&a, "keygate_leases", 3.0);
    redis.command(&["DEL", "{kg}:gateway:ghost"]);
    comes_to(&a, "keygate_leases", 2.0);
    chaos.turn(Weather::Cut);
    comes_to(&b, "keygate_lease_held", 0.0);
    assert_eq!(metric(&b, "keygate_leases"), None, "it does not know");
    comes_to(&a, "keygate_leases", 1.0);
    chaos.turn(Weather::Fair);
    comes_to(&b, "keygate_lease_held", 1.0);
    comes_to(&a, "keygate_leases", 2.0);
}

/// The breaker of lookups opens after `begin`, and closes after `end`.
#[track_caller]
fn spares_redis(url: &str, begin: impl FnOnce(), end: impl FnOnce()) {
    let gateway = start(on(url).settings("[cache]\nnegative_ttl = \"1ms\""));
    let [lookups, commands] =
        ["lookups", "commands"].map(|link| format!("keygate_store_breaker_open{{link=\"{link}\"}}"));
    assert_eq!((metric(&gateway, &lookups), metric(&gateway, &commands)), (Some(0.0), Some(0.0)));
    let key = gateway.live_key();
    begin();
    let call = Call::get("/v1/jobs").key(&key.secret);
    eventually("it is open", || {
        assert_eq!(gateway.fetch(&call).status, 503);
        metric(&gateway, &lookups) == Some(1.0)
    });
    assert_eq!(metric(&gateway, &commands), Some(0.0), "nobody asked there");
    end();
    eventually("the key is found", || gateway.fetch(&call).status == 200);
    assert_eq!(metric(&gateway, &lookups), Some(0.0));
}

#[test]
fn a_breaker_is_open_while_callers_are_turned_away_and_shut_once_redis_is_back() {
    let redis = RedisServer::start();
    let chaos = Chaos::before(redis.address());
    spares_redis(&chaos.url(), || chaos.turn(Weather::Cut), || chaos.turn(Weather::Fair));
}

#[test]
fn a_redis_that_lets_nobody_read_is_spared_like_one_that_is_away() {
    let redis = RedisServer::start();
    let may = |right: &str| {
        assert_eq!(redis.command(&["ACL", "SETUSER", "default", right]), "+OK\r\n");
    };
    spares_redis(&redis.url(), || may("-evalsha_ro"), || may("+evalsha_ro"));
}

#[test]
fn a_store_that_answers_and_takes_no_changes_is_told_of_until_it_takes_them() {
    let redis = RedisServer::start();
    let gateway = start(on(&redis.url()));
    assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(&gateway.live_key().secret)).status, 200);
    assert_eq!(metric(&gateway, "keygate_store_suspect"), Some(0.0));
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    comes_to(&gateway, "keygate_store_suspect", 1.0);
    // Use that is noted meanwhile is a change too, and its failure is the last operation then.
    eventually("it answers lookups", || {
        gateway.fetch(&Call::get("/v1/jobs").key(&guess()));
        metric(&gateway, "keygate_store_up") == Some(1.0)
    });
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    comes_to(&gateway, "keygate_store_suspect", 0.0);
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
    comes_to(&gateway, "keygate_store_suspect", 1.0);
    redis.command(&["REPLICAOF", "NO", "ONE"]);
    comes_to(&gateway, "keygate_store_suspect", 0.0);
}

#[test]
fn how_long_changes_take_to_all_gateways_is_measured_once_each() {
    let redis = RedisServer::start();
    let a = start(on(&redis.url()).settings("[keys]\nack_wait = \"10s\""));
    let b = start(on(&redis.url()).org(a.org).settings("[keys]\nack_wait = \"100ms\""));
    let seen = |gateway: &Gateway| {
        let of = |series| metric(gateway, series);
        (of("keygate_propagation_seconds_count"), of("keygate_propagation_unconfirmed_total"))
    };
    assert_eq!((seen(&a), seen(&b)), ((None, Some(0.0)), (None, Some(0.0))));
    a.revoke(&a.live_key());
    assert_eq!((seen(&a), seen(&b)), ((Some(1.0), Some(0.0)), (None, Some(0.0))), "where it was made");
    ghost(&redis);
    b.revoke(&b.live_key());
    assert_eq!(seen(&b), (None, Some(1.0)), "its maker was answered before");
    redis.command(&["SET", "{kg}:gateway:ghost", "9", "KEEPTTL"]);
    comes_to(&b, "keygate_propagation_seconds_count", 1.0);
    assert!(metric(&b, "keygate_propagation_seconds_sum").unwrap() >= 0.1, "from its commit on");
    assert_eq!(seen(&b), (Some(1.0), Some(1.0)));
}

/// The propagation in the answer to a revocation, without its duration.
#[track_caller]
fn revoked_at(gateway: &Gateway) -> String {
    let (admin, key) = (gateway.live_key(), gateway.live_key());
    let call = Call::new("DELETE", &format!("/v1/api_keys/{}", key.id())).key(&admin.secret);
    let answer = gateway.fetch(&call);
    assert_eq!(answer.status, 204, "{}", answer.text());
    let told = answer.field("keygate-propagation").unwrap();
    told.split(';').next().unwrap().to_owned()
}

/// The number of gateways in `keygate store status`.
fn listed(gateway: &Gateway) -> usize {
    let (_, text) = status(gateway, &["--json"]);
    serde_json::from_str::<Value>(&text).unwrap()["gateways"].as_array().unwrap().len()
}

#[test]
fn a_gateway_that_has_stopped_is_not_waited_for_and_not_listed() {
    let redis = RedisServer::start();
    let a = start(on(&redis.url()).settings("[keys]\nack_wait = \"10s\""));
    let b = start(on(&redis.url()).org(a.org));
    assert_eq!((revoked_at(&a).as_str(), listed(&a)), ("confirmed=2/2", 2));
    b.drain(PATIENCE);
    assert_eq!((revoked_at(&a).as_str(), listed(&a)), ("confirmed=1/1", 1));
    assert_eq!(redis.command(&["SCARD", "{kg}:gateways"]), ":1\r\n", "nothing is left of it");
    comes_to(&a, "keygate_leases", 1.0);
}

#[test]
fn a_gateway_that_still_answers_requests_is_waited_for_and_confirms() {
    let redis = RedisServer::start();
    let ((tell_begun, begun), (go, told)) = (channel(), channel::<()>());
    let told = Mutex::new(told);
    let slow = Upstream::with(move |_| {
        tell_begun.send(()).unwrap();
        // The sender is only dropped if the test has failed.
        let _ = told.lock().unwrap().recv();
        Reply::ok("done")
    });
    let before = |builder: GatewayBuilder| builder.settings("[keys]\nack_wait = \"10s\"");
    let a = start(before(on(&redis.url())));
    let b = start(before(in_front_of(&slow, &redis.url()).org(a.org)));
    let key = a.live_key();
    let mut busy = b.connect();
    busy.send(&Call::get("/v1/jobs").key(&key.secret).to_bytes());
    begun.recv_timeout(PATIENCE).unwrap();
    let (address, drained) = (b.address(), thread::spawn(move || b.drain(PATIENCE)));
    eventually("it takes nobody any more", || TcpStream::connect(address).is_err());
    assert_eq!((revoked_at(&a).as_str(), listed(&a)), ("confirmed=2/2", 2));
    assert!(!drained.is_finished());
    go.send(()).unwrap();
    assert_eq!(busy.answer().unwrap().text(), "done");
    drained.join().unwrap();
    assert_eq!((revoked_at(&a).as_str(), listed(&a)), ("confirmed=1/1", 1));
}

#[test]
fn a_process_gives_its_lease_up_when_it_is_told_to_end_and_not_when_it_is_killed() {
    let redis = RedisServer::start();
    let a = start(on(&redis.url()));
    for (end, wanted, left) in [(Signal::TERM, "confirmed=1/1", 1), (Signal::KILL, "confirmed=1/2", 2)] {
        let folder = tempfile::tempdir().unwrap();
        on(&redis.url())
            .settings("[server]\nlisten = \"127.0.0.1:0\"\ndrain_delay = \"0s\"")
            .write(folder.path());
        let mut b = Process::serve(folder.path());
        eventually("it holds a lease", || listed(&a) == 2);
        b.signal(end);
        assert_eq!(b.wait().success(), end == Signal::TERM);
        assert_eq!((revoked_at(&a).as_str(), listed(&a)), (wanted, left));
    }
}

#[test]
fn a_process_that_is_told_to_end_while_it_starts_gives_its_lease_up() {
    let redis = RedisServer::start();
    let a = start(on(&redis.url()));
    let folder = tempfile::tempdir().unwrap();
    on(&redis.url())
        .settings("[server]\nlisten = \"127.0.0.1:0\"\ndrain_delay = \"0s\"")
        .settings("[outbox]\nurl = \"http://127.0.0.1:1/news\"\nkey_file = \"outbox-key\"")
        .write(folder.path());
    // Reading it blocks until somebody writes: first to look for mistakes in all files, then to start.
    let key = folder.path().join("outbox-key");
    mkfifoat(CWD, &key, Mode::RUSR | Mode::WUSR).unwrap();
    let hand_over = || {
        let mut opened = None;
        eventually("it reads the file", || {
            opened = openat(CWD, &key, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).ok();
            opened.is_some()
        });
        File::from(opened.unwrap()).write_all(b"a key of thirty-two bytes or more").unwrap();
    };
    let mut b = Process::serve(folder.path());
    hand_over();
    eventually("it holds a lease", || listed(&a) == 2);
    b.signal(Signal::TERM);
    hand_over();
    assert!(b.wait().success());
    assert_eq!((revoked_at(&a).as_str(), listed(&a)), ("confirmed=1/1", 1));
}

#[test]
fn a_gateway_whose_redis_is_away_ends_all_the_same_and_soon() {
    let redis = RedisServer::start();
    let chaos = Chaos::before(redis.address());
    let gateway = start(on(&chaos.url()));
    chaos.turn(Weather::Stalled);
    let begun = Instant::now();
    gateway.drain(PATIENCE);
    assert!(begun.elapsed() < lenient(Duration::from_secs(5)), "{:?}", begun.elapsed());
    assert_eq!(redis.command(&["SCARD", "{kg}:gateways"]), ":1\r\n", "it could not say that it goes");
}

#[test]
fn signups_beyond_the_quota_are_counted_as_limited() {
    let redis = RedisServer::start();
    let settings = "[signup]\nenabled = true\nper_network_and_hour = 1";
    let gateway = start(on(&redis.url()).settings(settings));
    let limited = "keygate_rate_limited_total{route=\"auth.signup\"}";
    for (email, status) in [("a@example.com", 200), ("b@example.com", 429), ("c@example.com", 429)] {
        let body = format!(r#"{{"name":"Ada","email":"{email}"}}"#);
        assert_eq!(gateway.fetch(&Call::post("/v1/auth/signup", body)).status, status);
    }
    comes_to(&gateway, limited, 2.0);
    assert_eq!(metric(&gateway, "keygate_audit_troubles_dropped_total"), Some(0.0));
}

#[test]
fn store_status_shows_all_gateways_their_positions_and_the_one_that_answers() {
    let redis = RedisServer::start();
    let a = start(on(&redis.url()));
    let b = start(on(&redis.url()).org(a.org));
    a.revoke(&a.live_key());
    ghost(&redis);
    let json =
        |gateway: &Gateway| -> Value { serde_json::from_str(&status(gateway, &["--json"]).1).unwrap() };
    eventually("both have applied it", || {
        json(&a)["gateways"].as_array().unwrap().iter().filter(|lease| lease["event"] == 1).count() == 2
    });
    eventually("both accept the prefix", || {
        json(&a)["gateways"].as_array().unwrap().iter().filter(|lease| lease["prefixes"] == "fh").count() == 2
    });
    let own = |gateway: &Gateway| {
        let status = json(gateway);
        let leases = status["gateways"].as_array().unwrap();
        let own: Vec<&Value> = leases.iter().filter(|lease| lease["own"] == true).collect();
        assert_eq!((leases.len(), own.len()), (3, 1), "{status}");
        own[0]["gateway"].as_str().unwrap().to_owned()
    };
    assert_ne!(own(&a), own(&b));
    let (code, text) = status(&a, &[]);
    assert_eq!(code, 0, "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("gateway ")).collect();
    assert_eq!(lines.len(), 3, "{text}");
    for wanted in [
        format!("  {}, event 1, keeps format 5, accepts fh (this one)", own(&a)),
        format!("  {}, event 1, keeps format 5, accepts fh", own(&b)),
        "  ghost, event 0, 1 behind, keeps format 1".to_owned(),
    ] {
        assert!(lines.iter().any(|line| line.ends_with(&wanted)), "{wanted:?} in {text}");
    }
    // A command that asks Redis directly is not a gateway.
    std::fs::remove_file(b.folder().join("admin.sock")).unwrap();
    let (code, text) = status(&b, &[]);
    assert!(code == 0 && text.contains("gateway") && !text.contains("this one"), "{text}");
}
