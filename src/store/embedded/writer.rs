//! The one thread that changes the file. It takes all waiting orders and makes them durable together.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use redb::Database;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::exchange::Compaction;
use super::file::SharedFile;
use super::mending::Mender;
use super::tables::{Tables, begin_write};
use super::time::FileTime;
use super::{Published, lock};
use crate::store::events::{Seq, Subject};
use crate::store::{CommitError, Committed, Mutation, StoreFault};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::record::Sealer;

/// Orders per transaction. It bounds how long the first of them waits for the others.
pub(super) const BATCH: usize = 256;
/// With a full disk: how often the writer looks whether it still is, and for the next order.
const LOOK: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(2);

pub(super) type Outcome<T> = Result<T, CommitError>;

/// A change of the tables, on its way to the writer.
pub(super) trait Order: Send {
    /// After an error nothing of the whole batch may be kept.
    fn carry_out(&mut self, tables: &mut Tables<'_>, sealer: &Sealer) -> Result<Done, StoreFault>;

    /// Whether it is carried out although the disk is full.
    fn takes_away(&self) -> bool {
        false
    }

    /// Its event, if it became one.
    fn event(&self) -> Option<(Seq, &[Subject])> {
        None
    }

    /// Tells the outcome to the caller, which may have gone away; `failed` if the batch was not made durable.
    fn answer(self: Box<Self>, failed: Option<&StoreFault>);
}

/// Whether an order has written anything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Something,
    Nothing,
}

pub(super) struct Writer {
    pub(super) file: Arc<SharedFile>,
    pub(super) sealer: Arc<Sealer>,
    pub(super) published: Arc<std::sync::Mutex<Published>>,
    pub(super) waiting: mpsc::Receiver<Box<dyn Order>>,
    pub(super) clock: Clock,
    pub(super) time: FileTime,
    pub(super) mender: Mender,
    pub(super) compaction: Arc<Compaction>,
}

impl Writer {
    pub(super) fn run(mut self) {
        self.mender.keep_reserve();
        let mut batch = Vec::with_capacity(BATCH);
        while self.receive(&mut batch) {
            self.refuse_what_can_wait(&mut batch);
            if batch.is_empty() {
                continue;
            }
            let failed = self.file.with(|database| self.write(database, &mut batch)).err();
            match &failed {
                None => {
                    self.publish(&batch, self.clock.mono());
                    self.mender.works();
                }
                // Before the callers are told, so that what they do next finds a file that is being opened again.
                Some(fault) => {
                    self.compaction.break_off(fault);
                    self.mender.give_up_file(fault);
                }
            }
            for order in batch.drain(..) {
                order.answer(failed.as_ref());
            }
            if failed.is_some() {
                self.mend();
            } else {
                self.change_over();
            }
        }
    }

    /// The next orders. With a full disk it also comes back without any, after a while; false at the end.
    fn receive(&mut self, batch: &mut Vec<Box<dyn Order>>) -> bool {
        if !self.file.is_full() {
            return self.waiting.blocking_recv_many(batch, BATCH) > 0;
        }
        self.mender.keep_reserve();
        let until = self.clock.mono() + LOOK;
        while self.clock.mono() < until && batch.len() < BATCH {
            match self.waiting.try_recv() {
                Ok(order) => batch.push(order),
                Err(TryRecvError::Disconnected) => return !batch.is_empty(),
                Err(TryRecvError::Empty) if batch.is_empty() => thread::sleep(POLL),
                Err(TryRecvError::Empty) => break,
            }
        }
        true
    }

    /// Opens the file again, for as long as that takes.
    pub(super) fn mend(&mut self) {
        while let Some(fault) = self.mender.fault() {
            if !self.refuse_for(self.mender.pause, &fault) {
                return;
            }
            self.mender.try_again();
        }
    }

    /// Refuses whatever comes within this time; false if nothing comes any more.
    fn refuse_for(&mut self, time: Duration, fault: &StoreFault) -> bool {
        let until = self.clock.mono() + time;
        loop {
            match self.waiting.try_recv() {
                Ok(order) => order.answer(Some(fault)),
                Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) if self.clock.mono() >= until => return true,
                Err(TryRecvError::Empty) => thread::sleep(POLL),
            }
        }
    }

    /// With a full disk: refuses orders that take nothing away.
    fn refuse_what_can_wait(&self, batch: &mut Vec<Box<dyn Order>>) {
        if !self.file.is_full() {
            return;
        }
        let fault = self.mender.full();
        let (first, others): (Vec<_>, Vec<_>) = batch.drain(..).partition(|order| order.takes_away());
        *batch = first;
        for order in others {
            order.answer(Some(&fault));
        }
    }

    /// Carries out the whole batch in one transaction. After an error it is unknown whether any of it happened.
    fn write(&self, database: &Database, batch: &mut [Box<dyn Order>]) -> Result<(), StoreFault> {
        let transaction = begin_write(database)?;
        let (mut done, notes) = (Done::Nothing, self.compaction.notes());
        {
            let time = self.time.now();
            let mut tables = Tables::noting(&transaction, &notes)?.at(self.clock.now().wall, time);
            for order in batch {
                if order.carry_out(&mut tables, &self.sealer)? == Done::Something {
                    done = Done::Something;
                }
            }
            if done == Done::Something {
                tables.note_time(time)?;
            }
        }
        match done {
            Done::Something => {
                transaction.commit()?;
                self.compaction.note(&notes);
            }
            Done::Nothing => transaction.abort()?,
        }
        Ok(())
    }

    fn publish(&self, batch: &[Box<dyn Order>], committed: Instant) {
        let mut published = lock(&self.published);
        for (event, subjects) in batch.iter().filter_map(|order| order.event()) {
            published.event = event;
            for sink in &published.sinks {
                sink.apply(event, subjects);
            }
            let lag = self.clock.mono().saturating_duration_since(committed);
            for sink in &published.sinks {
                sink.note_lag(lag);
            }
        }
    }
}

/// A mutation, and its caller.
pub(super) struct Commit {
    pub(super) mutation: Mutation,
    pub(super) outcome: Option<Outcome<Committed>>,
    pub(super) answer: oneshot::Sender<Outcome<Committed>>,
}

impl Order for Commit {
    /// What takes nothing away has no subjects.
    fn takes_away(&self) -> bool {
        !self.mutation.subjects.is_empty()
    }

    fn carry_out(&mut self, tables: &mut Tables<'_>, sealer: &Sealer) -> Result<Done, StoreFault> {
        let (outcome, done) = settle(tables.apply(sealer, &self.mutation))?;
        self.outcome = Some(outcome);
        Ok(done)
    }

    fn event(&self) -> Option<(Seq, &[Subject])> {
        match self.outcome {
            Some(Ok(Committed { event: Some(event) })) => Some((event, &self.mutation.subjects)),
            _ => None,
        }
    }

    fn answer(self: Box<Self>, failed: Option<&StoreFault>) {
        tell(self.answer, self.outcome, failed);
    }
}

/// An order that is no event, and its caller.
pub(super) struct Chore<T, F> {
    pub(super) act: Option<F>,
    pub(super) outcome: Option<Outcome<T>>,
    pub(super) answer: oneshot::Sender<Outcome<T>>,
}

impl<T, F> Order for Chore<T, F>
where
    T: Send,
    F: FnOnce(&mut Tables<'_>, &Sealer) -> Result<T, Stop> + Send,
{
    fn carry_out(&mut self, tables: &mut Tables<'_>, sealer: &Sealer) -> Result<Done, StoreFault> {
        let Some(act) = self.act.take() else { return Ok(Done::Nothing) };
        let (outcome, done) = settle(act(tables, sealer))?;
        self.outcome = Some(outcome);
        Ok(done)
    }

    fn answer(self: Box<Self>, failed: Option<&StoreFault>) {
        tell(self.answer, self.outcome, failed);
    }
}

/// Looks whether the file still works, after a read that failed.
pub(super) struct Look;

impl Order for Look {
    fn carry_out(&mut self, _: &mut Tables<'_>, _: &Sealer) -> Result<Done, StoreFault> {
        Ok(Done::Nothing)
    }

    fn takes_away(&self) -> bool {
        true
    }

    fn answer(self: Box<Self>, _: Option<&StoreFault>) {}
}

fn settle<T>(done: Result<T, Stop>) -> Result<(Outcome<T>, Done), StoreFault> {
    match done {
        Ok(done) => Ok((Ok(done), Done::Something)),
        Err(Stop::Order(refused)) => Ok((Err(refused), Done::Nothing)),
        Err(Stop::Batch(fault)) => Err(fault),
    }
}

fn tell<T>(answer: oneshot::Sender<Outcome<T>>, outcome: Option<Outcome<T>>, failed: Option<&StoreFault>) {
    let outcome = match (outcome, failed) {
        (Some(outcome), None) => outcome,
        (_, failed) => {
            let fault =
                failed.cloned().unwrap_or_else(|| StoreFault::failed("the order was not carried out"));
            Err(fault.into())
        }
    };
    // The caller may have gone away.
    let _ = answer.send(outcome);
}

/// Why an order was not carried out, and which orders that concerns.
pub(super) enum Stop {
    /// This order alone: it failed a check, and nothing of it was written.
    Order(CommitError),
    /// All orders of the transaction: the file failed, at an unknown point.
    Batch(StoreFault),
}

impl Stop {
    /// A record that this order needs cannot be read. Other orders are not affected.
    pub(super) fn unreadable(cause: impl fmt::Display) -> Self {
        Self::Order(StoreFault::failed(cause).into())
    }
}

impl From<StoreFault> for Stop {
    fn from(fault: StoreFault) -> Self {
        Self::Order(fault.into())
    }
}

impl From<CommitError> for Stop {
    fn from(refused: CommitError) -> Self {
        Self::Order(refused)
    }
}

impl From<redb::StorageError> for Stop {
    fn from(error: redb::StorageError) -> Self {
        Self::Batch(error.into())
    }
}

/// For reads, which share no transaction.
impl From<Stop> for StoreFault {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Batch(fault) | Stop::Order(CommitError::Fault(fault)) => fault,
            Stop::Order(refused) => Self::failed(refused),
        }
    }
}
