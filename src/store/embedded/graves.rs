//! Keys that are gone, in the file: a row for each name that must not come back.

use redb::{ReadableTable, ReadableTableMetadata};
use tokio::sync::mpsc;

use super::Embedded;
use super::reads::Snapshot;
use super::tables::{GONE, GONE_DAY, Tables, environment_number, open_if_there, split_time};
use super::writer::Stop;
use crate::store::graves::{AT_LEAST, Buried, Graves, Leaving, Marked, SHARE, Terms};
use crate::store::trails::{DAY, Held, Pace};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::gone::{Gone, Stone};
use crate::vocabulary::key::record::{KeyRecord, RecordFormat, Sealer, revision};

/// Stones that are handed over at once.
const AT_ONCE: usize = 1024;

impl Graves for Embedded {
    fn find(&self, names: Vec<Gone>) -> StoreFuture<'_, Result<Vec<Marked>, StoreFault>> {
        self.read(move |snapshot| snapshot.marks(&names))
    }

    fn bury(&self, keys: Vec<Leaving>, terms: Terms) -> StoreFuture<'_, Result<Buried, StoreFault>> {
        Box::pin(async move {
            if let Some(held) = Held::judge(terms.own, self.time.now()) {
                return Ok(Buried::Held(held));
            }
            let buried = self.write(move |tables, sealer| tables.bury(sealer, &keys, terms)).await?;
            Ok(Buried::Done(buried))
        })
    }

    fn stones(&self, out: mpsc::Sender<Vec<Stone>>) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.read(move |snapshot| {
            snapshot.tell_stones(|stones| {
                out.blocking_send(stones).map_err(|_| StoreFault::failed("nobody takes the stones any more"))
            })
        })
    }

    fn put(&self, names: Vec<(Gone, Option<KeyId>)>) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.write(move |tables, sealer| {
            let format = tables.check_format(sealer, RecordFormat::STONES)?;
            tables.raise_format(format)?;
            names.iter().try_for_each(|(of, maker)| tables.write_stone(&sealer.stone(*of, *maker)))
        })
    }
}

impl Snapshot {
    fn marks(&self, names: &[Gone]) -> Result<Vec<Marked>, StoreFault> {
        let Some(table) = open_if_there(&self.file, GONE)? else { return Ok(vec![Marked::No; names.len()]) };
        let mark = |of: &Gone| {
            let Some(bytes) = table.get(&of.to_bytes()[..])? else { return Ok(Marked::No) };
            let stone = Stone::from_bytes(*of, bytes.value()).filter(|stone| self.sealer.proves(stone));
            Ok(stone.map_or(Marked::Unproven, |stone| Marked::Gone { maker: stone.maker }))
        };
        names.iter().map(mark).collect()
    }

    pub(super) fn tell_stones(
        &self,
        mut tell: impl FnMut(Vec<Stone>) -> Result<(), StoreFault>,
    ) -> Result<(), StoreFault> {
        let Some(table) = open_if_there(&self.file, GONE)? else { return Ok(()) };
        let mut stones = Vec::with_capacity(AT_ONCE);
        for entry in table.iter()? {
            let (name, bytes) = entry?;
            stones.extend(Gone::from_bytes(name.value()).and_then(|of| Stone::from_bytes(of, bytes.value())));
            if stones.len() == AT_ONCE {
                tell(std::mem::take(&mut stones))?;
            }
        }
        if stones.is_empty() { Ok(()) } else { tell(stones) }
    }
}

impl Tables<'_> {
    /// Whether a key that had this name is gone.
    pub(super) fn is_gone(&self, of: Gone) -> Result<bool, Stop> {
        Ok(self.gone.get(&of.to_bytes()[..])?.is_some())
    }

    pub(super) fn write_stone(&mut self, stone: &Stone) -> Result<(), Stop> {
        self.gone.insert(&stone.of.to_bytes()[..], &stone.to_bytes()[..])?;
        Ok(())
    }

    /// Returns how many have gone.
    fn bury(&mut self, sealer: &Sealer, keys: &[Leaving], terms: Terms) -> Result<u64, Stop> {
        let now = self.store_time;
        let (until, left) = self.day(now)?;
        let most = if terms.pace == Pace::AtOnce { u64::MAX } else { left };
        let mut going = Vec::new();
        for leaving in keys {
            let record = &leaving.key.record;
            let has_ended = record.ended_at().is_some_and(|end| end.plus(terms.keep) <= now);
            let there = self.keys.get(&record.id.to_bytes())?.and_then(|bytes| revision(bytes.value()));
            // Those behind it may have been made by it.
            if !has_ended || there != Some(leaving.key.rev) || going.len() as u64 >= most {
                break;
            }
            going.push(leaving);
        }
        if going.is_empty() {
            return Ok(0);
        }
        let format = self.check_format(sealer, RecordFormat::STONES)?;
        self.raise_format(format)?;
        for Leaving { key, maker } in &going {
            self.remove(&key.record)?;
            for of in key.record.names() {
                let maker = maker.filter(|_| matches!(of, Gone::Key(_)));
                self.write_stone(&sealer.stone(of, maker))?;
            }
        }
        let buried = going.len() as u64;
        if terms.pace == Pace::Daily {
            let row = [until.0.to_be_bytes(), left.saturating_sub(buried).to_be_bytes()].concat();
            self.meta.insert(GONE_DAY, &row[..])?;
        }
        Ok(buried)
    }

    /// Until when the day lasts, and how many keys may still go in it.
    fn day(&self, now: UnixMillis) -> Result<(UnixMillis, u64), Stop> {
        let row = self.meta.get(GONE_DAY)?.map(|row| row.value().to_vec());
        let day = row.as_deref().and_then(split_time);
        let day = day.and_then(|(until, left)| Some((until, u64::from_be_bytes(left.try_into().ok()?))));
        // A day that ends later than this began when the clock was wrong.
        match day.filter(|(until, _)| *until > now && *until <= now.plus(DAY)) {
            Some(day) => Ok(day),
            None => Ok((now.plus(DAY), (self.keys.len()? / SHARE).max(AT_LEAST))),
        }
    }

    fn remove(&mut self, key: &KeyRecord) -> Result<(), Stop> {
        let (org, id) = (key.org.to_bytes(), key.id.to_bytes());
        self.keys.remove(&id)?;
        self.org_keys.remove((&org, &id))?;
        for environment in Environment::ALL {
            self.environment_keys.remove((&org, environment_number(environment), &id))?;
        }
        self.live_keys.remove((&org, &id))?;
        self.usage.remove(&id)?;
        for secret in &key.secrets {
            let digest = secret.digest.as_bytes();
            if self.digests.get(digest)?.is_some_and(|owner| *owner.value() == id) {
                self.digests.remove(digest)?;
            }
        }
        Ok(())
    }
}
