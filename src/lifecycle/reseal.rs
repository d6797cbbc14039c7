//! The end of an old pepper: sealing everything anew under the one that replaced it.

use serde_json::json;

use super::Lifecycle;
use super::audit::Draft;
use super::error::LifecycleError;
use super::principal::Origin;
use crate::store::Mutation;
use crate::store::keeper::{Place, Resealed};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::key::pepper::Age;
use crate::vocabulary::key::record::RecordFormat;

impl Lifecycle {
    /// Seals some records anew, from `after` on, and gives the trails of their organisations a record under the new pepper:
    /// from then on nobody can continue them who has only the old one. What was done before is not done again.
    ///
    /// # Errors
    /// When the store cannot answer. Then what was done so far stays.
    pub async fn reseal(&self, origin: &Origin, after: Option<Place>) -> Result<Resealed, LifecycleError> {
        let done = self.keeper().reseal(after).await?;
        for org in &done.orgs {
            self.end_old_key(origin, Trail::Org(*org)).await?;
        }
        Ok(done)
    }

    /// Notes that nothing is left under the pepper before, after a look at every record.
    ///
    /// # Errors
    /// When something is left, or the store cannot answer.
    pub async fn finish_reseal(&self, origin: &Origin) -> Result<(), LifecycleError> {
        self.end_old_key(origin, Trail::Operator).await?;
        Ok(self.keeper().finish_reseal().await?)
    }

    async fn end_old_key(&self, origin: &Origin, trail: Trail) -> Result<(), LifecycleError> {
        if self.ends_under_current_key(trail).await? {
            return Ok(());
        }
        let draft = || {
            let pepper = self.settings.peppers.status().and_then(|status| status.current);
            Draft::about(AuditKind::StoreResealed, None, None).after(json!({ "pepper": pepper }))
        };
        self.record_with(trail, origin, draft, || Mutation {
            needs: RecordFormat::PEPPERS,
            ..Mutation::default()
        })
        .await
    }

    /// Whether the newest record of a trail is under the current key; also true for a trail without records, and where the
    /// key of the trails is none of the peppers.
    async fn ends_under_current_key(&self, trail: Trail) -> Result<bool, LifecycleError> {
        let chain = &self.settings.chain;
        if !chain.knows_when_keys_changed() {
            return Ok(true);
        }
        let ends = self.store.trails().ends(trail).await?;
        let mut newest = self.store.trails().entries(trail, None, 2).await?.into_iter();
        let Some(entry) = newest.next() else { return Ok(true) };
        let after = newest.next().map_or(ends.checkpoint, |before| before.link);
        // A trail that does not hold together is for `audit verify` to tell.
        Ok(chain.check(trail, &after, &entry).map_or(true, |age| age == Age::CURRENT))
    }
}
