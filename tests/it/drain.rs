//! Shutdown: requests in progress finish, and new ones are not accepted.

use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::{Call, PATIENCE, Process, Reply, Tuned, Upstream, Wire, create_key};

/// An upstream that answers /things/slow on the test's signal, and everything else at once; and the
/// signal.
struct Held {
    upstream: Upstream,
    begun: Receiver<()>,
    go: Sender<()>,
}

fn held() -> Held {
    let ((tell_begun, begun), (go, told)) = (channel(), channel::<()>());
    let told = Mutex::new(told);
    let upstream = Upstream::with(move |seen| {
        if seen.request_line().contains("slow") {
            tell_begun.send(()).unwrap();
            // The sender is only dropped if the test has failed.
            let _ = told.lock().unwrap().recv();
        }
        Reply::ok("done")
    });
    Held { upstream, begun, go }
}

fn slow(key: &str) -> Call {
    Call::get("/things/slow").key(key)
}

#[test]
fn requests_in_progress_finish_and_no_new_ones_are_served() {
    let Held { upstream, begun, go } = held();
    let (gateway, key) = Tuned::default().live(upstream.url()).start();
    let address = gateway.address();
    // Accepted first: when the only worker answers a later connection, keygate knows this one.
    let mut fresh = gateway.connect();
    let mut idle = gateway.connect();
    assert_eq!(idle.call(&Call::get("/things").key(&key)).unwrap().text(), "done");
    let mut busy = gateway.connect();
    busy.send(&slow(&key).to_bytes());
    begun.recv_timeout(PATIENCE).unwrap();

    let draining = thread::spawn(move || gateway.drain(PATIENCE));
    assert!(idle.is_closed(), "an idle connection is closed while the other is under way");
    assert!(fresh.is_closed(), "and so is one on which nothing came yet");
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    assert!(!draining.is_finished());
    go.send(()).unwrap();
    let answer = busy.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
    assert_eq!(answer.field("connection"), Some("close"));
    assert!(busy.is_closed());
    draining.join().unwrap();
}

#[test]
fn a_request_whose_head_has_begun_is_still_served() {
    let Held { upstream, .. } = held();
    let (gateway, key) = Tuned::default().live(upstream.url()).start();
    let mut begun = gateway.connect();
    begun.send(b"GET /things HTTP/1.1\r\nhost: a\r\n");
    // With one worker, the half head has been read when a later connection is answered.
    let mut idle = gateway.connect();
    assert_eq!(idle.call(&Call::get("/things").key(&key)).unwrap().text(), "done");
    let draining = thread::spawn(move || gateway.drain(PATIENCE));
    assert!(idle.is_closed());
    begun.send(format!("authorization: Bearer {key}\r\n\r\n").as_bytes());
    assert_eq!(begun.answer().unwrap().text(), "done");
    assert!(begun.is_closed());
    draining.join().unwrap();
}

#[test]
fn bodies_under_way_are_finished_in_both_directions() {
    let live = crate::harness::Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let request = format!(
        "POST /things HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-length: 4\r\n\r\n"
    );
    let mut up = gateway.connect();
    up.send((request + "bo").as_bytes());
    let mut taking = live.accept();
    taking.request_head().unwrap();
    taking.exactly(2).unwrap();
    let mut down = gateway.connect();
    down.send(&Call::get("/things").key(&key).to_bytes());
    let mut giving = live.accept();
    giving.request_head().unwrap();
    giving.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbo");
    down.head().unwrap();
    down.exactly(2).unwrap();
    let mut idle = gateway.connect();
    let draining = thread::spawn(move || gateway.drain(PATIENCE));
    assert!(idle.is_closed());
    up.send(b"dy");
    assert_eq!(taking.exactly(2).unwrap(), b"dy");
    taking.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(up.answer().unwrap().status, 204);
    assert!(up.is_closed());
    giving.send(b"dy");
    assert_eq!(down.exactly(2).unwrap(), b"dy");
    assert!(down.is_closed());
    draining.join().unwrap();
}

#[test]
fn requests_that_do_not_finish_in_time_are_cut() {
    let Held { upstream, begun, go } = held();
    let (gateway, key) = Tuned::default().live(upstream.url()).start();
    let mut busy = gateway.connect();
    busy.send(&slow(&key).to_bytes());
    begun.recv_timeout(PATIENCE).unwrap();
    gateway.drain(Duration::from_millis(100));
    assert!(busy.answer().is_none());
    drop(go);
}

// ---- The process

fn started(settings: Tuned) -> (TempDir, Process, String) {
    let folder = TempDir::new().unwrap();
    settings.builder().write(folder.path());
    let key = create_key(folder.path());
    let keygate = Process::serve(folder.path());
    (folder, keygate, key)
}

#[test]
fn a_process_finishes_requests_in_progress_after_sigterm_and_exits_with_0() {
    let Held { upstream, begun, go } = held();
    let (_folder, mut keygate, key) =
        started(Tuned::default().live(upstream.url()).server("drain_delay = \"0s\""));
    let address = keygate.address();
    assert_ne!(address.port(), 0);
    let mut idle = Wire::connect(address);
    assert_eq!(idle.call(&Call::get("/things").key(&key)).unwrap().text(), "done");
    let mut busy = Wire::connect(address);
    busy.send(&slow(&key).to_bytes());
    begun.recv_timeout(PATIENCE).unwrap();
    keygate.terminate();
    keygate.err_line("stopping");
    assert!(idle.is_closed());
    assert!(TcpStream::connect(address).is_err());
    assert!(keygate.is_running());
    go.send(()).unwrap();
    let answer = busy.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
    assert!(busy.is_closed());
    keygate.err_line("the gateway has ended");
    assert_eq!(keygate.wait().code(), Some(0));
}

#[test]
fn new_connections_are_served_during_the_drain_delay() {
    let Held { upstream, .. } = held();
    let (_folder, mut keygate, key) =
        started(Tuned::default().live(upstream.url()).server("drain_delay = \"1h\""));
    let address = keygate.address();
    keygate.terminate();
    keygate.err_line("stopping");
    assert_eq!(Wire::connect(address).call(&Call::get("/things").key(&key)).unwrap().text(), "done");
    keygate.terminate();
    assert_eq!(keygate.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    for delay in ["0s", "1h"] {
        let Held { upstream, begun, go } = held();
        let (_folder, mut keygate, key) = started(
            Tuned::default()
                .live(upstream.url())
                .server(&format!("drain_delay = \"{delay}\"\ndrain_timeout = \"1h\"")),
        );
        let mut busy = Wire::connect(keygate.address());
        busy.send(&slow(&key).to_bytes());
        begun.recv_timeout(PATIENCE).unwrap();
        keygate.terminate();
        keygate.err_line("stopping");
        assert!(keygate.is_running());
        keygate.terminate();
        let told = Instant::now();
        assert_eq!(keygate.wait().code(), Some(0));
        assert!(told.elapsed() < PATIENCE);
        assert!(busy.answer().is_none());
        drop(go);
    }
}

#[test]
fn a_process_stops_cleanly_if_the_signal_comes_right_after_its_start() {
    for _ in 0..5 {
        let (_folder, mut keygate, _) = started(Tuned::default().server("drain_delay = \"0s\""));
        keygate.address();
        keygate.terminate();
        assert_eq!(keygate.wait().code(), Some(0));
    }
}

#[test]
fn a_port_in_use_is_reported_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = TempDir::new().unwrap();
    crate::harness::Gateway::builder()
        .settings(&format!("[server]\nlisten = \"{address}\""))
        .upstream("api", "http://127.0.0.1:9", "http://127.0.0.1:10")
        .write(folder.path());
    let mut keygate = Process::serve(folder.path());
    let line = keygate.err_line("cannot listen");
    assert!(line.contains("server.listen") && line.contains(&address.to_string()), "{line}");
    assert_eq!(keygate.wait().code(), Some(1));
}
