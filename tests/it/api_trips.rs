//! How many trips to the store a change through the API takes. Each is a round trip over the network where the store
//! is Redis, so a number that grows is time that clients wait, and load on the one place that all gateways share.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use keygate::store::answers::Answers;
use keygate::store::events::{EventSink, Seq};
use keygate::store::keeper::Keeper;
use keygate::store::outbox::Outbox;
use keygate::store::quotas::Quotas;
use keygate::store::trails::{Allowance, Terms, Trails, Trimmed};
use keygate::store::unreadable::Listed;
use keygate::store::usage::Usage;
use keygate::store::{
    Awaited, CommitError, Committed, KeysOf, Lookup, Mutation, Propagation, Store, StoreFault, StoreFuture,
};
use keygate::vocabulary::audit::{Ends, Entry, Trail};
use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::id::{KeyId, OrgId};
use keygate::vocabulary::key::Digest;
use keygate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};

use crate::harness::{Call, Gateway, Upstream, eventually};

#[test]
fn a_change_through_the_api_reads_each_record_once() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let trips = Trips::default();
    let gateway = Gateway::builder().api(&live, &test).store(trips.counted()).start();
    let (caller, other) = (gateway.live_key(), gateway.live_key());
    let expect = |call: Call, status: u16, expected: &[&str]| {
        trips.take();
        let answer = gateway.fetch(&call.key(&caller.secret));
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(trips.take(), expected, "{} trips", expected.len());
        answer
    };
    eventually("the trails were looked through for old records", || {
        trips.has("ends of the operator's trail")
    });
    // From now on the caller's key is in the cache.
    assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(&caller.secret)).status, 200);

    let create = || Call::post("/v1/api_keys", r#"{"name":"a key"}"#);
    let named = || create().field("idempotency-key", "once");
    let judged = ["key", "org"];
    let committed = ["ends", "commit"];
    expect(create(), 200, &[&judged[..], &committed].concat());
    let first = expect(named(), 200, &[&judged[..], &["answer"], &committed].concat());
    // The key in the answer is judged as it is now.
    let again = expect(named(), 200, &[&judged[..], &["answer", "key"]].concat());
    assert_eq!(first.text(), again.text());

    let rotate = |id: KeyId| Call::post(&format!("/v1/api_keys/{id}/rotate"), "{}");
    let told = ["propagation"];
    expect(rotate(other.id()), 200, &[&judged[..], &["key"], &committed, &told].concat());
    let revoke = |id: KeyId| Call::new("DELETE", &format!("/v1/api_keys/{id}"));
    expect(revoke(other.id()), 204, &[&judged[..], &["key"], &committed, &told].concat());
    // The caller's own key is read already.
    expect(revoke(caller.id()), 204, &[&judged[..], &committed, &told].concat());
}

/// The trips that were made since they were last taken.
#[derive(Clone, Debug, Default)]
struct Trips(Arc<Mutex<Vec<&'static str>>>);

impl Trips {
    fn counted(&self) -> impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store> + 'static {
        let trips = self.clone();
        move |store| Arc::new(Counted { store, trips })
    }

    fn note(&self, trip: &'static str) {
        self.0.lock().unwrap().push(trip);
    }

    fn has(&self, trip: &str) -> bool {
        self.0.lock().unwrap().contains(&trip)
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A store that notes every trip to the one behind it.
#[derive(Debug)]
struct Counted {
    store: Arc<dyn Store>,
    trips: Trips,
}

impl Counted {
    fn to(&self, trip: &'static str) -> &dyn Store {
        self.trips.note(trip);
        &*self.store
    }
}

impl Store for Counted {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        self.to("lookup").lookup(digest)
    }

    fn lookup_secret(&self, fingerprint: Digest) -> StoreFuture<'_, Lookup> {
        self.to("lookup").lookup_secret(fingerprint)
    }

    fn spared(&self) -> Option<StoreFault> {
        self.store.spared()
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        self.to("key").key(id)
    }

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        self.to("org").org(id)
    }

    fn list_keys(
        &self,
        of: KeysOf,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<KeyRecord>>, StoreFault>> {
        self.to("keys").list_keys(of, after, limit)
    }

    fn list_orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<OrgRecord>>, StoreFault>> {
        self.to("orgs").list_orgs(after, limit)
    }

    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        self.to("commit").commit(mutation)
    }

    fn propagation(
        &self,
        event: Seq,
        within: Duration,
        awaited: Awaited,
    ) -> StoreFuture<'_, Result<Propagation, StoreFault>> {
        self.to("propagation").propagation(event, within, awaited)
    }

    fn import(
        &self,
        keys: Vec<KeyRecord>,
    ) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>> {
        self.to("import").import(keys)
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
        self.to("usage").usage()
    }

    fn outbox(&self) -> &dyn Outbox {
        self.to("outbox").outbox()
    }

    fn quotas(&self) -> &dyn Quotas {
        self.to("quotas").quotas()
    }
}

impl Answers for Counted {
    fn find(&self, index: [u8; 32], now: UnixMillis) -> StoreFuture<'_, Result<Option<Vec<u8>>, StoreFault>> {
        self.to("answer").answers().find(index, now)
    }
}

impl Trails for Counted {
    fn ends(&self, trail: Trail) -> StoreFuture<'_, Result<Ends, StoreFault>> {
        let trip = if trail == Trail::Operator { "ends of the operator's trail" } else { "ends" };
        self.to(trip).trails().ends(trail)
    }

    fn entries(
        &self,
        trail: Trail,
        before: Option<u64>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Entry>, StoreFault>> {
        self.to("entries").trails().entries(trail, before, limit)
    }

    fn allowance(&self, trail: Trail, own: UnixMillis) -> StoreFuture<'_, Result<Allowance, StoreFault>> {
        self.to("allowance").trails().allowance(trail, own)
    }

    fn trim(&self, trail: Trail, through: u64, terms: Terms) -> StoreFuture<'_, Result<Trimmed, StoreFault>> {
        self.to("trim").trails().trim(trail, through, terms)
    }

    fn restore(
        &self,
        trail: Trail,
        ends: Ends,
        entries: Vec<Entry>,
    ) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.to("restore").trails().restore(trail, ends, entries)
    }
}
