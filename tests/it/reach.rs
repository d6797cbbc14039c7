//! How far a change has come: what the API, the commands and the metrics tell of gateways that do not confirm it, and of
//! those whose lease has lapsed; and for whom a change waits.

use std::os::unix::net::UnixListener;
use std::thread;

use serde_json::Value;

use crate::harness::api::json_call;
use crate::harness::metrics::{scrape, value};
use crate::harness::process::keygate;
use crate::harness::{
    Call, Chaos, Gateway, GatewayBuilder, PATIENCE, Process, RedisServer, TestKey, Upstream, Weather,
    eventually, is_linked, status,
};

/// A gateway on this Redis, whose operations are never too late on a busy machine.
fn on(url: &str, settings: &str) -> GatewayBuilder {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    Gateway::builder().api(&live, &test).settings(&format!(
        "[store]\nkind = \"redis\"\nurl = \"{url}\"\nallow_without_pepper = true\nconnect_timeout = \"10s\"\n\
         lookup_timeout = \"10s\"\ncommand_timeout = \"10s\"\n[ops]\nlisten = \"127.0.0.1:0\"\n\
         [admin]\nsocket = \"admin.sock\"\n{settings}"
    ))
}

fn start(builder: GatewayBuilder) -> Gateway {
    let gateway = builder.start();
    eventually("it is linked", || is_linked(&gateway));
    gateway
}

/// A gateway that holds a lease and confirms nothing.
fn ghost(redis: &RedisServer) {
    redis.command(&["SET", "{kg}:gateway:ghost", "0", "PX", "600000"]);
    redis.command(&["SADD", "{kg}:gateways", "ghost"]);
}

/// What an older process has left behind that was killed more than 10 s ago.
fn left_behind(redis: &RedisServer, gateway: &str) {
    redis.command(&["SET", &format!("{{kg}}:gateway:{gateway}:serves"), "0 370000", "PX", "300000"]);
    redis.command(&["SADD", "{kg}:gateways:serving", gateway]);
}

/// The propagation in the answer to a revocation.
#[track_caller]
fn told(gateway: &Gateway, admin: &TestKey, key: &TestKey) -> String {
    let call = Call::new("DELETE", &format!("/v1/api_keys/{}", key.id())).key(&admin.secret);
    let answer = gateway.fetch(&call);
    assert_eq!(answer.status, 204, "{}", answer.text());
    answer.field("keygate-propagation").unwrap().to_owned()
}

/// Exit code, standard output and standard error of a command beside this gateway.
fn run(gateway: &Gateway, arguments: &[&str]) -> (i32, String, String) {
    let output = keygate(gateway.folder(), arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn metric(gateway: &Gateway, series: &str) -> Option<f64> {
    value(&scrape(gateway.ops_address()), series)
}

/// Two gateways with a key that both know; the second is behind this network. The name of the second.
fn pair(redis: &RedisServer, settings: &str) -> (Gateway, Gateway, Chaos, String) {
    let chaos = Chaos::before(redis.address());
    let a = start(on(&redis.url(), settings));
    let b = start(on(&chaos.url(), settings).org(a.org));
    let others = || a.block_on(a.lifecycle().keeper().status()).gateways;
    eventually("both hold leases", || others().len() == 2);
    let other = others().into_iter().find(|lease| !lease.own).unwrap().gateway;
    (a, b, chaos, other)
}

#[test]
fn a_gateway_whose_lease_has_lapsed_is_told_until_it_is_back_or_has_given_up() {
    let redis = RedisServer::start();
    let (a, b, chaos, name) = pair(&redis, "[keys]\nack_wait = \"10s\"");
    let (admin, key, other, last) = (a.live_key(), a.live_key(), a.live_key(), a.live_key());
    assert_eq!([&a, &b].map(|gateway| status(gateway, &key)), [200; 2]);
    chaos.turn(Weather::Cut);
    // Redis' clock cannot be shifted, but a lease can be made to end now.
    assert_eq!(redis.command(&["PEXPIRE", &format!("{{kg}}:gateway:{name}"), "1"]), ":1\r\n");
    eventually("the lease has ended", || a.block_on(a.lifecycle().keeper().status()).gateways.len() == 1);

    let said = told(&a, &admin, &key);
    assert!(said.starts_with("confirmed=1/2; lapsed=1; slowest_ms="), "{said}");
    assert_eq!(status(&b, &key), 200, "it cannot know, which nobody has claimed");
    let id = key.id().to_string();
    let (_, shown, _) = run(&a, &["keys", "show", &id]);
    assert!(shown.contains("confirmed=1/2; lapsed=1; slowest_ms=") && shown.contains(&name), "{shown}");
    eventually("it is counted", || metric(&a, "keygate_leases_lapsed") == Some(1.0));
    assert_eq!(metric(&a, "keygate_propagation_lapsed_total"), Some(1.0));
    assert_eq!(metric(&a, "keygate_propagation_unconfirmed_total"), Some(0.0), "nobody was waited for");
    let (_, listed, _) = run(&a, &["store", "status"]);
    let line = listed.lines().find(|line| line.starts_with("lapsed ")).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains(&name) && line.contains("may let keys in"), "{line}");

    chaos.turn(Weather::Fair);
    eventually("it refuses the key", || status(&b, &key) == 401);
    eventually("the store knows of it", || run(&a, &["keys", "show", &id]).1.contains("confirmed=2/2; "));
    eventually("it is not counted", || metric(&a, "keygate_leases_lapsed") == Some(0.0));
    let said = told(&a, &admin, &other);
    assert!(said.starts_with("confirmed=2/2; slowest_ms="), "{said}");
    b.drain(PATIENCE);
    let said = told(&a, &admin, &last);
    assert!(said.starts_with("confirmed=1/1; slowest_ms="), "it has given its lease up: {said}");
    assert_eq!(redis.command(&["SCARD", "{kg}:gateways:serving"]), ":1\r\n");
}

#[test]
fn a_gateway_that_has_confirmed_a_change_before_its_lease_lapsed_counts_as_one_that_has() {
    let redis = RedisServer::start();
    let a = start(on(&redis.url(), ""));
    let (admin, key) = (a.live_key(), a.live_key());
    left_behind(&redis, "gone");
    redis.command(&["SET", "{kg}:gateway:gone:serves", "1000 370000", "PX", "300000"]);
    let said = told(&a, &admin, &key);
    assert!(said.starts_with("confirmed=2/2; slowest_ms="), "{said}");
}

#[test]
fn a_gateway_that_lets_nobody_in_when_it_is_cut_off_is_not_told_as_lapsed() {
    let redis = RedisServer::start();
    let (a, _b, chaos, name) = pair(&redis, "[cache]\non_partition = \"refuse\"");
    let (admin, key) = (a.live_key(), a.live_key());
    assert_eq!(status(&a, &admin), 200);
    assert_eq!(redis.command(&["EXISTS", &format!("{{kg}}:gateway:{name}:serves")]), ":0\r\n");
    chaos.turn(Weather::Cut);
    assert_eq!(redis.command(&["PEXPIRE", &format!("{{kg}}:gateway:{name}"), "1"]), ":1\r\n");
    eventually("the lease has ended", || a.block_on(a.lifecycle().keeper().status()).gateways.len() == 1);
    let said = told(&a, &admin, &key);
    assert!(said.starts_with("confirmed=1/1; slowest_ms="), "{said}");
}

#[test]
fn what_killed_gateways_leave_behind_has_a_bound() {
    let redis = RedisServer::start();
    for n in 0..400 {
        left_behind(&redis, &format!("crashed-{n}"));
    }
    let a = start(on(&redis.url(), ""));
    eventually("256 are remembered", || metric(&a, "keygate_leases_lapsed") == Some(256.0));
    assert_eq!(redis.command(&["SCARD", "{kg}:gateways:serving"]), ":257\r\n");
    let left = redis.command(&["KEYS", "{kg}:gateway:crashed-*"]);
    assert!(left.starts_with("*256\r\n"), "{}", left.lines().next().unwrap());
}

#[test]
fn changes_wait_for_a_killed_gateway_a_few_times_and_then_only_tell_of_it_until_it_confirms() {
    const PATIENT: u64 = 1_500;
    let redis = RedisServer::start();
    let a = start(on(&redis.url(), &format!("[keys]\nack_wait = \"{PATIENT}ms\"")));
    let admin = a.live_key();
    assert_eq!(status(&a, &admin), 200);
    // Of so many revocations, those that say this, and those that have waited.
    let revoke = |count: usize, says: &str| {
        let waited = (0..count).filter(|_| {
            let said = told(&a, &admin, &a.live_key());
            assert!(said.starts_with(says), "{said}");
            said.rsplit('=').next().unwrap().parse::<u64>().unwrap() >= PATIENT
        });
        waited.count()
    };
    ghost(&redis);
    assert_eq!(revoke(20, "confirmed=1/2; "), 3, "of 20");
    redis.command(&["SET", "{kg}:gateway:ghost", "1000000", "KEEPTTL"]);
    assert_eq!(revoke(3, "confirmed=2/2; "), 0);
    redis.command(&["SET", "{kg}:gateway:ghost", "0", "KEEPTTL"]);
    assert_eq!(revoke(6, "confirmed=1/2; "), 3, "it has confirmed something since");
}

mod commands {
    use super::*;

    /// The commands that take rights away from a key, and then from its organisation, without confirmation.
    fn taking(ids: &[String; 4], org: &str) -> Vec<Vec<String>> {
        let [disabled, narrowed, rotated, revoked] = ids.each_ref().map(String::as_str);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        vec![
            words(&["keys", "disable", disabled]),
            words(&["keys", "edit", narrowed, "--scopes", "jobs:read"]),
            words(&["keys", "rotate", rotated, "--overlap", "0s", "--yes"]),
            words(&["keys", "revoke", revoked, "--yes"]),
            words(&["orgs", "suspend", org, "--yes"]),
            words(&["orgs", "resume", org]),
        ]
    }

    fn ids(gateway: &Gateway) -> [String; 4] {
        [(); 4].map(|()| gateway.live_key().id().to_string())
    }

    #[test]
    fn a_command_that_takes_rights_away_exits_with_3_until_every_gateway_with_a_lease_has_confirmed_it() {
        let redis = RedisServer::start();
        let a = start(on(&redis.url(), "[keys]\nack_wait = \"60ms\""));
        let org = a.org.to_string();
        let all = |expected: i32, says: &str, names: Option<&str>| {
            for command in taking(&ids(&a), &org) {
                let words: Vec<&str> = command.iter().map(String::as_str).collect();
                let (code, out, err) = run(&a, &words);
                assert_eq!(code, expected, "{words:?}: {out} {err}");
                assert!(format!("{out}{err}").contains(says), "{words:?}: {out} {err}");
                match names {
                    Some(name) => assert!(err.contains(name), "{words:?}: {err}"),
                    None => assert!(!err.contains("keygate:"), "{words:?}: {err}"),
                }
            }
            for command in taking(&ids(&a), &org) {
                let mut words: Vec<&str> = command.iter().map(String::as_str).collect();
                words.push("--json");
                let (code, out, err) = run(&a, &words);
                let json: Value = serde_json::from_str(&out).unwrap();
                assert_eq!((code, err.as_str()), (expected, ""), "{words:?}: {out}");
                let reach = &json["reach"];
                assert!(says.starts_with(&format!("confirmed={}/{}", reach["confirmed"], reach["gateways"])));
                let named = [&reach["awaited"], &reach["lapsed"]];
                let named: Vec<&Value> = named.iter().flat_map(|list| list.as_array().unwrap()).collect();
                assert_eq!(named, names.into_iter().collect::<Vec<_>>(), "{words:?}: {out}");
            }
        };
        // By itself only in time if the machine has some: so it is waited for.
        let key = a.live_key().id().to_string();
        let (code, out, err) = run(&a, &["keys", "disable", &key, "--wait", "20s"]);
        assert!(code == 0 && out.contains(": confirmed=1/1; slowest_ms="), "{out} {err}");
        ghost(&redis);
        all(3, "confirmed=1/2", Some("ghost"));
        redis.command(&["DEL", "{kg}:gateway:ghost"]);
        left_behind(&redis, "gone");
        let key = a.live_key().id().to_string();
        let (code, out, err) = run(&a, &["keys", "revoke", &key, "--yes", "--wait", "20s"]);
        assert!(code == 0 && out.contains(": confirmed=1/2; lapsed=1; slowest_ms="), "{out} {err}");
        assert!(err.contains("the lease of the gateway gone has lapsed"), "{err}");
    }

    #[test]
    fn a_command_waits_for_the_gateways_as_long_as_it_is_told() {
        let redis = RedisServer::start();
        let a = start(on(&redis.url(), "[keys]\nack_wait = \"60ms\""));
        ghost(&redis);
        let (key, other) = (a.live_key(), a.live_key());
        assert_eq!([status(&a, &key), status(&a, &other)], [200; 2]);
        let (id, second) = (key.id().to_string(), other.id().to_string());
        let words = ["keys", "revoke", &id, &second, "--yes", "--wait", "1s"];
        let (code, out, err) = run(&a, &words);
        assert!(code == 3 && err.contains("the gateway ghost has not confirmed it"), "{out} {err}");
        assert_eq!(out.matches(": confirmed=1/2; slowest_ms=").count(), 3, "{out}");
        assert!(out.lines().last().unwrap().starts_with("all 2 keys: "), "{out}");
        assert_eq!([status(&a, &key), status(&a, &other)], [401; 2], "it is done all the same");

        let key = a.live_key();
        assert_eq!(status(&a, &key), 200);
        let id = key.id().to_string();
        let mut revoking = Process::keygate(a.folder(), &["keys", "revoke", &id, "--yes", "--wait", "5m"]);
        eventually("it is revoked", || status(&a, &key) == 401);
        redis.command(&["SET", "{kg}:gateway:ghost", "1000000", "KEEPTTL"]);
        let line = revoking.out_line("revoked ");
        assert!(line.contains(": confirmed=2/2; slowest_ms="), "{line}");
        assert_eq!(revoking.wait().code(), Some(0));
    }

    #[test]
    fn the_key_says_how_far_its_change_has_come_while_a_gateway_is_awaited() {
        let redis = RedisServer::start();
        let a = start(on(&redis.url(), "[keys]\nack_wait = \"60ms\""));
        let (admin, key) = (a.live_key(), a.live_key());
        ghost(&redis);
        told(&a, &admin, &key);
        let id = key.id().to_string();
        let (_, shown, _) = run(&a, &["keys", "show", &id]);
        assert!(
            shown.contains("confirmed=1/2; slowest_ms=") && shown.contains("the gateway ghost"),
            "{shown}"
        );
        redis.command(&["SET", "{kg}:gateway:ghost", "1000000", "KEEPTTL"]);
        let (_, shown, _) = run(&a, &["keys", "show", &id]);
        assert!(shown.contains("confirmed=2/2; slowest_ms=") && !shown.contains("ghost"), "{shown}");
    }

    #[test]
    fn every_command_gives_up_a_gateway_that_hangs_and_works_on_the_store_itself_when_told() {
        let redis = RedisServer::start();
        let a = start(on(&redis.url(), ""));
        let id = a.live_key().id().to_string();
        let folder = tempfile::tempdir().unwrap();
        on(&redis.url(), "").write(folder.path());
        // It takes connections, and never answers.
        let _hung = UnixListener::bind(folder.path().join("admin.sock")).unwrap();
        let org = a.org.to_string();
        let commands: [&[&str]; 16] = [
            &["keys", "list"],
            &["keys", "show", &id],
            &["keys", "create", "--name", "a key", "--all-scopes", "--org", &org],
            &["keys", "edit", &id, "--name", "another"],
            &["keys", "rotate", &id],
            &["keys", "disable", &id, "--wait", "10m"],
            &["keys", "enable", &id],
            &["keys", "revoke", &id, "--yes", "--wait", "10m"],
            &["keys", "export"],
            &["orgs", "list"],
            &["orgs", "suspend", &org, "--yes", "--wait", "10m"],
            &["audit", "list"],
            &["audit", "export"],
            &["audit", "verify"],
            &["store", "status"],
            &["store", "accept", "--yes"],
        ];
        thread::scope(|scope| {
            for words in commands {
                let folder = folder.path();
                scope.spawn(move || {
                    let output = keygate(folder, words).output().unwrap();
                    let err = String::from_utf8(output.stderr).unwrap();
                    let told = "the gateway does not answer: pass --store to work on the store itself. ";
                    assert!(err.contains(told), "{words:?}: {err}");
                    assert_eq!(output.status.code(), Some(1), "{words:?}");
                });
            }
        });
        let listed = keygate(folder.path(), &["keys", "list", "--store", "--json"]).output().unwrap();
        let out = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.status.success() && out.contains(&id), "{out}");
        let revoked = keygate(folder.path(), &["keys", "revoke", &id, "--yes", "--store", "--wait", "20s"]);
        let revoked = { revoked }.output().unwrap();
        let out = String::from_utf8(revoked.stdout).unwrap();
        assert!(revoked.status.success() && out.contains(": confirmed=1/1; slowest_ms="), "{out}");
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        let folder = tempfile::tempdir().unwrap();
        for (command, codes) in [
            ("keys", &["0 ", "1 ", "2 ", "3 "][..]),
            ("orgs", &["0 ", "1 ", "2 ", "3 "]),
            ("store", &["0 ", "1 "]),
        ] {
            let help = keygate(folder.path(), &[command, "--help"]).output().unwrap().stdout;
            let help = String::from_utf8(help).unwrap().replace('\n', " ");
            let listed = help.split("Exit code: ").nth(1).unwrap_or_else(|| panic!("{command}: {help}"));
            for code in codes {
                assert!(listed.contains(code), "{command} {code}: {listed}");
            }
        }
    }
}

/// The API says the same as the commands.
#[test]
fn the_answer_to_each_change_over_the_api_tells_of_lapsed_gateways() {
    let redis = RedisServer::start();
    let a = start(on(&redis.url(), "[keys]\nack_wait = \"10s\""));
    let (admin, key) = (a.live_key(), a.live_key());
    left_behind(&redis, "gone");
    let path = format!("/v1/api_keys/{}", key.id());
    let narrow = json_call("PATCH", &path, &serde_json::json!({ "scopes": ["jobs:read"] }));
    let rotate = json_call("POST", &format!("{path}/rotate"), &serde_json::json!({ "overlap_seconds": 0 }));
    for call in [narrow, rotate, Call::new("DELETE", &path)] {
        let answer = a.fetch(&call.key(&admin.secret));
        assert!(answer.status < 300, "{}", answer.text());
        let said = answer.field("keygate-propagation").unwrap();
        assert!(said.starts_with("confirmed=1/2; lapsed=1; slowest_ms="), "{said}");
    }
}
