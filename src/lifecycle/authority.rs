//! The rights of a principal: all rights, or those that a key covers. Escalation is decided here and nowhere else.
//!
//! Three steps, each with a type: [`Standing::load`] reads the records of a principal; [`Standing::admit`] judges
//! them at one moment; only then is there an [`Authority`], which answers what may be done.

use std::net::IpAddr;
use std::sync::Arc;

use super::error::{Escalation, LifecycleError};
use super::input::patch::Room;
use super::principal::{CallingKey, Origin, Principal};
use crate::store::{Seen, Store};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::admission::{Attempt, admit};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::key::{Digest, Environment};

/// The records of a principal, as they were read from the store. Whether it may act is judged when a change is decided.
#[derive(Debug)]
pub struct Standing(Option<Box<Bounds>>);

/// A calling key and its organisation. A principal without bounds has neither.
#[derive(Debug)]
pub(super) struct Bounds {
    key: Versioned<KeyRecord>,
    org: Versioned<OrgRecord>,
}

impl Standing {
    /// Reads the calling key and its organisation: since the request was let in, either may have changed.
    pub(super) async fn load(store: &Arc<dyn Store>, origin: &Origin) -> Result<Self, LifecycleError> {
        let id = match &origin.principal {
            Principal::Operator(_) | Principal::OperatorOf(..) | Principal::Gateway => return Ok(Self(None)),
            Principal::Stranger => return Err(LifecycleError::Stranger),
            Principal::Key(calling) => calling.id,
        };
        let key = store.key(id).await?.ok_or(LifecycleError::NoKey(id))?;
        let org = store.org(key.record.org).await?.ok_or(LifecycleError::NoOrg(key.record.org))?;
        Ok(Self(Some(Box::new(Bounds { key, org }))))
    }

    /// Judges the principal at the moment `now`. Everything that let the request in must still hold, because a body
    /// may arrive slowly, and a change may wait for its turn.
    ///
    /// # Errors
    /// Why the calling key may not act.
    pub(super) fn admit<'s>(
        &'s self,
        origin: &'s Origin,
        now: UnixMillis,
    ) -> Result<Authority<'s>, LifecycleError> {
        match (&origin.principal, self.0.as_deref()) {
            (Principal::Operator(_) | Principal::Gateway, _) => Ok(Authority::Unbounded),
            (Principal::OperatorOf(_, orgs), _) => Ok(Authority::Within(orgs)),
            (Principal::Key(calling), Some(bounds)) => {
                bounds.admit(calling, origin.address, now)?;
                Ok(Authority::Bounded(bounds, bounds.end_of(&calling.digest)))
            }
            // Records of another principal, or none: the answer is no.
            (Principal::Key(_), None) | (Principal::Stranger, _) => Err(LifecycleError::Stranger),
        }
    }
}

impl Bounds {
    fn admit(
        &self,
        calling: &CallingKey,
        address: Option<IpAddr>,
        now: UnixMillis,
    ) -> Result<(), LifecycleError> {
        let (key, org) = (&self.key.record, &self.org.record);
        let attempt = Attempt {
            digest: &calling.digest,
            // The prefix was compared with the record's environment when the request came in; neither changes.
            environment: key.environment,
            needs: Some(&calling.needs),
            now,
        };
        admit(key, org, &attempt, || address).map_err(LifecycleError::Caller)
    }

    /// When a secret of the key ends, where a rotation gave it an end.
    fn end_of(&self, digest: &Digest) -> Option<UnixMillis> {
        self.key.record.secrets.iter().find(|secret| secret.digest == *digest)?.ends_at
    }
}

/// The rights of an admitted principal. Made only by [`Standing::admit`], and for signups.
#[derive(Clone, Copy, Debug)]
pub(super) enum Authority<'s> {
    Unbounded,
    /// Everything about the keys of these organisations.
    Within(&'s [OrgId]),
    /// With the end of the secret that was presented, where a rotation gave it one. The holder of such a secret need
    /// not be the owner any more, so it gives no rights and can only take them away.
    Bounded(&'s Bounds, Option<UnixMillis>),
}

impl<'s> Authority<'s> {
    const fn caller(self) -> Option<&'s KeyRecord> {
        match self {
            Self::Unbounded | Self::Within(_) => None,
            Self::Bounded(bounds, _) => Some(&bounds.key.record),
        }
    }

    /// The calling key, if it is this one.
    pub(super) fn own(self, id: KeyId) -> Option<&'s Versioned<KeyRecord>> {
        match self {
            Self::Bounded(bounds, _) if bounds.key.record.id == id => Some(&bounds.key),
            Self::Bounded(..) | Self::Unbounded | Self::Within(_) => None,
        }
    }

    /// Whether a key exists for the principal: a key of its own organisation, and for a test key a test key.
    pub(super) fn sees(self, key: &KeyRecord) -> bool {
        if let Self::Within(orgs) = self {
            return orgs.contains(&key.org);
        }
        self.caller().is_none_or(|caller| {
            caller.org == key.org
                && (caller.environment == Environment::Live || key.environment == Environment::Test)
        })
    }

    /// Whether the principal may hold the secret of this key: the key can do nothing that the calling key cannot,
    /// from no other address and for no longer.
    ///
    /// # Errors
    /// The right that the calling key lacks, or that its secret was rotated out.
    pub(super) fn check_covers(self, key: &KeyRecord) -> Result<(), LifecycleError> {
        self.check_lasts()?;
        if self.own(key.id).is_some() { Ok(()) } else { self.check_gives(key) }
    }

    /// Whether the principal may hear the secret of this key again, which it was told before.
    ///
    /// A secret that was rotated out may hear that of its own key: of the rotations of a key only the last one leaves
    /// the secret before it alive, so it is the answer to the rotation that gave it an end.
    ///
    /// # Errors
    /// As [`Authority::check_covers`].
    pub(super) fn check_hears_again(self, key: &KeyRecord) -> Result<(), LifecycleError> {
        if self.own(key.id).is_some() { Ok(()) } else { self.check_covers(key) }
    }

    fn check_lasts(self) -> Result<(), LifecycleError> {
        match self {
            Self::Unbounded | Self::Within(_) | Self::Bounded(_, None) => Ok(()),
            Self::Bounded(_, Some(end)) => Err(LifecycleError::SecretEnding(end)),
        }
    }

    /// Whether the principal may turn a key into this one. That goes for the calling key too: a thief must not be
    /// able to empty its address list, or to let it live longer.
    ///
    /// # Errors
    /// As [`Authority::check_covers`].
    pub(super) fn check_gives(self, key: &KeyRecord) -> Result<(), LifecycleError> {
        self.check_lasts()?;
        if let Self::Within(_) = self
            && !self.sees(key)
        {
            return Err(LifecycleError::NoOrg(key.org));
        }
        let Some(caller) = self.caller() else { return Ok(()) };
        if let Some(missing) = caller.scopes.first_missing(&key.scopes) {
            return Err(LifecycleError::MissingScope(missing.clone()));
        }
        if caller.environment == Environment::Test && key.environment == Environment::Live {
            return Err(LifecycleError::Escalation(Escalation::LiveFromTest));
        }
        let outlives = match (caller.expires_at, key.expires_at) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(own), Some(other)) => other > own,
        };
        if outlives {
            return Err(LifecycleError::Escalation(Escalation::OutlivesCaller));
        }
        if !within(&key.allowed_addresses, &caller.allowed_addresses) {
            return Err(LifecycleError::Escalation(Escalation::WiderAddresses));
        }
        Ok(())
    }

    /// How far the principal may change a key. Only an operator may give a key rights that it does not have: a key never
    /// can, not even to another key.
    pub(super) const fn room(self, origin: &Origin) -> Room {
        match (self, &origin.principal) {
            (Self::Unbounded, Principal::Operator(_)) | (Self::Within(_), Principal::OperatorOf(..)) => {
                Room::Wider { has_reason: origin.reason.is_some() }
            }
            (Self::Unbounded | Self::Within(_) | Self::Bounded(..), _) => Room::Narrower,
        }
    }

    /// The scopes of a new key whose maker does not name any.
    pub(super) fn scopes(self, vocabulary: &ScopeSet) -> ScopeSet {
        self.caller().map_or(vocabulary, |caller| &caller.scopes).clone()
    }

    /// Gives a new key its maker's end and address list, where it has none of its own.
    pub(super) fn bequeath(self, key: &mut KeyRecord) {
        let Some(caller) = self.caller() else { return };
        key.expires_at = key.expires_at.or(caller.expires_at);
        if key.allowed_addresses.is_empty() {
            key.allowed_addresses.clone_from(&caller.allowed_addresses);
        }
    }

    /// The records that a decision on `target` rests on, beside the target itself.
    pub(super) fn seen(self, target: Option<KeyId>) -> Vec<Seen> {
        let Self::Bounded(Bounds { key, org }, _) = self else { return Vec::new() };
        let org = Seen::Org { id: org.record.id, rev: org.rev };
        let key =
            Some(Seen::Key { id: key.record.id, rev: key.rev }).filter(|_| target != Some(key.record.id));
        key.into_iter().chain([org]).collect()
    }
}

/// Whether a list of networks admits no address that `outer` does not. An empty list admits every address.
fn within(inner: &[ipnet::IpNet], outer: &[ipnet::IpNet]) -> bool {
    outer.is_empty()
        || !inner.is_empty() && inner.iter().all(|net| outer.iter().any(|around| around.contains(net)))
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn a_list_of_networks_is_within_another_only_if_all_of_it_is() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let ten = nets(&["10.0.0.0/8", "2001:db8::/32"]);
        for inner in [&["10.1.0.0/16"][..], &["10.0.0.0/8", "2001:db8::1/128"]] {
            assert!(within(&nets(inner), &ten), "{inner:?}");
        }
        for outside in [&[][..], &["0.0.0.0/0"], &["10.1.0.0/16", "11.0.0.0/8"], &["::/0"]] {
            assert!(!within(&nets(outside), &ten), "{outside:?}");
            assert!(within(&nets(outside), &[]));
        }
    }
}
