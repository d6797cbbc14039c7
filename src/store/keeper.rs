//! A store as its operator sees it: what state it is in, and whether it is taken for the right one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{StoreFault, StoreFuture};

/// Whether events that others cause arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    Up,
    /// Why they do not.
    Down(Arc<str>),
}

/// A store, for its operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub place: String,
    /// Why it is not used as it is; `None` for a store that is well.
    pub trouble: Option<String>,
    /// Which store is there; every store has an identifier of its own.
    pub found: Option<String>,
    /// Which store this process takes for its own.
    pub known: Option<String>,
    /// How many events there were.
    pub events: Option<u64>,
}

/// What accepting came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// Which store it is now.
    pub store: String,
    /// Whether anything had to change for it.
    pub changed: bool,
}

/// The operator's side of a store. Every [`Store`](super::Store) has one; what stands in front of a store
/// hands on that of the store behind it.
pub trait Keeper: Send + Sync {
    fn link_state(&self) -> LinkState;

    fn status(&self) -> StoreFuture<'_, Status>;

    /// Makes an empty store where there is nothing and this process has never seen anything; tells whether it
    /// did. For an operator's first key only: a request that could do it would turn an emptied Redis into a
    /// store without keys.
    fn begin(&self) -> StoreFuture<'_, Result<bool, StoreFault>>;

    /// From now on the store as it is counts: keys that it does not have are unknown keys. For every process
    /// that knows the same store as this one.
    fn accept(&self) -> StoreFuture<'_, Result<Acceptance, StoreFault>>;
}
