//! An upstream that turned bad: what it sends costs its own requests and nothing else.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::harness::client::fetch_over;
use crate::harness::{Answer, Call, Gateway, Reply, Transport, Tuned, Upstream, eventually};

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
const FINE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// More than a gateway may take, together with what the system's buffers take.
const MUCH: usize = 48 << 20;

fn in_front_of(upstream: &Upstream) -> (Gateway, String) {
    Tuned::default().live(upstream.url()).start()
}

/// An upstream that writes `begin`, and then `again` until nobody takes it or [`MUCH`] is sent; and how much was taken.
fn endless(begin: &'static str, again: &'static str) -> (Upstream, Arc<AtomicUsize>) {
    let taken = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&taken);
    let upstream = Upstream::with(move |_| {
        let counted = Arc::clone(&counted);
        Reply::Custom(Box::new(move |stream: &mut TcpStream| {
            let (mut goes_on, piece) =
                (stream.write_all(begin.as_bytes()).is_ok(), again.repeat(1 + 4096 / again.len()));
            while goes_on && counted.load(Ordering::SeqCst) < MUCH {
                goes_on = stream.write_all(piece.as_bytes()).is_ok();
                counted.fetch_add(piece.len(), Ordering::SeqCst);
            }
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0; 1]);
        }))
    });
    (upstream, taken)
}

/// What a gateway makes of an answer in these pieces, each sent alone.
fn passed(method: &str, pieces: Vec<Vec<u8>>) -> Answer {
    let upstream = Upstream::with(move |_| {
        let pieces = pieces.clone();
        Reply::Custom(Box::new(move |stream: &mut TcpStream| {
            stream.set_nodelay(true).unwrap();
            for piece in pieces {
                if stream.write_all(&piece).is_err() {
                    return;
                }
            }
        }))
    });
    let (gateway, key) = in_front_of(&upstream);
    gateway.fetch(&Call::new(method, "/things").key(&key))
}

#[test]
fn sixteen_interim_answers_may_come_before_an_answer_and_no_more() {
    for size in [1, 7, HINT.len(), usize::MAX] {
        let cut = |count: usize| {
            let bytes = HINT.repeat(count) + FINE;
            bytes.as_bytes().chunks(size.min(bytes.len())).map(<[u8]>::to_vec).collect()
        };
        let answer = passed("GET", cut(16));
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "in pieces of {size}");
        let message = passed("GET", cut(17)).refusal(502, "bad_gateway");
        assert_eq!(message, "The service behind this gateway gave an invalid answer", "in pieces of {size}");
    }
}

#[test]
fn interim_answers_without_end_cost_their_own_request() {
    for method in ["GET", "POST"] {
        let (upstream, taken) = endless("", HINT);
        let (gateway, key) = in_front_of(&upstream);
        let (address, transport) = (gateway.address(), gateway.transport());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let call = Call::new(method, "/things").key(&key);
                    fetch_over(address, transport, &call).refusal(502, "bad_gateway");
                });
            }
        });
        assert!(taken.load(Ordering::SeqCst) < MUCH, "{method}: each connection was closed");
    }
}

#[test]
fn an_upload_meets_the_same_bound_of_interim_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // One for each part of the body.
        while let Ok(1..) = stream.read(&mut [0; 64]) {
            if stream.write_all(HINT.as_bytes()).is_err() {
                return;
            }
        }
    });
    let gateway = Tuned::default().live(url).builder().transport(Transport::Http1).start();
    let key = gateway.live_key().secret;
    let call = Call::post("/things", vec![b'a'; 1 << 20]).key(&key);
    let mut wire = gateway.connect();
    // It may be refused before all is sent.
    let _ = wire.try_send(&call.to_bytes());
    wire.answer().unwrap().refusal(502, "bad_gateway");
}

#[test]
fn a_head_without_end_is_an_invalid_answer() {
    for (begin, again) in [
        ("HTTP/1.1 200 OK\r\n", "x-a: b\r\n"),
        ("HTTP/1.1 200 OK\r\nx-a: ", "a"),
        ("HTTP/1.1 200 OK\r\n", "a"),
        ("HTTP/1.1 200 ", "a"),
        ("HTTP/1.1 103 Early Hints\r\n", "x-a: b\r\n"),
        ("", "\r\n"),
        ("", "a"),
    ] {
        let (upstream, taken) = endless(begin, again);
        let (gateway, key) = in_front_of(&upstream);
        gateway.fetch(&Call::get("/things").key(&key)).refusal(502, "bad_gateway");
        assert!(taken.load(Ordering::SeqCst) < MUCH, "{begin:?}, {again:?}");
    }
}

#[test]
fn trailers_and_chunk_lines_without_end_break_the_answer_off() {
    const CHUNKS: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
    const TRAILERS: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
    const EXTENSION: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n2;a=";
    const EXTENSIONS: &str = "2;a=bcdefghijklmnopqrstuvwxyz\r\nok\r\n";
    for (begin, again) in [(TRAILERS, "x-a: b\r\n"), (TRAILERS, "a"), (EXTENSION, "a"), (CHUNKS, EXTENSIONS)]
    {
        let (upstream, taken) = endless(begin, again);
        let (gateway, key) = in_front_of(&upstream);
        for call in [Call::get("/things"), Call::get("/things").field("te", "trailers")] {
            taken.store(0, Ordering::SeqCst);
            // Its head may be lost with it.
            let answer = gateway.connect().call(&call.key(&key));
            assert!(answer.is_none_or(|answer| !answer.complete), "{again:?}");
            eventually("the connection is closed", || taken.load(Ordering::SeqCst) > 0);
            assert!(taken.load(Ordering::SeqCst) < MUCH, "{again:?}");
        }
    }
}

#[test]
fn a_205_has_no_body() {
    for said in [
        "HTTP/1.1 205 Reset Content\r\ncontent-length: 6\r\n\r\npoison",
        "HTTP/1.1 205 Reset Content\r\ntransfer-encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n",
        "HTTP/1.1 205 Reset Content\r\n\r\npoison",
        "HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n",
    ] {
        let upstream = Upstream::with(move |seen| match seen.request_line().contains("205") {
            true => Reply::BytesThenClose(said.as_bytes().to_vec()),
            false => Reply::raw(FINE),
        });
        let (gateway, key) = in_front_of(&upstream);
        let mut client = gateway.connect();
        let reset = client.call(&Call::get("/things/205").key(&key)).unwrap();
        assert_eq!((reset.status, reset.field("content-length")), (205, Some("0")), "{said:?}");
        assert_eq!((reset.text().as_str(), reset.field("transfer-encoding")), ("", None), "{said:?}");
        let next = client.call(&Call::get("/things").key(&key)).unwrap();
        assert_eq!((next.status, next.text().as_str()), (200, "ok"), "{said:?}");
    }
}

#[test]
fn control_characters_in_an_answers_fields_make_it_invalid() {
    for byte in (0..=0x1f).chain([0x7f]).filter(|byte| !matches!(byte, b'\t' | b'\n')) {
        for (begin, end) in [
            ("HTTP/1.1 200 OK\r\nx-a: b", "c\r\ncontent-length: 0\r\n\r\n"),
            ("HTTP/1.1 200 OK\r\nx-a", "b: c\r\ncontent-length: 0\r\n\r\n"),
            ("HTTP/1.1 200 O", "K\r\ncontent-length: 0\r\n\r\n"),
        ] {
            let bytes = [begin.as_bytes(), &[byte], end.as_bytes()].concat();
            passed("GET", vec![bytes]).refusal(502, "bad_gateway");
        }
    }
}

#[test]
fn lists_of_lengths_are_written_as_one_or_refused() {
    for (lengths, expected) in [
        ("content-length: 2, 2\r\n", Some("2")),
        ("content-length: 2\r\ncontent-length: 2\r\n", Some("2")),
        ("content-length: 2,2 ,\t2\r\n", Some("2")),
        ("content-length: 2, 3\r\n", None),
        ("content-length: 2\r\ncontent-length: 3\r\n", None),
        ("content-length: 2,\r\n", None),
        ("content-length: ,2\r\n", None),
        ("content-length: 0x2\r\n", None),
        ("content-length: +2\r\n", None),
        ("content-length: 2 2\r\n", None),
        ("content-length: 99999999999999999999\r\n", None),
        ("content-length:\r\n", None),
    ] {
        let answer = passed("GET", vec![format!("HTTP/1.1 200 OK\r\n{lengths}\r\nok").into_bytes()]);
        match expected {
            Some(length) => {
                assert_eq!(
                    (answer.status, answer.field("content-length")),
                    (200, Some(length)),
                    "{lengths:?}"
                );
                assert_eq!((answer.text().as_str(), answer.complete), ("ok", true), "{lengths:?}");
            }
            None => drop(answer.refusal(502, "bad_gateway")),
        }
    }
}
