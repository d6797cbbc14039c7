//! Whether the pepper of the configuration is the one of the file, and the change to a new one.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::open::OpenError;
use super::tables::{Bytes, FORMAT, Id, KEYS, META, ORGS, PEPPERS, Tables, begin_write, format};
use crate::store::StoreFault;
use crate::vocabulary::key::record::{
    BadRecord, KeyRecord, OrgRecord, RecordFormat, Sealer, Stored, open_under,
};
use crate::vocabulary::key::{Misfit, Pepper};

/// Learns which pepper belongs to the file. A file that does not say gets the row: from one of its records, or, without
/// any, from the configuration. Then the first pepper of the configuration comes into force: the file has no other gateway.
pub(super) fn settle(path: &Path, database: &Database, sealer: &Sealer) -> Result<(), OpenError> {
    let wrong = |misfit| OpenError::WrongPepper { path: path.to_owned(), misfit };
    let damaged = |cause: StoreFault| OpenError::Damaged { path: path.to_owned(), cause: cause.to_string() };
    let peppers = sealer.peppers();
    let Some(there) = look(database).map_err(damaged)? else { return Ok(()) };
    let row = match (&there.row, &there.record) {
        (Some(row), _) => row.clone(),
        (None, Some(record)) => peppers.row_by_record(|pepper| record.opens(pepper)).map_err(wrong)?,
        (None, None) => peppers.first_row().map_err(|error| damaged(StoreFault::failed(error)))?,
    };
    peppers.learn(&row).map_err(wrong)?;
    let next = peppers.next_row().map_err(|full| damaged(StoreFault::failed(full)))?;
    match next {
        Some((next, _)) => {
            write(database, &next, RecordFormat::PEPPERS).map_err(damaged)?;
            peppers.learn(&next).map(drop).map_err(wrong)
        }
        None if there.row.is_none() => write(database, &row, RecordFormat::FIRST).map_err(damaged),
        None => Ok(()),
    }
}

/// What a file tells of its pepper.
struct There {
    row: Option<String>,
    record: Option<Record>,
}

/// A record by which a file without a row is judged.
enum Record {
    Key(Vec<u8>),
    Org(Vec<u8>),
}

impl Record {
    /// Whether it opens so. A record that is bad in another way says nothing of the pepper.
    fn opens(&self, pepper: Option<&Pepper>) -> bool {
        fn fits<T: Stored>(pepper: Option<&Pepper>, bytes: &[u8]) -> bool {
            !matches!(open_under::<T>(pepper, bytes), Err(BadRecord::Seal))
        }
        match self {
            Self::Key(bytes) => fits::<KeyRecord>(pepper, bytes),
            Self::Org(bytes) => fits::<OrgRecord>(pepper, bytes),
        }
    }
}

/// `None` for a file without tables.
fn look(database: &Database) -> Result<Option<There>, StoreFault> {
    let file = database.begin_read()?;
    if file.list_tables()?.next().is_none() {
        return Ok(None);
    }
    let row = file.open_table(META)?.get(PEPPERS)?;
    let row = row.map(|row| String::from_utf8_lossy(row.value()).into_owned());
    let (keys, orgs) = (file.open_table(KEYS)?, file.open_table(ORGS)?);
    let record = match newest(&keys)? {
        Some(bytes) => Some(Record::Key(bytes)),
        None => newest(&orgs)?.map(Record::Org),
    };
    Ok(Some(There { row, record }))
}

fn newest(table: &impl ReadableTable<Id, Bytes>) -> Result<Option<Vec<u8>>, StoreFault> {
    Ok(table.last()?.map(|(_, bytes)| bytes.value().to_vec()))
}

/// Writes the row, and raises the format of the file if it is lower.
fn write(database: &Database, row: &str, needed: RecordFormat) -> Result<(), StoreFault> {
    let transaction = begin_write(database)?;
    {
        let mut tables = Tables::open(&transaction)?;
        tables.meta.insert(PEPPERS, row.as_bytes())?;
        let found = format(tables.meta.get(FORMAT)?.as_ref().map(|row| row.value()));
        if needed > found {
            tables.meta.insert(FORMAT, &u64::from(needed.number()).to_be_bytes()[..])?;
        }
    }
    Ok(transaction.commit()?)
}

impl From<Misfit> for StoreFault {
    fn from(misfit: Misfit) -> Self {
        Self::failed(misfit)
    }
}
