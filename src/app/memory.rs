//! Keeps the memory of the process under a figure, by cutting the connections that hold the most.
//!
//! What the process really has counts, and not what was reserved for the worst case: that is a hundred times what honest
//! clients need. So nobody is refused or cut while there is enough.

use std::fs::read_to_string;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::room::Room;
use crate::downstream::worker::{Memory, Relief, Worker};

/// How often the size of the process is read. A client on the same machine can send some 50 MiB meanwhile.
const LOOK: Duration = Duration::from_millis(25);

/// Shares the places for requests over HTTP/2 out among the workers, and starts watching the size of the process. To be called
/// within the control runtime.
pub(super) fn start(room: Room, workers: &[Worker]) {
    let workers: Vec<_> = workers.iter().map(Worker::memory).collect();
    let places = (room.places / workers.len().max(1)).max(1);
    workers.iter().for_each(|worker| worker.limit_requests(places));
    tokio::spawn(watch(room, workers));
}

/// Reclaims memory from clients where the process has grown too large; runs until the runtime ends, or where the size of the
/// process cannot be read.
async fn watch(room: Room, workers: Vec<Memory>) {
    let threads = workers.len().max(1);
    let kept = room.kept_for_clients() / threads;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(resident) = resident() else { return };
        let excess = usize::try_from(resident.saturating_sub(room.grown())).unwrap_or(usize::MAX);
        if excess > 0 {
            // Twice what is too much, since what connections are said to hold errs upwards, and others fill what is given back.
            let enough = excess.saturating_mul(2).saturating_add(room.reclaimed_at_once()).div_ceil(threads);
            let relief = Relief { enough, kept, is_scarce: resident > room.scarce() };
            workers.iter().for_each(|worker| worker.reclaim(relief));
        }
    }
}

/// The memory that the process has, in bytes.
fn resident() -> Option<u64> {
    pages(&read_to_string("/proc/self/statm").ok()?)?.checked_mul(rustix::param::page_size().try_into().ok()?)
}

/// `107623 5213 1872 1340 0 11327 0`: the second number is the resident one (proc(5)).
fn pages(statm: &str) -> Option<u64> {
    statm.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_the_process_is_read_as_linux_writes_it() {
        assert_eq!(pages("107623 5213 1872 1340 0 11327 0\n"), Some(5213));
        assert_eq!(pages(""), None);
        assert!(resident().is_some_and(|bytes| bytes > 1 << 20));
    }
}
