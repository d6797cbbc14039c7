//! Loads from the store: one at a time for each key, a bounded number in all, each in a task of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slotted;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{CHANGING, Entry, JITTER, Outcome, REPLACED, ReadThrough, TRIES};
use crate::store::events::{EventSink as _, Subject};
use crate::store::fence::{Judgement, Stamp};
use crate::store::{Found, Lookup, StoreFault};
use crate::vocabulary::key::Digest;
use crate::vocabulary::network::ClientNetwork;

/// One network may have an eighth of all loads, and the last quarter is kept for networks that have none. So
/// well-formed guesses, which cost a load each, leave room for the keys of others.
const NETWORK_SHARE: usize = 8;
const RESERVE: usize = 4;
/// The share of the loads of known keys that early reloads may take.
const REFRESH_SHARE: usize = 4;

/// The budget that a load is counted in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Budget {
    /// The network of a client that presents a key which is unknown here; it may be a guess.
    Network(ClientNetwork),
    /// A key that is known here: a flood of guesses must not delay it.
    Known,
    /// The same, before the entry expires: no request waits for it.
    Refresh,
}

/// The current loads, and their number for each network.
#[derive(Debug, Default)]
pub(super) struct Loads {
    under_way: HashMap<Digest, Loading>,
    by_network: HashMap<ClientNetwork, usize>,
    of_known: usize,
}

impl Loads {
    fn has_room_for(&self, budget: Budget, at_most: usize) -> bool {
        let network = match budget {
            Budget::Network(network) => network,
            Budget::Known => return self.of_known < at_most,
            Budget::Refresh => return self.of_known < (at_most / REFRESH_SHARE).max(1),
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
            Budget::Known | Budget::Refresh => self.of_known += 1,
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

/// A current load, for a caller that waits for it.
#[derive(Clone, Debug)]
pub(super) struct Loading(watch::Receiver<Option<Outcome>>);

impl Loading {
    /// Its outcome; `None` if it was abandoned.
    pub(super) async fn outcome(mut self) -> Option<Outcome> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
    }
}

/// The answer to a caller that needs a load.
pub(super) enum Join {
    /// A new load was begun.
    Begun(Loading),
    /// A load that another caller began.
    UnderWay(Loading),
    Ended(Outcome),
    /// The most loads are running already.
    Refused,
}

impl ReadThrough {
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
        if !loads.has_room_for(budget, self.settings.max_lookups) {
            return Join::Refused;
        }
        let (sender, receiver) = watch::channel(None);
        let loading = Loading(receiver);
        loads.begin(*digest, budget, loading.clone());
        // A runtime that has ended drops the task at once, and the drop takes this lock again.
        drop(loads);
        let load = Load { cache: Arc::clone(self), digest: *digest, budget };
        self.control.spawn(load.run(sender));
        Join::Begun(loading)
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

/// One current load. Dropping it gives up its place among the loads, however it ended.
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
        self.keep(&outcome);
        // In this order: a caller that finds no load must find the outcome in the cache.
        drop(self);
        sender.send_replace(Some(outcome));
    }

    async fn look_up(&self) -> Outcome {
        for _ in 0..TRIES {
            let stamp = self.cache.fence.stamp();
            let loaded_at = self.cache.clock.mono();
            let turns = self.cache.suspicion.turns();
            match self.cache.weigh(self.cache.store.lookup(self.digest).await) {
                Lookup::Unavailable(fault) => return Outcome::Unavailable(fault),
                // The server may have been replaced between the call and its answer: then it is unknown which server
                // answered.
                _ if self.cache.suspicion.turns() != turns => {}
                Lookup::Absent => return Outcome::Absent,
                Lookup::Found(found) => {
                    // A result that was read before an event about it may be neither stored nor served.
                    let judgement = self.cache.fence.judge(stamp, &self.digest, found.org.id);
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
                if cache.known.remove(digest).is_some() {
                    // It vanished without an event, and threads still hold it.
                    cache.fence.apply(0, &[Subject::Digest(*digest)]);
                }
            }
            Outcome::Unavailable(_) => {}
        }
        cache.note_store(match outcome {
            Outcome::Unavailable(fault) => Some(fault),
            Outcome::Known(_) | Outcome::Absent => None,
        });
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.cache.lock_loads().end(&self.digest, self.budget);
    }
}
