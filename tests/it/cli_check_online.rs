//! `keygate check --online`: whether the gateway can work with the store, with advice for each problem.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use crate::harness::process::keygate;
use crate::harness::{Gateway, Process, RedisServer, create_key};

/// A folder with a configuration that has this `[store]`.
fn configured(store: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    configure(folder.path(), &format!("[store]\n{store}"));
    folder
}

fn configure(folder: &Path, settings: &str) {
    let builder = Gateway::builder().upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2");
    builder.settings(settings).write(folder);
}

fn on(url: &str) -> String {
    format!(
        "kind = \"redis\"\nurl = \"{url}\"\nallow_without_pepper = true\nconnect_timeout = \"10s\"\ncommand_timeout = \"10s\""
    )
}

/// The exit code, and the findings about the store.
fn check(folder: &Path) -> (i32, String) {
    let output = keygate(folder, &["check", "--online"]).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let found = out.split("\n\n").last().unwrap_or_default();
    (output.status.code().unwrap(), format!("{found}{err}"))
}

fn password(folder: &Path, text: &str) {
    let file = folder.join("password");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
}

#[test]
fn a_well_configured_redis_is_fine() {
    let server = RedisServer::with(&["--appendonly", "yes"]);
    let folder = configured(&on(&server.url()));
    let (code, found) = check(folder.path());
    assert!(code == 0 && found.contains("warning    there is no store in cell kg yet"), "{found}");
    create_key(folder.path());
    let (code, found) = check(folder.path());
    assert_eq!(code, 0, "{found}");
    for (line, begins) in found.lines().zip([
        format!("fine       {} answers, a master, {}", server.address(), server.version()),
        "fine       nothing is evicted".to_owned(),
        "fine       changes are written to a log".to_owned(),
        "fine       its user may do what keygate does".to_owned(),
        "fine       its clock and that of this machine are in step".to_owned(),
        "fine       cell kg holds the store ".to_owned(),
    ]) {
        assert!(line.starts_with(&begins), "{found}");
    }
    assert_eq!(found.lines().count(), 6, "{found}");
}

#[test]
fn risky_settings_of_redis_are_warnings() {
    let server = RedisServer::with(&["--maxmemory-policy", "volatile-lru"]);
    let replica = RedisServer::with(&["--replicaof", "127.0.0.1", &server.port()]);
    crate::harness::eventually("the replica follows", || {
        replica.command(&["INFO", "replication"]).contains("master_link_status:up")
    });
    let folder = configured(&on(&server.url()));
    let (code, found) = check(folder.path());
    assert_eq!(code, 0, "{found}");
    for warning in [
        "warning    maxmemory-policy is volatile-lru",
        "warning    appendonly is off, nothing is kept",
        "warning    1 replicas and no minimum",
    ] {
        assert!(found.contains(warning), "{found}");
    }
}

#[test]
fn settings_that_cannot_work_are_reported_with_advice_and_exit_code_1() {
    let server = RedisServer::with(&["--appendonly", "yes"]);
    let replica = RedisServer::with(&["--replicaof", "127.0.0.1", &server.port()]);
    let folder = configured(&on(&replica.url()));
    let (code, found) = check(folder.path());
    assert!(code == 1 && found.contains("broken ") && found.contains("it is a replica"), "{found}");

    let gone = RedisServer::start();
    let folder = configured(&on(&gone.url()));
    drop(gone);
    let (code, found) = check(folder.path());
    assert!(code == 1 && found.contains("refused"), "{found}");

    let user = format!("{}\nusername = \"gateway\"\npassword_file = \"password\"", on(&server.url()));
    let folder = configured(&user);
    let (code, found) = check(folder.path());
    assert!(
        code == 1 && found.contains("store.password_file: cannot read password: No such file"),
        "{found}"
    );
    password(folder.path(), "hunter2");
    let (code, found) = check(folder.path());
    assert!(code == 1 && found.contains("check store.username and store.password_file"), "{found}");
    let rights = ["~{kg}:*", "+@read", "+@connection", "+eval_ro", "+evalsha_ro", "-zrange"];
    server.command(&[&["ACL", "SETUSER", "gateway", "on", ">hunter2"], &rights[..]].concat());
    let (code, found) = check(folder.path());
    assert!(code == 1 && !found.contains("hunter2"), "{found}");
    assert!(found.contains("warning    INFO is not answered"), "{found}");
    assert!(
        found.contains("broken     its user may not run EVAL, EVALSHA, ") && found.contains(", ZRANGE"),
        "{found}"
    );
    server.command(&["ACL", "SETUSER", "gateway", "resetkeys", "~{other}:*"]);
    let (code, found) = check(folder.path());
    assert!(code == 1 && found.contains("its user may not run scripts on {kg}:meta"), "{found}");
}

#[test]
fn another_pepper_and_a_newer_store_are_reported() {
    let server = RedisServer::with(&["--appendonly", "yes"]);
    let folder = configured(&on(&server.url()));
    create_key(folder.path());
    let pepper = folder.path().join("pepper");
    fs::write(&pepper, "x".repeat(64)).unwrap();
    fs::set_permissions(&pepper, PermissionsExt::from_mode(0o600)).unwrap();
    configure(folder.path(), &format!("[keys]\npepper_file = \"pepper\"\n[store]\n{}", on(&server.url())));
    let (code, found) = check(folder.path());
    assert!(code == 1 && found.contains("pepper: the store was made without a pepper"), "{found}");
    configure(folder.path(), &format!("[store]\n{}", on(&server.url())));
    server.command(&["HSET", "{kg}:meta", "schema", "9"]);
    let (code, found) = check(folder.path());
    assert!(code == 1 && found.contains("written by a newer keygate (schema 9"), "{found}");
}

#[test]
fn an_embedded_store_is_read_and_not_changed() {
    let folder = configured("kind = \"embedded\"\npath = \"keygate.redb\"");
    let file = folder.path().join("keygate.redb");
    let (code, found) = check(folder.path());
    assert!(code == 0 && found.contains("fine       there is no store keygate.redb yet"), "{found}");
    assert!(!file.exists());
    create_key(folder.path());
    let before = fs::read(&file).unwrap();
    let (code, found) = check(folder.path());
    assert!(code == 0 && found.contains("is whole, with 0 events"), "{found}");
    assert_eq!(fs::read(&file).unwrap(), before);
    let gateway = Process::keygate(folder.path(), &["serve"]);
    gateway.err_line("listening on");
    let (code, found) = check(folder.path());
    assert!(code == 0 && found.contains("in use, by a running gateway"), "{found}");
    drop(gateway);
    fs::write(&file, &before[..before.len() / 2]).unwrap();
    let (code, found) = check(folder.path());
    assert!(code == 1 && found.starts_with("broken "), "{found}");
}
