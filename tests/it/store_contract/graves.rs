//! Keys that ended long ago: what goes, what stays of it, and what does not come back.

use std::time::Duration;

use keygate::store::graves::{Buried, Leaving, Marked, Terms};
use keygate::store::trails::{Held, Pace};
use keygate::store::{CommitError, Committed, KeysOf, Lookup};
use keygate::vocabulary::clock::{Clock, UnixMillis};
use keygate::vocabulary::id::KeyId;
use keygate::vocabulary::key::gone::{Gone, Stone};
use keygate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};
use tokio::sync::mpsc;

use super::{Maker, NOW, Shared, insert, insert_org, new_key, update_key, with_digests};

const MINUTE: Duration = Duration::from_secs(60);

/// It ended at [`NOW`], which is long ago.
fn ended(made: &Maker, org: &OrgRecord) -> KeyRecord {
    KeyRecord { revoked_at: Some(NOW), ..made.key(org.id, &[made.digest(), made.digest()]) }
}

fn leaving(rev: u64, key: &KeyRecord, maker: Option<KeyId>) -> Leaving {
    Leaving { key: Versioned { rev, record: key.clone() }, maker }
}

fn terms(pace: Pace) -> Terms {
    Terms { own: Clock::system().own(), keep: MINUTE, pace }
}

async fn bury(store: &Shared, keys: Vec<Leaving>) -> Buried {
    store.keeper().graves().bury(keys, terms(Pace::Daily)).await.unwrap()
}

async fn mark(store: &Shared, of: Gone) -> Marked {
    store.keeper().graves().find(vec![of]).await.unwrap()[0]
}

pub(super) async fn of_a_key_that_goes_its_names_stay_and_nothing_else(store: Shared) {
    let (made, org) = (Maker::new(), Maker::new().org());
    let (maker, key) = (made.key(org.id, &[made.digest()]), ended(&made, &org));
    insert(&store, &org, &maker).await;
    store.commit(new_key(&key)).await.unwrap();
    assert_eq!(bury(&store, vec![leaving(1, &key, Some(maker.id))]).await, Buried::Done(1));

    assert_eq!(store.key(key.id).await, Ok(None));
    for secret in &key.secrets {
        assert!(matches!(store.lookup(secret.digest).await, Lookup::Absent));
        assert_eq!(mark(&store, Gone::Secret(secret.digest)).await, Marked::Gone { maker: None });
    }
    assert_eq!(mark(&store, Gone::Key(key.id)).await, Marked::Gone { maker: Some(maker.id) });
    assert_eq!(mark(&store, Gone::Key(maker.id)).await, Marked::No);
    let stays = vec![Versioned { rev: 1, record: maker.clone() }];
    for of in [KeysOf::All, KeysOf::Org(org.id), KeysOf::Environment(org.id, key.environment)] {
        assert_eq!(store.keys(of, None, 9).await, Ok(stays.clone()), "{of:?}");
    }
    assert_eq!(bury(&store, vec![leaving(1, &key, None)]).await, Buried::Done(0), "there is none");
}

pub(super) async fn what_is_gone_does_not_come_back(store: Shared) {
    let (made, org) = (Maker::new(), Maker::new().org());
    let key = ended(&made, &org);
    insert(&store, &org, &key).await;
    assert_eq!(bury(&store, vec![leaving(1, &key, None)]).await, Buried::Done(1));
    let other = made.key(org.id, &[made.digest()]);
    store.commit(new_key(&other)).await.unwrap();

    let as_it_was = KeyRecord { revoked_at: None, ..key.clone() };
    let same_id = with_digests(&as_it_was, &[made.digest()]);
    let id = made.key(org.id, &[]).id;
    let same_secret = KeyRecord { id, ..with_digests(&as_it_was, &[key.secrets[1].digest]) };
    for back in [as_it_was, same_id, same_secret] {
        assert_eq!(store.commit(new_key(&back)).await, Err(CommitError::Exists));
        assert_eq!(store.import(vec![back]).await, Ok(vec![Err(CommitError::Exists)]));
    }
    let with_its_secret = with_digests(&other, &[key.secrets[0].digest]);
    assert_eq!(store.commit(update_key(1, &with_its_secret)).await, Err(CommitError::Exists));
    let renamed = KeyRecord { name: "another".to_owned(), ..other };
    assert_eq!(store.commit(update_key(1, &renamed)).await, Ok(Committed { event: None }));
}

pub(super) async fn a_key_that_has_not_ended_for_so_long_stays(store: Shared) {
    let (made, org) = (Maker::new(), Maker::new().org());
    insert_org(&store, &org).await;
    let just_now = Clock::system().own().minus(MINUTE / 2);
    let keys = [
        made.key(org.id, &[made.digest()]),
        KeyRecord { revoked_at: Some(just_now), ..made.key(org.id, &[made.digest()]) },
        KeyRecord { expires_at: Some(UnixMillis(u64::MAX >> 12)), ..made.key(org.id, &[made.digest()]) },
        KeyRecord { disabled_at: Some(NOW), ..made.key(org.id, &[made.digest()]) },
    ];
    for key in &keys {
        store.commit(new_key(key)).await.unwrap();
        assert_eq!(bury(&store, vec![leaving(1, key, None)]).await, Buried::Done(0));
    }
    let old = ended(&made, &org);
    store.commit(new_key(&old)).await.unwrap();
    let changed = KeyRecord { note: Some("still needed".to_owned()), ..old.clone() };
    store.commit(update_key(1, &changed)).await.unwrap();
    assert_eq!(bury(&store, vec![leaving(1, &old, None)]).await, Buried::Done(0), "it was changed since");
    // What comes behind one that stays does not overtake it: it may have been made by it.
    let expired = KeyRecord { expires_at: Some(NOW), ..made.key(org.id, &[made.digest()]) };
    store.commit(new_key(&expired)).await.unwrap();
    let both = vec![leaving(1, &keys[0], None), leaving(1, &expired, None)];
    assert_eq!(bury(&store, both).await, Buried::Done(0));
    assert_eq!(bury(&store, vec![leaving(1, &expired, None)]).await, Buried::Done(1));
    assert_eq!(store.keys(KeysOf::All, None, 9).await.unwrap().len(), 5);
}

pub(super) async fn no_key_goes_while_the_clocks_differ_by_more_than_a_minute(store: Shared) {
    let (made, org) = (Maker::new(), Maker::new().org());
    let key = ended(&made, &org);
    insert(&store, &org, &key).await;
    let year = Duration::from_secs(365 * 86_400);
    let own = Clock::system().own();
    for own in [own.plus(year), own.minus(year)] {
        let held =
            store.keeper().graves().bury(vec![leaving(1, &key, None)], Terms { own, ..terms(Pace::AtOnce) });
        assert!(matches!(held.await, Ok(Buried::Held(Held::Apart { .. }))));
    }
    assert_eq!(store.keys(KeysOf::All, None, 9).await.unwrap().len(), 1);
}

pub(super) async fn in_a_day_a_thousand_keys_go_and_more_for_an_operator(store: Shared) {
    let (made, org) = (Maker::new(), Maker::new().org());
    insert_org(&store, &org).await;
    let keys: Vec<KeyRecord> = (0..1100).map(|_| ended(&made, &org)).collect();
    store.import(keys.clone()).await.unwrap();
    let mut gone = 0;
    for keys in keys.chunks(256) {
        let keys = keys.iter().map(|key| leaving(1, key, None)).collect();
        if let Buried::Done(now) = bury(&store, keys).await {
            gone += now;
        }
    }
    assert_eq!(gone, 1000);
    let left = store.keys(KeysOf::All, None, 9999).await.unwrap();
    let left: Vec<_> = left.iter().map(|key| leaving(1, &key.record, None)).collect();
    assert_eq!(left.len(), 100);
    let all = store.keeper().graves().bury(left, terms(Pace::AtOnce)).await;
    assert_eq!(all, Ok(Buried::Done(100)));
}

pub(super) async fn stones_are_told_and_put_elsewhere(store: Shared) {
    let (made, org) = (Maker::new(), Maker::new().org());
    let (key, maker) = (ended(&made, &org), made.key(org.id, &[]).id);
    insert(&store, &org, &key).await;
    bury(&store, vec![leaving(1, &key, Some(maker))]).await;
    let moved = Gone::Key(made.key(org.id, &[]).id);
    for _ in 0..2 {
        store.keeper().graves().put(vec![(moved, None)]).await.unwrap();
    }
    let (out, mut told) = mpsc::channel(8192);
    store.keeper().graves().stones(out).await.unwrap();
    let mut stones: Vec<Stone> = Vec::new();
    while let Some(some) = told.recv().await {
        stones.extend(some);
    }
    let mut names: Vec<_> = stones.iter().map(|stone| (stone.of.to_bytes(), stone.maker)).collect();
    let mut expected: Vec<_> = key.names().map(|of| (of.to_bytes(), None)).collect();
    expected[0].1 = Some(maker);
    expected.push((moved.to_bytes(), None));
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
}
