//! Turns: changes to one organisation are made one after the other.
//!
//! An audit record follows the last record of its trail, so of two changes to one organisation only one can be
//! committed on the same end; the other is decided again. Within a process the changes take turns, so that this
//! happens only between gateways.

use tokio::sync::{Mutex, MutexGuard};

use crate::vocabulary::audit::Trail;

/// Locks for all trails. Trails that share a lock wait for each other without need.
const TURNS: usize = 64;

/// The turns to change trails.
#[derive(Debug)]
pub(super) struct Turns([Mutex<()>; TURNS]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Turns {
    /// Waits for the turn to change `trail`; it lasts until the guard is dropped.
    pub(super) async fn take(&self, trail: Trail) -> MutexGuard<'_, ()> {
        // The last bytes of an identifier are random.
        let place = usize::from(trail.to_bytes()[15]) % TURNS;
        self.0[place].lock().await
    }
}
