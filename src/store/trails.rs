//! A store's audit trails. A mutation writes an entry together with the change that it describes. Here trails are
//! read and trimmed.

use super::{StoreFault, StoreFuture};
use crate::vocabulary::audit::{Ends, Entry, Trail};

pub trait Trails: Send + Sync {
    /// Where a trail begins and ends.
    fn ends(&self, trail: Trail) -> StoreFuture<'_, Result<Ends, StoreFault>>;

    /// At most `limit` entries, newest first, with numbers below `before`. They are returned as found: only the
    /// holder of the chain's key can tell whether they were altered.
    fn entries(
        &self,
        trail: Trail,
        before: Option<u64>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Entry>, StoreFault>>;

    /// Removes the entries up to number `through`, which must be there, and keeps its link as the checkpoint. Returns
    /// the number of removed entries; 0 if that entry does not exist. After a fault some entries may be removed, up
    /// to the new checkpoint; repeating the call is safe.
    fn trim(&self, trail: Trail, through: u64) -> StoreFuture<'_, Result<u64, StoreFault>>;

    /// Copies a trail to a place that has none: first both ends, then the entries, oldest first. An entry that is
    /// missing here is missing from the copy too. May be called again with the same ends and the following entries;
    /// entries that exist stay as they are. For moving a store.
    ///
    /// # Errors
    /// A fault, also if the existing trail has other ends, or if the entries do not follow the existing ones.
    fn restore(
        &self,
        trail: Trail,
        ends: Ends,
        entries: Vec<Entry>,
    ) -> StoreFuture<'_, Result<(), StoreFault>>;
}
