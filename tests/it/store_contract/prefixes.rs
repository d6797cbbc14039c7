//! What keys begin with, where keys are written.

use std::time::Duration;

use keygate::store::Store;
use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::key::record::{KeyRecord, Secret};
use keygate::vocabulary::key::{Prefix, Prefixes};

use super::{Maker, NOW, Shared, insert_org, new_key, update_key};

fn prefix(text: &str) -> Prefix {
    Prefix::parse(text).unwrap()
}

fn with(key: &KeyRecord, prefix: Option<&Prefix>) -> KeyRecord {
    let secrets = key.secrets.iter().map(|secret| Secret { prefix: prefix.cloned(), ..secret.clone() });
    KeyRecord { secrets: secrets.collect(), ..key.clone() }
}

/// Puts the list in place of the one before.
async fn write(store: &dyn Store, list: &Prefixes) {
    let book = store.keeper().prefixes();
    let before = book.register().await.unwrap().prefixes;
    assert_eq!(book.rewrite(before, list.clone()).await, Ok(true));
}

pub(super) async fn a_new_secret_needs_a_prefix_that_is_accepted(store: Shared) {
    let (made, first, acme) = (Maker::new(), prefix("fh"), prefix("acme"));
    let org = made.org();
    insert_org(&store, &org).await;
    let new = |prefix: Option<&Prefix>| with(&made.key(org.id, &[made.digest()]), prefix);
    let early = new(Some(&prefix("kg")));
    store.commit(new_key(&early)).await.expect("a store that names none accepts all");
    let both = Prefixes::new(first.clone(), true).with(&acme).unwrap();
    write(&*store, &both).await;
    let (kept, unnamed) = (new(Some(&acme)), new(None));
    for key in [&kept, &unnamed] {
        store.commit(new_key(key)).await.unwrap();
    }
    assert_eq!(store.import(vec![new(Some(&acme)), new(None)]).await, Ok(vec![Ok(()), Ok(())]));

    write(&*store, &both.without(&acme)).await;
    store.commit(new_key(&new(Some(&acme)))).await.unwrap_err();
    let outcomes = store.import(vec![new(None), new(Some(&acme))]).await.unwrap();
    assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
    let renamed = KeyRecord { name: "another name".to_owned(), ..kept };
    store.commit(update_key(1, &renamed)).await.expect("it has the secret already");
    let rotated = KeyRecord { secrets: new(Some(&acme)).secrets, ..renamed };
    store.commit(update_key(2, &rotated)).await.unwrap_err();

    write(&*store, &both.without(&first)).await;
    store.commit(new_key(&new(None))).await.unwrap_err();
    store.commit(new_key(&new(Some(&acme)))).await.unwrap();
}

/// A migration brings records along whose secrets ended long ago.
pub(super) async fn secrets_that_have_ended_need_none(store: Shared) {
    let (made, acme) = (Maker::new(), prefix("acme"));
    let org = made.org();
    insert_org(&store, &org).await;
    let both = Prefixes::new(prefix("fh"), true).with(&acme).unwrap();
    write(&*store, &both.without(&acme)).await;
    let key = || with(&made.key(org.id, &[made.digest(), made.digest()]), Some(&acme));
    let (mut rotated, mut revoked, mut overlaps) = (key(), key(), key());
    rotated.secrets[0].prefix = None;
    rotated.secrets[1].ends_at = Some(UnixMillis(1));
    revoked.revoked_at = Some(NOW);
    overlaps.secrets[0].prefix = None;
    overlaps.secrets[1].ends_at = Some(NOW.plus(Duration::from_secs(100 * 365 * 24 * 60 * 60)));
    let outcomes = store.import(vec![rotated, revoked, overlaps]).await.unwrap();
    assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false]);
}
