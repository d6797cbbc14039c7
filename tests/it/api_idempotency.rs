//! A repeated request with the same idempotency key creates one thing, and gets the same answer. If a client
//! disconnects, either the whole change was made, or nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::api::{
    Api, ApiKey, Client, HOUR, Kept, at_once, json_call, on_both_stores, refused, wrong_fields,
};
use crate::harness::{Answer, Call, hang_up};

on_both_stores! {
    the_same_request_gets_the_same_answer_for_a_day
    another_request_under_the_same_name_is_409
    a_name_is_its_callers_own
    a_restart_forgets_no_answer
    of_64_at_once_one_is_carried_out
    a_refusal_is_not_kept
    a_kept_answer_is_given_whatever_the_request_would_be_told_now
    a_caller_that_died_gets_no_kept_answer
    a_caller_that_was_narrowed_gets_no_kept_secret_that_it_could_not_get_now
    a_secret_that_was_rotated_out_gets_no_kept_secret_but_that_of_its_own_rotation
    a_client_that_hangs_up_leaves_all_or_nothing
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const HANG_UPS: usize = 40;

fn named(call: Call, name: &str, key: &str) -> Call {
    call.field("idempotency-key", name).key(key)
}

fn create(body: &str) -> Call {
    Call::post("/v1/api_keys", body)
}

fn rotate(key: &ApiKey, body: &str) -> Call {
    Call::post(&format!("{}/rotate", key.path()), body)
}

#[track_caller]
fn assert_same(first: &Answer, again: &Answer) {
    assert_eq!((first.status, again.status), (200, 200), "{} {}", first.text(), again.text());
    assert_eq!(first.text(), again.text());
    assert_ne!(first.field("x-request-id"), again.field("x-request-id"), "each request has its own");
}

fn the_same_request_gets_the_same_answer_for_a_day(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let call = named(create(r#"{"name":"a key"}"#), "n-1", &root);
    let first = api.ask(&call);
    let key = ApiKey::of(&first);
    assert_same(&first, &api.ask(&call));
    let turn = named(rotate(&key, r#"{"overlap_seconds":0}"#), "n-2", &root);
    let rotated = api.ask(&turn);
    assert_same(&rotated, &api.ask(&turn));
    assert!(api.works(&ApiKey::of(&rotated).secret));
    assert_eq!(api.keys(&root).len(), 2, "one was made");
    assert_eq!(api.events(&root).len(), 3, "and rotated once");
    // The repeat gets the first answer, also after changes of the key.
    assert_eq!(api.ask(&Call::new("DELETE", &key.path()).key(&root)).status, 204);
    api.gateway.advance(DAY - HOUR);
    assert_same(&first, &api.ask(&call));
    assert_same(&rotated, &api.ask(&turn));
    api.gateway.advance(HOUR);
    let fresh = api.ask(&call);
    assert_ne!(ApiKey::of(&fresh).id, key.id, "a day later it is another request");
    assert_same(&fresh, &api.ask(&call));
    refused(&api.ask(&turn), 409, "conflict");
    assert_eq!(api.keys(&root).len(), 3);
}

fn another_request_under_the_same_name_is_409(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let first = api.ask(&named(create(r#"{"name":"a key"}"#), "n", &root));
    let (key, other) = (ApiKey::of(&first), api.create(&root, &json!({ "name": "other" })));
    let before = (api.keys(&root), api.events(&root));
    for call in [
        create(r#"{"name":"another"}"#),
        create(r#"{"name": "a key"}"#),
        create(r#"{"name":""}"#),
        create("no body at all"),
        rotate(&key, r#"{"name":"a key"}"#),
        rotate(&key, ""),
    ] {
        refused(&api.ask(&named(call, "n", &root)), 409, "idempotency_error");
    }
    let turned = named(rotate(&other, ""), "m", &root);
    assert_eq!(api.ask(&turned).status, 200);
    refused(&api.ask(&named(rotate(&key, ""), "m", &root)), 409, "idempotency_error");
    refused(&api.ask(&named(rotate(&other, "{}"), "m", &root)), 409, "idempotency_error");
    assert_eq!(api.keys(&root).len(), before.0.len());
    assert_eq!(api.events(&root).len(), before.1.len() + 1);
    assert_same(&first, &api.ask(&named(create(r#"{"name":"a key"}"#), "n", &root)));
}

fn a_name_is_its_callers_own(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let (_, stranger) = api.sign_up("eve@example.com");
    let colleague = api.create(&root, &json!({ "name": "colleague" })).secret;
    let mut made = BTreeSet::new();
    for caller in [&root, &stranger, &colleague] {
        let call = named(create(r#"{"name":"a key"}"#), "n", caller);
        let first = api.ask(&call);
        assert!(made.insert(ApiKey::of(&first).secret));
        assert_same(&first, &api.ask(&call));
    }
    assert_eq!((api.keys(&root).len(), api.keys(&stranger).len()), (4, 2));
}

fn a_restart_forgets_no_answer(kept: Kept) {
    let mut api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let call = named(create(r#"{"name":"a key"}"#), "n", &root);
    let first = api.ask(&call);
    api.gateway.restart();
    assert_same(&first, &api.ask(&call));
    refused(&api.ask(&named(create("{\"name\":\"b\"}"), "n", &root)), 409, "idempotency_error");
    assert!(api.works(&ApiKey::of(&first).secret));
    assert_eq!((api.keys(&root).len(), api.events(&root).len()), (2, 2));
}

fn of_64_at_once_one_is_carried_out(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let calls = vec![named(create(r#"{"name":"a key"}"#), "n", &root); 64];
    let answers = at_once(&[api.client()], &calls);
    let secrets: BTreeSet<String> = answers.iter().map(|answer| ApiKey::of(answer).secret).collect();
    assert_eq!(secrets.len(), 1);
    assert!(answers.iter().all(|answer| answer.body == answers[0].body));
    assert_eq!((api.keys(&root).len(), api.events(&root).len()), (2, 2));
    let key = ApiKey::of(&answers[0]);
    let turns = vec![named(rotate(&key, ""), "m", &root); 64];
    let answers = at_once(&[api.client()], &turns);
    assert!(answers.iter().all(|answer| answer.body == answers[0].body));
    assert!(api.works(&key.secret), "rotated once: the old secret is the one before");
    assert_eq!(api.events(&root).len(), 3);
}

#[test]
fn one_of_64_concurrent_repeats_at_two_gateways_is_executed() {
    let api = Api::start(Kept::Redis);
    let neighbour = api.neighbour();
    let clients = [api.client(), Client::of(&neighbour)];
    for round in 0..5 {
        let (_, root) = api.sign_up(&format!("ada{round}@example.com"));
        let creations = vec![named(create(r#"{"name":"a key"}"#), "n", &root); 64];
        let answers = at_once(&clients, &creations);
        let key = ApiKey::of(&answers[0]);
        assert!(answers.iter().all(|answer| answer.body == answers[0].body));
        let rotations = vec![named(rotate(&key, ""), "m", &root); 64];
        let answers = at_once(&clients, &rotations);
        let rotated = ApiKey::of(&answers[0]);
        assert!(answers.iter().all(|answer| answer.body == answers[0].body));
        assert!(api.works(&rotated.secret) && api.works(&key.secret));
        assert_eq!((api.keys(&root).len(), api.events(&root).len()), (2, 3));
    }
}

#[test]
fn all_of_64_concurrent_different_requests_at_two_gateways_are_executed() {
    let api = Api::start(Kept::Redis);
    let neighbour = api.neighbour();
    let (_, root) = api.sign_up("ada@example.com");
    let creations: Vec<Call> = (0..64).map(|n| create(&format!("{{\"name\":\"{n}\"}}")).key(&root)).collect();
    let answers = at_once(&[api.client(), Client::of(&neighbour)], &creations);
    let made: BTreeSet<String> = answers.iter().map(|answer| ApiKey::of(answer).id).collect();
    assert_eq!((made.len(), api.keys(&root).len(), api.events(&root).len()), (64, 65, 65));
}

fn a_refusal_is_not_kept(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let weak = api.create(&root, &json!({ "name": "weak", "scopes": ["keys:manage"] }));
    let call = named(create(r#"{"name":"a key","scopes":["jobs:read"]}"#), "n", &weak.secret);
    refused(&api.ask(&call), 403, "authorization_error");
    refused(&api.ask(&named(create(r#"{"name":""}"#), "n", &weak.secret)), 400, "validation_error");
    assert_eq!(api.ask(&named(create(r#"{"name":"a key"}"#), "n", &weak.secret)).status, 200);
}

fn a_kept_answer_is_given_whatever_the_request_would_be_told_now(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let end = api.gateway.now().plus(HOUR).to_string();
    let call = named(create(&json!({ "name": "short", "expires_at": end }).to_string()), "n", &root);
    let first = api.ask(&call);
    api.gateway.advance(2 * HOUR);
    assert_same(&first, &api.ask(&call));
    let now = create(&json!({ "name": "short", "expires_at": end }).to_string()).key(&root);
    refused(&api.ask(&now), 400, "validation_error");
}

fn a_caller_that_died_gets_no_kept_answer(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let caller = api.create(&root, &json!({ "name": "caller" }));
    let call = named(create(r#"{"name":"a key"}"#), "n", &caller.secret);
    assert_eq!(api.ask(&call).status, 200);
    assert_eq!(api.ask(&Call::new("DELETE", &caller.path()).key(&root)).status, 204);
    refused(&api.ask(&call), 401, "authentication_error");
}

/// A key that may manage others and has more scopes, and an answer with a secret that is kept for it.
fn a_caller_that_was_narrowed_gets_no_kept_secret_that_it_could_not_get_now(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let scopes = json!(["keys:manage", "jobs:read", "jobs:write"]);
    let soon = api.gateway.now().plus(HOUR).to_string();
    let fewer = json!({ "scopes": ["keys:manage", "jobs:read"] });
    for (narrower, same_for_the_other) in [
        (fewer, Some(json!({ "scopes": ["jobs:read"] }))),
        (json!({ "expires_at": soon }), Some(json!({ "expires_at": soon }))),
        (
            json!({ "allowed_addresses": ["127.0.0.0/8"] }),
            Some(json!({ "allowed_addresses": ["127.0.0.1"] })),
        ),
        (json!({ "scopes": ["jobs:read"] }), None),
    ] {
        let caller = api.create(&root, &json!({ "name": "caller", "scopes": scopes }));
        let target = api.create(&root, &json!({ "name": "target", "scopes": scopes }));
        let creation = named(create(r#"{"name":"a key"}"#), "n", &caller.secret);
        let made = api.ask(&creation);
        let rotation = named(rotate(&target, ""), "m", &caller.secret);
        let rotated = api.ask(&rotation);
        for (call, first) in [(&creation, &made), (&rotation, &rotated)] {
            assert_same(first, &api.ask(call));
        }
        assert_eq!(api.patch(&root, &caller.path(), &narrower).status, 200);
        for call in [&creation, &rotation] {
            let answer = api.ask(call);
            refused(&answer, 403, "authorization_error");
            assert!(!answer.text().contains("fh_live_sk_"));
        }
        // Another body is still another request.
        let other = named(create(r#"{"name":"b"}"#), "n", &caller.secret);
        let status = api.ask(&other).status;
        assert_eq!(status, if same_for_the_other.is_some() { 409 } else { 403 });
        // The answers stay: once the keys have no more than the caller, it may have their secrets again.
        let Some(narrower) = same_for_the_other else { continue };
        for (key, call, first) in [(ApiKey::of(&made), &creation, &made), (target, &rotation, &rotated)] {
            assert_eq!(api.patch(&root, &key.path(), &narrower).status, 200);
            assert_same(first, &api.ask(call));
        }
    }
    assert_eq!(api.events_of(&root, "escalation.refused", 6).len(), 6, "each attempt is told of");
}

fn a_secret_that_was_rotated_out_gets_no_kept_secret_but_that_of_its_own_rotation(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let caller = api.create(&root, &json!({ "name": "caller" }));
    let other = api.create(&root, &json!({ "name": "other" }));
    let creation = named(create(r#"{"name":"a key"}"#), "n", &caller.secret);
    let rotation = named(rotate(&other, ""), "m", &caller.secret);
    let (made, _) = (api.ask(&creation), api.ask(&rotation));
    assert_same(&made, &api.ask(&creation));
    let own = named(rotate(&caller, ""), "own", &caller.secret);
    let first = api.ask(&own);
    let end = first.json()["old_secret_ends_at"].as_str().unwrap().to_owned();
    for call in [&creation, &rotation] {
        let answer = api.ask(call);
        refused(&answer, 403, "authorization_error");
        assert!(answer.text().contains(&end) && !answer.text().contains("fh_live_sk_"), "{}", answer.text());
    }
    // Its client may have lost the answer, and has no other way to the new secret.
    for _ in 0..2 {
        assert_same(&first, &api.ask(&own));
    }
    refused(&api.ask(&named(rotate(&caller, ""), "again", &caller.secret)), 403, "authorization_error");
    // With another rotation the old secret is dead, and the new one has an end.
    let second = api.ask(&named(rotate(&caller, ""), "own", &ApiKey::of(&first).secret));
    assert_same(&second, &api.ask(&named(rotate(&caller, ""), "own", &ApiKey::of(&first).secret)));
    refused(&api.ask(&own), 401, "authentication_error");
    // Of many at once one is carried out, and all are answered, although the first gives their secret an end.
    let turns = vec![named(rotate(&caller, ""), "race", &ApiKey::of(&second).secret); 16];
    let answers = at_once(&[api.client()], &turns);
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == answers[0].body));
}

#[test]
fn an_idempotency_key_is_sent_once_and_has_1_to_255_bytes() {
    let api = Api::start(Kept::Embedded);
    let (_, root) = api.sign_up("ada@example.com");
    let key = api.create(&root, &json!({ "name": "a key" }));
    for call in [create(r#"{"name":"x"}"#), rotate(&key, "")] {
        for names in [&[""][..], &["a", "a"], &["a", "b"], &["x"; 256].map(|_| "")[..2], &[&"x".repeat(256)]]
        {
            let named =
                names.iter().fold(call.clone().key(&root), |call, name| call.field("idempotency-key", name));
            assert_eq!(wrong_fields(&api.ask(&named)), ["Idempotency-Key"], "{names:?}");
        }
    }
    for (number, name) in [&"x".repeat(255), "a, b", "\u{e9}"].into_iter().enumerate() {
        assert_eq!(api.ask(&named(create(r#"{"name":"x"}"#), name, &root)).status, 200, "{number}");
    }
    // The header has no effect on operations that create nothing.
    let revoke = named(Call::post(&format!("{}/revoke", key.path()), ""), "n", &root);
    assert_eq!([api.ask(&revoke).status, api.ask(&revoke).status], [204, 204]);
}

fn a_client_that_hangs_up_leaves_all_or_nothing(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let mut names = Vec::new();
    for number in 0..HANG_UPS {
        let name = format!("left {number}");
        let bytes = json_call("POST", "/v1/api_keys", &json!({ "name": name })).key(&root).to_bytes();
        let mut wire = api.gateway.connect();
        // The client disconnects before, right after, or some time after the end of its request.
        let said = if number % 4 == 0 { bytes.len() - 1 } else { bytes.len() };
        wire.send(&bytes[..said]);
        (0..number * 50).for_each(|_| std::thread::yield_now());
        hang_up(&wire).unwrap();
        names.push((name, said == bytes.len()));
    }
    // A later event of the same trail comes after all of theirs that have finished.
    let mut keys = Vec::new();
    crate::harness::eventually("every creation has ended one way or the other", || {
        let before = api.keys(&root).len();
        api.create(&root, &json!({ "name": "a marker" }));
        keys = api.keys(&root);
        keys.len() == before + 1
    });
    let text = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();
    let events = api.pages(&root, "/v1/audit_events?limit=100&type=key.created");
    let told: BTreeSet<String> = events.iter().map(|event| text(event, "target")).collect();
    let made: BTreeSet<String> =
        keys.iter().filter(|key| key["created_by"] != "signup").map(|key| text(key, "id")).collect();
    assert_eq!(told, made, "the trail tells of what is there and of nothing else");
    assert_eq!(events.len(), told.len());
    for (name, whole) in names {
        let count = keys.iter().filter(|key| key["name"] == json!(name)).count();
        assert!(count <= usize::from(whole), "{name} is there {count} times");
    }
}
