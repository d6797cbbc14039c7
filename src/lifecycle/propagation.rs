//! How far a change has come. The request that makes it waits for a moment until every gateway has confirmed it, and
//! its answer says how many have. A change that takes longer is followed beside the request. Either end is written
//! into the audit trail.

use std::sync::{Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Lifecycle;
use super::audit::Draft;
use super::error::LifecycleError;
use super::principal::Origin;
use crate::store::events::Seq;
use crate::store::{LEASE, Propagation};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Environment;

/// Changes whose end may wait to be written down. Further ones are answered all the same, without a record of their
/// end; the store can still tell it.
const WAITING: usize = 4096;
/// How often a store that does not answer is asked for the end of a change, or to write it down.
const ATTEMPTS: usize = 60;
/// The time between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// A changed record, and how far the change had come when the request was answered.
#[derive(Clone, Debug)]
pub struct Changed<T> {
    pub record: T,
    /// `None` where the store could not tell, or the change took no right away.
    pub propagation: Option<Propagation>,
}

/// A change that is to be followed to its end.
#[derive(Debug)]
pub(super) struct Followed {
    trail: Trail,
    environment: Option<Environment>,
    target: Option<String>,
    event: Seq,
    arrived: Instant,
    committed: Instant,
    /// The confirmations so far.
    so_far: Option<Propagation>,
}

/// The queue of changes that are followed.
#[derive(Debug)]
pub(super) struct Following {
    queue: mpsc::Sender<Followed>,
    waiting: Mutex<Option<mpsc::Receiver<Followed>>>,
}

impl Default for Following {
    fn default() -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        Self { queue, waiting: Mutex::new(Some(waiting)) }
    }
}

impl Following {
    pub(super) fn take(&self) -> Option<mpsc::Receiver<Followed>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Lifecycle {
    /// Waits for the gateways, and has the change followed to its end. What is told counts from the moment at which the
    /// request for the change `arrived`; the metrics count from the commit.
    pub(super) async fn propagate(
        &self,
        trail: Trail,
        environment: Option<Environment>,
        target: Option<String>,
        event: Option<Seq>,
        arrived: Instant,
    ) -> Option<Propagation> {
        let (event, committed) = (event?, self.clock.mono());
        let so_far = self.store.propagation(event, self.settings.ack_wait).await.ok();
        match so_far.filter(Propagation::is_complete) {
            Some(complete) => self.changes.confirmed(complete.took),
            None => self.changes.unconfirmed(),
        }
        let took = self.clock.mono().saturating_duration_since(arrived);
        let so_far = so_far.map(|so_far| Propagation { took, ..so_far });
        let followed = Followed { trail, environment, target, event, arrived, committed, so_far };
        let _ = self.following.queue.try_send(followed);
        so_far
    }

    /// Keeps what it learns in `followed`, for the next attempt.
    async fn follow(&self, followed: &mut Followed) -> Result<(), LifecycleError> {
        let Followed { trail, environment, target, event, arrived, committed, so_far } = followed;
        let (trail, environment) = (*trail, *environment);
        let end = match so_far.filter(Propagation::is_complete) {
            Some(complete) => complete,
            None => {
                let end = self.store.propagation(*event, LEASE).await?;
                let now = self.clock.mono();
                let took = now.saturating_duration_since(*arrived);
                let end = *so_far.insert(Propagation { took, ..end });
                if end.is_complete() {
                    self.changes.confirmed(now.saturating_duration_since(*committed));
                }
                end
            }
        };
        // With one gateway, the record of the change itself says everything.
        if end.gateways <= 1 {
            return Ok(());
        }
        let told = json!({
            "event": event,
            "gateways": end.gateways,
            "confirmed": end.confirmed,
            "slowest_ms": millis(end.took),
        });
        let draft =
            || Draft::about(AuditKind::ChangePropagated, environment, target.clone()).after(told.clone());
        self.record(trail, &Origin::gateway(), draft).await
    }

    /// How far the last change of a key has come, as the audit trail has it: `confirmed=7/7; slowest_ms=41`.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn last_propagation(&self, org: OrgId, key: KeyId) -> Result<Option<String>, LifecycleError> {
        let found =
            self.last_audit_record(Trail::Org(org), AuditKind::ChangePropagated, &key.to_string()).await?;
        let told = found.and_then(|record| record.after);
        let number = |name| told.as_ref().and_then(|told| told.get(name)).and_then(Value::as_u64);
        Ok(match (number("gateways"), number("confirmed"), number("slowest_ms")) {
            (Some(gateways), Some(confirmed), Some(slowest)) => {
                Some(format!("confirmed={confirmed}/{gateways}; slowest_ms={slowest}"))
            }
            _ => None,
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Follows changes to their ends, each beside the others: one gateway that hangs holds up only what waits for
/// it.
pub(super) async fn follow_changes(lifecycle: Weak<Lifecycle>, mut waiting: mpsc::Receiver<Followed>) {
    while let Some(followed) = waiting.recv().await {
        tokio::spawn(follow_to_the_end(lifecycle.clone(), followed));
    }
}

async fn follow_to_the_end(lifecycle: Weak<Lifecycle>, mut followed: Followed) {
    for _ in 0..ATTEMPTS {
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        if lifecycle.follow(&mut followed).await.is_ok() {
            return;
        }
        drop(lifecycle);
        tokio::time::sleep(PAUSE).await;
    }
}
