//! The folder in which the file lies, and what a compaction asks of it. A trait, so that tests can have each of it fail.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError};

pub(super) trait Folder: fmt::Debug + Send + Sync {
    /// Opens the new file.
    fn open(&self, file: &File, builder: &Builder) -> Result<Database, DatabaseError>;

    /// Gives the new file the name of the old one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes sure that the name of the file survives a power cut.
    fn sync(&self, path: &Path) -> io::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub(super) struct OnDisk;

impl Folder for OnDisk {
    fn open(&self, file: &File, builder: &Builder) -> Result<Database, DatabaseError> {
        builder.create_with_backend(FileBackend::new(file.try_clone()?)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        sync_folder(path)
    }
}

/// Makes sure that the name of a file survives a power cut.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(parent(path)).and_then(|folder| folder.sync_all())
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
