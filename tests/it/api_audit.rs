//! The audit trail through the API: filters, pages, the fields of an event, and exactly one event for each change.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::Call;
use crate::harness::api::{Api, HOUR, Kept, json_call, on_both_stores};

on_both_stores! {
    it_is_filtered_by_type_and_time
    its_pages_make_the_whole_while_events_are_added
    a_change_is_told_with_what_was_before_and_after
    what_changes_nothing_or_is_refused_is_no_change
    a_test_key_reads_of_test_keys_only
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

fn it_is_filtered_by_type_and_time(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let first = api.create(&root, &json!({ "name": "first" }));
    api.gateway.advance(HOUR);
    let noon = api.gateway.now();
    let second = api.create(&root, &json!({ "name": "second" }));
    // Two events in one millisecond have the same time.
    api.gateway.advance(Duration::from_millis(2));
    api.patch(&root, &second.path(), &json!({ "note": "x" }));
    api.gateway.advance(HOUR);
    let evening = api.gateway.now();
    api.ask(&Call::new("DELETE", &first.path()).key(&root));
    let all = ["key.revoked", "key.updated", "key.created", "key.created", "org.created"];
    assert_eq!(types(&api.events(&root)), all);
    for (filter, wanted) in [
        ("type=key.created".to_owned(), &["key.created", "key.created"][..]),
        ("type=key.rotated".to_owned(), &[]),
        (format!("since={noon}"), &["key.revoked", "key.updated", "key.created"]),
        (format!("until={noon}"), &["key.created", "org.created"]),
        (format!("since={noon}&until={evening}"), &["key.updated", "key.created"]),
        (format!("since={evening}&until={noon}"), &[]),
        (format!("type=key.created&since={noon}"), &["key.created"]),
        ("since=2001-01-01T00:00:00Z&until=2999-01-01T00:00:00Z".to_owned(), &all),
    ] {
        for limit in [1, 2, 100] {
            let events = api.pages(&root, &format!("/v1/audit_events?limit={limit}&{filter}"));
            assert_eq!(types(&events), wanted, "{filter} by {limit}");
        }
    }
    // `since` includes its time, and `until` excludes it.
    let at = api.events(&root)[1]["created_at"].as_str().unwrap().to_owned();
    assert_eq!(types(&api.pages(&root, &format!("/v1/audit_events?since={at}&limit=100"))), all[..2]);
    assert_eq!(types(&api.pages(&root, &format!("/v1/audit_events?until={at}&limit=100"))), all[2..]);
}

fn its_pages_make_the_whole_while_events_are_added(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let key = api.create(&root, &json!({ "name": "0" }));
    for n in 1..24 {
        api.patch(&root, &key.path(), &json!({ "name": n.to_string() }));
    }
    let first = api.get(&root, "/v1/audit_events").json();
    assert_eq!((first["data"].as_array().unwrap().len(), &first["has_more"]), (20, &json!(true)));
    for limit in [1, 7, 25, 100] {
        let (client, call) =
            (api.client(), json_call("PATCH", &key.path(), &json!({ "note": limit.to_string() })));
        let call = call.key(&root);
        let events = std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(client.ask(&call).status, 200));
            api.pages(&root, &format!("/v1/audit_events?limit={limit}"))
        });
        let numbers: Vec<u64> = events.iter().map(|event| event["number"].as_u64().unwrap()).collect();
        let newest = numbers[0];
        assert_eq!(numbers, (1..=newest).rev().collect::<Vec<_>>(), "by {limit}");
        assert!(newest >= 25);
    }
    let all = api.events(&root).len();
    let whole = api.get(&root, &format!("/v1/audit_events?limit={all}")).json();
    assert_eq!((&whole["has_more"], &whole["next_cursor"]), (&json!(false), &Value::Null));
}

fn a_change_is_told_with_what_was_before_and_after(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let wanted = json!({ "name": "before", "scopes": ["jobs:read", "jobs:write"], "environment": "test" });
    let key = api.create(&root, &wanted);
    let made = api.events(&root).remove(0);
    assert_eq!(made["before"], Value::Null);
    let after = &made["after"];
    assert_eq!((&after["name"], &after["environment"]), (&json!("before"), &json!("test")));
    assert_eq!(after["scopes"], json!(["jobs:read", "jobs:write"]));
    assert_eq!(after["key"], format!("fh_test_sk_…{}", &key.secret[45..]));
    api.patch(&root, &key.path(), &json!({ "name": "after", "scopes": ["jobs:read"] }));
    let changed = api.events(&root).remove(0);
    assert_eq!(changed["before"], json!({ "name": "before", "scopes": ["jobs:read", "jobs:write"] }));
    assert_eq!(changed["after"], json!({ "name": "after", "scopes": ["jobs:read"] }));
    api.ask(&Call::new("DELETE", &key.path()).key(&root));
    let ended = api.events(&root).remove(0);
    assert_eq!(
        (&ended["before"], &ended["after"]),
        (&json!({ "status": "active" }), &json!({ "status": "revoked" }))
    );
}

fn what_changes_nothing_or_is_refused_is_no_change(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let key = api.create(&root, &json!({ "name": "a key" }));
    let before = api.events(&root);
    api.get(&root, &key.path());
    api.keys(&root);
    api.post(&root, "/v1/api_keys", &json!({ "name": "" }));
    api.patch(&root, &key.path(), &json!({ "name": "" }));
    api.post(&root, "/v1/api_keys/key_01J9ZQ6T5N8XKD3V4WPYB7C2HM/rotate", &json!({}));
    api.works("fh_live_sk_wrong");
    assert_eq!(api.events(&root), before);
}

fn a_test_key_reads_of_test_keys_only(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let live = api.create(&root, &json!({ "name": "live" }));
    let test = api.create(&root, &json!({ "name": "test", "environment": "test" }));
    api.patch(&root, &live.path(), &json!({ "note": "of the live key" }));
    api.patch(&test.secret, &test.path(), &json!({ "note": "of the test key" }));
    assert_eq!(types(&api.events(&test.secret)), ["key.updated", "key.created"]);
    for event in api.events(&test.secret) {
        assert_eq!(
            (event["environment"].as_str(), event["target"].as_str()),
            (Some("test"), Some(&*test.id))
        );
    }
    assert_eq!(api.events(&root).len(), 5, "a live key reads of both");
}
