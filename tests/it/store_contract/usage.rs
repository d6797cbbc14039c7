//! The use of keys.

use std::collections::BTreeSet;

use keygate::vocabulary::id::KeyId;
use keygate::vocabulary::key::record::{KeyRecord, Versioned};
use keygate::vocabulary::key::usage::{Usage, Used};

use super::{Call, Heard, Maker, Shared, event, insert, insert_org, new_key};

fn used(key: KeyId, text: &str) -> Used {
    Used { key, usage: Usage::parse(text).unwrap() }
}

async fn usage_of(store: &Shared, key: KeyId) -> Option<String> {
    store.usage().of(vec![key]).await.unwrap().remove(0).map(|usage| usage.to_string())
}

pub(super) async fn usage_is_merged(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    let key = made.key(org.id, &[]);
    insert(&store, &org, &key).await;
    assert_eq!(usage_of(&store, key.id).await, None);
    for (noted, known) in [
        ("1700000000000", "1700000000000"),
        ("1700000000500 jobs:read", "1700000000500 jobs:read"),
        ("1700000000400 jobs:write a.b", "1700000000500 a.b jobs:read jobs:write"),
        ("1700000000400", "1700000000500 a.b jobs:read jobs:write"),
        ("1700000000501 jobs:read", "1700000000501 a.b jobs:read jobs:write"),
        ("999", "1700000000501 a.b jobs:read jobs:write"),
    ] {
        store.usage().note(vec![used(key.id, noted)]).await.unwrap();
        assert_eq!(usage_of(&store, key.id).await.as_deref(), Some(known), "after {noted}");
    }
    // Two updates of one key in one call.
    let twice = vec![used(key.id, "1700000000600 x"), used(key.id, "5 y")];
    store.usage().note(twice).await.unwrap();
    let known = usage_of(&store, key.id).await.unwrap();
    assert_eq!(known, "1700000000600 a.b jobs:read jobs:write x y");
}

pub(super) async fn usage_at_a_time_that_has_not_come_hides_no_other(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    let key = made.key(org.id, &[]);
    insert(&store, &org, &key).await;
    // A gateway whose clock is 1000 years ahead.
    store.usage().note(vec![used(key.id, "33346800000000 jobs:write")]).await.unwrap();
    store.usage().note(vec![used(key.id, "1700000000000 jobs:read")]).await.unwrap();
    let mut known = usage_of(&store, key.id).await.unwrap();
    known = known.split(' ').collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(known, "1700000000000 jobs:read jobs:write");
}

pub(super) async fn of_a_key_that_is_not_there_no_usage_is_kept(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    let (key, other) = (made.key(org.id, &[]), made.key(org.id, &[]));
    insert(&store, &org, &key).await;
    store.usage().note(vec![used(other.id, "7 a"), used(key.id, "8 b")]).await.unwrap();
    store.commit(new_key(&other)).await.unwrap();
    assert_eq!(usage_of(&store, other.id).await, None);
    assert_eq!(usage_of(&store, key.id).await.as_deref(), Some("8 b"));
}

pub(super) async fn usage_of_many_keys_comes_in_their_order(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    insert_org(&store, &org).await;
    // More than any back end writes or returns at once.
    let keys: Vec<KeyRecord> = (0..300).map(|_| made.key(org.id, &[])).collect();
    store.import(keys.clone()).await.unwrap();
    let noted = keys.iter().enumerate().step_by(3).map(|(n, key)| used(key.id, &format!("{n} s{n}")));
    store.usage().note(noted.collect()).await.unwrap();
    let told = store.usage().of(keys.iter().map(|key| key.id).collect()).await.unwrap();
    let told: Vec<_> = told.into_iter().map(|usage| usage.map(|usage| usage.to_string())).collect();
    let expected: Vec<_> = (0..300).map(|n| (n % 3 == 0).then(|| format!("{n} s{n}"))).collect();
    assert_eq!(told, expected);
    assert_eq!(store.usage().of(vec![]).await, Ok(vec![]));
    store.usage().note(vec![]).await.unwrap();
}

pub(super) async fn usage_is_no_event_and_leaves_the_record(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    let org = made.org();
    let key = made.key(org.id, &[]);
    insert(&store, &org, &key).await;
    store.subscribe(heard.sink());
    store.usage().note(vec![used(key.id, "8 b")]).await.unwrap();
    assert_eq!(store.key(key.id).await, Ok(Some(Versioned { rev: 1, record: key })));
    assert_eq!(store.commit(event(org.id)).await.unwrap().event, Some(1));
    assert_eq!(heard.all().first(), Some(&Call::Reset(0)));
}
