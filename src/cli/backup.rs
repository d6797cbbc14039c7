//! `keygate store backup` and `keygate store restore`: the whole store in one file, and back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use tokio::runtime::Handle;

use super::Outcome;
use super::migrate::{check_idle, patient};
use super::operator::{Failure, Session, open_as, operator, unexpected};
use crate::app::{KeyTools, open_store, open_to_fill};
use crate::lifecycle::{self, BackedUp, Restored};
use crate::operators::admin::{Command, Reply, StoreCommand};
use crate::secret_file;

/// Write everything in the store to a file, as it is at one moment, while the gateways run
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The backup has the organisations, the keys in every state, the times of their last use, the audit trails, and the notifications that \
wait in the outbox. It does not have the answers kept for repeated requests, or the signup counters. It shows one moment between \
the beginning and the end of the command: all changes that were answered before the beginning are in it.

It has no secrets and no pepper. To restore it, keep the files of keys.pepper_file and audit.key_file too, elsewhere.

The file has mode 0600. It gets its name when it is complete. A copy of keygate.redb that was made while a gateway runs is no backup.

Exit code: 0 if the backup is complete, 1 if not.

Examples:
  keygate store backup keygate-2026-11-28.backup
  keygate store backup --overwrite /var/backups/keygate.backup")]
pub(super) struct BackupArgs {
    /// The file to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

/// Fill the empty store of the configuration from a backup
///
/// Start no gateway on the store before this command has finished.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The store must be empty; its kind need not be that of the store in the backup. The configuration must name the pepper that the \
backup says. A backup that was changed, damaged or cut is refused, and nothing of it is written.

No gateway serves the store before the restore has finished. An interrupted restore is begun again with the same command.

Changes that were made after the backup are not in it. Revoke again what was revoked since. See the section about backups in \
deploy/README.md for the order of steps.

Exit code: 0 if the store is complete, 1 if not.

Examples:
  keygate store restore keygate-2026-11-28.backup")]
pub(super) struct RestoreArgs {
    /// The file to read
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) async fn back_up(args: BackupArgs, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let BackupArgs { file, overwrite } = args;
    if !overwrite && fs::symlink_metadata(&file).is_ok() {
        return Err(exists(&file));
    }
    let Reply::BackupBegun { id } = session.ask(Command::Store(StoreCommand::BeginBackup)).await? else {
        return Err(unexpected());
    };
    let mut writing = Writing::begin(&file).map_err(|error| cannot_write(&file, &error))?;
    loop {
        let reply = session.ask(Command::Store(StoreCommand::NextOfBackup { id })).await?;
        let Reply::BackupPart { bytes, done } = reply else { return Err(unexpected()) };
        let bytes = BASE64_STANDARD.decode(&bytes).map_err(|_| unexpected())?;
        writing.write(&bytes).map_err(|error| cannot_write(&file, &error))?;
        session.show_progress(&format!("{} MiB written", writing.written >> 20));
        if let Some(done) = done {
            session.show_progress("");
            let size = writing.written;
            match writing.finish(&file, overwrite) {
                Ok(()) => return summarise(&done, size, session),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(&file)),
                Err(error) => return Err(cannot_write(&file, &error)),
            }
        }
    }
}

fn exists(file: &Path) -> Failure {
    format!("{} exists; name another file, or add --overwrite", file.display()).into()
}

fn cannot_write(file: &Path, error: &io::Error) -> Failure {
    format!("cannot write {}: {error}", file.display()).into()
}

fn summarise(done: &BackedUp, size: u64, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    if session.json {
        session.print_json(done)?;
        return Ok(Outcome::Done);
    }
    session.print_fields(&[
        ("organisations", Some(done.organizations.to_string())),
        ("keys", Some(done.keys.to_string())),
        ("audit records", Some(done.audit_records.to_string())),
        ("events so far", Some(done.event.to_string())),
        ("bytes", Some(size.to_string())),
    ])?;
    Ok(Outcome::Done)
}

/// A file that gets its name at the end. What is not finished is removed.
struct Writing {
    file: File,
    beside: PathBuf,
    written: u64,
}

impl Writing {
    fn begin(path: &Path) -> io::Result<Self> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.part", std::process::id()));
        let beside = PathBuf::from(beside);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        Ok(Self { file, beside, written: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn finish(self, path: &Path, overwrite: bool) -> io::Result<()> {
        self.file.sync_all()?;
        if overwrite {
            fs::rename(&self.beside, path)?;
        } else {
            // Fails where somebody else has made a file of this name meanwhile.
            fs::hard_link(&self.beside, path)?;
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // After a rename it is gone already.
        let _ = fs::remove_file(&self.beside);
    }
}

pub(super) async fn restore(args: RestoreArgs, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let RestoreArgs { file } = args;
    let config = session.config()?;
    check_idle(session.socket(), "the store").await?;
    let input = secret_file::open("the backup", &file).map_err(|error| error.to_string())?;
    let sealer = KeyTools::new(&config.keys).map_err(|error| error.to_string())?.sealer;
    let store = patient(config);
    let fill = open_to_fill(&store, sealer.clone(), &Handle::current()).map_err(|error| error.to_string())?;
    let mut tell = |done: &Restored| session.show_progress(&progress(done));
    let restored = lifecycle::restore(input, &sealer, &*fill, &mut tell).await;
    session.show_progress("");
    let restored = restored.map_err(|error| format!("{}: {error}", file.display()))?;
    drop(fill);
    let opened = open_as(session.config()?, &store, open_store, "stop it")?;
    opened.record_restored(&operator(), &restored).await.map_err(|error| error.to_string())?;
    if session.json {
        session.print_json(&restored)?;
        return Ok(Outcome::Done);
    }
    session.print_fields(&[
        ("backup of", Some(restored.made_at.clone())),
        ("store", Some(restored.store.clone())),
        ("organisations", Some(restored.organizations.to_string())),
        ("keys", Some(restored.keys.to_string())),
        ("audit records", Some(restored.audit_records.to_string())),
    ])?;
    session.remark("changes since that moment are not in it: revoke again what was revoked since");
    Ok(Outcome::Done)
}

fn progress(done: &Restored) -> String {
    let Restored { organizations, keys, audit_records, .. } = done;
    format!("restored: {organizations} organisations, {keys} keys, {audit_records} audit records")
}
