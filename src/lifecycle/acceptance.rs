//! Accepting a store: an operator says that it counts as it is.

use serde_json::json;

use super::Lifecycle;
use super::audit::Draft;
use super::backup::Restored;
use super::error::LifecycleError;
use super::principal::Origin;
use crate::store::keeper::Acceptance;
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::record::Versioned;

/// Held news that are read at once.
const PAGE: usize = 64;

impl Lifecycle {
    /// Accepts the store as it is, and the news in it that have no proof, and says so in the operator's trail. With `older`,
    /// records that are older than gateways remember count, too.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn accept_store(&self, origin: &Origin, older: bool) -> Result<Acceptance, LifecycleError> {
        let mut acceptance = self.keeper().accept(older).await?;
        (acceptance.news, acceptance.news_removed) = self.accept_news().await?;
        let Acceptance { store, changed, news, news_removed } = &acceptance;
        if *changed || older || *news + *news_removed > 0 {
            let accepted = || {
                let about =
                    json!({ "store": store, "older": older, "news": news, "news_removed": news_removed });
                Draft::about(AuditKind::StoreAccepted, None, None).after(about)
            };
            self.record(Trail::Operator, origin, accepted).await?;
        }
        Ok(acceptance)
    }

    /// Says in the operators' trail that the store was restored from a backup.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn record_restored(&self, origin: &Origin, restored: &Restored) -> Result<(), LifecycleError> {
        let Restored { made_at, organizations, keys, .. } = restored;
        let about = json!({ "backup_of": made_at, "organizations": organizations, "keys": keys });
        let draft = || Draft::about(AuditKind::StoreMigrated, None, None).after(about.clone());
        self.record(Trail::Operator, origin, draft).await
    }

    /// Makes the news that are held anew, from the sealed records of their organisations: what stands in them may be
    /// forged. Returns how many, and how many were removed because there is no such organisation.
    async fn accept_news(&self) -> Result<(u64, u64), LifecycleError> {
        let (mut accepted, mut removed, mut after) = (0, 0, None::<OrgId>);
        loop {
            let (_, orgs) = self.store.outbox().held(after, PAGE).await?;
            let Some(last) = orgs.last() else { return Ok((accepted, removed)) };
            after = Some(*last);
            for org in orgs {
                match self.store.org(org).await? {
                    Some(Versioned { rev, record }) => {
                        let news = self.news_of(&record);
                        self.store.outbox().release(news, rev).await?;
                        accepted += 1;
                    }
                    None => {
                        self.store.outbox().delivered(org).await?;
                        removed += 1;
                    }
                }
            }
        }
    }
}
