//! One client that takes all it can get costs the others nothing, nor do all keys of one organisation: descriptors, connections to upstreams, operators' listeners.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use http_body_util::Empty;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::harness::api::json_call;
use crate::harness::client::{Wire, fetch};
use crate::harness::http2::{connect, request, runtime};
use crate::harness::metrics::{scrape, value};
use crate::harness::process::{Process, create_key, create_key_by, keygate};
use crate::harness::transport::Transport;
use crate::harness::{Call, Tuned, eventually, is_long};

const POLICY: &str = r#"
scopes = ["a", "manage"]

[[route]]
id = "things"
methods = ["GET"]
paths = ["/things", "/things/{*rest}"]
any_key = true
upstream = "api"
websocket = true

[[route]]
id = "keys"
methods = ["POST"]
paths = ["/v1/api_keys"]
scopes = ["manage"]
serve = "keys.create"
"#;

const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A server that counts its open connections; see [`hold`].
struct Holding {
    address: SocketAddr,
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Holding {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (open, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (counted, highest) = (Arc::clone(&open), Arc::clone(&most));
        thread::spawn(move || {
            runtime().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let counted = Arc::clone(&counted);
                    highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::spawn(async move {
                        hold(stream).await;
                        counted.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
        });
        Self { address, open, most }
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// Answers requests for `/things`, grants a WebSocket for `/things/socket`, and leaves others without an answer.
async fn hold(mut stream: tokio::net::TcpStream) {
    let mut part = [0; 4096];
    loop {
        let Ok(length @ 1..) = stream.read(&mut part).await else { return };
        let has = |word: &[u8]| part[..length].windows(word.len()).any(|window| window == word);
        if has(b"/socket") && stream.write_all(SWITCH).await.is_err() {
            return;
        }
        if has(b"/things ")
            && stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await.is_err()
        {
            return;
        }
    }
}

/// A `keygate serve` with a limit of open files, and what it says of its room.
struct Limited {
    folder: TempDir,
    _process: Process,
    address: SocketAddr,
    ops: SocketAddr,
    upstreams: usize,
}

impl Limited {
    fn start(files: usize, upstream: &Holding) -> Self {
        let folder = TempDir::new().unwrap();
        let settings = "[ops]\nlisten = \"127.0.0.1:0\"\n[admin]\nsocket = \"admin.sock\"\n";
        let tuned = Tuned::default().live(format!("http://{}", upstream.address)).settings(settings);
        tuned.server("max_connections_per_client = 2000").builder().policy(POLICY).write(folder.path());
        let (process, room) = Process::serve_with_files(folder.path(), files);
        let upstreams = room.split(" to upstreams").next().and_then(|room| room.rsplit(' ').next());
        let upstreams = upstreams.and_then(|number| number.parse().ok()).unwrap();
        let (address, ops) = (process.address(), process.ops_address());
        Self { folder, _process: process, address, ops, upstreams }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The first key of a new organisation.
    fn key_of(&self, org: &str) -> String {
        let made = keygate(self.path(), &["orgs", "create", org]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let words = ["keys", "create", "--all-scopes", "--name", "a key", "--org", org];
        create_key_by(keygate(self.path(), &words))
    }

    /// So many further keys of the organisation of `key`.
    fn sisters_of(&self, key: &str, number: usize) -> Vec<String> {
        let mut wire = Wire::connect(self.address);
        let call = json_call("POST", "/v1/api_keys", &json!({ "name": "a sister" })).key(key);
        let made = (0..number).map(|_| wire.call(&call).unwrap().json());
        made.map(|key| key["secret"].as_str().unwrap().to_owned()).collect()
    }

    /// Asserts that a customer with `key`, probes and operators are served.
    #[track_caller]
    fn assert_serves_others(&self, key: &str) {
        for _ in 0..20 {
            let answer = fetch(self.address, &Call::get("/things").key(key));
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let ready = fetch(self.ops, &Call::get("/readyz"));
        assert_eq!(ready.status, 200, "{}", ready.text());
        let listed = keygate(self.path(), &["keys", "list"]).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    }

    fn metric(&self, name: &str) -> f64 {
        value(&scrape(self.ops), name).unwrap()
    }
}

/// Requests of one key for `/things/held`, each 100 on one connection over HTTP/2; they are held until this is dropped.
struct Held {
    _stop: tokio::sync::oneshot::Sender<()>,
    refused: Arc<AtomicUsize>,
}

impl Held {
    fn begin(gateway: SocketAddr, key: &str, requests: usize) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let refused = Arc::<AtomicUsize>::default();
        let (call, counted) = (Call::get("/things/held").key(key), Arc::clone(&refused));
        thread::spawn(move || {
            runtime().block_on(async {
                for begun in (0..requests).step_by(100) {
                    tokio::spawn(ask(
                        gateway,
                        call.clone(),
                        (requests - begun).min(100),
                        Arc::clone(&counted),
                    ));
                }
                let _ = stopped.await;
            });
        });
        Self { _stop: stop, refused }
    }

    fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }
}

/// Sends the call so often on one connection, and counts the answers that say to come back later.
async fn ask(gateway: SocketAddr, call: Call, times: usize, refused: Arc<AtomicUsize>) {
    let sender = connect::<Empty<Bytes>>(gateway, Transport::Http2).await;
    let mut asked = JoinSet::new();
    for _ in 0..times {
        let request = request(Transport::Http2, &call).unwrap().map(|_| Empty::new());
        let (mut sender, refused) = (sender.clone(), Arc::clone(&refused));
        asked.spawn(async move {
            let Ok(answer) = sender.send_request(request).await else { return };
            let is_later = answer.status() == 503 && answer.headers().contains_key("retry-after");
            refused.fetch_add(usize::from(is_later), Ordering::SeqCst);
        });
    }
    while asked.join_next().await.is_some() {}
}

fn one_client_that_holds_all_it_can(files: usize) {
    let upstream = Holding::start();
    let gateway = Limited::start(files, &upstream);
    let [greedy, other] = [(); 2].map(|()| create_key(gateway.path()));
    let requests = gateway.upstreams * 5 / 4;
    let held = Held::begin(gateway.address, &greedy, requests);
    eventually("what is too much is refused", || held.refused() + upstream.open() >= requests);
    gateway.assert_serves_others(&other);
    let half = gateway.upstreams / 2;
    // One for each thread: it looks before its connection is counted.
    assert!(upstream.open() <= half + 2, "{} of {}", upstream.open(), gateway.upstreams);
    let share = "keygate_requests_crowded_total{reason=\"share_exhausted\"}";
    assert_eq!(gateway.metric(share), held.refused() as f64);
    drop(held);
    eventually("the places come back", || {
        fetch(gateway.address, &Call::get("/things").key(&greedy)).status == 200 && upstream.open() < 20
    });
}

#[test]
fn one_client_over_http2_leaves_others_half_of_all_connections() {
    one_client_that_holds_all_it_can(1024);
}

#[test]
fn one_client_over_http2_leaves_others_half_of_fewer_and_of_more_connections_too() {
    let files: &[usize] = if is_long() { &[512, 4000, 20_000] } else { &[512] };
    files.iter().for_each(|files| one_client_that_holds_all_it_can(*files));
}

#[test]
fn twenty_clients_that_hold_all_they_can_leave_room_for_another() {
    let upstream = Holding::start();
    let gateway = Limited::start(1024, &upstream);
    let other = gateway.key_of("Other Ltd");
    let greedy: Vec<_> = (0..20).map(|number| gateway.key_of(&format!("Greedy Ltd {number}"))).collect();
    let held: Vec<_> = greedy.iter().map(|key| Held::begin(gateway.address, key, 100)).collect();
    let refused = || held.iter().map(Held::refused).sum::<usize>();
    eventually("what is too much is refused", || refused() + upstream.open() >= 2000);
    gateway.assert_serves_others(&other);
    let most = upstream.most.load(Ordering::SeqCst);
    assert!(most < gateway.upstreams, "{most} of {}", gateway.upstreams);
}

#[test]
fn the_keys_of_one_organisation_together_leave_other_organisations_places() {
    let upstream = Holding::start();
    let gateway = Limited::start(1024, &upstream);
    let [first, other] = ["Greedy Ltd", "Other Ltd"].map(|org| gateway.key_of(org));
    let greedy = gateway.sisters_of(&first, 64);
    // Keys that have few in flight could each take some more: first four take what they can get, then sixty.
    let (mut held, mut asked): (Vec<Held>, usize) = (Vec::new(), 0);
    for (keys, requests) in [(&greedy[..4], 200), (&greedy[4..], 10)] {
        held.extend(keys.iter().map(|key| Held::begin(gateway.address, key, requests)));
        asked += keys.len() * requests;
        eventually("what is too much is refused", || {
            held.iter().map(Held::refused).sum::<usize>() + upstream.open() >= asked
        });
    }
    let taken = upstream.open();
    gateway.assert_serves_others(&other);
    // One for each thread: it looks before its connection is counted.
    assert!(taken <= gateway.upstreams * 9 / 16 + 2, "{taken} of {}", gateway.upstreams);
    let others = Held::begin(gateway.address, &other, 20);
    eventually("the other organisation's requests are forwarded", || upstream.open() >= taken + 20);
    assert_eq!(others.refused(), 0);
    drop(held);
    eventually("the places come back", || {
        fetch(gateway.address, &Call::get("/things").key(&first)).status == 200 && upstream.open() < 40
    });
}

#[test]
fn tunnels_of_one_client_count_too() {
    let upstream = Holding::start();
    let gateway = Limited::start(1024, &upstream);
    let [greedy, other] = [(); 2].map(|()| create_key(gateway.path()));
    let handshake = Call::websocket("/things/socket").key(&greedy);
    let mut asked: Vec<_> =
        (0..300).map(|_| Wire::from(TcpStream::connect(gateway.address).unwrap())).collect();
    asked.iter_mut().for_each(|wire| wire.send(&handshake.to_bytes()));
    let statuses: Vec<_> = asked.iter_mut().map(|wire| wire.head().unwrap().status).collect();
    let granted = statuses.iter().filter(|status| **status == 101).count();
    assert!((1..=gateway.upstreams / 2 + 2).contains(&granted), "{granted} of {}", gateway.upstreams);
    assert!(statuses.iter().all(|status| [101, 503].contains(status)), "{statuses:?}");
    gateway.assert_serves_others(&other);
}

/// Connections that send a request for `path` and take nothing of the answer, or send nothing at all.
fn idle_at(address: SocketAddr, number: usize) -> Vec<TcpStream> {
    (0..number)
        .map(|at| {
            let mut stream = TcpStream::connect(address).unwrap();
            if at % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
            }
            stream
        })
        .collect()
}

#[test]
fn connections_that_read_nothing_shut_nobody_out_of_probes() {
    let upstream = Holding::start();
    let gateway = Limited::start(1024, &upstream);
    let idle = idle_at(gateway.ops, 200);
    for _ in 0..5 {
        assert_eq!(fetch(gateway.ops, &Call::get("/readyz")).status, 200);
    }
    drop(idle);
}

#[test]
fn the_start_says_how_much_room_there_is() {
    let upstream = Holding::start();
    let gateway = Limited::start(1024, &upstream);
    // One worker: 1024 less 164 that are kept free.
    assert_eq!(gateway.upstreams, 430);
    assert_eq!(gateway.metric("keygate_upstream_connections_limit"), 430.0);
}
