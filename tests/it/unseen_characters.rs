//! Characters that nobody sees, or that change how the text around them is shown: refused wherever a text comes in, and
//! escaped wherever people read one that an older release took.

use keygate::vocabulary::id::{KeyId, OrgId};
use keygate::vocabulary::key::record::KeyRecord;
use keygate::vocabulary::text::Unseen;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::api::{Api, ApiKey, Kept, json_call, on_both_stores, refused};
use crate::harness::desk::Ran;
use crate::harness::process::keygate;
use crate::harness::{Valve, eventually, guess};

on_both_stores! {
    a_text_with_such_a_character_is_refused_by_every_operation
    what_people_write_every_day_is_taken_as_it_is
    commands_and_lines_of_an_import_are_refused_and_say_where_the_character_is
    what_an_older_release_took_is_served_and_shown_escaped
}

/// Of each sort one: marks of direction, blanks of no width, tags, selectors, fillers, controls, ends of lines, private use.
const ODD: [char; 20] = [
    '\u{202A}',
    '\u{202E}',
    '\u{2066}',
    '\u{2069}',
    '\u{61C}',
    '\u{200E}',
    '\u{200F}',
    '\u{200B}',
    '\u{200C}',
    '\u{200D}',
    '\u{2060}',
    '\u{FEFF}',
    '\u{E0041}',
    '\u{FE0F}',
    '\u{E0101}',
    '\u{AD}',
    '\u{3164}',
    '\u{1B}',
    '\u{2028}',
    '\u{E000}',
];
const DECEIVING: &str = "pay\u{202E}llor\u{200B}\u{E0041} \u{1B}[31m\u{85}x";

fn api(kept: Kept, valve: &Valve) -> Api {
    Api::builder(kept).valve(valve).settings("[admin]\nsocket = \"keygate.sock\"\n").start()
}

/// What a command prints that goes to this gateway.
fn run(api: &Api, arguments: &[&str]) -> Ran {
    let output = keygate(api.gateway.folder(), arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

#[track_caller]
fn done(api: &Api, arguments: &[&str]) -> Ran {
    let ran = run(api, arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
    ran
}

fn line(org: &str, name: &str) -> String {
    let secret = guess();
    let sha256: String = Sha256::digest(&secret).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "organization_id": org, "name": name, "environment": "live", "scopes": ["jobs:read"], "sha256": sha256,
        "last_four": &secret[secret.len() - 4..],
    })
    .to_string()
}

fn a_text_with_such_a_character_is_refused_by_every_operation(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    let key = api.create(&root, &json!({ "name": "a key" }));
    for odd in ODD {
        let text = format!(" pay{odd}roll");
        let told = format!("has U+{:04X} as character 5: ", odd as u32);
        let is_told = |field: &str, details: &[(String, String)]| {
            details.iter().any(|(name, message)| {
                name == field && message.starts_with(&told) && message.ends_with("; leave it out")
            })
        };
        let wrong = json!({ "name": text, "owner": text, "note": text });
        for answer in [api.post(&root, "/v1/api_keys", &wrong), api.patch(&root, &key.path(), &wrong)] {
            let details = refused(&answer, 400, "validation_error");
            assert_eq!(details.len(), 3, "{odd:?}: {details:?}");
            for field in ["name", "owner", "note"] {
                assert!(is_told(field, &details), "{odd:?}: {details:?}");
            }
        }
        let stranger = json!({ "name": text, "email": "bob@example.com" });
        let answer = api.ask(&json_call("POST", "/v1/auth/signup", &stranger));
        let details = refused(&answer, 400, "validation_error");
        assert!(details.len() == 1 && is_told("name", &details), "{odd:?}: {details:?}");
    }
    // The names of unknown fields come back to whoever sent them; a terminal must not obey them.
    let answer = api.post(&root, "/v1/api_keys", &json!({ "name": "x", "a\u{202E}b": 1 }));
    assert_eq!(refused(&answer, 400, "validation_error")[0].0, "a\u{202E}b");
    assert!(answer.text().contains("a\\u202eb"), "{}", answer.text());
    assert_eq!(api.keys(&root).len(), 2, "nothing was made");
}

fn what_people_write_every_day_is_taken_as_it_is(kept: Kept) {
    let api = Api::start(kept);
    let (_, root) = api.sign_up("ada@example.com");
    for name in [
        "👩\u{200D}💻 Ada’s laptop",
        "❤\u{FE0F}\u{200D}🔥 1\u{FE0F}\u{20E3}",
        "نامه\u{200C}ای",
        "ශ\u{DCA}\u{200D}රී ලංකා",
        "Größe, наука, 東京, שלום",
    ] {
        let made = api.post(&root, "/v1/api_keys", &json!({ "name": name, "note": "one\ntwo" }));
        let key = ApiKey::of(&made);
        assert_eq!(api.get(&root, &key.path()).json()["name"], name);
        assert!(made.text().contains(name), "{}", made.text());
    }
}

fn commands_and_lines_of_an_import_are_refused_and_say_where_the_character_is(kept: Kept) {
    let api = api(kept, &Valve::new());
    let (org, root) = api.sign_up("ada@example.com");
    let key = api.create(&root, &json!({ "name": "a key" }));
    let odd = "pay\u{202E}roll";
    let told = "has U+202E as character 4: it changes the direction of the text around it; leave it out";
    let create = ["keys", "create", "--org", &org, "--all-scopes", "--name"];
    for (arguments, field) in [
        ([&create[..], &[odd]].concat(), "name"),
        ([&create[..], &["x", "--owner", odd]].concat(), "owner"),
        ([&create[..], &["x", "--note", odd]].concat(), "note"),
        ([&create[..], &["x", "--reason", odd]].concat(), "reason"),
        (vec!["keys", "edit", &key.id, "--name", odd], "name"),
        (vec!["orgs", "create", odd], "name"),
        (vec!["orgs", "rename", &org, odd], "name"),
    ] {
        let ran = run(&api, &arguments);
        assert_eq!((ran.code, &*ran.out), (1, ""), "{arguments:?}: {ran:?}");
        assert_eq!(ran.err, format!("keygate: {field}: {told}\n"), "{arguments:?}");
    }
    let lines = [line(&org, "first"), line(&org, odd), line(&org, "third")];
    let file = api.gateway.folder().join("keys.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let imported = run(&api, &["keys", "import", "keys.jsonl"]);
    assert_eq!(imported.code, 1, "{imported:?}");
    assert!(imported.out.starts_with("2 imported, 0 already present, 1 refused\n"), "{imported:?}");
    assert!(imported.err.contains(&format!("keygate: line 2: name: {told}\n")), "{imported:?}");
}

#[track_caller]
fn assert_seen(what: &[&str], text: &str, escape: &str) {
    assert_eq!(Unseen::first_in_lines(text), None, "{what:?}: {text:?}");
    assert!(text.contains(escape), "{what:?}: {text}");
}

fn what_an_older_release_took_is_served_and_shown_escaped(kept: Kept) {
    let valve = Valve::new();
    let api = api(kept, &valve);
    let (org, root) = api.sign_up("ada@example.com");
    let keys: Vec<ApiKey> = (0..2).map(|_| api.create(&root, &json!({ "name": "a key" }))).collect();
    let (first, second) = (&*keys[0].id, &*keys[1].id);
    api.gateway.block_on(async {
        for key in &keys {
            let change = |record: &mut KeyRecord| {
                DECEIVING.clone_into(&mut record.name);
                (record.owner, record.note) = (Some(DECEIVING.to_owned()), Some(DECEIVING.to_owned()));
                DECEIVING.clone_into(&mut record.created_by);
            };
            valve.change_key(KeyId::parse(&key.id).unwrap(), change).await;
        }
        valve.change_org(OrgId::parse(&org).unwrap(), |record| DECEIVING.clone_into(&mut record.name)).await;
    });
    eventually("the key with that name works", || api.works(&keys[0].secret));

    let answer = api.get(&root, &keys[0].path());
    assert_seen(&["the API"], &answer.text(), "pay\\u202ellor\\u200b\\udb40\\udc41 \\u001b[31m\\u0085x");
    let json = answer.json();
    let fields = [&json["name"], &json["owner"], &json["note"], &json["created_by"]];
    assert_eq!(fields, [DECEIVING; 4]);

    for arguments in [
        &["keys", "list"][..],
        &["keys", "show", first],
        &["keys", "edit", first, "--reason", "ticket", "--no-note"],
        &["keys", "disable", first],
        &["keys", "enable", first],
        &["keys", "list", "--org", &org],
        &["orgs", "list"],
        &["orgs", "show", &org],
        &["audit", "list"],
    ] {
        let ran = done(&api, arguments);
        assert_seen(
            arguments,
            &(ran.out + &ran.err),
            "pay\\u{202e}llor\\u{200b}\\u{e0041} \\u{1b}[31m\\u{85}x",
        );
        let ran = done(&api, &[arguments, &["--json"]].concat());
        let lines: Vec<Value> = ran.json();
        assert!(!lines.is_empty(), "{arguments:?}");
        assert_eq!(Unseen::first_in_lines(&ran.out), None, "{arguments:?}: {ran:?}");
    }
    let shown = &done(&api, &["keys", "show", first, "--json"]).json()[0];
    assert_eq!([&shown["name"], &shown["owner"]], [DECEIVING; 2]);
    // Each of them asks first, and there is no terminal to ask on.
    for arguments in [
        &["keys", "rotate", first, "--overlap", "0s"][..],
        &["keys", "revoke", first],
        &["keys", "revoke", first, second],
        &["orgs", "suspend", &org],
    ] {
        let ran = run(&api, arguments);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert_seen(arguments, &ran.err, "\\u{202e}llor");
    }
    let renamed = done(&api, &["orgs", "rename", &org, "Example Ltd"]);
    assert_eq!(renamed.out, format!("renamed {org} (Example Ltd)\n"));
    let before = done(&api, &["audit", "export", "--org", &org]);
    assert_seen(&["audit export"], &before.out, "\"before\":{\"name\":\"pay\\u202ellor");

    let exported = done(&api, &["keys", "export", "--org", &org]);
    assert_seen(&["keys export"], &exported.out, "pay\\u202ellor");
    std::fs::write(api.gateway.folder().join("keys.jsonl"), &exported.out).unwrap();
    let again = run(&api, &["keys", "import", "keys.jsonl"]);
    assert!(again.out.contains(" 2 refused\n"), "{again:?}");
    assert!(again.err.contains(": name: has U+202E as character 4"), "{again:?}");

    let revoked = done(&api, &["keys", "revoke", first, second, "--yes"]);
    assert_seen(&["keys revoke"], &revoked.out, &format!("revoked {first} (pay\\u{{202e}}llor"));
}
