//! Streamed bodies: parts are not delayed, an interrupted body is not completed, and no data accumulates.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use keygate::upstream::Timeouts;

use crate::harness::transport::Pipe;
use crate::harness::{Call, Gateway, Manual, PATIENCE, Tuned, Upstream, Wire, hang_up};

fn in_front_of(upstream: &Manual) -> (Gateway, String) {
    Tuned::default().live(upstream.url()).start()
}

fn head(method: &str, target: &str, key: &str, fields: &str) -> Vec<u8> {
    format!("{method} {target} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n{fields}\r\n")
        .into_bytes()
}

/// Sends a request; returns the client's connection, and the upstream's after reading the head.
fn under_way(gateway: &Gateway, upstream: &Manual, request: &[u8]) -> (Wire, Wire) {
    let mut client = gateway.connect();
    client.send(request);
    let mut served = upstream.accept();
    served.request_head().unwrap();
    (client, served)
}

// ---- Expect: 100-continue

#[test]
fn an_authorised_request_gets_a_100_from_the_gateway() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let mut client = gateway.connect();
    for expectation in ["100-continue", "100-Continue"] {
        live.forget();
        let fields = format!("content-length: 4\r\nexpect: {expectation}\r\n");
        client.send(&head("POST", "/things", &key, &fields));
        assert_eq!(client.head().unwrap().status, 100);
        client.send(b"body");
        let answer = client.head().unwrap();
        assert_eq!(answer.status, 200);
        client.exactly(4).unwrap();
        let seen = live.only();
        assert_eq!(seen.body, b"body");
        assert!(seen.values("expect").is_empty());
    }
}

#[test]
fn a_refused_request_gets_no_100() {
    let live = Upstream::start("live");
    let gateway = Tuned::default().live(live.url()).builder().start();
    let reader = gateway.key_with(&["jobs:read"]).secret;
    let unknown = "fh_live_sk_00000000000000000000000000000000000000";
    for (target, key, length, status) in [
        ("/things", unknown, 4, 401),
        ("/guarded", reader.as_str(), 4, 403),
        ("/nowhere", &reader, 4, 404),
        ("/small", &reader, 1025, 413),
    ] {
        let mut client = gateway.connect();
        client.send(&head(
            "POST",
            target,
            key,
            &format!("content-length: {length}\r\nexpect: 100-continue\r\n"),
        ));
        assert_eq!(client.head().unwrap().status, status, "{target}");
    }
    let mut client = gateway.connect();
    client.send(&head("POST", "/things", &reader, "content-length: 4\r\nexpect: 200-maybe\r\n"));
    assert_eq!(client.head().unwrap().status, 400);
    assert_eq!(live.connections(), 0);
}

#[test]
fn no_100_is_sent_if_no_upstream_can_be_reached() {
    let (gateway, key) = Tuned::default().start();
    let mut client = gateway.connect();
    client.send(&head("POST", "/things", &key, "content-length: 4\r\nexpect: 100-continue\r\n"));
    assert_eq!(client.head().unwrap().status, 502);
}

// ---- Without delay

#[test]
fn every_event_of_a_stream_arrives_before_the_next_is_written() {
    let live = Manual::start();
    let (gateway, key) = in_front_of(&live);
    for chunked in [true, false] {
        let (mut client, mut upstream) = under_way(
            &gateway,
            &live,
            &Call::get("/things").key(&key).field("accept", "text/event-stream").to_bytes(),
        );
        upstream.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n");
        upstream.send(if chunked { b"transfer-encoding: chunked\r\n\r\n" } else { b"\r\n" });
        let answer = client.head().unwrap();
        assert_eq!(answer.field("content-type"), Some("text/event-stream"));
        for n in 0..100 {
            let event = format!("id: {n}\ndata: {n}\n\n");
            if chunked {
                upstream.send(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
            } else {
                upstream.send(event.as_bytes());
            }
            assert_eq!(String::from_utf8(client.chunk().unwrap()).unwrap(), event);
        }
        upstream.send(if chunked { b"0\r\n\r\n" } else { b"" });
        drop(upstream);
        assert_eq!(client.chunk().unwrap(), b"");
    }
}

#[test]
fn every_part_of_an_upload_arrives_before_the_next_is_sent() {
    let live = Manual::start();
    let (gateway, key) = in_front_of(&live);
    for chunked in [true, false] {
        let framing = if chunked { "transfer-encoding: chunked\r\n" } else { "content-length: 300\r\n" };
        let (mut client, mut upstream) = under_way(&gateway, &live, &head("POST", "/things", &key, framing));
        for n in 0..100 {
            let part = format!("{n:03}");
            client.send(if chunked { format!("3\r\n{part}\r\n") } else { part.clone() }.as_bytes());
            let came = if chunked { upstream.chunk() } else { upstream.exactly(3) };
            assert_eq!(String::from_utf8(came.unwrap()).unwrap(), part);
        }
        client.send(if chunked { b"0\r\n\r\n" } else { b"" });
        if chunked {
            assert_eq!(upstream.chunk().unwrap(), b"");
        }
        upstream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        assert_eq!(client.answer().unwrap().status, 200);
    }
}

#[test]
fn an_answer_may_stream_while_its_request_still_does() {
    let live = Manual::start();
    let (gateway, key) = in_front_of(&live);
    let chunked = "transfer-encoding: chunked\r\n";
    let (mut client, mut upstream) = under_way(&gateway, &live, &head("POST", "/things", &key, chunked));
    upstream.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 200);
    for _ in 0..20 {
        client.send(b"4\r\nping\r\n");
        assert_eq!(upstream.chunk().unwrap(), b"ping");
        upstream.send(b"4\r\npong\r\n");
        assert_eq!(client.chunk().unwrap(), b"pong");
    }
    client.send(b"0\r\n\r\n");
    assert_eq!(upstream.chunk().unwrap(), b"");
    upstream.send(b"0\r\n\r\n");
    assert_eq!(client.chunk().unwrap(), b"");
}

// ---- Time

#[test]
fn a_long_poll_may_take_its_sixty_seconds() {
    assert_eq!(Timeouts::default().answer, Duration::from_secs(75));
    assert!(Timeouts::default().stream_idle > Duration::from_secs(60));
}

#[test]
fn a_slow_answer_is_cut_by_no_time_limit_but_its_own() {
    let live = Upstream::with(|seen| {
        assert_eq!(seen.value("prefer"), "wait=60");
        thread::sleep(Duration::from_secs(1));
        crate::harness::Reply::ok("at last")
    });
    let (gateway, key) = Tuned::default()
        .live(live.url())
        .server("head_timeout = \"300ms\"\nidle_timeout = \"300ms\"\nwrite_timeout = \"300ms\"")
        .server("body_idle_timeout = \"300ms\"")
        .upstream("answer_timeout = \"20s\"\nidle_timeout = \"300ms\"\nstream_idle_timeout = \"300ms\"")
        .start();
    for call in [Call::get("/things"), Call::post("/things", "body")] {
        let answer = gateway.fetch(&call.key(&key).field("prefer", "wait=60"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "at last"));
    }
}

#[test]
fn an_answer_that_does_not_begin_in_time_is_a_504_and_its_connection_is_closed() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).upstream("answer_timeout = \"300ms\"").start();
    for call in [Call::get("/things"), Call::post("/things", "body")] {
        let begun = Instant::now();
        let (mut client, mut upstream) = under_way(&gateway, &live, &call.key(&key).to_bytes());
        client.answer().unwrap().refusal(504, "gateway_timeout");
        assert!(begun.elapsed() >= Duration::from_millis(300));
        upstream.rest();
        assert!(live.is_untouched(), "not tried again");
        // The client did nothing wrong and may go on.
        client.send(&Call::get("/things").key(&key).to_bytes());
        let mut upstream = live.accept();
        upstream.request_head().unwrap();
        upstream.send(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        assert_eq!(client.answer().unwrap().status, 204);
    }
}

#[test]
fn an_interim_answer_or_half_a_head_does_not_stop_the_clock() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).upstream("answer_timeout = \"300ms\"").start();
    for part in ["HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-le"] {
        let (mut client, mut upstream) =
            under_way(&gateway, &live, &Call::get("/things").key(&key).to_bytes());
        upstream.send(part.as_bytes());
        client.answer().unwrap().refusal(504, "gateway_timeout");
        assert!(upstream.is_closed());
    }
}

#[test]
fn the_time_for_an_answer_begins_when_the_request_has_been_sent() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).upstream("answer_timeout = \"4s\"").start();
    let mut client = gateway.connect();
    client.send(&head("POST", "/things", &key, "content-length: 4\r\n"));
    for byte in b"slow" {
        thread::sleep(Duration::from_millis(1100));
        client.send(&[*byte]);
    }
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "live"));
}

#[test]
fn a_body_that_stops_arriving_is_a_400_and_never_reaches_its_end() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).server("body_idle_timeout = \"200ms\"").start();
    for (framing, part) in
        [("content-length: 10\r\n", "half!"), ("transfer-encoding: chunked\r\n", "5\r\nhalf!\r\n")]
    {
        let (mut client, mut upstream) = under_way(&gateway, &live, &head("POST", "/things", &key, framing));
        client.send(part.as_bytes());
        client.answer().unwrap().refusal(400, "validation_error");
        assert_eq!(String::from_utf8(upstream.rest()).unwrap(), part);
        assert!(client.is_closed());
    }
    // Not even a first byte.
    let mut client = gateway.connect();
    client.send(&head("POST", "/things", &key, "content-length: 10\r\n"));
    client.answer().unwrap().refusal(400, "validation_error");
}

#[test]
fn an_answer_that_stops_arriving_is_cut() {
    let live = Manual::start();
    let (gateway, key) =
        Tuned::default().live(live.url()).upstream("stream_idle_timeout = \"200ms\"").start();
    for (framing, part) in [
        ("content-length: 10\r\n", "half!"),
        ("transfer-encoding: chunked\r\n", "5\r\nhalf!\r\n"),
        ("", "half!"),
        ("content-length: 10\r\n", ""),
    ] {
        let (mut client, mut upstream) =
            under_way(&gateway, &live, &Call::get("/things").key(&key).to_bytes());
        upstream.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n{part}").as_bytes());
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.complete), (200, false), "{framing:?}");
        assert!(upstream.is_closed());
    }
}

// ---- Interrupted

#[test]
fn an_upload_that_its_client_breaks_off_is_never_completed() {
    let live = Manual::start();
    let (gateway, key) = in_front_of(&live);
    for (framing, part, passed) in [
        ("content-length: 10\r\n", "half!", "half!"),
        ("content-length: 10\r\n", "", ""),
        ("transfer-encoding: chunked\r\n", "5\r\nhalf!\r\n", "5\r\nhalf!\r\n"),
        ("transfer-encoding: chunked\r\n", "", ""),
        ("transfer-encoding: chunked\r\n", "5\r\nhalf!\r\n0\r\n", "5\r\nhalf!\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhalf!\r\n0\r\nx-trailer: 1\r\n", "5\r\nhalf!\r\n"),
    ] {
        for gone in [true, false] {
            let (mut client, mut upstream) =
                under_way(&gateway, &live, &head("POST", "/things", &key, framing));
            client.send(part.as_bytes());
            assert_eq!(upstream.exactly(passed.len()).unwrap(), passed.as_bytes());
            if gone {
                hang_up(&client).unwrap();
            } else {
                client.finish_sending();
                client.answer().unwrap().refusal(400, "validation_error");
                assert!(client.is_closed());
            }
            assert_eq!(String::from_utf8(upstream.rest()).unwrap(), "", "{framing:?} {part:?}");
        }
    }
}

#[test]
fn a_body_with_broken_framing_is_a_400_and_never_completed() {
    let live = Manual::start();
    let (gateway, key) = in_front_of(&live);
    let chunked = "transfer-encoding: chunked\r\n";
    let (mut client, mut upstream) = under_way(&gateway, &live, &head("POST", "/things", &key, chunked));
    client.send(b"5\r\nhalf!\r\n");
    assert_eq!(upstream.chunk().unwrap(), b"half!");
    client.send(b"zz\r\n");
    client.answer().unwrap().refusal(400, "validation_error");
    assert!(client.is_closed());
    assert!(upstream.is_closed());
}

#[test]
fn an_answer_that_its_upstream_breaks_off_is_never_completed() {
    let live = Manual::start();
    let (gateway, key) = in_front_of(&live);
    for (framing, part) in [
        ("content-length: 10\r\n", "half!"),
        ("content-length: 10\r\n", ""),
        ("transfer-encoding: chunked\r\n", "5\r\nhalf!\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nha"),
        ("transfer-encoding: chunked\r\n", "5\r\nhalf!\r\n0\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhalf!\r\nzz\r\n"),
        ("transfer-encoding: chunked\r\n", ""),
    ] {
        let (mut client, mut upstream) =
            under_way(&gateway, &live, &Call::get("/things").key(&key).to_bytes());
        upstream.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n{part}").as_bytes());
        drop(upstream);
        // If no byte of the body has arrived, the head may be lost too.
        if let Some(answer) = client.answer() {
            assert_eq!((answer.status, answer.complete), (200, false), "{framing:?} {part:?}");
            assert!("half!".starts_with(&answer.text()));
        }
        assert!(client.is_closed());
    }
}

#[test]
fn the_upstream_connection_ends_when_the_client_disconnects() {
    let live = Manual::start();
    let (gateway, key) = in_front_of(&live);
    // Before the answer begins.
    let (client, mut upstream) = under_way(&gateway, &live, &Call::get("/things").key(&key).to_bytes());
    drop(client);
    assert!(upstream.is_closed());
    // In the middle of it, while the upstream has nothing to say.
    let (mut client, mut upstream) = under_way(&gateway, &live, &Call::get("/things").key(&key).to_bytes());
    upstream.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhalf!\r\n");
    client.head().unwrap();
    client.chunk().unwrap();
    drop(client);
    assert!(upstream.is_closed());
    // In the middle of its own upload.
    let upload = head("POST", "/things", &key, "content-length: 10\r\n");
    let (client, mut upstream) = under_way(&gateway, &live, &upload);
    drop(client);
    assert!(upstream.is_closed());
}

// ---- Size

#[test]
fn a_body_with_too_large_a_length_is_refused_before_anything_is_sent() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).settings("[limits]\nbody = \"4KiB\"").start();
    for (target, length) in [("/things", 4097), ("/small", 1025), ("/things", 1_usize << 60)] {
        let mut client = gateway.connect();
        client.send(&head("POST", target, &key, &format!("content-length: {length}\r\n")));
        client.answer().unwrap().refusal(413, "validation_error");
        assert!(client.is_closed());
    }
    assert_eq!(live.connections(), 0);
    for (target, length) in [("/things", 4096), ("/small", 1024)] {
        assert_eq!(gateway.fetch(&Call::post(target, vec![b'x'; length]).key(&key)).text(), "live");
    }
}

#[test]
fn a_body_that_grows_too_large_is_refused_and_never_completed() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).settings("[limits]\nbody = \"4KiB\"").start();
    for (target, limit) in [("/things", 4096), ("/small", 1024)] {
        let chunked = "transfer-encoding: chunked\r\n";
        let (mut client, mut upstream) = under_way(&gateway, &live, &head("POST", target, &key, chunked));
        let half = format!("{:x}\r\n{}\r\n", limit / 2, "x".repeat(limit / 2));
        for _ in 0..2 {
            client.send(half.as_bytes());
            assert_eq!(upstream.exactly(half.len()).unwrap(), half.as_bytes());
        }
        client.send(b"1\r\nx\r\n");
        client.answer().unwrap().refusal(413, "validation_error");
        assert_eq!(String::from_utf8(upstream.rest()).unwrap(), "");
        assert!(client.is_closed());
    }
}

#[test]
fn a_chunked_body_of_just_the_limit_passes() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let mut client = gateway.connect();
    client.send(&head("POST", "/small", &key, "transfer-encoding: chunked\r\n"));
    client.send(format!("400\r\n{}\r\n0\r\n\r\n", "x".repeat(1024)).as_bytes());
    assert_eq!(client.answer().unwrap().text(), "live");
    assert_eq!(live.only().body.len(), 1024);
}

// ---- Back-pressure

/// More than the socket buffers between a sender and a receiver that does not read can hold, including
/// those of keygate.
const IN_BETWEEN: usize = 64 << 20;
const MUCH: usize = 4 * IN_BETWEEN;

/// Writes until the other side has read nothing for a while; returns the number of bytes.
fn push(pipe: &mut Pipe, total: usize) -> usize {
    pipe.tcp().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let part = vec![b'x'; 256 << 10];
    let mut taken = 0;
    while taken < total {
        match pipe.write(&part[..part.len().min(total - taken)]) {
            Ok(n) => taken += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error} after {taken} bytes"),
        }
    }
    taken
}

/// Reads this number of bytes.
fn pull(pipe: &mut Pipe, total: usize) {
    let mut part = vec![0; 256 << 10];
    let mut came = 0;
    while came < total {
        let most = part.len().min(total - came);
        match pipe.read(&mut part[..most]).unwrap() {
            0 => panic!("the end after {came} bytes"),
            n => came += n,
        }
    }
}

/// `from` must wait while `to` reads nothing, and no byte is lost.
fn assert_slowed(from: &mut Wire, to: &mut Wire) {
    let (from, to) = (from.pipe(), to.pipe());
    let taken = push(from, MUCH);
    assert!(taken < IN_BETWEEN, "{taken} bytes were taken");
    thread::scope(|scope| {
        let rest = scope.spawn(|| {
            from.tcp().set_write_timeout(Some(PATIENCE)).unwrap();
            from.write_all(&vec![b'x'; MUCH - taken]).unwrap();
            from.flush().unwrap();
        });
        pull(to, MUCH);
        rest.join().unwrap();
    });
}

#[test]
fn a_client_that_reads_nothing_slows_its_upstream() {
    let live = Manual::start();
    let (gateway, key) = in_front_of(&live);
    let (mut client, mut upstream) = under_way(&gateway, &live, &Call::get("/things").key(&key).to_bytes());
    upstream.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {MUCH}\r\n\r\n").as_bytes());
    assert_eq!(client.head().unwrap().status, 200);
    assert_slowed(&mut upstream, &mut client);
    // Nothing beyond it: the connection is ready for the next.
    client.send(&Call::get("/nowhere").key(&key).to_bytes());
    client.answer().unwrap().refusal(404, "not_found");
}

#[test]
fn an_upstream_that_reads_nothing_slows_its_client() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).settings("[limits]\nbody = \"1GiB\"").start();
    let upload = head("POST", "/things", &key, &format!("content-length: {MUCH}\r\n"));
    let (mut client, mut upstream) = under_way(&gateway, &live, &upload);
    assert_slowed(&mut client, &mut upstream);
    upstream.send(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
    assert_eq!(client.answer().unwrap().status, 204);
}
