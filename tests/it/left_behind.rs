//! A gateway that stays connected to an old master while the sentinels choose a new one.
//!
//! `KEYGATE_LONG=1 cargo test --test it left_behind -- --nocapture --test-threads 1` does it in real time.

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::fail_over::{FailsOver as _, keep_replicas_out};
use crate::harness::sentinels::{Watched, lines};
use crate::harness::{
    Call, Chaos, Gateway, GatewayBuilder, RedisServer, TestKey, Upstream, Weather, eventually, guess,
    is_linked, is_long, status, unhurried,
};

const LEASE: Duration = Duration::from_secs(10);
/// The sum of the shipped ttl and stale window.
const STALE: Duration = Duration::from_secs(360);

struct Trio {
    // First, so that they are dropped before their peers.
    gateways: [Gateway; 3],
    /// The third gateway's ways to the sentinels.
    ways: Vec<Chaos>,
    watched: Watched,
    _upstreams: [Upstream; 2],
}

impl Trio {
    #[track_caller]
    fn start() -> Self {
        let watched = Watched::with(&["--min-replicas-to-write", "1"]);
        let ways: Vec<Chaos> =
            watched.sentinels.iter().map(|sentinel| Chaos::before(sentinel.address())).collect();
        let upstreams = [Upstream::start("live"), Upstream::start("test")];
        let on = |store: &str| -> GatewayBuilder {
            Gateway::builder().api(&upstreams[0], &upstreams[1]).settings(&format!(
                "[keys]\nack_wait = \"100ms\"\n[cache]\nlookup_timeout = \"5s\"\n[store]\nkind = \"redis\"\n\
                 allow_without_pepper = true\nconnect_timeout = \"2s\"\nlookup_timeout = \"2s\"\n\
                 command_timeout = \"2s\"\n{store}"
            ))
        };
        let first = on(&watched.settings()).start();
        let second = on(&watched.settings()).org(first.org).start();
        let ports: Vec<String> = ways.iter().map(|way| way.port().to_string()).collect();
        let third = on(&lines(&ports)).org(first.org).start();
        let gateways = [first, second, third];
        for gateway in &gateways {
            eventually("it is linked", || is_linked(gateway));
        }
        Self { gateways, ways, watched, _upstreams: upstreams }
    }

    fn turn(&self, weather: Weather) {
        self.ways.iter().for_each(|way| way.turn(weather));
    }
}

/// Whether it suspects that its store has been replaced.
fn suspects(gateway: &Gateway) -> bool {
    gateway.lifecycle().keeper().vitals().is_suspect.unwrap()
}

fn is_at(gateway: &Gateway, server: &RedisServer) -> bool {
    let status = gateway.block_on(gateway.lifecycle().keeper().status());
    status.trouble.is_none() && status.place.contains(&server.address().to_string())
}

fn request(secret: &str) -> Call {
    Call::get("/v1/jobs").key(secret)
}

/// The gateway and the old master are cut off from the others. The old master answers lookups, and refuses changes
/// because it has no replica. Returns the time of the first refusal.
fn leave_behind(trio: &Trio) -> Instant {
    let [old, new] = &trio.watched.servers;
    // It cannot be made a replica.
    assert_eq!(old.command(&["ACL", "SETUSER", "default", "-replicaof", "-slaveof"]), "+OK\r\n");
    trio.turn(Weather::Cut);
    // The event connections are closed before the first refusal, and this gateway cannot reach the sentinels to
    // find a server for a new one.
    let clients = old.command(&["CLIENT", "LIST"]);
    for client in clients.lines().filter(|client| client.contains(" cmd=xread ")) {
        let id = client.split(' ').next().unwrap().rsplit('=').next().unwrap();
        assert_eq!(old.command(&["CLIENT", "KILL", "ID", id]), ":1\r\n");
    }
    keep_replicas_out(old);
    let cut = Instant::now();
    let answer = trio.watched.sentinels[0].command(&["SENTINEL", "FAILOVER", "mymaster"]);
    assert!(answer.contains("+OK"), "{answer}");
    trio.watched.announced(1);
    for gateway in &trio.gateways[..2] {
        unhurried("it has followed", || is_at(gateway, new));
    }
    cut
}

#[test]
fn a_gateway_trusts_an_old_master_for_one_lease_and_then_counts_as_cut_off() {
    let trio = Trio::start();
    let [a, _, c] = &trio.gateways;
    let [key, kept, cold, colder] = [(); 4].map(|()| a.live_key());
    let unused: Vec<TestKey> = (0..if is_long() { 240 } else { 0 }).map(|_| a.live_key()).collect();
    assert_eq!([&key, &kept].map(|key| status(c, key)), [200; 2]);
    trio.watched.settle(0);
    let cut = leave_behind(&trio);
    [&key, &cold].into_iter().for_each(|key| a.revoke(key));
    let revoked = Instant::now();
    let made_since = a.live_key();
    unhurried("it suspects the old master", || suspects(c));
    assert!(!is_linked(c));
    assert_eq!(status(c, &made_since), 503, "it is good, and the old master cannot know");
    let told = status(c, &cold);
    if cut.elapsed() < LEASE - Duration::from_secs(2) {
        assert_eq!(told, 200, "the old master answers, and the gateway cannot know");
    }
    if is_long() {
        let last = last_success(c, &unused, cut);
        println!(
            "left behind: the last lookup that counted {last:.2?} after the old master was cut off, and {:.2?} after \
             the last revocation",
            last.saturating_sub(revoked - cut)
        );
        assert!(last > LEASE / 2 && last < LEASE + Duration::from_millis(200), "{last:?}");
    } else {
        c.advance(LEASE);
    }
    assert_eq!(status(c, &colder), 503, "it could look keys up for ever");
    assert_eq!(c.fetch(&request(&guess())).status, 503);
    assert_eq!([&key, &kept].map(|key| status(c, key)), [200; 2], "within the stale window");
    let manage = Call::get("/v1/api_keys").key(&kept.secret);
    c.fetch(&manage).refusal(503, "service_unavailable");
    c.advance(STALE);
    assert_eq!([&key, &kept, &cold].map(|key| status(c, key)), [503; 3], "and not longer");
    trio.turn(Weather::Fair);
    for (key, wanted) in [(&key, 401), (&cold, 401), (&kept, 200), (&colder, 200), (&made_since, 200)] {
        eventually("it has found the new master", || match status(c, key) {
            503 => false,
            told => {
                assert_eq!(told, wanted);
                true
            }
        });
    }
    assert!(!suspects(c));
}

/// The time after `since` at which one of these keys was last accepted, each presented once.
fn last_success(gateway: &Gateway, keys: &[TestKey], since: Instant) -> Duration {
    let mut last = Duration::ZERO;
    for key in keys {
        if status(gateway, key) == 200 {
            last = since.elapsed();
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(since.elapsed() > LEASE + LEASE, "there were too few of them");
    last
}

#[test]
fn a_master_without_a_replica_is_trusted_while_most_sentinels_confirm_it() {
    let mut trio = Trio::start();
    let cold: Vec<TestKey> = (0..12).map(|_| trio.gateways[0].live_key()).collect();
    let next = AtomicU8::new(0);
    let cold = || &cold[usize::from(next.fetch_add(1, Ordering::Relaxed))];
    trio.watched.settle(0);
    trio.watched.servers[1].kill();
    let c = &trio.gateways[2];
    unhurried("its heartbeat is refused", || !is_linked(c));
    c.advance(LEASE + LEASE);
    for _ in 0..8 {
        assert_eq!(status(c, cold()), 200);
        assert_eq!(c.fetch(&request(&guess())).status, 401);
        assert!(!suspects(c));
        thread::sleep(Duration::from_millis(250));
    }
    trio.ways[..2].iter().for_each(|way| way.turn(Weather::Cut));
    unhurried("one of three is not most", || suspects(c));
    c.advance(LEASE);
    assert_eq!(status(c, cold()), 503);
    trio.turn(Weather::Fair);
    unhurried("they vouch for it again", || !suspects(c));
    assert_eq!(status(c, cold()), 200);
}
