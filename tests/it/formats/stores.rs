//! Two stores of two releases, side by side.

use std::sync::Arc;

use keygate::store::embedded::{Embedded, OpenError, Settings};
use keygate::store::keeper::{LinkState, Status};
use keygate::store::{Committed, KeysOf, Lookup, Mutation, StoreFault};
use keygate::vocabulary::clock::Clock;
use keygate::vocabulary::key::Digest;
use keygate::vocabulary::key::record::{KeyRecord, RecordFormat, Sealer, Versioned};
use redb::{ReadableDatabase, TableDefinition};
use tempfile::TempDir;

use super::{NEXT, additions, embedded, extended, further, next, outdated, redis, sealers};
use crate::harness::{RedisServer, soon};
use crate::store_contract::{
    Heard, Maker, NOW, Shared, assert_found, event, insert, new_key, new_org, update_key, update_org,
};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// The format that the file names. Its store must be closed.
fn format_of(folder: &TempDir) -> u64 {
    let file = redb::Database::open(folder.path().join("keygate.redb")).unwrap();
    let row = file.begin_read().unwrap().open_table(META).unwrap().get("format").unwrap().unwrap();
    u64::from_be_bytes(row.value().try_into().unwrap())
}

/// As if nothing of a later format had been written: what is left is the format of each record.
pub(super) fn lower_format_of(folder: &TempDir) {
    let file = redb::Database::open(folder.path().join("keygate.redb")).unwrap();
    let change = file.begin_write().unwrap();
    let format = u64::from(RecordFormat::OPEN.number()).to_be_bytes();
    change.open_table(META).unwrap().insert("format", &format[..]).unwrap();
    change.commit().unwrap();
}

/// Unknown fields of every kind of record survive every change, and whoever knows them reads them.
async fn unknown_fields_survive(newer: &Shared, older: &Shared) {
    let (made, digest) = (Maker::new(), Maker::new().digest());
    let mut org = made.org();
    org.further = further(serde_json::json!({ "ceiling": 10 }));
    let key = extended(&made.key(org.id, &[digest]));
    newer.commit(new_org(&org)).await.unwrap();
    newer.commit(new_key(&key)).await.unwrap();
    assert_found(older, digest, &key, &org).await;
    assert_eq!(older.keys(KeysOf::Org(org.id), None, 9).await.unwrap()[0].record, key);
    let key = KeyRecord { name: "renamed".to_owned(), ..older.key(key.id).await.unwrap().unwrap().record };
    older.commit(update_key(1, &key)).await.unwrap();
    org = older.org(org.id).await.unwrap().unwrap().record;
    org.suspended_at = Some(NOW);
    older.commit(update_org(1, &org)).await.unwrap();
    assert_found(newer, digest, &key, &org).await;
    assert_eq!(key.further, additions());
    let imported = extended(&made.key(org.id, &[Digest::from_bytes([9; 32])]));
    assert_eq!(older.import(vec![imported.clone()]).await, Ok(vec![Ok(())]));
    assert_found(newer, imported.secrets[0].digest, &imported, &org).await;
}

#[tokio::test]
async fn unknown_fields_survive_a_change_in_redis() {
    for sealer in sealers() {
        let server = RedisServer::start();
        let (newer, older) = (redis(&server, &sealer.clone().keeping(NEXT)), redis(&server, &sealer));
        assert_eq!(newer.keeper().begin().await, Ok(true));
        unknown_fields_survive(&newer, &older).await;
        assert_eq!(server.command(&["HGET", "{kg}:meta", "format"]), "$1\r\n2\r\n", "nothing asked for more");
    }
}

#[tokio::test]
async fn unknown_fields_survive_a_change_in_a_file() {
    for sealer in sealers() {
        let folder = TempDir::new().unwrap();
        let store = embedded(folder.path(), &sealer);
        unknown_fields_survive(&store, &store).await;
        drop(store);
        assert_eq!(format_of(&folder), 2);
    }
}

/// A record of a newer format, in a store that both may join, is served and left as it is.
async fn a_newer_record_is_served_and_not_written(older: &Shared, org_rev: u64, key: &KeyRecord) {
    let (digest, id) = (key.secrets[0].digest, key.id);
    let org = older.org(key.org).await.unwrap().unwrap().record;
    assert_found(older, digest, key, &org).await;
    let Versioned { rev, record } = older.key(id).await.unwrap().unwrap();
    let refusal =
        outdated(older.commit(update_key(rev, &KeyRecord { revoked_at: Some(NOW), ..record })).await);
    assert!(refusal.contains(&format!("format {NEXT}")) && refusal.contains("newer version"), "{refusal}");
    assert_found(older, digest, key, &org).await;
    // Everything else goes on.
    older.commit(update_org(org_rev, &org)).await.unwrap();
    assert_eq!(older.commit(event(org.id)).await, Ok(Committed { event: Some(1) }));
}

#[tokio::test]
async fn a_newer_record_in_redis_is_served_by_the_release_before_and_not_written() {
    for sealer in sealers() {
        let server = RedisServer::start();
        let newer = redis(&server, &sealer.clone().keeping(NEXT));
        newer.keeper().begin().await.unwrap();
        let made = Maker::new();
        let org = made.org();
        let key = next(&made.key(org.id, &[made.digest()]));
        insert(&newer, &org, &key).await;
        assert_eq!(server.command(&["HGET", "{kg}:meta", "format"]), format!("$1\r\n{NEXT}\r\n"));
        server.command(&["HSET", "{kg}:meta", "format", "2"]);
        a_newer_record_is_served_and_not_written(&redis(&server, &sealer), 1, &key).await;
    }
}

#[tokio::test]
async fn a_newer_record_in_a_file_is_served_by_the_release_before_and_not_written() {
    for sealer in sealers() {
        let folder = TempDir::new().unwrap();
        let made = Maker::new();
        let org = made.org();
        let key = next(&made.key(org.id, &[made.digest()]));
        // At once: there is nobody else whom it could be lost on.
        insert(&embedded(folder.path(), &sealer.clone().keeping(NEXT)), &org, &key).await;
        assert_eq!(format_of(&folder), u64::from(NEXT.number()));
        let settings = Settings { path: folder.path().join("keygate.redb") };
        for refused in [
            Embedded::open(&settings, sealer.clone()).unwrap_err(),
            Embedded::open_to_read(&settings, sealer.clone(), Clock::system()).unwrap_err(),
        ] {
            assert!(matches!(refused, OpenError::NewerFormat { .. }), "{refused}");
            assert!(refused.to_string().contains("run the version that wrote them"), "{refused}");
        }
        lower_format_of(&folder);
        a_newer_record_is_served_and_not_written(&embedded(folder.path(), &sealer), 1, &key).await;
    }
}

async fn linked(store: &Shared) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    store.subscribe(heard.sink());
    soon("the event link is up", async || store.keeper().link_state() == LinkState::Up).await;
    heard
}

/// What each lease announces.
fn announced(status: &Status) -> Vec<u16> {
    let mut formats: Vec<u16> = status.gateways.iter().map(|lease| lease.format.number()).collect();
    formats.sort_unstable();
    formats
}

#[tokio::test]
async fn nothing_new_is_written_until_every_lease_announces_it() {
    let server = RedisServer::start();
    let sealer = Sealer::default();
    let (newer, older) = (redis(&server, &sealer.clone().keeping(NEXT)), redis(&server, &sealer));
    newer.keeper().begin().await.unwrap();
    let (_one, _other) = (linked(&newer).await, linked(&older).await);
    let status = newer.keeper().status().await;
    let [current, newest] = [RecordFormat::CURRENT, NEXT].map(RecordFormat::number);
    assert_eq!((announced(&status), status.format), (vec![current, newest], Some(RecordFormat::OPEN)));

    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let plain = made.key(org.id, &[digest]);
    insert(&newer, &org, &plain).await;
    let before = server.contents();
    let needs = Mutation { needs: NEXT, ..event(org.id) };
    for refused in [newer.commit(update_key(1, &next(&plain))).await, newer.commit(needs.clone()).await] {
        let refusal = outdated(refused);
        assert!(refusal.contains(&format!("keeps records up to format {current} only")), "{refusal}");
    }
    let other = next(&made.key(org.id, &[made.digest()]));
    assert!(matches!(newer.import(vec![other.clone()]).await, Err(StoreFault::Outdated(_))));
    assert_eq!(server.contents(), before);

    // A gateway of the release that knew of no formats announces none.
    older.keeper().leave().await.unwrap();
    server.command(&["SADD", "{kg}:gateways", "ghost"]);
    server.command(&["SET", "{kg}:gateway:ghost", "0", "PX", "60000"]);
    assert_eq!(announced(&newer.keeper().status().await), [1, newest]);
    let refusal = outdated(newer.commit(needs.clone()).await);
    assert!(refusal.contains("the gateway ghost keeps records up to format 1 only"), "{refusal}");
    // Such a gateway cannot even read unknown fields.
    server.command(&["HDEL", "{kg}:meta", "format"]);
    let refusal = outdated(newer.commit(new_key(&extended(&made.key(org.id, &[made.digest()])))).await);
    assert!(refusal.contains("the gateway ghost keeps records up to format 1 only"), "{refusal}");
    server.command(&["HSET", "{kg}:meta", "format", "2"]);
    // A command without a lease is held to what it can keep itself.
    let refusal = outdated(redis(&server, &sealer).commit(needs.clone()).await);
    assert!(refusal.contains(&format!("this one keeps formats up to {current}")), "{refusal}");
    server.command(&["DEL", "{kg}:gateway:ghost"]);

    newer.commit(update_key(1, &next(&plain))).await.unwrap();
    newer.commit(needs).await.unwrap();
    assert_eq!(newer.import(vec![other]).await, Ok(vec![Ok(())]));
    assert_eq!(newer.keeper().status().await.format, Some(NEXT));
    still_serves(&older, &next(&plain), &org.name).await;
    does_not_join(&redis(&server, &sealer), &next(&plain)).await;
}

/// One that had joined before.
async fn still_serves(older: &Shared, key: &KeyRecord, name: &str) {
    let org = older.org(key.org).await.unwrap().unwrap().record;
    assert_eq!(org.name, name);
    assert_found(older, key.secrets[0].digest, key, &org).await;
    let made = Maker::new();
    for refused in [
        older.commit(update_key(2, &KeyRecord { name: "renamed".to_owned(), ..key.clone() })).await,
        older.commit(update_org(1, &org)).await,
        older.commit(new_org(&made.org())).await,
        older.commit(event(org.id)).await,
    ] {
        let refusal = outdated(refused);
        assert!(refusal.contains("upgrade this one") || refusal.contains("newer version"), "{refusal}");
    }
    let used = keygate::vocabulary::key::usage::Usage::parse("1 jobs:read").unwrap();
    let used = vec![keygate::vocabulary::key::usage::Used { key: key.id, usage: used }];
    assert!(matches!(older.usage().note(used).await, Err(StoreFault::Outdated(_))));
    let status = older.keeper().status().await;
    assert!(status.trouble.is_some_and(|trouble| trouble.contains("makes no changes")));
    assert_eq!((status.format, status.keeps), (Some(NEXT), RecordFormat::CURRENT));
    assert!(matches!(older.keeper().accept(false).await, Err(StoreFault::Outdated(_))));
}

/// One that starts now.
async fn does_not_join(older: &Shared, key: &KeyRecord) {
    let Lookup::Unavailable(fault) = older.lookup(key.secrets[0].digest).await else {
        panic!("it must not serve what it has never joined");
    };
    assert!(fault.to_string().contains("run the version that wrote them, or a newer one"), "{fault}");
    assert!(older.key(key.id).await.is_err());
    older.subscribe(Heard::default().sink());
    let trouble = older.keeper().status().await.trouble.unwrap();
    assert!(trouble.contains(&format!("format {NEXT}")), "{trouble}");
    let newer = format!("format {NEXT}");
    soon(
        "its link says why it is down",
        async || matches!(older.keeper().link_state(), LinkState::Down(cause) if cause.contains(&newer)),
    )
    .await;
    let leases = older.keeper().status().await.gateways;
    assert!(leases.iter().all(|lease| !lease.own), "{leases:?}");
}

#[tokio::test]
async fn a_mutation_that_needs_a_newer_format_raises_that_of_a_file() {
    let folder = TempDir::new().unwrap();
    let needs = |store: Shared| async move {
        store.commit(Mutation { needs: NEXT, ..event(Maker::new().org().id) }).await
    };
    outdated(needs(embedded(folder.path(), &Sealer::default())).await);
    assert_eq!(format_of(&folder), 2);
    needs(embedded(folder.path(), &Sealer::default().keeping(NEXT))).await.unwrap();
    assert_eq!(format_of(&folder), u64::from(NEXT.number()));
}
