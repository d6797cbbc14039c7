//! Changes of keys that can be undone: fields, disabling, enabling.

use super::refuse_ended;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::input::patch::{Patch, Room};
use crate::lifecycle::principal::Origin;
use crate::lifecycle::propagation::Changed;
use crate::lifecycle::turn::Lane;
use crate::vocabulary::audit::AuditKind;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::record::KeyRecord;
use crate::vocabulary::rejection::FieldError;

impl Lifecycle {
    /// Changes a key's fields. Only an operator can give a key more rights: more scopes, or a later end, which also lets
    /// an expired key live again. Such a change needs a reason.
    ///
    /// # Errors
    /// [`LifecycleError`]; then nothing was changed, except after a fault of the store, which leaves that open.
    pub async fn update_key(
        &self,
        origin: &Origin,
        id: KeyId,
        patch: &Patch,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        let lane = if patch.concerns_rights() { Lane::taking(origin) } else { Lane::Making };
        self.change_key(origin, lane, id, AuditKind::KeyUpdated, |authority, key, now| {
            let room = authority.room(origin);
            if room == Room::Narrower || !patch.revives(key, now) {
                refuse_ended(key, now)?;
            }
            let vocabulary = self.vocabulary();
            authority.check_covers(key)?;
            // Before the mistakes that everybody can make: a caller that asks for more rights than it has is told so,
            // and the audit trail too.
            authority.check_gives(&patch.wanted(key, &vocabulary))?;
            patch.apply(key, &vocabulary, (now, room)).map_err(LifecycleError::Invalid)
        })
        .await
    }

    /// All mistakes in a patch of this key by another key, or by itself.
    ///
    /// # Errors
    /// [`LifecycleError::NoKey`] also for a key that the principal may not see; why the caller may not act; a fault
    /// of the store.
    pub async fn mistakes_in_patch(
        &self,
        origin: &Origin,
        id: KeyId,
        patch: &Patch,
    ) -> Result<Vec<FieldError>, LifecycleError> {
        let key = self.key(origin, id).await?;
        Ok(patch.apply(&key, &self.vocabulary(), (self.now(), Room::Narrower)).err().unwrap_or_default())
    }

    /// Disables a key until it is enabled again.
    ///
    /// # Errors
    /// As [`Lifecycle::update_key`].
    pub async fn disable_key(
        &self,
        origin: &Origin,
        id: KeyId,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        self.change_key(origin, Lane::taking(origin), id, AuditKind::KeyDisabled, |_, key, now| {
            refuse_ended(key, now)?;
            Ok(KeyRecord { disabled_at: Some(key.disabled_at.unwrap_or(now)), ..key.clone() })
        })
        .await
    }

    /// Enables a disabled key.
    ///
    /// # Errors
    /// As [`Lifecycle::update_key`].
    pub async fn enable_key(&self, origin: &Origin, id: KeyId) -> Result<Changed<KeyRecord>, LifecycleError> {
        self.change_key(origin, Lane::Making, id, AuditKind::KeyEnabled, |authority, key, now| {
            refuse_ended(key, now)?;
            authority.check_covers(key)?;
            Ok(KeyRecord { disabled_at: None, ..key.clone() })
        })
        .await
    }
}
