//! The descendants of a key: the keys that it made, those that they made, and so on. After a theft they are the thief's
//! ways back, so a key can be revoked together with them.
//!
//! A key knows its maker ([`KeyRecord::created_by`]), and no key its children, so all keys of the organisation are
//! read: page by page, by one request for each organisation at a time, and one of an operator beside it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::lifecycle::Lifecycle;
use crate::lifecycle::change::{Decided, MadeChange};
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::principal::Origin;
use crate::lifecycle::propagation::Changed;
use crate::lifecycle::turn::{Lane, Line};
use crate::store::KeysOf;
use crate::store::unreadable::id_of;
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{KeyRecord, Status, Versioned};

/// Keys read at once.
const PAGE: usize = 256;
/// How often the keys are looked through again for those that were made meanwhile. Each time only keys can be there
/// whose makers were alive the time before, so more than two are rare.
const ROUNDS: usize = 64;

/// One request at a time for each organisation that looks through its keys. Operators wait for no key.
#[derive(Debug, Default)]
pub(in crate::lifecycle) struct Lineages(StdMutex<HashMap<Line, Weak<Mutex<()>>>>);

impl Lineages {
    async fn take(&self, line: Line) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.get(&line).and_then(Weak::upgrade).unwrap_or_default();
            turns.insert(line, Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }
}

impl Lifecycle {
    /// The number of descendants of a key that can still be used, now or once they are enabled.
    ///
    /// # Errors
    /// [`LifecycleError::NoKey`] also for a key that the principal may not see; why the caller may not act; a fault
    /// of the store.
    pub async fn count_descendants(&self, origin: &Origin, id: KeyId) -> Result<usize, LifecycleError> {
        let org = self.key(origin, id).await?.org;
        let _turn = self.take_lineage(origin, org, id).await?;
        Ok(self.living_descendants(org, id).await?.len())
    }

    /// The turn to look through the keys of an organisation. Whoever may not act any more when it comes does not: so a
    /// thief's requests that wait here end with the key.
    async fn take_lineage(
        &self,
        origin: &Origin,
        org: OrgId,
        id: KeyId,
    ) -> Result<OwnedMutexGuard<()>, LifecycleError> {
        let turn = self.lineages.take(Lane::taking(origin).of(Trail::Org(org))).await;
        self.key(origin, id).await?;
        Ok(turn)
    }

    /// Revokes a key and its descendants, for ever; also those that are made while this runs. `expected` is the number
    /// of descendants as the caller knows it, since the key of a signup is the ancestor of all.
    ///
    /// # Errors
    /// [`LifecycleError::Descendants`] for another number; then nothing was revoked. Otherwise [`LifecycleError`];
    /// then some may be revoked, and the key itself is the first. Repeat it, with the number that is told then.
    pub async fn revoke_with_descendants(
        &self,
        origin: &Origin,
        id: KeyId,
        expected: usize,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        let org = self.key(origin, id).await?.org;
        let _turn = self.take_lineage(origin, org, id).await?;
        let mut living = self.living_descendants(org, id).await?;
        if living.len() != expected {
            return Err(LifecycleError::Descendants { key: id, found: living.len() });
        }
        // First, so that it makes no more. With this the caller's right to all of it is judged: the caller may be
        // among those that die.
        let mut revoked = self.revoke_key(origin, id).await?;
        for _ in 0..ROUNDS {
            if living.is_empty() {
                return Ok(revoked);
            }
            if let Some(last) = self.revoke_all(origin, org, &living).await? {
                // Who has applied the last event has applied those before it.
                revoked.propagation = self.propagate_change(Some(last)).await;
            }
            living = self.living_descendants(org, id).await?;
        }
        Err(LifecycleError::Contended(Trail::Org(org)))
    }

    /// Revokes these keys. Returns the last change; `None` if all of them were revoked before.
    async fn revoke_all(
        &self,
        origin: &Origin,
        org: OrgId,
        keys: &[KeyId],
    ) -> Result<Option<MadeChange>, LifecycleError> {
        let (line, mut last) = (Lane::taking(origin).of(Trail::Org(org)), None);
        for id in keys {
            let load = || async { self.store.key(*id).await?.ok_or(LifecycleError::NoKey(*id)) };
            let decide = |key: &Versioned<KeyRecord>, now: UnixMillis| {
                if key.record.revoked_at.is_some() {
                    return Ok(Decided::nothing(()));
                }
                let record = KeyRecord { revoked_at: Some(now), ..key.record.clone() };
                let (mutation, draft) = self.replace(AuditKind::KeyRevoked, key, &record, Vec::new());
                Ok(Decided::commit(mutation, draft, ()))
            };
            let ((), committed) = self.commit_change(line, origin, None, load, decide).await?;
            last = committed.or(last);
        }
        Ok(last)
    }

    /// The descendants of a key that are neither revoked nor expired, nearest first. The way to them may lead over keys
    /// that are, and over keys that are gone.
    async fn living_descendants(&self, org: OrgId, id: KeyId) -> Result<Vec<KeyId>, LifecycleError> {
        let (mut children, mut keys) = (HashMap::<KeyId, Vec<(KeyId, bool)>>::new(), HashSet::new());
        let mut after = None;
        loop {
            let page = self.store.list_keys(KeysOf::Org(org), after, PAGE).await?;
            let now = self.now();
            // Who made a key that cannot be read is unknown. It opens nothing here, and an operator ends it.
            for Versioned { record: key, .. } in page.iter().flatten() {
                if let Ok(maker) = KeyId::parse(&key.created_by) {
                    let lives = matches!(key.status_at(now), Status::Active | Status::Disabled);
                    children.entry(maker).or_default().push((key.id, lives));
                }
            }
            keys.extend(page.iter().map(id_of));
            after = page.last().map(id_of);
            if page.len() < PAGE {
                break;
            }
        }
        let makers = children.keys().filter(|maker| !keys.contains(maker)).copied().collect();
        for (key, maker) in self.lineage_of_gone(makers).await? {
            children.entry(maker).or_default().push((key, false));
        }
        let (mut living, mut makers) = (Vec::new(), vec![id]);
        let mut next = 0;
        while let Some(maker) = makers.get(next) {
            // Removed, so that records which name each other as makers end too.
            let made = children.remove(maker).unwrap_or_default();
            living.extend(made.iter().filter(|(_, lives)| *lives).map(|(key, _)| *key));
            makers.extend(made.into_iter().map(|(key, _)| key));
            next += 1;
        }
        living.retain(|key| *key != id);
        Ok(living)
    }
}
