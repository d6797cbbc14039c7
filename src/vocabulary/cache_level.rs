//! The level of the cache that answered a lookup of a key.

/// Which level answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The worker's own cache.
    Thread,
    /// The cache of the process.
    Process,
    Store,
    /// The store could not answer, and an entry within the stale window was used.
    Stale,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Thread, Self::Process, Self::Store, Self::Stale];

    /// The name in metrics and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Process => "process",
            Self::Store => "store",
            Self::Stale => "stale",
        }
    }
}
