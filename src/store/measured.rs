//! A store that is measured: how long it takes, and whether it answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answers::Answers;
use super::events::{EventSink, Seq, Subject};
use super::keeper::Keeper;
use super::outbox::{News, Outbox};
use super::quotas::{Admission, Quota, Quotas};
use super::trails::{Allowance, Terms, Trails, Trimmed};
use super::unreadable::Listed;
use super::usage::Usage;
use super::{
    Awaited, CommitError, Committed, KeysOf, Lookup, Mutation, Propagation, Store, StoreFault, StoreFuture,
};
use crate::telemetry::metrics::{StoreMeter, StoreOperation as Operation};
use crate::vocabulary::audit::{Ends, Entry, Trail};
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};
use crate::vocabulary::key::usage::{Usage as KeyUsage, Used};

/// Measures how late events come, and nothing else.
impl EventSink for StoreMeter {
    fn apply(&self, _: Seq, _: &[Subject]) {}

    fn reset(&self, _: Seq) {}

    fn note_lag(&self, lag: Duration) {
        self.note_event(lag);
    }
}

/// A store and its meter. It does not measure what an operator asks of the store's keeper, nor the wait for other
/// gateways, which has a histogram of its own.
#[derive(Debug)]
pub struct MeasuredStore {
    store: Arc<dyn Store>,
    meter: Arc<StoreMeter>,
    clock: Clock,
}

impl MeasuredStore {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Clock) -> (Arc<Self>, Arc<StoreMeter>) {
        let meter = Arc::new(StoreMeter::default());
        (Arc::new(Self { store, meter: Arc::clone(&meter), clock }), meter)
    }

    async fn measure<T>(
        &self,
        operation: Operation,
        answer: StoreFuture<'_, T>,
        answered: impl Fn(&T) -> bool,
    ) -> T {
        // The caller may give up. Then the store has not answered.
        let mut asked = Asked { store: self, operation, begun: self.clock.mono(), answered: false };
        let outcome = answer.await;
        asked.answered = answered(&outcome);
        outcome
    }

    fn measured<'s, T: Send + 's>(
        &'s self,
        operation: Operation,
        answer: StoreFuture<'s, Result<T, StoreFault>>,
    ) -> StoreFuture<'s, Result<T, StoreFault>> {
        Box::pin(self.measure(operation, answer, Result::is_ok))
    }
}

/// One operation under way. It is measured when it ends, in whatever way.
struct Asked<'s> {
    store: &'s MeasuredStore,
    operation: Operation,
    begun: Instant,
    answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let MeasuredStore { meter, clock, .. } = self.store;
        let took = clock.mono().saturating_duration_since(self.begun);
        meter.note(self.operation, took, self.answered);
    }
}

impl Store for MeasuredStore {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        let answer = self.store.lookup(digest);
        Box::pin(self.measure(Operation::Lookup, answer, |lookup| !matches!(lookup, Lookup::Unavailable(_))))
    }

    fn lookup_secret(&self, fingerprint: Digest) -> StoreFuture<'_, Lookup> {
        let answer = self.store.lookup_secret(fingerprint);
        Box::pin(self.measure(Operation::Lookup, answer, |lookup| !matches!(lookup, Lookup::Unavailable(_))))
    }

    fn spared(&self) -> Option<StoreFault> {
        self.store.spared()
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        self.measured(Operation::Read, self.store.key(id))
    }

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        self.measured(Operation::Read, self.store.org(id))
    }

    fn list_keys(
        &self,
        of: KeysOf,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<KeyRecord>>, StoreFault>> {
        self.measured(Operation::Read, self.store.list_keys(of, after, limit))
    }

    fn list_orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<OrgRecord>>, StoreFault>> {
        self.measured(Operation::Read, self.store.list_orgs(after, limit))
    }

    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        let answer = self.store.commit(mutation);
        Box::pin(
            self.measure(Operation::Commit, answer, |committed| {
                !matches!(committed, Err(CommitError::Fault(_)))
            }),
        )
    }

    fn propagation(
        &self,
        event: Seq,
        within: Duration,
        awaited: Awaited,
    ) -> StoreFuture<'_, Result<Propagation, StoreFault>> {
        self.store.propagation(event, within, awaited)
    }

    fn import(
        &self,
        keys: Vec<KeyRecord>,
    ) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>> {
        self.measured(Operation::Commit, self.store.import(keys))
    }

    fn subscribe(&self, sink: Arc<dyn EventSink>) {
        self.store.subscribe(sink);
    }

    fn keeper(&self) -> &dyn Keeper {
        self.store.keeper()
    }

    fn trails(&self) -> &dyn Trails {
        self
    }

    fn answers(&self) -> &dyn Answers {
        self
    }

    fn usage(&self) -> &dyn Usage {
        self
    }

    fn outbox(&self) -> &dyn Outbox {
        self
    }

    fn quotas(&self) -> &dyn Quotas {
        self
    }
}

impl Trails for MeasuredStore {
    fn ends(&self, trail: Trail) -> StoreFuture<'_, Result<Ends, StoreFault>> {
        self.measured(Operation::Trail, self.store.trails().ends(trail))
    }

    fn entries(
        &self,
        trail: Trail,
        before: Option<u64>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Entry>, StoreFault>> {
        self.measured(Operation::Trail, self.store.trails().entries(trail, before, limit))
    }

    fn allowance(&self, trail: Trail, own: UnixMillis) -> StoreFuture<'_, Result<Allowance, StoreFault>> {
        self.measured(Operation::Trail, self.store.trails().allowance(trail, own))
    }

    fn trim(&self, trail: Trail, through: u64, terms: Terms) -> StoreFuture<'_, Result<Trimmed, StoreFault>> {
        self.measured(Operation::Trail, self.store.trails().trim(trail, through, terms))
    }

    fn restore(
        &self,
        trail: Trail,
        ends: Ends,
        entries: Vec<Entry>,
    ) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.measured(Operation::Trail, self.store.trails().restore(trail, ends, entries))
    }
}

impl Answers for MeasuredStore {
    fn find(&self, index: [u8; 32], now: UnixMillis) -> StoreFuture<'_, Result<Option<Vec<u8>>, StoreFault>> {
        self.measured(Operation::Answer, self.store.answers().find(index, now))
    }
}

impl Usage for MeasuredStore {
    fn note(&self, used: Vec<Used>) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.measured(Operation::Usage, self.store.usage().note(used))
    }

    fn of(&self, keys: Vec<KeyId>) -> StoreFuture<'_, Result<Vec<Option<KeyUsage>>, StoreFault>> {
        self.measured(Operation::Usage, self.store.usage().of(keys))
    }
}

impl Outbox for MeasuredStore {
    fn claim(
        &self,
        now: UnixMillis,
        until: UnixMillis,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<News>, StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().claim(now, until, limit))
    }

    fn news(&self, orgs: Vec<OrgId>) -> StoreFuture<'_, Result<Vec<Option<News>>, StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().news(orgs))
    }

    fn backlog(&self) -> StoreFuture<'_, Result<u64, StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().backlog())
    }

    fn delivered(&self, org: OrgId) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().delivered(org))
    }

    fn held(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<(u64, Vec<OrgId>), StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().held(after, limit))
    }

    fn release(&self, news: News, rev: u64) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().release(news, rev))
    }
}

impl Quotas for MeasuredStore {
    fn admit(&self, quotas: Vec<Quota>, now: UnixMillis) -> StoreFuture<'_, Result<Admission, StoreFault>> {
        self.measured(Operation::Quota, self.store.quotas().admit(quotas, now))
    }
}
