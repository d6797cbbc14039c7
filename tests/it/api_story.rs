//! The life of keys over HTTP, from creation to revocation.

use std::time::Duration;

use keygate::vocabulary::audit::Trail;
use serde_json::{Value, json};

use crate::harness::api::{Api, ApiKey, HOUR, Kept, json_call, on_both_stores, refused};
use crate::harness::{Answer, Call};

on_both_stores! {
    an_organisation_signs_up_and_its_keys_live_and_die
}

/// The client's address.
const CLIENT: &str = "203.0.113.9";

/// The expected audit event of a step.
struct Step {
    kind: &'static str,
    actor: Value,
    target: String,
    request: String,
}

fn an_organisation_signs_up_and_its_keys_live_and_die(kept: Kept) {
    let api = Api::start(kept);
    let mut steps = Vec::new();
    let ask = |call: Call| api.ask(&call.field("x-forwarded-for", CLIENT));
    let work = |key: &str| api.gateway.fetch(&Call::get("/v1/jobs").key(key)).status;
    let post = |key: &str, path: &str, body: Value| ask(json_call("POST", path, &body).key(key));

    // Sign up.
    let answer = ask(json_call(
        "POST",
        "/v1/auth/signup",
        &json!({ "name": "Ada's factory", "email": "ada@example.com" }),
    ));
    let signed_up = answer.json();
    assert_eq!(signed_up["credits_cents"], 250);
    let org = signed_up["organization_id"].as_str().unwrap().to_owned();
    let root = signed_up["api_key"].as_str().unwrap().to_owned();
    let own = ask(Call::get("/v1/api_keys/self").key(&root)).json();
    assert_eq!((&own["organization_id"], &own["environment"]), (&json!(org), &json!("live")));
    let root_id = own["id"].as_str().unwrap().to_owned();
    let step = |kind, actor, target: &str, answer: &Answer| Step {
        kind,
        actor,
        target: target.to_owned(),
        request: answer.field("x-request-id").unwrap().to_owned(),
    };
    steps.push(step("org.created", json!({ "type": "signup" }), &org, &answer));
    let by_root = || json!({ "type": "api_key", "id": root_id });

    // Create a test key, and use it.
    let answer = post(&root, "/v1/api_keys", json!({ "name": "sandbox", "environment": "test" }));
    let sandbox = ApiKey::of(&answer);
    assert!(sandbox.secret.starts_with("fh_test_sk_"));
    steps.push(step("key.created", by_root(), &sandbox.id, &answer));
    let worked = api.gateway.fetch(&Call::get("/v1/jobs").key(&sandbox.secret));
    assert_eq!((worked.status, worked.text()), (200, "test".to_owned()));
    let seen = api.test.only();
    assert_eq!((seen.value("x-org-id"), seen.value("x-key-id")), (org.as_str(), sandbox.id.as_str()));
    assert_eq!((seen.value("x-environment"), seen.values("authorization")), ("test", vec![]));
    assert_eq!(api.live.connections(), 0);

    // Create a key with fewer scopes.
    let wanted = json!({ "name": "narrow", "environment": "test", "scopes": ["keys:manage", "jobs:read"] });
    let answer = post(&root, "/v1/api_keys", wanted);
    let narrow = ApiKey::of(&answer);
    steps.push(step("key.created", by_root(), &narrow.id, &answer));
    assert_eq!(work(&narrow.secret), 200);
    let write = Call::post("/v1/jobs", "{}").key(&narrow.secret);
    assert_eq!(
        api.gateway.fetch(&write).refusal(403, "authorization_error").split(": ").last(),
        Some("jobs:write")
    );

    // This key cannot create a key with more scopes.
    for wanted in [
        json!({ "name": "x", "scopes": ["jobs:write"] }),
        json!({ "name": "x", "environment": "live", "scopes": ["jobs:read"] }),
    ] {
        let answer = post(&narrow.secret, "/v1/api_keys", wanted);
        refused(&answer, 403, "authorization_error");
        let by_narrow = json!({ "type": "api_key", "id": narrow.id });
        steps.push(step("escalation.refused", by_narrow, "", &answer));
        // Use is recorded later, but before the next step.
        api.events_of(&root, "escalation.refused", steps.len() - 3);
    }

    // Rotate: both secrets work, then only the new one.
    let answer = post(&root, &format!("{}/rotate", sandbox.path()), json!({ "overlap_seconds": 3600 }));
    let rotated = ApiKey::of(&answer);
    assert_eq!(rotated.id, sandbox.id);
    assert_ne!(rotated.secret, sandbox.secret);
    steps.push(step("key.rotated", by_root(), &sandbox.id, &answer));
    assert_eq!((work(&sandbox.secret), work(&rotated.secret)), (200, 200));
    api.gateway.advance(HOUR - Duration::from_secs(30));
    assert_eq!((work(&sandbox.secret), work(&rotated.secret)), (200, 200), "half a minute before the end");
    api.gateway.advance(Duration::from_secs(30));
    assert_eq!((work(&sandbox.secret), work(&rotated.secret)), (401, 200));

    // Revoke: the key is refused at once.
    let answer = ask(Call::post(&format!("{}/revoke", sandbox.path()), "").key(&root));
    assert_eq!(answer.status, 204);
    steps.push(step("key.revoked", by_root(), &sandbox.id, &answer));
    assert_eq!(work(&rotated.secret), 401);
    let shown = ask(Call::get(&sandbox.path()).key(&root)).json();
    assert_eq!(shown["status"], "revoked");
    let again = post(&root, &format!("{}/rotate", sandbox.path()), json!({}));
    refused(&again, 409, "conflict");

    // The trail has every step, newest first.
    let events = api.events(&root);
    assert_eq!(events.len(), steps.len(), "{events:#?}");
    for (number, (event, step)) in events.iter().rev().zip(&steps).enumerate() {
        assert_eq!(event["number"], number + 1);
        assert_eq!((&event["type"], &event["actor"]), (&json!(step.kind), &step.actor), "{event}");
        assert_eq!(event["target"], if step.target.is_empty() { Value::Null } else { json!(step.target) });
        assert_eq!((&event["ip_address"], &event["request_id"]), (&json!(CLIENT), &json!(step.request)));
        let text = event.to_string();
        for secret in [&root, &sandbox.secret, &rotated.secret, &narrow.secret] {
            assert!(!text.contains(secret.as_str()), "{event}");
        }
    }
    let trail = Trail::parse(&org).unwrap();
    let verdict = api.gateway.block_on(api.gateway.lifecycle().verify_trail(trail, &[])).unwrap();
    assert_eq!(verdict.findings, []);
}
