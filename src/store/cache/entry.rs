//! A known key as the process caches it.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::OF_ONE_KEY;
use crate::store::Found;
use crate::vocabulary::clock::Now;

/// What it takes without its texts: both records, three secrets, the identity headers, and what the cache needs.
const OF_ONE_RECORD: usize = 1700;
/// What a scope takes beside its name.
const OF_ONE_SCOPE: usize = 32;
/// The last part of an entry's time, in which its use has it loaded again.
const REFRESHED_IN_LAST: u32 = 5;

/// A known key as the process caches it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) found: Arc<Found>,
    pub(super) stamp: AtomicU64,
    pub(super) loaded_at: Instant,
    pub(super) ttl: Duration,
    /// When it may be loaded again ahead of its time, in milliseconds of the cache's life; [`REPLACED`] once
    /// that was done.
    pub(super) next_refresh: AtomicU64,
    /// What the threads [prepare](super::Prepared::Common) for the key. This module does not know what it is.
    pub(super) common: OnceLock<Arc<dyn Any + Send + Sync>>,
}

/// The mark of an entry that was loaded again.
pub(super) const REPLACED: u64 = u64::MAX;

impl Entry {
    /// How many keys it counts as: what its texts take beyond [`OF_ONE_KEY`] counts as others.
    pub(super) fn weight(&self) -> u32 {
        let Found { key, org, .. } = &*self.found;
        let texts = [&key.name, &key.created_by, &org.name];
        let optional = [&key.owner, &key.note].into_iter().flatten();
        let texts: usize = texts.into_iter().chain(optional).map(String::len).sum();
        let scopes: usize = key.scopes.iter().map(|scope| scope.as_str().len() + OF_ONE_SCOPE).sum();
        let size = OF_ONE_RECORD + texts + scopes + key.allowed_addresses.len() * size_of::<IpNet>();
        u32::try_from(size.div_ceil(OF_ONE_KEY as usize)).unwrap_or(u32::MAX)
    }

    pub(super) fn age(&self, now: Now) -> Duration {
        now.mono.saturating_duration_since(self.loaded_at)
    }

    /// From when on its use has it loaded again.
    pub(super) fn is_aged(&self, now: Now) -> bool {
        self.age(now) >= self.ttl - self.ttl / REFRESHED_IN_LAST
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.next_refresh.load(Ordering::Acquire) == REPLACED
    }

    /// What all threads share of what is prepared for the key.
    pub(super) fn common<C: for<'f> From<&'f Found> + Send + Sync + 'static>(&self) -> Arc<C> {
        let made = || Arc::new(C::from(&self.found)) as Arc<dyn Any + Send + Sync>;
        let common = Arc::clone(self.common.get_or_init(made));
        // Every thread prepares the same.
        common.downcast().unwrap_or_else(|_| Arc::new(C::from(&self.found)))
    }
}
