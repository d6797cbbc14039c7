//! Reading the audit trail: its records, page by page, and whether all of it is there and as it was written. And
//! trimming it, which is written in it first.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::turn::Draft;
use super::view::{AuditRecordView, view_audit_record};
use super::{Lifecycle, LifecycleError, Origin};
use crate::store::StoreFault;
use crate::store::keeper::Acceptance;
use crate::vocabulary::audit::{AuditKind, AuditRecord, Break, Ends, Entry, Link, PrincipalName, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::Environment;

/// Entries read at once.
const PAGE: usize = 256;
/// Entries looked through for one page of a filtered list.
const LOOKED_THROUGH: usize = 4096;

/// Which records are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditFilter {
    pub kind: Option<AuditKind>,
    /// About keys of this environment.
    #[serde(default)]
    pub environment: Option<Environment>,
    /// From this moment on.
    pub from: Option<UnixMillis>,
    /// Before this moment.
    pub until: Option<UnixMillis>,
}

/// Some records, newest first.
#[derive(Clone, Debug)]
pub struct AuditPage {
    pub records: Vec<AuditRecordView>,
    /// Where the next page begins: below this number. `None` where there is nothing more.
    pub next: Option<u64>,
}

/// What is wrong with a trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The record's number.
    pub number: u64,
    pub text: String,
}

/// What verifying a trail came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub trail: Trail,
    pub ends: Ends,
    /// Whether the chain has a key. One without shows damage, and forgery only against exported heads.
    pub keyed: bool,
    /// How many records were checked.
    pub checked: u64,
    /// Empty for a trail that is whole.
    pub findings: Vec<Finding>,
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
                // Times do not run backwards but by as much as two gateways' clocks differ, so a page may hold
                // what is older than one that is too old.
                let wanted = filter.kind.is_none_or(|kind| kind == record.kind)
                    && filter.environment.is_none_or(|environment| record.environment == Some(environment))
                    && filter.from.is_none_or(|from| record.at >= from)
                    && filter.until.is_none_or(|until| record.at < until);
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

    /// The records of a trail with numbers above `after`, oldest first, at most about `limit`; and the number to
    /// go on after, or `None` at the end.
    ///
    /// # Errors
    /// As [`Lifecycle::audit_records`].
    pub async fn audit_records_after(
        &self,
        trail: Trail,
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
        let wanted = entries.iter().rev().filter(|entry| entry.link.number > start);
        let records = wanted.map(|entry| Ok(view_audit_record(entry.link.number, parse(entry)?)));
        let records = records.collect::<Result<_, LifecycleError>>()?;
        Ok(AuditPage { records, next: Some(through).filter(|through| *through < head.number) })
    }

    /// The newest record of this kind about a target, as far back as one page of a list looks.
    pub(super) async fn last_audit_record(
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

    /// Takes the store as it is for the right one, and says so in the operator's trail.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn accept_store(&self, origin: &Origin) -> Result<Acceptance, LifecycleError> {
        let acceptance = self.keeper().accept().await?;
        if acceptance.changed {
            let accepted = || {
                Draft::about(AuditKind::StoreAccepted, None, None).after(json!({ "store": acceptance.store }))
            };
            self.record(Trail::Operator, origin, accepted).await?;
        }
        Ok(acceptance)
    }

    /// Checks a whole trail against its key, its ends and the heads that were exported earlier.
    ///
    /// # Errors
    /// When the store cannot answer. What is wrong with the trail is in the verdict.
    pub async fn verify_trail(&self, trail: Trail, exported: &[Link]) -> Result<Verdict, LifecycleError> {
        let ends = self.store.trails().ends(trail).await?;
        // A trail that was set back and went on has ended in two ways at one number, and both were exported.
        let mut heads: HashMap<u64, Vec<Link>> = HashMap::new();
        exported.iter().for_each(|link| heads.entry(link.number).or_default().push(*link));
        let differs = |known: &Vec<Link>, link: Link| known.iter().any(|known| *known != link);
        let mut findings = Vec::new();
        let mut note = |number, text: String| findings.push(Finding { number, text });
        let (mut checked, mut newer) = (0, None::<Entry>);
        let mut trimmed_through = 0;
        // What is added meanwhile is not part of what was promised when this began.
        let mut before = Some(ends.head.number.saturating_add(1));
        loop {
            let page = self.store.trails().entries(trail, before, PAGE).await?;
            let last = page.len() < PAGE;
            for entry in page {
                before = Some(entry.link.number);
                match &newer {
                    None if entry.link != ends.head => {
                        note(ends.head.number, "is the end of the trail and is missing".to_owned());
                    }
                    Some(newer) => self.check_after(trail, &entry.link, newer, &mut note),
                    None => {}
                }
                let known = heads.remove(&entry.link.number);
                if known.is_some_and(|known| differs(&known, entry.link)) {
                    note(entry.link.number, "is not the one whose head was exported".to_owned());
                }
                trimmed_through = trimmed_through.max(trimmed(&entry));
                checked += 1;
                newer = Some(entry);
            }
            if last {
                break;
            }
        }
        let checkpoint = self.checkpoint_below(trail, ends.checkpoint, newer.as_ref()).await?;
        match &newer {
            Some(oldest) => self.check_after(trail, &checkpoint, oldest, &mut note),
            None if ends.head != ends.checkpoint => {
                note(ends.head.number, "is the end of the trail and is missing".to_owned());
            }
            None => {}
        }
        if !self.begins_rightly(trail, ends, newer.as_ref()).await? {
            note(1, "is missing: every organisation's trail begins with org.created".to_owned());
        }
        if heads.get(&checkpoint.number).is_some_and(|known| differs(known, checkpoint)) {
            note(checkpoint.number, "is not the one whose head was exported".to_owned());
        }
        if checkpoint.number > trimmed_through {
            note(checkpoint.number, "and those before were removed, and no record says so".to_owned());
        }
        heads.retain(|number, _| *number > ends.head.number);
        for number in heads.into_keys() {
            note(number, "was exported to the log and is missing: the trail was cut off".to_owned());
        }
        findings.sort_by_key(|finding| finding.number);
        let ends = Ends { checkpoint, ..ends };
        Ok(Verdict { trail, ends, keyed: self.settings.chain.has_key(), checked, findings })
    }

    /// Whether a trail has the beginning that it must. One that was emptied would go on from nothing.
    async fn begins_rightly(
        &self,
        trail: Trail,
        ends: Ends,
        oldest: Option<&Entry>,
    ) -> Result<bool, LifecycleError> {
        match (trail, oldest) {
            // What does not read was altered, and is told of as that.
            (Trail::Org(_), Some(oldest)) if oldest.link.number == 1 => {
                Ok(parse(oldest).map_or(true, |record| record.kind == AuditKind::OrgCreated))
            }
            (Trail::Org(org), None) if ends == Ends::default() => Ok(self.store.org(org).await?.is_none()),
            _ => Ok(true),
        }
    }

    /// The checkpoint that the oldest entry should follow: as it was, or as it is now, since old entries may have
    /// been trimmed meanwhile.
    async fn checkpoint_below(
        &self,
        trail: Trail,
        before: Link,
        oldest: Option<&Entry>,
    ) -> Result<Link, LifecycleError> {
        if oldest.is_none_or(|oldest| before.number.checked_add(1) == Some(oldest.link.number)) {
            return Ok(before);
        }
        Ok(self.store.trails().ends(trail).await?.checkpoint)
    }

    fn check_after(&self, trail: Trail, older: &Link, newer: &Entry, note: &mut impl FnMut(u64, String)) {
        let number = newer.link.number;
        match self.settings.chain.check(trail, older, newer) {
            Ok(()) => {}
            Err(Break::Missing) => note(number.saturating_sub(1), Break::Missing.to_string()),
            // Either of the two: the MAC covers both.
            Err(Break::Altered) => note(number, Break::Altered.to_string()),
        }
    }

    /// Removes the records of a trail that are older than `retention`, and says so in the trail first. Tells how
    /// many.
    ///
    /// # Errors
    /// When the store cannot answer; nothing, or all that is old, was removed then.
    pub async fn trim_trail(&self, trail: Trail, retention: Duration) -> Result<u64, LifecycleError> {
        let cutoff =
            UnixMillis(self.now().0.saturating_sub(u64::try_from(retention.as_millis()).unwrap_or(u64::MAX)));
        let Ends { checkpoint, head } = self.store.trails().ends(trail).await?;
        // The last number that is old, between one that is and one that is not.
        let (mut old, mut young) = (checkpoint.number, head.number.saturating_add(1));
        while young - old > 1 {
            // The oldest first: mostly it is not old, and one look is enough.
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

pub(super) fn parse(entry: &Entry) -> Result<AuditRecord, LifecycleError> {
    let unreadable = |error| StoreFault::failed(format_args!("audit record {}: {error}", entry.link.number));
    Ok(serde_json::from_slice(&entry.text).map_err(unreadable)?)
}

/// Up to where a record says that the trail was trimmed.
fn trimmed(entry: &Entry) -> u64 {
    let record = parse(entry)
        .ok()
        .filter(|record| record.kind == AuditKind::AuditTrimmed && record.actor == PrincipalName::Gateway);
    record.and_then(|record| record.after?.get("through")?.as_u64()).unwrap_or(0)
}
