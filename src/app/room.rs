//! What the machine lets the process have, and how it is shared out: file descriptors and memory, to clients, to
//! upstreams, and to what must always have some.

use std::fs::read_to_string;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::downstream::worker::{OF_ONE_CONNECTION, OF_ONE_PLACE};

/// Descriptors kept free for the store, the operators' listeners, logs, lookups of names, and for each worker what its
/// runtime needs.
const KEPT_FREE: usize = 160;
const KEPT_FREE_BY_WORKER: usize = 4;
/// Requests in flight that are worth having, however much room there is.
const IN_FLIGHT: usize = 1 << 16;
/// The memory of a request in flight whose client reads nothing of a long answer, in bytes, with its two connections: 510,000
/// were seen. Three quarters of the memory are for them.
const OF_ONE_REQUEST: usize = 512 << 10;

/// Room for connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    files: usize,
    memory: u64,
    /// Connections of clients.
    pub(super) clients: usize,
    /// Connections to upstreams.
    pub(super) upstreams: usize,
    /// Requests over HTTP/2.
    pub(super) places: usize,
    wanted: usize,
}

impl Room {
    /// Raises the limit of open files to the most that the process may have, and shares it out. `max_connections` and
    /// `planned`, the memory in bytes, are what the configuration says.
    pub(super) fn share_out(max_connections: usize, planned: Option<u64>, workers: usize) -> Self {
        raise_limit();
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let memory = planned.unwrap_or_else(memory);
        Self::of(usize::try_from(files).unwrap_or(usize::MAX), memory, max_connections, workers)
    }

    /// Each connection of a client can need one to an upstream; over HTTP/2 it can need many.
    fn of(files: usize, memory: u64, max_connections: usize, workers: usize) -> Self {
        let free = files.saturating_sub(KEPT_FREE + KEPT_FREE_BY_WORKER * workers);
        let clients = max_connections.min(free / 2).min(connections(memory)).max(1);
        let upstreams =
            IN_FLIGHT.min(free.saturating_sub(clients)).min(share(memory / 4 * 3) / OF_ONE_REQUEST).max(1);
        let places = (share(memory / 4) / OF_ONE_PLACE).max(1);
        Self { files, memory, clients, upstreams, places, wanted: max_connections }
    }

    /// How large the process may grow before clients that hold much lose connections, in bytes.
    pub(super) const fn grown(&self) -> u64 {
        self.memory / 2
    }

    /// How large it may grow before that can happen to every client, in bytes.
    pub(super) const fn scarce(&self) -> u64 {
        self.memory / 4 * 3
    }

    /// What clients may hold beside their requests in flight even then, in bytes.
    pub(super) fn kept_for_clients(&self) -> usize {
        share(self.memory / 8)
    }

    /// What is reclaimed at least where something is reclaimed, in bytes.
    pub(super) fn reclaimed_at_once(&self) -> usize {
        share(self.memory / 16)
    }

    /// For the log, at the start.
    pub(super) fn described(&self) -> String {
        let Self { files, memory, clients, upstreams, places, wanted } = self;
        let [memory_mib, grown] = [*memory, self.grown()].map(|bytes| bytes >> 20);
        let room = format!(
            "room for {clients} connections of clients and {upstreams} to upstreams, and for {places} requests over HTTP/2: \
             {files} open files, {memory_mib} MiB of memory; from {grown} MiB on, connections that hold the most are cut"
        );
        if clients < wanted {
            let remedy = if *clients >= connections(*memory) {
                "give the process more memory"
            } else {
                "raise the limit of open files (LimitNOFILE, ulimit -n)"
            };
            return format!("{room}; server.max_connections says {wanted}: {remedy}");
        }
        room
    }
}

/// The connections of clients that have room in three quarters of the memory, if none of them does anything. What they do is for
/// [`memory`](super::memory) to see.
fn connections(memory: u64) -> usize {
    share(memory / 4 * 3) / OF_ONE_CONNECTION
}

/// A share of the memory, in bytes.
fn share(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
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
            (4000, GIB, 1916, 1536),
            (20_000, 8 * GIB, 9916, 9916),
            (1 << 20, 64 * GIB, 10_000, 65_536),
            (1 << 20, GIB / 2, 10_000, 768),
            (1 << 20, GIB / 8, 2730, 192),
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
            "room for 428 connections of clients and 428 to upstreams, and for 8192 requests over HTTP/2: 1024 open files, \
             1024 MiB of memory; from 512 MiB on, connections that hold the most are cut; server.max_connections says 10000: raise \
             the limit of open files (LimitNOFILE, ulimit -n)"
        );
        assert_eq!(
            Room::of(4000, GIB, 500, 2).described(),
            "room for 500 connections of clients and 1536 to upstreams, and for 8192 requests over HTTP/2: 4000 open files, \
             1024 MiB of memory; from 512 MiB on, connections that hold the most are cut"
        );
        let little_memory = Room::of(1 << 20, GIB / 8, 10_000, 2).described();
        assert!(little_memory.ends_with("says 10000: give the process more memory"), "{little_memory}");
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
