//! What this gateway remembers of records, so that an older one that is put back does not count.
//!
//! A record carries a revision under its seal. Whoever can write to Redis can put back an earlier record of the same key
//! or organisation with its seal, from before it was revoked, disabled, suspended or narrowed; and a Redis that failed over
//! to a replica without the last changes does the same by itself. So the newest record after each change that is an event
//! is remembered, whoever made the change. Where Redis has an older one, the remembered one counts: in lookups, in lists
//! and for further changes, which then follow the remembered revision. The place is reported, read once more, and written
//! again by a gateway that may write.
//!
//! **Bounds.** At most [`ENTRIES`] records in [`BYTES`] bytes; of a revoked key only that it is revoked. The keys of one
//! organisation have an eighth of that at most, so that one that changes keys all day leaves the others theirs. Beyond that
//! the one is dropped that has not changed for the longest, of the organisation or of all, which is counted and logged. Then an old
//! record of that key or organisation counts again, and only its trail shows that it is old.
//!
//! **A restart.** [`super::memory_file`] keeps it beside the gateway.
//!
//! **An older store on purpose.** When an operator accepts a store, what was remembered before does not count any more. The
//! word for it stands in Redis with a proof, so that every gateway hears it, also one that does not run.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::Inner;
use super::reads::Listed;
use crate::store::StoreFault;
use crate::store::events::{EventSink, Seq, Subject};
use crate::store::keeper::{MemoryVitals, Place};
use crate::telemetry::Notice;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};

/// The most records that are remembered.
const ENTRIES: usize = 1 << 16;
/// The most bytes that they take, roughly.
const BYTES: usize = 16 << 20;
/// The part of both that the keys of one organisation can have.
const OF_ONE_ORG: usize = 8;
/// What one takes beside its text.
const OVERHEAD: usize = 160;
/// Places that may wait to be looked at. One that finds no room is reported again at its next lookup.
const REPORTED_AT_ONCE: usize = 1024;
/// Events whose records may wait to be read.
const EVENTS_AT_ONCE: usize = 4096;
/// The records, newest first, that are compared with a store that may have lost changes.
const COMPARED: usize = 4096;
/// The records of one event that are read at most.
const OF_ONE_EVENT: usize = 64;

/// A record that can be remembered.
pub(super) trait Remembered: Listed {
    fn keeper_place(&self) -> Place;
    /// Whose key it is; `None` for an organisation itself.
    fn owner(&self) -> Option<OrgId>;
    /// When it lost all rights for ever.
    fn revoked_at(&self) -> Option<UnixMillis>;
    fn revoke(&mut self, at: UnixMillis);
}

impl Remembered for KeyRecord {
    fn keeper_place(&self) -> Place {
        Place::Key(self.id)
    }

    fn owner(&self) -> Option<OrgId> {
        Some(self.org)
    }

    fn revoked_at(&self) -> Option<UnixMillis> {
        self.revoked_at
    }

    fn revoke(&mut self, at: UnixMillis) {
        self.revoked_at = Some(self.revoked_at.unwrap_or(at));
    }
}

impl Remembered for OrgRecord {
    fn keeper_place(&self) -> Place {
        Place::Org(self.id)
    }

    fn owner(&self) -> Option<OrgId> {
        None
    }

    fn revoked_at(&self) -> Option<UnixMillis> {
        None
    }

    fn revoke(&mut self, _: UnixMillis) {}
}

/// The memory of one gateway.
pub(super) struct Memory {
    state: Mutex<State>,
    /// Grows with every change of it.
    version: watch::Sender<u64>,
    report: mpsc::Sender<Place>,
    reported: Mutex<Option<mpsc::Receiver<Place>>>,
    told: mpsc::Sender<Told>,
    hearing: Mutex<Option<mpsc::Receiver<Told>>>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Place, Entry>,
    /// From the one that has not changed for the longest.
    order: VecDeque<Place>,
    bytes: usize,
    /// The keys of each organisation, in the same order.
    keys: HashMap<OrgId, Keys>,
    dropped: u64,
    set_back: u64,
    /// What was remembered before this moment does not count.
    accepted: Option<UnixMillis>,
}

#[derive(Default)]
struct Keys {
    order: VecDeque<Place>,
    bytes: usize,
}

#[derive(Clone)]
struct Entry {
    /// Whose key it is, if it is one.
    owner: Option<OrgId>,
    rev: u64,
    at: UnixMillis,
    kept: Kept,
    /// Whether Redis had an older one when it was last read.
    is_set_back: bool,
}

#[derive(Clone, PartialEq, Eq)]
enum Kept {
    Revoked(UnixMillis),
    /// The record as JSON.
    Record(Box<str>),
}

impl Entry {
    fn weight(&self) -> usize {
        OVERHEAD
            + match &self.kept {
                Kept::Revoked(_) => 0,
                Kept::Record(text) => text.len(),
            }
    }
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
        let entry = Entry { owner: record.owner(), rev, at, kept, is_set_back: false };
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
        state.entries.retain(|_, entry| entry.at > accepted);
        let forgotten = before - state.entries.len();
        state.count_anew();
        drop(state);
        self.note_change();
        Some(forgotten)
    }

    /// The moment before which nothing counts, and everything that is remembered since, for the file.
    pub(super) fn lines(&self) -> (Option<UnixMillis>, Vec<Line>) {
        let state = self.lock();
        let line = |place: &Place| {
            let Entry { owner, rev, at, kept, .. } = state.entries.get(place)?.clone();
            let (revoked_at, record) = match kept {
                Kept::Revoked(at) => (Some(at), None),
                Kept::Record(text) => (None, Some(text)),
            };
            Some(Line { of: *place, owner, rev, at, revoked_at, record })
        };
        (state.accepted, state.order.iter().filter_map(line).collect())
    }

    /// Takes what a file has, and keeps what is newer here.
    pub(super) fn take_in(&self, accepted: Option<UnixMillis>, lines: Vec<Line>) {
        accepted.map(|accepted| self.forget_before(accepted));
        let mut state = self.lock();
        for Line { of, owner, rev, at, revoked_at, record } in lines {
            let kept = revoked_at.map(Kept::Revoked).or(record.map(Kept::Record));
            if let Some(kept) = kept.filter(|_| Some(at) > state.accepted) {
                state.put(of, Entry { owner, rev, at, kept, is_set_back: false });
            }
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
        self.lock().order.iter().rev().take(COMPARED).copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Only an allocation can panic under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The record that counts in the place of an older one.
    fn amended<T: Remembered>(&self, mut stored: T) -> T {
        match self {
            Self::Revoked(at) => {
                stored.revoke(*at);
                stored
            }
            // It was written by this program. If a later one cannot read it, what Redis has is all there is.
            Self::Record(text) => serde_json::from_str(text).unwrap_or(stored),
        }
    }
}

impl State {
    /// Whether it is news.
    fn put(&mut self, place: Place, entry: Entry) -> bool {
        let before = self.entries.get(&place);
        if before.is_some_and(|before| before.rev >= entry.rev) {
            return false;
        }
        if before.is_some() {
            self.remove(place);
        }
        let owner = entry.owner;
        self.insert(place, entry);
        let is_full =
            |keys: &&Keys| keys.order.len() > ENTRIES / OF_ONE_ORG || keys.bytes > BYTES / OF_ONE_ORG;
        while let Some(keys) = owner.and_then(|owner| self.keys.get(&owner)).filter(is_full)
            && let Some(oldest) = keys.order.front().copied()
        {
            self.remove(oldest);
            self.tell_dropped();
        }
        while (self.entries.len() > ENTRIES || self.bytes > BYTES)
            && let Some(oldest) = self.order.front().copied()
        {
            self.remove(oldest);
            self.tell_dropped();
        }
        true
    }

    fn insert(&mut self, place: Place, entry: Entry) {
        self.order.push_back(place);
        self.bytes += entry.weight();
        if let Some(owner) = entry.owner {
            let keys = self.keys.entry(owner).or_default();
            keys.order.push_back(place);
            keys.bytes += entry.weight();
        }
        self.entries.insert(place, entry);
    }

    fn remove(&mut self, place: Place) {
        let Some(entry) = self.entries.remove(&place) else { return };
        take_out(&mut self.order, place);
        self.bytes -= entry.weight();
        if let Some(owner) = entry.owner
            && let Some(keys) = self.keys.get_mut(&owner)
        {
            take_out(&mut keys.order, place);
            keys.bytes -= entry.weight();
            if keys.order.is_empty() {
                self.keys.remove(&owner);
            }
        }
    }

    /// After entries were taken out.
    fn count_anew(&mut self) {
        let mut entries = std::mem::take(&mut self.entries);
        let order = std::mem::take(&mut self.order);
        self.keys.clear();
        self.bytes = 0;
        for place in order {
            if let Some(entry) = entries.remove(&place) {
                self.insert(place, entry);
            }
        }
    }

    fn tell_dropped(&mut self) {
        self.dropped += 1;
        if self.dropped == 1 {
            Notice::MemoryFull.log(&format!(
                "this gateway remembers {ENTRIES} changed records in {BYTES} bytes, which is the most: it forgets the oldest; \
                 `keygate audit verify` finds records that are older than their trails"
            ));
        }
    }
}

/// What is taken out is near the front, where the oldest is dropped.
fn take_out(order: &mut VecDeque<Place>, place: Place) {
    if let Some(n) = order.iter().position(|other| *other == place) {
        order.remove(n);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::id::KeyId;

    fn key(org: u8, number: u32) -> (Place, Entry) {
        let [a, b, c, d] = number.to_be_bytes();
        let id = KeyId::from_bytes([org, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]);
        let owner = Some(OrgId::from_bytes([org; 16]));
        let kept = Kept::Revoked(UnixMillis(1));
        (Place::Key(id), Entry { owner, rev: 2, at: UnixMillis(1), kept, is_set_back: false })
    }

    fn put(state: &mut State, (place, entry): (Place, Entry)) -> bool {
        state.put(place, entry)
    }

    #[test]
    fn an_organisation_that_changes_keys_all_day_leaves_the_others_theirs() {
        let mut state = State::default();
        let org = Place::Org(OrgId::from_bytes([1; 16]));
        let record = Kept::Record("a suspended organisation".into());
        let suspended = Entry { owner: None, rev: 2, at: UnixMillis(1), kept: record, is_set_back: false };
        assert!(state.put(org, suspended));
        assert!(put(&mut state, key(1, 0)) && put(&mut state, key(2, 0)));
        let most = u32::try_from(ENTRIES / OF_ONE_ORG).unwrap();
        for n in 1..=most {
            assert!(put(&mut state, key(1, n)));
        }
        assert_eq!((state.entries.len(), state.dropped), (ENTRIES / OF_ONE_ORG + 2, 1));
        assert!(!state.entries.contains_key(&key(1, 0).0), "its own oldest goes");
        assert!(state.entries.contains_key(&key(2, 0).0) && state.entries.contains_key(&org));
        // One that has changed again is no longer the oldest.
        let (place, entry) = key(1, 1);
        assert!(state.put(place, Entry { rev: 3, ..entry }));
        assert!(put(&mut state, key(1, most + 1)));
        assert!(state.entries.contains_key(&key(1, 1).0) && !state.entries.contains_key(&key(1, 2).0));
        assert!(!put(&mut state, key(1, 1)), "an older one is no news");
    }

    #[test]
    fn what_many_organisations_have_is_bounded_in_all_and_by_its_bytes() {
        let mut state = State::default();
        for org in 1..=10 {
            for n in 0..u32::try_from(ENTRIES / OF_ONE_ORG).unwrap() {
                assert!(put(&mut state, key(org, n)));
            }
        }
        assert_eq!((state.entries.len(), state.order.len()), (ENTRIES, ENTRIES));
        assert!(!state.keys.contains_key(&OrgId::from_bytes([1; 16])), "the oldest are those of the first");
        let large = Kept::Record("x".repeat(BYTES / OF_ONE_ORG / 2).into());
        for n in 0..10 {
            let (place, entry) = key(11, n);
            assert!(state.put(place, Entry { kept: large.clone(), ..entry }));
        }
        assert_eq!(state.keys[&OrgId::from_bytes([11; 16])].order.len(), 1);
        let (bytes, parts) = (state.bytes, state.keys.values().map(|keys| keys.bytes).sum::<usize>());
        assert_eq!(bytes, parts);
        state.entries.retain(|place, _| *place == key(11, 9).0);
        state.count_anew();
        assert_eq!((state.order.len(), state.keys.len()), (1, 1));
    }
}
