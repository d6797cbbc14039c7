//! `GET /v1/audit_events`: the audit trail of the caller's organisation.

use super::query::{Cursor, Query};
use super::{Answer, Call, List, refuse};
use crate::lifecycle::{AuditFilter, AuditPage, Lifecycle, LifecycleError};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::key::Environment;
use crate::vocabulary::rejection::Rejection;

pub(super) async fn list(lifecycle: &Lifecycle, call: &Call) -> Result<Answer, Rejection> {
    let mut query = Query::parse(call.query.as_deref());
    let caller = call.caller.as_ref().ok_or_else(|| refuse(LifecycleError::Stranger))?;
    let filter = AuditFilter {
        environment: Some(caller.environment).filter(|environment| *environment == Environment::Test),
        kind: query.take("type", AuditKind::parse, "is not a type of audit event"),
        from: query.time("since"),
        until: query.time("until"),
    };
    let (limit, cursor) = (query.limit(), query.cursor::<u64>());
    query.finish()?;
    let page =
        lifecycle.audit_records(Trail::Org(caller.org), filter, cursor, limit).await.map_err(refuse)?;
    let AuditPage { records, next } = page;
    Answer::json(&List::new(records, next.map(|number| number.print())))
}
