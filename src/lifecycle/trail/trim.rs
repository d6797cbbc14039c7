//! Removing old audit records.
//!
//! Nothing else removes evidence, so the store has the last word on what is old and how much may go at once
//! ([`crate::store::trails`]). Here is looked for what to ask it for, and the trail is told first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::json;

use super::PAGE;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::audit::Draft;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::principal::{Origin, Principal};
use crate::store::trails::{Allowance, Held, Pace, Terms, Trimmed};
use crate::vocabulary::audit::{AuditKind, Ends, Trail, recorded_at};
use crate::vocabulary::clock::UnixMillis;

impl Lifecycle {
    /// Removes the records of a trail that are older than `retention`, after a record that says so; by an operator, at once all
    /// that are old, otherwise no more than the share of a day.
    ///
    /// # Errors
    /// When the store cannot answer; then nothing was removed, or some of what is old.
    pub async fn trim_trail(
        &self,
        origin: &Origin,
        trail: Trail,
        retention: Duration,
    ) -> Result<Trimmed, LifecycleError> {
        let is_daily = matches!(origin.principal, Principal::Gateway);
        let own = self.clock.own();
        let (now, entries) = match self.store.trails().allowance(trail, own).await? {
            Allowance::Open { now, entries } => (now, entries),
            Allowance::Held(held) => return Ok(Trimmed::Held(held)),
        };
        let most = if is_daily { entries } else { u64::MAX };
        let ends = self.store.trails().ends(trail).await?;
        let through = self.last_old(trail, ends, now.minus(retention), most).await?;
        if through == ends.checkpoint.number {
            return Ok(Trimmed::Removed(0));
        }
        let by = origin.principal.name();
        let gateway = Origin { reason: origin.reason.clone(), ..Origin::gateway() };
        self.record(trail, &gateway, || {
            let mut after = json!({ "through": through, "retention_seconds": retention.as_secs() });
            if !is_daily {
                after["asked_by"] = json!(by);
            }
            Draft::about(AuditKind::AuditTrimmed, None, None).after(after)
        })
        .await?;
        let pace = if is_daily { Pace::Daily } else { Pace::AtOnce };
        Ok(self.store.trails().trim(trail, through, Terms { own, retention, pace }).await?)
    }

    /// Removes all records of a trail that are older than the retention, at once, for an operator.
    ///
    /// # Errors
    /// As [`Lifecycle::trim_trail`].
    pub async fn trim_trail_at_once(&self, origin: &Origin, trail: Trail) -> Result<Trimmed, LifecycleError> {
        self.trim_trail(origin, trail, self.settings.retention).await
    }

    /// The last of the oldest records that were all made before `cutoff`, of at most `most`; the checkpoint if there is none.
    /// They are looked at one by one: a record with a wrong date in the middle of a trail makes those before it no older.
    async fn last_old(
        &self,
        trail: Trail,
        ends: Ends,
        cutoff: UnixMillis,
        most: u64,
    ) -> Result<u64, LifecycleError> {
        let first = ends.checkpoint.number;
        let last = first.saturating_add(most).min(ends.head.number);
        let (mut looked_at, mut old) = (first, first);
        while looked_at < last {
            let through = looked_at.saturating_add(PAGE as u64).min(last);
            let page = self.store.trails().entries(trail, Some(through.saturating_add(1)), PAGE).await?;
            for entry in page.iter().rev().filter(|entry| entry.link.number > looked_at) {
                match recorded_at(&entry.text) {
                    Some(at) if at >= cutoff => return Ok(old),
                    Some(_) => old = entry.link.number,
                    None => {}
                }
            }
            looked_at = through;
        }
        Ok(old)
    }

    /// Asks whether trails may be trimmed now, and notes the answer for metrics. `None` if the store does not answer.
    pub(in crate::lifecycle) async fn may_trim(&self) -> Option<Result<(), Held>> {
        let allowance = self.store.trails().allowance(Trail::Operator, self.clock.own()).await.ok()?;
        let held = match allowance {
            Allowance::Open { .. } => None,
            Allowance::Held(held) => Some(held),
        };
        self.trimming.note(held.is_some());
        Some(held.map_or(Ok(()), Err))
    }

    /// Whether trails are trimmed, for metrics.
    #[must_use]
    pub const fn trimming(&self) -> &Trimming {
        &self.trimming
    }
}

/// Whether trimming is held up.
#[derive(Clone, Debug, Default)]
pub struct Trimming(Arc<AtomicU8>);

const OPEN: u8 = 1;
const HELD: u8 = 2;

impl Trimming {
    /// `None` until the store was asked.
    #[must_use]
    pub fn is_held(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            state => Some(state == HELD),
        }
    }

    fn note(&self, is_held: bool) {
        self.0.store(if is_held { HELD } else { OPEN }, Ordering::Relaxed);
    }
}
