//! Audit trails in the file: an entry is its MAC and its text, at its trail and number.

use std::ops::Bound;

use redb::ReadableTable;

use super::Embedded;
use super::reads::Snapshot;
use super::tables::{
    AUDIT, AUDIT_ENDS, Bytes, Id, Number, TRIMMED, Tables, number, open_if_there, split_time,
};
use super::writer::Stop;
use crate::store::trails::{Allowance, DAY, Held, Pace, Terms, Trails, Trimmed, share};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::audit::{Ends, Entry, Link, Trail, recorded_at};
use crate::vocabulary::clock::UnixMillis;

/// Entries per order that removes or writes. It bounds how long mutations wait.
const AT_ONCE: usize = 1024;

impl Trails for Embedded {
    fn ends(&self, trail: Trail) -> StoreFuture<'_, Result<Ends, StoreFault>> {
        self.read(move |snapshot| snapshot.ends(trail))
    }

    fn entries(
        &self,
        trail: Trail,
        before: Option<u64>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Entry>, StoreFault>> {
        self.read(move |snapshot| snapshot.entries(trail, before, limit))
    }

    fn allowance(&self, trail: Trail, own: UnixMillis) -> StoreFuture<'_, Result<Allowance, StoreFault>> {
        let now = self.time.now();
        match Held::judge(own, now) {
            Some(held) => Box::pin(async move { Ok(Allowance::Held(held)) }),
            None => self.read(move |snapshot| {
                let Day { left, .. } = snapshot.day(trail, now)?;
                Ok(Allowance::Open { now, entries: left })
            }),
        }
    }

    /// Several transactions run; after each of them the trail is whole.
    fn trim(&self, trail: Trail, through: u64, terms: Terms) -> StoreFuture<'_, Result<Trimmed, StoreFault>> {
        Box::pin(async move {
            if let Some(held) = Held::judge(terms.own, self.time.now()) {
                return Ok(Trimmed::Held(held));
            }
            let mut removed = 0;
            loop {
                let now = self.write(move |tables, _| tables.trim(trail, through, terms)).await?;
                removed += now;
                if now < AT_ONCE as u64 {
                    return Ok(Trimmed::Removed(removed));
                }
            }
        })
    }

    fn restore(
        &self,
        trail: Trail,
        ends: Ends,
        entries: Vec<Entry>,
    ) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(async move {
            self.write(move |tables, _| tables.begin_trail(trail, ends)).await?;
            let mut entries = entries.into_iter();
            loop {
                let batch: Vec<Entry> = entries.by_ref().take(AT_ONCE).collect();
                if batch.is_empty() {
                    return Ok(());
                }
                self.write(move |tables, _| tables.restore(trail, ends, &batch)).await?;
            }
        })
    }
}

impl Tables<'_> {
    pub(super) fn ends(&self, trail: Trail) -> Result<Ends, Stop> {
        parse_ends(self.audit_ends.get(&trail.to_bytes())?.as_ref().map(|ends| ends.value()))
    }

    pub(super) fn write_ends(&mut self, trail: Trail, ends: Ends) -> Result<(), Stop> {
        self.audit_ends.insert(&trail.to_bytes(), &ends.to_bytes()[..])?;
        Ok(())
    }

    pub(super) fn write_entry(&mut self, trail: Trail, entry: &Entry) -> Result<(), Stop> {
        let bytes = [&entry.link.mac[..], &entry.text].concat();
        self.audit.insert((&trail.to_bytes(), &entry.link.number.to_be_bytes()), &bytes[..])?;
        Ok(())
    }

    /// Removes the oldest entries up to number `through`, as far as the terms allow, at most [`AT_ONCE`]. Returns how many.
    fn trim(&mut self, trail: Trail, through: u64, terms: Terms) -> Result<u64, Stop> {
        let place = trail.to_bytes();
        if self.audit.get((&place, &through.to_be_bytes()))?.is_none() {
            return Ok(0);
        }
        let mut ends = self.ends(trail)?;
        let now = self.store_time;
        let day = parse_day(self.trimmed.get(&place)?.as_ref().map(|day| day.value()), ends, now);
        let most = if terms.pace == Pace::Daily { day.left } else { u64::MAX };
        let most = usize::try_from(most).unwrap_or(AT_ONCE).min(AT_ONCE);
        let (mut removed, mut old) = (Vec::new(), 0);
        for entry in entries_between(&*self.audit, trail, 0, Bound::Included(through))?.take(most) {
            let entry = entry?;
            let at = recorded_at(&entry.text);
            if at.is_some_and(|at| at.plus(terms.retention) > now) {
                break;
            }
            removed.push(entry.link);
            if at.is_some() {
                old = removed.len();
            }
        }
        removed.truncate(old);
        if terms.pace == Pace::Daily && !removed.is_empty() {
            let left = day.left - removed.len() as u64;
            let bytes = [day.ends_at.0.to_be_bytes(), left.to_be_bytes()].concat();
            self.trimmed.insert(&place, &bytes[..])?;
        }
        for link in &removed {
            self.audit.remove((&place, &link.number.to_be_bytes()))?;
        }
        if let Some(last) = removed.last() {
            ends.checkpoint = *last;
            self.write_ends(trail, ends)?;
        }
        Ok(removed.len() as u64)
    }

    fn begin_trail(&mut self, trail: Trail, ends: Ends) -> Result<(), Stop> {
        let is_there = self.audit_ends.get(&trail.to_bytes())?.is_some();
        if is_there && self.ends(trail)? != ends {
            return Err(Stop::unreadable(OTHER_TRAIL));
        }
        self.write_ends(trail, ends)
    }

    fn restore(&mut self, trail: Trail, ends: Ends, entries: &[Entry]) -> Result<(), Stop> {
        if self.ends(trail)? != ends {
            return Err(Stop::unreadable(OTHER_TRAIL));
        }
        let mut last = self.last_number(trail)?.unwrap_or(ends.checkpoint.number);
        let mut fresh = Vec::new();
        for entry in entries {
            let number = entry.link.number;
            if number > last && number <= ends.head.number {
                last = number;
                fresh.push(entry);
            } else if !fresh.is_empty() || self.entry(trail, number)?.as_ref() != Some(entry) {
                return Err(Stop::unreadable(format_args!("entry {number} does not follow what is there")));
            }
        }
        fresh.into_iter().try_for_each(|entry| self.write_entry(trail, entry))
    }

    fn last_number(&self, trail: Trail) -> Result<Option<u64>, Stop> {
        let last = entries_between(&*self.audit, trail, 0, Bound::Unbounded)?.next_back();
        Ok(last.transpose()?.map(|entry| entry.link.number))
    }

    fn entry(&self, trail: Trail, number: u64) -> Result<Option<Entry>, Stop> {
        let found = entries_between(&*self.audit, trail, number, Bound::Included(number))?.next();
        found.transpose()
    }
}

impl Snapshot {
    fn ends(&self, trail: Trail) -> Result<Ends, StoreFault> {
        let table = self.file.open_table(AUDIT_ENDS)?;
        let ends = table.get(&trail.to_bytes())?;
        Ok(parse_ends(ends.as_ref().map(|ends| ends.value()))?)
    }

    fn day(&self, trail: Trail, now: UnixMillis) -> Result<Day, StoreFault> {
        let table = open_if_there(&self.file, TRIMMED)?;
        let day = table.map(|table| table.get(&trail.to_bytes())).transpose()?.flatten();
        Ok(parse_day(day.as_ref().map(|day| day.value()), self.ends(trail)?, now))
    }

    fn entries(&self, trail: Trail, before: Option<u64>, limit: usize) -> Result<Vec<Entry>, StoreFault> {
        let table = self.file.open_table(AUDIT)?;
        let end = before.map_or(Bound::Unbounded, Bound::Excluded);
        let found = entries_between(&table, trail, 0, end)?;
        found.rev().take(limit).map(|entry| Ok(entry?)).collect()
    }
}

/// A day in which entries of a trail are trimmed.
struct Day {
    ends_at: UnixMillis,
    /// How many may still go.
    left: u64,
}

/// The present day of a trail. One that ends later than a day from now began when the clock was wrong.
fn parse_day(bytes: Option<&[u8]>, ends: Ends, now: UnixMillis) -> Day {
    let parsed = bytes.and_then(split_time).and_then(|(ends_at, left)| Some((ends_at, number(left)?)));
    match parsed.filter(|(ends_at, _)| *ends_at > now && *ends_at <= now.plus(DAY)) {
        Some((ends_at, left)) => Day { ends_at, left },
        None => {
            let length = ends.head.number.saturating_sub(ends.checkpoint.number);
            Day { ends_at: now.plus(DAY), left: share(length) }
        }
    }
}

const OTHER_TRAIL: &str = "another audit trail stands there already";

/// A trail that was never written has the ends of an empty one.
fn parse_ends(bytes: Option<&[u8]>) -> Result<Ends, Stop> {
    let unreadable = || Stop::unreadable("the ends of an audit trail do not read");
    bytes.map_or(Ok(Ends::default()), |bytes| Ends::from_bytes(bytes).ok_or_else(unreadable))
}

/// The entries with numbers from `first` to `last`, oldest first.
fn entries_between<'t>(
    table: &'t impl ReadableTable<(Id, Number), Bytes>,
    trail: Trail,
    first: u64,
    last: Bound<u64>,
) -> Result<impl DoubleEndedIterator<Item = Result<Entry, Stop>> + 't, redb::StorageError> {
    let (trail, first) = (trail.to_bytes(), first.to_be_bytes());
    let (last, is_in) = match last {
        Bound::Included(last) => (last, true),
        Bound::Excluded(last) => (last, false),
        Bound::Unbounded => (u64::MAX, true),
    };
    let last = last.to_be_bytes();
    let end = if is_in { Bound::Included((&trail, &last)) } else { Bound::Excluded((&trail, &last)) };
    let range = table.range::<(&[u8; 16], &[u8; 8])>((Bound::Included((&trail, &first)), end))?;
    Ok(range.map(|entry| {
        let (place, bytes) = entry?;
        let number = u64::from_be_bytes(*place.value().1);
        let (mac, text) = bytes
            .value()
            .split_first_chunk()
            .ok_or_else(|| Stop::unreadable(format_args!("entry {number} of an audit trail is cut short")))?;
        Ok(Entry { link: Link { number, mac: *mac }, text: text.to_vec() })
    }))
}
