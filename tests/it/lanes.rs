//! What one customer's key can cost: operations whose caller has left, taking rights away beside a flood of new keys, and
//! the number of operations that are under way at once.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use keygate::lifecycle::NewKey;
use keygate::vocabulary::id::{KeyId, OrgId};
use keygate::vocabulary::key::Environment;
use rustix::process::setpriority_process;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::api::{Api, ApiKey, HOUR, Kept, json_call, on_both_stores, sign_up};
use crate::harness::metrics::{scrape, value};
use crate::harness::process::keygate;
use crate::harness::traffic::{Outcome, at_rate, percentile, with_status};
use crate::harness::{
    Answer, Call, Gateway, PATIENCE, Process, RedisServer, Upstream, Valve, Wire, create_key, eventually,
    fetch, is_long, lenient, operator,
};

on_both_stores! {
    a_creation_whose_caller_has_left_is_not_begun
    a_list_whose_caller_has_left_is_not_read_on
    revoking_overtakes_the_creations_that_wait
    a_rotation_overtakes_the_creations_that_wait
    a_rotation_has_places_beside_those_of_creations
    a_narrowing_waits_for_no_other_keys_body
    other_gateways_do_not_keep_rights_from_being_taken_away
    an_operator_looks_through_keys_beside_those_who_wait_for_it
    whoever_waits_to_look_through_keys_does_not_once_the_key_is_dead
    suspending_overtakes_the_creations_that_wait
    no_organisation_waits_for_another
    the_time_of_a_revocation_counts_from_its_arrival
    beyond_its_places_a_key_is_refused_before_its_body_is_read
    an_organisation_has_so_many_live_keys_and_one_key_makes_half_of_them
    an_organisation_makes_600_keys_a_minute
    a_list_reads_what_it_returns
}

const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"\n";
/// Creations that wait for one that the store holds back.
const WAITING: usize = 20;

/// An API whose store holds back what it is told to, and two keys of one organisation.
struct Scene {
    api: Api,
    valve: Valve,
    thief: ApiKey,
    owner: ApiKey,
}

impl Scene {
    #[track_caller]
    fn start(kept: Kept) -> Self {
        let valve = Valve::new();
        let api = Api::builder(kept).settings(OPS).valve(&valve).start();
        let (_, first) = api.sign_up("ada@example.com");
        let (thief, owner) =
            (api.create(&first, &json!({"name":"thief"})), api.create(&first, &json!({"name":"owner"})));
        // From now on they are in the cache.
        assert!(api.works(&thief.secret) && api.works(&owner.secret));
        Self { api, valve, thief, owner }
    }

    /// Sends a call on a connection of its own, and does not wait for its answer.
    fn send(&self, call: &Call) -> Wire {
        let mut wire = self.api.gateway.connect();
        wire.send(&call.to_bytes());
        wire
    }

    fn creation(&self) -> Call {
        json_call("POST", "/v1/api_keys", &json!({"name":"another"})).key(&self.thief.secret)
    }

    /// Gives the thief's key a new secret, in place of the one that it has.
    fn rotation(&self, key: &str) -> Call {
        let path = format!("{}/rotate", self.thief.path());
        json_call("POST", &path, &json!({"overlap_seconds":0})).key(key)
    }

    /// The thief's creations: one that the store holds back, and [`WAITING`] that wait for it.
    #[track_caller]
    fn creations(&self) -> (Wire, Vec<Wire>) {
        let before = self.valve.creations();
        self.valve.hold_back();
        let first = self.send(&self.creation());
        eventually("it comes to be committed", || self.valve.creations() == before + 1);
        let read = self.valve.records_read();
        let waiting: Vec<Wire> = (0..WAITING).map(|_| self.send(&self.creation())).collect();
        // The caller's key and its organisation; then nothing is left but to wait.
        eventually("all wait", || self.valve.records_read() == read + 2 * WAITING);
        (first, waiting)
    }

    /// The number of requests under way, those of this scrape not counted.
    fn in_flight(&self) -> f64 {
        self.metric("keygate_requests_in_flight")
    }

    #[track_caller]
    fn metric(&self, series: &str) -> f64 {
        value(&scrape(self.api.gateway.ops_address()), series).unwrap_or_default()
    }

    /// The number of keys that the organisation has made by itself.
    fn keys(&self) -> usize {
        let trail = self.api.events(&self.owner.secret);
        trail.iter().filter(|event| event["type"] == "key.created").count()
    }
}

fn answers(wires: Vec<Wire>) -> Vec<Answer> {
    wires.into_iter().map(|mut wire| wire.answer().expect("an answer")).collect()
}

#[track_caller]
fn assert_all(answers: &[Answer], status: u16) {
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, vec![status; answers.len()]);
}

fn a_creation_whose_caller_has_left_is_not_begun(kept: Kept) {
    let scene = Scene::start(kept);
    let before = scene.keys();
    let (mut first, waiting) = scene.creations();
    drop(waiting);
    eventually("the gateway has noticed that they left", || scene.in_flight() < 1.5);
    scene.valve.let_go();
    assert_eq!(first.answer().unwrap().status, 200);
    // It comes after all that waited.
    scene.api.create(&scene.owner.secret, &json!({"name":"the last"}));
    assert_eq!(scene.keys() - before, 2, "creations ran after their callers had left");
}

fn a_list_whose_caller_has_left_is_not_read_on(kept: Kept) {
    const LISTS: usize = 10;
    let scene = Scene::start(kept);
    let (asked, read) = (scene.valve.lists(), scene.valve.lists_read());
    scene.valve.hold_back();
    let list = Call::get("/v1/api_keys").key(&scene.thief.secret);
    let waiting: Vec<Wire> = (0..LISTS).map(|_| scene.send(&list)).collect();
    eventually("all have come to the store", || scene.valve.lists() == asked + LISTS);
    drop(waiting);
    eventually("the gateway has noticed that they left", || scene.in_flight() < 0.5);
    scene.valve.let_go();
    assert_eq!(scene.api.keys(&scene.owner.secret).len(), 3);
    assert_eq!(scene.valve.lists_read() - read, 1, "lists were read for callers who had left");
}

fn revoking_overtakes_the_creations_that_wait(kept: Kept) {
    let scene = Scene::start(kept);
    let before = scene.keys();
    let (mut first, waiting) = scene.creations();
    let read = scene.valve.records_read();
    let mut revocation = scene.send(&Call::new("DELETE", &scene.thief.path()).key(&scene.owner.secret));
    // The calling key, its organisation, and the key that is to be revoked.
    eventually("it waits too", || scene.valve.records_read() == read + 3);
    scene.valve.let_go();
    assert_eq!(revocation.answer_to("DELETE").unwrap().status, 204);
    assert_eq!(first.answer().unwrap().status, 200, "it had begun");
    assert_all(&answers(waiting), 401);
    assert_eq!(scene.keys() - before, 1, "creations came before the revocation");
}

/// With no overlap it takes away what a thief has of the key.
fn a_rotation_overtakes_the_creations_that_wait(kept: Kept) {
    let scene = Scene::start(kept);
    let before = scene.keys();
    let (mut first, waiting) = scene.creations();
    let read = scene.valve.records_read();
    let mut rotation = scene.send(&scene.rotation(&scene.owner.secret));
    // The calling key, its organisation, and the key that is to be rotated.
    eventually("it waits too", || scene.valve.records_read() == read + 3);
    scene.valve.let_go();
    assert_eq!(rotation.answer().unwrap().status, 200);
    assert_eq!(first.answer().unwrap().status, 200, "it had begun");
    assert_all(&answers(waiting), 401);
    assert_eq!(scene.keys() - before, 1, "creations came before the rotation");
}

/// Both have the same key, so they share what there is of it.
fn a_rotation_has_places_beside_those_of_creations(kept: Kept) {
    const CREATIONS: usize = 64;
    const ROTATIONS: usize = 64;
    let scene = Scene::start(kept);
    let begun = |call: &Call, count: usize| -> Vec<Wire> {
        let whole = call.to_bytes();
        let head = &whole[..whole.len() - call.body.len()];
        let begin = |_| {
            let mut wire = scene.api.gateway.connect();
            wire.send(head);
            wire
        };
        (0..count).map(begin).collect()
    };
    let refused = |route: &str, count: usize| {
        let series = format!("keygate_rate_limited_total{{route=\"{route}\"}}");
        eventually("one is refused", || scene.metric(&series) > count as f64 - 0.5);
    };
    let creations = begun(&scene.creation(), CREATIONS + 1);
    refused("keys.create", 1);
    let rotation = scene.rotation(&scene.thief.secret);
    let rotated = scene.api.ask(&rotation);
    assert_eq!(rotated.status, 200, "{}", rotated.text());
    assert!(!scene.api.works(&scene.thief.secret), "it ended at once");

    // They are bounded as well.
    let rotations = begun(&scene.rotation(&scene.owner.secret), ROTATIONS + 1);
    refused("keys.rotate", 1);
    let own = scene.api.create(&scene.owner.secret, &json!({"name":"another"}));
    assert_eq!(scene.api.ask(&Call::new("DELETE", &own.path()).key(&scene.owner.secret)).status, 204);
    drop((creations, rotations));
}

/// Those of its organisation, and of all: with and without a length, short and long.
fn a_narrowing_waits_for_no_other_keys_body(kept: Kept) {
    const OF_A_KEY: usize = 8;
    let scene = Scene::start(kept);
    let long = format!("{{\"scopes\":[\"jobs:read\"]{}}}", " ".repeat(8 << 10));
    let chunked = |key: &ApiKey, by: &str| {
        format!(
            "PATCH {} HTTP/1.1\r\nhost: api.example.com\r\nauthorization: Bearer {by}\r\n\
             content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
            key.path()
        )
    };
    let mut slow = Vec::new();
    let mut begin = |head: &str| {
        let mut wire = scene.api.gateway.connect();
        wire.send(head.as_bytes());
        slow.push(wire);
    };
    // The thief has made keys: together they fill every place of the organisation.
    for _ in 0..2 {
        let key = scene.api.create(&scene.thief.secret, &json!({"name":"another"}));
        (0..OF_A_KEY).for_each(|_| {
            begin(&format!(
                "PATCH {} HTTP/1.1\r\nhost: api.example.com\r\nauthorization: Bearer {}\r\n\
                 content-type: application/json\r\ncontent-length: 30\r\n\r\n",
                key.path(),
                key.secret
            ));
        });
    }
    // And organisations: together they fill what all have for long bodies, of which each sends a part.
    for n in 0..4 {
        let (_, first) = scene.api.sign_up(&format!("thief{n}@example.com"));
        for _ in 0..2 {
            let key = scene.api.create(&first, &json!({"name":"another"}));
            (0..OF_A_KEY)
                .for_each(|_| begin(&format!("{}5000\r\n{}", chunked(&key, &key.secret), &long[..5000])));
        }
    }
    eventually("all have begun", || scene.in_flight() > slow.len() as f64 - 0.5);
    let doomed = scene.api.create(&scene.owner.secret, &json!({"name":"doomed"}));
    let narrow =
        scene.api.patch(&scene.owner.secret, &doomed.path(), &json!({"scopes":["jobs:read","jobs:write"]}));
    assert_eq!(narrow.status, 200, "{}", narrow.text());
    let mut wire = scene.api.gateway.connect();
    wire.send(
        format!("{}{:x}\r\n{long}\r\n0\r\n\r\n", chunked(&doomed, &scene.owner.secret), long.len())
            .as_bytes(),
    );
    assert_eq!(wire.answer_to("PATCH").unwrap().status, 200);
}

/// They change the same organisation all the time, and each of their changes comes before this one.
fn other_gateways_do_not_keep_rights_from_being_taken_away(kept: Kept) {
    const OVERTAKEN: usize = 100;
    let scene = Scene::start(kept);
    scene.valve.overtake(OVERTAKEN);
    let refused = scene.api.ask(&scene.creation());
    assert!(refused.refusal(409, "conflict").contains("please retry"), "{}", refused.text());
    scene.valve.overtake(OVERTAKEN);
    let narrowed =
        scene.api.patch(&scene.owner.secret, &scene.thief.path(), &json!({"scopes":["keys:manage"]}));
    assert_eq!((narrowed.status, scene.valve.overtaken()), (200, 0), "{}", narrowed.text());
    scene.valve.overtake(OVERTAKEN);
    let revoked = scene.api.ask(&Call::new("DELETE", &scene.thief.path()).key(&scene.owner.secret));
    assert_eq!((revoked.status, scene.valve.overtaken()), (204, 0), "{}", revoked.text());
}

/// Requests of one key that revoke it with what it made; their number is wrong.
fn wait_to_look(scene: &Scene, count: usize) -> Vec<Wire> {
    let target = format!("{}?descendants=true&expected=7", scene.thief.path());
    let (read, lists) = (scene.valve.records_read(), scene.valve.lists());
    scene.valve.hold_back();
    let waiting: Vec<Wire> =
        (0..count).map(|_| scene.send(&Call::new("DELETE", &target).key(&scene.thief.secret))).collect();
    eventually("one looks", || scene.valve.lists() > lists);
    // Each has read its key and the organisation, and the first one has done so again.
    eventually("the others wait", || scene.valve.records_read() >= read + 2 * count);
    waiting
}

fn an_operator_looks_through_keys_beside_those_who_wait_for_it(kept: Kept) {
    let scene = Scene::start(kept);
    let before = scene.valve.lists();
    let _waiting = wait_to_look(&scene, WAITING);
    let (lifecycle, operator) = (scene.api.gateway.lifecycle(), operator());
    let id = KeyId::parse(&scene.thief.id).unwrap();
    let revoked = scene.api.gateway.block_on(async {
        let revoking = lifecycle.revoke_with_descendants(&operator, id, 0);
        let looks = async {
            let looks = async {
                while scene.valve.lists() < before + 2 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, looks).await.expect("the operator waits for the key's requests");
            scene.valve.let_go();
        };
        tokio::join!(revoking, looks).0
    });
    revoked.unwrap();
    assert!(!scene.api.works(&scene.thief.secret));
}

fn whoever_waits_to_look_through_keys_does_not_once_the_key_is_dead(kept: Kept) {
    let scene = Scene::start(kept);
    let before = scene.valve.lists();
    let waiting = wait_to_look(&scene, WAITING);
    let revoked = scene.api.ask(&Call::new("DELETE", &scene.thief.path()).key(&scene.owner.secret));
    assert_eq!(revoked.status, 204);
    scene.valve.let_go();
    let told: Vec<u16> =
        waiting.into_iter().map(|mut wire| wire.answer_to("DELETE").unwrap().status).collect();
    assert_eq!(told.iter().filter(|status| **status == 401).count(), WAITING - 1, "{told:?}");
    assert_eq!(scene.valve.lists() - before, 1, "keys were looked through for a dead key");
}

fn suspending_overtakes_the_creations_that_wait(kept: Kept) {
    let scene = Scene::start(kept);
    let before = scene.keys();
    let (mut first, waiting) = scene.creations();
    let (lifecycle, operator) = (scene.api.gateway.lifecycle(), operator());
    let id = KeyId::parse(&scene.thief.id).unwrap();
    let org = scene.api.gateway.block_on(lifecycle.key(&operator, id)).unwrap().org;
    scene.api.gateway.block_on(async {
        let suspending = lifecycle.suspend_org(&operator, org);
        // Both are looked at in this order, so it waits before the creation goes on.
        let (suspended, ()) = tokio::join!(biased; suspending, async { scene.valve.let_go() });
        suspended.unwrap();
    });
    assert_eq!(first.answer().unwrap().status, 200, "it had begun");
    assert_all(&answers(waiting), 403);
    scene.api.gateway.block_on(lifecycle.resume_org(&operator, org)).unwrap();
    assert_eq!(scene.keys() - before, 1, "creations came before the suspension");
}

fn no_organisation_waits_for_another(kept: Kept) {
    // Of so many, some would share one of 64 locks with the thief's.
    const ORGANISATIONS: usize = 128;
    let scene = Scene::start(kept);
    let (_first, _waiting) = scene.creations();
    let (lifecycle, operator) = (scene.api.gateway.lifecycle(), operator());
    scene.api.gateway.block_on(async {
        for n in 0..ORGANISATIONS {
            let org = async {
                let org = lifecycle.create_org(&operator, &format!("{n}")).await.unwrap().id;
                lifecycle.suspend_org(&operator, org).await.unwrap();
            };
            tokio::time::timeout(PATIENCE, org).await.expect("an organisation waits for the thief's");
        }
    });
    scene.valve.let_go();
}

fn the_time_of_a_revocation_counts_from_its_arrival(kept: Kept) {
    let scene = Scene::start(kept);
    let (_first, _waiting) = scene.creations();
    let read = scene.valve.records_read();
    let mut revocation = scene.send(&Call::new("DELETE", &scene.thief.path()).key(&scene.owner.secret));
    eventually("it waits", || scene.valve.records_read() == read + 3);
    scene.api.gateway.advance(Duration::from_secs(5));
    scene.valve.let_go();
    let answer = revocation.answer_to("DELETE").unwrap();
    let told = answer.field("keygate-propagation").unwrap();
    let millis: u64 = told.rsplit('=').next().unwrap().parse().unwrap();
    assert!(millis >= 5000, "{told}");
}

fn beyond_its_places_a_key_is_refused_before_its_body_is_read(kept: Kept) {
    const PLACES: usize = 64;
    let scene = Scene::start(kept);
    let whole = scene.creation().to_bytes();
    let (head, body) = whole.split_at(whole.len() - scene.creation().body.len());
    let mut wires: Vec<Wire> = (0..=PLACES)
        .map(|_| {
            let mut wire = scene.api.gateway.connect();
            wire.send(head);
            wire
        })
        .collect();
    let refused = || scene.metric("keygate_rate_limited_total{route=\"keys.create\"}");
    eventually("one is refused", || refused() > 0.5);
    // Other keys of the organisation have their places, and taking rights away has its own.
    let made = scene.api.create(&scene.owner.secret, &json!({"name":"another"}));
    let narrower = scene.api.patch(&scene.thief.secret, &made.path(), &json!({"scopes":["jobs:read"]}));
    assert_eq!(narrower.status, 200, "{}", narrower.text());
    let revoked = scene.api.ask(&Call::new("DELETE", &made.path()).key(&scene.thief.secret));
    assert_eq!(revoked.status, 204, "{}", revoked.text());
    let renamed = scene.api.patch(&scene.thief.secret, &scene.owner.path(), &json!({"name":"mine"}));
    assert_eq!(renamed.refusal(429, "rate_limit_exceeded"), "Too many requests, please retry later");
    assert_eq!(renamed.field("retry-after"), Some("1"));

    wires.iter_mut().for_each(|wire| wire.send(body));
    let answers = answers(wires);
    let with = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((with(200), with(429)), (PLACES, 1));
    assert_eq!(scene.api.post(&scene.thief.secret, "/v1/api_keys", &json!({"name":"later"})).status, 200);
}

fn an_organisation_has_so_many_live_keys_and_one_key_makes_half_of_them(kept: Kept) {
    let api = Api::builder(kept).keys("max_per_org = 6").start();
    let (_, first) = api.sign_up("ada@example.com");
    let new = json!({"name":"a key"});
    let by_first: Vec<ApiKey> = (0..3).map(|_| api.create(&first, &new)).collect();
    let refused = |key: &str| {
        let answer = api.post(key, "/v1/api_keys", &new);
        answer.refusal(409, "conflict")
    };
    assert!(refused(&first).starts_with("This API key has made as many live API keys as one key may make"));
    let by_second: Vec<ApiKey> = (0..2).map(|_| api.create(&by_first[0].secret, &new)).collect();
    // Six with the first one, which signing up has made.
    assert!(
        refused(&by_first[0].secret)
            .starts_with("This organization has as many live API keys as it may have")
    );
    // Everything else goes on, and operators make as many as they like.
    let rotated = api.post(&first, &format!("{}/rotate", by_first[1].path()), &json!({}));
    assert_eq!(rotated.status, 200, "{}", rotated.text());
    let revoke = |key: &ApiKey| api.ask(&Call::new("DELETE", &key.path()).key(&first)).status;
    assert_eq!(revoke(&by_second[0]), 204);
    api.create(&by_first[0].secret, &new);
    assert_eq!(revoke(&by_first[1]), 204);
    // Now the first key has made two that are live.
    let last = api.create(&first, &json!({"name":"soon over","expires_at":in_an_hour(&api)}));
    refused(&by_first[0].secret);
    api.gateway.advance(HOUR);
    assert!(!api.works(&last.secret));
    api.create(&by_first[0].secret, &new);
}

fn in_an_hour(api: &Api) -> String {
    api.gateway.now().plus(HOUR).to_string()
}

fn an_organisation_makes_600_keys_a_minute(kept: Kept) {
    const CLIENTS: usize = 4;
    const PACE: usize = 600;
    let api = Api::builder(kept).keys("max_per_org = 10000").start();
    let (_, first) = api.sign_up("ada@example.com");
    let (_, other) = api.sign_up("bob@example.com");
    let call = |secret: &str| json_call("POST", "/v1/api_keys", &json!({"name":"a key"})).key(secret);
    let client = api.client();
    let create = || (0..(PACE + 20) / CLIENTS).filter(|_| client.ask(&call(&first)).status == 200).count();
    let made: usize = thread::scope(|scope| {
        let create = &create;
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(create)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert_eq!(made, PACE);
    let refused = api.ask(&call(&first));
    assert_eq!(refused.refusal(429, "rate_limit_exceeded"), "Too many requests, please retry later");
    let wait: u64 = refused.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(api.ask(&call(&other)).status, 200, "another organisation has its own");
    api.gateway.advance(Duration::from_secs(wait));
    assert_eq!(api.ask(&call(&first)).status, 200);
}

fn a_list_reads_what_it_returns(kept: Kept) {
    const LIVE_KEYS: usize = 300;
    let valve = Valve::new();
    let api = Api::builder(kept).valve(&valve).start();
    let (_, first) = api.sign_up("ada@example.com");
    let test = api.create(&first, &json!({"name":"a test key","environment":"test"}));
    let org = OrgId::parse(api.get(&first, "/v1/api_keys/self").json()["organization_id"].as_str().unwrap())
        .unwrap();
    api.gateway.block_on(async {
        for n in 0..LIVE_KEYS {
            let new = NewKey::named(org, &format!("{n}"), Environment::Live);
            api.gateway.lifecycle().create_key(&operator(), new).await.unwrap();
        }
    });
    let read = valve.keys_listed();
    assert_eq!(api.keys(&test.secret).len(), 1);
    assert!(valve.keys_listed() - read <= 2, "{} keys were read", valve.keys_listed() - read);
}

/// What others see beside a flood of creations whose clients hang up.
struct Beside {
    floods: usize,
    revocations: Vec<Duration>,
    suspensions: Vec<Duration>,
    alone: Vec<Outcome>,
    others: Vec<Outcome>,
    memory: u64,
}

/// `KEYGATE_LONG=1 cargo test --test it -- lanes::a_flood --nocapture --test-threads 1` runs the long form: 30 s from 60
/// clients.
fn flood(kept: Kept) -> Beside {
    let (span, clients) =
        if is_long() { (Duration::from_secs(30), 60) } else { (Duration::from_millis(1500), 12) };
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let redis = (kept == Kept::Redis).then(RedisServer::start);
    let store = redis.as_ref().map_or_else(
        || "kind = \"embedded\"\npath = \"keygate.redb\"".to_owned(),
        |redis| format!("kind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true", redis.url()),
    );
    let settings = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\nmax_connections_per_client = 4000\n\
         [signup]\nenabled = true\nper_network_and_hour = 1000\n[admin]\nsocket = \"keygate.sock\"\n[store]\n{store}\n"
    );
    let folder = TempDir::new().unwrap();
    Gateway::builder().api(&live, &test).settings(&settings).write(folder.path());
    create_key(folder.path());
    let process = Process::serve(folder.path());
    let address = process.address();
    let sign_up = |email: &str| {
        let answer = fetch(address, &sign_up(email)).json();
        ["organization_id", "api_key"].map(|field| answer[field].as_str().unwrap().to_owned())
    };
    let ([org, owner], [_, neighbour]) = (sign_up("ada@example.com"), sign_up("bob@example.com"));
    let make = |key: &str| ApiKey::of(&fetch(address, &creation(key)));
    let thief = make(&owner);
    let doomed: Vec<ApiKey> = (0..span.as_millis() / 300).map(|_| make(&owner)).collect();

    let others = |span| {
        at_rate(address, 20, span, 2, |n| match n % 2 {
            0 => creation(&neighbour),
            _ => Call::get("/v1/api_keys").key(&neighbour),
        })
    };
    let alone = others(span / 6);
    let begun = Instant::now();
    thread::scope(|scope| {
        let hasty = || hang_up_until(address, &thief.secret, begun + span);
        let floods: Vec<_> = (0..clients).map(|_| scope.spawn(hasty)).collect();
        let beside = scope.spawn(|| others(span));
        let suspending = scope.spawn(|| suspend_until(folder.path(), &org, begun + span));
        let mut revocations = Vec::new();
        for key in &doomed {
            thread::sleep(Duration::from_millis(100));
            let (mut sent, mut status) = (Instant::now(), 0);
            // While the organisation is suspended, nobody is let in.
            while status != 204 {
                sent = Instant::now();
                status = fetch(address, &Call::new("DELETE", &key.path()).key(&owner)).status;
                assert!(matches!(status, 204 | 403), "{status}");
                if status == 403 {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            revocations.push(sent.elapsed());
        }
        let others = beside.join().unwrap();
        let floods = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
        let suspensions = suspending.join().unwrap();
        Beside { floods, revocations, suspensions, alone, others, memory: process.memory("VmHWM:") }
    })
}

fn creation(secret: &str) -> Call {
    json_call("POST", "/v1/api_keys", &json!({"name":"another"})).key(secret)
}

/// Sends creations with 62 kB of body, hangs up 4 ms after each, and counts them.
fn hang_up_until(address: SocketAddr, secret: &str, until: Instant) -> usize {
    // The lowest priority: on a machine of their own, the clients would not compete with the gateway.
    setpriority_process(None, 19).unwrap();
    let mut body = json!({"name":"another"}).to_string();
    body.push_str(&" ".repeat(62_000));
    let call = Call::post("/v1/api_keys", body).key(secret).to_bytes();
    let mut sent = 0;
    while Instant::now() < until {
        if let Ok(mut stream) = TcpStream::connect(address)
            && stream.write_all(&call).is_ok()
        {
            sent += 1;
            thread::sleep(Duration::from_millis(4));
        }
    }
    sent
}

/// Suspends an organisation, and resumes it at once, every two seconds.
fn suspend_until(folder: &Path, org: &str, until: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    let run = |words: &[&str]| {
        let begun = Instant::now();
        let output = keygate(folder, &[&["orgs"], words].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        begun.elapsed()
    };
    while Instant::now() < until {
        thread::sleep(Duration::from_secs(2).min(until.saturating_duration_since(Instant::now())));
        took.push(run(&["suspend", "--yes", org]));
        run(&["resume", org]);
    }
    took
}

#[test]
fn a_flood_of_creations_that_hang_up_costs_nobody_else_anything() {
    const AT_MOST: Duration = Duration::from_millis(500);
    const MEMORY: u64 = 150 << 20;
    for kept in [Kept::Embedded, Kept::Redis] {
        let Beside { floods, mut revocations, mut suspensions, alone, others, memory } = flood(kept);
        revocations.sort_unstable();
        suspensions.sort_unstable();
        let high = |all: &[Duration]| all[(all.len() - 1) * 99 / 100];
        println!(
            "{kept:?}: {floods} creations whose clients hung up; revocations {:.1?}, suspensions {:.1?} (99 %, of {} and {}); \
             another tenant's operations: {:.1?} (50 %), {:.1?} (90 %), alone {:.1?}, {:.1?}; at most {} MiB",
            high(&revocations),
            high(&suspensions),
            revocations.len(),
            suspensions.len(),
            percentile(&others, 50.0),
            percentile(&others, 90.0),
            percentile(&alone, 50.0),
            percentile(&alone, 90.0),
            memory >> 20,
        );
        assert!(high(&revocations) < lenient(AT_MOST) && high(&suspensions) < lenient(AT_MOST));
        assert_eq!(with_status(&others, 200), others.len());
        assert!(percentile(&others, 90.0) < percentile(&alone, 90.0) * 3 + lenient(Duration::ZERO));
        assert!(memory < MEMORY, "{memory}");
    }
}
