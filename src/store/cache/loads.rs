//! Loads from the store: one at a time for each key, a bounded number in all, each in a task of its own. A request that
//! finds no place for its load waits in the queue of [`super::places`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{oneshot, watch};

use super::places::{Places, Ticket};
use super::{CHANGING, Entry, JITTER, Level, Outcome, REPLACED, ReadThrough, TRIES};
use crate::store::events::{EventSink as _, Subject};
use crate::store::fence::{Judgement, Stamp};
use crate::store::{Found, Lookup, StoreFault};
use crate::telemetry::Event;
use crate::telemetry::metrics::NoTurn;
use crate::vocabulary::key::Digest;
use crate::vocabulary::network::ClientNetwork;

/// The share of the loads of known keys that early reloads may take.
const REFRESH_SHARE: usize = 4;

/// The budget that a load is counted in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Budget {
    /// Of a key that is unknown here, from this network; it may be a guess.
    Stranger(ClientNetwork),
    /// Of a key that is known here: a flood of guesses must not delay it.
    Known(ClientNetwork),
    /// The same, while the cached entry can stand in: no request waits for a place.
    Spare(ClientNetwork),
    /// The same, before the entry expires: no request waits for the load.
    Refresh,
}

impl Budget {
    /// The budget of a load whose key turned out to be known here, with an entry that is usable or not.
    pub(super) const fn of_known(self, is_usable: bool) -> Self {
        match self {
            Self::Stranger(network) | Self::Known(network) | Self::Spare(network) if is_usable => {
                Self::Spare(network)
            }
            Self::Stranger(network) | Self::Known(network) | Self::Spare(network) => Self::Known(network),
            Self::Refresh => Self::Refresh,
        }
    }
}

/// The current loads, and the requests that wait to begin one.
#[derive(Debug)]
pub(super) struct Loads {
    under_way: HashMap<Digest, Loading>,
    strangers: Places<oneshot::Sender<Turn>>,
    known: Places<oneshot::Sender<Turn>>,
    /// How many early reloads may be under way beside other loads of known keys.
    refreshes: usize,
    /// How many loads the store has answered.
    answered: u64,
}

impl Loads {
    pub(super) fn new(max_lookups: usize, max_waiting: usize) -> Self {
        let places = || Places::new(max_lookups, max_waiting);
        let refreshes = (max_lookups / REFRESH_SHARE).max(1);
        Self { under_way: HashMap::new(), strangers: places(), known: places(), refreshes, answered: 0 }
    }

    fn take(&mut self, budget: Budget) -> bool {
        match budget {
            Budget::Stranger(network) => self.strangers.take(network),
            Budget::Known(network) | Budget::Spare(network) => self.known.take(network),
            Budget::Refresh => self.known.take_below(self.refreshes),
        }
    }

    /// Enters a load that has its place.
    fn begin(&mut self, digest: Digest, budget: Budget) -> Begun {
        let (sender, receiver) = watch::channel(None);
        let loading = Loading(receiver);
        self.under_way.insert(digest, loading.clone());
        let mut waiting = self.strangers.claim(&digest);
        waiting.append(&mut self.known.claim(&digest));
        Begun { digest, budget, answered_before: self.answered, sender, loading, waiting }
    }

    /// Begins the load whose turn it is, if there is a place.
    fn next(&mut self) -> Option<Begun> {
        if let Some((digest, network)) = self.strangers.next() {
            return Some(self.begin(digest, Budget::Stranger(network)));
        }
        let (digest, network) = self.known.next()?;
        Some(self.begin(digest, Budget::Known(network)))
    }

    /// `found` tells whether the load found a key, if it came to an answer.
    fn end(&mut self, digest: &Digest, budget: Budget, found: Option<bool>) {
        self.under_way.remove(digest);
        self.answered += u64::from(found.is_some());
        match budget {
            Budget::Stranger(network) => self.strangers.end(network, found),
            // That a known key is gone makes no guess of it.
            Budget::Known(network) | Budget::Spare(network) => self.known.end(network, None),
            Budget::Refresh => self.known.give_back(),
        }
    }

    fn give_up(&mut self) -> Vec<oneshot::Sender<Turn>> {
        let mut waiting = self.strangers.give_up();
        waiting.append(&mut self.known.give_up());
        waiting
    }
}

/// A load that has its place, and the requests that waited for it.
struct Begun {
    digest: Digest,
    budget: Budget,
    answered_before: u64,
    sender: watch::Sender<Option<Outcome>>,
    loading: Loading,
    waiting: Vec<oneshot::Sender<Turn>>,
}

/// A current load, for a caller that waits for it.
#[derive(Clone, Debug)]
pub(super) struct Loading(watch::Receiver<Option<Outcome>>);

impl Loading {
    /// Its outcome; `None` if it was abandoned.
    async fn outcome(mut self) -> Option<Outcome> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
    }
}

/// The end of a request's time in the queue.
#[derive(Debug)]
enum Turn {
    /// Its load has begun.
    Begun(Loading),
    /// The store failed meanwhile.
    Failed(StoreFault),
    Refused(NoTurn),
}

/// A request in the queue. Dropping it, also because its client has gone, gives up its place.
pub(super) struct Waiting {
    cache: Arc<ReadThrough>,
    ticket: Ticket,
    is_stranger: bool,
    turn: oneshot::Receiver<Turn>,
}

impl Waiting {
    /// Its turn; `None` if nobody is left to give it one, and it may begin again.
    async fn turn(mut self) -> Option<Turn> {
        let clock = &self.cache.clock;
        let began = clock.mono();
        let turn = tokio::time::timeout(self.cache.settings.lookup_timeout, &mut self.turn).await;
        let turn = turn.unwrap_or(Ok(Turn::Refused(NoTurn::Late))).ok();
        if let Some(Turn::Begun(_)) = turn {
            self.cache.meter.waited(clock.mono().saturating_duration_since(began));
        }
        turn
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut loads = self.cache.lock_loads();
        let places = if self.is_stranger { &mut loads.strangers } else { &mut loads.known };
        places.leave(self.ticket);
    }
}

/// The answer to a caller that needs a load.
pub(super) enum Join {
    /// A new load was begun.
    Begun(Loading),
    /// A load that another caller began.
    UnderWay(Loading),
    /// All places are taken.
    Waiting(Waiting),
    Ended(Outcome),
    /// All places are taken, and so is the queue, or the caller does not wait.
    Refused,
}

/// The outcome of one attempt to load a key.
pub(super) struct Attempt {
    /// `None` if the load was abandoned.
    pub(super) outcome: Option<Outcome>,
    pub(super) level: Level,
    /// Whether the load began after its caller had asked for it.
    pub(super) is_own: bool,
    /// Why no load was begun, where the outcome is *unavailable* for that.
    pub(super) no_turn: Option<NoTurn>,
}

impl Attempt {
    const fn at(level: Level, outcome: Option<Outcome>) -> Self {
        Self { outcome, level, is_own: false, no_turn: None }
    }

    const fn without_turn(cause: NoTurn, fault: StoreFault) -> Self {
        let outcome = Some(Outcome::Unavailable(fault));
        Self { outcome, level: Level::Store, is_own: false, no_turn: Some(cause) }
    }

    async fn own(load: Loading) -> Self {
        Self { is_own: true, ..Self::at(Level::Store, load.outcome().await) }
    }
}

impl ReadThrough {
    /// Joins the load of a key, or begins one, perhaps after a wait for its turn; and waits for its end.
    pub(super) async fn attempt(self: &Arc<Self>, digest: &Digest, budget: Budget) -> Attempt {
        let waiting = match self.join(digest, budget, None) {
            Join::Ended(outcome) => return Attempt::at(Level::Process, Some(outcome)),
            Join::Begun(load) => return Attempt::own(load).await,
            Join::UnderWay(load) => return Attempt::at(Level::Store, load.outcome().await),
            Join::Refused => return Attempt::without_turn(NoTurn::Full, StoreFault::Exhausted),
            Join::Waiting(waiting) => waiting,
        };
        match waiting.turn().await {
            None => Attempt::at(Level::Store, None),
            Some(Turn::Begun(load)) => Attempt::own(load).await,
            Some(Turn::Failed(fault)) => Attempt::without_turn(NoTurn::Store, fault),
            Some(Turn::Refused(cause)) => Attempt::without_turn(cause, StoreFault::Exhausted),
        }
    }

    /// Joins the load of a key, or begins one; `instead_of` is the cached entry that cannot be used.
    ///
    /// The load is a task of its own on the control runtime: it goes on if its callers go away.
    pub(super) fn join(
        self: &Arc<Self>,
        digest: &Digest,
        budget: Budget,
        instead_of: Option<&Arc<Entry>>,
    ) -> Join {
        let mut loads = self.lock_loads();
        if let Some(load) = loads.under_way.get(digest) {
            return Join::UnderWay(load.clone());
        }
        // A load may have ended after the caller looked into the cache; its outcome is there.
        match (self.find(digest, self.clock.now()), instead_of) {
            (Some(Outcome::Known(found)), Some(old)) if Arc::ptr_eq(&found, old) => {}
            (Some(outcome), _) => return Join::Ended(outcome),
            (None, _) => {}
        }
        if let Some(fault) = self.store.spared() {
            return Join::Ended(Outcome::Unavailable(fault));
        }
        if !loads.take(budget) {
            return self.wait(loads, digest, budget);
        }
        let begun = loads.begin(*digest, budget);
        // A runtime that has ended drops the task at once, and the drop takes this lock again.
        drop(loads);
        let loading = begun.loading.clone();
        self.spawn(begun);
        Join::Begun(loading)
    }

    /// Enters the queue, where the budget has one.
    fn wait(self: &Arc<Self>, mut loads: MutexGuard<'_, Loads>, digest: &Digest, budget: Budget) -> Join {
        let (places, network, is_stranger) = match budget {
            Budget::Stranger(network) => (&mut loads.strangers, network, true),
            Budget::Known(network) => (&mut loads.known, network, false),
            Budget::Spare(_) | Budget::Refresh => return Join::Refused,
        };
        let (sender, turn) = oneshot::channel();
        let Ok((ticket, displaced)) = places.enter(network, *digest, sender) else { return Join::Refused };
        drop(loads);
        if let Some(displaced) = displaced {
            // Its client may have gone.
            let _ = displaced.send(Turn::Refused(NoTurn::Full));
        }
        Join::Waiting(Waiting { cache: Arc::clone(self), ticket, is_stranger, turn })
    }

    fn spawn(self: &Arc<Self>, begun: Begun) {
        let Begun { digest, budget, answered_before, sender, loading, waiting } = begun;
        let load = Load { cache: Arc::clone(self), digest, budget, answered_before, outcome: None };
        self.control.spawn(load.run(sender));
        for request in waiting {
            // Its client may have gone; the load goes on for the others.
            let _ = request.send(Turn::Begun(loading.clone()));
        }
    }

    /// How many requests wait for their turn.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let loads = self.lock_loads();
        loads.strangers.waiting() + loads.known.waiting()
    }

    #[cfg(test)]
    pub(super) fn is_loading(&self) -> bool {
        !self.lock_loads().under_way.is_empty()
    }

    fn lock_loads(&self) -> MutexGuard<'_, Loads> {
        // Only an allocation can panic under this lock, and the counts are only a bound.
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One current load. Dropping it gives its place to the next, however it ended.
struct Load {
    cache: Arc<ReadThrough>,
    digest: Digest,
    budget: Budget,
    /// How many loads the store had answered when this one began.
    answered_before: u64,
    /// `None` until it has run to its end.
    outcome: Option<Outcome>,
}

impl Load {
    async fn run(mut self, sender: watch::Sender<Option<Outcome>>) {
        let outcome = tokio::time::timeout(self.cache.settings.lookup_timeout, self.look_up())
            .await
            .unwrap_or(Outcome::Unavailable(StoreFault::TimedOut));
        self.keep(&outcome);
        self.outcome = Some(outcome.clone());
        // In this order: a caller that finds no load must find the outcome in the cache.
        drop(self);
        sender.send_replace(Some(outcome));
    }

    async fn look_up(&self) -> Outcome {
        for _ in 0..TRIES {
            let stamp = self.cache.fence.stamp();
            let loaded_at = self.cache.clock.mono();
            let turns = self.cache.suspicion.turns();
            match self.cache.weigh(self.cache.store.lookup_secret(self.digest).await) {
                Lookup::Unavailable(fault) => return Outcome::Unavailable(fault),
                // The server may have been replaced between the call and its answer: then it is unknown which server
                // answered.
                _ if self.cache.suspicion.turns() != turns => {}
                Lookup::Absent => return Outcome::Absent,
                Lookup::Found(found) => {
                    // A result that was read before an event about it may be neither stored nor served.
                    let judgement = self.cache.fence.judge(stamp, &found.digest, &found.key.id, found.org.id);
                    if judgement != Judgement::Touched {
                        let found = self.cache.without_revived(found);
                        return Outcome::Known(Arc::new(self.entry(found, stamp, loaded_at)));
                    }
                }
            }
        }
        Outcome::Unavailable(StoreFault::failed(CHANGING))
    }

    fn entry(&self, found: Arc<Found>, stamp: Stamp, loaded_at: std::time::Instant) -> Entry {
        let ttl = self.cache.settings.ttl;
        Entry {
            found,
            stamp: AtomicU64::new(stamp),
            loaded_at,
            ttl: ttl - (ttl / JITTER).mul_f32(fastrand::f32()),
            next_refresh: AtomicU64::new(0),
            common: OnceLock::new(),
        }
    }

    fn keep(&self, outcome: &Outcome) {
        let Self { cache, digest, .. } = self;
        match outcome {
            Outcome::Known(entry) => {
                let before = cache.known.get(digest);
                cache.known.insert(*digest, Arc::clone(entry));
                // Only now: a reader of this mark must find the new entry.
                if let Some(before) = before {
                    before.next_refresh.store(REPLACED, Ordering::Release);
                }
            }
            Outcome::Absent => {
                cache.absent.insert(*digest, cache.clock.mono());
                if let Some(gone) = cache.known.remove(digest) {
                    // It vanished without an event, and threads still hold it.
                    cache.fence.apply(0, &[Subject::Digest(gone.found.digest)]);
                }
            }
            Outcome::Unavailable(_) => {}
        }
        match outcome {
            // The store answers. It is one record that cannot be read.
            Outcome::Unavailable(fault @ StoreFault::Unreadable { .. }) => {
                Event::RecordUnreadable.log(cache.clock.mono(), || {
                    format!("{fault}; its key is answered with 503, and `keygate keys revoke` ends it")
                });
                cache.note_store(None);
            }
            Outcome::Unavailable(fault) => cache.note_store(Some(fault)),
            Outcome::Known(_) | Outcome::Absent => cache.note_store(None),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut loads = self.cache.lock_loads();
        let (found, fault, goes_on) = match &self.outcome {
            Some(Outcome::Known(_)) => (Some(true), None, true),
            Some(Outcome::Absent) => (Some(false), None, true),
            // It has answered others meanwhile, so this is about one record or one moment.
            Some(Outcome::Unavailable(_)) if loads.answered > self.answered_before => (None, None, true),
            // About one record too, which a newer gateway wrote or somebody has damaged.
            Some(Outcome::Unavailable(StoreFault::Outdated(_) | StoreFault::Unreadable { .. })) => {
                (None, None, true)
            }
            // The loads that the others wait for would not come, and each of them would wait for a time-out of its own.
            Some(Outcome::Unavailable(fault)) => (None, Some(fault.clone()), false),
            // The runtime has ended, or the store has panicked.
            None => (None, None, false),
        };
        loads.end(&self.digest, self.budget, found);
        let (begun, given_up): (Vec<Begun>, _) = if goes_on {
            (std::iter::from_fn(|| loads.next()).collect(), Vec::new())
        } else {
            (Vec::new(), loads.give_up())
        };
        // A runtime that has ended drops a task at once, and the drop takes this lock again.
        drop(loads);
        for next in begun {
            self.cache.spawn(next);
        }
        if let Some(fault) = fault {
            for request in given_up {
                // Its client may have gone.
                let _ = request.send(Turn::Failed(fault.clone()));
            }
        }
    }
}
