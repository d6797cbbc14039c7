//! HTTP/2 to upstreams: requests share connections, and nothing of one reaches another.
//!
//! `KEYGATE_LONG=1 cargo test --test it upstream_http2:: -- --nocapture` also has a thousand requests at once, and Node and nginx as
//! servers, where they are installed.

use std::collections::HashMap;
use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use tempfile::TempDir;
use tokio::sync::{Notify, Semaphore};

use crate::harness::front::{Front, server_config};
use crate::harness::http2::{END_HEADERS, HEADERS, SETTINGS, frame};
use crate::harness::http2_server::{Asked, Http2Server, Leaving, send_data};
use crate::harness::{
    Answer, Authority, Call, Gateway, Manual, Process, Tuned, Upstream, Wire, create_key, eventually, fetch,
    free_address, is_long,
};
use crate::other_routers::is_installed;

const OVER_HTTP2: &str = "protocol = \"http2\"";

fn in_front_of(server: &Http2Server) -> (Gateway, String) {
    Tuned::default().live(server.url()).upstream(OVER_HTTP2).start()
}

fn get(key: &str) -> Call {
    Call::get("/things").key(key)
}

/// The statuses of so many calls at once.
fn at_once(gateway: &Gateway, calls: usize, call: impl Fn(usize) -> Call + Sync) -> Vec<u16> {
    let address = gateway.address();
    thread::scope(|scope| {
        let call = &call;
        let all: Vec<_> = (0..calls).map(|n| scope.spawn(move || fetch(address, &call(n)).status)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

// ---- What a server receives

#[test]
fn a_request_is_what_it_is_over_http1_without_the_fields_of_one_connection() {
    type Seen = (String, HeaderMap, Vec<u8>);
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let heard = Arc::clone(&seen);
    let server = Http2Server::start(100, move |mut asked: Asked| {
        let heard = Arc::clone(&heard);
        async move {
            let line = format!("{} {}", asked.request.method(), asked.request.uri());
            let fields = asked.request.headers().clone();
            let body = asked.body().await.unwrap();
            heard.lock().unwrap().push((line, fields, body));
            asked.answer("fine").await;
        }
    });
    let (gateway, key) = in_front_of(&server);
    let target = "/things?a=%41&b=%2f&c={}";
    let mut wire = gateway.connect();
    let answer = wire.call(&Call::post(target, "body").key(&key).field("te", "trailers")).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
    let chunked = format!(
        "POST /things HTTP/1.1\r\nhost: other.example:81\r\nauthorization: Bearer {key}\r\nconnection: x-hop\r\nx-hop: 1\r\n\
         transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    );
    wire.send(chunked.as_bytes());
    assert_eq!(wire.answer().unwrap().status, 200);
    let seen = seen.lock().unwrap();
    let [first, second] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(first.0, format!("POST http://api.example.com{target}"));
    assert_eq!(
        (first.1["te"].as_bytes(), first.1["content-length"].as_bytes()),
        (&b"trailers"[..], &b"4"[..])
    );
    assert_eq!(first.2, b"body");
    assert_eq!(second.0, "POST http://other.example:81/things");
    assert_eq!(second.2, b"abc");
    for (_, fields, _) in &*seen {
        assert_eq!(fields["x-environment"], "live");
        for gone in ["host", "connection", "x-hop", "transfer-encoding", "authorization"] {
            assert!(!fields.contains_key(gone), "{gone} in {fields:?}");
        }
    }
    assert_eq!(server.connections(), 1);
}

// ---- Sharing connections

#[test]
fn requests_that_come_at_once_open_as_many_connections_as_they_need() {
    // Nobody is answered until all are there.
    let more: &[_] = if is_long() { &[(1000, 256, 4)] } else { &[] };
    for &(requests, streams, connections) in [(60, 100, 1), (60, 10, 6)].iter().chain(more) {
        let (here, all) = (Arc::<AtomicUsize>::default(), Arc::new(Notify::new()));
        let server = Http2Server::start(streams, move |mut asked: Asked| {
            let (here, all) = (Arc::clone(&here), Arc::clone(&all));
            async move {
                let told = all.notified();
                if here.fetch_add(1, Ordering::SeqCst) + 1 == requests {
                    all.notify_waiters();
                } else {
                    told.await;
                }
                asked.answer("fine").await;
            }
        });
        let (gateway, key) = Tuned::default()
            .live(server.url())
            .upstream(OVER_HTTP2)
            .server("max_connections_per_client = 2000")
            .start();
        assert_eq!(at_once(&gateway, requests, |_| get(&key)), vec![200; requests]);
        assert!(server.at_once() <= streams as usize, "{} at a time", server.at_once());
        // With one that is being opened, more are when many wait.
        let opened = server.connections();
        assert!((connections..=connections + 2).contains(&opened), "{opened} connections");
    }
}

#[test]
fn where_no_further_connection_may_be_opened_a_request_waits_for_a_place_on_one() {
    let (held, let_go) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
    let (counted, gate) = (Arc::clone(&held), Arc::clone(&let_go));
    let server = Http2Server::start(2, move |mut asked: Asked| {
        let (counted, gate) = (Arc::clone(&counted), Arc::clone(&gate));
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            asked.answer("fine").await;
        }
    });
    let (gateway, key) =
        Tuned::default().live(server.url()).upstream("protocol = \"http2\"\nmax_connections = 1").start();
    let address = gateway.address();
    thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| fetch(address, &get(&key)).status)).collect();
        eventually("the server has two", || held.load(Ordering::SeqCst) == 2);
        let_go.add_permits(4);
        for call in calls {
            assert_eq!(call.join().unwrap(), 200);
        }
    });
    assert_eq!((server.connections(), server.at_once()), (1, 2));
}

#[test]
fn an_answer_that_nobody_reads_keeps_nothing_from_the_others_on_its_connection() {
    let server = Http2Server::start(100, |mut asked: Asked| async move {
        if asked.request.uri().path() == "/things/large" {
            let mut stream = asked.head(&[]).unwrap();
            // Until the client is gone.
            while send_data(&mut stream, Bytes::from(vec![b'x'; 64 << 10])).await.is_some() {}
        } else {
            asked.answer("fine").await;
        }
    });
    let (gateway, key) = in_front_of(&server);
    let mut unread: Vec<Wire> = Vec::new();
    for _ in 0..8 {
        let mut wire = gateway.connect();
        wire.send(&Call::get("/things/large").key(&key).to_bytes());
        assert_eq!(wire.head().unwrap().status, 200);
        unread.push(wire);
    }
    for _ in 0..20 {
        assert_eq!(gateway.fetch(&get(&key)).text(), "fine");
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_key_that_is_revoked_ends_its_own_streams_and_no_other_of_their_connection() {
    let server = Http2Server::start(100, |mut asked: Asked| async move {
        let mut stream = asked.head(&[("content-type", "text/event-stream")]).unwrap();
        let Some(()) = send_data(&mut stream, Bytes::from_static(b"data: one\n\n")).await else { return };
        // The other direction goes on, too.
        while let Some(Ok(data)) = asked.request.body_mut().data().await {
            let _ = asked.request.body_mut().flow_control().release_capacity(data.len());
            if send_data(&mut stream, data).await.is_none() {
                return;
            }
        }
        std::future::poll_fn(|cx| stream.poll_reset(cx)).await.ok();
    });
    let (gateway, kept) = in_front_of(&server);
    let revoked = gateway.live_key();
    let stream = |key: &str| {
        let mut wire = gateway.connect();
        let head = format!(
            "POST /things HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
        );
        wire.send(head.as_bytes());
        assert_eq!(wire.head().unwrap().status, 200);
        assert_eq!(wire.chunk().unwrap(), b"data: one\n\n");
        assert_eq!(wire.chunk().unwrap(), b"abc");
        wire
    };
    let (mut ended, mut other) = (stream(&revoked.secret), stream(&kept));
    gateway.revoke(&revoked);
    assert!(ended.is_closed());
    other.send(b"4\r\nmore\r\n");
    assert_eq!(other.chunk().unwrap(), b"more");
    assert_eq!(server.connections(), 1);
}

// ---- Servers that leave, refuse, and fall silent

#[test]
fn a_server_that_leaves_under_load_costs_no_request() {
    for way in [Leaving::InOrder, Leaving::AtOnce] {
        let times: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let heard = Arc::clone(&times);
        let server = Http2Server::start(100, move |mut asked: Asked| {
            let heard = Arc::clone(&heard);
            async move {
                let mark = asked.request.headers()["x-mark"].to_str().unwrap().to_owned();
                if asked.body().await.is_none() {
                    return;
                }
                *heard.lock().unwrap().entry(mark).or_default() += 1;
                let is_last = asked.number == 9;
                if is_last && way == Leaving::InOrder {
                    asked.leave.send(way).unwrap();
                }
                asked.answer("fine").await;
                if is_last && way == Leaving::AtOnce {
                    asked.leave.send(way).unwrap();
                }
            }
        });
        let (gateway, key) = in_front_of(&server);
        let call = |n: usize| {
            let call = if n.is_multiple_of(2) { Call::get("/things") } else { Call::post("/things", "body") };
            call.key(&key).field("x-mark", &n.to_string())
        };
        for round in 0..10 {
            let statuses = at_once(&gateway, 12, |n| call(round * 12 + n));
            match way {
                Leaving::InOrder => assert_eq!(statuses, [200; 12]),
                // What the server had begun breaks off. A POST is not sent again then, nor are more GETs than the budget allows.
                Leaving::AtOnce => {
                    assert!(statuses.iter().all(|status| [200, 502].contains(status)), "{statuses:?}");
                }
            }
        }
        let times = times.lock().unwrap();
        let twice: Vec<_> = times
            .iter()
            .filter(|(mark, count)| **count > 1 && mark.ends_with(['1', '3', '5', '7', '9']))
            .collect();
        assert!(twice.is_empty(), "{way:?}: POSTs came twice: {twice:?}");
        assert!(server.connections() > 5, "{way:?}: it left");
    }
}

#[test]
fn a_request_that_its_server_did_nothing_with_goes_to_it_again_with_its_body_and_not_for_ever() {
    for refuses_always in [false, true] {
        let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let heard = Arc::clone(&seen);
        let server = Http2Server::start(100, move |mut asked: Asked| {
            let heard = Arc::clone(&heard);
            async move {
                if refuses_always || asked.connection == 0 && asked.number > 0 {
                    // It has read some of the body before.
                    asked.request.body_mut().data().await;
                    return asked.respond.send_reset(Reason::REFUSED_STREAM);
                }
                let body = asked.body().await.unwrap();
                heard.lock().unwrap().push(body);
                asked.answer("fine").await;
            }
        });
        let (gateway, key) = in_front_of(&server);
        let post = |body: &str| gateway.fetch(&Call::post("/things", body).key(&key));
        if refuses_always {
            post("body").refusal(502, "bad_gateway");
            assert!(server.connections() <= 2, "{}", server.connections());
            continue;
        }
        assert_eq!(post("first").status, 200);
        assert_eq!(post("second").status, 200);
        assert_eq!(*seen.lock().unwrap(), [b"first".to_vec(), b"second".to_vec()]);
        assert_eq!(server.connections(), 2);
    }
}

#[test]
fn a_stream_that_its_server_resets_is_a_502_and_is_not_sent_again_and_the_others_go_on() {
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let server = Http2Server::start(100, move |mut asked: Asked| {
        let counted = Arc::clone(&counted);
        async move {
            if asked.request.uri().path() == "/things/bad" {
                counted.fetch_add(1, Ordering::SeqCst);
                return asked.respond.send_reset(Reason::INTERNAL_ERROR);
            }
            asked.answer("fine").await;
        }
    });
    let (gateway, key) = in_front_of(&server);
    for n in 0..5 {
        assert_eq!(gateway.fetch(&get(&key)).status, 200);
        gateway.fetch(&Call::get("/things/bad").key(&key)).refusal(502, "bad_gateway");
        assert_eq!(count.load(Ordering::SeqCst), n + 1);
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_body_that_breaks_off_is_never_completed_and_one_that_a_server_cuts_is_told() {
    let server = Http2Server::start(100, |mut asked: Asked| async move {
        let mut stream = asked.head(&[]).unwrap();
        send_data(&mut stream, Bytes::from_static(b"begun")).await.unwrap();
        // Once it has left.
        tokio::task::yield_now().await;
        stream.send_reset(if asked.request.uri().path() == "/things/calm" {
            Reason::NO_ERROR
        } else {
            Reason::CANCEL
        });
    });
    let (gateway, key) = in_front_of(&server);
    for target in ["/things/cut", "/things/calm"] {
        let answer = gateway.connect().call(&Call::get(target).key(&key));
        let is_whole = |answer: &Answer| answer.status == 200 && answer.complete;
        assert!(!answer.as_ref().is_some_and(is_whole), "{target}: {answer:?}");
    }
}

#[test]
fn an_answer_before_the_end_of_its_request_is_whole_though_its_server_takes_no_more() {
    let server = Http2Server::start(100, |mut asked: Asked| async move {
        let mut stream = asked.head(&[("x-early", "yes")]).unwrap();
        send_data(&mut stream, Bytes::from_static(b"too much")).await.unwrap();
        // And with what is dropped here it says that it reads no more.
        stream.send_data(Bytes::new(), true).unwrap();
    });
    let (gateway, key) = in_front_of(&server);
    for _ in 0..20 {
        let mut wire = gateway.connect();
        let head = format!(
            "POST /things HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\ncontent-length: 1000000\r\n\r\n"
        );
        wire.send(head.as_bytes());
        let answer = wire.answer().unwrap();
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "too much", true));
    }
}

// ---- Clients who would have others' connections ended

#[test]
fn an_upload_in_tiny_parts_does_not_end_the_connection_that_others_use() {
    let waiting = Arc::new(Notify::new());
    let gate = Arc::clone(&waiting);
    let server = Http2Server::start(100, move |mut asked: Asked| {
        let gate = Arc::clone(&gate);
        async move {
            if asked.request.method() == http::Method::POST {
                let body = asked.body().await.unwrap();
                asked.answer(body.len().to_string()).await;
            } else {
                gate.notified().await;
                asked.answer("fine").await;
            }
        }
    });
    let (gateway, key) = in_front_of(&server);
    let mut other = gateway.connect();
    other.send(&get(&key).to_bytes());
    let mut wire = gateway.connect();
    let head = format!(
        "POST /things HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    wire.send((head + &"1\r\nx\r\n".repeat(20_000) + "0\r\n\r\n").as_bytes());
    assert_eq!(wire.answer().unwrap().text(), "20000");
    waiting.notify_one();
    assert_eq!(other.answer().unwrap().text(), "fine");
}

#[test]
fn clients_that_leave_cost_the_others_of_their_connection_nothing() {
    const LEAVERS: usize = 60;
    let (waiting, arrived) = (Arc::new(Notify::new()), Arc::<AtomicUsize>::default());
    let (gate, counted) = (Arc::clone(&waiting), Arc::clone(&arrived));
    let server = Http2Server::start(100, move |mut asked: Asked| {
        let (gate, counted) = (Arc::clone(&gate), Arc::clone(&counted));
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            if asked.request.uri().path() == "/things/stay" {
                gate.notified().await;
                asked.answer("fine").await;
            } else {
                let _ = std::future::poll_fn(|cx| asked.respond.poll_reset(cx)).await;
            }
        }
    });
    let (gateway, key) = in_front_of(&server);
    let mut staying = gateway.connect();
    staying.send(&Call::get("/things/stay").key(&key).to_bytes());
    for n in 0..LEAVERS {
        let mut wire = gateway.connect();
        wire.send(&Call::get("/things/leave").key(&key).to_bytes());
        eventually("it came", || arrived.load(Ordering::SeqCst) > n);
    }
    waiting.notify_one();
    let answer = staying.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
    assert!(server.connections() >= LEAVERS / 20, "{}: a few leave each", server.connections());
}

// ---- Hostile servers

/// The frames that a server begins with, and an answer to the client's settings.
fn greeting() -> Vec<u8> {
    [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, 1, 0, &[])].concat()
}

#[test]
fn a_server_that_breaks_the_rules_is_a_502_and_loses_its_connection() {
    // Literals that enter no table, as `block` writes requests; this is `:status`.
    let head = |status: &str, fields: &[(&str, &str)]| {
        let mut bytes = vec![0x08, u8::try_from(status.len()).unwrap()];
        bytes.extend(status.bytes());
        for (name, value) in fields {
            bytes.extend([0, u8::try_from(name.len()).unwrap()]);
            bytes.extend(name.bytes());
            bytes.push(u8::try_from(value.len()).unwrap());
            bytes.extend(value.bytes());
        }
        bytes
    };
    let hint = frame(HEADERS, END_HEADERS, 1, &head("103", &[("link", "</a>")]));
    let continued = frame(9, 0, 1, &[]);
    let long: Vec<u8> = (0..3000).flat_map(|_| [0, 1, b'a', 1, b'b']).collect();
    let cases: [(&str, Vec<u8>); 10] = [
        ("interim answers without end", hint.repeat(10_000)),
        ("101", frame(HEADERS, END_HEADERS, 1, &head("101", &[]))),
        ("a field of one connection", frame(HEADERS, 5, 1, &head("200", &[("connection", "x")]))),
        ("a name in capitals", frame(HEADERS, 5, 1, &head("200", &[("X-A", "x")]))),
        ("no status", frame(HEADERS, 5, 1, &[0, 1, b'a', 1, b'b'])),
        (
            "a length that is not its own",
            [
                frame(HEADERS, END_HEADERS, 1, &head("200", &[("content-length", "1")])),
                frame(0, 1, 1, b"too long"),
            ]
            .concat(),
        ),
        (
            "a block without end",
            [frame(HEADERS, 0, 1, &head("200", &[])), continued.repeat(100_000)].concat(),
        ),
        (
            "a head that is too large",
            [frame(HEADERS, 0, 1, &head("200", &[])), frame(9, 4, 1, &long), frame(9, 4, 1, &long)].concat(),
        ),
        ("data before a head", frame(0, 1, 1, b"data")),
        ("data of no stream", frame(0, 0, 0, b"data")),
    ];
    for (what, bytes) in cases {
        let server = Manual::start();
        let (gateway, key) = Tuned::default().live(server.url()).upstream(OVER_HTTP2).start();
        let mut client = gateway.connect();
        client.send(&get(&key).to_bytes());
        let mut upstream = server.accept();
        // Once the request is there.
        let _ = upstream.bytes(24 + 9);
        let _ = upstream.try_send(&greeting());
        let _ = upstream.try_send(&bytes);
        let answer = client.answer();
        assert!(answer.as_ref().is_none_or(|answer| answer.status == 502), "{what}: {answer:?}");
        drop(upstream);
        // The next request has a connection of its own, unless that one request alone was wrong.
        client = gateway.connect();
        client.send(&get(&key).to_bytes());
        drop(server.accept());
    }
}

#[test]
fn a_server_of_http1_is_told_as_such() {
    let server = Upstream::start("live");
    let folder = TempDir::new().unwrap();
    Tuned::default().live(server.url()).upstream(OVER_HTTP2).builder().write(folder.path());
    let key = create_key(folder.path());
    let process = Process::keygate(folder.path(), &["serve"]);
    fetch(process.address(), &get(&key)).refusal(502, "bad_gateway");
    process.err_line("it answers in HTTP/1.1, and HTTP/2 was expected; write protocol = \"http1\"");
}

#[test]
fn over_tls_a_server_gets_the_protocol_that_it_prefers_and_http2_alone_where_that_is_asked_for() {
    let authority = Authority::new();
    let upstream = Upstream::start("live");
    let translated = crate::harness::http2_server::translator(upstream.address().port());
    for (protocol, alpn, expected) in [
        ("auto", &[&b"h2"[..], b"http/1.1"][..], "live"),
        ("auto", &[b"http/1.1"], "live"),
        ("auto", &[], "live"),
        ("http1", &[b"h2", b"http/1.1"], "live"),
        ("http2", &[b"h2", b"http/1.1"], "live"),
        ("http2", &[b"http/1.1"], ""),
    ] {
        let mut config = server_config(&authority.issue(&["127.0.0.1"]));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let front = Front::start(config, translated);
        let folder = TempDir::new().unwrap();
        authority.write(folder.path(), "ca");
        let gateway = Tuned::default()
            .live(front.url())
            .upstream(&format!("protocol = \"{protocol}\"\n[upstreams.api.live_tls]\nca = \"ca.pem\""))
            .builder()
            .start_in(folder);
        let key = gateway.live_key().secret;
        for _ in 0..3 {
            let answer = gateway.fetch(&get(&key));
            match expected {
                "" => drop(answer.refusal(502, "bad_gateway")),
                expected => assert_eq!(answer.text(), expected, "{protocol} {alpn:?}"),
            }
        }
    }
}

#[test]
fn a_server_that_falls_silent_loses_its_connection_and_its_requests_hear_of_it() {
    let server = Manual::start();
    let (gateway, key) =
        Tuned::default().live(server.url()).upstream("protocol = \"http2\"\nping_after = \"1s\"").start();
    let mut client = gateway.connect();
    client.send(&get(&key).to_bytes());
    let mut upstream = server.accept();
    upstream.send(&greeting());
    let answer = client.answer().unwrap();
    assert_eq!(answer.status, 502);
}

// ---- Checks

#[test]
fn a_server_of_grpc_that_says_it_does_not_serve_gets_no_request_until_it_serves() {
    let said = Arc::new(AtomicUsize::new(1));
    let start = |name: &'static str, said: Arc<AtomicUsize>| {
        Http2Server::start(100, move |mut asked: Asked| {
            let said = said.load(Ordering::SeqCst);
            async move {
                if asked.request.uri().path() != "/grpc.health.v1.Health/Check" {
                    asked.answer(name).await;
                    return;
                }
                assert_eq!(asked.request.headers()["content-type"], "application/grpc");
                let question = asked.body().await.unwrap();
                assert_eq!(question, b"\0\0\0\0\x10\x0a\x0eacme.v1.Things");
                let mut stream = asked.head(&[("content-type", "application/grpc")]).unwrap();
                let answer = [0, 0, 0, 0, 2, 8, u8::try_from(said).unwrap()];
                send_data(&mut stream, Bytes::copy_from_slice(&answer)).await;
                let trailers = HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    http::HeaderValue::from_static("0"),
                )]);
                let _ = stream.send_trailers(trailers);
            }
        })
    };
    let good = start("good", Arc::new(AtomicUsize::new(1)));
    let other = start("other", Arc::clone(&said));
    let (gateway, key) = Tuned::default()
        .live(good.url())
        .live(other.url())
        .upstream(OVER_HTTP2)
        .settings(
            "[upstreams.api.check]\nmethod = \"GRPC\"\npath = \"/acme.v1.Things\"\ninterval = \"100ms\"",
        )
        .start();
    // Of so many requests, half go to each of two that are in use.
    let asks = || -> Vec<String> { (0..16).map(|_| gateway.fetch(&get(&key)).text()).collect() };
    eventually("both get requests", || asks().contains(&"other".to_owned()));
    said.store(2, Ordering::SeqCst);
    eventually("one gets none", || asks() == ["good"; 16]);
    said.store(1, Ordering::SeqCst);
    eventually("it is back", || asks().contains(&"other".to_owned()));
}

// ---- Trailers of requests

#[test]
fn trailers_of_a_request_pass_without_those_that_an_upstream_would_believe() {
    type Seen = (Vec<u8>, Option<HeaderMap>);
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let heard = Arc::clone(&seen);
    let server = Http2Server::start(100, move |mut asked: Asked| {
        let heard = Arc::clone(&heard);
        async move {
            let body = asked.body().await.unwrap();
            let trailers = asked.request.body_mut().trailers().await.unwrap();
            heard.lock().unwrap().push((body, trailers));
            asked.answer("fine").await;
        }
    });
    let (gateway, key) = in_front_of(&server);
    for trailers in [
        "x-sum: 5\r\nX_Org.Id: other\r\nx-forwarded-user: root\r\ncontent-length: 9\r\n",
        "x-scopes: all\r\n",
        "",
    ] {
        let mut wire = gateway.connect();
        let sent = format!(
            "POST /things HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n\
             4\r\nbody\r\n0\r\n{trailers}\r\n"
        );
        wire.send(sent.as_bytes());
        assert_eq!(wire.answer().unwrap().status, 200);
    }
    let seen = seen.lock().unwrap();
    let sum =
        HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), http::HeaderValue::from_static("5"))]);
    assert_eq!(*seen, [(b"body".to_vec(), Some(sum)), (b"body".to_vec(), None), (b"body".to_vec(), None)]);
}

#[test]
fn an_upload_that_its_server_does_not_take_keeps_nothing_from_the_others_on_its_connection() {
    let server = Http2Server::start(100, |mut asked: Asked| async move {
        if asked.request.method() == http::Method::POST {
            // Its window stays as it is.
            let _ = std::future::poll_fn(|cx| asked.respond.poll_reset(cx)).await;
        } else {
            asked.answer("fine").await;
        }
    });
    let (gateway, key) = Tuned::default()
        .live(server.url())
        .upstream("protocol = \"http2\"\nanswer_timeout = \"500ms\"")
        .start();
    let mut stuck = gateway.connect();
    let head = format!(
        "POST /things HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\ncontent-length: 1000000\r\n\r\n"
    );
    stuck.send(head.as_bytes());
    stuck.send(&[b'x'; 200_000]);
    for _ in 0..20 {
        assert_eq!(gateway.fetch(&get(&key)).text(), "fine");
    }
    // As over HTTP/1.1: what is not taken is not waited for any longer.
    stuck.answer().unwrap().refusal(504, "gateway_timeout");
    assert_eq!(server.connections(), 1);
}

// ---- Servers of others

const NODE: &str = r#"
require("http2").createServer((request, response) => {
  let count = 0;
  request.on("data", (data) => (count += data.length));
  request.on("end", () => {
    response.setHeader("x-count", count);
    response.end(Buffer.alloc(Number(request.headers["x-wanted"]), "x"));
  });
}).listen(Number(process.argv[1]), "127.0.0.1");
"#;
const NGINX: &str = r#"
daemon off;
pid nginx.pid;
error_log error.log;
events {}
http {
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  server {
    listen 127.0.0.1:PORT http2;
    root FOLDER;
    location / { try_files /large =404; }
  }
}
"#;
/// The size of an answer, in bytes.
const LARGE: usize = 3 << 20;

#[test]
fn servers_of_others_answer_over_http2() {
    if !is_long() {
        return;
    }
    for program in ["node", "nginx"].into_iter().filter(|program| is_installed(program)) {
        let (folder, address) = (TempDir::new().unwrap(), free_address());
        let port = address.port().to_string();
        let mut command = Command::new(program);
        if program == "node" {
            command.args(["-e", NODE, &port]);
        } else {
            let path = folder.path().to_str().unwrap();
            fs::write(folder.path().join("large"), vec![b'x'; LARGE]).unwrap();
            let file = NGINX.replace("PORT", &port).replace("FOLDER", path);
            fs::write(folder.path().join("nginx.conf"), file).unwrap();
            command.args(["-p", path, "-c", "nginx.conf", "-e", "error.log"]);
        }
        let _server = Process::start(command);
        eventually("the server listens", || TcpStream::connect(address).is_ok());
        let (gateway, key) = Tuned::default().live(format!("http://{address}")).upstream(OVER_HTTP2).start();
        let wanted = LARGE.to_string();
        for _ in 0..3 {
            let statuses = at_once(&gateway, 40, |_| get(&key).field("x-wanted", "2"));
            assert_eq!(statuses, [200; 40], "{program}");
            let answer = gateway.fetch(&get(&key).field("x-wanted", &wanted));
            assert_eq!((answer.body.len(), answer.complete), (LARGE, true), "{program}");
        }
        if program == "node" {
            let answer =
                gateway.fetch(&Call::post("/things", vec![b'y'; LARGE]).key(&key).field("x-wanted", "0"));
            assert_eq!(answer.field("x-count"), Some(&*wanted));
        }
    }
}
