//! No key can grant more rights than it has, also not while its own rights change. A test key sees only test keys,
//! and no key sees those of another organisation. Each attempt is in the audit trail.

use std::time::Duration;

use keygate::lifecycle::Patch;
use keygate::vocabulary::id::KeyId;
use serde_json::{Value, json};

use crate::harness::api::{Api, ApiKey, HOUR, Kept, json_call, on_both_stores, refused};
use crate::harness::{Answer, Call, Wire, operator};

on_both_stores! {
    what_a_weaker_key_asks_for_is_refused_and_told_of
    what_is_as_weak_is_allowed
    a_caller_is_judged_again_when_its_change_is_made
    a_test_key_sees_and_manages_test_keys_only
    another_organisations_keys_are_not_there
    a_list_of_addresses_means_the_same_in_both_ways_to_write_them
}

/// Keys of one organisation, with different rights.
struct Keys {
    root: String,
    /// Has more scopes than the next.
    strong: ApiKey,
    weak: ApiKey,
    /// Expires in an hour.
    short: ApiKey,
    /// Bound to the address of this machine.
    bound: ApiKey,
    test: ApiKey,
    /// A test key that another key created.
    other_test: ApiKey,
}

impl Keys {
    fn make(api: &Api) -> Self {
        let (_, root) = api.sign_up("ada@example.com");
        let make = |body: Value| api.create(&root, &body);
        Self {
            strong: make(json!({ "name": "strong", "scopes": ["keys:manage", "jobs:read", "jobs:write"] })),
            weak: make(json!({ "name": "weak", "scopes": ["keys:manage", "jobs:read"] })),
            short: make(json!({ "name": "short", "expires_at": in_an_hour(api) })),
            bound: make(json!({ "name": "bound", "allowed_addresses": ["127.0.0.0/8"] })),
            test: make(json!({ "name": "test", "environment": "test" })),
            other_test: make(json!({ "name": "other", "environment": "test", "scopes": ["jobs:read"] })),
            root,
        }
    }
}

fn a_list_of_addresses_means_the_same_in_both_ways_to_write_them(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let lists = [
        (["::ffff:127.0.0.1", "::ffff:10.0.0.0/104"], ["127.0.0.1/32", "10.0.0.0/8"], true),
        (["::ffff:192.0.2.7/120", "::ffff:0:0/95"], ["192.0.2.0/24", "::fffe:0:0/95"], false),
    ];
    for (written, shown, works) in lists {
        let key = api.create(&root, &json!({ "name": "a key", "allowed_addresses": written }));
        assert_eq!(api.get(&root, &key.path()).json()["allowed_addresses"], json!(shown));
        assert_eq!(api.get(&key.secret, "/v1/api_keys/self").status, if works { 200 } else { 403 });
    }
}

fn in_an_hour(api: &Api) -> String {
    api.gateway.now().plus(HOUR).to_string()
}

fn patch(key: &ApiKey, body: &Value) -> Call {
    json_call("PATCH", &key.path(), body)
}

fn rotate(key: &ApiKey) -> Call {
    Call::post(&format!("{}/rotate", key.path()), "{}")
}

fn create(body: &Value) -> Call {
    json_call("POST", "/v1/api_keys", body)
}

fn what_a_weaker_key_asks_for_is_refused_and_told_of(kept: Kept) {
    let api = Api::start(kept);
    let keys = Keys::make(&api);
    let Keys { root, strong, weak, short, bound, test, .. } = &keys;
    let in_two_hours = api.gateway.now().plus(2 * HOUR).to_string();
    let jobs = |scopes: &[&str]| create(&json!({ "name": "x", "scopes": scopes }));
    let from = |addresses: &[&str]| create(&json!({ "name": "x", "allowed_addresses": addresses }));
    let attempts = [
        // New keys with more rights than their creator.
        (weak, jobs(&["jobs:write"]), None),
        (weak, jobs(&["jobs:read", "keys:manage", "billing:write"]), None),
        (test, create(&json!({ "name": "x", "environment": "live" })), None),
        (short, create(&json!({ "name": "x", "expires_at": in_two_hours })), None),
        (bound, from(&["0.0.0.0/0"]), None),
        (bound, from(&["127.0.0.1", "10.0.0.1"]), None),
        (bound, from(&["126.0.0.0/7"]), None),
        (bound, from(&["::/0"]), None),
        // Secrets of keys with more rights.
        (weak, rotate(strong), Some(strong)),
        (short, rotate(strong), Some(strong)),
        (bound, rotate(strong), Some(strong)),
        // Any change of keys with more rights.
        (weak, patch(strong, &json!({ "name": "mine" })), Some(strong)),
        (weak, patch(strong, &json!({ "scopes": ["jobs:read"] })), Some(strong)),
        (short, patch(strong, &json!({ "note": "mine" })), Some(strong)),
        (bound, patch(strong, &json!({ "allowed_addresses": ["127.0.0.1"] })), Some(strong)),
        // More rights for the calling key.
        (weak, patch(weak, &json!({ "scopes": ["keys:manage", "jobs:read", "jobs:write"] })), Some(weak)),
        (short, patch(short, &json!({ "expires_at": in_two_hours })), Some(short)),
        (short, patch(short, &json!({ "expires_at": null })), Some(short)),
        (bound, patch(bound, &json!({ "allowed_addresses": [] })), Some(bound)),
        (bound, patch(bound, &json!({ "allowed_addresses": ["127.0.0.1", "10.0.0.0/8"] })), Some(bound)),
        // More rights for another key.
        (weak, patch(weak, &json!({ "scopes": ["billing:write"] })), Some(weak)),
    ];
    let before = api.keys(root);
    let events = api.events(root).len();
    for (number, (caller, call, target)) in attempts.iter().enumerate() {
        let answer = api.ask(&call.clone().key(&caller.secret).field("x-forwarded-for", "127.0.0.7"));
        assert_eq!(answer.status, 403, "attempt {number}, {call:?}: {}", answer.text());
        refused(&answer, 403, "authorization_error");
        let told = &api.events_of(root, "escalation.refused", number + 1)[0];
        assert_eq!(told["actor"], json!({ "type": "api_key", "id": caller.id }), "attempt {number}");
        assert_eq!(told["target"], target.map_or(Value::Null, |key| json!(key.id)), "attempt {number}");
        assert_eq!(told["request_id"].as_str(), answer.field("x-request-id"));
        assert_eq!(told["ip_address"], "127.0.0.7");
        assert!(told["after"].is_object(), "what was asked for: {told}");
    }
    assert_eq!(api.keys(root), before, "nothing has changed");
    assert_eq!(api.events(root).len(), events + attempts.len(), "and nothing else is told");
    assert!(api.works(&strong.secret));
}

fn what_is_as_weak_is_allowed(kept: Kept) {
    let api = Api::start(kept);
    let keys = Keys::make(&api);
    let Keys { root, strong, weak, short, bound, test, other_test } = &keys;
    let own = |call: Call, key: &ApiKey| {
        let answer = api.ask(&call.key(&key.secret));
        assert!(matches!(answer.status, 200 | 204), "{}", answer.text());
        answer
    };
    own(create(&json!({ "name": "x", "scopes": ["jobs:read"] })), weak);
    own(create(&json!({ "name": "x", "environment": "test" })), strong);
    own(create(&json!({ "name": "x", "expires_at": in_an_hour(&api), "scopes": ["jobs:read"] })), strong);
    own(create(&json!({ "name": "x", "expires_at": null })), short);
    own(create(&json!({ "name": "x", "allowed_addresses": ["127.0.0.1", "127.1.0.0/16"] })), bound);
    own(patch(bound, &json!({ "allowed_addresses": ["127.0.0.0/16"] })), bound);
    own(patch(weak, &json!({ "scopes": ["keys:manage"], "name": "weaker" })), weak);
    own(patch(other_test, &json!({ "note": "a note" })), test);
    own(rotate(other_test), test);
    let rotated = ApiKey::of(&own(rotate(weak), weak));
    // A key can revoke keys with more rights.
    own(Call::new("DELETE", &strong.path()), &rotated);
    assert!(!api.works(&strong.secret));
    assert_eq!(api.pages(root, "/v1/audit_events?type=escalation.refused"), [] as [Value; 0]);
}

/// A change of the caller between its authentication and its operation.
type Fate = (&'static str, fn(&Api, &ApiKey), u16, &'static str);

const FATES: [Fate; 8] = [
    (
        "revoked",
        |api, key| drop(api.gateway.block_on(api.gateway.lifecycle().revoke_key(&operator(), id(key)))),
        401,
        "authentication_error",
    ),
    (
        "disabled",
        |api, key| drop(api.gateway.block_on(api.gateway.lifecycle().disable_key(&operator(), id(key)))),
        401,
        "authentication_error",
    ),
    (
        "rotated away",
        |api, key| {
            let by = operator();
            let rotated = api.gateway.lifecycle().rotate_key(&by, id(key), Duration::ZERO);
            assert!(api.gateway.block_on(rotated).is_ok());
        },
        401,
        "authentication_error",
    ),
    (
        "narrowed below the route",
        |api, key| narrow(api, key, r#"{"scopes":["jobs:read"]}"#),
        403,
        "authorization_error",
    ),
    (
        "narrowed below what it gives",
        |api, key| narrow(api, key, r#"{"scopes":["keys:manage"]}"#),
        403,
        "authorization_error",
    ),
    (
        "bound elsewhere",
        |api, key| narrow(api, key, r#"{"allowed_addresses":["10.0.0.0/8"]}"#),
        403,
        "forbidden",
    ),
    (
        "expired",
        |api, key| {
            let end = api.gateway.now().plus(HOUR);
            narrow(api, key, &format!("{{\"expires_at\":\"{end}\"}}"));
            api.gateway.advance(2 * HOUR);
        },
        401,
        "authentication_error",
    ),
    (
        "suspended",
        |api, _| {
            let orgs = api.gateway.block_on(api.gateway.lifecycle().list_orgs(None, 10)).unwrap();
            for org in orgs {
                api.gateway.block_on(api.gateway.lifecycle().suspend_org(&operator(), org.id)).unwrap();
            }
        },
        403,
        "forbidden",
    ),
];

fn id(key: &ApiKey) -> KeyId {
    KeyId::parse(&key.id).unwrap()
}

/// Sent with a key that has the right to do it.
fn narrow(api: &Api, key: &ApiKey, patch: &str) {
    let body: Value = serde_json::from_str(patch).unwrap();
    let texts = |name: &str| -> Option<Vec<&str>> {
        Some(body[name].as_array()?.iter().map(|text| text.as_str().unwrap()).collect())
    };
    let patch = Patch {
        scopes: texts("scopes").map(|names| {
            names.iter().map(|name| keygate::vocabulary::key::scope::Scope::parse(name).unwrap()).collect()
        }),
        allowed_addresses: texts("allowed_addresses")
            .map(|nets| nets.iter().map(|net| net.parse().unwrap()).collect()),
        expires_at: body["expires_at"].as_str().map(|_| Some(api.gateway.now().plus(HOUR))),
        ..Patch::default()
    };
    api.gateway.block_on(api.gateway.lifecycle().update_key(&operator(), id(key), &patch)).unwrap();
}

/// Sends the head of a request, and waits for its authentication: the 100 comes only after that.
fn let_in(api: &Api, key: &ApiKey, method: &str, path: &str, body: &str) -> Wire {
    let mut wire = api.gateway.connect();
    wire.send(
        format!(
            "{method} {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {}\r\nexpect: 100-continue\r\n\
             content-length: {}\r\n\r\n",
            key.secret,
            body.len()
        )
        .as_bytes(),
    );
    assert_eq!(wire.head().unwrap().status, 100);
    wire
}

fn a_caller_is_judged_again_when_its_change_is_made(kept: Kept) {
    let body = r#"{"name":"x","scopes":["jobs:read"]}"#;
    let patched = r#"{"scopes":["jobs:read"]}"#;
    let api = Api::start(kept);
    for (number, (fate, strike, status, kind)) in FATES.into_iter().enumerate() {
        let (_, root) = api.sign_up(&format!("ada{number}@example.com"));
        let scopes = json!(["keys:manage", "jobs:read"]);
        let caller = api.create(&root, &json!({ "name": "caller", "scopes": scopes }));
        let target = api.create(&root, &json!({ "name": "target", "scopes": scopes }));
        let before = api.keys(&root);
        let mut wires = [
            (let_in(&api, &caller, "POST", "/v1/api_keys", body), body),
            (let_in(&api, &caller, "PATCH", &target.path(), patched), patched),
            (let_in(&api, &caller, "POST", &format!("{}/rotate", target.path()), "{}"), "{}"),
        ];
        strike(&api, &caller);
        for (wire, body) in &mut wires {
            wire.send(body.as_bytes());
            let answer: Answer = wire.answer().unwrap();
            assert_eq!(answer.status, status, "{fate}, {body}: {}", answer.text());
            refused(&answer, status, kind);
        }
        if fate != "suspended" {
            let others = |keys: Vec<Value>| -> Vec<Value> {
                keys.into_iter().filter(|key| key["id"] != json!(caller.id)).map(quiet).collect()
            };
            assert_eq!(others(api.keys(&root)), others(before), "{fate}");
        }
    }
}

/// A key without the fields that its use changes.
fn quiet(mut key: Value) -> Value {
    for field in ["last_used_at", "used_scopes"] {
        key.as_object_mut().unwrap().remove(field);
    }
    key
}

fn a_test_key_sees_and_manages_test_keys_only(kept: Kept) {
    let api = Api::start(kept);
    let keys = Keys::make(&api);
    let Keys { root, strong, test, other_test, .. } = &keys;
    let names = |key: &str| -> Vec<String> {
        api.keys(key).iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&test.secret), ["other", "test"]);
    assert_eq!(names(root).len(), 7);
    assert_eq!(api.pages(&test.secret, "/v1/api_keys?limit=1").len(), 2, "page by page");
    for call in every_way_to(strong) {
        assert_eq!(api.ask(&call.clone().key(&test.secret)).status, 404, "{call:?}");
    }
    assert!(api.works(&strong.secret));
    for call in every_way_to(other_test) {
        let answer = api.ask(&call.key(&test.secret));
        assert!(matches!(answer.status, 200 | 204), "{}", answer.text());
    }
    assert!(!api.works(&other_test.secret));
    assert_eq!(api.get(&test.secret, &test.path()).json()["environment"], "test");
}

/// All operations on a key; the last one revokes it.
fn every_way_to(key: &ApiKey) -> Vec<Call> {
    vec![
        Call::get(&key.path()),
        Call::new("HEAD", &key.path()),
        patch(key, &json!({ "note": "mine" })),
        rotate(key),
        Call::post(&format!("{}/revoke", key.path()), ""),
        Call::new("DELETE", &key.path()),
    ]
}

fn another_organisations_keys_are_not_there(kept: Kept) {
    let api = Api::start(kept);
    let (own, root) = api.sign_up("ada@example.com");
    let (other, stranger) = api.sign_up("eve@example.com");
    let key = api.create(&root, &json!({ "name": "ada's" }));
    let theirs = api.create(&stranger, &json!({ "name": "eve's" }));
    let (before, trail) = (api.keys(&root), api.events(&root));
    for call in every_way_to(&key) {
        let answer = api.ask(&call.clone().key(&stranger));
        if call.method != "HEAD" {
            // Exactly the same answer as for a key that does not exist.
            let nobodys =
                Call { target: call.target.replace(&key.id, "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM"), ..call };
            let nothing = api.ask(&nobodys.key(&stranger));
            assert_eq!(answer.refusal(404, "not_found"), nothing.refusal(404, "not_found"));
        }
        assert_eq!(answer.status, 404);
    }
    assert_eq!(
        api.keys(&root).into_iter().map(quiet).collect::<Vec<_>>(),
        before.into_iter().map(quiet).collect::<Vec<_>>()
    );
    assert_eq!(api.events(&root), trail, "nothing is told to the other either");
    assert!(api.works(&key.secret));
    for (caller, org, ids) in [(&root, &own, vec![&key.id]), (&stranger, &other, vec![&theirs.id])] {
        let listed = api.keys(caller);
        assert_eq!(listed.len(), 2);
        assert!(listed.iter().all(|key| key["organization_id"] == json!(org)));
        assert!(ids.iter().all(|id| listed.iter().any(|key| key["id"] == json!(id))));
        let told = json!(api.events(caller)).to_string();
        let foreign = if caller == &root { [&other, &theirs.id] } else { [&own, &key.id] };
        assert!(foreign.iter().all(|id| !told.contains(id.as_str())), "{told}");
    }
    // The cursor of another organisation's list returns nothing.
    let page = api.get(&root, "/v1/api_keys?limit=1").json();
    let cursor = page["next_cursor"].as_str().unwrap();
    let listed = api.pages(&stranger, &format!("/v1/api_keys?limit=100&cursor={cursor}"));
    assert!(listed.iter().all(|key| key["organization_id"] == json!(other)));
}
