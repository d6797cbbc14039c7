//! The use of keys, in the file.

use redb::ReadableTable;

use super::Embedded;
use super::reads::Snapshot;
use super::tables::{Tables, USAGE};
use super::writer::Stop;
use crate::store::usage::Usage;
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::AGREED;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::usage::{Usage as KeyUsage, Used};

impl Usage for Embedded {
    fn note(&self, used: Vec<Used>) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.write(move |tables, _| used.iter().try_for_each(|used| tables.note_usage(used)))
    }

    fn of(&self, keys: Vec<KeyId>) -> StoreFuture<'_, Result<Vec<Option<KeyUsage>>, StoreFault>> {
        self.read(move |snapshot| snapshot.usage(&keys))
    }
}

impl Tables<'_> {
    fn note_usage(&mut self, used: &Used) -> Result<(), Stop> {
        let place = used.key.to_bytes();
        if self.keys.get(&place)?.is_none() {
            return Ok(());
        }
        // An unreadable entry counts as absent.
        let known = self.usage.get(&place)?.and_then(|text| parse_usage(text.value()));
        let known = known.map(|known| KeyUsage {
            // A moment that has not come yet is of a wrong clock, and does not count.
            last_used_at: Some(known.last_used_at)
                .filter(|at| *at <= self.store_time.plus(AGREED))
                .unwrap_or(used.usage.last_used_at),
            ..known
        });
        let merged = known.iter().cloned().fold(used.usage.clone(), KeyUsage::merge);
        if known.as_ref() != Some(&merged) {
            self.usage.insert(&place, merged.to_string().as_bytes())?;
        }
        Ok(())
    }
}

impl Snapshot {
    fn usage(&self, keys: &[KeyId]) -> Result<Vec<Option<KeyUsage>>, StoreFault> {
        let table = self.file.open_table(USAGE)?;
        let usage = |key: &KeyId| {
            let Some(text) = table.get(&key.to_bytes())? else { return Ok(None) };
            let unreadable = || StoreFault::failed(format_args!("the usage of {key} does not read"));
            parse_usage(text.value()).map(Some).ok_or_else(unreadable)
        };
        keys.iter().map(usage).collect()
    }
}

fn parse_usage(text: &[u8]) -> Option<KeyUsage> {
    std::str::from_utf8(text).ok().and_then(KeyUsage::parse)
}
