//! The audit record of a change: drafted by the decision, and appended to the trail by the commit of the change
//! itself, so that the store writes both or neither.

use serde_json::{Map, Value};

use super::Lifecycle;
use super::principal::Origin;
use crate::store::StoreFault;
use crate::vocabulary::audit::{Append, AuditKind, AuditRecord, Link, Trail};
use crate::vocabulary::id::{AuditRecordId, OrgId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::KeyRecord;

/// An audit record before it has its number, its moment and its principal.
#[derive(Debug)]
pub(super) struct Draft {
    kind: AuditKind,
    pub(super) environment: Option<Environment>,
    pub(super) target: Option<String>,
    before: Option<Value>,
    after: Option<Value>,
}

impl Draft {
    /// About a key.
    pub(super) fn of_key(kind: AuditKind, key: &KeyRecord) -> Self {
        Self::about(kind, Some(key.environment), Some(key.id.to_string()))
    }

    /// About a whole organisation.
    pub(super) fn of_org(kind: AuditKind, org: OrgId) -> Self {
        Self::about(kind, None, Some(org.to_string()))
    }

    pub(super) const fn about(
        kind: AuditKind,
        environment: Option<Environment>,
        target: Option<String>,
    ) -> Self {
        Self { kind, environment, target, before: None, after: None }
    }

    pub(super) fn before(self, before: Value) -> Self {
        Self { before: Some(before), ..self }
    }

    pub(super) fn after(self, after: Value) -> Self {
        Self { after: Some(after), ..self }
    }

    /// The fields that differ between two descriptions.
    pub(super) fn difference(self, before: &Value, after: &Value) -> Self {
        let only = |one: &Value, other: &Value| {
            let fields = one.as_object().into_iter().flatten();
            let different = fields.filter(|(name, value)| other.get(name) != Some(value));
            different.map(|(name, value)| (name.clone(), value.clone())).collect::<Map<_, _>>()
        };
        self.before(only(before, after).into()).after(only(after, before).into())
    }
}

/// What is so after the change, and why it was made.
fn with_reason(after: Option<Value>, reason: Option<&str>) -> Option<Value> {
    let Some(reason) = reason else { return after };
    let mut after = after.unwrap_or_else(|| Map::new().into());
    if let Some(fields) = after.as_object_mut() {
        fields.insert("reason".to_owned(), reason.into());
    }
    Some(after)
}

impl Lifecycle {
    /// The entry of a drafted record, which follows `head` in `trail`.
    pub(super) fn append(
        &self,
        trail: Trail,
        head: Link,
        origin: &Origin,
        draft: Draft,
    ) -> Result<Append, StoreFault> {
        let Draft { kind, environment, target, before, after } = draft;
        let at = self.now();
        let record = AuditRecord {
            id: self.draw(|ids| AuditRecordId::draw(ids, at)),
            kind,
            at,
            actor: origin.principal.name(),
            address: origin.address,
            request: origin.request,
            environment,
            target,
            before,
            after: with_reason(after, origin.reason.as_deref()),
        };
        // Made of strings, numbers and JSON, so nothing in it can fail to be written.
        let text = serde_json::to_vec(&record).map_err(StoreFault::failed)?;
        Ok(self.settings.chain.extend(trail, head, text))
    }
}
