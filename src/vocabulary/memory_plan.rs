//! How the memory that a gateway plans with is shared out.

/// The memory of a process that has no clients and no keys, in bytes. Seen were 30 MiB.
pub const OF_PROCESS: u64 = 32 << 20;
/// The least memory that is planned with, in bytes: the process, its threads and the store take most of it.
pub const LEAST: u64 = 128 << 20;
/// The most memory that is planned with, in bytes.
pub const MOST: u64 = 1 << 50;

/// The parts of the memory, in bytes. An eighth of all is left out: the allocator has more than it has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What is left beside the process itself.
    pub to_share: u64,
    /// For cached keys: what they can take at their worst, and half of what is left at most.
    pub of_keys: u64,
    /// For clients.
    pub of_clients: u64,
}

impl MemoryPlan {
    /// Shares `memory` out, of which `keys` is the worst of the cached keys, and `fixed` something that is always needed.
    #[must_use]
    pub fn of(memory: u64, keys: u64, fixed: u64) -> Self {
        let memory = memory.min(MOST);
        let to_share = (memory - memory / 8).saturating_sub(OF_PROCESS.saturating_add(fixed));
        let of_keys = keys.min(to_share / 2);
        Self { to_share, of_keys, of_clients: to_share - of_keys }
    }
}
