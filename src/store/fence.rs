//! The fence: why a cached key can be trusted without asking the store.
//!
//! Every change that takes rights away is an event. The fence counts them and remembers whom each concerned.
//! What is cached carries a [`Stamp`]: the count *before* its load began. As long as the count has not moved,
//! it is current, which costs a reader one atomic load. Once it has moved, the reader asks whether any event
//! since the stamp concerned this key or its organisation: if none did, the stamp is renewed; if one did, the
//! entry is dead.
//!
//! The order inside [`EventSink::apply`] is what makes this sound: first the subjects are written down, then
//! the new count is published. Whoever reads count N therefore finds every subject of the events up to N.
//!
//! Stamps are this process's own count, not the store's event numbers, so they never run backwards, whatever
//! happens to the store.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use super::events::{EventSink, Seq, Subject};
use crate::id::OrgId;
use crate::key::Digest;

/// A moment in the order of events.
pub type Stamp = u64;

/// How many subjects are remembered at most. Past it the oldest are forgotten and the floor rises.
const REMEMBERED: usize = 1 << 16;

#[derive(Debug)]
pub struct Fence {
    current: AtomicU64,
    recent: RwLock<Recent>,
    remembered: usize,
}

#[derive(Debug, Default)]
struct Recent {
    last_event: HashMap<Subject, Stamp>,
    order: VecDeque<(Stamp, Subject)>,
    /// What is stamped before this may be concerned by an event that is no longer remembered.
    floor: Stamp,
}

/// What the fence says of a stamped entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// No event since the stamp.
    Current,
    /// Events, none of them about this entry: it may be stamped anew with this.
    Untouched(Stamp),
    /// An event concerns it, or may concern it: it must be loaded again.
    Touched,
}

impl Default for Fence {
    fn default() -> Self {
        Self::remembering(REMEMBERED)
    }
}

impl Fence {
    fn remembering(remembered: usize) -> Self {
        Self { current: AtomicU64::new(0), recent: RwLock::default(), remembered }
    }

    /// The stamp for a load that begins now.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.current.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn judge(&self, stamp: Stamp, digest: &Digest, org: OrgId) -> Judgement {
        let current = self.current.load(Ordering::Acquire);
        if stamp == current { Judgement::Current } else { self.judge_moved(stamp, current, digest, org) }
    }

    #[cold]
    fn judge_moved(&self, stamp: Stamp, current: Stamp, digest: &Digest, org: OrgId) -> Judgement {
        // A writer that panicked leaves at worst a subject too many; what is written can be used.
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        let touched = |subject| recent.last_event.get(&subject).is_some_and(|event| *event > stamp);
        if stamp < recent.floor || touched(Subject::Digest(*digest)) || touched(Subject::Org(org)) {
            Judgement::Touched
        } else {
            Judgement::Untouched(current)
        }
    }
}

impl EventSink for Fence {
    fn apply(&self, _: Seq, subjects: &[Subject]) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.current.load(Ordering::Relaxed) + 1;
        for subject in subjects {
            recent.last_event.insert(*subject, stamp);
            recent.order.push_back((stamp, *subject));
        }
        while recent.order.len() > self.remembered {
            let Some((forgotten, subject)) = recent.order.pop_front() else { break };
            if recent.last_event.get(&subject) == Some(&forgotten) {
                recent.last_event.remove(&subject);
            }
            recent.floor = recent.floor.max(forgotten);
        }
        self.current.store(stamp, Ordering::Release);
    }

    fn reset(&self, _: Seq) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.current.load(Ordering::Relaxed) + 1;
        recent.floor = stamp;
        self.current.store(stamp, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    fn org(n: u8) -> OrgId {
        OrgId::from_bytes([n; 16])
    }

    #[test]
    fn an_event_touches_its_key_or_its_organisation_and_nobody_else() {
        let fence = Fence::default();
        let stamp = fence.stamp();
        assert_eq!(fence.judge(stamp, &digest(1), org(1)), Judgement::Current);
        fence.apply(1, &[Subject::Digest(digest(1))]);
        assert_eq!(fence.judge(stamp, &digest(1), org(1)), Judgement::Touched);
        assert_eq!(fence.judge(stamp, &digest(2), org(1)), Judgement::Untouched(fence.stamp()));
        fence.apply(2, &[Subject::Org(org(1))]);
        assert_eq!(fence.judge(stamp, &digest(2), org(1)), Judgement::Touched);
        assert_eq!(fence.judge(stamp, &digest(2), org(2)), Judgement::Untouched(fence.stamp()));
        assert_eq!(fence.judge(fence.stamp(), &digest(1), org(1)), Judgement::Current);
    }

    #[test]
    fn after_a_reset_nothing_from_before_is_trusted() {
        let fence = Fence::default();
        let stamp = fence.stamp();
        fence.reset(0);
        assert_eq!(fence.judge(stamp, &digest(1), org(1)), Judgement::Touched);
        assert_eq!(fence.judge(fence.stamp(), &digest(1), org(1)), Judgement::Current);
    }

    proptest! {
        /// The fence against a list of all events ever: it may ask for a load too many, never for one too
        /// few.
        #[test]
        fn a_bounded_memory_never_misses_an_event(
            events in proptest::collection::vec(proptest::option::weighted(0.9, (any::<bool>(), 0_u8..6)), 0..60),
            asked in proptest::collection::vec((0_usize..60, 0_u8..6, 0_u8..6), 1..40),
        ) {
            let fence = Fence::remembering(8);
            let mut stamps = vec![fence.stamp()];
            for event in &events {
                match event {
                    Some((true, n)) => fence.apply(0, &[Subject::Digest(digest(*n))]),
                    Some((false, n)) => fence.apply(0, &[Subject::Org(org(*n))]),
                    None => fence.reset(0),
                }
                stamps.push(fence.stamp());
            }
            for (at, d, o) in asked {
                let at = at % stamps.len();
                let concerned = events[at..].iter().any(|event| match event {
                    Some((true, n)) => *n == d,
                    Some((false, n)) => *n == o,
                    None => true,
                });
                let judgement = fence.judge(stamps[at], &digest(d), org(o));
                if concerned {
                    prop_assert_eq!(judgement, Judgement::Touched);
                }
                if events.len() - at <= 8 && !concerned {
                    prop_assert_ne!(judgement, Judgement::Touched, "remembered, so no load is needed");
                }
            }
        }
    }
}
