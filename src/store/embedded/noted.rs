//! Tables that note which of their rows a transaction changes, while the file is copied into a new one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Deref;
use std::rc::Rc;

use redb::{AccessGuard, Key, StorageError, Table, TableDefinition, TableHandle, Value, WriteTransaction};

use crate::store::StoreFault;

/// A row: the name of its table, and its key.
pub(super) type Row = (&'static str, Box<[u8]>);

/// The rows that one transaction changes; `None` while nobody copies the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes(Option<Rc<RefCell<BTreeSet<Row>>>>);

impl Notes {
    pub(super) fn begin() -> Self {
        Self(Some(Rc::default()))
    }

    /// What was noted so far.
    pub(super) fn take(&self) -> BTreeSet<Row> {
        self.0.as_ref().map(|rows| rows.take()).unwrap_or_default()
    }
}

/// A table whose changes are noted.
pub(super) struct Noted<'t, K: Key + 'static, V: Value + 'static> {
    table: Table<'t, K, V>,
    name: &'static str,
    notes: Notes,
}

impl<'t, K: Key + 'static, V: Value + 'static> Noted<'t, K, V> {
    pub(super) fn open(
        transaction: &'t WriteTransaction,
        definition: &'static TableDefinition<'static, K, V>,
        notes: &Notes,
    ) -> Result<Self, StoreFault> {
        let table = transaction.open_table(*definition)?;
        Ok(Self { table, name: definition.name(), notes: notes.clone() })
    }

    /// As [`Table::insert`].
    pub(super) fn insert<'k, 'v>(
        &mut self,
        key: impl std::borrow::Borrow<K::SelfType<'k>>,
        value: impl std::borrow::Borrow<V::SelfType<'v>>,
    ) -> Result<Option<AccessGuard<'_, V>>, StorageError> {
        self.note(key.borrow());
        self.table.insert(key, value)
    }

    /// As [`Table::remove`].
    pub(super) fn remove<'k>(
        &mut self,
        key: impl std::borrow::Borrow<K::SelfType<'k>>,
    ) -> Result<Option<AccessGuard<'_, V>>, StorageError> {
        self.note(key.borrow());
        self.table.remove(key)
    }

    fn note(&self, key: &K::SelfType<'_>) {
        note::<K>(&self.notes, self.name, key);
    }
}

fn note<K: Key>(notes: &Notes, name: &'static str, key: &K::SelfType<'_>) {
    if let Some(rows) = &notes.0 {
        rows.borrow_mut().insert((name, K::as_bytes(key).as_ref().into()));
    }
}

/// Reads go to the table itself.
impl<'t, K: Key + 'static, V: Value + 'static> Deref for Noted<'t, K, V> {
    type Target = Table<'t, K, V>;

    fn deref(&self) -> &Self::Target {
        &self.table
    }
}
