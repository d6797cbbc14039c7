//! `keygate store compact`, while the gateway serves and at rest.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::harness::api::json_call;
use crate::harness::client::try_fetch;
use crate::harness::desk::{Desk, NOWHERE, Way, in_redis};
use crate::harness::moved::moved_key;
use crate::harness::process::keygate;
use crate::harness::{Call, RedisServer, SetOnDrop, eventually, fetch, guess};

fn file_of(desk: &Desk) -> PathBuf {
    desk.folder().join("keygate.redb")
}

/// Keys that are made and revoked: each change leaves room in the file.
fn make_and_revoke(desk: &Desk) {
    for n in 0..40 {
        let (id, _) = desk.create_key(&format!("key {n} {}", "x".repeat(60)));
        desk.done(&["keys", "revoke", &id, "--yes"]);
    }
}

#[test]
fn a_store_is_compacted_on_every_way_and_all_is_there() {
    for way in Way::ALL {
        let mut desk = Desk::new(way);
        let (kept, secret) = desk.create_key("kept");
        let (lost, revoked) = desk.create_key("revoked");
        desk.done(&["keys", "revoke", &lost, "--yes"]);
        let before = fs::metadata(file_of(&desk)).unwrap();
        let keys = desk.done(&["keys", "list", "--json"]).out;
        fs::write(desk.folder().join("keygate.redb.compacting"), "of a command that was killed").unwrap();
        let done = desk.done(&["store", "compact", "--json", "--reason", "it grew"]).json().remove(0);
        assert!(done["bytes_before"].as_u64() > Some(0) && done["paused_ms"].is_u64(), "{done}");
        assert!(done["bytes_after"].as_u64().is_some_and(|after| after > 0), "{done}");
        let after = fs::metadata(file_of(&desk)).unwrap();
        assert_eq!((after.uid(), after.gid(), after.mode()), (before.uid(), before.gid(), before.mode()));
        assert_ne!(after.ino(), before.ino());
        assert!(!desk.folder().join("keygate.redb.compacting").exists());
        let told = desk.done(&["store", "compact"]).out;
        assert!(told.starts_with("compacted: ") && told.contains(" before, "), "{told}");

        assert_eq!(desk.done(&["keys", "list", "--json"]).out, keys, "{way:?}");
        let trail = desk.done(&["audit", "list", "--operator", "--json"]).json();
        let records: Vec<_> = trail.iter().filter(|record| record["type"] == "store.compacted").collect();
        assert_eq!(records.len(), 2, "{trail:?}");
        assert!(desk.done(&["audit", "verify"]).out.ends_with(" 0 findings\n"));

        if way != Way::Store {
            desk.stop();
        }
        desk.serve();
        let opens = |secret: &str| fetch(desk.address(), &Call::get("/v1/api_keys/self").key(secret)).status;
        assert_eq!((opens(&secret), opens(&revoked)), (200, 401), "{way:?} {kept}");
        let made = json_call("POST", "/v1/api_keys", &json!({ "name": "since" })).key(&secret);
        assert!(fetch(desk.address(), &made).status < 300, "it goes on");
    }
}

#[test]
fn keys_that_are_made_and_revoked_while_it_is_compacted_are_so_after_a_kill() {
    let mut desk = Desk::new(Way::Socket);
    let (_, root) = desk.create_key("root");
    make_and_revoke(&desk);
    let (mut alive, mut dead) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let folder = desk.folder().to_owned();
        let compacting = thread::spawn(move || keygate(&folder, &["store", "compact"]).output().unwrap());
        let mut made = 0;
        while !compacting.is_finished() || made < 4 {
            let new = json_call("POST", "/v1/api_keys", &json!({ "name": format!("k{made}") })).key(&root);
            let answer = fetch(desk.address(), &new);
            assert!(answer.status < 300, "{}", answer.text());
            let key = answer.json();
            let secret = key["secret"].as_str().unwrap().to_owned();
            if made % 2 == 0 {
                alive.push(secret);
            } else {
                let call = format!("/v1/api_keys/{}/revoke", key["id"].as_str().unwrap());
                let answer = fetch(desk.address(), &json_call("POST", &call, &json!({})).key(&root));
                assert!(answer.status < 300, "{}", answer.text());
                dead.push(secret);
            }
            made += 1;
        }
        let ran = compacting.join().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        desk.kill();
        desk.serve();
        for (secrets, status) in [(&alive, 200), (&dead, 401)] {
            for secret in secrets {
                let answer = fetch(desk.address(), &Call::get("/v1/api_keys/self").key(secret));
                assert_eq!(answer.status, status, "round {round}: {}", answer.text());
            }
        }
    }
}

/// Kills the gateway while the file is copied, at a moment that is later in each round, and once more while the copy is verified or
/// takes its place. Keys are made and revoked meanwhile.
#[test]
fn a_kill_in_the_middle_of_a_copy_loses_nothing_that_was_answered() {
    const KEYS: usize = 4000;
    const MIB: u64 = 1 << 20;
    let mut desk = Desk::with(Way::Socket, "[keys]\nmax_per_org = 100_000\n", NOWHERE);
    let (_, root) = desk.create_key("root");
    let line = |n: usize| moved_key(&guess(), &format!("key {n} {}", "x".repeat(60)), &json!({}));
    let lines: String = (0..KEYS).map(|n| format!("{}\n", line(n))).collect();
    let imported = desk.feed(&["keys", "import", "-", "--org", "Example Ltd"], &lines);
    assert_eq!(imported.code, 0, "{imported:?}");
    let beside = desk.folder().join("keygate.redb.compacting");
    let length = || fs::metadata(&beside).map_or(0, |file| file.len());
    let (mut alive, mut dead, mut met) = (Vec::new(), Vec::new(), Vec::new());
    for begun in [1, MIB, 2 * MIB, 4 * MIB, 1, 3 * MIB] {
        let folder = desk.folder().to_owned();
        let compacting = thread::spawn(move || keygate(&folder, &["store", "compact"]).output().unwrap());
        let address = desk.address();
        let is_over = AtomicBool::new(false);
        let (made, ended) = thread::scope(|scope| {
            let over = SetOnDrop(&is_over);
            let changing = scope.spawn(|| change_until(address, &root, &is_over));
            eventually("the copy has come so far", || length() >= begun || compacting.is_finished());
            desk.kill();
            drop(over);
            changing.join().unwrap()
        });
        alive.extend(made);
        dead.extend(ended);
        let _ = compacting.join().unwrap();
        met.extend((length() > 0).then_some(begun));
        desk.serve();
        for (secrets, status) in [(&alive, 200), (&dead, 401)] {
            for secret in secrets {
                let answer = fetch(desk.address(), &Call::get("/v1/api_keys/self").key(secret));
                assert_eq!(answer.status, status, "killed at {begun} bytes: {}", answer.text());
            }
        }
    }
    assert!(met.len() >= 4, "kills that met a copy: {met:?}");
    desk.done(&["store", "compact"]);
    assert!(!beside.exists());
    let keys = desk.done(&["keys", "list", "--json"]).out;
    assert!(keys.lines().count() > KEYS, "all that were there are");
    assert!(desk.done(&["audit", "verify"]).out.ends_with(" 0 findings\n"));
}

/// Makes keys, and revokes every second one, until the gateway is gone. The secrets of those that were answered to be made, and
/// of those that were answered to be revoked; one whose revocation has no answer is among neither.
fn change_until(address: SocketAddr, root: &str, is_over: &AtomicBool) -> (Vec<String>, Vec<String>) {
    let (mut alive, mut dead) = (Vec::new(), Vec::new());
    for n in 0.. {
        if is_over.load(Ordering::SeqCst) {
            break;
        }
        let new = json_call("POST", "/v1/api_keys", &json!({ "name": format!("made {n}") })).key(root);
        let Some(answer) = try_fetch(address, &new) else { break };
        assert!(answer.status < 300, "{}", answer.text());
        let key = answer.json();
        let secret = key["secret"].as_str().unwrap().to_owned();
        if n % 2 == 0 {
            alive.push(secret);
            continue;
        }
        let call = format!("/v1/api_keys/{}/revoke", key["id"].as_str().unwrap());
        match try_fetch(address, &json_call("POST", &call, &json!({})).key(root)) {
            Some(answer) => assert!(answer.status < 300, "{}", answer.text()),
            None => break,
        }
        dead.push(secret);
    }
    (alive, dead)
}

#[test]
fn a_store_in_redis_has_nothing_to_compact() {
    let redis = RedisServer::start();
    let desk = Desk::with(Way::Socket, &in_redis(&redis), NOWHERE);
    let refused = desk.run(&["store", "compact"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("nothing to compact: the store is Redis"), "{refused:?}");
}

#[test]
fn a_folder_that_takes_no_new_file_is_named_and_the_store_serves_on() {
    let desk = Desk::new(Way::Socket);
    desk.create_key("a key");
    // A folder has the name that the copy needs.
    let beside = desk.folder().join("keygate.redb.compacting");
    fs::create_dir(&beside).unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o500)).unwrap();
    let refused = desk.run(&["store", "compact"]);
    assert!(refused.code == 1 && refused.err.contains("the store stays as it is"), "{refused:?}");
    desk.create_key("another");
    fs::remove_dir(&beside).unwrap();
    desk.done(&["store", "compact"]);
}
