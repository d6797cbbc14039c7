//! One unreadable record is one unreadable record: it is shown as what it is, it harms no other, and an operator can take its
//! key's rights away.

use keygate::vocabulary::id::KeyId;
use redb::{ReadableDatabase, TableDefinition};
use serde_json::Value;

use crate::harness::desk::{Desk, NOWHERE, Ran, Way, in_redis};
use crate::harness::{Call, RedisServer, Upstream, fetch};

const KEYS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("keys");

/// How a record becomes unreadable.
type Damage = fn(&mut Vec<u8>);

/// The damages of a record, each with a part of the reason that is shown.
const DAMAGES: [(&str, Damage); 4] = [
    ("unknown: it was written by a newer keygate", |record| record[0] = 2),
    ("seal does not match", |record| record[1] ^= 1),
    ("fraction", |record| drop(record.splice(11..11, *b"\"odd\":1.5,"))),
    ("cut short", |record| record.truncate(4)),
];

enum Place {
    Embedded,
    Redis(RedisServer),
}

impl Place {
    fn settings(&self) -> String {
        match self {
            Self::Embedded => String::new(),
            Self::Redis(redis) => in_redis(redis),
        }
    }

    /// Damages the record of a key that no gateway holds.
    fn damage(&self, desk: &Desk, key: &str, damage: Damage) {
        match self {
            Self::Embedded => {
                let file = redb::Database::open(desk.folder().join("keygate.redb")).unwrap();
                let place = KeyId::parse(key).unwrap().to_bytes();
                let reading = file.begin_read().unwrap();
                let mut record =
                    reading.open_table(KEYS).unwrap().get(&place).unwrap().unwrap().value().to_vec();
                damage(&mut record);
                let writing = file.begin_write().unwrap();
                writing.open_table(KEYS).unwrap().insert(&place, &record[..]).unwrap();
                writing.commit().unwrap();
            }
            Self::Redis(redis) => {
                let name = format!("{{kg}}:id:{key}");
                let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
                let mut record: Vec<u8> = redis::cmd("GET").arg(&name).query(&mut connection).unwrap();
                damage(&mut record);
                redis::cmd("SET").arg(&name).arg(record).exec(&mut connection).unwrap();
            }
        }
    }
}

fn places() -> [Place; 2] {
    [Place::Embedded, Place::Redis(RedisServer::start())]
}

#[track_caller]
fn status(desk: &Desk, secret: &str) -> u16 {
    fetch(desk.address(), &Call::get("/v1/jobs").key(secret)).status
}

/// The entry of a key in a list of JSON lines.
#[track_caller]
fn entry(ran: &Ran, id: &str) -> Value {
    let found: Vec<Value> = ran.json().into_iter().filter(|key| key["id"] == *id).collect();
    assert_eq!(found.len(), 1, "{ran:?}");
    found[0].clone()
}

/// A gateway with three keys, of which the record of the second is damaged.
struct Damaged {
    desk: Desk,
    keys: Vec<(String, String)>,
}

impl Damaged {
    fn on(place: &Place, damage: Damage, upstream: &Upstream) -> Self {
        let mut desk = Desk::with(Way::Socket, &place.settings(), [&upstream.url(), NOWHERE[1]]);
        let keys: Vec<_> = ["one", "two", "three"].map(|name| desk.create_key(name)).into();
        for (_, secret) in &keys {
            assert_eq!(status(&desk, secret), 200);
        }
        desk.stop();
        place.damage(&desk, &keys[1].0, damage);
        desk.serve();
        Self { desk, keys }
    }

    fn lost(&self) -> &(String, String) {
        &self.keys[1]
    }
}

fn assert_shown(damaged: &Damaged, reason: &str) {
    let Damaged { desk, keys } = damaged;
    let (id, _) = damaged.lost();
    let lists: [&[&str]; 2] =
        [&["keys", "list", "--json"], &["keys", "list", "--org", "Example Ltd", "--json"]];
    for list in lists {
        let listed = desk.done(list);
        let ids: Vec<Value> = listed.json().into_iter().map(|key| key["id"].clone()).collect();
        let newest_first: Vec<&str> = keys.iter().rev().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, newest_first, "{listed:?}");
        let lost = entry(&listed, id);
        assert_eq!((&lost["object"], &lost["status"]), (&"unreadable_record".into(), &"unreadable".into()));
        assert!(lost["reason"].as_str().unwrap().contains(reason), "{lost}");
        assert!(listed.err.contains("1 keys cannot be read"), "{listed:?}");
    }
    let table = desk.done(&["keys", "list"]).out;
    let row = table.lines().find(|row| row.starts_with(id.as_str())).unwrap();
    assert!(row.contains("unreadable") && row.contains(reason), "{row}");

    let exported = desk.run(&["keys", "export"]);
    assert_eq!(exported.code, 1, "{exported:?}");
    assert_eq!(exported.json().len(), 2);
    assert!(exported.err.contains(id) && exported.err.contains(reason), "{exported:?}");
    assert!(exported.err.contains("1 keys are missing in this export"), "{exported:?}");

    let own = fetch(desk.address(), &Call::get("/v1/api_keys").key(&keys[0].1));
    assert_eq!((own.status, own.json()["data"].as_array().unwrap().len()), (200, 2), "{}", own.text());
}

#[test]
fn a_record_that_cannot_be_read_is_shown_and_all_others_go_on() {
    let upstream = Upstream::start("live");
    for place in places() {
        for (reason, damage) in DAMAGES {
            let damaged = Damaged::on(&place, damage, &upstream);
            assert_shown(&damaged, reason);
            let Damaged { desk, keys } = &damaged;
            for _ in 0..3 {
                assert_eq!(status(desk, &keys[1].1), 503);
                assert_eq!((status(desk, &keys[0].1), status(desk, &keys[2].1)), (200, 200));
            }
            if let Place::Redis(redis) = &place {
                redis.command(&["FLUSHALL"]);
            }
        }
    }
}

#[test]
fn an_operator_ends_a_key_whose_record_cannot_be_read_and_nobody_else_does() {
    let upstream = Upstream::start("live");
    for place in places() {
        for (reason, damage) in DAMAGES {
            let damaged = Damaged::on(&place, damage, &upstream);
            let (Damaged { desk, keys }, (id, secret)) = (&damaged, damaged.lost());
            let by_its_customer = Call::post(&format!("/v1/api_keys/{id}/revoke"), "{}").key(&keys[0].1);
            assert_eq!(fetch(desk.address(), &by_its_customer).status, 503);
            let disabled = desk.run(&["keys", "disable", id]);
            assert_eq!(disabled.code, 1);
            assert!(disabled.err.contains(reason) && disabled.err.contains("keys revoke"), "{disabled:?}");

            assert!(desk.done(&["keys", "revoke", id, "--yes"]).out.contains(id));
            assert_eq!(status(desk, secret), 401);
            assert_eq!((status(desk, &keys[0].1), status(desk, &keys[2].1)), (200, 200));
            let listed = desk.done(&["keys", "list", "--json"]);
            assert_eq!(entry(&listed, id)["status"], "revoked");
            assert!(entry(&listed, id)["note"].as_str().unwrap().contains(reason), "{listed:?}");
            assert_eq!(desk.done(&["keys", "export"]).json().len(), 2);
            let told = desk.done(&["audit", "list", "--operator", "--json"]).json();
            let told = told.iter().find(|record| record["target"] == **id).unwrap();
            assert_eq!((&told["type"], &told["after"]["status"]), (&"key.revoked".into(), &"revoked".into()));
            assert!(told["after"]["unreadable"].as_str().unwrap().contains(reason), "{told}");
            desk.done(&["audit", "verify"]);
            desk.done(&["keys", "revoke", id, "--yes"]);
            for again in ["disable", "enable"] {
                assert_eq!(desk.run(&["keys", again, id]).code, 1, "{again}");
            }
            if let Place::Redis(redis) = &place {
                redis.command(&["FLUSHALL"]);
            }
        }
    }
}

#[test]
fn a_store_without_a_gateway_is_put_right_in_the_same_way() {
    for place in places() {
        let mut desk = Desk::with(Way::Socket, &place.settings(), NOWHERE);
        let (id, _) = desk.create_key("lost");
        let (other, _) = desk.create_key("other");
        desk.stop();
        place.damage(&desk, &id, DAMAGES[1].1);
        assert_eq!(entry(&desk.done(&["keys", "list", "--json"]), &id)["status"], "unreadable");
        assert_eq!(desk.run(&["keys", "export"]).code, 1);
        desk.done(&["keys", "revoke", &id, "--yes"]);
        let listed = desk.done(&["keys", "list", "--json"]);
        assert_eq!(entry(&listed, &id)["status"], "revoked");
        assert_eq!(entry(&listed, &other)["status"], "active");
        desk.done(&["audit", "verify"]);
    }
}

#[test]
fn a_tombstone_reaches_every_gateway_and_an_old_record_does_not_come_back() {
    let (upstream, redis) = (Upstream::start("live"), RedisServer::start());
    let urls = [&*upstream.url(), NOWHERE[1]];
    let settings = in_redis(&redis);
    let first = Desk::with(Way::Socket, &settings, urls);
    let (id, secret) = first.create_key("lost");
    let name = format!("{{kg}}:id:{id}");
    let second = Desk::with(Way::Socket, &settings, urls);
    assert_eq!((status(&first, &secret), status(&second, &secret)), (200, 200));

    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let before: Vec<u8> = redis::cmd("GET").arg(&name).query(&mut connection).unwrap();
    let place = Place::Redis(redis);
    place.damage(&first, &id, DAMAGES[1].1);
    // Both know the key still.
    assert_eq!((status(&first, &secret), status(&second, &secret)), (200, 200));
    let answer = first.done(&["keys", "revoke", &id, "--yes"]);
    assert!(answer.out.contains(&id));
    assert_eq!((status(&first, &secret), status(&second, &secret)), (401, 401));

    // Whoever can write to Redis puts the record back, from before the damage.
    redis::cmd("SET").arg(&name).arg(before).exec(&mut connection).unwrap();
    for desk in [&first, &second] {
        assert_eq!(entry(&desk.done(&["keys", "list", "--json"]), &id)["status"], "revoked");
        assert_ne!(status(desk, &secret), 200);
    }
}

#[test]
fn a_store_with_a_tombstone_migrates() {
    let redis = RedisServer::start();
    let mut from = Desk::with(Way::Socket, "[keys]\npepper_file = \"pepper\"\n", NOWHERE);
    let (id, _) = from.create_key("lost");
    let (other, _) = from.create_key("other");
    from.stop();
    Place::Embedded.damage(&from, &id, DAMAGES[1].1);
    let mut to = Desk::with(Way::Socket, &in_redis(&redis), NOWHERE);
    to.stop();
    let target = to.folder().join("keygate.toml");
    let migrate = ["store", "migrate", "--to", target.to_str().unwrap()];
    let refused = from.run(&migrate);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains(&id), "{refused:?}");
    from.done(&["keys", "revoke", &id, "--yes"]);
    from.done(&migrate);
    let listed = to.done(&["keys", "list", "--json"]);
    assert_eq!(
        (&entry(&listed, &id)["status"], &entry(&listed, &other)["status"]),
        (&"revoked".into(), &"active".into())
    );
}
