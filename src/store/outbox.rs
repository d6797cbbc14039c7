//! News of organisations that wait to be delivered to the upstream. Losing them revokes nothing.

use super::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;

/// News of an organisation for the upstream, until they are delivered. An organisation has one at a time: newer news
/// replace older.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    pub org: OrgId,
    /// When it is to be sent, for the first time or again.
    pub due: UnixMillis,
    pub body: Vec<u8>,
}

/// A store's undelivered news. They are written by mutations, together with the change that they tell of.
pub trait Outbox: Send + Sync {
    /// At most `limit` news that are due at `now`, the longest due first. They are then not due before `until`, so
    /// that two gateways do not send the same news at the same time.
    fn claim(
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

    /// Removes the news of an organisation, which the upstream has taken.
    fn delivered(&self, org: OrgId) -> StoreFuture<'_, Result<(), StoreFault>>;

    /// News without a proof that this installation has written them: an older release has, or somebody who can write to
    /// the store. They are not claimed until they are released. Tells how many there are, and the organisations of at most
    /// `limit` of them, after this one. A store to which only keygate can write has none.
    fn held(
        &self,
        _after: Option<OrgId>,
        _limit: usize,
    ) -> StoreFuture<'_, Result<(u64, Vec<OrgId>), StoreFault>> {
        Box::pin(async { Ok((0, Vec::new())) })
    }

    /// Puts these news in the place of held ones of the same organisation, if there are any. `rev` is the revision of its
    /// record.
    fn release(&self, _news: News, _rev: u64) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(async { Ok(()) })
    }
}
