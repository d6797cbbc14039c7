//! Copying audit trails into another store: as they are, or with new chains.

use std::sync::Arc;

use serde_json::json;

use super::MigrationError::{Source, Target};
use super::{MigrationError, Moved, Moving, TRAILS, next_orgs, occupied};
use crate::lifecycle::audit::Draft;
use crate::lifecycle::trail::parse;
use crate::vocabulary::audit::{AuditKind, Ends, Entry, Link, Trail};
use crate::vocabulary::id::OrgId;

/// Entries of a trail copied at once.
const ENTRIES: usize = 256;

impl Moving {
    pub(super) async fn move_trails(
        self: &Arc<Self>,
        moved: &mut Moved,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<(), MigrationError> {
        let mut after = None;
        while let Some(orgs) = next_orgs(&self.source, &mut after, TRAILS).await.map_err(Source)? {
            let counts = self.each(orgs, async |moving, org| moving.move_org_trail(org.record.id).await);
            moved.audit_records += counts.await?.into_iter().sum::<u64>();
            tell(moved);
        }
        Ok(())
    }

    async fn move_org_trail(&self, org: OrgId) -> Result<u64, MigrationError> {
        let trail = Trail::Org(org);
        let MovedTrail { count, before, after, told } = self.move_trail(trail).await?;
        if self.rechains && count > 0 && !told {
            let draft = || {
                let draft = Draft::of_org(AuditKind::StoreMigrated, org).before(json!({ "head": before }));
                draft.after(json!({ "head": after, "rechained": true }))
            };
            self.target.record(trail, &self.origin, draft).await?;
        }
        Ok(count)
    }

    /// Copies a trail, with a new chain if the migration makes them.
    pub(super) async fn move_trail(&self, trail: Trail) -> Result<MovedTrail, MigrationError> {
        let ends = self.source.store.trails().ends(trail).await.map_err(Source)?;
        let there = self.target.store.trails().ends(trail).await.map_err(Target)?;
        let wanted = if self.rechains { self.rechained(trail, ends).await? } else { ends };
        let count = ends.head.number - ends.checkpoint.number;
        let mut moved = MovedTrail { count, before: ends.head, after: wanted.head, told: false };
        if there == wanted && ends == Ends::default() {
            return Ok(moved);
        }
        if there != wanted && there != Ends::default() {
            moved.told = self.rechains && self.ends_with_its_record(trail, wanted, there).await?;
            return if moved.told { Ok(moved) } else { Err(occupied(format_args!("a trail of {trail}"))) };
        }
        let (mut done, mut last) = (ends.checkpoint.number, ends.checkpoint);
        loop {
            let mut entries = self.entries_after(trail, done, ends.head.number).await?;
            done = (done + ENTRIES as u64).min(ends.head.number);
            if self.rechains {
                for entry in &mut entries {
                    *entry = self.extend(trail, last, std::mem::take(&mut entry.text));
                    last = entry.link;
                }
            }
            self.target.store.trails().restore(trail, wanted, entries).await.map_err(Target)?;
            if done == ends.head.number {
                return Ok(moved);
            }
        }
    }

    /// The ends that a trail has under the target's key.
    async fn rechained(&self, trail: Trail, ends: Ends) -> Result<Ends, MigrationError> {
        let verdict = self.source.verify_trail(trail, &[]).await?;
        if let Some(finding) = verdict.findings.into_iter().next() {
            let (number, text) = (finding.number, finding.text);
            return Err(MigrationError::Damaged { trail, number, text });
        }
        let (mut done, mut last) = (ends.checkpoint.number, ends.checkpoint);
        while done < ends.head.number {
            for entry in self.entries_after(trail, done, ends.head.number).await? {
                last = self.extend(trail, last, entry.text).link;
            }
            done = (done + ENTRIES as u64).min(ends.head.number);
        }
        Ok(Ends { head: last, ..ends })
    }

    fn extend(&self, trail: Trail, after: Link, text: Vec<u8>) -> Entry {
        self.target.settings.chain.extend(trail, after, text).entry
    }

    /// The source's entries with the next [`ENTRIES`] numbers above `done`, oldest first; up to `head`.
    async fn entries_after(&self, trail: Trail, done: u64, head: u64) -> Result<Vec<Entry>, MigrationError> {
        let through = (done + ENTRIES as u64).min(head);
        let entries = self.source.store.trails().entries(trail, Some(through + 1), ENTRIES).await;
        let mut entries = entries.map_err(Source)?;
        entries.retain(|entry| entry.link.number > done);
        entries.reverse();
        Ok(entries)
    }

    /// Whether a trail was copied before, and only the record that says so follows it.
    async fn ends_with_its_record(
        &self,
        trail: Trail,
        wanted: Ends,
        there: Ends,
    ) -> Result<bool, MigrationError> {
        if there.checkpoint != wanted.checkpoint || there.head.number != wanted.head.number + 1 {
            return Ok(false);
        }
        let mut last = self.target.store.trails().entries(trail, None, 1).await.map_err(Target)?;
        let Some(last) = last.pop() else { return Ok(false) };
        let follows = self.target.settings.chain.check(trail, &wanted.head, &last).is_ok();
        Ok(follows && parse(&last)?.kind == AuditKind::StoreMigrated)
    }
}

/// A trail that was copied.
pub(super) struct MovedTrail {
    pub(super) count: u64,
    /// Its head in the source.
    pub(super) before: Link,
    /// Its head in the target.
    pub(super) after: Link,
    /// Whether a record in it says so already: an earlier run has completed it.
    told: bool,
}
