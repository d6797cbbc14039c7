//! One gateway is restarted under load, with its sockets passed on as systemd passes them: no request fails, and no
//! connection is refused.
//!
//! `KEYGATE_LONG=1 cargo test --release --test it restarts:: -- --nocapture` restarts 20 times with 500 streams open, and prints
//! how long connections waited and how long streams lived.

#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::process::keygate;
use crate::harness::restless::{Kinds, Load, PROMISED, Seen, store_in};
use crate::harness::{
    Call, Process, RedisServer, Reply, Tuned, Upstream, Wire, create_key, fetch, is_long, lenient,
};

/// A gateway whose sockets the test keeps.
struct Kept {
    folder: TempDir,
    server: TcpListener,
    ops: TcpListener,
    key: String,
}

impl Kept {
    fn new(live: &Upstream, store: &str, server: &str) -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (folder, kept, ops) = (TempDir::new().unwrap(), bind(), bind());
        let settings = format!("[ops]\nlisten = \"{}\"\n{store}", ops.local_addr().unwrap());
        Tuned::default().live(live.url()).server(server).settings(&settings).builder().write(folder.path());
        let file = folder.path().join("keygate.toml");
        let toml = std::fs::read_to_string(&file).unwrap();
        let address = kept.local_addr().unwrap().to_string();
        let toml = toml.replacen("127.0.0.1:0", &address, 1).replacen("workers = 1", "workers = 2", 1);
        std::fs::write(&file, toml).unwrap();
        let key = create_key(folder.path());
        Self { folder, server: kept, ops, key }
    }

    fn address(&self) -> SocketAddr {
        self.server.local_addr().unwrap()
    }

    fn serve(&self) -> Process {
        self.serve_as("", [&self.server, &self.ops])
    }

    /// Starts a gateway as systemd does: the sockets are its file descriptors 3 and 4.
    fn serve_as(&self, names: &str, [first, second]: [&TcpListener; 2]) -> Process {
        let program = keygate(self.folder.path(), &[]);
        let script = "export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$0\" serve 3<&0 4>&1 0</dev/null 1>/dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(program.get_program()).current_dir(self.folder.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("LISTEN_FDNAMES", names);
        let duplicate = |socket: &TcpListener| Stdio::from(OwnedFd::from(socket.try_clone().unwrap()));
        command.stdin(duplicate(first)).stdout(duplicate(second)).stderr(Stdio::piped());
        Process::start_with_input(command)
    }
}

fn call(kept: &Kept) -> Call {
    Call::get("/things").key(&kept.key)
}

#[test]
fn connections_wait_while_no_process_accepts_them_and_then_are_served() {
    let live = Upstream::start("live");
    let kept = Kept::new(&live, "", "drain_delay = \"0s\"");
    for _ in 0..2 {
        let mut early: Vec<Wire> = (0..3).map(|_| Wire::connect(kept.address())).collect();
        for wire in &mut early {
            wire.send(&call(&kept).to_bytes());
        }
        let mut keygate = kept.serve();
        for wire in &mut early {
            assert_eq!(wire.answer().expect("it waited").text(), "live");
        }
        assert_eq!(keygate.address(), kept.address());
        assert_eq!(fetch(kept.ops.local_addr().unwrap(), &Call::get("/readyz")).status, 200);
        keygate.terminate();
        assert_eq!(keygate.wait().code(), Some(0));
    }
}

#[test]
fn a_gateway_that_was_killed_loses_its_connections_and_no_later_one() {
    let live = Upstream::start("live");
    let kept = Kept::new(&live, "", "");
    let mut keygate = kept.serve();
    keygate.address();
    keygate.signal(Signal::KILL);
    keygate.wait();
    let mut later = Wire::connect(kept.address());
    later.send(&call(&kept).to_bytes());
    let _again = kept.serve();
    assert_eq!(later.answer().expect("it waited").text(), "live");
}

#[test]
fn a_socket_at_no_address_of_the_configuration_is_refused_by_its_address() {
    let live = Upstream::start("live");
    let kept = Kept::new(&live, "", "");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut keygate = kept.serve_as("keygate.socket:keygate.socket", [&kept.server, &other]);
    let line = keygate.err_line("nothing in the configuration listens there");
    assert!(line.contains(&format!("{} (keygate.socket)", other.local_addr().unwrap())), "{line}");
    assert_eq!(keygate.wait().code(), Some(1));
    let mut keygate = kept.serve_as("ops:server", [&kept.server, &kept.ops]);
    let line = keygate.err_line("make them the same");
    assert!(line.contains("(server), and server.listen is"), "{line}");
    assert_eq!(keygate.wait().code(), Some(1));
}

#[test]
fn a_kept_gateway_is_ready_and_accepts_while_what_had_begun_ends() {
    let go = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&go);
    let live = Upstream::with(move |seen| {
        while seen.request_line().contains("slow") && !told.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        Reply::ok("live")
    });
    let kept = Kept::new(&live, "", "drain_delay = \"0s\"\ndrain_timeout = \"1h\"");
    let mut keygate = kept.serve();
    let mut slow = Wire::connect(keygate.address());
    slow.send(&Call::get("/things/slow").key(&kept.key).to_bytes());
    while live.seen().is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    keygate.terminate();
    keygate.err_line("stopping");
    for _ in 0..3 {
        assert_eq!(Wire::connect(kept.address()).call(&call(&kept)).unwrap().text(), "live");
        assert_eq!(fetch(kept.ops.local_addr().unwrap(), &Call::get("/readyz")).status, 200);
    }
    go.store(true, Ordering::Relaxed);
    assert_eq!(slow.answer().unwrap().text(), "live");
    assert_eq!(keygate.wait().code(), Some(0));
}

// ---- Under load

fn restarted_under_load(store: &str) {
    let (restarts, streams) = if is_long() { (20, 500) } else { (3, 30) };
    let live = Upstream::with(|seen| {
        if seen.request_line().contains("events") { Reply::events() } else { Reply::ok("live") }
    });
    let settings = "max_connections_per_client = 2000\ndrain_delay = \"1s\"";
    let kept = Kept::new(&live, store, settings);
    let mut keygate = kept.serve();
    keygate.address();
    let load = Load::begin(kept.address(), &kept.key, Kinds { streams, ..Kinds::default() });
    load.begin_timing();
    for _ in 0..restarts {
        load.settle();
        keygate.terminate();
        assert_eq!(keygate.wait().code(), Some(0));
        keygate = kept.serve();
        keygate.address();
    }
    load.settle();
    assert_nothing_failed(&load.end(), restarts * streams);
}

/// `streams` is how many must have ended.
fn assert_nothing_failed(seen: &Seen, streams: usize) {
    println!("{seen}");
    assert_eq!(seen.failed, Vec::<String>::new());
    assert!(seen.lived.len() >= streams, "{} streams ended", seen.lived.len());
    assert!(seen.slowest <= lenient(PROMISED), "{:?}", seen.slow);
}

#[test]
fn an_embedded_gateway_is_restarted_under_load_and_nothing_fails() {
    restarted_under_load("");
}

#[test]
fn a_gateway_on_redis_is_restarted_under_load_and_nothing_fails() {
    let redis = RedisServer::start();
    restarted_under_load(&store_in(&redis));
}
