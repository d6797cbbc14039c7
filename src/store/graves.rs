//! Keys that ended long ago. Of each of them the store keeps [stones](crate::vocabulary::key::gone) instead of the record and
//! its entries in the lists, so that what has ended does not grow for ever and does not come back either.
//!
//! As with [trails](super::trails), one mistake must not remove much: the store judges by its own clock, only where the gateway's
//! clock agrees with that, and gives up a share of its keys in a day.

use std::time::Duration;

use tokio::sync::mpsc;

use super::trails::{Held, Pace};
use super::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::gone::{Gone, Stone};
use crate::vocabulary::key::record::{KeyRecord, Versioned};

/// In a day, by the store's clock, a tenth of all keys may go, but at least so many.
pub(super) const SHARE: u64 = 10;
pub(super) const AT_LEAST: u64 = 1000;

/// When keys go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The date by the gateway's own clock.
    pub own: UnixMillis,
    /// How long a key has ended before it goes.
    pub keep: Duration,
    pub pace: Pace,
}

/// A key that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    pub key: Versioned<KeyRecord>,
    /// The nearest of its makers that is not gone.
    pub maker: Option<KeyId>,
}

/// What has become of keys that may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buried {
    /// So many have gone, the first ones. The next was changed meanwhile, has not ended for long enough by the store's clock, or
    /// is one more than may go today; those behind it may have been made by it.
    Done(u64),
    Held(Held),
}

/// What a store says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// No key that had it is gone.
    No,
    /// Somebody else than keygate has put a stone there. It keeps the name from being taken, and says nothing more.
    Unproven,
    /// A key that had it is gone.
    Gone { maker: Option<KeyId> },
}

pub trait Graves: Send + Sync {
    /// What the store says of these names, in their order.
    fn find(&self, names: Vec<Gone>) -> StoreFuture<'_, Result<Vec<Marked>, StoreFault>>;

    /// Puts stones in the place of keys, each whole or not at all: the record, the digests that lead to it, its entries in lists,
    /// its use. After a fault some of them may be gone; repeating the call is safe.
    ///
    /// # Errors
    /// Also [`StoreFault::Outdated`] while a gateway is too old to know stones.
    fn bury(&self, keys: Vec<Leaving>, terms: Terms) -> StoreFuture<'_, Result<Buried, StoreFault>>;

    /// Hands over all stones.
    ///
    /// # Errors
    /// A fault, also if nobody takes them any more.
    fn stones(&self, out: mpsc::Sender<Vec<Stone>>) -> StoreFuture<'_, Result<(), StoreFault>>;

    /// Puts stones for these names, of which no key has one any more, each with the maker. For moving a store.
    fn put(&self, names: Vec<(Gone, Option<KeyId>)>) -> StoreFuture<'_, Result<(), StoreFault>>;
}
