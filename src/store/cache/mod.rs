//! The read-through cache: the slots of a thread, then moka, then the store.
//!
//! Entries have the [fingerprint](crate::vocabulary::key::PresentedKey::fingerprint) of the presented key for their name,
//! not the digest in the store, which depends on the pepper: a hit needs no pepper. Events name the digest in the store,
//! which each entry has with it ([`Found::digest`](super::Found::digest)).
//!
//! An entry of any level is checked against the [`Fence`] and for its age when it is used. Unknown keys have a small,
//! short-lived cache of their own, so that a flood of guesses evicts no known key.
//!
//! A key in use is loaded again before it expires, while requests go on with the cached entry. So a request waits for
//! the store only if its key is new here, was touched by an event, or was not used for a while. While the store is
//! known to fail, a request waits only if nothing usable is cached for its key.

mod entry;
mod loads;
mod passing;
mod places;
mod repute;
mod revived;
mod suspicion;
#[cfg(test)]
mod tests;
mod thread;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

use self::entry::{Entry, REPLACED};
use self::loads::{Attempt, Budget, Join, Loads};
use self::suspicion::Suspicion;
use super::events::{EventSink, Seq, Subject};
use super::fence::{Fence, Judgement};
use super::{LEASE, Store, StoreFault};
use crate::telemetry::metrics::LookupMeter;
use crate::telemetry::{Event, Notice};
use crate::vocabulary::cache_level::Level;
use crate::vocabulary::clock::{Clock, Drift, Now, Reading};
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::Digest;

pub use crate::vocabulary::partition::OnPartition;

pub use thread::{Known, OF_ONE_THREAD, Prepared, Resolved, ThreadCache};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many keys are kept in the process, each of [`OF_ONE_KEY`].
    pub capacity: u64,
    /// How long a key is served without asking the store, at most: up to a tenth less, by chance, so that
    /// keys that were loaded together are not loaded together again.
    pub ttl: Duration,
    /// How long an unknown key is refused without asking the store.
    pub negative_ttl: Duration,
    /// How much longer than `ttl` a key is served while the store cannot answer.
    pub stale_window: Duration,
    /// How many lookups of keys that nobody here knows may be under way at once. Keys that are known have as
    /// many of their own.
    pub max_lookups: usize,
    /// How long one lookup may take, and before it the wait for its turn.
    pub lookup_timeout: Duration,
    /// The treatment of cached keys when this process is cut off from the store.
    pub on_partition: OnPartition,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: 100_000,
            ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
            stale_window: Duration::from_secs(300),
            max_lookups: 128,
            lookup_timeout: Duration::from_secs(1),
            on_partition: OnPartition::default(),
        }
    }
}

/// The memory of a cached key, in bytes, at the most for a key with 300 bytes of texts. One with more counts as several.
pub const OF_ONE_KEY: u32 = 2 << 10;

/// How long the store's word that events arrive is believed. It gives it every second.
const BELIEVED: Duration = Duration::from_secs(4);
/// How old a key may be that is used without asking while that word is missing. Together with [`BELIEVED`] it bounds how
/// long a revoked key lives at a gateway that no event reaches: 8 s.
const IN_DOUBT: Duration = Duration::from_secs(4);
/// Unknown keys remembered at most. At five seconds each, more would only hold more guesses.
const NEGATIVE_CAPACITY: u64 = 16_384;
/// How often a load is begun again because an event overtook it or it was given up, before it counts as
/// unavailable.
const TRIES: usize = 4;
/// The largest random part by which an entry's ttl is shortened.
const JITTER: u32 = 10;
/// How long an entry that could not be loaded again is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long no entry is loaded ahead of its time after one found no room to be.
const CROWDED_FOR: Duration = Duration::from_millis(100);
/// How long none is after one that asks, for all of them, whether the store answers again.
const ASKED_EVERY: Duration = Duration::from_millis(250);
/// Keys that may wait to be revoked again. A key that finds no room is told again when it is looked up again.
const REVIVED_AT_ONCE: usize = 1024;

/// The outcome of a load.
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
    assured: Arc<Assured>,
    suspicion: Arc<Suspicion>,
    known: Cache<Digest, Arc<Entry>>,
    absent: Cache<Digest, Instant>,
    loads: Mutex<Loads>,
    meter: Arc<LookupMeter>,
    /// Whether the last load failed: while it is set, requests wait for the store only if they must.
    failing: AtomicBool,
    /// From when on entries are loaded ahead of their time again.
    uncrowded: Moment,
    /// Whether the log says so.
    is_told: AtomicBool,
    /// Takes the keys that are to be revoked again.
    revive: mpsc::Sender<KeyId>,
    revived: Mutex<Option<mpsc::Receiver<KeyId>>>,
    store: Arc<dyn Store>,
    control: Handle,
    clock: Clock,
    began: Instant,
}

/// The store's messages: events for the fence, and notices that events may have been missed.
struct Told {
    fence: Arc<Fence>,
    doubt: Arc<Notify>,
    assured: Arc<Assured>,
    suspicion: Arc<Suspicion>,
    clock: Clock,
    began: Instant,
}

impl EventSink for Told {
    fn apply(&self, seq: Seq, subjects: &[Subject]) {
        self.fence.apply(seq, subjects);
    }

    fn reset(&self, seq: Seq) {
        self.fence.reset(seq);
        self.doubt.notify_one();
    }

    fn assure(&self, age: Option<Duration>) {
        self.assured.drift.store(self.clock.reading().drift.0, Ordering::Relaxed);
        self.assured.at.store(age.map_or(NEVER_MISSED, |age| self.moment(age)), Ordering::Release);
    }

    fn suspect(&self, age: Option<Duration>) {
        self.suspicion.turn(age.map(|age| self.moment(age)));
    }
}

impl Told {
    /// The moment in the cache's life that is of this age.
    fn moment(&self, age: Duration) -> u64 {
        let alive = self.clock.mono().saturating_duration_since(self.began);
        millis(alive.saturating_sub(age))
    }
}

/// When the store last said that no event is missing, in milliseconds of the cache's life, or [`NEVER_MISSED`]; and how the
/// machine's clocks stood to each other then.
#[derive(Debug)]
struct Assured {
    at: AtomicU64,
    drift: AtomicI64,
}

/// For a store of which no event can be missed.
const NEVER_MISSED: u64 = u64::MAX;

/// A moment in the cache's life, in milliseconds of it.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn has_come(&self, now: u64) -> bool {
        now >= self.0.load(Ordering::Relaxed)
    }

    fn set(&self, at: u64) {
        self.0.store(at, Ordering::Relaxed);
    }
}

const fn millis(duration: Duration) -> u64 {
    // A process does not live for half a billion years.
    duration.as_millis() as u64
}

impl ReadThrough {
    /// A cache in front of `store`, whose loads run on the runtime `control`. At most `max_waiting` requests wait until a
    /// lookup of theirs can begin, and as many whose keys are known.
    #[must_use]
    pub fn new(
        settings: Settings,
        max_waiting: usize,
        store: Arc<dyn Store>,
        control: Handle,
        clock: Clock,
    ) -> Arc<Self> {
        let fence = Arc::new(Fence::default());
        let doubt = Arc::new(Notify::new());
        let Reading { mono: began, drift: Drift(drift) } = clock.reading();
        let assured = Arc::new(Assured { at: AtomicU64::new(0), drift: AtomicI64::new(drift) });
        let suspicion = Arc::new(Suspicion::default());
        store.subscribe(Arc::new(Told {
            fence: Arc::clone(&fence),
            doubt: Arc::clone(&doubt),
            assured: Arc::clone(&assured),
            suspicion: Arc::clone(&suspicion),
            clock: clock.clone(),
            began,
        }));
        let known = Cache::builder()
            .max_capacity(settings.capacity)
            .weigher(|_, entry: &Arc<Entry>| entry.weight())
            .time_to_live(settings.ttl + settings.stale_window)
            .build();
        let absent =
            Cache::builder().max_capacity(NEGATIVE_CAPACITY).time_to_live(settings.negative_ttl).build();
        let (revive, revived) = mpsc::channel(REVIVED_AT_ONCE);
        let loads = Loads::new(settings.max_lookups, max_waiting);
        let cache = Arc::new(Self {
            settings,
            fence,
            assured,
            suspicion,
            known,
            absent,
            loads: Mutex::new(loads),
            meter: Arc::default(),
            failing: AtomicBool::new(false),
            uncrowded: Moment::default(),
            is_told: AtomicBool::new(false),
            revive,
            revived: Mutex::new(Some(revived)),
            store,
            control,
            began,
            clock,
        });
        cache.control.spawn(revived::look_for(Arc::downgrade(&cache), doubt));
        cache
    }

    /// The keys that the store takes for alive and this process remembers as revoked: a store that lost its
    /// last changes has brought them back. They are refused here, and to be revoked again. `None` when
    /// somebody has asked before.
    #[must_use]
    pub fn revived(&self) -> Option<mpsc::Receiver<KeyId>> {
        self.revived.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// How many known keys are cached, roughly.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.known.entry_count()
    }

    /// The measurements of waiting for lookups.
    #[must_use]
    pub fn meter(&self) -> Arc<LookupMeter> {
        Arc::clone(&self.meter)
    }

    /// The cached entry, if it is current. `None` means that the store must be asked.
    fn find(&self, digest: &Digest, now: Now) -> Option<Outcome> {
        if let Some(entry) = self.known.get(digest) {
            return self.is_fresh(&entry, now).then_some(Outcome::Known(entry));
        }
        let absent_since = self.absent.get(digest)?;
        (now.mono.saturating_duration_since(absent_since) < self.settings.negative_ttl)
            .then_some(Outcome::Absent)
    }

    fn is_fresh(&self, entry: &Entry, now: Now) -> bool {
        self.is_untouched(entry) && self.is_young(entry, now)
    }

    /// Whether an entry is of an age at which it may be used without asking: while events may be lost on their
    /// way, hardly any is.
    fn is_young(&self, entry: &Entry, now: Now) -> bool {
        let age = entry.age(now);
        age < entry.ttl && (age < IN_DOUBT || !self.is_silent(BELIEVED, now.mono))
    }

    /// Whether it is longer ago than this that the store said that no event is missing.
    fn is_silent(&self, since: Duration, now: Instant) -> bool {
        let assured = self.assured.at.load(Ordering::Acquire);
        millis(now.saturating_duration_since(self.began)) > assured.saturating_add(millis(since))
    }

    /// Whether the machine was paused, or its date set, since then: it cannot be told how long ago it was.
    fn has_jumped(&self, drift: Drift) -> bool {
        let assured = self.assured.at.load(Ordering::Acquire);
        let before = Drift(self.assured.drift.load(Ordering::Relaxed));
        // Read again: a thread that waits between its two readings sees a jump where there is none.
        let is_jump = |drift: Drift| drift.has_jumped_since(before);
        assured != NEVER_MISSED && is_jump(drift) && is_jump(self.clock.reading().drift)
    }

    /// Whether no key is let in on a route that says so, or where none does: this process has been cut off for
    /// longer than its lease, or may have been. Its own lookups count as little: a store that takes no lease may have
    /// been replaced by one that it does not know of.
    fn is_fenced(&self, on_route: Option<OnPartition>) -> bool {
        match on_route.unwrap_or(self.settings.on_partition) {
            OnPartition::Serve => false,
            OnPartition::Refuse => self.is_cut_off(),
        }
    }

    fn is_cut_off(&self) -> bool {
        let Reading { mono, drift } = self.clock.reading();
        self.is_silent(LEASE, mono) || self.has_jumped(drift)
    }

    fn is_untouched(&self, entry: &Entry) -> bool {
        let stamp = entry.stamp.load(Ordering::Relaxed);
        match self.fence.judge(stamp, &entry.found.digest, &entry.found.key.id, entry.found.org.id) {
            Judgement::Current => true,
            Judgement::Untouched(stamp) => {
                // Two readers may renew at once with different stamps; both are right, the later is better.
                entry.stamp.fetch_max(stamp, Ordering::Relaxed);
                true
            }
            Judgement::Touched => false,
        }
    }

    /// Has an entry loaded again, unless that is under way, was in vain a moment ago, or has to wait. While the store
    /// fails one asks for all: what is known costs it, and whoever else runs here, nothing then.
    fn refresh(self: &Arc<Self>, digest: &Digest, entry: &Arc<Entry>, now: Now) {
        let at = self.since_began(now);
        let due = entry.next_refresh.load(Ordering::Relaxed);
        if at < due || !self.uncrowded.has_come(at) {
            return;
        }
        let retry = at + millis(RETRY_AFTER);
        let ours = entry.next_refresh.compare_exchange(due, retry, Ordering::Relaxed, Ordering::Relaxed);
        if ours.is_err() {
            return;
        }
        if self.failing.load(Ordering::Relaxed) {
            self.uncrowded.set(at + millis(ASKED_EVERY));
        }
        if matches!(self.join(digest, Budget::Refresh, Some(entry)), Join::Refused) {
            self.uncrowded.set(at + millis(CROWDED_FOR));
            // It is first in turn then; or it was replaced meanwhile, and stays so.
            let _ = entry.next_refresh.compare_exchange(retry, due, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Looks the key up, once for all concurrent requests with the same key.
    async fn load(self: &Arc<Self>, digest: &Digest, budget: Budget) -> (Outcome, Level) {
        let known = self.known.get(digest);
        if self.failing.load(Ordering::Relaxed)
            && let Some(entry) = known.as_ref().filter(|entry| self.is_usable(entry))
        {
            self.refresh(digest, entry, self.clock.now());
            return (Outcome::Known(Arc::clone(entry)), Level::Stale);
        }
        // An entry that was usable and no longer is missed events: the store has come back since.
        let mut may_have_come_back = known.as_ref().is_some_and(|entry| self.is_usable(entry));
        // A known key is no guess, from any network.
        let budget = if known.is_some() { budget.of_known(may_have_come_back) } else { budget };
        let (mut may_blame_another, mut refused) = (true, None);
        for _ in 0..TRIES {
            let Attempt { outcome, level, is_own, no_turn } = self.attempt(digest, budget).await;
            refused = if is_own { None } else { no_turn.or(refused) };
            if is_own {
                may_blame_another = std::mem::take(&mut may_have_come_back);
            }
            match outcome {
                // The caller that began the load has left; the waiting ones begin again.
                None => {}
                // An event came between the load's end and this moment.
                Some(Outcome::Known(entry)) if !self.is_untouched(&entry) => {}
                Some(Outcome::Unavailable(fault)) => {
                    let stale = self.known.get(digest).filter(|entry| self.is_usable(entry));
                    if let Some(entry) = stale {
                        return (Outcome::Known(entry), Level::Stale);
                    }
                    // The failed load began before this request did, perhaps before the store recovered. A
                    // time-out is not worth a second.
                    if !matches!(fault, StoreFault::Failed(_)) || !may_blame_another {
                        if let Some(cause) = refused {
                            self.meter.refused(cause);
                        }
                        return (Outcome::Unavailable(fault), level);
                    }
                    may_blame_another = false;
                }
                Some(outcome) => return (outcome, level),
            }
        }
        (Outcome::Unavailable(StoreFault::failed(CHANGING)), Level::Store)
    }

    /// Remembers whether the store answers, and says so when that changes.
    fn note_store(&self, fault: Option<&StoreFault>) {
        let was_failing = self.failing.swap(fault.is_some(), Ordering::Relaxed);
        match fault {
            Some(fault) if !was_failing => {
                let is_told = Event::LookupsFail.log(self.clock.mono(), || {
                    format!(
                        "keys cannot be looked up: {fault}; known keys are served for up to {:?} more",
                        self.settings.stale_window
                    )
                });
                self.is_told.store(is_told, Ordering::Relaxed);
            }
            None if was_failing && self.is_told.swap(false, Ordering::Relaxed) => {
                Notice::LookupsBack.log("keys can be looked up again");
            }
            _ => {}
        }
    }

    /// Whether an entry may stand in while the store cannot answer. Never one that an event has touched.
    fn is_usable(&self, entry: &Entry) -> bool {
        !self.is_spent(entry, self.clock.now()) && self.is_untouched(entry)
    }

    /// Whether an entry is too old even for that. An answer of a suspected store is no younger than the
    /// suspicion: looked up again and again there, a key would live for ever.
    fn is_spent(&self, entry: &Entry, now: Now) -> bool {
        let age = entry.age(now).max(self.suspected_for(now).unwrap_or_default());
        age >= self.settings.ttl + self.settings.stale_window
    }

    fn since_began(&self, now: Now) -> u64 {
        millis(now.mono.saturating_duration_since(self.began))
    }
}

const CHANGING: &str = "the key is changing too fast to be read";
