//! The parts of a mutation beside its records: all of them are written, or none.

use std::sync::Arc;

use keygate::store::answers::KeptAnswer;
use keygate::store::outbox::News;
use keygate::store::{Change, CommitError, Committed, EmailClaim, KeysOf, Lookup, Mutation, Seen};
use keygate::vocabulary::audit::{Chain, Ends, Link, Trail};
use keygate::vocabulary::key::record::{KeyRecord, OrgRecord};

use super::{
    Call, Heard, Maker, NOW, Shared, assert_found, insert, insert_org, inserted, new_org, only_audit,
    update_key, update_org, with_every_part,
};

const MANY: usize = 64;

pub(super) async fn a_mutation_with_every_part_happens_as_a_whole(store: Shared) {
    let (made, chain, heard) = (Maker::new(), Chain::default(), Heard::default());
    store.subscribe(heard.sink());
    let mut after = Link::ORIGIN;
    for seq in 1..=3 {
        let mutation = with_every_part(&made, &chain, Trail::Operator, after);
        assert_eq!(store.commit(mutation.clone()).await, Ok(Committed { event: Some(seq) }));
        assert_all_there(&store, &mutation).await;
        assert_eq!(heard.all().last(), Some(&Call::Apply(seq, mutation.subjects)));
        after = mutation.audit.unwrap().entry.link;
    }
}

pub(super) async fn a_refused_mutation_leaves_nothing_of_any_part(store: Shared) {
    let (made, chain, heard) = (Maker::new(), Chain::default(), Heard::default());
    store.subscribe(heard.sink());
    let (org, taken) = (made.org(), made.digest());
    let key = made.key(org.id, &[taken]);
    insert(&store, &org, &key).await;
    store.commit(update_key(1, &key)).await.unwrap();
    let before = with_every_part(&made, &chain, Trail::Operator, Link::ORIGIN);
    store.commit(before.clone()).await.unwrap();
    let told = heard.all();
    let after = before.audit.as_ref().unwrap().entry.link;

    type Spoil<'s> = &'s dyn Fn(&mut Mutation);
    let conflicts = |seen| move |mutation: &mut Mutation| mutation.seen.push(seen);
    let harms: [(&str, CommitError, Spoil<'_>); 10] = [
        ("an answer is kept", CommitError::Answered, &|mutation| mutation.answer.clone_from(&before.answer)),
        ("the address is taken", CommitError::EmailTaken, &|mutation| mutation.email = before.email),
        ("a key changed", CommitError::Conflict, &conflicts(Seen::Key { id: key.id, rev: 1 })),
        (
            "an organisation is gone",
            CommitError::Conflict,
            &conflicts(Seen::Org { id: made.org().id, rev: 1 }),
        ),
        ("the organisation is there", CommitError::Exists, &|mutation| {
            mutation.org = Some(Change::Insert(org.clone()));
        }),
        ("the organisation changed", CommitError::Conflict, &|mutation| {
            mutation.org = Some(Change::Update { rev: 2, record: org.clone() });
        }),
        ("the organisation is not there", CommitError::Missing, &|mutation| mutation.org = None),
        ("a digest is taken", CommitError::Exists, &|mutation| {
            new_key_of(mutation).secrets[1].digest = taken;
        }),
        ("the key is there", CommitError::Exists, &|mutation| new_key_of(mutation).id = key.id),
        ("the trail went on", CommitError::Conflict, &|mutation| {
            let append = mutation.audit.as_mut().unwrap();
            *append = chain.extend(append.trail, Link::ORIGIN, append.entry.text.clone());
        }),
    ];
    for (harm, refusal, spoil) in harms {
        let good = with_every_part(&made, &chain, Trail::Operator, after);
        let mut bad = good.clone();
        spoil(&mut bad);
        // Together with valid mutations, so that their batch is committed anyway.
        let (refused, committed) = tokio::join!(store.commit(bad), store.commit(new_org(&made.org())));
        assert_eq!((refused, committed), (Err(refusal), Ok(Committed { event: None })), "{harm}");
        assert_nothing_there(&store, &good, after, harm).await;
        assert_eq!(heard.all(), told, "{harm}");
    }
    // None of them reserves its address, its answer or its place in the trail.
    let good = with_every_part(&made, &chain, Trail::Operator, after);
    assert_eq!(store.commit(good.clone()).await, Ok(Committed { event: Some(2) }));
    assert_all_there(&store, &good).await;
    assert_all_there(&store, &Mutation { audit: None, ..before }).await;
}

fn new_key_of(mutation: &mut Mutation) -> &mut KeyRecord {
    match mutation.key.as_mut() {
        Some(Change::Insert(key)) => key,
        _ => panic!("a mutation with every part inserts a key"),
    }
}

/// Its visible parts. Whether its address is reserved shows when another mutation needs it.
async fn assert_all_there(store: &Shared, mutation: &Mutation) {
    let (org, key) = inserted(mutation);
    for secret in &key.secrets {
        assert_found(store, secret.digest, key, org).await;
    }
    let KeptAnswer { index, sealed, .. } = mutation.answer.clone().unwrap();
    assert_eq!(store.answers().find(index, NOW).await, Ok(Some(sealed)));
    if let Some(append) = &mutation.audit {
        assert_eq!(store.trails().ends(append.trail).await.unwrap().head, append.entry.link);
        assert_eq!(store.trails().entries(append.trail, None, 1).await, Ok(vec![append.entry.clone()]));
    }
    assert!(due(store).await.contains(mutation.news.as_ref().unwrap()));
    let again = Mutation { email: mutation.email, ..Mutation::default() };
    assert_eq!(store.commit(again).await, Err(CommitError::EmailTaken));
}

/// `good` is the data that would have been written.
async fn assert_nothing_there(store: &Shared, good: &Mutation, head: Link, why: &str) {
    let (org, key) = inserted(good);
    assert_eq!(store.org(org.id).await, Ok(None), "{why}");
    assert_eq!(store.key(key.id).await, Ok(None), "{why}");
    for secret in &key.secrets {
        assert!(matches!(store.lookup(secret.digest).await, Lookup::Absent), "{why}");
    }
    assert_eq!(store.keys(KeysOf::Org(org.id), None, 1).await, Ok(vec![]), "{why}");
    assert!(
        store.orgs(None, usize::MAX).await.unwrap().iter().all(|listed| listed.record.id != org.id),
        "{why}"
    );
    assert_eq!(store.answers().find(good.answer.as_ref().unwrap().index, NOW).await, Ok(None), "{why}");
    let trail = good.audit.as_ref().unwrap().trail;
    assert_eq!(store.trails().ends(trail).await.unwrap().head, head, "{why}");
    let newest = store.trails().entries(trail, None, 1).await.unwrap();
    assert_eq!(newest.first().map_or(Link::ORIGIN, |entry| entry.link), head, "{why}");
    assert!(!due(store).await.iter().any(|news| news.org == org.id), "{why}");
}

/// Notifications that are due; they stay due.
async fn due(store: &Shared) -> Vec<News> {
    store.outbox().claim(NOW, NOW, 1000).await.unwrap()
}

pub(super) async fn what_is_refused_for_good_is_said_first(store: Shared) {
    let (made, chain) = (Maker::new(), Chain::default());
    let first = with_every_part(&made, &chain, Trail::Operator, Link::ORIGIN);
    store.commit(first.clone()).await.unwrap();
    let (org, key) = inserted(&first);
    for stale in [update_key(7, key), update_key(1, &made.key(org.id, &[])), update_org(7, org)] {
        let stale = Mutation { audit: first.audit.clone(), ..stale };
        let taken = Mutation { email: first.email, ..stale.clone() };
        let answered = Mutation { answer: first.answer.clone(), ..taken.clone() };
        assert!(matches!(store.commit(stale).await, Err(CommitError::Conflict | CommitError::Missing)));
        assert_eq!(store.commit(taken).await, Err(CommitError::EmailTaken));
        assert_eq!(store.commit(answered).await, Err(CommitError::Answered));
    }
}

pub(super) async fn of_64_concurrent_claims_of_one_email_exactly_one_wins(store: Shared) {
    let made = Maker::new();
    for index in [[1; 32], [2; 32]] {
        let signups = (0..MANY).map(|_| {
            let (store, org) = (Arc::clone(&store), made.org());
            let email = Some(EmailClaim { index, before: None, org: org.id });
            tokio::spawn(async move { store.commit(Mutation { email, ..new_org(&org) }).await })
        });
        assert_one_of_many(signups.collect(), &CommitError::EmailTaken).await;
    }
    assert_eq!(store.orgs(None, usize::MAX).await.unwrap().len(), 2);
}

async fn assert_one_of_many(
    all: Vec<tokio::task::JoinHandle<Result<Committed, CommitError>>>,
    refusal: &CommitError,
) {
    let mut winners = 0;
    for one in all {
        match one.await.unwrap() {
            Ok(_) => winners += 1,
            Err(refused) => assert_eq!(&refused, refusal),
        }
    }
    assert_eq!(winners, 1);
}

pub(super) async fn of_64_concurrent_answers_under_one_index_exactly_one_is_kept(store: Shared) {
    let made = Maker::new();
    let index = made.digest();
    let requests = (0..MANY).map(|n| {
        let (store, org) = (Arc::clone(&store), OrgRecord { name: n.to_string(), ..made.org() });
        let answer = Some(KeptAnswer { sealed: org.name.clone().into(), ..made.answer(index) });
        tokio::spawn(async move { store.commit(Mutation { answer, ..new_org(&org) }).await })
    });
    assert_one_of_many(requests.collect(), &CommitError::Answered).await;
    let orgs = store.orgs(None, usize::MAX).await.unwrap();
    let kept = store.answers().find(*index.as_bytes(), NOW).await.unwrap().unwrap();
    assert_eq!(orgs.into_iter().map(|org| org.record.name.into_bytes()).collect::<Vec<_>>(), [kept]);
}

pub(super) async fn of_64_concurrent_appends_all_get_in_and_the_chain_holds(store: Shared) {
    let (trail, chain) = (Trail::Operator, Chain::default());
    let writers = (0..MANY).map(|writer| {
        let (store, chain) = (Arc::clone(&store), chain.clone());
        tokio::spawn(async move {
            let mut conflicts = 0;
            loop {
                let head = store.trails().ends(trail).await.unwrap().head;
                let append = chain.extend(trail, head, writer.to_string().into());
                match store.commit(only_audit(append)).await {
                    Ok(_) => return conflicts,
                    Err(refused) => assert_eq!(refused, CommitError::Conflict),
                }
                conflicts += 1;
            }
        })
    });
    let mut conflicts = 0;
    for writer in writers.collect::<Vec<_>>() {
        conflicts += writer.await.unwrap();
    }
    assert!(conflicts > 0, "they were in each other's way");
    let entries = store.trails().entries(trail, None, usize::MAX).await.unwrap();
    assert_eq!(entries.len(), MANY);
    let end = entries
        .iter()
        .rev()
        .try_fold(Link::ORIGIN, |after, entry| chain.check(trail, &after, entry).map(|_| entry.link));
    assert_eq!(store.trails().ends(trail).await, Ok(Ends { checkpoint: Link::ORIGIN, head: end.unwrap() }));
}

pub(super) async fn an_append_behind_what_is_not_the_end_is_a_conflict(store: Shared) {
    let (made, trail, chain) = (Maker::new(), Trail::Operator, Chain::default());
    let first = chain.extend(trail, Link::ORIGIN, b"first".to_vec());
    store.commit(only_audit(first.clone())).await.unwrap();
    let forged = Link { mac: [9; 32], ..first.entry.link };
    let ahead = Link { number: 2, ..first.entry.link };
    for after in [Link::ORIGIN, forged, ahead] {
        let append = chain.extend(trail, after, b"second".to_vec());
        let with_org = Mutation { audit: Some(append), ..new_org(&made.org()) };
        assert_eq!(store.commit(with_org).await, Err(CommitError::Conflict), "{after}");
    }
    assert_eq!(store.orgs(None, 1).await, Ok(vec![]));
    assert_eq!(store.trails().entries(trail, None, 10).await, Ok(vec![first.entry]));
}

pub(super) async fn a_seen_record_that_changed_is_a_conflict(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    let key = made.key(org.id, &[made.digest()]);
    insert(&store, &org, &key).await;
    let with = |seen: &[Seen]| Mutation { seen: seen.to_vec(), ..new_org(&made.org()) };
    let (key_at, org_at) = (|rev| Seen::Key { id: key.id, rev }, |rev| Seen::Org { id: org.id, rev });
    store.commit(with(&[key_at(1), org_at(1)])).await.unwrap();
    store.commit(update_key(1, &key)).await.unwrap();
    for refused in [[key_at(1), org_at(1)], [org_at(1), key_at(1)], [key_at(2), org_at(2)]] {
        assert_eq!(store.commit(with(&refused)).await, Err(CommitError::Conflict), "{refused:?}");
    }
    store.commit(with(&[key_at(2), org_at(1)])).await.unwrap();
    let other = made.org();
    let absent = [Seen::Key { id: made.key(org.id, &[]).id, rev: 1 }, Seen::Org { id: other.id, rev: 1 }];
    for seen in absent {
        assert_eq!(store.commit(with(&[seen])).await, Err(CommitError::Conflict), "{seen:?}");
    }
    insert_org(&store, &other).await;
    assert_eq!(store.orgs(None, 10).await.unwrap().len(), 4);
}
