//! When keys were used, and with which scopes. Losing it revokes nothing.

use super::{StoreFault, StoreFuture};
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::usage::{Usage as KeyUsage, Used};

/// A store's notes of the use of keys.
pub trait Usage: Send + Sync {
    /// Merges uses into what is known. The use of a key that is not in the store is dropped.
    fn note(&self, used: Vec<Used>) -> StoreFuture<'_, Result<(), StoreFault>>;

    /// The usage of each of these keys, in their order; `None` for a key that was never used.
    fn of(&self, keys: Vec<KeyId>) -> StoreFuture<'_, Result<Vec<Option<KeyUsage>>, StoreFault>>;
}
