//! Removing old audit records.

use std::time::Duration;

use serde_json::json;

use super::parse;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::audit::Draft;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::principal::Origin;
use crate::vocabulary::audit::{AuditKind, Ends, Trail};
use crate::vocabulary::clock::UnixMillis;

impl Lifecycle {
    /// Removes the records of a trail that are older than `retention`, after a record that says so, and returns their
    /// number.
    ///
    /// # Errors
    /// When the store cannot answer; then nothing was removed, or everything that is old.
    pub async fn trim_trail(&self, trail: Trail, retention: Duration) -> Result<u64, LifecycleError> {
        let cutoff =
            UnixMillis(self.now().0.saturating_sub(u64::try_from(retention.as_millis()).unwrap_or(u64::MAX)));
        let Ends { checkpoint, head } = self.store.trails().ends(trail).await?;
        // `old` is the number of an old record, `young` of one that is not; what is in between is searched.
        let (mut old, mut young) = (checkpoint.number, head.number.saturating_add(1));
        while young - old > 1 {
            // The oldest first: usually it is not old, and one read is enough.
            let middle = if old == checkpoint.number { old + 1 } else { old + (young - old) / 2 };
            let entry = self.store.trails().entries(trail, Some(middle + 1), 1).await?.pop();
            match entry.map(|entry| parse(&entry)).transpose()? {
                Some(record) if record.at >= cutoff => young = middle,
                _ => old = middle,
            }
        }
        if old == checkpoint.number {
            return Ok(0);
        }
        self.record(trail, &Origin::gateway(), || {
            Draft::about(AuditKind::AuditTrimmed, None, None).after(json!({ "through": old }))
        })
        .await?;
        Ok(self.store.trails().trim(trail, old).await?)
    }
}
