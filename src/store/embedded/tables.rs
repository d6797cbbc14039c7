//! The tables of the file, and the write transaction over them.

use redb::{
    Database, Durability, Key, ReadOnlyTable, ReadTransaction, TableDefinition, TableError, Value,
    WriteTransaction,
};

use super::noted::{Noted, Notes};
use crate::store::StoreFault;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::RecordFormat;

pub(super) type Id = &'static [u8; 16];
/// A number or a time, big-endian.
pub(super) type Number = &'static [u8; 8];
pub(super) type Hash = &'static [u8; 32];
pub(super) type Bytes = &'static [u8];

pub(super) const META: TableDefinition<'static, &str, Bytes> = TableDefinition::new("meta");
pub(super) const KEYS: TableDefinition<'static, Id, Bytes> = TableDefinition::new("keys");
pub(super) const DIGESTS: TableDefinition<'static, Hash, Id> = TableDefinition::new("digests");
pub(super) const ORGS: TableDefinition<'static, Id, Bytes> = TableDefinition::new("orgs");
pub(super) const ORG_KEYS: TableDefinition<'static, (Id, Id), ()> = TableDefinition::new("org_keys");
pub(super) const EMAILS: TableDefinition<'static, Hash, Id> = TableDefinition::new("emails");
pub(super) const EVENTS: TableDefinition<'static, Number, Bytes> = TableDefinition::new("events");
pub(super) const AUDIT: TableDefinition<'static, (Id, Number), Bytes> = TableDefinition::new("audit");
pub(super) const AUDIT_ENDS: TableDefinition<'static, Id, Bytes> = TableDefinition::new("audit_ends");
pub(super) const ANSWERS: TableDefinition<'static, Hash, Bytes> = TableDefinition::new("answers");
pub(super) const ANSWER_ENDS: TableDefinition<'static, (Number, Hash), ()> =
    TableDefinition::new("answer_ends");
pub(super) const USAGE: TableDefinition<'static, Id, Bytes> = TableDefinition::new("usage");
pub(super) const NEWS: TableDefinition<'static, Id, Bytes> = TableDefinition::new("news");
pub(super) const NEWS_DUE: TableDefinition<'static, (Number, Id), ()> = TableDefinition::new("news_due");
/// These two are newer than the others: an old file lacks them until something is written to it.
pub(super) const QUOTAS: TableDefinition<'static, &str, Bytes> = TableDefinition::new("quotas");
pub(super) const QUOTA_ENDS: TableDefinition<'static, (Number, &str), ()> =
    TableDefinition::new("quota_ends");
/// So are these; opening a file fills them.
pub(super) const ENVIRONMENT_KEYS: TableDefinition<'static, (Id, u8, Id), ()> =
    TableDefinition::new("environment_keys");
pub(super) const LIVE_KEYS: TableDefinition<'static, (Id, Id), LiveKey> = TableDefinition::new("live_keys");

/// An old file lacks this one, too: until when a trail's day lasts, and how many of its entries may still be trimmed.
pub(super) const TRIMMED: TableDefinition<'static, Id, Bytes> = TableDefinition::new("trimmed");

/// And this one: by name, the [stones](crate::vocabulary::key::gone) of keys that are gone.
pub(super) const GONE: TableDefinition<'static, Bytes, Bytes> = TableDefinition::new("gone");

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
    pub(super) meta: Noted<'t, &'static str, Bytes>,
    pub(super) keys: Noted<'t, Id, Bytes>,
    pub(super) digests: Noted<'t, Hash, Id>,
    pub(super) orgs: Noted<'t, Id, Bytes>,
    pub(super) org_keys: Noted<'t, (Id, Id), ()>,
    pub(super) emails: Noted<'t, Hash, Id>,
    pub(super) events: Noted<'t, Number, Bytes>,
    pub(super) audit: Noted<'t, (Id, Number), Bytes>,
    pub(super) audit_ends: Noted<'t, Id, Bytes>,
    pub(super) answers: Noted<'t, Hash, Bytes>,
    pub(super) answer_ends: Noted<'t, (Number, Hash), ()>,
    pub(super) usage: Noted<'t, Id, Bytes>,
    pub(super) news: Noted<'t, Id, Bytes>,
    pub(super) news_due: Noted<'t, (Number, Id), ()>,
    pub(super) quotas: Noted<'t, &'static str, Bytes>,
    pub(super) quota_ends: Noted<'t, (Number, &'static str), ()>,
    pub(super) environment_keys: Noted<'t, (Id, u8, Id), ()>,
    pub(super) live_keys: Noted<'t, (Id, Id), LiveKey>,
    pub(super) trimmed: Noted<'t, Id, Bytes>,
    pub(super) gone: Noted<'t, Bytes, Bytes>,
    /// The present time. Before [`Tables::at`] every other time lies ahead.
    pub(super) now: UnixMillis,
    /// The store's time, which may be another where the machine's is wrong.
    pub(super) store_time: UnixMillis,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreFault> {
        Self::noting(transaction, &Notes::default())
    }

    /// The same, and the rows that are changed are noted.
    pub(super) fn noting(transaction: &'t WriteTransaction, notes: &Notes) -> Result<Self, StoreFault> {
        Ok(Self {
            meta: Noted::open(transaction, &META, notes)?,
            keys: Noted::open(transaction, &KEYS, notes)?,
            digests: Noted::open(transaction, &DIGESTS, notes)?,
            orgs: Noted::open(transaction, &ORGS, notes)?,
            org_keys: Noted::open(transaction, &ORG_KEYS, notes)?,
            emails: Noted::open(transaction, &EMAILS, notes)?,
            events: Noted::open(transaction, &EVENTS, notes)?,
            audit: Noted::open(transaction, &AUDIT, notes)?,
            audit_ends: Noted::open(transaction, &AUDIT_ENDS, notes)?,
            answers: Noted::open(transaction, &ANSWERS, notes)?,
            answer_ends: Noted::open(transaction, &ANSWER_ENDS, notes)?,
            usage: Noted::open(transaction, &USAGE, notes)?,
            news: Noted::open(transaction, &NEWS, notes)?,
            news_due: Noted::open(transaction, &NEWS_DUE, notes)?,
            quotas: Noted::open(transaction, &QUOTAS, notes)?,
            quota_ends: Noted::open(transaction, &QUOTA_ENDS, notes)?,
            environment_keys: Noted::open(transaction, &ENVIRONMENT_KEYS, notes)?,
            live_keys: Noted::open(transaction, &LIVE_KEYS, notes)?,
            trimmed: Noted::open(transaction, &TRIMMED, notes)?,
            gone: Noted::open(transaction, &GONE, notes)?,
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
