//! The prefix of keys changes: no key is refused for it, each shows its own, and a new one is made only when every gateway
//! accepts it.
//!
//! `KEYGATE_LONG=1 cargo test --test it prefixes:: -- --nocapture --test-threads 1` runs the change under load with 10,000
//! keys.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use keygate::lifecycle::{Imported, LifecycleError, MovedKey, PrefixError};
use keygate::vocabulary::key::{ApiKey, Environment, Prefix};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::api::{Api, Kept, on_both_stores};
use crate::harness::desk::{Desk, NOWHERE, Way, in_redis, write_secret};
use crate::harness::moved::moved_key;
use crate::harness::process::{Process, keygate};
use crate::harness::{
    Call, Chaos, Gateway, PATIENCE, PAUSE, RedisServer, SetOnDrop, Upstream, Valve, Weather, Wire,
    eventually, fetch, is_linked, is_long, operator, unhurried,
};

on_both_stores! {
    a_key_that_comes_while_a_prefix_is_removed_keeps_it
}

/// A well-formed secret that no store has.
fn guess(prefix: &str) -> String {
    ApiKey::mint(&Prefix::parse(prefix).unwrap(), Environment::Live).unwrap().expose().to_owned()
}

/// A request that falls under no route: a good key gets 404, and no upstream is needed.
fn call(secret: &str) -> Call {
    Call::get("/nowhere").key(secret)
}

fn status(address: SocketAddr, secret: &str) -> u16 {
    fetch(address, &call(secret)).status
}

/// Changes the configuration in this folder to new keys with this prefix.
fn set_prefix(folder: &Path, prefix: &str) {
    let path = folder.join("keygate.toml");
    let text = fs::read_to_string(&path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("prefix = ")).collect::<Vec<_>>().join("\n");
    let text = if lines.contains("[keys]\n") {
        lines.replacen("[keys]\n", &format!("[keys]\nprefix = \"{prefix}\"\n"), 1)
    } else {
        format!("[keys]\nprefix = \"{prefix}\"\n{lines}")
    };
    fs::write(path, text).unwrap();
}

/// A new key: its id and its secret.
fn create(desk: &Desk) -> (String, String) {
    desk.create_key("k")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// What is shown of a secret.
fn masked(secret: &str) -> String {
    format!("{}…{}", &secret[..secret.rfind('_').unwrap() + 1], &secret[secret.len() - 4..])
}

fn restart(desk: &mut Desk, prefix: &str) {
    desk.stop();
    set_prefix(desk.folder(), prefix);
    desk.serve();
}

#[test]
fn a_changed_prefix_refuses_no_key_and_each_key_shows_its_own() {
    let redis = RedisServer::start();
    for settings in [String::new(), "[keys]\npepper_file = \"pepper\"\n".to_owned(), in_redis(&redis)] {
        let mut desk = Desk::with(Way::Socket, &settings, NOWHERE);
        let (old, turned) = (create(&desk), create(&desk));
        restart(&mut desk, "kg");
        assert_eq!(status(desk.address(), &old.1), 404, "a good key, and no such route");
        eventually("new keys have the new prefix", || create(&desk).1.starts_with("kg_live_sk_"));
        let new = create(&desk);
        let rotated = text(&desk.done(&["keys", "rotate", &turned.0, "--json"]).json()[0]["secret"]);
        assert!(rotated.starts_with("kg_live_sk_"), "{rotated:.8}");

        let shown = |id: &str| {
            let listed = desk.done(&["keys", "list", "--json"]).json();
            let listed = text(&listed.iter().find(|key| key["id"] == id).unwrap()["key"]);
            assert_eq!(text(&desk.done(&["keys", "show", id, "--json"]).json()[0]["key"]), listed);
            listed
        };
        for (id, secret) in [(&old.0, &old.1), (&new.0, &new.1), (&turned.0, &rotated)] {
            assert_eq!(shown(id), masked(secret));
            let own = fetch(desk.address(), &Call::get("/v1/api_keys/self").key(secret));
            assert_eq!(text(&own.json()["key"]), masked(secret));
        }
        let exported = desk.done(&["keys", "export"]).json();
        let line = exported.iter().find(|line| line["id"] == *turned.0).unwrap();
        assert_eq!((&line["prefix"], &line["old_secret"]["prefix"]), (&json!("kg"), &json!("fh")));

        // A command that opens the store itself, and a change back.
        desk.stop();
        let direct = keygate(desk.folder(), &["keys", "list"]).output().unwrap();
        let direct = String::from_utf8(direct.stdout).unwrap();
        for secret in [&old.1, &new.1, &rotated] {
            assert!(direct.contains(&masked(secret)), "{} in {direct}", masked(secret));
        }
        set_prefix(desk.folder(), "fh");
        desk.serve();
        let good = [&old.1, &turned.1, &new.1, &rotated];
        assert_eq!(good.map(|secret| status(desk.address(), secret)), [404; 4]);
        assert!(create(&desk).1.starts_with("fh_live_sk_"));
        assert_eq!(
            [guess("fh"), guess("kg"), guess("other")].map(|key| status(desk.address(), &key)),
            [401; 3]
        );
    }
}

#[test]
fn a_key_of_another_accepted_prefix_stays_in_its_environment() {
    let (live, sandbox) = (Upstream::start("live"), Upstream::start("test"));
    let mut desk = Desk::with(Way::Socket, "", [&live.url(), &sandbox.url()]);
    let make = |desk: &Desk, environment: &str| {
        let words = [
            "keys",
            "create",
            "--all-scopes",
            "--org",
            "Example Ltd",
            "--name",
            "k",
            "--environment",
            environment,
        ];
        desk.done(&words).out.trim().to_owned()
    };
    let mut keys: Vec<_> = ["live", "test"].map(|environment| (environment, make(&desk, environment))).into();
    restart(&mut desk, "kg");
    eventually("new keys have the new prefix", || create(&desk).1.starts_with("kg_"));
    keys.extend(["live", "test"].map(|environment| (environment, make(&desk, environment))));
    for (environment, key) in &keys {
        let answer = fetch(desk.address(), &Call::get("/v1/jobs").key(key));
        assert_eq!((answer.status, answer.text().contains(environment)), (200, true), "{}", answer.text());
        let other = key.replacen(environment, if *environment == "live" { "test" } else { "live" }, 1);
        assert_eq!(fetch(desk.address(), &Call::get("/v1/jobs").key(&other)).status, 401);
    }
}

/// A lease as another gateway writes it.
struct Lease<'r>(&'r RedisServer);

impl Lease<'_> {
    fn announces(&self, what: &str, value: &str) {
        self.0.command(&["SET", &format!("{{kg}}:gateway:ghost{what}"), value]);
        self.0.command(&["SADD", "{kg}:gateways", "ghost"]);
    }

    fn ends(&self) {
        for what in ["", ":format", ":prefixes"] {
            self.0.command(&["DEL", &format!("{{kg}}:gateway:ghost{what}")]);
        }
    }
}

#[test]
fn a_new_prefix_is_made_only_when_every_gateway_accepts_it() {
    let redis = RedisServer::start();
    let mut desk = Desk::with(Way::Socket, &in_redis(&redis), NOWHERE);
    let first = create(&desk).1;
    // A gateway that only lets requests through, and keeps the configuration of before.
    let elsewhere = TempDir::new().unwrap();
    for file in ["keygate.toml", "policy.toml", "admin-tokens", "pepper"] {
        write_secret(&elsewhere.path().join(file), &fs::read_to_string(desk.folder().join(file)).unwrap());
    }
    let proxy = Process::keygate(elsewhere.path(), &["serve", "--role", "proxy"]);
    let proxy_address = proxy.address();
    eventually("the proxy knows the store", || status(proxy_address, &first) == 404);

    // One of an older release: it names a format, and no prefixes.
    let ghost = Lease(&redis);
    ghost.announces("", "0");
    ghost.announces(":format", "2");
    desk.stop();
    set_prefix(desk.folder(), "kg");
    desk.serve();
    assert!(create(&desk).1.starts_with("fh_"), "an older release would refuse another");
    assert_eq!(redis.command(&["HGET", "{kg}:meta", "format"]), "$1\r\n2\r\n", "it may come back");
    assert_eq!(redis.command(&["HGET", "{kg}:meta", "prefixes"]), "$2\r\nfh\r\n");

    // One of this release, which has not heard of the new prefix.
    ghost.announces(":format", "3");
    ghost.announces(":prefixes", "fh");
    eventually("the store accepts it", || {
        redis.command(&["HGET", "{kg}:meta", "prefixes"]) == "$5\r\nfh kg\r\n"
    });
    let kept = create(&desk).1;
    assert!(kept.starts_with("fh_"));
    let status_text = desk.done(&["store", "status"]).out;
    assert!(status_text.contains("fh, kg"), "{status_text}");
    assert!(status_text.contains("ghost, event 0, keeps format 3, accepts fh\n"), "{status_text}");

    ghost.announces(":prefixes", "fh kg");
    let mut new = String::new();
    eventually("new keys have the new prefix", || {
        new = create(&desk).1;
        // At once, and at every gateway.
        assert_eq!(
            [desk.address(), proxy_address].map(|address| status(address, &new)),
            [404; 2],
            "{new:.4}"
        );
        new.starts_with("kg_")
    });
    ghost.ends();
    for secret in [&first, &kept, &new] {
        assert_eq!([desk.address(), proxy_address].map(|address| status(address, secret)), [404; 2]);
    }
    let told = desk.done(&["audit", "list", "--operator", "--json"]).out;
    assert!(told.contains("prefix.accepted"), "{told}");
}

#[test]
fn a_gateway_that_is_cut_off_does_not_call_a_prefix_unknown() {
    let redis = RedisServer::start();
    let proxy = Chaos::before(redis.address());
    let gateway = Gateway::builder()
        .upstream("api", NOWHERE[0], NOWHERE[1])
        .settings(&format!(
            "[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n[cache]\nnegative_ttl = \"1ms\"",
            proxy.url()
        ))
        .start();
    eventually("it is linked", || is_linked(&gateway));
    let of_another = call(&guess("kg"));
    eventually("it knows the prefixes", || {
        gateway.lifecycle().prefixes().is_complete() && gateway.fetch(&of_another).status == 401
    });
    proxy.turn(Weather::Cut);
    eventually("it is cut off", || !is_linked(&gateway));
    gateway.advance(Duration::from_secs(11));
    assert_eq!(gateway.fetch(&of_another).status, 503, "another gateway may make such keys now");
    let malformed = guess("kg").replacen("_live_", "_dead_", 1);
    assert_eq!(gateway.fetch(&call(&malformed)).status, 401, "that is no key of any prefix");
}

/// The prefix is changed together with the release, so nobody ever wrote the one before down.
#[test]
fn keys_of_an_older_release_work_whatever_the_configuration_says() {
    let redis = RedisServer::start();
    let mut desk = Desk::with(Way::Socket, &in_redis(&redis), NOWHERE);
    let old = create(&desk).1;
    desk.stop();
    redis.command(&["HDEL", "{kg}:meta", "prefixes"]);
    set_prefix(desk.folder(), "kg");
    desk.serve();
    assert_eq!(status(desk.address(), &old), 404);
    let new = create(&desk).1;
    assert!(new.starts_with("kg_"));
    assert_eq!(status(desk.address(), &new), 404);
    let shown = desk.done(&["store", "status"]).out;
    assert!(shown.contains("kg, and keys with others are looked up"), "{shown}");
}

#[test]
fn a_prefix_is_accepted_and_removed_by_a_command_but_not_while_a_key_has_it() {
    let redis = RedisServer::start();
    for settings in [String::new(), in_redis(&redis)] {
        let mut desk = Desk::with(Way::Socket, &settings, NOWHERE);
        let (id, old) = create(&desk);
        let accepted = desk.done(&["store", "accept-prefix", "acme"]);
        assert_eq!(accepted.out, "accepted prefixes: fh, acme\n");
        restart(&mut desk, "kg");
        eventually("it is accepted", || {
            desk.done(&["store", "status"]).out.contains("prefixes  fh, acme, kg")
        });
        for (prefix, code, said) in [
            ("fh", 1, "1 keys that can still be used have the prefix fh; rotate or revoke them first"),
            ("kg", 1, "kg is what keys.prefix of this gateway says"),
            ("nope", 1, "nope is not among the accepted prefixes"),
            ("key", 2, "this word begins an id"),
            ("acme", 0, "accepted prefixes: fh, kg\n"),
        ] {
            let ran = desk.run(&["store", "remove-prefix", prefix]);
            assert_eq!(ran.code, code, "{ran:?}");
            assert!([ran.out, ran.err].concat().contains(said), "{said}");
        }
        let rotated = desk.done(&["keys", "rotate", &id, "--overlap", "0s", "--yes"]).out.trim().to_owned();
        assert_eq!(desk.done(&["store", "remove-prefix", "fh"]).out, "accepted prefixes: kg\n");
        assert_eq!([&old, &rotated].map(|secret| status(desk.address(), secret)), [401, 404]);
        let removed = desk.done(&["audit", "list", "--operator", "--json"]).out;
        assert!(removed.contains("prefix.removed"), "{removed}");
    }
}

/// The keys were counted, and the prefix is not removed yet.
fn a_key_that_comes_while_a_prefix_is_removed_keeps_it(kept: Kept) {
    let valve = Valve::new();
    let api = Api::builder(kept).valve(&valve).start();
    let (org, _) = api.sign_up("ada@example.com");
    let (secret, acme) = (guess("acme"), Prefix::parse("acme").unwrap());
    let line = moved_key(&secret, "moved", &json!({ "organization_id": org, "prefix": "acme" }));
    let moved: MovedKey = serde_json::from_value(line).unwrap();
    let (lifecycle, operator) = (api.gateway.lifecycle(), operator());
    api.gateway.block_on(async {
        lifecycle.accept_prefix(&operator, &acme).await.unwrap();
        valve.hold_answers();
        let removing = lifecycle.remove_prefix(&operator, &acme);
        let importing = async {
            let counted = async {
                while valve.keys_listed() == 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, counted).await.expect("keys are counted");
            let imported = lifecycle.import_keys(&operator, vec![moved], false).await.unwrap();
            assert_eq!(imported[0].outcome, Imported::New);
            valve.let_go();
        };
        let (removed, ()) = tokio::join!(removing, importing);
        let removed = removed.map(|list| list.to_string());
        assert!(
            matches!(removed, Err(LifecycleError::Prefix(PrefixError::InUse { keys: 1, .. }))),
            "{removed:?}"
        );
    });
    assert!(api.works(&secret));
}

#[test]
fn a_migration_takes_the_prefixes_along() {
    let redis = RedisServer::start();
    let mut node = Desk::with(Way::Socket, "", NOWHERE);
    let old = create(&node);
    restart(&mut node, "kg");
    eventually("new keys have the new prefix", || create(&node).1.starts_with("kg_"));
    let new = create(&node);
    node.stop();
    let mut cell = Desk::with(Way::Socket, &in_redis(&redis), NOWHERE);
    cell.stop();
    redis.command(&["FLUSHALL"]);
    let to = cell.folder().join("keygate.toml");
    let ran = node.run(&["store", "migrate", "--to", to.to_str().unwrap(), "--rechain"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    cell.serve();
    for (id, secret) in [&old, &new] {
        assert_eq!(status(cell.address(), secret), 404);
        assert_eq!(text(&cell.done(&["keys", "show", id, "--json"]).json()[0]["key"]), masked(secret));
    }
}

/// Two gateways on one Redis, as a load balancer sees them.
struct Pair {
    folders: [TempDir; 2],
    processes: [Mutex<Option<Process>>; 2],
    /// Where each takes connections; `None` while it is restarted.
    addresses: [RwLock<Option<SocketAddr>>; 2],
}

impl Pair {
    fn start(redis: &RedisServer) -> Self {
        let folder = || {
            let folder = TempDir::new().unwrap();
            Gateway::builder()
                .settings(&format!(
                    "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\ndrain_delay = \"0s\"\n[admin]\nsocket = \"admin.sock\"\n{}",
                    in_redis(redis)
                ))
                .upstream("api", NOWHERE[0], NOWHERE[1])
                .write(folder.path());
            write_secret(&folder.path().join("pepper"), &"pepper".repeat(8));
            folder
        };
        let pair = Self {
            folders: [folder(), folder()],
            processes: Default::default(),
            addresses: Default::default(),
        };
        pair.serve(0);
        pair.serve(1);
        pair
    }

    fn serve(&self, n: usize) {
        let process = Process::serve(self.folders[n].path());
        *self.addresses[n].write().unwrap() = Some(process.address());
        *self.processes[n].lock().unwrap() = Some(process);
    }

    /// Takes it out of the balance, ends it in order, and starts it with another prefix.
    fn restart(&self, n: usize, prefix: &str) {
        *self.addresses[n].write().unwrap() = None;
        let process = self.processes[n].lock().unwrap().take().unwrap();
        process.end();
        set_prefix(self.folders[n].path(), prefix);
        self.serve(n);
    }

    fn address(&self, n: usize) -> Option<SocketAddr> {
        *self.addresses[n % 2].read().unwrap()
    }

    fn create(&self, n: usize) -> String {
        let made = keygate(
            self.folders[n].path(),
            &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "k"],
        )
        .output()
        .unwrap();
        assert!(made.status.success(), "{made:?}");
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }
}

/// What each lease announces.
fn announced(redis: &RedisServer) -> Vec<String> {
    let names = redis.command(&["KEYS", "{kg}:gateway:*:prefixes"]);
    let names = names.lines().filter(|line| line.starts_with('{'));
    names.filter_map(|name| redis.command(&["GET", name]).lines().nth(1).map(str::to_owned)).collect()
}

/// Sends requests with all keys, in turns to both gateways, until it is told to stop. A connection that ends without an
/// answer, as one of a gateway that is stopped may, is replaced, and the request sent again.
fn load(
    pair: &Pair,
    keys: &RwLock<Vec<String>>,
    stop: &AtomicBool,
    next: &AtomicUsize,
) -> BTreeMap<(u16, bool), usize> {
    let mut tally = BTreeMap::new();
    let mut wires: [Option<(SocketAddr, Wire)>; 2] = [None, None];
    while !stop.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let secret = {
            let keys = keys.read().unwrap();
            keys[n / 2 % keys.len()].clone()
        };
        for turn in n.. {
            let Some(address) = pair.address(turn) else {
                thread::sleep(PAUSE);
                continue;
            };
            let wire = &mut wires[turn % 2];
            if wire.as_ref().is_none_or(|(open, _)| *open != address) {
                // The gateway may have ended since.
                let Ok(stream) = TcpStream::connect(address) else { continue };
                *wire = Some((address, Wire::from(stream)));
            }
            let Some(answer) = wire.as_mut().unwrap().1.call(&call(&secret)) else {
                *wire = None;
                continue;
            };
            if answer.fields.iter().any(|(name, value)| name == "connection" && value == "close") {
                *wire = None;
            }
            *tally.entry((answer.status, secret.starts_with("kg_"))).or_default() += 1;
            break;
        }
    }
    tally
}

#[test]
fn no_good_key_is_refused_while_the_prefix_changes_at_one_gateway_after_the_other() {
    let (count, senders) = if is_long() { (10_000, 8) } else { (300, 2) };
    let redis = RedisServer::start();
    let pair = Pair::start(&redis);
    let first = pair.create(0);
    // Imported by their hashes, which is faster than creating them; the secrets are those of keygate.
    let org = {
        let listed = keygate(pair.folders[0].path(), &["orgs", "list", "--json"]).output().unwrap();
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        text(&listed["id"])
    };
    let secrets: Vec<String> = (1..count).map(|_| guess("fh")).collect();
    let lines: Vec<String> = secrets
        .iter()
        .map(|secret| moved_key(secret, "moved", &json!({ "organization_id": org })).to_string())
        .collect();
    fs::write(pair.folders[0].path().join("keys.jsonl"), lines.join("\n")).unwrap();
    let imported = keygate(pair.folders[0].path(), &["keys", "import", "keys.jsonl"]).output().unwrap();
    assert!(imported.status.success(), "{imported:?}");
    let keys = RwLock::new([vec![first], secrets].concat());
    // So that each has to be told of the new prefix before a key is made with it.
    eventually("both refuse other prefixes", || announced(&redis) == ["fh", "fh"]);
    let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    let tally = thread::scope(|scope| {
        let senders: Vec<_> =
            (0..senders).map(|_| scope.spawn(|| load(&pair, &keys, &stop, &next))).collect();
        let over = SetOnDrop(&stop);
        // Every key at both gateways, before, between and after the restarts.
        let round = || {
            let until = next.load(Ordering::Relaxed) + 2 * keys.read().unwrap().len();
            unhurried("every key was used at both", || next.load(Ordering::Relaxed) >= until);
        };
        round();
        for n in 0..2 {
            pair.restart(n, "kg");
            let mut made = 0;
            eventually("new keys of it have the new prefix", || {
                let key = pair.create(n);
                let is_new = key.starts_with("kg_");
                // Used at both gateways from this moment on.
                keys.write().unwrap().push(key);
                made += 1;
                is_new
            });
            println!("gateway {n}: {made} keys until the new prefix");
            round();
        }
        drop(over);
        let tallies = senders.into_iter().map(|sender| sender.join().unwrap());
        tallies.reduce(|mut all, one| {
            one.into_iter().for_each(|(what, count)| *all.entry(what).or_default() += count);
            all
        })
    });
    let tally = tally.unwrap();
    println!(
        "{count} keys, {:?}: {tally:?} (status, whether it is a key with the new prefix)",
        begun.elapsed()
    );
    assert!(tally.keys().all(|(status, _)| *status == 404), "a good key was refused: {tally:?}");
    assert!(tally.contains_key(&(404, true)) && tally.contains_key(&(404, false)), "{tally:?}");
}
