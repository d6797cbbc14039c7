//! The level of the cache that belongs to one thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::loads::Budget;
use super::{Entry, Level, OnPartition, Outcome, ReadThrough};
use crate::store::fence::{Judgement, Stamp};
use crate::store::{Found, StoreFault};
use crate::vocabulary::clock::Now;
use crate::vocabulary::key::Digest;
use crate::vocabulary::network::ClientNetwork;

/// The most places that a thread has for keys, and the least; powers of two. A key whose place is taken is found on the next level.
const PLACES: [usize; 2] = [1 << 10, 1 << 14];
/// The most memory that a thread's places take, in bytes: a key has some 100 here, and its place.
pub const OF_ONE_THREAD: usize = PLACES[1] * 128;

/// The outcome for the key of a request.
#[derive(Debug)]
pub enum Resolved<T> {
    Known(Rc<Known<T>>),
    Absent,
    Unavailable(StoreFault),
}

/// What is kept beside a known key, by one thread.
pub trait Prepared {
    /// What all threads share of it. Made once for the process, since a thread has no slot for each key.
    type Common: for<'f> From<&'f Found> + Send + Sync + 'static;

    fn of(common: Arc<Self::Common>) -> Self;
}

/// A known key in one thread, with reference counts and prepared values that no other thread touches.
#[derive(Debug)]
pub struct Known<T> {
    /// Its name in the caches.
    pub digest: Digest,
    pub found: Arc<Found>,
    /// Values that are prepared once for the key and used on every request.
    pub prepared: T,
    stamp: Cell<Stamp>,
    entry: Arc<Entry>,
}

/// The digest of a key, which is uniformly distributed, selects its slot: no hashing, and a fixed size. A slot has two places, the
/// first for the key that came last.
#[derive(Debug)]
pub struct ThreadCache<T> {
    shared: Arc<ReadThrough>,
    slots: RefCell<Box<[Slot<T>]>>,
}

type Slot<T> = [Option<Rc<Known<T>>>; 2];

impl<T: Prepared> ThreadCache<T> {
    #[must_use]
    pub fn new(shared: Arc<ReadThrough>) -> Self {
        let [least, most] = PLACES;
        let capacity = usize::try_from(shared.settings.capacity).unwrap_or(most);
        let slots = capacity.clamp(least, most).next_power_of_two() / 2;
        let slots = std::iter::repeat_with(|| [None, None]).take(slots).collect();
        Self { shared, slots: RefCell::new(slots) }
    }

    /// Answers from this thread's slots or the cache of the process, without waiting; `None` if the store must be
    /// asked.
    #[must_use]
    pub fn find(&self, digest: &Digest, now: Now) -> Option<(Resolved<T>, Level)> {
        let (known, level) = match self.find_slot(digest, now) {
            Some(known) => (known, Level::Thread),
            None => match self.keep(digest, self.shared.find(digest, now)?) {
                Resolved::Known(known) => (known, Level::Process),
                other => return Some((other, Level::Process)),
            },
        };
        let known = if known.entry.is_aged(now) { self.refreshed(known, now) } else { known };
        Some((Resolved::Known(known), level))
    }

    /// Asks the store about a key that a client in `network` presents.
    pub async fn load(&self, digest: &Digest, network: ClientNetwork) -> (Resolved<T>, Level) {
        self.load_on(Budget::Stranger(network), digest).await
    }

    /// The same about a key that was valid here a while ago.
    pub async fn load_known(&self, digest: &Digest, network: ClientNetwork) -> (Resolved<T>, Level) {
        self.load_on(Budget::Known(network), digest).await
    }

    async fn load_on(&self, budget: Budget, digest: &Digest) -> (Resolved<T>, Level) {
        let (outcome, level) = self.shared.load(digest, budget).await;
        if matches!(outcome, Outcome::Unavailable(_)) {
            // The cache of the process may have evicted an entry that this thread still holds.
            let now = self.shared.clock.now();
            if let Some(known) = self.own(digest).filter(|known| self.is_untouched(known))
                && !self.is_spent(&known, now)
            {
                return (Resolved::Known(known), Level::Stale);
            }
        }
        (self.keep(digest, outcome), level)
    }

    /// The entry of a key in this thread.
    fn own(&self, digest: &Digest) -> Option<Rc<Known<T>>> {
        let slots = self.slots.borrow();
        slots[slot_of(digest, slots.len())].iter().flatten().find(|known| known.digest == *digest).cloned()
    }

    fn find_slot(&self, digest: &Digest, now: Now) -> Option<Rc<Known<T>>> {
        self.own(digest).filter(|known| self.is_current(known, now))
    }

    /// Whether the entry is still valid, as far as this process knows.
    #[must_use]
    pub fn is_current(&self, known: &Known<T>, now: Now) -> bool {
        self.is_untouched(known) && self.shared.is_young(&known.entry, now)
    }

    /// Whether keys are refused now because the gateway is cut off: on a route with this setting, or by the general
    /// one.
    #[must_use]
    pub fn is_fenced(&self, on_route: Option<OnPartition>) -> bool {
        self.shared.is_fenced(on_route)
    }

    /// Whether this process has not heard from the store for longer than its lease, so that it may not know of what other
    /// gateways do.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.shared.is_cut_off()
    }

    /// Whether the entry is too old to be used, even while the store cannot answer.
    #[must_use]
    pub fn is_spent(&self, known: &Known<T>, now: Now) -> bool {
        self.shared.is_spent(&known.entry, now)
    }

    fn is_untouched(&self, known: &Known<T>) -> bool {
        match self.shared.fence.judge(
            known.stamp.get(),
            &known.found.digest,
            &known.found.key.id,
            known.found.org.id,
        ) {
            Judgement::Current => {}
            Judgement::Untouched(stamp) => known.stamp.set(stamp),
            Judgement::Touched => return false,
        }
        true
    }

    /// The entry that has replaced an aged one; or the same entry, which is then being loaded again.
    #[cold]
    fn refreshed(&self, known: Rc<Known<T>>, now: Now) -> Rc<Known<T>> {
        if !known.entry.is_replaced() {
            self.shared.refresh(&known.digest, &known.entry, now);
            return known;
        }
        match self.shared.find(&known.digest, now).map(|outcome| self.keep(&known.digest, outcome)) {
            Some(Resolved::Known(newer)) => newer,
            // It was evicted, or touched by an event just now: the earlier check still holds for this request.
            Some(Resolved::Absent | Resolved::Unavailable(_)) | None => known,
        }
    }

    fn keep(&self, digest: &Digest, outcome: Outcome) -> Resolved<T> {
        let entry = match outcome {
            Outcome::Known(entry) => entry,
            Outcome::Absent => return Resolved::Absent,
            Outcome::Unavailable(fault) => return Resolved::Unavailable(fault),
        };
        // The prepared values stay with the entry: during an outage every request finds the same one.
        if let Some(known) = self.own(digest).filter(|known| Arc::ptr_eq(&known.entry, &entry)) {
            known.stamp.set(known.stamp.get().max(entry.stamp.load(Ordering::Relaxed)));
            return Resolved::Known(known);
        }
        let known = Rc::new(Known {
            digest: *digest,
            prepared: T::of(entry.common()),
            found: Arc::clone(&entry.found),
            stamp: Cell::new(entry.stamp.load(Ordering::Relaxed)),
            entry,
        });
        let mut slots = self.slots.borrow_mut();
        let count = slots.len();
        let [first, second] = &mut slots[slot_of(digest, count)];
        let before = first.replace(Rc::clone(&known));
        if before.as_ref().is_some_and(|before| before.digest != *digest) {
            *second = before;
        }
        Resolved::Known(known)
    }
}

/// `slots` is a power of two.
const fn slot_of(digest: &Digest, slots: usize) -> usize {
    // Truncation keeps the low bits, which are as random as the others.
    digest.leading() as usize & (slots - 1)
}
