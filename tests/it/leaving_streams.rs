//! Event streams when the gateway stops: they end between two events. Other bodies are never shortened.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::http2::{DATA, Frames, GOAWAY, HEADERS};
use crate::harness::{Call, Gateway, Manual, PATIENCE, Process, Tuned, Wire, create_key};

const EVENTS: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A gateway with one worker in front of an upstream that the test plays.
fn gateway() -> (Gateway, Manual, String) {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).start();
    (gateway, live, key)
}

/// Opens an event stream, whose first bytes have come.
fn open(mut client: Wire, live: &Manual, key: &str, first: &str) -> (Wire, Wire) {
    client.send(&Call::get("/things/events").key(key).to_bytes());
    let upstream = begin(live, EVENTS, first);
    client.head().unwrap();
    assert_eq!(client.chunk().unwrap(), first.as_bytes());
    (client, upstream)
}

/// The upstream's side of an answer that has begun.
fn begin(live: &Manual, head: &str, first: &str) -> Wire {
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    upstream.send(head.as_bytes());
    send(&mut upstream, first);
    upstream
}

fn send(upstream: &mut Wire, chunk: &str) {
    upstream.send(format!("{:x}\r\n{chunk}\r\n", chunk.len()).as_bytes());
}

/// Drains it for this time. When this returns, the only worker knows of it.
fn drain(gateway: Gateway, within: Duration) -> thread::JoinHandle<()> {
    let mut idle = gateway.connect();
    let draining = thread::spawn(move || gateway.drain(within));
    assert!(idle.is_closed(), "the worker knows of the end");
    draining
}

#[test]
fn an_event_stream_that_stands_between_two_events_ends_when_the_gateway_stops() {
    let (gateway, live, key) = gateway();
    let (mut client, mut upstream) = open(gateway.connect(), &live, &key, "data: one\n\n");
    let draining = drain(gateway, 10 * PATIENCE);
    assert_eq!(client.chunk().unwrap(), b"", "its end is an end in order");
    assert!(client.is_closed() && upstream.is_closed());
    draining.join().unwrap();
}

#[test]
fn an_event_under_way_is_finished_and_no_other_is_begun() {
    let (gateway, live, key) = gateway();
    let (mut client, mut upstream) = open(gateway.connect(), &live, &key, "data: one\n\ndata: t");
    let draining = drain(gateway, 10 * PATIENCE);
    send(&mut upstream, "wo\n");
    assert_eq!(client.chunk().unwrap(), b"wo\n");
    send(&mut upstream, "\ndata: three\n\ndata: fo");
    assert_eq!(client.chunk().unwrap(), b"\ndata: three\n\n");
    assert_eq!(client.chunk().unwrap(), b"");
    assert!(client.is_closed() && upstream.is_closed());
    draining.join().unwrap();
}

/// Sends a request for an event stream, and returns the two sides once the upstream has it.
fn ask(gateway: &Gateway, live: &Manual, key: &str) -> (Wire, Wire) {
    let mut client = gateway.connect();
    client.send(&Call::get("/things/events").key(key).to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    (client, upstream)
}

#[test]
fn an_event_stream_without_an_event_waits_for_its_first_one() {
    let (gateway, live, key) = gateway();
    let (mut client, mut upstream) = ask(&gateway, &live, &key);
    upstream.send(EVENTS.as_bytes());
    client.head().unwrap();
    let draining = drain(gateway, 10 * PATIENCE);
    send(&mut upstream, "data: one\n\ndata: t");
    assert_eq!(client.chunk().unwrap(), b"data: one\n\n");
    assert_eq!(client.chunk().unwrap(), b"", "its end is an end in order");
    assert!(client.is_closed() && upstream.is_closed());
    draining.join().unwrap();
}

#[test]
fn an_event_stream_whose_answer_begins_after_the_end_has_begun_passes_its_first_event() {
    let (gateway, live, key) = gateway();
    let (mut client, mut upstream) = ask(&gateway, &live, &key);
    let draining = drain(gateway, 10 * PATIENCE);
    upstream.send(format!("{EVENTS}b\r\ndata: one\n\n\r\n").as_bytes());
    client.head().unwrap();
    assert_eq!(client.chunk().unwrap(), b"data: one\n\n");
    assert_eq!(client.chunk().unwrap(), b"", "its end is an end in order");
    assert!(client.is_closed() && upstream.is_closed());
    draining.join().unwrap();
}

#[test]
fn an_event_stream_that_never_has_an_event_ends_in_order_after_half_of_the_time() {
    let (gateway, live, key) = gateway();
    let (mut client, mut upstream) = ask(&gateway, &live, &key);
    upstream.send(EVENTS.as_bytes());
    client.head().unwrap();
    let begun = Instant::now();
    let draining = drain(gateway, Duration::from_secs(2));
    assert_eq!(client.chunk().unwrap(), b"", "nothing was lost");
    assert!(begun.elapsed() >= Duration::from_secs(1), "half of the time");
    assert!(client.is_closed() && upstream.is_closed());
    draining.join().unwrap();
}

#[test]
fn an_event_stream_over_http_2_ends_like_one_over_http_1() {
    let (gateway, live, key) = gateway();
    let mut client = Frames::connect(&gateway, &[]);
    client.get(1, "/things/events", &key);
    let mut upstream = begin(&live, EVENTS, "data: one\n");
    assert_eq!(client.until(HEADERS).unwrap().stream, 1);
    assert_eq!(client.until(DATA).unwrap().payload, b"data: one\n");
    let draining = thread::spawn(move || gateway.drain(10 * PATIENCE));
    client.until(GOAWAY).unwrap();
    send(&mut upstream, "\ndata: tw");
    assert_eq!(client.until(DATA).unwrap().payload, b"\n");
    let last = client.until(DATA).unwrap();
    assert_eq!((last.payload.as_slice(), last.flags & 1), (&b""[..], 1), "END_STREAM");
    assert!(upstream.is_closed());
    draining.join().unwrap();
}

#[test]
fn no_other_body_is_shortened() {
    let heads = [
        EVENTS.replace("text/event-stream", "text/plain"),
        EVENTS.replace("\r\n\r\n", "\r\ncontent-encoding: gzip\r\n\r\n"),
    ];
    for head in &heads {
        let (gateway, live, key) = gateway();
        let mut client = gateway.connect();
        client.send(&Call::get("/things/events").key(&key).to_bytes());
        let mut upstream = begin(&live, head, "data: one\n\n");
        client.head().unwrap();
        client.chunk().unwrap();
        let draining = drain(gateway, 10 * PATIENCE);
        send(&mut upstream, "data: two\n\n");
        assert_eq!(client.chunk().unwrap(), b"data: two\n\n", "{head}");
        upstream.send(b"0\r\n\r\n");
        assert_eq!(client.chunk().unwrap(), b"");
        assert!(client.is_closed());
        draining.join().unwrap();
    }
}

#[test]
fn an_event_stream_with_a_length_is_a_body_like_any_other() {
    let (gateway, live, key) = gateway();
    let mut client = gateway.connect();
    client.send(&Call::get("/things/events").key(&key).to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 6\r\n\r\n";
    upstream.send(format!("{head}:a\n\n").as_bytes());
    client.head().unwrap();
    assert_eq!(client.exactly(4).unwrap(), b":a\n\n");
    let draining = drain(gateway, 10 * PATIENCE);
    upstream.send(b":b");
    assert_eq!(client.exactly(2).unwrap(), b":b");
    assert!(client.is_closed());
    draining.join().unwrap();
}

#[test]
fn an_event_stream_in_the_middle_of_an_event_is_cut_after_half_of_the_time() {
    let (gateway, live, key) = gateway();
    let (mut client, mut upstream) = open(gateway.connect(), &live, &key, "data: one\n\ndata: t");
    let begun = Instant::now();
    let draining = drain(gateway, Duration::from_secs(2));
    assert_eq!(client.rest(), b"", "half an event is no end");
    assert!(begun.elapsed() >= Duration::from_secs(1), "half of the time");
    assert!(upstream.is_closed());
    draining.join().unwrap();
}

#[test]
fn an_event_stream_that_comes_back_while_clients_are_told_to_leave_is_let_be_for_that_time() {
    let (folder, live) = (tempfile::TempDir::new().unwrap(), Manual::start());
    Tuned::default().live(live.url()).server("drain_delay = \"1h\"").builder().write(folder.path());
    let key = create_key(folder.path());
    let mut keygate = Process::serve(folder.path());
    let address = keygate.address();
    let (mut client, _upstream) = open(Wire::connect(address), &live, &key, "data: one\n\n");
    keygate.terminate();
    assert_eq!(client.chunk().unwrap(), b"", "it does not wait for the end of drain_delay");
    let (mut again, mut upstream) = open(Wire::connect(address), &live, &key, "data: one\n\n");
    send(&mut upstream, "data: two\n\n");
    assert_eq!(again.chunk().unwrap(), b"data: two\n\n");
    keygate.terminate();
    assert_eq!(keygate.wait().code(), Some(0));
}
