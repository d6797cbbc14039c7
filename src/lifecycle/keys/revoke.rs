//! The end of keys, also of those whose records cannot be read.

use serde_json::json;

use crate::lifecycle::Lifecycle;
use crate::lifecycle::audit::Draft;
use crate::lifecycle::change::Decided;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::principal::{Origin, Principal};
use crate::lifecycle::propagation::Changed;
use crate::lifecycle::turn::Lane;
use crate::store::events::Subject;
use crate::store::{Mutation, StoreFault};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::record::{KeyRecord, Versioned};

impl Lifecycle {
    /// Revokes a key, for ever. Repeating it is safe, and tells the caches again. Where its record cannot be read, an operator
    /// for all organisations can still do so: a [tombstone](crate::vocabulary::key::tombstone) takes its place.
    ///
    /// # Errors
    /// [`LifecycleError`]. After a fault of the store, repeat it until it succeeds.
    pub async fn revoke_key(&self, origin: &Origin, id: KeyId) -> Result<Changed<KeyRecord>, LifecycleError> {
        let revoked = self
            .change_key(origin, Lane::taking(origin), id, AuditKind::KeyRevoked, |_, key, now| {
                Ok(KeyRecord { revoked_at: Some(key.revoked_at.unwrap_or(now)), ..key.clone() })
            })
            .await;
        match (revoked, &origin.principal) {
            // Only of a tombstone it is said that it is revoked already.
            (
                Err(LifecycleError::Store(StoreFault::Unreadable { .. }) | LifecycleError::Revoked(_)),
                Principal::Operator(name),
            ) => self.bury_key(origin, name, id).await,
            (Err(LifecycleError::Store(StoreFault::Unreadable { why, .. })), Principal::OperatorOf(..)) => {
                Err(LifecycleError::Unprovable { key: id, why })
            }
            (revoked, _) => revoked,
        }
    }

    /// Takes the rights of a key away whose record cannot be read. Nothing of it is believed, so the operators' trail tells of
    /// it.
    async fn bury_key(
        &self,
        origin: &Origin,
        name: &str,
        id: KeyId,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        let load = async || match self.store.key(id).await {
            Ok(Some(key)) => Ok(Found::Readable(key.into())),
            Ok(None) => Err(LifecycleError::NoKey(id)),
            Err(StoreFault::Unreadable { why, .. }) => Ok(Found::Unreadable(why.as_ref().to_owned())),
            Err(fault) => Err(fault.into()),
        };
        let decide = |found: &Found, now: UnixMillis| {
            let (stone, why) = match found {
                Found::Unreadable(why) => {
                    (KeyRecord::tombstone(id, name.to_owned(), now, why.clone()), why.clone())
                }
                Found::Readable(key) if key.record.is_tombstone() => {
                    (key.record.clone(), key.record.note.clone().unwrap_or_default())
                }
                // It was put right meanwhile: the usual way leads to its end.
                Found::Readable(_) => return Err(LifecycleError::Contended(Trail::Operator)),
            };
            let draft = Draft::about(AuditKind::KeyRevoked, None, Some(id.to_string()))
                .after(json!({ "status": "revoked", "unreadable": why }));
            let mutation = Mutation {
                tombstone: Some(stone.clone()),
                subjects: vec![Subject::Key(id)],
                ..Mutation::default()
            };
            Ok(Decided::commit(mutation, draft, stone))
        };
        let line = Lane::taking(origin).of(Trail::Operator);
        let (record, propagation) = self.change(line, origin, None, load, decide).await?;
        Ok(Changed { record, propagation })
    }
}

/// The record of a key that is to be ended.
enum Found {
    Readable(Box<Versioned<KeyRecord>>),
    /// Why it cannot be read.
    Unreadable(String),
}
