//! The tables of the file, and the write transaction over them.

use redb::{
    Database, Durability, Key, ReadOnlyTable, ReadTransaction, Table, TableDefinition, TableError, Value,
    WriteTransaction,
};

use crate::store::StoreFault;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::RecordFormat;

pub(super) type Id = &'static [u8; 16];
/// A number or a time, big-endian.
pub(super) type Number = &'static [u8; 8];
pub(super) type Hash = &'static [u8; 32];
pub(super) type Bytes = &'static [u8];

pub(super) const META: TableDefinition<'_, &str, Bytes> = TableDefinition::new("meta");
pub(super) const KEYS: TableDefinition<'_, Id, Bytes> = TableDefinition::new("keys");
pub(super) const DIGESTS: TableDefinition<'_, Hash, Id> = TableDefinition::new("digests");
pub(super) const ORGS: TableDefinition<'_, Id, Bytes> = TableDefinition::new("orgs");
pub(super) const ORG_KEYS: TableDefinition<'_, (Id, Id), ()> = TableDefinition::new("org_keys");
pub(super) const EMAILS: TableDefinition<'_, Hash, Id> = TableDefinition::new("emails");
pub(super) const EVENTS: TableDefinition<'_, Number, Bytes> = TableDefinition::new("events");
pub(super) const AUDIT: TableDefinition<'_, (Id, Number), Bytes> = TableDefinition::new("audit");
pub(super) const AUDIT_ENDS: TableDefinition<'_, Id, Bytes> = TableDefinition::new("audit_ends");
pub(super) const ANSWERS: TableDefinition<'_, Hash, Bytes> = TableDefinition::new("answers");
pub(super) const ANSWER_ENDS: TableDefinition<'_, (Number, Hash), ()> = TableDefinition::new("answer_ends");
pub(super) const USAGE: TableDefinition<'_, Id, Bytes> = TableDefinition::new("usage");
pub(super) const NEWS: TableDefinition<'_, Id, Bytes> = TableDefinition::new("news");
pub(super) const NEWS_DUE: TableDefinition<'_, (Number, Id), ()> = TableDefinition::new("news_due");
/// These two are newer than the others: an old file lacks them until something is written to it.
pub(super) const QUOTAS: TableDefinition<'_, &str, Bytes> = TableDefinition::new("quotas");
pub(super) const QUOTA_ENDS: TableDefinition<'_, (Number, &str), ()> = TableDefinition::new("quota_ends");
/// So are these; opening a file fills them.
pub(super) const ENVIRONMENT_KEYS: TableDefinition<'_, (Id, u8, Id), ()> =
    TableDefinition::new("environment_keys");
pub(super) const LIVE_KEYS: TableDefinition<'_, (Id, Id), LiveKey> = TableDefinition::new("live_keys");

/// An old file lacks this one, too: until when a trail's day lasts, and how many of its entries may still be trimmed.
pub(super) const TRIMMED: TableDefinition<'_, Id, Bytes> = TableDefinition::new("trimmed");

/// And this one: by name, the [stones](crate::vocabulary::key::gone) of keys that are gone.
pub(super) const GONE: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("gone");

/// Until when a key is live, and its maker; zeros for none.
pub(super) type LiveKey = (u64, Id);

/// Rows of `meta`.
pub(super) const INCARNATION: &str = "incarnation";
pub(super) const LAST_EVENT: &str = "event";
/// The last event after which the indexes of keys were right.
pub(super) const INDEXED: &str = "indexed";
/// The format of records that a keygate must be able to keep to open the file; a file without this row has the first.
pub(super) const FORMAT: &str = "format";
/// The list of prefixes; a file of an older release lacks it.
pub(super) const PREFIXES: &str = "prefixes";
/// The prefix that is being removed, until a key with it comes.
pub(super) const REMOVING: &str = "removing";
/// The newest time by the store's clock; an old file lacks it.
pub(super) const TIME: &str = "time";
/// Until when the day lasts in which keys went, and how many may still go.
pub(super) const GONE_DAY: &str = "gone_day";
/// What the store says of its pepper; an old file lacks it until it is opened.
pub(super) const PEPPERS: &str = "peppers";

/// All tables within a write transaction. The methods are in the files of the orders that use them.
pub(super) struct Tables<'t> {
    pub(super) meta: Table<'t, &'static str, Bytes>,
    pub(super) keys: Table<'t, Id, Bytes>,
    pub(super) digests: Table<'t, Hash, Id>,
    pub(super) orgs: Table<'t, Id, Bytes>,
    pub(super) org_keys: Table<'t, (Id, Id), ()>,
    pub(super) emails: Table<'t, Hash, Id>,
    pub(super) events: Table<'t, Number, Bytes>,
    pub(super) audit: Table<'t, (Id, Number), Bytes>,
    pub(super) audit_ends: Table<'t, Id, Bytes>,
    pub(super) answers: Table<'t, Hash, Bytes>,
    pub(super) answer_ends: Table<'t, (Number, Hash), ()>,
    pub(super) usage: Table<'t, Id, Bytes>,
    pub(super) news: Table<'t, Id, Bytes>,
    pub(super) news_due: Table<'t, (Number, Id), ()>,
    pub(super) quotas: Table<'t, &'static str, Bytes>,
    pub(super) quota_ends: Table<'t, (Number, &'static str), ()>,
    pub(super) environment_keys: Table<'t, (Id, u8, Id), ()>,
    pub(super) live_keys: Table<'t, (Id, Id), LiveKey>,
    pub(super) trimmed: Table<'t, Id, Bytes>,
    pub(super) gone: Table<'t, Bytes, Bytes>,
    /// The present time. Before [`Tables::at`] every other time lies ahead.
    pub(super) now: UnixMillis,
    /// The store's time, which may be another where the machine's is wrong.
    pub(super) store_time: UnixMillis,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreFault> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            keys: transaction.open_table(KEYS)?,
            digests: transaction.open_table(DIGESTS)?,
            orgs: transaction.open_table(ORGS)?,
            org_keys: transaction.open_table(ORG_KEYS)?,
            emails: transaction.open_table(EMAILS)?,
            events: transaction.open_table(EVENTS)?,
            audit: transaction.open_table(AUDIT)?,
            audit_ends: transaction.open_table(AUDIT_ENDS)?,
            answers: transaction.open_table(ANSWERS)?,
            answer_ends: transaction.open_table(ANSWER_ENDS)?,
            usage: transaction.open_table(USAGE)?,
            news: transaction.open_table(NEWS)?,
            news_due: transaction.open_table(NEWS_DUE)?,
            quotas: transaction.open_table(QUOTAS)?,
            quota_ends: transaction.open_table(QUOTA_ENDS)?,
            environment_keys: transaction.open_table(ENVIRONMENT_KEYS)?,
            live_keys: transaction.open_table(LIVE_KEYS)?,
            trimmed: transaction.open_table(TRIMMED)?,
            gone: transaction.open_table(GONE)?,
            now: UnixMillis(0),
            store_time: UnixMillis(u64::MAX),
        })
    }

    pub(super) fn at(self, now: UnixMillis, store_time: UnixMillis) -> Self {
        Self { now, store_time, ..self }
    }

    /// The earlier of the caller's time and the store's: what has ended by then has ended by both, and may be deleted.
    pub(super) fn surely(&self, now: UnixMillis) -> UnixMillis {
        now.min(self.store_time)
    }
}

/// A table that a file may not have yet.
pub(super) fn open_if_there<K: Key + 'static, V: Value + 'static>(
    file: &ReadTransaction,
    table: TableDefinition<'_, K, V>,
) -> Result<Option<ReadOnlyTable<K, V>>, TableError> {
    match file.open_table(table) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Commits in two phases, with a second sync. After a crash redb falls back from a damaged single-phase commit to the
/// commit before, which may lack a revocation. With two phases such a file is refused instead.
pub(super) fn begin_write(database: &Database) -> Result<WriteTransaction, StoreFault> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate).map_err(StoreFault::failed)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// The format that a row of `meta` names.
pub(super) fn format(row: Option<&[u8]>) -> RecordFormat {
    let number = |bytes| number(bytes).and_then(|number| u16::try_from(number).ok());
    row.map_or(RecordFormat::FIRST, |bytes| number(bytes).map_or(RecordFormat::MAX, RecordFormat::new))
}

pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

macro_rules! faults {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreFault {
            fn from(error: $error) -> Self {
                Self::failed(error)
            }
        }
    )*};
}

faults!(redb::StorageError, TableError, redb::TransactionError, redb::CommitError);

/// A time and the bytes after it.
pub(super) fn split_time(bytes: &[u8]) -> Option<(UnixMillis, &[u8])> {
    bytes.split_first_chunk().map(|(time, rest)| (UnixMillis(u64::from_be_bytes(*time)), rest))
}

/// The number of an environment in the index.
pub(super) const fn environment_number(environment: Environment) -> u8 {
    match environment {
        Environment::Live => 0,
        Environment::Test => 1,
    }
}
