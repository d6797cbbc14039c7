//! What the writer does when the disk fails: it opens the file again, and keeps room for what takes rights away.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redb::Database;
use tokio::sync::watch;

use super::file::SharedFile;
use super::folder::Folder;
use super::reserve::{Reserve, Room};
use super::{Published, lock};
use crate::store::StoreFault;
use crate::store::events::Seq;
use crate::telemetry::{Event, Notice};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::Prefixes;

/// The pause before the second try to open the file again; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two tries, and so how late the end of the cause is noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A file that was opened again.
pub(super) struct Reopened {
    pub(super) database: Database,
    /// The number of its last event.
    pub(super) event: Seq,
    /// Which store it holds.
    pub(super) incarnation: String,
    pub(super) prefixes: Option<Prefixes>,
}

/// How the file is opened again.
pub(super) struct Again {
    pub(super) reopen: Box<dyn Fn() -> Result<Reopened, StoreFault> + Send>,
    pub(super) reserve: Option<Box<dyn Reserve>>,
    /// Where it lies.
    pub(super) folder: Arc<dyn Folder>,
}

/// The writer's part that knows what to do about a file that fails.
pub(super) struct Mender {
    pub(super) path: PathBuf,
    pub(super) file: Arc<SharedFile>,
    /// Which store the file holds.
    pub(super) incarnation: String,
    pub(super) published: Arc<Mutex<Published>>,
    pub(super) prefixes: watch::Sender<Option<Prefixes>>,
    pub(super) clock: Clock,
    /// `None` for a file that is only read: that is not opened again.
    pub(super) again: Option<Again>,
    pub(super) pause: Duration,
}

impl Mender {
    /// Closes the file that has failed.
    pub(super) fn give_up_file(&self, cause: &StoreFault) {
        if self.again.is_none() {
            return;
        }
        let line =
            || format!("the store {}: {cause}; it is opened again until that succeeds", self.path.display());
        Event::StoreFile.log(self.clock.mono(), line);
        self.file.fail(StoreFault::failed(format_args!("{cause}; the file is being opened again")));
    }

    /// Why the file is closed and must be opened again.
    pub(super) fn fault(&self) -> Option<StoreFault> {
        self.again.as_ref().and_then(|_| self.file.fault())
    }

    /// The file has taken a change: the next fault is a new one.
    pub(super) const fn works(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// Tries to open the file again. A file that fails once more before it has taken a change is left alone for a longer pause.
    pub(super) fn try_again(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.give_up_reserve();
        match self.open_again() {
            Ok(()) => Notice::StoreBack.log(&format!("the store {} is open again", self.path.display())),
            Err(fault) => self.file.fail(fault),
        }
    }

    /// A file that is another store now, or an older state of this one, is not taken: an operator has put it there, and
    /// a start reads it as a whole.
    fn open_again(&self) -> Result<(), StoreFault> {
        let Some(Again { reopen, .. }) = &self.again else { return Ok(()) };
        let Reopened { database, event, incarnation, prefixes } = reopen()?;
        if incarnation != self.incarnation {
            return Err(self.changed("holds another store"));
        }
        let mut published = lock(&self.published);
        if event < published.event {
            return Err(self.changed("has lost changes that were answered"));
        }
        self.file.reopened(database);
        self.prefixes.send_replace(prefixes);
        if event > published.event {
            // A change that failed is there after all, or another process has had the file.
            published.event = event;
            for sink in &published.sinks {
                sink.reset(event);
                sink.assure(None);
            }
        }
        Ok(())
    }

    fn changed(&self, how: &str) -> StoreFault {
        let path = self.path.display();
        StoreFault::failed(format_args!("{path} {how} now: restart keygate if that is the store to be used"))
    }

    pub(super) fn full(&self) -> StoreFault {
        full(&self.path)
    }

    /// Takes the room on the disk that is kept for what takes rights away; if there is none, that alone is written.
    pub(super) fn keep_reserve(&self) {
        let Some(Again { reserve: Some(reserve), .. }) = &self.again else { return };
        self.note_full(reserve.keep() == Room::Full);
    }

    /// Gives that room to the file, if the disk is full.
    fn give_up_reserve(&self) {
        let Some(Again { reserve: Some(reserve), .. }) = &self.again else { return };
        if self.file.is_full() || reserve.is_disk_full() {
            reserve.give_up();
            self.note_full(true);
        }
    }

    fn note_full(&self, is_full: bool) {
        let was_full = self.file.is_full();
        self.file.set_full(is_full);
        match (was_full, is_full) {
            (false, true) => Notice::DiskFull.log(&self.full().to_string()),
            (true, false) => {
                Notice::DiskHasRoom
                    .log(&format!("the disk of the store {} has room again", self.path.display()));
            }
            _ => {}
        }
    }
}

/// The disk is full, and what to do.
pub(super) fn full(path: &Path) -> StoreFault {
    StoreFault::failed(format_args!(
        "the disk of {} is full: only changes that take rights away are written; make room there",
        path.display()
    ))
}
