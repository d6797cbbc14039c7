//! Long requests: if their key loses the right to continue, they end within two seconds; other requests continue.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use keygate::store::keeper::LinkState;
use keygate::vocabulary::key::record::{Further, KeyRecord, Secret};
use keygate::vocabulary::key::scope::{Scope, ScopeSet};
use keygate::vocabulary::key::{Digest, Environment};

use serde_json::json;

use crate::harness::api::json_call;
use crate::harness::client::fetch_over;
use crate::harness::http2::{DATA, Frames, HEADERS, RESET, WINDOW_UPDATE};
use crate::harness::process::keygate;
use crate::harness::{
    Call, Chaos, Gateway, GatewayBuilder, Manual, Process, RedisServer, Reply, TestKey, Transport, Upstream,
    Valve, Weather, Wire, create_key, eventually, fetch, is_long, lenient, refusing,
};

/// The promised time.
const AT_MOST: Duration = Duration::from_secs(2);

const POLICY: &str = r#"
scopes = ["read", "write"]

[[route]]
id = "socket"
methods = ["GET"]
paths = ["/socket"]
scopes = ["read"]
upstream = "api"
websocket = true

[[route]]
id = "read"
methods = ["GET"]
paths = ["/events", "/large", "/wait"]
scopes = ["read"]
upstream = "api"

[[route]]
id = "write"
methods = ["POST"]
paths = ["/upload"]
scopes = ["write"]
upstream = "api"

[[route]]
id = "files"
methods = ["GET"]
paths = ["/files/{*rest}"]
scopes = ["read"]
upstream = "api"

[[route]]
id = "drafts"
methods = ["GET"]
paths = ["/files/events"]
scopes = ["write"]
upstream = "api"
"#;

const MANAGE: &str = r#"
[[route]]
id = "manage"
methods = ["PATCH"]
paths = ["/v1/api_keys/{id}"]
scopes = ["manage"]
serve = "keys.update"
"#;

const SETTINGS: &str = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\nmax_connections = 2000\n\
                        max_connections_per_client = 2000\n[ops]\nlisten = \"127.0.0.1:0\"\n";

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                      9\r\ndata: 1\n\n\r\n";
/// A text frame of a server.
const FRAME: &[u8] = &[0x81, 2, b'h', b'i'];

/// Streams for as long as the gateway listens: events, a socket that greets and then echoes, endless data, an
/// answer that never comes.
fn streaming() -> Upstream {
    Upstream::with(|seen| {
        let line = seen.request_line().to_owned();
        Reply::Custom(Box::new(move |stream: &mut TcpStream| {
            let mut part = [0; 1024];
            if line.contains("/socket") {
                stream.write_all(SWITCH.as_bytes()).unwrap();
                stream.write_all(FRAME).unwrap();
                while let Ok(n @ 1..) = stream.read(&mut part) {
                    if stream.write_all(&part[..n]).is_err() {
                        return;
                    }
                }
            } else if line.contains("/events") {
                stream.write_all(EVENTS.as_bytes()).unwrap();
                while let Ok(1..) = stream.read(&mut part) {}
            } else if line.contains("/large") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n");
                while stream.write_all(&[b'x'; 65_536]).is_ok() {}
            } else {
                while let Ok(1..) = stream.read(&mut part) {}
            }
        }))
    })
}

fn builder(live: &Upstream) -> GatewayBuilder {
    builder_on(live, SETTINGS)
}

fn builder_on(live: &Upstream, settings: &str) -> GatewayBuilder {
    let test = Upstream::start("test");
    Gateway::builder().transport(Transport::Http1).policy(POLICY).settings(settings).api(live, &test)
}

fn handshake(key: &TestKey) -> Call {
    Call::websocket("/socket").key(&key.secret)
}

/// Opens a tunnel and reads the greeting.
fn open_socket(gateway: &Gateway, key: &TestKey) -> Wire {
    let mut wire = gateway.connect();
    wire.send(&handshake(key).to_bytes());
    assert_eq!(wire.head().unwrap().status, 101);
    assert_eq!(wire.exactly(FRAME.len()).unwrap(), FRAME);
    wire
}

/// Opens a stream of events and reads the first.
fn open_events(gateway: &Gateway, key: &TestKey) -> Wire {
    open_events_of(gateway, "/events", key)
}

fn open_events_of(gateway: &Gateway, path: &str, key: &TestKey) -> Wire {
    let mut wire = gateway.connect();
    wire.send(&Call::get(path).key(&key.secret).to_bytes());
    assert_eq!(wire.head().unwrap().status, 200);
    assert_eq!(wire.chunk().unwrap(), b"data: 1\n\n");
    wire
}

/// Whether no data has arrived and the stream is open.
fn is_untouched(wire: &Wire) -> bool {
    let stream = wire.stream();
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn has_metric(gateway: &Gateway, line: &str) -> bool {
    let text = fetch(gateway.ops_address(), &Call::get("/metrics")).text();
    text.lines().any(|other| other == line)
}

#[test]
fn a_revocation_ends_the_keys_streams_and_none_of_a_thousand_others() {
    const KEYS: usize = 10;
    const STREAMS_OF_EACH: usize = 50;
    let live = streaming();
    let gateway = builder(&live).start();
    let keys: Vec<TestKey> = (0..KEYS).map(|_| gateway.live_key()).collect();
    let open = |opened: fn(&Gateway, &TestKey) -> Wire| -> Vec<(usize, Wire)> {
        (0..KEYS * STREAMS_OF_EACH).map(|n| (n % KEYS, opened(&gateway, &keys[n % KEYS]))).collect()
    };
    let (mut sockets, mut events) = (open(open_socket), open(open_events));
    assert!(has_metric(&gateway, "keygate_requests_in_flight 1000"));

    gateway.revoke(&keys[3]);
    let revoked = Instant::now();
    for (_, wire) in sockets.iter_mut().filter(|(key, _)| *key == 3) {
        assert_eq!(wire.rest(), [0x88, 2, 0x03, 0xf0], "a Close frame with the code 1008, then the end");
    }
    for (_, wire) in events.iter_mut().filter(|(key, _)| *key == 3) {
        assert!(wire.is_closed(), "without the chunk that would make it whole");
    }
    let took = revoked.elapsed();
    println!("100 of 1,000 streams ended within {took:?}");
    assert!(took < lenient(AT_MOST), "{took:?}");

    eventually("a hundred are counted", || {
        has_metric(&gateway, r#"keygate_answers_cut_total{reason="key_revoked"} 100"#)
            && has_metric(&gateway, "keygate_requests_in_flight 900")
    });
    let others = || sockets.iter().chain(&events).filter(|(key, _)| *key != 3);
    assert_eq!(others().filter(|(_, wire)| is_untouched(wire)).count(), 900);
    for (_, wire) in sockets.iter_mut().filter(|(key, _)| *key != 3) {
        wire.send(FRAME);
        assert_eq!(wire.exactly(FRAME.len()).unwrap(), FRAME);
    }
}

/// A stream of each of two keys; `end` takes the right away from the first key. Its stream ends in time, and
/// the second one continues.
fn assert_ends(what: &str, reason: &str, end: impl FnOnce(&Gateway, &Valve, &TestKey)) {
    assert_ends_at("/events", what, reason, end);
}

fn assert_ends_at(path: &str, what: &str, reason: &str, end: impl FnOnce(&Gateway, &Valve, &TestKey)) {
    let (live, valve) = (streaming(), Valve::new());
    let gateway = builder(&live).store(valve.fitted()).start();
    let (key, other) = (gateway.live_key(), gateway.key_in_another_org());
    let mut stream = open_events_of(&gateway, path, &key);
    let untouched = open_events_of(&gateway, path, &other);
    end(&gateway, &valve, &key);
    let ended = Instant::now();
    assert!(stream.is_closed(), "{what}");
    assert!(ended.elapsed() < lenient(AT_MOST), "{what}: {:?}", ended.elapsed());
    assert!(is_untouched(&untouched), "{what}");
    eventually("it is counted", || {
        has_metric(&gateway, &format!("keygate_answers_cut_total{{reason=\"{reason}\"}} 1"))
    });
}

fn change(gateway: &Gateway, valve: &Valve, key: &TestKey, change: impl FnOnce(&mut KeyRecord)) {
    gateway.block_on(valve.change_key(key.id(), change));
}

#[test]
fn a_disabled_key_ends_its_streams() {
    assert_ends("disabled", "key_disabled", |gateway, valve, key| {
        change(gateway, valve, key, |record| record.disabled_at = Some(record.created_at));
    });
}

#[test]
fn a_key_that_is_narrowed_below_the_route_ends_its_streams_there() {
    assert_ends("narrowed", "scope_missing", |gateway, valve, key| {
        let narrow = ScopeSet::from_iter([Scope::parse("write").unwrap()]);
        change(gateway, valve, key, |record| record.scopes = narrow);
    });
}

#[test]
fn a_stream_whose_path_falls_under_two_rules_ends_when_its_key_loses_the_scope_of_either() {
    for (lost, left) in [("read", "write"), ("write", "read")] {
        assert_ends_at(
            "/files/events.json",
            &format!("{lost} is lost"),
            "scope_missing",
            |gateway, valve, key| {
                let left = ScopeSet::from_iter([Scope::parse(left).unwrap()]);
                change(gateway, valve, key, |record| record.scopes = left);
            },
        );
    }
}

/// A stream from each of two clients behind a proxy; their key is then bound to the network of the
/// first. Returns the time of that, and the streams.
fn bound_to_the_first(server: &str, live: &Upstream) -> (Gateway, Instant, [Wire; 2]) {
    let policy = POLICY.replace("\"write\"]\n\n", "\"write\", \"manage\"]\n\n") + MANAGE;
    let settings = SETTINGS.replace("[server]\n", &format!("[server]\n{server}\n"));
    let gateway = builder_on(live, &settings).policy(&policy).start();
    let (key, manager) = (gateway.live_key(), gateway.live_key());
    let streams = ["192.0.2.7", "198.51.100.7"].map(|client| {
        let mut wire = gateway.connect();
        wire.send(&Call::get("/events").key(&key.secret).field("x-forwarded-for", client).to_bytes());
        assert_eq!((wire.head().unwrap().status, wire.chunk().unwrap()), (200, b"data: 1\n\n".to_vec()));
        wire
    });
    let bound = json!({ "allowed_addresses": ["192.0.2.0/24"] });
    let call = json_call("PATCH", &format!("/v1/api_keys/{}", key.id()), &bound).key(&manager.secret);
    let answer = gateway.fetch(&call);
    assert_eq!(answer.status, 200, "{}", answer.text());
    (gateway, Instant::now(), streams)
}

#[test]
fn a_key_that_is_bound_to_other_addresses_ends_its_streams_from_elsewhere() {
    let live = streaming();
    let proxied = "trusted_proxies = [\"127.0.0.1\"]";
    let (gateway, bound, [within, mut elsewhere]) = bound_to_the_first(proxied, &live);
    assert!(elsewhere.is_closed());
    assert!(bound.elapsed() < lenient(AT_MOST), "{:?}", bound.elapsed());
    eventually("it is counted", || {
        has_metric(&gateway, r#"keygate_answers_cut_total{reason="address_not_allowed"} 1"#)
    });
    assert!(is_untouched(&within));
}

#[test]
fn without_trusted_proxies_the_peer_address_of_a_stream_counts() {
    let live = streaming();
    let (_gateway, bound, mut streams) = bound_to_the_first("", &live);
    assert!(streams.iter_mut().all(Wire::is_closed));
    assert!(bound.elapsed() < lenient(AT_MOST), "{:?}", bound.elapsed());
}

#[test]
fn a_suspended_organisation_ends_the_streams_of_its_keys() {
    assert_ends("suspended", "organisation_suspended", |gateway, valve, key| {
        gateway.block_on(valve.change_org(key.record.org, |org| org.suspended_at = Some(org.created_at)));
    });
}

#[test]
fn a_secret_whose_overlap_is_over_ends_its_streams() {
    assert_ends("rotated", "key_rotated", |gateway, valve, key| {
        let overlap_ends = gateway.now().plus(Duration::from_secs(3600));
        change(gateway, valve, key, |record| {
            record.secrets[0].ends_at = Some(overlap_ends);
            let digest = Digest::from_bytes([7; 32]);
            record.secrets.insert(
                0,
                Secret {
                    digest,
                    last_four: "next".to_owned(),
                    prefix: None,
                    ends_at: None,
                    further: Further::default(),
                },
            );
        });
        gateway.advance(Duration::from_secs(3600));
    });
}

#[test]
fn a_key_that_expires_ends_its_streams() {
    let live = streaming();
    let gateway = builder(&live).start();
    let (expiring, other) = (gateway.expiring_key(Duration::from_secs(30)), gateway.live_key());
    let (mut stream, mut socket) = (open_events(&gateway, &expiring), open_socket(&gateway, &expiring));
    let untouched = open_events(&gateway, &other);
    gateway.advance(Duration::from_secs(30));
    let expired = Instant::now();
    assert!(stream.is_closed());
    assert_eq!(socket.rest(), [0x88, 2, 0x03, 0xf0]);
    assert!(expired.elapsed() < lenient(AT_MOST), "{:?}", expired.elapsed());
    assert!(is_untouched(&untouched));
}

#[test]
fn an_upload_gets_a_complete_refusal_and_is_never_complete_at_the_upstream() {
    let upstream = Manual::start();
    let gateway = Gateway::builder()
        .transport(Transport::Http1)
        .policy(POLICY)
        .settings(SETTINGS)
        .upstream("api", &upstream.url(), &refusing())
        .start();
    let key = gateway.live_key();
    let mut wire = gateway.connect();
    let head = "POST /upload HTTP/1.1\r\nhost: api.example.com\r\ntransfer-encoding: chunked\r\n";
    wire.send(format!("{head}authorization: Bearer {}\r\n\r\n4\r\npart\r\n", key.secret).as_bytes());
    let mut up = upstream.accept();
    assert!(up.request_head().is_some());
    assert_eq!(up.chunk().unwrap(), b"part");
    gateway.revoke(&key);
    let revoked = Instant::now();
    wire.answer().unwrap().refusal(401, "authentication_error");
    assert!(up.is_closed(), "without the chunk that would make it whole");
    assert!(revoked.elapsed() < lenient(AT_MOST), "{:?}", revoked.elapsed());
}

#[test]
fn a_request_that_waits_for_its_answer_gets_a_complete_refusal() {
    for transport in [Transport::Http1, Transport::Http2] {
        let live = streaming();
        let gateway = builder(&live).transport(transport).start();
        let key = gateway.live_key();
        let (address, call) = (gateway.address(), Call::get("/wait").key(&key.secret));
        let waiting = std::thread::spawn(move || fetch_over(address, transport, &call));
        eventually("it waits", || live.connections() == 1);
        gateway.revoke(&key);
        let revoked = Instant::now();
        waiting.join().unwrap().refusal(401, "authentication_error");
        assert!(revoked.elapsed() < lenient(AT_MOST), "{transport:?}: {:?}", revoked.elapsed());
    }
}

#[test]
fn a_download_that_its_client_does_not_read_ends_too() {
    let (gone, ended) = std::sync::mpsc::sync_channel(1);
    let live = Upstream::with(move |_| {
        let gone = gone.clone();
        Reply::Custom(Box::new(move |stream: &mut TcpStream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n").unwrap();
            while stream.write_all(&[b'x'; 65_536]).is_ok() {}
            gone.send(()).unwrap();
        }))
    });
    let gateway = builder(&live).start();
    let key = gateway.live_key();
    let mut wire = gateway.connect();
    wire.send(&Call::get("/large").key(&key.secret).to_bytes());
    assert_eq!(wire.head().unwrap().status, 200);
    gateway.revoke(&key);
    let revoked = Instant::now();
    ended.recv_timeout(crate::harness::PATIENCE).unwrap();
    assert!(revoked.elapsed() < lenient(AT_MOST), "{:?}", revoked.elapsed());
}

#[test]
fn on_one_connection_of_http2_only_the_streams_of_the_dead_key_are_reset() {
    let live = streaming();
    let gateway = builder(&live).transport(Transport::Http2).start();
    let (key, other) = (gateway.live_key(), gateway.live_key());
    // Without a window: a stream that the client does not read ends too.
    let mut frames = Frames::connect(&gateway, &[(4, 0)]);
    for (stream, target, key) in
        [(1, "/events", &key), (3, "/events", &other), (5, "/large", &key), (7, "/large", &other)]
    {
        frames.get(stream, target, &key.secret);
    }
    let mut begun: Vec<u32> = (0..4).map(|_| frames.until(HEADERS).unwrap().stream).collect();
    begun.sort_unstable();
    assert_eq!(begun, [1, 3, 5, 7]);
    gateway.revoke(&key);
    let revoked = Instant::now();
    let mut reset: Vec<u32> = (0..2).map(|_| frames.until(RESET).unwrap().stream).collect();
    reset.sort_unstable();
    assert_eq!(reset, [1, 5]);
    assert!(revoked.elapsed() < lenient(AT_MOST), "{:?}", revoked.elapsed());
    frames.send(WINDOW_UPDATE, 0, 3, &1000_u32.to_be_bytes());
    let data = frames.until(DATA).unwrap();
    assert_eq!((data.stream, &data.payload[..]), (3, &b"data: 1\n\n"[..]));
    frames.get(9, "/events", &key.secret);
    assert_eq!(frames.until(HEADERS).unwrap().stream, 9, "refused, on the same connection");
}

#[test]
fn the_record_says_why_a_stream_ended() {
    let live = streaming();
    let folder = tempfile::tempdir().unwrap();
    let settings = "[admin]\nsocket = \"keygate.sock\"\n[log]\nrequests = \"json\"";
    builder(&live).settings(settings).write(folder.path());
    let secret = create_key(folder.path());
    let gateway = Process::serve(folder.path());
    let mut wire = Wire::connect(gateway.address());
    wire.send(&Call::get("/events").key(&secret).to_bytes());
    assert_eq!(wire.head().unwrap().status, 200);
    assert!(wire.chunk().is_some());
    let list = keygate(folder.path(), &["keys", "list", "--json"]).output().unwrap().stdout;
    let key: serde_json::Value = serde_json::from_slice(&list).unwrap();
    let revoked =
        keygate(folder.path(), &["keys", "revoke", key["id"].as_str().unwrap(), "--yes"]).output().unwrap();
    assert!(revoked.status.success());
    assert!(wire.is_closed());
    let record: serde_json::Value = serde_json::from_str(&gateway.out_line("key_revoked")).unwrap();
    assert_eq!(record["http.response.status_code"], 200);
    assert_eq!((&record["reason"], &record["complete"]), (&"key_revoked".into(), &false.into()));
    assert_eq!(record["key_id"], key["id"]);
}

#[test]
fn a_websocket_in_the_middle_of_a_frame_is_closed_without_a_close_frame() {
    let live = streaming();
    let gateway = builder(&live).start();
    let key = gateway.live_key();
    let mut wire = open_socket(&gateway, &key);
    // Echoed, and no whole frame: four more are promised.
    wire.send(&[0x81, 6, b'h', b'i']);
    assert_eq!(wire.exactly(4).unwrap(), [0x81, 6, b'h', b'i']);
    gateway.revoke(&key);
    assert!(wire.is_closed());
}

#[test]
fn a_store_that_cannot_answer_ends_no_stream_before_the_stale_window_does() {
    let (live, valve) = (streaming(), Valve::new());
    let gateway = builder(&live)
        .settings("[cache]\nttl = \"60s\"\nstale_window = \"5m\"")
        .store(valve.fitted())
        .start();
    let (touched, quiet) = (gateway.live_key(), gateway.live_key());
    let mut streams = [open_events(&gateway, &touched), open_events(&gateway, &quiet)];
    valve.fail();
    // An event that removes no right that this route needs.
    change(&gateway, &valve, &touched, |record| record.name = "another".to_owned());
    let before = valve.lookups();
    eventually("it was looked up in vain, twice", || valve.lookups() >= before + 2);
    gateway.advance(Duration::from_secs(61));
    let before = valve.lookups();
    eventually("both were", || valve.lookups() >= before + 3);
    assert!(streams.iter().all(is_untouched));
    gateway.advance(Duration::from_secs(300));
    assert!(streams.iter_mut().all(Wire::is_closed));
    eventually("it is counted", || {
        has_metric(&gateway, r#"keygate_answers_cut_total{reason="store_unavailable"} 2"#)
    });
}

/// Open streams while a gateway is cut off from its store, on a route that refuses then and on one that serves.
mod cut_off {
    use super::*;

    /// The longest time that a cut-off gateway accepts requests on a route that refuses.
    const LEASE: Duration = Duration::from_secs(10);

    /// The same routes, which refuse, and each again beneath /kept, which serve.
    fn policy() -> String {
        let routes = POLICY.split("[[route]]").skip(1);
        let refusing = routes.clone().map(|route| format!("[[route]]{route}on_partition = \"refuse\"\n"));
        let serving = routes.map(|route| {
            let kept = route.replacen("id = \"", "id = \"kept-", 1).replace("\"/", "\"/kept/");
            format!("[[route]]{kept}on_partition = \"serve\"\n")
        });
        format!("scopes = [\"read\", \"write\"]\n{}", refusing.chain(serving).collect::<String>())
    }

    /// A gateway with a lease, and the network between it and Redis.
    fn start(live: &Upstream) -> (Gateway, Chaos, RedisServer) {
        let redis = RedisServer::start();
        let chaos = Chaos::before(redis.address());
        let store = format!(
            "[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\nconnect_timeout = \"2s\"\n\
             lookup_timeout = \"10s\"\ncommand_timeout = \"2s\"\n[cache]\non_partition = \"serve\"\nlookup_timeout = \"10s\"",
            chaos.url()
        );
        // One sweep ends all of them.
        let settings = SETTINGS.replace("workers = 2", "workers = 1");
        let gateway = builder_on(live, &settings).policy(&policy()).settings(&store).start();
        eventually("it is linked", || gateway.lifecycle().keeper().link_state() == LinkState::Up);
        (gateway, chaos, redis)
    }

    fn begin(gateway: &Gateway, key: &TestKey, target: &str) -> Wire {
        let mut wire = gateway.connect();
        let call = if target.ends_with("socket") { handshake(key) } else { Call::get("/").key(&key.secret) };
        wire.send(&Call { target: target.to_owned(), ..call }.to_bytes());
        wire
    }

    /// Opens a stream, a socket and a download.
    fn open(gateway: &Gateway, key: &TestKey, under: &str) -> [Wire; 3] {
        let mut wires =
            ["/events", "/socket", "/large"].map(|target| begin(gateway, key, &format!("{under}{target}")));
        let [events, socket, large] = &mut wires;
        assert_eq!((events.head().unwrap().status, events.chunk().unwrap()), (200, b"data: 1\n\n".to_vec()));
        assert_eq!(
            (socket.head().unwrap().status, socket.exactly(FRAME.len()).unwrap()),
            (101, FRAME.to_vec())
        );
        assert_eq!(large.head().unwrap().status, 200);
        wires
    }

    #[test]
    fn after_the_lease_streams_end_on_routes_that_refuse_and_continue_on_routes_that_serve() {
        let live = streaming();
        let (gateway, chaos, _redis) = start(&live);
        // The last heartbeat before the cut may be a second old, or two on a busy machine.
        let early = LEASE - Duration::from_secs(4);
        let (key, expiring) = (gateway.live_key(), gateway.expiring_key(early));
        let (mut refusing, mut serving) = (open(&gateway, &key, ""), open(&gateway, &key, "/kept"));
        let [mut swept, ..] = open(&gateway, &expiring, "");
        chaos.turn(Weather::Cut);
        let cut = Instant::now();
        if !is_long() {
            gateway.advance(early);
        }
        assert!(swept.is_closed(), "its key has expired");
        assert!(is_untouched(&refusing[0]) && is_untouched(&refusing[1]), "by the same sweep");
        let (mut refused, waiting) = (begin(&gateway, &key, "/wait"), begin(&gateway, &key, "/kept/wait"));
        eventually("all are under way", || has_metric(&gateway, "keygate_requests_in_flight 8"));
        if !is_long() {
            gateway.advance(LEASE - early);
        }
        let over = Instant::now();
        refused.answer().unwrap().refusal(503, "service_unavailable");
        let [events, socket, large] = &mut refusing;
        assert!(events.is_closed(), "without the chunk that would make it whole");
        assert_eq!(socket.rest(), [0x88, 2, 0x03, 0xf0], "a Close frame with the code 1008, then the end");
        large.rest();
        let took = if is_long() { cut.elapsed() - LEASE } else { over.elapsed() };
        println!("ended {took:?} after the end of the lease");
        assert!(took < lenient(AT_MOST), "{took:?}");
        eventually("they are counted", || {
            has_metric(&gateway, r#"keygate_answers_cut_total{reason="store_unavailable"} 3"#)
                && has_metric(&gateway, "keygate_requests_in_flight 4")
        });
        let [events, socket, large] = &mut serving;
        assert!(is_untouched(events) && is_untouched(&waiting));
        socket.send(FRAME);
        assert_eq!(socket.exactly(FRAME.len()).unwrap(), FRAME);
        assert_eq!(large.exactly(1 << 20).unwrap().len(), 1 << 20);
        chaos.turn(Weather::Fair);
        eventually("streams can be opened again", || {
            begin(&gateway, &key, "/events").head().unwrap().status == 200
        });
    }
}

#[test]
fn streams_go_on_when_a_key_changes_and_keeps_what_they_need() {
    let (live, valve) = (streaming(), Valve::new());
    let gateway = builder(&live).store(valve.fitted()).start();
    let key = gateway.key(Environment::Live, None, None);
    let mut wire = open_socket(&gateway, &key);
    let narrow = ScopeSet::from_iter([Scope::parse("read").unwrap()]);
    let before = valve.lookups();
    change(&gateway, &valve, &key, |record| record.scopes = narrow);
    eventually("it was looked up", || valve.lookups() > before);
    wire.send(FRAME);
    assert_eq!(wire.exactly(FRAME.len()).unwrap(), FRAME);
    change(&gateway, &valve, &key, |record| record.scopes = ScopeSet::default());
    assert_eq!(wire.rest(), [0x88, 2, 0x03, 0xf0]);
}
