//! The test harness: a real gateway on real sockets, upstreams that record all requests, and a client that sends
//! exact bytes.

pub(crate) mod api;
pub(crate) mod authority;
pub(crate) mod chaos;
pub(crate) mod client;
pub(crate) mod closed_port;
pub(crate) mod cluster;
pub(crate) mod description;
pub(crate) mod desk;
pub(crate) mod distance;
pub(crate) mod fail_over;
pub(crate) mod front;
pub(crate) mod gateway;
pub(crate) mod haproxy;
pub(crate) mod http2;
pub(crate) mod http2_server;
pub(crate) mod manual;
pub(crate) mod metrics;
pub(crate) mod moved;
pub(crate) mod names;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod restless;
pub(crate) mod sentinels;
pub(crate) mod store;
pub(crate) mod traffic;
pub(crate) mod transport;
pub(crate) mod upstream;
pub(crate) mod world;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) use authority::Authority;
pub(crate) use chaos::{Chaos, Weather};
pub(crate) use client::{Answer, Call, Wire, fetch};
pub(crate) use closed_port::ClosedPort;
pub(crate) use gateway::{Gateway, GatewayBuilder, TestKey, guess, is_linked, operator, status};
pub(crate) use manual::{Manual, Tuned, hang_up, refusing};
pub(crate) use process::{Process, create_key};
pub(crate) use redis::RedisServer;
pub(crate) use store::Valve;
pub(crate) use transport::Transport;
pub(crate) use upstream::{Reply, Seen, Upstream};
pub(crate) use world::World;

/// Longer than anything takes on a busy machine; only a failing test waits for this time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The pause between two looks at something that is waited for. A loop without one takes the processor from what it waits for.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

/// Repeats until the condition holds, or fails the test.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "it never came to pass that {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Says that something is over, also when the test fails: a scope waits for its threads.
pub(crate) struct SetOnDrop<'f>(pub(crate) &'f AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The same on a runtime.
pub(crate) async fn soon(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "it never came to pass that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The same for servers with their own time-outs: checks less often, and for longer.
#[track_caller]
pub(crate) fn unhurried(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + 6 * PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "it never came to pass that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What something that is promised within this time may take here: no more in the long forms, which are for a machine
/// that does nothing else, and in the short ones what no busy machine needs.
pub(crate) fn lenient(promised: Duration) -> Duration {
    if is_long() { promised } else { promised + PATIENCE }
}

/// Whether to run the long forms of the tests, which take minutes.
pub(crate) fn is_long() -> bool {
    std::env::var_os("KEYGATE_LONG").is_some()
}

/// An address of this machine that is free now, for servers of others, which do not tell a port of their own choice.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An address of this machine that no other process uses, also while nobody listens there: no connection begins at it.
pub(crate) fn own_address() -> SocketAddr {
    let part = || fastrand::u8(1..255);
    (Ipv4Addr::new(127, part(), part(), part()), 8000).into()
}
