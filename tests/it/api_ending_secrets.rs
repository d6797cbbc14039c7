//! A secret that was rotated out, until it ends: it can revoke, and neither rotate nor make nor change anything. So
//! whoever has a stolen secret cannot take the key over once the owner has rotated it, and where the thief rotated
//! first, the owner can still end the key and everything that was made with it.
//!
//! `KEYGATE_LONG=1 cargo test --test it api_ending_secrets:: -- --nocapture` runs 200 races and not 4.

#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::sync::{Barrier, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::harness::api::{
    Api, ApiKey, Client, HOUR, Kept, at_once, json_call, on_both_stores, refused, wrong_fields,
};
use crate::harness::{Answer, Call, is_long};

on_both_stores! {
    a_secret_that_was_rotated_out_makes_rotates_and_changes_nothing
    a_secret_that_was_rotated_out_still_revokes
    of_an_owner_and_thieves_who_race_to_rotate_one_wins_and_the_others_can_only_revoke
    a_key_that_expires_makes_nothing_that_lives_longer
    what_a_key_made_is_revoked_with_it_where_its_number_is_right
    a_test_key_revokes_what_it_made
    keys_that_are_made_while_their_ancestor_is_revoked_die_with_it
}

fn create(body: &Value) -> Call {
    json_call("POST", "/v1/api_keys", body)
}

fn rotate(key: &ApiKey) -> Call {
    Call::post(&format!("{}/rotate", key.path()), "")
}

/// The calling key itself.
#[track_caller]
fn own(api: &Api, secret: &str) -> ApiKey {
    let id = api.get(secret, "/v1/api_keys/self").json()["id"].as_str().unwrap().to_owned();
    ApiKey { id, secret: secret.to_owned() }
}

/// Revokes a key together with the keys that it made, if there are `expected` of them.
fn revoke_all(key: &ApiKey, expected: usize) -> Call {
    Call::new("DELETE", &format!("{}?descendants=true&expected={expected}", key.path()))
}

fn message(answer: &Answer) -> String {
    answer.json()["error"]["message"].as_str().unwrap().to_owned()
}

/// The first number in a message.
fn number(message: &str) -> usize {
    let digits = message.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty());
    digits.unwrap_or_else(|| panic!("no number: {message}")).parse().unwrap()
}

fn a_secret_that_was_rotated_out_makes_rotates_and_changes_nothing(kept: Kept) {
    let api = Api::start(kept);
    let (_, stolen) = api.sign_up("ada@example.com");
    let key = own(&api, &stolen);
    let other = api.create(&stolen, &json!({ "name": "other" }));
    let rotated = ApiKey::of(&api.ask(&rotate(&key).key(&stolen)));
    let end = api.get(&rotated.secret, &key.path()).json()["old_secret_ends_at"].as_str().unwrap().to_owned();
    let soon = api.gateway.now().plus(HOUR).to_string();
    let patch = |key: &ApiKey, body: Value| json_call("PATCH", &key.path(), &body);
    let attempts = [
        rotate(&key),
        Call::post(&format!("{}/rotate", key.path()), r#"{"overlap_seconds":0}"#),
        rotate(&other),
        create(&json!({ "name": "without an end" })),
        create(&json!({ "name": "with one", "expires_at": soon })),
        create(&json!({ "name": "test", "environment": "test", "scopes": ["jobs:read"] })),
        patch(&other, json!({ "scopes": ["jobs:read"] })),
        patch(&key, json!({ "name": "mine" })),
        patch(&key, json!({ "allowed_addresses": ["127.0.0.1"] })),
    ];
    let before = api.keys(&rotated.secret).len();
    for (count, call) in attempts.iter().enumerate() {
        let answer = api.ask(&call.clone().key(&stolen));
        assert_eq!(answer.status, 403, "{call:?}: {}", answer.text());
        refused(&answer, 403, "authorization_error");
        assert!(message(&answer).contains(&end), "it says when the secret ends, {end}: {}", answer.text());
        let told = &api.events_of(&rotated.secret, "escalation.refused", count + 1)[0];
        assert_eq!(told["actor"]["id"], json!(key.id));
        assert_eq!(told["after"], json!({ "escalation": "secret_ending" }));
    }
    assert_eq!(api.keys(&rotated.secret).len(), before, "nothing was made");
    assert!(api.works(&rotated.secret), "the owner's new secret lives");
    assert!(api.works(&stolen), "and the old one during the overlap");
    assert_eq!(api.get(&stolen, &key.path()).json()["name"], "Default", "nothing was changed");
    assert!(api.works(&other.secret));
    // The new secret may do all of this, and rotating comes last: it gives this secret an end too.
    for call in attempts[2..].iter().chain([&attempts[1]]) {
        let answer = api.ask(&call.clone().key(&rotated.secret));
        assert_eq!(answer.status, 200, "{call:?}: {}", answer.text());
    }
}

fn a_secret_that_was_rotated_out_still_revokes(kept: Kept) {
    let api = Api::start(kept);
    let (_, secret) = api.sign_up("ada@example.com");
    let key = own(&api, &secret);
    // The thief was first: the owner is left with the old secret.
    let thiefs = ApiKey::of(&api.ask(&rotate(&key).key(&secret)));
    let child = api.create(&thiefs.secret, &json!({ "name": "a way back" }));
    let grandchild = api.create(&child.secret, &json!({ "name": "another" }));
    refused(&api.ask(&rotate(&key).key(&secret)), 403, "authorization_error");
    assert_eq!(api.ask(&revoke_all(&key, 2).key(&secret)).status, 204);
    for dead in [&secret, &thiefs.secret, &child.secret, &grandchild.secret] {
        assert!(!api.works(dead));
    }
}

fn of_an_owner_and_thieves_who_race_to_rotate_one_wins_and_the_others_can_only_revoke(kept: Kept) {
    let api = Api::start(kept);
    let neighbour = (kept == Kept::Redis).then(|| api.neighbour());
    let clients: Vec<Client> =
        std::iter::once(api.client()).chain(neighbour.as_ref().map(Client::of)).collect();
    let (rounds, racers) = if is_long() { (200, 8) } else { (4, 8) };
    let (mut won, mut lost) = (0, 0);
    for round in 0..rounds {
        let (_, secret) = api.sign_up(&format!("ada{round}@example.com"));
        let key = own(&api, &secret);
        let answers = at_once(&clients, &vec![rotate(&key).key(&secret); racers]);
        let (winners, losers): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
        assert_eq!(winners.len(), 1, "of {racers} in round {round}");
        losers.iter().for_each(|answer| drop(refused(answer, 403, "authorization_error")));
        (won, lost) = (won + winners.len(), lost + losers.len());
        let winner = ApiKey::of(winners[0]).secret;
        assert!(api.works(&winner) && api.works(&secret));
        let child = api.create(&winner, &json!({ "name": "a child" }));
        // Whoever lost still ends it, with what was made.
        assert_eq!(api.ask(&revoke_all(&key, 1).key(&secret)).status, 204);
        assert!(![&winner, &secret, &child.secret].into_iter().any(|secret| api.works(secret)));
    }
    println!("{rounds} races on {kept:?}: {won} rotations, {lost} refusals");
}

fn a_key_that_expires_makes_nothing_that_lives_longer(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let end = api.gateway.now().plus(HOUR).to_string();
    let short = api.create(&root, &json!({ "name": "short", "expires_at": end }));
    let lasting = api.create(&root, &json!({ "name": "lasting" }));
    let child = api.create(&short.secret, &json!({ "name": "says nothing of its end" }));
    let shown = |key: &ApiKey| api.get(&root, &key.path()).json()["expires_at"].clone();
    assert_eq!(shown(&child), json!(end));
    let rotated = ApiKey::of(&api.ask(&rotate(&short).key(&short.secret)));
    assert_eq!(shown(&rotated), json!(end));
    refused(&api.ask(&rotate(&lasting).key(&rotated.secret)), 403, "authorization_error");
    let later = api.gateway.now().plus(2 * HOUR).to_string();
    for body in [json!({ "expires_at": later }), json!({ "expires_at": null })] {
        for key in [&rotated, &child] {
            let answer = api.ask(&json_call("PATCH", &key.path(), &body).key(&rotated.secret));
            refused(&answer, 403, "authorization_error");
        }
    }
    api.gateway.advance(2 * HOUR);
    assert!(![&rotated, &child].into_iter().any(|key| api.works(&key.secret)));
}

fn what_a_key_made_is_revoked_with_it_where_its_number_is_right(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let make = |maker: &str, name: &str| api.create(maker, &json!({ "name": name }));
    let a = make(&root, "a");
    let beside = make(&root, "beside");
    let b = make(&a.secret, "b");
    let c = make(&b.secret, "c");
    let gone = make(&a.secret, "revoked already");
    let below = make(&gone.secret, "made by it");
    assert_eq!(api.ask(&Call::new("DELETE", &gone.path()).key(&root)).status, 204);
    let sandbox = api.create(&a.secret, &json!({ "name": "sandbox", "environment": "test" }));
    let all = [&a, &b, &c, &below, &sandbox];
    for wrong in [0, 3, 5, 6, 1_000_000] {
        let answer = api.ask(&revoke_all(&a, wrong).key(&root));
        refused(&answer, 409, "conflict");
        assert_eq!(number(&message(&answer)), 4, "{}", message(&answer));
    }
    for (query, fields) in [
        ("descendants=true", &["expected"][..]),
        ("descendants=yes&expected=4", &["descendants"]),
        ("descendants=true&expected=-1", &["expected"]),
        ("descendants=true&expected=4&expected=4", &["expected"]),
        ("descendants=false&expected=4", &["expected"]),
        ("expected=4", &["expected"]),
        ("descendents=true&expected=4", &["descendents", "expected"]),
    ] {
        let call = Call::new("DELETE", &format!("{}?{query}", a.path())).key(&root);
        assert_eq!(wrong_fields(&api.ask(&call)), fields, "{query}");
    }
    assert!(all.into_iter().all(|key| api.works(&key.secret)), "nothing was revoked so far");
    let call = Call::post(&format!("{}/revoke?descendants=true&expected=4", a.path()), "").key(&root);
    let answer = api.ask(&call);
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert!(!all.into_iter().any(|key| api.works(&key.secret)));
    assert!(api.works(&root) && api.works(&beside.secret), "what it did not make lives");
    for key in all {
        let told = api.events(&root).into_iter().filter(|event| event["target"] == json!(key.id));
        assert_eq!(told.filter(|event| event["type"] == "key.revoked").count(), 1, "each is told of");
    }
    // Safe to repeat, also without them.
    assert_eq!(api.ask(&revoke_all(&a, 0).key(&root)).status, 204);
    let alone = Call::new("DELETE", &format!("{}?descendants=false", a.path())).key(&root);
    assert_eq!(api.ask(&alone).status, 204);
    // The key of the signup has made everything.
    let first = own(&api, &root);
    assert_eq!(number(&message(&api.ask(&revoke_all(&first, 7).key(&root)))), 1);
    let (_, stranger) = api.sign_up("eve@example.com");
    refused(&api.ask(&revoke_all(&first, 1).key(&stranger)), 404, "not_found");
    assert_eq!(api.ask(&revoke_all(&first, 1).key(&root)).status, 204);
    assert!(!api.works(&root) && !api.works(&beside.secret) && api.works(&stranger));
}

fn a_test_key_revokes_what_it_made(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let test = api.create(&root, &json!({ "name": "test", "environment": "test" }));
    let child = api.create(&test.secret, &json!({ "name": "child" }));
    let live = own(&api, &root);
    refused(&api.ask(&revoke_all(&live, 2).key(&test.secret)), 404, "not_found");
    let mut grandchild = api.create(&child.secret, &json!({ "name": "grandchild" }));
    grandchild = ApiKey::of(&api.ask(&rotate(&grandchild).key(&test.secret)));
    assert_eq!(api.ask(&revoke_all(&child, 1).key(&test.secret)).status, 204);
    assert!(!api.works(&child.secret) && !api.works(&grandchild.secret) && api.works(&test.secret));
}

/// Thieves make keys, and keys of those keys, while the owner revokes: whatever they were given is dead when the owner
/// has the answer. Who is first is up to chance, so a 409 tells the number for the next round.
fn keys_that_are_made_while_their_ancestor_is_revoked_die_with_it(kept: Kept) {
    const THIEVES: usize = 4;
    const EACH: usize = 4;
    const ROUNDS: usize = 40;
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let stolen = api.create(&root, &json!({ "name": "stolen" }));
    let secrets = Mutex::new(vec![stolen.secret.clone()]);
    let client = api.client();
    let steal = |number: usize| {
        // So that the owner's request is about as early as the first of these.
        client.ask(&Call::get("/v1/api_keys?limit=100").key(&root));
        for n in 0..EACH {
            let maker = {
                let secrets = secrets.lock().unwrap();
                secrets[(number + n) * 7 % secrets.len()].clone()
            };
            let answer = client.ask(&create(&json!({ "name": "a way back" })).key(&maker));
            match answer.status {
                200 => secrets.lock().unwrap().push(ApiKey::of(&answer).secret),
                401 | 429 => {}
                _ => panic!("{}", answer.text()),
            }
        }
    };
    steal(0);
    let mut expected = EACH;
    for round in 0..ROUNDS {
        let ready = Barrier::new(THIEVES + 1);
        let (ready, steal) = (&ready, &steal);
        let answer = thread::scope(|scope| {
            for number in 0..THIEVES {
                scope.spawn(move || {
                    ready.wait();
                    steal(number);
                });
            }
            ready.wait();
            api.ask(&revoke_all(&stolen, expected).key(&root))
        });
        if answer.status == 204 {
            let made = secrets.lock().unwrap();
            assert!(!made.iter().any(|secret| api.works(secret)), "round {round}, {} were made", made.len());
            assert!(api.works(&root));
            return;
        }
        refused(&answer, 409, "conflict");
        let answer = api.ask(&revoke_all(&stolen, usize::MAX >> 12).key(&root));
        expected = number(&message(&answer));
        assert_eq!(expected, secrets.lock().unwrap().len() - 1);
    }
    panic!("the number was never right in {ROUNDS} rounds");
}
