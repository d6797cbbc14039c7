//! WebSocket (RFC 6455): a tunnel after the upstream's 101 to a request that asked, and never otherwise.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::metrics::{scrape, value};
use crate::harness::{
    Call, Gateway, Manual, PATIENCE, Process, Reply, Upstream, Wire, create_key, eventually, refusing,
};

const POLICY: &str = r#"
scopes = ["a", "b"]

[[route]]
id = "socket"
methods = ["GET"]
paths = ["/socket"]
scopes = ["a"]
upstream = "api"
websocket = true

[[route]]
id = "plain"
methods = ["GET"]
paths = ["/plain"]
scopes = ["a"]
upstream = "api"
"#;

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nx-mine: kept\r\n\r\n";

fn handshake(path: &str) -> Call {
    Call::websocket(path)
}

/// Accepts every request for a WebSocket, and echoes its data in capitals.
fn shouting() -> Upstream {
    Upstream::with(|_| {
        Reply::Custom(Box::new(|stream: &mut TcpStream| {
            stream.write_all(SWITCH.as_bytes()).unwrap();
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut part) {
                part[..n].make_ascii_uppercase();
                if stream.write_all(&part[..n]).is_err() {
                    return;
                }
            }
        }))
    })
}

fn gateway(live: &Upstream, test: &Upstream) -> Gateway {
    Gateway::builder().settings("[ops]\nlisten = \"127.0.0.1:0\"").policy(POLICY).api(live, test).start()
}

/// Reads exactly this number of bytes from the tunnel.
fn receive(wire: &mut Wire, n: usize) -> String {
    String::from_utf8(wire.exactly(n).unwrap()).unwrap()
}

#[test]
fn bytes_flow_both_ways_after_the_upstreams_101() {
    let (live, test) = (shouting(), Upstream::start("test"));
    let gateway = gateway(&live, &test);
    let key = gateway.live_key();
    let mut wire = gateway.connect();
    wire.send(&handshake("/socket").key(&key.secret).field("x-org-id", "forged").to_bytes());
    let answer = wire.head().unwrap();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.field("upgrade"), Some("websocket"));
    assert_eq!(answer.field("connection"), Some("upgrade"));
    assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(answer.field("x-mine"), Some("kept"));
    assert!(answer.field("x-request-id").is_some());
    let series = r#"keygate_connections{listener="server",protocol="websocket"}"#;
    eventually("the tunnel is counted", || value(&scrape(gateway.ops_address()), series) == Some(1.0));
    for word in ["hello", "once more"] {
        wire.send(word.as_bytes());
        assert_eq!(receive(&mut wire, word.len()), word.to_uppercase());
    }
    let large = "x".repeat(1 << 20);
    let sender = wire.stream().try_clone().unwrap();
    let sending = std::thread::spawn(move || (&sender).write_all("x".repeat(1 << 20).as_bytes()).unwrap());
    assert_eq!(receive(&mut wire, large.len()), large.to_uppercase());
    sending.join().unwrap();
    wire.finish_sending();
    assert!(wire.is_closed(), "the upstream ends its side, and so does the gateway");

    let seen = live.only();
    assert_eq!(seen.request_line(), "GET /socket HTTP/1.1");
    assert_eq!(seen.value("upgrade"), "websocket");
    assert_eq!(seen.value("connection"), "upgrade");
    assert_eq!(seen.value("sec-websocket-key"), "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(seen.value("x-org-id"), gateway.org.to_string());
    assert!(seen.values("authorization").is_empty());
}

#[test]
fn what_a_client_sends_before_its_answer_is_not_lost() {
    let (live, test) = (shouting(), Upstream::start("test"));
    let gateway = gateway(&live, &test);
    let mut wire = gateway.connect();
    let mut bytes = handshake("/socket").key(&gateway.live_key().secret).to_bytes();
    bytes.extend_from_slice(b"early");
    wire.send(&bytes);
    assert_eq!(wire.head().unwrap().status, 101);
    assert_eq!(receive(&mut wire, 5), "EARLY");
}

#[test]
fn nobody_gets_a_tunnel_without_the_key_and_the_scope_for_it() {
    let (live, test) = (shouting(), Upstream::start("test"));
    let gateway = gateway(&live, &test);
    gateway.fetch(&handshake("/socket")).refusal(401, "authentication_error");
    let narrow = gateway.key_with(&["b"]);
    gateway.fetch(&handshake("/socket").key(&narrow.secret)).refusal(403, "authorization_error");
    assert_eq!(live.connections(), 0);
}

#[test]
fn a_route_that_does_not_allow_it_forwards_no_upgrade() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = gateway(&live, &test);
    let key = gateway.live_key();
    assert_eq!(gateway.fetch(&handshake("/plain").key(&key.secret)).status, 200);
    let seen = live.only();
    assert!(seen.values("upgrade").is_empty() && seen.values("connection").is_empty());
}

#[test]
fn what_is_no_whole_handshake_is_an_ordinary_request() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = gateway(&live, &test);
    let key = gateway.live_key();
    let calls = [
        Call::get("/socket").field("connection", "Upgrade").field("upgrade", "h2c"),
        Call::get("/socket").field("upgrade", "websocket").field("sec-websocket-version", "13"),
        handshake("/socket").field("upgrade", "h2c"),
    ];
    for call in calls {
        live.forget();
        assert_eq!(gateway.fetch(&call.key(&key.secret)).status, 200);
        assert!(live.only().values("upgrade").is_empty());
    }
}

#[test]
fn an_upstream_that_declines_answers_as_on_any_route() {
    let live = Upstream::with(|_| Reply::raw("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno"));
    let test = Upstream::start("test");
    let gateway = gateway(&live, &test);
    let mut wire = gateway.connect();
    let key = gateway.live_key();
    for _ in 0..2 {
        let answer = wire.call(&handshake("/socket").key(&key.secret)).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    }
}

#[test]
fn a_101_to_something_else_than_a_websocket_is_no_answer() {
    let live = Upstream::with(|_| {
        Reply::raw("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
    });
    let test = Upstream::start("test");
    let gateway = gateway(&live, &test);
    let key = gateway.live_key();
    gateway.fetch(&handshake("/socket").key(&key.secret)).refusal(502, "bad_gateway");
}

#[test]
fn a_tunnel_through_which_nothing_comes_is_closed_and_both_sides_are_told() {
    let live = Manual::start();
    let gateway = impatient(&live, POLICY);
    let key = gateway.live_key().secret;
    let (mut client, mut upstream) = open_tunnel(gateway.connect(), &live, &key);
    upstream.send(b"\x81\x02hi");
    assert_eq!(client.exactly(4).unwrap(), b"\x81\x02hi");
    assert_eq!(client.exactly(4).unwrap(), GOING_AWAY);
    let close = upstream.exactly(8).unwrap();
    assert_eq!(close[..2], [0x88, 0x82]);
    assert_eq!([close[6] ^ close[2], close[7] ^ close[3]], [0x03, 0xe9]);
    assert!(client.is_closed() && upstream.is_closed());
}

#[test]
fn a_side_that_is_in_the_middle_of_a_frame_gets_no_close_within_it() {
    let live = Manual::start();
    let gateway = impatient(&live, POLICY);
    let key = gateway.live_key().secret;
    let (mut client, mut upstream) = open_tunnel(gateway.connect(), &live, &key);
    upstream.send(b"\x81\x04ha");
    assert_eq!(client.rest(), b"\x81\x04ha");
    assert_eq!(upstream.exactly(8).unwrap()[..2], [0x88, 0x82]);
}

#[test]
fn a_route_has_its_own_time_for_a_tunnel_through_which_nothing_comes() {
    let live = Manual::start();
    let patient = "[[route]]\nid = \"patient\"\nmethods = [\"GET\"]\npaths = [\"/patient\"]\nscopes = [\"a\"]\n\
                   upstream = \"api\"\nwebsocket = true\nstream_idle_timeout = \"1h\"\n";
    let gateway = impatient(&live, &(POLICY.to_owned() + patient));
    let key = gateway.live_key().secret;
    let (mut patient, mut upstream) = open_tunnel_to("/patient", gateway.connect(), &live, &key);
    // The upstream's own time passes.
    let (mut impatient, _upstream) = open_tunnel(gateway.connect(), &live, &key);
    assert_eq!(impatient.exactly(4).unwrap(), GOING_AWAY);
    upstream.send(b"\x81\x02hi");
    assert_eq!(patient.exactly(4).unwrap(), b"\x81\x02hi");
}

#[test]
fn a_route_has_its_own_time_for_an_answer_that_pauses() {
    let live = Manual::start();
    let paths = "paths = [\"/plain\"]";
    let policy = POLICY.replace(paths, &format!("{paths}\nstream_idle_timeout = \"200ms\""));
    let gateway = Gateway::builder().policy(&policy).upstream("api", &live.url(), &refusing()).start();
    let mut client = gateway.connect();
    client.send(&Call::get("/plain").key(&gateway.live_key().secret).to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    upstream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf!");
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.complete), (200, false));
}

/// A gateway that closes what is idle for 200 ms.
fn impatient(live: &Manual, policy: &str) -> Gateway {
    let upstream = format!(
        "[upstreams.api]\nlive = [\"{}\"]\ntest = [\"{}\"]\nstream_idle_timeout = \"200ms\"",
        live.url(),
        refusing()
    );
    Gateway::builder().policy(policy).settings(&upstream).start()
}

#[test]
fn a_client_that_goes_away_takes_its_upstream_connection_with_it() {
    let (gone, ended) = std::sync::mpsc::sync_channel(1);
    let live = Upstream::with(move |_| {
        let gone = gone.clone();
        Reply::Custom(Box::new(move |stream: &mut TcpStream| {
            stream.write_all(SWITCH.as_bytes()).unwrap();
            let mut part = [0; 16];
            while let Ok(1..) = stream.read(&mut part) {}
            gone.send(()).unwrap();
        }))
    });
    let test = Upstream::start("test");
    let gateway = gateway(&live, &test);
    let mut wire = gateway.connect();
    wire.send(&handshake("/socket").key(&gateway.live_key().secret).to_bytes());
    assert_eq!(wire.head().unwrap().status, 101);
    drop(wire);
    ended.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_tunnel_is_one_request_that_ends_with_it() {
    let (live, test) = (shouting(), Upstream::start("test"));
    let gateway = Gateway::builder()
        .policy(POLICY)
        .settings("[ops]\nlisten = \"127.0.0.1:0\"")
        .api(&live, &test)
        .start();
    let metric = |line: &str| {
        let text = crate::harness::fetch(gateway.ops_address(), &Call::get("/metrics")).text();
        text.lines().any(|other| other == line)
    };
    let mut wire = gateway.connect();
    wire.send(&handshake("/socket").key(&gateway.live_key().secret).to_bytes());
    assert_eq!(wire.head().unwrap().status, 101);
    assert!(metric("keygate_requests_in_flight 1"));
    drop(wire);
    eventually("the tunnel is counted", || {
        metric(r#"keygate_requests_total{route="socket",method="GET",code="1xx",environment="live"} 1"#)
            && metric("keygate_requests_in_flight 0")
    });
    gateway.drain(Duration::ZERO);
}

// ---- The end of the process

/// A Close frame of a server with the code 1001, "going away" (RFC 6455, sections 5.5.1 and 7.4.1).
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];
/// The same from a client, masked with zeros, which leaves it readable.
const CLIENT_LEAVES: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

/// A gateway with one worker, the client's side of a tunnel through it, and the upstream's.
fn tunnel() -> (Gateway, Wire, Wire) {
    let live = Manual::start();
    let server = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1";
    let gateway =
        Gateway::builder().settings(server).policy(POLICY).upstream("api", &live.url(), &refusing()).start();
    let key = gateway.live_key().secret;
    let (client, upstream) = open_tunnel(gateway.connect(), &live, &key);
    (gateway, client, upstream)
}

fn open_tunnel(client: Wire, live: &Manual, key: &str) -> (Wire, Wire) {
    open_tunnel_to("/socket", client, live, key)
}

fn open_tunnel_to(path: &str, mut client: Wire, live: &Manual, key: &str) -> (Wire, Wire) {
    client.send(&handshake(path).key(key).to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    upstream.send(SWITCH.as_bytes());
    assert_eq!(client.head().unwrap().status, 101);
    (client, upstream)
}

#[test]
fn when_the_gateway_stops_a_client_is_asked_to_leave_and_the_upstream_hears_it_from_the_client() {
    let (gateway, mut client, mut upstream) = tunnel();
    upstream.send(b"\x81\x02hi");
    assert_eq!(client.exactly(4).unwrap(), b"\x81\x02hi");
    let draining = std::thread::spawn(move || gateway.drain(10 * PATIENCE));
    assert_eq!(client.exactly(4).unwrap(), GOING_AWAY);
    // Nothing may follow the Close. What the client still has to say reaches the upstream.
    upstream.send(b"\x81\x04late");
    let last_words = [&[0x81, 0x83, 0, 0, 0, 0][..], b"bye"].concat();
    client.send(&[&last_words[..], &CLIENT_LEAVES].concat());
    assert_eq!(upstream.exactly(17).unwrap(), [&last_words[..], &CLIENT_LEAVES].concat());
    assert!(!draining.is_finished(), "the upstream has not answered");
    upstream.send(&GOING_AWAY);
    assert!(client.is_closed());
    assert!(upstream.is_closed());
    draining.join().unwrap();
}

#[test]
fn the_request_to_leave_waits_for_the_end_of_a_frame() {
    let (gateway, mut client, mut upstream) = tunnel();
    upstream.send(b"\x81\x04ha");
    assert_eq!(client.exactly(4).unwrap(), b"\x81\x04ha");
    let mut idle = gateway.connect();
    let draining = std::thread::spawn(move || gateway.drain(10 * PATIENCE));
    assert!(idle.is_closed(), "the worker knows of the end");
    upstream.send(b"lf\x81\x04late");
    assert_eq!(client.exactly(6).unwrap(), [b"lf", &GOING_AWAY[..]].concat());
    drop(client);
    drop(upstream);
    draining.join().unwrap();
}

#[test]
fn a_client_that_does_not_leave_has_its_share_of_the_time_and_then_the_upstream_is_told() {
    let (gateway, mut client, mut upstream) = tunnel();
    let begun = std::time::Instant::now();
    let draining = std::thread::spawn(move || gateway.drain(Duration::from_secs(2)));
    assert_eq!(client.exactly(4).unwrap(), GOING_AWAY);
    client.send(b"\x81\x80\0\0\0\0");
    assert_eq!(upstream.exactly(6).unwrap(), b"\x81\x80\0\0\0\0");
    let close = upstream.exactly(8).unwrap();
    assert_eq!(close[..2], [0x88, 0x82]);
    assert_eq!([close[6] ^ close[2], close[7] ^ close[3]], [0x03, 0xe9]);
    assert!(begun.elapsed() >= Duration::from_secs(1), "half of the time");
    assert!(upstream.is_closed() && client.is_closed());
    draining.join().unwrap();
}

#[test]
fn a_client_is_asked_to_leave_when_the_signal_comes_and_not_after_the_delay() {
    let (folder, live) = (tempfile::TempDir::new().unwrap(), Manual::start());
    let server = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\ndrain_delay = \"1h\"";
    let builder = Gateway::builder().settings(server).policy(POLICY);
    builder.upstream("api", &live.url(), &refusing()).write(folder.path());
    let key = create_key(folder.path());
    let mut keygate = Process::serve(folder.path());
    let address = keygate.address();
    let (mut client, _upstream) = open_tunnel(Wire::connect(address), &live, &key);
    keygate.terminate();
    assert_eq!(client.exactly(4).unwrap(), GOING_AWAY);
    // It comes back to the same gateway while the load balancer has not noticed, and is let be for that time.
    let (mut again, mut upstream) = open_tunnel(Wire::connect(address), &live, &key);
    upstream.send(b"\x81\x02hi");
    assert_eq!(again.exactly(4).unwrap(), b"\x81\x02hi");
    keygate.terminate();
    assert_eq!(keygate.wait().code(), Some(0));
}
