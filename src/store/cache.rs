//! The read-through cache: a thread's own slots, then moka, then the store.
//!
//! Whatever level answers, what it gives is judged by the [`Fence`] and by its age at that moment. Unknown
//! keys live in a cache of their own, small and short, so that a flood of guesses evicts no known key.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slotted;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::fence::{Fence, Judgement, Stamp};
use super::{Found, Lookup, Store, StoreFault};
use crate::clock::{Clock, Now};
use crate::key::Digest;
use crate::network::ClientNetwork;
use crate::telemetry;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many keys are kept in the process.
    pub capacity: u64,
    /// How long a key is served without asking the store.
    pub ttl: Duration,
    /// How long an unknown key is refused without asking the store.
    pub negative_ttl: Duration,
    /// How much longer than `ttl` a key is served while the store cannot answer.
    pub stale_window: Duration,
    /// How many lookups of keys that nobody here knows may be under way at once. Keys that are known have a
    /// quarter as many of their own.
    pub max_lookups: usize,
    /// How long one lookup may take.
    pub lookup_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: 100_000,
            ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
            stale_window: Duration::from_secs(300),
            max_lookups: 256,
            lookup_timeout: Duration::from_secs(1),
        }
    }
}

/// Unknown keys remembered at most. At five seconds each, more would only hold more guesses.
const NEGATIVE_CAPACITY: u64 = 16_384;
/// A thread's slots; a power of two. A key that shares its slot with another is found one level further.
const SLOTS: usize = 4096;
/// How often a load is begun again because an event overtook it, before it counts as unavailable.
const OVERTAKEN_AT_MOST: usize = 4;

/// One network may have an eighth of all loads under way, and the last quarter is kept for networks that have
/// none: so well-formed guesses, which cost a load each, leave room for the keys of others.
const NETWORK_SHARE: usize = 8;
const RESERVE: usize = 4;
/// What known keys may have under way beside all that, as a part of it.
const KNOWN_SHARE: usize = 4;
/// How long after a failed load stale keys are served without trying another.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Thread,
    Process,
    Store,
    /// The store could not answer; an entry within the stale window stood in.
    Stale,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Thread, Self::Process, Self::Store, Self::Stale];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Process => "process",
            Self::Store => "store",
            Self::Stale => "stale",
        }
    }
}

/// A known key as the process caches it.
#[derive(Debug)]
pub struct Entry {
    found: Arc<Found>,
    stamp: AtomicU64,
    loaded_at: Instant,
}

/// What a load came to.
#[derive(Clone, Debug)]
enum Outcome {
    Known(Arc<Entry>),
    Absent,
    Unavailable(StoreFault),
}

/// The process's part of the cache, shared by its threads.
#[derive(Debug)]
pub struct ReadThrough {
    settings: Settings,
    fence: Arc<Fence>,
    known: Cache<Digest, Arc<Entry>>,
    absent: Cache<Digest, Instant>,
    loads: Mutex<Loads>,
    /// The first moment at which a stale key is worth another load.
    retry_at: Mutex<Option<Instant>>,
    /// Whether the last load failed: an outage is logged when it begins and when it ends.
    failing: AtomicBool,
    store: Arc<dyn Store>,
    control: Handle,
    clock: Clock,
}

impl ReadThrough {
    /// A cache in front of `store`, whose loads run on the runtime `control`.
    #[must_use]
    pub fn new(settings: Settings, store: Arc<dyn Store>, control: Handle, clock: Clock) -> Arc<Self> {
        let fence = Arc::new(Fence::default());
        store.subscribe(Arc::clone(&fence) as _);
        let known = Cache::builder()
            .max_capacity(settings.capacity)
            .time_to_live(settings.ttl + settings.stale_window)
            .build();
        let absent =
            Cache::builder().max_capacity(NEGATIVE_CAPACITY).time_to_live(settings.negative_ttl).build();
        Arc::new(Self {
            settings,
            fence,
            known,
            absent,
            loads: Mutex::default(),
            retry_at: Mutex::default(),
            failing: AtomicBool::new(false),
            store,
            control,
            clock,
        })
    }

    /// How many known keys are cached, roughly.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.known.entry_count()
    }

    /// What is cached and current. `None` means that the store must be asked.
    fn find(&self, digest: &Digest, now: Now) -> Option<Outcome> {
        if let Some(entry) = self.known.get(digest) {
            return self.is_fresh(&entry, digest, now).then_some(Outcome::Known(entry));
        }
        let absent_since = self.absent.get(digest)?;
        (now.mono.saturating_duration_since(absent_since) < self.settings.negative_ttl)
            .then_some(Outcome::Absent)
    }

    fn is_fresh(&self, entry: &Entry, digest: &Digest, now: Now) -> bool {
        self.is_untouched(entry, digest)
            && now.mono.saturating_duration_since(entry.loaded_at) < self.settings.ttl
    }

    fn is_untouched(&self, entry: &Entry, digest: &Digest) -> bool {
        let stamp = entry.stamp.load(Ordering::Relaxed);
        match self.fence.judge(stamp, digest, entry.found.org.id) {
            Judgement::Current => true,
            Judgement::Untouched(stamp) => {
                // Two readers may renew at once with different stamps; both are right, the later is better.
                entry.stamp.fetch_max(stamp, Ordering::Relaxed);
                true
            }
            Judgement::Touched => false,
        }
    }

    /// Asks the store, together with whoever else wants the same key.
    ///
    /// The load is a task of its own on the control runtime: callers that go away take nothing with them.
    async fn load(self: &Arc<Self>, digest: &Digest, budget: Budget) -> (Outcome, Level) {
        // What was known here is no guess, wherever it comes from.
        let budget = if self.known.contains_key(digest) { Budget::Known } else { budget };
        if self.is_resting()
            && let Some(entry) = self.stale(digest)
        {
            return (Outcome::Known(entry), Level::Stale);
        }
        for _ in 0..OVERTAKEN_AT_MOST {
            let (outcome, level) = match self.join(digest, budget) {
                Join::Ended(outcome) => (outcome, Level::Process),
                Join::UnderWay(load) => (wait_for(load).await, Level::Store),
                Join::Refused => (Outcome::Unavailable(StoreFault::Exhausted), Level::Store),
            };
            match outcome {
                // An event came between the load's end and this moment.
                Outcome::Known(entry) if !self.is_untouched(&entry, digest) => {}
                Outcome::Unavailable(fault) => {
                    return match self.stale(digest) {
                        Some(entry) => (Outcome::Known(entry), Level::Stale),
                        None => (Outcome::Unavailable(fault), level),
                    };
                }
                Outcome::Known(_) | Outcome::Absent => return (outcome, level),
            }
        }
        (Outcome::Unavailable(StoreFault::failed("the key is changing too fast to be read")), Level::Store)
    }

    fn join(self: &Arc<Self>, digest: &Digest, budget: Budget) -> Join {
        let mut loads = self.lock_loads();
        if let Some(load) = loads.under_way.get(digest) {
            return Join::UnderWay(load.clone());
        }
        // A load that ended between the caller's look and this lock has left its outcome in the cache.
        if let Some(outcome) = self.find(digest, self.clock.now()) {
            return Join::Ended(outcome);
        }
        if !loads.has_room_for(budget, self.settings.max_lookups) {
            return Join::Refused;
        }
        let (sender, receiver) = watch::channel(None);
        loads.begin(*digest, budget, receiver.clone());
        // A runtime that has ended drops the task at once, which takes this lock again.
        drop(loads);
        let load = Load { cache: Arc::clone(self), digest: *digest, budget };
        self.control.spawn(load.run(sender));
        Join::UnderWay(receiver)
    }

    fn lock_loads(&self) -> MutexGuard<'_, Loads> {
        // Nothing below can panic under this lock but an allocation, and the counts are only a bound.
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the store failed a moment ago, so that stale keys are served without asking it.
    fn is_resting(&self) -> bool {
        let retry_at = *self.retry_at.lock().unwrap_or_else(PoisonError::into_inner);
        retry_at.is_some_and(|at| self.clock.mono() < at)
    }

    /// Remembers and logs whether the store answers.
    fn note_store(&self, outcome: &Outcome) {
        let fault = match outcome {
            Outcome::Unavailable(fault) => Some(fault),
            Outcome::Known(_) | Outcome::Absent => None,
        };
        *self.retry_at.lock().unwrap_or_else(PoisonError::into_inner) =
            fault.map(|_| self.clock.mono() + RETRY_AFTER);
        match (fault, self.failing.swap(fault.is_some(), Ordering::Relaxed)) {
            (Some(fault), false) => telemetry::log(&format!(
                "keys cannot be looked up: {fault}; known keys are served for up to {:?} more",
                self.settings.stale_window
            )),
            (None, true) => telemetry::log("keys can be looked up again"),
            _ => {}
        }
    }

    /// The entry that may stand in while the store cannot answer. Never one that an event has touched.
    fn stale(&self, digest: &Digest) -> Option<Arc<Entry>> {
        let entry = self.known.get(digest)?;
        let age = self.clock.now().mono.saturating_duration_since(entry.loaded_at);
        let usable =
            age < self.settings.ttl + self.settings.stale_window && self.is_untouched(&entry, digest);
        usable.then_some(entry)
    }
}

/// Out of whose budget a load is made.
#[derive(Clone, Copy, Debug)]
enum Budget {
    /// Whoever presents a key that is not known here, be it a guess.
    Network(ClientNetwork),
    /// A key that is known here: a flood of guesses must not make it fall out.
    Known,
}

/// The loads under way, and how many of them each network has.
#[derive(Debug, Default)]
struct Loads {
    under_way: HashMap<Digest, Loading>,
    by_network: HashMap<ClientNetwork, usize>,
    of_known: usize,
}

impl Loads {
    fn has_room_for(&self, budget: Budget, at_most: usize) -> bool {
        let Budget::Network(network) = budget else {
            return self.of_known < (at_most / KNOWN_SHARE).max(1);
        };
        let all = self.under_way.len() - self.of_known;
        let own = self.by_network.get(&network).copied().unwrap_or(0);
        let in_reserve = all >= at_most - at_most / RESERVE;
        all < at_most && (own == 0 || !in_reserve && own < (at_most / NETWORK_SHARE).max(1))
    }

    fn begin(&mut self, digest: Digest, budget: Budget, load: Loading) {
        self.under_way.insert(digest, load);
        match budget {
            Budget::Network(network) => *self.by_network.entry(network).or_default() += 1,
            Budget::Known => self.of_known += 1,
        }
    }

    fn end(&mut self, digest: &Digest, budget: Budget) {
        self.under_way.remove(digest);
        let Budget::Network(network) = budget else {
            self.of_known -= 1;
            return;
        };
        if let Slotted::Occupied(mut own) = self.by_network.entry(network) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

/// A load under way, seen by who waits for it.
type Loading = watch::Receiver<Option<Outcome>>;

/// What a caller finds when it wants a key loaded.
enum Join {
    UnderWay(Loading),
    Ended(Outcome),
    /// As many loads are under way as may be.
    Refused,
}

async fn wait_for(mut load: Loading) -> Outcome {
    let ended = load.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
    ended.unwrap_or_else(|| Outcome::Unavailable(StoreFault::failed("the load was given up")))
}

/// One load under way. Its place among the loads is given up when it is dropped, however it ended.
struct Load {
    cache: Arc<ReadThrough>,
    digest: Digest,
    budget: Budget,
}

impl Load {
    async fn run(self, sender: watch::Sender<Option<Outcome>>) {
        let outcome = tokio::time::timeout(self.cache.settings.lookup_timeout, self.look_up())
            .await
            .unwrap_or(Outcome::Unavailable(StoreFault::TimedOut));
        match &outcome {
            Outcome::Known(entry) => self.cache.known.insert(self.digest, Arc::clone(entry)),
            Outcome::Absent => {
                self.cache.known.invalidate(&self.digest);
                self.cache.absent.insert(self.digest, self.cache.clock.now().mono);
            }
            Outcome::Unavailable(_) => {}
        }
        self.cache.note_store(&outcome);
        // In this order: whoever finds no load under way must find the outcome in the cache.
        drop(self);
        sender.send_replace(Some(outcome));
    }

    async fn look_up(&self) -> Outcome {
        for _ in 0..OVERTAKEN_AT_MOST {
            let stamp: Stamp = self.cache.fence.stamp();
            let loaded_at = self.cache.clock.now().mono;
            match self.cache.store.lookup(self.digest).await {
                Lookup::Absent => return Outcome::Absent,
                Lookup::Unavailable(fault) => return Outcome::Unavailable(fault),
                Lookup::Found(found) => {
                    // What was read before an event about it may be neither stored nor served.
                    let judgement = self.cache.fence.judge(stamp, &self.digest, found.org.id);
                    if judgement != Judgement::Touched {
                        return Outcome::Known(Arc::new(Entry {
                            found,
                            stamp: AtomicU64::new(stamp),
                            loaded_at,
                        }));
                    }
                }
            }
        }
        Outcome::Unavailable(StoreFault::failed("the key is changing too fast to be read"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.cache.lock_loads().end(&self.digest, self.budget);
    }
}

/// What a key came to, for the request that presents it.
#[derive(Debug)]
pub enum Resolved<T> {
    Known(Rc<Known<T>>),
    Absent,
    Unavailable(StoreFault),
}

/// A known key as one thread holds it: reference counts and prepared values that no other thread touches.
#[derive(Debug)]
pub struct Known<T> {
    pub digest: Digest,
    pub found: Arc<Found>,
    /// Whatever the thread makes of the key once, to use it on every request.
    pub prepared: T,
    stamp: Cell<Stamp>,
    loaded_at: Instant,
}

impl<T> Known<T> {
    fn age(&self, now: Now) -> Duration {
        now.mono.saturating_duration_since(self.loaded_at)
    }
}

/// A thread's own level. The slot of a key is chosen by its digest, which is uniformly distributed: no
/// hashing, no eviction to decide on, a fixed size.
#[derive(Debug)]
pub struct ThreadCache<T> {
    shared: Arc<ReadThrough>,
    slots: RefCell<Vec<Option<Rc<Known<T>>>>>,
}

impl<T: for<'f> From<&'f Found>> ThreadCache<T> {
    #[must_use]
    pub fn new(shared: Arc<ReadThrough>) -> Self {
        let slots = std::iter::repeat_with(|| None).take(SLOTS).collect();
        Self { shared, slots: RefCell::new(slots) }
    }

    /// Answers from this thread's slots or the process's cache, without waiting. `None`: the store must be
    /// asked.
    #[must_use]
    pub fn find(&self, digest: &Digest, now: Now) -> Option<(Resolved<T>, Level)> {
        if let Some(known) = self.find_slot(digest, now, self.shared.settings.ttl) {
            return Some((Resolved::Known(known), Level::Thread));
        }
        let outcome = self.shared.find(digest, now)?;
        Some((self.keep(digest, outcome), Level::Process))
    }

    /// Asks the store about a key that somebody in `network` presents.
    pub async fn load(&self, digest: &Digest, network: ClientNetwork) -> (Resolved<T>, Level) {
        self.load_on(Budget::Network(network), digest).await
    }

    /// Asks the store about a key that opened something here a while ago.
    pub async fn load_known(&self, digest: &Digest) -> (Resolved<T>, Level) {
        self.load_on(Budget::Known, digest).await
    }

    async fn load_on(&self, budget: Budget, digest: &Digest) -> (Resolved<T>, Level) {
        let (outcome, level) = self.shared.load(digest, budget).await;
        if matches!(outcome, Outcome::Unavailable(_)) {
            // The process's cache may have evicted what this thread still holds.
            let window = self.shared.settings.ttl + self.shared.settings.stale_window;
            if let Some(known) = self.find_slot(digest, self.shared.clock.now(), window) {
                return (Resolved::Known(known), Level::Stale);
            }
        }
        (self.keep(digest, outcome), level)
    }

    /// This thread's own entry, if no event has touched it and it is younger than `at_most`.
    fn find_slot(&self, digest: &Digest, now: Now, at_most: Duration) -> Option<Rc<Known<T>>> {
        let slots = self.slots.borrow();
        let known = slots[slot_of(digest)].as_ref().filter(|known| known.digest == *digest)?;
        (self.is_untouched(known) && known.age(now) < at_most).then(|| Rc::clone(known))
    }

    /// Whether what was known then still holds, as far as this process knows.
    #[must_use]
    pub fn is_current(&self, known: &Known<T>, now: Now) -> bool {
        self.is_untouched(known) && known.age(now) < self.shared.settings.ttl
    }

    /// Whether what was known then is too old to be used, even while the store cannot answer.
    #[must_use]
    pub fn is_spent(&self, known: &Known<T>, now: Now) -> bool {
        known.age(now) >= self.shared.settings.ttl + self.shared.settings.stale_window
    }

    fn is_untouched(&self, known: &Known<T>) -> bool {
        match self.shared.fence.judge(known.stamp.get(), &known.digest, known.found.org.id) {
            Judgement::Current => {}
            Judgement::Untouched(stamp) => known.stamp.set(stamp),
            Judgement::Touched => return false,
        }
        true
    }

    fn keep(&self, digest: &Digest, outcome: Outcome) -> Resolved<T> {
        let entry = match outcome {
            Outcome::Known(entry) => entry,
            Outcome::Absent => return Resolved::Absent,
            Outcome::Unavailable(fault) => return Resolved::Unavailable(fault),
        };
        let known = Rc::new(Known {
            digest: *digest,
            prepared: T::from(&entry.found),
            found: Arc::clone(&entry.found),
            stamp: Cell::new(entry.stamp.load(Ordering::Relaxed)),
            loaded_at: entry.loaded_at,
        });
        self.slots.borrow_mut()[slot_of(digest)] = Some(Rc::clone(&known));
        Resolved::Known(known)
    }
}

const fn slot_of(digest: &Digest) -> usize {
    // Truncation keeps the low bits, as good as any others.
    digest.leading() as usize % SLOTS
}
