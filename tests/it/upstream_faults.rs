//! Upstreams with faults that other gateways hide from their clients: a kept connection that the upstream was just
//! closing, an answer that comes before the request's end, a server that hangs.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::harness::http2::runtime;
use crate::harness::metrics::{scrape, value};
use crate::harness::{Call, Gateway, Reply, Seen, Tuned, Upstream, eventually, refusing};

const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"\n";

// ---- A kept connection that the upstream was just closing

/// Three routes that differ in what they say of repeating.
const POLICY: &str = r#"
scopes = ["all"]

[[route]]
id = "by_method"
methods = ["GET", "OPTIONS", "PUT", "PATCH", "DELETE", "POST"]
paths = ["/things"]
any_key = true
upstream = "api"

[[route]]
id = "idempotent"
methods = ["GET", "PUT", "PATCH", "DELETE", "POST"]
paths = ["/idempotent"]
any_key = true
retry = true
upstream = "api"

[[route]]
id = "once"
methods = ["GET", "PUT"]
paths = ["/once"]
any_key = true
retry = false
upstream = "api"
"#;

/// Answers the first request of each connection; reads the second, and then does as `then` says.
fn closing(then: fn() -> Reply) -> Upstream {
    let seen: Arc<std::sync::Mutex<Vec<usize>>> = Arc::default();
    Upstream::with(move |request: &Seen| {
        let mut seen = seen.lock().unwrap();
        if seen.contains(&request.connection) {
            return then();
        }
        seen.push(request.connection);
        Reply::ok("fine")
    })
}

fn in_front_of(upstream: &Upstream) -> Gateway {
    Gateway::builder()
        .policy(POLICY)
        .settings("[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n")
        .settings(OPS)
        .upstream("api", &upstream.url(), &refusing())
        .start()
}

/// The status of a request on a connection that carried another one before, and how often the upstream saw it.
fn on_a_kept_connection(upstream: &Upstream, gateway: &Gateway, call: &Call) -> (u16, usize) {
    let key = gateway.live_key().secret;
    // The first ends the connection that is left over from before, if there is one.
    while gateway.fetch(&Call::post("/things", "first").key(&key)).status != 200 {}
    upstream.forget();
    let status = gateway.fetch(&call.clone().key(&key)).status;
    (status, upstream.seen().len())
}

#[test]
fn what_is_safe_is_sent_again_when_its_kept_connection_ends_without_a_byte() {
    for then in [|| Reply::BytesThenClose(Vec::new()), || Reply::Custom(Box::new(reset))] {
        let upstream = closing(then);
        let gateway = in_front_of(&upstream);
        let again = [
            Call::get("/things?a=%41&b"),
            Call::new("HEAD", "/things"),
            Call::new("OPTIONS", "/things"),
            Call::get("/idempotent"),
            Call::new("PUT", "/idempotent"),
            Call::new("DELETE", "/idempotent"),
        ];
        for call in &again {
            let outcome = on_a_kept_connection(&upstream, &gateway, call);
            assert_eq!(outcome, (200, 2), "{:?}", String::from_utf8_lossy(&call.to_bytes()));
        }
        let endpoint = upstream.url();
        let endpoint = endpoint.strip_prefix("http://").unwrap();
        let series = format!(
            "keygate_upstream_retries_total{{upstream=\"api\",endpoint=\"{endpoint}\",reason=\"not_answered\"}}"
        );
        assert_eq!(value(&scrape(gateway.ops_address()), &series), Some(again.len() as f64));
    }
}

#[test]
fn what_is_sent_again_is_the_same_request_to_the_byte() {
    let upstream = closing(|| Reply::BytesThenClose(Vec::new()));
    let gateway = in_front_of(&upstream);
    let call = Call::get("/things?a=%41&&b={}")
        .field("x-note", "a: b,  c")
        .field("accept", "a")
        .field("accept", "b");
    assert_eq!(on_a_kept_connection(&upstream, &gateway, &call), (200, 2));
    let seen = upstream.seen();
    assert_eq!(seen[0].head, seen[1].head);
    assert_ne!(seen[0].connection, seen[1].connection);
}

#[test]
fn what_could_be_done_twice_is_never_sent_again() {
    let upstream = closing(|| Reply::BytesThenClose(Vec::new()));
    let gateway = in_front_of(&upstream);
    for call in [
        Call::post("/things", "body"),
        Call::new("POST", "/things"),
        Call::new("PUT", "/things"),
        Call::new("DELETE", "/things"),
        Call::new("PATCH", "/idempotent"),
        Call::new("POST", "/idempotent"),
        Call::get("/once"),
        Call::new("PUT", "/once"),
    ] {
        let outcome = on_a_kept_connection(&upstream, &gateway, &call);
        assert_eq!(outcome, (502, 1), "{:?}", String::from_utf8_lossy(&call.to_bytes()));
    }
}

#[test]
fn what_has_a_beginning_of_an_answer_is_not_sent_again() {
    for beginning in ["H", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-le"] {
        let upstream = match beginning.len() {
            1 => closing(|| Reply::BytesThenClose(b"H".to_vec())),
            25 => closing(|| Reply::BytesThenClose(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec())),
            _ => closing(|| Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec())),
        };
        let gateway = in_front_of(&upstream);
        let outcome = on_a_kept_connection(&upstream, &gateway, &Call::get("/things"));
        assert_eq!(outcome, (502, 1), "{beginning:?}");
    }
}

#[test]
fn a_request_is_sent_again_once_and_a_new_connection_that_ends_is_an_error() {
    let is_first = AtomicBool::new(true);
    let upstream = Upstream::with(move |_: &Seen| {
        if is_first.swap(false, Ordering::SeqCst) {
            Reply::ok("fine")
        } else {
            Reply::BytesThenClose(Vec::new())
        }
    });
    let gateway = in_front_of(&upstream);
    let key = gateway.live_key().secret;
    assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).status, 200);
    gateway.fetch(&Call::get("/things").key(&key)).refusal(502, "bad_gateway");
    assert_eq!(upstream.seen().len(), 3, "the first, and the second twice");
    // No connection is kept now.
    gateway.fetch(&Call::get("/things").key(&key)).refusal(502, "bad_gateway");
    assert_eq!(upstream.seen().len(), 4);
}

/// Answers requests, and closes a connection on which none came for `idle` after an answer.
fn impatient(idle: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut head = Vec::new();
                let mut part = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut part) {
                    head.extend_from_slice(&part[..n]);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").unwrap();
                        stream.set_read_timeout(Some(idle)).unwrap();
                    }
                }
            });
        }
    });
    address
}

#[test]
fn a_server_that_closes_just_when_the_next_request_comes_costs_no_request() {
    let idle = Duration::from_millis(12);
    let (gateway, key) = Tuned::default().live(format!("http://{}", impatient(idle))).settings(OPS).start();
    let mut client = gateway.connect();
    let statuses: Vec<u16> = (0..250)
        .map(|_| {
            // No state to wait for: the request and the end of the connection are to meet on their way.
            thread::sleep(idle);
            client.call(&Call::get("/things").key(&key)).unwrap().status
        })
        .collect();
    assert_eq!(statuses.iter().filter(|status| **status != 200).count(), 0, "{statuses:?}");
}

/// Ends a connection as a crashed server does.
fn reset(stream: &mut TcpStream) {
    stream.set_nonblocking(true).unwrap();
    runtime().block_on(async {
        tokio::net::TcpStream::from_std(stream.try_clone().unwrap()).unwrap().set_zero_linger().unwrap();
    });
}

// ---- An answer before the request's end

/// A server that answers each request as soon as it has its head, and closes the connection with the body unread.
fn hasty(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = Vec::new();
            let mut part = [0; 1024];
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => head.extend_from_slice(&part[..n]),
                }
            }
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

/// The statuses of `rounds` uploads of 2 MiB, by a client that sends while it can.
fn statuses_of_uploads(gateway: &Gateway, key: &str, target: &str, rounds: usize) -> Vec<u16> {
    let upload = || {
        let mut client = gateway.connect();
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n",
            2 << 20
        );
        client.send(head.as_bytes());
        for _ in 0..128 {
            if client.try_send(&[b'x'; 16 << 10]).is_err() {
                break;
            }
        }
        client.answer().map_or(0, |answer| answer.status)
    };
    (0..rounds).map(|_| upload()).collect()
}

#[test]
fn an_answer_that_comes_before_the_bodys_end_is_passed_on() {
    for answer in [
        "HTTP/1.1 413 Content Too Large\r\ncontent-length: 9\r\nconnection: close\r\n\r\ntoo large",
        "HTTP/1.0 413 Content Too Large\r\ncontent-length: 9\r\n\r\ntoo large",
    ] {
        let url = format!("http://{}", hasty(answer));
        let (gateway, key) = Tuned::default().live(url).start();
        let statuses = statuses_of_uploads(&gateway, &key, "/things", 40);
        assert_eq!(statuses.iter().filter(|status| **status == 413).count(), 40, "{statuses:?}");
    }
}

#[test]
fn a_connection_that_ends_before_any_answer_is_still_an_error() {
    let url = format!("http://{}", hasty(""));
    let (gateway, key) = Tuned::default().live(url).start();
    assert_eq!(statuses_of_uploads(&gateway, &key, "/things", 5), [502; 5]);
}

// ---- An answer with many fields

#[test]
fn an_answer_may_have_a_hundred_fields_and_no_more() {
    let upstream = Upstream::with(|seen: &Seen| {
        let fields = if seen.request_line().contains("101") { 101 } else { 100 };
        let own: String = (1..fields).map(|number| format!("x-field-{number}: {number}\r\n")).collect();
        Reply::raw(&format!("HTTP/1.1 200 OK\r\n{own}content-length: 4\r\n\r\nfine"))
    });
    let (gateway, key) = Tuned::default().live(upstream.url()).start();
    let answer = gateway.fetch(&Call::get("/things?fields=100").key(&key));
    assert_eq!((answer.status, answer.text()), (200, "fine".to_owned()));
    assert!((1..100).all(|number| answer.field(&format!("x-field-{number}")) == Some(&*number.to_string())));
    assert_eq!(gateway.fetch(&Call::get("/things?fields=101").key(&key)).status, 502);
}

// ---- A server that hangs

/// Takes connections and requests while `hangs`, and answers none of them.
fn hanging(hangs: Arc<AtomicBool>) -> Upstream {
    Upstream::with(move |_: &Seen| {
        if hangs.load(Ordering::SeqCst) {
            Reply::Custom(Box::new(|stream| {
                let _ = std::io::copy(stream, &mut std::io::sink());
                let _ = stream.shutdown(Shutdown::Both);
            }))
        } else {
            Reply::ok("slow")
        }
    })
}

#[test]
fn a_single_server_is_tried_however_often_it_failed() {
    let hangs = Arc::new(AtomicBool::new(true));
    let only = hanging(Arc::clone(&hangs));
    let (gateway, key) = Tuned::default().live(only.url()).upstream("answer_timeout = \"300ms\"").start();
    for _ in 0..6 {
        gateway.fetch(&Call::get("/things").key(&key)).refusal(504, "gateway_timeout");
    }
    eventually("it has seen them all", || only.seen().len() == 6);
    hangs.store(false, Ordering::SeqCst);
    eventually("it answers", || gateway.fetch(&Call::get("/things").key(&key)).text() == "slow");
}

#[test]
fn a_server_that_refuses_is_asked_rarely_by_requests_that_another_could_serve() {
    let good = Upstream::start("good");
    let refusing = refusing();
    let (gateway, key) = Tuned::default().live(refusing.clone()).live(good.url()).settings(OPS).start();
    for _ in 0..20 {
        assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).text(), "good");
    }
    let endpoint = refusing.strip_prefix("http://").unwrap();
    let series = format!("keygate_upstream_healthy{{upstream=\"api\",endpoint=\"{endpoint}\"}}");
    assert_eq!(value(&scrape(gateway.ops_address()), &series), Some(0.0));
}

// ---- A connection that gets old

#[test]
fn a_connection_is_replaced_within_a_minute_also_when_it_is_never_idle() {
    // The idle time is out of the way, since the clock moves by much.
    let long = "idle_timeout = \"10m\"";
    for (host, setting, connections) in [
        ("localhost", "", 2),
        ("127.0.0.1", "", 2),
        ("localhost", "connection_max_age = \"off\"", 1),
        ("127.0.0.1", "connection_max_age = \"2m\"", 1),
    ] {
        let upstream = Upstream::start("fine");
        let url = upstream.url().replace("127.0.0.1", host);
        let (gateway, key) = Tuned::default().live(url).upstream(long).upstream(setting).start();
        for _ in 0..3 {
            assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).status, 200);
            gateway.advance(Duration::from_secs(20));
        }
        assert_eq!(upstream.connections(), 1, "{host}: after forty seconds");
        gateway.advance(Duration::from_secs(1));
        for _ in 0..3 {
            assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).status, 200);
        }
        assert_eq!(upstream.connections(), connections, "{host}: after a minute");
    }
}
