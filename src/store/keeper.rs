//! A store as its operator sees it: its state, and whether it is the store that this process knows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc;

use super::compaction::{Compacted, NotCompacted, Occasion};
use super::events::Seq;
use super::graves::Graves;
use super::prefixes::PrefixBook;
use super::whole::{Head, Pieces};
use super::{StoreFault, StoreFuture};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::RecordFormat;
use crate::vocabulary::key::{Misfit, PepperStatus, Peppers};

/// A file of a store's settings that cannot be read.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct UnreadableFile(Box<str>);

impl UnreadableFile {
    pub(super) fn new(cause: impl fmt::Display) -> Self {
        Self(cause.to_string().into())
    }
}

/// Whether events of other gateways arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    Up,
    /// The reason.
    Down(Arc<str>),
}

/// The state of a store's links, known without a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    pub standing: Standing,
    /// The gateways whose lease has lapsed without being given up and that may still let keys in, when this one last renewed
    /// its lease; `None` while it holds none.
    pub lapsed: Option<usize>,
    /// The name of each link, and whether its breaker is open: then callers fail at once and the store is not asked.
    pub breakers: Vec<(&'static str, bool)>,
    /// Whether the store answers and refuses changes, as a replaced master does; `None` for a store that cannot be
    /// replaced.
    pub is_suspect: Option<bool>,
    /// Whether the store takes only changes that take rights away, because its disk is full; `None` for a store whose disk
    /// this process does not see.
    pub is_full: Option<bool>,
    /// `None` for a store that cannot be set back.
    pub memory: Option<MemoryVitals>,
}

/// What a gateway remembers of changed records, in case its store is set back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryVitals {
    pub records: usize,
    /// Roughly.
    pub bytes: usize,
    /// How often the store had an older record than was remembered.
    pub set_back: u64,
    /// How many were forgotten because there was no room.
    pub dropped: u64,
}

/// How a record of the store stands to what this gateway remembers of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembrance {
    /// It is no older, or nothing is remembered.
    Agrees,
    /// The key is remembered as revoked, and the store has it from before.
    RevocationLost,
    /// It is older.
    ChangeLost,
}

/// The place of a gateway among those of its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// The only gateway that the store can have.
    #[default]
    Alone,
    /// It has no lease: changes do not wait for it.
    Out,
    /// It has a lease. The number of leases when it renewed its own.
    Among(usize),
}

/// A gateway that holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The name that it chose when it started.
    pub gateway: String,
    /// The number of the last event that it has applied.
    pub event: Seq,
    /// Whether this is the gateway that answers.
    pub own: bool,
    /// The highest format of records that it announces.
    #[serde(default)]
    pub format: RecordFormat,
    /// The list of prefixes that it announces; empty for none.
    #[serde(default)]
    pub prefixes: String,
}

/// A gateway that holds no lease any more and has not given it up: it has ended without a word, or is cut off and lets keys in
/// that it knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lapsed {
    pub gateway: String,
    /// The number of the last event that it has applied.
    pub event: Seq,
    /// For how much longer it may do so, in milliseconds.
    pub serves_for_ms: u64,
}

/// The state of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub place: String,
    /// Why it cannot be used as it is; `None` for a store that is well.
    pub trouble: Option<String>,
    /// The identifier of the store that is there. Every store has its own.
    pub found: Option<String>,
    /// The identifier of the store that this process knows.
    pub known: Option<String>,
    /// The number of events so far.
    pub events: Option<u64>,
    /// The format of records that a gateway must be able to keep to join.
    #[serde(default)]
    pub format: Option<RecordFormat>,
    /// The highest format that this process can keep.
    #[serde(default)]
    pub keeps: RecordFormat,
    /// The prefixes of its keys, as the store has them; `None` where none are written down.
    #[serde(default)]
    pub prefixes: Option<String>,
    /// What the store says of its pepper; `None` if it was not asked yet, or does not say.
    #[serde(default)]
    pub pepper: Option<PepperStatus>,
    /// How many news of organisations have no proof that keygate has written them, and wait until they are accepted.
    #[serde(default)]
    pub held_news: u64,
    /// What this gateway remembers; `None` for a store that cannot be set back.
    #[serde(default)]
    pub memory: Option<MemoryVitals>,
    /// The gateways that hold a lease; empty for a store that has only one gateway.
    #[serde(default)]
    pub gateways: Vec<Lease>,
    /// Those that hold none any more and may let keys in.
    #[serde(default)]
    pub lapsed: Vec<Lapsed>,
}

/// A record, by its kind and its id. The order in which records are sealed anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "lowercase")]
pub enum Place {
    Org(OrgId),
    Key(KeyId),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Org(org) => org.fmt(f),
            Self::Key(key) => key.fmt(f),
        }
    }
}

/// The records that a store has looked at, to seal anew those that are under the pepper before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resealed {
    pub looked_at: usize,
    /// How many of them were under the pepper before.
    pub moved: usize,
    /// How many of them open under no pepper: somebody has changed them. No gateway serves them.
    pub unreadable: usize,
    /// Where the next call goes on; `None` at the end.
    pub next: Option<Place>,
    /// The organisations among the records.
    pub orgs: Vec<OrgId>,
}

/// The outcome of accepting a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The identifier of the accepted store.
    pub store: String,
    /// Whether another store was accepted.
    pub changed: bool,
    /// How many news were held and are told to the upstream now, made anew from the records of their organisations.
    #[serde(default)]
    pub news: u64,
    /// How many of them were removed, because their organisations do not exist.
    #[serde(default)]
    pub news_removed: u64,
}

/// The operator's side of a store. Every [`Store`](super::Store) has one; a wrapper returns that of the store behind
/// it.
pub trait Keeper: Send + Sync {
    fn link_state(&self) -> LinkState;

    fn vitals(&self) -> Vitals;

    /// Reads the files again that the store's settings name, such as passwords, for connections that come later. A store
    /// without connections has none.
    ///
    /// # Errors
    /// Which file cannot be read, and what to do. Then what was read before stays in use.
    fn reread_files(&self) -> Result<(), UnreadableFile> {
        Ok(())
    }

    /// Gives up this gateway's lease for good, so that changes do not wait for it. Only for a gateway that no longer
    /// admits requests.
    ///
    /// # Errors
    /// After a fault the lease ends by itself.
    fn leave(&self) -> StoreFuture<'_, Result<(), StoreFault>>;

    /// Says how long this gateway may let keys in that it knows when its lease has lapsed; zero, as before the first call, if
    /// it lets none in then. For so long changes count it as a gateway that may not know of them.
    fn serve_without_lease(&self, _within: Duration) {}

    fn status(&self) -> StoreFuture<'_, Status>;

    /// Makes an empty store if there is none and this process has never seen one. Returns whether it made one. Only
    /// for an operator's first key: a request that could do this would turn an emptied Redis into a store without
    /// keys.
    fn begin(&self) -> StoreFuture<'_, Result<bool, StoreFault>>;

    /// Accepts the store as it is, for every process that knows the same store as this one: a key that it does not
    /// have is unknown from now on. With `older`, and wherever it is another store, records that are older than gateways
    /// remember count, too.
    fn accept(&self, older: bool) -> StoreFuture<'_, Result<Acceptance, StoreFault>>;

    /// Tells, once for each store, of records that may be older than this gateway remembers.
    fn set_back(&self) -> Option<mpsc::Receiver<Place>> {
        None
    }

    /// Reads a record again, and compares it with what is remembered of it. Counts those that are older.
    fn compare(&self, _place: Place) -> StoreFuture<'_, Result<Remembrance, StoreFault>> {
        Box::pin(async { Ok(Remembrance::Agrees) })
    }

    /// Whether the store had an older record than this gateway remembers when it was last read.
    fn is_set_back(&self, _place: Place) -> bool {
        false
    }

    /// Writes the date down from which a store without a clock of its own goes on after a start.
    fn note_time(&self) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(async { Ok(()) })
    }

    fn prefixes(&self) -> &dyn PrefixBook;

    fn graves(&self) -> &dyn Graves;

    /// Whether the peppers of this process are known to be those of the store. Until they are, the gateway is not ready.
    fn is_fit(&self) -> bool;

    /// Why the peppers of this process are not those of the store; `None` if they are, or there is no store yet.
    ///
    /// # Errors
    /// The store cannot be asked now. It is asked again with every lookup.
    fn misfit(&self) -> StoreFuture<'_, Result<Option<Misfit>, StoreFault>>;

    /// Seals some records anew that are under the pepper before the current one: first organisations, then keys, from
    /// `after` on. Each is done whole or not at all, and stays readable all the time. A change that comes in between wins.
    fn reseal(&self, after: Option<Place>) -> StoreFuture<'_, Result<Resealed, StoreFault>>;

    /// Writes down that nothing is under the pepper before any more.
    ///
    /// # Errors
    /// Also if a record is.
    fn finish_reseal(&self) -> StoreFuture<'_, Result<(), StoreFault>>;

    /// Keeps the older peppers of another store, too: keys that come from there may have digests under them.
    fn keep_peppers_of(&self, other: Peppers) -> StoreFuture<'_, Result<(), StoreFault>>;

    /// Hands over everything in the store, in pieces, as it is at one moment, and returns what it says of itself then. When a
    /// key was used last may be of another moment while this runs, and news may be among them that were delivered meanwhile.
    ///
    /// # Errors
    /// A fault, also if nobody takes the pieces any more.
    fn dump(&self, out: Pieces) -> StoreFuture<'_, Result<Head, StoreFault>>;

    /// Makes the store smaller, while it serves. Returns when it is done.
    ///
    /// # Errors
    /// Why it is as it was.
    fn compact(&self, _: Occasion) -> StoreFuture<'_, Result<Compacted, NotCompacted>> {
        Box::pin(async { Err(NotCompacted::NoFile) })
    }
}
