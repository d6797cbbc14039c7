//! Revocation: the propagation in the answer to a change, with three gateways on one Redis; and whether each
//! gateway then refuses the key, with any fault of the network between them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::api::json_call;
use crate::harness::client::fetch_over;
use crate::harness::process::keygate;
use crate::harness::{
    Answer, Call, Chaos, Gateway, GatewayBuilder, RedisServer, TestKey, Upstream, Weather, Wire, eventually,
    guess, is_linked, is_long, lenient, operator, status,
};

/// After this time, no gateway with a working event link accepts a revoked key.
const AT_MOST: Duration = Duration::from_secs(1);
/// After this time, no gateway that can look keys up accepts a revoked key.
const AT_MOST_DEAF: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(10);
/// Enough time for every gateway to confirm, on a busy machine.
const PATIENT: &str = "[keys]\nack_wait = \"10s\"\n";

/// Three gateways on one Redis, each with a network of its own in between.
struct Trio {
    // First, so that they are dropped before their peers.
    gateways: [Gateway; 3],
    proxies: [Chaos; 3],
    redis: RedisServer,
    upstreams: (Upstream, Upstream),
}

impl Trio {
    #[track_caller]
    fn start(settings: &str) -> Self {
        let redis = RedisServer::start();
        let proxies = [(); 3].map(|()| Chaos::before(redis.address()));
        let upstreams = (Upstream::start("live"), Upstream::start("test"));
        let on = |proxy: &Chaos| {
            let (live, test) = &upstreams;
            let store = format!(
                "{settings}\n[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n\
                 connect_timeout = \"2s\"\nlookup_timeout = \"1s\"\ncommand_timeout = \"2s\"\n\
                 [admin]\nsocket = \"keygate.sock\"",
                proxy.url()
            );
            Gateway::builder().api(live, test).settings(&store)
        };
        let [a, b, c] = &proxies;
        let first = on(a).start();
        let beside = |builder: GatewayBuilder| builder.org(first.org).start();
        let (second, third) = (beside(on(b)), beside(on(c)));
        let trio = Self { gateways: [first, second, third], proxies, redis, upstreams };
        for gateway in &trio.gateways {
            eventually("it is linked", || is_linked(gateway));
        }
        eventually("all hold leases", || trio.leases().len() == 3);
        trio
    }

    /// A key that all three have cached.
    #[track_caller]
    fn known_key(&self) -> TestKey {
        let key = self.gateways[0].live_key();
        for gateway in &self.gateways {
            assert_eq!(status(gateway, &key), 200);
        }
        key
    }

    /// The names of the leases, with the number of the last event that each gateway has applied.
    fn leases(&self) -> Vec<(String, u64)> {
        let found = self.redis.command(&["KEYS", "{kg}:gateway:*"]);
        // Beside each lease stands the format that its gateway announces.
        let is_lease = |line: &&str| line.starts_with('{') && !line.ends_with(":format");
        let names = found.split("\r\n").filter(is_lease);
        let last = |name: &str| {
            let said = self.redis.command(&["GET", name]);
            said.split("\r\n").nth(1).and_then(|number| number.parse().ok())
        };
        names.filter_map(|name| Some((name.to_owned(), last(name)?))).collect()
    }

    /// The propagation of its changes in the audit trail, newest first.
    fn propagated(&self, admin: &TestKey, target: &str) -> Vec<Value> {
        let call = Call::get("/v1/audit_events?limit=100&type=change.propagated").key(&admin.secret);
        let answer = self.gateways[0].fetch(&call);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let events = answer.json()["data"].as_array().unwrap().clone();
        events
            .into_iter()
            .filter(|event| event["target"] == target)
            .map(|event| event["after"].clone())
            .collect()
    }
}

fn request(key: &TestKey) -> Call {
    Call::get("/v1/jobs").key(&key.secret)
}

fn path(key: &TestKey) -> String {
    format!("/v1/api_keys/{}", key.id())
}

fn revocation(admin: &TestKey, key: &TestKey) -> Call {
    Call::new("DELETE", &path(key)).key(&admin.secret)
}

/// The gateways that have confirmed a change, the number of gateways, and the time in milliseconds.
#[track_caller]
fn told(answer: &Answer) -> (u64, u64, u64) {
    let told = answer.field("keygate-propagation").unwrap_or_else(|| panic!("not told in {answer:?}"));
    let parts = told.strip_prefix("confirmed=").and_then(|rest| rest.split_once("; slowest_ms="));
    let numbers = parts.and_then(|(confirmed, slowest)| {
        let (confirmed, all) = confirmed.split_once('/')?;
        Some((confirmed.parse().ok()?, all.parse().ok()?, slowest.parse().ok()?))
    });
    numbers.unwrap_or_else(|| panic!("{told:?}"))
}

fn distribution(mut all: Vec<Duration>) -> String {
    all.sort_unstable();
    let at = |part: usize| all.get((all.len().max(1) - 1) * part / 100).copied().unwrap_or_default();
    format!("median {:.1?}, 90 % {:.1?}, 99 % {:.1?}, longest {:.1?}", at(50), at(90), at(99), at(100))
}

/// A request that was accepted.
struct Success {
    key: usize,
    gateway: usize,
    sent: Instant,
    first_byte: Instant,
}

#[test]
fn after_a_confirmed_revocation_not_one_request_succeeds_at_any_gateway() {
    const CLIENTS: usize = 2;
    let revocations = if is_long() { 1000 } else { 100 };
    let trio = Trio::start(PATIENT);
    let admin = trio.gateways[0].live_key();
    let keys: Vec<TestKey> = (0..revocations).map(|_| trio.gateways[0].live_key()).collect();
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (successes, asked) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    // Each client presents the keys that are revoked next, repeatedly.
    let present = |gateway: usize, mut wire: Wire| {
        let mut let_in = Vec::new();
        while !over.load(Ordering::SeqCst) {
            let near = next.load(Ordering::SeqCst);
            for (key, presented) in keys.iter().enumerate().take(near + 3).skip(near.saturating_sub(2)) {
                let sent = Instant::now();
                wire.send(&request(presented).to_bytes());
                let head = wire.head().unwrap();
                let first_byte = Instant::now();
                let length = head.field("content-length").unwrap().parse().unwrap();
                wire.exactly(length).unwrap();
                asked.fetch_add(1, Ordering::Relaxed);
                match head.status {
                    200 => let_in.push(Success { key, gateway, sent, first_byte }),
                    401 => {}
                    other => panic!("{other}"),
                }
            }
        }
        successes.lock().unwrap().append(&mut let_in);
    };
    let (mut revoked, mut waits, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    thread::scope(|scope| {
        for gateway in 0..3 {
            for _ in 0..CLIENTS {
                let wire = trio.gateways[gateway].connect();
                let present = &present;
                scope.spawn(move || present(gateway, wire));
            }
        }
        let _over = OnDrop(&over);
        let mut wires = trio.gateways.each_ref().map(Gateway::connect);
        for (n, key) in keys.iter().enumerate() {
            next.store(n, Ordering::SeqCst);
            let begun = Instant::now();
            let answer = wires[n % 3].call(&revocation(&admin, key)).unwrap();
            let answered = Instant::now();
            assert_eq!(answer.status, 204, "{}", answer.text());
            let (confirmed, all, took) = told(&answer);
            assert_eq!((confirmed, all), (3, 3), "{answer:?}");
            revoked.push(answered);
            waits.push(answered - begun);
            slowest.push(Duration::from_millis(took));
        }
    });
    let successes = successes.into_inner().unwrap();
    let mut latest = vec![Duration::ZERO; revocations];
    for success in &successes {
        let after = success.first_byte.saturating_duration_since(revoked[success.key]);
        latest[success.key] = latest[success.key].max(after);
        assert!(
            success.sent <= revoked[success.key],
            "gateway {} let in a request that was sent {:?} after all had confirmed",
            success.gateway,
            success.sent - revoked[success.key]
        );
    }
    println!(
        "{revocations} revocations at 3 gateways under {} requests, {} of them let in\n\
         last success after the 204: {}\n204 after: {}\nconfirmed by all after: {}",
        asked.load(Ordering::Relaxed),
        successes.len(),
        distribution(latest.clone()),
        distribution(waits),
        distribution(slowest)
    );
    assert!(successes.len() >= revocations, "the load was none");
    assert!(latest.iter().all(|latest| *latest < AT_MOST), "{latest:?}");
}

/// Sets it when dropped, so that a failing test ends its threads.
struct OnDrop<'f>(&'f AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn every_change_that_removes_rights_reports_its_propagation_and_the_trail_records_it() {
    let trio = Trio::start(PATIENT);
    let [a, b, c] = &trio.gateways;
    let admin = a.live_key();
    let key = trio.known_key();
    let narrowed =
        b.fetch(&json_call("PATCH", &path(&key), &json!({ "scopes": ["jobs:write"] })).key(&admin.secret));
    assert_eq!((narrowed.status, told(&narrowed).0, told(&narrowed).1), (200, 3, 3), "{}", narrowed.text());
    assert_eq!([a, b, c].map(|gateway| status(gateway, &key)), [403; 3]);

    let key = trio.known_key();
    let rotation = format!("{}/rotate", path(&key));
    let rotated = c.fetch(&json_call("POST", &rotation, &json!({ "overlap_seconds": 0 })).key(&admin.secret));
    assert_eq!((rotated.status, told(&rotated).0, told(&rotated).1), (200, 3, 3), "{}", rotated.text());
    assert_eq!([a, b, c].map(|gateway| status(gateway, &key)), [401; 3]);

    let key = trio.known_key();
    let disabled = b.block_on(b.lifecycle().disable_key(&operator(), key.id())).unwrap().propagation.unwrap();
    assert_eq!((disabled.confirmed, disabled.gateways), (3, 3));
    assert_eq!([a, b, c].map(|gateway| status(gateway, &key)), [401; 3]);
    let id = key.id().to_string();
    eventually("it is written down", || !trio.propagated(&admin, &id).is_empty());
    let written = &trio.propagated(&admin, &id)[0];
    assert_eq!((&written["confirmed"], &written["gateways"]), (&json!(3), &json!(3)));
    let shown = keygate(a.folder(), &["keys", "show", &id]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("confirmed=3/3; slowest_ms="), "{shown}");

    let suspended = c.block_on(c.lifecycle().suspend_org(&operator(), a.org)).unwrap().propagation.unwrap();
    assert_eq!((suspended.confirmed, suspended.gateways), (3, 3));
    assert_eq!([a, b, c].map(|gateway| status(gateway, &admin)), [403; 3]);
    assert!(trio.upstreams.1.seen().is_empty());
}

#[test]
fn a_gateway_that_hangs_is_counted_as_one_that_has_not_confirmed_until_it_is_back() {
    let trio = Trio::start("");
    let [a, _, c] = &trio.gateways;
    let (admin, key) = (a.live_key(), trio.known_key());
    assert_eq!(status(a, &admin), 200);
    trio.proxies[2].turn(Weather::Stalled);
    let begun = Instant::now();
    let answer = a.fetch(&revocation(&admin, &key));
    let took = begun.elapsed();
    assert_eq!(answer.status, 204, "{}", answer.text());
    let (confirmed, all, slowest) = told(&answer);
    println!("one of three hangs: 204 after {took:?}, {:?}", answer.field("keygate-propagation"));
    assert_eq!(all, 3);
    assert!(confirmed <= 2, "it has heard of nothing");
    assert!(slowest >= 250 && took < lenient(Duration::from_secs(3)), "{slowest} ms, {took:?}");
    assert_eq!(status(c, &key), 200, "what is not confirmed is not so");
    assert_eq!(status(a, &key), 401);
    let id = key.id().to_string();
    assert_eq!(trio.propagated(&admin, &id).len(), 0, "nothing is said before its end");
    trio.proxies[2].turn(Weather::Fair);
    eventually("it refuses the key", || status(c, &key) == 401);
    eventually("that is written down", || !trio.propagated(&admin, &id).is_empty());
    let written = &trio.propagated(&admin, &id)[0];
    assert_eq!((&written["confirmed"], &written["gateways"]), (&json!(3), &json!(3)), "{written}");
}

#[test]
fn a_gateway_that_hangs_for_longer_than_its_lease_is_not_waited_for() {
    let trio = Trio::start("");
    let [a, _, c] = &trio.gateways;
    let (admin, key) = (a.live_key(), trio.known_key());
    assert_eq!(status(a, &admin), 200);
    trio.proxies[2].turn(Weather::Stalled);
    let begun = Instant::now();
    let answer = a.fetch(&revocation(&admin, &key));
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(told(&answer).1, 3);
    if !is_long() {
        // Redis' clock cannot be shifted, but a lease can be made to end now.
        eventually("the two others have confirmed it", || {
            trio.leases().iter().filter(|(_, last)| *last > 0).count() == 2
        });
        let (hanging, _) = trio.leases().into_iter().min_by_key(|(_, last)| *last).unwrap();
        assert_eq!(trio.redis.command(&["PEXPIRE", &hanging, "1"]), ":1\r\n");
    }
    let id = key.id().to_string();
    eventually("its end is written down", || !trio.propagated(&admin, &id).is_empty());
    let written = &trio.propagated(&admin, &id)[0];
    println!("written down after {:?}: {written}", begun.elapsed());
    assert_eq!((&written["confirmed"], &written["gateways"]), (&json!(2), &json!(3)), "{written}");
    assert_eq!(written["lapsed"], json!(1), "{written}");
    assert_eq!(status(c, &key), 200, "it knows of nothing, which nobody has claimed");
    trio.proxies[2].turn(Weather::Fair);
    eventually("it refuses the key", || status(c, &key) == 401);
    eventually("it holds a lease again", || trio.leases().len() == 3);
}

/// In real time: the gateway's clock and the store's are one.
#[test]
fn a_gateway_whose_events_are_cut_off_silently_lets_no_revoked_key_in_for_long() {
    let trio = Trio::start("");
    let [a, _, c] = &trio.gateways;
    let (admin, key, kept) = (a.live_key(), trio.known_key(), trio.known_key());
    assert_eq!(status(a, &admin), 200);
    trio.proxies[2].turn(Weather::Deaf);
    let answer = a.fetch(&revocation(&admin, &key));
    let revoked = Instant::now();
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert!(told(&answer).0 <= 2, "it cannot have heard of it: {answer:?}");
    let mut wire = c.connect();
    let (mut last, mut let_in) = (Duration::ZERO, 0);
    eventually("it refuses the key", || match wire.call(&request(&key)).unwrap().status {
        200 => {
            (last, let_in) = (revoked.elapsed(), let_in + 1);
            false
        }
        status => status == 401,
    });
    println!("events cut off: {let_in} requests let in, the last {last:?} after the 204");
    assert!(let_in > 0, "it heard of it after all");
    assert!(last < AT_MOST_DEAF, "{last:?}");
    assert_eq!(status(c, &kept), 200, "a key that nobody revoked");
    let until = if is_long() { AT_MOST_DEAF + AT_MOST_DEAF } else { Duration::ZERO };
    while revoked.elapsed() < until {
        assert_eq!(status(c, &key), 401, "it is back after {:?}", revoked.elapsed());
        thread::yield_now();
    }
}

mod cut_off {
    use super::*;

    fn settings(on_partition: &str) -> String {
        format!(
            "[cache]\nttl = \"60s\"\nstale_window = \"5m\"\nlookup_timeout = \"200ms\"\non_partition = \"{on_partition}\""
        )
    }

    /// Three gateways; the third is cut off from everything since this time.
    fn cut(settings: &str) -> (Trio, TestKey, Instant) {
        let trio = Trio::start(settings);
        let key = trio.known_key();
        let cut = Instant::now();
        trio.proxies[2].turn(Weather::Cut);
        (trio, key, cut)
    }

    #[test]
    fn a_cut_off_gateway_serves_known_keys_until_the_stale_window_ends() {
        let (trio, key, _) = cut(&settings("serve"));
        let (a, c) = (&trio.gateways[0], &trio.gateways[2]);
        a.revoke(&key);
        for by in [30, 200, 120] {
            c.advance(Duration::from_secs(by));
            assert_eq!(status(c, &key), 200, "it cannot know");
        }
        // 360 s after it was looked up last; a while has passed in the test itself.
        c.advance(Duration::from_secs(10));
        for _ in 0..10 {
            assert_eq!(status(c, &key), 503);
        }
        trio.proxies[2].turn(Weather::Fair);
        eventually("it refuses the key for good", || match status(c, &key) {
            200 => panic!("it is back"),
            status => status == 401,
        });
    }

    #[test]
    fn a_cut_off_gateway_with_on_partition_refuse_refuses_known_keys_after_its_lease() {
        let (trio, key, begun) = cut(&settings("refuse"));
        let c = &trio.gateways[2];
        // The last heartbeat was at most a second before the cut, or two on a busy machine.
        let early = LEASE - Duration::from_secs(3);
        if is_long() {
            let mut last = Duration::ZERO;
            eventually("it refuses the key", || match status(c, &key) {
                200 => {
                    last = begun.elapsed();
                    false
                }
                status => status == 503,
            });
            println!("cut off from everything: the last success {last:?} afterwards");
            assert!(last > early && last < LEASE + Duration::from_millis(200), "{last:?}");
        } else {
            c.advance(early.saturating_sub(begun.elapsed()));
            assert_eq!(status(c, &key), 200, "its lease has not ended");
            c.advance(LEASE - early);
            assert_eq!(status(c, &key), 503);
        }
        for _ in 0..10 {
            assert_eq!(status(c, &key), 503, "never 401: nobody knows that it is wrong");
        }
        trio.proxies[2].turn(Weather::Fair);
        eventually("it serves the key again", || match status(c, &key) {
            401 => panic!("it is a good key"),
            status => status == 200,
        });
    }

    /// In a suspend the boot clock goes on and the timers stand still. In a pause of a virtual machine both stand still, and its
    /// date is set afterwards.
    #[test]
    fn a_gateway_that_slept_refuses_what_it_may_have_missed_from_its_first_moment_on() {
        const HOUR: Duration = Duration::from_secs(3600);
        let suspend = |c: &Gateway| c.advance(HOUR);
        let pause = |c: &Gateway| c.step_wall(3_600_000);
        for sleep in [&suspend as &dyn Fn(&Gateway), &pause] {
            let (trio, key, _) = cut(&settings("refuse"));
            let [a, _, c] = &trio.gateways;
            assert_eq!(status(c, &key), 200, "its lease has not ended");
            sleep(c);
            for _ in 0..20 {
                assert_eq!(status(c, &key), 503);
            }
            a.revoke(&key);
            trio.proxies[2].turn(Weather::Fair);
            eventually("it refuses the key for good", || match status(c, &key) {
                200 => panic!("it was revoked"),
                status => status == 401,
            });
        }
    }

    #[test]
    fn a_date_that_is_set_ends_nothing_for_long() {
        let trio = Trio::start(&settings("refuse"));
        let (key, c) = (trio.known_key(), &trio.gateways[2]);
        for by in [5000, -3_600_000] {
            c.step_wall(by);
            eventually("its lease is confirmed, and the key let in", || match status(c, &key) {
                401 => panic!("it is a good key"),
                status => status == 200,
            });
        }
    }

    #[test]
    fn a_route_that_refuses_does_so_while_others_serve() {
        let (trio, key, _) = cut(&settings("serve"));
        let c = &trio.gateways[2];
        let own = Call::get("/v1/api_keys/self").key(&key.secret);
        let purchase = Call::post("/v1/billing/credits/purchase", "{}").key(&key.secret);
        assert_eq!(c.fetch(&purchase).status, 200, "its lease has not ended");
        c.advance(LEASE + Duration::from_secs(1));
        let manage = Call::get("/v1/api_keys").key(&key.secret);
        for call in [&manage, &purchase] {
            let answer = c.fetch(call);
            assert_eq!(answer.status, 503, "{}", answer.text());
            assert!(answer.field("retry-after").is_some());
        }
        assert_eq!(status(c, &key), 200, "jobs:read");
        assert_ne!(c.fetch(&own).status, 401);
        trio.proxies[2].turn(Weather::Fair);
        eventually("all is served again", || {
            c.fetch(&manage).status == 200 && c.fetch(&purchase).status == 200
        });
    }
}

/// An old master after a fail-over: it answers lookups with old data, and accepts no lease.
#[test]
fn lookups_of_a_gateway_without_a_renewed_lease_count_for_one_lease_only() {
    let trio = Trio::start("");
    let [a, b, _] = &trio.gateways;
    let (key, [new, colder]) = (trio.known_key(), [(); 2].map(|()| a.live_key()));
    // Its connection for commands is there; a new one would be refused by what is no master.
    assert_eq!(b.fetch(&Call::get("/v1/api_keys").key(&key.secret)).status, 200);
    assert_eq!(trio.redis.command(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
    eventually("it says so", || !is_linked(b));
    let manage = Call::get("/v1/api_keys").key(&new.secret);
    assert_eq!(b.fetch(&manage).status, 200, "it looks the key up, and its lease has not ended");
    eventually("it is suspected", || b.lifecycle().keeper().vitals().is_suspect == Some(true));
    let made_up = Call::get("/v1/jobs").key(&guess());
    assert_eq!(b.fetch(&made_up).status, 503, "it may have been made where nobody can see it from here");
    b.advance(LEASE + Duration::from_secs(1));
    b.fetch(&manage).refusal(503, "service_unavailable");
    let unknown = Call::get("/v1/api_keys").key(&guess());
    b.fetch(&unknown).refusal(503, "service_unavailable");
    assert_eq!([&key, &new].map(|key| status(b, key)), [200; 2], "jobs:read, within the stale window");
    assert_eq!(status(b, &colder), 503, "it could look keys up for ever");
    assert_eq!(trio.redis.command(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
    eventually("it manages keys again", || b.fetch(&manage).status == 200);
    assert_eq!((status(b, &colder), b.fetch(&made_up).status), (200, 401));
}

mod broken_off {
    use super::*;

    /// Each time, the connection to the store breaks at another point of the operation.
    const MOMENTS: u32 = 25;
    const STEP: Duration = Duration::from_micros(400);

    /// Sends a call, breaks the connection to the store `after` a while, and returns the answer.
    fn broken(trio: &Trio, call: &Call, after: Duration) -> Answer {
        let (a, proxy) = (&trio.gateways[0], &trio.proxies[0]);
        let answer = thread::scope(|scope| {
            let (address, transport) = (a.address(), a.transport());
            let answer = scope.spawn(move || fetch_over(address, transport, call));
            let until = Instant::now() + after;
            while Instant::now() < until {
                thread::yield_now();
            }
            proxy.turn(Weather::Cut);
            answer.join().unwrap()
        });
        proxy.turn(Weather::Fair);
        answer
    }

    /// Repeats a call until it is not answered with 503.
    fn repeated(trio: &Trio, call: &Call) -> Answer {
        let mut answer = None;
        eventually("the store is back", || {
            let again = trio.gateways[0].fetch(call);
            assert!(matches!(again.status, 200 | 204 | 503), "{} {}", again.status, again.text());
            let done = again.status != 503;
            answer = Some(again);
            done
        });
        answer.unwrap()
    }

    #[test]
    fn a_key_is_created_once_or_not_at_all_and_a_repeat_returns_it() {
        let trio = Trio::start(PATIENT);
        let admin = trio.gateways[0].live_key();
        assert_eq!(status(&trio.gateways[0], &admin), 200);
        let (mut open, mut done) = (0, 0);
        for n in 0..MOMENTS {
            let name = format!("key {n}");
            let call = json_call("POST", "/v1/api_keys", &json!({ "name": name })).key(&admin.secret);
            let call = call.field("idempotency-key", &name);
            let first = broken(&trio, &call, STEP * n);
            let again = repeated(&trio, &call);
            assert_eq!(again.status, 200);
            match first.status {
                200 => assert_eq!(first.body, again.body),
                status => {
                    first.refusal(503, "service_unavailable");
                    open += usize::from(status == 503);
                }
            }
            done += usize::from(first.status == 200);
            assert_eq!(repeated(&trio, &call).body, again.body, "the same answer for ever");
            let list = repeated(&trio, &Call::get("/v1/api_keys?limit=100").key(&admin.secret)).json();
            let named = list["data"].as_array().unwrap().iter().filter(|key| key["name"] == *name).count();
            assert_eq!(named, 1, "{name}");
            let secret = again.json()["secret"].as_str().unwrap().to_owned();
            let works = Call::get("/v1/jobs").key(&secret);
            eventually("it works elsewhere", || trio.gateways[1].fetch(&works).status == 200);
        }
        println!("made while the store broke off: {done} answered, {open} with 503");
        assert!(open > 0, "nothing broke off");
    }

    #[test]
    fn a_key_is_rotated_once_or_not_at_all_and_a_repeat_returns_the_secret() {
        let trio = Trio::start(PATIENT);
        let admin = trio.gateways[0].live_key();
        assert_eq!(status(&trio.gateways[0], &admin), 200);
        let mut open = 0;
        for n in 0..MOMENTS {
            let key = trio.gateways[1].live_key();
            let call = json_call("POST", &format!("{}/rotate", path(&key)), &json!({ "overlap_seconds": 0 }));
            let call = call.key(&admin.secret).field("idempotency-key", &format!("rotation {n}"));
            let first = broken(&trio, &call, STEP * n);
            let again = repeated(&trio, &call);
            assert_eq!(again.status, 200);
            if first.status == 200 {
                assert_eq!(first.body, again.body);
            } else {
                first.refusal(503, "service_unavailable");
                open += 1;
            }
            assert_eq!(repeated(&trio, &call).body, again.body, "the same answer for ever");
            let secret = again.json()["secret"].as_str().unwrap().to_owned();
            let works = Call::get("/v1/jobs").key(&secret);
            eventually("the new secret works", || trio.gateways[1].fetch(&works).status == 200);
            eventually("the old one does not", || status(&trio.gateways[1], &key) == 401);
        }
        println!("rotated while the store broke off: {open} of {MOMENTS} answered with 503");
        assert!(open > 0, "nothing broke off");
    }

    #[test]
    fn a_revocation_that_was_left_open_is_repeated_safely_and_published_again() {
        let trio = Trio::start(PATIENT);
        let [a, b, c] = &trio.gateways;
        let admin = a.live_key();
        assert_eq!(status(a, &admin), 200);
        let mut open = 0;
        for n in 0..MOMENTS {
            let key = b.live_key();
            assert_eq!([b, c].map(|gateway| status(gateway, &key)), [200; 2]);
            let call = revocation(&admin, &key);
            let first = broken(&trio, &call, STEP * n);
            if first.status != 204 {
                first.refusal(503, "service_unavailable");
                open += 1;
            }
            let before = trio.redis.command(&["HGET", "{kg}:meta", "event"]);
            let again = repeated(&trio, &call);
            assert_eq!(again.status, 204);
            assert_ne!(trio.redis.command(&["HGET", "{kg}:meta", "event"]), before, "it is published again");
            let (confirmed, all, _) = told(&again);
            assert_eq!(confirmed, all, "all of those whose lease has not ended");
            assert_eq!([b, c].map(|gateway| status(gateway, &key)), [401; 2]);
            assert_eq!(status(a, &key), 401);
        }
        println!("revoked while the store broke off: {open} of {MOMENTS} answered with 503");
        assert!(open > 0, "nothing broke off");
    }
}
