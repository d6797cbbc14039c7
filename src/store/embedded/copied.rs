//! The rows of one file on their way into another.

use std::collections::BTreeSet;
use std::ops::Bound;

use redb::{
    Key, MultimapTableHandle, ReadTransaction, ReadableTableMetadata, TableDefinition, TableHandle, Value,
    WriteTransaction,
};

use super::noted::Row;
use super::tables::{
    ANSWER_ENDS, ANSWERS, AUDIT, AUDIT_ENDS, DIGESTS, EMAILS, ENVIRONMENT_KEYS, EVENTS, GONE, KEYS,
    LIVE_KEYS, META, NEWS, NEWS_DUE, ORG_KEYS, ORGS, QUOTA_ENDS, QUOTAS, TRIMMED, USAGE, open_if_there,
};
use crate::store::StoreFault;
use crate::store::compaction::NotCompacted;

/// All tables of a file.
const TABLES: [&dyn Copied; 20] = [
    &META,
    &KEYS,
    &DIGESTS,
    &ORGS,
    &ORG_KEYS,
    &EMAILS,
    &EVENTS,
    &AUDIT,
    &AUDIT_ENDS,
    &ANSWERS,
    &ANSWER_ENDS,
    &USAGE,
    &NEWS,
    &NEWS_DUE,
    &QUOTAS,
    &QUOTA_ENDS,
    &ENVIRONMENT_KEYS,
    &LIVE_KEYS,
    &TRIMMED,
    &GONE,
];

/// A table, whatever its types.
trait Copied: Sync {
    fn name(&self) -> &str;

    /// Copies rows after this one until `left` bytes are copied. Returns the last one; `None` at the end of the table.
    fn copy(
        &self,
        from: &ReadTransaction,
        to: &WriteTransaction,
        after: Option<&[u8]>,
        left: &mut usize,
    ) -> Result<Option<Box<[u8]>>, StoreFault>;

    /// Makes these rows what they are in the other file.
    fn bring(&self, from: &ReadTransaction, to: &WriteTransaction, rows: &[&[u8]]) -> Result<(), StoreFault>;

    /// The bytes of its pages, roughly. Reads all of them.
    fn bytes(&self, from: &ReadTransaction) -> Result<u64, StoreFault>;
}

impl<K: Key + Sync + 'static, V: Value + Sync + 'static> Copied for TableDefinition<'static, K, V> {
    fn name(&self) -> &str {
        TableHandle::name(self)
    }

    fn copy(
        &self,
        from: &ReadTransaction,
        to: &WriteTransaction,
        after: Option<&[u8]>,
        left: &mut usize,
    ) -> Result<Option<Box<[u8]>>, StoreFault> {
        let mut to = to.open_table(*self)?;
        let Some(from) = open_if_there(from, *self)? else { return Ok(None) };
        let start = after.map_or(Bound::Unbounded, |after| Bound::Excluded(K::from_bytes(after)));
        for row in from.range::<K::SelfType<'_>>((start, Bound::Unbounded))? {
            let (key, value) = row?;
            to.insert(key.value(), value.value())?;
            let (key, value) = (key.value(), value.value());
            let (key, value) = (K::as_bytes(&key), V::as_bytes(&value));
            *left = left.saturating_sub(key.as_ref().len() + value.as_ref().len() + OVERHEAD);
            if *left == 0 {
                return Ok(Some(key.as_ref().into()));
            }
        }
        Ok(None)
    }

    fn bring(&self, from: &ReadTransaction, to: &WriteTransaction, rows: &[&[u8]]) -> Result<(), StoreFault> {
        let mut to = to.open_table(*self)?;
        let Some(from) = open_if_there(from, *self)? else { return Ok(()) };
        for row in rows {
            match from.get(K::from_bytes(row))? {
                Some(value) => drop(to.insert(K::from_bytes(row), value.value())?),
                None => drop(to.remove(K::from_bytes(row))?),
            }
        }
        Ok(())
    }

    fn bytes(&self, from: &ReadTransaction) -> Result<u64, StoreFault> {
        let Some(table) = open_if_there(from, *self)? else { return Ok(0) };
        let stats = table.stats()?;
        Ok(stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes())
    }
}

/// What a row costs beside its bytes, so that rows without a value count, too.
const OVERHEAD: usize = 32;

/// How far the copying has come.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    table: usize,
    after: Option<Box<[u8]>>,
}

impl Cursor {
    pub(super) const fn is_at_end(&self) -> bool {
        self.table >= TABLES.len()
    }

    /// Copies the next rows, of so many bytes.
    pub(super) fn step(
        &mut self,
        from: &ReadTransaction,
        to: &WriteTransaction,
        bytes: usize,
    ) -> Result<(), StoreFault> {
        let mut left = bytes;
        while left > 0
            && let Some(table) = TABLES.get(self.table)
        {
            self.after = table.copy(from, to, self.after.as_deref(), &mut left)?;
            self.table += usize::from(self.after.is_none());
        }
        Ok(())
    }
}

/// Makes these rows what they are in the other file.
pub(super) fn bring(
    from: &ReadTransaction,
    to: &WriteTransaction,
    rows: &BTreeSet<Row>,
) -> Result<(), StoreFault> {
    for table in TABLES {
        let keys: Vec<&[u8]> =
            rows.iter().filter(|(name, _)| *name == table.name()).map(|(_, key)| &**key).collect();
        if !keys.is_empty() {
            table.bring(from, to, &keys)?;
        }
    }
    Ok(())
}

/// The bytes of a file that are in use, roughly. A file with a table that is unknown here is refused.
pub(super) fn in_use(from: &ReadTransaction) -> Result<u64, NotCompacted> {
    for table in from.list_tables().map_err(StoreFault::from)? {
        if TABLES.iter().all(|known| known.name() != table.name()) {
            return Err(NotCompacted::UnknownTable(table.name().to_owned()));
        }
    }
    if let Some(table) = from.list_multimap_tables().map_err(StoreFault::from)?.next() {
        return Err(NotCompacted::UnknownTable(table.name().to_owned()));
    }
    let bytes: u64 = TABLES.iter().map(|table| table.bytes(from)).sum::<Result<_, _>>()?;
    Ok(bytes)
}
