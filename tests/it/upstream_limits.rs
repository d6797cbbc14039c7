//! An upstream has as many requests and connections at once as its configuration says, of all threads together; the places
//! are shared out among clients, and what finds none waits or is told to come back.

use std::fs;

use crate::harness::client::Wire;
use crate::harness::manual::SWITCH;
use crate::harness::metrics::{scrape, value};
use crate::harness::{Call, Gateway, Manual, Tuned, Upstream, eventually, refusing};

const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine";
const WAITING: &str = r#"keygate_upstream_requests_waiting{upstream="api",environment="live"}"#;
const IN_FLIGHT: &str = r#"keygate_upstream_requests_in_flight{upstream="api",environment="live"}"#;
const REFUSED: &str = r#"keygate_requests_crowded_total{reason="upstream_full"}"#;

/// A gateway with two threads and an upstream with these lines.
fn gateway(live: &Manual, limits: &str) -> Gateway {
    Tuned::default().live(live.url()).server("").upstream(limits).settings(OPS).builder().start()
}

fn metric(gateway: &Gateway, series: &str) -> f64 {
    value(&scrape(gateway.ops_address()), series).unwrap()
}

/// Sends a request that nobody answers yet.
fn sent(gateway: &Gateway, key: &str) -> Wire {
    let mut client = gateway.connect();
    client.send(&Call::get("/things").key(key).to_bytes());
    client
}

/// A request that has reached the upstream: the client's connection and the upstream's.
fn held(gateway: &Gateway, live: &Manual, key: &str) -> (Wire, Wire) {
    let client = sent(gateway, key);
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    (client, upstream)
}

fn key_in_another_org(gateway: &Gateway) -> String {
    gateway.key_in_another_org().secret
}

/// Asserts that a request is refused because the upstream is full.
#[track_caller]
fn assert_full(gateway: &Gateway, key: &str) {
    let answer = gateway.fetch(&Call::get("/things").key(key));
    assert!(answer.field("retry-after").is_some(), "{}", answer.text());
    answer.refusal(503, "service_unavailable");
}

#[test]
fn a_request_beyond_the_limit_waits_and_goes_on_when_another_ends() {
    let live = Manual::start();
    let gateway = gateway(&live, "max_requests = 1");
    let [first, second] = [(); 2].map(|()| key_in_another_org(&gateway));
    let (mut client, mut upstream) = held(&gateway, &live, &first);
    let mut waiting = sent(&gateway, &second);
    eventually("the second one waits", || metric(&gateway, WAITING) == 1.0);
    assert!(live.is_untouched());
    upstream.send(ANSWER);
    assert_eq!(client.answer().unwrap().text(), "fine");
    // Over the kept connection of the first one.
    upstream.request_head().unwrap();
    upstream.send(ANSWER);
    assert_eq!(waiting.answer().unwrap().text(), "fine");
    eventually("all places are free", || metric(&gateway, IN_FLIGHT) == 0.0);
    assert_eq!((metric(&gateway, WAITING), metric(&gateway, REFUSED)), (0.0, 0.0));
}

#[test]
fn where_no_request_may_wait_it_is_told_to_come_back() {
    let live = Manual::start();
    let gateway = gateway(&live, "max_requests = 1\nmax_waiting = 0");
    let key = key_in_another_org(&gateway);
    let (_client, _upstream) = held(&gateway, &live, &gateway.live_key().secret);
    assert_full(&gateway, &key);
    assert_eq!(metric(&gateway, REFUSED), 1.0);
}

#[test]
fn one_key_that_holds_all_it_can_leaves_another_customer_a_place() {
    let live = Manual::start();
    let gateway = gateway(&live, "max_requests = 8\nmax_waiting = 0");
    let (greedy, other) = (gateway.live_key().secret, key_in_another_org(&gateway));
    // Three eighths of eight.
    let all: Vec<_> = (0..3).map(|_| held(&gateway, &live, &greedy)).collect();
    assert_full(&gateway, &greedy);
    let (mut client, mut upstream) = held(&gateway, &live, &other);
    upstream.send(ANSWER);
    assert_eq!(client.answer().unwrap().status, 200);
    drop(all);
    eventually("the places come back", || metric(&gateway, IN_FLIGHT) == 0.0);
}

#[test]
fn a_limit_holds_for_all_threads_together() {
    let live = Manual::start();
    let limits = "max_requests = 8\nmax_waiting = 0";
    let settings =
        format!("{OPS}[upstreams.api]\nlive = [\"{}\"]\ntest = [\"{}\"]\n{limits}\n", live.url(), refusing());
    let policy = "scopes = [\"a\"]\n[[route]]\nid = \"things\"\nmethods = [\"GET\"]\npaths = [\"/things\"]\nany_key = true\nupstream = \"api\"\n";
    // Two threads; a connection goes to that with fewer.
    let gateway = Gateway::builder().policy(policy).settings(&settings).start();
    let keys: Vec<_> = (0..10).map(|_| key_in_another_org(&gateway)).collect();
    let mut all: Vec<_> = keys[..8].iter().map(|key| held(&gateway, &live, key)).collect();
    assert_full(&gateway, &keys[8]);
    assert_full(&gateway, &keys[9]);
    assert_eq!(metric(&gateway, IN_FLIGHT), 8.0);
    all.truncate(7);
    eventually("the place of a client that left is free", || metric(&gateway, IN_FLIGHT) == 7.0);
    let _last = held(&gateway, &live, &keys[8]);
    assert_full(&gateway, &keys[9]);
}

#[test]
fn live_and_test_keys_have_places_apart_unless_they_have_the_same_servers() {
    let test_waits = r#"keygate_upstream_requests_in_flight{upstream="api",environment="test"}"#;
    for (is_shared, lines) in [(false, "max_requests = 1"), (true, "shared = true\nmax_requests = 1")] {
        let live = Manual::start();
        let test = Manual::start();
        let servers = if is_shared { String::new() } else { format!("test = [\"{}\"]\n", test.url()) };
        let settings =
            format!("{OPS}[upstreams.api]\nlive = [\"{}\"]\n{servers}{lines}\nmax_waiting = 0\n", live.url());
        let policy = "scopes = [\"a\"]\n[[route]]\nid = \"things\"\nmethods = [\"GET\"]\npaths = [\"/things\"]\nany_key = true\nupstream = \"api\"\n";
        let gateway = Gateway::builder().policy(policy).settings(&settings).start();
        let key = gateway.test_key().secret;
        let _held = held(&gateway, &live, &gateway.live_key().secret);
        if is_shared {
            assert_full(&gateway, &key);
        } else {
            let _held = held(&gateway, &test, &key);
            assert_eq!(metric(&gateway, test_waits), 1.0);
        }
    }
}

#[test]
fn requests_that_are_under_way_count_under_the_limit_of_a_reload() {
    let live = Manual::start();
    let mut gateway = gateway(&live, "max_requests = 1\nmax_waiting = 0");
    let keys: Vec<_> = (0..3).map(|_| key_in_another_org(&gateway)).collect();
    let first = held(&gateway, &live, &keys[0]);
    assert_full(&gateway, &keys[1]);
    let change = |gateway: &mut Gateway, from: &str, to: &str| {
        let file = gateway.folder().join("keygate.toml");
        let toml = fs::read_to_string(&file).unwrap();
        assert!(toml.contains(from));
        fs::write(&file, toml.replace(from, to)).unwrap();
        gateway.reload().unwrap();
    };
    change(&mut gateway, "max_requests = 1", "max_requests = 2");
    let _second = held(&gateway, &live, &keys[1]);
    assert_full(&gateway, &keys[2]);
    change(&mut gateway, "max_requests = 2", "max_requests = 1");
    drop(first);
    eventually("the first one has ended", || metric(&gateway, IN_FLIGHT) == 1.0);
    assert_full(&gateway, &keys[2]);
}

#[test]
fn a_tunnel_has_its_place_until_it_ends() {
    let live = Manual::start();
    let settings = format!(
        "{OPS}[upstreams.api]\nlive = [\"{}\"]\ntest = [\"{}\"]\nmax_connections = 1\nmax_waiting = 0\n",
        live.url(),
        refusing()
    );
    let policy = "scopes = [\"a\"]\n[[route]]\nid = \"things\"\nmethods = [\"GET\"]\npaths = [\"/things\"]\nany_key = true\nupstream = \"api\"\n\
                  websocket = true\n";
    let gateway = Gateway::builder().policy(policy).settings(&settings).start();
    let [key, other] = [(); 2].map(|()| key_in_another_org(&gateway));
    let handshake = Call::websocket("/things").key(&key);
    let mut client = gateway.connect();
    client.send(&handshake.to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    upstream.send(SWITCH);
    assert_eq!(client.head().unwrap().status, 101);
    assert_full(&gateway, &other);
    drop((client, upstream));
    eventually("the tunnel has ended", || metric(&gateway, IN_FLIGHT) == 0.0);
    let (mut client, mut upstream) = held(&gateway, &live, &other);
    upstream.send(ANSWER);
    assert_eq!(client.answer().unwrap().status, 200);
}

#[test]
fn a_connection_that_is_kept_without_use_gives_way_to_another_server_and_another_thread() {
    let servers = [Upstream::start("fine"), Upstream::start("fine")];
    let settings = format!(
        "{OPS}[upstreams.api]\nlive = [\"{}\", \"{}\"]\ntest = [\"{}\"]\nmax_connections = 1\nidle_timeout = \"1h\"\n\
         [upstreams.api.check]\nenabled = false\n",
        servers[0].url(),
        servers[1].url(),
        refusing()
    );
    let policy = "scopes = [\"a\"]\n[[route]]\nid = \"things\"\nmethods = [\"GET\"]\npaths = [\"/things\"]\nany_key = true\nupstream = \"api\"\n";
    let gateway = Gateway::builder().policy(policy).settings(&settings).start();
    let key = gateway.live_key().secret;
    // One on each thread.
    let mut clients = [gateway.connect(), gateway.connect()];
    for _ in 0..6 {
        for client in &mut clients {
            assert_eq!(client.call(&Call::get("/things").key(&key)).unwrap().text(), "fine");
            let open = metric(&gateway, "keygate_upstream_connections");
            assert!(open <= 1.0, "{open}");
        }
    }
    let seen: Vec<_> = servers.iter().map(|server| server.seen().len()).collect();
    assert_eq!(seen.iter().sum::<usize>(), 12);
    assert!(seen.iter().all(|seen| *seen > 0), "{seen:?}");
}
