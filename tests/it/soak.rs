//! Growth has an end: a gateway under changes for as long as one likes, on either store. At equal intervals its resident memory,
//! its open descriptors and the size of its store are noted. What is kept of each change is in the store, and nothing in memory.
//!
//! `KEYGATE_LONG=1 KEYGATE_TEST_BINARY=/path/to/keygate cargo test --test it soak:: -- --nocapture --test-threads 1` makes a million
//! changes on each store, and prints a line at each tenth. `KEYGATE_SOAK_CHANGES` is another number of changes.

#![expect(clippy::print_stdout, reason = "what was seen is told")]

use std::collections::VecDeque;
use std::env;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::api::{ApiKey, json_call, sign_up};
use crate::harness::desk::{in_redis, write_secret};
use crate::harness::moved::moved_key;
use crate::harness::process::keygate;
use crate::harness::{
    Answer, Call, Gateway, PAUSE, Process, RedisServer, SetOnDrop, Upstream, Wire, eventually, fetch,
    is_long, unhurried,
};

/// Of one caller: an organisation may make 600 keys a minute.
const ORGS: usize = 8;
/// Live keys of a caller. One more, and the oldest is revoked.
const LIVE: usize = 24;
/// How often is looked.
const LOOKS: u64 = 10;
/// By how much memory may grow from the first third to the last, in bytes. What is bounded may still fill: the 8 MiB of the file's
/// cache, or the 16 MiB of the records that a gateway on Redis remembers, and 18 MiB of the last changes; the rest is the allocator's.
const GROWTH: u64 = 40 << 20;
/// By how many descriptors the last look may differ from the first: connections to upstreams and to Redis come and go.
const DESCRIPTORS: usize = 8;
/// Redis' names with stones at the most: 4,096 for ids, and as many for secrets.
const GRAVES: u64 = 8192;

/// The settings of either store. The cache of keys is small, so that it is full soon.
const SETTINGS: &str = "[server]\nlisten = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\n\
                        [admin]\nsocket = \"keygate.sock\"\nlisten = \"127.0.0.1:0\"\ntokens_file = \"admin-tokens\"\nallowed_hosts = [\"api.example.com\"]\n\
                        [signup]\nenabled = true\nper_network_and_hour = 100000\nper_day = 100000\n\
                        [cache]\ncapacity = 5_000\nlookup_timeout = \"20s\"\n";
const EMBEDDED: &str =
    "[keys]\npepper_file = \"pepper\"\n[store]\nkind = \"embedded\"\npath = \"keygate.redb\"\n";

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.replace('_', "").parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// So many that a file has several changes for each time that it is synced.
fn callers() -> u64 {
    if is_long() { 32 } else { 8 }
}

fn wanted() -> u64 {
    number("KEYGATE_SOAK_CHANGES").unwrap_or(if is_long() { 1_000_000 } else { 2_000 })
}

// ---- What is looked at

/// The gateway, and where its store is.
struct Soaked {
    folder: TempDir,
    redis: Option<RedisServer>,
    live: Upstream,
    test: Upstream,
    serving: Option<Process>,
    address: SocketAddr,
    admin: SocketAddr,
    token: String,
    begun: Instant,
}

/// What was seen at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    changes: u64,
    after: Duration,
    /// Bytes.
    resident: u64,
    /// The most so far; bytes.
    peak: u64,
    descriptors: usize,
    /// Bytes of the embedded file on the disk, or of Redis' memory.
    store: u64,
    /// Redis' names.
    names: Option<u64>,
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{:>9} changes, {:>6.1} s: {:>6.1} MiB resident (at most {:>6.1}), {:>3} descriptors, store {:>8.1} MiB",
            self.changes,
            self.after.as_secs_f64(),
            mib(self.resident),
            mib(self.peak),
            self.descriptors,
            mib(self.store)
        )?;
        self.names.map_or(Ok(()), |names| write!(f, ", {names} names"))
    }
}

impl Soaked {
    fn start(redis: Option<RedisServer>) -> Self {
        let folder = TempDir::new().unwrap();
        let made = keygate(folder.path(), &["admin", "token", "soak", "--json"]).output().unwrap();
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        write_secret(&folder.path().join("admin-tokens"), made["line"].as_str().unwrap());
        write_secret(&folder.path().join("pepper"), &"pepper".repeat(8));
        let (live, test) = (Upstream::start("live"), Upstream::start("test"));
        // The shortest that there is: keys that ended longer ago than a day go.
        let store = redis.as_ref().map_or_else(|| EMBEDDED.to_owned(), in_redis) + "keep_ended = \"1d\"\n";
        Gateway::builder().settings(SETTINGS).settings(&store).api(&live, &test).write(folder.path());
        let token = made["token"].as_str().unwrap().to_owned();
        let nowhere = ([127, 0, 0, 1], 0).into();
        let mut soaked = Self {
            folder,
            redis,
            live,
            test,
            serving: None,
            address: nowhere,
            admin: nowhere,
            token,
            begun: Instant::now(),
        };
        soaked.operate(&["store", "accept", "--yes"], "");
        soaked.serve();
        soaked
    }

    fn serve(&mut self) {
        let mut command = keygate(self.folder.path(), &["serve"]);
        // Unused connections are not among the descriptors for long.
        command.env("KEYGATE__UPSTREAMS__API__IDLE_TIMEOUT", "100ms");
        let serving = Process::start(command);
        self.address = serving.address();
        let line = serving.err_line("admin API on ");
        self.admin = line.rsplit("http://").next().unwrap().parse().unwrap();
        self.serving = Some(serving);
    }

    fn serving(&self) -> &Process {
        self.serving.as_ref().unwrap()
    }

    /// What a command prints, which must succeed.
    #[track_caller]
    fn operate(&self, arguments: &[&str], input: &str) -> String {
        let file = self.folder.path().join("input");
        fs::write(&file, input).unwrap();
        let mut command = keygate(self.folder.path(), arguments);
        let output = command.stdin(fs::File::open(&file).unwrap()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {} {told}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn look(&self, changes: u64) -> Look {
        let serving = self.serving();
        let asked = |command: &[&str], name: &str| {
            let told = self.redis.as_ref()?.command(command);
            let line = told.lines().find_map(|line| line.trim().strip_prefix(name))?;
            line.parse::<u64>().ok()
        };
        Look {
            changes,
            after: self.begun.elapsed(),
            resident: serving.memory("VmRSS:"),
            peak: serving.memory("VmHWM:"),
            descriptors: descriptors(serving),
            store: asked(&["INFO", "memory"], "used_memory:").unwrap_or_else(|| self.file()),
            names: asked(&["DBSIZE"], ":"),
        }
    }

    /// What the embedded file takes of the disk.
    fn file(&self) -> u64 {
        fs::metadata(self.folder.path().join("keygate.redb")).map_or(0, |file| file.blocks() * 512)
    }

    /// The size of the store without what is free in it.
    fn dense(&self) -> Look {
        if self.redis.is_none() {
            self.operate(&["store", "compact"], "");
        }
        self.look(0)
    }
}

fn descriptors(process: &Process) -> usize {
    fs::read_dir(Path::new("/proc").join(process.id().to_string()).join("fd")).unwrap().count()
}

// ---- Who changes keys

/// Where callers call, and upstreams that note what comes.
#[derive(Clone, Copy)]
struct Around<'s> {
    address: SocketAddr,
    admin: SocketAddr,
    token: &'s str,
    upstreams: [&'s Upstream; 2],
}

/// One who makes, narrows, rotates and revokes keys of some organisations, and uses them in between.
struct Caller<'s> {
    around: Around<'s>,
    wire: Wire,
    roots: Vec<String>,
    live: VecDeque<(usize, ApiKey)>,
    lives: usize,
    changes: &'s AtomicU64,
}

impl<'s> Caller<'s> {
    fn new(around: Around<'s>, number: u64, changes: &'s AtomicU64) -> Self {
        let mut caller = Self {
            around,
            wire: Wire::connect(around.address),
            roots: Vec::new(),
            live: VecDeque::new(),
            lives: 0,
            changes,
        };
        for org in 0..ORGS {
            let answer = caller.expect(200, &sign_up(&format!("owner-{org}@caller-{number}.example")));
            caller.roots.push(answer.json()["api_key"].as_str().unwrap().to_owned());
        }
        caller
    }

    #[track_caller]
    fn expect(&mut self, status: u16, call: &Call) -> Answer {
        let answer = self.wire.call(call).unwrap_or_else(|| panic!("no answer to {call:?}"));
        assert_eq!(answer.status, status, "{} {}: {}", call.method, call.target, answer.text());
        answer
    }

    /// A change, which must succeed.
    #[track_caller]
    fn change(&mut self, status: u16, call: &Call) -> Answer {
        let answer = self.expect(status, call);
        self.changes.fetch_add(1, Ordering::Relaxed);
        answer
    }

    #[track_caller]
    fn uses(&mut self, status: u16, secret: &str) {
        self.expect(status, &Call::get("/v1/jobs").key(secret));
    }

    /// Makes a key, and changes it in each way but the last, which is for the oldest.
    fn step(&mut self) {
        let org = self.lives % ORGS;
        let root = self.roots[org].clone();
        let body = json!({ "name": format!("key {}", self.lives), "scopes": ["jobs:read", "keys:manage"] });
        let made = ApiKey::of(&self.change(200, &json_call("POST", "/v1/api_keys", &body).key(&root)));
        self.uses(200, &made.secret);
        let body = json!({ "overlap_seconds": if self.lives.is_multiple_of(2) { 0 } else { 3600 } });
        let rotate = json_call("POST", &format!("{}/rotate", made.path()), &body).key(&root);
        let made = ApiKey::of(&self.change(200, &rotate));
        self.uses(200, &made.secret);
        let narrow = json_call("PATCH", &made.path(), &json!({ "scopes": ["keys:manage"] })).key(&root);
        self.change(200, &narrow);
        self.uses(403, &made.secret);
        if self.lives.is_multiple_of(4) {
            self.disable(&made);
        }
        self.live.push_back((org, made));
        if self.live.len() > LIVE
            && let Some((org, oldest)) = self.live.pop_front()
        {
            self.revoke(org, &oldest);
        }
        self.lives += 1;
        if self.lives.is_multiple_of(100) {
            self.around.upstreams.iter().for_each(|upstream| upstream.forget());
        }
    }

    fn revoke(&mut self, org: usize, key: &ApiKey) {
        self.change(204, &Call::new("DELETE", &key.path()).key(&self.roots[org].clone()));
        self.uses(401, &key.secret);
    }

    /// Only operators do.
    fn disable(&mut self, key: &ApiKey) {
        let order = json!({ "operator": "ada", "command": { "keys": { "disable": { "id": key.id } } } });
        let call = Call::post("/v1/command", order.to_string()).key(self.around.token);
        let answer = fetch(self.around.admin, &call);
        assert!(answer.status == 200 && answer.json()["key"].is_object(), "{}", answer.text());
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.uses(401, &key.secret);
    }
}

/// Makes so many changes, and looks at equal intervals, first before all of them.
fn soak(soaked: &Soaked, wanted: u64) -> Vec<Look> {
    let (changes, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut looks = Vec::new();
    let Soaked { address, admin, token, live, test, .. } = soaked;
    let around = Around { address: *address, admin: *admin, token, upstreams: [live, test] };
    thread::scope(|scope| {
        let (changes, is_over) = (&changes, &is_over);
        for number in 0..callers() {
            scope.spawn(move || {
                // Also where it fails: nobody waits for the others then.
                let _over = SetOnDrop(is_over);
                let mut caller = Caller::new(around, number, changes);
                while changes.load(Ordering::Relaxed) < wanted && !is_over.load(Ordering::Relaxed) {
                    caller.step();
                }
            });
        }
        for tenth in 0..=LOOKS {
            while changes.load(Ordering::Relaxed) < wanted * tenth / LOOKS && !is_over.load(Ordering::Relaxed)
            {
                thread::sleep(PAUSE);
            }
            let look = soaked.look(changes.load(Ordering::Relaxed));
            println!("{look}");
            looks.push(look);
        }
    });
    looks
}

/// Memory and descriptors have an end.
fn assert_level(looks: &[Look]) {
    // The first one is from before, and until the second everything comes into being.
    let looks = &looks[2..];
    let third = looks.len() / 3;
    let most = |looks: &[Look]| looks.iter().map(|look| look.resident).max().unwrap();
    let (first, last) = (most(&looks[..third]), most(&looks[looks.len() - third..]));
    assert!(last <= first + GROWTH, "memory grows from {first} bytes to {last}: {looks:#?}");
    let (first, last) = (looks[0].descriptors, looks[looks.len() - 1].descriptors);
    assert!(last <= first + DESCRIPTORS, "{first} descriptors become {last}");
}

// ---- What has ended goes

/// Keys that ended years ago come in, and go at the next start. Tells what each has taken and what stays of it.
fn assert_ended_go(soaked: &mut Soaked) {
    let count = if is_long() { 1000.max(wanted() / 50) } else { 300 };
    let org = soaked.operate(&["orgs", "create", "Mover", "--json"], "");
    let org: Value = serde_json::from_str(&org).unwrap();
    let org = org["id"].as_str().unwrap();
    let minted = || KeyFormat::new(&Prefix::default(), false).mint(Environment::Live).unwrap();
    let ended = json!({ "revoked_at": "2024-02-04T00:00:00Z" });
    let line = |n| moved_key(minted().expose(), &format!("ended {n}"), &ended).to_string() + "\n";
    let lines: String = (0..count).map(line).collect();
    let listed = |soaked: &Soaked| {
        soaked.operate(&["keys", "list", "--org", org, "--json"], "").lines().count() as u64
    };
    let before = soaked.dense();
    soaked.operate(&["keys", "import", "-", "--org", org, "--json"], &lines);
    assert_eq!(listed(soaked), count);
    let with = soaked.dense();
    soaked.serving.take().unwrap().end();
    soaked.serve();
    unhurried("what ended long ago goes", || listed(soaked) == 0);
    let after = soaked.dense();
    let each = |bytes: u64| bytes.saturating_sub(before.store) as f64 / count as f64;
    println!(
        "{count} keys that ended took {:.0} bytes each, and leave {:.0}: the store had {} bytes before, {} with them, {} after",
        each(with.store),
        each(after.store),
        before.store,
        with.store,
        after.store
    );
    // Of Redis' memory more is in use now and then.
    assert!(soaked.redis.is_some() || after.store < with.store, "{with:?} {after:?}");
    if let (Some(with), Some(after)) = (with.names, after.names) {
        // The names of its record and of its digest go, and of all keys together a few come: stones share them.
        let shared = (2 * count).min(GRAVES);
        assert!(after + 2 * count <= with + shared + 16, "{with} names become {after}");
    }
}

fn soak_on(redis: Option<RedisServer>) {
    let mut soaked = Soaked::start(redis);
    let wanted = wanted();
    let before = soaked.look(0);
    let looks = soak(&soaked, wanted);
    eventually("its descriptors are as many as before", || {
        descriptors(soaked.serving()) <= before.descriptors + DESCRIPTORS
    });
    let (last, dense) = (looks[looks.len() - 1], soaked.dense());
    println!(
        "afterwards {} descriptors; {} bytes of the store for each change, {} when it is compacted",
        dense.descriptors,
        last.store.saturating_sub(before.store) / last.changes,
        dense.store.saturating_sub(before.store) / last.changes
    );
    assert_level(&looks);
    assert_ended_go(&mut soaked);
}

#[test]
fn memory_and_descriptors_have_an_end_under_changes_on_a_file() {
    soak_on(None);
}

#[test]
fn memory_and_descriptors_have_an_end_under_changes_on_redis() {
    soak_on(Some(RedisServer::start()));
}
