//! Loads under way: one for each key, a bounded number at once, none of them in its caller's hands.

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

/// One network may have an eighth of all loads under way, and the last quarter is kept for networks that have
/// none: so well-formed guesses, which cost a load each, leave room for the keys of others.
const NETWORK_SHARE: usize = 8;
const RESERVE: usize = 4;
/// Of what known keys may have under way, the part for those that can wait.
const REFRESH_SHARE: usize = 4;

/// Out of whose budget a load is made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Budget {
    /// Whoever presents a key that is not known here, be it a guess.
    Network(ClientNetwork),
    /// A key that is known here: a flood of guesses must not make it fall out.
    Known,
    /// The same, ahead of its time: nobody waits for it.
    Refresh,
}

/// The loads under way, and how many of them each network has.
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

/// A load under way, seen by who waits for it.
#[derive(Clone, Debug)]
pub(super) struct Loading(watch::Receiver<Option<Outcome>>);

impl Loading {
    /// What it comes to; `None` if it is given up.
    pub(super) async fn outcome(mut self) -> Option<Outcome> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
    }
}

/// What a caller finds when it wants a key loaded.
pub(super) enum Join {
    /// It began one itself.
    Begun(Loading),
    /// Somebody else's.
    UnderWay(Loading),
    Ended(Outcome),
    /// As many loads are under way as may be.
    Refused,
}

impl ReadThrough {
    /// Joins the load of a key, or begins one; `instead_of` is what is cached and not good enough.
    ///
    /// The load is a task of its own on the control runtime: callers that go away take nothing with them.
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
        // A load that ended between the caller's look and this lock has left its outcome in the cache.
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
        // A runtime that has ended drops the task at once, which takes this lock again.
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
        // Nothing below can panic under this lock but an allocation, and the counts are only a bound.
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        self.keep(&outcome);
        // In this order: whoever finds no load under way must find the outcome in the cache.
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
                // Asked before somebody took its place, or answered after it was found to have one, it may be wrong:
                // whose word it is cannot be told.
                _ if self.cache.suspicion.turns() != turns => {}
                Lookup::Absent => return Outcome::Absent,
                Lookup::Found(found) => {
                    // What was read before an event about it may be neither stored nor served.
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
                // Only now: whoever reads that it was replaced must find by what.
                if let Some(before) = before {
                    before.next_refresh.store(REPLACED, Ordering::Release);
                }
            }
            Outcome::Absent => {
                cache.absent.insert(*digest, cache.clock.mono());
                if cache.known.remove(digest).is_some() {
                    // Gone without an event. Threads hold it still.
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
