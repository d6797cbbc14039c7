//! The pepper: one that does not fit never turns a good key into an unknown one, and a new one replaces an old one
//! without a key being refused.

#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use keygate::store::embedded::{Embedded, Settings};
use keygate::vocabulary::key::record::Sealer;
use keygate::vocabulary::key::{Pepper, Peppers};
use tempfile::TempDir;

use crate::harness::cluster::Cluster;
use crate::harness::desk::{in_redis, write_secret};
use crate::harness::fail_over::FailsOver;
use crate::harness::moved::moved_key;
use crate::harness::process::{Process, create_key, keygate};
use crate::harness::sentinels::Watched;
use crate::harness::{
    Call, Chaos, Gateway, PAUSE, RedisServer, Upstream, Weather, eventually, fetch, guess, is_long, unhurried,
};

const OLD: &str = "the old pepper, which is at least 32 bytes long";
const NEW: &str = "the new pepper, which is at least 32 bytes long";

/// A folder with the configuration of a gateway, and two peppers.
fn folder(settings: &str, upstream: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (file, pepper) in [("old", OLD), ("new", NEW)] {
        write_secret(&folder.path().join(file), pepper);
    }
    let admin = "[admin]\nsocket = \"keygate.sock\"\n[ops]\nlisten = \"127.0.0.1:0\"\n";
    let builder = Gateway::builder().settings(admin).settings("[keys]\n").settings(settings);
    builder.upstream("api", upstream, "http://127.0.0.1:10").write(folder.path());
    set_peppers(folder.path(), "pepper_file = \"old\"");
    folder
}

/// The line of the configuration that names peppers; none if it is empty.
fn set_peppers(folder: &Path, line: &str) {
    let path = folder.join("keygate.toml");
    let toml = fs::read_to_string(&path).unwrap();
    let others = toml.lines().filter(|old| !old.starts_with("pepper_file"));
    let lines = others.flat_map(|old| if old == "[keys]" { vec![old, line] } else { vec![old] });
    fs::write(path, lines.collect::<Vec<_>>().join("\n")).unwrap();
}

fn store_in(redis: &RedisServer) -> String {
    let unsealed = "allow_without_pepper = true\n";
    in_redis(redis).replace("[keys]\npepper_file = \"pepper\"\n", "") + unsealed
}

#[track_caller]
fn run(folder: &Path, arguments: &[&str]) -> Output {
    keygate(folder, arguments).output().unwrap()
}

#[track_caller]
fn done(folder: &Path, arguments: &[&str]) -> String {
    let ran = run(folder, arguments);
    assert!(ran.status.success(), "{arguments:?}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

fn errors(ran: &Output) -> String {
    assert!(!ran.status.success(), "{ran:?}");
    [&ran.stdout[..], &ran.stderr[..]].map(String::from_utf8_lossy).concat()
}

/// Every command that must refuse a pepper that does not fit, and that it does.
#[track_caller]
fn assert_misfit(folder: &Path, online: bool, parts: &[&str]) {
    let check: &[&str] = if online { &["check", "--online"] } else { &["check"] };
    for command in [&["serve"], check, &["store", "status"]] {
        let told = errors(&run(folder, command));
        for part in parts {
            assert!(told.contains(part), "{command:?}: no {part:?} in {told}");
        }
        assert!(!told.contains(OLD) && !told.contains(NEW), "{told}");
    }
}

fn refuses_what_does_not_fit(store: &str, online: bool) {
    let live = Upstream::start("live");
    let folder = folder(store, &live.url());
    let folder = folder.path();
    let key = create_key(folder);
    let fits = || {
        let gateway = Process::serve(folder);
        assert_eq!(fetch(gateway.address(), &Call::get("/v1/jobs").key(&key)).status, 200);
    };
    fits();
    set_peppers(folder, "pepper_file = \"new\"");
    assert_misfit(
        folder,
        online,
        &["keys.pepper_file", "new: ", "not the pepper of the store", "the store's is"],
    );
    set_peppers(folder, "");
    assert_misfit(folder, online, &["made under a pepper (check value", "set keys.pepper_file"]);
    set_peppers(folder, "pepper_file = \"old\"");
    write_secret(&folder.join("old"), &format!("{OLD}."));
    assert_misfit(folder, online, &["old: this is not the pepper of the store"]);
    write_secret(&folder.join("old"), &format!("\u{feff}{OLD}"));
    assert_misfit(folder, online, &["old begins with a byte-order mark"]);
    write_secret(&folder.join("old"), &format!("{OLD}\n"));
    fits();
}

#[test]
fn a_pepper_that_does_not_fit_the_file_does_not_start() {
    refuses_what_does_not_fit("", false);
}

#[test]
fn a_pepper_that_does_not_fit_redis_does_not_start() {
    let redis = RedisServer::start();
    refuses_what_does_not_fit(&store_in(&redis), true);
}

#[test]
fn a_pepper_does_not_fit_a_store_that_was_made_without_one() {
    let redis = RedisServer::start();
    for (store, online) in [(String::new(), false), (store_in(&redis), true)] {
        let folder = folder(&store, "http://127.0.0.1:9");
        set_peppers(folder.path(), "");
        create_key(folder.path());
        set_peppers(folder.path(), "pepper_file = \"old\"");
        assert_misfit(folder.path(), online, &["old: the store was made without a pepper", "store migrate"]);
        set_peppers(folder.path(), "");
        Process::serve(folder.path()).address();
    }
}

/// As a store of the release before is: its meta says nothing of the pepper.
fn forget(redis: &RedisServer) {
    redis.command(&["HDEL", "{kg}:meta", "peppers"]);
}

#[test]
fn a_store_of_an_older_release_is_judged_by_one_of_its_records() {
    const META: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    let redis = RedisServer::start();
    for store in [None, Some(&redis)] {
        let folder = folder(&store.map(store_in).unwrap_or_default(), "http://127.0.0.1:9");
        create_key(folder.path());
        match store {
            Some(redis) => forget(redis),
            None => {
                let file = redb::Database::open(folder.path().join("keygate.redb")).unwrap();
                let transaction = file.begin_write().unwrap();
                transaction.open_table(META).unwrap().remove("peppers").unwrap().unwrap();
                transaction.commit().unwrap();
            }
        }
        set_peppers(folder.path(), "pepper_file = \"new\"");
        assert_misfit(folder.path(), store.is_some(), &["new: the records of the store do not open"]);
        set_peppers(folder.path(), "");
        assert_misfit(folder.path(), store.is_some(), &["the records of the store have a seal"]);
        set_peppers(folder.path(), "pepper_file = \"old\"");
        let serving = Process::serve(folder.path());
        serving.address();
        if store.is_some() {
            let told = || redis.command(&["HGET", "{kg}:meta", "peppers"]);
            eventually("the store says which pepper it is", || told().contains("1 1-"));
        }
        drop(serving);
        set_peppers(folder.path(), "pepper_file = \"new\"");
        assert_misfit(folder.path(), store.is_some(), &["new: this is not the pepper of the store"]);
    }
}

#[test]
fn a_gateway_that_could_not_ask_at_its_start_is_not_ready_before_its_pepper_fits() {
    let (redis, live) = (RedisServer::start(), Upstream::start("live"));
    let proxy = Chaos::before(redis.address());
    let made = folder(&store_in(&redis), &live.url());
    let key = create_key(made.path());
    let behind = store_in(&redis).replace(&redis.url(), &proxy.url()).replace("20s", "200ms");
    let folder = folder(&behind, &live.url());
    set_peppers(folder.path(), "pepper_file = \"new\"");
    proxy.turn(Weather::Cut);
    let gateway = Process::serve(folder.path());
    let (address, ops) = (gateway.address(), gateway.ops_address());
    let is_ready = || fetch(ops, &Call::get("/readyz")).status == 200;
    assert!(!is_ready());
    proxy.turn(Weather::Fair);
    gateway.err_line("not the pepper of the store");
    assert!(!is_ready(), "it has asked, and the answer is no");
    assert_eq!(fetch(address, &Call::get("/v1/jobs").key(&key)).status, 503, "never 401");
    drop(gateway);
    set_peppers(folder.path(), "pepper_file = \"old\"");
    proxy.turn(Weather::Cut);
    let gateway = Process::serve(folder.path());
    let (address, ops) = (gateway.address(), gateway.ops_address());
    proxy.turn(Weather::Fair);
    eventually("it is ready", || fetch(ops, &Call::get("/readyz")).status == 200);
    eventually("its key works", || fetch(address, &Call::get("/v1/jobs").key(&key)).status == 200);
    assert_eq!(fetch(address, &Call::get("/v1/jobs").key(&guess())).status, 401);
}

#[test]
fn a_pepper_that_stops_to_fit_makes_lookups_unavailable_and_known_keys_work() {
    let (redis, live) = (RedisServer::start(), Upstream::start("live"));
    let folder = folder(&store_in(&redis), &live.url());
    let (known, other) = (create_key(folder.path()), create_key(folder.path()));
    let gateway = Process::serve(folder.path());
    let address = gateway.address();
    let ask = |key: &str| fetch(address, &Call::get("/v1/jobs").key(key)).status;
    assert_eq!(ask(&known), 200);
    let row = redis.command(&["HGET", "{kg}:meta", "peppers"]);
    let row = row.lines().last().unwrap().trim().to_owned();
    let mut words: Vec<&str> = row.split(' ').collect();
    (words[1], words[3]) = ("9-0123456789abcdef", "0123456789abcdef");
    redis.command(&["HSET", "{kg}:meta", "peppers", &words.join(" ")]);
    assert_eq!((ask(&known), ask(&other), ask(&guess())), (200, 503, 503));
    gateway.err_line("not the pepper of the store");
    let told = errors(&run(folder.path(), &["store", "status"]));
    assert!(told.contains("not the pepper of the store"), "{told}");
    redis.command(&["HSET", "{kg}:meta", "peppers", &row]);
    eventually("it works again", || ask(&other) == 200);
}

/// Asks with all keys in turn, over and over, until it is told to stop.
#[derive(Clone, Copy)]
struct Load<'l> {
    addresses: &'l [RwLock<SocketAddr>],
    keys: &'l [String],
    stop: &'l AtomicBool,
    asked: &'l AtomicUsize,
    refused: &'l AtomicUsize,
    rounds: &'l AtomicUsize,
}

impl Load<'_> {
    /// Every answer should be a 200: a gateway that is being restarted gets no requests.
    fn run(&self, first: usize, step: usize) {
        while !self.stop.load(Ordering::SeqCst) {
            for key in self.keys.iter().skip(first).step_by(step) {
                for address in self.addresses {
                    let Ok(to) = address.try_read() else {
                        thread::sleep(PAUSE);
                        continue;
                    };
                    let answer = fetch(*to, &Call::get("/v1/jobs").key(key));
                    if answer.status != 200 {
                        println!("{}: {}", answer.status, answer.text());
                        self.refused.fetch_add(1, Ordering::SeqCst);
                    }
                    self.asked.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(PAUSE);
                }
            }
            self.rounds.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Replaces the pepper of some gateways under load. They are restarted one after the other.
fn rotate(store: &str, gateways: usize, keys: usize) {
    let live = Upstream::start("live");
    let cache = "[cache]\ncapacity = 50\nttl = \"200ms\"\nnegative_ttl = \"1ms\"\nlookup_timeout = \"20s\"\n";
    let folders: Vec<TempDir> =
        (0..gateways).map(|_| folder(&format!("{store}{cache}"), &live.url())).collect();
    let secrets = make_keys(folders[0].path(), keys);
    let mut serving: Vec<Process> = folders.iter().map(|folder| Process::serve(folder.path())).collect();
    let addresses: Vec<_> = serving.iter().map(|serving| RwLock::new(serving.address())).collect();
    let stop = AtomicBool::new(false);
    let [asked, refused, rounds] = [(); 3].map(|()| AtomicUsize::new(0));
    let load = Load {
        addresses: &addresses,
        keys: &secrets,
        stop: &stop,
        asked: &asked,
        refused: &refused,
        rounds: &rounds,
    };
    let begun = Instant::now();
    let restart = |n: usize, line: &str, serving: &mut Vec<Process>| {
        // Meanwhile the load goes elsewhere, as a load balancer sends it.
        let mut address = addresses[n].write().unwrap();
        set_peppers(folders[n].path(), line);
        serving[n].terminate();
        serving[n].terminate();
        serving[n].wait();
        serving[n] = Process::serve(folders[n].path());
        *address = serving[n].address();
    };
    let whole_round = || {
        let from = rounds.load(Ordering::SeqCst);
        // Of both senders: one that had begun, and a whole one.
        unhurried("every key was asked for", || rounds.load(Ordering::SeqCst) >= from + 4);
    };
    thread::scope(|scope| {
        for n in 0..2 {
            scope.spawn(move || {
                // So that a failure does not leave the others running.
                let ended = Stop(load.stop);
                load.run(n, 2);
                drop(ended);
            });
        }
        let ended = Stop(&stop);
        for (n, folder) in folders.iter().enumerate() {
            restart(n, "pepper_files = [\"new\", \"old\"]", &mut serving);
            create_and_ask(folder.path(), &addresses);
        }
        let first = folders[0].path();
        let status = || done(first, &["store", "status"]);
        eventually("the new pepper is in force", || status().contains("old: still needed"));
        create_and_ask(first, &addresses);
        whole_round();
        if gateways > 1 {
            set_peppers(first, "pepper_file = \"new\"");
            let told = errors(&run(first, &["serve"]));
            assert!(told.contains("records under the pepper before remain"), "{told}");
            set_peppers(first, "pepper_files = [\"new\", \"old\"]");
        }
        let told = done(first, &["store", "reseal"]);
        assert!(told.contains("moved to the new pepper") && told.contains("old; remove it"), "{told}");
        assert!(done(first, &["store", "reseal"]).contains("nothing to move"));
        whole_round();
        for (n, folder) in folders.iter().enumerate() {
            restart(n, "pepper_file = \"new\"", &mut serving);
            create_and_ask(folder.path(), &addresses);
        }
        whole_round();
        drop(ended);
    });
    let [asked, refused] = [asked, refused].map(AtomicUsize::into_inner);
    println!("{keys} keys, {gateways} gateways, {:?}: {asked} requests, {refused} refused", begun.elapsed());
    assert_eq!(refused, 0, "a good key was refused");
    assert!(asked >= secrets.len() * gateways);
    done(folders[0].path(), &["audit", "verify"]);
}

struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A new key works at once at every gateway.
fn create_and_ask(folder: &Path, addresses: &[RwLock<SocketAddr>]) {
    let key = create_key(folder);
    for address in addresses {
        assert_eq!(fetch(*address.read().unwrap(), &Call::get("/v1/jobs").key(&key)).status, 200);
    }
}

/// This number of keys, imported: making each by a command would take long.
fn make_keys(folder: &Path, count: usize) -> Vec<String> {
    create_key(folder);
    let org = done(folder, &["orgs", "list", "--json"]);
    let org: serde_json::Value = serde_json::from_str(org.lines().next().unwrap()).unwrap();
    let secrets: Vec<String> = (0..count).map(|_| guess()).collect();
    let lines = secrets
        .iter()
        .enumerate()
        .map(|(n, secret)| moved_key(secret, &format!("key {n}"), &serde_json::json!({})));
    fs::write(folder.join("keys.ndjson"), lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    done(folder, &["keys", "import", "keys.ndjson", "--org", org["id"].as_str().unwrap()]);
    secrets
}

/// Settings of a store whose servers are named by these lines.
fn store_at(place: &str) -> String {
    format!(
        "[store]\nkind = \"redis\"\nallow_without_pepper = true\n{place}\nconnect_timeout = \"20s\"\n\
         lookup_timeout = \"20s\"\ncommand_timeout = \"20s\"\n"
    )
}

fn some() -> usize {
    if is_long() { 10_000 } else { 100 }
}

#[test]
fn no_good_key_is_refused_while_two_gateways_on_redis_get_a_new_pepper() {
    let redis = RedisServer::start();
    rotate(&store_in(&redis), 2, some());
}

#[test]
fn no_good_key_is_refused_while_the_gateway_of_a_file_gets_a_new_pepper() {
    rotate("", 1, some());
}

#[test]
fn no_good_key_is_refused_while_two_gateways_on_a_cluster_get_a_new_pepper() {
    let cluster = Cluster::start();
    rotate(&store_at(&cluster.settings()), 2, 20);
}

#[test]
fn no_good_key_is_refused_while_two_gateways_behind_sentinels_get_a_new_pepper() {
    let watched = Watched::start();
    rotate(&store_at(&watched.settings()), 2, 20);
}

#[test]
fn a_start_verifies_the_file_once_though_its_pepper_is_judged_first() {
    let folder = folder("", "http://127.0.0.1:9");
    make_keys(folder.path(), 5_000);
    let read = |whose: &str| {
        let io = fs::read_to_string(format!("/proc/{whose}/io")).unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse::<u64>().unwrap()
    };
    let serving = Process::serve(folder.path());
    serving.address();
    let at_start = read(&serving.id().to_string());
    drop(serving);
    // Opening verifies the whole file once, in this thread, and then reads it.
    let pepper = Pepper::new(OLD.into()).unwrap();
    let before = read("thread-self");
    let settings = Settings { path: folder.path().join("keygate.redb") };
    let opened = Embedded::open(&settings, Sealer::under(Peppers::new(Some(pepper)))).unwrap();
    let once = read("thread-self") - before;
    drop(opened);
    println!("{at_start} bytes were read at the start; opening the file reads {once}");
    assert!(once > 500_000, "so few that a start reads more anyway: {once}");
    assert!(at_start < once * 5 / 4, "{at_start} bytes instead of some {once}");
}
