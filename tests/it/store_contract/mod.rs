//! The contract of stores, run on every back end. `embedded_file` has the tests for the embedded store alone,
//! `redis_store` those for Redis alone.
//!
//! A rule is a function over an empty store. `contract!` lists the rules once: first those for an open store, then
//! those for a store that is opened again. A back end adds its `holds_for!`.

mod answers;
mod embedded_file;
mod graves;
mod import;
mod outbox;
mod parts;
mod prefixes;
mod quotas;
mod records;
mod room;
mod trails;
mod usage;

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keygate::store::answers::KeptAnswer;
use keygate::store::embedded::{Embedded, Settings};
use keygate::store::events::{EventSink, Seq, Subject};
use keygate::store::indexes::Room;
use keygate::store::outbox::News;
use keygate::store::quotas::Quota;
use keygate::store::redis::Redis;
use keygate::store::{Change, Committed, EmailClaim, Lookup, Mutation, Store};
use keygate::vocabulary::audit::{Append, Chain, Link, Trail};
use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::id::{IdSource, KeyId, OrgId};
use keygate::vocabulary::key::record::{Further, KeyRecord, OrgRecord, RecordFormat, Sealer, Secret};
use keygate::vocabulary::key::scope::ScopeSet;
use keygate::vocabulary::key::{Digest, Environment, Pepper};
use tokio::runtime::Handle;

use crate::harness::RedisServer;

pub(crate) type Shared = Arc<dyn Store>;
/// Opens the store again on the same file or server after it was closed, and keeps that alive.
type Reopen = Box<dyn Fn() -> Shared>;

macro_rules! contract {
    ($($topic:ident { $($rule:ident)* })*; $($lasting_topic:ident { $($lasting_rule:ident)* })*) => {
        /// Instantiates every rule of the contract for one back end.
        macro_rules! holds_for {
            ($backend:ident, $open:path) => {
                mod $backend {
                    $($(
                        #[tokio::test]
                        async fn $rule() {
                            let (store, _reopen) = $open().await;
                            super::$topic::$rule(store).await;
                        }
                    )*)*
                    $($(
                        #[tokio::test]
                        async fn $lasting_rule() {
                            let (store, reopen) = $open().await;
                            super::$lasting_topic::$lasting_rule(store, reopen).await;
                        }
                    )*)*
                }
            };
        }
    };
}

contract! {
    records {
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
    parts {
        a_mutation_with_every_part_happens_as_a_whole
        a_refused_mutation_leaves_nothing_of_any_part
        what_is_refused_for_good_is_said_first
        of_64_concurrent_claims_of_one_email_exactly_one_wins
        of_64_concurrent_answers_under_one_index_exactly_one_is_kept
        of_64_concurrent_appends_all_get_in_and_the_chain_holds
        an_append_behind_what_is_not_the_end_is_a_conflict
        a_seen_record_that_changed_is_a_conflict
    }
    trails {
        a_trail_nobody_wrote_to_is_empty
        trails_are_apart
        entries_are_paged_newest_first
        trimming_removes_exactly_those_and_leaves_the_checkpoint
        a_day_takes_a_tenth_of_a_trail_and_ten_entries_of_a_short_one
        only_what_is_old_is_trimmed_up_to_the_first_that_is_not
        nothing_is_trimmed_while_the_clocks_differ_by_more_than_a_minute
        a_trail_that_was_trimmed_to_nothing_goes_on
        a_trail_is_restored_in_pieces_and_repeating_one_changes_nothing
        a_trail_is_not_restored_over_another_or_out_of_order
        what_is_missing_from_a_trail_is_missing_from_its_copy
    }
    graves {
        of_a_key_that_goes_its_names_stay_and_nothing_else
        what_is_gone_does_not_come_back
        a_key_that_has_not_ended_for_so_long_stays
        no_key_goes_while_the_clocks_differ_by_more_than_a_minute
        in_a_day_a_thousand_keys_go_and_more_for_an_operator
        stones_are_told_and_put_elsewhere
    }
    answers {
        an_answer_is_kept_until_it_ends
    }
    usage {
        usage_is_merged
        usage_at_a_time_that_has_not_come_hides_no_other
        of_a_key_that_is_not_there_no_usage_is_kept
        usage_of_many_keys_comes_in_their_order
        usage_is_no_event_and_leaves_the_record
    }
    outbox {
        news_are_claimed_once_and_come_back_until_they_are_delivered
        news_are_told_without_being_claimed
        news_are_counted_until_they_are_delivered
        of_concurrent_claims_each_gets_other_news
        newer_news_of_an_organisation_take_the_place_of_older
        news_that_a_wrong_clock_has_put_off_are_told
    }
    quotas {
        quotas_admit_exactly_as_many_as_they_say
        a_quota_begins_anew_after_its_window
        who_is_refused_by_one_quota_counts_under_none
        a_quota_of_none_admits_nobody
    }
    room {
        an_organisation_has_no_more_live_keys_than_there_is_room_for
        one_key_makes_no_more_than_its_part
        new_keys_are_counted_within_a_window
        of_64_concurrent_creations_exactly_as_many_succeed_as_there_is_room_for
        the_keys_of_one_environment_are_listed_alone
    }
    import {
        each_key_is_imported_for_itself
        an_import_repeated_inserts_nothing_twice
        an_import_is_no_event
    }
    prefixes {
        a_new_secret_needs_a_prefix_that_is_accepted
        secrets_that_have_ended_need_none
    };
    quotas {
        quotas_go_on_in_a_store_that_is_opened_again
    }
}

holds_for!(embedded, super::open_embedded);
holds_for!(redis, super::open_redis);
holds_for!(redis_with_a_pepper, super::open_redis_with_a_pepper);

async fn open_embedded() -> (Shared, Reopen) {
    let directory = tempfile::tempdir().unwrap();
    let open =
        move || -> Shared { Arc::new(Embedded::open(&at(directory.path()), Sealer::default()).unwrap()) };
    (open(), Box::new(open))
}

async fn open_redis() -> (Shared, Reopen) {
    open_redis_with(Sealer::default()).await
}

async fn open_redis_with_a_pepper() -> (Shared, Reopen) {
    open_redis_with(Sealer::new(Some(Pepper::new(vec![7; 32]).unwrap()))).await
}

async fn open_redis_with(sealer: Sealer) -> (Shared, Reopen) {
    let server = RedisServer::start();
    let open = move || -> Shared {
        Arc::new(Redis::open(server.settings(), sealer.clone(), Handle::current()).unwrap())
    };
    let store = open();
    assert_eq!(store.keeper().begin().await, Ok(true));
    (store, Box::new(open))
}

fn at(directory: &Path) -> Settings {
    Settings { path: directory.join("keygate.redb") }
}

pub(crate) const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

fn later(by: u64) -> UnixMillis {
    UnixMillis(NOW.0 + by)
}

/// Creates the same records in every run.
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
            further: Further::default(),
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
            further: Further::default(),
        };
        with_digests(&key, digests)
    }

    pub(crate) fn digest(&self) -> Digest {
        let mut bytes = [0; 32];
        self.rng.borrow_mut().fill(&mut bytes);
        Digest::from_bytes(bytes)
    }

    /// Kept for an hour from [`NOW`] on.
    pub(crate) fn answer(&self, index: Digest) -> KeptAnswer {
        KeptAnswer {
            index: *index.as_bytes(),
            sealed: self.text(),
            made_at: NOW,
            ends_at: NOW.plus(Duration::from_secs(3600)),
        }
    }

    /// Room for as many keys as any test makes.
    pub(crate) fn room(&self, maker: KeyId) -> Room {
        let pace = Quota { name: "keys".to_owned(), limit: 1000, window: Duration::from_secs(3600) };
        Room { now: NOW, most: 1000, maker, most_of_maker: 1000, pace }
    }

    /// Random bytes of varying length.
    pub(crate) fn text(&self) -> Vec<u8> {
        let mut bytes = vec![0; 1 + self.below(200)];
        self.rng.borrow_mut().fill(&mut bytes);
        bytes
    }

    pub(crate) fn below(&self, end: usize) -> usize {
        self.rng.borrow_mut().usize(..end)
    }

    /// Not in order, and sometimes repeated.
    pub(crate) fn time(&self) -> UnixMillis {
        UnixMillis(NOW.0 + self.below(8) as u64)
    }
}

pub(crate) fn with_digests(key: &KeyRecord, digests: &[Digest]) -> KeyRecord {
    let secret = |digest: &Digest| Secret {
        digest: *digest,
        last_four: "wxyz".to_owned(),
        prefix: None,
        ends_at: None,
        further: Further::default(),
    };
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

/// A new organisation with a key, and everything else that a mutation can carry.
pub(crate) fn with_every_part(made: &Maker, chain: &Chain, trail: Trail, after: Link) -> Mutation {
    let org = made.org();
    let key = made.key(org.id, &[made.digest(), made.digest()]);
    Mutation {
        subjects: vec![Subject::Org(org.id)],
        email: Some(EmailClaim { index: *made.digest().as_bytes(), before: None, org: org.id }),
        answer: Some(made.answer(made.digest())),
        audit: Some(chain.extend(trail, after, made.text())),
        news: Some(News { org: org.id, due: NOW, body: made.text() }),
        room: Some(made.room(key.id)),
        key: Some(Change::Insert(key)),
        org: Some(Change::Insert(org)),
        tombstone: None,
        seen: Vec::new(),
        newest: false,
        needs: RecordFormat::FIRST,
        under: None,
    }
}

/// The data that such a mutation inserts.
pub(crate) fn inserted(mutation: &Mutation) -> (&OrgRecord, &KeyRecord) {
    match (&mutation.org, &mutation.key) {
        (Some(Change::Insert(org)), Some(Change::Insert(key))) => (org, key),
        _ => panic!("a mutation with every part inserts an organisation and a key"),
    }
}

pub(crate) fn only_audit(append: Append) -> Mutation {
    Mutation { audit: Some(append), ..Mutation::default() }
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

/// The calls of a sink, in order.
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
