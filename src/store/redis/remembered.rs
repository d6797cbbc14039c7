//! The records that a gateway [remembers](super::memory), bounded by what the keys of one organisation have and in all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use super::reads::Listed;
use crate::store::keeper::Place;
use crate::telemetry::Notice;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::record::{KeyRecord, OrgRecord};

/// The most records that are remembered.
pub(super) const ENTRIES: usize = 1 << 16;
/// The most bytes that they take, roughly.
pub const HELD_BYTES: usize = 16 << 20;
/// The part of both that the keys of one organisation can have.
const OF_ONE_ORG: usize = 8;
/// What one takes beside its text.
const OVERHEAD: usize = 256;

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

/// When a record was remembered last, as the number of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn(u64);

#[derive(Default)]
pub(super) struct Entries {
    pub(super) entries: HashMap<Place, Entry>,
    /// From the one that has not changed for the longest.
    pub(super) order: BTreeMap<Turn, Place>,
    last: Turn,
    pub(super) bytes: usize,
    /// The keys of each organisation.
    keys: HashMap<OrgId, Keys>,
    pub(super) dropped: u64,
    pub(super) set_back: u64,
    /// What was remembered before this moment does not count.
    pub(super) accepted: Option<UnixMillis>,
}

#[derive(Default)]
struct Keys {
    turns: BTreeSet<Turn>,
    bytes: usize,
}

#[derive(Clone)]
pub(super) struct Entry {
    /// Whose key it is, if it is one.
    pub(super) owner: Option<OrgId>,
    turn: Turn,
    pub(super) rev: u64,
    pub(super) at: UnixMillis,
    pub(super) kept: Kept,
    /// Whether Redis had an older one when it was last read.
    pub(super) is_set_back: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Kept {
    Revoked(UnixMillis),
    /// The record as JSON.
    Record(Box<str>),
}

impl Entry {
    pub(super) fn new(owner: Option<OrgId>, rev: u64, at: UnixMillis, kept: Kept) -> Self {
        Self { owner, turn: Turn::default(), rev, at, kept, is_set_back: false }
    }

    fn weight(&self) -> usize {
        OVERHEAD
            + match &self.kept {
                Kept::Revoked(_) => 0,
                Kept::Record(text) => text.len(),
            }
    }
}

impl Kept {
    /// The record that counts in the place of an older one.
    pub(super) fn amended<T: Remembered>(&self, mut stored: T) -> T {
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

impl Entries {
    /// Whether it is news.
    pub(super) fn put(&mut self, place: Place, entry: Entry) -> bool {
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
            |keys: &&Keys| keys.turns.len() > ENTRIES / OF_ONE_ORG || keys.bytes > HELD_BYTES / OF_ONE_ORG;
        while let Some(keys) = owner.and_then(|owner| self.keys.get(&owner)).filter(is_full)
            && let Some(oldest) = keys.turns.first().and_then(|turn| self.order.get(turn)).copied()
        {
            self.remove(oldest);
            self.tell_dropped();
        }
        while (self.entries.len() > ENTRIES || self.bytes > HELD_BYTES)
            && let Some(oldest) = self.order.values().next().copied()
        {
            self.remove(oldest);
            self.tell_dropped();
        }
        true
    }

    fn insert(&mut self, place: Place, mut entry: Entry) {
        self.last.0 += 1;
        entry.turn = self.last;
        self.order.insert(entry.turn, place);
        self.bytes += entry.weight();
        if let Some(owner) = entry.owner {
            let keys = self.keys.entry(owner).or_default();
            keys.turns.insert(entry.turn);
            keys.bytes += entry.weight();
        }
        self.entries.insert(place, entry);
    }

    fn remove(&mut self, place: Place) {
        let Some(entry) = self.entries.remove(&place) else { return };
        self.order.remove(&entry.turn);
        self.bytes -= entry.weight();
        if let Some(owner) = entry.owner
            && let Some(keys) = self.keys.get_mut(&owner)
        {
            keys.turns.remove(&entry.turn);
            keys.bytes -= entry.weight();
            if keys.turns.is_empty() {
                self.keys.remove(&owner);
            }
        }
    }

    /// Forgets what was remembered at this moment or before.
    pub(super) fn forget_through(&mut self, moment: UnixMillis) {
        let old = self.entries.iter().filter(|(_, entry)| entry.at <= moment);
        let old: Vec<Place> = old.map(|(place, _)| *place).collect();
        old.into_iter().for_each(|place| self.remove(place));
    }

    /// Those that come after a turn, from the one that has not changed for the longest.
    pub(super) fn after(&self, turn: Turn) -> impl Iterator<Item = (Turn, Place, &Entry)> {
        let later = self.order.range((Bound::Excluded(turn), Bound::Unbounded));
        later.filter_map(|(turn, place)| Some((*turn, *place, self.entries.get(place)?)))
    }

    fn tell_dropped(&mut self) {
        self.dropped += 1;
        if self.dropped == 1 {
            Notice::MemoryFull.log(&format!(
                "this gateway remembers {ENTRIES} changed records in {HELD_BYTES} bytes, which is the most: it forgets the oldest; \
                 `keygate audit verify` finds records that are older than their trails"
            ));
        }
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
        (Place::Key(id), Entry::new(owner, 2, UnixMillis(1), kept))
    }

    pub(super) fn put(state: &mut Entries, (place, entry): (Place, Entry)) -> bool {
        state.put(place, entry)
    }

    #[test]
    fn an_organisation_that_changes_keys_all_day_leaves_the_others_theirs() {
        let mut state = Entries::default();
        let org = Place::Org(OrgId::from_bytes([1; 16]));
        let record = Kept::Record("a suspended organisation".into());
        assert!(state.put(org, Entry::new(None, 2, UnixMillis(1), record)));
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
        let mut state = Entries::default();
        for org in 1..=10 {
            for n in 0..u32::try_from(ENTRIES / OF_ONE_ORG).unwrap() {
                assert!(put(&mut state, key(org, n)));
            }
        }
        assert_eq!((state.entries.len(), state.order.len()), (ENTRIES, ENTRIES));
        assert!(!state.keys.contains_key(&OrgId::from_bytes([1; 16])), "the oldest are those of the first");
        let large = Kept::Record("x".repeat(HELD_BYTES / OF_ONE_ORG / 2).into());
        for n in 0..10 {
            let (place, entry) = key(11, n);
            assert!(state.put(place, Entry { kept: large.clone(), ..entry }));
        }
        assert_eq!(state.keys[&OrgId::from_bytes([11; 16])].turns.len(), 1);
        let (bytes, parts) = (state.bytes, state.keys.values().map(|keys| keys.bytes).sum::<usize>());
        assert_eq!(bytes, parts);
        let (place, entry) = key(11, 10);
        assert!(state.put(place, Entry { at: UnixMillis(2), ..entry }));
        state.forget_through(UnixMillis(1));
        assert_eq!((state.order.len(), state.keys.len(), state.bytes), (1, 1, OVERHEAD));
        assert_eq!(state.after(Turn::default()).map(|(_, place, _)| place).collect::<Vec<_>>(), [place]);
    }
}
