//! The work beside the requests: writing signs of trouble down, following changes to their end, exporting the heads of
//! trails to the log, writing down the use of keys, trimming old audit records, letting keys go that ended long ago, comparing records with their trails.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Lifecycle;
use super::audit::Draft;
use super::principal::Origin;
use super::propagation::follow_changes;
use super::sweep::sweep;
use super::trail::Exported;
use super::trouble::TroubleSeen;
use crate::store::quotas::{Admission, Quota};
use crate::store::trails::Trimmed;
use crate::telemetry::{Event, Notice, flush_log};
use crate::vocabulary::audit::{AuditKind, Trail};

/// How long what is over is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionSettings {
    /// Audit records.
    pub retention: Duration,
    /// Keys that have ended.
    pub keep_ended: Duration,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
        Self { retention: days(400), keep_ended: days(90) }
    }
}

/// How often the heads of trails are exported.
const EXPORT: Duration = Duration::from_secs(60);
/// How often the use of keys is written down.
const USAGE: Duration = Duration::from_secs(60);
/// How often old audit records are looked for.
const TRIM: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the date is written down in a store that has no clock of its own, if nothing else is written.
const TIME: Duration = Duration::from_secs(10 * 60);
/// How often it is looked whether they may be removed.
const LOOK: Duration = Duration::from_secs(60);
/// How soon it is tried again after the store did not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// Organisations read at once for trimming, which is not urgent.
const TRIM_PAGE: usize = 64;

/// The heads of trails that have changed since they were last exported.
#[derive(Debug, Default)]
pub(super) struct Heads(Mutex<BTreeMap<Trail, Exported>>);

impl Heads {
    pub(super) fn note(&self, trail: Trail, head: Exported) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(trail, head);
    }

    /// Keeps a newer head that was noted since.
    fn put_back(&self, trail: Trail, head: Exported) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(trail).or_insert(head);
    }

    fn take(&self) -> BTreeMap<Trail, Exported> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Lifecycle {
    /// Does all of this, until the last other owner of the lifecycle drops it.
    pub async fn attend(lifecycle: Weak<Self>) {
        let Some(waiting) = lifecycle.upgrade().and_then(|lifecycle| lifecycle.troubles.take()) else {
            return;
        };
        let Some(changes) = lifecycle.upgrade().and_then(|lifecycle| lifecycle.following.take()) else {
            return;
        };
        tokio::join!(
            follow_changes(lifecycle.clone(), changes),
            write_troubles(lifecycle.clone(), waiting),
            export_heads(lifecycle.clone()),
            write_usage(lifecycle.clone()),
            trim_trails(lifecycle.clone()),
            note_time(lifecycle.clone()),
            sweep(lifecycle),
        );
    }

    /// Writes the heads that have changed to the log, and returns whether all of them are in its queue. The others wait
    /// for the next time.
    fn export_heads(&self) -> bool {
        let mut moved = self.heads.take().into_iter();
        let line = |trail: Trail, Exported { link, at }: Exported| match at {
            Some(at) => format!("audit head {trail} {link} at {at}"),
            None => format!("audit head {trail} {link}"),
        };
        let full = moved.find(|(trail, head)| !Notice::AuditHead.try_log(&line(*trail, *head)));
        let all = full.is_none();
        full.into_iter().chain(moved).for_each(|(trail, head)| self.heads.put_back(trail, head));
        all
    }

    /// Writes all heads that have changed to the log, for as long as it is read. Blocks.
    pub fn export_all_heads(&self) {
        while !self.export_heads() && flush_log() {}
    }
}

impl Lifecycle {
    /// Whether this is the first such sign of trouble about the target within an hour, at all gateways.
    async fn is_first_within_the_hour(&self, kind: AuditKind, target: Option<&str>) -> bool {
        let name = format!("{kind}:{}", target.unwrap_or_default());
        let once = Quota { name, limit: 1, window: Duration::from_secs(60 * 60) };
        self.store.quotas().admit(vec![once], self.clock.kept()).await == Ok(Admission::Admitted)
    }
}

async fn write_troubles(lifecycle: Weak<Lifecycle>, mut waiting: mpsc::Receiver<TroubleSeen>) {
    while let Some(TroubleSeen { trail, kind, origin, environment, target, seen }) = waiting.recv().await {
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        if kind == AuditKind::KeyInBrowser
            && !lifecycle.is_first_within_the_hour(kind, target.as_deref()).await
        {
            continue;
        }
        let draft = || Draft::about(kind, Some(environment), target.clone()).after(seen.clone());
        if lifecycle.record(trail, &origin, draft).await.is_err() {
            // The store cannot answer, which is logged elsewhere. Signs of trouble do not wait for it.
            lifecycle.troubles.note_dropped();
        }
    }
}

async fn write_usage(lifecycle: Weak<Lifecycle>) {
    loop {
        tokio::time::sleep(USAGE).await;
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        // An outage is logged elsewhere; uses that were not written wait for the next time.
        let _ = lifecycle.write_usage().await;
    }
}

async fn export_heads(lifecycle: Weak<Lifecycle>) {
    loop {
        tokio::time::sleep(EXPORT).await;
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        lifecycle.export_heads();
    }
}

async fn note_time(lifecycle: Weak<Lifecycle>) {
    loop {
        tokio::time::sleep(TIME).await;
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        // An outage is logged elsewhere.
        let _ = lifecycle.keeper().note_time().await;
    }
}

async fn trim_trails(lifecycle: Weak<Lifecycle>) {
    let (mut was_held, mut done) = (false, None);
    loop {
        let Some(some) = lifecycle.upgrade() else { return };
        let now = some.clock.mono();
        // Also at the start: a gateway that is restarted every day would never trim otherwise.
        let is_due = done.is_none_or(|done| now.saturating_duration_since(done) >= TRIM);
        match some.may_trim().await {
            Some(Ok(())) => {
                if std::mem::take(&mut was_held) {
                    Notice::TrimmingResumed.log("audit records that are old are removed again");
                }
                if is_due {
                    done = Some(now);
                    drop(some);
                    trim_all(&lifecycle).await;
                    Lifecycle::let_ended_go(&lifecycle).await;
                    compact(&lifecycle).await;
                }
            }
            Some(Err(held)) => {
                let line = || format!("no audit record is removed for its age: {held}");
                if !std::mem::replace(&mut was_held, true) {
                    Event::TrimmingHeld.log(now, line);
                }
            }
            // The store cannot answer, which is logged elsewhere.
            None => {
                drop(some);
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// After what is old was removed: the store may have become half empty.
async fn compact(lifecycle: &Weak<Lifecycle>) {
    if let Some(lifecycle) = lifecycle.upgrade() {
        lifecycle.compact_by_itself().await;
    }
}

/// Removes the old records of all trails, as far as they may go today.
async fn trim_all(lifecycle: &Weak<Lifecycle>) {
    let mut after = None;
    loop {
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        let Ok(orgs) = lifecycle.list_orgs(after, TRIM_PAGE).await else {
            drop(lifecycle);
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        after = orgs.last().map(|org| org.id);
        let operator = Some(Trail::Operator).filter(|_| after.is_none());
        for trail in orgs.iter().map(|org| Trail::Org(org.id)).chain(operator) {
            let trimmed = lifecycle.trim_trail(&Origin::gateway(), trail, lifecycle.settings.retention).await;
            match trimmed {
                Ok(Trimmed::Removed(_)) => {}
                // Both clocks have come apart: the next look logs it.
                Ok(Trimmed::Held(_)) => return,
                Err(error) => {
                    let line = || format!("cannot trim the audit trail of {trail}: {error}");
                    Event::TrailNotTrimmed.log(lifecycle.clock().mono(), line);
                }
            }
        }
        if after.is_none() {
            return;
        }
    }
}
