//! The cache before a store of which every step is the test's: single cases, and any number of random
//! interleavings.

use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet, yield_now};

use super::*;
use crate::store::answers::Answers;
use crate::store::keeper::Keeper;
use crate::store::outbox::Outbox;
use crate::store::quotas::Quotas;
use crate::store::trails::Trails;
use crate::store::unreadable::Listed;
use crate::store::usage::Usage;
use crate::store::{
    Awaited, CommitError, Committed, Found, KeysOf, Lookup, Mutation, Propagation, StoreFuture,
};
use crate::vocabulary::clock::{Shift, UnixMillis};
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::{Attempt, admit};
use crate::vocabulary::key::record::{Further, KeyRecord, OrgRecord, Secret, Versioned};
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::network::ClientNetwork;

mod interleavings;
mod waiting;

/// A store in memory. A lookup reads at one step and answers at another.
#[derive(Debug, Default)]
struct Model {
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    now: State,
    /// The states before each event, the oldest first.
    before: Vec<(Seq, State)>,
    /// The number of the last event that the sinks were told of.
    told: Seq,
    event: Seq,
    /// What lookups are answered from instead, by a server that was left behind, and the subjects of the events that
    /// it has missed.
    past: Option<(State, Vec<Vec<Subject>>)>,
    sinks: Vec<Arc<dyn EventSink>>,
    failing: bool,
    /// Whether lookups that read come to a time-out.
    slow: bool,
    spared: bool,
    /// Whether the next lookup that reads panics.
    panics: bool,
    /// Whether lookups wait for [`Model::step`].
    stepped: bool,
    waiting: Vec<oneshot::Sender<()>>,
    lookups: usize,
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Books").field("now", &self.now).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    keys: BTreeMap<[u8; 16], KeyRecord>,
    orgs: BTreeMap<[u8; 16], OrgRecord>,
}

impl State {
    fn find(&self, digest: &Digest) -> Option<Found> {
        let key = self.keys.values().find(|key| key.secrets.iter().any(|secret| secret.digest == *digest))?;
        Some(Found { key: key.clone(), org: self.orgs[&key.org.to_bytes()].clone(), digest: *digest })
    }
}

impl Model {
    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// Makes a key with this number, in the organisation of that number.
    fn make(&self, number: u64, org: u64) -> Digest {
        let (key, org) = (key(number, org), org_of(org));
        let digest = key.secrets[0].digest;
        let state = &mut self.books().now;
        state.keys.insert(key.id.to_bytes(), key);
        state.orgs.entry(org.id.to_bytes()).or_insert(org);
        digest
    }

    /// Changes the state, with an event.
    fn change(&self, subjects: &[Subject], change: impl FnOnce(&mut State)) {
        let mut books = self.books();
        let (event, before) = (books.event, books.now.clone());
        books.before.push((event, before));
        change(&mut books.now);
        books.event += 1;
        if let Some((_, missed)) = &mut books.past {
            return missed.push(subjects.to_vec());
        }
        books.told = books.event;
        for sink in &books.sinks {
            sink.apply(books.event, subjects);
        }
    }

    fn revoke(&self, digest: Digest) {
        let key = self.books().now.find(&digest).unwrap().key;
        let subjects: Vec<_> = key.secrets.iter().map(|secret| Subject::Revoked(secret.digest)).collect();
        self.change(&subjects, |state| {
            state.keys.get_mut(&key.id.to_bytes()).unwrap().revoked_at = Some(UnixMillis(1));
        });
    }

    /// Fails over to a replica that lacks the last events. Nobody has noticed yet.
    fn lose(&self, events: usize) {
        let mut books = self.books();
        // This process would not see it.
        for _ in 0..if books.past.is_some() { 0 } else { events } {
            if let Some((event, state)) = books.before.pop() {
                books.event = event;
                books.now = state;
            }
        }
    }

    /// From now on another server is the store, and this process sees only the one before, which was last heard of
    /// as the store so long ago.
    fn cut_off(&self, ago: Duration) {
        let mut books = self.books();
        books.past = Some((books.now.clone(), Vec::new()));
        books.sinks.iter().for_each(|sink| sink.suspect(Some(ago)));
    }

    /// It sees the store again.
    fn rejoin(&self) {
        let mut books = self.books();
        let Some((_, missed)) = books.past.take() else { return };
        for subjects in missed {
            books.told += 1;
            books.sinks.iter().for_each(|sink| sink.apply(books.told, &subjects));
        }
        books.sinks.iter().for_each(|sink| sink.suspect(None));
    }

    /// A follower of the events notices the loss.
    fn notice(&self) {
        let mut books = self.books();
        if books.event != books.told && books.past.is_none() {
            books.told = books.event;
            for sink in &books.sinks {
                sink.reset(books.event);
            }
        }
    }

    fn fail(&self, failing: bool) {
        self.books().failing = failing;
    }

    fn spare(&self, spared: bool) {
        self.books().spared = spared;
    }

    fn lookups(&self) -> usize {
        self.books().lookups
    }

    /// Lets the waiting lookup of this number, counted in a circle, do its next step.
    fn step(&self, number: usize) {
        let waiting = &mut self.books().waiting;
        if !waiting.is_empty() {
            let number = number % waiting.len();
            let _ = waiting.swap_remove(number).send(());
        }
    }

    async fn turn(&self) {
        let turn = {
            let mut books = self.books();
            let (step, turn) = oneshot::channel();
            if books.stepped {
                books.waiting.push(step);
                Some(turn)
            } else {
                None
            }
        };
        if let Some(turn) = turn {
            let _ = turn.await;
        }
    }

    fn read(&self, digest: &Digest) -> Lookup {
        let panics = std::mem::take(&mut self.books().panics);
        assert!(!panics, "the test says so");
        let books = self.books();
        if books.slow {
            return Lookup::Unavailable(StoreFault::TimedOut);
        }
        // As the Redis store: one that lacks an event which this process knows is no store.
        if books.failing || books.event < books.told {
            return Lookup::Unavailable(StoreFault::failed("the test says so"));
        }
        let state = books.past.as_ref().map_or(&books.now, |(past, _)| past);
        state.find(digest).map_or(Lookup::Absent, |found| Lookup::Found(Arc::new(found)))
    }
}

impl Store for Model {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        Box::pin(async move {
            self.books().lookups += 1;
            self.turn().await;
            let read = self.read(&digest);
            self.turn().await;
            read
        })
    }

    fn lookup_secret(&self, fingerprint: Digest) -> StoreFuture<'_, Lookup> {
        self.lookup(fingerprint)
    }

    fn subscribe(&self, sink: Arc<dyn EventSink>) {
        sink.assure(None);
        self.books().sinks.push(sink);
    }

    fn spared(&self) -> Option<StoreFault> {
        self.books().spared.then_some(StoreFault::TimedOut)
    }

    fn key(&self, _: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        unasked()
    }

    fn org(&self, _: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        unasked()
    }

    fn list_keys(
        &self,
        _: KeysOf,
        _: Option<KeyId>,
        _: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<KeyRecord>>, StoreFault>> {
        unasked()
    }

    fn list_orgs(
        &self,
        _: Option<OrgId>,
        _: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<OrgRecord>>, StoreFault>> {
        unasked()
    }

    fn commit(&self, _: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        unasked()
    }

    fn propagation(
        &self,
        _: Seq,
        _: Duration,
        _: Awaited,
    ) -> StoreFuture<'_, Result<Propagation, StoreFault>> {
        unasked()
    }

    fn import(&self, _: Vec<KeyRecord>) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>> {
        unasked()
    }

    fn keeper(&self) -> &dyn Keeper {
        unasked()
    }

    fn trails(&self) -> &dyn Trails {
        unasked()
    }

    fn answers(&self) -> &dyn Answers {
        unasked()
    }

    fn usage(&self) -> &dyn Usage {
        unasked()
    }

    fn outbox(&self) -> &dyn Outbox {
        unasked()
    }

    fn quotas(&self) -> &dyn Quotas {
        unasked()
    }
}

fn unasked<T>() -> T {
    panic!("the cache asks for nothing but lookups and events")
}

fn digest_of(number: u64) -> Digest {
    let mut bytes = [0; 32];
    // Slots are chosen by the first bytes.
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..16].copy_from_slice(&(!number).to_le_bytes());
    Digest::from_bytes(bytes)
}

fn place_of(number: u64) -> [u8; 16] {
    u128::from(number).to_be_bytes()
}

fn key(number: u64, org: u64) -> KeyRecord {
    KeyRecord {
        id: KeyId::from_bytes(place_of(number)),
        org: OrgId::from_bytes(place_of(org)),
        name: String::new(),
        environment: Environment::Live,
        scopes: ScopeSet::default(),
        secrets: vec![Secret {
            digest: digest_of(number),
            last_four: String::new(),
            prefix: None,
            ends_at: None,
            further: Further::default(),
        }],
        created_at: UnixMillis(0),
        created_by: String::new(),
        expires_at: None,
        disabled_at: None,
        revoked_at: None,
        allowed_addresses: Vec::new(),
        owner: None,
        note: None,
        further: Further::default(),
    }
}

fn org_of(number: u64) -> OrgRecord {
    let id = OrgId::from_bytes(place_of(number));
    OrgRecord {
        id,
        name: String::new(),
        created_at: UnixMillis(0),
        suspended_at: None,
        pending: false,
        email: None,
        further: Further::default(),
    }
}

/// Nothing prepared.
#[derive(Debug)]
struct Bare;

impl From<&Found> for Bare {
    fn from(_: &Found) -> Self {
        Self
    }
}

impl Prepared for Bare {
    type Common = Self;

    fn of(_: Arc<Self>) -> Self {
        Self
    }
}

/// What is common, and no more.
#[derive(Debug)]
struct Alone(Arc<Bare>);

impl Prepared for Alone {
    type Common = Bare;

    fn of(common: Arc<Bare>) -> Self {
        Self(common)
    }
}

/// A cache, a thread's part of it, and the store behind.
struct Bench {
    runtime: Runtime,
    model: Arc<Model>,
    cache: Arc<ReadThrough>,
    thread: Rc<ThreadCache<Bare>>,
    clock: Clock,
    shift: Shift,
}

impl Bench {
    fn with(settings: Settings) -> Self {
        Self::with_queue(settings, 10_000)
    }

    /// At most `max_waiting` requests wait for a lookup.
    fn with_queue(settings: Settings, max_waiting: usize) -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let model = Arc::new(Model::default());
        let (clock, shift) = Clock::shifted();
        let store = Arc::clone(&model) as Arc<dyn Store>;
        let cache = ReadThrough::new(settings, max_waiting, store, runtime.handle().clone(), clock.clone());
        let thread = Rc::new(ThreadCache::new(Arc::clone(&cache)));
        Self { runtime, model, cache, thread, clock, shift }
    }

    fn new() -> Self {
        // Only the clock of the test is to end anything.
        Self::with(Settings { lookup_timeout: Duration::from_secs(3600), ..Settings::default() })
    }

    fn ask(&self, digest: Digest) -> &'static str {
        self.runtime.block_on(ask(&self.thread, digest, &self.clock, 1))
    }

    /// The same in a task of its own, on the local set that is there.
    fn begin(&self, digest: Digest) -> JoinHandle<&'static str> {
        self.begin_from(1, digest)
    }

    /// The same from a client in the network of this number.
    fn begin_from(&self, from: u8, digest: Digest) -> JoinHandle<&'static str> {
        let (thread, clock) = (Rc::clone(&self.thread), self.clock.clone());
        tokio::task::spawn_local(async move { ask(&thread, digest, &clock, from).await })
    }

    /// Lets everything go on that can.
    fn settle(&self) {
        self.runtime.block_on(async {
            for _ in 0..50 {
                yield_now().await;
            }
        });
    }

    fn advance(&self, seconds: u64) {
        self.shift.advance(Duration::from_secs(seconds));
    }
}

/// Lets the tasks of a local set go on as far as they come.
async fn turns() {
    for _ in 0..5 {
        yield_now().await;
    }
}

fn network(number: u8) -> ClientNetwork {
    ClientNetwork::of(std::net::IpAddr::from([192, 0, number, 1]))
}

/// The outcome of a request with the key, and the level that gave it.
async fn ask(thread: &ThreadCache<Bare>, digest: Digest, clock: &Clock, from: u8) -> &'static str {
    let (resolved, level) = match thread.find(&digest, clock.now()) {
        Some(found) => found,
        None => thread.load(&digest, network(from)).await,
    };
    match resolved {
        Resolved::Absent => "absent",
        Resolved::Unavailable(StoreFault::Exhausted) => "exhausted",
        Resolved::Unavailable(_) => "unavailable",
        Resolved::Known(known) if !is_admitted(&known, clock) => "dead",
        Resolved::Known(_) => level.as_str(),
    }
}

fn is_admitted(known: &Known<Bare>, clock: &Clock) -> bool {
    let Found { key, org, digest } = &*known.found;
    let now = clock.now().wall;
    let attempt = Attempt { digest, environment: Environment::Live, needs: None, now };
    admit(key, org, &attempt, || None).is_ok()
}

#[test]
fn a_key_in_use_is_loaded_again_beside_its_requests() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    assert_eq!((bench.ask(digest), bench.ask(digest)), ("store", "thread"));
    bench.advance(40);
    assert_eq!(bench.ask(digest), "thread");
    bench.settle();
    assert_eq!(bench.model.lookups(), 1, "it is not old yet");
    bench.advance(10);
    bench.model.books().stepped = true;
    for _ in 0..10 {
        assert_eq!(bench.ask(digest), "thread", "nobody waits");
        bench.settle();
    }
    assert_eq!(bench.model.lookups(), 2, "once for all of them");
    bench.model.books().stepped = false;
    for _ in 0..2 {
        bench.model.step(0);
        bench.settle();
    }
    for _ in 0..3 {
        assert_eq!(bench.ask(digest), "thread");
        bench.advance(49);
        assert_eq!(bench.ask(digest), "thread", "it is young again");
        bench.settle();
    }
    assert_eq!(bench.model.lookups(), 5);
}

#[test]
fn what_was_loaded_together_is_not_loaded_together_again() {
    let bench = Bench::new();
    let digests: Vec<Digest> = (0..100).map(|n| bench.model.make(n, 1)).collect();
    for digest in &digests {
        assert_eq!(bench.ask(*digest), "store");
    }
    bench.advance(53);
    bench.settle();
    // Those that nobody used until their time was over are the ones to be looked at.
    let entries = digests.iter().map(|digest| bench.cache.known.get(digest).unwrap().ttl);
    let (shortest, longest) = (entries.clone().min().unwrap(), entries.max().unwrap());
    assert!(longest <= Duration::from_secs(60) && shortest >= Duration::from_secs(54));
    assert!(longest - shortest > Duration::from_secs(3), "{shortest:?} to {longest:?}");
}

#[test]
fn while_the_store_fails_nobody_waits_who_need_not() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    assert_eq!(bench.ask(digest), "store");
    bench.model.fail(true);
    bench.advance(61);
    assert_eq!(bench.ask(digest), "stale", "this one has found it out");
    bench.model.books().stepped = true;
    let before = bench.model.lookups();
    for _ in 0..10 {
        assert_eq!(bench.ask(digest), "stale", "and these do not wait");
        bench.settle();
    }
    assert_eq!(bench.model.lookups(), before + 1, "while one asks");
    bench.model.books().stepped = false;
    (0..2).for_each(|n| {
        bench.model.step(n);
        bench.settle();
    });
    bench.model.fail(false);
    bench.advance(2);
    assert_eq!(bench.ask(digest), "stale");
    bench.settle();
    assert_eq!(bench.ask(digest), "process", "the store is back");
    bench.model.fail(true);
    bench.advance(361);
    assert_eq!(bench.ask(digest), "unavailable", "the window is over");
}

#[test]
fn while_the_store_fails_one_key_asks_for_all() {
    let bench = Bench::new();
    let digests: Vec<Digest> = (1..=10).map(|number| bench.model.make(number, 1)).collect();
    let ask_all = || digests.iter().map(|digest| bench.ask(*digest)).collect::<Vec<_>>();
    assert_eq!(ask_all(), ["store"; 10]);
    bench.model.fail(true);
    bench.advance(61);
    assert_eq!(ask_all(), ["stale"; 10]);
    bench.settle();
    for _ in 0..5 {
        bench.advance(2);
        let before = bench.model.lookups();
        assert_eq!(ask_all(), ["stale"; 10]);
        bench.settle();
        assert_eq!(bench.model.lookups(), before + 1);
    }
    bench.model.fail(false);
    bench.advance(2);
    ask_all();
    bench.settle();
    bench.advance(1);
    let before = bench.model.lookups();
    ask_all();
    bench.settle();
    assert_eq!(bench.model.lookups(), before + 9, "it is back, and the others are looked up");
}

#[test]
fn a_store_that_is_spared_is_not_asked_and_nobody_waits() {
    let bench = Bench::new();
    let known = bench.model.make(1, 1);
    assert_eq!(bench.ask(known), "store");
    bench.model.spare(true);
    bench.advance(61);
    let before = bench.model.lookups();
    assert_eq!((bench.ask(known), bench.ask(digest_of(2))), ("stale", "unavailable"));
    bench.settle();
    assert_eq!(bench.model.lookups(), before);
    bench.model.spare(false);
    assert_eq!((bench.ask(known), bench.ask(digest_of(2))), ("store", "absent"));
}

#[test]
fn what_a_thread_made_of_a_key_outlives_an_outage() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    let resolve = || match bench.runtime.block_on(bench.thread.load(&digest, network(1))).0 {
        Resolved::Known(known) => known,
        other => panic!("{other:?}"),
    };
    assert_eq!(bench.ask(digest), "store");
    bench.model.fail(true);
    bench.advance(61);
    let first = resolve();
    assert!(Rc::ptr_eq(&first, &resolve()), "what was noted of its use would be noted on every request");
}

#[test]
fn an_unknown_key_is_never_refused_on_stale_knowledge() {
    let bench = Bench::new();
    assert_eq!((bench.ask(digest_of(1)), bench.ask(digest_of(1))), ("absent", "absent"));
    assert_eq!(bench.model.lookups(), 1);
    bench.model.fail(true);
    assert_eq!(bench.ask(digest_of(1)), "absent", "that is still known");
    bench.advance(6);
    assert_eq!(bench.ask(digest_of(1)), "unavailable");
}

#[test]
fn what_an_event_touched_is_not_served_stale() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    assert_eq!(bench.ask(digest), "store");
    bench.model.change(&[Subject::Digest(digest)], |_| {});
    bench.model.fail(true);
    assert_eq!((bench.ask(digest), bench.ask(digest)), ("unavailable", "unavailable"));
    bench.model.fail(false);
    assert_eq!(bench.ask(digest), "store");
}

#[test]
fn a_key_that_is_gone_without_an_event_is_gone_for_every_thread() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    let other = ThreadCache::<Bare>::new(Arc::clone(&bench.cache));
    assert_eq!(bench.ask(digest), "store");
    assert_eq!(bench.runtime.block_on(ask(&other, digest, &bench.clock, 1)), "process");
    bench.model.books().now.keys.clear();
    bench.advance(50);
    assert_eq!(bench.ask(digest), "thread");
    bench.settle();
    assert_eq!(bench.ask(digest), "absent");
    assert_eq!(bench.runtime.block_on(ask(&other, digest, &bench.clock, 1)), "absent");
}

#[test]
fn a_thread_keeps_two_keys_of_a_slot_and_finds_a_third_in_the_process() {
    // 1,024 places, which are 512 slots.
    let bench = Bench::with(Settings { capacity: 100, ..Settings::default() });
    let keys = [1, 513, 1025].map(|number| bench.model.make(number, 1));
    let asked = || keys.map(|key| bench.ask(key));
    assert_eq!(asked(), ["store"; 3]);
    assert_eq!(bench.ask(keys[2]), "thread");
    assert_eq!(bench.ask(keys[1]), "thread");
    assert_eq!([bench.ask(keys[0]), bench.ask(keys[0]), bench.ask(keys[2])], ["process", "thread", "thread"]);
    assert_eq!(bench.ask(keys[1]), "process", "it came first of those");
}

#[test]
fn what_is_prepared_for_a_key_is_made_once_for_all_threads() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    let threads = [(); 2].map(|()| ThreadCache::<Alone>::new(Arc::clone(&bench.cache)));
    let known = threads.map(|thread| match bench.runtime.block_on(thread.load(&digest, network(1))).0 {
        Resolved::Known(known) => Arc::clone(&known.prepared.0),
        other => panic!("{other:?}"),
    });
    assert!(Arc::ptr_eq(&known[0], &known[1]));
}

#[test]
fn waiters_share_a_load_and_outlive_who_began_it() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    bench.model.books().stepped = true;
    let local = LocalSet::new();
    local.block_on(&bench.runtime, async {
        let first = bench.begin(digest);
        yield_now().await;
        let others: Vec<JoinHandle<&str>> = (0..5).map(|_| bench.begin(digest)).collect();
        yield_now().await;
        first.abort();
        for _ in 0..2 {
            for _ in 0..5 {
                yield_now().await;
            }
            bench.model.step(0);
        }
        for other in others {
            assert_eq!(other.await.unwrap(), "store");
        }
    });
    assert_eq!(bench.model.lookups(), 1);
}

#[test]
fn who_waited_for_a_load_that_failed_tries_once_more() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    bench.model.books().stepped = true;
    bench.model.fail(true);
    LocalSet::new().block_on(&bench.runtime, async {
        let first = bench.begin(digest);
        turns().await;
        bench.model.step(0);
        turns().await;
        bench.model.fail(false);
        let second = bench.begin(digest);
        turns().await;
        bench.model.books().stepped = false;
        bench.model.step(0);
        assert_eq!((first.await.unwrap(), second.await.unwrap()), ("unavailable", "store"));
    });
    assert_eq!(bench.model.lookups(), 2);
}

#[test]
fn a_known_key_whose_lookup_failed_before_the_store_came_back_is_looked_up_again() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    assert_eq!(bench.ask(digest), "store");
    bench.advance(61);
    bench.model.books().stepped = true;
    bench.model.fail(true);
    LocalSet::new().block_on(&bench.runtime, async {
        let asked = bench.begin(digest);
        turns().await;
        bench.model.step(0);
        turns().await;
        // It came back, and some events are missing: nothing that was known may be used without asking.
        bench.model.fail(false);
        bench.model.books().sinks.iter().for_each(|sink| sink.reset(0));
        bench.model.books().stepped = false;
        bench.model.step(0);
        assert_eq!(asked.await.unwrap(), "store");
    });
    assert_eq!(bench.model.lookups(), 3, "the first, the one that failed, and one more");
}

#[test]
fn a_revocation_that_the_store_lost_holds_and_is_reported() {
    let bench = Bench::new();
    let (revoked, other) = (bench.model.make(1, 1), bench.model.make(2, 1));
    let mut revived = bench.cache.revived().unwrap();
    assert!(bench.cache.revived().is_none());
    assert_eq!((bench.ask(revoked), bench.ask(other)), ("store", "store"));
    bench.model.revoke(revoked);
    assert_eq!(bench.ask(revoked), "dead");
    bench.model.lose(1);
    assert!(bench.model.books().now.find(&revoked).unwrap().key.revoked_at.is_none());
    bench.model.notice();
    bench.settle();
    assert_eq!(revived.try_recv(), Ok(key(1, 1).id), "nobody has to present it");
    assert!(revived.try_recv().is_err());
    assert_eq!((bench.ask(revoked), bench.ask(other)), ("dead", "store"));
    bench.model.revoke(revoked);
    assert_eq!(bench.ask(revoked), "dead");
}

#[test]
fn what_a_store_says_that_may_have_been_replaced_counts_for_a_lease_and_makes_nothing_younger() {
    let bench = Bench::new();
    let [known, cold, colder] = [1, 2, 3].map(|number| bench.model.make(number, 1));
    assert_eq!(bench.ask(known), "store");
    bench.advance(2);
    bench.model.cut_off(Duration::from_secs(2));
    bench.model.revoke(cold);
    let made_since = bench.model.make(4, 1);
    assert_eq!(bench.ask(cold), "store", "it cannot know");
    assert_eq!(
        bench.ask(made_since),
        "unavailable",
        "a good key that is not there is not to be called wrong"
    );
    bench.advance(8);
    assert_eq!(bench.ask(colder), "unavailable", "it could look up for ever");
    bench.advance(61);
    assert_eq!([known, cold].map(|digest| bench.ask(digest)), ["stale", "stale"]);
    bench.advance(288);
    assert_eq!([known, cold].map(|digest| bench.ask(digest)), ["stale", "stale"], "for 359 s");
    bench.advance(1);
    let told = [known, cold].map(|digest| bench.ask(digest));
    assert_eq!(
        told,
        ["unavailable", "unavailable"],
        "the second was looked up 358 s ago, and as old as the first"
    );
    bench.model.rejoin();
    let told = [known, cold, colder, made_since].map(|digest| bench.ask(digest));
    assert_eq!(told, ["store", "dead", "store", "store"]);
}

#[test]
fn an_answer_under_way_when_a_suspicion_ends_is_nobodys_word() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    bench.model.cut_off(Duration::from_secs(1));
    bench.model.revoke(digest);
    bench.model.books().stepped = true;
    LocalSet::new().block_on(&bench.runtime, async {
        let asked = bench.begin(digest);
        turns().await;
        bench.model.step(0);
        turns().await;
        {
            // The old server has answered. Another is the store, whose events are yet to come.
            let mut books = bench.model.books();
            (books.past, books.stepped) = (None, false);
            books.sinks.iter().for_each(|sink| sink.suspect(None));
        }
        bench.model.step(0);
        assert_eq!(asked.await.unwrap(), "dead");
    });
}

#[test]
fn a_store_that_is_suspected_no_more_is_believed_in_what_it_said() {
    let bench = Bench::new();
    let digest = bench.model.make(1, 1);
    bench.advance(2);
    bench.model.cut_off(Duration::from_secs(2));
    assert_eq!(bench.ask(digest), "store");
    bench.advance(357);
    assert_eq!(bench.ask(digest), "stale");
    bench.model.rejoin();
    bench.model.fail(true);
    bench.advance(2);
    assert_eq!(bench.ask(digest), "stale", "359 s after it was looked up");
    bench.advance(1);
    assert_eq!(bench.ask(digest), "unavailable");
}
