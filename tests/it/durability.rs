//! `kill -9` at random times while keys are created, rotated and revoked over the API: of the gateway, of Redis,
//! and of both. Afterwards, every change that was answered is complete, and no change is partial.
//!
//! `KEYGATE_LONG=1 cargo test --test it durability:: -- --nocapture` runs the long form.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::api::{json_call, sign_up};
use crate::harness::client::try_fetch;
use crate::harness::process::keygate;
use crate::harness::{Answer, Call, Gateway, Process, RedisServer, Upstream, eventually, fetch};

const ROUNDS: usize = 5;
const LONG: usize = 200;
/// Concurrent clients of one organisation; each changes the keys that it created.
const CLIENTS: usize = 4;
/// The latest time of the kill after the beginning of a round, and that of a round with compactions.
const LATEST: Duration = Duration::from_millis(300);
const LATEST_COMPACTING: Duration = Duration::from_secs(1);

#[test]
fn killing_the_gateway_leaves_no_lost_or_partial_change_in_the_embedded_store() {
    Place::new(None).run(|_, _| Killed::Gateway);
}

#[test]
fn killing_the_gateway_while_its_store_is_compacted_leaves_no_lost_or_partial_change() {
    Place { compacts: true, ..Place::new(None) }.run(|_, _| Killed::Gateway);
}

#[test]
fn killing_the_gateway_or_redis_leaves_no_lost_or_partial_change() {
    let redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    Place::new(Some(redis)).run(|round, _| match round % 3 {
        0 => Killed::Redis,
        1 => Killed::Gateway,
        _ => Killed::Both,
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    Gateway,
    Redis,
    Both,
}

/// A gateway process with its store, and all answers to its clients.
struct Place {
    folder: TempDir,
    // Before its Redis, so that it has ended first.
    gateway: Option<Process>,
    address: Option<SocketAddr>,
    redis: Option<RedisServer>,
    /// Whether the store is compacted all the time.
    compacts: bool,
    _upstreams: [Upstream; 2],
    orgs: Vec<Org>,
    tally: Tally,
}

/// The totals of all rounds.
#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    /// Requests in progress at the kill, and how many of them were executed.
    in_doubt: usize,
    happened: usize,
    /// Compactions that came to their end, and those that the kill has broken off.
    compacted: usize,
    broken_off: usize,
}

/// An organisation of one round.
struct Org {
    root: String,
    clients: Vec<Client>,
}

/// A client that creates, rotates and revokes keys, one request after another.
struct Client {
    name: String,
    rng: Rng,
    made: usize,
    keys: Vec<Key>,
    /// Repeatable requests, with their answers.
    answers: Vec<(Call, String)>,
    /// Changes without an answer.
    in_doubt: Option<Step>,
    answered: usize,
}

/// A key in the state that its client knows from answers.
#[derive(Clone, Debug)]
struct Key {
    id: String,
    name: String,
    /// Its valid secrets, newest first.
    secrets: Vec<String>,
    /// Its earlier secrets.
    old: Vec<String>,
    rotations: usize,
    revoked: bool,
}

/// A request, and the key that it is about.
#[derive(Clone, Debug)]
enum Step {
    Create { name: String, call: Call },
    Rotate { key: usize, overlap: bool, call: Call },
    Revoke { key: usize, call: Call },
}

impl Step {
    const fn call(&self) -> &Call {
        match self {
            Self::Create { call, .. } | Self::Rotate { call, .. } | Self::Revoke { call, .. } => call,
        }
    }
}

impl Place {
    fn new(redis: Option<RedisServer>) -> Self {
        let folder = TempDir::new().unwrap();
        for (name, secret) in [("pepper", "a pepper"), ("chain", "a key of the audit trail")] {
            let path = folder.path().join(name);
            fs::write(&path, format!("{secret} of the tests, of at least thirty-two bytes")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let store = redis.as_ref().map_or_else(String::new, |redis| {
            format!(
                "[store]\nkind = \"redis\"\nurl = \"{}\"\nconnect_timeout = \"10s\"\nlookup_timeout = \"10s\"\n\
                 command_timeout = \"10s\"\n[cache]\nlookup_timeout = \"10s\"\n",
                redis.url()
            )
        });
        let settings = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\nmax_connections = 200\n{store}[keys]\npepper_file = \
             \"pepper\"\n[audit]\nkey_file = \"chain\"\n[admin]\nsocket = \"keygate.sock\"\n[signup]\nenabled = true\n\
             per_network_and_hour = 100000\nper_day = 100000\n"
        );
        let upstreams = [Upstream::start("live"), Upstream::start("test")];
        Gateway::builder().settings(&settings).api(&upstreams[0], &upstreams[1]).write(folder.path());
        // The first gateway creates the store if there is none.
        assert!(
            run(
                folder.path(),
                &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "first"]
            )
            .0
        );
        let (orgs, tally) = (Vec::new(), Tally::default());
        let compacts = false;
        Self { folder, gateway: None, address: None, redis, compacts, _upstreams: upstreams, orgs, tally }
    }

    #[expect(clippy::print_stdout, reason = "the figures of the long form")]
    fn run(mut self, whom: impl Fn(usize, &mut Rng) -> Killed) {
        let rounds = if std::env::var_os("KEYGATE_LONG").is_some() { LONG } else { ROUNDS };
        let began = Instant::now();
        for round in 0..rounds {
            let mut rng = Rng::with_seed(round as u64);
            let killed = whom(round, &mut rng);
            self.start();
            self.begin_org(round);
            self.work_until_killed(killed, &mut rng);
            self.start();
            self.settle();
            self.check(self.orgs.len() - 1);
            // Earlier changes are still complete.
            self.check(rng.usize(..self.orgs.len()));
        }
        for org in 0..self.orgs.len() {
            self.check(org);
        }
        self.verify_trails();
        println!("{rounds} kills in {:?}: {:?}", began.elapsed(), self.tally);
        assert!(self.tally.answered > rounds && self.tally.in_doubt > 0, "{:?} proves nothing", self.tally);
    }

    /// Starts the stopped processes, and waits until keys are served.
    fn start(&mut self) {
        if self.gateway.is_none() {
            let left = self.folder.path().join("keygate.redb.compacting");
            self.tally.broken_off += usize::from(left.exists());
            let gateway = Process::serve(self.folder.path());
            self.address = Some(gateway.address());
            assert!(!left.exists(), "the start removes what is left of a copy");
            self.gateway = Some(gateway);
        }
        let any = Call::get("/v1/api_keys/self").key("fh_live_sk_00000000000000000000000000000000000000");
        assert_eq!(fetch(self.address.unwrap(), &any).status, 401);
        if let Some(org) = self.orgs.last() {
            let own = Call::get("/v1/api_keys").key(&org.root);
            eventually("the store answers", || fetch(self.address.unwrap(), &own).status == 200);
        }
    }

    fn begin_org(&mut self, round: usize) {
        let call = sign_up(&format!("round-{round}@example.com"));
        let answer = fetch(self.address.unwrap(), &call);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let root = answer.json()["api_key"].as_str().unwrap().to_owned();
        let clients =
            (0..CLIENTS).map(|n| Client::new(&format!("{round}-{n}"), (round * CLIENTS + n) as u64));
        self.orgs.push(Org { root, clients: clients.collect() });
    }

    /// All clients run; the kill comes at a random time.
    fn work_until_killed(&mut self, killed: Killed, rng: &mut Rng) {
        let over = AtomicBool::new(false);
        let (address, org) = (self.address.unwrap(), self.orgs.last_mut().unwrap());
        let latest = if self.compacts { LATEST_COMPACTING } else { LATEST };
        let moment = latest.mul_f64(rng.f64());
        let (compacts, folder, compacted) = (self.compacts, self.folder.path(), &mut self.tally.compacted);
        let (gateway, redis) = (&mut self.gateway, &mut self.redis);
        thread::scope(|scope| {
            for client in &mut org.clients {
                scope.spawn(|| client.work(address, &org.root, &over));
            }
            if compacts {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        *compacted += usize::from(run(folder, &["store", "compact"]).0);
                    }
                });
            }
            thread::sleep(moment);
            if killed != Killed::Gateway {
                redis.as_mut().unwrap().kill();
            }
            if killed != Killed::Redis {
                let mut gateway = gateway.take().unwrap();
                gateway.signal(Signal::KILL);
                gateway.wait();
            }
            over.store(true, Ordering::SeqCst);
        });
        if killed != Killed::Gateway {
            redis.as_mut().unwrap().revive();
        }
    }

    /// Finds out what happened to the requests without an answer, and repeats them as a client would.
    fn settle(&mut self) {
        let address = self.address.unwrap();
        let org = self.orgs.last_mut().unwrap();
        let (listed, events) =
            (list(address, &org.root, "api_keys"), list(address, &org.root, "audit_events"));
        for client in &mut org.clients {
            self.tally.answered += client.answered;
            if let Some(step) = client.in_doubt.take() {
                self.tally.in_doubt += 1;
                let happened = client.happened(&step, &listed, &events);
                self.tally.happened += usize::from(happened);
                client.repeat(&step, happened, address);
            }
        }
    }

    /// Compares the gateway's data of an organisation with the clients' knowledge.
    fn check(&self, org: usize) {
        let (address, Org { root, clients }) = (self.address.unwrap(), &self.orgs[org]);
        let keys = || clients.iter().flat_map(|client| &client.keys);
        let listed = list(address, root, "api_keys");
        let told: BTreeMap<&str, (&str, &str)> = keys()
            .map(|key| (&*key.id, (&*key.name, if key.revoked { "revoked" } else { "active" })))
            .collect();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        for key in &listed {
            let (id, name, status) = (text(&key["id"]), text(&key["name"]), text(&key["status"]));
            if name != "Default" {
                let is_told = told.get(&*id) == Some(&(&*name, &*status));
                assert!(is_told, "of organisation {org}, {id} is in {listed:#?}, but told were {told:#?}");
            }
        }
        assert_eq!(listed.len(), told.len() + 1, "every key is in the list, and once");

        for key in keys() {
            let opens = |secret: &String| {
                let answer = fetch(address, &Call::get("/v1/api_keys/self").key(secret));
                let is_own = answer.status == 200 && answer.json()["id"] == json!(key.id);
                assert!(is_own || answer.status == 401, "{key:?}: {}", answer.text());
                is_own
            };
            let lives = key.secrets.iter().map(opens).collect::<BTreeSet<_>>();
            assert_eq!(lives, BTreeSet::from([!key.revoked]), "{key:?}");
            assert!(!key.old.iter().any(opens), "{key:?}");
        }
        let mut counted: BTreeMap<(String, String), usize> = BTreeMap::new();
        let events = list(address, root, "audit_events");
        let changes: usize = keys().map(|key| 1 + key.rotations + usize::from(key.revoked)).sum();
        // A gateway that was killed is waited for: what came of that is told as an event of its own.
        let events: Vec<_> =
            events.into_iter().filter(|event| event["type"] != "change.propagated").collect();
        let kinds: Vec<_> = events.iter().map(|event| (text(&event["type"]), &event["target"])).collect();
        assert!(
            events.len() == 1 + changes,
            "no event is of what did not happen: {:#?} in {kinds:#?}",
            keys().collect::<Vec<_>>()
        );
        for event in events {
            let target = event["target"].as_str().unwrap_or_default().to_owned();
            *counted.entry((target, text(&event["type"]))).or_default() += 1;
        }
        for key in keys() {
            let count = |kind: &str| counted.get(&(key.id.clone(), kind.to_owned())).copied().unwrap_or(0);
            let seen = (count("key.created"), count("key.rotated"), count("key.revoked"));
            assert_eq!(seen, (1, key.rotations, usize::from(key.revoked)), "events of {key:?}");
        }
        for (call, answer) in clients.iter().flat_map(|client| &client.answers) {
            let again = fetch(address, call);
            assert_eq!((again.status, again.text()), (200, answer.clone()), "a kept answer");
        }
    }

    fn verify_trails(&self) {
        let (whole, said) = run(self.folder.path(), &["audit", "verify"]);
        assert!(whole, "{said}");
    }
}

impl Client {
    fn new(name: &str, seed: u64) -> Self {
        let (rng, name) = (Rng::with_seed(seed), name.to_owned());
        Self { name, rng, made: 0, keys: Vec::new(), answers: Vec::new(), in_doubt: None, answered: 0 }
    }

    fn work(&mut self, address: SocketAddr, root: &str, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            let step = self.next_step(root);
            match try_fetch(address, step.call()) {
                Some(answer) if answer.status < 500 => {
                    self.answered += 1;
                    self.note(&step, &answer);
                }
                _ => {
                    self.in_doubt = Some(step);
                    return;
                }
            }
        }
    }

    fn next_step(&mut self, root: &str) -> Step {
        self.made += 1;
        let name = format!("{}-{}", self.name, self.made);
        let alive: Vec<usize> = (0..self.keys.len()).filter(|n| !self.keys[*n].revoked).collect();
        let named = |call: Call| call.key(root).field("idempotency-key", &name);
        match (self.rng.choice(alive), self.rng.u8(..5)) {
            (Some(key), 0 | 1) => {
                let overlap = self.rng.bool();
                let body = json!({ "overlap_seconds": if overlap { 3600 } else { 0 } });
                let call = json_call("POST", &format!("/v1/api_keys/{}/rotate", self.keys[key].id), &body);
                Step::Rotate { key, overlap, call: named(call) }
            }
            (Some(key), 2) => {
                let target = format!("/v1/api_keys/{}/revoke", self.keys[key].id);
                Step::Revoke { key, call: Call::new("POST", &target).key(root) }
            }
            _ => {
                let call = named(json_call("POST", "/v1/api_keys", &json!({ "name": name })));
                Step::Create { name, call }
            }
        }
    }

    /// Records the content of an answer.
    #[track_caller]
    fn note(&mut self, step: &Step, answer: &Answer) {
        let text = |name: &str| answer.json()[name].as_str().unwrap().to_owned();
        match step {
            Step::Revoke { key, .. } => {
                assert_eq!(answer.status, 204, "{}", answer.text());
                self.keys[*key].revoked = true;
                return;
            }
            Step::Create { name, .. } => {
                assert_eq!(answer.status, 200, "{}", answer.text());
                let secrets = vec![text("secret")];
                let (id, name) = (text("id"), name.clone());
                self.keys.push(Key { id, name, secrets, old: Vec::new(), rotations: 0, revoked: false });
            }
            Step::Rotate { key, overlap, .. } => {
                assert_eq!(answer.status, 200, "{}", answer.text());
                let key = &mut self.keys[*key];
                key.old.extend(key.secrets.split_off(usize::from(*overlap)));
                key.secrets.insert(0, text("secret"));
                key.rotations += 1;
            }
        }
        self.answers.push((step.call().clone(), answer.text()));
    }

    /// Whether a request without an answer was executed; fails if it was executed in part.
    #[track_caller]
    fn happened(&self, step: &Step, listed: &[Value], events: &[Value]) -> bool {
        let told = |kind: &str, id: &str| {
            events.iter().filter(|event| event["type"] == kind && event["target"] == id).count()
        };
        match step {
            Step::Create { name, .. } => {
                let made: Vec<&Value> = listed.iter().filter(|key| key["name"] == json!(name)).collect();
                let count = made.iter().map(|key| told("key.created", key["id"].as_str().unwrap())).sum();
                assert_eq!((made.len(), true), (count, count < 2), "{name} is there with its event, or not");
                count == 1
            }
            Step::Rotate { key, .. } => {
                let key = &self.keys[*key];
                let count = told("key.rotated", &key.id) - key.rotations;
                assert!(count < 2, "{key:?}");
                count == 1
            }
            Step::Revoke { key, .. } => {
                let key = &self.keys[*key];
                let status =
                    listed.iter().find(|listed| listed["id"] == json!(key.id)).unwrap()["status"].clone();
                let count = told("key.revoked", &key.id);
                assert_eq!((status == "revoked", true), (count == 1, count < 2), "{key:?}");
                count == 1
            }
        }
    }

    /// Sends the request again: it gets the same answer, and is executed once.
    #[track_caller]
    fn repeat(&mut self, step: &Step, happened: bool, address: SocketAddr) {
        if let (Step::Revoke { key, .. }, true) = (step, happened) {
            self.keys[*key].revoked = true;
            // The gateway may apply the change a little later: no answer has confirmed it.
            let key = &self.keys[*key];
            for secret in &key.secrets {
                let call = Call::get("/v1/api_keys/self").key(secret);
                eventually("a revoked key is dead", || fetch(address, &call).status == 401);
            }
            return;
        }
        let answer = fetch(address, step.call());
        self.note(step, &answer);
        if let Step::Rotate { key, .. } = step {
            for secret in &self.keys[*key].old {
                let call = Call::get("/v1/api_keys/self").key(secret);
                eventually("an old secret is dead", || fetch(address, &call).status == 401);
            }
        }
    }
}

/// A whole list, page by page.
#[track_caller]
fn list(address: SocketAddr, root: &str, what: &str) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = fetch(address, &Call::get(&format!("/v1/{what}?limit=100{cursor}")).key(root));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut page = answer.json();
        all.append(page["data"].as_array_mut().unwrap());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

/// Whether a command succeeds, and its output.
fn run(folder: &std::path::Path, arguments: &[&str]) -> (bool, String) {
    let done = keygate(folder, arguments).output().unwrap();
    let said = [&done.stdout[..], &done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&said).into_owned())
}
