//! `keygate keys import` and `keygate keys export`.

use std::fs;

use keygate::vocabulary::key::record::RecordFormat;
use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};
use serde_json::{Value, json};

use crate::harness::desk::{Desk, NOWHERE, Ran, Way, in_redis, write_secret};
use crate::harness::moved::{moved_key, sha256};
use crate::harness::{Call, RedisServer, Upstream, fetch};

fn secret(environment: Environment) -> String {
    KeyFormat::new(&Prefix::default(), false).mint(environment).unwrap().expose().to_owned()
}

fn line(secret: &str, name: &str, more: &Value) -> String {
    moved_key(secret, name, more).to_string()
}

fn org(desk: &Desk) -> String {
    desk.done(&["orgs", "create", "Mover", "--json"]).json()[0]["id"].as_str().unwrap().to_owned()
}

fn tally(ran: &Ran) -> [u64; 3] {
    let told = ran.json();
    let tally = told.first().unwrap_or_else(|| panic!("{ran:?}"));
    ["imported", "present", "refused"].map(|count| tally[count].as_u64().unwrap())
}

#[test]
fn imported_keys_work_without_a_change_at_the_clients() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let redis = RedisServer::start();
    for settings in [String::new(), "[keys]\npepper_file = \"pepper\"\n".to_owned(), in_redis(&redis)] {
        let desk = Desk::with(Way::Socket, &settings, [&live.url(), &test.url()]);
        let org = org(&desk);
        let (own, testing, gone) =
            (secret(Environment::Live), secret(Environment::Test), secret(Environment::Live));
        let times = json!({ "created_at": "2024-02-03T04:05:06Z", "owner": "ops", "note": "from before" });
        let lines = [
            line(&own, "first", &times),
            line(&testing, "second", &json!({ "allowed_addresses": ["127.0.0.1"] })),
            line(&gone, "third", &json!({ "revoked_at": "2024-02-04T00:00:00Z" })),
        ];
        let imported = desk.feed(&["keys", "import", "-", "--org", &org], &lines.join("\n"));
        assert_eq!(imported.code, 0, "{imported:?}");
        assert_eq!(
            imported.out,
            "3 imported, 0 already present, 0 refused\nat most 2 of 3 could be used as things stand, 1 revoked; a hash does \
             not show what its key looks like: say it with --scheme\n"
        );
        assert!(imported.err.contains("accept_without_checksum"), "{imported:?}");
        let status = |key: &str| fetch(desk.address(), &Call::get("/v1/jobs").key(key)).status;
        assert_eq!([&own, &testing, &gone].map(|key| status(key)), [200, 200, 401]);

        let keys = desk.done(&["keys", "list", "--json"]).json();
        let first = keys.iter().find(|key| key["name"] == "first").unwrap();
        assert_eq!(first["created_at"], "2024-02-03T04:05:06.000Z");
        assert_eq!(keys.last().unwrap()["name"], "first", "it sorts by its age");
        assert!(first["key"].as_str().unwrap().ends_with(&own[own.len() - 4..]));
        assert_eq!((&first["owner"], &first["note"]), (&json!("ops"), &json!("from before")));
        let event = desk.done(&["audit", "list", "--type", "keys.imported", "--json"]).json();
        assert_eq!(event.len(), 1);
        assert_eq!(
            (&event[0]["after"]["keys"], &event[0]["actor"]["name"]),
            (&json!(3), &json!(desk.operator()))
        );
        assert!(desk.done(&["audit", "verify"]).out.ends_with(" 0 findings\n"));
    }
}

#[test]
fn an_import_can_be_rehearsed_interrupted_and_repeated() {
    let redis = RedisServer::start();
    // More than one batch, and less than one.
    for (way, settings, all) in [(Way::Store, String::new(), 4300), (Way::Tcp, in_redis(&redis), 1200)] {
        let desk = Desk::with(way, &settings, NOWHERE);
        let org = org(&desk);
        let line = |n| {
            line(&secret(Environment::Live), &format!("key {n}"), &json!({ "organization_id": org })) + "\n"
        };
        let lines: Vec<String> = (0..all).map(line).collect();
        let import = |more: &[&str], count| {
            let ran =
                desk.feed(&[&["keys", "import", "-", "--json"], more].concat(), &lines[..count].concat());
            assert_eq!(ran.code, 0, "{ran:?}");
            tally(&ran)
        };
        let (first, all_lines) = (all as u64 - 500, all as u64);
        assert_eq!(import(&["--dry-run"], all), [all_lines, 0, 0]);
        assert_eq!(desk.done(&["keys", "list"]).out.lines().count(), 1, "a rehearsal changes nothing");
        assert_eq!(import(&[], all - 500), [first, 0, 0], "as if it had been broken off");
        assert_eq!(import(&["--dry-run"], all), [500, first, 0]);
        assert_eq!(import(&["--from-line", &(all - 299).to_string()], all), [300, 0, 0]);
        assert_eq!(import(&[], all), [200, all_lines - 200, 0]);
        assert_eq!(import(&[], all), [0, all_lines, 0]);
        assert_eq!(desk.done(&["keys", "list"]).out.lines().count(), all + 1);
        // The trail counts each key once, although many lines were imported again.
        let events = desk.done(&["audit", "list", "--type", "keys.imported", "--json"]).json();
        let told: u64 = events.iter().map(|event| event["after"]["keys"].as_u64().unwrap()).sum();
        assert_eq!(told, all_lines);
    }
}

#[test]
fn collisions_and_invalid_lines_are_reported_by_number_and_do_not_stop_the_import() {
    let redis = RedisServer::start();
    for settings in [String::new(), in_redis(&redis)] {
        let desk = Desk::with(Way::Socket, &settings, NOWHERE);
        let org = org(&desk);
        let (id, own) = ("key_01J9ZQ6T5N8XKD3V4WPYB7C2HM", secret(Environment::Live));
        let good = line(&own, "good", &json!({ "id": id }));
        let fresh = || secret(Environment::Live);
        let nobodys = "org_01J9ZQ6T5N8XKD3V4WPYB7C2HM";
        let cases = [
            (good.clone(), None),
            (String::new(), None),
            (good, None),
            (line(&own, "renamed", &json!({})), Some("differs in: name")),
            (line(&own, "good", &json!({ "id": "key_01J9ZQ6T5N8XKD3V4WPYB7C2HN" })), Some("differs in: id")),
            (line(&fresh(), "good", &json!({ "id": id })), Some("differs in: secret")),
            (line(&own, "good", &json!({ "revoked_at": "2026-01-01T00:00:00Z" })), Some("revoked_at")),
            ("{\"sha256\":".to_owned(), Some("EOF while parsing")),
            (line(&fresh(), "x", &json!({ "colour": "red" })), Some("unknown field `colour`")),
            (line(&fresh(), "x", &json!({ "sha256": own })), Some("64 hexadecimal digits")),
            (line(&fresh(), "x", &json!({ "sha256": null })), Some("sha256: is missing")),
            (line(&fresh(), "x", &json!({ "scopes": [] })), Some("at least one scope")),
            (
                line(&fresh(), "x", &json!({ "scopes": ["jobs:delete"] })),
                Some("there is no scope jobs:delete"),
            ),
            (line(&fresh(), "x", &json!({ "organization_id": nobodys })), Some("there is no organisation")),
            (line(&fresh(), "x", &json!({ "created_at": "yesterday" })), Some("a time is RFC 3339")),
            (line(&fresh(), "x", &json!({ "created_at": "2999-01-01T00:00:00Z" })), Some("in the future")),
            (line(&fresh(), "x", &json!({ "last_four": &own[20..] })), Some("last_four")),
            (line(&fresh(), "x", &json!({ "allowed_addresses": ["here"] })), Some("must be networks")),
            (format!("{{\"name\":\"{}\"}}", "x".repeat(70_000)), Some("longer than")),
            (line(&fresh(), "the last is taken too", &json!({})), None),
        ];
        let lines: Vec<&str> = cases.iter().map(|(line, _)| line.as_str()).collect();
        let rehearsed =
            desk.feed(&["keys", "import", "-", "--json", "--dry-run", "--org", &org], &lines.join("\n"));
        let ran = desk.feed(&["keys", "import", "-", "--json", "--org", &org], &lines.join("\n"));
        assert_eq!(ran.code, 1);
        let refused = cases.iter().filter(|(_, wrong)| wrong.is_some()).count() as u64;
        assert_eq!(tally(&ran), [2, 1, refused], "{ran:?}");
        for (n, (_, wrong)) in cases.iter().enumerate() {
            let said = ran.err.lines().find(|said| said.starts_with(&format!("keygate: line {}: ", n + 1)));
            match wrong {
                Some(wrong) => assert!(said.is_some_and(|said| said.contains(wrong)), "{}: {said:?}", n + 1),
                None => assert_eq!(said, None),
            }
        }
        let told = ran.err.replace(&format!("there is {id} already"), "there is line 1 already");
        assert_eq!((rehearsed.code, &rehearsed.out, rehearsed.err), (1, &ran.out, told));
        assert!(!ran.err.contains(&own[11..30]), "not even a secret that stands where its hash should");
        let lost = desk.feed(&["keys", "import", "-"], &line(&fresh(), "whose?", &json!({})));
        assert!(
            lost.code == 1 && lost.err.contains("line 1: organization_id: is missing; add --org"),
            "{lost:?}"
        );
    }
}

#[test]
fn a_line_that_only_a_newer_keygate_can_keep_is_refused_alone_and_a_rehearsal_says_so() {
    let redis = RedisServer::start();
    for settings in [String::new(), in_redis(&redis)] {
        let desk = Desk::with(Way::Socket, &settings, NOWHERE);
        let org = org(&desk);
        let next = RecordFormat::CURRENT.number() + 1;
        let lines = [
            line(&secret(Environment::Live), "older", &json!({})),
            line(&secret(Environment::Live), "newer", &json!({ "further": { "format": next } })),
        ];
        for more in [&["--dry-run"][..], &[]] {
            let words = [&["keys", "import", "-", "--json", "--org", &org], more].concat();
            let ran = desk.feed(&words, &lines.join("\n"));
            assert_eq!(tally(&ran), [1, 0, 1], "{ran:?}");
            assert!(format!("{ran:?}").contains("only a newer keygate can keep"), "{ran:?}");
        }
    }
}

#[test]
fn a_rehearsal_reports_the_same_collisions_as_the_import() {
    let desk = Desk::with(Way::Socket, "", NOWHERE);
    let org = org(&desk);
    let (own, old, id) =
        (secret(Environment::Live), secret(Environment::Live), "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM");
    let fresh = || secret(Environment::Live);
    let overlap = json!({ "old_secret": { "sha256": sha256(&old), "ends_at": "2999-01-01T00:00:00Z" } });
    let told_all = json!({
        "id": id, "created_at": "2024-01-01T00:00:00Z", "expires_at": "2999-01-01T00:00:00Z", "owner": "ops",
        "note": "n", "allowed_addresses": ["192.0.2.1"], "disabled_at": "2025-01-01T00:00:00Z",
    });
    let with = |field: &str, value: Value| {
        let mut fields = told_all.clone();
        fields[field] = value;
        line(&own, "first", &fields)
    };
    let mut lines = vec![
        line(&fresh(), "rotated", &overlap),
        line(&old, "rotated", &json!({})),
        line(&own, "refused, so nobody's", &json!({ "scopes": [] })),
        with("name", json!(" first ")),
        with("allowed_addresses", json!(["192.0.2.1/32"])),
        with("created_at", Value::Null),
        with("disabled_at", Value::Null),
        with("disabled_at", json!("2025-06-01T00:00:00Z")),
        with("revoked_at", json!("2025-06-01T00:00:00Z")),
        with("expires_at", Value::Null),
        with("created_at", json!("2024-01-01T00:00:01Z")),
        with("owner", Value::Null),
        with("note", json!("m")),
        with("scopes", json!(["jobs:read", "jobs:write"])),
        with("environment", json!("test")),
        with("id", Value::Null),
        with("id", json!("key_01J9ZQ6T5N8XKD3V4WPYB7C2HN")),
        line(&fresh(), "first", &told_all),
    ];
    // The following lines collide with lines of an earlier batch.
    lines.extend((0..8000).map(|n| line(&fresh(), &format!("key {n}"), &json!({}))));
    lines.extend([with("name", json!("first")), with("name", json!("last")), lines[20].clone()]);
    let import = |more: &[&str]| {
        desk.feed(&[&["keys", "import", "-", "--json", "--org", &org], more].concat(), &lines.join("\n"))
    };
    let (rehearsed, ran) = (import(&["--dry-run"]), import(&[]));
    assert_eq!(tally(&rehearsed), tally(&ran), "{rehearsed:?}");
    assert_eq!(tally(&ran), [8002, 7, 12], "{ran:?}");
    let keys = desk.done(&["keys", "list", "--json"]).json();
    let rotated = keys.iter().find(|key| key["name"] == "rotated").unwrap()["id"].as_str().unwrap();
    let told = ran.err.replace(id, "line 4").replace(rotated, "line 1");
    assert_eq!(rehearsed.err, told);
}

#[test]
fn exported_keys_can_be_imported_into_another_store_unchanged() {
    let redis = RedisServer::start();
    let peppered = "[keys]\npepper_file = \"pepper\"\n".to_owned();
    for (from, to) in
        [(String::new(), String::new()), (String::new(), peppered.clone()), (peppered, in_redis(&redis))]
    {
        let (live, test) = (Upstream::start("live"), Upstream::start("test"));
        let old = Desk::with(Way::Store, &from, NOWHERE);
        let org = org(&old);
        let create = |more: &[&str]| {
            let made = old
                .done(&[&["keys", "create", "--all-scopes", "--name", "k", "--json"], more].concat())
                .json()
                .remove(0);
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&made["key"]["id"]), text(&made["secret"]))
        };
        let plain = create(&["--owner", "o", "--note", "n", "--allow", "127.0.0.0/8", "--expires-in", "90d"]);
        let [rotated, disabled, revoked] = [create(&[]), create(&[]), create(&["--environment", "test"])];
        let second = old.done(&["keys", "rotate", &rotated.0, "--json"]).json()[0]["secret"]
            .as_str()
            .unwrap()
            .to_owned();
        old.done(&["keys", "disable", &disabled.0]);
        old.done(&["keys", "revoke", &revoked.0, "--yes"]);
        let exported = old.done(&["keys", "export"]);
        assert_eq!(exported.out.lines().count(), 4);
        assert_eq!(exported.err.contains("same pepper"), from.contains("pepper"), "{}", exported.err);
        for secret in [&plain.1, &rotated.1, &second, &disabled.1, &revoked.1] {
            assert!(!exported.out.contains(&secret[11..]));
        }

        let new = Desk::with(Way::Socket, &to, [&live.url(), &test.url()]);
        let moved =
            new.done(&["orgs", "create", "Moved", "--json"]).json()[0]["id"].as_str().unwrap().to_owned();
        let lines = exported.out.replace(&org, &moved);
        let imported = new.feed(&["keys", "import", "-", "--json"], &lines);
        assert_eq!((imported.code, tally(&imported)), (0, [4, 0, 0]), "{imported:?}");
        let again = new.feed(&["keys", "import", "-", "--json"], &lines);
        assert_eq!(tally(&again), [0, 4, 0], "{again:?}");
        let status = |secret: &str| fetch(new.address(), &Call::get("/v1/jobs").key(secret)).status;
        let statuses = [&plain.1, &rotated.1, &second, &disabled.1, &revoked.1].map(|secret| status(secret));
        assert_eq!(statuses, [200, 200, 200, 401, 401]);
        if from.is_empty() == to.is_empty() {
            let exported_again = new.done(&["keys", "export"]).out;
            assert_eq!(exported_again, lines, "nothing was lost on the way");
        }
    }
}

/// Its line may be in a file that is imported repeatedly.
#[test]
fn a_rotated_secret_is_never_imported_again() {
    let redis = RedisServer::start();
    for settings in [String::new(), in_redis(&redis)] {
        let desk = Desk::with(Way::Store, &settings, NOWHERE);
        let org = org(&desk);
        for more in [json!({}), json!({ "created_at": "2020-01-01T00:00:00Z" })] {
            let leaked = secret(Environment::Live);
            let lines = line(&leaked, "moved", &more);
            let import = || desk.feed(&["keys", "import", "-", "--json", "--org", &org], &lines);
            assert_eq!(tally(&import()), [1, 0, 0]);
            assert_eq!(tally(&import()), [0, 1, 0]);
            let found = desk.feed(&["keys", "show", "--secret-stdin", "--json"], &leaked).json();
            let id = found[0]["key"]["id"].as_str().unwrap();
            for _ in 0..3 {
                desk.done(&["keys", "rotate", id, "--overlap", "0s", "--yes"]);
                let ran = import();
                assert_eq!(tally(&ran), [0, 0, 1], "{ran:?}");
                assert!(ran.err.contains(&format!("there is {id} already")), "{ran:?}");
                let found = desk.feed(&["keys", "show", "--secret-stdin", "--json"], &leaked).json();
                assert_eq!((&found[0]["key"]["id"], &found[0]["opens"]), (&json!(id), &json!(false)));
            }
        }
    }
}

#[test]
fn digests_under_another_pepper_are_refused() {
    let peppered = "[keys]\npepper_file = \"pepper\"\n";
    let old = Desk::with(Way::Store, peppered, NOWHERE);
    old.done(&["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "k"]);
    let lines = old.done(&["keys", "export"]).out;
    for (settings, pepper) in [("", ""), (peppered, "another pepper, and a long one it is")] {
        let new = Desk::with(Way::Store, settings, NOWHERE);
        write_secret(&new.folder().join("pepper"), pepper);
        let org = org(&new);
        let line = lines.replace(
            &old.done(&["orgs", "list", "--json"]).json()[0]["id"].as_str().unwrap().to_owned(),
            &org,
        );
        let ran = new.feed(&["keys", "import", "-"], &line);
        assert!(ran.code == 1 && ran.err.contains("another pepper"), "{ran:?}");
    }
}

/// What a test sees of an import: its exit code and both outputs.
fn seen(ran: &Ran) -> (i32, &str, &str) {
    (ran.code, &ran.out, &ran.err)
}

#[test]
fn an_import_of_keys_that_would_be_refused_stops_before_it_begins() {
    let redis = RedisServer::start();
    for (way, settings) in
        [(Way::Socket, String::new()), (Way::Tcp, in_redis(&redis)), (Way::Store, String::new())]
    {
        let desk = Desk::with(way, &settings, NOWHERE);
        let org = org(&desk);
        let lines = [line(&secret(Environment::Live), "one", &json!({}))].join("\n");
        let import =
            |scheme: &str| desk.feed(&["keys", "import", "-", "--org", &org, "--scheme", scheme], &lines);
        assert_eq!(
            seen(&import("acme")),
            (
                1,
                "",
                "keygate: keys that begin with acme_ would be refused: this installation accepts fh; to accept them, run \
                 `keygate store accept-prefix acme`\n"
            )
        );
        assert_eq!(
            seen(&import("fh:no-checksum")),
            (
                1,
                "",
                "keygate: nothing was imported: keys without keygate's checksum would be refused; set \
                 keys.accept_without_checksum = true and restart the gateways first\n"
            )
        );
        assert_eq!(import("fh_live_sk_").code, 2);
        assert_eq!(desk.done(&["keys", "list"]).out.lines().count(), 1, "nothing was imported");
        assert_eq!(
            seen(&import("fh")),
            (0, "1 imported, 0 already present, 0 refused\n1 of 1 could be used as things stand\n", "")
        );
        // As the lines of another installation are: they say what their keys begin with.
        let foreign = line(&secret(Environment::Live), "two", &json!({ "prefix": "acme" }));
        let ran = desk.feed(&["keys", "import", "-", "--org", &org], &foreign);
        assert!(ran.code == 1 && ran.err.contains("prefix: acme is not accepted here"), "{ran:?}");
        desk.done(&["store", "accept-prefix", "acme"]);
        assert_eq!(desk.feed(&["keys", "import", "-", "--org", &org], &foreign).code, 0);
        let shown = desk.done(&["keys", "list", "--json"]).json();
        let shown = shown.iter().find(|key| key["name"] == "two").unwrap();
        assert!(shown["key"].as_str().unwrap().starts_with("acme_live_sk_…"), "{shown}");
        let unsaid = line(&secret(Environment::Live), "three", &json!({}));
        let ran = desk.feed(&["keys", "import", "-", "--org", &org], &unsaid);
        assert!(
            ran.code == 1 && ran.err.contains("prefix: is missing, and keys here begin with several"),
            "{ran:?}"
        );
    }
}

#[test]
fn plain_secrets_are_judged_one_by_one_and_only_their_hashes_are_kept() {
    let redis = RedisServer::start();
    for settings in [String::new(), in_redis(&redis)] {
        let desk = Desk::with(Way::Socket, &settings, NOWHERE);
        let org = org(&desk);
        let [bare, whole, over] = [(); 3].map(|()| secret(Environment::Live));
        let sandbox = secret(Environment::Test);
        let foreign = secret(Environment::Live).replacen("fh_", "acme_", 1);
        let unchecked = format!("fh_live_sk_{}", "0a1B2c3D".repeat(4));
        let lines = [
            bare.clone(),
            json!({ "secret": whole, "name": "whole", "scopes": ["jobs:read"] }).to_string(),
            json!({ "secret": over, "name": "over", "expires_at": "2024-01-01T00:00:00Z",
                    "created_at": "2023-01-01T00:00:00Z" })
            .to_string(),
            foreign.clone(),
            unchecked.clone(),
            json!({ "secret": sandbox, "name": "sandbox", "environment": "live" }).to_string(),
            sandbox.clone(),
        ]
        .join("\n");
        write_secret(&desk.folder().join("keys.txt"), &lines);
        let words = ["keys", "import", "keys.txt", "--secrets", "--scopes", "jobs:read", "--org", &org];
        let ran = desk.run(&words);
        assert_eq!(
            seen(&ran),
            (
                1,
                "4 imported, 0 already present, 3 refused\n3 of 4 could be used as things stand, 1 expired\n",
                "keygate: line 4: keys that begin with acme_ would be refused: this installation accepts fh; to accept \
                 them, run `keygate store accept-prefix acme`\n\
                 keygate: line 5: the secret does not end with keygate's checksum; keys without one need \
                 keys.accept_without_checksum = true, and no --scheme that says otherwise\n\
                 keygate: line 6: environment: the secret is one of test\n"
            )
        );
        let status = |secret: &str| fetch(desk.address(), &Call::get("/nowhere").key(secret)).status;
        assert_eq!(
            [&bare, &whole, &over, &sandbox, &foreign].map(|key| status(key)),
            [404, 404, 401, 404, 401]
        );
        let listed = desk.done(&["keys", "list", "--json"]).json();
        let shown: Vec<&str> = listed.iter().map(|key| key["key"].as_str().unwrap()).collect();
        for secret in [&bare, &whole, &over, &sandbox] {
            assert!(shown.contains(&&*format!("{}…{}", &secret[..11], &secret[45..])), "{shown:?}");
        }
        // Their hashes are the same as if they had been imported by hash.
        let again = desk.feed(&["keys", "import", "-", "--org", &org], &line(&whole, "whole", &json!({})));
        assert!(again.out.starts_with("0 imported, 1 already present, 0 refused\n"), "{again:?}");
        // A file that others can read, and secrets without the option.
        fs::write(desk.folder().join("open.txt"), &lines).unwrap();
        let open =
            desk.run(&["keys", "import", "open.txt", "--secrets", "--scopes", "jobs:read", "--org", &org]);
        assert!(open.code == 1 && open.err.contains("open.txt"), "{open:?}");
        let unsaid = desk.feed(&["keys", "import", "-", "--org", &org], &bare);
        assert!(unsaid.err.contains("--secrets") && !unsaid.err.contains(&bare[11..]), "{unsaid:?}");
        let without_scopes = desk.feed(&["keys", "import", "-", "--secrets", "--org", &org], &bare);
        assert!(
            without_scopes.err.contains("line 1: scopes: are missing; add --scopes"),
            "{without_scopes:?}"
        );
    }
}

#[test]
fn keys_without_a_checksum_work_if_the_configuration_accepts_them() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    for (accepted, status) in [(false, 401), (true, 200)] {
        let settings = format!("[keys]\naccept_without_checksum = {accepted}\n");
        let desk = Desk::with(Way::Socket, &settings, [&live.url(), &test.url()]);
        let org = org(&desk);
        let key = format!("fh_live_sk_{}", "0a1B2c3D".repeat(4));
        fs::write(desk.folder().join("keys.jsonl"), line(&key, "old", &json!({}))).unwrap();
        let imported = desk.done(&["keys", "import", "keys.jsonl", "--org", &org]);
        assert_eq!(imported.err.contains("accept_without_checksum"), !accepted, "{imported:?}");
        assert_eq!(fetch(desk.address(), &Call::get("/v1/jobs").key(&key)).status, status);
    }
}
