//! Importing many keys at once.

use keygate::store::{CommitError, KeysOf, Lookup};
use keygate::vocabulary::key::record::KeyRecord;

use super::{Call, Heard, Maker, Shared, assert_found, event, insert, insert_org};

/// More than any back end inserts at once.
const MANY: usize = 5000;

pub(super) async fn each_key_is_imported_for_itself(store: Shared) {
    let made = Maker::new();
    let (org, other, taken) = (made.org(), made.org(), made.digest());
    let before = made.key(org.id, &[taken]);
    insert(&store, &org, &before).await;
    insert_org(&store, &other).await;
    let mut keys: Vec<KeyRecord> = (0..MANY)
        .map(|n| made.key(if n % 3 == 0 { other.id } else { org.id }, &[made.digest(), made.digest()]))
        .collect();
    // Far apart, and adjacent.
    let (first, second) = (keys[0].clone(), keys[1].secrets.clone());
    keys[70].secrets[1].digest = taken;
    keys[71].id = before.id;
    keys[72].org = made.org().id;
    keys[73].id = first.id;
    keys[2].secrets[1] = second[0].clone();
    keys[MANY - 1].secrets = second;
    let refused = [2, 70, 71, 72, 73, MANY - 1];
    let outcomes = store.import(keys.clone()).await.unwrap();
    assert_eq!(outcomes.len(), MANY);
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let expected = match n {
            72 => Err(CommitError::Missing),
            n if refused.contains(&n) => Err(CommitError::Exists),
            _ => Ok(()),
        };
        assert_eq!(outcome, expected, "key {n}");
    }
    assert_found(&store, taken, &before, &org).await;
    for n in [0, 1, 3, 63, 64, 65, 512, 4095, 4096, MANY - 2] {
        let owner = if keys[n].org == org.id { &org } else { &other };
        for secret in &keys[n].secrets {
            assert_found(&store, secret.digest, &keys[n], owner).await;
        }
    }
    // Nothing of the refused keys is stored, neither their valid digests nor a place in a list.
    for (n, digest) in [(2, 0), (70, 0), (71, 0), (71, 1), (72, 0), (73, 1)] {
        assert!(matches!(store.lookup(keys[n].secrets[digest].digest).await, Lookup::Absent), "key {n}");
    }
    for n in [2, 70, 72, MANY - 1] {
        assert_eq!(store.key(keys[n].id).await, Ok(None), "key {n}");
    }
    let listed = store.keys(KeysOf::All, None, usize::MAX).await.unwrap();
    assert_eq!(listed.len(), MANY - refused.len() + 1);
    let of_each = [org.id, other.id].map(|org| store.keys(KeysOf::Org(org), None, usize::MAX));
    let [of_org, of_other] = of_each;
    assert_eq!(of_org.await.unwrap().len() + of_other.await.unwrap().len(), listed.len());
}

pub(super) async fn an_import_repeated_inserts_nothing_twice(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    insert_org(&store, &org).await;
    let keys: Vec<KeyRecord> = (0..100).map(|_| made.key(org.id, &[made.digest()])).collect();
    let some = store.import(keys[..40].to_vec()).await.unwrap();
    assert!(some.iter().all(Result::is_ok));
    let all = store.import(keys.clone()).await.unwrap();
    let expected: Vec<_> = (0..100).map(|n| if n < 40 { Err(CommitError::Exists) } else { Ok(()) }).collect();
    assert_eq!(all, expected);
    assert_eq!(store.keys(KeysOf::Org(org.id), None, usize::MAX).await.unwrap().len(), 100);
    assert_eq!(store.import(vec![]).await, Ok(vec![]));
}

pub(super) async fn an_import_is_no_event(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    let org = made.org();
    insert_org(&store, &org).await;
    store.subscribe(heard.sink());
    store.import(vec![made.key(org.id, &[made.digest()])]).await.unwrap();
    assert_eq!(store.commit(event(org.id)).await.unwrap().event, Some(1));
    assert_eq!(heard.all().first(), Some(&Call::Reset(0)));
}
