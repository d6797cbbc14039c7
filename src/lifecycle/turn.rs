//! Turns: how a change and its audit record are committed as one.
//!
//! A record follows the last one of its trail, so two changes to one organisation cannot be committed on the
//! same end: the second is decided anew. Within a process they take turns, so that this happens only between
//! gateways.

use serde_json::{Map, Value};
use tokio::sync::MutexGuard;

use super::{Lifecycle, LifecycleError, Origin, TRIES};
use crate::store::events::Seq;
use crate::store::{CommitError, Committed, Mutation, StoreFault};
use crate::vocabulary::audit::{AuditKind, AuditRecord, Ends, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{AuditRecordId, OrgId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::KeyRecord;

/// Trails whose changes wait for each other without need: few, and none of them long.
const TURNS: usize = 64;

/// Whose turn it is to change a trail.
#[derive(Debug)]
pub(super) struct Turns([tokio::sync::Mutex<()>; TURNS]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| tokio::sync::Mutex::default()))
    }
}

/// What an audit record says beside who and when.
#[derive(Debug)]
pub(super) struct Draft {
    kind: AuditKind,
    environment: Option<Environment>,
    target: Option<String>,
    before: Option<Value>,
    after: Option<Value>,
}

impl Draft {
    /// About a key.
    pub(super) fn of_key(kind: AuditKind, key: &KeyRecord) -> Self {
        Self::about(kind, Some(key.environment), Some(key.id.to_string()))
    }

    /// About a whole organisation.
    pub(super) fn of_org(kind: AuditKind, org: OrgId) -> Self {
        Self::about(kind, None, Some(org.to_string()))
    }

    pub(super) const fn about(
        kind: AuditKind,
        environment: Option<Environment>,
        target: Option<String>,
    ) -> Self {
        Self { kind, environment, target, before: None, after: None }
    }

    pub(super) fn before(self, before: Value) -> Self {
        Self { before: Some(before), ..self }
    }

    pub(super) fn after(self, after: Value) -> Self {
        Self { after: Some(after), ..self }
    }

    pub(super) fn difference(self, before: &Value, after: &Value) -> Self {
        let only = |one: &Value, other: &Value| {
            let fields = one.as_object().into_iter().flatten();
            let different = fields.filter(|(name, value)| other.get(name) != Some(value));
            different.map(|(name, value)| (name.clone(), value.clone())).collect::<Map<_, _>>()
        };
        self.before(only(before, after).into()).after(only(after, before).into())
    }
}

/// A change to one trail's organisation, while it is being made.
pub(super) struct Turn<'l> {
    lifecycle: &'l Lifecycle,
    trail: Trail,
    origin: &'l Origin,
    tries: usize,
    _held: MutexGuard<'l, ()>,
}

/// What a commit came to, apart from faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Done {
        /// The number of the event that the caches were told of, where the change took a right away.
        event: Option<Seq>,
    },
    /// Something moved, or was answered before: decide anew.
    Again,
    Missing,
    EmailTaken,
}

impl Turn<'_> {
    /// The moment of the next decision.
    pub(super) fn next(&mut self) -> Result<UnixMillis, LifecycleError> {
        self.tries = self.tries.checked_sub(1).ok_or(LifecycleError::Contended(self.trail))?;
        Ok(self.lifecycle.now())
    }

    /// Commits a change together with its audit record.
    pub(super) async fn commit(
        &self,
        mut mutation: Mutation,
        draft: Draft,
    ) -> Result<Settled, LifecycleError> {
        let Self { lifecycle, trail, origin, .. } = self;
        let Ends { head, .. } = lifecycle.store.trails().ends(*trail).await?;
        let at = lifecycle.now();
        let record = AuditRecord {
            id: lifecycle.draw(|ids| AuditRecordId::draw(ids, at)),
            kind: draft.kind,
            at,
            actor: origin.principal.name(),
            address: origin.address,
            request: origin.request,
            environment: draft.environment,
            target: draft.target,
            before: draft.before,
            after: draft.after,
        };
        // Made of strings, numbers and JSON, so nothing in it can fail to be written.
        let text = serde_json::to_vec(&record).map_err(StoreFault::failed)?;
        let append = lifecycle.settings.chain.extend(*trail, head, text);
        let link = append.entry.link;
        mutation.audit = Some(append);
        match lifecycle.store.commit(mutation).await {
            Ok(Committed { event }) => {
                lifecycle.heads.note(*trail, link);
                Ok(Settled::Done { event })
            }
            Err(CommitError::Conflict | CommitError::Answered) => Ok(Settled::Again),
            Err(CommitError::Missing) => Ok(Settled::Missing),
            Err(CommitError::EmailTaken) => Ok(Settled::EmailTaken),
            Err(CommitError::Exists) => Err(LifecycleError::Collision),
            Err(CommitError::Fault(fault)) => Err(fault.into()),
        }
    }
}

impl Lifecycle {
    /// Waits for its turn to change what `trail` tells of.
    pub(super) async fn turn<'l>(&'l self, trail: Trail, origin: &'l Origin) -> Turn<'l> {
        let bytes = trail.to_bytes();
        // The last bytes of an identifier are random.
        let place = usize::from(bytes[15]) % TURNS;
        Turn { lifecycle: self, trail, origin, tries: TRIES, _held: self.turns.0[place].lock().await }
    }

    /// Writes an audit record that tells of no change to a record.
    pub(super) async fn record(
        &self,
        trail: Trail,
        origin: &Origin,
        draft: impl Fn() -> Draft,
    ) -> Result<(), LifecycleError> {
        let mut turn = self.turn(trail, origin).await;
        loop {
            turn.next()?;
            if matches!(turn.commit(Mutation::default(), draft()).await?, Settled::Done { .. }) {
                return Ok(());
            }
        }
    }
}
