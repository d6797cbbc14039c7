//! What the machine lets the process have, and how it is shared out: file descriptors and memory, to clients, to
//! upstreams, and to what must always have some.

use std::fs::read_to_string;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::downstream::worker::{OF_ONE_CONNECTION, OF_ONE_PLACE, OF_TLS, STEP, Worker};
use crate::store::cache::{OF_ONE_KEY, OF_ONE_THREAD};
use crate::vocabulary::memory_plan::{LEAST, MemoryPlan};

/// Descriptors kept free for the store, the operators' listeners, logs, lookups of names, and for each worker what its
/// runtime needs.
const KEPT_FREE: usize = 160;
const KEPT_FREE_BY_WORKER: usize = 4;
/// The memory that each worker needs beside its connections, in bytes.
const OF_ONE_WORKER: usize = STEP + OF_ONE_THREAD;
/// Requests in flight that are worth having, however much room there is.
const IN_FLIGHT: usize = 1 << 16;
/// The memory of a request in flight whose client reads nothing of a long answer, in bytes, with its two connections: 510,000
/// were seen.
const OF_ONE_REQUEST: u64 = 512 << 10;
/// What TLS to its upstream adds, in bytes: what rustls holds at most until the socket has taken it (32 KiB), a record that comes
/// and one that was not read (16 KiB each), and the session.
const OF_UPSTREAM_TLS: u64 = 72 << 10;
/// What the room is shared out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plans {
    pub(super) max_connections: usize,
    /// `cache.capacity`.
    pub(super) keys: u64,
    /// What the store keeps in memory, in bytes.
    pub(super) of_store: u64,
    pub(super) has_tls: bool,
    /// Whether a request may go to an upstream over TLS. A reload that brings the first such upstream does not share out anew.
    pub(super) has_upstream_tls: bool,
    pub(super) workers: usize,
}

/// Room for connections.
///
/// All parts of the memory together, each at its worst, are seven eighths of it. The rest is for what the allocator has and
/// does not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    files: usize,
    memory: u64,
    /// Connections of clients.
    pub(super) clients: usize,
    /// Connections to upstreams.
    pub(super) upstreams: usize,
    /// Memory for keys, in bytes.
    of_keys: u64,
    /// Memory for what clients make keygate hold that is not counted with the connections to upstreams, in bytes.
    held: u64,
    plans: Plans,
}

impl Room {
    /// Raises the limit of open files to the most that the process may have, and shares it out. `planned`, the memory in bytes,
    /// is what the configuration says.
    ///
    /// A machine with less than [`LEAST`] is planned for as if it had that: what clients of good will hold fits, and there would be
    /// room for hardly a connection. The log says what that means.
    pub(super) fn share_out(planned: Option<u64>, plans: Plans) -> Self {
        raise_limit();
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::of(usize::try_from(files).unwrap_or(usize::MAX), planned.unwrap_or_else(memory), plans)
    }

    /// Each connection of a client can need one to an upstream; over HTTP/2 it can need many.
    fn of(files: usize, memory: u64, plans: Plans) -> Self {
        let free = files.saturating_sub(KEPT_FREE + KEPT_FREE_BY_WORKER * plans.workers);
        let keys = plans.keys.saturating_mul(OF_ONE_KEY.into());
        let plan =
            MemoryPlan::of(memory.max(LEAST), keys, plans.of_store + (OF_ONE_WORKER * plans.workers) as u64);
        let MemoryPlan { of_keys, of_clients: left, .. } = plan;
        let held = left / 16 * 3;
        let of_one = (OF_ONE_CONNECTION + if plans.has_tls { OF_TLS } else { 0 }) as u64;
        let clients = plans.max_connections.min(free / 2).min(count(left / 8 * 3 / of_one)).max(1);
        let of_clients = of_one.saturating_mul(clients as u64);
        let of_request = OF_ONE_REQUEST + if plans.has_upstream_tls { OF_UPSTREAM_TLS } else { 0 };
        let requests = count(left.saturating_sub(held + of_clients) / of_request);
        let upstreams = IN_FLIGHT.min(free.saturating_sub(clients)).min(requests).max(1);
        Self { files, memory, clients, upstreams, of_keys, held, plans }
    }

    /// Places for requests over HTTP/2, in half of what can be held: where there are too many requests, some are refused, and no
    /// connection is cut.
    fn places(&self) -> usize {
        count(self.held / 2 / OF_ONE_PLACE as u64)
    }

    /// What it means if there is less memory than is planned with at the least.
    fn want(&self) -> String {
        if self.memory >= LEAST {
            return String::new();
        }
        format!(
            "; keygate plans with {} MiB at the least, so clients can make it need more than there is, and the system ends it \
             then: give the process more memory",
            LEAST >> 20
        )
    }

    /// Gives each worker its part of what clients may make keygate hold.
    pub(super) fn share_out_among(&self, workers: &[Worker]) {
        let threads = workers.len().max(1);
        let (places, memory) = ((self.places() / threads).max(1), count(self.held) / threads);
        workers.iter().for_each(|worker| worker.allow(places, memory));
    }

    /// For the log, at the start.
    pub(super) fn described(&self) -> String {
        let Self { files, clients, upstreams, .. } = self;
        let parts = [self.memory, self.of_keys, self.plans.of_store, self.held];
        let [memory, keys, store, held] = parts.map(|bytes| bytes >> 20);
        let (places, max_connections) = (self.places(), self.plans.max_connections);
        let room = format!(
            "{clients} connections of clients and {upstreams} to upstreams, and {places} requests over HTTP/2: {files} open files, \
             {memory} MiB of memory, of it {keys} MiB for keys, {store} MiB for the store and {held} MiB for \
             what clients send and do not take"
        );
        if *clients < max_connections {
            let free = files.saturating_sub(KEPT_FREE + KEPT_FREE_BY_WORKER * self.plans.workers);
            let remedy = if *clients < free / 2 {
                "give the process more memory, or set cache.capacity to fewer keys"
            } else {
                "raise the limit of open files (LimitNOFILE, ulimit -n)"
            };
            return format!("{room}; server.max_connections says {max_connections}: {remedy}{}", self.want());
        }
        room + &self.want()
    }
}

/// As a count; what does not fit is the most that there can be.
fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Raises the limit of open files to the most that the process may have. The usual soft limit of 1,024 is meant
/// for programs that use `select`.
fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current < maximum || maximum.is_none() && current.is_some() {
        // Where this is refused, the limit stays as it was, and the log says what that means.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// The memory that the process may use, in bytes: the machine's, or what its control group (version 2) is limited to.
/// Where neither can be read, there is no limit.
fn memory() -> u64 {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text));
    let group = read_to_string("/proc/self/cgroup").ok().and_then(|text| limit_of_group(&text));
    machine.into_iter().chain(group).min().unwrap_or(u64::MAX)
}

/// `MemTotal:       24653852 kB`
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// The least limit of the group and of those that it is in. `cgroup` has a line `0::/path`.
fn limit_of_group(cgroup: &str) -> Option<u64> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let groups = Path::new("/sys/fs/cgroup").join(path);
    let limits = groups.ancestors().filter_map(|group| read_to_string(group.join("memory.max")).ok());
    limits.filter_map(|limit| limit.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::vocabulary::memory_plan::OF_PROCESS;

    const GIB: u64 = 1 << 30;

    const PLANS: Plans = Plans {
        max_connections: 10_000,
        keys: 100_000,
        of_store: 38 << 20,
        has_tls: false,
        has_upstream_tls: false,
        workers: 2,
    };

    #[test]
    fn clients_get_half_of_the_files_at_most_and_upstreams_what_is_left() {
        for (files, memory, clients, upstreams) in [
            (1024, GIB, 428, 428),
            (4000, GIB, 1916, 833),
            (20_000, 8 * GIB, 9916, 9916),
            (1 << 20, 64 * GIB, 10_000, 65_536),
            (1 << 20, GIB, 4989, 545),
            (1 << 20, GIB / 2, 1484, 162),
            (1 << 20, GIB / 8, 140, 15),
            (64, GIB, 1, 1),
        ] {
            let room = Room::of(files, memory, PLANS);
            assert_eq!((room.clients, room.upstreams), (clients, upstreams), "{files}, {memory}");
            assert!(room.clients + room.upstreams + KEPT_FREE <= files.max(162), "{files}");
        }
    }

    #[test]
    fn all_parts_of_the_memory_at_their_worst_are_seven_eighths_of_it() {
        for memory in [GIB / 8, GIB / 2, GIB, 3 * GIB, 8 * GIB] {
            for (keys, has_tls, workers) in [(1, false, 1), (100_000, true, 2), (100_000_000, false, 4)] {
                let room = Room::of(
                    1 << 20,
                    memory,
                    Plans { keys, has_tls, has_upstream_tls: has_tls, workers, ..PLANS },
                );
                let of_one = if has_tls { OF_ONE_CONNECTION + OF_TLS } else { OF_ONE_CONNECTION };
                let of_clients = (room.clients * of_one) as u64;
                let of_one = OF_ONE_REQUEST + if has_tls { OF_UPSTREAM_TLS } else { 0 };
                let of_requests = room.upstreams as u64 * of_one;
                let fixed = OF_PROCESS + room.plans.of_store + (workers * OF_ONE_WORKER) as u64;
                let all = fixed + room.of_keys + room.held + of_clients + of_requests;
                assert!(all <= memory / 8 * 7, "{memory}, {keys}: {all}");
                assert!(keys > 100_000 || room.of_keys >= keys * u64::from(OF_ONE_KEY) || memory < GIB);
            }
        }
    }

    #[test]
    fn too_few_open_files_are_told_with_what_to_do() {
        assert_eq!(
            Room::of(1024, GIB, PLANS).described(),
            "428 connections of clients and 428 to upstreams, and 1871 requests over HTTP/2: 1024 open files, \
             1024 MiB of memory, of it 195 MiB for keys, 38 MiB for the store and 116 MiB for what clients send and do not take; \
             server.max_connections says 10000: raise the limit of open files (LimitNOFILE, ulimit -n)"
        );
        let few = Plans { max_connections: 500, ..PLANS };
        let room = Room::of(4000, GIB, few).described();
        assert!(room.starts_with("500 connections of clients and 966 to upstreams"), "{room}");
        assert!(!room.contains("max_connections"), "{room}");
        let little = Room::of(1 << 20, GIB / 8, PLANS).described();
        assert!(little.ends_with("more memory, or set cache.capacity to fewer keys"), "{little}");
        let less = Room::of(1 << 20, GIB / 16, PLANS).described();
        assert!(less.starts_with("140 connections of clients and 15 to upstreams"), "{less}");
        assert!(
            less.contains(" 64 MiB of memory") && less.ends_with("give the process more memory"),
            "{less}"
        );
    }

    #[test]
    fn memory_is_read_as_linux_writes_it() {
        let meminfo = "MemTotal:       24653852 kB\nMemFree:         1062308 kB\n";
        assert_eq!(total_memory(meminfo), Some(24_653_852 << 10));
        assert_eq!(total_memory("MemTotal: many\n"), None);
        assert_eq!(limit_of_group("12:memory:/old\n"), None);
        assert!(memory() > 64 << 20);
    }
}
