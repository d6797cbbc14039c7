//! Counts within windows of time: signups, and signs of trouble. Losing them revokes nothing.

use std::time::Duration;

use super::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;

/// At most `limit` within `window`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The name of the counter, from letters, digits and `:./-`.
    pub name: String,
    pub limit: u32,
    pub window: Duration,
}

/// The answer to a request for a place under quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted,
    /// At least one quota is used up; after this time the last of these begins anew.
    Refused {
        retry_after: Duration,
    },
}

/// A store's quotas.
pub trait Quotas: Send + Sync {
    /// Counts one more under every quota, or under none if any is used up. Windows are fixed: the first count begins
    /// a window. It outlives the gateways.
    fn admit(&self, quotas: Vec<Quota>, now: UnixMillis) -> StoreFuture<'_, Result<Admission, StoreFault>>;
}
