//! Room on the disk that nothing else takes, so that a right can be taken away although the disk is full.
//!
//! Beside the file lies another one, of the same name with `.reserve` behind it. When the disk is full it is removed, and until
//! there is room for it again only changes that take rights away are written. The room is that of whoever writes to
//! the disk first: a store whose disk other programs fill as well has it for a moment only.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// The room, in bytes. A revocation takes some 60 KiB of new pages, and frees as many for the next.
pub(super) const RESERVE: u64 = 8 << 20;

/// How much more must fit on the disk, in bytes, before the room is taken: else the next change would find it full again.
pub(super) const BESIDE: u64 = 8 << 20;
/// The disk is full where not even this fits, in bytes.
const LITTLE: u64 = 256 << 10;

/// Room on a disk.
pub(super) trait Reserve: Send {
    /// Takes the room, if it is not taken yet.
    fn keep(&self) -> Room;

    /// Whether nothing more fits on the disk.
    fn is_disk_full(&self) -> bool;

    /// Gives the room to the file.
    fn give_up(&self);
}

/// Whether the room is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Kept,
    /// The disk, or what its quota allows, is full.
    Full,
    /// The file system does not keep room for a file, or the folder takes no other file.
    Unsupported,
}

/// The file beside the store.
#[derive(Debug)]
pub(super) struct Beside {
    path: PathBuf,
}

impl Beside {
    pub(super) fn of(store: &Path) -> Self {
        let mut path = store.as_os_str().to_owned();
        path.push(".reserve");
        Self { path: path.into() }
    }

    /// Takes `len` bytes of the disk for its part from `offset` on.
    fn allocate(&self, offset: u64, len: u64) -> Result<File, Errno> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&self.path);
        let file = file.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        fallocate(&file, FallocateFlags::empty(), offset, len)?;
        Ok(file)
    }
}

impl Reserve for Beside {
    fn keep(&self) -> Room {
        if fs::metadata(&self.path).is_ok_and(|there| there.len() == RESERVE) {
            return Room::Kept;
        }
        match self.allocate(0, RESERVE + BESIDE) {
            Ok(file) if file.set_len(RESERVE).is_ok() => Room::Kept,
            Ok(_) => Room::Unsupported,
            Err(full) if is_full(full) => {
                // A part of it is of no use to anybody.
                self.give_up();
                Room::Full
            }
            Err(_) => Room::Unsupported,
        }
    }

    fn is_disk_full(&self) -> bool {
        match self.allocate(RESERVE, LITTLE) {
            Ok(file) => file.set_len(RESERVE).is_err(),
            Err(error) => is_full(error),
        }
    }

    fn give_up(&self) {
        // Where it cannot be removed the disk stays full, which the next change finds.
        let _ = fs::remove_file(&self.path);
    }
}

const fn is_full(error: Errno) -> bool {
    matches!(error, Errno::NOSPC | Errno::DQUOT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_room_is_on_the_disk_and_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Beside::of(&folder.path().join("keygate.redb"));
        assert_eq!(reserve.keep(), Room::Kept);
        assert_eq!(reserve.keep(), Room::Kept, "once more");
        assert!(!reserve.is_disk_full());
        let there = fs::metadata(folder.path().join("keygate.redb.reserve")).unwrap();
        assert_eq!((there.len(), there.mode() & 0o777), (RESERVE, 0o600));
        assert!(there.blocks() * 512 >= RESERVE, "{} blocks of 512 bytes", there.blocks());
        reserve.give_up();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
