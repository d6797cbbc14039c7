//! The end of keys.

use crate::lifecycle::Lifecycle;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::principal::Origin;
use crate::lifecycle::propagation::Changed;
use crate::lifecycle::turn::Lane;
use crate::vocabulary::audit::AuditKind;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::record::KeyRecord;

impl Lifecycle {
    /// Revokes a key, for ever. Repeating it is safe, and tells the caches again.
    ///
    /// # Errors
    /// [`LifecycleError`]. After a fault of the store, repeat it until it succeeds.
    pub async fn revoke_key(&self, origin: &Origin, id: KeyId) -> Result<Changed<KeyRecord>, LifecycleError> {
        self.change_key(origin, Lane::taking(origin), id, AuditKind::KeyRevoked, |_, key, now| {
            Ok(KeyRecord { revoked_at: Some(key.revoked_at.unwrap_or(now)), ..key.clone() })
        })
        .await
    }
}
