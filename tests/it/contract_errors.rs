//! The error envelope of the contract: every refusal by keygate has its status, its type, the same shape and its
//! own id. An unavailable store never makes a key look invalid.

use std::collections::HashSet;
use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};

use crate::harness::{
    Answer, Call, ClosedPort, Gateway, GatewayBuilder, Reply, TestKey, Upstream, Valve, eventually,
};

fn unknown_secret() -> String {
    let key = KeyFormat::new(&Prefix::default(), false).mint(Environment::Live).unwrap();
    key.expose().to_owned()
}

/// Keeps the connection open until the other side closes it.
fn silence(stream: &mut TcpStream) {
    while stream.read(&mut [0; 256]).is_ok_and(|n| n > 0) {}
}

fn before(behaviour: impl Fn() -> Reply + Send + Sync + 'static) -> (Gateway, Upstream) {
    let (live, test) = (Upstream::with(move |_| behaviour()), Upstream::start("test"));
    let gateway = Gateway::in_front_of(&live, &test);
    (gateway, live)
}

#[test]
fn each_refusal_before_the_upstream_has_its_status_and_type_and_an_id_of_its_own() {
    let valve = Valve::new();
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder()
        .settings("[limits]\nbody = \"1KiB\"")
        .api(&live, &test)
        .store(valve.fitted())
        .start();
    let key = gateway.live_key();
    let reader = gateway.key_with(&["jobs:read"]);
    let long = "x".repeat(9 << 10);
    let call = |target: &str| Call::get(target).key(&key.secret);
    let rows = [
        ("an unsafe path", call("/v1/%2e%2e/jobs"), 400, "validation_error"),
        ("two credentials", call("/v1/jobs").key(&key.secret), 400, "validation_error"),
        ("a long target", call(&format!("/v1/jobs?q={long}")), 414, "validation_error"),
        ("a large head", call("/v1/jobs").field("a", &"x".repeat(33 << 10)), 431, "validation_error"),
        ("a large body", Call::post("/v1/jobs", "x".repeat(1025)).key(&key.secret), 413, "validation_error"),
        ("no key", Call::get("/v1/jobs"), 401, "authentication_error"),
        ("an unknown key", Call::get("/v1/jobs").key(&unknown_secret()), 401, "authentication_error"),
        ("a missing scope", Call::post("/v1/jobs", "{}").key(&reader.secret), 403, "authorization_error"),
        ("no such route", call("/v1/nothing"), 404, "not_found"),
    ];
    let mut ids = HashSet::new();
    for (what, call, status, error_type) in rows {
        for _ in 0..2 {
            let answer = gateway.fetch(&call);
            assert_eq!(answer.status, status, "{what}: {}", answer.text());
            answer.refusal(status, error_type);
            assert!(answer.complete, "{what}");
            assert!(
                ids.insert(answer.field("x-request-id").unwrap().to_owned()),
                "{what}: its id came twice"
            );
            assert_eq!(answer.field("retry-after"), None, "{what}");
            assert_eq!(answer.field("www-authenticate").is_some(), status == 401, "{what}");
        }
    }
    gateway.block_on(valve.change_org(gateway.org, |org| org.suspended_at = Some(UnixMillis(1))));
    gateway.fetch(&call("/v1/jobs")).refusal(403, "forbidden");
    gateway.fetch(&call("/v1/nothing")).refusal(403, "forbidden");
    assert_eq!((live.connections(), test.connections()), (0, 0));
}

#[test]
fn request_ids_are_unique_and_a_clients_own_id_is_ignored() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::in_front_of(&live, &test);
    let mut wire = gateway.connect();
    let mut ids = HashSet::new();
    for _ in 0..20 {
        let answer = wire.call(&Call::get("/v1/jobs").field("x-request-id", "mine")).unwrap();
        answer.refusal(401, "authentication_error");
        assert!(ids.insert(answer.field("x-request-id").unwrap().to_owned()));
    }
}

#[test]
fn a_streamed_body_that_exceeds_the_limit_is_413() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder().settings("[limits]\nbody = \"1KiB\"").api(&live, &test).start();
    let key = gateway.live_key();
    let mut wire = gateway.connect();
    wire.send(
        format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\n\r\n",
            key.secret
        )
        .as_bytes(),
    );
    for _ in 0..3 {
        wire.send(format!("200\r\n{}\r\n", "x".repeat(512)).as_bytes());
    }
    wire.answer().unwrap().refusal(413, "validation_error");
    // The upstream did not receive a complete request.
    assert!(live.seen().iter().all(|seen| !seen.complete));
}

#[test]
fn an_upstream_that_cannot_be_reached_is_502() {
    let (closed, test) = (ClosedPort::reserve(), Upstream::start("test"));
    let gateway = Gateway::builder().upstream("api", &closed.url(), &test.url()).start();
    let key = gateway.live_key();
    gateway.fetch(&Call::get("/v1/jobs").key(&key.secret)).refusal(502, "bad_gateway");
    gateway.fetch(&Call::post("/v1/jobs", "{}").key(&key.secret)).refusal(502, "bad_gateway");
    assert_eq!(test.connections(), 0);
}

#[test]
fn an_upstream_that_breaks_off_before_its_answer_is_502() {
    for begun in
        ["", "HTTP/1.1", "HTTP/1.1 200 OK\r\ncontent-le", "nonsense\r\n\r\n", "HTTP/1.1 2 OK\r\n\r\n"]
    {
        let (gateway, live) = before(move || Reply::BytesThenClose(begun.into()));
        let key = gateway.live_key();
        let answer = gateway.fetch(&Call::post("/v1/jobs", "{}").key(&key.secret));
        assert_eq!(answer.status, 502, "after {begun:?}: {}", answer.text());
        answer.refusal(502, "bad_gateway");
        assert_eq!(live.seen().len(), 1, "a request that may have been executed is not sent again");
    }
}

#[test]
fn an_unrequested_101_is_502_and_opens_no_tunnel() {
    let switching =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nsecret bytes";
    for fields in [&[][..], &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]] {
        let (gateway, live) = before(move || Reply::raw(switching));
        let mut call = Call::get("/v1/jobs").key(&gateway.live_key().secret);
        for (name, value) in fields {
            call = call.field(name, value);
        }
        let answer = gateway.fetch(&call);
        answer.refusal(502, "bad_gateway");
        assert_eq!(answer.field("upgrade"), None);
        assert!(!live.only().names().iter().any(|name| name == "upgrade" || name == "connection"));
    }
}

#[test]
fn an_upstream_that_takes_too_long_is_504() {
    let live = Upstream::with(|_| Reply::Custom(Box::new(silence)));
    let test = Upstream::start("test");
    let section = format!(
        "[upstreams.api]\nlive = [\"{}\"]\ntest = [\"{}\"]\nanswer_timeout = \"60ms\"",
        live.url(),
        test.url()
    );
    let gateway = Gateway::builder().settings(&section).start();
    let key = gateway.live_key();
    let mut wire = gateway.connect();
    for _ in 0..2 {
        let answer = wire.call(&Call::get("/v1/jobs").key(&key.secret)).expect("the connection is kept");
        answer.refusal(504, "gateway_timeout");
    }
    assert_eq!(live.connections(), 2, "the connection that owes an answer is not used again");
    assert_eq!(test.connections(), 0);
}

#[test]
fn a_body_that_stops_arriving_is_400() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder()
        .settings("[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\nbody_idle_timeout = \"60ms\"")
        .api(&live, &test)
        .start();
    let key = gateway.live_key();
    let mut wire = gateway.connect();
    wire.send(
        format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {}\r\ncontent-length: 10\r\n\r\nhalf",
            key.secret
        )
        .as_bytes(),
    );
    wire.answer().unwrap().refusal(400, "validation_error");
    eventually("the upstream sees the request break off", || {
        live.seen().first().is_some_and(|seen| !seen.complete)
    });
}

/// A gateway over a store that the test can break, and a key that is not cached.
struct Shaky {
    valve: Valve,
    live: Upstream,
    gateway: Gateway,
    key: TestKey,
}

impl Shaky {
    fn start() -> Self {
        Self::waiting("20s")
    }

    /// `lookup_timeout` is how long a lookup may take.
    fn waiting(lookup_timeout: &str) -> Self {
        Self::with(Gateway::builder().settings(&format!(
            "[cache]\nlookup_timeout = \"{lookup_timeout}\"\nttl = \"60s\"\nstale_window = \"5m\"\nnegative_ttl = \"5s\""
        )))
    }

    fn with(builder: GatewayBuilder) -> Self {
        let valve = Valve::new();
        let (live, test) = (Upstream::start("live"), Upstream::start("test"));
        let gateway = builder.api(&live, &test).store(valve.fitted()).start();
        let key = gateway.live_key();
        Self { valve, live, gateway, key }
    }

    fn fetch(&self, secret: &str) -> Answer {
        self.gateway.fetch(&Call::get("/v1/jobs").key(secret))
    }

    #[track_caller]
    fn assert_unavailable(&self, secret: &str) {
        let answer = self.fetch(secret);
        answer.refusal(503, "service_unavailable");
        let after = retry_after(&answer);
        assert!((1..=3).contains(&after), "{after}");
        assert_eq!(answer.field("www-authenticate"), None);
    }
}

#[test]
fn a_lookup_that_fails_is_503_for_known_and_unknown_keys_alike_and_never_401() {
    let shaky = Shaky::start();
    shaky.valve.fail();
    let unknown = unknown_secret();
    for _ in 0..3 {
        shaky.assert_unavailable(&shaky.key.secret);
        shaky.assert_unavailable(&unknown);
    }
    assert_eq!(shaky.live.connections(), 0);
    // Without a lookup, the store is not needed: a malformed key is still a 401.
    shaky.fetch("fh_live_sk_nonsense").refusal(401, "authentication_error");
    shaky.valve.pass();
    assert_eq!(shaky.fetch(&shaky.key.secret).status, 200, "a failure is not remembered");
    shaky.fetch(&unknown).refusal(401, "authentication_error");
}

/// In seconds.
fn retry_after(answer: &Answer) -> u64 {
    answer.field("retry-after").unwrap().parse().unwrap()
}

#[test]
fn clients_that_are_refused_together_are_not_told_to_come_back_together() {
    let shaky = Shaky::start();
    shaky.valve.fail();
    let told: HashSet<u64> = (0..100).map(|_| retry_after(&shaky.fetch(&shaky.key.secret))).collect();
    assert_eq!(told, HashSet::from([1, 2, 3]));
}

#[test]
fn a_lookup_that_hangs_is_503_after_its_time_out() {
    let shaky = Shaky::waiting("300ms");
    shaky.valve.hang();
    shaky.assert_unavailable(&shaky.key.secret);
    shaky.assert_unavailable(&unknown_secret());
    shaky.valve.pass();
    assert_eq!(shaky.fetch(&shaky.key.secret).status, 200);
}

#[test]
fn a_known_key_is_served_stale_while_the_store_is_down_and_503_past_the_stale_window() {
    let shaky = Shaky::waiting("300ms");
    assert_eq!(shaky.fetch(&shaky.key.secret).status, 200);
    assert_eq!(shaky.valve.lookups(), 1);
    shaky.gateway.advance(Duration::from_secs(61));
    shaky.valve.fail();
    assert_eq!(shaky.fetch(&shaky.key.secret).status, 200, "a lookup fails, what is known stands in");
    assert_eq!(shaky.valve.lookups(), 2, "past its ttl the store is asked");
    shaky.valve.hang();
    assert_eq!(shaky.fetch(&shaky.key.secret).status, 200, "a lookup hangs, what is known stands in");
    shaky.gateway.advance(Duration::from_secs(300));
    shaky.assert_unavailable(&shaky.key.secret);
    shaky.valve.fail();
    shaky.assert_unavailable(&shaky.key.secret);
    shaky.valve.pass();
    assert_eq!(shaky.fetch(&shaky.key.secret).status, 200);
}

#[test]
fn a_stale_key_is_refused_after_its_revocation_although_the_store_is_down() {
    let shaky = Shaky::start();
    assert_eq!(shaky.fetch(&shaky.key.secret).status, 200);
    shaky.valve.fail();
    shaky.gateway.revoke(&shaky.key);
    shaky.assert_unavailable(&shaky.key.secret);
    shaky.gateway.advance(Duration::from_secs(61));
    shaky.assert_unavailable(&shaky.key.secret);
    shaky.valve.pass();
    shaky.fetch(&shaky.key.secret).refusal(401, "authentication_error");
    assert_eq!(shaky.live.seen().len(), 1);
}

#[test]
fn a_stale_key_still_expires() {
    let shaky = Shaky::start();
    let key = shaky.gateway.expiring_key(Duration::from_secs(120));
    assert_eq!(shaky.fetch(&key.secret).status, 200);
    shaky.valve.fail();
    shaky.gateway.advance(Duration::from_secs(61));
    assert_eq!(shaky.fetch(&key.secret).status, 200);
    shaky.gateway.advance(Duration::from_secs(60));
    shaky.fetch(&key.secret).refusal(401, "authentication_error");
}

#[test]
fn a_lookup_beyond_the_limit_waits_for_its_turn() {
    let shaky =
        Shaky::with(Gateway::builder().settings("[cache]\nmax_lookups = 1\nlookup_timeout = \"20s\""));
    let waiting = shaky.gateway.live_key();
    shaky.valve.hold();
    let mut wires = [&shaky.key, &waiting].map(|key| {
        let mut wire = shaky.gateway.connect();
        wire.send(&Call::get("/v1/jobs").key(&key.secret).to_bytes());
        eventually("the first lookup is under way", || shaky.valve.held() == 1);
        wire
    });
    // What is read after these is read after the second.
    for _ in 0..4 {
        shaky.fetch("fh_live_sk_nonsense").refusal(401, "authentication_error");
    }
    assert_eq!(shaky.valve.lookups(), 1);
    shaky.valve.pass();
    for wire in &mut wires {
        assert_eq!(wire.answer().unwrap().status, 200);
    }
    assert_eq!(shaky.valve.lookups(), 2);
}

#[test]
fn an_unknown_key_is_401_and_remembered_as_unknown_for_a_short_time() {
    let shaky = Shaky::start();
    let unknown = unknown_secret();
    for _ in 0..3 {
        shaky.fetch(&unknown).refusal(401, "authentication_error");
    }
    assert_eq!(shaky.valve.lookups(), 1);
    shaky.gateway.advance(Duration::from_secs(6));
    shaky.fetch(&unknown).refusal(401, "authentication_error");
    assert_eq!(shaky.valve.lookups(), 2);
    shaky.gateway.advance(Duration::from_secs(6));
    shaky.valve.fail();
    shaky.assert_unavailable(&unknown);
}
