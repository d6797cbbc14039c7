//! Copying everything from one store into another: organisations with their e-mail addresses and news, keys with their
//! use, audit trails with their checkpoints.
//!
//! The source is only read. The target must hold nothing else: data that it has already was copied by an interrupted
//! run, and is compared instead of written. The audit record that says that the migration is complete is written last.
//! At the end both stores are read again and compared.
//!
//! A trail whose chain has the same key in both stores is copied as it is, so its exported heads stay valid. Under
//! another key it gets a new chain, but only if it is intact, and a record in it holds both heads.

mod trails;
mod verify;

use std::future::Future;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Lifecycle;
use super::audit::Draft;
use super::error::LifecycleError;
use super::principal::Origin;
use super::trail::AuditFilter;
use super::view::AuditRecordView;
use crate::store::outbox::News;
use crate::store::{Change, CommitError, EmailClaim, KeysOf, Mutation, StoreFault};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Prefixes;
use crate::vocabulary::key::gone::Gone;
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};
use crate::vocabulary::key::usage::Used;

/// Records read at once: the largest part of a store that is in memory.
const PAGE: usize = 512;
/// Trails copied or verified at the same time.
const TRAILS: usize = 16;

/// How far a migration has come, and at the end its result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub organizations: u64,
    pub keys: u64,
    /// Organisations and keys that an earlier run had copied.
    pub present: u64,
    /// Keys with a last use.
    pub used: u64,
    /// News that wait for the upstream.
    pub news: u64,
    /// In all audit trails.
    #[serde(rename = "events")]
    pub audit_records: u64,
    /// Whether the trails have new chains, under another key.
    pub rechained: bool,
    /// Organisations and keys that were compared at the end.
    pub verified: u64,
    /// Trails that are damaged in the source, and so in the target.
    pub damaged: Vec<Trail>,
}

/// The outcome of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Migration {
    Done(Moved),
    /// It was completed before, at this time; nothing was compared.
    DoneBefore {
        at: String,
    },
}

/// Why a migration did not happen, or was interrupted. Running it again continues it.
#[derive(Debug, Error)]
pub enum MigrationError {
    #[error("both configurations lead to the same store")]
    Same,
    #[error(
        "the source's keys are digested under a pepper that is not the target's: give the target the same \
         keys.pepper_file"
    )]
    Pepper,
    #[error(
        "the audit trail has another key in the target: give it the same audit.key_file (the source's pepper, if it has \
         none), or add --rechain, which makes new chains under the target's key; heads that were exported before then \
         fit only the source"
    )]
    ChainKey,
    #[error(
        "the audit trail of {trail} is damaged (record {number} {text}), and a new chain would hide that: run \
         `keygate audit verify` on the source, or keep the chain's key"
    )]
    Damaged { trail: Trail, number: u64, text: String },
    #[error(
        "the target holds {0}, which differs from the source: a migration needs an empty store, or one in which the same \
         migration was interrupted; empty the target, or use another"
    )]
    Occupied(String),
    #[error(
        "{0} is not the same in both stores at the end: one of them was changed meanwhile; stop their gateways, empty the \
         target, and run this again"
    )]
    Differs(String),
    #[error("the source cannot be read: {0}; nothing is lost: run this again to continue")]
    Source(StoreFault),
    #[error(
        "the target failed: {0}; it is not complete: start no gateway on it, and run this again to continue"
    )]
    Target(StoreFault),
    #[error("{0}; the target may be incomplete: start no gateway on it, and run this again to continue")]
    Lifecycle(#[from] LifecycleError),
}

use MigrationError::{Source, Target};

/// Copies everything from the store of `source` to the store of `target`. `tell` is told the progress.
///
/// # Errors
/// [`MigrationError`], which says what to do.
pub async fn migrate(
    source: Arc<Lifecycle>,
    target: Arc<Lifecycle>,
    origin: Origin,
    rechain: bool,
    tell: &mut dyn FnMut(&Moved),
) -> Result<Migration, MigrationError> {
    // Both stores tell which pepper belongs to them.
    source.keeper().status().await;
    let (from, to) = (&source.settings.peppers, &target.settings.peppers);
    if from.share_current(to) && from.all().len() > 1 {
        target.keeper().begin().await.map_err(Target)?;
        target.keeper().keep_peppers_of(from.clone()).await.map_err(Target)?;
    }
    let keeps_chain = source.settings.chain.is_same(&target.settings.chain);
    if !source.settings.digester.leads_to(&target.settings.digester) {
        return Err(MigrationError::Pepper);
    }
    if !keeps_chain && !rechain {
        return Err(MigrationError::ChainKey);
    }
    let moving = Moving { source, target, origin, rechains: !keeps_chain };
    moving.run(tell).await
}

/// A migration under way.
#[derive(Clone)]
struct Moving {
    source: Arc<Lifecycle>,
    target: Arc<Lifecycle>,
    origin: Origin,
    rechains: bool,
}

impl Moving {
    async fn run(self, tell: &mut dyn FnMut(&Moved)) -> Result<Migration, MigrationError> {
        let moving = Arc::new(self);
        let status = moving.source.keeper().status().await;
        let no_store =
            || Source(StoreFault::failed(status.trouble.as_deref().unwrap_or("there is no store")));
        let from = status.found.clone().ok_or_else(no_store)?;
        moving.target.keeper().begin().await.map_err(Target)?;
        if moving.target.keeper().status().await.found.as_ref() == Some(&from) {
            return Err(MigrationError::Same);
        }
        if let Some(at) = moving.done_before(&from).await? {
            return Ok(Migration::DoneBefore { at });
        }
        moving.check_target().await?;
        moving.move_prefixes().await?;
        let mut moved = Moved { rechained: moving.rechains, ..Moved::default() };
        // The operator's trail comes first, because it shows soonest that the target was used.
        let operators = moving.move_trail(Trail::Operator).await?;
        moved.audit_records += operators.count;
        moving.move_orgs(&mut moved, tell).await?;
        moving.move_keys(&mut moved, tell).await?;
        moving.move_stones().await?;
        moving.move_trails(&mut moved, tell).await?;
        moving.verify(&mut moved, tell).await?;
        let before = json!({ "store": from, "head": operators.before });
        let after = json!({
            "head": operators.after,
            "rechained": moving.rechains,
            "organizations": moved.organizations,
            "keys": moved.keys,
        });
        let draft =
            || Draft::about(AuditKind::StoreMigrated, None, None).before(before.clone()).after(after.clone());
        moving.target.record(Trail::Operator, &moving.origin, draft).await?;
        Ok(Migration::Done(moved))
    }

    /// Gives the target the prefixes of the source. They come first, because the keys refer to them.
    async fn move_prefixes(&self) -> Result<(), MigrationError> {
        let own = || Prefixes::new(self.source.settings.prefix.clone(), false);
        let wanted = self.source.keeper().prefixes().register().await.map_err(Source)?.prefixes;
        let wanted = wanted.unwrap_or_else(own);
        let book = self.target.keeper().prefixes();
        let there = book.register().await.map_err(Target)?.prefixes;
        let is_done = match there {
            Some(there) => there == wanted,
            None => book.rewrite(None, wanted).await.map_err(Target)?,
        };
        if is_done { Ok(()) } else { Err(occupied("other prefixes of keys")) }
    }

    /// When the same migration was completed, if it was.
    async fn done_before(&self, from: &str) -> Result<Option<String>, MigrationError> {
        let filter = AuditFilter { kind: Some(AuditKind::StoreMigrated), ..AuditFilter::default() };
        let mut before = None;
        loop {
            let page = self.target.audit_records(Trail::Operator, filter, before, PAGE).await?;
            let told = |record: &AuditRecordView| {
                record.before.as_ref().and_then(|before| Some(before.get("store")?.as_str()? == from))
            };
            if let Some(done) = page.records.into_iter().find(|record| told(record) == Some(true)) {
                return Ok(Some(done.created_at));
            }
            before = page.next;
            if before.is_none() {
                return Ok(None);
            }
        }
    }

    /// Checks that everything in the target is what this migration would write.
    async fn check_target(self: &Arc<Self>) -> Result<(), MigrationError> {
        let mut after = None;
        while let Some(orgs) = next_orgs(&self.target, &mut after, PAGE).await.map_err(Target)? {
            self.each(orgs, async |moving, org| {
                let own = moving.source.store.org(org.record.id).await.map_err(Source)?;
                same(own.as_ref(), &org.record).ok_or_else(|| occupied(org.record.id))
            })
            .await?;
        }
        let mut after = None;
        while let Some(keys) = next_keys(&self.target, None, &mut after).await.map_err(Target)? {
            self.each(keys, async |moving, key| {
                let own = moving.source.store.key(key.record.id).await.map_err(Source)?;
                let own = own.map(|own| moving.convert(own.record));
                own.filter(|own| *own == key.record).ok_or_else(|| occupied(key.record.id))
            })
            .await?;
        }
        Ok(())
    }

    async fn move_orgs(
        self: &Arc<Self>,
        moved: &mut Moved,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<(), MigrationError> {
        let mut after = None;
        while let Some(orgs) = next_orgs(&self.source, &mut after, PAGE).await.map_err(Source)? {
            let ids = orgs.iter().map(|org| org.record.id).collect();
            let news = self.source.store.outbox().news(ids).await.map_err(Source)?;
            let orgs: Vec<_> = orgs.into_iter().map(|org| org.record).zip(news).collect();
            moved.organizations += orgs.len() as u64;
            moved.news += orgs.iter().filter(|(_, news)| news.is_some()).count() as u64;
            let present = self.each(orgs, async |moving, (org, news)| moving.move_org(org, news).await);
            moved.present += present.await?.into_iter().filter(|present| *present).count() as u64;
            tell(moved);
        }
        Ok(())
    }

    /// Returns whether the target had it already.
    async fn move_org(&self, org: OrgRecord, news: Option<News>) -> Result<bool, MigrationError> {
        let peppers = &self.target.settings.peppers;
        let email = org.email.as_ref().map(|email| EmailClaim::under(peppers, email, org.id));
        let insert = Some(Change::Insert(org.clone()));
        match self.target.store.commit(Mutation { org: insert, email, news, ..Mutation::default() }).await {
            Ok(_) => Ok(false),
            Err(CommitError::Exists | CommitError::EmailTaken) => {
                let there = self.target.store.org(org.id).await.map_err(Target)?;
                same(there.as_ref(), &org).map(|_| true).ok_or_else(|| occupied(org.id))
            }
            Err(error) => Err(Target(fault(error))),
        }
    }

    async fn move_keys(
        self: &Arc<Self>,
        moved: &mut Moved,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<(), MigrationError> {
        let mut after = None;
        while let Some(keys) = next_keys(&self.source, None, &mut after).await.map_err(Source)? {
            let keys: Vec<_> = keys.into_iter().map(|key| self.convert(key.record)).collect();
            let ids: Vec<KeyId> = keys.iter().map(|key| key.id).collect();
            let (stones, keys): (Vec<_>, Vec<_>) = keys.into_iter().partition(KeyRecord::is_tombstone);
            for stone in stones {
                let mutation = Mutation { tombstone: Some(stone), ..Mutation::default() };
                self.target.store.commit(mutation).await.map_err(|error| Target(fault(error)))?;
            }
            let outcomes = self.target.store.import(keys.clone()).await.map_err(Target)?;
            let mut taken = Vec::new();
            for (key, outcome) in keys.into_iter().zip(outcomes) {
                match outcome {
                    Ok(()) => {}
                    Err(CommitError::Exists) => taken.push(key),
                    Err(error) => return Err(Target(fault(error))),
                }
            }
            moved.keys += ids.len() as u64;
            moved.present += taken.len() as u64;
            self.each(taken, async |moving, key| {
                let there = moving.target.store.key(key.id).await.map_err(Target)?;
                same(there.as_ref(), &key).ok_or_else(|| occupied(key.id))
            })
            .await?;
            moved.used += self.move_usage(ids).await?;
            tell(moved);
        }
        Ok(())
    }

    /// What must not come back there must not come back here.
    async fn move_stones(self: &Arc<Self>) -> Result<(), MigrationError> {
        let (out, mut stones) = mpsc::channel(1);
        let from = Arc::clone(self);
        let telling = tokio::spawn(async move { from.source.keeper().graves().stones(out).await });
        let (own, other) = (&self.source.settings.digester, &self.target.settings.digester);
        while let Some(stones) = stones.recv().await {
            let carried = |of| match of {
                Gone::Secret(digest) => Gone::Secret(own.carry(digest, other)),
                key @ Gone::Key(_) => key,
            };
            let names = stones.into_iter().map(|stone| (carried(stone.of), stone.maker)).collect();
            self.target.keeper().graves().put(names).await.map_err(Target)?;
        }
        let told = telling.await.unwrap_or_else(|error| Err(StoreFault::failed(error)));
        told.map_err(Source)
    }

    async fn move_usage(&self, keys: Vec<KeyId>) -> Result<u64, MigrationError> {
        let usage = self.source.store.usage().of(keys.clone()).await.map_err(Source)?;
        let used = keys.into_iter().zip(usage).filter_map(|(key, usage)| Some(Used { key, usage: usage? }));
        let used: Vec<Used> = used.collect();
        let count = used.len() as u64;
        self.target.store.usage().note(used).await.map_err(Target)?;
        Ok(count)
    }

    /// The key as the target keeps it.
    fn convert(&self, mut key: KeyRecord) -> KeyRecord {
        let (from, to) = (&self.source.settings.digester, &self.target.settings.digester);
        for secret in &mut key.secrets {
            secret.digest = from.carry(secret.digest, to);
        }
        key
    }

    /// Runs `act` on each item, all at the same time.
    async fn each<I: Send + 'static, T: Send + 'static, F>(
        self: &Arc<Self>,
        items: impl IntoIterator<Item = I>,
        act: impl Fn(Arc<Self>, I) -> F,
    ) -> Result<Vec<T>, MigrationError>
    where
        F: Future<Output = Result<T, MigrationError>> + Send + 'static,
    {
        let mut acting = JoinSet::new();
        for item in items {
            acting.spawn(act(Arc::clone(self), item));
        }
        let mut done = Vec::new();
        while let Some(acted) = acting.join_next().await {
            done.push(acted.map_err(|error| Target(StoreFault::failed(error)))??);
        }
        Ok(done)
    }
}

/// The next organisations; `None` at the end.
async fn next_orgs(
    lifecycle: &Lifecycle,
    after: &mut Option<OrgId>,
    limit: usize,
) -> Result<Option<Vec<Versioned<OrgRecord>>>, StoreFault> {
    let orgs = lifecycle.store.orgs(*after, limit).await?;
    *after = orgs.last().map(|org| org.record.id).or(*after);
    Ok(Some(orgs).filter(|orgs| !orgs.is_empty()))
}

/// The same for keys: all, or those of one organisation without tombstones, whose organisation is not known in the target.
async fn next_keys(
    lifecycle: &Lifecycle,
    org: Option<OrgId>,
    after: &mut Option<KeyId>,
) -> Result<Option<Vec<Versioned<KeyRecord>>>, StoreFault> {
    loop {
        let mut keys = lifecycle.store.keys(org.map_or(KeysOf::All, KeysOf::Org), *after, PAGE).await?;
        let Some(last) = keys.last() else { return Ok(None) };
        *after = Some(last.record.id);
        keys.retain(|key| org.is_none() || !key.record.is_tombstone());
        if !keys.is_empty() {
            return Ok(Some(keys));
        }
    }
}

fn same<T: PartialEq>(one: Option<&Versioned<T>>, other: &T) -> Option<()> {
    one.is_some_and(|one| one.record == *other).then_some(())
}

fn occupied(what: impl std::fmt::Display) -> MigrationError {
    MigrationError::Occupied(what.to_string())
}

fn fault(error: CommitError) -> StoreFault {
    match error {
        CommitError::Fault(fault) => fault,
        refused => StoreFault::failed(refused),
    }
}
