//! The commands of operators, through each way to the store: socket, TCP, and the store itself.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

use crate::harness::desk::{Desk, Ran, Way, write_secret};
use crate::harness::process::keygate;
use crate::harness::{Call, Upstream, fetch};

/// The names of an object's fields, in order.
fn fields(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[track_caller]
fn made(ran: &Ran) -> (String, String) {
    let made = &ran.json()[0];
    (made["key"]["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
}

/// One line: what was done, and that it holds at the only gateway.
#[track_caller]
fn assert_told(ran: &Ran, done: &str) {
    let line = ran.out.strip_suffix('\n').unwrap();
    assert!(
        line.starts_with(&format!("{done}: confirmed=1/1; slowest_ms=")) && ran.err.is_empty(),
        "{ran:?}"
    );
    assert!(!line.contains('\n'), "{ran:?}");
}

const KEY_FIELDS: [&str; 19] = [
    "allowed_addresses",
    "created_at",
    "created_by",
    "disabled_at",
    "environment",
    "expires_at",
    "id",
    "key",
    "last_used_at",
    "name",
    "note",
    "object",
    "old_secret_ends_at",
    "organization_id",
    "owner",
    "revoked_at",
    "scopes",
    "status",
    "used_scopes",
];

#[test]
fn key_commands_behave_the_same_over_the_socket_over_tcp_and_at_the_store() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        let create = [
            "keys",
            "create",
            "--all-scopes",
            "--org",
            "Example Ltd",
            "--name",
            "billing",
            "--owner",
            "team b",
            "--note",
            "one\ntwo",
            "--allow",
        ];
        let create = desk.done(&[&create[..], &["192.0.2.7,2001:db8::/32", "--json"]].concat());
        let (id, secret) = made(&create);
        let key = &create.json()[0]["key"];
        assert_eq!(fields(key), KEY_FIELDS);
        assert_eq!(key["allowed_addresses"], json!(["192.0.2.7/32", "2001:db8::/32"]));
        assert_eq!((&key["owner"], &key["created_by"]), (&json!("team b"), &json!(desk.operator())));

        let shown = desk.done(&["keys", "show", &id]).out;
        assert!(shown.contains("\nstatus            active\n") && shown.contains("one\\ntwo"), "{shown}");
        assert!(!shown.contains(&secret));
        let edit =
            ["keys", "edit", &id, "--name", "jobs", "--no-note", "--scopes", "jobs:read", "--allow-any"];
        assert_told(&desk.done(&edit), &format!("changed {id} (jobs)"));
        let key = &desk.done(&["keys", "show", &id, "--json"]).json()[0];
        assert_eq!(
            (&key["name"], &key["note"], &key["scopes"]),
            (&json!("jobs"), &json!(null), &json!(["jobs:read"]))
        );
        assert_eq!(
            (&key["owner"], &key["allowed_addresses"]),
            (&json!("team b"), &json!([])),
            "left alone, and emptied"
        );
        let wider = desk.run(&["keys", "edit", &id, "--scopes", "jobs:read,jobs:write"]);
        assert_eq!(wider.code, 1);
        assert!(wider.err.contains("needs a reason: pass --reason"), "{wider:?}");

        assert_told(&desk.done(&["keys", "disable", &id]), &format!("disabled {id} (jobs)"));
        assert_eq!(desk.done(&["keys", "show", &id, "--json"]).json()[0]["status"], "disabled");
        desk.done(&["keys", "enable", &id]);
        let rotated = desk.done(&["keys", "rotate", &id, "--overlap", "1h"]);
        assert!(
            rotated.out.starts_with("fh_live_sk_") && rotated.out != secret,
            "the secret alone: {rotated:?}"
        );
        assert!(rotated.err.contains("the old secret stays valid until"), "{rotated:?}");
        for (unasked, arguments) in [
            ("rotate", &["keys", "rotate", &id, "--overlap", "0s"][..]),
            ("revoke", &["keys", "revoke", &id]),
        ] {
            let ran = desk.run(arguments);
            assert!(ran.code == 1 && ran.err.contains("--yes"), "{unasked}: {ran:?}");
        }
        assert_told(&desk.done(&["keys", "revoke", &id, "--yes"]), &format!("revoked {id} (jobs)"));
        assert_eq!(desk.run(&["keys", "enable", &id]).code, 1, "for ever");

        let events = desk.done(&["audit", "list", "--json"]).json();
        let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let life = ["revoked", "rotated", "enabled", "disabled", "updated", "created"]
            .map(|what| format!("key.{what}"));
        assert_eq!(types[..6], life, "newest first");
        assert_eq!(types[6..], ["org.created"]);
        assert!(
            events
                .iter()
                .all(|event| event["actor"] == json!({ "type": "operator", "name": desk.operator() }))
        );
        assert!(!events.iter().any(|event| event.to_string().contains(&secret[11..40])));
        let whole = desk.done(&["audit", "verify"]).out;
        assert_eq!(whole, "7 records in 2 trails, 0 findings\n");
    }
}

#[test]
fn organisations_are_created_suspended_and_resumed() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        let first = desk.done(&["orgs", "create", "First", "--json"]).json().remove(0);
        let fields_of_org = ["created_at", "email", "id", "name", "object", "status", "suspended_at"];
        assert_eq!(fields(&first), fields_of_org);
        let id = first["id"].as_str().unwrap();
        let (key, _) = made(&desk.done(&[
            "keys",
            "create",
            "--all-scopes",
            "--name",
            "only org needs no name",
            "--json",
        ]));
        desk.done(&["orgs", "create", "Second"]);
        let unclear = desk.run(&["keys", "create", "--all-scopes", "--name", "whose?"]);
        assert!(unclear.code == 1 && unclear.err.contains("--org"), "{unclear:?}");

        let unasked = desk.run(&["orgs", "suspend", id]);
        assert!(unasked.code == 1 && unasked.err.contains("not a terminal: pass --yes"), "{unasked:?}");
        assert_told(&desk.done(&["orgs", "suspend", id, "--yes"]), &format!("suspended {id} (First)"));
        let listed = desk.done(&["orgs", "list"]).out;
        let rows: Vec<&str> = listed.lines().collect();
        assert!(rows[1].contains("active") && rows[1].ends_with("Second"), "{listed}");
        assert!(rows[2].starts_with(id) && rows[2].contains("suspended"), "{listed}");
        desk.done(&["orgs", "resume", id]);
        desk.done(&["orgs", "verify", id]);
        assert_eq!(desk.done(&["orgs", "show", id, "--json"]).json()[0]["status"], "active");
        let of_first = desk.done(&["keys", "list", "--org", id, "--json"]).json();
        assert_eq!(of_first.len(), 1);
        assert_eq!(of_first[0]["id"], key.as_str());
        let nobody = desk.run(&["orgs", "show", "org_01J9ZQ6T5N8XKD3V4WPYB7C2HM"]);
        assert!(nobody.code == 1 && nobody.err.contains("there is no organisation"), "{nobody:?}");
    }
}

#[test]
fn keys_are_filtered_and_revoked_together() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        let key = |name: &str, more: &[&str]| {
            made(
                &desk.done(
                    &[
                        &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", name, "--json"],
                        more,
                    ]
                    .concat(),
                ),
            )
            .0
        };
        let ids = [
            key("a", &["--owner", "b"]),
            key("b", &["--environment", "test"]),
            key("c", &["--owner", "b"]),
            key("d", &[]),
        ];
        desk.done(&["keys", "disable", &ids[3]]);
        let found = |filter: &[&str]| -> Vec<String> {
            let keys = desk.done(&[&["keys", "list", "--json"], filter].concat()).json();
            keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(found(&[]), ["d", "c", "b", "a"]);
        assert_eq!(found(&["--owner", "b"]), ["c", "a"]);
        assert_eq!(found(&["--environment", "test"]), ["b"]);
        assert_eq!(found(&["--status", "disabled"]), ["d"]);
        assert_eq!(found(&["--older-than", "1d"]), [""; 0]);
        assert_eq!(found(&["--unused", "1d"]), [""; 0], "they have not had the time");
        assert_eq!(found(&["--older-than", "0s", "--unused", "0s", "--owner", "b"]), ["c", "a"]);

        let listed = desk.done(&["keys", "list", "--owner", "b"]).out;
        let unasked = desk.feed(&["keys", "revoke", "--stdin"], &listed);
        assert!(unasked.code == 1 && unasked.err.contains("--yes"), "{unasked:?}");
        let bad = desk.feed(&["keys", "revoke", "--stdin", "--yes"], &format!("{listed}nonsense\n"));
        assert!(bad.code == 1 && bad.err.contains("line 4"), "{bad:?}");
        assert_eq!(found(&["--status", "revoked"]), [""; 0], "bad input changes nothing");
        let revoked = desk.feed(&["keys", "revoke", "--stdin", "--yes"], &listed);
        assert_eq!((revoked.code, revoked.out.lines().count()), (0, 2), "{revoked:?}");
        assert_eq!(found(&["--status", "revoked"]), ["c", "a"]);
        let (one, nobodys) = (&ids[1], "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM");
        let partly = desk.run(&["keys", "revoke", one, nobodys, "--yes"]);
        assert_eq!(partly.code, 1);
        assert!(partly.err.contains(nobodys) && partly.err.contains("1 of 2"), "{partly:?}");
        assert_eq!(found(&["--status", "revoked"]), ["c", "b", "a"]);
    }
}

#[test]
fn a_key_is_revoked_with_what_was_made_with_it() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let desk = Desk::with(Way::Socket, "", [&live.url(), &test.url()]);
    let (root, secret) = desk.create_key("root");
    let (other, _) = desk.create_key("other");
    let create = |by: &str| {
        let call = Call::post("/v1/api_keys", r#"{"name":"made by a key"}"#).key(by);
        let made = fetch(desk.address(), &call).json();
        (made["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
    };
    let (child, by_child) = create(&secret);
    let (grandchild, _) = create(&by_child);
    let (aunt, _) = create(&secret);
    let active = || -> Vec<String> {
        let keys = desk.done(&["keys", "list", "--status", "active", "--json"]).json();
        keys.iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect()
    };
    let unasked = desk.run(&["keys", "revoke", &root, "--with-children"]);
    assert!(unasked.code == 1 && unasked.err.contains("--yes"), "{unasked:?}");
    assert_eq!(active().len(), 5);
    // Keys that are named twice, as descendants and by themselves, are revoked once.
    let both = ["keys", "revoke", &child, &grandchild, "--with-children", "--yes"];
    let revoked = desk.done(&both).out;
    let lines: Vec<&str> =
        revoked.lines().map(|line| line.split(": confirmed=1/1; ").next().unwrap()).collect();
    let with_it = format!("revoked {child} (made by a key), and 1 key made with it");
    assert_eq!(lines, [with_it, format!("revoked {grandchild} (made by a key)")], "{revoked}");
    assert_eq!(active(), [&*aunt, &other, &root]);
    desk.done(&["keys", "revoke", &root, "--with-children", "--yes", "--json"]);
    assert_eq!(active(), [other]);
}

#[test]
fn a_leaked_secret_is_found_without_being_an_argument() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        let (id, secret) = desk.create_key("leaky");
        let trace =
            |secret: &str| desk.feed(&["keys", "show", "--secret-stdin", "--json"], &format!("{secret}\n"));
        let found = trace(&secret);
        assert_eq!((found.code, &found.json()[0]["key"]["id"]), (0, &json!(id)));
        assert_eq!(found.json()[0]["opens"], true);
        assert!(!found.out.contains(&secret));
        let rotated = made(&desk.done(&["keys", "rotate", &id, "--overlap", "0s", "--yes", "--json"])).1;
        assert_eq!(trace(&rotated).json()[0]["opens"], true);
        let old = trace(&secret);
        assert!(old.code == 1 || old.json()[0]["opens"] == false, "{old:?}");
        let text = desk.feed(&["keys", "show", "--secret-stdin"], &rotated).out;
        assert!(text.contains(&id) && text.contains("\nthis secret       valid\n"), "{text}");
        let unknown = trace("fh_live_sk_nobodys");
        assert!(unknown.code == 1 && unknown.err.contains("no key has this secret"), "{unknown:?}");
    }
    let desk = Desk::new(Way::Store);
    let (id, secret) = desk.create_key("in a file");
    write_secret(&desk.folder().join("leak"), &secret);
    assert!(desk.done(&["keys", "show", "--secret-file", "leak"]).out.contains(&id));
}

/// The status of a command sent with these fields.
fn post(desk: &Desk, host: &str, fields: &str, body: &str) -> (u16, String) {
    let address = desk.admin_url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "POST /v1/command HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\nconnection: close\r\n"
    );
    write!(stream, "{head}{fields}\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer[9..12].parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[test]
fn the_admin_api_over_tcp_answers_only_with_a_valid_token() {
    let desk = Desk::new(Way::Tcp);
    let order = r#"{"operator":"root (uid 0)","command":{"orgs":{"create":{"name":"Mine"}}}}"#;
    let token = desk.token();
    let bearer = |token: &str| format!("authorization: Bearer {token}\r\n");
    let ended = keygate(desk.folder(), &["admin", "token", "late", "--expires-in", "1ms", "--json"])
        .output()
        .unwrap();
    let ended: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let tokens = desk.folder().join("admin-tokens");
    let own = fs::read_to_string(&tokens).unwrap();
    fs::write(&tokens, format!("{own}\n{}\n", ended["line"].as_str().unwrap())).unwrap();

    let mut refusals = Vec::new();
    for fields in [
        String::new(),
        bearer(""),
        bearer("kgadmin_0123456789012345678901234567890123456789"),
        bearer(ended["token"].as_str().unwrap()),
        format!("authorization: Basic {token}\r\n"),
    ] {
        refusals.push(post(&desk, "localhost", &fields, order));
    }
    refusals.push(post(&desk, "localhost", "", "no command"));
    assert_eq!(refusals[0].0, 401);
    assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "all alike: {refusals:#?}");

    for (host, status) in
        [("localhost", 200), ("127.0.0.1:9465", 200), ("evil.example", 421), ("localhost.evil.example", 421)]
    {
        assert_eq!(post(&desk, host, &bearer(&token), order).0, status, "{host}");
    }
    let made = desk.done(&["audit", "list", "--operator", "--json"]).json();
    assert_eq!(made.len(), 0, "an organisation's making is in its own trail");
    let orgs = desk.done(&["orgs", "list", "--json"]).json();
    let org = orgs[0]["id"].as_str().unwrap();
    let event = desk.done(&["audit", "list", "--org", org, "--json"]).json().remove(0);
    assert_eq!(event["actor"]["name"], "remote-desk", "whatever the order says");
    assert_eq!(event["ip_address"], "127.0.0.1");

    write_secret(&tokens, "# nobody any more\n");
    let dead = desk.run(&["orgs", "list"]);
    assert!(dead.code == 1 && dead.err.contains("refuses this token"), "{dead:?}");
    assert!(!dead.err.contains(&token));
}

#[test]
fn tokens_have_roles_and_organisations_and_the_list_shows_them() {
    let desk = Desk::new(Way::Tcp);
    let org = desk.done(&["orgs", "create", "First", "--json"]).json()[0]["id"].as_str().unwrap().to_owned();
    let tokens = desk.folder().join("admin-tokens");
    let add = |arguments: &[&str]| {
        let made = keygate(desk.folder(), &[&["admin", "token"], arguments, &["--json"]].concat()).output();
        let made: Value = serde_json::from_slice(&made.unwrap().stdout).unwrap();
        let before = fs::read_to_string(&tokens).unwrap();
        fs::write(&tokens, format!("{}\n{}\n", before.trim_end(), made["line"].as_str().unwrap())).unwrap();
        made["token"].as_str().unwrap().to_owned()
    };
    let reader = add(&["auditor", "--role", "read"]);
    add(&["support", "--role", "keys", "--org", &org, "--expires-in", "1ms"]);
    let list = |arguments: &[&str]| {
        let listed =
            keygate(desk.folder(), &[&["admin", "token", "list"], arguments].concat()).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8(listed.stdout).unwrap()
    };
    let text = list(&[]);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "ROLE", "STATUS", "EXPIRES", "ORGANISATIONS"]);
    for (row, expected) in rows[1..].iter().zip([
        ["remote-desk", "all", "valid", "all"],
        ["auditor", "read", "valid", "all"],
        ["support", "keys", "expired", &org],
    ]) {
        assert_eq!([row[0], row[1], row[2], row[4]], expected, "{text}");
    }
    let json: Vec<Value> =
        list(&["--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json.len(), 3);
    assert_eq!((&json[0]["organization_ids"], &json[2]["organization_ids"]), (&json!(null), &json!([org])));
    assert_eq!(
        (&json[1]["role"], &json[1]["expired"], &json[2]["expired"]),
        (&json!("read"), &json!(false), &json!(true))
    );
    assert!(!text.contains("kgadmin_"));

    let run = |arguments: &[&str]| {
        let way = ["--admin-url", desk.admin_url()];
        let mut command = keygate(desk.folder(), &[arguments, &way].concat());
        let output = command.env("KEYGATE_ADMIN_TOKEN", &reader).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&["keys", "list"]).0, 0);
    let (code, said) = run(&["keys", "create", "--name", "mine", "--all-scopes", "--org", &org]);
    assert!(code == 1 && said.contains("has the role read, and the command needs keys"), "{said}");
    for bad in [&["x", "--role", "write"][..], &["x", "--org", "First"], &[]] {
        let refused = keygate(desk.folder(), &[&["admin", "token"], bad].concat()).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn an_admin_url_needs_a_token_from_a_private_file_or_the_environment() {
    let desk = Desk::new(Way::Socket);
    let folder = tempfile::TempDir::new().unwrap();
    let run = |arguments: &[&str], token: Option<&str>| {
        let way = ["orgs", "list", "--admin-url", desk.admin_url()];
        let mut command = keygate(folder.path(), &[&way[..], arguments].concat());
        if let Some(token) = token {
            command.env("KEYGATE_ADMIN_TOKEN", token);
        }
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&[], Some(&desk.token())).0, 0);
    let (code, said) = run(&[], None);
    assert!(code == 2 && said.contains("KEYGATE_ADMIN_TOKEN"), "{said}");
    fs::write(folder.path().join("open"), desk.token()).unwrap();
    let (code, said) = run(&["--token-file", "open"], None);
    assert!(code == 2 && said.contains("chmod 600"), "{said}");
    // The token is not sent to port 80 if the port in the URL is invalid.
    for url in ["http://127.0.0.1:99999", "http://127.0.0.1:+80", "http://127.0.0.1:", "http://[junk]:80"] {
        let output = keygate(folder.path(), &["orgs", "list", "--admin-url", url]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("write http://HOST:PORT"), "{url}: {said}");
    }
}

#[test]
fn a_tokens_file_that_others_can_read_stops_the_start() {
    let desk = Desk::new(Way::Store);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(desk.folder().join("admin-tokens"), open).unwrap();
    for command in ["serve", "check"] {
        let ran = desk.run(&[command]);
        assert!(ran.code == 1 && ran.err.contains("admin.tokens_file"), "{command}: {ran:?}");
    }
}

#[test]
fn disabling_suspending_and_narrowing_take_effect_at_once() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let desk = Desk::with(Way::Socket, "", [&live.url(), &test.url()]);
    let (id, secret) = desk.create_key("a key");
    let org = desk.done(&["orgs", "list", "--json"]).json()[0]["id"].as_str().unwrap().to_owned();
    let status = || fetch(desk.address(), &Call::get("/v1/jobs").key(&secret)).status;
    assert_eq!(status(), 200);
    for (stop, refused, go) in [
        (&["keys", "disable", &id][..], 401, &["keys", "enable", &id][..]),
        (&["orgs", "suspend", &org, "--yes"], 403, &["orgs", "resume", &org]),
        (&["keys", "edit", &id, "--allow", "192.0.2.1"], 403, &["keys", "edit", &id, "--allow-any"]),
    ] {
        desk.done(stop);
        assert_eq!(status(), refused, "{stop:?}");
        desk.done(go);
        assert_eq!(status(), 200, "{go:?}");
    }
    desk.done(&["keys", "edit", &id, "--scopes", "billing:read"]);
    assert_eq!(status(), 403);
}

/// The lines that a command prints on a terminal of this width.
fn on_terminal(desk: &Desk, columns: u16, arguments: &[&str]) -> Vec<String> {
    let size = Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let own = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&own).and_then(|()| unlockpt(&own)).unwrap();
    let theirs = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(ptsname(&own, Vec::new()).unwrap().to_str().unwrap());
    let theirs = theirs.unwrap();
    tcsetwinsize(&theirs, size).unwrap();
    let mut running = keygate(desk.folder(), arguments).stdout(theirs).spawn().unwrap();
    // Reading from a terminal returns an error after the other side has closed it.
    let mut printed = Vec::new();
    let _ = fs::File::from(own).read_to_end(&mut printed);
    assert!(running.wait().unwrap().success(), "{arguments:?}");
    String::from_utf8(printed).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn tables_fit_the_terminal_and_show_whole_ids() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let desk = Desk::with(Way::Socket, "", [&live.url(), &test.url()]);
    let owner = "somebody.with.a.long.name@example.com";
    let create = [
        "keys",
        "create",
        "--all-scopes",
        "--org",
        "Example Ltd",
        "--name",
        "a key with a name of some length",
        "--owner",
        owner,
        "--json",
    ];
    let (by_operator, secret) = made(&desk.done(&create));
    let create = |by: &str, scopes: &str| {
        let body = format!("{{\"name\":\"made by a key\",\"scopes\":[{scopes}]}}");
        let call = Call::post("/v1/api_keys", body).field("content-type", "application/json").key(by);
        fetch(desk.address(), &call)
    };
    let narrow = create(&secret, "\"jobs:read\",\"keys:manage\"").json();
    let by_key = narrow["id"].as_str().unwrap();
    // The event with the longest type.
    assert_eq!(create(narrow["secret"].as_str().unwrap(), "\"jobs:write\"").status, 403);
    for columns in [80, 100, 120, 140, 200] {
        for arguments in [["audit", "list"], ["keys", "list"], ["orgs", "list"]] {
            let lines = on_terminal(&desk, columns, &arguments);
            let longest = lines.iter().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= usize::from(columns), "{columns}: {lines:#?}");
            if arguments[0] != "orgs" {
                for id in [by_operator.as_str(), by_key] {
                    assert!(lines.iter().any(|line| line.contains(id)), "{columns}: {lines:#?}");
                }
            }
        }
        let events = on_terminal(&desk, columns, &["audit", "list"]);
        let made_by_key = events.iter().find(|line| line.contains("key.created") && line.contains(by_key));
        let made_by_key = made_by_key.unwrap();
        assert_eq!(made_by_key.contains(&by_operator), columns >= 100, "who did it, whole: {made_by_key}");
    }
}

#[test]
fn completions_are_printed_for_the_usual_shells() {
    let folder = tempfile::TempDir::new().unwrap();
    for (shell, part) in
        [("bash", "complete -F _keygate"), ("zsh", "#compdef keygate"), ("fish", "complete -c keygate")]
    {
        let done = keygate(folder.path(), &["completions", shell]).output().unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success() && text.contains(part) && text.contains("secret-stdin"), "{shell}");
    }
}
