//! A file that one process has closed and another opens, without verifying it again.

use std::fs::{File, Metadata, TryLockError, metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Settings;
use super::open::{Verified, claimed};

/// How a file was left: which one it is, and what changes if anybody writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileMark {
    device: u64,
    inode: u64,
    /// In bytes.
    length: u64,
    /// The time of the last change: seconds since 1970, and nanoseconds.
    changed: (i64, i64),
}

impl FileMark {
    /// # Errors
    /// When the file cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        metadata(path).map(|file| Self::seen(&file))
    }

    fn seen(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            length: file.len(),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// The file of a store, if it is as another process has left it. That process had it to itself, verified it when it began,
/// and closed it in order, so it needs not be verified as a whole again. `None`: it must be.
#[must_use]
pub fn as_left(settings: &Settings, mark: &FileMark) -> Option<Verified> {
    let verified = claimed(&settings.path).ok()?;
    let is_same = verified.metadata().is_ok_and(|file| FileMark::seen(&file) == *mark);
    is_same.then_some(verified)
}

/// How long a process that has died may take to let go of its file.
const LET_GO: Duration = Duration::from_secs(5);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until the process that had the file has let go of it. The system closes the files of a process that dies one
/// after the other, so whoever is on the other end of its socket can know of its death before the file is unlocked.
pub fn wait_until_let_go(path: &Path) {
    for _ in 0..LET_GO.as_millis() / PAUSE.as_millis() {
        // Opened anew each time: another file can have been put in its place.
        let is_held =
            File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        if !is_held {
            return;
        }
        sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_is_waited_for_a_process_that_lets_go_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        wait_until_let_go(&path);
        let file = File::create(&path).unwrap();
        file.lock().unwrap();
        let dying = std::thread::spawn(move || {
            sleep(Duration::from_millis(30));
            drop(file);
        });
        wait_until_let_go(&path);
        File::open(&path).unwrap().try_lock().unwrap();
        dying.join().unwrap();
    }

    #[test]
    fn a_file_that_was_touched_or_replaced_is_not_as_it_was_left() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let settings = Settings { path: path.clone() };
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("one");
        let mark = FileMark::of(&path).unwrap();
        assert!(as_left(&settings, &mark).is_some());
        write("two");
        assert!(as_left(&settings, &mark).is_none());
        let mark = FileMark::of(&path).unwrap();
        fs::copy(&path, folder.path().join("copy")).unwrap();
        fs::rename(folder.path().join("copy"), &path).unwrap();
        assert!(as_left(&settings, &mark).is_none());
        fs::remove_file(&path).unwrap();
        assert!(as_left(&settings, &mark).is_none());
        assert!(!path.exists(), "looking makes none");
    }
}
