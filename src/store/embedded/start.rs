//! The ways in which a store is opened.

use std::path::Path;
use std::sync::Arc;

use redb::Database;

use super::open::{open_file, open_to_read, open_verified};
use super::{Embedded, OpenError, Settings, Verified, again, compaction, secrets};
use crate::store::events::Seq;
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::record::Sealer;

impl Embedded {
    /// Opens the store, or makes it if there is no file. Blocks: the whole file is read and verified. A store is
    /// opened rarely and is not large, and redb does not verify a file by itself.
    ///
    /// # Errors
    /// [`OpenError`]: whose text says what to do.
    pub fn open(settings: &Settings, sealer: Sealer) -> Result<Self, OpenError> {
        Self::open_at(settings, sealer, Clock::system())
    }

    /// As [`Embedded::open`], by this clock.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_at(settings: &Settings, sealer: Sealer, clock: Clock) -> Result<Self, OpenError> {
        Self::serve(&settings.path, open_file(&settings.path, sealer.keeps())?, sealer, clock)
    }

    /// As [`Embedded::open`], for a file that was just [verified](super::verify): it is not read as a whole again.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_verified(verified: &Verified, sealer: Sealer, clock: Clock) -> Result<Self, OpenError> {
        Self::serve(&verified.path, open_verified(verified, sealer.keeps())?, sealer, clock)
    }

    fn serve(
        path: &Path,
        (database, event): (Database, Seq),
        sealer: Sealer,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        secrets::settle(path, &database, &sealer)?;
        compaction::clear(path);
        let sealer = Arc::new(sealer);
        let again = Some(again::of(path, &sealer));
        Self::start(path.to_owned(), (database, event), sealer, again, clock)
            .map_err(|source| OpenError::Unreadable { path: path.to_owned(), source })
    }

    /// Opens an existing store for reading. The file stays as it is: changes are kept in memory and lost at the end.
    ///
    /// # Errors
    /// As [`Embedded::open`], and if there is no store.
    pub fn open_to_read(settings: &Settings, sealer: Sealer, clock: Clock) -> Result<Self, OpenError> {
        let path = settings.path.clone();
        let (database, event) = open_to_read(&path, sealer.keeps())?;
        secrets::settle(&path, &database, &sealer)?;
        Self::start(path.clone(), (database, event), Arc::new(sealer), None, clock)
            .map_err(|source| OpenError::Unreadable { path, source })
    }
}
