//! The file in which a gateway keeps what it remembers, so that a restart forgets nothing.
//!
//! It holds no secret, and is written as a whole: beside it, then renamed. Its last line is a proof under the pepper, so
//! only keygate can write one; without a pepper there is no file. A file that is damaged, or of another store, is told and
//! written anew: it stops no key. If it cannot be written, that is told once, and the memory is that of the process.
//! Two gateways that share a file both keep in it what both remember.
//!
//! What was remembered within the last second before a crash may be missing in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::Inner;
use super::memory::Line;
use crate::telemetry::Notice;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::pepper::{hex, unhex};
use crate::vocabulary::key::proof::ProofOf;

/// How long changes are collected before the file is written; longer by a second for each MiB of it.
const PAUSE: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;
/// How often it is written anew without a change: then it is under the pepper in force.
const AT_LEAST: Duration = Duration::from_secs(60 * 60);
/// The longest file that is read.
const LONGEST: u64 = 64 << 20;
const FORMAT: &str = "keygate memory 1";

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    file: String,
    /// The store, as the configuration names it.
    place: String,
    accepted: Option<UnixMillis>,
}

/// The file of one gateway.
#[derive(Debug)]
pub(super) struct MemoryFile {
    path: PathBuf,
    place: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the file was when this process last read or wrote it: another gateway may have written it since.
    seen: Option<Stamp>,
    size: usize,
    is_failure_told: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self(meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }
}

impl MemoryFile {
    pub(super) fn new(path: PathBuf, place: String) -> Self {
        Self { path, place, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Takes in what the file has, unless it is as this process left it.
    pub(super) fn read_memory(&self) {
        let Some(file) = self.memory_file() else { return };
        let stamp = Stamp::of(&file.path);
        if stamp.is_none() || file.state().seen == stamp {
            return;
        }
        let read = fs::metadata(&file.path).and_then(|meta| {
            if meta.len() > LONGEST { Err(io::Error::other("it is too long")) } else { fs::read(&file.path) }
        });
        let taken = read.map_err(|error| error.to_string()).and_then(|bytes| self.parse_memory(file, &bytes));
        match taken {
            Ok((accepted, lines)) => self.memory.take_in(accepted, lines),
            Err(cause) => Notice::MemoryNotRead.log(&format!(
                "{}: what a gateway remembered of changed records cannot be used ({cause}): it is written anew, and begins with \
                 what changes from now on",
                file.path.display()
            )),
        }
        file.state().seen = stamp;
    }

    /// `None` without a pepper: then there is nothing that could prove it.
    fn memory_file(&self) -> Option<&MemoryFile> {
        self.memory_file.as_ref().filter(|_| self.sealer.peppers().are_set())
    }

    fn parse_memory(
        &self,
        file: &MemoryFile,
        bytes: &[u8],
    ) -> Result<(Option<UnixMillis>, Vec<Line>), String> {
        const DAMAGED: &str = "it is damaged, or was made under another pepper";
        let text = str::from_utf8(bytes).map_err(|_| DAMAGED)?;
        let (content, proof) = text.trim_end_matches('\n').rsplit_once('\n').ok_or(DAMAGED)?;
        let proof = unhex(proof).ok_or(DAMAGED)?;
        if !self.sealer.check_proof_of_any_age(ProofOf::MemoryFile, &[content.as_bytes()], &proof) {
            return Err(DAMAGED.to_owned());
        }
        let mut lines = content.lines();
        let head: Head = serde_json::from_str(lines.next().ok_or(DAMAGED)?).map_err(|_| DAMAGED)?;
        if head.file != FORMAT {
            return Err("another release has written it".to_owned());
        }
        if head.place != file.place {
            return Err(format!("it is of another store, {}", head.place));
        }
        let lines = lines.map(serde_json::from_str).collect::<Result<_, _>>().map_err(|_| DAMAGED)?;
        Ok((head.accepted, lines))
    }

    /// Writes the file, and returns whether that was possible.
    pub(super) async fn write_memory(&self) {
        let Some(file) = self.memory_file() else { return };
        // Another gateway may have written it.
        self.read_memory();
        let Some(text) = self.render_memory(file) else { return };
        let (path, size) = (file.path.clone(), text.len());
        let written = tokio::task::spawn_blocking(move || replace(&path, text.as_bytes())).await;
        let written = written.unwrap_or_else(|_| Err(io::Error::other("the task was broken off")));
        let mut state = file.state();
        match written {
            Ok(()) => {
                *state = State { seen: Stamp::of(&file.path), size, is_failure_told: false };
            }
            Err(error) => {
                if !std::mem::replace(&mut state.is_failure_told, true) {
                    Notice::MemoryNotWritten.log(&format!(
                        "{}: cannot write what this gateway remembers of changed records ({error}): after a restart it takes \
                         older ones for right; set store.memory_file to a file that it can write",
                        file.path.display()
                    ));
                }
            }
        }
    }

    fn render_memory(&self, file: &MemoryFile) -> Option<String> {
        let (accepted, lines) = self.memory.lines();
        let head = Head { file: FORMAT.to_owned(), place: file.place.clone(), accepted };
        let mut text = serde_json::to_string(&head).ok()?;
        for line in lines {
            text.push('\n');
            text += &serde_json::to_string(&line).ok()?;
        }
        let proof = self.sealer.prove(ProofOf::MemoryFile, &[text.as_bytes()])?;
        text.push('\n');
        text += &hex(&proof);
        text.push('\n');
        Some(text)
    }
}

/// Writes the file whenever something new is remembered.
pub(super) async fn keep(inner: &Inner) {
    let Some(file) = inner.memory_file() else { return };
    let mut changes = inner.memory.changes();
    loop {
        if let Ok(Err(_)) = timeout(AT_LEAST, changes.changed()).await {
            return;
        }
        let size = file.state().size;
        sleep(PAUSE * u32::try_from(1 + size / MIB).unwrap_or(u32::MAX)).await;
        changes.borrow_and_update();
        inner.write_memory().await;
    }
}

/// Puts a file with these bytes in the place of the one that is there, so that a crash leaves one of the two.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&fresh)))
}
