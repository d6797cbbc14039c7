//! A Redis cluster for one test.

use std::time::Instant;

use keygate::store::redis::{Node, Place, Redis, Settings};
use keygate::vocabulary::key::record::Sealer;
use tokio::runtime::Handle;

use super::fail_over::{FailsOver, replication};
use super::{PATIENCE, RedisServer, unhurried};

/// CRC-16 of the default cell's hash tag.
pub(crate) const SLOT: usize = 2961;
const SLOTS: usize = 16_384;
const MASTERS: usize = 3;

/// Three masters with a replica each; the first master has the store's slot.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<RedisServer>,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let options = [
            &["--cluster-enabled", "yes", "--cluster-node-timeout", "1500"][..],
            &["--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"],
            &["--user", "replica", "on", "nopass", "+psync", "+replconf", "+ping"],
            &["--masteruser", "replica", "--masterauth", "any"],
        ]
        .concat();
        let cluster = Self { nodes: (0..2 * MASTERS).map(|_| RedisServer::with(&options)).collect() };
        let nodes = &cluster.nodes;
        let share = SLOTS / MASTERS;
        for (n, master) in nodes[..MASTERS].iter().enumerate() {
            let last = if n + 1 == MASTERS { SLOTS - 1 } else { (n + 1) * share - 1 };
            let range = [(n * share).to_string(), last.to_string()];
            assert_eq!(master.command(&["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]]), "+OK\r\n");
            master.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]);
        }
        for node in &nodes[1..] {
            nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &node.port()]);
        }
        for node in nodes {
            unhurried("all know each other", || {
                node.command(&["CLUSTER", "INFO"]).contains("known_nodes:6\r\n")
            });
        }
        for n in 0..MASTERS {
            let id = id(&nodes[n]);
            unhurried("a replica is one", || {
                nodes[MASTERS + n].command(&["CLUSTER", "REPLICATE", &id]) == "+OK\r\n"
            });
        }
        for node in nodes {
            unhurried("the cluster is complete", || {
                let info = node.command(&["CLUSTER", "INFO"]);
                let replication = node.command(&["INFO", "replication"]);
                info.contains("cluster_state:ok")
                    && (replication.contains("master_link_status:up")
                        || replication.contains("connected_slaves:1"))
            });
        }
        cluster
    }

    /// The replica of that master.
    pub(crate) fn replica_of(&self, master: usize) -> &RedisServer {
        &self.nodes[MASTERS + master]
    }

    /// Waits until every node knows the owner of the store's slot, and the epoch of that. A node that does not know it could
    /// claim the slot in the next move with an older epoch.
    #[track_caller]
    pub(crate) fn agrees_on(&self, owner: &RedisServer) {
        let elsewhere = format!("-MOVED {SLOT} {}\r\n", owner.address());
        let epoch = epoch(owner, "cluster_my_epoch:");
        for node in &self.nodes {
            unhurried("it knows who has the slot", || {
                let answer = node.command(&["EXISTS", "{kg}:nowhere"]);
                let expected = if node.port() == owner.port() { ":0\r\n" } else { &elsewhere };
                answer == expected && self::epoch(node, "cluster_current_epoch:") >= epoch
            });
        }
    }

    pub(crate) fn open(&self) -> Redis {
        Redis::open(self.patient(), Sealer::default(), Handle::current()).unwrap()
    }

    pub(crate) fn patient(&self) -> Settings {
        let seeds =
            [&self.nodes[1], &self.nodes[2]].map(|node| Node::parse(&node.address().to_string()).unwrap());
        Settings {
            connect_timeout: PATIENCE,
            lookup_timeout: PATIENCE,
            command_timeout: PATIENCE,
            ..Settings::at(Place::Cluster(seeds.to_vec()))
        }
    }
}

/// The node that has the store's slot at first, and its replica.
impl FailsOver for Cluster {
    /// The two masters without the store's slot.
    fn settings(&self) -> String {
        format!("cluster = [\"{}\", \"{}\"]", self.nodes[1].address(), self.nodes[2].address())
    }

    fn server(&self, n: usize) -> &RedisServer {
        &self.nodes[n * MASTERS]
    }

    fn server_mut(&mut self, n: usize) -> &mut RedisServer {
        &mut self.nodes[n * MASTERS]
    }

    /// The node reports this itself, and also that every slot has an owner.
    fn announced(&self, n: usize) -> Instant {
        let node = self.server(n);
        unhurried("the replica has taken over", || {
            replication(node).contains("role:master")
                && node.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
        });
        Instant::now()
    }
}

pub(crate) fn id(node: &RedisServer) -> String {
    let id = node.command(&["CLUSTER", "MYID"]);
    id.split("\r\n").nth(1).unwrap().to_owned()
}

fn epoch(node: &RedisServer, which: &str) -> u64 {
    let info = node.command(&["CLUSTER", "INFO"]);
    info.lines().find_map(|line| line.strip_prefix(which)).unwrap().trim().parse().unwrap()
}
