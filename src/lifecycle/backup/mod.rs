//! Backups: a store as it is at one moment, in one file, and an empty store filled from such a file.
//!
//! A migration opens every record and seals it for its target; a backup keeps the records as they are sealed, with their
//! revisions, and goes on where the pepper is another one now. Both use the same trails, uses and news.

mod format;
mod restore;
mod session;

pub use self::format::BadBackup;
pub use self::restore::{RestoreError, Restored, restore};
pub(super) use self::session::Backups;
pub use self::session::{BackedUp, BackupPart};
