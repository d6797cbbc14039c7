//! Records compared with their trail. A trail tells of every change; a record that still has a right which the trail says
//! was taken away is older than its trail: Redis was set back, or somebody has put an old record back.
//!
//! Only rights count, and only what the record has too much: a trail that was cut off says less than its records, and that
//! is [another finding](super::verify).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::Value;

use super::verify::Finding;
use super::{PAGE, parse};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::error::LifecycleError;
use crate::store::KeysOf;
use crate::vocabulary::audit::{AuditKind, AuditRecord, Link, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord};

/// The records of one trail that are compared at most.
const TARGETS: usize = 1 << 16;
/// How often a trail is read again because it went on meanwhile.
const TRIES: usize = 4;
/// What takes rights away or gives them, as the trail names it.
const FIELDS: [&str; 6] = ["status", "scopes", "expires_at", "allowed_addresses", "key", "suspended"];

/// The last word of a trail about one record: by field, the number of the audit record, and what it says.
type Said = BTreeMap<&'static str, (u64, Value)>;

impl Lifecycle {
    /// The records of an organisation that are older than its trail says, with a pause after each page that is read.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub(in crate::lifecycle) async fn compare_with_trail(
        &self,
        org: OrgId,
        pause: Duration,
    ) -> Result<Vec<Finding>, LifecycleError> {
        let trail = Trail::Org(org);
        for _ in 0..TRIES {
            let head = self.store.trails().ends(trail).await?.head;
            let said = self.last_words(trail, head, pause).await?;
            let findings = self.compare(org, said, pause).await?;
            // A change that came in between is in the records and was not in the trail.
            if findings.is_empty() || self.store.trails().ends(trail).await?.head == head {
                return Ok(findings);
            }
        }
        Ok(Vec::new())
    }

    async fn last_words(
        &self,
        trail: Trail,
        head: Link,
        pause: Duration,
    ) -> Result<HashMap<String, Said>, LifecycleError> {
        let mut targets: HashMap<String, Said> = HashMap::new();
        let mut before = Some(head.number.saturating_add(1));
        loop {
            let page = self.store.trails().entries(trail, before, PAGE).await?;
            for entry in &page {
                before = Some(entry.link.number);
                // One that cannot be read was altered, which is another finding.
                let Ok(record) = parse(entry) else { continue };
                if targets.len() < TARGETS || record.target.as_ref().is_some_and(|at| targets.contains_key(at)) {
                    note(&mut targets, entry.link.number, record);
                }
            }
            if page.len() < PAGE {
                return Ok(targets);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn compare(
        &self,
        org: OrgId,
        mut said: HashMap<String, Said>,
        pause: Duration,
    ) -> Result<Vec<Finding>, LifecycleError> {
        let mut findings = Vec::new();
        if let Some(said) = said.remove(&org.to_string()) {
            let found = self.store.org(org).await?.map(|org| org.record);
            findings.extend(older(&said, org, found.as_ref(), org_has_more));
        }
        let mut after: Option<KeyId> = None;
        while !said.is_empty() {
            let keys = self.store.keys(KeysOf::Org(org), after, PAGE).await?;
            after = keys.last().map(|key| key.record.id);
            for key in keys.into_iter().map(|key| key.record) {
                if let Some(said) = said.remove(&key.id.to_string()) {
                    findings.extend(older(&said, key.id, Some(&key), key_has_more));
                }
            }
            if after.is_none() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        // They are in no list, which somebody may have cut.
        for (target, said) in said {
            let Ok(id) = KeyId::parse(&target) else { continue };
            let found = self.store.key(id).await?.map(|key| key.record);
            findings.extend(older(&said, id, found.as_ref(), key_has_more));
        }
        findings.sort_by_key(|finding| finding.number);
        Ok(findings)
    }
}

/// Keeps what a record of the trail says, unless a newer one has said it.
fn note(targets: &mut HashMap<String, Said>, number: u64, record: AuditRecord) {
    let tells = matches!(
        record.kind,
        AuditKind::KeyCreated
            | AuditKind::KeyUpdated
            | AuditKind::KeyRotated
            | AuditKind::KeyDisabled
            | AuditKind::KeyEnabled
            | AuditKind::KeyRevoked
            | AuditKind::OrgCreated
            | AuditKind::OrgSuspended
            | AuditKind::OrgResumed
    );
    let (true, Some(target), Some(Value::Object(after))) = (tells, record.target, record.after) else { return };
    let said = targets.entry(target).or_default();
    for field in FIELDS {
        if let Some(value) = after.get(field) {
            said.entry(field).or_insert_with(|| (number, value.clone()));
        }
    }
}

/// What is wrong with a record, by what was said of it.
fn older<T>(
    said: &Said,
    id: impl std::fmt::Display,
    record: Option<&T>,
    has_more: impl Fn(&T, &str, &Value) -> bool,
) -> Option<Finding> {
    let Some(record) = record else {
        let number = said.values().map(|(number, _)| *number).max()?;
        return Some(Finding { number, text: format!("is about {id}, which is missing in the store") });
    };
    let wrong = said.iter().filter(|(field, (_, value))| has_more(record, field, value));
    let (field, (number, value)) = wrong.max_by_key(|(_, (number, _))| *number)?;
    let text = format!(
        "says of {id}: {field} {value}; the store has a record from before that, with more rights: make the change again"
    );
    Some(Finding { number: *number, text })
}

fn org_has_more(org: &OrgRecord, field: &str, said: &Value) -> bool {
    field == "suspended" && *said == Value::Bool(true) && org.suspended_at.is_none()
}

fn key_has_more(key: &KeyRecord, field: &str, said: &Value) -> bool {
    let text = said.as_str();
    let lists = |one: &str| said.as_array().is_some_and(|all| all.iter().any(|said| said.as_str() == Some(one)));
    match field {
        _ if key.revoked_at.is_some() => false,
        "status" => match text {
            Some("revoked") => true,
            Some("disabled") => key.disabled_at.is_none(),
            _ => false,
        },
        "scopes" => said.is_array() && key.scopes.iter().any(|scope| !lists(scope.as_str())),
        "expires_at" => {
            let end = text.and_then(|end| UnixMillis::parse(end).ok());
            end.is_some_and(|end| key.expires_at.is_none_or(|own| own > end))
        }
        "allowed_addresses" => {
            let are_bound = said.as_array().is_some_and(|said| !said.is_empty());
            let own = &key.allowed_addresses;
            are_bound && (own.is_empty() || own.iter().any(|network| !lists(&network.to_string())))
        }
        // The masked form of the newest secret: a record from before the rotation does not have it.
        "key" => text.is_some_and(|said| !key.secrets.iter().any(|own| said.ends_with(&own.last_four))),
        _ => false,
    }
}
