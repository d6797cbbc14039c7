//! A change of a key's fields.

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use super::fields::Mistakes;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::record::{KeyRecord, Status};
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::rejection::FieldError;

/// The changes to a key; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Some(None)`, JSON's `null`, removes the owner; likewise the note.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub owner: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub note: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<ScopeSet>,
    /// `Some(None)` removes the end.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub expires_at: Option<Option<UnixMillis>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_addresses: Option<Vec<IpNet>>,
}

const NO_REASON: &str = "would become wider, and that needs a reason: pass --reason";

/// How far a patch may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lifecycle) enum Room {
    /// Scopes can only become fewer, and the end only earlier.
    Narrower,
    /// An operator may give more scopes and a later end, and says why.
    Wider { has_reason: bool },
}

/// Tells `null` from a field that is absent.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(field: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(field).map(Some)
}

impl Patch {
    /// Whether it says anything about the rights of the key. Only an operator's patch can make them more.
    #[must_use]
    pub const fn concerns_rights(&self) -> bool {
        self.scopes.is_some() || self.expires_at.is_some() || self.allowed_addresses.is_some()
    }

    /// The key with the rights that the patch asks for, whether or not it may have them. Unknown scopes give no
    /// rights.
    pub(in crate::lifecycle) fn wanted(&self, key: &KeyRecord, vocabulary: &ScopeSet) -> KeyRecord {
        let scopes = self.scopes.clone().filter(|scopes| vocabulary.first_missing(scopes).is_none());
        let addresses = self.allowed_addresses.as_ref().unwrap_or(&key.allowed_addresses);
        KeyRecord {
            scopes: scopes.unwrap_or_else(|| key.scopes.clone()),
            expires_at: self.expires_at.unwrap_or(key.expires_at),
            allowed_addresses: addresses.clone(),
            ..key.clone()
        }
    }

    /// Whether the patch lets the key live again: it has expired, and the patch gives it an end that is still to come,
    /// or none.
    pub(in crate::lifecycle) fn revives(&self, key: &KeyRecord, now: UnixMillis) -> bool {
        key.status_at(now) == Status::Expired
            && self.expires_at.is_some_and(|end| end.is_none_or(|end| end > now))
    }

    /// The patched key.
    ///
    /// # Errors
    /// Every mistake.
    pub(in crate::lifecycle) fn apply(
        &self,
        key: &KeyRecord,
        vocabulary: &ScopeSet,
        (now, room): (UnixMillis, Room),
    ) -> Result<KeyRecord, Vec<FieldError>> {
        let mut mistakes = Mistakes::default();
        let mut patched = key.clone();
        if let Some(name) = self.name.as_deref().and_then(|name| mistakes.name(name)) {
            patched.name = name;
        }
        if let Some(owner) = &self.owner {
            patched.owner = mistakes.owner(owner.as_deref());
        }
        if let Some(note) = &self.note {
            patched.note = mistakes.note(note.as_deref());
        }
        if let Some(scopes) = &self.scopes {
            let more = mistakes.scopes(scopes, vocabulary) && key.scopes.first_missing(scopes).is_some();
            match room {
                _ if !more => {}
                Room::Narrower => mistakes.add("scopes", "can only become fewer; make a new key for more"),
                Room::Wider { has_reason: false } => mistakes.add("scopes", NO_REASON),
                Room::Wider { has_reason: true } => {}
            }
            patched.scopes = scopes.clone();
        }
        if let Some(expires_at) = self.expires_at {
            check_end(key.expires_at, expires_at, (now, room), &mut mistakes);
            patched.expires_at = expires_at;
        }
        if let Some(addresses) = &self.allowed_addresses {
            mistakes.addresses(addresses);
            patched.allowed_addresses.clone_from(addresses);
        }
        mistakes.finish(Some(patched))
    }
}

fn check_end(
    before: Option<UnixMillis>,
    end: Option<UnixMillis>,
    (now, room): (UnixMillis, Room),
    mistakes: &mut Mistakes,
) {
    let later = match (before, end) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(before), Some(end)) => end > before,
    };
    match room {
        Room::Narrower if later => {
            return mistakes.add("expires_at", "can only become earlier; make a new key for longer");
        }
        Room::Wider { has_reason: false } if later => mistakes.add("expires_at", NO_REASON),
        Room::Narrower | Room::Wider { .. } => {}
    }
    if end.is_some_and(|end| end <= now) {
        mistakes.add("expires_at", "must lie in the future; revoke the key to end it now");
    }
}
