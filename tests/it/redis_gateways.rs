//! Gateways that share a Redis: a change at one takes effect at all. With any fault of Redis, known keys continue
//! to work, and unknown keys are never called invalid.

#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use keygate::store::keeper::LinkState;
use rustix::process::Signal;

use crate::harness::metrics::{scrape, value};
use crate::harness::process::{Process, keygate};
use crate::harness::{
    Answer, Call, Chaos, Gateway, GatewayBuilder, RedisServer, TestKey, Upstream, Weather, Wire, eventually,
    fetch, guess, is_linked, lenient, operator, status,
};

/// The number of requests with known keys while Redis is unavailable.
const REQUESTS: usize = 200;
/// The longest time for a 503 on a busy machine; on an idle one it is 150 ms.
const AT_MOST: Duration = Duration::from_millis(500);

fn upstreams() -> (Upstream, Upstream) {
    (Upstream::start("live"), Upstream::start("test"))
}

/// A gateway with the shipped time-outs.
fn on(url: &str, (live, test): &(Upstream, Upstream)) -> GatewayBuilder {
    Gateway::builder()
        .api(live, test)
        .settings(&format!("[store]\nkind = \"redis\"\nurl = \"{url}\"\nallow_without_pepper = true"))
}

/// A gateway with long time-outs for a busy machine, for tests that do not measure time.
fn patient(url: &str, (live, test): &(Upstream, Upstream)) -> GatewayBuilder {
    Gateway::builder().api(live, test).settings(&format!(
        "[store]\nkind = \"redis\"\nurl = \"{url}\"\nallow_without_pepper = true\nconnect_timeout = \"10s\"\n\
         lookup_timeout = \"10s\"\ncommand_timeout = \"10s\"\n[cache]\nlookup_timeout = \"10s\"\nnegative_ttl = \"1ms\""
    ))
}

fn request(key: &str) -> Call {
    Call::get("/v1/jobs").key(key)
}

mod together {
    use super::*;

    #[test]
    fn keys_created_or_revoked_at_one_gateway_are_so_at_the_other() {
        let (redis, upstreams) = (RedisServer::start(), upstreams());
        let a = patient(&redis.url(), &upstreams).start();
        let b = patient(&redis.url(), &upstreams).org(a.org).start();
        eventually("both are linked", || is_linked(&a) && is_linked(&b));
        let key = a.live_key();
        assert_eq!((status(&b, &key), status(&a, &key)), (200, 200));
        a.revoke(&key);
        assert_eq!(status(&a, &key), 401, "at once, where it was revoked");
        eventually("the other refuses it", || status(&b, &key) == 401);
        let key = b.test_key();
        assert_eq!((status(&a, &key), status(&b, &key)), (200, 200));
        b.revoke(&key);
        eventually("the other refuses it", || status(&a, &key) == 401);
    }

    /// The time from the answer to the revocation at one until the other refuses the key, which it had
    /// cached.
    #[test]
    fn a_revocation_reaches_the_other_within_moments() {
        const REVOCATIONS: usize = 200;
        let (redis, upstreams) = (RedisServer::start(), upstreams());
        let a = patient(&redis.url(), &upstreams).start();
        let b = patient(&redis.url(), &upstreams).org(a.org).start();
        eventually("both are linked", || is_linked(&a) && is_linked(&b));
        let mut wire = b.connect();
        let mut lags: Vec<Duration> = Vec::with_capacity(REVOCATIONS);
        for _ in 0..REVOCATIONS {
            let key = a.live_key();
            let call = request(&key.secret);
            assert_eq!(wire.call(&call).unwrap().status, 200);
            a.revoke(&key);
            let revoked = Instant::now();
            eventually("the other refuses it", || wire.call(&call).unwrap().status == 401);
            lags.push(revoked.elapsed());
        }
        lags.sort_unstable();
        let percentile = |p: usize| lags[(REVOCATIONS - 1) * p / 100];
        println!(
            "lag of {REVOCATIONS} revocations: median {:?}, 90 % {:?}, 99 % {:?}, longest {:?}",
            percentile(50),
            percentile(90),
            percentile(99),
            percentile(100)
        );
        assert!(percentile(100) < Duration::from_secs(1), "{:?}", percentile(100));
    }

    #[test]
    fn the_delay_of_changes_is_measured_at_both_gateways() {
        const REVOCATIONS: usize = 20;
        let (redis, upstreams) = (RedisServer::start(), upstreams());
        let watched = || patient(&redis.url(), &upstreams).settings("[ops]\nlisten = \"127.0.0.1:0\"");
        let a = watched().start();
        let b = watched().org(a.org).start();
        eventually("both are linked", || is_linked(&a) && is_linked(&b));
        for key in (0..REVOCATIONS).map(|_| a.live_key()) {
            a.revoke(&key);
        }
        let lag = |gateway: &Gateway, what: &str| {
            value(&scrape(gateway.ops_address()), &format!("keygate_revocation_lag_seconds_{what}"))
        };
        for gateway in [&a, &b] {
            eventually("every event is measured", || lag(gateway, "count") == Some(REVOCATIONS as f64));
            let sum = lag(gateway, "sum").unwrap();
            println!("mean lag {:.6} s", sum / REVOCATIONS as f64);
            assert!(sum < REVOCATIONS as f64, "{sum}");
        }
        let late = watched().org(a.org).start();
        eventually("it is linked", || is_linked(&late));
        late.revoke(&a.live_key());
        eventually("its own is measured", || lag(&late, "count").is_some());
        assert_eq!(lag(&late, "count"), Some(1.0), "what was there before it came is no lag");
    }

    #[test]
    fn a_gateway_refuses_keys_that_were_revoked_while_it_was_cut_off() {
        let (redis, upstreams) = (RedisServer::start(), upstreams());
        let proxy = Chaos::before(redis.address());
        let a = patient(&redis.url(), &upstreams).start();
        let b = patient(&proxy.url(), &upstreams).org(a.org).start();
        eventually("both are linked", || is_linked(&a) && is_linked(&b));
        let (revoked, kept) = (a.live_key(), a.live_key());
        assert_eq!((status(&b, &revoked), status(&b, &kept)), (200, 200));
        proxy.turn(Weather::Cut);
        eventually("it is cut off", || !is_linked(&b));
        a.revoke(&revoked);
        assert_eq!(status(&b, &revoked), 200, "it cannot know");
        proxy.turn(Weather::Fair);
        eventually("it refuses the key", || status(&b, &revoked) == 401);
        assert_eq!(status(&b, &kept), 200);
    }
}

mod after_a_loss {
    use super::*;

    /// A time between Redis' return and the new revocation.
    const REVOKED_AGAIN_WITHIN: Duration = Duration::from_secs(5);

    /// Redis is restored from a dump without the revocation; this is like a fail-over to a replica without it.
    #[test]
    fn a_revocation_that_redis_lost_stays_in_force_and_is_written_again() {
        let (mut redis, upstreams) = (RedisServer::start(), upstreams());
        let a = patient(&redis.url(), &upstreams).start();
        let b = patient(&redis.url(), &upstreams).org(a.org).start();
        eventually("both are linked", || is_linked(&a) && is_linked(&b));
        let (revoked, kept) = (a.live_key(), a.live_key());
        for gateway in [&a, &b] {
            assert_eq!((status(gateway, &revoked), status(gateway, &kept)), (200, 200));
        }
        redis.command(&["SAVE"]);
        a.revoke(&revoked);
        eventually("the other refuses it", || status(&b, &revoked) == 401);

        redis.revive();
        let back = Instant::now();
        // No client presents the key: a gateway that remembers the revocation looks for it.
        let record = format!("{{kg}}:id:{}", revoked.id());
        eventually("it is revoked again", || {
            for gateway in [&a, &b] {
                assert_eq!(status(gateway, &kept), 200);
            }
            redis.command(&["GET", &record]).contains("revoked_at")
        });
        let took = back.elapsed();
        println!("revoked again {took:?} after Redis was back without the revocation");
        assert!(took < lenient(REVOKED_AGAIN_WITHIN), "{took:?}");
        for gateway in [&a, &b] {
            eventually("it is linked", || is_linked(gateway));
            assert_eq!(status(gateway, &revoked), 401);
            assert_eq!(status(gateway, &kept), 200);
        }
        let fresh = patient(&redis.url(), &upstreams).org(a.org).start();
        assert_eq!(status(&fresh, &revoked), 401, "one that remembers nothing");
        assert_eq!(status(&fresh, &kept), 200);
    }

    /// The same while a client presents the key all the time.
    #[test]
    fn a_revoked_key_is_never_accepted_during_a_loss() {
        let (mut redis, upstreams) = (RedisServer::start(), upstreams());
        let gateway = on(&redis.url(), &upstreams).start();
        let revoked = gateway.live_key();
        assert_eq!(status(&gateway, &revoked), 200);
        redis.command(&["SAVE"]);
        gateway.revoke(&revoked);
        let mut wire = gateway.connect();
        let call = request(&revoked.secret);
        redis.kill();
        let record = format!("{{kg}}:id:{}", revoked.id());
        for _ in 0..20 {
            assert_ne!(wire.call(&call).unwrap().status, 200);
        }
        redis.revive();
        eventually("it is revoked again", || {
            assert_ne!(wire.call(&call).unwrap().status, 200);
            redis.command(&["GET", &record]).contains("revoked_at")
        });
        eventually("it is refused for good", || match wire.call(&call).unwrap().status {
            200 => panic!("it is back"),
            status => status == 401,
        });
    }
}

mod without_redis {
    use super::*;

    /// All requests with known keys succeed; unknown keys get 503 in time.
    fn assert_goes_on(what: &str, gateway: &Gateway, known: &[TestKey]) {
        let mut slowest = Duration::ZERO;
        for n in 0..REQUESTS {
            assert_eq!(status(gateway, &known[n % known.len()]), 200, "{what}: a known key");
            if n % 10 == 0 {
                let begun = Instant::now();
                let answer = gateway.fetch(&request(&guess()));
                slowest = slowest.max(begun.elapsed());
                assert_is_unavailable(what, &answer);
            }
        }
        println!("{what}: {REQUESTS} of {REQUESTS} with known keys, 503 after at most {slowest:?}");
        assert!(slowest < lenient(AT_MOST), "{what}: {slowest:?}");
    }

    fn assert_is_unavailable(what: &str, answer: &Answer) {
        assert_eq!(answer.status, 503, "{what}: an unknown key: {}", answer.text());
        let wait: u64 = answer.field("retry-after").unwrap().parse().unwrap();
        assert!(wait > 0, "{what}");
    }

    /// Keys that the gateway has cached.
    fn known_keys(gateway: &Gateway) -> Vec<TestKey> {
        let keys: Vec<TestKey> = (0..8).map(|_| gateway.live_key()).collect();
        for key in &keys {
            eventually("the key is known", || status(gateway, key) == 200);
        }
        keys
    }

    fn assert_recovers(what: &str, gateway: &Gateway, known: &[TestKey]) {
        eventually(&format!("after {what} unknown keys are refused"), || {
            gateway.fetch(&request(&guess())).status == 401
        });
        eventually(&format!("after {what} it is linked"), || is_linked(gateway));
        for key in known {
            eventually("the key works", || status(gateway, key) == 200);
        }
        eventually("keys can be made", || {
            let new = gateway.block_on(gateway.lifecycle().create_org(&operator(), "another"));
            new.is_ok()
        });
    }

    #[test]
    fn with_redis_stopped_known_keys_work_and_unknown_keys_are_503() {
        let (redis, upstreams) = (RedisServer::start(), upstreams());
        let gateway = on(&redis.url(), &upstreams).start();
        let known = known_keys(&gateway);
        redis.signal(Signal::STOP);
        assert_goes_on("stopped", &gateway, &known);
        redis.signal(Signal::CONT);
        assert_recovers("stopped", &gateway, &known);
    }

    #[test]
    fn with_redis_killed_known_keys_work_and_an_empty_redis_is_not_accepted() {
        let (mut redis, upstreams) = (RedisServer::start(), upstreams());
        let gateway = on(&redis.url(), &upstreams).start();
        let known = known_keys(&gateway);
        redis.kill();
        assert_goes_on("killed", &gateway, &known);
        redis.revive();
        eventually("it is seen to be empty", || match gateway.lifecycle().keeper().link_state() {
            LinkState::Down(why) => why.contains("keygate store accept"),
            LinkState::Up => panic!("an empty Redis is no store"),
        });
        assert_goes_on("empty", &gateway, &known);
        assert!(gateway.block_on(gateway.lifecycle().create_org(&operator(), "another")).is_err());
        eventually("the operator accepts it", || {
            gateway.block_on(gateway.lifecycle().keeper().accept(false)).is_ok()
        });
        for key in &known {
            eventually("what it does not have is unknown", || status(&gateway, key) == 401);
        }
        assert_recovers("empty", &gateway, &[]);
    }

    #[test]
    fn with_redis_cut_off_known_keys_work_and_unknown_keys_are_503() {
        let (redis, upstreams) = (RedisServer::start(), upstreams());
        let proxy = Chaos::before(redis.address());
        let gateway = on(&proxy.url(), &upstreams).start();
        let known = known_keys(&gateway);
        for weather in
            [Weather::Cut, Weather::Stalled, Weather::HalfAnswers, Weather::Slow(Duration::from_millis(400))]
        {
            proxy.turn(weather);
            // An answer that was already on its way arrives.
            let _ = gateway.fetch(&request(&guess()));
            let what = format!("{weather:?}");
            assert_goes_on(&what, &gateway, &known);
            proxy.turn(Weather::Fair);
            assert_recovers(&what, &gateway, &known);
        }
    }

    #[test]
    fn many_unknown_keys_at_once_are_all_answered_in_time() {
        let (redis, upstreams) = (RedisServer::start(), upstreams());
        let gateway = on(&redis.url(), &upstreams).start();
        known_keys(&gateway);
        redis.signal(Signal::STOP);
        let address = gateway.address();
        let slowest = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..32)
                .map(|_| {
                    scope.spawn(move || {
                        let mut wire = Wire::connect(address);
                        let calls = (0..20).map(|_| {
                            let begun = Instant::now();
                            let answer = wire.call(&request(&guess())).unwrap();
                            assert_is_unavailable("stopped", &answer);
                            begun.elapsed()
                        });
                        calls.max().unwrap()
                    })
                })
                .collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).max().unwrap()
        });
        redis.signal(Signal::CONT);
        println!("640 unknown keys from 32 connections: 503 after at most {slowest:?}");
        assert!(slowest < lenient(AT_MOST), "{slowest:?}");
    }

    #[test]
    fn a_gateway_starts_and_recovers_by_itself_when_redis_comes() {
        let (redis, upstreams) = (RedisServer::start(), upstreams());
        let first = patient(&redis.url(), &upstreams).start();
        let key = first.live_key();
        let proxy = Chaos::before(redis.address());
        proxy.turn(Weather::Cut);
        let gateway = on(&proxy.url(), &upstreams).org(first.org).start();
        for key in [key.secret.as_str(), &guess()] {
            assert_is_unavailable("not there yet", &gateway.fetch(&request(key)));
        }
        proxy.turn(Weather::Fair);
        eventually("the key works", || status(&gateway, &key) == 200);
        assert_recovers("its start", &gateway, &[key]);
    }

    #[test]
    fn a_gateway_stays_ready_after_its_stores_first_answer() {
        let (mut redis, upstreams) = (RedisServer::start(), upstreams());
        redis.kill();
        let org = keygate::vocabulary::id::OrgId::from_bytes([7; 16]);
        let builder = on(&redis.url(), &upstreams).org(org).settings("[ops]\nlisten = \"127.0.0.1:0\"");
        let gateway = builder.start();
        let ready = || fetch(gateway.ops_address(), &Call::get("/readyz"));
        assert_eq!(ready().status, 503);
        assert_is_unavailable("not ready", &gateway.fetch(&request(&guess())));
        assert!(ready().text().contains("the store has not answered since the start"), "{}", ready().text());
        redis.revive();
        eventually("there is a store", || gateway.block_on(gateway.lifecycle().keeper().begin()).is_ok());
        eventually("it is ready", || ready().status == 200);
        redis.kill();
        eventually("the store is gone", || !is_linked(&gateway));
        assert_is_unavailable("gone", &gateway.fetch(&request(&guess())));
        assert_eq!((ready().status, ready().text().as_str()), (200, "ready\n"));
    }

    #[test]
    fn a_gateway_on_an_empty_redis_calls_no_key_unknown() {
        let (redis, upstreams) = (RedisServer::start(), upstreams());
        let org = keygate::vocabulary::id::OrgId::from_bytes([1; 16]);
        let gateway = patient(&redis.url(), &upstreams).org(org).start();
        for _ in 0..20 {
            assert_is_unavailable("empty", &gateway.fetch(&request(&guess())));
        }
        assert!(gateway.block_on(gateway.lifecycle().create_org(&operator(), "by a request")).is_err());
    }
}

mod command_line {
    use super::*;

    fn run(folder: &Path, arguments: &[&str]) -> Output {
        keygate(folder, arguments).output().unwrap()
    }

    fn said(output: &Output) -> (bool, String, String) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    #[test]
    fn keys_are_created_listed_and_revoked_in_redis_without_a_gateway() {
        let (redis, upstreams, folder) = (RedisServer::start(), upstreams(), tempfile::tempdir().unwrap());
        patient(&redis.url(), &upstreams).write(folder.path());
        let (well, out, _) = said(&run(folder.path(), &["store", "status"]));
        assert!(!well && out.contains("keygate keys create"), "{out}");
        let (done, secret, told) = said(&run(
            folder.path(),
            &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "first"],
        ));
        assert!(done && told.contains("created an empty one"), "{told}");
        let (done, second, told) = said(&run(
            folder.path(),
            &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "second"],
        ));
        assert!(done && !told.contains("created an empty one"), "{told}");
        let (_, list, _) = said(&run(folder.path(), &["keys", "list", "--json"]));
        let org = serde_json::from_str::<serde_json::Value>(list.lines().next().unwrap()).unwrap();
        let org = keygate::vocabulary::id::OrgId::parse(org["organization_id"].as_str().unwrap()).unwrap();
        let gateway = patient(&redis.url(), &upstreams).org(org).start();
        eventually("it is linked", || is_linked(&gateway));
        for secret in [&secret, &second] {
            assert_eq!(gateway.fetch(&request(secret.trim())).status, 200);
        }
        let newest = list.lines().next().unwrap();
        let newest = serde_json::from_str::<serde_json::Value>(newest).unwrap();
        let (done, ..) =
            said(&run(folder.path(), &["keys", "revoke", newest["id"].as_str().unwrap(), "--yes"]));
        assert!(done);
        eventually("the gateway hears of it", || gateway.fetch(&request(second.trim())).status == 401);
        assert_eq!(gateway.fetch(&request(secret.trim())).status, 200);
        let (well, out, _) = said(&run(folder.path(), &["store", "status"]));
        assert!(well && out.contains("fine"), "{out}");
        let names = redis.command(&["KEYS", "{kg}:id:*"]);
        let names: Vec<&str> = names.split("\r\n").filter(|line| line.starts_with('{')).collect();
        assert_eq!(names.len(), 2);
        for name in names {
            let kept = redis.command(&["GET", name]);
            assert!(kept.contains("secrets") && !kept.contains(&secret.trim()[11..40]), "no secret: {kept}");
        }
    }

    #[test]
    fn a_lost_store_is_accepted_through_the_gateway_that_knew_it() {
        let (redis, upstreams, folder) = (RedisServer::start(), upstreams(), tempfile::tempdir().unwrap());
        patient(&redis.url(), &upstreams).settings("[admin]\nsocket = \"keygate.sock\"").write(folder.path());
        let gateway = Process::keygate(folder.path(), &["serve"]);
        gateway.err_line("listening on");
        let (made, _, told) = said(&run(
            folder.path(),
            &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "first"],
        ));
        assert!(made, "{told}");
        gateway.err_line(" event_link_up: ");
        redis.command(&["FLUSHALL"]);
        gateway.err_line("keygate store accept");
        let (well, out, _) = said(&run(folder.path(), &["store", "status"]));
        assert!(!well && out.contains("the store is gone"), "{out}");
        let (made, _, told) = said(&run(
            folder.path(),
            &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "second"],
        ));
        assert!(!made && told.contains("keygate store accept"), "{told}");
        let (accepted, _, told) = said(&run(folder.path(), &["store", "accept"]));
        assert!(!accepted && told.contains("--yes"), "{told}");
        let (accepted, out, told) = said(&run(folder.path(), &["store", "accept", "--yes"]));
        assert!(accepted && out.contains("accepted"), "{out}{told}");
        let (told, out, _) = said(&run(folder.path(), &["audit", "list", "--operator"]));
        assert!(told && out.contains("store.accepted"), "{out}");
        gateway.err_line(" event_link_up: ");
        let (made, _, told) = said(&run(
            folder.path(),
            &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "second"],
        ));
        assert!(made, "{told}");
        let (accepted, out, _) = said(&run(folder.path(), &["store", "accept", "--yes"]));
        assert!(accepted && out.contains("nothing to accept"), "{out}");
    }
}
