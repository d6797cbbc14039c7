//! The checks and writes of a mutation, and of an import.

use redb::ReadableTable;

use super::tables::{Bytes, FORMAT, INDEXED, Id, LAST_EVENT, Tables, format, number, split_time};
use super::writer::{Outcome, Stop};
use crate::store::answers::KeptAnswer;
use crate::store::events::{Seq, Subject, encode};
use crate::store::indexes::Indexed;
use crate::store::prefixes::digests;
use crate::store::unreadable::{self, Identified};
use crate::store::{Change, CommitError, Committed, EmailClaim, Mutation, Seen, StoreFault};
use crate::vocabulary::audit::{Append, Ends};
use crate::vocabulary::id::{OrgId, UNDRAWN};
use crate::vocabulary::key::gone::Gone;
use crate::vocabulary::key::record::{
    KeyRecord, OrgRecord, RecordFormat, Sealer, Stored, Versioned, revision,
};
use crate::vocabulary::key::tombstone::{claimed_org, revision_after};
use crate::vocabulary::key::{Digest, Prefix};

/// Events kept in the file.
pub(super) const EVENTS_KEPT: u64 = 100_000;
/// Ended answers that are removed with each new one. More than one, so that they become fewer.
const ANSWERS_CLEARED: usize = 8;

impl Tables<'_> {
    /// Checks everything before it writes anything: a refused mutation leaves nothing in the transaction that it
    /// shares with others.
    pub(super) fn apply(&mut self, sealer: &Sealer, mutation: &Mutation) -> Result<Committed, Stop> {
        mutation.answer.as_ref().map_or(Ok(()), |answer| self.check_answer(answer))?;
        mutation.email.as_ref().map_or(Ok(()), |email| self.check_email(email))?;
        let room = mutation.room.as_ref().zip(mutation.key.as_ref());
        let room = room.map(|(room, key)| self.check_room(room, key)).transpose()?;
        mutation.seen.iter().try_for_each(|seen| self.check_seen(seen))?;
        if mutation.needs > sealer.keeps() {
            return Err(StoreFault::outdated(mutation.needs, sealer.keeps()).into());
        }
        let format = self.check_format(sealer, mutation.format())?;
        let org = mutation.org.as_ref().map(|change| check(&*self.orgs, sealer, change)).transpose()?;
        let key = mutation
            .key
            .as_ref()
            .map(|change| self.check_key(sealer, change, mutation.org.as_ref()))
            .transpose()?;
        self.check_newest(mutation)?;
        let tombstone =
            mutation.tombstone.as_ref().map(|stone| self.check_tombstone(sealer, stone)).transpose()?;
        let ends = mutation.audit.as_ref().map(|append| self.check_append(append)).transpose()?;
        let event = if mutation.subjects.is_empty() { None } else { Some(self.next_event()?) };

        self.raise_format(format)?;
        if let Some(org) = org {
            self.orgs.insert(&org.place, &org.sealed[..])?;
        }
        if let Some(room) = room {
            self.take_room(room)?;
        }
        if let Some(key) = key {
            self.write_key(&key)?;
        }
        if let Some(stone) = tombstone {
            self.write_tombstone(&stone)?;
        }
        if let Some(email) = &mutation.email {
            self.emails.insert(&email.index, &email.org.to_bytes())?;
        }
        if let Some(answer) = &mutation.answer {
            self.write_answer(answer)?;
        }
        if let Some((append, ends)) = mutation.audit.as_ref().zip(ends) {
            self.write_entry(append.trail, &append.entry)?;
            self.write_ends(append.trail, Ends { head: append.entry.link, ..ends })?;
        }
        if let Some(news) = &mutation.news {
            self.write_news(news)?;
        }
        if let Some(event) = event {
            self.write_event(event, &mutation.subjects)?;
        }
        Ok(Committed { event })
    }

    /// Each key is inserted as if by a mutation of its own.
    pub(super) fn import(&mut self, sealer: &Sealer, keys: Vec<KeyRecord>) -> Result<Vec<Outcome<()>>, Stop> {
        let mut outcomes = Vec::with_capacity(keys.len());
        for key in keys {
            let format = self.check_format(sealer, key.format())?;
            let outcome = match self.check_key(sealer, &Change::Insert(key), None) {
                Ok(key) => {
                    self.raise_format(format)?;
                    Ok(self.write_key(&key)?)
                }
                Err(Stop::Order(refused)) => Err(refused),
                Err(fatal) => return Err(fatal),
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// The new format of the file, if something of format `needed` raises it. This process is the only gateway, so no
    /// other has to agree.
    pub(super) fn check_format(
        &self,
        sealer: &Sealer,
        needed: RecordFormat,
    ) -> Result<Option<RecordFormat>, Stop> {
        let row = self.meta.get(FORMAT)?;
        let found = format(row.as_ref().map(|row| row.value()));
        if found > sealer.keeps() {
            return Err(StoreFault::outdated(found, sealer.keeps()).into());
        }
        Ok((needed > found).then_some(needed))
    }

    pub(super) fn raise_format(&mut self, format: Option<RecordFormat>) -> Result<(), Stop> {
        if let Some(format) = format {
            self.meta.insert(FORMAT, &u64::from(format.number()).to_be_bytes()[..])?;
        }
        Ok(())
    }

    fn check_answer(&self, answer: &KeptAnswer) -> Result<(), Stop> {
        let kept = self.answers.get(&answer.index)?;
        let ends_at = kept.as_ref().and_then(|kept| split_time(kept.value())).map(|(end, _)| end);
        if ends_at.is_some_and(|end| end > self.surely(answer.made_at)) {
            return Err(CommitError::Answered.into());
        }
        Ok(())
    }

    /// Whether a new key is the newest of its organisation.
    fn check_newest(&self, mutation: &Mutation) -> Result<(), Stop> {
        let (true, Some(Change::Insert(key))) = (mutation.newest, &mutation.key) else { return Ok(()) };
        let org = key.org.to_bytes();
        let mut keys = self.org_keys.range::<(&[u8; 16], &[u8; 16])>((&org, &[0; 16])..(&org, &UNDRAWN))?;
        match keys.next_back().transpose()?.map(|(place, _)| *place.value().1) {
            Some(newest) if newest > key.id.to_bytes() => Err(CommitError::NotNewest { newest }.into()),
            Some(_) | None => Ok(()),
        }
    }

    fn check_email(&self, email: &EmailClaim) -> Result<(), Stop> {
        for index in [Some(email.index), email.before].into_iter().flatten() {
            if self.emails.get(&index)?.is_some() {
                return Err(CommitError::EmailTaken.into());
            }
        }
        Ok(())
    }

    fn check_seen(&self, seen: &Seen) -> Result<(), Stop> {
        let (bytes, rev) = match seen {
            Seen::Key { id, rev } => (self.keys.get(&id.to_bytes())?, rev),
            Seen::Org { id, rev } => (self.orgs.get(&id.to_bytes())?, rev),
        };
        let now = bytes.and_then(|bytes| revision(bytes.value()));
        if now == Some(*rev) { Ok(()) } else { Err(CommitError::Conflict.into()) }
    }

    fn check_append(&self, append: &Append) -> Result<Ends, Stop> {
        let ends = self.ends(append.trail)?;
        if ends.head != append.after {
            return Err(CommitError::Conflict.into());
        }
        let place = append.entry.link.number.to_be_bytes();
        if self.audit.get((&append.trail.to_bytes(), &place))?.is_some() {
            return Err(Stop::unreadable("an audit trail goes on past its end"));
        }
        Ok(ends)
    }

    fn check_key(
        &self,
        sealer: &Sealer,
        change: &Change<KeyRecord>,
        org: Option<&Change<OrgRecord>>,
    ) -> Result<KeyWrite, Stop> {
        let write = check(&*self.keys, sealer, change)?;
        let (Change::Insert(record) | Change::Update { record, .. }) = change;
        match &write.before {
            None => {
                if self.is_gone(Gone::Key(record.id))? {
                    return Err(CommitError::Exists.into());
                }
                let comes_along = matches!(org, Some(Change::Insert(org)) if org.id == record.org);
                if !comes_along && self.orgs.get(&record.org.to_bytes())?.is_none() {
                    return Err(CommitError::Missing.into());
                }
            }
            Some(before) if before.org != record.org || before.environment != record.environment => {
                return Err(CommitError::Missing.into());
            }
            Some(_) => {}
        }
        let mut new_prefixes = Vec::new();
        for (digest, begins) in digests(record, self.now) {
            match self.digests.get(digest.as_bytes())?.map(|owner| *owner.value()) {
                Some(owner) if owner != write.place => return Err(CommitError::Exists.into()),
                Some(_) => {}
                None if self.is_gone(Gone::Secret(digest))? => return Err(CommitError::Exists.into()),
                None => new_prefixes.extend(self.check_prefix(begins)?),
            }
        }
        let digests: Vec<Digest> = record.secrets.iter().map(|secret| secret.digest).collect();
        let before = write.before.iter().flat_map(|before| &before.secrets).map(|secret| secret.digest);
        let dropped = before.filter(|digest| !digests.contains(digest)).collect();
        let indexed = Indexed::from(record);
        Ok(KeyWrite { org: record.org, indexed, digests, dropped, new_prefixes, record: write })
    }

    /// A tombstone takes the place of what cannot be read only.
    fn check_tombstone(&self, sealer: &Sealer, stone: &KeyRecord) -> Result<Grave, Stop> {
        let place = stone.place();
        let bytes = self.keys.get(&place)?.map(|bytes| bytes.value().to_vec()).unwrap_or_default();
        if sealer.open_at::<KeyRecord>(&place, &bytes).is_ok_and(|key| !key.record.is_tombstone()) {
            return Err(CommitError::Conflict.into());
        }
        let sealed = sealer.seal(revision_after(&bytes), stone).map_err(StoreFault::from)?;
        Ok(Grave { place, sealed, claimed: claimed_org(&bytes) })
    }

    /// The digests go on leading to the place, and the lists to name it.
    fn write_tombstone(&mut self, grave: &Grave) -> Result<(), Stop> {
        self.keys.insert(&grave.place, &grave.sealed[..])?;
        if let Some(org) = grave.claimed {
            self.live_keys.remove((&org.to_bytes(), &grave.place))?;
        }
        Ok(())
    }

    fn write_key(&mut self, key: &KeyWrite) -> Result<(), Stop> {
        let id = key.record.place;
        self.keys.insert(&id, &key.record.sealed[..])?;
        self.org_keys.insert((&key.org.to_bytes(), &id), ())?;
        self.index(key.org, &id, &key.indexed)?;
        for digest in &key.dropped {
            self.digests.remove(digest.as_bytes())?;
        }
        for digest in &key.digests {
            self.digests.insert(digest.as_bytes(), &id)?;
        }
        key.new_prefixes.iter().try_for_each(|prefix| self.end_removal(prefix))
    }

    fn write_answer(&mut self, answer: &KeptAnswer) -> Result<(), Stop> {
        let before = self.answers.remove(&answer.index)?;
        let before = before.and_then(|kept| split_time(kept.value()).map(|(end, _)| end));
        if let Some(end) = before {
            self.answer_ends.remove((&end.0.to_be_bytes(), &answer.index))?;
        }
        self.clear_answers(self.surely(answer.made_at).0)?;
        let end = answer.ends_at.0.to_be_bytes();
        self.answers.insert(&answer.index, &[&end[..], &answer.sealed].concat()[..])?;
        self.answer_ends.insert((&end, &answer.index), ())?;
        Ok(())
    }

    fn clear_answers(&mut self, now: u64) -> Result<(), Stop> {
        for _ in 0..ANSWERS_CLEARED {
            let Some((end, index)) = self.answer_ends.first()?.map(|(place, _)| {
                let (end, index) = place.value();
                (*end, *index)
            }) else {
                break;
            };
            if u64::from_be_bytes(end) > now {
                break;
            }
            self.answer_ends.remove((&end, &index))?;
            self.answers.remove(&index)?;
        }
        Ok(())
    }

    fn next_event(&self) -> Result<Seq, Stop> {
        let last = self.meta.get(LAST_EVENT)?;
        let last = last.and_then(|last| number(last.value()));
        last.and_then(|last| last.checked_add(1)).ok_or_else(|| Stop::unreadable(NO_EVENT_NUMBER))
    }

    pub(super) fn write_event(&mut self, event: Seq, subjects: &[Subject]) -> Result<(), Stop> {
        let number = event.to_be_bytes();
        self.meta.insert(LAST_EVENT, &number[..])?;
        self.meta.insert(INDEXED, &number[..])?;
        self.events.insert(&number, &encode(subjects)[..])?;
        if let Some(oldest) = event.checked_sub(EVENTS_KEPT) {
            self.events.remove(&oldest.to_be_bytes())?;
        }
        Ok(())
    }
}

pub(super) const NO_EVENT_NUMBER: &str = "the number of the last event cannot be parsed";

/// A change that passed its own checks, ready to be written.
struct Write<T> {
    place: [u8; 16],
    before: Option<T>,
    sealed: Vec<u8>,
}

/// A tombstone that may be written.
struct Grave {
    place: [u8; 16],
    sealed: Vec<u8>,
    /// Whose live keys it was among, as it said itself.
    claimed: Option<OrgId>,
}

/// The same for a key, with the changes of the indexes.
struct KeyWrite {
    record: Write<KeyRecord>,
    org: OrgId,
    indexed: Indexed,
    digests: Vec<Digest>,
    /// Digests that no longer open the key.
    dropped: Vec<Digest>,
    /// What the new secrets begin with.
    new_prefixes: Vec<Prefix>,
}

/// The checks for every kind of record: an inserted record is new; an updated one exists and is as its caller saw it.
fn check<T: Stored + Identified>(
    table: &impl ReadableTable<Id, Bytes>,
    sealer: &Sealer,
    change: &Change<T>,
) -> Result<Write<T>, Stop> {
    let (record, rev, before) = match change {
        Change::Insert(record) => {
            if table.get(&record.place())?.is_some() {
                return Err(CommitError::Exists.into());
            }
            (record, 1, None)
        }
        Change::Update { rev, record } => {
            let place = record.place();
            let bytes = table.get(&place)?.ok_or(CommitError::Missing)?;
            let opened = sealer.open_at(&place, bytes.value());
            let stored: Versioned<T> = opened.map_err(|bad| unreadable::fault::<T>(place, bad))?;
            if stored.rev != *rev {
                return Err(CommitError::Conflict.into());
            }
            let next = rev.checked_add(1).ok_or_else(|| Stop::unreadable("the record has no next number"))?;
            (record, next, Some(stored.record))
        }
    };
    let sealed = sealer.seal(rev, record).map_err(StoreFault::from)?;
    Ok(Write { place: record.place(), before, sealed })
}
