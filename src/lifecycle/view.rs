//! Keys, organisations and audit records as the API and the command line show them: everything except digests.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Lifecycle;
use super::error::LifecycleError;
use crate::store::unreadable::Unreadable;
use crate::vocabulary::audit::{AuditRecord, PrincipalName};
use crate::vocabulary::id::{AuditRecordId, KeyId, OrgId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::{KeyRecord, OrgRecord};
use crate::vocabulary::key::scope::Scope;
use crate::vocabulary::key::usage::Usage;

/// A key. Its own secret is never part of it; `key` is the masked form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    pub object: String,
    pub id: KeyId,
    pub organization_id: OrgId,
    pub name: String,
    pub key: String,
    pub environment: Environment,
    pub scopes: Vec<Scope>,
    pub status: String,
    pub created_at: String,
    pub created_by: String,
    pub last_used_at: Option<String>,
    /// The scopes of the key that requests have needed so far.
    pub used_scopes: Vec<Scope>,
    pub expires_at: Option<String>,
    pub disabled_at: Option<String>,
    pub revoked_at: Option<String>,
    /// When the previous secret ends, while a rotation overlaps.
    pub old_secret_ends_at: Option<String>,
    pub allowed_addresses: Vec<String>,
    pub owner: Option<String>,
    pub note: Option<String>,
    /// How far its last change has come among several gateways; for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrgView {
    pub object: String,
    pub id: OrgId,
    pub name: String,
    pub email: Option<String>,
    pub status: String,
    pub created_at: String,
    pub suspended_at: Option<String>,
}

/// A record that cannot be read, in its place in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableView {
    pub object: String,
    pub id: String,
    pub status: String,
    pub reason: String,
}

impl UnreadableView {
    #[must_use]
    pub fn of<I: fmt::Display>(record: &Unreadable<I>) -> Self {
        Self {
            object: "unreadable_record".to_owned(),
            id: record.id.to_string(),
            status: "unreadable".to_owned(),
            reason: record.why.clone(),
        }
    }
}

/// An audit record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecordView {
    pub object: String,
    pub id: AuditRecordId,
    pub r#type: String,
    pub created_at: String,
    pub actor: PrincipalName,
    pub ip_address: Option<String>,
    pub request_id: Option<String>,
    pub environment: Option<Environment>,
    pub target: Option<String>,
    pub before: Option<Value>,
    pub after: Option<Value>,
    /// The number in the trail.
    pub number: u64,
}

impl Lifecycle {
    #[must_use]
    pub fn view_key(&self, key: &KeyRecord, usage: Option<&Usage>) -> KeyView {
        let now = self.now();
        let ending = key.secrets.iter().filter_map(|secret| secret.ends_at).find(|end| *end > now);
        KeyView {
            object: "api_key".to_owned(),
            id: key.id,
            organization_id: key.org,
            name: key.name.clone(),
            key: self.masked(key),
            environment: key.environment,
            scopes: key.scopes.iter().cloned().collect(),
            status: key.status_at(now).to_string(),
            created_at: key.created_at.to_string(),
            created_by: key.created_by.clone(),
            last_used_at: usage.map(|usage| usage.last_used_at.to_string()),
            used_scopes: usage.map(|usage| usage.scopes.iter().cloned().collect()).unwrap_or_default(),
            expires_at: key.expires_at.map(|at| at.to_string()),
            disabled_at: key.disabled_at.map(|at| at.to_string()),
            revoked_at: key.revoked_at.map(|at| at.to_string()),
            old_secret_ends_at: ending.map(|at| at.to_string()),
            allowed_addresses: key.allowed_addresses.iter().map(ToString::to_string).collect(),
            owner: key.owner.clone(),
            note: key.note.clone(),
            propagation: None,
        }
    }

    /// Keys with their use.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn view_keys(&self, keys: &[KeyRecord]) -> Result<Vec<KeyView>, LifecycleError> {
        let usage = self.store.usage().of(keys.iter().map(|key| key.id).collect()).await?;
        Ok(keys.iter().zip(usage).map(|(key, usage)| self.view_key(key, usage.as_ref())).collect())
    }

    /// A key as the audit trail shows it.
    pub(super) fn describe(&self, key: &KeyRecord) -> Value {
        json!({
            "name": key.name,
            "key": self.masked(key),
            "environment": key.environment,
            "scopes": key.scopes,
            "status": if key.revoked_at.is_some() { "revoked" } else if key.disabled_at.is_some() { "disabled" } else { "active" },
            "expires_at": key.expires_at.map(|at| at.to_string()),
            "allowed_addresses": key.allowed_addresses,
            "owner": key.owner,
            "note": key.note,
        })
    }
}

#[must_use]
pub fn view_org(org: &OrgRecord) -> OrgView {
    let status = match (org.suspended_at, org.pending) {
        (Some(_), _) => "suspended",
        (None, true) => "pending",
        (None, false) => "active",
    };
    OrgView {
        object: "organization".to_owned(),
        id: org.id,
        name: org.name.clone(),
        email: org.email.as_ref().map(ToString::to_string),
        status: status.to_owned(),
        created_at: org.created_at.to_string(),
        suspended_at: org.suspended_at.map(|at| at.to_string()),
    }
}

#[must_use]
pub(super) fn view_audit_record(number: u64, record: AuditRecord) -> AuditRecordView {
    AuditRecordView {
        object: "audit_event".to_owned(),
        id: record.id,
        r#type: record.kind.to_string(),
        created_at: record.at.to_string(),
        actor: record.actor,
        ip_address: record.address.map(|address| address.to_string()),
        request_id: record.request.map(|request| request.to_string()),
        environment: record.environment,
        target: record.target,
        before: record.before,
        after: record.after,
        number,
    }
}
