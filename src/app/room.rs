//! What the machine lets the process have, and how it is shared out: file descriptors and memory, to clients, to
//! upstreams, and to what must always have some.

use std::fs::read_to_string;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept free for the store, the operators' listeners, logs, lookups of names, and for each worker what its
/// runtime needs.
const KEPT_FREE: usize = 160;
const KEPT_FREE_BY_WORKER: usize = 4;
/// Requests in flight that are worth having, however much room there is.
const IN_FLIGHT: usize = 1 << 16;
/// The memory of a request in flight that stands still in both directions, in bytes, with its two connections: 260,000
/// were seen (`cargo test --test it memory`). Three quarters of the memory are for them.
const OF_ONE_REQUEST: u64 = 256 << 10;

/// Room for connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    files: usize,
    memory: u64,
    /// Connections of clients.
    pub(super) clients: usize,
    /// Connections to upstreams.
    pub(super) upstreams: usize,
    wanted: usize,
}

impl Room {
    /// Raises the limit of open files to the most that the process may have, and shares it out. `max_connections` is what
    /// the configuration says.
    pub(super) fn share_out(max_connections: usize, workers: usize) -> Self {
        raise_limit();
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::of(usize::try_from(files).unwrap_or(usize::MAX), memory(), max_connections, workers)
    }

    /// Each connection of a client can need one to an upstream; over HTTP/2 it can need many.
    fn of(files: usize, memory: u64, max_connections: usize, workers: usize) -> Self {
        let free = files.saturating_sub(KEPT_FREE + KEPT_FREE_BY_WORKER * workers);
        let clients = max_connections.min(free / 2).max(1);
        let in_memory = usize::try_from(memory / 4 * 3 / OF_ONE_REQUEST).unwrap_or(usize::MAX);
        let upstreams = IN_FLIGHT.min(free.saturating_sub(clients)).min(in_memory).max(1);
        Self { files, memory, clients, upstreams, wanted: max_connections }
    }

    /// For the log, at the start.
    pub(super) fn described(&self) -> String {
        let Self { files, memory, clients, upstreams, wanted } = self;
        let room = format!(
            "room for {clients} connections of clients and {upstreams} to upstreams: {files} open files, {} MiB of memory",
            memory >> 20
        );
        if clients < wanted {
            return format!(
                "{room}; server.max_connections says {wanted}: raise the limit of open files (LimitNOFILE, ulimit -n)"
            );
        }
        room
    }
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

    const GIB: u64 = 1 << 30;

    #[test]
    fn clients_get_half_of_the_files_at_most_and_upstreams_what_is_left() {
        for (files, memory, clients, upstreams) in [
            (1024, GIB, 428, 428),
            (4000, GIB, 1916, 1916),
            (20_000, 8 * GIB, 9916, 9916),
            (1 << 20, 64 * GIB, 10_000, 65_536),
            (1 << 20, GIB / 2, 10_000, 1536),
            (64, GIB, 1, 1),
        ] {
            let room = Room::of(files, memory, 10_000, 2);
            assert_eq!((room.clients, room.upstreams), (clients, upstreams), "{files}, {memory}");
            assert!(room.clients + room.upstreams + KEPT_FREE <= files.max(162), "{files}");
        }
    }

    #[test]
    fn too_few_open_files_are_told_with_what_to_do() {
        assert_eq!(
            Room::of(1024, GIB, 10_000, 2).described(),
            "room for 428 connections of clients and 428 to upstreams: 1024 open files, 1024 MiB of memory; \
             server.max_connections says 10000: raise the limit of open files (LimitNOFILE, ulimit -n)"
        );
        assert_eq!(
            Room::of(4000, GIB, 500, 2).described(),
            "room for 500 connections of clients and 3072 to upstreams: 4000 open files, 1024 MiB of memory"
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
