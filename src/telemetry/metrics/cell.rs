//! One count in memory. A thread that is its only writer needs no atomic read-modify-write.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Adds to a cell that only this thread writes: a plain load and store, where `fetch_add` would lock the bus.
pub(super) fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// The same for a cell that can go down.
pub(super) fn change(cell: &AtomicI64, by: i64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

pub(super) fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}
