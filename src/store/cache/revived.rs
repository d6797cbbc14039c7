//! Keys that a store brings back to life.
//!
//! A store that failed over to a replica without the last changes, or was restored from a backup, may offer a key
//! that this process knows to be revoked. The fence remembers it. Such a key is refused here whatever the store says,
//! and reported, so that its revocation is written again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::ReadThrough;
use crate::store::{Found, Lookup};
use crate::vocabulary::key::Digest;

/// The number of revocations, newest first, that are checked after a store may have lost some.
const LOOKED_UP: usize = 4096;
/// The pause before a store that cannot answer is asked again, and the number of tries.
const PATIENCE: Duration = Duration::from_millis(100);
const TRIES: usize = 50;

/// After every doubt, checks whether the store still knows the revocations. Ends with the cache.
pub(super) async fn look_for(cache: Weak<ReadThrough>, doubt: Arc<Notify>) {
    loop {
        doubt.notified().await;
        let Some(revoked) = cache.upgrade().map(|cache| cache.fence.revoked(LOOKED_UP)) else { return };
        for digest in revoked {
            let Some(cache) = cache.upgrade() else { return };
            cache.look_for_revived(digest).await;
        }
    }
}

impl ReadThrough {
    async fn look_for_revived(&self, digest: Digest) {
        for _ in 0..TRIES {
            match self.store.lookup(digest).await {
                Lookup::Found(found) => return drop(self.without_revived(found)),
                Lookup::Absent => return,
                Lookup::Unavailable(_) => tokio::time::sleep(PATIENCE).await,
            }
        }
    }

    /// The found key, without the secrets that are remembered as revoked. A key without any other secret is reported.
    pub(super) fn without_revived(&self, found: Arc<Found>) -> Arc<Found> {
        let is_revoked = |digest: &Digest| self.fence.is_revoked(digest);
        if found.key.revoked_at.is_some()
            || !found.key.secrets.iter().any(|secret| is_revoked(&secret.digest))
        {
            return found;
        }
        let mut known = Found::clone(&found);
        known.key.secrets.retain(|secret| !is_revoked(&secret.digest));
        if known.key.secrets.is_empty() {
            // The channel is full: the key is reported again at its next lookup.
            let _ = self.revive.try_send(known.key.id);
        }
        Arc::new(known)
    }
}
