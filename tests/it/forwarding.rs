//! Forwarding: the bytes of requests and answers, and the connections to the upstream.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::harness::{
    Answer, Call, Gateway, Manual, Reply, Tuned, Upstream, Wire, eventually, hang_up, refusing,
};

fn in_front_of(upstream: &Upstream) -> (Gateway, String) {
    Tuned::default().live(upstream.url()).start()
}

/// A request of which every byte after the credentials is the test's.
fn head(method: &str, key: &str, fields: &str) -> String {
    format!(
        "{method} /things HTTP/1.1\r\nhost: api.example.com\r\nauthorization: Bearer {key}\r\n{fields}\r\n"
    )
}

// ---- Requests

#[test]
fn the_upstream_receives_the_canonical_request_with_the_identity_headers() {
    let live = Upstream::start("live");
    let gateway = Tuned::default().live(live.url()).builder().start();
    let key = gateway.key_with(&["jobs:read"]);
    let answer = gateway.fetch(
        &Call::post("/things/%61?q=%61&&", "hello")
            .key(&key.secret)
            .field("Content-Type", "text/plain")
            .field("Accept", "a")
            .field("accept", "b")
            .field("Idempotency-Key", "k-1")
            .field("prefer", "wait=60")
            .field("cookie", "c=1"),
    );
    let seen = live.only();
    assert_eq!(seen.request_line(), "POST /things/a?q=%61&& HTTP/1.1");
    let mut fields = seen.head[1..].to_vec();
    fields.sort();
    let request_id = answer.field("x-request-id").unwrap();
    let mut expected = [
        "accept: a",
        "accept: b",
        "content-length: 5",
        "content-type: text/plain",
        "cookie: c=1",
        "host: api.example.com",
        "idempotency-key: k-1",
        "prefer: wait=60",
        "x-environment: live",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: api.example.com",
        &format!("x-forwarded-proto: {}", gateway.transport().scheme()),
        &format!("x-key-id: {}", key.id()),
        &format!("x-org-id: {}", gateway.org),
        &format!("x-request-id: {request_id}"),
        "x-scopes: jobs:read",
    ];
    expected.sort_unstable();
    assert_eq!(fields, expected);
    assert_eq!(seen.raw_body, b"hello");
}

#[test]
fn the_upstream_receives_the_requests_method_framing_and_body() {
    const CHUNKED: &str = "transfer-encoding: chunked\r\n";
    let live = Upstream::with(|_| Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    let (gateway, key) = in_front_of(&live);
    let rows: &[(&str, &str, &str, &[u8])] = &[
        ("GET", "", "", b""),
        ("GET", "content-length: 0\r\n", "", b""),
        ("GET", "content-length: 2\r\n", "hi", b"hi"),
        ("GET", CHUNKED, "2\r\nhi\r\n0\r\n\r\n", b"hi"),
        ("HEAD", "", "", b""),
        ("POST", "", "", b""),
        ("POST", "content-length: 0\r\n", "", b""),
        ("POST", "content-length: 5\r\n", "a\r\n\0b", b"a\r\n\0b"),
        ("POST", CHUNKED, "0\r\n\r\n", b""),
        ("POST", CHUNKED, "3\r\nabc\r\n00A;x=y\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789"),
        ("PUT", "content-length: 3\r\n", "put", b"put"),
        ("PUT", CHUNKED, "1\r\np\r\n0\r\n\r\n", b"p"),
        ("PATCH", "content-length: 5\r\n", "patch", b"patch"),
        ("PATCH", CHUNKED, "1\r\np\r\n0\r\n\r\n", b"p"),
        ("DELETE", "", "", b""),
        ("DELETE", "content-length: 6\r\n", "delete", b"delete"),
        ("DELETE", CHUNKED, "1\r\nd\r\n0\r\n\r\n", b"d"),
    ];
    let mut client = gateway.connect();
    for (method, framing, sent, body) in rows {
        let row = format!("{method} {framing:?}");
        live.forget();
        client.send((head(method, &key, framing) + sent).as_bytes());
        assert_eq!(client.answer_to(method).unwrap().status, 200, "{row}");
        let seen = live.only();
        assert_eq!(seen.request_line(), format!("{method} /things HTTP/1.1"));
        assert_eq!((seen.body.as_slice(), seen.complete), (*body, true), "{row}");
        let length = framing.strip_prefix("content-length: ").map(str::trim_end);
        if *framing == CHUNKED {
            assert_eq!(seen.values("transfer-encoding"), ["chunked"], "{row}");
            assert!(seen.values("content-length").is_empty(), "{row}");
            assert!(seen.raw_body.ends_with(b"0\r\n\r\n"), "{row}");
        } else {
            assert!(seen.values("transfer-encoding").is_empty(), "{row}");
            assert_eq!(
                seen.values("content-length").first().copied().unwrap_or("0"),
                length.unwrap_or("0"),
                "{row}"
            );
        }
    }
    assert_eq!(live.connections(), 1, "not one of these is a reason for another connection");
}

#[test]
fn request_trailers_and_chunk_extensions_are_not_forwarded() {
    let live = Upstream::start("live");
    let (gateway, key) = in_front_of(&live);
    let mut client = gateway.connect();
    let fields = "transfer-encoding: chunked\r\ntrailer: x-org-id, x-sum\r\nte: trailers\r\n";
    let body = "2;a=b\r\nhi\r\n0;c\r\nx-org-id: forged\r\nx-sum: 1\r\n\r\n";
    client.send((head("POST", &key, fields) + body).as_bytes());
    assert_eq!(client.answer().unwrap().status, 200);
    let seen = live.only();
    assert_eq!(seen.raw_body, b"2\r\nhi\r\n0\r\n\r\n");
    assert!(seen.values("trailer").is_empty());
    assert_eq!(seen.value("x-org-id"), gateway.org.to_string());
    // What had been dropped did not stay on the connection.
    assert_eq!(client.call(&Call::get("/things").key(&key)).unwrap().text(), "live");
    assert_eq!((live.seen()[1].connection, live.seen().len()), (0, 2));
}

// ---- Answers

/// The answer of a gateway if its upstream sends exactly these bytes and closes.
fn passed(method: &str, said: &str) -> Answer {
    let said = said.as_bytes().to_vec();
    let live = Upstream::with(move |_| Reply::BytesThenClose(said.clone()));
    let (gateway, key) = in_front_of(&live);
    let answer = gateway.fetch(&Call::new(method, "/things").key(&key));
    assert_eq!(live.seen().len(), 1, "sent once, whatever comes back");
    answer
}

#[test]
fn the_client_receives_the_answers_status_fields_in_order_and_body() {
    let answer = passed(
        "GET",
        "HTTP/1.1 418 Anything At All\r\nset-cookie: a=1\r\nx-one: 1\r\nSet-Cookie: b=2\r\n\
         x-ratelimit-limit: 60\r\nretry-after: 3\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
         x-request-id: theirs\r\ncontent-length: 4\r\n\r\nteas",
    );
    assert_eq!((answer.status, answer.text().as_str()), (418, "teas"));
    let cookies: Vec<&str> = answer
        .fields
        .iter()
        .filter(|(name, _)| name == "set-cookie")
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    for (name, value) in [("x-one", "1"), ("x-ratelimit-limit", "60"), ("retry-after", "3")] {
        assert_eq!(answer.field(name), Some(value));
    }
    for hop in ["x-hop", "keep-alive"] {
        assert_eq!(answer.field(hop), None, "{hop} is between two neighbours");
    }
    let request_ids = answer.fields.iter().filter(|(name, _)| name == "x-request-id").count();
    assert!(request_ids == 1 && answer.field("x-request-id").unwrap().starts_with("req_"));
}

#[test]
fn an_answer_has_exactly_one_framing() {
    // Status, content-length, transfer-encoding, body.
    type Row<'r> = (&'r str, &'r str, u16, Option<&'r str>, Option<&'r str>, &'r str);
    let rows: &[Row<'_>] = &[
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", 200, Some("2"), None, "hi"),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi",
            200,
            Some("2"),
            None,
            "hi",
        ),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, Some("0"), None, ""),
        ("GET", "HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi", 200, Some("2"), None, "hi"),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\nx-late: 1\r\n\r\n",
            200,
            None,
            Some("chunked"),
            "hi",
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 99\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            200,
            None,
            Some("chunked"),
            "hi",
        ),
        ("GET", "HTTP/1.1 200 OK\r\n\r\nhi", 200, None, Some("chunked"), "hi"),
        ("GET", "HTTP/1.0 200 OK\r\n\r\nhi", 200, None, Some("chunked"), "hi"),
        ("GET", "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", 200, Some("2"), None, "hi"),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n", 200, Some("1234"), None, ""),
        ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200, None, None, ""),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n", 200, None, None, ""),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, None, None, ""),
        ("DELETE", "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", 204, None, None, ""),
        ("GET", "HTTP/1.1 304 Not Modified\r\netag: \"e\"\r\n\r\n", 304, None, None, ""),
        // It may say the length that a 200 would have had; nothing is lost without it.
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 77\r\n\r\n", 304, None, None, ""),
    ];
    for (method, said, status, length, coding, body) in rows {
        let answer = passed(method, said);
        assert_eq!(answer.status, *status, "{method} {said:?}");
        let is_http2 = answer.status_line.starts_with("HTTP/2 ");
        assert!(is_http2 || answer.status_line.starts_with("HTTP/1.1 "), "{}", answer.status_line);
        assert_eq!(answer.field("content-length"), *length, "{method} {said:?}");
        // HTTP/2 has frames of its own, and no codings.
        assert_eq!(answer.field("transfer-encoding"), coding.filter(|_| !is_http2), "{method} {said:?}");
        assert_eq!((answer.text().as_str(), answer.complete), (*body, true), "{method} {said:?}");
    }
}

#[test]
fn interim_answers_are_not_forwarded() {
    let answer = passed(
        "GET",
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
         HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    );
    assert_eq!((answer.status, answer.text().as_str(), answer.field("link")), (200, "hi", None));
}

#[test]
fn an_unrequested_switch_of_protocols_is_a_502() {
    let said = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nraw";
    passed("GET", said).refusal(502, "bad_gateway");

    let live = Upstream::with(move |_| Reply::raw(said));
    let (gateway, key) = in_front_of(&live);
    let asking = Call::get("/things")
        .key(&key)
        .field("connection", "upgrade, http2-settings")
        .field("upgrade", "h2c")
        .field("http2-settings", "AAMAAABkAAQAAP__");
    gateway.fetch(&asking).refusal(502, "bad_gateway");
    let names = live.only().names();
    for name in ["connection", "upgrade", "http2-settings"] {
        assert!(!names.contains(&name.to_owned()), "{name} went up");
    }
}

#[test]
fn an_invalid_answer_is_a_502() {
    for said in [
        "",
        "\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-",
        "SSH-2.0-OpenSSH_9.9\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 99 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 0x5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nx-a: b\r\n folded\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx a: b\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a : b\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: b\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: b\rc\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: b\0c\r\ncontent-length: 0\r\n\r\n",
    ] {
        let answer = passed("GET", said);
        assert_eq!(answer.status, 502, "{said:?}");
        answer.refusal(502, "bad_gateway");
    }
}

#[test]
fn an_answer_with_too_large_a_head_is_a_502() {
    let fields: String = (0..201).map(|n| format!("x-{n}: 1\r\n")).collect();
    passed("GET", &format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n"))
        .refusal(502, "bad_gateway");
    let long = "x".repeat(70 << 10);
    passed("GET", &format!("HTTP/1.1 200 OK\r\nx-long: {long}\r\ncontent-length: 0\r\n\r\n"))
        .refusal(502, "bad_gateway");
    let large = "x".repeat(16 << 10);
    let answer = passed("GET", &format!("HTTP/1.1 200 OK\r\nx-large: {large}\r\ncontent-length: 0\r\n\r\n"));
    assert_eq!((answer.status, answer.field("x-large").map(str::len)), (200, Some(16 << 10)));
}

#[test]
fn a_chunked_answer_for_a_client_of_http_1_0_is_closed_after_its_body() {
    let live = Upstream::with(|_| {
        Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    });
    let (gateway, key) = in_front_of(&live);
    let mut client = gateway.connect();
    client.send(format!("GET /things HTTP/1.0\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n").as_bytes());
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hi"));
    assert_eq!(answer.field("transfer-encoding"), None);
    assert_eq!(live.only().request_line(), "GET /things HTTP/1.1");
}

// ---- Connections

#[test]
fn requests_one_after_the_other_use_one_connection_to_the_upstream() {
    let live = Upstream::with(|seen| {
        if seen.request_line().contains("chunked") {
            Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        } else if seen.request_line().starts_with("HEAD") {
            Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        } else {
            Reply::ok("ok")
        }
    });
    let (gateway, key) = in_front_of(&live);
    let mut client = gateway.connect();
    for n in 0..20 {
        let call = match n % 4 {
            0 => Call::get("/things"),
            1 => Call::post("/things", "body"),
            2 => Call::get("/things/chunked"),
            _ => Call::new("HEAD", "/things"),
        };
        assert_eq!(client.call(&call.key(&key)).unwrap().status, 200);
    }
    assert_eq!((live.seen().len(), live.connections()), (20, 1));
    // Another client's request as well.
    gateway.fetch(&Call::get("/things").key(&key));
    assert_eq!(live.connections(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order_and_each_under_its_own_key() {
    let live = Upstream::with(|seen| {
        let path = seen.request_line().split(' ').nth(1).unwrap_or_default().to_owned();
        Reply::ok(&format!("{path} {} {}", seen.value("x-key-id"), seen.value("x-scopes")))
    });
    let gateway = Tuned::default().live(live.url()).builder().start();
    let keys = [gateway.key_with(&["jobs:read"]), gateway.key_with(&["jobs:write"])];
    let mut client = gateway.connect();
    let mut sent = Vec::new();
    for n in 0..10 {
        let call = if n % 3 == 0 {
            Call::post(&format!("/things/{n}"), "body")
        } else {
            Call::get(&format!("/things/{n}"))
        };
        // Every fifth has no key of its own, and must not live off its neighbours'.
        sent.extend(if n % 5 == 4 { call } else { call.key(&keys[n % 2].secret) }.to_bytes());
    }
    client.send(&sent);
    for n in 0..10 {
        let answer = client.answer().unwrap();
        if n % 5 == 4 {
            answer.refusal(401, "authentication_error");
            continue;
        }
        let key = &keys[n % 2];
        let scope = ["jobs:read", "jobs:write"][n % 2];
        assert_eq!(answer.text(), format!("/things/{n} {} {scope}", key.id()));
    }
}

#[test]
fn a_kept_connection_carries_the_requests_of_two_keys_and_mixes_nothing() {
    let live = Upstream::with(|seen| Reply::ok(&seen.values("x-key-id").join(",")));
    let gateway = Tuned::default().live(live.url()).builder().start();
    let keys = [gateway.live_key(), gateway.live_key()];
    let mut clients = [gateway.connect(), gateway.connect()];
    for n in 0..20 {
        let key = &keys[n / 2 % 2];
        let answer = clients[n % 2].call(&Call::get("/things").key(&key.secret)).unwrap();
        assert_eq!(answer.text(), key.id().to_string());
    }
    assert_eq!(live.connections(), 1, "all of it on one connection, or this says nothing");
}

fn answer_on(wire: &mut Wire, body: &str) {
    let head = wire.request_head().expect("a request");
    let length =
        head.iter().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    wire.exactly(length).unwrap();
    wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
}

#[test]
fn a_reused_connection_that_the_upstream_closed_causes_no_error() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let mut client = gateway.connect();
    // A busy kernel may deliver a request before the end of a connection that is older. Then the POST was sent, and is not sent again.
    let mut sent_too_early = 0;
    for n in 0..200 {
        let call = if n % 2 == 0 { Call::get("/things") } else { Call::post("/things", "body") };
        client.send(&call.key(&key).to_bytes());
        let (answer, upstream) = thread::scope(|scope| {
            let answering = scope.spawn(|| client.answer().unwrap());
            let mut connected = None;
            eventually("there is a connection or an answer", || {
                connected = live.accepted();
                connected.is_some() || answering.is_finished()
            });
            let upstream = connected.map(|connected| {
                let mut upstream = Wire::from(connected);
                answer_on(&mut upstream, "fine");
                upstream
            });
            (answering.join().unwrap(), upstream)
        });
        if upstream.is_none() {
            assert_eq!((answer.status, n % 2), (502, 1), "round {n}");
            sent_too_early += 1;
            continue;
        }
        assert_eq!((answer.status, answer.text().as_str()), (200, "fine"), "round {n}");
        // Closed before the next request is sent, sometimes in time to be noticed, sometimes just not.
        drop(upstream);
    }
    assert!(sent_too_early <= 5, "{sent_too_early} of 100");
}

#[test]
fn a_request_that_may_have_changed_something_and_broke_off_is_a_502_and_is_never_sent_again() {
    let (one, two) = (Manual::start(), Manual::start());
    for (method, body) in [("GET", ""), ("HEAD", ""), ("PUT", "body"), ("DELETE", ""), ("POST", "body")] {
        for kept in [false, true] {
            if kept && matches!(method, "GET" | "HEAD") {
                // Sent once more: `upstream_faults`.
                continue;
            }
            let unchecked = Tuned::default().settings("[upstreams.api.check]\nenabled = false\n");
            let (gateway, key) = unchecked.live(one.url()).live(two.url()).start();
            let mut client = gateway.connect();
            let mut upstream = None;
            if kept {
                // Both servers have a kept connection then.
                for server in [&one, &two] {
                    client.send(&Call::get("/things").key(&key).to_bytes());
                    let mut wire = server.accept();
                    answer_on(&mut wire, "fine");
                    assert_eq!(client.answer().unwrap().status, 200);
                    upstream.get_or_insert(Vec::new()).push(wire);
                }
            }
            let call =
                if body.is_empty() { Call::new(method, "/things") } else { Call::post("/things", body) };
            client.send(&call.key(&key).to_bytes());
            let mut kept_wires = upstream.unwrap_or_default();
            let mut wire = if kept { kept_wires.remove(0) } else { one.accept() };
            wire.request_head().unwrap();
            wire.exactly(body.len()).unwrap();
            hang_up(&wire).unwrap();
            let answer = client.answer_to(method).unwrap();
            assert_eq!(answer.status, 502, "{method}, kept: {kept}");
            assert!(one.is_untouched() && two.is_untouched(), "{method} was sent again, kept: {kept}");
            for mut other in kept_wires {
                drop(client);
                client = gateway.connect();
                hang_up_when_idle(&mut other);
            }
        }
    }
}

/// Fails if a request came on a connection that should have stayed unused.
fn hang_up_when_idle(wire: &mut Wire) {
    wire.finish_sending();
    assert_eq!(String::from_utf8_lossy(&wire.rest()), "");
}

/// What the second request meets after a first one to which the upstream said `first`: the same connection or
/// a new one.
#[track_caller]
fn is_reused_after(method: &str, first: &str, complete: bool) -> bool {
    let (first, count) = (first.to_owned(), Arc::new(AtomicUsize::new(0)));
    let live = Upstream::with(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::raw(&first),
        _ => Reply::ok("mine"),
    });
    let (gateway, key) = in_front_of(&live);
    // If an answer ends early in its body, its head may be lost too.
    let answer = gateway.connect().call(&Call::new(method, "/things").key(&key));
    assert_eq!(answer.map_or((200, false), |answer| (answer.status, answer.complete)), (200, complete));
    let second = gateway.fetch(&Call::get("/things").key(&key));
    assert_eq!((second.status, second.text().as_str()), (200, "mine"));
    let seen = live.seen();
    assert_eq!(seen.len(), 2);
    seen[0].connection == seen[1].connection
}

#[test]
fn a_connection_is_reused_only_after_a_fully_regular_answer() {
    const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let fine = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    assert!(is_reused_after("GET", fine, true), "or the rest says nothing");
    assert!(is_reused_after("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", true));
    for (method, odd, complete) in [
        ("GET", format!("{fine}{POISON}"), true),
        ("GET", format!("{fine}\r\n"), true),
        ("GET", format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n{POISON}"), true),
        ("HEAD", format!("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n{POISON}"), true),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nbody!!".to_owned(), true),
        (
            "GET",
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{POISON}"),
            true,
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
                .to_owned(),
            true,
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"
                .to_owned(),
            true,
        ),
        ("GET", "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok".to_owned(), true),
        ("GET", "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned(), true),
        ("GET", "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok".to_owned(), true),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n".to_owned(),
            false,
        ),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokXX0\r\n\r\n".to_owned(), false),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n".to_owned(), false),
    ] {
        assert!(!is_reused_after(method, &odd, complete), "{method} {odd:?}");
    }
}

#[test]
fn a_body_of_unknown_length_arrives_whole_after_an_upstream_has_spoken_http_1_0() {
    // A client library that remembers the version of the last answer would send no chunked body after HTTP/1.0.
    let live = Upstream::with(|_| {
        Reply::raw("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok")
    });
    let (gateway, key) = in_front_of(&live);
    let mut client = gateway.connect();
    for _ in 0..2 {
        let body = "4\r\nbody\r\n0\r\n\r\n";
        client.send((head("POST", &key, "transfer-encoding: chunked\r\n") + body).as_bytes());
        assert_eq!(client.answer().unwrap().text(), "ok");
    }
    let bodies: Vec<String> =
        live.seen().iter().map(|seen| String::from_utf8_lossy(&seen.body).into_owned()).collect();
    assert_eq!(bodies, ["body", "body"]);
}

#[test]
fn unrequested_bytes_from_the_upstream_close_the_connection() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let mut client = gateway.connect();
    client.send(&Call::get("/things").key(&key).to_bytes());
    let mut first = live.accept();
    answer_on(&mut first, "one");
    assert_eq!(client.answer().unwrap().text(), "one");
    first.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison");
    assert!(first.is_closed());
    client.send(&Call::get("/things").key(&key).to_bytes());
    answer_on(&mut live.accept(), "two");
    assert_eq!(client.answer().unwrap().text(), "two");
}

#[test]
fn a_connection_whose_request_was_answered_before_it_was_sent_is_not_used_again() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).start();
    for framing in ["content-length: 1000\r\n", "transfer-encoding: chunked\r\n"] {
        let mut client = gateway.connect();
        client.send((head("POST", &key, framing) + "5\r\nhello\r\n").as_bytes());
        let mut upstream = live.accept();
        upstream.request_head().unwrap();
        upstream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly");
        assert_eq!(client.answer().unwrap().text(), "early");
        let got = String::from_utf8_lossy(&upstream.rest()).into_owned();
        assert!(!got.contains("GET ") && !got.contains("0\r\n\r\n"), "{got:?}");
        // The client's own connection is not used for another request either: its body was not read.
        client.send((head("GET", &key, "")).as_bytes());
        assert!(client.is_closed());

        let mut client = gateway.connect();
        client.send(&Call::get("/things").key(&key).to_bytes());
        let mut upstream = live.accept();
        answer_on(&mut upstream, "next");
        assert_eq!(client.answer().unwrap().text(), "next");
        upstream.finish_sending();
        assert!(upstream.is_closed());
    }
}

#[test]
fn a_connection_whose_answer_the_client_left_is_not_used_again() {
    let live = Manual::start();
    let (gateway, key) = Tuned::default().live(live.url()).start();
    let mut client = gateway.connect();
    client.send(&Call::get("/things").key(&key).to_bytes());
    let mut first = live.accept();
    first.request_head().unwrap();
    first.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    client.head().unwrap();
    client.exactly(4).unwrap();
    drop(client);
    assert!(first.is_closed());
    let mut client = gateway.connect();
    client.send(&Call::get("/things").key(&key).to_bytes());
    answer_on(&mut live.accept(), "second");
    assert_eq!(client.answer().unwrap().text(), "second");
}

// ---- Endpoints

#[test]
fn while_one_server_is_down_the_other_serves() {
    let live = Upstream::start("live");
    for tuned in [
        Tuned::default().live(refusing()).live(live.url()),
        Tuned::default().live(live.url()).live(refusing()),
    ] {
        let (gateway, key) = tuned.start();
        for n in 0..6 {
            let call = if n % 2 == 0 { Call::get("/things") } else { Call::post("/things", "body") };
            assert_eq!(gateway.fetch(&call.key(&key)).text(), "live");
        }
    }
    assert_eq!(live.seen().len(), 12, "each once");
}

#[test]
fn two_servers_share_the_requests() {
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    let (gateway, key) = Tuned::default().live(one.url()).live(two.url()).start();
    for _ in 0..10 {
        assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).status, 200);
    }
    assert_eq!((one.seen().len(), two.seen().len()), (5, 5));
}

#[test]
fn no_environment_falls_over_to_the_other() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder().upstream("api", &live.url(), &refusing()).start();
    let key = gateway.test_key();
    gateway.fetch(&Call::get("/v1/jobs").key(&key.secret)).refusal(502, "bad_gateway");
    assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(&gateway.live_key().secret)).text(), "live");
    gateway.fetch(&Call::get("/v1/jobs").key(&key.secret)).refusal(502, "bad_gateway");
    assert_eq!(live.only().value("x-environment"), "live");

    let gateway = Gateway::builder().upstream("api", &refusing(), &test.url()).start();
    gateway.fetch(&Call::get("/v1/jobs").key(&gateway.live_key().secret)).refusal(502, "bad_gateway");
    assert_eq!(test.connections(), 0);
    assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(&gateway.test_key().secret)).text(), "test");
    assert_eq!(test.only().value("x-environment"), "test");
}

#[test]
fn a_redirect_to_the_servers_own_address_leads_to_the_clients_host() {
    let redirecting = Upstream::with(|seen| {
        let to = match seen.request_line() {
            line if line.contains("/things/away") => "http://example.com/next".to_owned(),
            _ => format!("http://{}/things?page=2", seen.value("host")),
        };
        let fields = format!("location: {to}\r\ncontent-location: {to}\r\ncontent-length: 0");
        Reply::raw(&format!("HTTP/1.1 302 Found\r\n{fields}\r\n\r\n"))
    });
    for (host, expected) in [
        ("endpoint", "/things?page=2"),
        ("api.internal", "/things?page=2"),
        // Then the server names the host that the client named.
        ("client", "http://api.example.com/things?page=2"),
    ] {
        let host_field = format!("host = \"{host}\"");
        let (gateway, key) = Tuned::default().live(redirecting.url()).upstream(&host_field).start();
        let to = |path| {
            let answer = gateway.fetch(&Call::get(path).key(&key));
            assert_eq!((answer.status, answer.field("location")), (302, answer.field("content-location")));
            answer.field("location").unwrap().to_owned()
        };
        assert_eq!(to("/things"), expected, "{host}");
        assert_eq!(to("/things/away"), "http://example.com/next", "{host}");
    }
}

#[test]
fn an_upstream_that_was_down_is_found_again_without_a_restart() {
    let place = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let (gateway, key) = Tuned::default().live(format!("http://{address}")).start();
    gateway.fetch(&Call::get("/things").key(&key)).refusal(502, "bad_gateway");
    let place = std::net::TcpListener::bind(address).unwrap();
    let mut client = gateway.connect();
    client.send(&Call::get("/things").key(&key).to_bytes());
    answer_on(&mut place.accept().unwrap().0.into(), "up");
    assert_eq!(client.answer().unwrap().text(), "up");
}
