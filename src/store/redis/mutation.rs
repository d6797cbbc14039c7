//! Mutations and imports: the checks that are made here, and the call of the script that makes the others.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinHandle;

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Inner;
use super::ledger::{Event, Mark, Position, RedisTime};
use super::remembered::Remembered;
use super::scripts::{Call, Reply};
use crate::store::answers::KeptAnswer;
use crate::store::events::encode;
use crate::store::indexes::{Full, Indexed};
use crate::store::keeper::Place;
use crate::store::prefixes::{Begins, digests};
use crate::store::{Change, CommitError, Committed, EmailClaim, Mutation, Seen, StoreFault};
use crate::vocabulary::audit::Append;
use crate::vocabulary::id::{KeyId, OrgId, UNDRAWN};
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::gone::Gone;
use crate::vocabulary::key::proof::ProofOf;
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, RecordFormat, Stored, Versioned, revision};
use crate::vocabulary::key::tombstone::{claimed_org, revision_after};

/// Events kept in the stream.
const EVENTS_KEPT: u32 = 100_000;
/// Keys per script of an import. It bounds how long the script blocks others.
const IMPORTED_AT_ONCE: usize = 64;
/// Scripts of an import that run at the same time, so that Redis need not wait for us.
const IMPORTS_UNDER_WAY: usize = 8;

impl Inner {
    /// A fault if a script refused because this gateway, or another one that holds a lease, is too old.
    pub(super) fn check_age(&self, status: Option<&str>, reply: &mut Reply) -> Result<(), StoreFault> {
        match status {
            Some("outdated") => Err(StoreFault::outdated(reply.meta.format, self.sealer.keeps())),
            Some("waits") => {
                let mut next = || reply.text().map_err(|error| self.fault(error));
                let (gateway, format) = (next()?.unwrap_or_default(), next()?.unwrap_or_default());
                let text = format!(
                    "the gateway {gateway} keeps records up to format {format} only and would lose what this change \
                     writes: upgrade it, or stop it, and try again; `keygate store status` lists all gateways"
                );
                Err(StoreFault::Outdated(text.into()))
            }
            _ => Ok(()),
        }
    }

    /// A new key that needs room is counted among all keys of its organisation, so these are entered into the lists first
    /// where an older gateway has left that out.
    pub(super) async fn commit(&self, mutation: &Mutation) -> Result<Committed, CommitError> {
        let committed = self.try_commit(mutation).await;
        let org =
            mutation.key.as_ref().map(|(Change::Insert(key) | Change::Update { record: key, .. })| key.org);
        let (Some(_), Some(org)) = (&mutation.room, org) else { return committed };
        let whole = match &committed {
            Err(CommitError::Unindexed) => false,
            Err(CommitError::Full(_)) if self.recounts.is_due(org, self.clock.mono()) => true,
            _ => return committed,
        };
        self.index(org, whole).await?;
        match self.try_commit(mutation).await {
            Err(CommitError::Unindexed) => Err(self.changed().into()),
            committed => committed,
        }
    }

    async fn try_commit(&self, mutation: &Mutation) -> Result<Committed, CommitError> {
        let row = self.sealer.peppers().row_name();
        match self.commit_once(mutation).await {
            // It was sealed before it was known which pepper belongs to the store; now it is.
            Err(CommitError::Conflict)
                if mutation.under.is_none() && row != self.sealer.peppers().row_name() =>
            {
                self.commit_once(mutation).await
            }
            outcome => outcome,
        }
    }

    async fn commit_once(&self, mutation: &Mutation) -> Result<Committed, CommitError> {
        if mutation.needs > self.sealer.keeps() {
            return Err(StoreFault::outdated(mutation.needs, self.sealer.keeps()).into());
        }
        let position = self.ledger.position();
        let (org_before, key_before) = self.before(mutation).await?;
        if mutation.under.as_ref().is_some_and(|under| *under != self.sealer.peppers().row_name()) {
            return Err(CommitError::Conflict);
        }
        let org = mutation.org.as_ref().map(|change| self.draft(change, org_before)).transpose()?;
        let key = mutation.key.as_ref().map(|change| self.draft_key(change, key_before)).transpose()?;
        let mark = Mark::draw().map_err(|error| self.fault(error))?;
        let call = self.mutate(&position, org.as_ref(), key.as_ref(), mutation, &mark);
        let (mut call, mut stone_rev) = (call, None);
        if let Some(stone) = &mutation.tombstone {
            let rev;
            (call, rev) = self.tombstone_part(call, stone).await?;
            stone_rev = Some(rev);
        }
        for seen in &mutation.seen {
            let (name, rev) = self.expected(seen).await?;
            call = call.arg("seen").key(name).arg(rev.to_be_bytes());
        }
        let has_replica = self.replicas.load(Ordering::Relaxed) > 0;
        let call = if has_replica && !mutation.subjects.is_empty() { call.durably() } else { call };
        let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
        let store =
            self.ledger.recognise(&reply.meta, position.last).map_err(|stranger| self.fault(stranger))?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        self.check_age(status.as_deref(), &mut reply)?;
        if status.as_deref() == Some("peppers") {
            // What was sealed here may be under another pepper: it is decided again, under the right one.
            self.learn(reply.text().map_err(|error| self.fault(error))?.as_deref())?;
            return Err(CommitError::Conflict);
        }
        self.judge(status.as_deref(), &mut reply)?;
        let event = reply.text().map_err(|error| self.fault(error))?;
        let Some(event) = event else { return Ok(Committed { event: None }) };
        self.remember_own(mutation, org.as_ref(), key.as_ref());
        if let Some((rev, stone)) = stone_rev.zip(mutation.tombstone.as_ref()) {
            self.memory.note(rev, stone, self.clock.now().wall);
        }
        let seq = event.parse().map_err(|_| self.fault("the number of the event does not read"))?;
        let subjects = mutation.subjects.clone();
        let written = reply.text().map_err(|error| self.fault(error))?.and_then(|at| RedisTime::parse(&at));
        self.ledger.apply_own(&store, Event { seq, mark, subjects, written }).await;
        Ok(Committed { event: Some(seq) })
    }

    /// At once, and not when the event comes: from now on nothing older counts.
    fn remember_own(&self, mutation: &Mutation, org: Option<&Draft<OrgRecord>>, key: Option<&KeyDraft>) {
        let now = self.clock.kept();
        if let Some((org, draft)) = mutation.org.as_ref().and_then(updated).zip(org) {
            self.memory.note(revision(&draft.sealed).unwrap_or_default(), org, now);
        }
        if let Some((key, draft)) = mutation.key.as_ref().and_then(updated).zip(key) {
            self.memory.note(revision(&draft.draft.sealed).unwrap_or_default(), key, now);
        }
    }

    /// The revision that a record must have in Redis, of one that a decision has seen. Where Redis has an older one than is
    /// remembered, the remembered one was seen.
    async fn expected(&self, seen: &Seen) -> Result<(String, u64), StoreFault> {
        let (name, place, rev) = match seen {
            Seen::Key { id, rev } => (self.names.key(*id), Place::Key(*id), *rev),
            Seen::Org { id, rev } => (self.names.org(*id), Place::Org(*id), *rev),
        };
        if !self.memory.is_set_back(place) {
            return Ok((name, rev));
        }
        let call = Call::new(&self.scripts.read, [self.names.meta(), name.clone()]);
        let stored = self.ask(&call).await?.bytes().map_err(|error| self.fault(error))?;
        let stored = stored.as_deref().and_then(revision).unwrap_or(rev);
        Ok((name, if self.memory.stands_for(place, rev, stored) { stored } else { rev }))
    }

    /// The outcome that a script reports.
    fn judge(&self, status: Option<&str>, reply: &mut Reply) -> Result<(), CommitError> {
        let mut next = || reply.text().map_err(|error| self.fault(error));
        match status {
            Some("done") => Ok(()),
            Some("answered") => Err(CommitError::Answered),
            Some("email") => Err(CommitError::EmailTaken),
            Some("exists") => Err(CommitError::Exists),
            Some("missing") => Err(CommitError::Missing),
            Some("conflict") => Err(CommitError::Conflict),
            Some("prefix") => Err(CommitError::PrefixRemoved),
            Some("not newest") => {
                let newest = next()?.unwrap_or_default();
                let newest =
                    KeyId::parse(&newest).map_err(|_| self.fault("a list of keys holds what is no id"))?;
                Err(CommitError::NotNewest { newest: newest.to_bytes() })
            }
            Some("unindexed") => Err(CommitError::Unindexed),
            Some("full") => Err(CommitError::Full(match next()?.as_deref() {
                Some("maker") => Full::Maker,
                _ => Full::Organisation,
            })),
            Some("too fast") => {
                let wait = next()?.and_then(|wait| wait.parse().ok()).map(Duration::from_millis);
                let retry_after = wait.ok_or_else(|| self.fault("the wait for a quota does not read"))?;
                Err(CommitError::TooFast { retry_after })
            }
            _ => Err(self.changed().into()),
        }
    }

    /// The current content of the records that are to change. The script notices a change between this and itself.
    async fn before(&self, mutation: &Mutation) -> Result<(Option<Vec<u8>>, Option<Vec<u8>>), StoreFault> {
        let org = mutation.org.as_ref().and_then(updated).map(|org| self.names.org(org.id));
        let key = mutation.key.as_ref().and_then(updated).map(|key| self.names.key(key.id));
        if org.is_none() && key.is_none() {
            return Ok((None, None));
        }
        let wanted = (org.is_some(), key.is_some());
        let names = [Some(self.names.meta()), org, key].into_iter().flatten();
        let mut reply = self.ask(&Call::new(&self.scripts.read, names)).await?;
        let mut next = |wanted: bool| if wanted { reply.bytes() } else { Ok(None) };
        let org = next(wanted.0).map_err(|error| self.fault(error))?;
        let key = next(wanted.1).map_err(|error| self.fault(error))?;
        Ok((org, key))
    }

    /// A change that is stale already still goes to the script: the same request may have been carried out before,
    /// and the script reports that first.
    fn draft<T: Remembered>(
        &self,
        change: &Change<T>,
        before: Option<Vec<u8>>,
    ) -> Result<Draft<T>, CommitError> {
        let (record, rev, expected, before) = match change {
            Change::Insert(record) => (record, 1, ABSENT.to_vec(), None),
            Change::Update { rev, record } => {
                let stored = before.map(|bytes| self.unseal::<T>(&record.place(), &bytes)).transpose()?;
                // Redis may have an older one than was seen: the remembered one was.
                let is_seen = |stored: &Versioned<T>| {
                    stored.rev == *rev || self.memory.stands_for(record.keeper_place(), *rev, stored.rev)
                };
                match stored.filter(is_seen) {
                    Some(stored) => {
                        let next =
                            rev.checked_add(1).ok_or_else(|| self.fault("the record has no next number"))?;
                        (record, next, stored.rev.to_be_bytes().to_vec(), Some(stored.record))
                    }
                    None => (record, 0, STALE.to_vec(), None),
                }
            }
        };
        let sealed = self.sealer.seal(rev, record).map_err(|bad| self.bad_record(bad))?;
        Ok(Draft { id: record.id(), expected, sealed, before })
    }

    fn draft_key(
        &self,
        change: &Change<KeyRecord>,
        before: Option<Vec<u8>>,
    ) -> Result<KeyDraft, CommitError> {
        let draft = self.draft(change, before)?;
        let (Change::Insert(record) | Change::Update { record, .. }) = change;
        let moved = |before: &KeyRecord| before.org != record.org || before.environment != record.environment;
        if draft.before.as_ref().is_some_and(moved) {
            return Err(CommitError::Missing);
        }
        let found = digests(record, self.clock.now().wall);
        let before = draft.before.iter().flat_map(|before| &before.secrets).map(|secret| secret.digest);
        let dropped = before.filter(|gone| found.iter().all(|(digest, _)| digest != gone)).collect();
        let digests = found.into_iter().map(|(digest, begins)| (digest, word(begins))).collect();
        let indexed = Indexed::from(record);
        Ok(KeyDraft { org: record.org, key: record.id, indexed, digests, dropped, draft })
    }

    /// The parts as `parts.lua` names them.
    fn mutate(
        &self,
        position: &Position,
        org: Option<&Draft<OrgRecord>>,
        key: Option<&KeyDraft>,
        mutation: &Mutation,
        mark: &Mark,
    ) -> Call<'_> {
        let names = &self.names;
        let script = if mutation.subjects.is_empty() { &self.scripts.mutate } else { &self.scripts.revoke };
        let mut call = Call::new(script, [names.meta(), names.events()])
            .arg(self.credentials(position.known.as_ref()))
            .arg(position.last.to_string())
            .arg(position.mark.as_ref().map_or("", Mark::as_str));
        call = self.format_part(call, mutation.format());
        if let Some(org) = org {
            call = call.arg("org").key(names.with(format_args!("org:{}", org.id)));
            call = call.arg(&*org.expected).arg(&*org.sealed).arg(&*org.id).arg(names.orgs());
        }
        if let Some(key) = key {
            call = self.key_part(call, key);
        }
        if let Some((room, key)) = mutation.room.as_ref().zip(key) {
            call = self.room_part(call, key.org, room);
        }
        if let (true, Some(Change::Insert(key))) = (mutation.newest, &mutation.key) {
            call = call.arg("newest").arg(names.keys_of(key.org)).arg(key.id.to_string());
            call = call.arg(KeyId::from_bytes(UNDRAWN).to_string());
        }
        if let Some(EmailClaim { index, before, org }) = &mutation.email {
            call = call.arg("email").key(names.email(index)).arg(org.to_string());
            if let Some(before) = before {
                call = call.arg("email_before").key(names.email(before));
            }
        }
        if let Some(answer) = &mutation.answer {
            call = self.answer_part(call, answer);
        }
        if let Some(Append { trail, after, entry }) = &mutation.audit {
            call = call.arg("audit").key(names.entries(*trail)).key(names.ends(*trail));
            call = call.arg(after.to_bytes()).arg(entry.link.to_bytes());
            call = call.arg(entry.link.number.to_string()).arg(&*entry.text);
        }
        if let Some(news) = &mutation.news {
            let rev = org.and_then(|org| revision(&org.sealed)).unwrap_or_default();
            call = call.arg("news").key(names.news()).key(names.news_due()).key(names.news_proofs());
            call = call.arg(news.org.to_string()).arg(news.due.0.to_string()).arg(&*news.body);
            call = call.arg(self.prove_news(news, rev));
        }
        if !mutation.subjects.is_empty() {
            let subjects = encode(&mutation.subjects);
            let proof = self.sealer.prove(ProofOf::Event, &[mark.as_str().as_bytes(), &subjects]);
            call = call.arg("event").arg(subjects).arg(mark.as_str()).arg(EVENTS_KEPT.to_string());
            call = call.arg(proof.unwrap_or_default());
        }
        call
    }

    /// Adds nothing if every release can keep it.
    pub(super) fn format_part<'s>(&self, call: Call<'s>, needed: RecordFormat) -> Call<'s> {
        if needed == RecordFormat::FIRST {
            return call;
        }
        let call = call.arg("format").key(self.names.gateways());
        call.arg(needed.to_string()).arg(self.names.leases())
    }

    fn key_part<'s>(&self, call: Call<'s>, key: &KeyDraft) -> Call<'s> {
        let (names, KeyDraft { draft, org, key, indexed, digests, dropped }) = (&self.names, key);
        let call = call.arg("key").key(names.key(*key)).key(names.org(*org));
        let call = call.arg(&*draft.expected).arg(&*draft.sealed).arg(&*draft.id).arg(format!("{org}{key}"));
        let call = call.arg(names.grave(Gone::Key(*key))).arg(key.to_bytes());
        let call = self.list_key(call, *org, indexed);
        let digest = |call: Call<'s>, (digest, word): &(Digest, String)| {
            let call = call.arg("digest").key(names.digest(digest)).arg(&**word);
            call.arg(names.grave(Gone::Secret(*digest))).arg(*digest.as_bytes())
        };
        let call = digests.iter().fold(call, digest);
        dropped.iter().fold(call, |call, digest| call.arg("dropped").key(names.digest(digest)))
    }

    /// A tombstone takes the place of what cannot be read only. The script notices a change between this and itself.
    /// With the tombstone's revision.
    async fn tombstone_part<'s>(
        &'s self,
        call: Call<'s>,
        stone: &KeyRecord,
    ) -> Result<(Call<'s>, u64), CommitError> {
        let (names, place) = (&self.names, Place::Key(stone.id));
        let read = Call::new(&self.scripts.read, [names.meta(), names.key(stone.id)]);
        let found = self.ask(&read).await?.bytes().map_err(|error| self.fault(error))?;
        let is_there = found.is_some();
        let found = found.unwrap_or_default();
        let opened = self.sealer.open_at::<KeyRecord>(&stone.id.to_bytes(), &found);
        if opened.is_ok_and(|key| !key.record.is_tombstone()) {
            return Err(CommitError::Conflict);
        }
        let remembered = self.memory.revision_of(place).unwrap_or_default();
        let rev = revision_after(&found).max(remembered.saturating_add(1));
        let sealed = self.sealer.seal(rev, stone).map_err(|bad| self.bad_record(bad))?;
        let live = claimed_org(&found).map(|org| names.live_keys(org)).unwrap_or_default();
        let rev_bytes = found.get(2..found.len().min(10)).unwrap_or_default();
        let expected = if is_there { rev_bytes } else { ABSENT };
        let call = call.arg("tombstone").key(names.key(stone.id)).arg(expected).arg(sealed);
        Ok((call.arg(stone.id.to_string()).arg(names.keys()).arg(live), rev))
    }

    fn answer_part<'s>(&self, call: Call<'s>, answer: &KeptAnswer) -> Call<'s> {
        let KeptAnswer { index, sealed, made_at, ends_at } = answer;
        let lifetime = ends_at.0.saturating_sub(made_at.0).max(1);
        let call = call.arg("answer").key(self.names.answer(index));
        let call = call.arg(made_at.0.to_string()).arg(lifetime.to_string());
        call.arg([&ends_at.0.to_be_bytes()[..], sealed].concat())
    }

    pub(super) async fn import(
        self: &Arc<Self>,
        keys: Vec<KeyRecord>,
    ) -> Result<Vec<Result<(), CommitError>>, StoreFault> {
        let mut outcomes = Vec::with_capacity(keys.len());
        let (mut keys, mut under_way) = (keys.into_iter(), VecDeque::<JoinHandle<_>>::new());
        let mut failed = None;
        loop {
            while failed.is_none() && under_way.len() < IMPORTS_UNDER_WAY {
                let batch: Vec<KeyRecord> = keys.by_ref().take(IMPORTED_AT_ONCE).collect();
                if batch.is_empty() {
                    break;
                }
                let inner = Arc::clone(self);
                under_way.push_back(self.control.spawn(async move { inner.import_batch(&batch).await }));
            }
            // After a fault the others are awaited, so that none is still running when the caller is told.
            let Some(batch) = under_way.pop_front() else { break };
            match batch.await.unwrap_or_else(|_| Err(StoreFault::failed("the import was broken off"))) {
                Ok(batch) => outcomes.extend(batch),
                Err(fault) => failed = failed.or(Some(fault)),
            }
        }
        failed.map_or(Ok(outcomes), Err)
    }

    async fn import_batch(&self, keys: &[KeyRecord]) -> Result<Vec<Result<(), CommitError>>, StoreFault> {
        let (count, row) = (keys.len(), self.sealer.peppers().row_name());
        let needed = keys.iter().map(Stored::format).max().unwrap_or_default();
        let mut call = self.format_part(self.writing(&self.scripts.import, []), needed);
        for key in keys {
            let draft =
                self.draft_key(&Change::Insert(key.clone()), None).map_err(|refused| match refused {
                    CommitError::Fault(fault) => fault,
                    refused => self.fault(refused),
                })?;
            call = self.key_part(call, &draft);
        }
        let mut reply = match self.write(&call).await {
            // It was sealed before it was known which pepper belongs to the store; now it is.
            Err(_) if row != self.sealer.peppers().row_name() => {
                return Box::pin(self.import_batch(keys)).await;
            }
            reply => reply?,
        };
        let mut outcomes = Vec::with_capacity(count);
        for _ in 0..count {
            let outcome = reply.text().map_err(|error| self.fault(error))?;
            outcomes.push(self.judge(outcome.as_deref(), &mut reply));
        }
        Ok(outcomes)
    }
}

/// The script reads these as "does not exist" and "stale"; anything else is the eight bytes of a revision.
const ABSENT: &[u8] = b"+";
const STALE: &[u8] = b"!";

/// A change that passed what could be checked here, ready for the script.
struct Draft<T> {
    id: String,
    expected: Vec<u8>,
    sealed: Vec<u8>,
    before: Option<T>,
}

/// The same for a key, with the changes of its digests.
struct KeyDraft {
    draft: Draft<KeyRecord>,
    org: OrgId,
    key: KeyId,
    indexed: Indexed,
    /// Each with the word for what its secret begins with, as `parts.lua` has it.
    digests: Vec<(Digest, String)>,
    /// Digests that no longer open the key.
    dropped: Vec<Digest>,
}

fn word(begins: Begins<'_>) -> String {
    match begins {
        Begins::With(prefix) => prefix.to_string(),
        Begins::WithTheFirst => "*".to_owned(),
        Begins::WithAnything => String::new(),
    }
}

const fn updated<T>(change: &Change<T>) -> Option<&T> {
    match change {
        Change::Insert(_) => None,
        Change::Update { record, .. } => Some(record),
    }
}
