//! Making a store smaller that keeps the room of what was removed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::StoreFault;

/// Who wants a store to be compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// An operator.
    Ordered,
    /// The gateway, where it is worth the work.
    ByItself,
}

/// What a compaction has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    /// What the file took of the disk, in bytes.
    pub bytes_before: u64,
    pub bytes_after: u64,
    pub took_ms: u64,
    /// How long no change was written while the files changed places.
    pub paused_ms: u64,
}

/// Why a store was not compacted. It is as it was, and serves as before.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NotCompacted {
    #[error("there is nothing to compact: the store is Redis, which manages its memory by itself")]
    NoFile,
    #[error("the store was opened only to read it")]
    ReadOnly,
    #[error("the store is being compacted already; wait for its end")]
    Runs,
    /// Not worth the work.
    #[error("the file holds little that is free")]
    Little,
    #[error(
        "no room to compact the store: its copy takes up to {} MiB beside it, and {} MiB of the disk can be used for that; \
         make room there",
        needed.div_ceil(1 << 20),
        free >> 20
    )]
    NoRoom { needed: u64, free: u64 },
    #[error(
        "the store changed faster than it could be copied, and stays as it is; compact it when there are fewer changes"
    )]
    Overtaken,
    #[error(
        "the file has a table {0:?} of a newer release, which this one cannot copy: compact it with that release"
    )]
    UnknownTable(String),
    #[error("the file could not be copied: {0}; the store stays as it is")]
    Uncopied(String),
    #[error("the store was closed before it was compacted, and stays as it is")]
    Closed,
    #[error(transparent)]
    Fault(#[from] StoreFault),
}

/// Bytes that are free in the file, from which on it is compacted by itself if they are half of it at least.
pub const WORTH: u64 = 64 << 20;

impl Compacted {
    /// `435 MiB before, 61 MiB after; it took 3.2s, and changes waited 12ms at its end`
    #[must_use]
    pub fn told(&self) -> String {
        let Self { bytes_before, bytes_after, took_ms, paused_ms } = self;
        format!(
            "{} before, {} after; it took {}, and changes waited {} at its end",
            size(*bytes_before),
            size(*bytes_after),
            humantime::format_duration(Duration::from_millis(*took_ms)),
            humantime::format_duration(Duration::from_millis(*paused_ms)),
        )
    }
}

/// `435 MiB`, or `12 KiB` for less than one MiB.
fn size(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{} KiB", bytes.div_ceil(1 << 10))
    } else {
        format!("{} MiB", bytes.div_ceil(1 << 20))
    }
}
