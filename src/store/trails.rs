//! A store's audit trails. They are written by mutations, together with what they tell of; here they are read
//! and trimmed.

use super::{StoreFault, StoreFuture};
use crate::audit::{Ends, Entry, Trail};

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
    /// Tells how many were removed; 0 where that entry is not there.
    fn trim(&self, trail: Trail, through: u64) -> StoreFuture<'_, Result<u64, StoreFault>>;

    /// Writes a whole trail where there is none: entries from the one after the checkpoint on, oldest first.
    /// May be called again with the entries that follow. For moving a store.
    ///
    /// # Errors
    /// A fault, also where they do not follow what is there.
    fn restore(
        &self,
        trail: Trail,
        ends: Ends,
        entries: Vec<Entry>,
    ) -> StoreFuture<'_, Result<(), StoreFault>>;
}
