//! What one customer's key can cost: operations whose caller has left, taking rights away beside a flood of new keys, and
//! the number of operations that are under way at once.

use std::time::Duration;

use keygate::vocabulary::id::KeyId;
use serde_json::json;

use crate::harness::api::{Api, ApiKey, Kept, json_call, on_both_stores};
use crate::harness::metrics::{scrape, value};
use crate::harness::{Answer, Call, PATIENCE, Valve, Wire, eventually, operator};

on_both_stores! {
    a_creation_whose_caller_has_left_is_not_begun
    a_list_whose_caller_has_left_is_not_read_on
    revoking_overtakes_the_creations_that_wait
    suspending_overtakes_the_creations_that_wait
    no_organisation_waits_for_another
    the_time_of_a_revocation_counts_from_its_arrival
    beyond_its_places_a_key_is_refused_before_its_body_is_read
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
