//! A store as its operator sees it: what state it is in, and whether it is taken for the right one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::events::Seq;
use super::{StoreFault, StoreFuture};
use crate::vocabulary::key::record::RecordFormat;

/// Whether events that others cause arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    Up,
    /// Why they do not.
    Down(Arc<str>),
}

/// What a store knows of its links without asking anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    pub standing: Standing,
    /// Whether callers of a link are turned away at the moment without the store's being asked, by its name.
    pub breakers: Vec<(&'static str, bool)>,
    /// Whether it answers, but says that it takes no changes, as one does that may have been replaced; `None` for one
    /// that nothing can replace.
    pub is_suspect: Option<bool>,
}

/// What a gateway is among those of its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// The only one that there can be.
    #[default]
    Alone,
    /// One without a lease, for which nobody waits.
    Out,
    /// One of so many that held a lease when this one renewed its own.
    Among(usize),
}

/// A gateway that holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What it called itself when it started.
    pub gateway: String,
    /// The number of the last event that holds there.
    pub event: Seq,
    /// Whether it is the one that tells this.
    pub own: bool,
    /// The highest format of records that it announces.
    #[serde(default)]
    pub format: RecordFormat,
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
    /// The format of records that a gateway must be able to keep to join.
    #[serde(default)]
    pub format: Option<RecordFormat>,
    /// The highest format that this process can keep.
    #[serde(default)]
    pub keeps: RecordFormat,
    /// Who holds a lease; nobody where a store has one gateway only.
    #[serde(default)]
    pub gateways: Vec<Lease>,
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

    fn vitals(&self) -> Vitals;

    /// Gives this gateway's lease up for good, so that nobody waits for it. Only for one that lets no request in
    /// any more.
    ///
    /// # Errors
    /// A fault leaves the lease to end by itself.
    fn leave(&self) -> StoreFuture<'_, Result<(), StoreFault>>;

    fn status(&self) -> StoreFuture<'_, Status>;

    /// Makes an empty store where there is nothing and this process has never seen anything; tells whether it
    /// did. For an operator's first key only: a request that could do it would turn an emptied Redis into a
    /// store without keys.
    fn begin(&self) -> StoreFuture<'_, Result<bool, StoreFault>>;

    /// From now on the store as it is counts: keys that it does not have are unknown keys. For every process
    /// that knows the same store as this one.
    fn accept(&self) -> StoreFuture<'_, Result<Acceptance, StoreFault>>;
}
