//! `keygate store migrate`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use keygate::store::Store;
use keygate::store::embedded::{Embedded, Settings};
use keygate::vocabulary::clock::Clock;
use keygate::vocabulary::key::record::Sealer;
use keygate::vocabulary::key::scope::ScopeSet;
use keygate::vocabulary::key::usage::{Usage, Used};
use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::api::{json_call, sign_up};
use crate::harness::desk::{Desk, NOWHERE, Ran, Way, in_redis, write_secret};
use crate::harness::moved::sha256;
use crate::harness::process::keygate;
use crate::harness::{Call, Process, RedisServer, Upstream, eventually, fetch};

pub(crate) const SIGNUP: &str = "[signup]\nenabled = true\nper_network_and_hour = 1000\n";
pub(crate) const OUTBOX: &str = "[outbox]\nurl = \"http://127.0.0.1:9/news\"\nkey_file = \"pepper\"\n";
const KEYED: &str = "[audit]\nkey_file = \"audit-key\"\n";

#[track_caller]
fn ask(desk: &Desk, call: &Call) -> Value {
    let answer = fetch(desk.address(), call);
    assert!(matches!(answer.status, 200 | 204), "{}", answer.text());
    if answer.body.is_empty() { Value::Null } else { answer.json() }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap().to_owned()
}

/// The secrets of keys in every state, with the expected status: 200, 401 or 403.
pub(crate) struct Customers {
    statuses: Vec<(&'static str, String, u16)>,
    /// The first key of an organisation, with all scopes.
    root: String,
    used: String,
}

/// Two organisations with keys in every state.
pub(crate) fn move_in(desk: &Desk) -> Customers {
    let first = ask(desk, &sign_up("ada@example.com"));
    let (org, root) = (text(&first, "organization_id"), text(&first, "api_key"));
    let second = ask(desk, &sign_up("eve@example.com"));
    let make = |name: &str, more: Value| {
        let mut body = json!({ "name": name });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = ask(desk, &json_call("POST", "/v1/api_keys", &body).key(&root));
        (text(&made, "id"), text(&made, "secret"))
    };
    let post = |id: &str, what: &str, body: Value| {
        ask(desk, &json_call("POST", &format!("/v1/api_keys/{id}/{what}"), &body).key(&root))
    };
    let narrow = make("narrow", json!({ "scopes": ["jobs:read"], "environment": "test" }));
    let turned = make("turned", json!({}));
    let renewed = text(&post(&turned.0, "rotate", json!({ "overlap_seconds": 3600 })), "secret");
    let replaced = make("replaced", json!({}));
    let new = text(&post(&replaced.0, "rotate", json!({ "overlap_seconds": 0 })), "secret");
    let revoked = make("revoked", json!({}));
    assert_eq!(post(&revoked.0, "revoke", json!({})), Value::Null);
    let disabled = make("disabled", json!({}));
    desk.done(&["keys", "disable", &disabled.0]);
    let expired =
        KeyFormat::new(&Prefix::default(), false).mint(Environment::Live).unwrap().expose().to_owned();
    // Not so long ago that it goes.
    let an_hour_ago = Clock::system().own().minus(Duration::from_secs(3600)).to_string();
    let line = json!({ "sha256": sha256(&expired), "name": "expired", "environment": "live", "scopes": ["jobs:read"],
        "created_at": "2024-01-01T00:00:00Z", "expires_at": an_hour_ago });
    assert_eq!(desk.feed(&["keys", "import", "-", "--org", &org], &line.to_string()).code, 0);
    desk.done(&["orgs", "suspend", &text(&second, "organization_id"), "--yes"]);
    let statuses = vec![
        ("first", root.clone(), 200),
        ("narrow", narrow.1, 200),
        ("turned", turned.1, 200),
        ("renewed", renewed, 200),
        ("replaced", replaced.1, 401),
        ("new", new, 200),
        ("revoked", revoked.1, 401),
        ("disabled", disabled.1, 401),
        ("expired", expired, 401),
        ("suspended", text(&second, "api_key"), 403),
    ];
    Customers { statuses, root, used: narrow.0 }
}

impl Customers {
    pub(crate) fn root(&self) -> &str {
        &self.root
    }
}

#[track_caller]
pub(crate) fn assert_all_as_it_was(desk: &Desk, customers: &Customers) {
    for (name, secret, status) in &customers.statuses {
        let answer = fetch(desk.address(), &Call::get("/v1/jobs").key(secret));
        assert_eq!(answer.status, *status, "{name}: {}", answer.text());
    }
}

fn migrate(from: &Desk, to: &Desk, more: &[&str]) -> Ran {
    let to = to.folder().join("keygate.toml");
    from.run(&[&["store", "migrate", "--to", to.to_str().unwrap()], more].concat())
}

/// A store that no gateway holds, with the organisations and keys of an earlier one.
fn node(settings: &str, [live, test]: [&Upstream; 2]) -> (Desk, Customers) {
    let settings = [SIGNUP, OUTBOX, settings].concat();
    let mut desk = Desk::with(Way::Socket, &settings, [&live.url(), &test.url()]);
    let customers = move_in(&desk);
    desk.stop();
    (desk, customers)
}

/// All fields of the lists of all organisations.
pub(crate) fn listed(desk: &Desk, what: &[&str]) -> Vec<Value> {
    desk.done(&[what, &["--json"]].concat()).json()
}

fn note_usage(folder: &Path, key: &str) {
    let store = Embedded::open(&Settings { path: folder.join("keygate.redb") }, Sealer::default()).unwrap();
    let usage = Usage::parse("1700000000000 jobs:read").unwrap();
    assert_ne!(usage.scopes, ScopeSet::default());
    let used = Used { key: key.parse_id(), usage };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.usage().note(vec![used])).unwrap();
}

trait ParseId {
    fn parse_id(&self) -> keygate::vocabulary::id::KeyId;
}

impl ParseId for str {
    fn parse_id(&self) -> keygate::vocabulary::id::KeyId {
        keygate::vocabulary::id::KeyId::parse(self).unwrap()
    }
}

#[test]
fn a_migration_to_redis_is_invisible_to_clients() {
    let upstreams = [Upstream::start("live"), Upstream::start("test")];
    let redis = RedisServer::start();
    let (node, customers) = node("", [&upstreams[0], &upstreams[1]]);
    note_usage(node.folder(), &customers.used);
    let (keys, orgs) = (listed(&node, &["keys", "list"]), listed(&node, &["orgs", "list"]));
    let file = || fs::read(node.folder().join("keygate.redb")).unwrap();
    let before = file();

    let settings = [SIGNUP, OUTBOX, &in_redis(&redis)].concat();
    let urls = [&*upstreams[0].url(), &*upstreams[1].url()];
    let mut new = Desk::with(Way::Socket, &settings, urls);
    new.stop();
    let refused = migrate(&node, &new, &[]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("--rechain") && refused.err.contains("audit.key_file"), "{refused:?}");
    assert_eq!(redis.command(&["DBSIZE"]), ":0\r\n", "nothing was done");

    let moved = migrate(&node, &new, &["--rechain"]);
    assert_eq!(moved.code, 0, "{moved:?}");
    assert!(moved.out.contains("the target is complete"), "{moved:?}");
    let field = |name: &str| {
        let line = moved.out.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(
        (field("organisations"), field("keys"), field("last-used times")),
        ("2".into(), "8".into(), "2".into()),
        "used are the first one, just before the node stopped, and the one that is noted above"
    );
    assert_eq!((field("notifications"), field("audit records")), ("2".into(), "13".into()));
    assert!(file() == before, "the source is only read");

    new.serve();
    assert_all_as_it_was(&new, &customers);
    assert_eq!(listed(&new, &["keys", "list"]), keys);
    assert_eq!(listed(&new, &["orgs", "list"]), orgs);
    assert!(new.done(&["audit", "verify"]).out.ends_with(" 0 findings\n"));
    let told = listed(&new, &["audit", "list", "--operator", "--type", "store.migrated"]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["after"]["keys"], &told[0]["after"]["rechained"]), (&json!(8), &json!(true)));
    assert_eq!(told[0]["actor"]["name"], json!(node.operator()));
    let events = ask(&new, &Call::get("/v1/audit_events?limit=100").key(&customers.root));
    assert_eq!(events["data"][0]["type"], "store.migrated");
    assert_ne!(events["data"][0]["before"]["head"], events["data"][0]["after"]["head"]);
    let again = fetch(new.address(), &sign_up("ADA@example.com"));
    assert_eq!(again.status, 409, "the address is still taken");

    ask(&new, &json_call("POST", "/v1/api_keys", &json!({ "name": "since" })).key(&customers.root));
    let running = migrate(&node, &new, &["--rechain"]);
    assert!(running.code == 1 && running.err.contains("stop it first"), "{running:?}");
    new.stop();
    let repeated = migrate(&node, &new, &["--rechain"]);
    assert_eq!(repeated.code, 0, "{repeated:?}");
    assert!(repeated.out.starts_with("nothing to do"), "{repeated:?}");
    assert_eq!(listed(&new, &["keys", "list"]).len(), 9, "what was made since is left alone");
}

#[test]
fn a_store_with_the_same_pepper_migrates_there_and_back_unchanged() {
    let upstreams = [Upstream::start("live"), Upstream::start("test")];
    let redis = RedisServer::start();
    let urls = [&*upstreams[0].url(), &*upstreams[1].url()];
    let sealed = format!("{KEYED}[keys]\npepper_file = \"pepper\"\n");
    let settings = [SIGNUP, OUTBOX, &sealed].concat();
    let mut node = Desk::with(Way::Store, &settings, urls);
    write_secret(&node.folder().join("audit-key"), &"chain".repeat(8));
    node.serve();
    let mut there = Desk::with(Way::Store, &[SIGNUP, KEYED, &in_redis(&redis)].concat(), urls);
    let mut back = Desk::with(Way::Store, &[SIGNUP, OUTBOX, &sealed].concat(), urls);
    for desk in [&there, &back] {
        fs::copy(node.folder().join("audit-key"), desk.folder().join("audit-key")).unwrap();
    }
    node.stop();
    // Through the socket, because a running gateway is needed.
    node.serve();
    let customers = move_in(&node);
    node.stop();
    let heads = |desk: &Desk| {
        let mut verdicts = desk.done(&["audit", "verify", "--json"]).json();
        // The operator's trail has the events about the store.
        verdicts.retain(|verdict| verdict["trail"] != "operator");
        verdicts.into_iter().map(|verdict| verdict["ends"].clone()).collect::<Vec<_>>()
    };
    let before = heads(&node);
    for (from, to) in [(&node, &there), (&there, &back)] {
        let moved = migrate(from, to, &[]);
        assert_eq!(moved.code, 0, "{moved:?}");
        assert_eq!(heads(to), before, "to the last bit");
    }
    there.serve();
    back.serve();
    assert_all_as_it_was(&there, &customers);
    assert_all_as_it_was(&back, &customers);
}

/// Names other peppers in a configuration.
fn set_peppers(desk: &Desk, line: &str) {
    let path = desk.folder().join("keygate.toml");
    let toml = fs::read_to_string(&path).unwrap();
    let old = toml.lines().find(|line| line.starts_with("pepper_file")).unwrap().to_owned();
    fs::write(&path, toml.replace(&old, line)).unwrap();
}

#[test]
fn a_store_whose_pepper_was_replaced_migrates_there_and_back_without_the_old_one() {
    let upstreams = [Upstream::start("live"), Upstream::start("test")];
    let (redis, receiver) = (RedisServer::start(), Upstream::start("taken"));
    let urls = [&*upstreams[0].url(), &*upstreams[1].url()];
    let (old, new) = ("pepper".repeat(8), "the pepper after that".repeat(3));
    let sealed = "[keys]\npepper_file = \"pepper\"\n";
    let mut node = Desk::with(Way::Socket, &[SIGNUP, OUTBOX, sealed].concat(), urls);
    let customers = move_in(&node);
    let once = || {
        let body = json!({ "name": "made once", "scopes": ["jobs:read"] });
        json_call("POST", "/v1/api_keys", &body).key(&customers.root).field("idempotency-key", "once")
    };
    let made = ask(&node, &once());
    node.stop();
    for (file, pepper) in [("pepper", &old), ("second", &new)] {
        write_secret(&node.folder().join(file), pepper);
    }
    set_peppers(&node, "pepper_files = [\"second\", \"pepper\"]");
    node.serve();
    let since =
        ask(&node, &json_call("POST", "/v1/api_keys", &json!({ "name": "since" })).key(&customers.root));
    let shown = listed(&node, &["keys", "show", &text(&made, "id")]);
    let org = text(&shown[0], "organization_id");
    node.done(&["orgs", "rename", &org, "Renamed"]);
    node.done(&["store", "reseal"]);
    assert_eq!(ask(&node, &once()), made, "the answer is kept");
    node.stop();
    set_peppers(&node, "pepper_file = \"second\"");

    let mut there = Desk::with(Way::Store, &[SIGNUP, &in_redis(&redis)].concat(), urls);
    let refused = migrate(&node, &there, &[]);
    assert!(refused.code == 1 && refused.err.contains("keys.pepper_file"), "{refused:?}");
    assert_eq!(redis.command(&["DBSIZE"]), ":0\r\n", "the target has the old pepper");
    let news = format!("[outbox]\nurl = \"{}/news\"\nkey_file = \"pepper\"\n", receiver.url());
    let mut back = Desk::with(Way::Store, &[SIGNUP, &news, sealed].concat(), urls);
    let moves = |from: &Desk, to: &mut Desk| {
        write_secret(&to.folder().join("pepper"), &new);
        let moved = migrate(from, to, &[]);
        assert_eq!(moved.code, 0, "{moved:?}");
        assert!(moved.out.contains("\nnotifications    2\n"), "{moved:?}");
        to.serve();
        assert_all_as_it_was(to, &customers);
        for key in [&made, &since] {
            let answer = fetch(to.address(), &Call::get("/v1/jobs").key(&text(key, "secret")));
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert!(to.done(&["audit", "verify"]).out.ends_with(" 0 findings\n"));
        for taken in ["ADA@example.com", "eve@example.com"] {
            assert_eq!(fetch(to.address(), &sign_up(taken)).status, 409, "{taken}");
        }
        to.stop();
    };
    moves(&node, &mut there);
    moves(&there, &mut back);
    // Answers are not moved: the request is carried out again.
    back.serve();
    assert_ne!(ask(&back, &once())["id"], made["id"]);
    let late = text(&ask(&back, &sign_up("late@example.com")), "organization_id");
    eventually("news are sent from here", || {
        receiver.seen().iter().any(|seen| seen.value("idempotency-key") == late)
    });
}

#[test]
fn a_store_that_is_in_use_missing_or_not_empty_is_refused_unchanged() {
    let redis = RedisServer::start();
    let mut node = Desk::new(Way::Socket);
    let new = Desk::with(Way::Store, &in_redis(&redis), NOWHERE);
    node.create_key("a key");
    let held = migrate(&node, &new, &["--rechain"]);
    assert!(held.code == 1 && held.err.contains("a gateway"), "{held:?}");
    assert_eq!(redis.command(&["DBSIZE"]), ":0\r\n");
    node.stop();
    let same = migrate(&node, &node, &[]);
    assert!(same.code == 1 && same.err.contains("the same store"), "{same:?}");

    new.create_key("of others");
    let others = redis.values();
    let occupied = migrate(&node, &new, &["--rechain"]);
    assert!(occupied.code == 1 && occupied.err.contains("empty"), "{occupied:?}");
    assert_eq!(redis.values(), others);

    let peppered = Desk::with(Way::Store, "[store]\nkind = \"embedded\"\npath = \"plain.redb\"\n", NOWHERE);
    let backwards = migrate(&new, &peppered, &["--rechain"]);
    assert!(backwards.code == 1 && backwards.err.contains("keys.pepper_file"), "{backwards:?}");
    let missing = Desk::new(Way::Store);
    let nothing = migrate(&missing, &peppered, &[]);
    assert!(nothing.code == 1 && nothing.err.contains("cannot be opened"), "{nothing:?}");
    assert!(!missing.folder().join("keygate.redb").exists(), "none is made");
}

#[test]
fn a_killed_migration_continues_when_it_is_run_again() {
    const KEYS: usize = 5_000;
    let redis = RedisServer::start();
    let node = Desk::new(Way::Store);
    let org = text(&node.done(&["orgs", "create", "Mover", "--json"]).json()[0], "id");
    let line = |n: usize| {
        json!({ "sha256": sha256(n.to_be_bytes()), "name": format!("key {n}"), "environment": "live", "scopes": ["jobs:read"] })
            .to_string()
            + "\n"
    };
    let lines: String = (0..KEYS).map(line).collect();
    assert_eq!(node.feed(&["keys", "import", "-", "--org", &org], &lines).code, 0);
    for n in 0..60 {
        node.done(&["orgs", "create", &format!("Org {n}")]);
    }
    let new = Desk::with(Way::Store, &in_redis(&redis), NOWHERE);
    let to = new.folder().join("keygate.toml");
    let arguments = ["store", "migrate", "--to", to.to_str().unwrap(), "--rechain", "--json"];
    let size = || redis.command(&["DBSIZE"]).trim_start_matches(':').trim_end().parse::<usize>().unwrap();
    let mut broken_off = 0;
    // The first is killed at once, each other one when it has got further than the earlier ones.
    for reached in [0, 1_000, 3_000, 5_000, 7_000, 9_000] {
        let mut running = Process::start(keygate(node.folder(), &arguments));
        eventually("it has come so far", || size() >= reached);
        running.signal(Signal::KILL);
        broken_off += usize::from(!running.wait().success());
    }
    let moved = migrate(&node, &new, &["--rechain", "--json"]);
    assert_eq!(moved.code, 0, "{moved:?}");
    let tally = &moved.json()[0];
    // The last one may have finished before it could be killed.
    if tally["done_before"].is_null() {
        assert_eq!((&tally["organizations"], &tally["keys"]), (&json!(61), &json!(KEYS)));
        assert_eq!(tally["verified"], json!(61 + KEYS));
    }
    assert!(broken_off > 0);
    assert!(new.done(&["audit", "verify"]).out.ends_with(" 0 findings\n"));
    let [before, after] = [&node, &new].map(|desk| listed(desk, &["keys", "export"]).len());
    assert_eq!((before, after), (KEYS, KEYS));
    for trail in [&["--operator"][..], &["--org", &org]] {
        let list = [&["audit", "list", "--type", "store.migrated"], trail].concat();
        assert_eq!(listed(&new, &list).len(), 1, "{trail:?}");
    }
}

#[test]
fn a_damaged_trail_is_copied_unchanged_and_gets_no_new_chain() {
    let [one, other] = [RedisServer::start(), RedisServer::start()];
    let source = Desk::with(Way::Store, &in_redis(&one), NOWHERE);
    source.create_key("a key");
    let org = text(&listed(&source, &["orgs", "list"])[0], "id");
    assert_eq!(one.command(&["XDEL", &format!("{{kg}}:audit:{org}"), "1-0"]), ":1\r\n");
    let other_key = Desk::with(Way::Store, &[KEYED, &in_redis(&other)].concat(), NOWHERE);
    write_secret(&other_key.folder().join("audit-key"), &"chain".repeat(8));
    let refused = migrate(&source, &other_key, &["--rechain"]);
    assert!(refused.code == 1 && refused.err.contains("is damaged"), "{refused:?}");
    assert!(refused.err.contains(&org), "{refused:?}");
    other.command(&["FLUSHALL"]);
    let same_key = Desk::with(Way::Store, &in_redis(&other), NOWHERE);
    let moved = migrate(&source, &same_key, &[]);
    assert!(moved.code == 0 && moved.err.contains("damaged"), "{moved:?}");
    assert_eq!(same_key.run(&["audit", "verify"]).code, 1, "it shows there too");
}
