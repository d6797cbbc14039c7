//! A store as a whole: told in pieces as it is at one moment, and filled with such pieces. For backups.
//!
//! Records are told as they are sealed, also those that cannot be read. What follows from a record is not told: the lists that
//! it is in, the digests that lead to it, the index of an address. It is made anew.

use thiserror::Error;
use tokio::sync::mpsc;

use super::keeper::Place;
use super::{StoreFault, StoreFuture};
use crate::vocabulary::audit::{Ends, Entry, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::gone::Stone;
use crate::vocabulary::key::record::RecordFormat;

/// What a store says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// 32 hexadecimal digits.
    pub incarnation: String,
    /// The number of the last event.
    pub event: u64,
    pub format: RecordFormat,
    pub prefixes: Option<String>,
    /// The row about its pepper.
    pub peppers: Option<String>,
}

/// A part of a store. Of several pieces about the same thing the last one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A record as it is sealed.
    Record { of: Place, sealed: Vec<u8> },
    /// The text of a key's [`Usage`](crate::vocabulary::key::usage::Usage).
    Used { key: KeyId, usage: String },
    /// News that are proven to be ours.
    News { org: OrgId, due: UnixMillis, body: Vec<u8> },
    /// A name that a key had which is gone.
    Gone(Stone),
    /// Entries of a trail, in their order, and its ends. Further pieces of a trail go on where the last one ended.
    Entries { trail: Trail, ends: Ends, entries: Vec<Entry> },
    /// From here on every record is newer than one that was told before, or was not told yet.
    Newer,
}

/// Where pieces are handed over. Nobody takes them any more if this fails.
pub type Pieces = mpsc::Sender<Vec<Piece>>;

/// Nobody takes the pieces any more.
pub(super) fn given_up<E>(_: E) -> StoreFault {
    StoreFault::failed("nobody takes the backup any more")
}

/// Why a store cannot be filled.
#[derive(Debug, Error)]
pub enum FillError {
    #[error("{place} is not empty ({what}): a backup is restored into an empty store only")]
    Occupied { place: String, what: &'static str },
    #[error(
        "another restore into {place} was broken off: run that one to its end, or empty the store, and then run this again"
    )]
    Begun { place: String },
    #[error("{0}; the store is not served before the restore has ended: run it again")]
    Fault(#[from] StoreFault),
    #[error("{0}")]
    Unusable(String),
}

/// An empty store that is being filled. Nobody is served from it before [`Fill::end`].
pub trait Fill: Send + Sync {
    /// Marks the store, which must be empty, or have been marked with this name before.
    fn begin<'f>(&'f self, head: &'f Head, name: &'f str) -> StoreFuture<'f, Result<(), FillError>>;

    /// Puts pieces in, each with everything that follows from it. Repeating it is safe.
    fn put(&self, pieces: Vec<Piece>) -> StoreFuture<'_, Result<(), FillError>>;

    /// The store is whole, and serves from now on.
    fn end<'f>(&'f self, head: &'f Head) -> StoreFuture<'f, Result<(), FillError>>;
}
