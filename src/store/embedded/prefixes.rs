//! The list of prefixes, a row of `meta`. The only gateway that the file can have reads it when it opens the file, and
//! changes it itself.

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata};
use tokio::sync::watch;

use super::Embedded;
use super::tables::{KEYS, META, PREFIXES, REMOVING, Tables};
use super::writer::Stop;
use crate::store::prefixes::{Begins, PrefixBook, Register};
use crate::store::{CommitError, StoreFault, StoreFuture};
use crate::vocabulary::key::record::{RecordFormat, Sealer};
use crate::vocabulary::key::{Prefix, Prefixes};

impl PrefixBook for Embedded {
    fn followed(&self) -> watch::Receiver<Option<Prefixes>> {
        self.prefixes.subscribe()
    }

    fn register(&self) -> StoreFuture<'_, Result<Register, StoreFault>> {
        let has_keys = self.read(|snapshot| Ok(!snapshot.file.open_table(KEYS)?.is_empty()?));
        Box::pin(async move {
            let has_keys = has_keys.await?;
            // The writer of the list is this process.
            let prefixes = self.prefixes.borrow().clone();
            Ok(Register { prefixes, has_keys, gateways: Vec::new() })
        })
    }

    fn rewrite(
        &self,
        before: Option<Prefixes>,
        after: Prefixes,
    ) -> StoreFuture<'_, Result<bool, StoreFault>> {
        Box::pin(async move {
            let list = after.clone();
            let rewritten = self
                .write(move |tables, sealer| tables.rewrite_prefixes(sealer, before.as_ref(), &list))
                .await?;
            if rewritten {
                self.prefixes.send_replace(Some(after));
            }
            Ok(rewritten)
        })
    }

    fn begin_removal(&self, prefix: &Prefix) -> StoreFuture<'_, Result<(), StoreFault>> {
        let prefix = prefix.clone();
        self.write(move |tables, _| {
            tables.meta.insert(REMOVING, prefix.as_str().as_bytes())?;
            Ok(())
        })
    }

    fn remove(&self, before: Prefixes, prefix: &Prefix) -> StoreFuture<'_, Result<bool, StoreFault>> {
        let (prefix, after) = (prefix.clone(), before.without(prefix));
        Box::pin(async move {
            let list = after.clone();
            let removed = self
                .write(move |tables, sealer| {
                    Ok(tables.is_removing(&prefix)?
                        && tables.rewrite_prefixes(sealer, Some(&before), &list)?)
                })
                .await?;
            if removed {
                self.prefixes.send_replace(Some(after));
            }
            Ok(removed)
        })
    }

    /// There is no other gateway.
    fn announce(&self, _: &Prefixes) -> StoreFuture<'_, ()> {
        Box::pin(async {})
    }
}

impl Tables<'_> {
    fn rewrite_prefixes(
        &mut self,
        sealer: &Sealer,
        before: Option<&Prefixes>,
        after: &Prefixes,
    ) -> Result<bool, Stop> {
        let now = read(self.meta.get(PREFIXES)?.as_ref().map(|row| row.value()))?;
        if now.as_ref() != before {
            return Ok(false);
        }
        let needed = if after.is_plain() { RecordFormat::FIRST } else { RecordFormat::PREFIXES };
        let format = self.check_format(sealer, needed)?;
        self.raise_format(format)?;
        self.meta.insert(PREFIXES, after.to_string().as_bytes())?;
        self.meta.remove(REMOVING)?;
        Ok(true)
    }

    fn is_removing(&self, prefix: &Prefix) -> Result<bool, Stop> {
        Ok(self.meta.get(REMOVING)?.is_some_and(|row| row.value() == prefix.as_str().as_bytes()))
    }

    /// A key with this prefix has come.
    pub(super) fn end_removal(&mut self, prefix: &Prefix) -> Result<(), Stop> {
        if self.is_removing(prefix)? {
            self.meta.remove(REMOVING)?;
        }
        Ok(())
    }

    /// The prefix of a new secret, which the store must accept, as far as it has a list.
    pub(super) fn check_prefix(&self, begins: Begins<'_>) -> Result<Option<Prefix>, Stop> {
        let Some(list) = read(self.meta.get(PREFIXES)?.as_ref().map(|row| row.value()))? else {
            return Ok(None);
        };
        let prefix = match begins {
            Begins::With(prefix) => prefix,
            Begins::WithTheFirst => list.first(),
            Begins::WithAnything => return Ok(None),
        };
        if list.accepts(prefix) { Ok(Some(prefix.clone())) } else { Err(CommitError::PrefixRemoved.into()) }
    }
}

/// The list of a file that was just opened.
pub(super) fn stored(database: &Database) -> Result<Option<Prefixes>, StoreFault> {
    let row = database.begin_read()?.open_table(META)?.get(PREFIXES)?;
    read(row.as_ref().map(|row| row.value()))
}

fn read(row: Option<&[u8]>) -> Result<Option<Prefixes>, StoreFault> {
    let text = row.map(|row| str::from_utf8(row).unwrap_or_default());
    text.map(str::parse).transpose().map_err(StoreFault::failed)
}
