//! A store's audit trails. They are written by mutations, together with what they tell of; here they are read
//! and trimmed.

use super::{StoreFault, StoreFuture};
use crate::vocabulary::audit::{Ends, Entry, Trail};

pub trait Trails: Send + Sync {
    /// Where a trail begins and ends.
    fn ends(&self, trail: Trail) -> StoreFuture<'_, Result<Ends, StoreFault>>;

    /// At most `limit` entries, newest first, with numbers below `before`. They are as they were found: only
    /// whoever has the key can tell whether they were altered.
    fn entries(
        &self,
        trail: Trail,
        before: Option<u64>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Entry>, StoreFault>>;

    /// Removes the entries up to number `through`, which must be there, and keeps its link as the checkpoint.
    /// Tells how many were removed; 0 where that entry is not there. After a fault some may be gone, up to the
    /// checkpoint then; repeating it is safe.
    fn trim(&self, trail: Trail, through: u64) -> StoreFuture<'_, Result<u64, StoreFault>>;

    /// Writes a trail where there is none, both ends first and then entries, oldest first, as they are: what is
    /// missing among them is missing from the copy too. May be called again with the same ends and the entries
    /// that follow, or with entries that are there already, which stay as they are. For moving a store.
    ///
    /// # Errors
    /// A fault, also where the trail there has other ends, or the entries do not follow what is there.
    fn restore(
        &self,
        trail: Trail,
        ends: Ends,
        entries: Vec<Entry>,
    ) -> StoreFuture<'_, Result<(), StoreFault>>;
}
