//! The room that a new key needs in its organisation, and lists by environment.

use std::sync::Arc;
use std::time::Duration;

use keygate::store::indexes::{Full, Room};
use keygate::store::quotas::Quota;
use keygate::store::{CommitError, Committed, KeysOf, Mutation};
use keygate::vocabulary::id::{KeyId, OrgId};
use keygate::vocabulary::key::Environment;
use keygate::vocabulary::key::record::{KeyRecord, Versioned};

use super::{Maker, NOW, Shared, insert_org, later, new_key, update_key};

const WINDOW: Duration = Duration::from_secs(60);
const MADE: Result<Committed, CommitError> = Ok(Committed { event: None });

/// Room for so many live keys, and so many of one maker; the pace is no limit.
fn room(org: OrgId, maker: KeyId, most: u32, most_of_maker: u32) -> Room {
    let pace = Quota { name: format!("keys:{org}"), limit: 10_000, window: WINDOW };
    Room { now: NOW, most, maker, most_of_maker, pace }
}

/// A key that another one has made.
fn made_by(made: &Maker, org: OrgId, maker: KeyId) -> KeyRecord {
    KeyRecord { created_by: maker.to_string(), ..made.key(org, &[made.digest()]) }
}

fn needs(key: &KeyRecord, room: Room) -> Mutation {
    Mutation { room: Some(room), ..new_key(key) }
}

pub(super) async fn an_organisation_has_no_more_live_keys_than_there_is_room_for(store: Shared) {
    let made = Maker::new();
    let (org, other) = (made.org(), made.org());
    insert_org(&store, &org).await;
    insert_org(&store, &other).await;
    // Who makes them does not count, and neither does an operator's key against its maker.
    let (ada, bob) = (made.key(org.id, &[]).id, made.key(org.id, &[]).id);
    let keys: Vec<KeyRecord> = [ada, ada, bob].map(|maker| made_by(&made, org.id, maker)).into();
    for key in &keys {
        assert_eq!(store.commit(needs(key, room(org.id, ada, 4, 4))).await, MADE);
    }
    store.commit(new_key(&made.key(org.id, &[made.digest()]))).await.unwrap();
    let next = made_by(&made, org.id, bob);
    let full = Err(CommitError::Full(Full::Organisation));
    assert_eq!(store.commit(needs(&next, room(org.id, bob, 4, 4))).await, full);
    assert_eq!(store.key(next.id).await, Ok(None));
    // Without the limit, as for an operator, there is always room; and another organisation has its own.
    let elsewhere = made_by(&made, other.id, ada);
    assert_eq!(store.commit(needs(&elsewhere, room(other.id, ada, 1, 1))).await, MADE);
    // A revoked key makes room, an ended one too, and a disabled one does not.
    let disabled = KeyRecord { disabled_at: Some(NOW), ..keys[0].clone() };
    store.commit(update_key(1, &disabled)).await.unwrap();
    assert_eq!(store.commit(needs(&next, room(org.id, bob, 4, 4))).await, full);
    let revoked = KeyRecord { revoked_at: Some(NOW), ..keys[1].clone() };
    store.commit(update_key(1, &revoked)).await.unwrap();
    let ending = KeyRecord { expires_at: Some(later(10)), ..next };
    assert_eq!(store.commit(needs(&ending, room(org.id, bob, 4, 4))).await, MADE);
    let last = made_by(&made, org.id, bob);
    let at = |now| Room { now, ..room(org.id, bob, 4, 4) };
    assert_eq!(store.commit(needs(&last, at(later(9)))).await, full);
    assert_eq!(store.commit(needs(&last, at(later(10)))).await, MADE);
}

pub(super) async fn one_key_makes_no_more_than_its_part(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    insert_org(&store, &org).await;
    let (ada, bob) = (made.key(org.id, &[]).id, made.key(org.id, &[]).id);
    let mut keys = Vec::new();
    for _ in 0..2 {
        let key = made_by(&made, org.id, ada);
        assert_eq!(store.commit(needs(&key, room(org.id, ada, 9, 2))).await, MADE);
        keys.push(key);
    }
    let third = made_by(&made, org.id, ada);
    let refused = store.commit(needs(&third, room(org.id, ada, 9, 2))).await;
    assert_eq!(refused, Err(CommitError::Full(Full::Maker)));
    let by_bob = made_by(&made, org.id, bob);
    assert_eq!(store.commit(needs(&by_bob, room(org.id, bob, 9, 2))).await, MADE);
    let revoked = KeyRecord { revoked_at: Some(NOW), ..keys[0].clone() };
    store.commit(update_key(1, &revoked)).await.unwrap();
    assert_eq!(store.commit(needs(&third, room(org.id, ada, 9, 2))).await, MADE);
}

pub(super) async fn new_keys_are_counted_within_a_window(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    insert_org(&store, &org).await;
    let maker = made.key(org.id, &[]).id;
    let pace = Quota { name: format!("keys:{}", org.id), limit: 2, window: WINDOW };
    let at = |now| Room { now, pace: pace.clone(), ..room(org.id, maker, 9, 9) };
    let key = || made_by(&made, org.id, maker);
    let taken = key();
    assert_eq!(store.commit(needs(&taken, at(NOW))).await, MADE);
    // One that is refused does not count.
    assert_eq!(store.commit(needs(&taken, at(NOW))).await, Err(CommitError::Exists));
    assert_eq!(store.commit(needs(&key(), at(later(10_000)))).await, MADE);
    let refused = store.commit(needs(&key(), at(later(15_000)))).await;
    assert_eq!(refused, Err(CommitError::TooFast { retry_after: Duration::from_secs(45) }));
    assert_eq!(store.commit(needs(&key(), at(later(60_000)))).await, MADE);
}

pub(super) async fn of_64_concurrent_creations_exactly_as_many_succeed_as_there_is_room_for(store: Shared) {
    const ROOM: u32 = 10;
    let made = Maker::new();
    let org = made.org();
    insert_org(&store, &org).await;
    let maker = made.key(org.id, &[]).id;
    let keys: Vec<KeyRecord> = (0..64).map(|_| made_by(&made, org.id, maker)).collect();
    let creating = keys.iter().map(|key| {
        let (store, mutation) = (Arc::clone(&store), needs(key, room(org.id, maker, ROOM, ROOM)));
        tokio::spawn(async move { store.commit(mutation).await })
    });
    let mut succeeded = 0;
    for outcome in creating.collect::<Vec<_>>() {
        succeeded += u32::from(outcome.await.unwrap() == MADE);
    }
    assert_eq!(succeeded, ROOM);
}

pub(super) async fn the_keys_of_one_environment_are_listed_alone(store: Shared) {
    let made = Maker::new();
    let (org, other) = (made.org(), made.org());
    insert_org(&store, &org).await;
    insert_org(&store, &other).await;
    let mut keys = Vec::new();
    for n in 0..23 {
        let environment = if n % 5 == 0 { Environment::Test } else { Environment::Live };
        let owner = if n % 7 == 0 { other.id } else { org.id };
        let key = KeyRecord { environment, ..made.key(owner, &[made.digest()]) };
        store.commit(new_key(&key)).await.unwrap();
        keys.push(Versioned { rev: 1, record: key });
    }
    // A revoked key is still listed.
    let revoked = KeyRecord { revoked_at: Some(NOW), ..keys[5].record.clone() };
    store.commit(update_key(1, &revoked)).await.unwrap();
    keys[5] = Versioned { rev: 2, record: revoked };
    keys.sort_by_key(|key| std::cmp::Reverse(key.record.id));
    for environment in Environment::ALL {
        let wanted =
            |key: &&Versioned<KeyRecord>| key.record.org == org.id && key.record.environment == environment;
        let expected: Vec<_> = keys.iter().filter(wanted).cloned().collect();
        let of = KeysOf::Environment(org.id, environment);
        for limit in 1..=24 {
            let (mut listed, mut after) = (Vec::new(), None);
            loop {
                let page = store.keys(of, after, limit).await.unwrap();
                let Some(last) = page.last() else { break };
                assert!(page.len() <= limit);
                after = Some(last.record.id);
                listed.extend(page);
            }
            assert_eq!(listed, expected, "{environment} by {limit}");
        }
    }
}
