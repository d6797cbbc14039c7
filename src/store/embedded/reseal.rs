//! Sealing records anew, after a new pepper has come into force. The writer does it between changes.

use std::ops::Bound;

use redb::{ReadableTable, Table};

use super::tables::{Bytes, Id, PEPPERS, Tables};
use super::writer::Stop;
use crate::store::keeper::{Place, Resealed};
use crate::store::{EmailClaim, StoreFault};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Peppers;
use crate::vocabulary::key::record::{BadRecord, KeyRecord, OrgRecord, Seal, Sealer, Stored};

/// Records per order. A change waits no longer than this takes.
const PAGE: usize = 256;

impl Tables<'_> {
    pub(super) fn reseal(&mut self, sealer: &Sealer, after: Option<Place>) -> Result<Resealed, Stop> {
        let (mut done, in_keys) = match after {
            None => (self.reseal_orgs(sealer, None)?, false),
            Some(Place::Org(org)) => (self.reseal_orgs(sealer, Some(org))?, false),
            Some(Place::Key(key)) => (self.reseal_keys(sealer, Some(key))?, true),
        };
        if done.next.is_none() && !in_keys {
            let keys = self.reseal_keys(sealer, None)?;
            done.looked_at += keys.looked_at;
            done.moved += keys.moved;
            done.unreadable += keys.unreadable;
            done.next = keys.next;
        }
        Ok(done)
    }

    fn reseal_orgs(&mut self, sealer: &Sealer, after: Option<OrgId>) -> Result<Resealed, Stop> {
        let page = page::<OrgRecord>(&self.orgs, sealer, after.map(OrgId::to_bytes))?;
        for (place, bytes, org) in &page.stale {
            self.orgs.insert(place, &bytes[..])?;
            self.move_email(sealer, org)?;
        }
        // A change has sealed the record anew, and left the address where it was.
        for org in &page.current {
            self.move_email(sealer, org)?;
        }
        let next = page.last.map(OrgId::from_bytes).map(Place::Org);
        let orgs = page.places.into_iter().map(OrgId::from_bytes).collect();
        let (looked_at, moved, unreadable) = (page.looked_at, page.stale.len(), page.unreadable);
        Ok(Resealed { looked_at, moved, unreadable, next, orgs })
    }

    /// Moves the entry of an organisation's address in the index to the new pepper, if it is under the one before.
    fn move_email(&mut self, sealer: &Sealer, org: &OrgRecord) -> Result<(), Stop> {
        let claim = org.email.as_ref().map(|email| EmailClaim::under(sealer.peppers(), email, org.id));
        let Some(EmailClaim { index, before: Some(before), .. }) = claim else { return Ok(()) };
        let place = org.id.to_bytes();
        if self.emails.get(&before)?.is_some_and(|owner| *owner.value() == place) {
            self.emails.remove(&before)?;
            self.emails.insert(&index, &place)?;
        }
        Ok(())
    }

    fn reseal_keys(&mut self, sealer: &Sealer, after: Option<KeyId>) -> Result<Resealed, Stop> {
        let page = page::<KeyRecord>(&self.keys, sealer, after.map(KeyId::to_bytes))?;
        for (place, bytes, _) in &page.stale {
            self.keys.insert(place, &bytes[..])?;
        }
        let next = page.last.map(KeyId::from_bytes).map(Place::Key);
        let (looked_at, moved, unreadable) = (page.looked_at, page.stale.len(), page.unreadable);
        Ok(Resealed { looked_at, moved, unreadable, next, orgs: Vec::new() })
    }

    pub(super) fn finish_reseal(&mut self, sealer: &Sealer) -> Result<(), Stop> {
        let Some(row) = sealer.peppers().finished_row().map_err(StoreFault::failed)? else { return Ok(()) };
        if has_stale::<OrgRecord>(&self.orgs, sealer)? || has_stale::<KeyRecord>(&self.keys, sealer)? {
            return Err(
                StoreFault::failed("records under the pepper before remain: reseal them first").into()
            );
        }
        self.write_peppers(sealer, &row)
    }

    pub(super) fn keep_peppers_of(&mut self, sealer: &Sealer, other: &Peppers) -> Result<(), Stop> {
        match sealer.peppers().row_with_retired_of(other).map_err(StoreFault::failed)? {
            Some(row) => self.write_peppers(sealer, &row),
            None => Ok(()),
        }
    }

    /// The process takes the row in already here. If the transaction fails, the file takes no change before it is opened
    /// anew, and is read with the same peppers as before.
    fn write_peppers(&mut self, sealer: &Sealer, row: &str) -> Result<(), Stop> {
        self.meta.insert(PEPPERS, row.as_bytes())?;
        sealer.peppers().learn(row).map_err(StoreFault::from)?;
        Ok(())
    }
}

/// Some records in the order of a table.
struct Page<T> {
    places: Vec<[u8; 16]>,
    looked_at: usize,
    unreadable: usize,
    /// Those under the current pepper.
    current: Vec<T>,
    /// Those under the pepper before: where they are, sealed anew, and open.
    stale: Vec<([u8; 16], Vec<u8>, T)>,
    /// The last one, if more may follow.
    last: Option<[u8; 16]>,
}

fn page<T: Stored>(
    table: &Table<'_, Id, Bytes>,
    sealer: &Sealer,
    after: Option<[u8; 16]>,
) -> Result<Page<T>, Stop> {
    let start = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let (places, current, stale) = (Vec::new(), Vec::new(), Vec::new());
    let mut page = Page { places, looked_at: 0, unreadable: 0, current, stale, last: None };
    for entry in table.range::<&[u8; 16]>((start, Bound::Unbounded))?.take(PAGE) {
        let (place, bytes) = entry?;
        match sealer.open_sealed::<T>(bytes.value()) {
            Ok((stored, Seal::Current)) => page.current.push(stored.record),
            Ok((stored, Seal::Before)) => {
                let anew = sealer.seal(stored.rev, &stored.record).map_err(StoreFault::from)?;
                page.stale.push((*place.value(), anew, stored.record));
            }
            Err(BadRecord::Seal) => page.unreadable += 1,
            Err(bad) => return Err(StoreFault::from(bad).into()),
        }
        page.places.push(*place.value());
        page.looked_at += 1;
        page.last = Some(*place.value());
    }
    page.last = page.last.filter(|_| page.looked_at == PAGE);
    Ok(page)
}

fn has_stale<T: Stored>(table: &Table<'_, Id, Bytes>, sealer: &Sealer) -> Result<bool, Stop> {
    for entry in table.range::<&[u8; 16]>(..)? {
        let (_, bytes) = entry?;
        if matches!(sealer.open_sealed::<T>(bytes.value()), Ok((_, Seal::Before))) {
            return Ok(true);
        }
    }
    Ok(false)
}
