//! Records compared with their trail. A trail tells of every change; a record that still has a right which the trail says
//! was taken away is older than its trail: Redis was set back, or somebody has put an old record back.
//!
//! Only rights count, and only what the record has too much: a trail that was cut off says less than its records, and that
//! is [another finding](super::verify).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use super::verify::Finding;
use super::{PAGE, parse};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::error::LifecycleError;
use crate::store::StoreFault;
use crate::vocabulary::audit::{AuditKind, AuditRecord, Link, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};

/// The records of one trail that are compared at most.
const TARGETS: usize = 1 << 16;
/// Records that are read one after the other without a pause.
const AT_ONCE: usize = 16;
/// How often a trail is read again because it went on meanwhile.
const TRIES: usize = 4;
/// What takes rights away or gives them, as the trail names it.
const FIELDS: [&str; 6] = ["status", "scopes", "expires_at", "allowed_addresses", "key", "suspended"];

/// The last word of a trail about one record: by field, the number of the audit record, and what it says.
type Said = BTreeMap<&'static str, (u64, Value)>;

impl Lifecycle {
    /// The records of an organisation that are older than its trail says, with a pause after each page of the trail
    /// and after every 16 records.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub(in crate::lifecycle) async fn compare_with_trail(
        &self,
        org: OrgId,
        pause: Duration,
    ) -> Result<Vec<Finding>, LifecycleError> {
        let trail = Trail::Org(org);
        let (mut suspects, mut pause) = (None, pause);
        for _ in 0..TRIES {
            let head = self.store.trails().ends(trail).await?.head;
            let mut said = self.last_words(trail, head, pause).await?;
            if let Some(suspects) = &suspects {
                said.retain(|target, _| HashSet::contains(suspects, target));
            }
            let found = self.compare(org, said, pause).await?;
            // A change that came in between is in the records and was not in the trail.
            if found.is_empty() || self.store.trails().ends(trail).await?.head == head {
                let mut findings: Vec<Finding> = found.into_values().collect();
                findings.sort_by_key(|finding| finding.number);
                return Ok(findings);
            }
            (suspects, pause) = (Some(found.into_keys().collect::<HashSet<_>>()), Duration::ZERO);
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
                if targets.len() < TARGETS
                    || record.target.as_ref().is_some_and(|at| targets.contains_key(at))
                {
                    note(&mut targets, entry.link.number, record);
                }
            }
            if page.len() < PAGE {
                return Ok(targets);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// By their targets.
    async fn compare(
        &self,
        org: OrgId,
        said: HashMap<String, Said>,
        pause: Duration,
    ) -> Result<HashMap<String, Finding>, LifecycleError> {
        let mut found = HashMap::new();
        for (n, (target, said)) in said.into_iter().enumerate() {
            // Each by its id: somebody may have cut the lists.
            let finding = if target == org.to_string() {
                let record = self.store.org(org).await;
                self.judge(org, record, |org| older(&said, &target, org, org_has_more)).await?
            } else if let Ok(id) = KeyId::parse(&target) {
                let record = self.store.key(id).await;
                // Its trail outlives it.
                if matches!(record, Ok(None)) && self.is_gone(id).await? {
                    continue;
                }
                self.judge(org, record, |key| older(&said, &target, key, key_has_more)).await?
            } else {
                None
            };
            found.extend(finding.map(|finding| (target, finding)));
            if n % AT_ONCE == AT_ONCE - 1 {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(found)
    }

    /// A record that cannot be read, while the store answers, was damaged: no gateway serves it, and the others count.
    async fn judge<T>(
        &self,
        org: OrgId,
        record: Result<Option<Versioned<T>>, StoreFault>,
        judge: impl FnOnce(Option<&T>) -> Option<Finding>,
    ) -> Result<Option<Finding>, LifecycleError> {
        match record {
            Ok(record) => Ok(judge(record.map(|record| record.record).as_ref())),
            Err(_) => self.store.trails().ends(Trail::Org(org)).await.map(|_| None).map_err(Into::into),
        }
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
    let (true, Some(target), Some(Value::Object(after))) = (tells, record.target, record.after) else {
        return;
    };
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
    id: &str,
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
    let lists =
        |one: &str| said.as_array().is_some_and(|all| all.iter().any(|said| said.as_str() == Some(one)));
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
