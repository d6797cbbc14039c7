//! Keys that a store brings back to life.
//!
//! A store that failed over to a replica which lacked the last changes, or was restored from a backup, may
//! take for alive what this process was told is revoked. The fence remembers. Such a key is refused here
//! whatever the store says of it, and reported, so that its revocation is written again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::ReadThrough;
use crate::store::{Found, Lookup};
use crate::vocabulary::key::Digest;

/// Revocations that are looked up after a store may have lost some, the newest first.
const LOOKED_UP: usize = 4096;
/// How long a store that cannot answer is left alone, and how often it is asked again.
const PATIENCE: Duration = Duration::from_millis(100);
const TRIES: usize = 50;

/// Looks after every doubt whether the store still knows what was revoked. Ends with the cache.
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

    /// What was found, without the secrets that are remembered as revoked. A key of which none is left is
    /// reported.
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
            // No room: it will be looked up again, and reported again.
            let _ = self.revive.try_send(known.key.id);
        }
        Arc::new(known)
    }
}
