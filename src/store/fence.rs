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
//!
//! What was revoked is remembered besides, and by no reset forgotten: a store that lost its last changes would
//! bring it back.
//!
//! `fence_model.rs` runs this file under loom.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::PoisonError;

use super::events::{EventSink, Seq, Subject};
use super::sync::{AtomicU64, Ordering, RwLock};
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::Digest;

/// A moment in the order of events.
pub type Stamp = u64;

/// How many subjects are remembered at most. Past it the oldest are forgotten and the floor rises.
const REMEMBERED: usize = 1 << 16;
/// How many revoked digests are remembered at most, beside those.
const REVOKED: usize = 1 << 16;

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
    revoked: HashSet<Digest>,
    revoked_order: VecDeque<Digest>,
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
    pub(super) fn remembering(remembered: usize) -> Self {
        Self { current: AtomicU64::new(0), recent: RwLock::new(Recent::default()), remembered }
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

    /// Whether an event has ever said that the digest opens nothing any more; as far as is remembered.
    #[must_use]
    pub fn is_revoked(&self, digest: &Digest) -> bool {
        self.recent.read().unwrap_or_else(PoisonError::into_inner).revoked.contains(digest)
    }

    /// At most `limit` digests that are remembered as revoked, the newest first.
    #[must_use]
    pub fn revoked(&self, limit: usize) -> Vec<Digest> {
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        recent.revoked_order.iter().rev().take(limit).copied().collect()
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

impl Recent {
    fn remember_revoked(&mut self, digest: Digest) {
        if self.revoked.insert(digest) {
            self.revoked_order.push_back(digest);
        }
        if self.revoked_order.len() > REVOKED
            && let Some(oldest) = self.revoked_order.pop_front()
        {
            self.revoked.remove(&oldest);
        }
    }
}

impl EventSink for Fence {
    fn apply(&self, _: Seq, subjects: &[Subject]) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.current.load(Ordering::Relaxed) + 1;
        for subject in subjects {
            let touched = match *subject {
                Subject::Digest(_) | Subject::Org(_) => *subject,
                Subject::Revoked(digest) => {
                    recent.remember_revoked(digest);
                    Subject::Digest(digest)
                }
            };
            recent.last_event.insert(touched, stamp);
            recent.order.push_back((stamp, touched));
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
