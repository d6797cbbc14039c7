//! Moving everything from one store into another: organisations with their e-mail addresses and news, keys with
//! their use, audit trails with their checkpoints.
//!
//! The source is only read. The target holds nothing else meanwhile, so what is in it already was moved by a run
//! that was interrupted, and is compared instead of written; the last thing written is the event that says that it
//! is done. In the end both stores are read again, side by side.
//!
//! A trail whose chain has the same key in both is copied as it is: what was exported of it stays true. Under
//! another key its chain is made anew, only if it was whole, and an event in it tells both heads.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use thiserror::Error;
use tokio::task::JoinSet;

use super::trail::parse;
use super::turn::Draft;
use super::{By, EventFilter, Lifecycle, LifecycleError};
use crate::audit::{Ends, Entry, Kind, Link, Trail};
use crate::id::{KeyId, OrgId};
use crate::key::Digest;
use crate::key::record::{KeyRecord, OrgRecord, Versioned};
use crate::key::usage::Used;
use crate::store::side::News;
use crate::store::{Change, CommitError, EmailClaim, Lookup, Mutation, StoreFault};

/// Records that are read at once, and so how much of a store is in memory.
const PAGE: usize = 512;
/// Trails that are moved or verified at the same time.
const TRAILS: usize = 16;
/// Entries of a trail that are moved at once.
const ENTRIES: usize = 256;

/// How far a migration has come, and in the end what it came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub organizations: u64,
    pub keys: u64,
    /// Of those two, how many an earlier run had moved.
    pub present: u64,
    /// Keys of which it is known when they were used.
    pub used: u64,
    /// News that wait for the upstream.
    pub news: u64,
    /// Events in all audit trails.
    pub events: u64,
    /// Whether the trails' chains were made anew under another key.
    pub rechained: bool,
    /// Organisations and keys that were found the same in both stores at the end.
    pub verified: u64,
    /// Trails that are damaged in the source, and so in the target.
    pub damaged: Vec<Trail>,
}

/// What a migration came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Migration {
    Done(Moved),
    /// It was done before, at this time; nothing was looked at.
    DoneBefore {
        at: String,
    },
}

/// Why a migration did not happen, or broke off. Where anything was written, running it again goes on.
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
         none), or add --rechain, which makes the chains anew under the target's key; heads that were exported before \
         are then true of the source only"
    )]
    ChainKey,
    #[error(
        "the audit trail of {trail} is not whole (event {number} {text}), and a new chain would hide that: see \
         `keygate audit verify` on the source, or keep the chain's key"
    )]
    Damaged { trail: Trail, number: u64, text: String },
    #[error(
        "the target holds {0}, which the source does not have so: a migration needs an empty store, or one in which the \
         same migration broke off; empty it, or take another"
    )]
    Occupied(String),
    #[error(
        "{0} is not the same in both stores at the end: was one of them used meanwhile? stop its gateways, empty the target, \
         and run this again"
    )]
    Differs(String),
    #[error("the source cannot be read: {0}; nothing is lost: run this again, and it goes on")]
    Source(StoreFault),
    #[error(
        "the target failed: {0}; it is not complete: start no gateway on it, run this again, and it goes on"
    )]
    Target(StoreFault),
    #[error("{0}; the target may be incomplete: start no gateway on it, run this again, and it goes on")]
    Lifecycle(#[from] LifecycleError),
}

use MigrationError::{Source, Target};

/// Moves everything in the store of `source` into that of `target`, and tells how far it has come.
///
/// # Errors
/// [`MigrationError`], which says what to do.
pub async fn migrate(
    source: Arc<Lifecycle>,
    target: Arc<Lifecycle>,
    by: By,
    rechain: bool,
    tell: &mut dyn FnMut(&Moved),
) -> Result<Migration, MigrationError> {
    let keeps_chain = source.settings.chain.is_same(&target.settings.chain);
    if !source.settings.digester.leads_to(&target.settings.digester) {
        return Err(MigrationError::Pepper);
    }
    if !keeps_chain && !rechain {
        return Err(MigrationError::ChainKey);
    }
    let removal = Removal { source, target, by, rechains: !keeps_chain };
    removal.run(tell).await
}

/// A migration under way.
#[derive(Clone)]
struct Removal {
    source: Arc<Lifecycle>,
    target: Arc<Lifecycle>,
    by: By,
    rechains: bool,
}

impl Removal {
    async fn run(self, tell: &mut dyn FnMut(&Moved)) -> Result<Migration, MigrationError> {
        let removal = Arc::new(self);
        let status = removal.source.keeper().status().await;
        let no_store =
            || Source(StoreFault::failed(status.trouble.as_deref().unwrap_or("there is no store")));
        let from = status.found.clone().ok_or_else(no_store)?;
        removal.target.keeper().begin().await.map_err(Target)?;
        if removal.target.keeper().status().await.found.as_ref() == Some(&from) {
            return Err(MigrationError::Same);
        }
        if let Some(at) = removal.done_before(&from).await? {
            return Ok(Migration::DoneBefore { at });
        }
        removal.check_target().await?;
        let mut moved = Moved { rechained: removal.rechains, ..Moved::default() };
        // First, because it tells soonest that somebody has used the target.
        let operators = removal.move_trail(Trail::Operator).await?;
        moved.events += operators.count;
        removal.move_orgs(&mut moved, tell).await?;
        removal.move_keys(&mut moved, tell).await?;
        removal.move_trails(&mut moved, tell).await?;
        removal.verify(&mut moved, tell).await?;
        let before = json!({ "store": from, "head": operators.before });
        let after = json!({
            "head": operators.after,
            "rechained": removal.rechains,
            "organizations": moved.organizations,
            "keys": moved.keys,
        });
        let event =
            || Draft::about(Kind::StoreMigrated, None, None).before(before.clone()).after(after.clone());
        removal.target.record(Trail::Operator, &removal.by, event).await?;
        Ok(Migration::Done(moved))
    }

    /// When the same migration was done, if it was.
    async fn done_before(&self, from: &str) -> Result<Option<String>, MigrationError> {
        let filter = EventFilter { kind: Some(Kind::StoreMigrated), ..EventFilter::default() };
        let mut before = None;
        loop {
            let page = self.target.events(Trail::Operator, filter, before, PAGE).await?;
            let told = |event: &super::EventView| {
                event.before.as_ref().and_then(|before| Some(before.get("store")?.as_str()? == from))
            };
            if let Some(done) = page.events.into_iter().find(|event| told(event) == Some(true)) {
                return Ok(Some(done.created_at));
            }
            before = page.next;
            if before.is_none() {
                return Ok(None);
            }
        }
    }

    /// Everything in the target is what this would write.
    async fn check_target(self: &Arc<Self>) -> Result<(), MigrationError> {
        let mut after = None;
        loop {
            let orgs = self.target.store.orgs(after, PAGE).await.map_err(Target)?;
            let Some(last) = orgs.last() else { break };
            after = Some(last.record.id);
            self.each(orgs, async |removal, org| {
                let own = removal.source.store.org(org.record.id).await.map_err(Source)?;
                same(own.as_ref(), &org.record).ok_or_else(|| occupied(org.record.id))
            })
            .await?;
        }
        let mut after = None;
        loop {
            let keys = self.target.store.keys(None, after, PAGE).await.map_err(Target)?;
            let Some(last) = keys.last() else { return Ok(()) };
            after = Some(last.record.id);
            self.each(keys, async |removal, key| {
                let own = removal.source.store.key(key.record.id).await.map_err(Source)?;
                let own = own.map(|own| removal.convert(own.record));
                own.filter(|own| *own == key.record).ok_or_else(|| occupied(key.record.id))
            })
            .await?;
        }
    }

    async fn move_orgs(
        self: &Arc<Self>,
        moved: &mut Moved,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<(), MigrationError> {
        let mut after = None;
        loop {
            let orgs = self.source.store.orgs(after, PAGE).await.map_err(Source)?;
            let Some(last) = orgs.last() else { return Ok(()) };
            after = Some(last.record.id);
            let ids = orgs.iter().map(|org| org.record.id).collect();
            let news = self.source.store.side().news(ids).await.map_err(Source)?;
            let orgs: Vec<_> = orgs.into_iter().map(|org| org.record).zip(news).collect();
            moved.organizations += orgs.len() as u64;
            moved.news += orgs.iter().filter(|(_, news)| news.is_some()).count() as u64;
            let present = self.each(orgs, async |removal, (org, news)| removal.move_org(org, news).await);
            moved.present += present.await?.into_iter().filter(|present| *present).count() as u64;
            tell(moved);
        }
    }

    /// Tells whether it was there already.
    async fn move_org(&self, org: OrgRecord, news: Option<News>) -> Result<bool, MigrationError> {
        let pepper = self.target.settings.pepper.as_ref();
        let email = org.email.as_ref().map(|email| EmailClaim { index: email.index(pepper), org: org.id });
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
        loop {
            let keys = self.source.store.keys(None, after, PAGE).await.map_err(Source)?;
            let Some(last) = keys.last() else { return Ok(()) };
            after = Some(last.record.id);
            let keys: Vec<_> = keys.into_iter().map(|key| self.convert(key.record)).collect();
            let ids: Vec<KeyId> = keys.iter().map(|key| key.id).collect();
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
            self.each(taken, async |removal, key| {
                let there = removal.target.store.key(key.id).await.map_err(Target)?;
                same(there.as_ref(), &key).ok_or_else(|| occupied(key.id))
            })
            .await?;
            moved.used += self.move_usage(ids).await?;
            tell(moved);
        }
    }

    async fn move_usage(&self, keys: Vec<KeyId>) -> Result<u64, MigrationError> {
        let usage = self.source.store.side().usage(keys.clone()).await.map_err(Source)?;
        let used = keys.into_iter().zip(usage).filter_map(|(key, usage)| Some(Used { key, usage: usage? }));
        let used: Vec<Used> = used.collect();
        let count = used.len() as u64;
        self.target.store.side().note_usage(used).await.map_err(Target)?;
        Ok(count)
    }

    async fn move_trails(
        self: &Arc<Self>,
        moved: &mut Moved,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<(), MigrationError> {
        let mut after = None;
        loop {
            let orgs = self.source.store.orgs(after, TRAILS).await.map_err(Source)?;
            let Some(last) = orgs.last() else { return Ok(()) };
            after = Some(last.record.id);
            let moving = self.each(orgs, async |removal, org| removal.move_org_trail(org.record.id).await);
            moved.events += moving.await?.into_iter().sum::<u64>();
            tell(moved);
        }
    }

    async fn move_org_trail(&self, org: OrgId) -> Result<u64, MigrationError> {
        let trail = Trail::Org(org);
        let MovedTrail { count, before, after, told } = self.move_trail(trail).await?;
        if self.rechains && count > 0 && !told {
            let event = || {
                let event = Draft::of_org(Kind::StoreMigrated, org).before(json!({ "head": before }));
                event.after(json!({ "head": after, "rechained": true }))
            };
            self.target.record(trail, &self.by, event).await?;
        }
        Ok(count)
    }

    /// Copies a trail, or makes its chain anew.
    async fn move_trail(&self, trail: Trail) -> Result<MovedTrail, MigrationError> {
        let ends = self.source.store.trails().ends(trail).await.map_err(Source)?;
        let there = self.target.store.trails().ends(trail).await.map_err(Target)?;
        let wanted = if self.rechains { self.rechained(trail, ends).await? } else { ends };
        let count = ends.head.number - ends.checkpoint.number;
        let mut moved = MovedTrail { count, before: ends.head, after: wanted.head, told: false };
        if there == wanted && ends == Ends::default() {
            return Ok(moved);
        }
        if there != wanted && there != Ends::default() {
            moved.told = self.rechains && self.ends_with_its_event(trail, wanted, there).await?;
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

    /// Whether a trail was moved before, and nothing but the event that says so stands behind it.
    async fn ends_with_its_event(
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
        Ok(follows && parse(&last)?.kind == Kind::StoreMigrated)
    }

    /// Reads both stores again, all of them, side by side.
    async fn verify(
        self: &Arc<Self>,
        moved: &mut Moved,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<(), MigrationError> {
        self.verify_trail_of(Trail::Operator, moved).await?;
        let mut after = None;
        loop {
            let own = self.source.store.orgs(after, PAGE).await.map_err(Source)?;
            let there = self.target.store.orgs(after, PAGE).await.map_err(Target)?;
            let ids: Vec<OrgId> = own.iter().map(|org| org.record.id).collect();
            if !records(&own).eq(records(&there)) {
                return Err(MigrationError::Differs("the list of organisations".to_owned()));
            }
            let news = self.source.store.side().news(ids.clone()).await.map_err(Source)?;
            if news != self.target.store.side().news(ids.clone()).await.map_err(Target)? {
                return Err(MigrationError::Differs("what the upstream is to be told".to_owned()));
            }
            let Some(last) = ids.last() else { break };
            after = Some(*last);
            for ids in ids.chunks(TRAILS) {
                let verify = async |removal: Arc<Self>, org| removal.verify_org(org).await;
                let damaged = self.each(ids.to_vec(), verify).await?;
                moved.damaged.extend(damaged.into_iter().flatten());
                moved.verified += ids.len() as u64;
                tell(moved);
            }
        }
        self.verify_keys(moved, tell).await
    }

    /// A trail that is damaged in both stores alike is no failure: it is told.
    async fn verify_trail_of(&self, trail: Trail, moved: &mut Moved) -> Result<(), MigrationError> {
        moved.damaged.extend(self.verify_trail(trail).await?);
        Ok(())
    }

    async fn verify_trail(&self, trail: Trail) -> Result<Option<Trail>, MigrationError> {
        let verdict = self.target.verify_trail(trail, &[]).await?;
        if verdict.findings.is_empty() && self.rechains {
            return Ok(None);
        }
        let own = self.source.verify_trail(trail, &[]).await?;
        if (own.findings, own.ends, own.checked) != (verdict.findings.clone(), verdict.ends, verdict.checked)
        {
            return Err(MigrationError::Differs(format!("the audit trail of {trail}")));
        }
        Ok(Some(trail).filter(|_| !verdict.findings.is_empty()))
    }

    /// Its trail, and the list of its keys.
    async fn verify_org(&self, org: OrgId) -> Result<Option<Trail>, MigrationError> {
        let mut after = None;
        loop {
            let own = self.source.store.keys(Some(org), after, PAGE).await.map_err(Source)?;
            let there = self.target.store.keys(Some(org), after, PAGE).await.map_err(Target)?;
            let ids = |keys: &[Versioned<KeyRecord>]| records(keys).map(|key| key.id).collect::<Vec<_>>();
            if ids(&own) != ids(&there) {
                return Err(MigrationError::Differs(format!("the list of keys of {org}")));
            }
            let Some(last) = own.last() else { break };
            after = Some(last.record.id);
        }
        self.verify_trail(Trail::Org(org)).await
    }

    /// Every key with its use, and every secret leads to its key.
    async fn verify_keys(
        self: &Arc<Self>,
        moved: &mut Moved,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<(), MigrationError> {
        let mut after = None;
        loop {
            let own = self.source.store.keys(None, after, PAGE).await.map_err(Source)?;
            let own: Vec<_> = own.into_iter().map(|key| self.convert(key.record)).collect();
            let there = self.target.store.keys(None, after, PAGE).await.map_err(Target)?;
            if !own.iter().eq(records(&there)) {
                return Err(MigrationError::Differs("the list of keys".to_owned()));
            }
            let ids: Vec<KeyId> = own.iter().map(|key| key.id).collect();
            let Some(last) = ids.last() else { return Ok(()) };
            after = Some(*last);
            let usage = self.source.store.side().usage(ids.clone()).await.map_err(Source)?;
            if usage != self.target.store.side().usage(ids).await.map_err(Target)? {
                return Err(MigrationError::Differs("when keys were used".to_owned()));
            }
            moved.verified += own.len() as u64;
            let secrets = own.iter().flat_map(|key| key.secrets.iter().map(|secret| (secret.digest, key.id)));
            let secrets: HashMap<Digest, KeyId> = secrets.collect();
            self.each(secrets, async |removal, (digest, key)| {
                match removal.target.store.lookup(digest).await {
                    Lookup::Found(found) if found.key.id == key => Ok(()),
                    Lookup::Found(_) | Lookup::Absent => {
                        Err(MigrationError::Differs(format!("where a secret of {key} leads")))
                    }
                    Lookup::Unavailable(fault) => Err(Target(fault)),
                }
            })
            .await?;
            tell(moved);
        }
    }

    /// The key as the target keeps it.
    fn convert(&self, mut key: KeyRecord) -> KeyRecord {
        let (from, to) = (&self.source.settings.digester, &self.target.settings.digester);
        for secret in &mut key.secrets {
            secret.digest = from.carry(secret.digest, to);
        }
        key
    }

    /// Does something with each item, all at the same time.
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

/// A trail that was moved.
struct MovedTrail {
    count: u64,
    /// Its head in the source.
    before: Link,
    /// And in the target.
    after: Link,
    /// Whether an event in it says so already.
    told: bool,
}

fn records<T>(listed: &[Versioned<T>]) -> impl Iterator<Item = &T> {
    listed.iter().map(|listed| &listed.record)
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
