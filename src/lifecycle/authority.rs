//! What somebody may change: everything, or what a key covers. The one place where escalation is decided on.

use std::net::IpAddr;
use std::sync::Arc;

use super::{CallingKey, Escalation, LifecycleError, Origin, Principal};
use crate::store::{Seen, Store};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::{Attempt, admit};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};
use crate::vocabulary::key::scope::ScopeSet;

/// Who asks, as the store knew them at the moment of the decision.
pub(super) enum Authority {
    Unbounded,
    Bounded(Box<Bounds>),
}

/// A calling key and its organisation.
pub(super) struct Bounds {
    key: Versioned<KeyRecord>,
    org: Versioned<OrgRecord>,
}

impl Authority {
    /// Reads who asks anew: since the request was let in, the key may have died.
    pub(super) async fn load(
        store: &Arc<dyn Store>,
        origin: &Origin,
        now: UnixMillis,
    ) -> Result<Self, LifecycleError> {
        let caller = match &origin.principal {
            Principal::Operator(_) | Principal::Gateway => return Ok(Self::Unbounded),
            Principal::Stranger => return Err(LifecycleError::Stranger),
            Principal::Key(caller) => caller,
        };
        let key = store.key(caller.id).await?.ok_or(LifecycleError::NoKey(caller.id))?;
        let org = store.org(key.record.org).await?.ok_or(LifecycleError::NoOrg(key.record.org))?;
        Self::admit(caller, origin.address, key, org, now)
    }

    /// All that let the request in must still be so: a body may take its time.
    fn admit(
        caller: &CallingKey,
        address: Option<IpAddr>,
        key: Versioned<KeyRecord>,
        org: Versioned<OrgRecord>,
        now: UnixMillis,
    ) -> Result<Self, LifecycleError> {
        let attempt = Attempt {
            digest: &caller.digest,
            // The prefix was compared with the record's environment when the request came in; neither changes.
            environment: key.record.environment,
            needs: Some(&caller.needs),
            now,
        };
        admit(&key.record, &org.record, &attempt, || address).map_err(LifecycleError::Caller)?;
        Ok(Self::Bounded(Box::new(Bounds { key, org })))
    }

    const fn caller(&self) -> Option<&KeyRecord> {
        match self {
            Self::Unbounded => None,
            Self::Bounded(caller) => Some(&caller.key.record),
        }
    }

    /// The calling key, if it is this one.
    pub(super) fn own(&self, id: KeyId) -> Option<&Versioned<KeyRecord>> {
        match self {
            Self::Bounded(caller) if caller.key.record.id == id => Some(&caller.key),
            Self::Bounded(_) | Self::Unbounded => None,
        }
    }

    /// Whether a key exists for whoever asks: one of its own organisation, and for a test key a test key.
    pub(super) fn sees(&self, key: &KeyRecord) -> bool {
        self.caller().is_none_or(|caller| {
            caller.org == key.org
                && (caller.environment == Environment::Live || key.environment == Environment::Test)
        })
    }

    /// Whether whoever asks may hold the secret of this key: it opens nothing that theirs does not, from
    /// nowhere else and for no longer.
    ///
    /// # Errors
    /// What the calling key lacks.
    pub(super) fn check_covers(&self, key: &KeyRecord) -> Result<(), LifecycleError> {
        if self.own(key.id).is_some() { Ok(()) } else { self.check_gives(key) }
    }

    /// Whether a key may become one that can do this, which their own may not either: a thief must not be able
    /// to empty its list, or to have it live for longer.
    ///
    /// # Errors
    /// What the calling key lacks.
    pub(super) fn check_gives(&self, key: &KeyRecord) -> Result<(), LifecycleError> {
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

    /// What a new key gets that does not say what it is to have.
    pub(super) fn scopes(&self, vocabulary: &ScopeSet) -> ScopeSet {
        self.caller().map_or(vocabulary, |caller| &caller.scopes).clone()
    }

    /// What a new key takes over from its maker where it says nothing else.
    pub(super) fn bequeath(&self, key: &mut KeyRecord) {
        let Some(caller) = self.caller() else { return };
        key.expires_at = key.expires_at.or(caller.expires_at);
        if key.allowed_addresses.is_empty() {
            key.allowed_addresses.clone_from(&caller.allowed_addresses);
        }
    }

    /// The records that a decision on `target` rests on beside the target itself.
    pub(super) fn seen(&self, target: Option<KeyId>) -> Vec<Seen> {
        let Self::Bounded(caller) = self else { return Vec::new() };
        let Bounds { key, org } = &**caller;
        let org = Seen::Org { id: org.record.id, rev: org.rev };
        let key =
            Some(Seen::Key { id: key.record.id, rev: key.rev }).filter(|_| target != Some(key.record.id));
        key.into_iter().chain([org]).collect()
    }
}

/// Whether a list of networks lets nobody in whom another does not. An empty one lets everybody in.
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
