//! What an operator does in the first hours: names, lists, questions, more rights, tokens; each with all that it prints.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::desk::{Desk, Ran, Way};
use crate::harness::process::{Process, keygate};
use crate::harness::{Call, Upstream, fetch};

#[track_caller]
fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// A key that is made with these arguments: what is shown of it.
#[track_caller]
fn key(desk: &Desk, name: &str, more: &[&str]) -> Value {
    let create = ["keys", "create", "--org", "Example Ltd", "--name", name, "--json"];
    let made = desk.done(&[&create, more].concat()).json().remove(0);
    let mut key = made["key"].clone();
    key["secret"] = made["secret"].clone();
    key
}

#[track_caller]
fn assert_refused(ran: &Ran, told: &str) {
    assert_eq!((ran.code, &*ran.out, &*ran.err), (1, "", told));
}

/// A time as tables have it.
fn seconds(time: &str) -> String {
    format!("{}Z", &time[..19])
}

#[test]
fn a_question_before_the_end_of_a_key_says_whose_key_it_is() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        let billing = key(&desk, "billing", &["--owner", "team b", "--scopes", "jobs:read"]);
        let plain = key(&desk, "plain", &["--scopes", "jobs:read"]);
        let org = desk.done(&["orgs", "list", "--json"]).json().remove(0);
        let whose = format!("organisation Example Ltd ({}), active, never used", text(&org, "id"));
        let billing = format!("{} (\"billing\", owner team b, {whose})", text(&billing, "id"));
        let plain = format!("{} (\"plain\", no owner, {whose})", text(&plain, "id"));
        let id = |shown: &str| shown.split(' ').next().unwrap().to_owned();
        let ask = "keygate: not a terminal: pass --yes to say yes to this: ";

        let one = desk.run(&["keys", "revoke", &id(&billing)]);
        assert_refused(&one, &format!("{ask}Revoke {billing}? This cannot be undone.\n"));
        let two = desk.run(&["keys", "revoke", &id(&billing), &id(&plain)]);
        let lines = format!("  {billing}\n  {plain}\n");
        assert_refused(&two, &format!("{lines}{ask}Revoke these 2 keys? This cannot be undone.\n"));
        let rotate = desk.run(&["keys", "rotate", &id(&plain), "--overlap", "0s"]);
        assert_refused(&rotate, &format!("{ask}End the present secret of {plain} immediately?\n"));
        let suspend = desk.run(&["orgs", "suspend", "Example Ltd"]);
        let (org, made) = (text(&org, "id"), seconds(text(&org, "created_at")));
        assert_refused(
            &suspend,
            &format!(
                "{ask}Refuse all requests with keys of Example Ltd ({org}, no e-mail address, created {made})?\n"
            ),
        );
    }
}

#[test]
fn every_command_about_a_key_that_is_not_there_says_which_and_what_to_do() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        key(&desk, "a key", &["--scopes", "jobs:read"]);
        let id = "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM";
        let told = format!(
            "keygate: there is no key {id}; `keygate keys list` shows all of them, without those that ended longer ago than \
             store.keep_ended\n"
        );
        for words in [
            &["show", id][..],
            &["edit", id, "--name", "another"],
            &["disable", id],
            &["enable", id],
            &["rotate", id, "--yes"],
            &["rotate", id, "--overlap", "0s"],
            &["revoke", id],
            &["revoke", id, "--yes"],
            &["revoke", id, "--with-children"],
            &["revoke", id, "--with-children", "--yes"],
        ] {
            let ran = desk.run(&[&["keys"], words].concat());
            // Several may be revoked at once, so each has its line and all have a count.
            let expected = match words {
                ["revoke", _, "--yes"] => format!(
                    "keygate: {id} was not revoked: {}keygate: 1 of 1 keys were not revoked\n",
                    told.trim_start_matches("keygate: ")
                ),
                _ => told.clone(),
            };
            assert_eq!((ran.code, &*ran.out, &*ran.err), (1, "", &*expected), "{words:?} by {way:?}");
        }
        let org = "org_01J9ZQ6T5N8XKD3V4WPYB7C2HM";
        let told =
            format!("keygate: there is no organisation {org}; `keygate orgs list` shows all of them\n");
        for words in [&["show", org][..], &["suspend", org], &["suspend", org, "--yes"], &["resume", org]] {
            let ran = desk.run(&[&["orgs"], words].concat());
            assert_eq!((ran.code, &*ran.out, &*ran.err), (1, "", &*told), "{words:?} by {way:?}");
        }
    }
}

#[test]
fn a_list_of_keys_shows_whose_they_are_what_they_may_do_and_when_they_expire() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        let first = key(&desk, "first", &["--scopes", "jobs:write,jobs:read", "--owner", "team b"]);
        let second =
            key(&desk, "second", &["--scopes", "jobs:read", "--environment", "test", "--expires-in", "10d"]);
        let third = key(&desk, "third", &["--scopes", "jobs:read", "--expires-in", "20d"]);
        let head = "ID                              KEY               STATUS    ENV   ORGANISATION              SCOPES                                    EXPIRES               LAST USED             CREATED               OWNER                     NAME\n";
        let row = |key: &Value, env: &str, scopes: &str, owner: &str| {
            let (id, masked, name) = (text(key, "id"), text(key, "key"), text(key, "name"));
            let end = key["expires_at"].as_str().map_or_else(|| "never".to_owned(), seconds);
            let made = seconds(text(key, "created_at"));
            format!(
                "{id}  {masked:<16}  active    {env}  {:<24}  {scopes:<40}  {end:<20}  {:<20}  {made}  {owner:<24}  {name}\n",
                "Example Ltd", "never"
            )
        };
        let first = row(&first, "live", "jobs:read,jobs:write", "team b");
        let second = row(&second, "test", "jobs:read", "");
        let third = row(&third, "live", "jobs:read", "");
        let list = |more: &[&str]| desk.done(&[&["keys", "list"], more].concat()).out;
        assert_eq!(list(&[]), format!("{head}{third}{second}{first}"));
        assert_eq!(list(&["--expires-within", "15d"]), format!("{head}{second}"));
        assert_eq!(
            list(&["--expires-within", "30d", "--org", "Example Ltd"]),
            format!("{head}{third}{second}")
        );
        assert_eq!(list(&["--expires-within", "1d"]), head);
    }
}

#[test]
fn an_operator_gives_more_rights_and_a_later_end_with_a_reason_that_the_trail_keeps() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let desk = Desk::with(Way::Socket, "", [&live.url(), &test.url()]);
    let made = key(&desk, "billing", &["--scopes", "jobs:read", "--expires-in", "1h"]);
    let (id, secret) = (text(&made, "id"), text(&made, "secret"));
    let edit = |more: &[&str]| desk.run(&[&["keys", "edit", id], more].concat());
    let submit = || fetch(desk.address(), &Call::post("/v1/jobs", "{}").key(secret)).status;
    assert_eq!(submit(), 403);
    let more = ["--scopes", "jobs:read,jobs:write", "--expires-in", "2h"];
    let needs = "would become wider, and that needs a reason: pass --reason";
    assert_refused(&edit(&more), &format!("keygate: scopes: {needs}; expires_at: {needs}\n"));
    assert_eq!(submit(), 403);
    let unknown = edit(&["--scopes", "jobs:read,jobs:rite", "--reason", "x"]);
    assert!(unknown.code == 1 && unknown.err.contains("there is no scope jobs:rite"), "{unknown:?}");
    let odd = edit(&[&more[..], &["--reason", "\u{7}"]].concat());
    assert_refused(
        &odd,
        "keygate: reason: has U+0007 as character 1: it is a control character; leave it out\n",
    );

    let done = edit(&[&more[..], &["--reason", "ticket 4711"]].concat());
    let changed = format!("changed {id} (billing): confirmed=1/1; slowest_ms=");
    assert!(done.code == 0 && done.out.starts_with(&changed) && done.err.is_empty(), "{done:?}");
    assert_ne!(submit(), 403, "at once, though it was cached");
    let shown = desk.done(&["keys", "show", id, "--json"]).json().remove(0);
    assert!(text(&shown, "expires_at") > text(&made, "expires_at"));
    let event = desk.done(&["audit", "list", "--type", "key.updated", "--json"]).json().remove(0);
    assert_eq!(event["actor"], json!({ "type": "operator", "name": desk.operator() }));
    assert_eq!(event["before"], json!({ "scopes": ["jobs:read"], "expires_at": made["expires_at"] }));
    let after = json!({
        "scopes": ["jobs:read", "jobs:write"], "expires_at": shown["expires_at"], "reason": "ticket 4711"
    });
    assert_eq!(event["after"], after);
    let table = desk.done(&["audit", "list", "--type", "key.updated"]).out;
    assert!(table.contains("reason=ticket 4711"), "{table}");

    // Fewer rights need no reason, and may have one. Less is what a key's holder may do too.
    assert_eq!(edit(&["--scopes", "jobs:read"]).code, 0);
    assert_eq!(submit(), 403);
    desk.done(&["keys", "revoke", id, "--yes", "--reason", "leaked"]);
    let event = desk.done(&["audit", "list", "--type", "key.revoked", "--json"]).json().remove(0);
    assert_eq!(event["after"], json!({ "status": "revoked", "reason": "leaked" }));
    let wider = edit(&[&more[..], &["--reason", "ticket 4712"]].concat());
    assert_refused(&wider, &format!("keygate: {id} is revoked\n"));
    assert_eq!(desk.done(&["audit", "verify"]).out, "5 records in 2 trails, 0 findings\n");
}

#[test]
fn an_expired_key_lives_again_by_an_operator_and_a_revoked_one_never() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let desk = Desk::with(Way::Socket, "", [&live.url(), &test.url()]);
    let short = ["--scopes", "jobs:read", "--expires-in", "1s"];
    let [expired, revoked] = ["expired", "revoked"].map(|name| key(&desk, name, &short));
    let status = |key: &Value| fetch(desk.address(), &Call::get("/v1/jobs").key(text(key, "secret"))).status;
    desk.done(&["keys", "revoke", text(&revoked, "id"), "--yes"]);
    crate::harness::eventually("it expires", || status(&expired) == 401);
    let id = text(&expired, "id");
    let edit = |id: &str, more: &[&str]| desk.run(&[&["keys", "edit", id], more].concat());
    let ended = format!("keygate: {id} has expired; an operator can give it a later end\n");
    assert_refused(&edit(id, &["--note", "x", "--reason", "y"]), &ended);
    let needs = "keygate: expires_at: would become wider, and that needs a reason: pass --reason\n";
    assert_refused(&edit(id, &["--expires-in", "1h"]), needs);
    let again = ["--expires-in", "1h", "--reason", "the customer paid"];
    let changed = edit(id, &again).out;
    assert!(changed.starts_with(&format!("changed {id} (expired): confirmed=1/1; slowest_ms=")), "{changed}");
    assert_eq!(status(&expired), 200, "at once");
    let event = desk.done(&["audit", "list", "--type", "key.updated", "--json"]).json().remove(0);
    assert_eq!(text(&event["after"], "reason"), "the customer paid");
    assert_refused(&edit(id, &["--no-expiry"]), needs);
    assert_eq!(edit(id, &["--no-expiry", "--reason", "for good"]).code, 0);
    assert_eq!(desk.done(&["keys", "show", id, "--json"]).json()[0]["expires_at"], Value::Null);
    let gone = text(&revoked, "id");
    assert_refused(&edit(gone, &again), &format!("keygate: {gone} is revoked\n"));
    assert_eq!(status(&revoked), 401);
}

#[test]
fn a_first_key_with_a_mistake_makes_no_organisation() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        let create = ["keys", "create", "--org", "Example Ltd", "--name", "a"];
        let ran = desk.run(&[&create[..], &["--scopes", "jobs:raed"]].concat());
        assert!(ran.code == 1 && ran.out.is_empty() && ran.err.contains("jobs:raed"), "{ran:?}");
        assert!(!ran.err.contains("created"), "{ran:?}");
        let right = desk.done(&[&create[..], &["--scopes", "jobs:read"]].concat());
        assert!(right.err.contains("created the first organisation"), "{right:?}");
        assert_eq!(desk.done(&["orgs", "list", "--json"]).json().len(), 1);
    }
}

#[test]
fn an_organisation_is_meant_by_its_name_wherever_an_id_may_stand() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        let create = ["keys", "create", "--scopes", "jobs:read", "--name", "a", "--org"];
        let first = desk.done(&[&create[..], &["Example Ltd"]].concat());
        let org = desk.done(&["orgs", "show", "Example Ltd", "--json"]).json().remove(0);
        let id = text(&org, "id");
        let made = format!("created the first organisation, Example Ltd ({id})\n");
        assert!(first.err.contains(&made), "{first:?}");
        desk.done(&[&create[..], &["Example Ltd"]].concat());
        assert_eq!(desk.done(&["orgs", "list", "--json"]).json().len(), 1, "the second key makes none");
        desk.done(&["orgs", "create", "Other"]);
        for list in [
            &["keys", "list", "--json", "--org", "Example Ltd"][..],
            &["keys", "export", "--org", "Example Ltd"],
            &["audit", "list", "--json", "--type", "key.created", "--org", "Example Ltd"],
            &["audit", "export", "--type", "key.created", "--org", "Example Ltd"],
        ] {
            assert_eq!(desk.done(list).json().len(), 2, "{list:?}");
        }
        let key = desk.done(&["keys", "list", "--json"]).json().remove(0);
        let shown = desk.done(&["keys", "show", text(&key, "id")]).out;
        assert!(shown.contains(&format!("\norganisation      Example Ltd ({id})\n")), "{shown}");
        for (command, done) in [("suspend", "suspended"), ("resume", "resumed"), ("verify", "verified")] {
            let yes: &[&str] = if command == "suspend" { &["--yes"] } else { &[] };
            let ran = desk.done(&[&["orgs", command, "Example Ltd"], yes].concat());
            let told = format!("{done} {id} (Example Ltd): confirmed=1/1; slowest_ms=");
            assert!(ran.out.starts_with(&told), "{ran:?}");
        }
        let renamed = desk.done(&["orgs", "rename", "Example Ltd", "Example Group", "--reason", "merged"]);
        assert_eq!(renamed.out, format!("renamed {id} (Example Group)\n"));
        let event = desk.done(&["audit", "list", "--type", "org.renamed", "--json"]).json().remove(0);
        assert_eq!(event["before"], json!({ "name": "Example Ltd" }));
        assert_eq!(event["after"], json!({ "name": "Example Group", "reason": "merged" }));
        let nobody = |name: &str| {
            format!("keygate: there is no organisation {name:?}; `keygate orgs list` shows all of them\n")
        };
        assert_refused(&desk.run(&["orgs", "show", "Example Ltd"]), &nobody("Example Ltd"));
        let other = desk.done(&["orgs", "rename", "Other", "Example Group", "--json"]).json().remove(0);
        let twice = desk.run(&["orgs", "show", "Example Group"]);
        let ids = format!("{}, {id}", text(&other, "id"));
        let told = "keygate: 2 organisations have the name \"Example Group\":";
        assert_refused(&twice, &format!("{told} {ids}; name one by its id\n"));
        assert_eq!(desk.run(&["orgs", "rename", id, " "]).code, 1);
    }
}

#[test]
fn a_token_is_added_to_its_file_and_check_and_the_gateway_take_it() {
    for way in [Way::Store, Way::Tcp] {
        let desk = Desk::new(way);
        let tokens = desk.folder().join("admin-tokens");
        // As an editor may leave it: without the end of its last line.
        let own = fs::read_to_string(&tokens).unwrap();
        fs::write(&tokens, own.trim_end()).unwrap();
        let add =
            |file: &str| keygate(desk.folder(), &["admin", "token", "ci", "--add", file]).output().unwrap();
        let added = add("admin-tokens");
        let told = "added ci to admin-tokens; the token is shown only now:\n";
        assert_eq!(
            (added.status.code(), String::from_utf8(added.stderr).unwrap()),
            (Some(0), told.to_owned())
        );
        let token = String::from_utf8(added.stdout).unwrap();
        assert!(token.starts_with("kgadmin_") && token.lines().count() == 1, "the token alone");
        let lines = fs::read_to_string(&tokens).unwrap();
        assert_eq!(
            (lines.lines().count(), lines.ends_with('\n'), lines.contains(token.trim())),
            (2, true, false)
        );
        let check = keygate(desk.folder(), &["check"]).output().unwrap();
        assert_eq!(check.status.code(), Some(0), "{}", String::from_utf8_lossy(&check.stderr));
        if way == Way::Tcp {
            let list = ["orgs", "list", "--json", "--admin-url", desk.admin_url()];
            let list =
                keygate(desk.folder(), &list).env("KEYGATE_ADMIN_TOKEN", token.trim()).output().unwrap();
            assert_eq!(list.status.code(), Some(0), "{}", String::from_utf8_lossy(&list.stderr));
        }
        assert_eq!(add("fresh").status.code(), Some(0));
        let mode = |file: &str| fs::metadata(desk.folder().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("fresh"), 0o600);
        fs::set_permissions(&tokens, PermissionsExt::from_mode(0o644)).unwrap();
        let open = add("admin-tokens");
        assert_eq!((open.status.code(), &*open.stdout), (Some(1), &b""[..]), "no token that nobody can use");
        assert!(String::from_utf8(open.stderr).unwrap().contains("chmod 600 admin-tokens"));
        assert_eq!(fs::read_to_string(&tokens).unwrap(), lines);
    }
}

#[test]
fn trails_are_listed_together_and_exported_since_a_time() {
    let desk = Desk::new(Way::Socket);
    for org in ["Ada", "Bob", "Eve"] {
        desk.done(&["orgs", "create", org]);
        desk.done(&["keys", "create", "--org", org, "--name", "a", "--scopes", "jobs:read"]);
    }
    let list = |more: &[&str]| desk.done(&[&["audit", "list", "--json"], more].concat()).json();
    let all = list(&[]);
    let told: Vec<(&str, &str)> =
        all.iter().map(|event| (text(event, "type"), text(event, "trail"))).collect();
    let orgs = desk.done(&["orgs", "list", "--json"]).json();
    let expected: Vec<(&str, &str)> = orgs
        .iter()
        .flat_map(|org| ["key.created", "org.created"].map(|kind| (kind, text(org, "id"))))
        .collect();
    assert_eq!(told, expected, "newest first, of all trails");
    assert_eq!(list(&["--org", "all"]), all);
    assert_eq!(list(&["--limit", "3"]), all[..3]);
    assert_eq!(list(&["--limit", "0"]), [Value::Null; 0]);
    assert_eq!(list(&["--org", "Bob"]), all[2..4]);
    assert_eq!(list(&["--operator"]), [Value::Null; 0]);
    let table = desk.done(&["audit", "list", "--limit", "1"]).out;
    assert!(table.contains("ORGANISATION") && table.contains("  Eve  "), "{table}");

    let export = |more: &[&str]| desk.done(&[&["audit", "export"], more].concat()).json();
    assert_eq!(export(&[]).len(), 6);
    let bobs = text(&all[3], "created_at");
    let since: Vec<Value> = export(&["--since", bobs]);
    assert!(since.iter().all(|event| text(event, "created_at") >= bobs), "{since:#?}");
    assert_eq!(since.len(), all.iter().filter(|event| text(event, "created_at") >= bobs).count());
    assert_eq!(export(&["--until", "1h"]).len(), 0);
    assert_eq!(export(&["--since", "1h", "--type", "org.created", "--org", "all"]).len(), 3);
}

#[test]
fn other_commands_find_the_demonstration_in_its_folder() {
    let folder = TempDir::new().unwrap();
    let mut dev = Process::keygate(folder.path(), &["dev", "--listen", "127.0.0.1:0"]);
    dev.out_line("Each request is shown below");
    let list = keygate(folder.path(), &["keys", "list", "--json", "--status", "active"]).output().unwrap();
    let told = "keygate: this is the demonstration of `keygate dev`: .keygate/keygate.toml\n";
    assert_eq!((list.status.code(), String::from_utf8(list.stderr).unwrap()), (Some(0), told.to_owned()));
    assert_eq!(String::from_utf8(list.stdout).unwrap().lines().count(), 3);
    dev.terminate();
    dev.wait();
    // The folder's own configuration comes first.
    assert!(keygate(folder.path(), &["init"]).output().unwrap().status.success());
    let list = keygate(folder.path(), &["keys", "list", "--json"]).output().unwrap();
    assert_eq!((list.stdout, list.stderr), (Vec::new(), Vec::new()));
}

#[test]
fn the_systemd_unit_may_bind_ports_below_1024_and_nothing_more() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/keygate.service");
    let unit = fs::read_to_string(unit).unwrap();
    let lines: Vec<&str> = unit.lines().filter(|line| line.contains("Capabilit")).collect();
    assert_eq!(
        lines,
        ["CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "AmbientCapabilities=CAP_NET_BIND_SERVICE"]
    );
}
