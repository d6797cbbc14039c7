//! Where lines go: a descriptor that the process was started with, or a file that can be opened again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Others than the owner and the group may not read who used which key from where.
const MODE: u32 = 0o640;

/// A file, or a standard output of the process.
#[derive(Debug)]
pub(super) struct Sink {
    /// `None` for a standard output.
    path: Option<PathBuf>,
    to: File,
}

impl Sink {
    /// The file at `path`, made if it is not there. Lines are added at its end.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn file(path: &Path) -> io::Result<Self> {
        Ok(Self { path: Some(path.to_owned()), to: open(path)? })
    }

    /// A standard output, without the buffer of the standard library, which keeps a part of what could not be written.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(super) fn standard(output: &impl AsFd) -> io::Result<Self> {
        Ok(Self { path: None, to: File::from(output.as_fd().try_clone_to_owned()?) })
    }

    /// Opens the file anew, after its old name was given to a file with older lines. Where that fails, lines go on to
    /// the file that is open.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.to = open(path)?;
        }
        Ok(())
    }

    /// The path, or what the output is called.
    pub(super) fn name<'s>(&'s self, standard: &'s str) -> std::borrow::Cow<'s, str> {
        self.path.as_ref().map_or(standard.into(), |path| path.display().to_string().into())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
