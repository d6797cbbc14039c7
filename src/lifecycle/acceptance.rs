//! Accepting a store: an operator says that it counts as it is.

use serde_json::json;

use super::Lifecycle;
use super::audit::Draft;
use super::error::LifecycleError;
use super::principal::Origin;
use crate::store::keeper::Acceptance;
use crate::vocabulary::audit::{AuditKind, Trail};

impl Lifecycle {
    /// Accepts the store as it is, and says so in the operator's trail.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn accept_store(&self, origin: &Origin) -> Result<Acceptance, LifecycleError> {
        let acceptance = self.keeper().accept().await?;
        if acceptance.changed {
            let accepted = || {
                Draft::about(AuditKind::StoreAccepted, None, None).after(json!({ "store": acceptance.store }))
            };
            self.record(Trail::Operator, origin, accepted).await?;
        }
        Ok(acceptance)
    }
}
