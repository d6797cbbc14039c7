//! The behaviour of the embedded store that depends on its file.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use keygate::store::answers::KeptAnswer;
use keygate::store::embedded::{Embedded, OpenError, Settings};
use keygate::store::events::Subject;
use keygate::store::quotas::{Admission, Quota};
use keygate::store::{CommitError, Committed, KeysOf, Lookup, Mutation, Store};
use keygate::vocabulary::audit::{Chain, Ends, Link, Trail};
use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::id::OrgId;
use keygate::vocabulary::key::Pepper;
use keygate::vocabulary::key::record::{KeyRecord, OrgRecord, Sealer, Versioned};
use keygate::vocabulary::key::usage::{Usage, Used};
use redb::{ReadableDatabase, ReadableTableMetadata};

use super::{
    Call, Heard, Maker, NOW, Shared, assert_found, at, event, insert, insert_org, inserted, new_key, new_org,
    only_audit, with_every_part,
};

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
    assert_eq!(store.keys(KeysOf::Org(org.id), None, 10).await, Ok(vec![Versioned { rev: 1, record: key }]));
    assert_eq!(store.commit(event(org.id)).await, Ok(Committed { event: Some(2) }));
    assert_eq!(heard.all(), [Call::Reset(1), Call::Apply(2, vec![Subject::Org(org.id)])]);
}

#[tokio::test]
async fn a_file_opened_again_has_everything_that_is_kept_beside_keys() {
    let directory = tempfile::tempdir().unwrap();
    let (made, chain) = (Maker::new(), Chain::default());
    let mutation = with_every_part(&made, &chain, Trail::Operator, Link::ORIGIN);
    let usage = Usage::parse("7 jobs:read").unwrap();
    let key = inserted(&mutation).1.id;
    {
        let store = open(directory.path());
        store.commit(mutation.clone()).await.unwrap();
        store.usage().note(vec![Used { key, usage: usage.clone() }]).await.unwrap();
    }
    let store = open(directory.path());
    let trails = store.trails();
    let entry = mutation.audit.unwrap().entry;
    let ends = Ends { checkpoint: Link::ORIGIN, head: entry.link };
    assert_eq!(trails.ends(Trail::Operator).await, Ok(ends));
    assert_eq!(trails.entries(Trail::Operator, None, 9).await, Ok(vec![entry]));
    let answer = mutation.answer.unwrap();
    assert_eq!(store.answers().find(answer.index, NOW).await, Ok(Some(answer.sealed)));
    assert_eq!(store.usage().of(vec![key]).await, Ok(vec![Some(usage)]));
    assert_eq!(store.outbox().claim(NOW, NOW, 9).await, Ok(vec![mutation.news.unwrap()]));
    let email = Mutation { email: mutation.email, ..Mutation::default() };
    assert_eq!(store.commit(email).await, Err(CommitError::EmailTaken));
}

#[tokio::test]
async fn answers_that_have_ended_make_room_for_others() {
    const ANSWERS: redb::TableDefinition<'_, &[u8; 32], &[u8]> = redb::TableDefinition::new("answers");
    const ENDS: redb::TableDefinition<'_, (&[u8; 8], &[u8; 32]), ()> =
        redb::TableDefinition::new("answer_ends");
    let directory = tempfile::tempdir().unwrap();
    {
        let (store, made) = (open(directory.path()), Maker::new());
        // Ten at a time, and a hundred that all end at once.
        for n in 0..300 {
            let lifetime = if n < 100 { 100 } else { 10 };
            let (made_at, ends_at) = (UnixMillis(n), UnixMillis(n.max(99) + lifetime));
            let answer = KeptAnswer { made_at, ends_at, ..made.answer(made.digest()) };
            store.commit(Mutation { answer: Some(answer), ..Mutation::default() }).await.unwrap();
        }
    }
    let database = redb::Database::open(at(directory.path()).path).unwrap();
    let file = database.begin_read().unwrap();
    let (answers, ends) = (file.open_table(ANSWERS).unwrap(), file.open_table(ENDS).unwrap());
    assert_eq!((answers.len().unwrap(), ends.len().unwrap()), (10, 10));
}

const QUOTAS: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("quotas");
const QUOTA_ENDS: redb::TableDefinition<'_, (&[u8; 8], &str), ()> = redb::TableDefinition::new("quota_ends");

fn quota(name: String, limit: u32) -> Quota {
    Quota { name, limit, window: Duration::from_millis(10) }
}

#[tokio::test]
async fn windows_of_quotas_that_have_ended_make_room_for_others() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = open(directory.path());
        // Ten in progress at a time, and a hundred that all end at once.
        for n in 0..300 {
            let quotas = vec![quota("all".to_owned(), 1000), quota(n.to_string(), 1)];
            let now = UnixMillis(if n < 100 { 99 } else { n });
            assert_eq!(store.quotas().admit(quotas, now).await, Ok(Admission::Admitted));
        }
    }
    let database = redb::Database::open(at(directory.path()).path).unwrap();
    let file = database.begin_read().unwrap();
    let (quotas, ends) = (file.open_table(QUOTAS).unwrap(), file.open_table(QUOTA_ENDS).unwrap());
    assert_eq!((quotas.len().unwrap(), ends.len().unwrap()), (11, 11));
}

#[tokio::test]
async fn who_is_refused_by_a_quota_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let once = || vec![quota("once".to_owned(), 1)];
    assert_eq!(store.quotas().admit(once(), NOW).await, Ok(Admission::Admitted));
    let before = std::fs::read(at(directory.path()).path).unwrap();
    for _ in 0..100 {
        assert!(matches!(store.quotas().admit(once(), NOW).await, Ok(Admission::Refused { .. })));
    }
    assert!(std::fs::read(at(directory.path()).path).unwrap() == before);
}

/// The form that the first keygate wrote.
#[tokio::test]
async fn a_file_from_before_quotas_were_kept_is_opened_and_keeps_them() {
    let directory = tempfile::tempdir().unwrap();
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&open(directory.path()), &org, &key).await;
    let file = redb::Database::open(at(directory.path()).path).unwrap();
    let transaction = file.begin_write().unwrap();
    assert!(transaction.delete_table(QUOTAS).unwrap() && transaction.delete_table(QUOTA_ENDS).unwrap());
    transaction.commit().unwrap();
    drop(file);
    for admission in [Admission::Admitted, Admission::Refused { retry_after: Duration::from_millis(10) }] {
        let store = open(directory.path());
        assert_found(&store, digest, &key, &org).await;
        assert_eq!(store.quotas().admit(vec![quota("once".to_owned(), 1)], NOW).await, Ok(admission));
    }
}

#[tokio::test]
async fn an_audit_entry_cut_short_is_a_fault_and_no_entry() {
    const AUDIT: redb::TableDefinition<'_, (&[u8; 16], &[u8; 8]), &[u8]> =
        redb::TableDefinition::new("audit");
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let file = redb::Database::open(at(directory.path()).path).unwrap();
    let transaction = file.begin_write().unwrap();
    let place = (&Trail::Operator.to_bytes(), &1_u64.to_be_bytes());
    transaction.open_table(AUDIT).unwrap().insert(place, &[0; 31][..]).unwrap();
    transaction.commit().unwrap();
    drop(file);
    let store = open(directory.path());
    assert!(store.trails().entries(Trail::Operator, None, 9).await.is_err());
    let append = Chain::default().extend(Trail::Operator, Link::ORIGIN, b"x".to_vec());
    let refused = store.commit(only_audit(append)).await.unwrap_err();
    assert!(refused.to_string().contains("past its end"), "{refused}");
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
async fn under_another_pepper_the_file_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let sealer = |byte| Sealer::new(Some(Pepper::new(vec![byte; 32]).unwrap()));
    let open = |sealer| -> Shared { Arc::new(Embedded::open(&at(directory.path()), sealer).unwrap()) };
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&open(sealer(1)), &org, &key).await;
    for other in [sealer(2), Sealer::default()] {
        let refused = Embedded::open(&at(directory.path()), other).unwrap_err();
        assert!(matches!(refused, OpenError::WrongPepper { .. }), "{refused}");
    }
    assert_found(&open(sealer(1)), digest, &key, &org).await;
}

#[tokio::test]
async fn what_the_file_promises_and_has_not_is_unavailable_rather_than_absent() {
    const ORGS: redb::TableDefinition<'_, &[u8; 16], &[u8]> = redb::TableDefinition::new("orgs");
    const KEYS: redb::TableDefinition<'_, &[u8; 16], &[u8]> = redb::TableDefinition::new("keys");
    const DIGESTS: redb::TableDefinition<'_, &[u8; 32], &[u8; 16]> = redb::TableDefinition::new("digests");
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

/// A changed byte is detected, or has no effect: most of a page may be unused.
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
                    assert_eq!(store.keys(KeysOf::All, None, 1000).await.unwrap().len(), KEYS, "{byte}");
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
    assert_eq!(open(directory.path()).keys(KeysOf::All, None, 1000).await.unwrap().len(), KEYS);
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
