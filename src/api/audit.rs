//! `GET /v1/audit_events`: what happened in the caller's organisation.

use super::query::{Cursor, Query};
use super::{Answer, Call, List, refuse};
use crate::lifecycle::{EventFilter, EventPage, Lifecycle, LifecycleError};
use crate::vocabulary::audit::{Kind, Trail};
use crate::vocabulary::key::Environment;
use crate::vocabulary::rejection::Rejection;

pub(super) async fn list(lifecycle: &Lifecycle, call: &Call) -> Result<Answer, Rejection> {
    let mut query = Query::parse(call.query.as_deref());
    let caller = call.caller.as_ref().ok_or_else(|| refuse(LifecycleError::Stranger))?;
    let filter = EventFilter {
        environment: Some(caller.environment).filter(|environment| *environment == Environment::Test),
        kind: query.take("type", Kind::parse, "is not a type of event"),
        from: query.time("since"),
        until: query.time("until"),
    };
    let (limit, cursor) = (query.limit(), query.cursor::<u64>());
    query.finish()?;
    let page = lifecycle.events(Trail::Org(caller.org), filter, cursor, limit).await.map_err(refuse)?;
    let EventPage { events, next } = page;
    Answer::json(&List::new(events, next.map(|number| number.print())))
}
