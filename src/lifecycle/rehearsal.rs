//! Collisions between the lines of one import, found in a rehearsal: a store that is not written to cannot find them.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};

use super::input::fields::parse_network;
use super::moved::{Imported, MovedKey, MovedSecret, Time, collision};
use crate::vocabulary::key::Digest;

/// The keys that an import would have inserted so far, as hashes: the places where each can be found, and marks that
/// show in which fields another key differs. About 80 bytes a key, measured with a million keys.
#[derive(Debug, Default)]
pub struct Rehearsal {
    hasher: RandomState,
    /// The index in `lines` of the first line with a secret or an id.
    places: BTreeMap<u64, u32>,
    lines: Vec<(u64, Fields)>,
}

/// The compared parts of a key. `places` are its secrets and its id, in the order in which [`Lifecycle::import_keys`]
/// looks for them: secrets first.
///
/// [`Lifecycle::import_keys`]: super::Lifecycle::import_keys
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    places: [Option<u64>; 3],
    fields: Fields,
}

/// 32 bits of each field's hash, in the order of [`FIELDS`]; [`NONE`] for an absent field.
type Fields = [u32; FIELDS.len()];
const NONE: u32 = 0;

/// Whether a field's marks, in an earlier line and in this one, make them different keys.
type Differs = fn(there: u32, own: u32) -> bool;

const FIELDS: [(&str, Differs); 13] = [
    ("secret", unlike),
    // If a line has none, the earlier line's was drawn at random, or is its own time.
    ("id", unlike_where_given),
    ("organization_id", unlike),
    ("name", unlike),
    ("environment", unlike),
    ("scopes", unlike),
    ("created_at", unlike_where_given),
    ("expires_at", unlike),
    ("disabled_at", stopped_only_now),
    ("revoked_at", stopped_only_now),
    ("owner", unlike),
    ("note", unlike),
    ("allowed_addresses", unlike),
];

impl Rehearsal {
    /// The marks of a key, for this rehearsal only.
    #[must_use]
    pub fn marks(&self, key: &MovedKey) -> Marks {
        let digest = |sha256: Option<Digest>, digest: Option<Digest>| {
            sha256.map(|digest| (0_u8, *digest.as_bytes())).or(digest.map(|digest| (1, *digest.as_bytes())))
        };
        let newest = digest(key.sha256, key.digest);
        let older = key.old_secret.as_ref();
        let older = older.and_then(|MovedSecret { sha256, digest: other, .. }| digest(*sha256, *other));
        let id = key.id.map(|id| (2_u8, id.to_bytes()));
        let time = |time: Option<Time>| self.mark(time.map(|time| time.0));
        // In the form in which the store has them.
        let networks = key.allowed_addresses.iter().map(|text| parse_network(text).ok());
        Marks {
            places: [self.place(newest), self.place(older), self.place(id)],
            fields: [
                self.mark(newest),
                self.mark(id),
                self.mark(key.organization_id.map(|org| org.to_bytes())),
                self.mark(Some(key.name.trim())),
                self.mark(Some(key.environment)),
                self.mark(Some(key.scopes.to_string())),
                time(key.created_at),
                time(key.expires_at),
                time(key.disabled_at),
                time(key.revoked_at),
                self.mark(key.owner.as_deref().map(str::trim)),
                self.mark(key.note.as_deref()),
                self.mark(Some(networks.collect::<Vec<_>>())),
            ],
        }
    }

    /// The outcome for the key of this line, which the store does not have.
    pub fn judge(&mut self, line: u64, marks: Marks) -> Imported {
        let Marks { places, fields } = marks;
        let first = places.iter().flatten().find_map(|place| self.places.get(place));
        if let Some((first, there)) = first.and_then(|first| self.lines.get(*first as usize)) {
            let fields = FIELDS.iter().zip(there.iter().zip(fields));
            let differences = fields.map(|((field, differs), (there, own))| (*field, differs(*there, own)));
            return collision(&format_args!("line {first}"), differences);
        }
        // A rehearsal covers no more lines than this.
        if let Ok(n) = u32::try_from(self.lines.len()) {
            self.lines.push((line, fields));
            self.places.extend(places.into_iter().flatten().map(|place| (place, n)));
        }
        Imported::New
    }

    fn place(&self, of: Option<impl Hash>) -> Option<u64> {
        of.map(|of| self.hasher.hash_one(of))
    }

    fn mark(&self, of: Option<impl Hash>) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "a part of a hash is a hash")]
        of.map_or(NONE, |of| (self.hasher.hash_one(of) as u32).max(NONE + 1))
    }
}

const fn unlike(there: u32, own: u32) -> bool {
    own != there
}

const fn unlike_where_given(there: u32, own: u32) -> bool {
    own != NONE && own != there
}

/// A key that was stopped since is still the same key; a key that should be stopped and is not is another.
const fn stopped_only_now(there: u32, own: u32) -> bool {
    own != NONE && there == NONE
}
