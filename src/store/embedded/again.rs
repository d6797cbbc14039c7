//! How the file of a running store is opened again: all that is done with it at a start.

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase};

use super::folder::OnDisk;
use super::mending::{Again, Reopened};
use super::reads::Snapshot;
use super::reserve::Beside;
use super::{indexes, open, prefixes, secrets};
use crate::store::StoreFault;
use crate::store::events::Seq;
use crate::vocabulary::key::record::Sealer;

/// The file at this path, with room beside it.
pub(super) fn of(path: &Path, sealer: &Arc<Sealer>) -> Again {
    let (there, sealer) = (path.to_owned(), Arc::clone(sealer));
    let reopen = move || {
        let (database, event) = open::reopen(&there, sealer.keeps()).map_err(StoreFault::failed)?;
        complete(&there, database, event, &sealer)
    };
    Again { reopen: Box::new(reopen), reserve: Some(Box::new(Beside::of(path))), folder: Arc::new(OnDisk) }
}

/// What a start does once the file is open.
pub(super) fn complete(
    path: &Path,
    database: Database,
    event: Seq,
    sealer: &Arc<Sealer>,
) -> Result<Reopened, StoreFault> {
    secrets::settle(path, &database, sealer).map_err(StoreFault::failed)?;
    indexes::complete(&database, sealer)?;
    let prefixes = prefixes::stored(&database)?;
    let snapshot = Snapshot { file: database.begin_read()?, sealer: Arc::clone(sealer) };
    let incarnation = snapshot.incarnation()?;
    drop(snapshot);
    Ok(Reopened { database, event, incarnation, prefixes })
}
