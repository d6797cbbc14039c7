//! Answers that are kept to be given again to the same request. Losing them revokes nothing.

use super::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;

/// An answer that is kept to be given again. Only the sender of the request can find it or open it.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    pub index: [u8; 32],
    pub sealed: Vec<u8>,
    pub made_at: UnixMillis,
    /// From this moment on the store behaves as if it had never kept the answer.
    pub ends_at: UnixMillis,
}

impl std::fmt::Debug for KeptAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptAnswer").field("ends_at", &self.ends_at).finish_non_exhaustive()
    }
}

/// A store's kept answers. They are written by mutations, together with the change that they answer.
pub trait Answers: Send + Sync {
    /// The sealed answer that is kept under this index at the moment `now`.
    fn find(&self, index: [u8; 32], now: UnixMillis) -> StoreFuture<'_, Result<Option<Vec<u8>>, StoreFault>>;
}
