//! Records that cannot be read: somebody has changed them outside keygate, a newer keygate has written them, or the entry that
//! names them leads to nothing.
//!
//! Such a record is a fault of its own. A lookup of its key is *unavailable*; a list has an entry that says so in its place, and
//! the entries of all others.

use std::fmt;

use super::StoreFault;
use super::keeper::Place;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{BadRecord, KeyRecord, OrgRecord, Sealer, Stored, Versioned};

/// A record that a list names and that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable<I> {
    pub id: I,
    pub why: String,
}

/// An entry of a list: the record, or that it cannot be read.
pub type Listed<T> = Result<Versioned<T>, Unreadable<<T as Identified>::Id>>;

/// A record with the id by which lists name it.
pub trait Identified {
    type Id: Copy + fmt::Debug + PartialEq + Eq;

    /// The id of the record at this place.
    fn id_at(place: [u8; 16]) -> Self::Id;
    fn place_of(id: Self::Id) -> Place;
    fn id_of(record: &Self) -> Self::Id;
}

impl Identified for KeyRecord {
    type Id = KeyId;

    fn id_at(place: [u8; 16]) -> KeyId {
        KeyId::from_bytes(place)
    }

    fn place_of(id: KeyId) -> Place {
        Place::Key(id)
    }

    fn id_of(record: &Self) -> KeyId {
        record.id
    }
}

impl Identified for OrgRecord {
    type Id = OrgId;

    fn id_at(place: [u8; 16]) -> OrgId {
        OrgId::from_bytes(place)
    }

    fn place_of(id: OrgId) -> Place {
        Place::Org(id)
    }

    fn id_of(record: &Self) -> OrgId {
        record.id
    }
}

/// The id of an entry.
#[must_use]
pub fn id_of<T: Identified>(entry: &Listed<T>) -> T::Id {
    match entry {
        Ok(stored) => T::id_of(&stored.record),
        Err(unreadable) => unreadable.id,
    }
}

/// Why a list names a record that is not there.
pub(super) const MISSING: &str = "it is missing";
/// Why a key that an organisation's list names does not belong there.
pub(super) const OF_ANOTHER: &str = "it is in this organisation's list, and another organisation's";

/// The entry of a list for these bytes.
pub(super) fn entry<T: Stored + Identified>(
    sealer: &Sealer,
    place: [u8; 16],
    bytes: Option<&[u8]>,
) -> Listed<T> {
    let opened = bytes
        .ok_or_else(|| MISSING.to_owned())
        .and_then(|bytes| sealer.open_at(&place, bytes).map_err(|bad| bad.to_string()));
    opened.map_err(|why| Unreadable { id: T::id_at(place), why })
}

/// The fault of a record whose bytes cannot be read.
pub(super) fn fault<T: Identified>(place: [u8; 16], bad: BadRecord) -> StoreFault {
    match bad {
        BadRecord::Newer { .. } => bad.into(),
        bad => StoreFault::unreadable(T::place_of(T::id_at(place)), bad),
    }
}

/// The records of a list, for whoever must miss none.
pub(super) fn all_read<T: Identified>(list: Vec<Listed<T>>) -> Result<Vec<Versioned<T>>, StoreFault> {
    let read = |entry: Listed<T>| {
        entry.map_err(|Unreadable { id, why }| StoreFault::unreadable(T::place_of(id), why))
    };
    list.into_iter().map(read).collect()
}
