//! The file while the store is open, and how it is opened again after it has failed.
//!
//! After an error of the disk redb refuses everything until the file is opened anew. So the writer closes it and opens it
//! again, for as long as it takes. A change that failed is then there or not: what a gateway has cached is looked up again if it is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use redb::{Database, ReadTransaction, ReadableDatabase};

use crate::store::StoreFault;

/// The database. Reads hold the lock to begin a transaction, the writer for a whole transaction. Closing waits for them;
/// then the file is free, even if reads are still running.
#[derive(Debug)]
pub(super) struct SharedFile {
    state: RwLock<State>,
    is_full: AtomicBool,
}

#[derive(Debug)]
enum State {
    Open(Database),
    /// It is being opened again. The fault says why.
    Failed(StoreFault),
    Closed,
}

impl SharedFile {
    pub(super) const fn new(database: Database) -> Self {
        Self { state: RwLock::new(State::Open(database)), is_full: AtomicBool::new(false) }
    }

    pub(super) fn snapshot(&self) -> Result<ReadTransaction, StoreFault> {
        self.with(|database| Ok(database.begin_read()?))
    }

    /// Nothing that writes can panic half-way, so a poisoned lock can be used.
    pub(super) fn with<T>(
        &self,
        act: impl FnOnce(&Database) -> Result<T, StoreFault>,
    ) -> Result<T, StoreFault> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Open(database) => act(database),
            State::Failed(fault) => Err(fault.clone()),
            State::Closed => Err(StoreFault::failed("the store is closed")),
        }
    }

    /// Why it is not open at the moment; `None` if it is.
    pub(super) fn fault(&self) -> Option<StoreFault> {
        self.with(|_| Ok(())).err()
    }

    /// Closes it until it is opened again.
    pub(super) fn fail(&self, fault: StoreFault) {
        self.replace(State::Failed(fault));
    }

    pub(super) fn reopened(&self, database: Database) {
        self.replace(State::Open(database));
    }

    /// Puts another database in the place of the one that is open, and returns that.
    pub(super) fn exchange(&self, database: Database) -> Result<Database, StoreFault> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            State::Open(there) => Ok(std::mem::replace(there, database)),
            State::Failed(fault) => Err(fault.clone()),
            State::Closed => Err(StoreFault::failed("the store is closed")),
        }
    }

    pub(super) fn close(&self) {
        self.replace(State::Closed);
    }

    /// Whether its disk is full, so that only changes are written that take rights away.
    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    pub(super) fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    fn replace(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }
}
