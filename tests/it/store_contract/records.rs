//! Keys and organisations: lookups, lists, changes, and the events about them.

use std::sync::Arc;

use keygate::store::events::Subject;
use keygate::store::{Change, CommitError, Committed, KeysOf, Lookup, Mutation};
use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::id::{KeyId, OrgId};
use keygate::vocabulary::key::Environment;
use keygate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};

use super::{
    Call, Heard, Maker, NOW, Shared, assert_found, event, insert, insert_org, new_key, new_org, update_key,
    update_org, with_digests,
};

pub(super) async fn an_empty_store_knows_no_key_and_says_so(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    assert!(matches!(store.lookup(digest).await, Lookup::Absent));
    assert_eq!(store.key(key.id).await, Ok(None));
    assert_eq!(store.org(org.id).await, Ok(None));
    assert_eq!(store.keys(KeysOf::All, None, 10).await, Ok(vec![]));
    assert_eq!(store.keys(KeysOf::Org(org.id), None, 10).await, Ok(vec![]));
    assert_eq!(store.orgs(None, 10).await, Ok(vec![]));
}

pub(super) async fn a_key_is_found_with_its_organisation(store: Shared) {
    let made = Maker::new();
    let (org, digests) = (made.org(), [made.digest(), made.digest()]);
    let key = made.key(org.id, &digests);
    insert_org(&store, &org).await;
    assert_eq!(store.commit(new_key(&key)).await, Ok(Committed { event: None }));
    for digest in digests {
        assert_found(&store, digest, &key, &org).await;
    }
    assert!(matches!(store.lookup(made.digest()).await, Lookup::Absent));
    assert_eq!(store.key(key.id).await, Ok(Some(Versioned { rev: 1, record: key })));
    assert_eq!(store.org(org.id).await, Ok(Some(Versioned { rev: 1, record: org })));
}

pub(super) async fn a_key_is_found_whatever_its_state(store: Shared) {
    let made = Maker::new();
    let (mut org, digest) = (made.org(), made.digest());
    let mut key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    key.revoked_at = Some(NOW);
    key.expires_at = Some(UnixMillis(1));
    org.suspended_at = Some(NOW);
    let mutation = Mutation {
        org: Some(Change::Update { rev: 1, record: org.clone() }),
        key: Some(Change::Update { rev: 1, record: key.clone() }),
        subjects: vec![Subject::Digest(digest), Subject::Org(org.id)],
        ..Mutation::default()
    };
    assert_eq!(store.commit(mutation).await, Ok(Committed { event: Some(1) }));
    assert_found(&store, digest, &key, &org).await;
}

pub(super) async fn a_key_can_come_with_its_organisation_in_one_mutation(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    assert_found(&store, digest, &key, &org).await;
}

pub(super) async fn a_key_without_an_organisation_is_refused(store: Shared) {
    let made = Maker::new();
    let (org, other, digest) = (made.org(), made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    assert_eq!(store.commit(new_key(&key)).await, Err(CommitError::Missing));
    let with_another = Mutation { org: Some(Change::Insert(other.clone())), ..new_key(&key) };
    assert_eq!(store.commit(with_another).await, Err(CommitError::Missing));
    assert!(matches!(store.lookup(digest).await, Lookup::Absent));
    assert_eq!(store.org(other.id).await, Ok(None), "the organisation that came along is not kept either");
}

pub(super) async fn a_record_is_inserted_once(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    let again = KeyRecord { name: "again".to_owned(), ..made.key(org.id, &[made.digest()]) };
    let again = KeyRecord { id: key.id, ..again };
    assert_eq!(store.commit(new_key(&again)).await, Err(CommitError::Exists));
    let same_org = OrgRecord { name: "again".to_owned(), ..org.clone() };
    assert_eq!(store.commit(new_org(&same_org)).await, Err(CommitError::Exists));
    assert!(matches!(store.lookup(again.secrets[0].digest).await, Lookup::Absent));
    assert_found(&store, digest, &key, &org).await;
}

pub(super) async fn a_digest_opens_one_key_only(store: Shared) {
    let made = Maker::new();
    let (org, taken, free) = (made.org(), made.digest(), made.digest());
    let first = made.key(org.id, &[taken]);
    insert(&store, &org, &first).await;
    let second = made.key(org.id, &[free, taken]);
    assert_eq!(store.commit(new_key(&second)).await, Err(CommitError::Exists));
    assert_eq!(store.key(second.id).await, Ok(None));
    assert!(matches!(store.lookup(free).await, Lookup::Absent));
    assert_found(&store, taken, &first, &org).await;
}

pub(super) async fn a_refused_mutation_leaves_nothing_behind(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    // The part of each that concerns the organisation would succeed.
    let renamed = OrgRecord { name: "renamed".to_owned(), ..org.clone() };
    let good_half = Some(Change::Update { rev: 1, record: renamed });
    let bad_halves = [
        (Change::Insert(key.clone()), CommitError::Exists),
        (Change::Update { rev: 2, record: key.clone() }, CommitError::Conflict),
        (Change::Update { rev: 1, record: made.key(org.id, &[digest]) }, CommitError::Missing),
    ];
    for (bad_half, refusal) in bad_halves {
        let mutation = Mutation {
            org: good_half.clone(),
            key: Some(bad_half),
            subjects: vec![Subject::Org(org.id)],
            ..Mutation::default()
        };
        // Together with valid mutations, so that their batch is committed anyway.
        let other = new_org(&made.org());
        let (refused, committed) = tokio::join!(store.commit(mutation), store.commit(other));
        assert_eq!((refused, committed), (Err(refusal), Ok(Committed { event: None })));
        assert_eq!(store.org(org.id).await, Ok(Some(Versioned { rev: 1, record: org.clone() })));
    }
}

pub(super) async fn an_update_of_what_is_not_there_is_refused(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    assert_eq!(store.commit(update_org(1, &org)).await, Err(CommitError::Missing));
    insert_org(&store, &org).await;
    assert_eq!(store.commit(update_key(1, &key)).await, Err(CommitError::Missing));
    assert!(matches!(store.lookup(digest).await, Lookup::Absent));
}

pub(super) async fn an_update_with_an_old_rev_changes_nothing(store: Shared) {
    let made = Maker::new();
    let (org, old, new) = (made.org(), made.digest(), made.digest());
    let key = made.key(org.id, &[old]);
    insert(&store, &org, &key).await;
    let renamed = KeyRecord { name: "renamed".to_owned(), ..key.clone() };
    assert_eq!(store.commit(update_key(1, &renamed)).await, Ok(Committed { event: None }));
    for rev in [0, 1, 3, u64::MAX] {
        let stale = KeyRecord { name: "stale".to_owned(), ..with_digests(&key, &[new]) };
        assert_eq!(store.commit(update_key(rev, &stale)).await, Err(CommitError::Conflict), "rev {rev}");
    }
    assert_eq!(store.key(key.id).await, Ok(Some(Versioned { rev: 2, record: renamed.clone() })));
    assert_found(&store, old, &renamed, &org).await;
    assert!(matches!(store.lookup(new).await, Lookup::Absent));
}

pub(super) async fn of_64_concurrent_updates_of_one_rev_exactly_one_wins(store: Shared) {
    const WRITERS: usize = 64;
    let made = Maker::new();
    let org = made.org();
    let key = made.key(org.id, &[made.digest()]);
    insert(&store, &org, &key).await;
    for rev in 1..=5 {
        let writers = (0..WRITERS).map(|writer| {
            let (store, name) = (Arc::clone(&store), format!("{rev} by {writer}"));
            let mine = KeyRecord { name: name.clone(), ..key.clone() };
            tokio::spawn(async move { (name, store.commit(update_key(rev, &mine)).await) })
        });
        let mut winners = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                (name, Ok(_)) => winners.push(name),
                (_, Err(refusal)) => assert_eq!(refusal, CommitError::Conflict),
            }
        }
        let now = store.key(key.id).await.unwrap().unwrap();
        assert_eq!((now.rev, vec![now.record.name]), (rev + 1, winners));
    }
}

pub(super) async fn a_key_never_changes_its_organisation_or_its_environment(store: Shared) {
    let made = Maker::new();
    let (org, other, digest) = (made.org(), made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    insert_org(&store, &other).await;
    let moved = KeyRecord { org: other.id, ..key.clone() };
    let live = KeyRecord { environment: Environment::Live, ..key.clone() };
    for changed in [moved, live] {
        assert_eq!(store.commit(update_key(1, &changed)).await, Err(CommitError::Missing));
    }
    assert_found(&store, digest, &key, &org).await;
    assert_eq!(store.keys(KeysOf::Org(other.id), None, 10).await, Ok(vec![]));
}

pub(super) async fn a_rotated_key_answers_to_its_new_digests_only(store: Shared) {
    let made = Maker::new();
    let (org, old, new) = (made.org(), made.digest(), made.digest());
    let key = made.key(org.id, &[old]);
    insert(&store, &org, &key).await;
    let overlapping = with_digests(&key, &[new, old]);
    store.commit(update_key(1, &overlapping)).await.unwrap();
    assert_found(&store, old, &overlapping, &org).await;
    assert_found(&store, new, &overlapping, &org).await;
    let rotated = with_digests(&key, &[new]);
    store.commit(update_key(2, &rotated)).await.unwrap();
    assert!(matches!(store.lookup(old).await, Lookup::Absent));
    assert_found(&store, new, &rotated, &org).await;
}

pub(super) async fn a_digest_that_was_given_up_may_be_taken(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let first = made.key(org.id, &[digest]);
    insert(&store, &org, &first).await;
    store.commit(update_key(1, &with_digests(&first, &[]))).await.unwrap();
    let second = made.key(org.id, &[digest]);
    store.commit(new_key(&second)).await.unwrap();
    assert_found(&store, digest, &second, &org).await;
}

pub(super) async fn an_update_may_not_take_the_digest_of_another_key(store: Shared) {
    let made = Maker::new();
    let (org, taken, own) = (made.org(), made.digest(), made.digest());
    let (first, second) = (made.key(org.id, &[taken]), made.key(org.id, &[own]));
    insert(&store, &org, &first).await;
    store.commit(new_key(&second)).await.unwrap();
    let greedy = with_digests(&second, &[taken]);
    assert_eq!(store.commit(update_key(1, &greedy)).await, Err(CommitError::Exists));
    assert_found(&store, taken, &first, &org).await;
    assert_found(&store, own, &second, &org).await;
}

pub(super) async fn a_creation_is_no_event(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    store.subscribe(heard.sink());
    let org = made.org();
    insert(&store, &org, &made.key(org.id, &[made.digest()])).await;
    assert_eq!(store.commit(event(org.id)).await, Ok(Committed { event: Some(1) }));
    assert_eq!(heard.all(), [Call::Reset(0), Call::Apply(1, vec![Subject::Org(org.id)])]);
}

pub(super) async fn an_event_needs_no_record(store: Shared) {
    let made = Maker::new();
    assert_eq!(store.commit(Mutation::default()).await, Ok(Committed { event: None }));
    assert_eq!(store.commit(event(made.org().id)).await, Ok(Committed { event: Some(1) }));
}

pub(super) async fn an_event_is_applied_before_its_caller_is_told(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    store.subscribe(heard.sink());
    let org = made.org();
    for seq in 1..=20 {
        assert_eq!(store.commit(event(org.id)).await, Ok(Committed { event: Some(seq) }));
        assert_eq!(heard.all().last(), Some(&Call::Apply(seq, vec![Subject::Org(org.id)])));
    }
}

pub(super) async fn events_are_contiguous_and_in_order_under_concurrent_writers(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    store.subscribe(heard.sink());
    let orgs: Vec<OrgId> = (0..300).map(|_| made.org().id).collect();
    let writers = orgs.iter().map(|&org| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { (store.commit(event(org)).await.unwrap().event.unwrap(), org) })
    });
    let mut told = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        told.push(writer.await.unwrap());
    }
    told.sort_unstable();
    assert!(told.iter().map(|(seq, _)| *seq).eq(1..=300));
    let applied = told.into_iter().map(|(seq, org)| Call::Apply(seq, vec![Subject::Org(org)]));
    assert!(std::iter::once(Call::Reset(0)).chain(applied).eq(heard.all()));
}

pub(super) async fn a_refused_mutation_is_no_event(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    store.subscribe(heard.sink());
    let org = made.org();
    let refused = Mutation { subjects: vec![Subject::Org(org.id)], ..update_org(1, &org) };
    let (refused, committed) = tokio::join!(store.commit(refused), store.commit(event(org.id)));
    assert_eq!((refused, committed), (Err(CommitError::Missing), Ok(Committed { event: Some(1) })));
    assert_eq!(heard.all(), [Call::Reset(0), Call::Apply(1, vec![Subject::Org(org.id)])]);
}

pub(super) async fn a_sink_that_subscribes_amid_writers_misses_nothing_and_hears_nothing_twice(
    store: Shared,
) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 25;
    let org = Maker::new().org().id;
    let writers = (0..WRITERS).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut late = Vec::new();
            for _ in 0..EACH {
                let heard = Heard::default();
                store.subscribe(heard.sink());
                late.push(heard);
                store.commit(event(org)).await.unwrap();
            }
            late
        })
    });
    let mut late = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        late.extend(writer.await.unwrap());
    }
    for heard in late {
        let calls = heard.all();
        let Some(Call::Reset(current)) = calls.first() else { panic!("a sink is reset first") };
        let applied = calls[1..].iter().map(|call| match call {
            Call::Apply(seq, _) => *seq,
            Call::Reset(_) => panic!("a sink is reset once"),
        });
        assert!(applied.eq(current + 1..=WRITERS * EACH), "reset at {current}");
    }
}

pub(super) async fn keys_are_listed_newest_first_and_the_pages_make_the_whole(store: Shared) {
    let made = Maker::new();
    let orgs: Vec<OrgRecord> = (0..4).map(|_| made.org()).collect();
    for org in &orgs {
        insert_org(&store, org).await;
    }
    let mut keys: Vec<KeyRecord> = Vec::new();
    // The last organisation has no keys.
    for _ in 0..23 {
        let org = orgs[made.below(3)].id;
        let key = made.key(org, &[made.digest()]);
        store.commit(new_key(&key)).await.unwrap();
        keys.push(key);
    }
    keys.sort_by_key(|key| std::cmp::Reverse(key.id));
    for org in orgs.iter().map(|org| Some(org.id)).chain([None]) {
        let expected: Vec<_> = keys.iter().filter(|key| org.is_none_or(|org| key.org == org)).collect();
        for limit in 1..=24 {
            let (mut listed, mut after) = (Vec::new(), None);
            loop {
                let of = org.map_or(KeysOf::All, KeysOf::Org);
                let page = store.keys(of, after, limit).await.unwrap();
                assert!(page.len() <= limit);
                let Some(last) = page.last() else { break };
                after = Some(last.record.id);
                listed.extend(page);
            }
            assert!(listed.iter().all(|key| key.rev == 1));
            assert!(listed.iter().map(|key| &key.record).eq(expected.iter().copied()), "{org:?} by {limit}");
        }
    }
}

pub(super) async fn organisations_are_listed_newest_first_and_the_pages_make_the_whole(store: Shared) {
    let made = Maker::new();
    let mut orgs: Vec<OrgRecord> = (0..11).map(|_| made.org()).collect();
    for org in &orgs {
        insert_org(&store, org).await;
    }
    orgs.sort_by_key(|org| std::cmp::Reverse(org.id));
    for limit in 1..=12 {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = store.orgs(after, limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.record.id);
            listed.extend(page.into_iter().map(|org| org.record));
        }
        assert_eq!(listed, orgs, "by {limit}");
    }
}

pub(super) async fn a_cursor_need_not_name_a_record(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    let key = made.key(org.id, &[made.digest()]);
    insert(&store, &org, &key).await;
    let (oldest, newest) = ([0; 16], [u8::MAX; 16]);
    for of in [None, Some(org.id), Some(OrgId::from_bytes(oldest)), Some(OrgId::from_bytes(newest))] {
        let everything = if of.is_none_or(|of| of == org.id) { vec![key.id] } else { vec![] };
        for (after, expected) in [(oldest, vec![]), (newest, everything)] {
            let listed = of.map_or(KeysOf::All, KeysOf::Org);
            let listed = store.keys(listed, Some(KeyId::from_bytes(after)), 10).await.unwrap();
            assert_eq!(listed.into_iter().map(|key| key.record.id).collect::<Vec<_>>(), expected);
        }
    }
    assert_eq!(store.orgs(Some(OrgId::from_bytes(oldest)), 10).await, Ok(vec![]));
    assert_eq!(store.orgs(Some(OrgId::from_bytes(newest)), 10).await.unwrap().len(), 1);
}

pub(super) async fn no_record_is_listed_where_none_is_asked_for(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    insert(&store, &org, &made.key(org.id, &[])).await;
    assert_eq!(store.keys(KeysOf::All, None, 0).await, Ok(vec![]));
    assert_eq!(store.keys(KeysOf::Org(org.id), None, 0).await, Ok(vec![]));
    assert_eq!(store.orgs(None, 0).await, Ok(vec![]));
}
