//! `keygate audit`: detecting changes in the store, detecting a removed end by the heads in a log, and removing old
//! events.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keygate::app::KeyTools;
use keygate::config::KeySettings;
use keygate::lifecycle::{AuditFilter, Lifecycle, Origin, RetentionSettings, SignupSettings};
use keygate::store::Store;
use keygate::store::trails::Trimmed;
use keygate::vocabulary::audit::{Link, Trail};
use keygate::vocabulary::clock::Clock;
use redb::{Database, ReadableTable, TableDefinition};

use crate::harness::desk::{Desk, NOWHERE, Ran, Way, in_redis, write_secret};
use crate::harness::{Gateway, RedisServer, eventually, operator};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const KEYED: &str = "[audit]\nkey_file = \"audit-key\"\n";

/// The stored form of a trail: its ends, and the number, MAC and text of each entry.
#[derive(Clone)]
struct Raw {
    checkpoint: Link,
    head: Link,
    entries: Vec<(u64, Vec<u8>, Vec<u8>)>,
}

impl Raw {
    fn link(&self, number: u64) -> Link {
        let (_, mac, _) = self.entries.iter().find(|(at, ..)| *at == number).unwrap();
        Link { number, mac: mac.as_slice().try_into().unwrap() }
    }
}

/// An attacker with write access to a store.
enum Intruder<'s> {
    File(&'s Path),
    Redis(&'s RedisServer),
}

const AUDIT: TableDefinition<'_, (&[u8; 16], &[u8; 8]), &[u8]> = TableDefinition::new("audit");
const AUDIT_ENDS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("audit_ends");

impl Intruder<'_> {
    fn read(&self, trail: Trail) -> Raw {
        let (ends, entries) = match self {
            Self::File(path) => {
                let transaction = Database::open(path).unwrap().begin_write().unwrap();
                let table = transaction.open_table(AUDIT).unwrap();
                let rows =
                    table.range((&trail.to_bytes(), &[0; 8])..=(&trail.to_bytes(), &[255; 8])).unwrap();
                let entries = rows.map(|row| {
                    let (place, bytes) = row.unwrap();
                    let (mac, text) = bytes.value().split_at(32);
                    (u64::from_be_bytes(*place.value().1), mac.to_vec(), text.to_vec())
                });
                let entries = entries.collect();
                let ends = transaction.open_table(AUDIT_ENDS).unwrap();
                let ends = ends.get(&trail.to_bytes()).unwrap().unwrap().value().to_vec();
                (ends, entries)
            }
            Self::Redis(redis) => {
                let mut link = connect(redis);
                let ends =
                    redis::cmd("GET").arg(format!("{{kg}}:audit:{trail}:ends")).query(&mut link).unwrap();
                let entries: Vec<(String, Vec<Vec<u8>>)> = redis::cmd("XRANGE")
                    .arg(format!("{{kg}}:audit:{trail}"))
                    .arg("-")
                    .arg("+")
                    .query(&mut link)
                    .unwrap();
                let number = |id: &str| id.split('-').next().unwrap().parse().unwrap();
                let entries =
                    entries.iter().map(|(id, fields)| (number(id), fields[1].clone(), fields[3].clone()));
                (ends, entries.collect())
            }
        };
        let link = |bytes: &[u8]| Link::from_bytes(bytes).unwrap();
        Raw { checkpoint: link(&ends[..40]), head: link(&ends[40..]), entries }
    }

    fn write(&self, trail: Trail, raw: &Raw) {
        let ends = [raw.checkpoint.to_bytes(), raw.head.to_bytes()].concat();
        match self {
            Self::File(path) => {
                let transaction = Database::open(path).unwrap().begin_write().unwrap();
                {
                    let mut table = transaction.open_table(AUDIT).unwrap();
                    let place = trail.to_bytes();
                    table.retain_in((&place, &[0; 8])..=(&place, &[255; 8]), |_, _| false).unwrap();
                    for (number, mac, text) in &raw.entries {
                        let bytes = [&mac[..], text].concat();
                        table.insert((&place, &number.to_be_bytes()), &bytes[..]).unwrap();
                    }
                    transaction.open_table(AUDIT_ENDS).unwrap().insert(&place, &ends[..]).unwrap();
                }
                transaction.commit().unwrap();
            }
            Self::Redis(redis) => {
                let (mut link, place) = (connect(redis), format!("{{kg}}:audit:{trail}"));
                redis::cmd("DEL").arg(&place).exec(&mut link).unwrap();
                for (number, mac, text) in &raw.entries {
                    let id = format!("{number}-0");
                    let entry = redis::cmd("XADD")
                        .arg(&place)
                        .arg(id)
                        .arg("mac")
                        .arg(mac)
                        .arg("text")
                        .arg(text)
                        .clone();
                    entry.exec(&mut link).unwrap();
                }
                redis::cmd("SET").arg(format!("{place}:ends")).arg(ends).exec(&mut link).unwrap();
            }
        }
    }
}

fn connect(redis: &RedisServer) -> redis::Connection {
    redis::Client::open(redis.url()).unwrap().get_connection().unwrap()
}

/// Six events in one trail, created through a gateway that has stopped; and the log of its last head.
fn six_events(settings: &str) -> (Desk, Trail) {
    let mut desk = Desk::with(Way::Store, settings, NOWHERE);
    write_secret(&desk.folder().join("audit-key"), &"audit key".repeat(8));
    desk.serve();
    for name in ["a", "b", "c", "d", "e"] {
        desk.create_key(name);
    }
    let org = desk.done(&["orgs", "list", "--json"]).json()[0]["id"].as_str().unwrap().to_owned();
    let log = desk.stop();
    assert!(log.iter().any(|line| line.contains(&format!("audit head {org} 6:"))), "{log:#?}");
    let log: Vec<String> =
        log.iter().map(|line| format!("Nov 24 06:21:46 host keygate[17]: {line}\n")).collect();
    fs::write(desk.folder().join("gateway.log"), log.concat()).unwrap();
    (desk, Trail::parse(&org).unwrap())
}

#[track_caller]
fn assert_finds(ran: &Ran, findings: &[&str]) {
    assert_eq!(ran.code, i32::from(!findings.is_empty()), "{ran:?}");
    let told: Vec<&str> = ran.out.lines().filter(|line| line.contains("record ")).collect();
    assert_eq!(told.len(), findings.len(), "{ran:?}");
    for (told, finding) in told.iter().zip(findings) {
        assert!(told.ends_with(finding), "{told} is not {finding}");
    }
}

#[test]
fn every_change_to_a_stored_trail_is_detected() {
    let redis = RedisServer::start();
    for settings in [KEYED.to_owned(), in_redis(&redis) + KEYED] {
        let (desk, trail) = six_events(&settings);
        let file = desk.folder().join("keygate.redb");
        let intruder =
            if settings.contains("redis") { Intruder::Redis(&redis) } else { Intruder::File(&file) };
        let whole = intruder.read(trail);
        assert_eq!((whole.head.number, whole.entries.len()), (6, 6));
        let verify = || desk.run(&["audit", "verify"]);
        let against_log = || desk.run(&["audit", "verify", "--heads", "gateway.log"]);
        for ran in [verify(), against_log()] {
            assert_finds(&ran, &[]);
            assert_eq!(ran.out, "6 records in 2 trails, 0 findings\n");
        }
        let tamper = |change: &dyn Fn(&mut Raw)| {
            let mut raw = whole.clone();
            change(&mut raw);
            intruder.write(trail, &raw);
        };

        tamper(&|raw| {
            let text = String::from_utf8(raw.entries[2].2.clone()).unwrap();
            assert!(text.contains("ada"), "{text}");
            raw.entries[2].2 = text.replace("ada", "eve").into_bytes();
        });
        assert_finds(&verify(), &["record 3 was altered, or belongs elsewhere"]);
        tamper(&|raw| drop(raw.entries.remove(3)));
        assert_finds(&verify(), &["record 4 is missing"]);
        tamper(&|raw| {
            let moved = raw.entries[1].2.clone();
            raw.entries[1].2 = std::mem::replace(&mut raw.entries[4].2, moved);
        });
        assert_finds(
            &verify(),
            &["record 2 was altered, or belongs elsewhere", "record 5 was altered, or belongs elsewhere"],
        );
        tamper(&|raw| drop(raw.entries.pop()));
        assert_finds(&verify(), &["record 6 is the end of the trail and is missing"]);
        tamper(&|raw| drop(raw.entries.drain(..2)));
        assert_finds(&verify(), &["record 2 is missing"]);
        tamper(&|raw| {
            raw.checkpoint = raw.link(2);
            raw.entries.drain(..2);
        });
        assert_finds(&verify(), &["record 2 and those before were removed, and no record says so"]);

        tamper(&|raw| {
            raw.head = raw.link(4);
            raw.entries.truncate(4);
        });
        assert_finds(&verify(), &[]);
        assert_finds(
            &against_log(),
            &["record 6 was exported to the log and is missing: the trail was cut off"],
        );
        // The same, followed by new events.
        desk.create_key("after");
        desk.create_key("the cut");
        assert_finds(&against_log(), &["record 6 is not the one whose head was exported"]);
        intruder.write(trail, &whole);
        assert_finds(&against_log(), &[]);
        // With the heads of both in the log, the removed end is found beside the one that replaced it.
        let log = fs::read_to_string(desk.folder().join("gateway.log")).unwrap();
        for mac in ["00", "ff"] {
            let both = format!("{log}audit head {trail} 6:{}\n", mac.repeat(32));
            fs::write(desk.folder().join("both.log"), both).unwrap();
            let ran = desk.run(&["audit", "verify", "--heads", "both.log"]);
            assert_finds(&ran, &["record 6 is not the one whose head was exported"]);
        }
        // All events removed, followed by new events.
        tamper(&|raw| {
            raw.head = Link::ORIGIN;
            raw.entries.clear();
        });
        let emptied = "record 1 is missing: every organisation's trail begins with org.created";
        assert_finds(&verify(), &[emptied]);
        desk.create_key("after all is gone");
        assert_finds(&verify(), &[emptied]);
        // The largest number, after which no event can follow, is a finding and not a failure.
        tamper(&|raw| raw.head.number = u64::MAX);
        assert_finds(&verify(), &["is the end of the trail and is missing"]);
    }
}

#[test]
fn a_trail_verifies_only_with_its_own_key() {
    let (desk, _) = six_events(KEYED);
    write_secret(&desk.folder().join("audit-key"), &"another".repeat(8));
    let ran = desk.run(&["audit", "verify", "--json"]);
    assert_eq!(ran.code, 1);
    let verdicts = ran.json();
    assert_eq!(verdicts[0]["findings"].as_array().unwrap().len(), 6, "{ran:?}");
    assert_eq!(verdicts[0]["keyed"], true);
    let unkeyed = Desk::new(Way::Store);
    unkeyed.create_key("a");
    let ran = unkeyed.done(&["audit", "verify"]);
    assert!(ran.err.contains("neither audit.key_file nor"), "{ran:?}");
}

/// Gives the audit trail these keys, the new one first.
fn set_audit_keys(desk: &Desk, files: &[&str]) {
    let path = desk.folder().join("keygate.toml");
    let toml = fs::read_to_string(&path).unwrap();
    let is_key = |line: &&str| line.starts_with("key_file =") || line.starts_with("key_files =");
    let old = toml.lines().find(is_key).unwrap().to_owned();
    fs::write(&path, toml.replace(&old, &format!("key_files = {files:?}"))).unwrap();
}

#[test]
fn trails_from_before_and_after_a_new_audit_key_verify_while_the_old_file_is_named() {
    let redis = RedisServer::start();
    for settings in [KEYED.to_owned(), [KEYED, &in_redis(&redis)].concat()] {
        let (mut desk, trail) = six_events(&settings);
        let heads = ["audit", "verify", "--heads", "gateway.log"];
        write_secret(&desk.folder().join("new-key"), &"the new audit key".repeat(3));
        let make = |desk: &mut Desk, name: &str| {
            desk.serve();
            desk.done(&["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", name]);
            // A running gateway verifies too.
            assert_finds(&desk.done(&["audit", "verify"]), &[]);
            desk.stop()
        };
        set_audit_keys(&desk, &["new-key", "audit-key"]);
        assert_finds(&desk.done(&heads), &[]);
        let log = make(&mut desk, "under the new key");
        assert!(log.iter().any(|line| line.contains(&format!("audit head {trail} 7:"))), "{log:#?}");
        assert_finds(&desk.done(&heads), &[]);
        // As another gateway writes that has not been restarted yet: with the old key in use, and the new one known.
        set_audit_keys(&desk, &["audit-key", "new-key"]);
        make(&mut desk, "under the old key once more");
        set_audit_keys(&desk, &["new-key", "audit-key"]);
        make(&mut desk, "and the new one");
        assert_finds(&desk.done(&heads), &[]);
        let told = desk.done(&["audit", "list", "--json"]);
        assert_eq!(told.json().len(), 9, "{told:?}");
        // Without a key what it has made cannot be told from what was altered, on either side.
        for (only, findings) in [("new-key", 7), ("audit-key", 2)] {
            set_audit_keys(&desk, &[only]);
            let ran = desk.run(&["audit", "verify", "--org", "Example Ltd"]);
            assert_eq!(ran.code, 1, "{ran:?}");
            let found = ran.out.lines().filter(|line| line.contains("was altered")).count();
            assert_eq!(found, findings, "{only}: {ran:?}");
        }
    }
}

#[test]
fn events_are_listed_by_type_and_time_and_exported_oldest_first() {
    for way in Way::ALL {
        let desk = Desk::new(way);
        for n in 0..3 {
            desk.create_key(&format!("key {n}"));
        }
        let list = |more: &[&str]| desk.done(&[&["audit", "list", "--json"], more].concat()).json();
        assert_eq!(list(&[]).len(), 4);
        assert_eq!(list(&["--limit", "2"]).len(), 2);
        assert_eq!(list(&["--type", "key.created"]).len(), 3);
        assert_eq!((list(&["--since", "1h"]).len(), list(&["--until", "1h"]).len()), (4, 0));
        let wrong = desk.run(&["audit", "list", "--type", "key.made"]);
        assert!(wrong.code == 2 && wrong.err.contains("key.created"), "{wrong:?}");
        let table = desk.done(&["audit", "list"]).out;
        assert!(table.starts_with("TIME ") && table.contains(&desk.operator()), "{table}");

        let exported = desk.done(&["audit", "export"]).json();
        let numbers: Vec<u64> = exported.iter().map(|event| event["number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        let mut listed = list(&[]);
        listed.reverse();
        assert_eq!(exported, listed);
        let org = desk.done(&["orgs", "list", "--json"]).json().remove(0);
        assert!(exported.iter().all(|event| event["trail"] == org["id"]));
    }
}

#[test]
fn old_events_are_removed_and_the_rest_verifies() {
    let redis = RedisServer::start();
    for store in [
        String::new(),
        format!("[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n", redis.url()),
    ] {
        // Redis has a clock of its own, which goes on as it does: so the records are made by a gateway whose date is behind.
        let (days, is_redis) = (|days: i64| days * 86_400_000, !store.is_empty());
        let wall_ahead = if is_redis { days(-450) } else { 0 };
        // What the gateway removes by itself, once a day, would be missing here.
        let settings = format!("[audit]\nretention = \"3650d\"\n{store}");
        let gateway = Gateway::builder().settings(&settings).upstream("api", NOWHERE[0], NOWHERE[1]);
        let gateway = gateway.wall_ahead(wall_ahead).start();
        let pass =
            |n: u32| if is_redis { gateway.step_wall(days(n.into())) } else { gateway.advance(DAY * n) };
        let trail = Trail::Org(gateway.org);
        for _ in 0..300 {
            gateway.live_key();
        }
        pass(300);
        let young = gateway.live_key();
        pass(150);
        let trim = |by: &Origin, days| match gateway
            .block_on(gateway.lifecycle().trim_trail(by, trail, DAY * days))
            .unwrap()
        {
            Trimmed::Removed(removed) => removed,
            Trimmed::Held(held) => panic!("{held}"),
        };
        let itself = Origin::gateway();
        assert_eq!(trim(&itself, 500), 0, "nothing is so old");
        assert_eq!(trim(&itself, 400), 30, "a tenth in a day");
        assert_eq!(trim(&itself, 400), 0);
        assert_eq!(trim(&operator(), 400), 271, "an operator wants them all gone");
        assert_eq!(trim(&operator(), 400), 0);
        let verdict = gateway.block_on(gateway.lifecycle().verify_trail(trail, &[])).unwrap();
        assert_eq!((verdict.findings, verdict.checked, verdict.ends.checkpoint.number), (Vec::new(), 3, 301));
        let page = gateway
            .block_on(gateway.lifecycle().audit_records(trail, AuditFilter::default(), None, 10))
            .unwrap();
        let types: Vec<&str> = page.records.iter().map(|event| event.r#type.as_str()).collect();
        assert_eq!(types, ["audit.trimmed", "audit.trimmed", "key.created"]);
        assert_eq!(page.records[2].target, Some(young.id().to_string()));
        gateway.live_key();
        let verdict = gateway.block_on(gateway.lifecycle().verify_trail(trail, &[])).unwrap();
        assert_eq!(verdict.findings, []);
    }
}

/// A gateway that keeps records for a day, and another one on its store, with this clock, that attends to them.
fn with_another(clock: impl FnOnce(&Gateway) -> Clock, then: impl FnOnce(&Gateway, &Lifecycle)) {
    let kept: Arc<Mutex<Option<Arc<dyn Store>>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let gateway = Gateway::builder()
        .store(move |store| Arc::clone(keep.lock().unwrap().insert(store)))
        .upstream("api", NOWHERE[0], NOWHERE[1])
        .start();
    gateway.block_on(gateway.lifecycle().create_org(&operator(), "another")).unwrap();
    let retention = RetentionSettings { retention: DAY, ..RetentionSettings::default() };
    let tools = KeyTools::new(&KeySettings::default()).unwrap();
    let settings = tools.lifecycle(SignupSettings::default(), &retention);
    let store = kept.lock().unwrap().clone().unwrap();
    let vocabulary = gateway.lifecycle().vocabulary();
    let other = Arc::new(Lifecycle::new(store, settings, vocabulary, clock(&gateway)));
    let mut attending = None;
    gateway.block_on(async {
        attending = Some(tokio::spawn(Lifecycle::attend(Arc::downgrade(&other))));
    });
    then(&gateway, &other);
    attending.unwrap().abort();
}

fn checkpoint(gateway: &Gateway, lifecycle: &Lifecycle) -> u64 {
    let verdict = gateway.block_on(lifecycle.verify_trail(Trail::Org(gateway.org), &[])).unwrap();
    assert_eq!(verdict.findings, []);
    verdict.ends.checkpoint.number
}

#[test]
fn a_gateway_removes_old_events_by_itself() {
    let two_days_later = |gateway: &Gateway| {
        gateway.advance(DAY * 2);
        gateway.clock().clone()
    };
    with_another(two_days_later, |gateway, other| {
        eventually("the old events are removed", || checkpoint(gateway, other) > 0);
    });
}

#[test]
fn a_gateway_whose_date_is_two_days_ahead_removes_nothing() {
    let ahead = |_: &Gateway| {
        let (clock, shift) = Clock::shifted();
        shift.step_wall(2 * 86_400_000);
        clock
    };
    with_another(ahead, |gateway, other| {
        eventually("it holds back", || other.trimming().is_held() == Some(true));
        assert_eq!(checkpoint(gateway, other), 0);
        let told = gateway.block_on(other.trim_trail(&operator(), Trail::Org(gateway.org), DAY)).unwrap();
        assert!(matches!(told, Trimmed::Held(_)), "not for an operator either: {told:?}");
    });
}
