//! What a rotation of the pepper leaves as it was: rights that were taken away, addresses that are taken, trails, answers
//! that were given, and what an older release does beside it.

use std::fs;

use keygate::lifecycle::{Lifecycle, LifecycleError};
use keygate::store::keeper::Resealed;
use keygate::vocabulary::audit::Trail;
use keygate::vocabulary::id::OrgId;
use tempfile::TempDir;

use crate::harness::api::{json_call, sign_up};
use crate::harness::desk::write_secret;
use crate::harness::{
    Call, Gateway, GatewayBuilder, RedisServer, TestKey, Upstream, Valve, eventually, is_linked, operator,
    status,
};

const PEPPERS: [&str; 3] = ["first", "second", "third"];

fn builder(redis: Option<&RedisServer>, (live, test): &(Upstream, Upstream)) -> GatewayBuilder {
    let store = redis.map_or_else(String::new, |redis| {
        format!(
            "[store]\nkind = \"redis\"\nurl = \"{}\"\nconnect_timeout = \"10s\"\nlookup_timeout = \"10s\"\n\
             command_timeout = \"10s\"\n",
            redis.url()
        )
    });
    let cache =
        "[cache]\nlookup_timeout = \"10s\"\nnegative_ttl = \"1ms\"\nttl = \"100ms\"\nstale_window = \"0s\"\n";
    let signup = "[signup]\nenabled = true\nper_network_and_hour = 1000\n";
    Gateway::builder().api(live, test).settings(&format!("{store}{cache}{signup}"))
}

/// A gateway with the peppers of these names, the new one first.
fn start(builder: GatewayBuilder, peppers: &[&str]) -> Gateway {
    let folder = TempDir::new().unwrap();
    for pepper in PEPPERS {
        write_secret(
            &folder.path().join(pepper),
            &format!("{pepper} pepper, of at least 32 bytes, for tests"),
        );
    }
    builder.settings(&line(peppers)).start_in(folder)
}

fn line(peppers: &[&str]) -> String {
    format!("[keys]\npepper_files = {peppers:?}")
}

/// Restarts it with other peppers.
fn restart(gateway: &mut Gateway, peppers: &[&str]) {
    let path = gateway.folder().join("keygate.toml");
    let toml = fs::read_to_string(&path).unwrap();
    let names_peppers = |line: &&str| line.starts_with("pepper_files");
    let old = toml.lines().find(names_peppers).unwrap();
    fs::write(&path, toml.replace(old, line(peppers).lines().last().unwrap())).unwrap();
    gateway.restart();
    eventually("it is linked", || is_linked(gateway));
}

fn is_in_force(gateway: &Gateway) -> bool {
    let status = gateway.block_on(gateway.lifecycle().keeper().status());
    status.pepper.is_some_and(|pepper| pepper.next.is_none() && pepper.before.is_some())
}

async fn reseal(lifecycle: &Lifecycle) -> Result<usize, LifecycleError> {
    let (mut after, mut moved) = (None, 0);
    loop {
        let done: Resealed = lifecycle.reseal(&operator(), after).await?;
        moved += done.moved;
        after = done.next;
        if after.is_none() {
            break;
        }
    }
    lifecycle.finish_reseal(&operator()).await?;
    Ok(moved)
}

/// Goes from one pepper to the next, all the way.
fn rotate(gateway: &mut Gateway, from: &str, to: &str) {
    restart(gateway, &[to, from]);
    eventually("the new pepper is in force", || is_in_force(gateway));
    assert!(gateway.block_on(reseal(gateway.lifecycle())).unwrap() > 0);
    restart(gateway, &[to]);
}

fn stores() -> [Option<RedisServer>; 2] {
    [None, Some(RedisServer::start())]
}

const fn place(redis: Option<&RedisServer>) -> &'static str {
    if redis.is_some() { "Redis" } else { "file" }
}

fn upstreams() -> (Upstream, Upstream) {
    (Upstream::start("live"), Upstream::start("test"))
}

fn assert_intact(gateway: &Gateway) {
    for trail in [Trail::Operator, Trail::Org(gateway.org)] {
        let verdict = gateway.block_on(gateway.lifecycle().verify_trail(trail, &[])).unwrap();
        assert_eq!(verdict.findings, [], "{trail}");
    }
}

#[test]
fn keys_outlive_several_rotations_and_revoked_ones_stay_revoked() {
    let upstreams = upstreams();
    for redis in stores() {
        let mut gateway = start(builder(redis.as_ref(), &upstreams), &["first"]);
        let mut keys: Vec<TestKey> = vec![gateway.live_key()];
        let mut revoked = vec![gateway.live_key()];
        gateway.revoke(&revoked[0]);
        for (from, to) in [("first", "second"), ("second", "third"), ("third", "first")] {
            rotate(&mut gateway, from, to);
            assert!(keys.iter().all(|key| status(&gateway, key) == 200), "{to}");
            assert!(revoked.iter().all(|key| status(&gateway, key) == 401), "{to}");
            keys.push(gateway.live_key());
            revoked.push(keys.remove(0));
            gateway.revoke(revoked.last().unwrap());
            keys.push(gateway.live_key());
            assert_intact(&gateway);
        }
        assert!(keys.iter().all(|key| status(&gateway, key) == 200));
        assert!(revoked.iter().all(|key| status(&gateway, key) == 401));
    }
}

#[test]
fn a_revocation_at_the_same_moment_wins() {
    const KEYS: usize = 40;
    let upstreams = upstreams();
    for redis in stores() {
        let mut gateway = start(builder(redis.as_ref(), &upstreams), &["first"]);
        let keys: Vec<TestKey> = (0..KEYS).map(|_| gateway.live_key()).collect();
        restart(&mut gateway, &["second", "first"]);
        eventually("the new pepper is in force", || is_in_force(&gateway));
        assert!(keys.iter().all(|key| status(&gateway, key) == 200));
        let lifecycle = gateway.lifecycle();
        let revoking = async {
            for key in keys.iter().step_by(2) {
                lifecycle.revoke_key(&operator(), key.id()).await.unwrap();
            }
        };
        let (moved, ()) = gateway.block_on(async { tokio::join!(reseal(lifecycle), revoking) });
        moved.unwrap();
        restart(&mut gateway, &["second"]);
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(status(&gateway, key), if n % 2 == 0 { 401 } else { 200 }, "key {n}");
        }
        assert_intact(&gateway);
    }
}

#[test]
fn an_address_stays_taken_at_every_stage_and_a_repeated_request_gets_its_answer() {
    let upstreams = upstreams();
    for redis in stores() {
        let mut gateway = start(builder(redis.as_ref(), &upstreams), &["first"]);
        let signs_up = |gateway: &Gateway, email: &str| gateway.fetch(&sign_up(email)).status;
        let first = gateway.fetch(&sign_up("ada@example.com"));
        let secret = first.json()["api_key"].as_str().unwrap().to_owned();
        let create = || {
            let body = serde_json::json!({ "name": "made once", "scopes": ["jobs:read"] });
            json_call("POST", "/v1/api_keys", &body).key(&secret).field("idempotency-key", "once")
        };
        let made = gateway.fetch(&create()).json();
        restart(&mut gateway, &["second", "first"]);
        eventually("the new pepper is in force", || is_in_force(&gateway));
        let check = |gateway: &Gateway| {
            assert_eq!(signs_up(gateway, "ADA@example.com"), 409);
            assert_eq!(gateway.fetch(&create()).json(), made, "the same secret again");
        };
        check(&gateway);
        assert_eq!(signs_up(&gateway, "bob@example.com"), 200);
        gateway.block_on(reseal(gateway.lifecycle())).unwrap();
        check(&gateway);
        restart(&mut gateway, &["second"]);
        check(&gateway);
        assert_eq!(
            (signs_up(&gateway, "bob@example.com"), signs_up(&gateway, "eve@example.com")),
            (409, 200)
        );
    }
}

#[test]
fn an_address_stays_taken_though_its_organisation_was_changed_before_the_reseal() {
    let upstreams = upstreams();
    for redis in stores() {
        let mut gateway = start(builder(redis.as_ref(), &upstreams), &["first"]);
        let signs_up = |gateway: &Gateway, email: &str| gateway.fetch(&sign_up(email)).status;
        let answer = gateway.fetch(&sign_up("ada@example.com")).json();
        let org = OrgId::parse(answer["organization_id"].as_str().unwrap()).unwrap();
        restart(&mut gateway, &["second", "first"]);
        eventually("the new pepper is in force", || is_in_force(&gateway));
        // Every change seals the record anew, so the reseal has nothing to do there.
        gateway.block_on(gateway.lifecycle().rename_org(&operator(), org, "Another name")).unwrap();
        gateway.block_on(reseal(gateway.lifecycle())).unwrap();
        assert_eq!(signs_up(&gateway, "ada@example.com"), 409, "{}", place(redis.as_ref()));
        restart(&mut gateway, &["second"]);
        assert_eq!(signs_up(&gateway, "ada@example.com"), 409, "{}", place(redis.as_ref()));
    }
}

#[test]
fn one_address_signs_up_once_though_a_new_pepper_comes_into_force_meanwhile() {
    let (redis, upstreams, valve) = (RedisServer::start(), upstreams(), Valve::new());
    let mut other = start(builder(Some(&redis), &upstreams), &["first"]);
    // Its lease holds the new pepper back.
    eventually("it is linked", || is_linked(&other));
    let slow = builder(Some(&redis), &upstreams).org(other.org).store(valve.fitted());
    let slow = start(slow, &["second", "first"]);
    eventually("both are linked", || is_linked(&slow) && is_linked(&other));
    valve.hold_back();
    let mut early = slow.connect();
    early.send(&sign_up("ada@example.com").to_bytes());
    eventually("it comes to be committed", || valve.signups() == 1);
    restart(&mut other, &["second", "first"]);
    eventually("the new pepper is in force", || is_in_force(&slow) && is_in_force(&other));
    assert_eq!(other.fetch(&sign_up("ada@example.com")).status, 200);
    valve.let_go();
    assert_eq!(early.answer().unwrap().status, 409, "it was decided under the pepper before");
}

#[test]
fn a_reseal_that_was_broken_off_goes_on_and_does_not_finish_before_all_is_moved() {
    let upstreams = upstreams();
    for redis in stores() {
        let mut gateway = start(builder(redis.as_ref(), &upstreams), &["first"]);
        let secrets = gateway.keys_at_once(300);
        restart(&mut gateway, &["second", "first"]);
        eventually("the new pepper is in force", || is_in_force(&gateway));
        let lifecycle = gateway.lifecycle();
        let first = gateway.block_on(lifecycle.reseal(&operator(), None)).unwrap();
        assert!(first.moved > 0 && first.next.is_some(), "{first:?}");
        assert!(gateway.block_on(lifecycle.finish_reseal(&operator())).is_err(), "not all is moved");
        let rest = gateway.block_on(reseal(lifecycle)).unwrap();
        // 300 keys and an organisation.
        assert_eq!(first.moved + rest, 301);
        assert_eq!(gateway.block_on(reseal(lifecycle)).unwrap(), 0);
        restart(&mut gateway, &["second"]);
        for secret in secrets.iter().step_by(50) {
            assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(secret)).status, 200);
        }
    }
}

#[test]
fn a_new_pepper_waits_for_every_gateway_and_for_those_of_an_older_release() {
    let (redis, upstreams) = (RedisServer::start(), upstreams());
    let mut a = start(builder(Some(&redis), &upstreams), &["first"]);
    let mut b = start(builder(Some(&redis), &upstreams).org(a.org), &["first"]);
    eventually("both are linked", || is_linked(&a) && is_linked(&b));
    restart(&mut a, &["second", "first"]);
    let by_a = a.live_key();
    assert_eq!((status(&a, &by_a), status(&b, &by_a)), (200, 200), "it is under the pepper that both have");
    assert!(!is_in_force(&a));
    // A lease of a gateway that announces no peppers.
    redis.command(&["SADD", "{kg}:gateways", "older"]);
    redis.command(&["SET", "{kg}:gateway:older", "0", "EX", "1000"]);
    restart(&mut b, &["second", "first"]);
    let by_b = b.live_key();
    assert_eq!((status(&a, &by_b), status(&b, &by_b)), (200, 200));
    assert!(!is_in_force(&a) && !is_in_force(&b));
    assert_eq!(
        redis.command(&["HGET", "{kg}:meta", "format"]).lines().last(),
        Some("2"),
        "it can still join"
    );
    redis.command(&["DEL", "{kg}:gateway:older"]);
    eventually("the new pepper is in force", || is_in_force(&a) && is_in_force(&b));
    let format = redis.command(&["HGET", "{kg}:meta", "format"]);
    assert_eq!(format.lines().last(), Some("4"), "from now on an older release cannot join");
    let later = a.live_key();
    for key in [&by_a, &by_b, &later] {
        assert_eq!((status(&a, key), status(&b, key)), (200, 200));
    }
}

#[test]
fn whoever_has_only_the_old_pepper_can_neither_make_a_record_nor_go_on_with_a_trail() {
    let (redis, upstreams) = (RedisServer::start(), upstreams());
    let mut gateway = start(builder(Some(&redis), &upstreams), &["first"]);
    let (key, other) = (gateway.live_key(), gateway.live_key());
    let name = format!("{{kg}}:id:{}", key.id());
    let copy = |from: &str, to: &str| redis.command(&["COPY", from, to, "REPLACE"]);
    copy(&name, "{kg}:saved");
    let ends = format!("{{kg}}:audit:{}:ends", gateway.org);
    let entries = format!("{{kg}}:audit:{}", gateway.org);
    copy(&ends, "{kg}:saved-ends");
    copy(&entries, "{kg}:saved-entries");
    rotate(&mut gateway, "first", "second");
    assert_eq!((status(&gateway, &key), status(&gateway, &other)), (200, 200));
    assert_intact(&gateway);
    // What somebody could write who has the old pepper: records and entries as they were under it.
    copy("{kg}:saved", &name);
    copy("{kg}:saved-ends", &ends);
    copy("{kg}:saved-entries", &entries);
    eventually("its cached record has ended", || status(&gateway, &key) == 503);
    assert_eq!(status(&gateway, &other), 200);
    let verdict = gateway.block_on(gateway.lifecycle().verify_trail(Trail::Org(gateway.org), &[])).unwrap();
    assert!(
        verdict.findings.iter().any(|finding| finding.text.contains("under an older key")),
        "{verdict:?}"
    );
}
