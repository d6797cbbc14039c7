//! A store's audit trails. A mutation writes an entry together with the change that it describes. Here trails are
//! read and trimmed.
//!
//! Trimming is the one thing that removes evidence, so one mistake must not remove much of it. The store judges the age of
//! each entry by its own clock, only where the gateway's clock agrees with that, and of each trail it gives up a `share` in a
//! day.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{StoreFault, StoreFuture};
use crate::vocabulary::audit::{Ends, Entry, Trail};
use crate::vocabulary::clock::{AGREED, UnixMillis, ahead};

/// In a day, by the store's clock, a tenth of a trail may be trimmed.
pub(super) const SHARE: u64 = 10;
/// But at least this many entries, so that a short trail has an end.
pub(super) const AT_LEAST: u64 = 10;
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How many of a trail's entries may be trimmed in a day.
pub(super) const fn share(entries: u64) -> u64 {
    let tenth = entries / SHARE;
    if tenth < AT_LEAST { AT_LEAST } else { tenth }
}

/// How a trail is trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The date by the gateway's own clock.
    pub own: UnixMillis,
    /// Entries older than this are removed.
    pub retention: Duration,
    pub pace: Pace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At most a share of the trail in a day.
    Daily,
    /// All that is old: an operator wants it so.
    AtOnce,
}

/// Why nothing is deleted for its age now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// The store's clock cannot be read: the right to ask for it is missing.
    Unread,
    /// The clocks of the gateway and the store differ by more than [`AGREED`].
    Apart {
        /// By how many milliseconds that of the gateway is ahead; negative if it is behind.
        ahead: i64,
    },
}

impl Held {
    /// Whether the clock of a gateway and that of the store are apart.
    pub(super) fn judge(own: UnixMillis, store: UnixMillis) -> Option<Self> {
        let ahead = ahead(own, store);
        (u128::from(ahead.unsigned_abs()) > AGREED.as_millis()).then_some(Self::Apart { ahead })
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unread => f.write_str(
                "the clock of Redis cannot be read: give the user the right to TIME (+time), by which the age of records is \
                 judged",
            ),
            Self::Apart { ahead } => {
                let by = Duration::from_secs(ahead.unsigned_abs() / 1000);
                let way = if *ahead > 0 { "ahead of" } else { "behind" };
                write!(
                    f,
                    "the clock of this gateway is {} {way} the store's, so nobody can tell how old a record is: set the one that \
                     is wrong",
                    humantime::format_duration(by)
                )
            }
        }
    }
}

/// Whether a trail may be trimmed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// The store's date, and how many entries may go today.
    Open {
        now: UnixMillis,
        entries: u64,
    },
    Held(Held),
}

/// The outcome of trimming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trimmed {
    /// So many entries were removed.
    Removed(u64),
    Held(Held),
}

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

    /// Whether the trail may be trimmed now by a gateway whose clock shows `own`.
    fn allowance(&self, trail: Trail, own: UnixMillis) -> StoreFuture<'_, Result<Allowance, StoreFault>>;

    /// Removes the oldest entries up to number `through`, which must be there, up to the first that is not old or that the pace
    /// does not allow, and keeps the link of the last as the checkpoint. An entry whose age cannot be read goes with an old one
    /// after it. Removes nothing if entry `through` does not exist. After a fault some entries may be removed, up
    /// to the new checkpoint; repeating the call is safe.
    fn trim(&self, trail: Trail, through: u64, terms: Terms) -> StoreFuture<'_, Result<Trimmed, StoreFault>>;

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
