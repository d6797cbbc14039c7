//! A Redis that fails over, by any mechanism; and clients of two gateways on it during the fail-over: one gateway
//! serves from its cache, and one looks up every key.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{
    Call, Gateway, GatewayBuilder, PATIENCE, RedisServer, SetOnDrop, TestKey, Upstream, eventually, lenient,
    unhurried,
};
use super::{operator, status};

/// The pause between two requests of a client.
const PACE: Duration = Duration::from_millis(2);

/// Two servers, 0 and 1: a master, and its replica, which connects as the user `replica`. Server 0 is the
/// master at first.
pub(crate) trait FailsOver {
    /// Lines for `[store]`.
    fn settings(&self) -> String;

    fn server(&self, n: usize) -> &RedisServer;

    fn server_mut(&mut self, n: usize) -> &mut RedisServer;

    /// Waits until this server is announced as the master.
    fn announced(&self, n: usize) -> Instant;

    /// Starts this server again, which was the master and has been replaced.
    fn revived(&mut self, n: usize) {
        self.server_mut(n).revive();
    }

    /// Waits until this server, which is not the master any more, follows the other.
    fn demoted(&self, n: usize) {
        unhurried("it is a replica", || follows(self.server(n)));
    }

    /// Waits until the other server has all data of this one. `WAIT` covers only writes on its own connection.
    fn settle(&self, master: usize) {
        let offset = |server: usize, name: &str| -> Option<u64> {
            let info = replication(self.server(server));
            info.lines().find_map(|line| line.strip_prefix(name))?.parse().ok()
        };
        let mut written = None;
        unhurried("the replica has everything", || {
            written = written.or_else(|| offset(master, "master_repl_offset:"));
            written.is_some() && offset(1 - master, "slave_repl_offset:") >= written
        });
    }
}

/// Whether it is a replica with a working link to its master.
pub(crate) fn follows(server: &RedisServer) -> bool {
    replication(server).contains("master_link_status:up")
}

/// `None` if it does not answer: when a sentinel changes a server's master, the server closes its connections.
pub(crate) fn replication(server: &RedisServer) -> String {
    server.asked(&["INFO", "replication"]).unwrap_or_default()
}

/// Disconnects replicas from this server, so that they miss the following changes.
pub(crate) fn keep_replicas_out(server: &RedisServer) {
    server.command(&["ACL", "SETUSER", "replica", "off"]);
    server.command(&["CLIENT", "KILL", "TYPE", "REPLICA"]);
}

pub(crate) struct Pair {
    pub(crate) caching: Gateway,
    pub(crate) asking: Gateway,
    keys: Vec<TestKey>,
    _upstreams: [Upstream; 2],
}

/// The results of the clients.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) from_cache: usize,
    pub(crate) looked_up: usize,
    pub(crate) unavailable: usize,
    last_looked_up: Option<Instant>,
}

/// Controls the clients during a fail-over.
pub(crate) struct Clients<'s> {
    seen: &'s Mutex<Seen>,
}

impl Pair {
    /// Gateways with these lines in their `[store]`, and with the shipped time-outs.
    pub(crate) fn start(store: &str) -> Self {
        let upstreams = [Upstream::start("live"), Upstream::start("test")];
        let builder = |cache: &str| -> GatewayBuilder {
            Gateway::builder().api(&upstreams[0], &upstreams[1]).settings(&format!(
                "[store]\nkind = \"redis\"\nallow_without_pepper = true\n{store}\n[cache]\n{cache}"
            ))
        };
        let caching = builder("ttl = \"1h\"").start();
        let asking =
            builder("ttl = \"1ms\"\nstale_window = \"0s\"\nnegative_ttl = \"1ms\"").org(caching.org).start();
        let keys: Vec<TestKey> = (0..8).map(|_| caching.live_key()).collect();
        for (gateway, key) in keys.iter().flat_map(|key| [(&caching, key), (&asking, key)]) {
            eventually("the key works", || status(gateway, key) == 200);
        }
        Self { caching, asking, keys, _upstreams: upstreams }
    }

    /// Runs something while clients send requests. A known key that is not served from the cache fails the test, and so
    /// does a valid key that gets 401.
    pub(crate) fn under_load<T>(&self, act: impl FnOnce(&Clients<'_>) -> T) -> (T, Seen) {
        let (over, seen) = (AtomicBool::new(false), Mutex::new(Seen::default()));
        let outcome = thread::scope(|scope| {
            let client = |gateway: &'_ Gateway, see: fn(&mut Seen, u16)| {
                let (over, seen) = (&over, &seen);
                // Threads cannot share the gateway, only its address.
                let calls: Vec<Call> = self.keys.iter().map(request).collect();
                let mut wire = gateway.connect();
                scope.spawn(move || {
                    for call in calls.iter().cycle() {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        let status = wire.call(call).unwrap().status;
                        see(&mut seen.lock().unwrap(), status);
                        thread::sleep(PACE);
                    }
                })
            };
            let clients = [
                client(&self.caching, |seen, status| {
                    assert_eq!(status, 200, "a key in the cache");
                    seen.from_cache += 1;
                }),
                client(&self.asking, |seen, status| match status {
                    200 => {
                        seen.looked_up += 1;
                        seen.last_looked_up = Some(Instant::now());
                    }
                    503 => seen.unavailable += 1,
                    wrong => panic!("{wrong} for a key that is good"),
                }),
            ];
            // Also after a panic: clients that do not stop would hide the failure.
            let outcome = {
                let _end = SetOnDrop(&over);
                act(&Clients { seen: &seen })
            };
            for client in clients {
                client.join().unwrap();
            }
            outcome
        });
        (outcome, seen.into_inner().unwrap())
    }

    /// Whether both gateways have found the master at `address`.
    pub(crate) fn are_at(&self, address: SocketAddr) -> bool {
        let is_there = |gateway: &Gateway| {
            let status = gateway.block_on(gateway.lifecycle().keeper().status());
            status.place.contains(&address.to_string())
        };
        is_there(&self.caching) && is_there(&self.asking)
    }

    /// Whether keys can be created, and work at once at the other gateway.
    pub(crate) fn assert_takes_changes(&self) {
        let until = Instant::now() + PATIENCE;
        let org = loop {
            match self.caching.block_on(self.caching.lifecycle().create_org(&operator(), "another")) {
                Ok(org) => break org,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            thread::sleep(PACE);
        };
        assert_ne!(org.id, self.caching.org);
        let key = self.caching.live_key();
        eventually("the new key works", || status(&self.asking, &key) == 200);
        self.caching.revoke(&key);
        eventually("and no more once it is revoked", || status(&self.asking, &key) == 401);
    }
}

/// Compares the time from the choice of a new master to the first successful lookup with the promise.
#[track_caller]
pub(crate) fn assert_prompt(took: Duration) {
    assert!(took < lenient(Duration::from_secs(1)), "{took:?}");
}

impl Clients<'_> {
    /// Waits until a key that was requested after `since` is looked up; returns the time after `since`.
    pub(crate) fn looked_up_since(&self, since: Instant) -> Duration {
        let mut after = None;
        unhurried("keys are looked up again", || {
            thread::sleep(PACE);
            let last = self.seen.lock().unwrap().last_looked_up;
            after = last.and_then(|last| last.checked_duration_since(since));
            after.is_some()
        });
        after.unwrap()
    }

    /// Waits until a client gets a 503 because its key cannot be looked up.
    pub(crate) fn unavailable(&self) {
        let before = self.seen.lock().unwrap().unavailable;
        eventually("lookups fail", || {
            thread::sleep(PACE);
            self.seen.lock().unwrap().unavailable > before
        });
    }
}

fn request(key: &TestKey) -> Call {
    Call::get("/v1/jobs").key(&key.secret)
}
