//! The file in which a gateway keeps what it remembers, so that a restart forgets nothing.
//!
//! It holds no secret, and is written as a whole: beside it, then renamed. Its last line is a proof under the pepper, so
//! only keygate can write one; without a pepper there is no file. A file that is damaged, or of another store, is told and
//! written anew: it stops no key. If it cannot be written, that is told once, and the memory is that of the process.
//! Two gateways that share a file both keep in it what both remember.
//!
//! What was remembered within the last second before a crash may be missing in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::Inner;
use super::remembered::Turn;
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
/// The bytes of the last line, with the end of the line before it: 32 bytes as digits.
const PROOF: u64 = 1 + 64 + 1;
const DAMAGED: &str = "it is damaged, or was made under another pepper";

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
        if let Err(cause) = self.parse_memory(file) {
            Notice::MemoryNotRead.log(&format!(
                "{}: what a gateway remembered of changed records cannot be used ({cause}): it is written anew, and begins with \
                 what changes from now on",
                file.path.display()
            ));
        }
        file.state().seen = stamp;
    }

    /// `None` without a pepper: then there is nothing that could prove it.
    fn memory_file(&self) -> Option<&MemoryFile> {
        self.memory_file.as_ref().filter(|_| self.sealer.peppers().are_set())
    }

    /// Reads the file twice: nothing of it counts before all of it is proven, and it is not held as a whole.
    fn parse_memory(&self, file: &MemoryFile) -> Result<(), String> {
        let told = |error: io::Error| match error.kind() {
            // Not UTF-8.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => DAMAGED.to_owned(),
            _ => error.to_string(),
        };
        let mut bytes = File::open(&file.path).map_err(told)?;
        let size = bytes.metadata().map_err(told)?.len();
        if size > LONGEST {
            return Err("it is too long".to_owned());
        }
        let content = size.checked_sub(PROOF).ok_or(DAMAGED)?;
        if !self.is_proven(&mut bytes, content).map_err(told)? {
            return Err(DAMAGED.to_owned());
        }
        bytes.rewind().map_err(told)?;
        let mut lines = BufReader::new(bytes.take(content)).lines();
        let head = lines.next().ok_or(DAMAGED)?.map_err(told)?;
        let head: Head = serde_json::from_str(&head).map_err(|_| DAMAGED)?;
        if head.file != FORMAT {
            return Err("another release has written it".to_owned());
        }
        if head.place != file.place {
            return Err(format!("it is of another store, {}", head.place));
        }
        head.accepted.map(|accepted| self.memory.forget_before(accepted));
        for line in lines {
            self.memory.take_in(serde_json::from_str(&line.map_err(told)?).map_err(|_| DAMAGED)?);
        }
        Ok(())
    }

    /// Whether so many bytes have the proof that follows them.
    fn is_proven(&self, bytes: &mut File, content: u64) -> io::Result<bool> {
        let mut proof = self.sealer.check_in_parts(ProofOf::MemoryFile);
        let mut part = vec![0; MIB.min(usize::try_from(content).unwrap_or(MIB)).max(1)];
        let mut left = bytes.take(content);
        loop {
            match left.read(&mut part)? {
                0 => break,
                read => proof.update(&part[..read]),
            }
        }
        let mut end = String::new();
        bytes.take(PROOF).read_to_string(&mut end)?;
        let written = end.strip_prefix('\n').and_then(|end| unhex(end.trim_end_matches('\n')));
        Ok(written.is_some_and(|written| proof.fits(&written)))
    }

    /// Writes the file.
    pub(super) async fn write_memory(self: &Arc<Self>) {
        let this = Arc::clone(self);
        // Tens of thousands of lines: nothing on this thread waits for them.
        let written = tokio::task::spawn_blocking(move || this.replace_memory()).await;
        let Some(file) = self.memory_file() else { return };
        let mut state = file.state();
        match written.unwrap_or_else(|_| Err(io::Error::other("the task was broken off"))) {
            Ok(size) => {
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

    /// Returns how many bytes it has now.
    fn replace_memory(&self) -> io::Result<usize> {
        let Some(file) = self.memory_file() else { return Ok(0) };
        // Another gateway may have written it.
        self.read_memory();
        replace(&file.path, |out| self.render_memory(file, out))
    }

    /// Returns how many bytes that was.
    fn render_memory(&self, file: &MemoryFile, out: &mut dyn Write) -> io::Result<usize> {
        let proof = self.sealer.prove_in_parts(ProofOf::MemoryFile);
        let mut proof = proof.ok_or_else(|| io::Error::other("there is no pepper"))?;
        let mut size = 0;
        let mut put = |part: &[u8]| {
            size += part.len();
            proof.update(part);
            out.write_all(part)
        };
        let head =
            Head { file: FORMAT.to_owned(), place: file.place.clone(), accepted: self.memory.accepted() };
        put(&serde_json::to_vec(&head)?)?;
        let mut turn = Turn::default();
        while let Some((last, lines)) = self.memory.lines_after(turn) {
            for line in lines {
                put(b"\n")?;
                put(&serde_json::to_vec(&line)?)?;
            }
            turn = last;
        }
        let end = format!("\n{}\n", hex(&proof.finish()));
        out.write_all(end.as_bytes())?;
        Ok(size + end.len())
    }
}

/// Writes the file whenever something new is remembered.
pub(super) async fn keep(inner: &Arc<Inner>) {
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

/// Puts a file in the place of the one that is there, so that a crash leaves one of the two.
fn replace(path: &Path, render: impl FnOnce(&mut dyn Write) -> io::Result<usize>) -> io::Result<usize> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let write = || {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        let mut out = BufWriter::new(file);
        let size = render(&mut out)?;
        out.into_inner()?.sync_all()?;
        fs::rename(&fresh, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        Ok(size)
    };
    write().inspect_err(|_| drop(fs::remove_file(&fresh)))
}
