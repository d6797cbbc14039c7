//! The answers of every operation: fields, statuses and headers; pages of lists; errors about invalid requests.

use std::collections::BTreeSet;
use std::thread;

use keygate::vocabulary::key::Environment;
use serde_json::{Value, json};

use crate::harness::Call;
use crate::harness::api::{Api, ApiKey, HOUR, Kept, json_call, on_both_stores, refused, wrong_fields};

on_both_stores! {
    a_key_is_shown_whole_its_secret_once_and_masked_ever_after
    what_is_left_out_is_taken_from_the_maker
    a_patch_changes_what_it_names
    the_old_secret_of_a_key_is_told_of_while_it_lives
    revoking_is_204_by_either_name_and_may_be_repeated
    pages_make_the_whole_while_keys_are_added
    a_key_may_always_ask_about_itself
}

const NO_KEYS: [&str; 4] = [
    "nonsense",
    "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM",
    "org_01J9ZQ6T5N8XKD3V4WPYB7C2HM",
    "key_01j9zq6t5n8xkd3v4wpyb7c2hm",
];
const LARGEST: usize = 64 << 10;

fn a_key_is_shown_whole_its_secret_once_and_masked_ever_after(kept: Kept) {
    let api = Api::start(kept);
    let (org, root) = api.sign_up("ada@example.com");
    let root_id = api.get(&root, "/v1/api_keys/self").json()["id"].clone();
    let wanted = json!({
        "name": "  nightly import ", "environment": "test", "scopes": ["jobs:write", "jobs:read", "jobs:read"],
        "expires_at": "2999-01-31T12:00:00Z", "allowed_addresses": ["192.0.2.9/24", "2001:db8::1"],
        "owner": "data team", "note": "line one\nline two",
    });
    let answer = api.post(&root, "/v1/api_keys", &wanted);
    let made = answer.json();
    let key = ApiKey::of(&answer);
    assert!(key.secret.starts_with("fh_test_sk_") && key.secret.len() == 49, "{}", key.secret);
    let created_at = made["created_at"].clone();
    let mut expected = json!({
        "object": "api_key", "id": key.id, "organization_id": org, "name": "nightly import",
        "key": format!("fh_test_sk_…{}", &key.secret[45..]), "environment": "test",
        "scopes": ["jobs:read", "jobs:write"], "status": "active", "created_at": created_at, "created_by": root_id,
        "last_used_at": null, "used_scopes": [], "expires_at": "2999-01-31T12:00:00.000Z", "disabled_at": null,
        "revoked_at": null, "old_secret_ends_at": null, "allowed_addresses": ["192.0.2.0/24", "2001:db8::1/128"],
        "owner": "data team", "note": "line one\nline two", "secret": key.secret,
    });
    assert_eq!(made, expected);
    expected.as_object_mut().unwrap().remove("secret");
    assert_eq!(api.get(&root, &key.path()).json(), expected);
    assert_eq!(api.keys(&root)[0], expected);
    let head = api.ask(&Call::new("HEAD", &key.path()).key(&root));
    assert_eq!((head.status, head.body.len()), (200, 0));
}

fn what_is_left_out_is_taken_from_the_maker(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let own = api.get(&root, "/v1/api_keys/self").json();
    let all: Vec<Value> = own["scopes"].as_array().unwrap().clone();
    assert_eq!(all.len(), 9, "signing up gives every scope");
    let made = api.post(&root, "/v1/api_keys", &json!({ "name": "all" })).json();
    assert_eq!((&made["scopes"], &made["environment"]), (&own["scopes"], &json!("live")));
    assert_eq!((&made["expires_at"], &made["allowed_addresses"]), (&Value::Null, &json!([])));
    // By default, a new key gets the rights of its creator.
    let end = api.gateway.now().plus(HOUR).to_string();
    let weaker = api.create(&root, &json!({
        "name": "weaker", "environment": "test", "scopes": ["keys:manage", "usage:read"], "expires_at": end,
        "allowed_addresses": ["127.0.0.0/8"],
    }));
    let made = api
        .post(&weaker.secret, "/v1/api_keys", &json!({ "name": "its own", "allowed_addresses": [] }))
        .json();
    assert_eq!(
        (&made["scopes"], &made["environment"]),
        (&json!(["keys:manage", "usage:read"]), &json!("test"))
    );
    assert_eq!((&made["expires_at"], &made["allowed_addresses"]), (&json!(end), &json!(["127.0.0.0/8"])));
}

fn a_patch_changes_what_it_names(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let key = api.create(&root, &json!({ "name": "before", "note": "a note", "owner": "ada" }));
    let before = api.get(&root, &key.path()).json();
    assert_eq!(api.patch(&root, &key.path(), &json!({})).json(), before, "nothing is named, nothing changes");
    let steps = [
        (json!({ "name": "after" }), json!({ "name": "after" })),
        (json!({ "note": null, "owner": "bob" }), json!({ "note": null, "owner": "bob" })),
        (json!({ "scopes": ["jobs:read", "usage:read"] }), json!({ "scopes": ["jobs:read", "usage:read"] })),
        (json!({ "scopes": ["jobs:read"] }), json!({ "scopes": ["jobs:read"] })),
        (
            json!({ "expires_at": "2999-01-01T00:00:00Z" }),
            json!({ "expires_at": "2999-01-01T00:00:00.000Z" }),
        ),
        (
            json!({ "expires_at": "2998-07-01T00:30:00+02:00" }),
            json!({ "expires_at": "2998-06-30T22:30:00.000Z" }),
        ),
        (
            json!({ "expires_at": "2998-01-01T00:00:00Z" }),
            json!({ "expires_at": "2998-01-01T00:00:00.000Z" }),
        ),
        (json!({ "allowed_addresses": ["10.0.0.0/8"] }), json!({ "allowed_addresses": ["10.0.0.0/8"] })),
        (json!({ "allowed_addresses": [] }), json!({ "allowed_addresses": [] })),
    ];
    let mut expected = before;
    for (patch, change) in steps {
        expected.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        assert_eq!(api.patch(&root, &key.path(), &patch).json(), expected, "{patch}");
        assert_eq!(api.get(&root, &key.path()).json(), expected, "{patch}");
    }
    assert!(api.works(&key.secret));
    // The change takes effect at once.
    let write = Call::post("/v1/jobs", "{}").key(&key.secret);
    api.gateway.fetch(&write).refusal(403, "authorization_error");
    // Never wider, not even with a key that could create a wider one.
    for wider in [
        json!({ "scopes": ["jobs:read", "jobs:write"] }),
        json!({ "expires_at": "2998-01-01T00:00:01Z" }),
        json!({ "expires_at": null }),
    ] {
        let field = wider.as_object().unwrap().keys().next().unwrap().clone();
        assert_eq!(wrong_fields(&api.patch(&root, &key.path(), &wider)), [field]);
    }
    assert_eq!(api.get(&root, &key.path()).json(), expected);
}

fn the_old_secret_of_a_key_is_told_of_while_it_lives(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let key = api.create(&root, &json!({ "name": "a key" }));
    let rotate = format!("{}/rotate", key.path());
    let first = api.post(&root, &rotate, &json!({}));
    let ends = |json: &Value| json["old_secret_ends_at"].clone();
    let second = ApiKey::of(&first);
    let day = humantime::parse_rfc3339(ends(&first.json()).as_str().unwrap()).unwrap();
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_millis(api.gateway.now().0);
    let overlap = day.duration_since(now).unwrap();
    assert!(overlap <= 24 * HOUR && overlap > 24 * HOUR - HOUR / 60, "{overlap:?}");
    assert_eq!(ends(&api.get(&root, &key.path()).json()), ends(&first.json()));
    assert!(api.works(&key.secret) && api.works(&second.secret));
    // Another rotation ends the older secret, and an overlap of 0 also ends this one. An empty body equals an empty object.
    let third = ApiKey::of(&api.ask(&Call::post(&rotate, "").key(&root)));
    assert_eq!([&key, &second, &third].map(|key| api.works(&key.secret)), [false, true, true]);
    let leaked = api.post(&root, &rotate, &json!({ "overlap_seconds": 0 }));
    let fourth = ApiKey::of(&leaked);
    assert_eq!(ends(&leaked.json()), Value::Null);
    assert_eq!([&second, &third, &fourth].map(|key| api.works(&key.secret)), [false, false, true]);
    assert_eq!(leaked.json()["key"], format!("fh_live_sk_…{}", &fourth.secret[45..]));
    for (wrong, field) in [
        (json!({ "overlap_seconds": 604_801 }), "overlap_seconds"),
        (json!({ "overlap_seconds": -1 }), "overlap_seconds"),
        (json!({ "overlap_seconds": 1.5 }), "overlap_seconds"),
        (json!({ "overlap_seconds": "60" }), "overlap_seconds"),
        (json!({ "overlap_second": 60 }), "overlap_second"),
    ] {
        assert_eq!(wrong_fields(&api.post(&root, &rotate, &wrong)), [field]);
    }
    let longest = api.post(&root, &rotate, &json!({ "overlap_seconds": 604_800 }));
    assert_eq!(longest.status, 200);
    assert!(api.works(&fourth.secret));
}

fn revoking_is_204_by_either_name_and_may_be_repeated(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    for by_delete in [false, true] {
        let key = api.create(&root, &json!({ "name": "a key" }));
        assert!(api.works(&key.secret));
        let call = if by_delete {
            Call::new("DELETE", &key.path()).key(&root)
        } else {
            Call::post(&format!("{}/revoke", key.path()), "").key(&root)
        };
        assert_eq!(api.ask(&call).status, 204);
        assert!(!api.works(&key.secret));
        let revoked_at = api.get(&root, &key.path()).json()["revoked_at"].clone();
        assert_eq!(api.ask(&call).status, 204, "again");
        let shown = api.get(&root, &key.path()).json();
        assert_eq!((&shown["status"], &shown["revoked_at"]), (&json!("revoked"), &revoked_at));
        refused(&api.patch(&root, &key.path(), &json!({ "name": "x" })), 409, "conflict");
    }
    // A key can also revoke itself; after that it is invalid.
    let own = api.create(&root, &json!({ "name": "own" }));
    assert_eq!(api.ask(&Call::new("DELETE", &own.path()).key(&own.secret)).status, 204);
    refused(&api.get(&own.secret, "/v1/api_keys/self"), 401, "authentication_error");
}

fn pages_make_the_whole_while_keys_are_added(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let made: Vec<String> =
        (0..25).map(|n| api.create(&root, &json!({ "name": format!("{n}") })).id).collect();
    let first = api.get(&root, "/v1/api_keys").json();
    assert_eq!(first["data"].as_array().unwrap().len(), 20, "the default");
    assert_eq!(first["has_more"], true);
    assert!(first["next_cursor"].as_str().unwrap().find("key_").is_none(), "opaque: {first}");
    for limit in [1, 7, 26, 100] {
        let (client, call) =
            (api.client(), json_call("POST", "/v1/api_keys", &json!({ "name": "meanwhile" })));
        let call = call.key(&root);
        let listed = thread::scope(|scope| {
            let adding = scope.spawn(|| (0..3).for_each(|_| assert_eq!(client.ask(&call).status, 200)));
            let listed = api.pages(&root, &format!("/v1/api_keys?limit={limit}"));
            adding.join().unwrap();
            listed
        });
        let ids: Vec<&str> = listed.iter().map(|key| key["id"].as_str().unwrap()).collect();
        let unique: BTreeSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "none twice, by {limit}");
        assert!(ids.is_sorted_by(|newer, older| newer > older), "newest first, by {limit}");
        assert!(made.iter().all(|id| ids.contains(&id.as_str())), "none is missing, by {limit}");
    }
    let all = api.keys(&root).len();
    let whole = api.get(&root, &format!("/v1/api_keys?limit={all}")).json();
    assert_eq!(
        (&whole["has_more"], &whole["next_cursor"]),
        (&json!(false), &Value::Null),
        "the last page is the last"
    );
}

fn a_key_may_always_ask_about_itself(kept: Kept) {
    let api = Api::start(kept);
    for environment in [Environment::Live, Environment::Test] {
        let key = api.gateway.key(environment, Some(&["usage:read"]), None);
        let shown = api.get(&key.secret, "/v1/api_keys/self").json();
        assert_eq!(shown["id"], key.id().to_string());
        assert_eq!((&shown["scopes"], &shown["created_by"]), (&json!(["usage:read"]), &json!("test")));
        assert_eq!(api.ask(&Call::new("HEAD", "/v1/api_keys/self").key(&key.secret)).status, 200);
        let path = format!("/v1/api_keys/{}", key.id());
        refused(&api.get(&key.secret, &path), 403, "authorization_error");
    }
}

#[test]
fn every_operation_needs_its_scope_and_a_valid_key() {
    let api = Api::start(Kept::Embedded);
    let id = api.gateway.live_key().id();
    let path = format!("/v1/api_keys/{id}");
    let rows = [
        (Call::post("/v1/api_keys", "{}"), "keys:manage"),
        (Call::get("/v1/api_keys"), "keys:manage"),
        (Call::get(&path), "keys:manage"),
        (json_call("PATCH", &path, &json!({})), "keys:manage"),
        (Call::new("DELETE", &path), "keys:manage"),
        (Call::post(&format!("{path}/rotate"), ""), "keys:manage"),
        (Call::post(&format!("{path}/revoke"), ""), "keys:manage"),
        (Call::get("/v1/audit_events"), "audit:read"),
    ];
    for (call, scope) in rows {
        let others: Vec<&str> = ["jobs:read", "keys:manage", "audit:read", "usage:read"]
            .into_iter()
            .filter(|one| *one != scope)
            .collect();
        let without = api.gateway.key_with(&others);
        let answer = api.ask(&call.clone().key(&without.secret));
        assert_eq!(answer.refusal(403, "authorization_error").split(": ").last(), Some(scope));
        let nobody = api.ask(&call);
        nobody.refusal(401, "authentication_error");
        assert_eq!(nobody.field("www-authenticate"), Some("Bearer realm=\"keygate\""));
        let wrong = api.ask(&call.key("fh_live_sk_wrong"));
        assert_eq!(
            wrong.field("www-authenticate"),
            Some("Bearer realm=\"keygate\", error=\"invalid_token\"")
        );
    }
    assert_eq!(api.get(&api.gateway.key_with(&["keys:manage"]).secret, &path).json()["status"], "active");
}

#[test]
fn a_text_that_is_not_a_key_id_is_not_found() {
    let api = Api::start(Kept::Embedded);
    let root = api.gateway.live_key().secret;
    for id in NO_KEYS {
        let path = format!("/v1/api_keys/{id}");
        for call in [
            Call::get(&path),
            json_call("PATCH", &path, &json!({ "name": "x" })),
            Call::new("DELETE", &path),
            Call::post(&format!("{path}/rotate"), "{}"),
            Call::post(&format!("{path}/revoke"), ""),
        ] {
            refused(&api.ask(&call.key(&root)), 404, "not_found");
        }
    }
}

#[test]
fn a_list_takes_its_parameters_once_and_within_their_bounds() {
    let api = Api::start(Kept::Embedded);
    let root = api.gateway.live_key().secret;
    for list in ["/v1/api_keys", "/v1/audit_events"] {
        for (query, wrong) in [
            ("limit=0", &["limit"][..]),
            ("limit=101", &["limit"]),
            ("limit=-1", &["limit"]),
            ("limit=1.0", &["limit"]),
            ("limit=%2B5", &["limit"]),
            ("limit=", &["limit"]),
            ("limit=5&limit=6", &["limit"]),
            ("cursor=", &["cursor"]),
            ("cursor=nonsense", &["cursor"]),
            ("cursor=zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", &["cursor"]),
            ("limit=x&cursor=y&colour=z", &["colour", "cursor", "limit"]),
        ] {
            assert_eq!(wrong_fields(&api.get(&root, &format!("{list}?{query}"))), wrong, "{list}?{query}");
        }
        for fine in ["limit=1", "limit=100", "", "&"] {
            assert_eq!(api.get(&root, &format!("{list}?{fine}")).status, 200, "{list}?{fine}");
        }
    }
    let audit = "type=nonsense&since=yesterday&until=2030-01-01";
    assert_eq!(
        wrong_fields(&api.get(&root, &format!("/v1/audit_events?{audit}"))),
        ["since", "type", "until"]
    );
}

#[test]
fn all_invalid_fields_are_reported_at_once() {
    let api = Api::start(Kept::Embedded);
    let root = api.gateway.live_key().secret;
    let many: Vec<String> = (0..101).map(|n| format!("10.0.0.{n}")).collect();
    let bad = [
        // Of the wrong type, missing, unknown and out of bounds, together.
        (
            json!({ "scopes": "jobs:read", "expires_at": "2001-01-01T00:00:00Z", "colour": "red", "owner": "" }),
            &["colour", "expires_at", "name", "owner", "scopes"][..],
        ),
        (
            json!({ "name": " ", "environment": "staging", "scopes": [], "allowed_addresses": many, "note": 5 }),
            &["allowed_addresses", "environment", "name", "note", "scopes"],
        ),
        (
            json!({ "name": "x".repeat(201), "scopes": ["jobs:read", "jobs:reed"], "expires_at": 5, "note": "\u{7}" }),
            &["expires_at", "name", "note", "scopes"],
        ),
        (
            json!({ "name": "a\nb", "scopes": ["JOBS"], "allowed_addresses": ["10.0.0.0/33"], "owner": "x".repeat(201) }),
            &["allowed_addresses", "name", "owner", "scopes"],
        ),
        (json!({ "name": null, "scopes": null, "environment": null }), &["environment", "name", "scopes"]),
        (json!({}), &["name"]),
    ];
    for (body, wrong) in &bad {
        assert_eq!(wrong_fields(&api.post(&root, "/v1/api_keys", body)), *wrong, "{body}");
    }
    assert_eq!(api.keys(&root).len(), 1, "nothing was made");
    let key = api.create(&root, &json!({ "name": "a key", "scopes": ["jobs:read"] }));
    let before = api.get(&root, &key.path()).json();
    let bad = [
        (
            json!({ "name": "", "scopes": ["jobs:write"], "environment": "live", "note": false }),
            &["environment", "name", "note", "scopes"][..],
        ),
        (
            json!({ "expires_at": "2001-01-01T00:00:00Z", "allowed_addresses": ["x"], "scopes": [] }),
            &["allowed_addresses", "expires_at", "scopes"],
        ),
        (json!({ "name": null, "status": "revoked", "id": "x" }), &["id", "name", "status"]),
    ];
    for (body, wrong) in &bad {
        assert_eq!(wrong_fields(&api.patch(&root, &key.path(), body)), *wrong, "{body}");
    }
    assert_eq!(api.get(&root, &key.path()).json(), before, "nothing was changed");
    // Each field with its error.
    let told = refused(
        &api.post(&root, "/v1/api_keys", &json!({ "name": "x", "scopes": [] })),
        400,
        "validation_error",
    );
    assert_eq!(told, [("scopes".to_owned(), "at least one scope is needed".to_owned())]);
}

#[test]
fn a_body_with_two_readings_or_none_is_refused() {
    let api = Api::start(Kept::Embedded);
    let root = api.gateway.live_key().secret;
    let deep = format!("{{\"name\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    for bad in [
        "{\"name\":\"a\",\"name\":\"b\"}",
        "{\"name\":\"a\",\"n\\u0061me\":\"b\"}",
        "{\"name\":\"a\",}",
        "{\"name\":\"a\"} {}",
        "{'name':'a'}",
        "name=a",
        "[]",
        "null",
        "\"name\"",
        "\u{feff}{\"name\":\"a\"}",
        &deep,
    ] {
        for target in ["/v1/api_keys", "/v1/auth/signup"] {
            let call = Call::post(target, bad).key(&root);
            assert_eq!(refused(&api.ask(&call), 400, "validation_error"), [], "{target} {bad}");
        }
    }
    let not_utf8 = Call::post("/v1/api_keys", b"{\"name\":\"\xff\"}".to_vec()).key(&root);
    refused(&api.ask(&not_utf8), 400, "validation_error");
    // The largest allowed body, and one byte more; with a length, and in chunks.
    let body = |length: usize| {
        let note = "x".repeat(900);
        let frame = format!("{{\"name\":\"a\",\"note\":\"{note}\"}}");
        format!("{frame}{}", " ".repeat(length - frame.len()))
    };
    assert_eq!(api.ask(&Call::post("/v1/api_keys", body(LARGEST)).key(&root)).status, 200);
    for target in ["/v1/api_keys", "/v1/auth/signup"] {
        refused(&api.ask(&Call::post(target, body(LARGEST + 1)).key(&root)), 413, "validation_error");
        let mut wire = api.gateway.connect();
        wire.send(
            format!("POST {target} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {root}\r\n").as_bytes(),
        );
        wire.send(b"transfer-encoding: chunked\r\n\r\n");
        wire.send(format!("{:x}\r\n{}\r\n0\r\n\r\n", LARGEST + 1, body(LARGEST + 1)).as_bytes());
        refused(&wire.answer().unwrap(), 413, "validation_error");
    }
    assert_eq!(api.keys(&root).len(), 2);
}

#[test]
fn a_refused_operation_leaves_the_connection_to_the_next() {
    let api = Api::start(Kept::Embedded);
    let root = api.gateway.live_key().secret;
    let mut wire = api.gateway.connect();
    for _ in 0..3 {
        let call = json_call("POST", "/v1/api_keys", &json!({ "nome": "x" })).key(&root);
        assert_eq!(wire.call(&call).unwrap().status, 400);
        assert_eq!(wire.call(&Call::new("HEAD", "/v1/api_keys").key(&root)).unwrap().status, 200);
        assert_eq!(wire.call(&Call::get("/v1/api_keys").key(&root)).unwrap().status, 200);
        let call = json_call("POST", "/v1/api_keys", &json!({ "name": "x" })).key(&root);
        let key = ApiKey::of(&wire.call(&call).unwrap());
        assert_eq!(wire.call(&Call::new("DELETE", &key.path()).key(&root)).unwrap().status, 204);
    }
}
