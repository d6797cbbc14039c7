//! Verifying a trail: whether all of it is there, as it was written.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{PAGE, parse};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::error::LifecycleError;
use crate::vocabulary::audit::{
    AuditKind, Break, Chain, Ends, Entry, InvalidLink, Link, PrincipalName, Trail,
};
use crate::vocabulary::clock::{AGREED, UnixMillis};
use crate::vocabulary::key::pepper::Age;

/// A fault in a trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The record's number.
    pub number: u64,
    pub text: String,
}

/// The head of a trail as a gateway has exported it to its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    pub link: Link,
    /// When the record was made; `None` in the log of an older release.
    pub at: Option<UnixMillis>,
}

/// The link, `@`, and the time in milliseconds.
impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.link)?;
        self.at.map_or(Ok(()), |at| write!(f, "@{}", at.0))
    }
}

impl FromStr for Exported {
    type Err = InvalidLink;

    fn from_str(text: &str) -> Result<Self, InvalidLink> {
        let (link, at) = match text.split_once('@') {
            Some((link, at)) => (link, Some(UnixMillis(at.parse().map_err(|_| InvalidLink)?))),
            None => (text, None),
        };
        Ok(Self { link: link.parse()?, at })
    }
}

impl Serialize for Exported {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Exported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// The outcome of verifying a trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub trail: Trail,
    pub ends: Ends,
    /// Whether the chain has a key. A chain without a key shows damage, but forgery only against exported heads.
    pub keyed: bool,
    /// How many records were checked.
    pub checked: u64,
    /// Empty for an intact trail.
    pub findings: Vec<Finding>,
    /// How many more there are, of which nothing else is told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_findings: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Findings that are told of each kind: of the entries, of both ends, and of the records beside the trail. In a trail that was
/// written anew, each entry is one.
const TOLD: usize = 1000;

impl Lifecycle {
    /// Checks a whole trail against its key, its ends and the heads that were exported earlier, and the records against the
    /// trail.
    ///
    /// # Errors
    /// When the store cannot answer. Faults of the trail are in the verdict.
    pub async fn verify_trail(&self, trail: Trail, exported: &[Exported]) -> Result<Verdict, LifecycleError> {
        let ends = self.store.trails().ends(trail).await?;
        let keeping = Keeping { retention: self.settings.retention, now: self.now() };
        let mut check = Check::new(&self.settings.chain, trail, ends, exported, keeping);
        // Records that are added from now on are not checked.
        let mut before = Some(ends.head.number.saturating_add(1));
        loop {
            let page = self.store.trails().entries(trail, before, PAGE).await?;
            let last = page.len() < PAGE;
            for entry in page {
                before = Some(entry.link.number);
                check.meet(entry);
            }
            if last {
                break;
            }
        }
        let checkpoint = self.checkpoint_below(trail, ends.checkpoint, check.oldest.as_ref()).await?;
        if !self.begins_rightly(trail, ends, check.oldest.as_ref()).await? {
            check.note(1, "is missing: every organisation's trail begins with org.created");
        }
        let mut verdict = check.finish(checkpoint);
        if let Trail::Org(org) = trail {
            let mut found = self.compare_with_trail(org, Duration::ZERO).await?;
            verdict.more_findings += found.len().saturating_sub(TOLD) as u64;
            found.truncate(TOLD);
            verdict.findings.extend(found);
        }
        Ok(verdict)
    }

    /// Whether a trail begins as it must. A trail that was emptied would begin with another record.
    async fn begins_rightly(
        &self,
        trail: Trail,
        ends: Ends,
        oldest: Option<&Entry>,
    ) -> Result<bool, LifecycleError> {
        match (trail, oldest) {
            // A record that cannot be read was altered, which is a finding of its own.
            (Trail::Org(_), Some(oldest)) if oldest.link.number == 1 => {
                Ok(parse(oldest).map_or(true, |record| record.kind == AuditKind::OrgCreated))
            }
            (Trail::Org(org), None) if ends == Ends::default() => Ok(self.store.org(org).await?.is_none()),
            _ => Ok(true),
        }
    }

    /// The checkpoint that the oldest entry should follow. It is read again if old entries were trimmed meanwhile.
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
}

/// A trail under verification, from its newest entry to its oldest.
struct Check<'c> {
    chain: &'c Chain,
    trail: Trail,
    ends: Ends,
    /// Exported heads whose entries were not met yet. A trail that was set back and then continued has two ends with
    /// one number, and both may have been exported.
    heads: HashMap<u64, Vec<Exported>>,
    findings: Vec<Finding>,
    /// How many may be kept, and how many were not.
    room: usize,
    more: u64,
    checked: u64,
    /// The entry that was met last.
    oldest: Option<Entry>,
    /// What the trail says of how it was trimmed.
    trims: Vec<Trim>,
    keeping: Keeping,
    /// The age of the key of the entry that was checked last, and the entry's number.
    key: Option<(Age, u64)>,
}

impl<'c> Check<'c> {
    fn new(chain: &'c Chain, trail: Trail, ends: Ends, exported: &[Exported], keeping: Keeping) -> Self {
        let mut heads: HashMap<u64, Vec<Exported>> = HashMap::new();
        exported.iter().for_each(|head| heads.entry(head.link.number).or_default().push(*head));
        let (findings, trims) = (Vec::new(), Vec::new());
        let (room, more, checked) = (TOLD, 0, 0);
        Self {
            chain,
            trail,
            ends,
            heads,
            findings,
            room,
            more,
            checked,
            oldest: None,
            trims,
            keeping,
            key: None,
        }
    }

    fn note(&mut self, number: u64, text: impl Into<String>) {
        if self.findings.len() < self.room {
            self.findings.push(Finding { number, text: text.into() });
        } else {
            self.more += 1;
        }
    }

    /// Checks the next older entry.
    fn meet(&mut self, entry: Entry) {
        match self.oldest.take() {
            None if entry.link != self.ends.head => self.note_missing_head(),
            Some(newer) => self.check_after(&entry.link, &newer),
            None => {}
        }
        let known = self.heads.remove(&entry.link.number);
        if known.is_some_and(|known| differs(&known, entry.link)) {
            self.note(entry.link.number, "is not the one whose head was exported");
        }
        self.trims.extend(trimmed(&entry, self.keeping.retention));
        self.checked += 1;
        self.oldest = Some(entry);
    }

    fn finish(mut self, checkpoint: Link) -> Verdict {
        self.room += TOLD;
        match self.oldest.take() {
            Some(oldest) => self.check_after(&checkpoint, &oldest),
            None if self.ends.head != self.ends.checkpoint => self.note_missing_head(),
            None => {}
        }
        if self.heads.get(&checkpoint.number).is_some_and(|known| differs(known, checkpoint)) {
            self.note(checkpoint.number, "is not the one whose head was exported");
        }
        if checkpoint.number > self.trims.iter().map(|trim| trim.through).max().unwrap_or_default() {
            self.note(checkpoint.number, "and those before were removed, and no record says so");
        }
        self.note_trimmed_too_early(checkpoint.number);
        for number in std::mem::take(&mut self.heads).into_keys() {
            if number > self.ends.head.number {
                self.note(number, "was exported to the log and is missing: the trail was cut off");
            }
        }
        let Self { chain, trail, ends, mut findings, more: more_findings, checked, .. } = self;
        findings.sort_by_key(|finding| finding.number);
        let (ends, keyed) = (Ends { checkpoint, ..ends }, chain.has_key());
        Verdict { trail, ends, keyed, checked, findings, more_findings }
    }

    /// Exported heads that were trimmed before their time: by a gateway with a wrong clock, or by hand.
    fn note_trimmed_too_early(&mut self, checkpoint: u64) {
        let gone = self.heads.iter().filter(|(number, _)| **number <= checkpoint);
        let is_early = |number: u64, head: &Exported| {
            let made = head.at?;
            let rightly = |trim: &Trim| trim.through >= number && trim.was_right(made, self.keeping.now);
            (!self.trims.iter().any(rightly)).then_some((number, made))
        };
        let mut early: Vec<(u64, UnixMillis)> = gone
            .filter_map(|(number, heads)| heads.iter().find_map(|head| is_early(*number, head)))
            .collect();
        early.sort_unstable();
        if let Some((number, made)) = early.pop() {
            let more = match early.len() {
                0 => String::new(),
                more => format!("; so were {more} more of the exported ones"),
            };
            self.note(number, format!("of {made} was removed before the end of audit.retention{more}"));
        }
    }

    fn note_missing_head(&mut self) {
        self.note(self.ends.head.number, "is the end of the trail and is missing");
    }

    fn check_after(&mut self, older: &Link, newer: &Entry) {
        let number = newer.link.number;
        let below = self.key.map_or(Age::CURRENT, |(age, _)| age);
        match self.chain.check_below(self.trail, older, newer, below) {
            Ok(age) => self.meet_key(number, age),
            Err(Break::Missing) => self.note(number.saturating_sub(1), Break::Missing.to_string()),
            // Either of the two entries: the MAC covers both.
            Err(Break::Altered) => self.note(number, Break::Altered.to_string()),
        }
    }
}

impl Check<'_> {
    /// Notes an entry under a key that was replaced when the entry was made. Its maker had that key and not the newer one.
    fn meet_key(&mut self, number: u64, age: Age) {
        let newer = self.key.replace((age, number));
        let late = match newer {
            None if age > Age::CURRENT && self.chain.ends_under_its_current_key() => Some(number),
            Some((newer, number)) if newer > age && self.chain.knows_when_keys_changed() => Some(number),
            None | Some(_) => None,
        };
        if let Some(number) = late {
            self.note(number, "was made under an older key, after that was replaced");
        }
    }
}

/// How long records are to be kept, and the present time.
#[derive(Clone, Copy)]
struct Keeping {
    retention: Duration,
    now: UnixMillis,
}

/// A record that a trail was trimmed.
struct Trim {
    through: u64,
    at: UnixMillis,
    retention: Duration,
}

impl Trim {
    /// Whether a record made at this moment was old enough. A record of trimming that is ahead of the present time is of a gateway
    /// whose clock was wrong.
    fn was_right(&self, made: UnixMillis, now: UnixMillis) -> bool {
        self.at <= now.plus(AGREED) && made.plus(self.retention) <= self.at.plus(AGREED)
    }
}

fn differs(known: &[Exported], link: Link) -> bool {
    known.iter().any(|known| known.link != link)
}

/// What this record says of how the trail was trimmed, if it does. Older releases do not say how long records were kept.
fn trimmed(entry: &Entry, retention: Duration) -> Option<Trim> {
    let record = parse(entry).ok()?;
    if record.kind != AuditKind::AuditTrimmed || record.actor != PrincipalName::Gateway {
        return None;
    }
    let after = record.after?;
    let said = after.get("retention_seconds").and_then(serde_json::Value::as_u64).map(Duration::from_secs);
    Some(Trim {
        through: after.get("through")?.as_u64()?,
        at: record.at,
        retention: said.unwrap_or(retention),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::key::Pepper;

    #[test]
    fn of_a_trail_in_which_each_entry_was_written_anew_a_thousand_findings_are_told_and_the_others_counted() {
        let (trail, length) = (Trail::Operator, 5 * TOLD as u64);
        // Somebody without the key has written all of it.
        let forged = Chain::default();
        let (mut after, mut entries) = (Link::ORIGIN, Vec::new());
        for _ in 0..length {
            let entry = forged.extend(trail, after, b"{}".to_vec()).entry;
            after = entry.link;
            entries.push(entry);
        }
        let chain = Chain::new(Some(Pepper::new(vec![3; 32]).unwrap()));
        let keeping = Keeping { retention: Duration::from_secs(1), now: UnixMillis(0) };
        let ends = Ends { checkpoint: Link::ORIGIN, head: after };
        // And its head is not the one that was exported, nor are later ones there.
        let exported =
            [length + 1, length + 2].map(|number| Exported { link: Link { number, ..after }, at: None });
        let mut check = Check::new(&chain, trail, ends, &exported, keeping);
        entries.into_iter().rev().for_each(|entry| check.meet(entry));
        let verdict = check.finish(Link::ORIGIN);
        // The oldest entry is judged at the end, and so are the exported heads.
        assert_eq!((verdict.findings.len(), verdict.more_findings), (TOLD + 3, length - 1 - TOLD as u64));
        assert!(verdict.findings.last().is_some_and(|last| last.text.contains("the trail was cut off")));
    }
}
