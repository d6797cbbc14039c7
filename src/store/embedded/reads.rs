//! Reads, each over one snapshot.

use std::ops::Bound;
use std::sync::Arc;

use redb::{ReadTransaction, TableDefinition};

use super::tables::{
    Bytes, DIGESTS, ENVIRONMENT_KEYS, FORMAT, INCARNATION, Id, KEYS, META, ORG_KEYS, ORGS,
    environment_number, format,
};
use crate::store::unreadable::{self, Identified, Listed, OF_ANOTHER, Unreadable};
use crate::store::{Found, Lookup, StoreFault, StoreFuture};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, RecordFormat, Sealer, Stored, Versioned};
use crate::vocabulary::key::{Digest, Environment};

/// A lookup's outcome.
pub(super) fn answer(found: StoreFuture<'_, Result<Option<Found>, StoreFault>>) -> StoreFuture<'_, Lookup> {
    Box::pin(async move {
        match found.await {
            Ok(Some(found)) => Lookup::Found(Arc::new(found)),
            Ok(None) => Lookup::Absent,
            Err(fault) => Lookup::Unavailable(fault),
        }
    })
}

/// The content of the file at one moment.
pub(super) struct Snapshot {
    pub(super) file: ReadTransaction,
    pub(super) sealer: Arc<Sealer>,
}

impl Snapshot {
    /// The key that one of these digests opens. `None` only if the index has none of them, or a tombstone is all that it
    /// leads to. A record that the index names must exist.
    pub(super) fn lookup(&self, digests: &[Digest]) -> Result<Option<Found>, StoreFault> {
        let index = self.file.open_table(DIGESTS)?;
        for digest in digests {
            let Some(id) = index.get(digest.as_bytes())?.map(|id| *id.value()) else { continue };
            let key = self.promised::<KeyRecord>(KEYS, &id)?.record;
            if key.is_tombstone() {
                continue;
            }
            if !key.secrets.iter().any(|secret| secret.digest == *digest) {
                return Err(StoreFault::failed("a digest leads to a key that does not have it"));
            }
            let org = self.promised::<OrgRecord>(ORGS, &key.org.to_bytes())?.record;
            return Ok(Some(Found { key, org, digest: *digest }));
        }
        Ok(None)
    }

    pub(super) fn incarnation(&self) -> Result<String, StoreFault> {
        let bytes = self.file.open_table(META)?.get(INCARNATION)?.map(|bytes| bytes.value().to_vec());
        let bytes = bytes.ok_or_else(|| StoreFault::failed("the file does not say which store it is"))?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(super) fn format(&self) -> Result<RecordFormat, StoreFault> {
        let row = self.file.open_table(META)?.get(FORMAT)?;
        Ok(format(row.as_ref().map(|row| row.value())))
    }

    pub(super) fn record<T: Stored + Identified>(
        &self,
        table: TableDefinition<'_, Id, Bytes>,
        place: &[u8; 16],
    ) -> Result<Option<Versioned<T>>, StoreFault> {
        let table = self.file.open_table(table)?;
        let bytes = table.get(place)?;
        bytes.map(|bytes| self.unseal(place, bytes.value())).transpose()
    }

    /// A record that another one names, so that it must exist.
    fn promised<T: Stored + Identified>(
        &self,
        table: TableDefinition<'_, Id, Bytes>,
        place: &[u8; 16],
    ) -> Result<Versioned<T>, StoreFault> {
        self.record(table, place)?
            .ok_or_else(|| StoreFault::failed("a record that another one names is missing"))
    }

    pub(super) fn newest<T: Stored + Identified>(
        &self,
        table: TableDefinition<'_, Id, Bytes>,
        after: Option<[u8; 16]>,
        limit: usize,
    ) -> Result<Vec<Listed<T>>, StoreFault> {
        let table = self.file.open_table(table)?;
        let end = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut records = Vec::new();
        for entry in table.range::<&[u8; 16]>((Bound::Unbounded, end))?.rev().take(limit) {
            let (place, bytes) = entry?;
            records.push(unreadable::entry(&self.sealer, *place.value(), Some(bytes.value())));
        }
        Ok(records)
    }

    pub(super) fn keys_of(
        &self,
        org: OrgId,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<Listed<KeyRecord>>, StoreFault> {
        let table = self.file.open_table(ORG_KEYS)?;
        let (org_id, end) = (org.to_bytes(), after.map_or([u8::MAX; 16], KeyId::to_bytes));
        let end =
            if after.is_some() { Bound::Excluded((&org_id, &end)) } else { Bound::Included((&org_id, &end)) };
        let range = table.range::<(&[u8; 16], &[u8; 16])>((Bound::Included((&org_id, &[0; 16])), end))?;
        let ids = range.rev().take(limit).map(|entry| entry.map(|(place, _)| *place.value().1));
        self.keys_at(org, ids)
    }

    pub(super) fn keys_in(
        &self,
        org: OrgId,
        environment: Environment,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<Listed<KeyRecord>>, StoreFault> {
        let table = self.file.open_table(ENVIRONMENT_KEYS)?;
        let (org_id, number) = (org.to_bytes(), environment_number(environment));
        let end = after.map_or([u8::MAX; 16], KeyId::to_bytes);
        let end = (&org_id, number, &end);
        let end = if after.is_some() { Bound::Excluded(end) } else { Bound::Included(end) };
        let start = Bound::Included((&org_id, number, &[0; 16]));
        let range = table.range::<(&[u8; 16], u8, &[u8; 16])>((start, end))?;
        let ids = range.rev().take(limit).map(|entry| entry.map(|(place, _)| *place.value().2));
        self.keys_at(org, ids)
    }

    /// The keys of an organisation with these ids. Its list keeps the tombstone of a key that it had.
    fn keys_at(
        &self,
        org: OrgId,
        ids: impl Iterator<Item = Result<[u8; 16], redb::StorageError>>,
    ) -> Result<Vec<Listed<KeyRecord>>, StoreFault> {
        let (table, mut keys) = (self.file.open_table(KEYS)?, Vec::new());
        for id in ids {
            let id = id?;
            let bytes = table.get(&id)?;
            let key = unreadable::entry(&self.sealer, id, bytes.as_ref().map(|bytes| bytes.value()));
            keys.push(key.and_then(|key: Versioned<KeyRecord>| match key.record.org == org {
                false if !key.record.is_tombstone() => {
                    Err(Unreadable { id: key.record.id, why: OF_ANOTHER.to_owned() })
                }
                _ => Ok(key),
            }));
        }
        Ok(keys)
    }

    fn unseal<T: Stored + Identified>(
        &self,
        place: &[u8; 16],
        bytes: &[u8],
    ) -> Result<Versioned<T>, StoreFault> {
        self.sealer.open_at(place, bytes).map_err(|bad| unreadable::fault::<T>(*place, bad))
    }
}
