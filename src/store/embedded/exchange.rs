//! What the writer and the thread that copies the file know of each other: the rows that were changed meanwhile, and the new
//! file once it is ready.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::Database;

use super::folder::Folder;
use super::noted::{Notes, Row};
use crate::store::StoreFault;
use crate::store::compaction::NotCompacted;

/// Rows that may be noted between two steps; some 15 MB. If there are more, the file changes too fast.
const MOST_NOTED: usize = 131_072;

/// What the writer and the thread that copies know of each other.
#[derive(Debug)]
pub(super) struct Compaction {
    state: Mutex<State>,
    pub(super) folder: Arc<dyn Folder>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Running {
    /// The rows that were changed since they were last taken.
    rows: BTreeSet<Row>,
    /// Why the copy is of no use any more.
    broken: Option<NotCompacted>,
    ready: Option<Ready>,
}

impl Compaction {
    pub(super) fn new(folder: Arc<dyn Folder>) -> Self {
        Self { state: Mutex::default(), folder }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to note changes. Those of a transaction that is under way are not noted.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Begun, NotCompacted> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(NotCompacted::Closed);
        }
        if state.running.is_some() {
            return Err(NotCompacted::Runs);
        }
        state.running = Some(Running::default());
        drop(state);
        Ok(Begun(Arc::clone(self)))
    }

    /// Where the writer notes what its next transaction changes.
    pub(super) fn notes(&self) -> Notes {
        if self.lock().running.is_some() { Notes::begin() } else { Notes::default() }
    }

    /// The transaction was committed: everybody can read what is noted.
    pub(super) fn note(&self, notes: &Notes) {
        let rows = notes.take();
        if rows.is_empty() {
            return;
        }
        if let Some(running) = &mut self.lock().running {
            running.rows.extend(rows);
            if running.rows.len() > MOST_NOTED {
                running.break_off(NotCompacted::Overtaken);
            }
        }
    }

    /// The file has failed, and nobody knows what of the last transaction is there.
    pub(super) fn break_off(&self, fault: &StoreFault) {
        if let Some(running) = &mut self.lock().running {
            running.break_off(fault.clone().into());
        }
    }

    /// The store is being closed.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        if let Some(running) = &mut state.running {
            running.break_off(NotCompacted::Closed);
        }
    }

    /// The new file, if it is ready, and the rows that it lacks. To be called by the writer, between two transactions.
    pub(super) fn take_ready(&self) -> Option<(Ready, BTreeSet<Row>)> {
        let mut state = self.lock();
        let running = state.running.as_mut()?;
        let ready = running.ready.take()?;
        Some((ready, std::mem::take(&mut running.rows)))
    }

    pub(super) fn take_rows(&self) -> Result<BTreeSet<Row>, NotCompacted> {
        let mut state = self.lock();
        match &mut state.running {
            Some(Running { broken: Some(why), .. }) => Err(why.clone()),
            Some(running) => Ok(std::mem::take(&mut running.rows)),
            None => Err(NotCompacted::Closed),
        }
    }

    /// Why there was no change-over.
    pub(super) fn broken(&self) -> NotCompacted {
        let state = self.lock();
        let broken = state.running.as_ref().and_then(|running| running.broken.clone());
        broken.unwrap_or(NotCompacted::Closed)
    }

    pub(super) fn offer(&self, ready: Ready) -> Result<(), NotCompacted> {
        match &mut self.lock().running {
            Some(Running { broken: Some(why), .. }) => Err(why.clone()),
            Some(running) => {
                running.ready = Some(ready);
                Ok(())
            }
            None => Err(NotCompacted::Closed),
        }
    }
}

impl Running {
    fn break_off(&mut self, why: NotCompacted) {
        self.rows = BTreeSet::new();
        self.ready = None;
        self.broken.get_or_insert(why);
    }
}

/// As long as it lives the writer notes what it changes.
#[derive(Debug)]
pub(super) struct Begun(pub(super) Arc<Compaction>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.lock().running = None;
    }
}

/// A new file that lacks only what was changed a moment ago. It is open, and so locked, from its first byte on.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) copy: Database,
    pub(super) names: Names,
    /// Gets the old file, and how long the writer was busy.
    pub(super) answer: SyncSender<Result<(Database, Duration), StoreFault>>,
}

#[derive(Debug)]
pub(super) struct Names {
    /// What the new file is called.
    pub(super) copy: PathBuf,
    /// What it is to be called.
    pub(super) path: PathBuf,
    /// The [`identity`] of the old file, which must have that name.
    pub(super) of: (u64, u64),
}

impl Names {
    pub(super) fn exchange(&self, folder: &dyn Folder) -> io::Result<()> {
        if identity(&fs::metadata(&self.path)?) != self.of {
            return Err(io::Error::other(format!("another file was put at {}", self.path.display())));
        }
        folder.rename(&self.copy, &self.path)
    }
}

/// Its device and its inode: no two files on a machine have both.
pub(super) fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
