//! The use of keys: allowed addresses, disabled keys, expiry, last use, scopes used, and live keys in browsers.

use std::time::Duration;

use keygate::vocabulary::id::{KeyId, OrgId};
use serde_json::{Value, json};

use crate::harness::api::{Api, ApiKey, HOUR, Kept, on_both_stores, refused, sign_up};
use crate::harness::{Call, Gateway, Upstream, eventually, operator};

on_both_stores! {
    a_key_with_a_list_of_addresses_is_used_from_there_only
    a_disabled_key_opens_nothing_until_it_is_enabled
    an_expired_key_opens_nothing_and_says_so
    a_suspended_organisations_keys_open_nothing_until_it_is_resumed
    last_use_and_used_scopes_are_written_down_apart
    a_live_key_in_a_browser_is_told_of_once_an_hour
    a_live_key_in_a_browser_is_refused_where_that_is_configured
}

fn id(key: &ApiKey) -> KeyId {
    KeyId::parse(&key.id).unwrap()
}

fn use_from(api: &Api, key: &ApiKey, address: Option<&str>) -> u16 {
    let call = Call::get("/v1/jobs").key(&key.secret);
    let call = address.into_iter().fold(call, |call, address| call.field("x-forwarded-for", address));
    api.gateway.fetch(&call).status
}

fn a_key_with_a_list_of_addresses_is_used_from_there_only(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let nets = json!(["192.0.2.0/24", "2001:db8::/32"]);
    let key = api.create(&root, &json!({ "name": "a key", "allowed_addresses": nets }));
    for (address, status) in [
        (Some("192.0.2.1"), 200),
        (Some("192.0.2.255"), 200),
        (Some("192.0.3.1"), 403),
        (Some("2001:db8:1::1"), 200),
        (Some("2001:db9::1"), 403),
        // An IPv4-mapped IPv6 address is the IPv4 address.
        (Some("::ffff:192.0.2.1"), 200),
        // Fields from the client itself are ignored.
        (Some("192.0.2.1, 198.51.100.1"), 403),
        (Some("198.51.100.1, 192.0.2.1"), 200),
        (Some("192.0.2.1, nonsense"), 403),
        (None, 403),
    ] {
        assert_eq!(use_from(&api, &key, address), status, "{address:?}");
    }
    let other = Call::get("/v1/jobs").key(&key.secret).field("x-real-ip", "192.0.2.1");
    api.gateway.fetch(&other).refusal(403, "forbidden");
    refused(&api.get(&key.secret, "/v1/api_keys/self"), 403, "forbidden");
    let seen = api.live.seen().len();
    assert_eq!(seen, 5, "nothing else has reached the upstream");
}

#[test]
fn without_trusted_proxies_the_peer_address_is_the_client() {
    let api = Api::builder(Kept::Embedded).no_proxies().start();
    let (_, root) = api.sign_up("ada@example.com");
    let here = api.create(&root, &json!({ "name": "here", "allowed_addresses": ["127.0.0.1"] }));
    let there = api.create(&root, &json!({ "name": "there", "allowed_addresses": ["192.0.2.1"] }));
    for address in [None, Some("192.0.2.1")] {
        assert_eq!(
            (use_from(&api, &here, address), use_from(&api, &there, address)),
            (200, 403),
            "{address:?}"
        );
    }
    assert_eq!(api.events(&root)[0]["ip_address"], "127.0.0.1");
}

fn a_disabled_key_opens_nothing_until_it_is_enabled(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let key = api.create(&root, &json!({ "name": "a key" }));
    assert!(api.works(&key.secret));
    let lifecycle = api.gateway.lifecycle();
    api.gateway.block_on(lifecycle.disable_key(&operator(), id(&key))).unwrap();
    refused(&api.get(&key.secret, "/v1/api_keys/self"), 401, "authentication_error");
    assert!(!api.works(&key.secret));
    let shown = api.get(&root, &key.path()).json();
    assert_eq!(shown["status"], "disabled");
    assert!(shown["disabled_at"].is_string());
    api.gateway.block_on(lifecycle.enable_key(&operator(), id(&key))).unwrap();
    assert!(api.works(&key.secret));
    let shown = api.get(&root, &key.path()).json();
    assert_eq!((&shown["status"], &shown["disabled_at"]), (&json!("active"), &Value::Null));
    let types: Vec<Value> = api.events(&root).iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types[..2], ["key.enabled", "key.disabled"]);
}

fn an_expired_key_opens_nothing_and_says_so(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let end = api.gateway.now().plus(HOUR).to_string();
    let key = api.create(&root, &json!({ "name": "a key", "expires_at": end }));
    api.gateway.advance(HOUR - Duration::from_secs(60));
    assert!(api.works(&key.secret));
    api.gateway.advance(Duration::from_secs(60));
    assert!(!api.works(&key.secret));
    assert_eq!(api.get(&root, &key.path()).json()["status"], "expired");
    refused(&api.patch(&root, &key.path(), &json!({ "name": "x" })), 409, "conflict");
    refused(&api.post(&root, &format!("{}/rotate", key.path()), &json!({})), 409, "conflict");
    assert_eq!(api.ask(&Call::new("DELETE", &key.path()).key(&root)).status, 204);
    assert_eq!(api.get(&root, &key.path()).json()["status"], "revoked");
}

fn a_suspended_organisations_keys_open_nothing_until_it_is_resumed(kept: Kept) {
    let api = Api::start(kept);
    let (org, root) = api.sign_up("ada@example.com");
    let (_, other) = api.sign_up("eve@example.com");
    let org = OrgId::parse(&org).unwrap();
    assert!(api.works(&root));
    api.gateway.block_on(api.gateway.lifecycle().suspend_org(&operator(), org)).unwrap();
    for call in [Call::get("/v1/api_keys"), Call::get("/v1/api_keys/self"), Call::get("/v1/audit_events")] {
        refused(&api.ask(&call.key(&root)), 403, "forbidden");
    }
    api.gateway.fetch(&Call::get("/v1/jobs").key(&root)).refusal(403, "forbidden");
    assert!(api.works(&other));
    api.gateway.block_on(api.gateway.lifecycle().resume_org(&operator(), org)).unwrap();
    let types: Vec<Value> = api.events(&root).iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["org.resumed", "org.suspended", "org.created"]);
}

fn last_use_and_used_scopes_are_written_down_apart(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let key = api.create(&root, &json!({ "name": "a key" }));
    let events = api.events(&root).len();
    let used = || {
        let shown = api.get(&root, &key.path()).json();
        (shown["last_used_at"].clone(), shown["used_scopes"].clone())
    };
    let written = |scopes: Value| {
        eventually("its use is written down", || {
            api.gateway.block_on(api.gateway.lifecycle().write_usage()).unwrap();
            used().1 == scopes
        });
    };
    assert_eq!(used(), (Value::Null, json!([])));
    let before = api.gateway.now();
    assert!(api.works(&key.secret));
    written(json!(["jobs:read"]));
    let first = used().0;
    assert!(first.as_str().unwrap() >= before.to_string().as_str());
    assert!(first.as_str().unwrap() <= api.gateway.now().to_string().as_str());
    // Refused requests do not count; later requests have a later time.
    api.gateway.advance(HOUR);
    assert_eq!(api.gateway.fetch(&Call::get("/v1/audit_events").key(&key.secret)).status, 200);
    assert_eq!(api.gateway.fetch(&Call::get("/v1/nothing").key(&key.secret)).status, 404);
    written(json!(["audit:read", "jobs:read"]));
    let second = used().0;
    assert!(second.as_str() > first.as_str());
    // The calling key is used too, in the list and in the single answer.
    written(json!(["audit:read", "jobs:read"]));
    let listed = api.keys(&root);
    let own = listed.iter().find(|shown| shown["created_by"] == "signup").unwrap();
    assert_eq!(own["used_scopes"], json!(["audit:read", "keys:manage"]));
    let in_list = listed.iter().find(|shown| shown["id"] == json!(key.id)).unwrap();
    assert_eq!(in_list["last_used_at"], second);
    // Use does not change the key's record, and creates no event.
    assert_eq!(api.events(&root).len(), events);
}

fn a_live_key_in_a_browser_is_told_of_once_an_hour(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let live = api.create(&root, &json!({ "name": "live" }));
    let other = api.create(&root, &json!({ "name": "other", "scopes": ["jobs:read"] }));
    let test = api.create(&root, &json!({ "name": "test", "environment": "test" }));
    let browse = |key: &ApiKey, name: &str, value: &str| {
        let call =
            Call::get("/v1/jobs").key(&key.secret).field(name, value).field("x-forwarded-for", "192.0.2.7");
        let answer = api.gateway.fetch(&call);
        assert_eq!(answer.status, 200, "it is told of, not refused");
        answer.field("x-request-id").unwrap().to_owned()
    };
    browse(&test, "origin", "https://example.com");
    browse(&test, "sec-fetch-site", "cross-site");
    api.works(&live.secret);
    let request = browse(&live, "origin", "https://example.com");
    let told = api.events_of(&root, "key.in_browser", 1).remove(0);
    assert_eq!((&told["target"], &told["request_id"]), (&json!(live.id), &json!(request)));
    assert_eq!(told["ip_address"], "192.0.2.7");
    // On every worker and by every sign of a browser: still one event.
    for _ in 0..8 {
        browse(&live, "origin", "https://example.com");
        browse(&live, "sec-fetch-site", "same-origin");
        browse(&live, "sec-fetch-mode", "cors");
    }
    // Also on a route that refuses the key.
    let denied = Call::post("/v1/jobs", "{}").key(&other.secret).field("sec-fetch-site", "none");
    api.gateway.fetch(&denied).refusal(403, "authorization_error");
    let told = api.events_of(&root, "key.in_browser", 2).remove(0);
    assert_eq!(told["target"], json!(other.id), "one each");
    // After an hour, there is another event.
    api.gateway.advance(HOUR);
    browse(&live, "origin", "null");
    let told = api.events_of(&root, "key.in_browser", 3).remove(0);
    assert_eq!(told["target"], json!(live.id));
}

fn a_live_key_in_a_browser_is_refused_where_that_is_configured(kept: Kept) {
    let api = Api::builder(kept).browser_keys("refuse").start();
    let (_, root) = api.sign_up("ada@example.com");
    let live = api.create(&root, &json!({ "name": "live", "scopes": ["jobs:read"] }));
    let test = api.create(&root, &json!({ "name": "test", "environment": "test" }));
    let browse = |secret: &str, target: &str, field: (&str, &str)| {
        api.gateway.fetch(&Call::get(target).key(secret).field(field.0, field.1))
    };
    let origin = ("origin", "https://example.com");
    // Before the route and the scope are judged: it is for no route.
    for (target, field) in [
        ("/v1/jobs", origin),
        ("/v1/jobs", ("origin", "null")),
        ("/v1/jobs", ("sec-fetch-site", "same-origin")),
        ("/v1/api_keys/self", ("sec-fetch-site", "cross-site")),
        ("/v1/webhook_endpoints", origin),
        ("/v1/nothing", origin),
    ] {
        let message = browse(&live.secret, target, field).refusal(403, "forbidden");
        assert!(message.contains("browser"), "{message}");
    }
    assert_eq!(api.live.connections(), 0);
    assert_eq!(api.events_of(&root, "key.in_browser", 1)[0]["target"], json!(live.id), "and told of");
    assert_eq!(browse(&test.secret, "/v1/jobs", origin).status, 200, "a test key may be anywhere");
    browse("fh_live_sk_nobodys", "/v1/jobs", origin).refusal(401, "authentication_error");
    // The `fetch` of Node is in no browser, and a browser cannot put a key into the handshake of a WebSocket.
    assert_eq!(browse(&live.secret, "/v1/jobs", ("sec-fetch-mode", "cors")).status, 200);
    let handshake = Call::get("/v1/jobs").key(&live.secret).field(origin.0, origin.1);
    let handshake = handshake.field("connection", "upgrade").field("upgrade", "websocket");
    assert_eq!(api.gateway.fetch(&handshake).status, 200);
    // Signing up needs no key.
    assert_eq!(api.ask(&sign_up("eve@example.com").field(origin.0, origin.1)).status, 200);
}

#[test]
fn a_route_says_for_itself_what_becomes_of_live_keys_in_browsers() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let route = |id: &str, more: &str| {
        format!(
            "[[route]]\nid = \"{id}\"\nmethods = [\"GET\"]\npaths = [\"/{id}\"]\nany_key = true\n\
             upstream = \"api\"\n{more}\n"
        )
    };
    let policy = [
        "scopes = [\"jobs:read\"]\n".to_owned(),
        route("noted", "browser_keys = \"note\""),
        route("refused", "browser_keys = \"refuse\""),
        route("general", ""),
    ];
    let mut gateway = Gateway::builder()
        .settings("[keys]\nbrowser_keys = \"refuse\"")
        .policy(&policy.concat())
        .api(&live, &test)
        .start();
    let key = gateway.live_key().secret;
    let statuses = |gateway: &Gateway| {
        ["/noted", "/refused", "/general"]
            .map(|path| gateway.fetch(&Call::get(path).key(&key).field("origin", "https://a.example")).status)
    };
    assert_eq!(statuses(&gateway), [200, 403, 403]);
    // Without a restart.
    let file = gateway.folder().join("keygate.toml");
    let toml = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, toml.replace("browser_keys = \"refuse\"", "")).unwrap();
    gateway.reload().unwrap();
    assert_eq!(statuses(&gateway), [200, 403, 200], "noted is what is done without a setting");
}
