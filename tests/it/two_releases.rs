//! This release beside another: both serve one Redis at the same time, or one file in turn, while customers and operators use
//! both for everything that both have. Nothing is refused, nothing is lost, and what was taken away stays away.
//!
//! `KEYGATE_TEST_OTHER_RELEASE` is the other's binary. Where it is not set, this release plays both, so that the test itself
//! is tested. `KEYGATE_LONG=1 KEYGATE_TEST_OTHER_RELEASE=/path/to/keygate cargo test --test it two_releases:: -- --nocapture`
//! runs five minutes of it.

#![expect(clippy::print_stdout, reason = "what was done is told")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::api::{ApiKey, json_call, sign_up};
use crate::harness::desk::write_secret;
use crate::harness::process::{keygate, program};
use crate::harness::{Answer, Call, Gateway, Process, RedisServer, Upstream, Wire, eventually, is_long};

const CUSTOMERS: usize = 3;
/// A customer with more keys than this revokes some.
const KEYS: usize = 12;
/// Of one customer: an organisation may make 600 keys a minute.
const BETWEEN_STEPS: Duration = Duration::from_millis(100);
/// The settings of both, and of nothing that the other release may not know.
const SETTINGS: &str = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\ndrain_delay = \"0s\"\n[admin]\nsocket = \"keygate.sock\"\n\
                        [signup]\nenabled = true\nper_network_and_hour = 100000\nper_day = 100000\n";

/// A busy machine may take longer than the default until each change is everywhere.
const KEYS_SECTION: &str = "[keys]\npepper_file = \"pepper\"\nack_wait = \"20s\"\n";

fn span() -> Duration {
    if is_long() { Duration::from_secs(300) } else { Duration::from_secs(3) }
}

/// This release, and the other one.
fn programs() -> [PathBuf; 2] {
    let own = PathBuf::from(keygate(Path::new("."), &[]).get_program());
    let other = std::env::var_os("KEYGATE_TEST_OTHER_RELEASE").map_or_else(|| own.clone(), PathBuf::from);
    [own, other]
}

/// Where organisations' keys lead to, and where news go.
struct Around {
    live: Upstream,
    test: Upstream,
    news: Upstream,
}

impl Around {
    fn new() -> Self {
        Self { live: Upstream::start("live"), test: Upstream::start("test"), news: Upstream::start("taken") }
    }

    /// A configuration on this store, for one of the releases.
    fn write(&self, folder: &Path, store: &str) {
        let outbox = format!("[outbox]\nurl = \"{}/news\"\nkey_file = \"pepper\"\n", self.news.url());
        write_secret(&folder.join("pepper"), &"pepper".repeat(8));
        let gateway = Gateway::builder().settings(&[SETTINGS, &outbox, store].concat());
        gateway.api(&self.live, &self.test).write(folder);
    }
}

/// A gateway of one of the releases.
struct Side {
    program: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
}

impl Side {
    fn start(binary: &Path, folder: &Path) -> (Self, Process) {
        let serving = Process::start(program(binary, folder, &["serve"]));
        let address = serving.address();
        (Self { program: binary.to_owned(), folder: folder.to_owned(), address }, serving)
    }

    /// What a command of this release prints, which must succeed.
    #[track_caller]
    fn operate(&self, arguments: &[&str]) -> String {
        done(program(&self.program, &self.folder, arguments))
    }

    #[track_caller]
    fn listed(&self, what: &[&str]) -> Vec<Value> {
        let out = self.operate(&[what, &["--json"]].concat());
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[track_caller]
fn done(mut command: Command) -> String {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {} {told}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

// ---- Customers

/// A key as its owner knows it.
struct Held {
    key: ApiKey,
    name: String,
    /// The secret before, while both are good.
    before: Option<String>,
    /// Whether it may read jobs.
    reads: bool,
}

/// An organisation that uses both gateways for everything, and knows how each call must end.
struct Customer {
    root: String,
    org: String,
    wires: [(SocketAddr, Wire); 2],
    rng: Rng,
    held: Vec<Held>,
    revoked: BTreeSet<String>,
    /// Organisations that signed up on the way.
    orgs: BTreeSet<String>,
    counts: BTreeMap<&'static str, usize>,
}

impl Customer {
    fn new(addresses: [SocketAddr; 2], number: usize) -> Self {
        let mut customer = Self {
            root: String::new(),
            org: String::new(),
            wires: addresses.map(|address| (address, Wire::connect(address))),
            rng: Rng::with_seed(number as u64),
            held: Vec::new(),
            revoked: BTreeSet::new(),
            orgs: BTreeSet::new(),
            counts: BTreeMap::new(),
        };
        (customer.org, customer.root) = customer.signed_up();
        customer
    }

    /// The gateways are at other addresses now.
    fn moved_to(&mut self, addresses: [SocketAddr; 2]) {
        self.wires = addresses.map(|address| (address, Wire::connect(address)));
    }

    fn ask(&mut self, side: usize, call: &Call) -> Answer {
        let (address, wire) = &mut self.wires[side];
        let answer =
            wire.call(call).unwrap_or_else(|| panic!("no answer to {} {}", call.method, call.target));
        if answer.field("connection") == Some("close") {
            *wire = Wire::connect(*address);
        }
        answer
    }

    /// The answer at a gateway of the test's choice; it has this status.
    #[track_caller]
    fn expect(&mut self, status: u16, call: &Call) -> Answer {
        let side = self.rng.usize(..2);
        self.expect_at(side, status, call)
    }

    #[track_caller]
    fn expect_at(&mut self, side: usize, status: u16, call: &Call) -> Answer {
        let answer = self.ask(side, call);
        let (method, target, text) = (&call.method, &call.target, answer.text());
        assert_eq!(answer.status, status, "{method} {target} at {side}: {text}");
        answer
    }

    /// Both gateways answer so to a request with this secret.
    #[track_caller]
    fn expect_everywhere(&mut self, status: u16, secret: &str) {
        for side in 0..2 {
            self.expect_at(side, status, &Call::get("/v1/jobs").key(secret));
        }
    }

    fn post(&self, target: &str, body: &Value) -> Call {
        json_call("POST", target, body).key(&self.root)
    }

    fn signed_up(&mut self) -> (String, String) {
        let email = format!("{}@example.com", self.rng.u64(..));
        let made = self.expect(200, &sign_up(&email)).json();
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        self.orgs.insert(text("organization_id"));
        (text("organization_id"), text("api_key"))
    }

    fn step(&mut self) {
        let some = (!self.held.is_empty()).then(|| self.rng.usize(..self.held.len()));
        let what = match (self.rng.u8(..12), some) {
            (0, _) => self.sign_up(),
            (1, Some(at)) => self.rename(at),
            (2, Some(at)) => self.narrow(at),
            (3 | 4, Some(at)) => self.rotate(at),
            (5, Some(at)) => self.revoke(at),
            (6, Some(at)) => self.revoke_with_children(at),
            (7, Some(at)) => self.look(at),
            (8, _) => self.read_the_trail(),
            (_, Some(at)) if self.held.len() > KEYS => self.revoke(at),
            _ => self.create(),
        };
        *self.counts.entry(what).or_default() += 1;
    }

    fn sign_up(&mut self) -> &'static str {
        let (_, secret) = self.signed_up();
        self.expect_everywhere(200, &secret);
        "signed up"
    }

    /// The same request at the other gateway gets the same answer.
    fn create(&mut self) -> &'static str {
        let name = format!("{:x}", self.rng.u64(..));
        let environment = if self.rng.bool() { "live" } else { "test" };
        let body =
            json!({ "name": name, "environment": environment, "scopes": ["jobs:read", "keys:manage"] });
        let call = self.post("/v1/api_keys", &body).field("idempotency-key", &name);
        let [first, again] = [0, 1].map(|side| self.expect_at(side, 200, &call));
        assert_eq!(first.text(), again.text());
        let key = ApiKey::of(&first);
        self.expect_everywhere(200, &key.secret);
        self.held.push(Held { key, name, before: None, reads: true });
        "created"
    }

    fn rename(&mut self, at: usize) -> &'static str {
        let (path, name) = (self.held[at].key.path(), format!("{:x}", self.rng.u64(..)));
        let call = json_call("PATCH", &path, &json!({ "name": name })).key(&self.root);
        self.expect(200, &call);
        self.held[at].name = name;
        self.look(at);
        "renamed"
    }

    fn narrow(&mut self, at: usize) -> &'static str {
        let call = json_call("PATCH", &self.held[at].key.path(), &json!({ "scopes": ["keys:manage"] }));
        self.expect(200, &call.key(&self.root));
        self.held[at].reads = false;
        self.expect_everywhere(403, &self.held[at].key.secret.clone());
        "narrowed"
    }

    fn rotate(&mut self, at: usize) -> &'static str {
        let overlap = if self.rng.bool() { 3600 } else { 0 };
        let target = format!("{}/rotate", self.held[at].key.path());
        let call = self.post(&target, &json!({ "overlap_seconds": overlap }));
        let made = ApiKey::of(&self.expect(200, &call));
        let good = if self.held[at].reads { 200 } else { 403 };
        self.expect_everywhere(good, &made.secret);
        let last = std::mem::replace(&mut self.held[at].key, made).secret;
        // Two secrets of a key are good at most.
        if let Some(older) = self.held[at].before.take() {
            self.expect_everywhere(401, &older);
        }
        self.expect_everywhere(if overlap == 0 { 401 } else { good }, &last);
        self.held[at].before = (overlap > 0).then_some(last);
        "rotated"
    }

    fn revoke(&mut self, at: usize) -> &'static str {
        let path = self.held[at].key.path();
        let call = if self.rng.bool() {
            Call::new("DELETE", &path).key(&self.root)
        } else {
            self.post(&format!("{path}/revoke"), &json!({}))
        };
        self.expect(204, &call);
        self.is_gone(at);
        "revoked"
    }

    fn is_gone(&mut self, at: usize) {
        let gone = self.held.swap_remove(at);
        for secret in gone.before.iter().chain([&gone.key.secret]) {
            self.expect_everywhere(401, secret);
        }
        self.revoked.insert(gone.key.id);
    }

    /// A key that this key has made ends with it.
    fn revoke_with_children(&mut self, at: usize) -> &'static str {
        let parent = self.held[at].key.clone();
        let body = json!({ "name": "a child", "scopes": ["keys:manage"] });
        let child =
            ApiKey::of(&self.expect(200, &json_call("POST", "/v1/api_keys", &body).key(&parent.secret)));
        self.expect_everywhere(403, &child.secret);
        let target = format!("{}/revoke?descendants=true&expected=1", parent.path());
        self.expect(204, &self.post(&target, &json!({})));
        self.expect_everywhere(401, &child.secret);
        self.revoked.insert(child.id);
        self.is_gone(at);
        "revoked with what it made"
    }

    fn look(&mut self, at: usize) -> &'static str {
        let (path, name) = (self.held[at].key.path(), self.held[at].name.clone());
        for side in 0..2 {
            let shown = self.expect_at(side, 200, &Call::get(&path).key(&self.root.clone())).json();
            assert_eq!(
                (&shown["name"], &shown["status"]),
                (&json!(name), &json!("active")),
                "{side}: {shown}"
            );
        }
        let own = self.expect(200, &Call::get("/v1/api_keys/self").key(&self.held[at].key.secret.clone()));
        assert_eq!(own.json()["id"], self.held[at].key.id);
        "looked at"
    }

    fn read_the_trail(&mut self) -> &'static str {
        let call = Call::get("/v1/audit_events?limit=1&type=key.created").key(&self.root);
        self.expect(200, &call);
        "read the trail"
    }

    /// All entries of a list, as one gateway gives them.
    fn pages(&mut self, side: usize, target: &str) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let call = Call::get(&format!("{target}{cursor}")).key(&self.root);
            let mut page = self.expect_at(side, 200, &call).json();
            all.append(page["data"].as_array_mut().unwrap());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }

    /// Both gateways know each key as its owner does, and have a record of each change.
    fn has_lost_nothing(&mut self) {
        for side in 0..2 {
            let keys = self.pages(side, "/v1/api_keys?limit=100");
            let with = |status: &str| -> BTreeSet<String> {
                let those = keys.iter().filter(|key| key["status"] == status);
                those.map(|key| key["id"].as_str().unwrap().to_owned()).collect()
            };
            assert_eq!(with("revoked"), self.revoked, "at {side}");
            let active = with("active");
            // And the first key, which has no record of its own: it is made with its organisation.
            assert_eq!(active.len(), self.held.len() + 1, "at {side}");
            assert!(self.held.iter().all(|held| active.contains(&held.key.id)), "at {side}");
            let events = |customer: &mut Self, kind: &str| {
                customer.pages(side, &format!("/v1/audit_events?limit=100&type={kind}")).len()
            };
            assert_eq!(events(self, "key.created") + 1, keys.len(), "at {side}");
            assert_eq!(events(self, "key.rotated"), self.count("rotated"), "at {side}");
        }
        for at in 0..self.held.len() {
            let good = if self.held[at].reads { 200 } else { 403 };
            let held = &self.held[at];
            for secret in held.before.clone().into_iter().chain([held.key.secret.clone()]) {
                self.expect_everywhere(good, &secret);
            }
        }
    }

    fn count(&self, what: &str) -> usize {
        self.counts.get(what).copied().unwrap_or(0)
    }
}

// ---- Operators

/// A new organisation for operators alone.
fn operated_org(by: &Side) -> String {
    by.listed(&["orgs", "create", "Operated Ltd"])[0]["id"].as_str().unwrap().to_owned()
}

/// What operators do, by the commands of each release in turn. Returns how often.
fn operate(sides: [&Side; 2], until: Instant) -> usize {
    let (org, mut rounds) = (operated_org(sides[0]), 0);
    while rounds < 2 || Instant::now() < until {
        operate_once([sides[rounds % 2], sides[(rounds + 1) % 2]], &org, rounds);
        rounds += 1;
    }
    rounds
}

/// Everything with one key: by the one release, and what the other then says.
fn operate_once([by, other]: [&Side; 2], org: &str, round: usize) {
    let name = format!("key {round}");
    let create = ["keys", "create", "--org", org, "--name", &name, "--scopes", "jobs:read"];
    let made = by.listed(&create).remove(0);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (id, secret) = (text(&made["key"]["id"]), text(&made["secret"]));
    let expect = |secret: &str, status: u16| {
        for side in [by, other] {
            // What is given back may take as long as news do.
            let mut last = 0;
            let call = Call::get("/v1/jobs").key(secret);
            let mut ask = || {
                last = Wire::connect(side.address).call(&call).unwrap().status;
                last == status
            };
            if status == 200 {
                eventually("the key is good", ask);
            } else {
                assert!(ask(), "round {round}: {last} and not {status} at {:?}", side.program);
            }
        }
    };
    let status = |side: &Side| text(&side.listed(&["keys", "show", &id])[0]["status"]);
    expect(&secret, 200);
    by.operate(&["keys", "disable", &id]);
    expect(&secret, 401);
    assert_eq!((status(by), status(other)), ("disabled".to_owned(), "disabled".to_owned()));
    other.operate(&["keys", "enable", &id]);
    expect(&secret, 200);
    by.operate(&["keys", "edit", &id, "--scopes", "jobs:read,jobs:write", "--reason", "a test"]);
    other.operate(&["keys", "edit", &id, "--scopes", "jobs:write"]);
    expect(&secret, 403);
    by.operate(&["keys", "edit", &id, "--scopes", "jobs:read", "--reason", "a test"]);
    expect(&secret, 200);
    let new = by.operate(&["keys", "rotate", &id, "--overlap", "0s", "--yes"]);
    expect(&secret, 401);
    expect(new.trim(), 200);
    by.operate(&["orgs", "suspend", org, "--yes"]);
    expect(new.trim(), 403);
    other.operate(&["orgs", "resume", org]);
    expect(new.trim(), 200);
    by.operate(&["keys", "revoke", &id, "--yes"]);
    expect(new.trim(), 401);
    let listed = other.listed(&["keys", "list", "--org", org, "--status", "active"]);
    assert!(listed.iter().all(|key| key["id"] != id.as_str()), "{listed:?}");
    let record = &other.listed(&["audit", "list", "--org", org, "--type", "key.revoked", "--limit", "1"])[0];
    assert!(record.to_string().contains(&id), "{record}");
}

/// The section for the store.
fn in_redis(redis: &RedisServer) -> String {
    format!(
        "[store]\nkind = \"redis\"\nurl = \"{}\"\nconnect_timeout = \"20s\"\nlookup_timeout = \"20s\"\n\
         command_timeout = \"20s\"\n",
        redis.url()
    )
}

// ---- What both say in the end

/// Trails are whole, exports are the same, and a backup by each is restored by the other.
fn agree(around: &Around, sides: [&Side; 2], customers: &mut [Customer]) {
    for customer in &mut *customers {
        customer.has_lost_nothing();
        for org in &customer.orgs {
            let told = || around.news.seen().iter().any(|seen| seen.value("idempotency-key") == org);
            eventually("the news of each organisation arrive", told);
        }
    }
    let exports = sides.map(|side| {
        side.operate(&["audit", "verify"]);
        let lines: BTreeSet<String> = side.operate(&["keys", "export"]).lines().map(str::to_owned).collect();
        lines
    });
    assert!(exports[0] == exports[1], "the exports differ");
    for [by, other] in [sides, [sides[1], sides[0]]] {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("store.backup");
        let file = file.to_str().unwrap();
        by.operate(&["store", "backup", file]);
        around.write(folder.path(), KEYS_SECTION);
        done(program(&other.program, folder.path(), &["store", "restore", file]));
        let (restored, _serving) = Side::start(&other.program, folder.path());
        for customer in &mut *customers {
            customer.moved_to([restored.address; 2]);
            customer.has_lost_nothing();
        }
    }
}

fn tell(customers: &[Customer], operated: usize) {
    let mut all = BTreeMap::new();
    for (what, count) in customers.iter().flat_map(|customer| &customer.counts) {
        *all.entry(what).or_insert(0) += count;
    }
    println!("{all:?}, and {operated} rounds of operators");
}

/// Customers at work until then.
fn at_work(customers: &mut [Customer], around: &Around, until: Instant) {
    thread::scope(|scope| {
        for customer in customers {
            scope.spawn(move || {
                let mut steps = 0;
                while steps < 20 || Instant::now() < until {
                    thread::sleep(BETWEEN_STEPS);
                    customer.step();
                    around.live.forget();
                    around.test.forget();
                    steps += 1;
                }
            });
        }
    });
}

#[test]
fn two_releases_on_one_redis_refuse_and_lose_nothing() {
    let (redis, around, programs) = (RedisServer::start(), Around::new(), programs());
    let folders = [(); 2].map(|()| TempDir::new().unwrap());
    for folder in &folders {
        around.write(folder.path(), &format!("{KEYS_SECTION}{}", in_redis(&redis)));
    }
    let accept = ["store", "accept", "--yes"];
    done(program(&programs[1], folders[1].path(), &accept));
    let [(one, _serving), (other, _also)] = [0, 1].map(|at| Side::start(&programs[at], folders[at].path()));
    let (until, sides) = (Instant::now() + span(), [&one, &other]);
    let addresses = sides.map(|side| side.address);
    let mut customers: Vec<Customer> = (0..CUSTOMERS).map(|n| Customer::new(addresses, n)).collect();
    let operated = thread::scope(|scope| {
        let operator = scope.spawn(|| operate(sides, until));
        at_work(&mut customers, &around, until);
        operator.join().unwrap()
    });
    tell(&customers, operated);
    agree(&around, sides, &mut customers);
}

#[test]
fn two_releases_in_turn_on_one_file_refuse_and_lose_nothing() {
    const TURNS: u32 = 4;
    let (around, programs, folder) = (Around::new(), programs(), TempDir::new().unwrap());
    around.write(folder.path(), KEYS_SECTION);
    let (mut customers, mut org): (Vec<Customer>, _) = (Vec::new(), String::new());
    for turn in 0..TURNS as usize {
        // The other release begins, and this one is the last.
        let (side, serving) = Side::start(&programs[(turn + 1) % 2], folder.path());
        let (until, addresses) = (Instant::now() + span() / TURNS, [side.address; 2]);
        if turn == 0 {
            customers = (0..CUSTOMERS).map(|n| Customer::new(addresses, n)).collect();
            org = operated_org(&side);
        }
        for customer in &mut customers {
            customer.moved_to(addresses);
            customer.has_lost_nothing();
        }
        at_work(&mut customers, &around, until);
        operate_once([&side; 2], &org, turn);
        if turn + 1 == TURNS as usize {
            agree(&around, [&side; 2], &mut customers);
        }
        serving.end();
    }
    tell(&customers, TURNS as usize);
}
