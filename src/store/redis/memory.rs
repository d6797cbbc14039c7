//! What this gateway remembers of records, so that an older one that is put back does not count.
//!
//! A record carries a revision under its seal. Whoever can write to Redis can put back an earlier record of the same key
//! or organisation with its seal, from before it was revoked, disabled, suspended or narrowed; and a Redis that failed over
//! to a replica without the last changes does the same by itself. So the newest record after each change that is an event
//! is remembered, whoever made the change. Where Redis has an older one, the remembered one counts: in lookups, in lists
//! and for further changes, which then follow the remembered revision. The place is reported, read once more, and written
//! again by a gateway that may write.
//!
//! **Bounds.** At most [`ENTRIES`](super::remembered::ENTRIES) records in [`HELD_BYTES`](super::remembered::HELD_BYTES) bytes; of a revoked key only that it is revoked. The keys of one
//! organisation have an eighth of that at most, so that one that changes keys all day leaves the others theirs. Beyond that
//! the one is dropped that has not changed for the longest, of the organisation or of all, which is counted and logged. Then an old
//! record of that key or organisation counts again, and only its trail shows that it is old.
//!
//! **A restart.** [`super::memory_file`] keeps it beside the gateway.
//!
//! **An older store on purpose.** When an operator accepts a store, what was remembered before does not count any more. The
//! word for it stands in Redis with a proof, so that every gateway hears it, also one that does not run.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::Inner;
use super::remembered::{Entries, Entry, Kept, Remembered, Turn};
use crate::store::StoreFault;
use crate::store::events::{EventSink, Seq, Subject};
use crate::store::keeper::{MemoryVitals, Place};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};

/// Places that may wait to be looked at. One that finds no room is reported again at its next lookup.
const REPORTED_AT_ONCE: usize = 1024;
/// Events whose records may wait to be read.
const EVENTS_AT_ONCE: usize = 4096;
/// The records, newest first, that are compared with a store that may have lost changes.
const COMPARED: usize = 4096;
/// Lines of the file that are made at a time: lookups wait meanwhile.
const LINES_AT_ONCE: usize = 64;
/// The records of one event that are read at most.
const OF_ONE_EVENT: usize = 64;

/// The memory of one gateway.
pub(super) struct Memory {
    state: Mutex<Entries>,
    /// Grows with every change of it.
    version: watch::Sender<u64>,
    report: mpsc::Sender<Place>,
    reported: Mutex<Option<mpsc::Receiver<Place>>>,
    told: mpsc::Sender<Told>,
    hearing: Mutex<Option<mpsc::Receiver<Told>>>,
}

/// What the memory hears of the store.
enum Told {
    Event(Vec<Subject>),
    /// Events may have been missed, and changes lost.
    Doubt,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
pub(super) struct Line {
    of: Place,
    /// Older releases do not write it. Then it counts for all alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<OrgId>,
    rev: u64,
    at: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_at: Option<UnixMillis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    record: Option<Box<str>>,
}

impl Default for Memory {
    fn default() -> Self {
        let (report, reported) = mpsc::channel(REPORTED_AT_ONCE);
        let (told, hearing) = mpsc::channel(EVENTS_AT_ONCE);
        Self {
            state: Mutex::default(),
            version: watch::Sender::default(),
            report,
            reported: Mutex::new(Some(reported)),
            told,
            hearing: Mutex::new(Some(hearing)),
        }
    }
}

impl Memory {
    /// Remembers a record as it is after a change.
    pub(super) fn note<T: Remembered>(&self, rev: u64, record: &T, at: UnixMillis) {
        let kept = match record.revoked_at() {
            Some(at) => Kept::Revoked(at),
            // Our records can be written as JSON: this one was just sealed, or read.
            None => match serde_json::to_string(record) {
                Ok(text) => Kept::Record(text.into()),
                Err(_) => return,
            },
        };
        let entry = Entry::new(record.owner(), rev, at, kept);
        if self.lock().put(record.keeper_place(), entry) {
            self.note_change();
        }
    }

    /// The newest of a stored record and the remembered one.
    pub(super) fn newest<T: Remembered>(&self, stored: Versioned<T>, now: UnixMillis) -> Versioned<T> {
        let place = stored.record.keeper_place();
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&place) else { return stored };
        entry.is_set_back = stored.rev < entry.rev;
        if entry.is_set_back {
            let (rev, kept) = (entry.rev, entry.kept.clone());
            drop(state);
            // If there is no room, it is reported at its next lookup.
            let _ = self.report.try_send(place);
            return Versioned { rev, record: kept.amended(stored.record) };
        }
        if stored.rev > entry.rev {
            drop(state);
            self.note(stored.rev, &stored.record, now);
        }
        stored
    }

    /// The revision that is remembered of a record.
    pub(super) fn revision_of(&self, place: Place) -> Option<u64> {
        self.lock().entries.get(&place).map(|entry| entry.rev)
    }

    /// Whether a change that was decided on revision `seen` may replace revision `stored`: what was seen is what is
    /// remembered in its place.
    pub(super) fn stands_for(&self, place: Place, seen: u64, stored: u64) -> bool {
        stored < seen && self.lock().entries.get(&place).is_some_and(|entry| entry.rev == seen)
    }

    /// Whether Redis had an older record when this one was last read.
    pub(super) fn is_set_back(&self, place: Place) -> bool {
        self.lock().entries.get(&place).is_some_and(|entry| entry.is_set_back)
    }

    /// Whether a key is remembered as revoked.
    pub(super) fn is_revoked(&self, place: Place) -> bool {
        self.lock().entries.get(&place).is_some_and(|entry| matches!(entry.kept, Kept::Revoked(_)))
    }

    pub(super) fn count_set_back(&self) {
        self.lock().set_back += 1;
    }

    pub(super) fn reported(&self) -> Option<mpsc::Receiver<Place>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn vitals(&self) -> MemoryVitals {
        let state = self.lock();
        MemoryVitals {
            records: state.entries.len(),
            bytes: state.bytes,
            set_back: state.set_back,
            dropped: state.dropped,
        }
    }

    /// Forgets what was remembered before this moment, if that is news. Returns how many records it was.
    pub(super) fn forget_before(&self, accepted: UnixMillis) -> Option<usize> {
        let mut state = self.lock();
        if Some(accepted) <= state.accepted {
            return None;
        }
        state.accepted = Some(accepted);
        let before = state.entries.len();
        state.forget_through(accepted);
        let forgotten = before - state.entries.len();
        drop(state);
        self.note_change();
        Some(forgotten)
    }

    /// The moment before which nothing counts.
    pub(super) fn accepted(&self) -> Option<UnixMillis> {
        self.lock().accepted
    }

    /// Some of what is remembered, for the file, and the turn of the last; nothing after the newest. What changes between two
    /// calls gets a later turn, and so comes again.
    pub(super) fn lines_after(&self, turn: Turn) -> Option<(Turn, Vec<Line>)> {
        let state = self.lock();
        let mut last = None;
        let line = |(turn, of, entry): (Turn, Place, &Entry)| {
            last = Some(turn);
            let Entry { owner, rev, at, kept, .. } = entry.clone();
            let (revoked_at, record) = match kept {
                Kept::Revoked(at) => (Some(at), None),
                Kept::Record(text) => (None, Some(text)),
            };
            Line { of, owner, rev, at, revoked_at, record }
        };
        let lines = state.after(turn).take(LINES_AT_ONCE).map(line).collect();
        last.map(|last| (last, lines))
    }

    /// Takes a line of a file, unless what is here is newer.
    pub(super) fn take_in(&self, Line { of, owner, rev, at, revoked_at, record }: Line) {
        let kept = revoked_at.map(Kept::Revoked).or(record.map(Kept::Record));
        let mut state = self.lock();
        if let Some(kept) = kept.filter(|_| Some(at) > state.accepted) {
            state.put(of, Entry::new(owner, rev, at, kept));
        }
    }

    /// Tells of changes that are to be written down.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn note_change(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// The places that were remembered last.
    fn newest_places(&self) -> Vec<Place> {
        self.lock().order.values().rev().take(COMPARED).copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Only an allocation can panic under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for Memory {
    fn apply(&self, _: Seq, subjects: &[Subject]) {
        // If there is no room, the record is remembered when it is looked up, or compared with its trail.
        let _ = self.told.try_send(Told::Event(subjects.to_vec()));
    }

    fn reset(&self, _: Seq) {
        let _ = self.told.try_send(Told::Doubt);
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("vitals", &self.vitals()).finish_non_exhaustive()
    }
}

/// Reads the record of every event, and compares everything when changes may have been lost.
pub(super) async fn listen(inner: &Inner) {
    let hearing = inner.memory.hearing.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut hearing) = hearing else { return };
    while let Some(told) = hearing.recv().await {
        match told {
            Told::Event(subjects) => {
                for subject in subjects.into_iter().take(OF_ONE_EVENT) {
                    // If Redis does not answer now, the next lookup remembers nothing: the cache asks it again anyway.
                    let _ = inner.remember(subject).await;
                }
            }
            Told::Doubt => {
                for place in inner.memory.newest_places() {
                    if inner.is_set_back(place).await.is_err() {
                        break;
                    }
                }
            }
        }
    }
}

impl Inner {
    async fn remember(&self, subject: Subject) -> Result<(), StoreFault> {
        let now = self.clock.kept();
        match subject {
            Subject::Org(org) => {
                let name = self.names.org(org);
                if let Some(org) = self.record::<OrgRecord>(name, org.to_bytes()).await? {
                    self.memory.note(org.rev, &org.record, now);
                }
            }
            Subject::Key(key) => {
                if let Some(key) = self.record::<KeyRecord>(self.names.key(key), key.to_bytes()).await? {
                    self.memory.note(key.rev, &key.record, now);
                }
            }
            Subject::Digest(digest) | Subject::Revoked(digest) => {
                if let Some(key) = self.key_of(digest).await? {
                    self.memory.note(key.rev, &key.record, now);
                }
            }
        }
        Ok(())
    }

    /// Reads a record again, and tells whether Redis has an older one than this gateway remembers.
    pub(super) async fn is_set_back(&self, place: Place) -> Result<bool, StoreFault> {
        match place {
            Place::Org(org) => drop(self.record::<OrgRecord>(self.names.org(org), org.to_bytes()).await?),
            Place::Key(key) => drop(self.record::<KeyRecord>(self.names.key(key), key.to_bytes()).await?),
        }
        Ok(self.memory.is_set_back(place))
    }
}
