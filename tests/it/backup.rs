//! `keygate store backup` and `keygate store restore`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use crate::cli_migrate::{Customers, OUTBOX, SIGNUP, assert_all_as_it_was, listed, move_in};
use crate::harness::api::json_call;
use crate::harness::desk::{Desk, NOWHERE, Ran, Way, in_redis, write_secret};
use crate::harness::moved::sha256;
use crate::harness::{Call, PAUSE, RedisServer, Upstream, fetch};

/// The pepper of `in_redis`, for a file.
const SEALED: &str = "[keys]\npepper_file = \"pepper\"\n";

/// A store, in a file or in Redis.
enum Kind {
    File,
    Redis(RedisServer),
}

impl Kind {
    fn both() -> [Self; 2] {
        [Self::File, Self::Redis(RedisServer::start())]
    }

    fn settings(&self) -> String {
        let place = match self {
            Self::File => SEALED.to_owned(),
            Self::Redis(redis) => in_redis(redis),
        };
        [SIGNUP, OUTBOX, &place].concat()
    }

    fn desk(&self, urls: [&str; 2]) -> Desk {
        let desk = Desk::with(Way::Socket, &self.settings(), urls);
        // In Redis, an operator makes the store.
        desk.done(&["store", "accept", "--yes"]);
        desk
    }

    /// A desk whose store has nothing, and no gateway.
    fn empty_desk(&self, urls: [&str; 2]) -> Desk {
        Desk::with(Way::Store, &self.settings(), urls)
    }
}

fn path_of(folder: &Path) -> PathBuf {
    folder.join("store.backup")
}

#[track_caller]
fn back_up(desk: &Desk, file: &Path) -> Ran {
    desk.done(&["store", "backup", file.to_str().unwrap(), "--json"])
}

fn restore(desk: &Desk, file: &Path) -> Ran {
    desk.run(&["store", "restore", file.to_str().unwrap()])
}

#[test]
fn a_backup_of_either_store_is_restored_into_either() {
    let upstreams = [Upstream::start("live"), Upstream::start("test")];
    let urls = [&*upstreams[0].url(), &*upstreams[1].url()];
    let folder = tempfile::tempdir().unwrap();
    for from in Kind::both() {
        let mut desk = from.desk(urls);
        let customers: Customers = move_in(&desk);
        let file = path_of(folder.path());
        let _ = fs::remove_file(&file);
        let done = back_up(&desk, &file).json().remove(0);
        assert_eq!((&done["organizations"], &done["keys"]), (&json!(2), &json!(8)));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        let secrets = fs::read(&file).unwrap();
        let secrets = String::from_utf8_lossy(&secrets);
        assert!(!secrets.contains(customers.root()) && !secrets.contains(&"pepper".repeat(8)));
        let (keys, orgs) = (listed(&desk, &["keys", "list"]), listed(&desk, &["orgs", "list"]));
        let heads = |desk: &Desk| {
            let verdicts = desk.done(&["audit", "verify", "--json"]).json();
            let of_orgs = verdicts.into_iter().filter(|verdict| verdict["trail"] != "operator");
            of_orgs.map(|verdict| verdict["ends"].clone()).collect::<Vec<_>>()
        };
        let before = heads(&desk);
        desk.stop();

        for to in Kind::both() {
            let mut there = to.empty_desk(urls);
            let restored = restore(&there, &file);
            assert_eq!(restored.code, 0, "{restored:?}");
            assert!(restored.err.contains("revoke again what was revoked since"), "{restored:?}");
            there.serve();
            assert_all_as_it_was(&there, &customers);
            // When keys were used last is as it was at the moment of the backup.
            let without_use = |keys: &[Value]| {
                let mut keys = keys.to_vec();
                for key in &mut keys {
                    key["last_used_at"] = Value::Null;
                    key["used_scopes"] = Value::Null;
                }
                keys
            };
            assert_eq!(without_use(&listed(&there, &["keys", "list"])), without_use(&keys));
            assert_eq!(listed(&there, &["orgs", "list"]), orgs);
            assert!(there.done(&["audit", "verify"]).out.ends_with(" 0 findings\n"));
            assert_eq!(heads(&there), before, "to the last bit");
            let taken = crate::harness::api::sign_up("ADA@example.com");
            assert_eq!(fetch(there.address(), &taken).status, 409, "the address is still taken");
            let made = json_call("POST", "/v1/api_keys", &json!({ "name": "since" })).key(customers.root());
            assert!(fetch(there.address(), &made).status < 300, "it goes on");
            there.stop();
            // And once more from there, at rest.
            let second = folder.path().join("second.backup");
            back_up(&there, &second);
            fs::remove_file(second).unwrap();
        }
    }
}

#[test]
fn the_trail_of_the_operators_tells_who_took_a_backup_from_either_store_running_or_at_rest() {
    let folder = tempfile::tempdir().unwrap();
    let file = path_of(folder.path());
    for kind in Kind::both() {
        let mut desk = kind.desk(NOWHERE);
        desk.create_key("a key");
        let told = |desk: &Desk| {
            let list = ["audit", "list", "--operator", "--type", "store.backup_begun", "--json"];
            desk.done(&list).json()
        };
        for times in 1..=2 {
            assert_eq!(told(&desk).len(), times - 1);
            desk.done(&["store", "backup", "--overwrite", file.to_str().unwrap()]);
            let told = told(&desk);
            assert_eq!(told.len(), times);
            let uid = format!("uid {}", rustix::process::getuid().as_raw());
            assert!(told[0]["actor"]["name"].as_str().unwrap().contains(&uid), "{told:?}");
            assert!(desk.done(&["audit", "verify"]).out.ends_with(" 0 findings\n"));
            if times == 1 {
                desk.stop();
            }
        }
    }
}

#[test]
fn a_backup_that_was_changed_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Kind::File.desk(NOWHERE);
    desk.create_key("a key");
    let file = path_of(folder.path());
    back_up(&desk, &file);
    let again = desk.run(&["store", "backup", file.to_str().unwrap()]);
    assert!(again.code == 1 && again.err.contains("--overwrite"), "{again:?}");
    desk.done(&["store", "backup", "--overwrite", file.to_str().unwrap()]);

    let whole = fs::read(&file).unwrap();
    let redis = RedisServer::start();
    let [there, in_redis] =
        [Kind::File.empty_desk(NOWHERE), Kind::Redis(RedisServer::start()).empty_desk(NOWHERE)];
    drop(redis);
    let mut changed = whole.clone();
    let middle = whole.len() / 2;
    changed[middle] ^= 1;
    let longer = [&whole[..], b"x"].concat();
    for (what, bytes) in
        [("changed", &changed[..]), ("cut", &whole[..middle]), ("longer", &longer), ("empty", b"")]
    {
        write_bytes(&file, bytes);
        for desk in [&there, &in_redis] {
            let refused = restore(desk, &file);
            assert_eq!(refused.code, 1, "{what}: {refused:?}");
        }
        assert!(!there.folder().join("keygate.redb").exists(), "{what}");
    }
    write_bytes(&file, &whole);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(restore(&there, &file).code, 1, "others could read it");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    write_secret(&there.folder().join("pepper"), &"another pepper".repeat(4));
    let other = restore(&there, &file);
    assert!(other.code == 1 && other.err.contains("check value"), "{other:?}");
}

fn write_bytes(file: &Path, bytes: &[u8]) {
    fs::write(file, bytes).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_store_that_is_not_empty_is_not_restored_into() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Kind::File.desk(NOWHERE);
    desk.create_key("a key");
    let file = path_of(folder.path());
    back_up(&desk, &file);
    let running = restore(&desk, &file);
    assert!(running.code == 1 && running.err.contains("stop it first"), "{running:?}");
    for kind in Kind::both() {
        let there = kind.empty_desk(NOWHERE);
        there.create_key("of others");
        let before = there.done(&["keys", "list"]).out;
        let refused = restore(&there, &file);
        assert!(refused.code == 1 && refused.err.contains("not empty"), "{refused:?}");
        assert_eq!(there.done(&["keys", "list"]).out, before);
    }
}

#[test]
fn a_store_that_is_half_restored_serves_nobody_and_no_operator_accepts_it() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Kind::File.desk(NOWHERE);
    let (_, secret) = desk.create_key("a key");
    let file = path_of(folder.path());
    back_up(&desk, &file);
    let redis = RedisServer::start();
    let mark = |name: &str| {
        let fields =
            ["incarnation", &"ab".repeat(16), "schema", "restoring", "event", "0", "restoring", name];
        redis.command(&[&["HSET", "{kg}:meta"], &fields[..]].concat());
    };
    mark("another backup");
    let settings = [SIGNUP, OUTBOX, &in_redis(&redis)].concat();
    let mut there = Desk::with(Way::Store, &settings, NOWHERE);
    there.serve();
    let answer = fetch(there.address(), &Call::get("/v1/api_keys").key(&secret));
    assert_eq!(answer.status, 503, "{}", answer.text());
    let status = there.run(&["store", "status"]);
    assert!(status.code == 1 && status.out.contains("being restored"), "{status:?}");
    assert_eq!(there.run(&["store", "accept", "--yes"]).code, 1);
    assert_eq!(there.run(&["keys", "create", "--all-scopes", "--org", "New", "--name", "x"]).code, 1);
    there.stop();
    let other = restore(&there, &file);
    assert!(other.code == 1 && other.err.contains("broken off"), "{other:?}");

    // The same backup is restored to its end.
    let bytes = fs::read(&file).unwrap();
    mark(&sha256(&bytes[..bytes.len() - 5 - 64]));
    let restored = restore(&there, &file);
    assert_eq!(restored.code, 0, "{restored:?}");
    there.serve();
    assert_eq!(fetch(there.address(), &Call::get("/v1/api_keys").key(&secret)).status, 200);
}

#[test]
fn what_a_gateway_remembers_holds_after_a_restore_until_an_operator_accepts_the_older_store() {
    let folder = tempfile::tempdir().unwrap();
    let redis = RedisServer::start();
    let settings = [SIGNUP, OUTBOX, &in_redis(&redis), "memory_file = \"memory\"\n"].concat();
    let mut desk = Desk::with(Way::Socket, &settings, NOWHERE);
    let (id, secret) = desk.create_key("revoked since");
    let file = path_of(folder.path());
    back_up(&desk, &file);
    desk.done(&["keys", "revoke", &id, "--yes"]);
    desk.stop();
    redis.command(&["FLUSHALL"]);
    let restored = restore(&desk, &file);
    assert_eq!(restored.code, 0, "{restored:?}");
    desk.serve();
    let call = Call::get("/v1/api_keys").key(&secret);
    assert_eq!(fetch(desk.address(), &call).status, 401, "the gateway remembers that it was revoked");
    crate::harness::eventually("it is written again", || {
        desk.run(&["keys", "list", "--json"]).json()[0]["status"] == "revoked"
    });
}

/// A change that was answered.
#[derive(Clone, Debug)]
struct Change {
    begun: Instant,
    answered: Instant,
    key: String,
    /// What the change made of the key: its secret opens, or it does not.
    opens: bool,
}

/// The most changes of one writer: each key is tried at the end.
const TURNS: usize = 90;

/// Tells the writers to stop, also if the test fails.
struct Over<'t>(&'t AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Writers make and revoke keys of several organisations until they are told to stop. Returns all changes in the order of
/// their answers, the secrets by the ids of the keys, and what the backup tells, with its moments.
fn under_load(
    desk: &Desk,
    file: &Path,
    enough: usize,
) -> (Vec<Change>, BTreeMap<String, String>, [Instant; 2]) {
    let (changes, secrets) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    // The writers keep most of their changes for the time of the backup.
    let (has_begun, is_over, done) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
    let roots: Vec<String> = (0..4)
        .map(|n| {
            let signed =
                fetch(desk.address(), &crate::harness::api::sign_up(&format!("w{n}@example.com"))).json();
            signed["api_key"].as_str().unwrap().to_owned()
        })
        .collect();
    let (count, address) = (|| changes.lock().unwrap().len(), desk.address());
    let spans = std::thread::scope(|scope| {
        for root in &roots {
            let (changes, secrets, is_over) = (&changes, &secrets, &is_over);
            let (has_begun, done, count) = (&has_begun, &done, &count);
            scope.spawn(move || {
                let mut alive: Vec<String> = Vec::new();
                for turn in 0..TURNS {
                    let waits = || !has_begun.load(Ordering::SeqCst) && count() >= enough;
                    while waits() && !is_over.load(Ordering::SeqCst) {
                        std::thread::sleep(PAUSE);
                    }
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    let begun = Instant::now();
                    let (key, opens) = if turn % 3 < 2 {
                        let made = json_call("POST", "/v1/api_keys", &json!({ "name": format!("k{turn}") }))
                            .key(root);
                        let answer = fetch(address, &made);
                        if answer.status == 503 {
                            // On a slow machine. Nobody has the secret, and nobody counts on it.
                            continue;
                        }
                        assert!(answer.status < 300, "{}", answer.text());
                        let made = answer.json();
                        let text = |name: &str| made[name].as_str().unwrap().to_owned();
                        secrets.lock().unwrap().insert(text("id"), text("secret"));
                        alive.push(text("id"));
                        (text("id"), true)
                    } else {
                        let Some(key) = alive.pop() else { continue };
                        let revoke =
                            json_call("POST", &format!("/v1/api_keys/{key}/revoke"), &json!({})).key(root);
                        // Repeating it is safe, and it was made at some time until the last answer.
                        while fetch(address, &revoke).status == 503 {}
                        (key, false)
                    };
                    let change = Change { begun, answered: Instant::now(), key, opens };
                    changes.lock().unwrap().push(change);
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        let _over = Over(&is_over);
        let are_done = || done.load(Ordering::SeqCst) == roots.len();
        crate::harness::eventually("there is something to back up", || count() >= enough || are_done());
        has_begun.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        back_up(desk, file);
        let ended = Instant::now();
        let then = count();
        crate::harness::eventually("changes go on", || count() >= then + 8 || are_done());
        [begun, ended]
    });
    (changes.into_inner().unwrap(), secrets.into_inner().unwrap(), spans)
}

/// The changes that a restored store has, judged by which secrets open: there must be one moment between the beginning and
/// the end of the backup before which all of them were made, and after which all others.
#[track_caller]
fn assert_one_moment(changes: &[Change], there: &BTreeMap<String, bool>, [begun, ended]: [Instant; 2]) {
    let is_in = |change: &Change| match (there.get(&change.key), change.opens) {
        (None, _) | (Some(true), false) => false,
        (Some(true), true) | (Some(false), false) => true,
        // It was made, since it was revoked.
        (Some(false), true) => true,
    };
    for change in changes {
        if change.answered <= begun {
            assert!(is_in(change), "answered before the backup began, and not in it: {change:?}");
        }
        if change.begun >= ended {
            assert!(!is_in(change), "begun after the backup had ended, and in it: {change:?}");
        }
    }
    let last_begun = changes.iter().filter(|change| is_in(change)).map(|change| change.begun).max();
    let first_answered = changes.iter().filter(|change| !is_in(change)).map(|change| change.answered).min();
    if let (Some(last_begun), Some(first_answered)) = (last_begun, first_answered) {
        assert!(
            last_begun <= first_answered,
            "a change is in it that began after another one was answered that is not"
        );
    }
}

fn a_backup_under_load_shows_one_moment(from: &Kind, to: &Kind, enough: usize) {
    let folder = tempfile::tempdir().unwrap();
    let file = path_of(folder.path());
    let desk = from.desk(NOWHERE);
    let (changes, secrets, span) = under_load(&desk, &file, enough);
    let mut there = to.empty_desk(NOWHERE);
    let restored = restore(&there, &file);
    assert_eq!(restored.code, 0, "{restored:?}");
    there.serve();
    let list: BTreeMap<String, bool> = listed(&there, &["keys", "list"])
        .iter()
        .map(|key| (key["id"].as_str().unwrap().to_owned(), key["status"] == "active"))
        .collect();
    assert_one_moment(&changes, &list, span);
    // What the list says is what the secrets do.
    let mut opened = 0;
    for (key, secret) in &secrets {
        let status = fetch(there.address(), &Call::get("/v1/api_keys").key(secret)).status;
        let opens = list.get(key) == Some(&true);
        assert_eq!(status != 401, opens, "{key}: {status}");
        opened += usize::from(opens);
    }
    assert!(opened > 0);
    let verdict = there.done(&["audit", "verify"]);
    assert!(verdict.out.ends_with(" 0 findings\n"), "{verdict:?}");
}

#[test]
fn a_backup_of_a_file_under_write_load_shows_one_moment() {
    a_backup_under_load_shows_one_moment(&Kind::File, &Kind::Redis(RedisServer::start()), 16);
}

#[test]
fn a_backup_of_redis_under_write_load_shows_one_moment() {
    a_backup_under_load_shows_one_moment(&Kind::Redis(RedisServer::start()), &Kind::File, 16);
}

/// How long it takes, for many keys: with `KEYGATE_LONG=1`, and `KEYGATE_BACKUP_KEYS` of them.
#[test]
fn many_keys_are_backed_up_and_restored() {
    if std::env::var_os("KEYGATE_LONG").is_none() {
        return;
    }
    let keys: usize =
        std::env::var("KEYGATE_BACKUP_KEYS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000);
    let folder = tempfile::tempdir().unwrap();
    let file = path_of(folder.path());
    for (name, from, to) in [
        ("file", Kind::File, Kind::File),
        ("redis", Kind::Redis(RedisServer::start()), Kind::Redis(RedisServer::start())),
    ] {
        let desk = from.desk(NOWHERE);
        desk.create_key("the first");
        let line = |n: usize| {
            let hash = sha256(format!("a key with the number {n}"));
            json!({ "sha256": hash, "name": format!("k{n}"), "environment": "live", "scopes": ["jobs:read"] })
                .to_string()
        };
        let lines: Vec<String> = (0..keys).map(line).collect();
        let imported = desk.feed(&["keys", "import", "-", "--org", "Example Ltd"], &lines.join("\n"));
        assert_eq!(imported.code, 0, "{imported:?}");
        let _ = fs::remove_file(&file);
        let begun = Instant::now();
        let done = back_up(&desk, &file).json().remove(0);
        let taken = begun.elapsed();
        assert_eq!(done["keys"], json!(keys + 1));
        let size = fs::metadata(&file).unwrap().len();
        let there = to.empty_desk(NOWHERE);
        let begun = Instant::now();
        let restored = restore(&there, &file);
        assert_eq!(restored.code, 0, "{restored:?}");
        println!("{name}: {keys} keys, backup {taken:.1?}, {size} bytes, restore {:.1?}", begun.elapsed());
    }
}
