//! The fence: why a cached key can be trusted without asking the store.
//!
//! Every change that takes rights away is an event. The fence counts them and remembers the subjects of each. A
//! cached entry carries a [`Stamp`]: the count *before* its load began. While the count has not changed, the entry is
//! current; checking this costs one atomic load. When it has changed, the reader checks whether any event since the
//! stamp concerned this key or its organisation. If not, the stamp is renewed; if so, the entry is dead.
//!
//! The order inside [`EventSink::apply`] makes this sound: first the subjects are stored, then the new count is
//! published. So a reader of count N finds the subjects of all events up to N.
//!
//! Stamps are this process's own count, not the store's event numbers, so they never decrease, whatever happens to
//! the store.
//!
//! Revoked digests are remembered separately, and no reset forgets them: a store that lost its last changes would
//! bring them back. All organisations share their room. What that could cost is little: with Redis the gateway also remembers the
//! records, of each organisation a part, and only changes that were made just before the loss come back.
//!
//! `fence_model.rs` runs this file under loom.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::PoisonError;

use super::events::{EventSink, Seq, Subject};
use super::sync::{AtomicU64, Ordering, RwLock};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;

/// A moment in the order of events.
pub type Stamp = u64;

/// The most subjects that are remembered. Beyond it the oldest are forgotten and the floor rises.
const REMEMBERED: usize = 1 << 16;
/// The most revoked digests that are remembered.
const REVOKED: usize = 1 << 16;
/// What all of that takes in memory at the most, in bytes: a table can be half empty, and has a byte beside each place.
pub const HELD_BYTES: usize = REMEMBERED
    * (2 * (size_of::<(Subject, Stamp)>() + 1) + size_of::<(Stamp, Subject)>())
    + REVOKED * (2 * (size_of::<Digest>() + 1) + size_of::<Digest>());

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
    /// An entry stamped before this may be concerned by an event that is no longer remembered.
    floor: Stamp,
    revoked: HashSet<Digest>,
    revoked_order: VecDeque<Digest>,
}

/// The fence's judgement of a stamped entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// No event since the stamp.
    Current,
    /// There were events, none about this entry: it may get this new stamp.
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
    pub fn judge(&self, stamp: Stamp, digest: &Digest, key: &KeyId, org: OrgId) -> Judgement {
        let current = self.current.load(Ordering::Acquire);
        if stamp == current { Judgement::Current } else { self.judge_moved(stamp, digest, key, org) }
    }

    /// Whether a remembered event said that the digest never opens anything again.
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

    /// What it takes in memory, in bytes: what the tables and the lists have room for.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        // A table is seven eighths full at the most.
        recent.last_event.capacity().div_ceil(7) * 8 * (size_of::<(Subject, Stamp)>() + 1)
            + recent.order.capacity() * size_of::<(Stamp, Subject)>()
            + recent.revoked.capacity().div_ceil(7) * 8 * (size_of::<Digest>() + 1)
            + recent.revoked_order.capacity() * size_of::<Digest>()
    }

    #[cold]
    fn judge_moved(&self, stamp: Stamp, digest: &Digest, key: &KeyId, org: OrgId) -> Judgement {
        // Before the subjects: those of all events up to it are there.
        let current = self.current.load(Ordering::Acquire);
        // A writer that panicked leaves at most one subject too many, which is harmless.
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        let touched = |subject| recent.last_event.get(&subject).is_some_and(|event| *event > stamp);
        let subjects = [Subject::Digest(*digest), Subject::Org(org), Subject::Key(*key)];
        if stamp < recent.floor || subjects.into_iter().any(touched) {
            Judgement::Touched
        } else {
            Judgement::Untouched(current)
        }
    }
}

impl Recent {
    fn remember_revoked(&mut self, digest: Digest) {
        if self.revoked.contains(&digest) {
            return;
        }
        // First: a list that is one too long for its room doubles it.
        if self.revoked_order.len() >= REVOKED
            && let Some(oldest) = self.revoked_order.pop_front()
        {
            self.revoked.remove(&oldest);
        }
        self.revoked.insert(digest);
        self.revoked_order.push_back(digest);
    }

    fn remember(&mut self, subject: Subject, stamp: Stamp, most: usize) {
        // First, too.
        while self.order.len() >= most {
            let Some((forgotten, subject)) = self.order.pop_front() else { break };
            if self.last_event.get(&subject) == Some(&forgotten) {
                self.last_event.remove(&subject);
            }
            self.floor = self.floor.max(forgotten);
        }
        self.last_event.insert(subject, stamp);
        self.order.push_back((stamp, subject));
    }
}

impl EventSink for Fence {
    fn apply(&self, _: Seq, subjects: &[Subject]) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.current.load(Ordering::Relaxed) + 1;
        for subject in subjects {
            let touched = match *subject {
                Subject::Digest(_) | Subject::Org(_) | Subject::Key(_) => *subject,
                Subject::Revoked(digest) => {
                    recent.remember_revoked(digest);
                    Subject::Digest(digest)
                }
            };
            recent.remember(touched, stamp, self.remembered);
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
