//! Whether a request with a key could be let in at all, for probes: by the keys that the cache knows, or by the store.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::ReadThrough;
use crate::store::Lookup;
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::record::Status;

/// The most entries that are looked at for one that can be used. After a loss of events none can, and there may be many.
const LOOKED_AT: usize = 4096;
/// The longest that a probe waits for the store.
const PROBED_WITHIN: Duration = Duration::from_secs(1);

impl ReadThrough {
    /// Whether some key is known here that opens something now, also if the store does not answer.
    #[must_use]
    pub fn knows_a_usable_key(&self) -> bool {
        let now = self.clock.now().wall;
        self.known.iter().take(LOOKED_AT).any(|(_, entry)| {
            let (key, org) = (&entry.found.key, &entry.found.org);
            let is_good = key.status_at(now) == Status::Active && org.suspended_at.is_none() && !org.pending;
            is_good && self.is_usable(&entry)
        })
    }

    /// Whether the store answers a lookup now, and its answers count.
    pub async fn is_answered(&self) -> bool {
        let within = self.settings.lookup_timeout.min(PROBED_WITHIN);
        // No secret has this digest.
        let asked = timeout(within, self.store.lookup_secret(Digest::from_bytes([0; 32]))).await;
        asked.is_ok_and(|answer| !matches!(self.weigh(answer), Lookup::Unavailable(_)))
    }

    /// Whether this process has not heard from the store for longer than its lease, so that routes that say so let no key in.
    #[must_use]
    pub fn has_lost_store(&self) -> bool {
        self.is_cut_off()
    }

    /// Whether the last lookup failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }
}
