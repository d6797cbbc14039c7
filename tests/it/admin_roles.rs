//! Roles of the tokens for the admin API: who may look cannot make keys, and who is bound to an organisation reaches no
//! other, whatever they name.

use keygate::operators::admin::Role;
use serde_json::{Value, json};

use crate::harness::api::{Api, ApiKey, Kept, on_both_stores};
use crate::harness::moved::{moved_key, sha256};

on_both_stores! {
    a_token_that_may_read_makes_and_changes_nothing
    a_token_for_keys_manages_keys_and_no_organisation
    a_token_that_is_bound_to_organisations_reaches_no_other
    a_list_in_one_reply_has_a_thousand_entries_however_many_are_asked_for
}

/// An organisation with the secret of its first key.
struct Org {
    id: String,
    root: String,
    key: ApiKey,
}

fn sign_up(api: &Api, email: &str) -> Org {
    let (id, root) = api.sign_up(email);
    let key = api.create(&root, &json!({ "name": "a key" }));
    Org { id, root, key }
}

/// A line for an import.
fn moved(org: &str, secret: &str) -> Value {
    moved_key(secret, "moved", &json!({ "organization_id": org }))
}

fn new_key(org: &str) -> Value {
    json!({ "keys": { "create": {
        "org": org, "name": "x", "environment": "live", "scopes": ["jobs:read"], "expires_at": null,
        "allowed_addresses": [], "owner": null, "note": null,
    } } })
}

fn list(org: Option<&str>) -> Value {
    json!({ "keys": { "list": { "filter": { "org": org }, "after": null, "limit": 100 } } })
}

fn audit(trail: &str) -> Value {
    let filter = json!({ "kind": null, "from": null, "until": null });
    json!({ "audit": { "list": { "trail": trail, "filter": filter, "before": null, "limit": 100 } } })
}

fn looks(Org { id, key, .. }: &Org) -> Vec<Value> {
    vec![
        json!({ "orgs": { "list": { "after": null, "limit": 100 } } }),
        json!({ "orgs": { "show": { "id": id } } }),
        list(Some(id)),
        json!({ "keys": { "show": { "id": key.id } } }),
        json!({ "keys": { "find": { "sha256": sha256(&key.secret) } } }),
        json!({ "keys": { "descendants": { "id": key.id } } }),
        audit(id),
        json!({ "audit": { "export": { "trail": id, "after": 0, "limit": 100 } } }),
        json!({ "audit": { "verify": { "trail": id, "exported": [] } } }),
    ]
}

/// Everything that yields a secret or a digest, or changes a key. The last one revokes it.
fn changes_of_keys(Org { id, key, .. }: &Org) -> Vec<Value> {
    let own = json!({ "id": key.id });
    vec![
        new_key(id),
        json!({ "keys": { "rotate": { "id": key.id, "overlap_seconds": 3600 } } }),
        json!({ "keys": { "update": { "id": key.id, "patch": { "note": "mine" } } } }),
        json!({ "keys": { "disable": own } }),
        json!({ "keys": { "enable": own } }),
        json!({ "keys": { "import": { "keys": [moved(id, &format!("{}abcd", key.id))], "rehearsal": false } } }),
        json!({ "keys": { "export": { "org": id, "after": null, "limit": 100 } } }),
        json!({ "keys": { "revoke": { "id": key.id, "descendants": 0 } } }),
    ]
}

fn changes_of_others(Org { id, .. }: &Org) -> Vec<Value> {
    let own = json!({ "id": id });
    vec![
        json!({ "orgs": { "create": { "name": "Mine" } } }),
        json!({ "orgs": { "suspend": own } }),
        json!({ "orgs": { "resume": own } }),
        json!({ "orgs": { "verify": own } }),
        json!({ "store": "accept" }),
    ]
}

#[track_caller]
fn allowed(api: &Api, token: &str, command: &Value) -> Value {
    let (status, reply) = api.order(token, command);
    assert!(status == 200 && reply["reply"] != "failed", "{command}: {status} {reply}");
    reply
}

#[track_caller]
fn forbidden(api: &Api, token: &str, command: &Value) -> String {
    let (status, reply) = api.order(token, command);
    assert_eq!((status, &reply["reply"]), (403, &json!("failed")), "{command}: {reply}");
    reply["message"].as_str().unwrap().to_owned()
}

/// All keys of an organisation and its trail.
fn state(api: &Api, org: &Org) -> (Vec<Value>, Vec<Value>) {
    (api.keys(&org.root), api.events(&org.root))
}

fn a_token_that_may_read_makes_and_changes_nothing(kept: Kept) {
    let api = Api::builder(kept).admin().start();
    let org = sign_up(&api, "ada@example.com");
    for role in [Role::Read, Role::Plans] {
        let token = api.token(role, None);
        let before = state(&api, &org);
        for command in looks(&org) {
            let reply = allowed(&api, &token, &command);
            assert!(!reply.to_string().contains("\"secret\""), "{reply}");
        }
        allowed(&api, &token, &json!({ "store": "status" }));
        let changes = [changes_of_keys(&org), changes_of_others(&org)].concat();
        for command in changes {
            let message = forbidden(&api, &token, &command);
            let needs = if command.get("keys").is_some() { "keys" } else { "all" };
            let expected = format!("this token has the role {role}, and the command needs {needs}");
            assert_eq!(message, expected, "{command}");
        }
        assert!(api.works(&org.key.secret));
        assert_eq!(quiet(state(&api, &org)), quiet(before), "nothing was made or changed");
    }
}

/// Without the fields that the use of a key changes.
fn quiet((mut keys, events): (Vec<Value>, Vec<Value>)) -> (Vec<Value>, Vec<Value>) {
    for key in &mut keys {
        let key = key.as_object_mut().unwrap();
        key.retain(|field, _| !["last_used_at", "used_scopes"].contains(&&**field));
    }
    (keys, events)
}

fn a_token_for_keys_manages_keys_and_no_organisation(kept: Kept) {
    let api = Api::builder(kept).admin().start();
    let org = sign_up(&api, "ada@example.com");
    let (keys, all) = (api.token(Role::Keys, None), api.token(Role::All, None));
    for command in [looks(&org), vec![json!({ "store": "status" }), json!({ "store": "begin" })]].concat() {
        allowed(&api, &keys, &command);
    }
    for command in changes_of_others(&org) {
        forbidden(&api, &keys, &command);
    }
    for command in changes_of_keys(&org) {
        allowed(&api, &keys, &command);
    }
    assert!(!api.works(&org.key.secret), "revoked");
    let actors: Vec<Value> =
        api.events(&org.root).iter().map(|event| event["actor"]["name"].clone()).collect();
    assert_eq!(actors[..6], ["keys-desk"; 6].map(Value::from));
    for command in changes_of_others(&org).into_iter().take(4) {
        allowed(&api, &all, &command);
    }
}

fn a_token_that_is_bound_to_organisations_reaches_no_other(kept: Kept) {
    let api = Api::builder(kept).admin().start();
    let [own, other] = ["ada@example.com", "eve@example.com"].map(|email| sign_up(&api, email));
    let token = api.token(Role::All, Some(&[&own.id]));
    let before = state(&api, &other);
    // Those that name an organisation are forbidden, those that name a key find none.
    let foreign = [
        looks(&other).split_off(1),
        changes_of_keys(&other),
        changes_of_others(&other).into_iter().skip(1).take(3).collect(),
    ];
    for command in foreign.concat() {
        let (status, reply) = api.order(&token, &command);
        let text = reply.to_string();
        let refused = match &*reply["reply"].as_str().unwrap().to_owned() {
            "failed" => true,
            "key_not_found" => command["keys"].get("find").is_some(),
            "imported" => reply["outcomes"][0].to_string().contains("there is no organisation"),
            _ => false,
        };
        assert!(refused && matches!(status, 200 | 403), "{command}: {status} {text}");
        assert!(!text.contains(&other.key.secret[..20]), "{text}");
    }
    // Those that concern everybody.
    for command in [
        json!({ "orgs": { "create": { "name": "Mine" } } }),
        json!({ "store": "status" }),
        json!({ "store": "accept" }),
        audit("operator"),
    ] {
        forbidden(&api, &token, &command);
    }
    assert_eq!(quiet(state(&api, &other)), quiet(before), "nothing was made or changed");
    assert!(api.works(&other.key.secret));
    // Its own, named or not.
    let orgs = allowed(&api, &token, &json!({ "orgs": { "list": { "after": null, "limit": 100 } } }));
    assert_eq!(orgs["orgs"].as_array().unwrap().len(), 1);
    assert_eq!(orgs["orgs"][0]["id"], json!(own.id));
    let [named, unnamed] = [Some(&*own.id), None].map(|org| allowed(&api, &token, &list(org)));
    assert_eq!(named, unnamed);
    assert!(named["keys"].as_array().unwrap().iter().all(|key| key["organization_id"] == json!(own.id)));
    for command in [looks(&own), changes_of_keys(&own)].concat() {
        allowed(&api, &token, &command);
    }
    allowed(&api, &token, &json!({ "orgs": { "suspend": { "id": own.id } } }));
    assert_eq!(api.get(&own.root, "/v1/api_keys/self").status, 403);
    // With several, one must be named.
    let both = api.token(Role::Keys, Some(&[&own.id, &other.id]));
    let (status, reply) = api.order(&both, &list(None));
    assert_eq!((status, &reply["reply"]), (200, &json!("failed")), "{reply}");
    allowed(&api, &both, &list(Some(&other.id)));
    allowed(&api, &both, &new_key(&other.id));
}

fn a_list_in_one_reply_has_a_thousand_entries_however_many_are_asked_for(kept: Kept) {
    let api = Api::builder(kept).admin().start();
    let org = sign_up(&api, "ada@example.com");
    let all = api.token(Role::All, None);
    let keys: Vec<Value> = (0..1100).map(|n| moved(&org.id, &format!("an imported secret {n:04}"))).collect();
    let imported =
        allowed(&api, &all, &json!({ "keys": { "import": { "keys": keys, "rehearsal": false } } }));
    assert_eq!(imported["outcomes"].as_array().unwrap().len(), 1100);
    let most = 1_u64 << 40;
    let listed =
        allowed(&api, &all, &json!({ "keys": { "list": { "filter": {}, "after": null, "limit": most } } }));
    let listed = listed["keys"].as_array().unwrap().clone();
    assert_eq!(listed.len(), 1000);
    let export = |after: &Value| {
        let command = json!({ "keys": { "export": { "org": null, "after": after, "limit": most } } });
        let reply = allowed(&api, &all, &command);
        (reply["keys"].as_array().unwrap().len(), reply["has_more"] == json!(true))
    };
    assert_eq!(export(&Value::Null), (1000, true));
    assert_eq!(export(&listed[999]["id"]), (102, false), "and the rest comes with the next one");
}
