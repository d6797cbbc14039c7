//! Opening the file: the checks of its owner and content, and the tables of a new file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase, StorageBackend};
use thiserror::Error;

use super::Settings;
use super::exchange::identity;
use super::folder::{Folder, parent, sync_folder};
use super::mutation::NO_EVENT_NUMBER;
use super::rehearsal::Rehearsal;
use super::secrets;
use super::tables::{
    ANSWER_ENDS, ANSWERS, AUDIT, AUDIT_ENDS, DIGESTS, EMAILS, EVENTS, FORMAT, INCARNATION, INDEXED, KEYS,
    LAST_EVENT, META, NEWS, NEWS_DUE, ORG_KEYS, ORGS, PEPPERS, PREFIXES, QUOTA_ENDS, QUOTAS, Tables, USAGE,
    begin_write, format, number, open_if_there,
};
use super::time;
use super::writer::Stop;
use crate::store::StoreFault;
use crate::store::events::Seq;
use crate::store::finding::Finding;
use crate::store::whole::Head;
use crate::vocabulary::clock::{Clock, TOLERATED, ahead};
use crate::vocabulary::key::Misfit;
use crate::vocabulary::key::pepper::unhex;
use crate::vocabulary::key::record::{RecordFormat, Sealer};

/// Why the file was not opened. A file that is refused for its content was left as it was.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("the store {} is in use by another process: stop it first, or send the command to it", path.display())]
    InUse { path: PathBuf },
    #[error("the store {} cannot be created: there is no directory {}, create it first", path.display(), parent(path).display())]
    NoDirectory { path: PathBuf },
    #[error("the store {} is open to others than its owner (mode {mode:04o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the store {} cannot be opened: {source}; check its path, its owner and the disk", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is not a keygate store: give another path, or move the file away", path.display())]
    NotAStore { path: PathBuf },
    #[error("the store {} was written by a newer keygate (schema {found}, this one knows {SCHEMA}): run that version", path.display())]
    NewerSchema { path: PathBuf, found: u64 },
    #[error(
        "the store {} holds records of format {found}, and this keygate keeps formats up to {kept}: run the version that \
         wrote them, or a newer one",
        path.display()
    )]
    NewerFormat { path: PathBuf, found: RecordFormat, kept: RecordFormat },
    #[error("the store {} is damaged: {cause}; restore it from a backup", path.display())]
    Damaged { path: PathBuf, cause: String },
    #[error("the store {}: {misfit}", path.display())]
    WrongPepper { path: PathBuf, misfit: Misfit },
}

/// How much of the file redb may keep in memory; bytes. Its own default is a GiB. Most inner pages of a file of a GiB fit; what is
/// read more often is in the cache of keys, and the rest in the page cache of the kernel.
const CACHE_BYTES: usize = 8 << 20;
/// How much of files is in memory at the most, in bytes: of the one that serves and of the one that takes its place, while one is
/// verified or copied.
pub(super) const HELD_BYTES: usize = 2 * CACHE_BYTES + PASSING_CACHE_BYTES;

const SCHEMA: u64 = 1;
const SCHEMA_NUMBER: &str = "schema";

/// A file that was read and verified as a whole, to be opened without that.
#[derive(Debug)]
pub struct Verified {
    pub(super) path: PathBuf,
    file: File,
}

/// Verifies the whole file and its pepper, and changes nothing. `None` if there is no store yet.
///
/// # Errors
/// Why a store could not be opened there.
pub fn verify(settings: &Settings, sealer: &Sealer) -> Result<Option<Verified>, OpenError> {
    let path = &settings.path;
    if !path.exists() {
        return Ok(None);
    }
    let file = claim(path)?;
    let Some((trial, _)) = rehearse(path, &file, sealer.keeps())? else { return Ok(None) };
    secrets::settle(path, &trial, sealer)?;
    Ok(Some(Verified { path: path.clone(), file }))
}

/// A file that is there, not verified here.
pub(super) fn claimed(path: &Path) -> Result<Verified, OpenError> {
    let source = || io::Error::from(io::ErrorKind::NotFound);
    if !path.exists() {
        return Err(OpenError::Unreadable { path: path.to_owned(), source: source() });
    }
    Ok(Verified { path: path.to_owned(), file: claim(path)? })
}

impl Verified {
    pub(super) fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }
}

/// Opens the file, whose records must be of formats up to `keeps`, and reads the number of its last event.
pub(super) fn open_file(path: &Path, keeps: RecordFormat) -> Result<(Database, Seq), OpenError> {
    let file = claim(path)?;
    rehearse(path, &file, keeps)?;
    open_verified(&Verified { path: path.to_owned(), file }, keeps)
}

/// The same for a file that was verified. Another process may have opened it since; then that has verified it.
pub(super) fn open_verified(verified: &Verified, keeps: RecordFormat) -> Result<(Database, Seq), OpenError> {
    let Verified { path, file } = verified;
    let unreadable = |source: io::Error| OpenError::Unreadable { path: path.clone(), source };
    let (database, event) = open_on(path, backend(file).map_err(unreadable)?, keeps)?;
    check_name(path, file)?;
    if let Some(event) = event {
        return Ok((database, event));
    }
    lay_out(&database).map_err(|fault| unreadable(io::Error::other(fault)))?;
    // The name of the new file must survive a crash as well as its content.
    sync_folder(path).map_err(unreadable)?;
    Ok((database, 0))
}

/// Whether a file that is locked is still the one with the name. Between opening and locking it another process can have put
/// a new one in its place, as a compaction does; that process has the new one.
fn check_name(path: &Path, file: &File) -> Result<(), OpenError> {
    let unreadable = |source: io::Error| OpenError::Unreadable { path: path.to_owned(), source };
    let (ours, named) = (file.metadata().map_err(unreadable)?, fs::metadata(path).map_err(unreadable)?);
    if identity(&ours) == identity(&named) { Ok(()) } else { Err(OpenError::InUse { path: path.to_owned() }) }
}

/// Opens the file of a store once more, after it has failed. It is verified as a whole, as at a start, and must be there.
pub(super) fn reopen(path: &Path, keeps: RecordFormat) -> Result<(Database, Seq), OpenError> {
    let unreadable = |source: io::Error| OpenError::Unreadable { path: path.to_owned(), source };
    let not_a_store = || OpenError::NotAStore { path: path.to_owned() };
    fs::metadata(path).map_err(unreadable)?;
    let file = claim(path)?;
    rehearse(path, &file, keeps)?.ok_or_else(not_a_store)?;
    let (database, event) = open_on(path, backend(&file).map_err(unreadable)?, keeps)?;
    check_name(path, &file)?;
    // It may have got its name a moment before the failure.
    sync_folder(path).map_err(unreadable)?;
    Ok((database, event.ok_or_else(not_a_store)?))
}

fn backend(file: &File) -> io::Result<FileBackend> {
    FileBackend::new(file.try_clone()?).map_err(io::Error::other)
}

/// Opens an existing store without changing the file: all writes, those of redb while it opens too, stay in memory.
pub(super) fn open_to_read(path: &Path, keeps: RecordFormat) -> Result<(Database, Seq), OpenError> {
    let not_a_store = || OpenError::NotAStore { path: path.to_owned() };
    if !path.exists() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        return Err(OpenError::Unreadable { path: path.to_owned(), source });
    }
    let (database, event) = rehearse(path, &claim(path)?, keeps)?.ok_or_else(not_a_store)?;
    Ok((database, event.ok_or_else(not_a_store)?))
}

/// Opens the file without writing to it, and verifies all of it. Returns the number of its last event, or `None` if
/// nothing was stored yet; `None` for the whole if the file is empty.
fn rehearse(
    path: &Path,
    file: &File,
    keeps: RecordFormat,
) -> Result<Option<(Database, Option<Seq>)>, OpenError> {
    let unreadable = |source: io::Error| OpenError::Unreadable { path: path.to_owned(), source };
    if file.metadata().map_err(unreadable)?.len() == 0 {
        return Ok(None);
    }
    let rehearsal = backend(file).and_then(Rehearsal::new).map_err(unreadable)?;
    let mut builder = Builder::new();
    builder.set_cache_size(PASSING_CACHE_BYTES).set_check_integrity_on_open(true);
    let trial = builder.create_with_backend(rehearsal).map_err(|error| refuse(path, error))?;
    check_name(path, file)?;
    let event = survey(path, &trial, keeps)?;
    Ok(Some((trial, event)))
}

/// Checks whether the store can be opened. Makes and changes nothing.
#[must_use]
pub fn inspect(settings: &Settings, sealer: &Sealer) -> Finding {
    let path = &settings.path;
    if !path.exists() && parent(path).is_dir() {
        return Finding::Fine(format!(
            "there is no store {} yet; it is made when it is needed",
            path.display()
        ));
    }
    let opened = if path.exists() {
        claim(path).and_then(|file| rehearse(path, &file, sealer.keeps())).and_then(|opened| {
            opened.iter().try_for_each(|(trial, _)| secrets::settle(path, trial, sealer))?;
            Ok(opened)
        })
    } else {
        Err(OpenError::NoDirectory { path: path.clone() })
    };
    match opened {
        Ok(opened) => {
            let recorded = opened.as_ref().and_then(|(trial, _)| time::recorded(trial).ok().flatten());
            let ahead = recorded.map_or(0, |recorded| ahead(recorded, Clock::system().own()));
            if ahead > 0 && Duration::from_millis(ahead.unsigned_abs()) > TOLERATED {
                return Finding::Warning(format!(
                    "the clock of this machine is {} behind the newest time in the store {}: set it, or that time was wrong",
                    humantime::format_duration(Duration::from_secs(ahead.unsigned_abs() / 1000)),
                    path.display()
                ));
            }
            let events = opened.and_then(|(_, event)| event).unwrap_or_default();
            Finding::Fine(format!("the store {} is whole, with {events} events", path.display()))
        }
        Err(OpenError::InUse { path }) => Finding::Fine(format!(
            "the store {} is in use, by a running gateway most likely; `keygate store status` asks that",
            path.display()
        )),
        Err(error) => Finding::Broken(error.to_string()),
    }
}

/// Opens the content of the backend, and repairs it after a crash. Returns the number of its last event, or `None` if
/// nothing was stored yet.
pub(super) fn open_on(
    path: &Path,
    backend: impl StorageBackend,
    keeps: RecordFormat,
) -> Result<(Database, Option<Seq>), OpenError> {
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(|error| refuse(path, error))?;
    let event = survey(path, &database, keeps)?;
    Ok((database, event))
}

/// Opens the file itself. A new one is accessible to its owner only from its first moment, whatever the umask.
fn claim(path: &Path) -> Result<File, OpenError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound if !parent(path).is_dir() => OpenError::NoDirectory { path: path.to_owned() },
        _ => OpenError::Unreadable { path: path.to_owned(), source },
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_file() {
        Err(OpenError::NotAStore { path: path.to_owned() })
    } else if mode & 0o077 != 0 {
        Err(OpenError::Exposed { path: path.to_owned(), mode })
    } else {
        Ok(file)
    }
}

fn refuse(path: &Path, error: redb::DatabaseError) -> OpenError {
    use redb::{DatabaseError, StorageError};
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::InUse { path },
        DatabaseError::UpgradeRequired(_) => OpenError::NotAStore { path },
        DatabaseError::Storage(StorageError::Io(source)) => match source.kind() {
            io::ErrorKind::InvalidData => OpenError::NotAStore { path },
            io::ErrorKind::UnexpectedEof => OpenError::Damaged { path, cause: "it is cut short".to_owned() },
            _ => OpenError::Unreadable { path, source },
        },
        damaged => OpenError::Damaged { path, cause: damaged.to_string() },
    }
}

/// Reads the content of `meta` and checks the tables. Returns the number of the last event, or `None` if nothing was
/// stored yet.
fn survey(path: &Path, database: &Database, keeps: RecordFormat) -> Result<Option<Seq>, OpenError> {
    let inspect = || {
        let file = database.begin_read()?;
        if file.list_tables()?.next().is_none() && file.list_multimap_tables()?.next().is_none() {
            return Ok(Content::Nothing);
        }
        let meta = match file.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::Storage(error)) => return Err(error.into()),
            Err(_) => return Ok(Content::Foreign),
        };
        let value = |name| Ok::<_, redb::Error>(meta.get(name)?.and_then(|value| number(value.value())));
        match value(SCHEMA_NUMBER)? {
            None => return Ok(Content::Foreign),
            Some(SCHEMA) => {}
            Some(schema) => return Ok(Content::OtherSchema(schema)),
        }
        let found = format(meta.get(FORMAT)?.as_ref().map(|row| row.value()));
        if found > keeps {
            return Ok(Content::NewerFormat(found));
        }
        file.open_table(KEYS)?;
        file.open_table(DIGESTS)?;
        file.open_table(ORGS)?;
        file.open_table(ORG_KEYS)?;
        file.open_table(EMAILS)?;
        file.open_table(EVENTS)?;
        file.open_table(AUDIT)?;
        file.open_table(AUDIT_ENDS)?;
        file.open_table(ANSWERS)?;
        file.open_table(ANSWER_ENDS)?;
        file.open_table(USAGE)?;
        file.open_table(NEWS)?;
        file.open_table(NEWS_DUE)?;
        open_if_there(&file, QUOTAS)?;
        open_if_there(&file, QUOTA_ENDS)?;
        Ok(value(LAST_EVENT)?.map_or(Content::NoEventNumber, Content::Store))
    };
    let path = path.to_owned();
    match inspect() {
        Ok(Content::Store(event)) => Ok(Some(event)),
        Ok(Content::Nothing) => Ok(None),
        Ok(Content::Foreign) => Err(OpenError::NotAStore { path }),
        Ok(Content::OtherSchema(found)) => Err(OpenError::NewerSchema { path, found }),
        Ok(Content::NewerFormat(found)) => Err(OpenError::NewerFormat { path, found, kept: keeps }),
        Ok(Content::NoEventNumber) => Err(OpenError::Damaged { path, cause: NO_EVENT_NUMBER.to_owned() }),
        Err(error) => Err(OpenError::Damaged { path, cause: redb::Error::to_string(&error) }),
    }
}

/// The content of a file that redb can open.
enum Content {
    Store(Seq),
    Nothing,
    /// Tables of another program.
    Foreign,
    /// A newer schema than ours; there is no older one.
    OtherSchema(u64),
    /// Records that this keygate cannot keep.
    NewerFormat(RecordFormat),
    NoEventNumber,
}

/// How much of a file may be kept in memory while it is verified or written as a whole; bytes. No page is needed twice, and
/// during a compaction this comes on top of the cache of the file that serves.
const PASSING_CACHE_BYTES: usize = 4 << 20;

/// Opens an empty file, into which another one is to be copied.
pub(super) fn create_copy(path: &Path, folder: &dyn Folder) -> Result<Database, OpenError> {
    let mut builder = Builder::new();
    builder.set_cache_size(PASSING_CACHE_BYTES);
    folder.open(&claim(path)?, &builder).map_err(|error| refuse(path, error))
}

/// Opens a copy that is to serve. It is verified as a whole; what that has read does not stay in memory.
pub(super) fn open_copy(
    path: &Path,
    keeps: RecordFormat,
    folder: &dyn Folder,
) -> Result<Database, OpenError> {
    let file = claim(path)?;
    let mut builder = Builder::new();
    builder.set_cache_size(PASSING_CACHE_BYTES).set_check_integrity_on_open(true);
    let verified = folder.open(&file, &builder).map_err(|error| refuse(path, error))?;
    survey(path, &verified, keeps)?.ok_or_else(|| OpenError::NotAStore { path: path.to_owned() })?;
    drop(verified);
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(false);
    folder.open(&file, &builder).map_err(|error| refuse(path, error))
}

/// Makes a file that is to be filled. It is no store until [`lay_out_as`] has written what it is.
pub(super) fn create_to_fill(path: &Path) -> Result<Database, OpenError> {
    let file = claim(path)?;
    let unreadable = |source: io::Error| OpenError::Unreadable { path: path.to_owned(), source };
    let backend = backend(&file).map_err(unreadable)?;
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).create_with_backend(backend).map_err(|error| refuse(path, error))
}

/// Writes what the store says of itself, which makes a store of a file.
pub(super) fn lay_out_as(tables: &mut Tables<'_>, head: &Head) -> Result<(), Stop> {
    let unreadable = || Stop::unreadable("the backup does not say which store it is of");
    let incarnation = unhex(&head.incarnation).ok_or_else(unreadable)?;
    tables.meta.insert(SCHEMA_NUMBER, &SCHEMA.to_be_bytes()[..])?;
    tables.meta.insert(INCARNATION, &incarnation[..])?;
    for event in [LAST_EVENT, INDEXED] {
        tables.meta.insert(event, &head.event.to_be_bytes()[..])?;
    }
    tables.meta.insert(FORMAT, &u64::from(head.format.number()).to_be_bytes()[..])?;
    for (name, row) in [(PREFIXES, &head.prefixes), (PEPPERS, &head.peppers)] {
        if let Some(row) = row {
            tables.meta.insert(name, row.as_bytes())?;
        }
    }
    Ok(())
}

/// Makes the tables of a new store.
pub(super) fn lay_out(database: &Database) -> Result<(), StoreFault> {
    let mut incarnation = [0; 16];
    getrandom::fill(&mut incarnation).map_err(StoreFault::failed)?;
    let transaction = begin_write(database)?;
    {
        let mut tables = Tables::open(&transaction)?;
        tables.meta.insert(SCHEMA_NUMBER, &SCHEMA.to_be_bytes()[..])?;
        tables.meta.insert(INCARNATION, &incarnation[..])?;
        tables.meta.insert(LAST_EVENT, &0_u64.to_be_bytes()[..])?;
        tables.meta.insert(INDEXED, &0_u64.to_be_bytes()[..])?;
        tables.meta.insert(FORMAT, &u64::from(RecordFormat::OPEN.number()).to_be_bytes()[..])?;
    }
    Ok(transaction.commit()?)
}
