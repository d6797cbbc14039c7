//! The embedded back end: redb, one file, for one node.
//!
//! Every change of the file is an order to the one writer thread. It takes all waiting orders and makes them durable
//! in one transaction, so that many callers share one sync. Then it tells the sinks, and after them the callers.
//! Reads run beside it, each over one snapshot.
//!
//! The tables. Ids are ordered by age, and so are the tables with ids as keys:
//!
//! | table | key | value |
//! |--|--|--|
//! | `meta` | `schema`, `incarnation`, `event` | number, 16 random bytes, number of the last event |
//! | | `indexed` | the last event when the last two tables were right: an older release does not keep them |
//! | | `format` | the [format of records](crate::vocabulary::key::record) that opening the file takes |
//! | | `prefixes` | the [list](crate::vocabulary::key::Prefixes) of the keys' prefixes |
//! | | `time` | the newest time by the store's clock |
//! | | `gone_day` | until when the day lasts in which keys went, how many may still go (8 bytes big-endian) |
//! | | `peppers` | text: which [pepper](crate::vocabulary::key::pepper) belongs to the file |
//! | `keys` | key id | sealed [`KeyRecord`] |
//! | `digests` | digest of a secret | key id |
//! | `orgs` | organisation id | sealed [`OrgRecord`] |
//! | `org_keys` | organisation id, key id | nothing |
//! | `emails` | index of an e-mail address | organisation id |
//! | `events` | event number | its subjects, the newest 100,000 events |
//! | `audit` | trail, number of the entry | its MAC (32 bytes), its text |
//! | `audit_ends` | trail | checkpoint and head, each a number and a MAC |
//! | `answers` | index of a request | when it ends, the sealed answer |
//! | `answer_ends` | when it ends, index of a request | nothing |
//! | `usage` | key id | text of [`Usage`](crate::vocabulary::key::usage::Usage) |
//! | `news` | organisation id | when they are due, what is to be sent |
//! | `news_due` | when they are due, organisation id | nothing |
//! | `quotas` | name of a quota | when its window ends, how many there were (4 bytes big-endian) |
//! | `quota_ends` | when it ends, name of a quota | nothing |
//! | `environment_keys` | organisation id, 0 for live and 1 for test, key id | nothing |
//! | `live_keys` | organisation id, key id | until when it is live, the key that made it; no revoked keys |
//! | `trimmed` | trail | until when its day lasts, how many entries may still be trimmed (8 bytes big-endian) |
//! | `gone` | id of a key, or digest of a secret, that must not come back | of an id the key that made it (16 bytes); half of a [proof](crate::vocabulary::key::proof) |
//!
//! Numbers and times are eight bytes big-endian.

mod again;
mod answers;
mod change_over;
mod compaction;
#[cfg(test)]
mod compaction_faults;
#[cfg(test)]
mod compaction_tests;
mod copied;
#[cfg(test)]
mod disk_faults;
mod exchange;
mod file;
mod folder;
mod graves;
mod handed;
mod indexes;
mod keeper;
mod mending;
mod mutation;
mod noted;
mod open;
mod outbox;
#[cfg(test)]
mod power_cuts;
mod prefixes;
mod quotas;
mod reads;
mod rehearsal;
mod reseal;
mod reserve;
mod secrets;
mod start;
mod tables;
mod time;
mod trails;
mod usage;
mod whole;
mod writer;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use redb::{Database, ReadableDatabase};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::exchange::Compaction;
use self::file::SharedFile;
use self::folder::{Folder, OnDisk};
pub use self::handed::{FileMark, as_left, wait_until_let_go};
use self::mending::{Again, Mender};
pub use self::open::{OpenError, Verified, inspect, verify};
use self::reads::{Snapshot, answer};
use self::tables::{KEYS, ORGS, Tables};
use self::time::FileTime;
pub use self::whole::Filling;
use self::writer::{Chore, Commit, Look, Order, Outcome, Stop, Writer};
use super::answers::Answers;
use super::events::{EventSink, Seq};
use super::keeper::Keeper;
use super::outbox::Outbox;
use super::quotas::Quotas;
use super::trails::Trails;
use super::unreadable::Listed;
use super::usage::Usage;
use super::{
    Awaited, CommitError, Committed, KeysOf, Lookup, Mutation, Propagation, Store, StoreFault, StoreFuture,
};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Sealer, Versioned};
use crate::vocabulary::key::{Digest, Prefixes};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub path: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self { path: PathBuf::from("keygate.redb") }
    }
}

/// How much of its files the store keeps in memory at the most, in bytes.
pub const HELD_BYTES: usize = open::HELD_BYTES;

/// The open store. Dropping it waits for the accepted orders and releases the file.
pub struct Embedded {
    path: PathBuf,
    file: Arc<SharedFile>,
    sealer: Arc<Sealer>,
    readers: Arc<Semaphore>,
    published: Arc<Mutex<Published>>,
    prefixes: watch::Sender<Option<Prefixes>>,
    time: FileTime,
    clock: Clock,
    compaction: Arc<Compaction>,
    /// Whether it is only read, and nothing of it is kept.
    is_read_only: bool,
    /// `None` only while it is being dropped.
    orders: Option<mpsc::Sender<Box<dyn Order>>>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    fn start(
        path: PathBuf,
        (database, event): (Database, Seq),
        sealer: Arc<Sealer>,
        again: Option<Again>,
        clock: Clock,
    ) -> io::Result<Self> {
        let prefixes = watch::Sender::new(prefixes::stored(&database).map_err(io::Error::other)?);
        indexes::complete(&database, &sealer).map_err(io::Error::other)?;
        let time = FileTime::of(&database, clock.clone()).map_err(io::Error::other)?;
        let file = database.begin_read().map_err(io::Error::other)?;
        let incarnation = Snapshot { file, sealer: Arc::clone(&sealer) }.incarnation();
        let incarnation = incarnation.map_err(io::Error::other)?;
        let file = Arc::new(SharedFile::new(database));
        let published = Arc::new(Mutex::new(Published { event, sinks: Vec::new() }));
        let (orders, waiting) = mpsc::channel(QUEUE);
        let is_read_only = again.is_none();
        let on_disk: Arc<dyn Folder> = Arc::new(OnDisk);
        let folder = again.as_ref().map_or(on_disk, |again| Arc::clone(&again.folder));
        let compaction = Arc::new(Compaction::new(folder));
        let mender = Mender {
            path: path.clone(),
            file: Arc::clone(&file),
            incarnation,
            published: Arc::clone(&published),
            prefixes: prefixes.clone(),
            clock: clock.clone(),
            again,
            pause: Duration::ZERO,
        };
        let writer = Writer {
            file: Arc::clone(&file),
            sealer: Arc::clone(&sealer),
            published: Arc::clone(&published),
            waiting,
            clock: clock.clone(),
            time: time.clone(),
            mender,
            compaction: Arc::clone(&compaction),
        };
        let writer = thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer.run())?;
        let readers = Arc::new(Semaphore::new(READERS));
        let (orders, writer) = (Some(orders), Some(writer));
        Ok(Self {
            path,
            file,
            sealer,
            readers,
            published,
            prefixes,
            time,
            clock,
            compaction,
            is_read_only,
            orders,
            writer,
        })
    }

    /// Runs `read` over a snapshot, on a thread that may wait for the disk.
    ///
    /// Most reads find their pages in memory and take less time than the hand-over. But a read of the disk can take
    /// as long as its time-out, and the control runtime has one thread. The read is a cache miss: 20 µs more are
    /// acceptable.
    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, StoreFault> + Send + 'static,
    ) -> StoreFuture<'_, Result<T, StoreFault>> {
        let (file, sealer) = (Arc::clone(&self.file), Arc::clone(&self.sealer));
        let readers = Arc::clone(&self.readers);
        Box::pin(async move {
            // The permit belongs to the read, not to its caller: a disk that hangs blocks this many threads and no
            // more.
            let permit = readers.acquire_owned().await.map_err(StoreFault::failed)?;
            let task = tokio::task::spawn_blocking(move || {
                let _held = permit;
                read(&Snapshot { file: file.snapshot()?, sealer })
            });
            // The runtime has ended, or redb panicked over a damaged page. The text of the panic is not repeated: it
            // may contain data of the file.
            let read = task.await.unwrap_or_else(|_| Err(StoreFault::failed("a read was broken off")));
            if read.is_err() {
                self.look();
            }
            read
        })
    }

    /// Has the writer look whether the file has failed: to a read the disk's error and a bad record are the same.
    fn look(&self) {
        if let Some(orders) = self.orders.as_ref().filter(|_| self.file.fault().is_none()) {
            // The writer finds it with any other order, too.
            let _ = orders.try_send(Box::new(Look));
        }
    }

    /// Sends the writer an order that is no event. It shares a transaction with other orders.
    fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Tables<'_>, &Sealer) -> Result<T, Stop> + Send + 'static,
    ) -> StoreFuture<'_, Result<T, StoreFault>> {
        Box::pin(async move {
            let order = |answer| Box::new(Chore { act: Some(act), outcome: None, answer }) as Box<dyn Order>;
            self.order(order).await.map_err(|refused| match refused {
                CommitError::Fault(fault) => fault,
                refused => StoreFault::failed(refused),
            })
        })
    }

    /// The first poll puts the order into the writer's queue, unless that is full. From then on it is carried out,
    /// even if the caller goes away.
    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Outcome<T>>) -> Box<dyn Order>,
    ) -> Outcome<T> {
        let stopped = || StoreFault::failed("the store's writer has stopped");
        let (answer, outcome) = oneshot::channel();
        let orders = self.orders.as_ref().ok_or_else(stopped)?;
        orders.send(order(answer)).await.map_err(|_| stopped())?;
        outcome.await.map_err(|_| stopped())?
    }
}

impl Store for Embedded {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        answer(self.read(move |snapshot| snapshot.lookup(&[digest])))
    }

    fn lookup_secret(&self, fingerprint: Digest) -> StoreFuture<'_, Lookup> {
        answer(self.read(move |snapshot| snapshot.lookup(&snapshot.sealer.peppers().digests(&fingerprint))))
    }

    fn spared(&self) -> Option<StoreFault> {
        None
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        self.read(move |snapshot| snapshot.record(KEYS, &id.to_bytes()))
    }

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        self.read(move |snapshot| snapshot.record(ORGS, &id.to_bytes()))
    }

    fn list_keys(
        &self,
        of: KeysOf,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<KeyRecord>>, StoreFault>> {
        self.read(move |snapshot| match of {
            KeysOf::Environment(org, environment) => snapshot.keys_in(org, environment, after, limit),
            KeysOf::Org(org) => snapshot.keys_of(org, after, limit),
            KeysOf::All => snapshot.newest(KEYS, after.map(KeyId::to_bytes), limit),
        })
    }

    fn list_orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<OrgRecord>>, StoreFault>> {
        self.read(move |snapshot| snapshot.newest(ORGS, after.map(OrgId::to_bytes), limit))
    }

    /// The first poll puts it into the writer's queue, unless that is full. From then on it is carried out, even if
    /// the caller goes away.
    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        Box::pin(self.order(move |answer| Box::new(Commit { mutation, outcome: None, answer })))
    }

    /// There is one gateway, and it applies an event before the caller is told.
    fn propagation(
        &self,
        event: Seq,
        _: Duration,
        _: Awaited,
    ) -> StoreFuture<'_, Result<Propagation, StoreFault>> {
        Box::pin(async move { Ok(Propagation::at_the_only_gateway(event)) })
    }

    fn import(
        &self,
        keys: Vec<KeyRecord>,
    ) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>> {
        Box::pin(async move {
            let (mut keys, mut outcomes) = (keys.into_iter(), Vec::new());
            loop {
                let batch: Vec<KeyRecord> = keys.by_ref().take(IMPORTED_AT_ONCE).collect();
                if batch.is_empty() {
                    return Ok(outcomes);
                }
                outcomes.extend(self.write(move |tables, sealer| tables.import(sealer, batch)).await?);
            }
        })
    }

    /// The writer publishes under the same lock, so the sink gets every event after the number that it is told here.
    /// A sink must not subscribe another sink from within a call.
    fn subscribe(&self, sink: Arc<dyn EventSink>) {
        let mut published = lock(&self.published);
        sink.reset(published.event);
        // Between the file and its only gateway no event can be lost.
        sink.assure(None);
        published.sinks.push(sink);
    }

    fn keeper(&self) -> &dyn Keeper {
        self
    }

    fn trails(&self) -> &dyn Trails {
        self
    }

    fn answers(&self) -> &dyn Answers {
        self
    }

    fn usage(&self) -> &dyn Usage {
        self
    }

    fn outbox(&self) -> &dyn Outbox {
        self
    }

    fn quotas(&self) -> &dyn Quotas {
        self
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.compaction.close();
        // The writer ends when the last sender is gone and the queue is empty.
        drop(self.orders.take());
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has its own message.
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

/// The most reads at once, each on its own thread.
const READERS: usize = 64;
/// Orders in the writer's queue; further callers wait.
const QUEUE: usize = 1024;
/// Keys per order of an import: enough that a sync costs little for each, and few enough that a mutation does not
/// wait long.
const IMPORTED_AT_ONCE: usize = 4096;

/// The last published event, and its receivers.
struct Published {
    event: Seq,
    sinks: Vec<Arc<dyn EventSink>>,
}

/// A poisoned lock means that a sink panicked, which is a bug and has ended the writer. Nothing is committed any
/// more; a new sink still learns the last number.
fn lock(published: &Mutex<Published>) -> MutexGuard<'_, Published> {
    published.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::mutation::EVENTS_KEPT;
    use super::*;
    use crate::store::events::{Subject, encode};
    use crate::vocabulary::clock::UnixMillis;
    use crate::vocabulary::id::IdSource;
    use redb::Builder;
    use redb::ReadableTable;
    use redb::backends::InMemoryBackend;

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
