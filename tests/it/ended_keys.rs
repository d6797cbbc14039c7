//! `[store] keep_ended`: of a key that ended long ago nothing is left but that it does not come back.

use std::time::Duration;

use keygate::vocabulary::id::KeyId;
use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};
use serde_json::{Value, json};

use crate::harness::api::{Api, Kept, refused};
use crate::harness::desk::{Desk, NOWHERE, Way, in_redis};
use crate::harness::moved::moved_key;
use crate::harness::{Call, RedisServer, eventually, operator};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The pepper of `in_redis`, for a file.
const SEALED: &str = "[keys]\npepper_file = \"pepper\"\n";

fn names(desk: &Desk) -> Vec<String> {
    let keys = desk.done(&["keys", "list", "--json"]).json();
    let mut names: Vec<String> = keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Imports a line; whether it was taken.
#[track_caller]
fn is_taken_in(desk: &Desk, org: &str, line: &Value) -> bool {
    let ran = desk.feed(&["keys", "import", "-", "--org", org, "--json"], &line.to_string());
    let told = ran.json();
    let tally = told.first().unwrap_or_else(|| panic!("{ran:?}"));
    if tally["imported"] == 0 {
        assert!(ran.err.contains("a key that is gone does not come back"), "{ran:?}");
    }
    tally["imported"] == 1
}

#[test]
fn what_ended_long_ago_goes_and_no_import_restore_or_migration_brings_it_back() {
    let (redis, other) = (RedisServer::start(), RedisServer::start());
    for (settings, elsewhere) in
        [(SEALED.to_owned(), in_redis(&redis)), (in_redis(&other), SEALED.to_owned())]
    {
        let mut desk = Desk::with(Way::Socket, &settings, NOWHERE);
        desk.done(&["store", "accept", "--yes"]);
        // A gateway might let them go before they are exported.
        desk.stop();
        let org =
            desk.done(&["orgs", "create", "Mover", "--json"]).json()[0]["id"].as_str().unwrap().to_owned();
        let secret =
            || KeyFormat::new(&Prefix::default(), false).mint(Environment::Live).unwrap().expose().to_owned();
        let (old, late) = (secret(), secret());
        let as_it_was = moved_key(&old, "old", &json!({ "id": "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM" }));
        let mut revoked = as_it_was.clone();
        revoked["revoked_at"] = json!("2024-02-04T00:00:00Z");
        assert!(is_taken_in(&desk, &org, &revoked));
        assert!(is_taken_in(
            &desk,
            &org,
            &moved_key(&late, "late", &json!({ "expires_at": "2024-03-01T00:00:00Z" }))
        ));
        assert!(is_taken_in(&desk, &org, &moved_key(&secret(), "stays", &json!({}))));
        let dump = desk.done(&["keys", "export"]).out;
        assert_eq!(names(&desk), ["late", "old", "stays"]);

        desk.serve();
        eventually("they go", || names(&desk) == ["stays"]);
        let shown = desk.run(&["keys", "show", "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM"]);
        assert_ne!(shown.code, 0, "{shown:?}");
        let with_another_id = moved_key(&late, "late", &json!({}));
        let never_again = |desk: &Desk| {
            for back in [&as_it_was, &revoked, &with_another_id] {
                assert!(!is_taken_in(desk, &org, back));
            }
            let again = desk.feed(&["keys", "import", "-", "--json"], &dump).json();
            assert_eq!(
                (&again[0]["imported"], &again[0]["present"], &again[0]["refused"]),
                (&json!(0), &json!(1), &json!(2))
            );
            assert_eq!(names(desk), ["stays"]);
            assert!(desk.done(&["audit", "verify"]).out.ends_with(" 0 findings\n"));
        };
        never_again(&desk);

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.backup");
        desk.done(&["store", "backup", file.to_str().unwrap()]);
        let mut there = Desk::with(Way::Store, &elsewhere, NOWHERE);
        there.done(&["store", "restore", file.to_str().unwrap()]);
        there.serve();
        never_again(&there);
        there.stop();

        desk.stop();
        let cell = RedisServer::start();
        let to = Desk::with(Way::Store, &in_redis(&cell), NOWHERE);
        let config = to.folder().join("keygate.toml");
        desk.done(&["store", "migrate", "--to", config.to_str().unwrap()]);
        never_again(&to);
    }
}

#[test]
fn a_key_that_is_gone_is_unknown_and_what_it_made_still_ends_with_its_maker() {
    let mut api = Api::start(Kept::Embedded);
    let (_, root) = api.sign_up("ada@example.com");
    let body = json!({ "name": "made" });
    let thief = api.create(&root, &body);
    let between = [api.create(&thief.secret, &body)];
    let between = [between[0].clone(), api.create(&between[0].secret, &body)];
    let last = api.create(&between[1].secret, &body);
    for key in &between {
        assert_eq!(api.ask(&Call::new("DELETE", &key.path()).key(&root)).status, 204);
    }
    let id = |id: &str| KeyId::parse(id).unwrap();
    let descendants = |api: &Api| {
        let gateway = &api.gateway;
        gateway.block_on(gateway.lifecycle().count_descendants(&operator(), id(&thief.id))).unwrap()
    };
    assert_eq!(descendants(&api), 1);

    api.gateway.advance(DAY * 100);
    api.create(&root, &json!({ "name": "now" })); // It writes the date down.
    api.gateway.restart();
    eventually("they go", || api.keys(&root).len() == 4);
    for key in &between {
        refused(&api.ask(&Call::get(&key.path()).key(&root)), 404, "not_found");
        refused(&api.ask(&Call::new("DELETE", &key.path()).key(&root)), 404, "not_found");
        assert!(!api.works(&key.secret));
    }
    assert_eq!(descendants(&api), 1, "the way to it leads over keys that are gone");
    let gateway = &api.gateway;
    gateway.block_on(gateway.lifecycle().revoke_with_descendants(&operator(), id(&thief.id), 1)).unwrap();
    assert!(!api.works(&last.secret));
    let told = api.events(&root).iter().filter(|event| event["target"] == json!(between[0].id)).count();
    assert_eq!(told, 2, "the trail goes on telling of it");
}
