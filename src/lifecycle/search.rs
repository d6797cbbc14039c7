//! Finding keys by what an operator knows of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Lifecycle;
use super::error::LifecycleError;
use super::principal::Origin;
use super::view::KeyView;
use crate::store::unreadable::Unreadable;
use crate::store::{Found, KeysOf, Lookup, Store, StoreFault};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::admission::{Attempt, admit};
use crate::vocabulary::key::record::{KeyRecord, Status};
use crate::vocabulary::key::usage::Usage;
use crate::vocabulary::key::{Digest, Environment};

/// Keys read at once.
const PAGE: usize = 256;
/// Keys looked through for one page of a filtered list.
const LOOKED_THROUGH: usize = 4096;

/// The keys that are wanted; every condition must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyFilter {
    pub org: Option<OrgId>,
    pub owner: Option<String>,
    pub environment: Option<Environment>,
    pub status: Option<Status>,
    /// Not used for at least this long; for a key that was never used, its age counts.
    pub unused_for: Option<Duration>,
    /// At least this old.
    pub older_than: Option<Duration>,
    /// Neither revoked nor expired, with an end within this time from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_within: Option<Duration>,
}

/// A part of a list of keys, newest first.
#[derive(Clone, Debug)]
pub struct FoundKeys {
    pub keys: Vec<KeyView>,
    /// Those in between whose records cannot be read: whether they are wanted cannot be told.
    pub unreadable: Vec<Unreadable<KeyId>>,
    /// The key after which the next page begins; `None` on the last page.
    pub next: Option<KeyId>,
}

/// The key that a secret belongs to.
#[derive(Clone, Debug)]
pub struct Owned {
    pub key: KeyRecord,
    /// Whether the secret is valid now.
    pub opens: bool,
}

impl KeyFilter {
    fn wants(&self, key: &KeyRecord, usage: Option<&Usage>, now: UnixMillis) -> bool {
        let before = |age: Option<Duration>, at: UnixMillis| age.is_none_or(|age| at <= now.minus(age));
        let last_used = usage.map_or(key.created_at, |usage| usage.last_used_at);
        self.owner.as_ref().is_none_or(|owner| key.owner.as_ref() == Some(owner))
            && self.environment.is_none_or(|environment| key.environment == environment)
            && self.status.is_none_or(|status| key.status_at(now) == status)
            && before(self.unused_for, last_used)
            && before(self.older_than, key.created_at)
            && self.expires_within.is_none_or(|within| {
                let ended = matches!(key.status_at(now), Status::Revoked | Status::Expired);
                !ended && key.expires_at.is_some_and(|end| end <= now.plus(within))
            })
    }
}

impl Lifecycle {
    /// At most `limit` keys after the key `after`.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn find_keys(
        &self,
        origin: &Origin,
        filter: &KeyFilter,
        mut after: Option<KeyId>,
        limit: usize,
    ) -> Result<FoundKeys, LifecycleError> {
        let (mut keys, mut unreadable, mut looked_at) = (Vec::new(), Vec::new(), 0);
        let of = match (filter.org, filter.environment) {
            (None, _) => KeysOf::All,
            (Some(org), None) => KeysOf::Org(org),
            (Some(org), Some(environment)) => KeysOf::Environment(org, environment),
        };
        loop {
            let page = self.list_keys(origin, of, after, PAGE).await?;
            let usage = self.store.usage().of(page.keys.iter().map(|key| key.id).collect()).await?;
            let now = self.now();
            for (key, usage) in page.keys.iter().zip(&usage) {
                if filter.wants(key, usage.as_ref(), now) {
                    if keys.len() == limit {
                        let before =
                            page.unreadable.iter().filter(|key| after.is_none_or(|end| key.id > end));
                        unreadable.extend(before.cloned());
                        return Ok(FoundKeys { keys, unreadable, next: after });
                    }
                    keys.push(self.view_key(key, usage.as_ref()));
                }
                after = Some(key.id);
            }
            unreadable.extend(page.unreadable);
            looked_at += PAGE;
            if !page.has_more || looked_at >= LOOKED_THROUGH {
                return Ok(FoundKeys { keys, unreadable, next: after.filter(|_| page.has_more) });
            }
        }
    }

    /// The names of the organisations of these keys.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn names_of_orgs(&self, keys: &[KeyView]) -> Result<BTreeMap<OrgId, String>, LifecycleError> {
        let orgs: BTreeSet<OrgId> = keys.iter().map(|key| key.organization_id).collect();
        let mut names = BTreeMap::new();
        for id in orgs {
            match self.store.org(id).await {
                Ok(Some(org)) => drop(names.insert(id, org.record.name)),
                // Its id has to do.
                Ok(None) | Err(StoreFault::Unreadable { .. }) => {}
                Err(fault) => return Err(fault.into()),
            }
        }
        Ok(names)
    }

    /// The key whose secret has this SHA-256, in any state, if the principal may see it.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn find_secret(
        &self,
        origin: &Origin,
        sha256: [u8; 32],
    ) -> Result<Option<Owned>, LifecycleError> {
        let found = answer(self.store.lookup_secret(Digest::from_bytes(sha256)).await)?;
        let Some(found) = found else { return Ok(None) };
        let Found { key, org, digest } = &*found;
        if !origin.principal.reaches(org.id) {
            return Ok(None);
        }
        let attempt = Attempt { digest, environment: key.environment, needs: None, now: self.now() };
        // An operator asks, so no client's address counts.
        let opens = admit(key, org, &attempt, || None).is_ok();
        Ok(Some(Owned { key: key.clone(), opens }))
    }

    /// A key with what is known of its use.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn view_used(&self, key: &KeyRecord) -> Result<KeyView, LifecycleError> {
        let usage = self.store.usage().of(vec![key.id]).await?;
        Ok(self.view_key(key, usage.first().and_then(Option::as_ref)))
    }
}

pub(super) async fn find_digest(
    store: &Arc<dyn Store>,
    digest: Digest,
) -> Result<Option<Arc<Found>>, StoreFault> {
    answer(store.lookup(digest).await)
}

pub(super) fn answer(lookup: Lookup) -> Result<Option<Arc<Found>>, StoreFault> {
    match lookup {
        Lookup::Found(found) => Ok(Some(found)),
        Lookup::Absent => Ok(None),
        Lookup::Unavailable(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::id::IdSource;
    use crate::vocabulary::key::record::Further;
    use crate::vocabulary::key::scope::ScopeSet;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    fn key(age: u32) -> KeyRecord {
        let mut ids = IdSource::seeded(1);
        KeyRecord {
            id: KeyId::draw(&mut ids, NOW),
            org: OrgId::draw(&mut ids, NOW),
            name: "a key".to_owned(),
            environment: Environment::Live,
            scopes: ScopeSet::default(),
            secrets: Vec::new(),
            created_at: NOW.minus(DAY * age),
            created_by: "test".to_owned(),
            expires_at: None,
            disabled_at: None,
            revoked_at: None,
            allowed_addresses: Vec::new(),
            owner: Some("billing".to_owned()),
            note: None,
            further: Further::default(),
        }
    }

    fn used(ago: u32) -> Usage {
        Usage { last_used_at: NOW.minus(DAY * ago), scopes: ScopeSet::default() }
    }

    #[test]
    fn a_key_that_was_never_used_is_unused_since_it_was_made() {
        let filter = KeyFilter { unused_for: Some(DAY * 90), ..KeyFilter::default() };
        assert!(filter.wants(&key(100), None, NOW));
        assert!(!filter.wants(&key(10), None, NOW), "nobody had the time to use it");
        assert!(!filter.wants(&key(100), Some(&used(89)), NOW));
        assert!(filter.wants(&key(100), Some(&used(90)), NOW));
    }

    #[test]
    fn only_a_key_that_is_still_to_end_expires_within_a_time() {
        let filter = KeyFilter { expires_within: Some(DAY * 7), ..KeyFilter::default() };
        let ending = |end: Option<UnixMillis>| KeyRecord { expires_at: end, ..key(1) };
        for (end, wanted) in [
            (None, false),
            (Some(NOW), false),
            (Some(NOW.plus(DAY)), true),
            (Some(NOW.plus(DAY * 7)), true),
            (Some(NOW.plus(DAY * 8)), false),
        ] {
            assert_eq!(filter.wants(&ending(end), None, NOW), wanted, "{end:?}");
        }
        let revoked = KeyRecord { revoked_at: Some(NOW), ..ending(Some(NOW.plus(DAY))) };
        assert!(!filter.wants(&revoked, None, NOW));
    }

    #[test]
    fn everything_that_is_said_must_hold() {
        let old = KeyFilter { older_than: Some(DAY * 30), ..KeyFilter::default() };
        assert!(old.wants(&key(30), Some(&used(0)), NOW) && !old.wants(&key(29), None, NOW));
        let owned = KeyFilter { owner: Some("billing".to_owned()), ..old };
        assert!(owned.wants(&key(30), None, NOW) && !owned.wants(&key(29), None, NOW));
        let other = KeyFilter { owner: Some("jobs".to_owned()), ..owned };
        assert!(!other.wants(&key(30), None, NOW));
        for status in Status::ALL {
            let filter = KeyFilter { status: Some(status), ..KeyFilter::default() };
            assert_eq!(filter.wants(&key(1), None, NOW), status == Status::Active);
        }
        let test = KeyFilter { environment: Some(Environment::Test), ..KeyFilter::default() };
        assert!(!test.wants(&key(1), None, NOW));
    }
}
