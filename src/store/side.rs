//! What the API keeps beside keys: answers to be given again, when keys were used, news for the upstream,
//! counts of signups. None of it decides whether a key is valid, and losing it revokes nothing.

use std::time::Duration;

use super::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::usage::{Usage, Used};

/// An answer that is kept to be given again. Only who sent the request can find it or open it.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    pub index: [u8; 32],
    pub sealed: Vec<u8>,
    pub made_at: UnixMillis,
    /// From then on it is as if it had never been kept.
    pub ends_at: UnixMillis,
}

impl std::fmt::Debug for KeptAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptAnswer").field("ends_at", &self.ends_at).finish_non_exhaustive()
    }
}

/// News of an organisation for the upstream, until they are delivered. An organisation has one at a time: newer
/// ones take the place of older.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    pub org: OrgId,
    /// When it is to be sent, for the first time or again.
    pub due: UnixMillis,
    pub body: Vec<u8>,
}

/// So many in so long a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Who or what is counted; of letters, digits and `:./-`.
    pub name: String,
    pub limit: u32,
    pub window: Duration,
}

/// What asking for a place under quotas came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted,
    /// One or several of them are used up; after this time the last of these begins anew.
    Refused {
        retry_after: Duration,
    },
}

pub trait Side: Send + Sync {
    /// The sealed answer that is kept under this index at the moment `now`.
    fn answer(
        &self,
        index: [u8; 32],
        now: UnixMillis,
    ) -> StoreFuture<'_, Result<Option<Vec<u8>>, StoreFault>>;

    /// Merges uses into what is known. Of a key that is not there nothing is kept.
    fn note_usage(&self, used: Vec<Used>) -> StoreFuture<'_, Result<(), StoreFault>>;

    /// The usage of each of these keys, in their order; `None` for one that was never used.
    fn usage(&self, keys: Vec<KeyId>) -> StoreFuture<'_, Result<Vec<Option<Usage>>, StoreFault>>;

    /// At most `limit` news that are due at `now`, the longest due first, which are then not due before `until`:
    /// so two gateways do not send the same at the same time.
    fn claim_news(
        &self,
        now: UnixMillis,
        until: UnixMillis,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<News>, StoreFault>>;

    /// The news of each of these organisations, in their order, due or not; they are left unclaimed. For moving a
    /// store.
    fn news(&self, orgs: Vec<OrgId>) -> StoreFuture<'_, Result<Vec<Option<News>>, StoreFault>>;

    /// How many news wait to be delivered, due or not.
    fn backlog(&self) -> StoreFuture<'_, Result<u64, StoreFault>>;

    /// These news were taken.
    fn delivered(&self, org: OrgId) -> StoreFuture<'_, Result<(), StoreFault>>;

    /// Counts one more under every quota, or under none if any is used up. Windows are fixed: the first count
    /// begins one, and it goes on when every gateway has ended.
    fn admit(&self, quotas: Vec<Quota>, now: UnixMillis) -> StoreFuture<'_, Result<Admission, StoreFault>>;
}
