//! How far a change has come. The request that makes it waits for a moment until every gateway has confirmed it, and
//! its answer says how many have. A change that takes longer is followed beside the request. Either end is written
//! into the audit trail.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::Lifecycle;
use super::audit::Draft;
use super::error::LifecycleError;
use super::principal::Origin;
use crate::store::events::Seq;
use crate::store::{Awaited, LEASE, Propagation};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Environment;

/// Changes whose end may wait to be written down. Further ones are answered all the same, without a record of their
/// end; the store can still tell it.
const WAITING: usize = 4096;
/// Changes that are followed at once; further ones wait. While a gateway hangs, each is followed for 10 s.
const AT_ONCE: usize = 1024;
/// How many changes of one trail may be followed or wait for it: an eighth of those that may wait, and half of those that are
/// followed at once, so that an organisation which changes keys all day leaves the others their records.
const OF_ONE_TRAIL: usize = 512;
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
    unended: Mutex<Unended>,
}

/// Changes whose end is not written down yet.
#[derive(Debug, Default)]
struct Unended {
    /// Of each target, the last one, as it was answered.
    last: HashMap<String, Propagation>,
    /// How many are followed, or wait for it.
    of_trails: HashMap<Trail, usize>,
}

impl Unended {
    /// Whether there is room for one more of its trail.
    fn begin(&mut self, followed: &Followed) -> bool {
        let count = self.of_trails.entry(followed.trail).or_default();
        let has_room = *count < OF_ONE_TRAIL;
        *count += usize::from(has_room);
        if let Some(target) = &followed.target {
            // What was told of an earlier change of the target does not hold of this one.
            self.last.remove(target);
            if let Some(so_far) = followed.so_far.as_ref().filter(|_| has_room) {
                self.last.insert(target.clone(), so_far.clone());
            }
        }
        has_room
    }

    fn end(&mut self, followed: &Followed) {
        if let Entry::Occupied(mut count) = self.of_trails.entry(followed.trail) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        let Some(target) = &followed.target else { return };
        // Another change of the same target may have begun since.
        if self.last.get(target).is_some_and(|last| last.event == followed.event) {
            self.last.remove(target);
        }
    }
}

impl Default for Following {
    fn default() -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        Self { queue, waiting: Mutex::new(Some(waiting)), unended: Mutex::default() }
    }
}

impl Following {
    pub(super) fn take(&self) -> Option<mpsc::Receiver<Followed>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn begin(&self, followed: Followed) {
        if self.unended().begin(&followed)
            && let Err(unfollowed) = self.queue.try_send(followed)
        {
            self.end(&unfollowed.into_inner());
        }
    }

    fn end(&self, followed: &Followed) {
        self.unended().end(followed);
    }

    fn unended(&self) -> MutexGuard<'_, Unended> {
        self.unended.lock().unwrap_or_else(PoisonError::into_inner)
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
        let so_far = self.store.propagation(event, self.settings.ack_wait, Awaited::Responsive).await.ok();
        match so_far.as_ref().filter(|so_far| so_far.is_confirmed()) {
            Some(confirmed) => self.changes.confirmed(confirmed.took),
            None => self.changes.unconfirmed(),
        }
        if so_far.as_ref().is_some_and(|so_far| !so_far.lapsed.is_empty()) {
            self.changes.beside_lapsed();
        }
        let took = self.clock.mono().saturating_duration_since(arrived);
        let so_far = so_far.map(|so_far| Propagation { took, ..so_far });
        let followed =
            Followed { trail, environment, target, event, arrived, committed, so_far: so_far.clone() };
        self.following.begin(followed);
        so_far
    }

    /// Keeps what it learns in `followed`, for the next attempt.
    async fn follow(&self, followed: &mut Followed) -> Result<(), LifecycleError> {
        let Followed { trail, environment, target, event, arrived, committed, so_far } = followed;
        let (trail, environment) = (*trail, *environment);
        let end = match so_far.clone().filter(Propagation::is_confirmed) {
            Some(confirmed) => confirmed,
            None => {
                let end = self.store.propagation(*event, LEASE, Awaited::All).await?;
                let now = self.clock.mono();
                let took = now.saturating_duration_since(*arrived);
                let end = so_far.insert(Propagation { took, ..end }).clone();
                if end.is_confirmed() {
                    self.changes.confirmed(now.saturating_duration_since(*committed));
                }
                end
            }
        };
        // With one gateway, the record of the change itself says everything.
        if end.gateways <= 1 {
            return Ok(());
        }
        let mut told = json!({
            "event": event,
            "gateways": end.gateways,
            "confirmed": end.confirmed,
            "slowest_ms": millis(end.took),
        });
        if !end.lapsed.is_empty() {
            told["lapsed"] = end.lapsed.len().into();
        }
        let draft =
            || Draft::about(AuditKind::ChangePropagated, environment, target.clone()).after(told.clone());
        self.record(trail, &Origin::gateway(), draft).await
    }

    /// How far an event has come now, or by the end of `within` if some gateway with a lease has not confirmed it.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn propagation_of(&self, event: Seq, within: Duration) -> Result<Propagation, LifecycleError> {
        Ok(self.store.propagation(event, within, Awaited::All).await?)
    }

    /// How far the last change of a key has come: by the answer to it or by the audit trail, and if some gateway had not
    /// confirmed it then, by the store now. `None` if one gateway is all, and for a change of another gateway that is not
    /// written down yet.
    ///
    /// # Errors
    /// When the trail cannot be read.
    pub async fn last_propagation(
        &self,
        org: OrgId,
        key: KeyId,
    ) -> Result<Option<Propagation>, LifecycleError> {
        let target = key.to_string();
        let unended = self.following.unended().last.get(&target).cloned();
        let last = match unended {
            Some(last) => Some(last),
            None => self.recorded_propagation(org, &target).await?,
        };
        let Some(last) = last else { return Ok(None) };
        if last.is_complete() {
            return Ok(Some(last));
        }
        Ok(Some(match self.store.propagation(last.event, Duration::ZERO, Awaited::All).await {
            Ok(now) => Propagation { took: last.took, ..now },
            Err(_) => last,
        }))
    }

    /// The same by the audit trail, which does not name the gateways.
    async fn recorded_propagation(
        &self,
        org: OrgId,
        target: &str,
    ) -> Result<Option<Propagation>, LifecycleError> {
        let found = self.last_audit_record(Trail::Org(org), AuditKind::ChangePropagated, target).await?;
        let told = found.and_then(|record| record.after);
        let number = |name| told.as_ref().and_then(|told| told.get(name)).and_then(Value::as_u64);
        let count = |name| number(name).and_then(|count| usize::try_from(count).ok());
        let numbers = (number("event"), count("gateways"), count("confirmed"), number("slowest_ms"));
        let (Some(event), Some(gateways), Some(confirmed), Some(slowest)) = numbers else { return Ok(None) };
        let lapsed = vec![Box::default(); count("lapsed").unwrap_or(0).min(gateways)];
        let took = Duration::from_millis(slowest);
        Ok(Some(Propagation { event, gateways, confirmed, awaited: Vec::new(), lapsed, took }))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Follows changes to their ends, each beside the others: one gateway that hangs holds up only what waits for
/// it, up to [`AT_ONCE`].
pub(super) async fn follow_changes(lifecycle: Weak<Lifecycle>, mut waiting: mpsc::Receiver<Followed>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let Some(followed) = waiting.recv().await else { return };
        let following = follow_to_the_end(lifecycle.clone(), followed);
        tokio::spawn(async move {
            following.await;
            drop(place);
        });
    }
}

async fn follow_to_the_end(lifecycle: Weak<Lifecycle>, mut followed: Followed) {
    for _ in 0..ATTEMPTS {
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        if lifecycle.follow(&mut followed).await.is_ok() {
            return lifecycle.following.end(&followed);
        }
        drop(lifecycle);
        tokio::time::sleep(PAUSE).await;
    }
    if let Some(lifecycle) = lifecycle.upgrade() {
        lifecycle.following.end(&followed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(org: u8, event: Seq) -> Followed {
        let now = crate::vocabulary::clock::Clock::system().mono();
        let so_far = Propagation {
            event,
            gateways: 2,
            confirmed: 1,
            awaited: Vec::new(),
            lapsed: Vec::new(),
            took: Duration::ZERO,
        };
        Followed {
            trail: Trail::Org(OrgId::from_bytes([org; 16])),
            environment: None,
            target: Some(format!("key {event}")),
            event,
            arrived: now,
            committed: now,
            so_far: Some(so_far),
        }
    }

    #[test]
    fn an_organisation_that_changes_keys_all_day_leaves_the_others_their_records() {
        let following = Following::default();
        let mut waiting = following.take().unwrap();
        let most = OF_ONE_TRAIL as Seq;
        (0..10 * most).for_each(|event| following.begin(change(1, event)));
        assert_eq!((waiting.len(), following.unended().last.len()), (OF_ONE_TRAIL, OF_ONE_TRAIL));
        following.begin(change(2, 20 * most));
        assert_eq!(waiting.len(), OF_ONE_TRAIL + 1, "another organisation has room");
        assert!(following.unended().last.contains_key(&format!("key {}", 20 * most)));

        following.end(&waiting.try_recv().unwrap());
        following.begin(change(1, 30 * most));
        assert_eq!(waiting.len(), OF_ONE_TRAIL + 1, "an end makes room for the next");
        while let Ok(followed) = waiting.try_recv() {
            following.end(&followed);
        }
        assert!(following.unended().last.is_empty() && following.unended().of_trails.is_empty());
    }

    #[test]
    fn what_was_told_of_an_earlier_change_is_not_told_of_one_that_is_not_followed() {
        let following = Following::default();
        (0..OF_ONE_TRAIL as Seq).for_each(|event| following.begin(change(1, event)));
        following.begin(Followed { target: Some("key 0".to_owned()), ..change(1, 9999) });
        assert!(!following.unended().last.contains_key("key 0"));
    }
}
