//! The time between the signal and the end of accepting: clients are told that their connections end, and lose no request.

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::http2::{DATA, Frames, GOAWAY, HEADERS};
use crate::harness::{Call, PATIENCE, Process, Tuned, Upstream, Wire, create_key, eventually};

/// A process in front of this upstream that has served a request, and a key.
fn started(upstream: &Upstream, server: &str) -> (TempDir, Process, String) {
    let folder = TempDir::new().unwrap();
    Tuned::default().live(upstream.url()).server(server).builder().write(folder.path());
    let key = create_key(folder.path());
    let keygate = Process::serve(folder.path());
    (folder, keygate, key)
}

/// Sends the signal, and waits until the only worker knows of it.
fn terminate(keygate: &Process, address: std::net::SocketAddr, key: &str) {
    keygate.terminate();
    eventually("answers say that the connection ends", || {
        let answer = Wire::connect(address).call(&Call::get("/things").key(key)).unwrap();
        answer.field("connection") == Some("close")
    });
}

#[test]
fn kept_connections_end_with_their_next_answer_and_lose_no_request() {
    let live = Upstream::start("live");
    let (_folder, mut keygate, key) = started(&live, "drain_delay = \"1h\"");
    let address = keygate.address();
    let call = Call::get("/things").key(&key);
    let mut kept: Vec<Wire> = (0..8).map(|_| Wire::connect(address)).collect();
    for wire in &mut kept {
        let answer = wire.call(&call).unwrap();
        assert_eq!((answer.status, answer.field("connection")), (200, None));
    }
    terminate(&keygate, address, &key);
    for wire in &mut kept {
        let answer = wire.call(&call).expect("an idle connection takes one more request");
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("live", Some("close")));
        assert!(wire.is_closed());
    }
    let refused = Wire::connect(address).call(&Call::get("/things")).unwrap();
    assert_eq!((refused.status, refused.field("connection")), (401, Some("close")));
    keygate.terminate();
    assert_eq!(keygate.wait().code(), Some(0));
}

#[test]
fn an_http_2_client_gets_a_goaway_at_the_signal_and_is_served_to_the_end() {
    let live = Upstream::start("live");
    let (_folder, mut keygate, key) = started(&live, "drain_delay = \"1h\"");
    let address = keygate.address();
    let mut kept = Frames::connect_to(address);
    kept.get(1, "/things", &key);
    while kept.until(DATA).unwrap().payload != b"live" {}
    terminate(&keygate, address, &key);
    let graceful = [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    assert_eq!(kept.until(GOAWAY).unwrap().payload, graceful, "every stream is served, no error");
    for stream in [3, 5, 7] {
        kept.get(stream, "/things", &key);
        assert_eq!(kept.until(DATA).expect("it is served").stream, stream);
    }
    // One that comes only now is told with its first request.
    let mut late = Frames::connect_to(address);
    late.get(1, "/things", &key);
    assert_eq!(late.until(GOAWAY).unwrap().payload, graceful);
    assert_eq!(late.until(HEADERS).unwrap().stream, 1);
    assert_eq!(late.until(DATA).unwrap().payload, b"live");
    keygate.terminate();
    assert_eq!(keygate.wait().code(), Some(0));
}

#[test]
fn connections_that_wait_to_be_accepted_when_accepting_ends_are_served() {
    let live = Upstream::start("live");
    let (_folder, mut keygate, key) = started(&live, "drain_delay = \"0s\"");
    let address = keygate.address();
    let call = Call::get("/things").key(&key).to_bytes();
    assert_eq!(Wire::connect(address).call(&Call::get("/things").key(&key)).unwrap().text(), "live");
    keygate.signal(Signal::STOP);
    let mut waiting: Vec<Wire> = (0..50).map(|_| Wire::connect(address)).collect();
    for wire in &mut waiting[..25] {
        wire.send(&call);
    }
    keygate.terminate();
    keygate.signal(Signal::CONT);
    keygate.err_line("stopping");
    // These have connected just before, and are about to send.
    for wire in &mut waiting[25..] {
        wire.send(&call);
    }
    for (n, wire) in waiting.iter_mut().enumerate() {
        assert_eq!(wire.answer().unwrap_or_else(|| panic!("request {n} is lost")).text(), "live");
        assert!(wire.is_closed());
    }
    assert_eq!(keygate.wait().code(), Some(0));
}

#[test]
fn a_head_that_has_begun_on_a_kept_connection_is_served_at_the_end() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let mut kept = gateway.connect();
    let call = Call::get("/things").key(&key);
    assert_eq!(kept.call(&call).unwrap().text(), "live");
    let bytes = call.to_bytes();
    kept.send(&bytes[..10]);
    // With one worker, the half head has been read when a later connection is answered.
    let mut idle = gateway.connect();
    assert_eq!(idle.call(&call).unwrap().text(), "live");
    let draining = std::thread::spawn(move || gateway.drain(PATIENCE));
    assert!(idle.is_closed());
    kept.send(&bytes[10..]);
    let answer = kept.answer().expect("it is served");
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("live", Some("close")));
    assert!(kept.is_closed());
    draining.join().unwrap();
}
