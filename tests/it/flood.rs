//! Thousands of guessed keys beside other traffic: the other traffic is not affected, valid keys that are not
//! cached are accepted, and the store gets no more lookups from a network that guesses than its share.
//!
//! `KEYGATE_LONG=1 cargo test --test it flood -- --nocapture --test-threads 1` runs the long form, 20 s of each.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use crate::harness::metrics::{scrape, value};
use crate::harness::traffic::{Outcome, at_rate, at_will, percentile, with_status};
use crate::harness::{
    Call, Chaos, Gateway, RedisServer, TestKey, Transport, Upstream, Weather, eventually, fetch, guess,
    is_long, lenient,
};

/// Requests per second with known keys, and with keys that are not cached.
const NORMAL: u32 = 200;
const COLD: u32 = 20;
/// The addresses of the three kinds of clients, in three networks.
const USERS: &str = "192.0.2.7";
const NEWCOMERS: &str = "198.51.100.7";

/// The duration of each kind of traffic.
fn span() -> Duration {
    if is_long() { Duration::from_secs(20) } else { Duration::from_millis(1500) }
}

struct Scene {
    // First, so that it is dropped before its peers.
    gateway: Gateway,
    proxy: Chaos,
    known: Vec<TestKey>,
    cold: Vec<TestKey>,
    _redis: RedisServer,
    _upstreams: (Upstream, Upstream),
}

/// The cache level that has the keys.
struct Lookups {
    cached: f64,
    asked: f64,
}

impl Scene {
    #[track_caller]
    fn start(cache: &str) -> Self {
        let (redis, upstreams) = (RedisServer::start(), (Upstream::start("live"), Upstream::start("test")));
        let proxy = Chaos::before(redis.address());
        let settings = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\ntrusted_proxies = [\"127.0.0.1\"]\n\
             max_connections_per_client = 1000\n\
             [ops]\nlisten = \"127.0.0.1:0\"\n\
             [store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\nconnect_timeout = \"10s\"\n\
             lookup_timeout = \"10s\"\ncommand_timeout = \"10s\"\n\
             [cache]\nlookup_timeout = \"10s\"\nttl = \"10m\"\n{cache}",
            proxy.url()
        );
        let (live, test) = &upstreams;
        let gateway =
            Gateway::builder().api(live, test).settings(&settings).transport(Transport::Http1).start();
        let known: Vec<TestKey> = (0..20).map(|_| gateway.live_key()).collect();
        let cold = (0..COLD * span().as_secs_f64().ceil() as u32).map(|_| gateway.live_key()).collect();
        for key in &known {
            eventually("it is known", || {
                fetch(gateway.address(), &request(&key.secret, USERS)).status == 200
            });
        }
        Self { gateway, proxy, known, cold, _redis: redis, _upstreams: upstreams }
    }

    fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    fn lookups(&self) -> Lookups {
        let text = scrape(self.gateway.ops_address());
        let by = |series: &str| value(&text, series).unwrap_or_default();
        let level = |level: &str| by(&format!("keygate_cache_lookups_total{{result=\"{level}\"}}"));
        Lookups {
            cached: level("thread") + level("process"),
            asked: by("keygate_store_request_duration_seconds_count{op=\"lookup\"}"),
        }
    }

    /// Normal traffic, with keys that are not cached if `newcomers`, and with the given `flood`.
    fn traffic<F: Send>(
        &self,
        span: Duration,
        has_newcomers: bool,
        flood: impl FnOnce(SocketAddr) -> F + Send,
    ) -> (Vec<Outcome>, Vec<Outcome>, F) {
        let address = self.address();
        let (known, cold) = (&self.known, &self.cold);
        thread::scope(|scope| {
            let flood = scope.spawn(move || flood(address));
            // One after another: on a busy machine, concurrent ones would use up their share.
            let newcomers = scope.spawn(move || {
                let span = if has_newcomers { span } else { Duration::ZERO };
                at_rate(address, COLD, span, 1, |n| request(&cold[n].secret, NEWCOMERS))
            });
            let normal =
                at_rate(address, NORMAL, span, 4, |n| request(&known[n % known.len()].secret, USERS));
            (normal, newcomers.join().unwrap(), flood.join().unwrap())
        })
    }
}

fn request(secret: &str, from: &str) -> Call {
    Call::get("/v1/jobs").key(secret).field("x-forwarded-for", from)
}

/// One with a wrong checksum.
fn mistyped() -> String {
    let mut key = guess();
    let last = if key.pop() == Some('0') { '1' } else { '0' };
    key.push(last);
    key
}

#[test]
fn a_flood_of_guessed_keys_does_not_affect_valid_keys() {
    let span = span();
    let scene = Scene::start("");
    let (alone, ..) = scene.traffic(span, false, |_| ());
    let before = scene.lookups();
    let (beside_noise, _, noise) =
        scene.traffic(span, false, |to| at_will(to, span, 4, |_| request(&mistyped(), "203.0.113.7")));
    let after_noise = scene.lookups();
    assert_eq!(with_status(&noise, 401), noise.len());
    assert_eq!(after_noise.asked, before.asked, "malformed keys are nobody's to look up");

    let (beside_flood, newcomers, flood) =
        scene.traffic(span, true, |to| at_will(to, span, 4, |_| request(&guess(), "203.0.113.7")));
    let after = scene.lookups();
    println!(
        "{NORMAL} requests/s: p99 {:.2?} alone, {:.2?} beside {} malformed keys, {:.2?} beside {} guesses in {span:?}; \
         the store was asked {} times; {} newcomers within {:.2?}",
        percentile(&alone, 99.0),
        percentile(&beside_noise, 99.0),
        noise.len(),
        percentile(&beside_flood, 99.0),
        flood.len(),
        after.asked - after_noise.asked,
        newcomers.len(),
        percentile(&newcomers, 100.0),
    );
    for normal in [&alone, &beside_noise, &beside_flood] {
        assert_eq!(with_status(normal, 200), normal.len());
    }
    assert_eq!(with_status(&newcomers, 200), newcomers.len(), "a good key that is new here");
    assert_eq!(with_status(&flood, 401) + with_status(&flood, 503), flood.len());
    assert!(flood.len() > newcomers.len(), "no flood");
    let cached = after.cached - after_noise.cached;
    assert!(cached >= beside_flood.len() as f64, "normal traffic was looked up: {cached}");
    let asked = after.asked - after_noise.asked;
    assert!(asked <= (flood.len() + newcomers.len()) as f64, "{asked}");
    assert_no_slower("guesses", &beside_flood, &beside_noise);
}

/// Compares normal traffic beside a flood with normal traffic beside the same number of malformed keys; how much those
/// slow it depends on the machine.
#[track_caller]
fn assert_no_slower(what: &str, beside_flood: &[Outcome], beside_noise: &[Outcome]) {
    let [flood, noise] = [beside_flood, beside_noise].map(|outcomes| percentile(outcomes, 90.0));
    assert!(flood < noise * 3 + lenient(Duration::from_millis(100)), "beside {what}: {flood:?}, {noise:?}");
}

#[test]
fn guessed_keys_get_only_their_share_of_a_slow_store() {
    const NETWORKS: usize = 4;
    // An eighth of 16.
    const SHARE: usize = 2;
    // Each network has its connections, and is known to guess after this number of answers.
    const BEFORE_IT_SHOWS: usize = NETWORKS * (16 + CONNECTIONS / NETWORKS);
    /// Each way.
    const DELAY: Duration = Duration::from_millis(20);
    const CONNECTIONS: usize = 8 * NETWORKS;
    let span = span();
    let scene = Scene::start("max_lookups = 16");
    let (beside_noise, ..) = scene
        .traffic(span, false, |to| at_will(to, span, CONNECTIONS, |_| request(&mistyped(), "203.0.113.7")));
    scene.proxy.turn(Weather::Slow(DELAY));
    let before = scene.lookups();
    let (normal, newcomers, flood) = scene.traffic(span, true, |to| {
        at_will(to, span, CONNECTIONS, |n| request(&guess(), &format!("203.0.{}.7", n % NETWORKS)))
    });
    scene.proxy.turn(Weather::Fair);
    let after = scene.lookups();
    let asked = after.asked - before.asked - newcomers.len() as f64;
    // A place becomes free only when its lookup is answered.
    let longest = flood.iter().map(|outcome| outcome.took).max().unwrap();
    let rounds = (span + longest).as_millis() / (2 * DELAY).as_millis() + 1;
    let budget = (SHARE * NETWORKS) as f64 * rounds as f64 + BEFORE_IT_SHOWS as f64;
    println!(
        "{} guesses from {NETWORKS} networks in {span:?}, each within {longest:.2?}: {asked} lookups of at most {budget}; \
         normal traffic p99 {:.2?}, {:.2?} beside malformed keys; newcomers within {:.2?}",
        flood.len(),
        percentile(&normal, 99.0),
        percentile(&beside_noise, 99.0),
        percentile(&newcomers, 100.0),
    );
    assert_eq!(with_status(&normal, 200), normal.len());
    assert_eq!(with_status(&newcomers, 200), newcomers.len(), "a good key that is new here");
    assert_eq!(with_status(&flood, 401), flood.len(), "they wait for their turn");
    assert!(asked <= budget, "{asked} lookups, {budget} allowed");
    assert!(after.cached - before.cached >= normal.len() as f64);
    assert_no_slower("guesses that wait", &normal, &beside_noise);
}
