//! A password of Redis that is changed while gateways run: it is read from its file anew, and no good key is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use keygate::store::keeper::Keeper;
use keygate::store::redis::{Node, Place, Redis, Sentinels, Settings};
use keygate::vocabulary::key::record::Sealer;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::harness::desk::write_secret;
use crate::harness::fail_over::Pair;
use crate::harness::sentinels::sentinel;
use crate::harness::{Authority, Gateway, PATIENCE, RedisServer, Upstream, eventually, guess, operator};

/// A user without a password, with whom a test gives orders.
const ADMIN: [&str; 7] = ["--user", "admin", "on", "nopass", "~*", "&*", "+@all"];

/// Redis with the user `gateway` and this password, and the lines of `[store]` for it.
fn with_user(password: &str, file: &Path) -> (RedisServer, String) {
    let secret = format!(">{password}");
    let user = ["--user", "gateway", "on", &secret, "~*", "&*", "+@all"];
    let redis = RedisServer::with(&[&ADMIN[..], &user].concat());
    write_secret(file, password);
    let url = redis.url();
    let store = format!("url = \"{url}\"\nusername = \"gateway\"\npassword_file = \"{}\"", file.display());
    (redis, store)
}

fn password_file(folder: &TempDir) -> PathBuf {
    folder.path().join("redis-password")
}

fn set_password(redis: &RedisServer, password: &str) {
    let secret = format!(">{password}");
    let answer = redis.command_as("admin", &["ACL", "SETUSER", "gateway", "resetpass", &secret]);
    assert_eq!(answer, "+OK\r\n+OK\r\n+OK\r\n");
}

/// Every connection of the gateways ends; each must log in again.
fn cut_connections(redis: &RedisServer, user: &str) {
    redis.command_as("admin", &["CLIENT", "KILL", "USER", user]);
}

/// The failed logins that Redis remembers.
fn failed_logins(redis: &RedisServer) -> usize {
    redis.command_as("admin", &["ACL", "LOG", "100"]).matches("\r\nauth\r\n").count()
}

#[test]
fn a_new_password_is_taken_from_its_file_when_the_old_one_is_refused() {
    let folder = TempDir::new().unwrap();
    let file = password_file(&folder);
    let (redis, store) = with_user("one", &file);
    let pair = Pair::start(&store);
    let (took, seen) = pair.under_load(|clients| {
        ["two", "three", "four"].map(|password| {
            write_secret(&file, password);
            set_password(&redis, password);
            cut_connections(&redis, "gateway");
            clients.looked_up_since(Instant::now())
        })
    });
    println!("new passwords, keys looked up again after {took:?}; {seen:?}");
    pair.assert_takes_changes();
    // The password that is known is tried before the file is read: so each connection failed once at most, for each of
    // the gateways' connections and each password.
    assert!(failed_logins(&redis) > 0);
}

#[test]
fn the_password_of_the_default_user_can_be_changed_with_config_set() {
    let folder = TempDir::new().unwrap();
    let file = password_file(&folder);
    let redis = RedisServer::with(&[&["--requirepass", "one"], &ADMIN[..]].concat());
    write_secret(&file, "one");
    let pair = Pair::start(&format!("url = \"{}\"\npassword_file = \"{}\"", redis.url(), file.display()));
    let (took, seen) = pair.under_load(|clients| {
        write_secret(&file, "two");
        let answer = redis.command_as("admin", &["CONFIG", "SET", "requirepass", "two"]);
        assert_eq!(answer, "+OK\r\n+OK\r\n+OK\r\n");
        cut_connections(&redis, "default");
        clients.looked_up_since(Instant::now())
    });
    println!("new password, keys looked up again after {took:?}; {seen:?}");
    pair.assert_takes_changes();
}

#[test]
fn a_password_that_comes_to_its_file_late_ends_the_outage_without_a_reload() {
    let folder = TempDir::new().unwrap();
    let file = password_file(&folder);
    let (redis, store) = with_user("one", &file);
    let pair = Pair::start(&store);
    let (took, seen) = pair.under_load(|clients| {
        set_password(&redis, "two");
        cut_connections(&redis, "gateway");
        clients.unavailable();
        fs::remove_file(&file).unwrap();
        clients.unavailable();
        write_secret(&file, "two");
        clients.looked_up_since(Instant::now())
    });
    println!("the new password came late, keys looked up again after {took:?}; {seen:?}");
    pair.assert_takes_changes();
}

#[test]
fn a_reload_reads_the_password_and_refuses_a_file_without_one() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let folder = TempDir::new().unwrap();
    let file = password_file(&folder);
    let (redis, store) = with_user("one", &file);
    let settings = format!(
        "[store]\nkind = \"redis\"\nallow_without_pepper = true\n{store}\nconnect_timeout = \"10s\"\n\
         lookup_timeout = \"10s\"\ncommand_timeout = \"10s\"\n[cache]\nlookup_timeout = \"10s\"\nnegative_ttl = \"1ms\""
    );
    let mut gateway = Gateway::builder().api(&live, &test).settings(&settings).start();
    fs::write(&file, "two\nlines").unwrap();
    let refused = gateway.reload().unwrap_err().to_string();
    assert!(refused.contains("store.password_file") && !refused.contains("two"), "{refused}");

    // Both are valid for a while, as when an operator changes them in order.
    write_secret(&file, "two");
    redis.command_as("admin", &["ACL", "SETUSER", "gateway", ">two"]);
    gateway.reload().unwrap();
    redis.command_as("admin", &["ACL", "SETUSER", "gateway", "<one"]);
    cut_connections(&redis, "gateway");
    gateway.block_on(gateway.lifecycle().create_org(&operator(), "another")).unwrap();
    assert_eq!(
        crate::harness::fetch(gateway.address(), &crate::harness::Call::get("/v1/jobs").key(&guess())).status,
        401
    );
    assert_eq!(failed_logins(&redis), 0, "nobody has tried the old one");

    // Reloaded before Redis has it: the old one goes on to work.
    write_secret(&file, "three");
    gateway.reload().unwrap();
    cut_connections(&redis, "gateway");
    gateway.block_on(gateway.lifecycle().create_org(&operator(), "a third")).unwrap();
}

#[tokio::test]
async fn a_new_password_of_the_sentinels_is_read_too() {
    let (master, folder) = (RedisServer::start(), TempDir::new().unwrap());
    let file = password_file(&folder);
    write_secret(&file, "one");
    let sentinel = sentinel(&master, "");
    let user = ["ACL", "SETUSER", "gateway", "on", ">one", "+@connection", "+sentinel|master"];
    assert_eq!(sentinel.command(&user), "+OK\r\n");
    let sentinels = Sentinels {
        nodes: vec![Node::parse(&sentinel.address().to_string()).unwrap()],
        master: "mymaster".to_owned(),
        username: Some("gateway".to_owned()),
        password_file: Some(file.clone()),
    };
    let settings = Settings {
        connect_timeout: PATIENCE,
        lookup_timeout: PATIENCE,
        command_timeout: PATIENCE,
        ..Settings::at(Place::Sentinel(sentinels))
    };
    let store = Redis::open(settings, Sealer::default(), Handle::current()).unwrap();
    assert_eq!(store.begin().await, Ok(true));
    write_secret(&file, "two");
    assert_eq!(sentinel.command(&["ACL", "SETUSER", "gateway", "resetpass", ">two"]), "+OK\r\n");
    // The connection to Redis has to be made anew, and the sentinel is asked for it on a new connection too.
    sentinel.command(&["CLIENT", "KILL", "USER", "gateway"]);
    master.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    let until = Instant::now() + PATIENCE;
    loop {
        let status = store.status().await;
        let Some(trouble) = status.trouble else { break };
        assert!(Instant::now() < until, "{trouble}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[test]
fn a_new_authority_of_redis_certificates_is_read_when_the_old_one_fails() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let (old, new) = (Authority::new(), Authority::new());
    let redis = RedisServer::with_tls(&old, &["--tls-auth-clients", "no"]);
    let folder = TempDir::new().unwrap();
    old.write(folder.path(), "ca");
    let settings = format!(
        "[ops]\nlisten = \"127.0.0.1:0\"\n[store]\nkind = \"redis\"\nallow_without_pepper = true\nurl = \"{}\"\n\
         tls = {{ ca = \"ca.pem\" }}\ncommand_timeout = \"10s\"\nconnect_timeout = \"10s\"",
        redis.tls_url()
    );
    let gateway = Gateway::builder().api(&live, &test).settings(&settings).start_in(folder);
    let linked = |gateway: &Gateway| crate::harness::is_linked(gateway);
    eventually("the event link is up", || linked(&gateway));
    new.write(redis.folder(), "ca");
    new.issue(&["127.0.0.1"]).write(redis.folder(), "server");
    let file = |name: &str| redis.folder().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server-key.pem"));
    let files = ["tls-ca-cert-file", &ca, "tls-cert-file", &cert, "tls-key-file", &key];
    assert_eq!(redis.command(&[&["CONFIG", "SET"], &files[..]].concat()), "+OK\r\n");
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    eventually("the event link is down", || !linked(&gateway));
    new.write(gateway.folder(), "ca");
    eventually("the event link is up again", || linked(&gateway));
}
