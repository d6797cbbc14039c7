//! The limits of one client: time, connections, the size of a head, and one interpretation of its bytes.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Call, Gateway, Manual, PATIENCE, Tuned, Upstream, Wire, eventually};

fn request(key: &str, fields: &str) -> String {
    format!("POST /things HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n{fields}\r\n")
}

// ---- Time

#[test]
fn a_slow_head_is_cut_off_although_bytes_arrive_steadily() {
    let (gateway, key) = Tuned::default().server("head_timeout = \"300ms\"").start();
    for start in ["", "GET /things HTTP/1.1\r\nhost: a\r\nx-drip: "] {
        let mut client = gateway.connect();
        client.send(start.as_bytes());
        let begun = Instant::now();
        // Much faster than the limit: a limit that restarts with each byte would never be reached.
        while begun.elapsed() < PATIENCE && client.try_send(b"G").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(client.is_closed());
        assert!(begun.elapsed() >= Duration::from_millis(300));
        assert!(begun.elapsed() < PATIENCE);
    }
    drop(key);
}

#[test]
fn the_head_of_a_second_request_has_no_more_time_than_that_of_the_first() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).server("head_timeout = \"300ms\"").start();
    let mut client = gateway.connect();
    assert_eq!(client.call(&Call::get("/things").key(&key)).unwrap().status, 200);
    client.send(b"GET /things HTTP/1.1\r\nhost: a\r\n");
    assert!(client.is_closed());
}

#[test]
fn a_connection_that_sends_nothing_is_closed() {
    let (gateway, _) = Tuned::default().server("head_timeout = \"200ms\"").start();
    assert!(gateway.connect().is_closed());
}

#[test]
fn a_connection_that_waits_for_its_next_request_is_closed_after_the_idle_time_and_not_before() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).server("idle_timeout = \"300ms\"").start();
    let mut client = gateway.connect();
    let begun = Instant::now();
    assert_eq!(client.call(&Call::get("/things").key(&key)).unwrap().status, 200);
    assert!(client.is_closed());
    assert!(begun.elapsed() >= Duration::from_millis(300));

    // The head timeout does not run between requests.
    let (gateway, key) = Tuned::default().live(live.url()).server("head_timeout = \"600ms\"").start();
    let mut client = gateway.connect();
    assert_eq!(client.call(&Call::get("/things").key(&key)).unwrap().status, 200);
    thread::sleep(Duration::from_millis(900));
    assert_eq!(client.call(&Call::get("/things").key(&key)).unwrap().status, 200);
}

#[test]
fn a_client_that_does_not_read_its_answer_is_cut_off() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).server("write_timeout = \"300ms\"").start();
    let mut client = gateway.connect();
    client.send(&Call::get("/things").key(&key).to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    upstream.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1_u64 << 30).as_bytes());
    let part = vec![b'x'; 1 << 20];
    let mut sent = 0;
    while upstream.try_send(&part).is_ok() {
        sent += 1;
        assert!(sent < 1024, "somebody takes it all");
    }
    // The upstream's connection ends before the client has read a byte; the client then reads an
    // incomplete answer.
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.complete), (200, false));
}

#[test]
fn a_client_that_reads_slowly_but_steadily_is_not_cut_off() {
    const LENGTH: usize = 24 << 20;
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).server("write_timeout = \"2s\"").start();
    let mut client = gateway.connect();
    client.send(&Call::get("/things").key(&key).to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    let sending = thread::spawn(move || {
        upstream.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n").as_bytes());
        upstream.try_send(&vec![b'x'; LENGTH])
    });
    assert_eq!(client.head().unwrap().status, 200);
    for _ in 0..24 {
        thread::sleep(Duration::from_millis(120));
        assert!(client.exactly(LENGTH / 24).is_some());
    }
    sending.join().unwrap().unwrap();
}

// ---- Places

#[test]
fn connections_per_client_are_limited_and_closed_ones_do_not_count() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).server("max_connections_per_client = 3").start();
    let call = Call::get("/things").key(&key);
    let mut held: Vec<Wire> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut held {
        assert_eq!(client.call(&call).unwrap().status, 200);
    }
    for _ in 0..5 {
        assert!(gateway.connect().call(&call).is_none(), "a fourth was served");
    }
    for client in &mut held {
        assert_eq!(client.call(&call).unwrap().status, 200, "the others did not suffer");
    }
    held.pop();
    eventually("a place is free again", || gateway.connect().call(&call).is_some());
}

// ---- Size of a head

#[test]
fn too_long_a_target_is_a_414() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).settings("[limits]\ntarget = \"1KiB\"").start();
    let target = |length: usize| format!("/things?{}", "x".repeat(length - "/things?".len()));
    let refused = gateway.fetch(&Call::get(&target(1025)).key(&key));
    refused.refusal(414, "validation_error");
    // Beyond the parser's limit, the answer has no envelope.
    assert_eq!(gateway.fetch(&Call::get(&target(70_000)).key(&key)).status / 100, 4);
    assert_eq!(live.connections(), 0);
    assert_eq!(gateway.fetch(&Call::get(&target(1024)).key(&key)).status, 200);
}

#[test]
fn too_many_or_too_large_header_fields_are_a_431() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let many = |count: usize| {
        // Host and Authorization are two more.
        (0..count - 2).fold(Call::get("/things").key(&key), |call, n| call.field(&format!("x-{n}"), "1"))
    };
    let large = |bytes: usize| Call::get("/things").key(&key).field("x-large", &"x".repeat(bytes));
    for call in [many(101), many(1000), large(33 << 10), large(200 << 10)] {
        let mut client = gateway.connect();
        let answer = client.call(&call).unwrap();
        assert_eq!(answer.status, 431);
        if !answer.body.is_empty() {
            answer.refusal(431, "validation_error");
        }
    }
    assert_eq!(live.connections(), 0);
    for call in [many(100), large(31 << 10)] {
        assert_eq!(gateway.fetch(&call).status, 200);
    }
}

// ---- One reading

/// The bytes after a message whose end is ambiguous.
fn hidden(key: &str) -> String {
    format!("GET /things/hidden HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")
}

/// Sends bytes, then a hidden request in the same write. Whatever is answered, the connection ends with it;
/// the upstream never sees the hidden request, and sees nothing whole of the first unless it may.
#[track_caller]
fn assert_one_reading(gateway: &Gateway, live: &Upstream, key: &str, sent: &str, statuses: &[u16]) {
    live.forget();
    let mut client = gateway.connect();
    client.send((sent.to_owned() + &hidden(key)).as_bytes());
    let answer = client.answer().unwrap_or_else(|| panic!("no answer to {sent:?}"));
    assert!(statuses.contains(&answer.status), "{} to {sent:?}", answer.status);
    assert!(client.answer().is_none(), "a second answer to {sent:?}");
    eventually("the connection has ended, above as well", || {
        live.seen().iter().all(|seen| answer.status == 200 || !seen.complete)
    });
    for seen in live.seen() {
        assert!(!seen.request_line().contains("hidden"), "{sent:?} became {:#?}", live.seen());
        assert!(
            seen.values("content-length").is_empty() || seen.values("transfer-encoding").is_empty(),
            "{sent:?} went up with two lengths"
        );
    }
}

#[test]
fn a_message_with_two_readings_of_its_length_is_refused_or_read_in_one_way_and_the_last_of_its_connection() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    // Both lengths: RFC 9112, section 6.3 lets a gateway refuse it, or take the coding alone and close.
    for fields in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        "content-length: 0\r\ntransfer-encoding: chunked\r\n",
        "content-length: 5\r\nTransfer-Encoding: Chunked\r\n",
    ] {
        let sent = request(&key, fields) + "0\r\n\r\n";
        assert_one_reading(&gateway, &live, &key, &sent, &[200, 400]);
    }
    for fields in [
        "content-length: 4\r\ncontent-length: 5\r\n",
        "content-length: 4, 5\r\n",
        "content-length: 4,4\r\n",
        "content-length: +4\r\n",
        "content-length: -4\r\n",
        "content-length: 0x4\r\n",
        "content-length: 4 4\r\n",
        "content-length: \r\n",
        "content-length: 99999999999999999999\r\n",
        "content-length : 4\r\n",
        "content-length\t: 4\r\n",
        " content-length: 4\r\n",
    ] {
        assert_one_reading(&gateway, &live, &key, &(request(&key, fields) + "body"), &[400]);
    }
}

#[test]
fn a_transfer_coding_that_is_not_just_chunked_is_refused() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    for fields in [
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "transfer-encoding: chunked\r\n identity\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding: \r\n",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer_encoding: chunked\r\ntransfer-encoding: xchunked\r\n",
    ] {
        for length in ["", "content-length: 5\r\n"] {
            let sent = request(&key, &format!("{length}{fields}")) + "0\r\n\r\n";
            assert_one_reading(&gateway, &live, &key, &sent, &[400, 501]);
        }
    }
    let old = format!("POST /things HTTP/1.0\r\nhost: a\r\nauthorization: Bearer {key}\r\n");
    assert_one_reading(&gateway, &live, &key, &(old + "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"), &[400]);
}

#[test]
fn chunks_are_read_strictly_or_not_at_all() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    for body in [
        "0x2\r\nhi\r\n0\r\n\r\n",
        "+2\r\nhi\r\n0\r\n\r\n",
        "-2\r\nhi\r\n0\r\n\r\n",
        "2_0\r\nhi\r\n0\r\n\r\n",
        "\r\nhi\r\n0\r\n\r\n",
        " 2\r\nhi\r\n0\r\n\r\n",
        "g\r\nhi\r\n0\r\n\r\n",
        "10000000000000002\r\nhi\r\n0\r\n\r\n",
        "2\nhi\r\n0\r\n\r\n",
        "2\rhi\r\n0\r\n\r\n",
        "2;a\nhi\r\n0\r\n\r\n",
        "2;a=\"\n\"\r\nhi\r\n0\r\n\r\n",
        "2;\nxx\r\n45\r\n0\r\n\r\n",
        "2\r\nhiXX0\r\n\r\n",
        "2\r\nhi0\r\n\r\n",
        "2\r\nhi\n0\r\n\r\n",
        "2\r\nhi\r0\r\n\r\n",
        "2\r\nhi!\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\r\nbad trailer\r\n\r\n",
        "2\r\nhi\r\n0\r\nx\n: 1\r\n\r\n",
    ] {
        let sent = request(&key, "transfer-encoding: chunked\r\n") + body;
        assert_one_reading(&gateway, &live, &key, &sent, &[400]);
    }
}

#[test]
fn extensions_and_trailers_without_end_are_refused() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let extensions: String = (0..2000).map(|_| "1;padding-padding\r\nx\r\n").collect();
    let trailers: String = (0..2000).map(|n| format!("x-{n}: padding-padding\r\n")).collect();
    for body in [
        format!("{extensions}0\r\n\r\n"),
        format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(20 << 10)),
        format!("1\r\nx\r\n0\r\n{trailers}\r\n"),
        format!("1\r\nx\r\n0\r\nx-long: {}\r\n\r\n", "x".repeat(100 << 10)),
    ] {
        let sent = request(&key, "transfer-encoding: chunked\r\n") + &body;
        assert_one_reading(&gateway, &live, &key, &sent, &[400]);
    }
}

#[test]
fn the_body_of_a_refused_request_is_never_read_as_a_request() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let hidden = hidden(&key);
    let wrong = "fh_live_sk_00000000000000000000000000000000000000";
    let continued = "expect: 100-continue\r\n";
    for (head, status) in [
        (request(wrong, &format!("content-length: {}\r\n", hidden.len())), 401),
        (request(wrong, &format!("content-length: {}\r\n{continued}", hidden.len())), 401),
        (request(wrong, "transfer-encoding: chunked\r\n"), 401),
        (request(&key, "content-length: 1000\r\n").replace("/things", "/nowhere"), 404),
        (request(&key, &format!("content-length: {}\r\n", 1_u64 << 40)), 413),
        (request(&key, "content-length: 1000\r\nexpect: else\r\n"), 400),
        (request(&key, "content-length: 1000\r\n").replace("/things", "//things"), 400),
    ] {
        for at_once in [true, false] {
            let mut client = gateway.connect();
            client.send(if at_once { head.clone() + &hidden } else { head.clone() }.as_bytes());
            let answer = client.answer().unwrap();
            assert_eq!(answer.status, status, "{head:?}");
            if !at_once {
                client.send(hidden.as_bytes());
            }
            client.finish_sending();
            let second = client.answer();
            assert!(second.is_none(), "{head:?} {second:?}");
        }
    }
    assert_eq!(live.connections(), 0);
}

#[test]
fn a_refusal_is_sent_while_the_upload_is_still_arriving() {
    let (gateway, key) = Tuned::default().settings("[limits]\nbody = \"1MiB\"").start();
    let wrong = "fh_live_sk_00000000000000000000000000000000000000";
    for (key, status) in [(wrong, 401), (key.as_str(), 413)] {
        let mut client = gateway.connect();
        let length = 8 << 20;
        client.send(request(key, &format!("content-length: {length}\r\n")).as_bytes());
        client.send(&vec![b'x'; length]);
        assert_eq!(client.answer().map(|answer| answer.status), Some(status));
    }
}

#[test]
fn a_refusal_reaches_a_client_that_reads_only_after_it_has_sent_its_whole_body() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::in_front_of(&live, &test);
    for (key, status, length) in [("wrong", 401, 30 << 20), (&*gateway.live_key().secret, 413, 200 << 20)] {
        let mut wire = gateway.connect();
        let head = format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n"
        );
        wire.try_send(head.as_bytes()).unwrap();
        let part = vec![b'x'; 1 << 20];
        for _ in 0..30 {
            wire.try_send(&part).unwrap();
        }
        assert_eq!(wire.answer().unwrap().status, status);
    }
    assert_eq!(live.connections(), 0);
}
