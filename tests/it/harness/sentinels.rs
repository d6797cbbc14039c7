//! A Redis that can fail over: a master, its replica, and three sentinels.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::fail_over::{FailsOver, follows, replication};
use super::{PATIENCE, RedisServer, unhurried};

/// A master, its replica, and three sentinels that know both and each other. One set at a time: sentinels without
/// processor time on a busy machine take masters for dead, or do nothing for a while.
pub(crate) struct Watched {
    pub(crate) servers: [RedisServer; 2],
    pub(crate) sentinels: Vec<RedisServer>,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Watched {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// With more options for the first master.
    pub(crate) fn with(of_master: &[&str]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // The replica connects as its own user, so that it can be locked out.
        let options = [
            &["--repl-diskless-sync-delay", "0", "--repl-diskless-load", "swapdb"][..],
            // A replication that hangs is begun again in time for the test.
            &["--repl-timeout", "10", "--repl-ping-replica-period", "1"],
            &["--user", "replica", "on", "nopass", "+psync", "+replconf", "+ping"],
            &["--masteruser", "replica", "--masterauth", "any"],
        ]
        .concat();
        let master = RedisServer::with(&[&options, of_master].concat());
        let port = master.port();
        let replica = RedisServer::with(&[&options[..], &["--replicaof", "127.0.0.1", &port]].concat());
        unhurried("the replica follows", || follows(&replica));
        let sentinels: Vec<_> = (0..3).map(|_| sentinel(&master, "")).collect();
        for sentinel in &sentinels {
            unhurried("the sentinel knows the others", || {
                let known = sentinel.command(&["SENTINEL", "MASTER", "mymaster"]);
                field(&known, "num-slaves") == "1" && field(&known, "num-other-sentinels") == "2"
            });
        }
        Self { servers: [master, replica], sentinels, _turn: turn }
    }

    fn is_named_by(&self, sentinel: &RedisServer, n: usize) -> bool {
        let named = sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
        named.contains(&format!("\r\n{}\r\n", self.servers[n].port()))
    }
}

impl FailsOver for Watched {
    fn settings(&self) -> String {
        lines(&self.sentinels.iter().map(RedisServer::port).collect::<Vec<_>>())
    }

    fn server(&self, n: usize) -> &RedisServer {
        &self.servers[n]
    }

    fn server_mut(&mut self, n: usize) -> &mut RedisServer {
        &mut self.servers[n]
    }

    /// At least one sentinel reports it.
    fn announced(&self, n: usize) -> Instant {
        unhurried("the sentinels have another master", || {
            self.sentinels.iter().any(|sentinel| self.is_named_by(sentinel, n))
        });
        Instant::now()
    }

    /// A sentinel that does not know the new master yet would make it a replica of the old one, which is empty.
    fn revived(&mut self, n: usize) {
        unhurried("all sentinels have the other master", || {
            self.sentinels.iter().all(|sentinel| self.is_named_by(sentinel, 1 - n))
        });
        self.servers[n].revive();
    }

    /// Sentinels demote an old master within seconds. On a busy machine they have also left one as it was for minutes; an
    /// operator would then demote it by hand.
    fn demoted(&self, n: usize) {
        let by_hand = Instant::now() + PATIENCE;
        unhurried("it is a replica", || {
            let server = self.server(n);
            if Instant::now() > by_hand && replication(server).contains("role:master") {
                let _ = server.asked(&["REPLICAOF", "127.0.0.1", &self.server(1 - n).port()]);
            }
            follows(server)
        });
    }
}

pub(crate) fn sentinel(master: &RedisServer, more: &str) -> RedisServer {
    let sentinel = RedisServer::sentinel(&format!(
        "sentinel monitor mymaster 127.0.0.1 {} 2\nsentinel down-after-milliseconds mymaster 1000\n\
         sentinel failover-timeout mymaster 5000\n{more}\n",
        master.port()
    ));
    // A sentinel checks each server every 10 s only, changes an old master only after two checks, and does nothing for
    // 30 s after it got no processor time for 2 s.
    let hurried =
        ["info-period", "1000", "publish-period", "500", "tilt-trigger", "20000", "tilt-period", "1000"];
    sentinel.command(&[&["SENTINEL", "DEBUG"], &hurried[..]].concat());
    sentinel
}

/// Settings of `[store]` for the sentinels at these ports.
pub(crate) fn lines(ports: &[String]) -> String {
    let nodes: Vec<String> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    format!("sentinels = [{}]\nmaster_name = \"mymaster\"", nodes.join(", "))
}

/// A field of an answer in which names and values alternate.
fn field(answer: &str, name: &str) -> String {
    answer.split("\r\n").skip_while(|line| *line != name).nth(2).unwrap_or_default().to_owned()
}
