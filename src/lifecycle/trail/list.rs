//! Audit records, read.

use serde::{Deserialize, Serialize};

use super::{PAGE, parse};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::view::{AuditRecordView, view_audit_record};
use crate::vocabulary::audit::{AuditKind, AuditRecord, Ends, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::Environment;

/// Entries read for one page of a filtered list, at most about.
const LOOKED_THROUGH: usize = 4096;

/// The records that are wanted; every condition must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditFilter {
    pub kind: Option<AuditKind>,
    /// About keys of this environment.
    #[serde(default)]
    pub environment: Option<Environment>,
    /// At this time or later.
    pub from: Option<UnixMillis>,
    /// Before this time.
    pub until: Option<UnixMillis>,
}

impl AuditFilter {
    /// Whether it leaves nothing out.
    #[must_use]
    pub fn wants_all(&self) -> bool {
        *self == Self::default()
    }

    fn wants(&self, record: &AuditRecord) -> bool {
        self.kind.is_none_or(|kind| kind == record.kind)
            && self.environment.is_none_or(|environment| record.environment == Some(environment))
            && self.from.is_none_or(|from| record.at >= from)
            && self.until.is_none_or(|until| record.at < until)
    }
}

/// A part of a list of records.
#[derive(Clone, Debug)]
pub struct AuditPage {
    pub records: Vec<AuditRecordView>,
    /// The number at which the next page begins, not included; `None` on the last page.
    pub next: Option<u64>,
}

impl Lifecycle {
    /// At most `limit` records of a trail, newest first, with numbers below `before`.
    ///
    /// # Errors
    /// When the store cannot answer, or holds what is no record.
    pub async fn audit_records(
        &self,
        trail: Trail,
        filter: AuditFilter,
        mut before: Option<u64>,
        limit: usize,
    ) -> Result<AuditPage, LifecycleError> {
        let mut records = Vec::new();
        let mut looked_at = 0;
        loop {
            let page = self.store.trails().entries(trail, before, PAGE).await?;
            let last = page.len() < PAGE;
            for entry in page {
                let record = parse(&entry)?;
                // Times can run backwards by as much as the clocks of two gateways differ, so a record may be older
                // than the one before it.
                let wanted = filter.wants(&record);
                if wanted && records.len() == limit {
                    return Ok(AuditPage { records, next: before });
                }
                before = Some(entry.link.number);
                if wanted {
                    records.push(view_audit_record(entry.link.number, record));
                }
            }
            looked_at += PAGE;
            if last || looked_at >= LOOKED_THROUGH {
                return Ok(AuditPage { records, next: before.filter(|_| !last) });
            }
        }
    }

    /// The records of a trail with numbers above `after`, oldest first, of at most about `limit` records that are looked
    /// at; and the number to
    /// go on after, or `None` at the end.
    ///
    /// # Errors
    /// As [`Lifecycle::audit_records`].
    pub async fn audit_records_after(
        &self,
        trail: Trail,
        filter: AuditFilter,
        after: u64,
        limit: usize,
    ) -> Result<AuditPage, LifecycleError> {
        let Ends { checkpoint, head } = self.store.trails().ends(trail).await?;
        let start = after.max(checkpoint.number);
        if start >= head.number {
            return Ok(AuditPage { records: Vec::new(), next: None });
        }
        let through = start.saturating_add(u64::try_from(limit).unwrap_or(u64::MAX)).min(head.number);
        let entries = self.store.trails().entries(trail, Some(through + 1), limit).await?;
        let mut records = Vec::new();
        for entry in entries.iter().rev().filter(|entry| entry.link.number > start) {
            let record = parse(entry)?;
            if filter.wants(&record) {
                records.push(view_audit_record(entry.link.number, record));
            }
        }
        Ok(AuditPage { records, next: Some(through).filter(|through| *through < head.number) })
    }

    /// The newest record of this kind about a target, as far back as one page of a list looks.
    pub(in crate::lifecycle) async fn last_audit_record(
        &self,
        trail: Trail,
        kind: AuditKind,
        target: &str,
    ) -> Result<Option<AuditRecord>, LifecycleError> {
        let mut before = None;
        for _ in 0..LOOKED_THROUGH / PAGE {
            let page = self.store.trails().entries(trail, before, PAGE).await?;
            let Some(oldest) = page.last() else { return Ok(None) };
            before = Some(oldest.link.number);
            for entry in &page {
                let record = parse(entry)?;
                if record.kind == kind && record.target.as_deref() == Some(target) {
                    return Ok(Some(record));
                }
            }
        }
        Ok(None)
    }
}
