//! The embedded back end: redb, one file, for one node.
//!
//! A mutation is handed to the one writer thread, which takes all that wait and makes them durable in one
//! transaction: many callers share the price of a sync. Then it tells the sinks, and only then the callers.
//! Reads run beside it, each over one snapshot.
//!
//! The tables, all keys of fixed length so that their order is the order of ids (which is that of age):
//!
//! | table | key | value |
//! |--|--|--|
//! | `meta` | `schema`, `incarnation`, `event` | number, 16 random bytes, number of the last event |
//! | `keys` | key id | sealed [`KeyRecord`] |
//! | `digests` | digest of a secret | key id |
//! | `orgs` | organisation id | sealed [`OrgRecord`] |
//! | `org_keys` | organisation id, key id | nothing |
//! | `events` | event number | its subjects, the newest 100,000 events |
//!
//! Numbers are eight bytes big-endian.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use redb::backends::FileBackend;
use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::events::{EventSink, Seq, Subject, encode};
use super::keeper::{Acceptance, Keeper, LinkState, Status};
use super::rehearsal::Rehearsal;
use super::{Change, CommitError, Committed, Found, Lookup, Mutation, Store, StoreFault, StoreFuture};
use crate::clock::Clock;
use crate::id::{KeyId, OrgId};
use crate::key::Digest;
use crate::key::record::{KeyRecord, OrgRecord, Sealer, Stored, Versioned};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub path: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self { path: PathBuf::from("keygate.redb") }
    }
}

/// The open store. Dropping it waits for the mutations it has taken and gives the file back.
pub struct Embedded {
    path: PathBuf,
    file: Arc<SharedFile>,
    sealer: Arc<Sealer>,
    readers: Arc<Semaphore>,
    published: Arc<Mutex<Published>>,
    /// `None` only while it is being dropped.
    orders: Option<mpsc::Sender<Order>>,
    writer: Option<JoinHandle<()>>,
}

/// Why the file was not opened. One that is refused for what it is or holds was left as it was.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("the store {} is in use by another process: stop it first, or send the command to it", path.display())]
    InUse { path: PathBuf },
    #[error("the store {} cannot be created: there is no directory {}, create it first", path.display(), parent(path).display())]
    NoDirectory { path: PathBuf },
    #[error("the store {} is open to others than its owner (mode {mode:04o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the store {} cannot be opened: {source}; check its path, its owner and the disk", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is not a keygate store: give another path, or move the file away", path.display())]
    NotAStore { path: PathBuf },
    #[error("the store {} was written by a newer keygate (schema {found}, this one knows {SCHEMA}): run that version", path.display())]
    NewerSchema { path: PathBuf, found: u64 },
    #[error("the store {} is damaged: {cause}; restore it from a backup", path.display())]
    Damaged { path: PathBuf, cause: String },
}

impl Embedded {
    /// Opens the store, or makes it where there is no file. Blocks: the whole file is read and verified,
    /// because a store is opened rarely, is not large, and redb trusts what it has not verified.
    ///
    /// # Errors
    /// [`OpenError`]: whose text says what to do.
    pub fn open(settings: &Settings, sealer: Sealer) -> Result<Self, OpenError> {
        let path = settings.path.clone();
        let (database, event) = open_file(&path)?;
        Self::start(path.clone(), database, event, sealer)
            .map_err(|source| OpenError::Unreadable { path, source })
    }

    fn start(path: PathBuf, database: Database, event: Seq, sealer: Sealer) -> io::Result<Self> {
        let file = Arc::new(SharedFile(RwLock::new(Some(database))));
        let sealer = Arc::new(sealer);
        let published = Arc::new(Mutex::new(Published { event, sinks: Vec::new() }));
        let (orders, waiting) = mpsc::channel(QUEUE);
        let writer = Writer {
            file: Arc::clone(&file),
            sealer: Arc::clone(&sealer),
            published: Arc::clone(&published),
            waiting,
            clock: Clock::system(),
        };
        let writer = thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer.run())?;
        let readers = Arc::new(Semaphore::new(READERS));
        Ok(Self { path, file, sealer, readers, published, orders: Some(orders), writer: Some(writer) })
    }

    /// Runs `read` over a snapshot, on a thread that may wait for the disk.
    ///
    /// Most reads find their pages in memory and would take less time than the hand-over, but one that does
    /// not may take a disk's time-out, and the control runtime has one thread. It is a cache miss: it can
    /// afford 20 µs.
    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, StoreFault> + Send + 'static,
    ) -> StoreFuture<'_, Result<T, StoreFault>> {
        let (file, sealer) = (Arc::clone(&self.file), Arc::clone(&self.sealer));
        let readers = Arc::clone(&self.readers);
        Box::pin(async move {
            // The permit goes with the read, not with who waits for it: a disk that hangs holds so many
            // threads and no more.
            let permit = readers.acquire_owned().await.map_err(StoreFault::failed)?;
            let task = tokio::task::spawn_blocking(move || {
                let _held = permit;
                read(&Snapshot { file: file.snapshot()?, sealer })
            });
            // Cancelled with its runtime, or panicked over a page changed behind redb's back. The panic's
            // text is not repeated: it may hold what was read.
            task.await.unwrap_or_else(|_| Err(StoreFault::failed("a read was broken off")))
        })
    }
}

impl Store for Embedded {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        let found = self.read(move |snapshot| snapshot.lookup(&digest));
        Box::pin(async move {
            match found.await {
                Ok(Some(found)) => Lookup::Found(Arc::new(found)),
                Ok(None) => Lookup::Absent,
                Err(fault) => Lookup::Unavailable(fault),
            }
        })
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        self.read(move |snapshot| snapshot.record(KEYS, &id.to_bytes()))
    }

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        self.read(move |snapshot| snapshot.record(ORGS, &id.to_bytes()))
    }

    fn keys(
        &self,
        org: Option<OrgId>,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<KeyRecord>>, StoreFault>> {
        self.read(move |snapshot| match org {
            Some(org) => snapshot.keys_of(org, after, limit),
            None => snapshot.newest(KEYS, after.map(KeyId::to_bytes), limit),
        })
    }

    fn orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<OrgRecord>>, StoreFault>> {
        self.read(move |snapshot| snapshot.newest(ORGS, after.map(OrgId::to_bytes), limit))
    }

    /// Once the mutation stands in the writer's queue, which the first poll does unless the queue is full, it
    /// is carried out whether or not anybody still waits for the answer.
    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        Box::pin(async move {
            let stopped = || StoreFault::failed("the store's writer has stopped");
            let (answer, outcome) = oneshot::channel();
            let orders = self.orders.as_ref().ok_or_else(stopped)?;
            orders.send(Order { mutation, answer }).await.map_err(|_| stopped())?;
            outcome.await.map_err(|_| stopped())?
        })
    }

    /// The writer publishes under the same lock: what it published before is in the number given here, what
    /// it publishes after is applied. A sink must not subscribe another from within a call.
    fn subscribe(&self, sink: Arc<dyn EventSink>) {
        let mut published = lock(&self.published);
        sink.reset(published.event);
        published.sinks.push(sink);
    }

    fn keeper(&self) -> &dyn Keeper {
        self
    }
}

/// A file is what it is: there is nothing to accept, and nobody else whose events could fail to arrive.
impl Keeper for Embedded {
    fn link_state(&self) -> LinkState {
        LinkState::Up
    }

    fn status(&self) -> StoreFuture<'_, Status> {
        let incarnation = self.read(|snapshot| snapshot.incarnation());
        Box::pin(async move {
            let (found, trouble) = match incarnation.await {
                Ok(found) => (Some(found), None),
                Err(fault) => (None, Some(fault.to_string())),
            };
            let (place, events) = (self.path.display().to_string(), Some(lock(&self.published).event));
            Status { place, trouble, known: found.clone(), found, events }
        })
    }

    fn begin(&self) -> StoreFuture<'_, Result<bool, StoreFault>> {
        Box::pin(async { Ok(false) })
    }

    fn accept(&self) -> StoreFuture<'_, Result<Acceptance, StoreFault>> {
        let incarnation = self.read(|snapshot| snapshot.incarnation());
        Box::pin(async move { Ok(Acceptance { store: incarnation.await?, changed: false }) })
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // With its last sender gone the queue runs dry and the writer ends.
        drop(self.orders.take());
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so itself.
            let _ = writer.join();
        }
        self.file.close();
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Reads under way at once, each on a thread of its own.
const READERS: usize = 64;
/// Mutations that may wait for the writer before their callers have to.
const QUEUE: usize = 1024;
/// Mutations made durable together. It bounds how long the first of them waits for the rest.
const BATCH: usize = 256;
/// Events kept in the file.
const EVENTS_KEPT: u64 = 100_000;
/// What redb may keep of the file in memory; its own default is a GiB.
const CACHE_BYTES: usize = 64 << 20;

const SCHEMA: u64 = 1;
const SCHEMA_NUMBER: &str = "schema";
const INCARNATION: &str = "incarnation";
const LAST_EVENT: &str = "event";

type Id = &'static [u8; 16];
type Bytes = &'static [u8];
const META: TableDefinition<'_, &str, Bytes> = TableDefinition::new("meta");
const KEYS: TableDefinition<'_, Id, Bytes> = TableDefinition::new("keys");
const DIGESTS: TableDefinition<'_, &[u8; 32], Id> = TableDefinition::new("digests");
const ORGS: TableDefinition<'_, Id, Bytes> = TableDefinition::new("orgs");
const ORG_KEYS: TableDefinition<'_, (Id, Id), ()> = TableDefinition::new("org_keys");
const EVENTS: TableDefinition<'_, &[u8; 8], Bytes> = TableDefinition::new("events");

/// A mutation on its way to the writer.
struct Order {
    mutation: Mutation,
    answer: oneshot::Sender<Result<Committed, CommitError>>,
}

/// What the sinks have been told.
struct Published {
    event: Seq,
    sinks: Vec<Arc<dyn EventSink>>,
}

/// Poisoned means that a sink panicked, which is a bug there and has ended the writer: nothing is committed
/// any more, and whoever subscribes still learns the number that was reached.
fn lock(published: &Mutex<Published>) -> MutexGuard<'_, Published> {
    published.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The database while the store is open. Reads and the writer hold the lock only to begin a transaction or to
/// write; whoever closes waits for that long, after which the file is free, late readers or not.
struct SharedFile(RwLock<Option<Database>>);

impl SharedFile {
    fn snapshot(&self) -> Result<ReadTransaction, StoreFault> {
        self.with(|database| Ok(database.begin_read()?))
    }

    /// Only [`SharedFile::close`] writes, and it cannot panic half-way: a poisoned lock says nothing.
    fn with<T>(&self, act: impl FnOnce(&Database) -> Result<T, StoreFault>) -> Result<T, StoreFault> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => act(database),
            None => Err(StoreFault::failed("the store is closed")),
        }
    }

    fn close(&self) {
        drop(self.0.write().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// The one that changes the file.
struct Writer {
    file: Arc<SharedFile>,
    sealer: Arc<Sealer>,
    published: Arc<Mutex<Published>>,
    waiting: mpsc::Receiver<Order>,
    clock: Clock,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
            let outcomes = self.file.with(|database| self.write(database, &batch));
            if let Ok(outcomes) = &outcomes {
                self.publish(&batch, outcomes, self.clock.mono());
            }
            answer(&mut batch, outcomes);
        }
    }

    /// Carries out the whole batch in one transaction. An error means that none of it is known to have
    /// happened.
    fn write(&self, database: &Database, batch: &[Order]) -> Result<Vec<Outcome>, StoreFault> {
        let transaction = begin_write(database)?;
        let outcomes = {
            let mut tables = Tables::open(&transaction)?;
            let outcome = |order: &Order| match tables.apply(&self.sealer, &order.mutation) {
                Ok(committed) => Ok(Ok(committed)),
                Err(Stop::Mutation(refused)) => Ok(Err(refused)),
                Err(Stop::Batch(fault)) => Err(fault),
            };
            batch.iter().map(outcome).collect::<Result<Vec<Outcome>, StoreFault>>()?
        };
        if outcomes.iter().any(Result::is_ok) {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        Ok(outcomes)
    }

    fn publish(&self, batch: &[Order], outcomes: &[Outcome], committed: Instant) {
        let mut published = lock(&self.published);
        for (order, outcome) in batch.iter().zip(outcomes) {
            let Ok(Committed { event: Some(event) }) = outcome else { continue };
            published.event = *event;
            for sink in &published.sinks {
                sink.apply(*event, &order.mutation.subjects);
            }
            let lag = self.clock.mono().saturating_duration_since(committed);
            for sink in &published.sinks {
                sink.note_lag(lag);
            }
        }
    }
}

type Outcome = Result<Committed, CommitError>;

fn answer(batch: &mut Vec<Order>, outcomes: Result<Vec<Outcome>, StoreFault>) {
    let outcomes = match outcomes {
        Ok(outcomes) => outcomes,
        Err(fault) => batch.iter().map(|_| Err(CommitError::Fault(fault.clone()))).collect(),
    };
    for (order, outcome) in batch.drain(..).zip(outcomes) {
        // A caller that has hung up does not hear it.
        let _ = order.answer.send(outcome);
    }
}

/// In two phases, for a second sync: after a crash redb falls back from a single-phase commit that it finds
/// damaged to the one before, and the one before may be from before a revocation. This way it is refused
/// instead.
fn begin_write(database: &Database) -> Result<WriteTransaction, StoreFault> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate).map_err(StoreFault::failed)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// Why a mutation was not carried out, and whom that concerns.
enum Stop {
    /// It alone: it failed a check, and nothing of it was written.
    Mutation(CommitError),
    /// All in the transaction: the file failed, at an unknown point.
    Batch(StoreFault),
}

impl Stop {
    /// A record in its way cannot be read, which is no trouble to others.
    fn unreadable(cause: impl fmt::Display) -> Self {
        Self::Mutation(StoreFault::failed(cause).into())
    }
}

impl From<CommitError> for Stop {
    fn from(refused: CommitError) -> Self {
        Self::Mutation(refused)
    }
}

impl From<redb::StorageError> for Stop {
    fn from(error: redb::StorageError) -> Self {
        Self::Batch(error.into())
    }
}

/// The tables within a write transaction.
struct Tables<'t> {
    meta: Table<'t, &'static str, Bytes>,
    keys: Table<'t, Id, Bytes>,
    digests: Table<'t, &'static [u8; 32], Id>,
    orgs: Table<'t, Id, Bytes>,
    org_keys: Table<'t, (Id, Id), ()>,
    events: Table<'t, &'static [u8; 8], Bytes>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreFault> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            keys: transaction.open_table(KEYS)?,
            digests: transaction.open_table(DIGESTS)?,
            orgs: transaction.open_table(ORGS)?,
            org_keys: transaction.open_table(ORG_KEYS)?,
            events: transaction.open_table(EVENTS)?,
        })
    }

    /// Checks everything before it writes anything, so that a refused mutation leaves nothing in the
    /// transaction that the others of its batch go on to share.
    fn apply(&mut self, sealer: &Sealer, mutation: &Mutation) -> Result<Committed, Stop> {
        let org = mutation.org.as_ref().map(|change| check(&self.orgs, sealer, change)).transpose()?;
        let key = mutation
            .key
            .as_ref()
            .map(|change| self.check_key(sealer, change, mutation.org.as_ref()))
            .transpose()?;
        let event = if mutation.subjects.is_empty() { None } else { Some(self.next_event()?) };

        if let Some(org) = org {
            self.orgs.insert(&org.place, &org.sealed[..])?;
        }
        if let Some(key) = key {
            self.write_key(&key)?;
        }
        if let Some(event) = event {
            self.write_event(event, &mutation.subjects)?;
        }
        Ok(Committed { event })
    }

    fn check_key(
        &self,
        sealer: &Sealer,
        change: &Change<KeyRecord>,
        org: Option<&Change<OrgRecord>>,
    ) -> Result<KeyWrite, Stop> {
        let write = check(&self.keys, sealer, change)?;
        let (Change::Insert(record) | Change::Update { record, .. }) = change;
        match &write.before {
            None => {
                let comes_along = matches!(org, Some(Change::Insert(org)) if org.id == record.org);
                if !comes_along && self.orgs.get(&record.org.to_bytes())?.is_none() {
                    return Err(CommitError::Missing.into());
                }
            }
            Some(before) if before.org != record.org || before.environment != record.environment => {
                return Err(CommitError::Missing.into());
            }
            Some(_) => {}
        }
        let digests: Vec<Digest> = record.secrets.iter().map(|secret| secret.digest).collect();
        for digest in &digests {
            if self.digests.get(digest.as_bytes())?.is_some_and(|owner| *owner.value() != write.place) {
                return Err(CommitError::Exists.into());
            }
        }
        let before = write.before.iter().flat_map(|before| &before.secrets).map(|secret| secret.digest);
        let dropped = before.filter(|digest| !digests.contains(digest)).collect();
        Ok(KeyWrite { org: record.org, digests, dropped, record: write })
    }

    fn write_key(&mut self, key: &KeyWrite) -> Result<(), Stop> {
        let id = key.record.place;
        self.keys.insert(&id, &key.record.sealed[..])?;
        self.org_keys.insert((&key.org.to_bytes(), &id), ())?;
        for digest in &key.dropped {
            self.digests.remove(digest.as_bytes())?;
        }
        for digest in &key.digests {
            self.digests.insert(digest.as_bytes(), &id)?;
        }
        Ok(())
    }

    fn next_event(&self) -> Result<Seq, Stop> {
        let last = self.meta.get(LAST_EVENT)?;
        let last = last.and_then(|last| number(last.value()));
        last.and_then(|last| last.checked_add(1)).ok_or_else(|| Stop::unreadable(NO_EVENT_NUMBER))
    }

    fn write_event(&mut self, event: Seq, subjects: &[Subject]) -> Result<(), Stop> {
        let number = event.to_be_bytes();
        self.meta.insert(LAST_EVENT, &number[..])?;
        self.events.insert(&number, &encode(subjects)[..])?;
        if let Some(oldest) = event.checked_sub(EVENTS_KEPT) {
            self.events.remove(&oldest.to_be_bytes())?;
        }
        Ok(())
    }
}

const NO_EVENT_NUMBER: &str = "the number of the last event does not read";

/// A change that passed its own checks, ready to be written.
struct Write<T> {
    place: [u8; 16],
    before: Option<T>,
    sealed: Vec<u8>,
}

/// The same for a key, with what follows for the indexes.
struct KeyWrite {
    record: Write<KeyRecord>,
    org: OrgId,
    digests: Vec<Digest>,
    /// Digests of the key that open it no longer.
    dropped: Vec<Digest>,
}

/// What holds for every kind of record: an inserted one is new, an updated one is there and as its caller saw
/// it.
fn check<T: Stored>(
    table: &impl ReadableTable<Id, Bytes>,
    sealer: &Sealer,
    change: &Change<T>,
) -> Result<Write<T>, Stop> {
    let (record, rev, before) = match change {
        Change::Insert(record) => {
            if table.get(&record.place())?.is_some() {
                return Err(CommitError::Exists.into());
            }
            (record, 1, None)
        }
        Change::Update { rev, record } => {
            let place = record.place();
            let bytes = table.get(&place)?.ok_or(CommitError::Missing)?;
            let stored: Versioned<T> = sealer.open_at(&place, bytes.value()).map_err(Stop::unreadable)?;
            if stored.rev != *rev {
                return Err(CommitError::Conflict.into());
            }
            let next = rev.checked_add(1).ok_or_else(|| Stop::unreadable("the record has no next number"))?;
            (record, next, Some(stored.record))
        }
    };
    let sealed = sealer.seal(rev, record).map_err(Stop::unreadable)?;
    Ok(Write { place: record.place(), before, sealed })
}

/// Everything a read sees: one moment.
struct Snapshot {
    file: ReadTransaction,
    sealer: Arc<Sealer>,
}

impl Snapshot {
    /// `None` only where the index has no such digest. What the index promises must be there.
    fn lookup(&self, digest: &Digest) -> Result<Option<Found>, StoreFault> {
        let Some(id) = self.file.open_table(DIGESTS)?.get(digest.as_bytes())?.map(|id| *id.value()) else {
            return Ok(None);
        };
        let key = self.promised::<KeyRecord>(KEYS, &id)?.record;
        if !key.secrets.iter().any(|secret| secret.digest == *digest) {
            return Err(StoreFault::failed("a digest leads to a key that does not have it"));
        }
        let org = self.promised::<OrgRecord>(ORGS, &key.org.to_bytes())?.record;
        Ok(Some(Found { key, org }))
    }

    fn incarnation(&self) -> Result<String, StoreFault> {
        let bytes = self.file.open_table(META)?.get(INCARNATION)?.map(|bytes| bytes.value().to_vec());
        let bytes = bytes.ok_or_else(|| StoreFault::failed("the file does not say which store it is"))?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn record<T: Stored>(
        &self,
        table: TableDefinition<'_, Id, Bytes>,
        place: &[u8; 16],
    ) -> Result<Option<Versioned<T>>, StoreFault> {
        let table = self.file.open_table(table)?;
        let bytes = table.get(place)?;
        bytes.map(|bytes| self.unseal(place, bytes.value())).transpose()
    }

    /// A record that another one names.
    fn promised<T: Stored>(
        &self,
        table: TableDefinition<'_, Id, Bytes>,
        place: &[u8; 16],
    ) -> Result<Versioned<T>, StoreFault> {
        self.record(table, place)?
            .ok_or_else(|| StoreFault::failed("a record that another one names is missing"))
    }

    fn newest<T: Stored>(
        &self,
        table: TableDefinition<'_, Id, Bytes>,
        after: Option<[u8; 16]>,
        limit: usize,
    ) -> Result<Vec<Versioned<T>>, StoreFault> {
        let table = self.file.open_table(table)?;
        let end = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut records = Vec::new();
        for entry in table.range::<&[u8; 16]>((Bound::Unbounded, end))?.rev().take(limit) {
            let (place, bytes) = entry?;
            records.push(self.unseal(place.value(), bytes.value())?);
        }
        Ok(records)
    }

    fn keys_of(
        &self,
        org: OrgId,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<Versioned<KeyRecord>>, StoreFault> {
        let table = self.file.open_table(ORG_KEYS)?;
        let (org_id, end) = (org.to_bytes(), after.map_or([u8::MAX; 16], KeyId::to_bytes));
        let end =
            if after.is_some() { Bound::Excluded((&org_id, &end)) } else { Bound::Included((&org_id, &end)) };
        let range = table.range::<(&[u8; 16], &[u8; 16])>((Bound::Included((&org_id, &[0; 16])), end))?;
        let mut keys = Vec::new();
        for entry in range.rev().take(limit) {
            let (place, _) = entry?;
            let key = self.promised::<KeyRecord>(KEYS, place.value().1)?;
            if key.record.org != org {
                return Err(StoreFault::failed("an organisation is said to own a key of another"));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    fn unseal<T: Stored>(&self, place: &[u8; 16], bytes: &[u8]) -> Result<Versioned<T>, StoreFault> {
        self.sealer.open_at(place, bytes).map_err(StoreFault::failed)
    }
}

/// Opens the file and reads the number of its last event.
fn open_file(path: &Path) -> Result<(Database, Seq), OpenError> {
    let file = claim(path)?;
    let unreadable = |source: io::Error| OpenError::Unreadable { path: path.to_owned(), source };
    let backend = |file: &File| FileBackend::new(file.try_clone()?).map_err(io::Error::other);
    if file.metadata().map_err(unreadable)?.len() > 0 {
        let rehearsal = backend(&file).and_then(Rehearsal::new).map_err(unreadable)?;
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        let trial = builder.create_with_backend(rehearsal).map_err(|error| refuse(path, error))?;
        survey(path, &trial)?;
    }
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend(&file).map_err(unreadable)?)
        .map_err(|error| refuse(path, error))?;
    if let Some(event) = survey(path, &database)? {
        return Ok((database, event));
    }
    lay_out(&database).map_err(|fault| unreadable(io::Error::other(fault)))?;
    // The name of the new file must survive a crash as well as its content.
    File::open(parent(path)).and_then(|directory| directory.sync_all()).map_err(unreadable)?;
    Ok((database, 0))
}

/// The file itself, ours alone from its first moment, whatever the umask.
fn claim(path: &Path) -> Result<File, OpenError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound if !parent(path).is_dir() => OpenError::NoDirectory { path: path.to_owned() },
        _ => OpenError::Unreadable { path: path.to_owned(), source },
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_file() {
        Err(OpenError::NotAStore { path: path.to_owned() })
    } else if mode & 0o077 != 0 {
        Err(OpenError::Exposed { path: path.to_owned(), mode })
    } else {
        Ok(file)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn refuse(path: &Path, error: redb::DatabaseError) -> OpenError {
    use redb::{DatabaseError, StorageError};
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::InUse { path },
        DatabaseError::UpgradeRequired(_) => OpenError::NotAStore { path },
        DatabaseError::Storage(StorageError::Io(source)) => match source.kind() {
            io::ErrorKind::InvalidData => OpenError::NotAStore { path },
            io::ErrorKind::UnexpectedEof => OpenError::Damaged { path, cause: "it is cut short".to_owned() },
            _ => OpenError::Unreadable { path, source },
        },
        damaged => OpenError::Damaged { path, cause: damaged.to_string() },
    }
}

/// Reads what the store says of itself: the number of its last event, or `None` where nothing was stored yet.
fn survey(path: &Path, database: &Database) -> Result<Option<Seq>, OpenError> {
    let inspect = || {
        let file = database.begin_read()?;
        if file.list_tables()?.next().is_none() && file.list_multimap_tables()?.next().is_none() {
            return Ok(Content::Nothing);
        }
        let meta = match file.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::Storage(error)) => return Err(error.into()),
            Err(_) => return Ok(Content::Foreign),
        };
        let value = |name| Ok::<_, redb::Error>(meta.get(name)?.and_then(|value| number(value.value())));
        match value(SCHEMA_NUMBER)? {
            None => return Ok(Content::Foreign),
            Some(SCHEMA) => {}
            Some(schema) => return Ok(Content::OtherSchema(schema)),
        }
        file.open_table(KEYS)?;
        file.open_table(DIGESTS)?;
        file.open_table(ORGS)?;
        file.open_table(ORG_KEYS)?;
        file.open_table(EVENTS)?;
        Ok(value(LAST_EVENT)?.map_or(Content::NoEventNumber, Content::Store))
    };
    let path = path.to_owned();
    match inspect() {
        Ok(Content::Store(event)) => Ok(Some(event)),
        Ok(Content::Nothing) => Ok(None),
        Ok(Content::Foreign) => Err(OpenError::NotAStore { path }),
        Ok(Content::OtherSchema(found)) => Err(OpenError::NewerSchema { path, found }),
        Ok(Content::NoEventNumber) => Err(OpenError::Damaged { path, cause: NO_EVENT_NUMBER.to_owned() }),
        Err(error) => Err(OpenError::Damaged { path, cause: redb::Error::to_string(&error) }),
    }
}

/// What a file holds that redb can open.
enum Content {
    Store(Seq),
    Nothing,
    /// Somebody else's tables.
    Foreign,
    /// Newer than ours: there is none older.
    OtherSchema(u64),
    NoEventNumber,
}

/// Makes the tables of a new store.
fn lay_out(database: &Database) -> Result<(), StoreFault> {
    let mut incarnation = [0; 16];
    getrandom::fill(&mut incarnation).map_err(StoreFault::failed)?;
    let transaction = begin_write(database)?;
    {
        let mut tables = Tables::open(&transaction)?;
        tables.meta.insert(SCHEMA_NUMBER, &SCHEMA.to_be_bytes()[..])?;
        tables.meta.insert(INCARNATION, &incarnation[..])?;
        tables.meta.insert(LAST_EVENT, &0_u64.to_be_bytes()[..])?;
    }
    Ok(transaction.commit()?)
}

fn number(bytes: &[u8]) -> Option<u64> {
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

faults!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::id::IdSource;
    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A disk that stops taking writes when it is told to.
    #[derive(Debug, Default)]
    struct Disk {
        content: InMemoryBackend,
        full: Arc<AtomicBool>,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.content.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.content.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.content.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.content.write(offset, data)
        }
    }

    #[derive(Default)]
    struct Told(Mutex<Vec<Seq>>);

    impl EventSink for Told {
        fn apply(&self, seq: Seq, _: &[Subject]) {
            self.0.lock().unwrap().push(seq);
        }
        fn reset(&self, _: Seq) {}
    }

    #[tokio::test]
    async fn a_commit_that_fails_is_a_fault_for_its_caller_and_no_event() {
        let full = Arc::new(AtomicBool::new(false));
        let disk = Disk { content: InMemoryBackend::new(), full: Arc::clone(&full) };
        let database = Builder::new().create_with_backend(disk).unwrap();
        lay_out(&database).unwrap();
        let store = Embedded::start("memory".into(), database, 0, Sealer::default()).unwrap();
        let told = Arc::new(Told::default());
        store.subscribe(told.clone());
        let mutation = || Mutation {
            subjects: vec![Subject::Digest(Digest::from_bytes([1; 32]))],
            ..Mutation::default()
        };
        assert_eq!(store.commit(mutation()).await, Ok(Committed { event: Some(1) }));
        full.store(true, Ordering::SeqCst);
        assert!(matches!(store.commit(mutation()).await, Err(CommitError::Fault(_))));
        assert_eq!(*told.0.lock().unwrap(), [1]);
        full.store(false, Ordering::SeqCst);
        let again = store.commit(mutation()).await;
        assert!(matches!(again, Err(CommitError::Fault(_))), "redb writes no more until it is opened anew");
    }

    #[test]
    fn only_the_newest_events_are_kept() {
        let database = Builder::new().create_with_backend(InMemoryBackend::new()).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut tables = Tables::open(&transaction).unwrap();
        for event in 1..=EVENTS_KEPT + 2 {
            assert!(tables.write_event(event, &[]).is_ok());
        }
        let kept: Vec<u64> = [tables.events.first(), tables.events.last()]
            .map(|end| u64::from_be_bytes(*end.unwrap().unwrap().0.value()))
            .to_vec();
        assert_eq!(kept, [3, EVENTS_KEPT + 2]);
    }

    #[test]
    fn subjects_are_written_as_documented() {
        let org = OrgId::draw(&mut IdSource::seeded(1), UnixMillis(1));
        let bytes = encode(&[Subject::Digest(Digest::from_bytes([7; 32])), Subject::Org(org)]);
        assert_eq!(bytes, [&[1][..], &[7; 32], &[2], &org.to_bytes()].concat());
    }
}
