//! A store that a test can break, stop and count, in front of the real store.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keygate::store::answers::Answers;
use keygate::store::events::{EventSink, Seq};
use keygate::store::keeper::Keeper;
use keygate::store::outbox::Outbox;
use keygate::store::quotas::Quotas;
use keygate::store::trails::Trails;
use keygate::store::unreadable::Listed;
use keygate::store::usage::Usage;
use keygate::store::{
    Awaited, Change, CommitError, Committed, KeysOf, Lookup, Mutation, Propagation, Store, StoreFault,
    StoreFuture,
};
use keygate::vocabulary::id::{KeyId, OrgId};
use keygate::vocabulary::key::Digest;
use keygate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};
use tokio::sync::watch;

/// The behaviour of lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lookups {
    Pass,
    Fail,
    Hang,
    /// The store is read, but the answer is delayed.
    Hold,
}

/// The test's control of a store. Insert it with `GatewayBuilder::store(valve.fitted())`.
#[derive(Clone, Debug)]
pub(crate) struct Valve(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lookups: watch::Sender<Lookups>,
    /// Whether new keys wait before they are committed, and pages of keys before they are read.
    holds: watch::Sender<bool>,
    /// Whether pages of keys that were read are delayed.
    holds_answers: watch::Sender<bool>,
    creations: AtomicUsize,
    signups: AtomicUsize,
    /// How many commits come too late from now on.
    conflicts: AtomicUsize,
    lists: AtomicUsize,
    lists_read: AtomicUsize,
    keys_listed: AtomicUsize,
    records_read: AtomicUsize,
    begun: AtomicUsize,
    held: AtomicUsize,
    inner: OnceLock<Arc<dyn Store>>,
}

impl Valve {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            lookups: watch::Sender::new(Lookups::Pass),
            holds: watch::Sender::new(false),
            holds_answers: watch::Sender::new(false),
            creations: AtomicUsize::new(0),
            signups: AtomicUsize::new(0),
            conflicts: AtomicUsize::new(0),
            lists: AtomicUsize::new(0),
            lists_read: AtomicUsize::new(0),
            keys_listed: AtomicUsize::new(0),
            records_read: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            inner: OnceLock::new(),
        }))
    }

    pub(crate) fn fitted(&self) -> impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store> + 'static {
        let shared = Arc::clone(&self.0);
        move |store| {
            shared.inner.set(store).unwrap();
            Arc::new(Valved(shared))
        }
    }

    /// The number of lookups that have begun.
    pub(crate) fn lookups(&self) -> usize {
        self.0.begun.load(Ordering::SeqCst)
    }

    /// The number of lookups that have read the store and are delayed now.
    pub(crate) fn held(&self) -> usize {
        self.0.held.load(Ordering::SeqCst)
    }

    /// New keys wait before they are committed, and pages of keys before they are read, until [`Valve::let_go`].
    pub(crate) fn hold_back(&self) {
        self.0.holds.send_replace(true);
    }

    /// Pages of keys are read, and told after [`Valve::let_go`] only.
    pub(crate) fn hold_answers(&self) {
        self.0.holds_answers.send_replace(true);
    }

    pub(crate) fn let_go(&self) {
        self.0.holds.send_replace(false);
        self.0.holds_answers.send_replace(false);
    }

    /// From now on so many commits come too late: something moved since it was read, as if other gateways were faster.
    pub(crate) fn overtake(&self, commits: usize) {
        self.0.conflicts.store(commits, Ordering::SeqCst);
    }

    /// The number of commits that are still to come too late.
    pub(crate) fn overtaken(&self) -> usize {
        self.0.conflicts.load(Ordering::SeqCst)
    }

    /// The number of new keys of existing organisations that came to be committed.
    pub(crate) fn creations(&self) -> usize {
        self.0.creations.load(Ordering::SeqCst)
    }

    /// The number of keys that came to be committed together with their organisations.
    pub(crate) fn signups(&self) -> usize {
        self.0.signups.load(Ordering::SeqCst)
    }

    /// The number of pages of keys that were asked for.
    pub(crate) fn lists(&self) -> usize {
        self.0.lists.load(Ordering::SeqCst)
    }

    /// The number of pages of keys that were read.
    pub(crate) fn lists_read(&self) -> usize {
        self.0.lists_read.load(Ordering::SeqCst)
    }

    /// The number of keys in the pages that were read.
    pub(crate) fn keys_listed(&self) -> usize {
        self.0.keys_listed.load(Ordering::SeqCst)
    }

    /// The number of keys and organisations that were read by their ids.
    pub(crate) fn records_read(&self) -> usize {
        self.0.records_read.load(Ordering::SeqCst)
    }

    /// Lets lookups reach the store from now on; delayed ones return their answers.
    pub(crate) fn pass(&self) {
        self.0.lookups.send_replace(Lookups::Pass);
    }

    pub(crate) fn fail(&self) {
        self.0.lookups.send_replace(Lookups::Fail);
    }

    pub(crate) fn hang(&self) {
        self.0.lookups.send_replace(Lookups::Hang);
    }

    pub(crate) fn hold(&self) {
        self.0.lookups.send_replace(Lookups::Hold);
    }

    /// Changes a key's record in the real store as `change` says, with the event that belongs to it.
    pub(crate) async fn change_key(&self, id: KeyId, change: impl FnOnce(&mut KeyRecord)) {
        let store = self.0.store();
        let Versioned { rev, mut record } = store.key(id).await.unwrap().unwrap();
        change(&mut record);
        let subjects = record
            .secrets
            .iter()
            .map(|secret| keygate::store::events::Subject::Digest(secret.digest))
            .collect();
        let mutation =
            Mutation { key: Some(Change::Update { rev, record }), subjects, ..Mutation::default() };
        store.commit(mutation).await.unwrap();
    }

    /// The same for an organisation.
    pub(crate) async fn change_org(&self, id: OrgId, change: impl FnOnce(&mut OrgRecord)) {
        let store = self.0.store();
        let Versioned { rev, mut record } = store.org(id).await.unwrap().unwrap();
        change(&mut record);
        let mutation = Mutation {
            org: Some(Change::Update { rev, record }),
            subjects: vec![keygate::store::events::Subject::Org(id)],
            ..Mutation::default()
        };
        store.commit(mutation).await.unwrap();
    }
}

impl Shared {
    fn store(&self) -> &dyn Store {
        &**self.inner.get().unwrap()
    }

    async fn held_back(&self) {
        // The sender is in `self`, so the wait ends only with the condition.
        let _ = self.holds.subscribe().wait_for(|holds| !holds).await;
    }

    /// Counts when it has been read.
    fn reading<'a, T: 'a>(&'a self, record: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let read = record.await;
            self.records_read.fetch_add(1, Ordering::SeqCst);
            read
        })
    }

    async fn lookup(&self, is_secret: bool, digest: Digest) -> Lookup {
        let ask = async || match is_secret {
            true => self.store().lookup_secret(digest).await,
            false => self.store().lookup(digest).await,
        };
        self.begun.fetch_add(1, Ordering::SeqCst);
        let mut lookups = self.lookups.subscribe();
        let now = *lookups.borrow_and_update();
        match now {
            Lookups::Pass => ask().await,
            Lookups::Fail => Lookup::Unavailable(StoreFault::failed("the test says so")),
            Lookups::Hang => std::future::pending().await,
            Lookups::Hold => {
                let read = ask().await;
                self.held.fetch_add(1, Ordering::SeqCst);
                let _ = lookups.wait_for(|lookups| *lookups != Lookups::Hold).await;
                self.held.fetch_sub(1, Ordering::SeqCst);
                read
            }
        }
    }
}

#[derive(Debug)]
struct Valved(Arc<Shared>);

impl Store for Valved {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        Box::pin(self.0.lookup(false, digest))
    }

    fn lookup_secret(&self, fingerprint: Digest) -> StoreFuture<'_, Lookup> {
        Box::pin(self.0.lookup(true, fingerprint))
    }

    fn spared(&self) -> Option<StoreFault> {
        None
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        self.0.reading(self.0.store().key(id))
    }

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        self.0.reading(self.0.store().org(id))
    }

    fn list_keys(
        &self,
        of: KeysOf,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<KeyRecord>>, StoreFault>> {
        Box::pin(async move {
            self.0.lists.fetch_add(1, Ordering::SeqCst);
            self.0.held_back().await;
            self.0.lists_read.fetch_add(1, Ordering::SeqCst);
            let keys = self.0.store().list_keys(of, after, limit).await;
            self.0.keys_listed.fetch_add(keys.as_ref().map_or(0, Vec::len), Ordering::SeqCst);
            let _ = self.0.holds_answers.subscribe().wait_for(|holds| !holds).await;
            keys
        })
    }

    fn list_orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<OrgRecord>>, StoreFault>> {
        self.0.store().list_orgs(after, limit)
    }

    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        let is_creation = matches!(mutation.key, Some(Change::Insert(_)));
        Box::pin(async move {
            if is_creation {
                let count = if mutation.org.is_some() { &self.0.signups } else { &self.0.creations };
                count.fetch_add(1, Ordering::SeqCst);
                self.0.held_back().await;
            }
            let one_less = |left: usize| left.checked_sub(1);
            if self.0.conflicts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
                return Err(CommitError::Conflict);
            }
            self.0.store().commit(mutation).await
        })
    }

    fn propagation(
        &self,
        event: Seq,
        within: Duration,
        awaited: Awaited,
    ) -> StoreFuture<'_, Result<Propagation, StoreFault>> {
        self.0.store().propagation(event, within, awaited)
    }

    fn import(
        &self,
        keys: Vec<KeyRecord>,
    ) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>> {
        self.0.store().import(keys)
    }

    fn subscribe(&self, sink: Arc<dyn EventSink>) {
        self.0.store().subscribe(sink);
    }

    fn keeper(&self) -> &dyn Keeper {
        self.0.store().keeper()
    }

    fn trails(&self) -> &dyn Trails {
        self.0.store().trails()
    }

    fn answers(&self) -> &dyn Answers {
        self.0.store().answers()
    }

    fn usage(&self) -> &dyn Usage {
        self.0.store().usage()
    }

    fn outbox(&self) -> &dyn Outbox {
        self.0.store().outbox()
    }

    fn quotas(&self) -> &dyn Quotas {
        self.0.store().quotas()
    }
}
