//! Where keys are kept.
//!
//! One trait, several back ends. A lookup has three outcomes, and "the store is broken" is never "no such
//! key". A change is one [`Mutation`]: all of it happens or nothing does.

pub mod answers;
pub mod cache;
pub mod compaction;
pub mod embedded;
pub mod events;
pub mod fence;
#[cfg(test)]
mod fence_model;
#[cfg(test)]
mod fence_tests;
pub mod finding;
pub mod graves;
pub mod indexes;
pub mod keeper;
pub mod measured;
pub mod outbox;
pub mod prefixes;
pub mod quotas;
pub mod redis;
pub mod trails;
pub mod unreadable;
pub mod usage;
pub mod whole;

/// The primitives of the fence. Its model uses those of loom instead.
mod sync {
    pub(super) use std::sync::RwLock;
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::vocabulary::audit::Append;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{
    BadRecord, Email, KeyRecord, OrgRecord, RecordFormat, Stored, Versioned,
};
use crate::vocabulary::key::{Digest, Environment, Peppers};
use answers::{Answers, KeptAnswer};
use events::{EventSink, Seq, Subject};
use indexes::{Full, Room};
use keeper::{Keeper, Place};
use outbox::{News, Outbox};
use quotas::Quotas;
use trails::Trails;
use unreadable::{Listed, all_read};
use usage::Usage;

/// The rights of a gateway in its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It forwards requests and changes keys.
    #[default]
    Full,
    /// It only forwards requests: it reads, follows the events, and writes nothing but its lease.
    Proxy,
}

/// A store's answer to "whose secret is this?".
#[derive(Clone, Debug)]
pub enum Lookup {
    Found(Arc<Found>),
    Absent,
    /// The store could not tell. Never treated as [`Lookup::Absent`].
    Unavailable(StoreFault),
}

/// A key and its organisation, read at the same moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub key: KeyRecord,
    pub org: OrgRecord,
    /// The digest of the secret that was looked up, as the key's record and events name it.
    pub digest: Digest,
}

/// Why a store gave no answer; for the log.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreFault {
    #[error("the store failed: {0}")]
    Failed(Arc<str>),
    #[error("the store did not answer in time")]
    TimedOut,
    /// The store was not asked.
    #[error("too many lookups wait for their turn")]
    Exhausted,
    /// This gateway, or another one with a lease, is too old for the change. Nothing was changed.
    #[error("{0}")]
    Outdated(Arc<str>),
    /// The store answers, and this one record cannot be read. It says nothing about others.
    #[error("the record of {place} cannot be read: {why}")]
    Unreadable { place: Place, why: Arc<str> },
}

impl StoreFault {
    pub fn failed(cause: impl fmt::Display) -> Self {
        Self::Failed(cause.to_string().into())
    }

    fn unreadable(place: Place, why: impl fmt::Display) -> Self {
        Self::Unreadable { place, why: why.to_string().into() }
    }

    /// `found` is the format of the store, or what is to be written; this gateway keeps formats up to `kept`.
    fn outdated(found: RecordFormat, kept: RecordFormat) -> Self {
        let text = format!(
            "the store needs gateways that keep records of format {found}, and this one keeps formats up to {kept}: it \
             makes no changes; make them at a gateway of the newer version, and upgrade this one"
        );
        Self::Outdated(text.into())
    }
}

impl From<BadRecord> for StoreFault {
    fn from(bad: BadRecord) -> Self {
        match bad {
            BadRecord::Newer { .. } => Self::Outdated(bad.to_string().into()),
            bad => Self::failed(bad),
        }
    }
}

/// One change, with everything that belongs to it.
#[derive(Clone, Debug, Default)]
pub struct Mutation {
    pub org: Option<Change<OrgRecord>>,
    pub key: Option<Change<KeyRecord>>,
    /// A [tombstone](crate::vocabulary::key::tombstone), which takes the place of a key's record that cannot be read, of
    /// another tombstone, or of nothing. If the record can be read, the mutation fails with [`CommitError::Conflict`].
    pub tombstone: Option<KeyRecord>,
    /// The keys or organisations that lose rights; empty for a creation, which is no event.
    pub subjects: Vec<Subject>,
    /// Records that the decision rests on and that do not change. If one has changed since, or is gone, the mutation
    /// fails with [`CommitError::Conflict`].
    pub seen: Vec<Seen>,
    /// The index of an e-mail address that an organisation takes.
    pub email: Option<EmailClaim>,
    pub answer: Option<KeptAnswer>,
    pub audit: Option<Append>,
    pub news: Option<News>,
    /// The room that the new key needs.
    pub room: Option<Room>,
    /// Whether a new key must be the newest of its organisation, whose keys are listed by their ids, whatever clocks these are of.
    /// Else the mutation fails with [`CommitError::NotNewest`].
    pub newest: bool,
    /// The format that every gateway must be able to keep before this is written, beyond what the records in it need.
    pub needs: RecordFormat,
    /// What was known of the store's pepper before anything of this was made ([`Peppers::row_name`]): its digests, the index of
    /// an address, the audit record. If it is another one now, the mutation fails with [`CommitError::Conflict`].
    pub under: Option<String>,
}

impl Mutation {
    /// The format that every gateway must be able to keep before this is written.
    #[must_use]
    pub fn format(&self) -> RecordFormat {
        let org = self.org.as_ref().map(Change::format).unwrap_or_default();
        let key = self.key.as_ref().map(Change::format).unwrap_or_default();
        self.needs.max(org).max(key)
    }
}

/// A record as a decision saw it, by its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Key { id: KeyId, rev: u64 },
    Org { id: OrgId, rev: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmailClaim {
    pub index: [u8; 32],
    /// The index of the same address under the pepper before. It must be free, too.
    pub before: Option<[u8; 32]>,
    pub org: OrgId,
}

impl EmailClaim {
    #[must_use]
    pub fn under(peppers: &Peppers, email: &Email, org: OrgId) -> Self {
        let (current, before) = peppers.sealing();
        let before = before.map(|before| email.index(Some(&before)));
        Self { index: email.index(current.as_ref()), before, org }
    }
}

#[derive(Clone, Debug)]
pub enum Change<T> {
    /// A new record. Its id, and a key's digests, must be free.
    Insert(T),
    /// The new content of the record whose last change was number `rev`. A key keeps its organisation and its
    /// environment: if either differs, the key counts as missing.
    Update { rev: u64, record: T },
}

impl<T: Stored> Change<T> {
    fn format(&self) -> RecordFormat {
        let (Self::Insert(record) | Self::Update { record, .. }) = self;
        record.format()
    }
}

/// The result of a committed mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The number of its event, if it was one.
    pub event: Option<Seq>,
}

/// Which keys are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysOf {
    All,
    Org(OrgId),
    /// Those of one organisation in one environment.
    Environment(OrgId, Environment),
}

impl KeysOf {
    #[must_use]
    pub const fn org(self) -> Option<OrgId> {
        match self {
            Self::All => None,
            Self::Org(org) | Self::Environment(org, _) => Some(org),
        }
    }
}

/// How long a gateway counts after its last sign of life. A gateway that is configured to refuse keys while it is cut
/// off begins to refuse them no later than this.
pub const LEASE: Duration = Duration::from_secs(10);

/// How far an event has come among the gateways that may let keys in: those that hold a lease, and those whose lease lapsed
/// without being given up, for as long as they may serve what they know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Propagation {
    pub event: Seq,
    /// All of them: those that have confirmed it, and those that are named here.
    pub gateways: usize,
    /// The number of them that have applied it.
    pub confirmed: usize,
    /// Those that hold a lease and have not confirmed it.
    pub awaited: Vec<Box<str>>,
    /// Those that hold no lease any more and have not confirmed it. They have ended without a word, or are cut off; nobody
    /// waits for them.
    pub lapsed: Vec<Box<str>>,
    /// The time until the last of them confirmed it, or until waiting ended: from a store since it was asked, in an answer
    /// since the request arrived.
    pub took: Duration,
}

impl Propagation {
    /// Of an event in a store that has one gateway, which applies it before anybody is told.
    #[must_use]
    pub const fn at_the_only_gateway(event: Seq) -> Self {
        let took = Duration::ZERO;
        Self { event, gateways: 1, confirmed: 1, awaited: Vec::new(), lapsed: Vec::new(), took }
    }

    /// Whether no gateway can act on what was before the event.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.confirmed == self.gateways
    }

    /// Whether every gateway with a lease has confirmed the event.
    #[must_use]
    pub const fn is_confirmed(&self) -> bool {
        self.awaited.is_empty()
    }
}

/// `confirmed=7/7; slowest_ms=41`, or `confirmed=1/2; lapsed=1; slowest_ms=3`
impl fmt::Display for Propagation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gateways, confirmed, lapsed, took, .. } = self;
        write!(f, "confirmed={confirmed}/{gateways}; ")?;
        if !lapsed.is_empty() {
            write!(f, "lapsed={}; ", lapsed.len())?;
        }
        write!(f, "slowest_ms={}", took.as_millis())
    }
}

/// For which gateways a caller waits that wants to know how far an event has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Those with a lease that have answered lately: one that has let several callers in a row wait in vain, as one that was
    /// killed does, is only reported.
    Responsive,
    /// All with a lease.
    All,
}

/// Why a mutation did not happen. Except for `Fault`, which may leave the outcome open, nothing was changed.
///
/// If several apply, `Answered` comes first, then `EmailTaken`, then whether there is room: in a race the records may have changed because the
/// winner carried out the same request.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CommitError {
    /// A record, or the end of the audit trail, changed since it was read: read it again and decide anew.
    #[error("the record was changed meanwhile")]
    Conflict,
    /// The e-mail address is another organisation's.
    #[error("the e-mail address is taken")]
    EmailTaken,
    /// An answer is already kept under this index: the same request was carried out before.
    #[error("the request was answered before")]
    Answered,
    /// The organisation has as many live keys as it may have, or the key has made as many.
    #[error("there are as many live keys as there may be")]
    Full(Full),
    /// As many keys were made as may be made in a while.
    #[error("too many new keys")]
    TooFast { retry_after: Duration },
    /// Not all keys of the organisation are in its indexes. No caller of a store sees it.
    #[error("keys are missing in the indexes")]
    Unindexed,
    /// The organisation has a key with a later id, which this is: draw one after it, and decide anew.
    #[error("a newer key is in the list")]
    NotNewest { newest: [u8; 16] },
    /// The store does not accept what a new secret begins with.
    #[error("keys with this prefix are not accepted any more")]
    PrefixRemoved,
    /// The id or a digest is taken.
    #[error("the record exists already")]
    Exists,
    /// The record to update, or the organisation of a new key, does not exist.
    #[error("the record does not exist")]
    Missing,
    #[error(transparent)]
    Fault(#[from] StoreFault),
}

pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A back end. Every future runs on the control runtime, never on a worker.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The key that a digest opens. Revoked and expired keys are found too: the caller judges the state.
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup>;

    /// The same for a presented secret, by its [fingerprint](crate::vocabulary::key::PresentedKey::fingerprint): under every
    /// pepper that belongs to the store, at one moment.
    fn lookup_secret(&self, fingerprint: Digest) -> StoreFuture<'_, Lookup>;

    /// The fault with which a lookup would fail at once now, if the store has failed so often that it is not asked
    /// for a while.
    fn spared(&self) -> Option<StoreFault>;

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>>;

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>>;

    /// At most `limit` keys, newest first (descending by id), starting after the key `after`. Reads no others.
    fn list_keys(
        &self,
        of: KeysOf,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<KeyRecord>>, StoreFault>>;

    /// At most `limit` organisations, newest first, starting after `after`.
    fn list_orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<OrgRecord>>, StoreFault>>;

    /// As [`Store::list_keys`], for whoever must miss none.
    ///
    /// # Errors
    /// Also [`StoreFault::Unreadable`].
    fn keys(
        &self,
        of: KeysOf,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<KeyRecord>>, StoreFault>> {
        Box::pin(async move { all_read(self.list_keys(of, after, limit).await?) })
    }

    /// As [`Store::list_orgs`], for whoever must miss none.
    ///
    /// # Errors
    /// Also [`StoreFault::Unreadable`].
    fn orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<OrgRecord>>, StoreFault>> {
        Box::pin(async move { all_read(self.list_orgs(after, limit).await?) })
    }

    /// Durable when it returns `Ok`, and its event applied to every sink.
    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>>;

    /// Waits until an event holds at every one of these gateways, but no longer than `within`.
    ///
    /// # Errors
    /// A fault says nothing about the event: it was committed before.
    fn propagation(
        &self,
        event: Seq,
        within: Duration,
        awaited: Awaited,
    ) -> StoreFuture<'_, Result<Propagation, StoreFault>>;

    /// Inserts many keys of existing organisations. Each key is inserted whole or not at all, independently of the
    /// others. The outcomes are in the order of the keys: [`CommitError::Exists`] for an id or a digest that is
    /// taken, [`CommitError::Missing`] for an organisation that does not exist.
    ///
    /// # Errors
    /// After a fault some of them may be inserted; repeating the call is safe.
    fn import(
        &self,
        keys: Vec<KeyRecord>,
    ) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>>;

    /// Tells `sink` the current event number, and from then on every event, for the life of the store.
    fn subscribe(&self, sink: Arc<dyn EventSink>);

    /// The operations for operators.
    fn keeper(&self) -> &dyn Keeper;

    fn trails(&self) -> &dyn Trails;

    fn answers(&self) -> &dyn Answers;

    fn usage(&self) -> &dyn Usage;

    fn outbox(&self) -> &dyn Outbox;

    fn quotas(&self) -> &dyn Quotas;
}
