//! Clocks that are wrong: a gateway whose date is far off erases nothing, ends nothing and hides nothing; and it says so.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use keygate::lifecycle::{Exported, Finding, KeyFilter, Origin};
use keygate::store::finding::Finding as Checked;
use keygate::store::redis::Redis;
use keygate::store::trails::Trimmed;
use keygate::store::{Role, Store};
use keygate::vocabulary::audit::{Entry, Trail, recorded_at};
use keygate::vocabulary::clock::{Clock, UnixMillis};
use keygate::vocabulary::key::record::Sealer;
use serde_json::json;
use tokio::runtime::Handle;

use crate::harness::api::{Api, ApiKey, Kept, json_call};
use crate::harness::desk::NOWHERE;
use crate::harness::metrics::{scrape, value};
use crate::harness::{
    Call, Gateway, GatewayBuilder, RedisServer, Upstream, eventually, fetch, operator, status,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The gateway of the report was 402 days ahead.
const FAR: i64 = 402 * 86_400_000;
const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"\n[audit]\nretention = \"30d\"\n";

fn on(redis: &RedisServer) -> GatewayBuilder {
    let store =
        format!("[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n", redis.url());
    Gateway::builder().settings(OPS).settings(&store).upstream("api", NOWHERE[0], NOWHERE[1])
}

/// Another gateway on the same store, whose date is so far ahead, once it knows that.
fn beside(redis: &RedisServer, gateway: &Gateway, ahead: i64) -> Gateway {
    let other = on(redis).org(gateway.org).wall_ahead(ahead).start();
    eventually("it knows the store's date", || other.clock().ahead_of_store().is_some());
    other
}

fn metric(gateway: &Gateway, series: &str) -> Option<f64> {
    value(&scrape(gateway.ops_address()), series)
}

/// What the gateway says of its parts.
fn verbose(gateway: &Gateway) -> String {
    fetch(gateway.ops_address(), &Call::get("/readyz?verbose")).text()
}

fn is_ahead(gateway: &Gateway, by: i64) -> bool {
    let seconds = metric(gateway, "keygate_clock_ahead_seconds");
    seconds.is_some_and(|seconds| (seconds - by as f64 / 1000.0).abs() < 2.0)
}

fn findings(gateway: &Gateway, trail: Trail, heads: &[Exported]) -> (u64, Vec<Finding>) {
    let verdict = gateway.block_on(gateway.lifecycle().verify_trail(trail, heads)).unwrap();
    (verdict.checked, verdict.findings)
}

#[test]
fn one_gateway_whose_date_is_wrong_erases_no_evidence_in_a_shared_redis() {
    let redis = RedisServer::start();
    let gateway = on(&redis).start();
    for _ in 0..30 {
        gateway.live_key();
    }
    for ahead in [FAR, -FAR, 61_000] {
        let wrong = beside(&redis, &gateway, ahead);
        eventually("it removes nothing", || metric(&wrong, "keygate_audit_trimming_held") == Some(1.0));
        assert!(is_ahead(&wrong, ahead));
        let said = verbose(&wrong);
        let way =
            if ahead > 0 { "ahead of the store's: keys end by" } else { "behind the store's: keys end by" };
        let line =
            said.lines().find(|line| line.starts_with("clock: degraded: the clock of this machine is "));
        assert!(line.is_some_and(|line| line.contains(way)), "{said}");
        assert!(said.starts_with("ready"), "a clock makes no gateway unready: {said}");
        // Nor does it where somebody asks for it.
        let told = wrong.block_on(wrong.lifecycle().trim_trail(&operator(), Trail::Org(gateway.org), DAY));
        assert!(matches!(told, Ok(Trimmed::Held(_))), "{told:?}");
    }
    assert_eq!(findings(&gateway, Trail::Org(gateway.org), &[]), (31, vec![]));
    eventually("the others may", || metric(&gateway, "keygate_audit_trimming_held") == Some(0.0));
    assert!(is_ahead(&gateway, 0));
    let said = verbose(&gateway);
    assert!(said.lines().any(|line| line == "clock: ok"), "{said}");
}

#[test]
fn a_date_that_is_wrong_at_a_start_erases_nothing_of_an_embedded_store() {
    let mut gateway = Gateway::builder().settings(OPS).upstream("api", NOWHERE[0], NOWHERE[1]).start();
    for _ in 0..30 {
        gateway.live_key();
    }
    gateway.step_wall(FAR);
    gateway.restart();
    eventually("it removes nothing", || metric(&gateway, "keygate_audit_trimming_held") == Some(1.0));
    assert!(is_ahead(&gateway, FAR));
    assert_eq!(findings(&gateway, Trail::Org(gateway.org), &[]), (31, vec![]));
    gateway.step_wall(-FAR);
    gateway.restart();
    eventually("it may again", || metric(&gateway, "keygate_audit_trimming_held") == Some(0.0));
    assert_eq!(findings(&gateway, Trail::Org(gateway.org), &[]), (31, vec![]));
}

#[test]
fn verifying_finds_exported_heads_that_were_removed_before_their_time() {
    let kept: Arc<Mutex<Option<Arc<dyn Store>>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let gateway = Gateway::builder()
        .settings(OPS)
        .store(move |store| Arc::clone(keep.lock().unwrap().insert(store)))
        .upstream("api", NOWHERE[0], NOWHERE[1])
        .start();
    let (store, trail) = (kept.lock().unwrap().clone().unwrap(), Trail::Org(gateway.org));
    let exported = || {
        let entries = gateway.block_on(store.trails().entries(trail, None, 99)).unwrap();
        let head = |entry: Entry| Exported { link: entry.link, at: recorded_at(&entry.text) };
        entries.into_iter().map(head).collect::<Vec<_>>()
    };
    for _ in 0..4 {
        gateway.live_key();
    }
    let heads = exported();
    assert_eq!(heads.iter().map(|head| head.link.number).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
    assert!(heads.iter().all(|head| head.at.is_some_and(|at| at <= gateway.now())));
    assert_eq!(findings(&gateway, trail, &heads), (5, vec![]));

    // Rightly: they are old.
    gateway.advance(DAY * 31);
    let trim = |retention| {
        let itself = Origin::gateway();
        gateway.block_on(gateway.lifecycle().trim_trail(&itself, trail, retention)).unwrap()
    };
    assert_eq!(trim(DAY * 30), Trimmed::Removed(5));
    assert_eq!(findings(&gateway, trail, &heads), (1, vec![]));

    // An older release would remove the others where its date is wrong, and say so in a record of that date.
    gateway.live_key();
    let heads = exported();
    gateway.advance(DAY * 402);
    assert_eq!(trim(DAY * 400), Trimmed::Removed(2));
    gateway.step_wall(-FAR);
    let (_, found) = findings(&gateway, trail, &heads);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].number == 7 && found[0].text.contains("was removed before the end of audit.retention"),
        "{found:?}"
    );
    assert!(found[0].text.ends_with("so were 1 more of the exported ones"), "{found:?}");
    // Without times, as older releases export them, nobody can tell.
    let untimed: Vec<Exported> = heads.iter().map(|head| Exported { at: None, ..*head }).collect();
    assert_eq!(findings(&gateway, trail, &untimed).1, []);
}

#[test]
fn a_gateway_whose_date_is_wrong_carries_no_request_out_twice_and_hides_no_use() {
    let api = Api::start(Kept::Redis);
    let (_, root) = api.sign_up("ada@example.com");
    let call = json_call("POST", "/v1/api_keys", &json!({ "name": "one" }));
    let call = call.field("idempotency-key", "n-1").key(&root);
    let first = api.ask(&call);
    let key = ApiKey::of(&first);
    for ahead in [FAR, -FAR] {
        let wrong = api.neighbour_ahead(ahead);
        eventually("it knows the store's date", || wrong.clock().ahead_of_store().is_some());
        let again = wrong.fetch(&call);
        assert_eq!((again.status, again.text()), (200, first.text()));
        // A use through it is noted by the store's date.
        assert_eq!(wrong.fetch(&Call::get("/v1/jobs").key(&key.secret)).status, 200);
        let mut used = None;
        eventually("its use is written down", || {
            wrong.block_on(wrong.lifecycle().write_usage()).unwrap();
            let view = api.get(&root, &key.path()).json();
            used = view["last_used_at"].as_str().map(|at| UnixMillis::parse(at).unwrap());
            used.is_some()
        });
        let used = used.unwrap();
        assert!(used.0.abs_diff(api.gateway.now().0) < 60_000, "{used}");
    }
}

#[test]
fn an_embedded_store_misses_nothing_when_its_machine_sleeps_or_its_date_is_set() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder().settings("[cache]\non_partition = \"refuse\"").api(&live, &test).start();
    let key = gateway.live_key();
    for by in [0, FAR, -FAR, -FAR] {
        gateway.step_wall(by);
        assert_eq!(status(&gateway, &key), 200);
        gateway.advance(DAY);
    }
}

/// The ids of the keys of the gateway's organisation, and of the organisations, as they are listed.
fn listed(gateway: &Gateway) -> (Vec<String>, Vec<String>) {
    let (by, all) = (operator(), KeyFilter::default());
    let keys = gateway.block_on(gateway.lifecycle().find_keys(&by, &all, None, 100));
    let keys = keys.unwrap().keys.into_iter().map(|key| key.id.to_string()).collect();
    let orgs = gateway.block_on(gateway.lifecycle().list_orgs(None, 100)).unwrap();
    (keys, orgs.into_iter().map(|org| org.id.to_string()).collect())
}

fn new_org(gateway: &Gateway) -> String {
    gateway.block_on(gateway.lifecycle().create_org(&operator(), "another")).unwrap().id.to_string()
}

#[test]
fn lists_are_newest_first_whichever_clock_was_ahead() {
    let redis = RedisServer::start();
    let right = on(&redis).start();
    let wrong: Vec<Gateway> = [FAR, 50_000, -50_000, -FAR].map(|ahead| beside(&redis, &right, ahead)).into();
    let (mut keys, mut orgs) = (Vec::new(), vec![right.org.to_string()]);
    for gateway in wrong.iter().chain([&right]).chain(&wrong).chain([&right]) {
        keys.push(gateway.live_key().id().to_string());
        orgs.push(new_org(gateway));
    }
    keys.reverse();
    orgs.reverse();
    assert_eq!(listed(&right), (keys, orgs));
}

#[test]
fn lists_of_an_embedded_store_are_newest_first_when_the_date_was_set_back() {
    let mut gateway = Gateway::builder().upstream("api", NOWHERE[0], NOWHERE[1]).start();
    let (mut keys, mut orgs) = (Vec::new(), vec![gateway.org.to_string()]);
    for by in [FAR, -FAR, -FAR, FAR] {
        gateway.step_wall(by);
        gateway.restart();
        keys.push(gateway.live_key().id().to_string());
        orgs.push(new_org(&gateway));
    }
    keys.reverse();
    orgs.reverse();
    assert_eq!(listed(&gateway), (keys, orgs));
}

#[test]
fn keys_end_by_the_clock_of_the_store_while_the_machine_agrees_within_a_minute() {
    let redis = RedisServer::start();
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let right = on(&redis).start();
    let short = right.expiring_key(Duration::from_secs(30));
    let long = right.expiring_key(Duration::from_secs(3600));
    let starting = |ahead| {
        let store =
            format!("[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n", redis.url());
        let gateway = Gateway::builder().settings(OPS).settings(&store).api(&live, &test);
        let gateway = gateway.org(right.org).wall_ahead(ahead).start();
        eventually("it knows the store's date", || gateway.clock().ahead_of_store().is_some());
        gateway
    };
    let ahead = starting(50_000);
    assert_eq!(status(&ahead, &short), 200, "it has not ended by the clock of Redis");
    assert!(is_ahead(&ahead, 50_000));
    // One of the two is wrong, and nobody can tell which: one wrong Redis must not end every key.
    let far = starting(2 * 3_600_000);
    assert_eq!((status(&far, &short), status(&far, &long)), (401, 401));
    assert_eq!(status(&starting(-2 * 3_600_000), &long), 200);
}

#[tokio::test]
async fn checking_online_tells_of_a_clock_that_is_off() {
    let redis = RedisServer::start();
    for (by, told) in [(0, "in step"), (6500, "ahead of that of Redis"), (-6500, "behind that of Redis")] {
        let (clock, shift) = Clock::shifted();
        shift.step_wall(by);
        let store = Redis::open_at(redis.settings(), Sealer::default(), Handle::current(), clock).unwrap();
        let findings = store.inspect(Role::Full).await;
        let told = |finding: &Checked| match finding {
            Checked::Fine(text) => by == 0 && text.contains(told),
            Checked::Warning(text) => by != 0 && text.contains(told) && text.contains("6s"),
            Checked::Broken(_) => false,
        };
        assert!(findings.iter().any(told), "{findings:?}");
    }
}
