//! The file is copied into a new one while it serves, and the two change places.
//!
//! redb reuses the pages of what was removed, and a file never becomes smaller by itself. So a thread of its own copies it
//! table by table, in small steps, each of the newest state. Meanwhile the writer notes which rows it changes; before each
//! step these are brought up to date in the copy. No old state is held, so the file does not grow for it, and what is
//! noted is little: what is changed during a step. Then the copy is verified as a whole, and the rest is brought over in
//! rounds. When few rows are left, the writer [changes over](super::change_over) between two batches.
//!
//! Until the new file has the name, and the folder is synced, the old one has all that was answered. A process that ends
//! before leaves a file `.compacting`, which the next start removes.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use redb::Database;
use rustix::fs::statvfs;
use tokio::sync::mpsc::WeakSender;

use super::copied::{self, Cursor};
use super::exchange::{Begun, Names, Ready, identity};
use super::file::SharedFile;
use super::folder::parent;
use super::open::{create_copy, open_copy};
use super::reserve::{BESIDE, RESERVE};
use super::writer::{Look, Order};
use crate::store::StoreFault;
use crate::store::compaction::{Compacted, NotCompacted, Occasion, WORTH};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::record::RecordFormat;

/// The bytes of a step. Its sync holds up a change that is written at the same time by no more than these take.
const STEP: usize = 1 << 20;
/// The longest pause after a step; otherwise it is as long as the step, so that changes have half of the disk.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// With so few rows left the files change places: for them a change waits.
const FEW: usize = 1024;
/// Rounds after which it is given up.
const ROUNDS: usize = 64;

/// The thread that copies.
pub(super) struct Copier {
    pub(super) file: Arc<SharedFile>,
    pub(super) begun: Begun,
    pub(super) orders: WeakSender<Box<dyn Order>>,
    pub(super) path: PathBuf,
    pub(super) keeps: RecordFormat,
    pub(super) clock: Clock,
}

impl Copier {
    /// Blocks until it is done.
    pub(super) fn run(self, occasion: Occasion) -> Result<Compacted, NotCompacted> {
        let begun = self.clock.mono();
        // The file itself gets a new name, not a link to it.
        let path = fs::canonicalize(&self.path).map_err(uncopied)?;
        let metadata = fs::metadata(&path).map_err(uncopied)?;
        self.judge(&path, &metadata, occasion)?;
        let beside = Beside::make(&path, &metadata)?;
        let copy = self.copy(&beside)?;
        let names = Names { copy: beside.path.clone(), path: path.clone(), of: identity(&metadata) };
        let (old, paused) = self.change_over(copy, names)?;
        // Not on the writer's thread: closing the old file, and freeing its room, takes a while.
        drop(old);
        let bytes_after = fs::metadata(&path).map_err(uncopied)?;
        Ok(Compacted {
            bytes_before: on_disk(&metadata),
            bytes_after: on_disk(&bytes_after),
            took_ms: millis(self.clock.mono().saturating_duration_since(begun)),
            paused_ms: millis(paused),
        })
    }

    /// Whether it is worth the work, and whether there is room.
    fn judge(&self, path: &Path, metadata: &Metadata, occasion: Occasion) -> Result<(), NotCompacted> {
        let is_worth = |in_use: u64| {
            let free = on_disk(metadata).saturating_sub(in_use);
            free >= WORTH && free >= on_disk(metadata) / 2
        };
        let in_use = copied::in_use(&self.file.snapshot()?)?;
        if occasion == Occasion::ByItself && !is_worth(in_use) {
            return Err(NotCompacted::Little);
        }
        check_room(path, in_use, self.file.is_full())
    }

    /// Copies everything. What is changed meanwhile is in the copy, but for the last moment.
    fn copy(&self, beside: &Beside) -> Result<Database, NotCompacted> {
        let mut copy = create_copy(&beside.path, &*self.begun.0.folder).map_err(uncopied)?;
        let mut cursor = Cursor::default();
        while !cursor.is_at_end() {
            let begun = self.clock.mono();
            check_room(&beside.path, STEP as u64, self.file.is_full())?;
            self.step(&copy, Some(&mut cursor))?;
            thread::sleep(self.clock.mono().saturating_duration_since(begun).min(LONGEST_PAUSE));
        }
        copy.compact().map_err(uncopied)?;
        drop(copy);
        // Whatever is wrong with it must show while the old file is there.
        let copy = open_copy(&beside.path, self.keeps, &*self.begun.0.folder).map_err(uncopied)?;
        for _ in 0..ROUNDS {
            if self.step(&copy, None)? <= FEW {
                return Ok(copy);
            }
        }
        Err(NotCompacted::Overtaken)
    }

    /// Brings what was changed meanwhile into the copy, and then the next rows. Returns how many were changed.
    fn step(&self, copy: &Database, cursor: Option<&mut Cursor>) -> Result<usize, NotCompacted> {
        // They are taken before the state is: whatever is noted is in it.
        let rows = self.begun.0.take_rows()?;
        let from = self.file.snapshot()?;
        let write = || {
            let to = copy.begin_write()?;
            copied::bring(&from, &to, &rows)?;
            if let Some(cursor) = cursor {
                cursor.step(&from, &to, STEP)?;
            }
            Ok(to.commit()?)
        };
        write().map_err(|fault: StoreFault| uncopied(fault))?;
        Ok(rows.len())
    }

    /// Has the writer change over. Returns the old file, and how long the writer was busy.
    fn change_over(&self, copy: Database, names: Names) -> Result<(Database, Duration), NotCompacted> {
        let (answer, changed) = sync_channel(1);
        self.begun.0.offer(Ready { copy, names, answer })?;
        let Some(orders) = self.orders.upgrade() else { return Err(NotCompacted::Closed) };
        let _ = orders.blocking_send(Box::new(Look));
        drop(orders);
        changed.recv().map_err(|_| self.begun.0.broken())?.map_err(uncopied)
    }
}

/// Whether a file is so large that half of it could be worth the work.
pub(super) fn is_large(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| on_disk(&file) >= WORTH)
}

/// Whether so many bytes fit on the disk of the file, and what is kept free for changes that take rights away besides.
pub(super) fn check_room(path: &Path, needed: u64, is_full: bool) -> Result<(), NotCompacted> {
    let disk = statvfs(parent(path)).map_err(uncopied)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(RESERVE + BESIDE);
    let free = if is_full { 0 } else { free };
    if free < needed { Err(NotCompacted::NoRoom { needed, free }) } else { Ok(()) }
}

fn uncopied(cause: impl std::fmt::Display) -> NotCompacted {
    NotCompacted::Uncopied(cause.to_string())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What a file takes of the disk, in bytes. Its length counts more: redb doubles it before it needs the room.
fn on_disk(file: &Metadata) -> u64 {
    file.blocks().saturating_mul(512)
}

/// The new file, before it has its name. It is removed when this is dropped, unless it got that, or another one lies there.
struct Beside {
    path: PathBuf,
    inode: u64,
}

impl Beside {
    /// Makes it with the owner and the mode of the other one. What an earlier try has left is removed.
    fn make(path: &Path, like: &Metadata) -> Result<Self, NotCompacted> {
        let path = name_beside(path);
        remove(&path).map_err(uncopied)?;
        let make = || {
            let file = File::create_new(&path)?;
            file.set_permissions(like.permissions())?;
            let made = file.metadata()?;
            if (made.uid(), made.gid()) != (like.uid(), like.gid()) {
                std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
            }
            Ok::<_, io::Error>(made.ino())
        };
        let inode = make().map_err(|error| {
            let _ = remove(&path);
            uncopied(format_args!("{}: {error}", path.display()))
        })?;
        Ok(Self { path, inode })
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what a compaction has left that did not come to its end. To be called by the process that has the file open.
pub(super) fn clear(path: &Path) {
    // If it cannot be removed now, the next compaction says so.
    let _ = fs::canonicalize(path).and_then(|path| remove(&name_beside(&path)));
}

fn name_beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".compacting");
    beside.into()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
