//! What every store promises, run on every back end; below it what only the embedded one does. What only
//! Redis does is in `redis_store`.
//!
//! A rule is a function over an empty store. `contract!` lists the rules once; a back end adds its
//! `holds_for!`.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use keygate::clock::UnixMillis;
use keygate::id::{IdSource, KeyId, OrgId};
use keygate::key::record::{KeyRecord, OrgRecord, Sealer, Secret, Versioned};
use keygate::key::scope::ScopeSet;
use keygate::key::{Digest, Environment, Pepper};
use keygate::store::embedded::{Embedded, OpenError, Settings};
use keygate::store::events::{EventSink, Seq, Subject};
use keygate::store::redis::Redis;
use keygate::store::{Change, CommitError, Committed, Lookup, Mutation, Store};

use tokio::runtime::Handle;

use crate::harness::RedisServer;

pub(crate) type Shared = Arc<dyn Store>;
/// Keeps alive what the store lives on.
type Guard = Box<dyn Any>;

macro_rules! contract {
    ($($rule:ident)*) => {
        /// Instantiates every rule of the contract for one back end.
        macro_rules! holds_for {
            ($backend:ident, $open:path) => {
                mod $backend {
                    $(
                        #[tokio::test]
                        async fn $rule() {
                            let (store, _guard) = $open().await;
                            super::$rule(store).await;
                        }
                    )*
                }
            };
        }
    };
}

contract! {
    an_empty_store_knows_no_key_and_says_so
    a_key_is_found_with_its_organisation
    a_key_is_found_whatever_its_state
    a_key_can_come_with_its_organisation_in_one_mutation
    a_key_without_an_organisation_is_refused
    a_record_is_inserted_once
    a_digest_opens_one_key_only
    a_refused_mutation_leaves_nothing_behind
    an_update_of_what_is_not_there_is_refused
    an_update_with_an_old_rev_changes_nothing
    of_64_concurrent_updates_of_one_rev_exactly_one_wins
    a_key_never_changes_its_organisation_or_its_environment
    a_rotated_key_answers_to_its_new_digests_only
    a_digest_that_was_given_up_may_be_taken
    an_update_may_not_take_the_digest_of_another_key
    a_creation_is_no_event
    an_event_needs_no_record
    an_event_is_applied_before_its_caller_is_told
    events_are_contiguous_and_in_order_under_concurrent_writers
    a_refused_mutation_is_no_event
    a_sink_that_subscribes_amid_writers_misses_nothing_and_hears_nothing_twice
    keys_are_listed_newest_first_and_the_pages_make_the_whole
    organisations_are_listed_newest_first_and_the_pages_make_the_whole
    a_cursor_need_not_name_a_record
    no_record_is_listed_where_none_is_asked_for
}

holds_for!(embedded, super::open_embedded);
holds_for!(redis, super::open_redis);
holds_for!(redis_with_a_pepper, super::open_redis_with_a_pepper);

async fn open_embedded() -> (Shared, Guard) {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(&at(directory.path()), Sealer::default()).unwrap();
    (Arc::new(store), Box::new(directory))
}

async fn open_redis() -> (Shared, Guard) {
    open_redis_with(Sealer::default()).await
}

async fn open_redis_with_a_pepper() -> (Shared, Guard) {
    open_redis_with(Sealer::new(Some(Pepper::new(vec![7; 32]).unwrap()))).await
}

async fn open_redis_with(sealer: Sealer) -> (Shared, Guard) {
    let server = RedisServer::start();
    let store = Redis::open(server.settings(), sealer, Handle::current()).unwrap();
    assert_eq!(store.keeper().begin().await, Ok(true));
    (Arc::new(store), Box::new(server))
}

async fn an_empty_store_knows_no_key_and_says_so(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    assert!(matches!(store.lookup(digest).await, Lookup::Absent));
    assert_eq!(store.key(key.id).await, Ok(None));
    assert_eq!(store.org(org.id).await, Ok(None));
    assert_eq!(store.keys(None, None, 10).await, Ok(vec![]));
    assert_eq!(store.keys(Some(org.id), None, 10).await, Ok(vec![]));
    assert_eq!(store.orgs(None, 10).await, Ok(vec![]));
}

async fn a_key_is_found_with_its_organisation(store: Shared) {
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

async fn a_key_is_found_whatever_its_state(store: Shared) {
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

async fn a_key_can_come_with_its_organisation_in_one_mutation(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    assert_found(&store, digest, &key, &org).await;
}

async fn a_key_without_an_organisation_is_refused(store: Shared) {
    let made = Maker::new();
    let (org, other, digest) = (made.org(), made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    assert_eq!(store.commit(new_key(&key)).await, Err(CommitError::Missing));
    let with_another = Mutation { org: Some(Change::Insert(other.clone())), ..new_key(&key) };
    assert_eq!(store.commit(with_another).await, Err(CommitError::Missing));
    assert!(matches!(store.lookup(digest).await, Lookup::Absent));
    assert_eq!(store.org(other.id).await, Ok(None), "the organisation that came along is not kept either");
}

async fn a_record_is_inserted_once(store: Shared) {
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

async fn a_digest_opens_one_key_only(store: Shared) {
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

async fn a_refused_mutation_leaves_nothing_behind(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    // The organisation's half of each would go through.
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
        // In good company, so that a batch with it is committed all the same.
        let other = new_org(&made.org());
        let (refused, committed) = tokio::join!(store.commit(mutation), store.commit(other));
        assert_eq!((refused, committed), (Err(refusal), Ok(Committed { event: None })));
        assert_eq!(store.org(org.id).await, Ok(Some(Versioned { rev: 1, record: org.clone() })));
    }
}

async fn an_update_of_what_is_not_there_is_refused(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    assert_eq!(store.commit(update_org(1, &org)).await, Err(CommitError::Missing));
    insert_org(&store, &org).await;
    assert_eq!(store.commit(update_key(1, &key)).await, Err(CommitError::Missing));
    assert!(matches!(store.lookup(digest).await, Lookup::Absent));
}

async fn an_update_with_an_old_rev_changes_nothing(store: Shared) {
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

async fn of_64_concurrent_updates_of_one_rev_exactly_one_wins(store: Shared) {
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

async fn a_key_never_changes_its_organisation_or_its_environment(store: Shared) {
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
    assert_eq!(store.keys(Some(other.id), None, 10).await, Ok(vec![]));
}

async fn a_rotated_key_answers_to_its_new_digests_only(store: Shared) {
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

async fn a_digest_that_was_given_up_may_be_taken(store: Shared) {
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let first = made.key(org.id, &[digest]);
    insert(&store, &org, &first).await;
    store.commit(update_key(1, &with_digests(&first, &[]))).await.unwrap();
    let second = made.key(org.id, &[digest]);
    store.commit(new_key(&second)).await.unwrap();
    assert_found(&store, digest, &second, &org).await;
}

async fn an_update_may_not_take_the_digest_of_another_key(store: Shared) {
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

async fn a_creation_is_no_event(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    store.subscribe(heard.sink());
    let org = made.org();
    insert(&store, &org, &made.key(org.id, &[made.digest()])).await;
    assert_eq!(store.commit(event(org.id)).await, Ok(Committed { event: Some(1) }));
    assert_eq!(heard.all(), [Call::Reset(0), Call::Apply(1, vec![Subject::Org(org.id)])]);
}

async fn an_event_needs_no_record(store: Shared) {
    let made = Maker::new();
    assert_eq!(store.commit(Mutation::default()).await, Ok(Committed { event: None }));
    assert_eq!(store.commit(event(made.org().id)).await, Ok(Committed { event: Some(1) }));
}

async fn an_event_is_applied_before_its_caller_is_told(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    store.subscribe(heard.sink());
    let org = made.org();
    for seq in 1..=20 {
        assert_eq!(store.commit(event(org.id)).await, Ok(Committed { event: Some(seq) }));
        assert_eq!(heard.all().last(), Some(&Call::Apply(seq, vec![Subject::Org(org.id)])));
    }
}

async fn events_are_contiguous_and_in_order_under_concurrent_writers(store: Shared) {
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

async fn a_refused_mutation_is_no_event(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    store.subscribe(heard.sink());
    let org = made.org();
    let refused = Mutation { subjects: vec![Subject::Org(org.id)], ..update_org(1, &org) };
    let (refused, committed) = tokio::join!(store.commit(refused), store.commit(event(org.id)));
    assert_eq!((refused, committed), (Err(CommitError::Missing), Ok(Committed { event: Some(1) })));
    assert_eq!(heard.all(), [Call::Reset(0), Call::Apply(1, vec![Subject::Org(org.id)])]);
}

async fn a_sink_that_subscribes_amid_writers_misses_nothing_and_hears_nothing_twice(store: Shared) {
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

async fn keys_are_listed_newest_first_and_the_pages_make_the_whole(store: Shared) {
    let made = Maker::new();
    let orgs: Vec<OrgRecord> = (0..4).map(|_| made.org()).collect();
    for org in &orgs {
        insert_org(&store, org).await;
    }
    let mut keys: Vec<KeyRecord> = Vec::new();
    // The last organisation has none.
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
                let page = store.keys(org, after, limit).await.unwrap();
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

async fn organisations_are_listed_newest_first_and_the_pages_make_the_whole(store: Shared) {
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

async fn a_cursor_need_not_name_a_record(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    let key = made.key(org.id, &[made.digest()]);
    insert(&store, &org, &key).await;
    let (oldest, newest) = ([0; 16], [u8::MAX; 16]);
    for of in [None, Some(org.id), Some(OrgId::from_bytes(oldest)), Some(OrgId::from_bytes(newest))] {
        let everything = if of.is_none_or(|of| of == org.id) { vec![key.id] } else { vec![] };
        for (after, expected) in [(oldest, vec![]), (newest, everything)] {
            let listed = store.keys(of, Some(KeyId::from_bytes(after)), 10).await.unwrap();
            assert_eq!(listed.into_iter().map(|key| key.record.id).collect::<Vec<_>>(), expected);
        }
    }
    assert_eq!(store.orgs(Some(OrgId::from_bytes(oldest)), 10).await, Ok(vec![]));
    assert_eq!(store.orgs(Some(OrgId::from_bytes(newest)), 10).await.unwrap().len(), 1);
}

async fn no_record_is_listed_where_none_is_asked_for(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    insert(&store, &org, &made.key(org.id, &[])).await;
    assert_eq!(store.keys(None, None, 0).await, Ok(vec![]));
    assert_eq!(store.keys(Some(org.id), None, 0).await, Ok(vec![]));
    assert_eq!(store.orgs(None, 0).await, Ok(vec![]));
}

/// What only a file can do, or suffer.
mod embedded_file {
    use super::*;

    #[tokio::test]
    async fn a_file_opened_again_has_everything_and_its_events_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let made = Maker::new();
        let (org, digest) = (made.org(), made.digest());
        let key = made.key(org.id, &[digest]);
        {
            let store = open(directory.path());
            insert(&store, &org, &key).await;
            assert_eq!(store.commit(event(org.id)).await, Ok(Committed { event: Some(1) }));
        }
        let (store, heard) = (open(directory.path()), Heard::default());
        store.subscribe(heard.sink());
        assert_found(&store, digest, &key, &org).await;
        assert_eq!(store.keys(Some(org.id), None, 10).await, Ok(vec![Versioned { rev: 1, record: key }]));
        assert_eq!(store.commit(event(org.id)).await, Ok(Committed { event: Some(2) }));
        assert_eq!(heard.all(), [Call::Reset(1), Call::Apply(2, vec![Subject::Org(org.id)])]);
    }

    #[tokio::test]
    async fn a_mutation_whose_caller_hung_up_is_carried_out_before_the_file_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let made = Maker::new();
        let orgs: Vec<OrgRecord> = (0..50).map(|_| made.org()).collect();
        {
            let store = open(directory.path());
            for org in &orgs {
                let mut commit = store.commit(new_org(org));
                poll_fn(|context| Poll::Ready(commit.as_mut().poll(context).is_ready())).await;
            }
        }
        let kept = open(directory.path()).orgs(None, 100).await.unwrap();
        let kept: BTreeSet<OrgId> = kept.into_iter().map(|org| org.record.id).collect();
        assert_eq!(kept, orgs.iter().map(|org| org.id).collect());
    }

    #[tokio::test]
    async fn under_another_pepper_a_key_is_unavailable_rather_than_absent() {
        let directory = tempfile::tempdir().unwrap();
        let sealer = |byte| Sealer::new(Some(Pepper::new(vec![byte; 32]).unwrap()));
        let open = |sealer| -> Shared { Arc::new(Embedded::open(&at(directory.path()), sealer).unwrap()) };
        let made = Maker::new();
        let (org, digest) = (made.org(), made.digest());
        let key = made.key(org.id, &[digest]);
        insert(&open(sealer(1)), &org, &key).await;
        for other in [sealer(2), Sealer::default()] {
            let store = open(other);
            assert!(matches!(store.lookup(digest).await, Lookup::Unavailable(_)));
            assert!(store.key(key.id).await.is_err() && store.org(org.id).await.is_err());
            assert!(
                store.keys(None, None, 1).await.is_err() && store.keys(Some(org.id), None, 1).await.is_err()
            );
            assert!(matches!(store.commit(update_key(1, &key)).await, Err(CommitError::Fault(_))));
        }
        assert_found(&open(sealer(1)), digest, &key, &org).await;
    }

    #[tokio::test]
    async fn what_the_file_promises_and_has_not_is_unavailable_rather_than_absent() {
        const ORGS: redb::TableDefinition<'_, &[u8; 16], &[u8]> = redb::TableDefinition::new("orgs");
        const KEYS: redb::TableDefinition<'_, &[u8; 16], &[u8]> = redb::TableDefinition::new("keys");
        const DIGESTS: redb::TableDefinition<'_, &[u8; 32], &[u8; 16]> =
            redb::TableDefinition::new("digests");
        type Harm = fn(&redb::WriteTransaction, &KeyRecord, &KeyRecord);
        let harms: [Harm; 4] = [
            |file, key, _| drop(file.open_table(KEYS).unwrap().remove(&key.id.to_bytes()).unwrap()),
            |file, key, _| drop(file.open_table(ORGS).unwrap().remove(&key.org.to_bytes()).unwrap()),
            |file, key, other| {
                let (digest, other) = (key.secrets[0].digest, other.id.to_bytes());
                file.open_table(DIGESTS).unwrap().insert(digest.as_bytes(), &other).unwrap();
            },
            |file, key, other| {
                let mut keys = file.open_table(KEYS).unwrap();
                let moved = keys.remove(&other.id.to_bytes()).unwrap().unwrap().value().to_vec();
                keys.insert(&key.id.to_bytes(), &moved[..]).unwrap();
            },
        ];
        for harm in harms {
            let directory = tempfile::tempdir().unwrap();
            let made = Maker::new();
            let (org, digest) = (made.org(), made.digest());
            let (key, other) = (made.key(org.id, &[digest]), made.key(org.id, &[made.digest()]));
            {
                let store = open(directory.path());
                insert(&store, &org, &key).await;
                store.commit(new_key(&other)).await.unwrap();
            }
            let file = redb::Database::open(at(directory.path()).path).unwrap();
            let transaction = file.begin_write().unwrap();
            harm(&transaction, &key, &other);
            transaction.commit().unwrap();
            drop(file);
            assert!(matches!(open(directory.path()).lookup(digest).await, Lookup::Unavailable(_)));
        }
    }

    #[test]
    fn the_file_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = at(directory.path()).path;
        drop(open(directory.path()));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            let refused = refusal(&file);
            assert!(matches!(refused, OpenError::Exposed { mode: found, .. } if found == mode));
            assert!(refused.to_string().contains(&format!("`chmod 600 {}`", file.display())));
            let unchanged = std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
            assert_eq!(unchanged, mode, "nothing is tightened silently");
        }
    }

    #[test]
    fn a_file_in_use_is_said_to_be_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        assert!(matches!(refusal(&at(directory.path()).path), OpenError::InUse { .. }));
        drop(store);
        open(directory.path());
    }

    #[test]
    fn a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let refused = refusal(&directory.path().join("nowhere/keygate.redb"));
        assert!(matches!(refused, OpenError::NoDirectory { .. }));
        assert!(refused.to_string().contains(&directory.path().join("nowhere").display().to_string()));
    }

    #[test]
    fn what_cannot_be_opened_as_a_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(refusal(directory.path()), OpenError::Unreadable { .. }));
    }

    #[test]
    fn what_is_no_keygate_store_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = at(directory.path()).path;
        for garbage in [&b"x"[..], b"redb", &[0; 4096], &[b'#'; 100_000]] {
            write(&file, garbage);
            assert!(matches!(refusal(&file), OpenError::NotAStore { .. }));
            assert_eq!(std::fs::read(&file).unwrap(), garbage);
        }
        std::fs::remove_file(&file).unwrap();
        let foreign = redb::Database::create(&file).unwrap();
        let transaction = foreign.begin_write().unwrap();
        let table = redb::TableDefinition::<u64, u64>::new("meta");
        transaction.open_table(table).unwrap().insert(1, 1).unwrap();
        transaction.commit().unwrap();
        drop(foreign);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let before = std::fs::read(&file).unwrap();
        assert!(matches!(refusal(&file), OpenError::NotAStore { .. }));
        assert!(std::fs::read(&file).unwrap() == before);
    }

    #[test]
    fn a_store_of_a_newer_schema_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = at(directory.path()).path;
        drop(open(directory.path()));
        let newer = redb::Database::open(&file).unwrap();
        let transaction = newer.begin_write().unwrap();
        let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
        transaction.open_table(meta).unwrap().insert("schema", &2_u64.to_be_bytes()[..]).unwrap();
        transaction.commit().unwrap();
        drop(newer);
        let before = std::fs::read(&file).unwrap();
        assert!(matches!(refusal(&file), OpenError::NewerSchema { found: 2, .. }));
        assert!(std::fs::read(&file).unwrap() == before);
    }

    #[tokio::test]
    async fn a_file_cut_short_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = at(directory.path()).path;
        for whole in filled(directory.path()).await {
            for kept in (10..whole.len()).step_by(1500) {
                write(&file, &whole[..kept]);
                let refused = refusal(&file);
                assert!(matches!(refused, OpenError::Damaged { .. }), "{kept}: {refused}");
                assert!(std::fs::read(&file).unwrap() == whole[..kept], "{kept}");
            }
        }
    }

    /// A changed byte is found, or does not matter: most of a page may be unused.
    #[tokio::test]
    async fn a_file_with_a_changed_byte_is_refused_and_left_alone_or_has_everything() {
        let directory = tempfile::tempdir().unwrap();
        let file = at(directory.path()).path;
        let (mut rng, mut refused) = (fastrand::Rng::with_seed(5), 0);
        for whole in filled(directory.path()).await {
            for case in 0..150 {
                const HEADER: usize = 320;
                let byte = rng.usize(..if case % 2 == 0 { HEADER } else { whole.len() });
                let mut changed = whole.clone();
                changed[byte] ^= 1 << rng.u32(..8);
                write(&file, &changed);
                match Embedded::open(&at(directory.path()), Sealer::default()) {
                    Ok(store) => {
                        assert_eq!(store.keys(None, None, 1000).await.unwrap().len(), KEYS, "{byte}");
                    }
                    Err(_) => {
                        refused += 1;
                        assert!(std::fs::read(&file).unwrap() == changed, "{byte}");
                    }
                }
            }
        }
        assert!(refused > 30, "{refused}");
    }

    #[tokio::test]
    async fn a_store_left_by_a_crash_opens_with_everything() {
        let directory = tempfile::tempdir().unwrap();
        let [crashed, _] = filled(directory.path()).await;
        write(&at(directory.path()).path, &crashed);
        assert_eq!(open(directory.path()).keys(None, None, 1000).await.unwrap().len(), KEYS);
    }

    const KEYS: usize = 40;

    /// The bytes of a store with some keys, as a crash after the last commit leaves them, and when it was
    /// closed.
    async fn filled(directory: &Path) -> [Vec<u8>; 2] {
        let store = open(directory);
        let made = Maker::new();
        let org = made.org();
        insert_org(&store, &org).await;
        for _ in 0..KEYS {
            store.commit(new_key(&made.key(org.id, &[made.digest()]))).await.unwrap();
        }
        let file = at(directory).path;
        let crashed = std::fs::read(&file).unwrap();
        drop(store);
        [crashed, std::fs::read(&file).unwrap()]
    }

    fn open(directory: &Path) -> Shared {
        Arc::new(Embedded::open(&at(directory), Sealer::default()).unwrap())
    }

    fn refusal(path: &Path) -> OpenError {
        let refused = Embedded::open(&Settings { path: path.to_owned() }, Sealer::default()).unwrap_err();
        assert!(refused.to_string().contains(&path.display().to_string()), "{refused}");
        refused
    }

    fn write(path: &PathBuf, bytes: &[u8]) {
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    }
}

fn at(directory: &Path) -> Settings {
    Settings { path: directory.join("keygate.redb") }
}

pub(crate) const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

/// Makes records that repeat from run to run.
pub(crate) struct Maker {
    ids: RefCell<IdSource>,
    rng: RefCell<fastrand::Rng>,
}

impl Maker {
    pub(crate) fn new() -> Self {
        Self { ids: IdSource::seeded(11).into(), rng: fastrand::Rng::with_seed(12).into() }
    }

    pub(crate) fn org(&self) -> OrgRecord {
        let id = OrgId::draw(&mut self.ids.borrow_mut(), self.time());
        OrgRecord {
            id,
            name: "an organisation".to_owned(),
            created_at: NOW,
            suspended_at: None,
            pending: false,
            email: None,
        }
    }

    pub(crate) fn key(&self, org: OrgId, digests: &[Digest]) -> KeyRecord {
        let key = KeyRecord {
            id: KeyId::draw(&mut self.ids.borrow_mut(), self.time()),
            org,
            name: "a key".to_owned(),
            environment: Environment::Test,
            scopes: ScopeSet::default(),
            secrets: Vec::new(),
            created_at: NOW,
            created_by: "test".to_owned(),
            expires_at: None,
            disabled_at: None,
            revoked_at: None,
            allowed_addresses: Vec::new(),
            owner: None,
            note: None,
        };
        with_digests(&key, digests)
    }

    pub(crate) fn digest(&self) -> Digest {
        let mut bytes = [0; 32];
        self.rng.borrow_mut().fill(&mut bytes);
        Digest::from_bytes(bytes)
    }

    pub(crate) fn below(&self, end: usize) -> usize {
        self.rng.borrow_mut().usize(..end)
    }

    /// Out of order, and not always another.
    pub(crate) fn time(&self) -> UnixMillis {
        UnixMillis(NOW.0 + self.below(8) as u64)
    }
}

pub(crate) fn with_digests(key: &KeyRecord, digests: &[Digest]) -> KeyRecord {
    let secret = |digest: &Digest| Secret { digest: *digest, last_four: "wxyz".to_owned(), ends_at: None };
    KeyRecord { secrets: digests.iter().map(secret).collect(), ..key.clone() }
}

pub(crate) fn new_org(org: &OrgRecord) -> Mutation {
    Mutation { org: Some(Change::Insert(org.clone())), ..Mutation::default() }
}

pub(crate) fn new_key(key: &KeyRecord) -> Mutation {
    Mutation { key: Some(Change::Insert(key.clone())), ..Mutation::default() }
}

pub(crate) fn update_org(rev: u64, org: &OrgRecord) -> Mutation {
    Mutation { org: Some(Change::Update { rev, record: org.clone() }), ..Mutation::default() }
}

pub(crate) fn update_key(rev: u64, key: &KeyRecord) -> Mutation {
    Mutation { key: Some(Change::Update { rev, record: key.clone() }), ..Mutation::default() }
}

pub(crate) fn event(org: OrgId) -> Mutation {
    Mutation { subjects: vec![Subject::Org(org)], ..Mutation::default() }
}

pub(crate) async fn insert_org(store: &Shared, org: &OrgRecord) {
    assert_eq!(store.commit(new_org(org)).await, Ok(Committed { event: None }));
}

/// A key and its organisation, in one mutation.
pub(crate) async fn insert(store: &Shared, org: &OrgRecord, key: &KeyRecord) {
    let both = Mutation { org: Some(Change::Insert(org.clone())), ..new_key(key) };
    assert_eq!(store.commit(both).await, Ok(Committed { event: None }));
}

pub(crate) async fn assert_found(store: &Shared, digest: Digest, key: &KeyRecord, org: &OrgRecord) {
    match store.lookup(digest).await {
        Lookup::Found(found) => assert_eq!((&found.key, &found.org), (key, org)),
        other => panic!("{other:?}"),
    }
}

/// What a sink was told, in order.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<Call>>>);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    Reset(Seq),
    Apply(Seq, Vec<Subject>),
}

impl Heard {
    pub(crate) fn sink(&self) -> Arc<dyn EventSink> {
        Arc::new(self.clone())
    }

    pub(crate) fn all(&self) -> Vec<Call> {
        self.0.lock().unwrap().clone()
    }
}

impl EventSink for Heard {
    fn apply(&self, seq: Seq, subjects: &[Subject]) {
        self.0.lock().unwrap().push(Call::Apply(seq, subjects.to_vec()));
    }

    fn reset(&self, seq: Seq) {
        self.0.lock().unwrap().push(Call::Reset(seq));
    }
}
