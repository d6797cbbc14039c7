//! The read-through cache and its fence.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many keys are kept.
    pub capacity: u64,
    /// How long a key is served without asking the store.
    pub ttl: Duration,
    /// How long an unknown key is refused without asking the store.
    pub negative_ttl: Duration,
    /// How much longer than `ttl` a key is served while the store cannot answer.
    pub stale_window: Duration,
    /// How many lookups may be under way at once.
    pub max_lookups: usize,
    /// How long one lookup may take.
    pub lookup_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: 100_000,
            ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
            stale_window: Duration::from_secs(300),
            max_lookups: 256,
            lookup_timeout: Duration::from_secs(1),
        }
    }
}
