//! The way of every change: load, decide, commit, settle. The loop stands here once.
//!
//! A change is decided on records as they were read. It is committed, together with its audit record, only if the
//! records that the decision rests on and the end of the trail are still as they were read: else they are read again
//! and the change is decided again. So no decision is made on a right that was taken away a moment before, and every
//! change has its audit record.

use super::Lifecycle;
use super::audit::Draft;
use super::error::LifecycleError;
use super::principal::Origin;
use super::trail::Exported;
use super::turn::{Lane, Line};
use crate::store::events::Seq;
use crate::store::{Change, CommitError, Committed, Mutation, Propagation};
use crate::vocabulary::audit::{Ends, Trail, recorded_at};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::Environment;
use std::future::ready;
use std::time::Instant;

/// How often a change is decided before the caller is told to try again.
const TRIES: usize = 16;
/// The same for one that takes rights away: other gateways that change the same organisation all the time must not keep it
/// from being made.
const TRIES_OF_TAKING: usize = 1024;

/// The outcome of a decision: the records to write, if any, and the answer for the caller.
pub(super) struct Decided<T> {
    write: Option<(Mutation, Draft)>,
    outcome: T,
}

impl<T> Decided<T> {
    /// The mutation is to be committed, together with an audit record.
    pub(super) const fn commit(mutation: Mutation, draft: Draft, outcome: T) -> Self {
        Self { write: Some((mutation, draft)), outcome }
    }

    /// There is nothing to commit: the same request was carried out before.
    pub(super) const fn nothing(outcome: T) -> Self {
        Self { write: None, outcome }
    }
}

/// A change that is committed and may not hold at every gateway yet.
#[derive(Debug)]
pub(super) struct MadeChange {
    trail: Trail,
    environment: Option<Environment>,
    target: Option<String>,
    event: Option<Seq>,
    arrived: Instant,
}

impl Lifecycle {
    /// Makes a change to what a trail tells of when its turn in this line comes, and waits until it holds at every
    /// gateway, but no longer than `settings.ack_wait`.
    ///
    /// `first` is what was loaded already, for the first decision; further ones are made on what `load` reads.
    /// `decide` is given the moment of the decision, by which it judges everything that ends with time.
    ///
    /// # Errors
    /// [`LifecycleError::Contended`] after 16 decisions that could not be committed, or 1,024 where rights are taken away;
    /// [`LifecycleError::CallerLeft`], and the errors of `load`, `decide` and the store.
    pub(super) async fn change<B, T, L: Future<Output = Result<B, LifecycleError>> + Send>(
        &self,
        line: Line,
        origin: &Origin,
        first: Option<B>,
        load: impl Fn() -> L,
        decide: impl Fn(&B, UnixMillis) -> Result<Decided<T>, LifecycleError>,
    ) -> Result<(T, Option<Propagation>), LifecycleError> {
        let (outcome, made) = self.commit_change(line, origin, first, load, decide).await?;
        Ok((outcome, self.propagate_change(made).await))
    }

    /// The same without waiting for the gateways, for a change that is one of several: to wait for the last of them is
    /// to wait for all.
    pub(super) async fn commit_change<B, T, L: Future<Output = Result<B, LifecycleError>> + Send>(
        &self,
        line: Line,
        origin: &Origin,
        mut first: Option<B>,
        load: impl Fn() -> L,
        decide: impl Fn(&B, UnixMillis) -> Result<Decided<T>, LifecycleError>,
    ) -> Result<(T, Option<MadeChange>), LifecycleError> {
        let (arrived, trail) = (origin.arrived.unwrap_or_else(|| self.clock.mono()), line.trail);
        let _turn = self.turns.take(line).await;
        origin.presence.begin()?;
        for _ in 0..if line.takes_away() { TRIES_OF_TAKING } else { TRIES } {
            let basis = match first.take() {
                Some(basis) => basis,
                None => load().await?,
            };
            // Read before the decision, which uses the pepper, too: a change that was decided under another one is stale.
            let under = self.settings.peppers.row_name();
            let Decided { write, outcome } = decide(&basis, self.now())?;
            let Some((mutation, draft)) = write else { return Ok((outcome, None)) };
            let mutation = Mutation { under: Some(under), ..mutation };
            let (environment, target) = (draft.environment, draft.target.clone());
            if let Some(Committed { event }) = self.commit(trail, origin, mutation, draft).await? {
                return Ok((outcome, Some(MadeChange { trail, environment, target, event, arrived })));
            }
        }
        Err(LifecycleError::Contended(trail))
    }

    /// Waits until a change holds at every gateway, but no longer than `settings.ack_wait`.
    pub(super) async fn propagate_change(&self, made: Option<MadeChange>) -> Option<Propagation> {
        let MadeChange { trail, environment, target, event, arrived } = made?;
        self.propagate(trail, environment, target, event, arrived).await
    }

    /// Writes an audit record that tells of no change to a record of the store.
    pub(super) async fn record(
        &self,
        trail: Trail,
        origin: &Origin,
        draft: impl Fn() -> Draft,
    ) -> Result<(), LifecycleError> {
        self.record_with(trail, origin, draft, Mutation::default).await
    }

    /// As [`Lifecycle::record`], of a kind that older gateways do not know.
    pub(super) async fn record_with(
        &self,
        trail: Trail,
        origin: &Origin,
        draft: impl Fn() -> Draft,
        mutation: impl Fn() -> Mutation,
    ) -> Result<(), LifecycleError> {
        let decide = |(): &(), _| Ok(Decided::commit(mutation(), draft(), ()));
        let line = Lane::Making.of(trail);
        self.change(line, origin, None, || ready(Ok(())), decide).await.map(|_| ())
    }

    /// Commits a change together with its audit record. `None` where something moved since it was read, or the same
    /// request was answered meanwhile: then the change is to be decided again.
    async fn commit(
        &self,
        trail: Trail,
        origin: &Origin,
        mut mutation: Mutation,
        draft: Draft,
    ) -> Result<Option<Committed>, LifecycleError> {
        let Ends { head, .. } = self.store.trails().ends(trail).await?;
        let append = self.append(trail, head, origin, draft)?;
        let head = Exported { link: append.entry.link, at: recorded_at(&append.entry.text) };
        mutation.audit = Some(append);
        let missing = missing(&mutation);
        match self.store.commit(mutation).await {
            Ok(committed) => {
                self.heads.note(trail, head);
                Ok(Some(committed))
            }
            Err(CommitError::Conflict | CommitError::Answered | CommitError::Unindexed) => Ok(None),
            Err(CommitError::NotNewest { newest }) => {
                // It is of a clock that is ahead.
                self.draw(|ids| ids.go_on_after(newest));
                Ok(None)
            }
            Err(CommitError::PrefixRemoved) => {
                // An operator has removed it in this moment: the next key is made with another one.
                self.read_prefixes().await;
                Err(LifecycleError::Contended(trail))
            }
            Err(CommitError::Full(full)) => Err(LifecycleError::Full(full)),
            Err(CommitError::TooFast { retry_after }) => Err(LifecycleError::QuotaExceeded { retry_after }),
            Err(CommitError::Missing) => Err(missing),
            Err(CommitError::EmailTaken) => Err(LifecycleError::EmailTaken),
            Err(CommitError::Exists) => Err(LifecycleError::Collision),
            Err(CommitError::Fault(fault)) => Err(fault.into()),
        }
    }
}

/// The meaning of [`CommitError::Missing`] for this mutation.
const fn missing(mutation: &Mutation) -> LifecycleError {
    match (&mutation.key, &mutation.org) {
        (Some(Change::Update { record, .. }), _) => LifecycleError::NoKey(record.id),
        (None, Some(Change::Update { record, .. })) => LifecycleError::NoOrg(record.id),
        (Some(Change::Insert(key)), None) => LifecycleError::NoOrg(key.org),
        // A new organisation comes with all that it needs.
        (_, Some(Change::Insert(_) | Change::Update { .. })) | (None, None) => LifecycleError::Collision,
    }
}
