//! A gateway that was just started has seen no key: thousands of good ones come at once, and each of them is let in.
//!
//! `KEYGATE_LONG=1 cargo test --test it cold_start -- --nocapture --test-threads 1` runs the long form: 10,000 keys over
//! 1,000 connections, 2,000 guesses a second beside them, and an outage while 1,000 requests wait. It needs 10,000
//! descriptors (`ulimit -n`).

#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use crate::harness::distance::Distance;
use crate::harness::http2::{connect, read, runtime};
use crate::harness::metrics::{scrape, value};
use crate::harness::traffic::{Outcome, at_rate, by_status, once_each, percentile, with_status};
use crate::harness::{
    Call, Chaos, Gateway, RedisServer, TestKey, Transport, Valve, Weather, Wire, eventually, guess, is_long,
    lenient,
};

/// New keys, and the connections that they come over.
fn size() -> (usize, usize) {
    if is_long() { (10_000, 1_000) } else { (2_000, 250) }
}

/// The store behind a gateway.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Embedded,
    Redis,
    /// Redis 5 ms away, 2.5 ms in each direction.
    DistantRedis,
}

struct Scene {
    // First, so that it is dropped before its store.
    gateway: Gateway,
    secrets: Vec<String>,
    _redis: Option<RedisServer>,
}

impl Scene {
    /// A gateway, and this number of keys that it has not seen. `server` is more of the server's section.
    #[track_caller]
    fn start(kind: Kind, server: &str, keys: usize) -> Self {
        let redis = (!matches!(kind, Kind::Embedded)).then(RedisServer::start);
        let is_distant = matches!(kind, Kind::DistantRedis);
        let distance = redis.as_ref().filter(|_| is_distant).map(|redis| Distance::before(redis.address()));
        // On a busy machine a lookup may take longer than shipped.
        let patience = if is_long() { "" } else { "lookup_timeout = \"20s\"\n" };
        let store = redis.as_ref().map_or_else(
            || "[store]\nkind = \"embedded\"\npath = \"keygate.redb\"\n".to_owned(),
            |redis| {
                format!(
                    "[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n\
                     command_timeout = \"20s\"\n{patience}",
                    distance.as_ref().map_or_else(|| redis.url(), Distance::url)
                )
            },
        );
        let settings = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\nmax_connections = 4000\n\
             max_connections_per_client = 4000\n{server}\n[ops]\nlisten = \"127.0.0.1:0\"\n{store}\
             [cache]\n{patience}\n"
        );
        let gateway = Gateway::builder()
            .upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2")
            .settings(&settings)
            .transport(Transport::Http1)
            .start();
        let secrets = gateway.keys_at_once(keys);
        if let Some(distance) = &distance {
            distance.be(Duration::from_micros(2500));
        }
        Self { gateway, secrets, _redis: redis }
    }

    /// Every key comes once; `from` is the client's address for trusted proxies.
    fn first_requests(&self, from: impl Fn(usize) -> Option<String> + Sync) -> (Vec<Outcome>, Duration) {
        let secrets = &self.secrets;
        once_each(self.gateway.address(), secrets.len(), size().1, |n| {
            with_key(&secrets[n], from(n).as_deref())
        })
    }
}

/// A request that falls under no route: a good key gets 404, and no upstream is needed.
fn with_key(secret: &str, from: Option<&str>) -> Call {
    let call = Call::get("/nowhere").key(secret);
    from.map_or_else(|| call.clone(), |from| call.clone().field("x-forwarded-for", from))
}

#[track_caller]
fn assert_all_let_in(what: &str, scene: &Scene, from: impl Fn(usize) -> Option<String> + Sync) {
    let (outcomes, took) = scene.first_requests(from);
    let [half, slowest] = [50.0, 100.0].map(|percent| percentile(&outcomes, percent));
    let refused = ["full", "late", "store"].map(|cause| refused(&scene.gateway, cause));
    println!(
        "{what}: {:?} in {took:.2?}, p50 {half:.2?}, slowest {slowest:.2?}, over {} connections; without a turn because the \
         queue was full, it was late, the store failed: {refused:?}",
        by_status(&outcomes),
        size().1
    );
    assert_eq!(by_status(&outcomes), BTreeMap::from([(404, scene.secrets.len())]), "{what}");
    assert!(!is_long() || took < Duration::from_secs(3), "{what}: {took:?}");
}

#[test]
fn good_keys_that_are_new_here_are_all_let_in_from_one_address() {
    let scene = Scene::start(Kind::Embedded, "", size().0);
    assert_all_let_in("embedded, one address", &scene, |_| None);
}

#[test]
fn good_keys_that_are_new_here_are_all_let_in_from_one_address_with_redis() {
    let scene = Scene::start(Kind::Redis, "", size().0);
    assert_all_let_in("Redis, one address", &scene, |_| None);
}

#[test]
fn good_keys_that_are_new_here_are_all_let_in_with_redis_5_ms_away() {
    let scene = Scene::start(Kind::DistantRedis, "", size().0);
    assert_all_let_in("Redis 5 ms away, one address", &scene, |_| None);
}

#[test]
fn good_keys_that_are_new_here_are_all_let_in_through_a_trusted_proxy() {
    for kind in [Kind::Embedded, Kind::Redis] {
        let scene = Scene::start(kind, PROXY, size().0);
        let from = |n| Some(format!("198.51.{}.7", n % 20));
        assert_all_let_in(&format!("{kind:?}, 20 networks"), &scene, from);
    }
}

/// Requests from one network with the keys that `key` makes, for so long, beside others.
fn beside<T: Send>(
    address: SocketAddr,
    span: Duration,
    key: impl Fn() -> String + Send + Sync,
    others: impl FnOnce() -> T,
) -> (T, Vec<Outcome>) {
    let rate = if is_long() { 2_000 } else { 400 };
    thread::scope(|scope| {
        let guesses =
            scope.spawn(move || at_rate(address, rate, span, 64, |_| with_key(&key(), Some(GUESSER))));
        (others(), guesses.join().unwrap())
    })
}

/// The test is a proxy, which names the client.
const PROXY: &str = "trusted_proxies = [\"127.0.0.1\"]";
const GUESSER: &str = "203.0.113.7";

/// A request as the stock client sends it: up to three times, while the answer is a 503.
const TRIES: usize = 3;

#[test]
fn no_good_key_fails_beside_guesses_from_its_own_network() {
    let scene = Scene::start(Kind::Redis, PROXY, size().0);
    let span = if is_long() { Duration::from_secs(10) } else { Duration::from_secs(2) };
    let (address, ops, secrets) = (scene.gateway.address(), scene.gateway.ops_address(), &scene.secrets);
    let (tries, guesses) = beside(address, span, guess, || {
        // So that the network is known to guess.
        let wrong = "keygate_auth_decisions_total{reason=\"key_unknown\"}";
        eventually("it has guessed", || value(&scrape(ops), wrong) > Some(50.0));
        let (mut left, mut tries): (Vec<usize>, _) = ((0..secrets.len()).collect(), Vec::new());
        while !left.is_empty() && tries.len() < TRIES {
            let some = &left;
            let (outcomes, _) =
                once_each(address, some.len(), size().1, |n| with_key(&secrets[some[n]], Some(GUESSER)));
            let refused = outcomes.iter().filter(|outcome| outcome.status == 503);
            let next: Vec<usize> = refused.map(|outcome| left[outcome.number]).collect();
            assert_eq!(
                with_status(&outcomes, 404) + next.len(),
                outcomes.len(),
                "{:?}",
                by_status(&outcomes)
            );
            tries.push(outcomes);
            left = next;
        }
        assert!(left.is_empty(), "{} of {} good keys failed {TRIES} times", left.len(), secrets.len());
        tries
    });
    let told: Vec<_> = tries.iter().map(|outcomes| by_status(outcomes)).collect();
    println!(
        "beside {} guesses in {span:?}, {:?}: good keys of the same network {told:?}, p50 {:.2?}, slowest {:.2?}",
        guesses.len(),
        by_status(&guesses),
        percentile(&tries[0], 50.0),
        percentile(&tries[0], 100.0),
    );
    assert_eq!(with_status(&guesses, 401) + with_status(&guesses, 503), guesses.len());
}

#[track_caller]
fn metric(gateway: &Gateway, series: &str) -> f64 {
    value(&scrape(gateway.ops_address()), series).unwrap_or_else(|| panic!("there is no {series}"))
}

/// What is measured is the time from the moment at which a newcomer's request was due to its answer, at the client. Redis is
/// 5 ms away, so most of this time is the wait for the lookup, in the queue and under way, and little of it is the wait for a
/// processor, which guesses make longer too. The median is held to its bound; the slowest show how busy the machine was.
#[test]
fn guesses_from_one_network_delay_newcomers_from_others_little() {
    const RATE: u32 = 100;
    let span = if is_long() { Duration::from_secs(10) } else { Duration::from_millis(1500) };
    let keys = 2 * (RATE * span.as_millis() as u32 / 1000) as usize;
    let scene = Scene::start(Kind::DistantRedis, PROXY, keys);
    let address = scene.gateway.address();
    let queued = || metric(&scene.gateway, "keygate_lookup_wait_seconds_count");
    let newcomers = |secrets: &[String]| {
        at_rate(address, RATE, span, 16, |n| with_key(&secrets[n], Some(&format!("198.51.{}.7", n % 200))))
    };
    let (first, second) = scene.secrets.split_at(scene.secrets.len() / 2);
    let alone = newcomers(first);
    let queued_alone = queued();
    let (beside_guesses, guesses) = beside(address, span, guess, || newcomers(second));
    let told = [&alone, &beside_guesses]
        .map(|outcomes| [50.0, 90.0, 99.0].map(|percent| percentile(outcomes, percent)));
    println!(
        "newcomers, p50, p90, p99: {:.2?} alone, {:.2?} beside {} guesses; in the queue were {queued_alone} requests, \
         and {} with the guesses",
        told[0],
        told[1],
        guesses.len(),
        queued() - queued_alone
    );
    for outcomes in [&alone, &beside_guesses] {
        assert_eq!(with_status(outcomes, 404), outcomes.len(), "{:?}", by_status(outcomes));
    }
    let [[alone, ..], [beside_guesses, ..]] = told;
    assert!(beside_guesses < 3 * alone + lenient(Duration::ZERO), "{beside_guesses:?}, {alone:?} alone");
}

/// A gateway with one place for lookups, whose store the test stops; and this number of good keys.
fn narrow(server: &str, keys: usize, transport: Transport) -> (Gateway, Valve, Vec<TestKey>) {
    let valve = Valve::new();
    let settings = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\n{server}\n[ops]\nlisten = \"127.0.0.1:0\"\n\
         [cache]\nmax_lookups = 1\nlookup_timeout = \"20s\"\n"
    );
    let gateway = Gateway::builder()
        .upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2")
        .settings(&settings)
        .store(valve.fitted())
        .transport(transport)
        .start();
    let keys = (0..keys).map(|_| gateway.live_key()).collect();
    (gateway, valve, keys)
}

/// A request with each of the keys, on a connection of its own; all but the first wait for their turn.
fn send_all(gateway: &Gateway, valve: &Valve, keys: &[TestKey]) -> Vec<Wire> {
    valve.hold();
    let send = |key: &TestKey| {
        let mut wire = gateway.connect();
        wire.send(&with_key(&key.secret, None).to_bytes());
        eventually("a lookup is under way", || valve.held() == 1);
        wire
    };
    let wires = keys.iter().map(send).collect();
    eventually("all others wait", || metric(gateway, WAITING) == (keys.len() - 1) as f64);
    wires
}

/// Requests that got no turn, for this cause.
#[track_caller]
fn refused(gateway: &Gateway, cause: &str) -> f64 {
    metric(gateway, &format!("keygate_lookups_refused_total{{cause=\"{cause}\"}}"))
}

const WAITING: &str = "keygate_lookups_waiting";

#[test]
fn a_client_that_leaves_waits_no_longer() {
    let (gateway, valve, keys) = narrow("", 4, Transport::Http1);
    let mut wires = send_all(&gateway, &valve, &keys);
    drop(wires.drain(1..3));
    eventually("two have left", || metric(&gateway, WAITING) == 1.0);
    valve.pass();
    for wire in &mut wires {
        wire.answer().unwrap().refusal(404, "not_found");
    }
    assert_eq!(valve.lookups(), 2);
    let waited = metric(&gateway, "keygate_lookup_wait_seconds_count");
    assert_eq!((waited, metric(&gateway, WAITING)), (1.0, 0.0));
}

#[test]
fn the_first_lookup_that_fails_is_the_answer_for_all_who_wait() {
    let (gateway, valve, keys) = narrow("", 30, Transport::Http1);
    let wires = send_all(&gateway, &valve, &keys);
    // The first lookup has been answered, and is only held.
    valve.fail();
    let mut statuses = BTreeMap::new();
    for mut wire in wires {
        *statuses.entry(wire.answer().unwrap().status).or_insert(0) += 1;
    }
    assert_eq!(statuses, BTreeMap::from([(404, 1), (503, 29)]));
    assert_eq!(metric(&gateway, WAITING), 0.0);
    valve.pass();
    for key in &keys {
        gateway.fetch(&with_key(&key.secret, None)).refusal(404, "not_found");
    }
}

#[test]
fn the_queue_has_a_place_for_each_connection_and_no_more() {
    const STREAMS: usize = 10;
    let (gateway, valve, _) = narrow("max_connections = 3", 0, Transport::Http2);
    valve.hold();
    let statuses = runtime().block_on(async {
        let asked = ask(&gateway, STREAMS).await;
        while asked.iter().filter(|one| one.is_finished()).count() < STREAMS - 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        valve.pass();
        let mut statuses = BTreeMap::new();
        for one in asked {
            *statuses.entry(one.await.unwrap().0).or_insert(0) += 1;
        }
        statuses
    });
    assert_eq!(statuses, BTreeMap::from([(401, 4), (503, 6)]));
    assert_eq!(metric(&gateway, "keygate_lookups_refused_total{cause=\"full\"}"), 6.0);
    assert_eq!(metric(&gateway, "keygate_auth_decisions_total{reason=\"lookups_exhausted\"}"), 6.0);
}

/// Requests that were begun: the status of each answer, and when the client had it.
type Asked = Vec<tokio::task::JoinHandle<(u16, Instant)>>;

/// This number of guesses at once, over HTTP/2.
async fn ask(gateway: &Gateway, count: usize) -> Asked {
    // keygate takes 100 streams of one connection.
    const STREAMS: usize = 100;
    let mut asked = Vec::new();
    while asked.len() < count {
        let sender = connect::<Full<Bytes>>(gateway.address(), Transport::Http2).await;
        for _ in 0..STREAMS.min(count - asked.len()) {
            let mut sender = sender.clone();
            let request = Request::get("http://api.example.com/nowhere")
                .header("authorization", format!("Bearer {}", guess()))
                .body(Full::default())
                .unwrap();
            asked.push(tokio::spawn(async move {
                let answer = read(sender.send_request(request).await.unwrap()).await;
                (answer.status, Instant::now())
            }));
        }
    }
    asked
}

#[test]
fn an_outage_answers_all_of_a_full_queue_together() {
    const LOOKUPS: usize = 8;
    const TOO_MANY: usize = 5;
    let queue = if is_long() { 1_000 } else { 40 };
    let redis = RedisServer::start();
    let network = Chaos::before(redis.address());
    let patience = "lookup_timeout = \"20s\"\n";
    let settings = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\nmax_connections = {queue}\n\
         [ops]\nlisten = \"127.0.0.1:0\"\n[cache]\nmax_lookups = {LOOKUPS}\n{patience}\
         [store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\ncommand_timeout = \"20s\"\n\
         connect_timeout = \"20s\"\n{patience}",
        network.url()
    );
    let gateway = Gateway::builder()
        .upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2")
        .settings(&settings)
        .transport(Transport::Http2)
        .start();
    gateway.fetch(&with_key(&guess(), None)).refusal(401, "authentication_error");
    network.turn(Weather::Stalled);
    let refused = |cause: &str| refused(&gateway, cause);
    let (statuses, took) = runtime().block_on(async {
        let asked = ask(&gateway, LOOKUPS + queue + TOO_MANY).await;
        while refused("full") < TOO_MANY as f64 || metric(&gateway, WAITING) < queue as f64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let begun = Instant::now();
        network.turn(Weather::Cut);
        let (mut statuses, mut took) = (BTreeMap::new(), Duration::ZERO);
        for one in asked {
            let (status, at) = one.await.unwrap();
            *statuses.entry(status).or_insert(0) += 1;
            took = took.max(at.saturating_duration_since(begun));
        }
        (statuses, took)
    });
    println!("an outage while {queue} requests waited: {statuses:?}, the last {took:.2?} after it began");
    assert_eq!(statuses, BTreeMap::from([(503, LOOKUPS + queue + TOO_MANY)]));
    // Each tries a second time, and some may have got a turn then.
    let of_store = refused("store");
    assert!((queue - 2 * LOOKUPS) as f64 <= of_store && of_store <= queue as f64, "{of_store}");
    assert_eq!(["full", "late"].map(refused), [TOO_MANY as f64, 0.0]);
    assert_eq!(metric(&gateway, WAITING), 0.0);
    assert!(took < lenient(Duration::from_millis(150)), "{took:?}");
}
