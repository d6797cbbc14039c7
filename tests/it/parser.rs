//! What the parser beneath refuses before the gateway sees a request: on HTTP/1.1 each such refusal is complete, as
//! every other one, and says what is wrong.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Read;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use crate::harness::http2::{Frames, HEADERS, RESET};
use crate::harness::metrics::{scrape, value};
use crate::harness::{
    Answer, Call, Gateway, Manual, PATIENCE, Process, Reply, Transport, Tuned, Upstream, eventually, hang_up,
};

fn gateway() -> (Upstream, Gateway, String) {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).start();
    (live, gateway, key)
}

/// The answer to these bytes, after which the connection must be closed.
#[track_caller]
fn refused(gateway: &Gateway, bytes: &[u8]) -> Answer {
    let mut wire = gateway.connect();
    wire.send(bytes);
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let answer = wire.answer().unwrap_or_else(|| panic!("no answer to {shown:?}"));
    assert!(wire.is_closed(), "{shown:?}");
    assert_eq!(answer.field("connection"), Some("close"), "{shown:?}: {:?}", answer.fields);
    let date = answer.field("date").unwrap();
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
    answer
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n").into_bytes()
}

#[test]
fn each_head_that_the_parser_refuses_gets_the_envelope_and_a_message_that_says_what_is_wrong() {
    let (live, gateway, _) = gateway();
    let with = |field: &str| format!("GET /things HTTP/1.1\r\nhost: h\r\n{field}\r\n\r\n").into_bytes();
    let mut fields = String::new();
    for n in 0..101 {
        write!(fields, "x-{n}: 1\r\n").unwrap();
    }
    for (bytes, status, says) in [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400, "TLS"),
        (b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), 400, "not HTTP"),
        (b"\x00\x01\x02\x03".to_vec(), 400, "not HTTP"),
        (b"G\"T /things HTTP/1.1\r\n\r\n".to_vec(), 400, "method"),
        (b"GET /things HTTP/1.2\r\n\r\n".to_vec(), 400, "version"),
        (b"GET /things HTTP/2.0\r\n\r\n".to_vec(), 400, "version"),
        (b"GET /things\r\n\r\n".to_vec(), 400, "request line"),
        (b"GET  /things HTTP/1.1\r\n\r\n".to_vec(), 400, "request line"),
        (b"GET h:80:x HTTP/1.1\r\n\r\n".to_vec(), 400, "target"),
        (with("authorization: Bearer fh_live_sk_x\r"), 400, "carriage return"),
        (with("x-a: 1\x012"), 400, "header field"),
        (with("x a: 1"), 400, "header field"),
        (with(" x-a: 1"), 400, "header field"),
        (with("content-length: five"), 400, "Content-Length"),
        (with("content-length: 5\r\ncontent-length: 6"), 400, "Content-Length"),
        (with("transfer-encoding: gzip"), 400, "transfer coding"),
        (with(fields.trim_end()), 431, "header fields"),
        (with(&format!("x-a: {}", "x".repeat(60 << 10))), 431, "header fields"),
        (get(&format!("/things?{}", "x".repeat(66 << 10))), 414, "target is too long"),
        (get(&format!("/things?{}", "x".repeat(50 << 10))), 414, "target is too long"),
    ] {
        let answer = refused(&gateway, &bytes);
        let message = answer.refusal(status, "validation_error");
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        assert!(message.contains(says), "{shown:?}: {message}");
    }
    assert_eq!(live.connections(), 0);
}

#[test]
fn a_character_that_a_target_cannot_have_is_named_with_its_percent_encoding() {
    let (_live, gateway, key) = gateway();
    for (target, character, encoded) in [
        ("/things/a<b", "'<'", "%3C"),
        ("/things/a>b", "'>'", "%3E"),
        ("/things/a\"b", "'\"'", "%22"),
        ("/things/{a}", "'{'", "%7B"),
        ("/things/a\\b", "'\\'", "%5C"),
        ("/things/a^b", "'^'", "%5E"),
        ("/things/a`b", "'`'", "%60"),
        ("/things/a|b", "'|'", "%7C"),
        ("/things/jöbs", "'ö'", "%C3%B6"),
        ("/things/a b", "a blank", "%20"),
        ("/things?filter={\"a\":1}", "'\"'", "%22"),
        ("/things?a<b", "'<'", "%3C"),
        ("/things?a=b c", "a blank", "%20"),
        ("/things?a>b", "'>'", "%3E"),
        ("http://h/things?a\"b", "'\"'", "%22"),
        ("/things#part", "'#'", "%23"),
        ("/things?a=b#part", "'#'", "%23"),
        ("http://h/things#part", "'#'", "%23"),
        ("http://h#part", "'#'", "%23"),
        ("/#", "'#'", "%23"),
    ] {
        let mut wire = gateway.connect();
        let head = format!("GET {target} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\n\r\n");
        wire.send(head.as_bytes());
        let message = wire.answer().unwrap().refusal(400, "validation_error");
        assert!(message.contains(character) && message.contains(encoded), "{target}: {message}");
    }
    for (octets, named) in [(&b"/things/\xff"[..], "%FF"), (b"/things?\xc3", "%C3"), (b"/things/\x07", "%07")]
    {
        let message = refused(&gateway, &[b"GET ", octets, b" HTTP/1.1\r\nhost: h\r\n\r\n"].concat())
            .refusal(400, "validation_error");
        assert!(message.contains(named), "{octets:?}: {message}");
    }
}

#[test]
fn a_query_passes_byte_for_byte_as_far_as_the_parsers_carry_it() {
    let (live, gateway, key) = gateway();
    for query in ["a={1}", "a=[1]|b\\c^d`e", "name=j\u{f6}bs", "a='b'", "%zz%"] {
        live.forget();
        let answer = gateway.fetch(&Call::get(&format!("/things?{query}")).key(&key));
        assert_eq!(answer.status, 200, "{query}");
        assert_eq!(live.only().request_line(), format!("GET /things?{query} HTTP/1.1"));
    }
}

#[test]
fn a_fragment_is_seen_wherever_its_head_lies_and_no_other_number_sign_is_taken_for_one() {
    let (live, gateway, key) = gateway();
    let head = |method: &str, target: &str, rest: &str| {
        format!("{method} {target} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\n{rest}\r\n")
    };
    let good = head("GET", "/things/1", "x-colour: #fff\r\nreferer: http://a/b#c\r\n");
    let bad = head("GET", "/things/1#part", "");
    let posted = head("POST", "/things", "content-length: 23\r\n") + "\nGET /things/1#x HTTP/1.1";
    let posted = &posted[..posted.len() - 2];
    let chunked = head("POST", "/things", "transfer-encoding: chunked\r\n")
        + "7\r\n#\r\n\r\n#\n\r\n3;x=#\r\n#\n#\r\n0\r\n\r\n";
    for pipelined in [
        vec![(good.as_str(), 200), (&bad, 400)],
        vec![(&bad, 400), (&good, 200), (&bad, 400), (&good, 200)],
        vec![(&chunked, 200), (&bad, 400), (&chunked, 200), (&good, 200)],
        vec![(posted, 200), (&good, 200), (posted, 200), (&bad, 400), (&good, 200)],
    ] {
        let bytes = pipelined.iter().map(|(bytes, _)| *bytes).collect::<String>().into_bytes();
        // In one piece, in two that are cut at each of many places, and in very small ones.
        let cuts = (1..bytes.len()).step_by(7).map(|at| vec![&bytes[..at], &bytes[at..]]);
        let small = std::iter::once(bytes.chunks(bytes.len() / 25 + 1).collect());
        for pieces in std::iter::once(vec![&bytes[..]]).chain(cuts).chain(small) {
            let mut wire = gateway.connect();
            for piece in &pieces {
                wire.send(piece);
                if pieces.len() > 1 {
                    thread::sleep(Duration::from_micros(300));
                }
            }
            for (n, (_, status)) in pipelined.iter().enumerate() {
                let answer = wire.answer().unwrap_or_else(|| panic!("no answer {n} to {pieces:?}"));
                assert_eq!(answer.status, *status, "answer {n}: {}", answer.text());
            }
        }
    }
    assert!(live.seen().iter().all(|seen| !seen.request_line().contains("part")));
}

/// A request as it is sent, its method, and its body.
type Sent = (Vec<u8>, &'static str, Vec<u8>);

fn requests(key: &str) -> impl Strategy<Value = Vec<Sent>> + use<> {
    let key = key.to_owned();
    let pieces = [
        "\r\n\r\n",
        "\n\n",
        "#",
        "GET /things#x HTTP/1.1\r\nhost: h\r\n\r\n",
        "0\r\n\r\n",
        "abc",
        "\n",
        "\r",
    ];
    let body = proptest::collection::vec(proptest::sample::select(Vec::from(pieces)), 0..4);
    let request = (proptest::sample::select(vec!["GET", "HEAD", "POST", "DELETE"]), body, 0..3_u8, 0..3_u8);
    let request = request.prop_map(move |(method, body, framing, lines)| {
        let body = if framing == 0 { Vec::new() } else { body };
        let whole = body.concat().into_bytes();
        let end = if lines == 0 { "\n" } else { "\r\n" };
        let fields = [
            format!("{method} /things HTTP/1.1"),
            "host: h".to_owned(),
            format!("authorization: Bearer {key}"),
            if lines == 1 { "x-a: #".to_owned() } else { "x-a: b".to_owned() },
            match framing {
                0 => "x-b:".to_owned(),
                1 => format!("content-length: {}", whole.len()),
                _ => "transfer-encoding: chunked".to_owned(),
            },
        ];
        let mut bytes = fields.map(|field| field + end).concat() + end;
        if framing == 2 {
            for piece in body {
                write!(bytes, "{:x};x=y\r\n{piece}\r\n", piece.len()).unwrap();
            }
            bytes += if lines == 1 { "0\r\nx-t: #\r\n\r\n" } else { "0\r\n\r\n" };
        } else if framing == 1 {
            bytes += std::str::from_utf8(&whole).unwrap();
        }
        (bytes.into_bytes(), method, whole)
    });
    proptest::collection::vec(request, 1..6)
}

#[test]
fn pipelined_requests_arrive_as_they_were_sent_however_they_are_cut() {
    let live = Upstream::with(|_| Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let closed = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(requests(&key), 1..400_usize), |(requests, length)| {
        live.forget();
        let bytes = requests.iter().flat_map(|(bytes, ..)| bytes.clone()).collect::<Vec<u8>>();
        let mut wire = gateway.connect();
        wire.stream().set_nodelay(true).unwrap();
        for part in bytes.chunks(length) {
            wire.send(part);
        }
        for (n, (sent, method, body)) in requests.iter().enumerate() {
            let shown = String::from_utf8_lossy(sent).into_owned();
            let Some(answer) = wire.answer_to(method) else {
                return Err(TestCaseError::fail(format!("no answer {n}, to {shown:?}")));
            };
            prop_assert_eq!(answer.status, 200, "answer {} to {:?}: {}", n, shown, answer.text());
            let seen = live.seen();
            prop_assert!(seen.len() > n, "{} of the requests came", seen.len());
            prop_assert_eq!((&seen[n].body, seen[n].complete), (body, true), "{}", shown);
            if answer.field("connection") == Some("close") {
                // A request of a GET's form had a body, and its piece could have been a head.
                closed.set(closed.get() + 1);
                break;
            }
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    assert!(closed.get() < 100, "{} of 200 connections were closed", closed.get());
}

#[test]
fn what_the_parser_refuses_behind_good_requests_is_answered_after_them() {
    let (_live, gateway, key) = gateway();
    let good = String::from_utf8(Call::get("/things").key(&key).to_bytes()).unwrap();
    let mut wire = gateway.connect();
    wire.send(format!("{good}{good}GET /a<b HTTP/1.1\r\nhost: h\r\n\r\n{good}").as_bytes());
    assert_eq!([(); 2].map(|()| wire.answer().unwrap().status), [200, 200]);
    // The character is not named here: nobody has kept the line of a request that came in one piece with others.
    assert!(wire.answer().unwrap().refusal(400, "validation_error").contains("percent-encoded"));
    assert!(wire.is_closed());
    let mut wire = gateway.connect();
    wire.send(good.as_bytes());
    assert_eq!(wire.answer().unwrap().status, 200);
    wire.send(b"GET /a<b HTTP/1.1\r\nhost: h\r\n\r\n");
    assert!(wire.answer().unwrap().refusal(400, "validation_error").contains("'<'"));
    assert!(wire.is_closed());
    // Behind a body, and behind the answer to a HEAD request.
    let mut wire = gateway.connect();
    let posted =
        String::from_utf8(Call::post("/things", "HTTP/1.1 400\r\n\r\n").key(&key).to_bytes()).unwrap();
    wire.send(format!("{posted}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").as_bytes());
    assert_eq!(wire.answer().unwrap().status, 200);
    assert!(wire.answer().unwrap().refusal(400, "validation_error").contains("version"));
    assert!(wire.is_closed());
}

#[test]
fn a_refusal_of_a_head_request_has_no_body() {
    let (_live, gateway, _) = gateway();
    let mut wire = gateway.connect();
    wire.send(b"HEAD /a<b HTTP/1.1\r\nhost: h\r\n\r\n");
    let answer = wire.answer_to("HEAD").unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.field("x-request-id").is_some());
    assert_ne!(answer.field("content-length"), Some("0"));
    assert!(wire.rest().is_empty());
}

#[test]
fn the_refusal_is_complete_over_tls_too() {
    for transport in [Transport::Http1, Transport::TlsHttp1] {
        let (live, test) = (Upstream::start("live"), Upstream::start("test"));
        let gateway = Gateway::builder().transport(transport).api(&live, &test).start();
        let mut wire = gateway.wire("http/1.1");
        wire.send(b"GET /a>b HTTP/1.1\r\nhost: h\r\n\r\n");
        let message = wire.answer().unwrap().refusal(400, "validation_error");
        assert!(message.contains("%3E"), "{message}");
        assert!(wire.is_closed());
    }
}

#[test]
fn what_the_parser_refuses_is_recorded_and_counted_by_its_reason() {
    let (folder, live) = (TempDir::new().unwrap(), Upstream::start("live"));
    Tuned::default()
        .live(live.url())
        .settings("[log]\nrequests = \"json\"\n[ops]\nlisten = \"127.0.0.1:0\"")
        .builder()
        .write(folder.path());
    let gateway = Process::serve(folder.path());
    let (address, ops) = (gateway.address(), gateway.ops_address());
    let mut expected: HashMap<&str, usize> = HashMap::new();
    for (bytes, reason) in [
        (&b"SSH-2.0-OpenSSH\r\n"[..], "not_http"),
        (b"\x16\x03\x01\x00\xa5\x01\x00", "not_http"),
        (b"GET /a<b HTTP/1.1\r\n\r\n", "path_character"),
        (b"GET /a?\"b HTTP/1.1\r\n\r\n", "query_character"),
        (b"GET /a#b HTTP/1.1\r\nhost: h\r\n\r\n", "target_fragment"),
        (b"GET /a HTTP/3.0\r\n\r\n", "http_version"),
        (b"GE(T /a HTTP/1.1\r\n\r\n", "method_character"),
        (b"GET /a\r\n\r\n", "request_line"),
        (b"GET /a HTTP/1.1\r\nhost: h\r\na: b\rc\r\n\r\n", "field_carriage_return"),
        (b"GET /a HTTP/1.1\r\nhost: h\r\na(: b\r\n\r\n", "field_malformed"),
        (b"GET /a HTTP/1.1\r\nhost: h\r\ncontent-length: -1\r\n\r\n", "content_length"),
        (b"GET /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: x\r\n\r\n", "transfer_encoding"),
    ] {
        let mut wire = crate::harness::Wire::connect(address);
        wire.send(bytes);
        let answer = wire.answer().unwrap();
        let id = answer.field("x-request-id").unwrap().to_owned();
        let record = gateway.out_line(&id);
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        assert_eq!(
            (&record["reason"], &record["http.response.status_code"]),
            (&reason.into(), &400.into()),
            "{record}"
        );
        *expected.entry(reason).or_default() += 1;
    }
    eventually("all are counted", || {
        let metrics = scrape(ops);
        let count =
            |reason| value(&metrics, &format!("keygate_messages_refused_total{{reason=\"{reason}\"}}"));
        expected.iter().all(|(reason, times)| count(reason) == Some(*times as f64))
    });
}

#[test]
fn a_client_that_still_sends_a_head_that_is_too_large_reads_its_refusal() {
    let (_live, gateway, _) = gateway();
    let mut wire = gateway.connect();
    wire.send(b"GET /things HTTP/1.1\r\nhost: h\r\nx-a: ");
    for _ in 0..64 {
        wire.send(&[b'x'; 64 << 10]);
    }
    wire.answer().unwrap().refusal(431, "validation_error");
}

#[test]
fn half_a_second_head_behind_a_finished_request_has_the_time_of_a_head() {
    let live = Upstream::start("live");
    let (gateway, key) = Tuned::default().live(live.url()).server("head_timeout = \"300ms\"").start();
    let whole = String::from_utf8(Call::get("/things").key(&key).to_bytes()).unwrap();
    let posted = String::from_utf8(Call::post("/things", "{}").key(&key).to_bytes()).unwrap();
    for (first, half) in [
        (&whole, "G"),
        (&whole, "GET /things HTTP/1.1\r\nhost: h\r\n"),
        (&posted, "GET /things HTTP/1.1\r\nho"),
    ] {
        let mut client = gateway.connect();
        client.send(format!("{first}{half}").as_bytes());
        let begun = Instant::now();
        assert_eq!(client.answer().unwrap().status, 200);
        assert!(client.is_closed());
        // The default idle timeout is longer than a test's patience, so this says that the head's own held.
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }
    // The whole of a second request is answered, and then the connection may wait.
    let mut client = gateway.connect();
    client.send(format!("{posted}{whole}").as_bytes());
    assert_eq!([(); 2].map(|()| client.answer().unwrap().status), [200, 200]);
    thread::sleep(Duration::from_millis(600));
    assert_eq!(client.call(&Call::get("/things").key(&key)).unwrap().status, 200);
}

#[test]
fn a_bare_lf_where_a_crlf_belongs_in_a_chunked_body_is_refused_at_once() {
    let (live, gateway, key) = gateway();
    for body in [
        "0\r\n\n",
        "0\n\r\n",
        "0\n\n",
        "2\nhi\r\n0\r\n\r\n",
        "2\r\nhi\n0\r\n\r\n",
        "2;a=b\nhi\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\r\n\n",
        "0\r\nx-a: b\n\r\n",
        "0\r\nx-a: b\r\n\n",
        "0\r\nx-a: b\n\n",
    ] {
        let head = format!(
            "POST /things HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        for at_once in [true, false] {
            live.forget();
            let mut wire = gateway.connect();
            let begun = Instant::now();
            if at_once {
                wire.send(format!("{head}{body}").as_bytes());
            } else {
                wire.send(head.as_bytes());
                for byte in body.as_bytes() {
                    wire.send(&[*byte]);
                }
            }
            wire.answer().unwrap_or_else(|| panic!("no answer to {body:?}")).refusal(400, "validation_error");
            assert!(wire.is_closed(), "{body:?}");
            assert!(begun.elapsed() < PATIENCE, "{body:?}: not after the pause that a body may make");
            assert!(live.seen().iter().all(|seen| !seen.complete), "{body:?}: {:?}", live.seen());
        }
    }
}

// ---- HTTP/2

#[test]
fn what_the_http_2_library_refuses_is_a_reset_that_is_counted() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder()
        .transport(Transport::Http2)
        .settings("[server]\nlisten = \"127.0.0.1:0\"\n[ops]\nlisten = \"127.0.0.1:0\"")
        .api(&live, &test)
        .start();
    let key = gateway.live_key().secret;
    let mut frames = Frames::connect(&gateway, &[]);
    for (stream, target) in [(1, "/v1/a<b"), (3, "/v1/jobs?a\"b"), (5, "v1/jobs")] {
        frames.get(stream, target, &key);
        let reset = frames.until(RESET).unwrap();
        assert_eq!((reset.stream, &reset.payload[..]), (stream, &1_u32.to_be_bytes()[..]), "{target}");
    }
    let series = "keygate_streams_reset_total{code=\"protocol_error\"}";
    eventually("the resets are counted", || value(&scrape(gateway.ops_address()), series) == Some(3.0));
    // A fragment is cut off before anybody sees it.
    frames.get(7, "/v1/jobs#part", &key);
    assert_eq!(frames.until(HEADERS).unwrap().stream, 7);
    assert_eq!(live.only().request_line(), "GET /v1/jobs HTTP/1.1");
}

// ---- HTTP/1.0

fn old(key: &str, more: &str) -> Vec<u8> {
    format!("GET /things HTTP/1.0\r\nhost: h\r\nauthorization: Bearer {key}\r\n{more}\r\n").into_bytes()
}

/// Reads to the end of the connection; the body, and whether it ended with a reset.
fn read_to_end(wire: &crate::harness::Wire) -> (Vec<u8>, bool) {
    let (mut all, mut part) = (Vec::new(), [0; 4096]);
    loop {
        match wire.stream().read(&mut part) {
            Ok(0) => return (all, false),
            Ok(n) => all.extend_from_slice(&part[..n]),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                return (all, true);
            }
        }
    }
}

#[test]
fn a_broken_body_that_ends_with_the_connection_ends_with_a_reset() {
    for more in ["", "connection: keep-alive\r\n"] {
        for is_broken in [true, false] {
            let live = Manual::start();
            let (gateway, key) = Tuned::default().live(live.url()).start();
            let client = {
                let mut client = gateway.connect();
                client.send(&old(&key, more));
                client
            };
            let mut upstream = live.accept();
            upstream.request_head().unwrap();
            upstream.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
            // What came is with the client before the rest breaks off.
            let mut head = [0; 16];
            client.stream().peek(&mut head).unwrap();
            if is_broken {
                hang_up(&upstream).unwrap();
            } else {
                upstream.send(b"0\r\n\r\n");
            }
            let (bytes, reset) = read_to_end(&client);
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(reset, is_broken, "{text}");
            assert!(text.contains("200 OK") && !text.contains("chunked"), "{text}");
            assert!(!text.to_lowercase().contains("keep-alive"), "{text}");
            assert!(is_broken || text.ends_with("\r\n\r\nhello"), "{text}");
        }
    }
}

#[test]
fn an_answer_that_is_cut_because_its_key_is_revoked_ends_with_a_reset_too() {
    let live = Manual::start();
    let gateway = Tuned::default().live(live.url()).builder().start();
    let key = gateway.live_key();
    let mut client = gateway.connect();
    client.send(&old(&key.secret, ""));
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    upstream.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
    client.stream().peek(&mut [0; 16]).unwrap();
    gateway.revoke(&key);
    let (bytes, reset) = read_to_end(&client);
    assert!(reset, "{}", String::from_utf8_lossy(&bytes));
}

#[test]
fn an_answer_with_a_length_keeps_the_connection_of_a_client_of_http_1_0_that_asks_for_it() {
    let (_live, gateway, key) = gateway();
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send(&old(&key, "connection: keep-alive\r\n"));
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.field("connection")), (200, Some("keep-alive")));
    }
    client.stream().shutdown(Shutdown::Write).unwrap();
    assert!(client.is_closed());
}

// ---- Answers of upstreams

#[test]
fn a_length_that_an_upstream_gives_as_a_list_is_written_as_one() {
    for (given, written) in
        [("2, 2", Some("2")), ("2,2", Some("2")), ("2\r\ncontent-length: 2", Some("2")), ("2, 3", None)]
    {
        let live = Upstream::with(move |_| {
            Reply::raw(&format!("HTTP/1.1 200 OK\r\ncontent-length: {given}\r\n\r\nhi"))
        });
        let (gateway, key) = Tuned::default().live(live.url()).start();
        for method in ["GET", "HEAD"] {
            let mut wire = gateway.connect();
            let answer = wire.call(&Call::new(method, "/things").key(&key));
            let Some(written) = written else {
                assert_eq!(answer.unwrap().status, 502, "{given}");
                continue;
            };
            let answer = answer.unwrap();
            let lengths: Vec<_> = answer.fields.iter().filter(|(name, _)| name == "content-length").collect();
            assert_eq!(lengths, [&("content-length".to_owned(), written.to_owned())], "{given} {method}");
        }
    }
}

#[test]
fn the_reason_phrase_of_an_upstream_reaches_clients_of_http_1_1() {
    for line in ["200 OK", "200 Fine", "404 Nothing here", "299 ", "299 Odd", "404 "] {
        let live =
            Upstream::with(move |_| Reply::raw(&format!("HTTP/1.1 {line}\r\ncontent-length: 2\r\n\r\nhi")));
        let (gateway, key) = Tuned::default().live(live.url()).start();
        let answer = gateway.fetch(&Call::get("/things").key(&key));
        assert_eq!(answer.status_line, format!("HTTP/1.1 {line}"));
    }
}
