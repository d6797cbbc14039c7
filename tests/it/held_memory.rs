//! The memory of the process stays under a figure that it states, whatever clients make it hold; others are served meanwhile.
//!
//! `KEYGATE_LONG=1 cargo test --test it held_memory:: -- --nocapture` attacks with more connections, for longer, with 1,024, 4,000
//! and 20,000 descriptors, and over HTTP/1.1 and WebSockets too.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;

use crate::harness::client::fetch;
use crate::harness::http2::{
    self, CONTINUATION, DATA, HEADERS, RESET, SETTINGS, WINDOW_UPDATE, block, frame, get, read, request,
    runtime,
};
use crate::harness::metrics::{scrape, value};
use crate::harness::process::{Process, create_key, create_key_by, keygate};
use crate::harness::{Call, Transport, Tuned, eventually, is_long};

const POLICY: &str = r#"
scopes = ["a"]

[[route]]
id = "things"
methods = ["GET"]
paths = ["/things", "/things/{*rest}"]
any_key = true
upstream = "api"
websocket = true
"#;
/// What keygate is told to plan with, in MiB. It must stay under seven eighths of it.
const MEMORY: u64 = 256;
/// A memory that is soon used up.
const LITTLE: u64 = 192;
/// The size of an answer that no client reads: h2 takes all of it, so that the request has ended for keygate.
const ANSWER: usize = 60 << 10;
const STREAMS: u32 = 100;
/// A proxy whose word on the addresses of its clients counts.
const PROXY: &str = "127.0.90.1";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An upstream that answers requests for `/things` at once, those for `/things/large` with 60 KiB, those for `/things/endless`
/// and WebSockets with as much as is taken, reads all of those for `/things/sink`, and of others nothing beyond their first bytes.
fn start_upstream() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream));
            }
        });
    });
    address
}

async fn answer(mut stream: TcpStream) {
    let (mut came, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let Some(end) = came.windows(4).position(|window| window == b"\r\n\r\n") else {
            let Ok(length @ 1..) = stream.read(&mut part).await else { return };
            came.extend_from_slice(&part[..length]);
            continue;
        };
        let head: Vec<u8> = came.drain(..end + 4).collect();
        let is_for = |path: &str| head.starts_with(format!("GET {path} ").as_bytes());
        let endless = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n";
        for (path, head) in [("/things/endless", &endless[..]), ("/things/socket", SWITCH)] {
            if is_for(path) {
                return pour(stream, head).await;
            }
        }
        if is_for("/things/sink") {
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            return;
        }
        let size = match () {
            () if is_for("/things") => 4,
            () if is_for("/things/large") => ANSWER,
            () => return std::future::pending().await,
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
        if stream.write_all(&[head.as_bytes(), &vec![b'x'; size]].concat()).await.is_err() {
            return;
        }
    }
}

/// Sends without an end.
async fn pour(mut stream: TcpStream, head: &[u8]) {
    let mut sent = stream.write_all(head).await;
    while sent.is_ok() {
        sent = stream.write_all(&[0; 16 << 10]).await;
    }
}

/// What a client does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// Asks for answers, and reads none.
    Unread,
    /// Begins a header list of 1,900 fields, and does not end it.
    Lists,
    /// Sends bodies that the upstream does not read.
    Bodies,
    /// Over HTTP/1.1: sends a large head, and does not end it.
    Head,
    /// Over HTTP/1.1: reads nothing of an answer.
    Download,
    /// Reads nothing of a WebSocket.
    Socket,
}

/// Clients that attack from addresses of their own until this is dropped.
struct Attackers {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Attackers {
    /// The client of each key holds so many connections, and makes a new one for each that is cut.
    fn start(gateway: SocketAddr, keys: &[String], connections: usize, attack: Attack) -> Self {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, counted, keys) = (Arc::clone(&stop), Arc::clone(&made), keys.to_owned());
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let mut all = tokio::task::JoinSet::new();
                for (client, key) in (0..).zip(keys) {
                    for _ in 0..connections {
                        let (key, made) = (key.clone(), Arc::clone(&counted));
                        all.spawn(async move {
                            loop {
                                // What fails was cut.
                                let _ = hold(gateway, client, &key, attack, &made).await;
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                        });
                    }
                }
                while !stopped.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        Self { stop, made, thread: Some(thread) }
    }

    /// How many connections have sent all that they had to.
    fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// A connection from an address of this client.
async fn connected(gateway: SocketAddr, client: u8) -> std::io::Result<TcpStream> {
    connected_from([127, 0, 100 + client, 1].into(), gateway).await
}

async fn connected_from(address: IpAddr, gateway: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // Small, so that what is not read waits at keygate.
    socket.set_recv_buffer_size(4096)?;
    socket.bind(SocketAddr::new(address, 0))?;
    socket.connect(gateway).await
}

/// What the attack sends, if it is one over HTTP/1.1.
fn over_http1(attack: Attack, key: &str) -> Option<Vec<u8>> {
    let call = match attack {
        Attack::Unread | Attack::Lists | Attack::Bodies => return None,
        Attack::Head => {
            let fields = "x-large: ".to_owned() + &"x".repeat(30 << 10);
            return Some(format!("GET /things HTTP/1.1\r\nhost: a\r\n{fields}\r\n").into());
        }
        Attack::Download => Call::get("/things/endless"),
        Attack::Socket => Call::websocket("/things/socket"),
    };
    Some(call.key(key).to_bytes())
}

/// Holds one connection until it is cut.
async fn hold(
    gateway: SocketAddr,
    client: u8,
    key: &str,
    attack: Attack,
    made: &AtomicUsize,
) -> std::io::Result<()> {
    let mut stream = connected(gateway, client).await?;
    if let Some(sent) = over_http1(attack, key) {
        stream.write_all(&sent).await?;
        made.fetch_add(1, Ordering::SeqCst);
        return std::future::pending().await;
    }
    // Windows without an end.
    let window = (1_u32 << 30).to_be_bytes();
    let settings = [&[0, 4][..], &window].concat();
    let begin = [frame(SETTINGS, 0, 0, &settings), frame(WINDOW_UPDATE, 0, 0, &window)].concat();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    stream.write_all(&begin).await?;
    match attack {
        Attack::Unread => {
            let asked = (0..STREAMS).flat_map(|n| get(2 * n + 1, "/things/large", key));
            stream.write_all(&asked.collect::<Vec<_>>()).await?;
        }
        Attack::Lists => {
            let fields = (0..1900_u16).flat_map(|n| {
                // A literal name of three octets and an empty value (RFC 7541, section 6.2.2).
                let letter = |n: u16| b'a' + u8::try_from(n % 26).unwrap();
                [0, 3, letter(n), letter(n / 26), letter(n / 26 / 26), 0]
            });
            let list = [block("/things", &[]), fields.collect()].concat();
            stream.write_all(&frame(HEADERS, 1, 1, &list[..8000])).await?;
            stream.write_all(&frame(CONTINUATION, 0, 1, &list[8000..])).await?;
        }
        Attack::Bodies => send_bodies(&mut stream, key).await?,
        Attack::Head | Attack::Download | Attack::Socket => {}
    }
    made.fetch_add(1, Ordering::SeqCst);
    if attack == Attack::Unread {
        // Nothing is read, so only a write shows that it was cut.
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stream.write_all(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])).await?;
        }
    }
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

/// Fills the window of the connection, in streams whose own are as large as they are before settings are acknowledged.
async fn send_bodies(stream: &mut TcpStream, key: &str) -> std::io::Result<()> {
    let authorization = format!("Bearer {key}");
    let fields = [("authorization", &*authorization), ("content-length", "100000000")];
    for id in (0..20).map(|n| 2 * n + 1) {
        stream.write_all(&frame(HEADERS, 4, id, &block("/things/body", &fields))).await?;
        for _ in 0..3 {
            stream.write_all(&frame(DATA, 0, id, &[b'x'; 16 << 10])).await?;
        }
    }
    Ok(())
}

/// A `keygate serve` that is told how much memory to plan with.
struct Planned {
    folder: TempDir,
    process: Process,
    address: SocketAddr,
    ops: SocketAddr,
    /// In MiB.
    memory: u64,
}

impl Planned {
    fn start(files: usize, memory: u64) -> Self {
        let upstream = start_upstream();
        let folder = TempDir::new().unwrap();
        let settings = "[ops]\nlisten = \"127.0.0.1:0\"\n[admin]\nsocket = \"admin.sock\"\n[log]\nrequests = \"json\"\n[cache]\ncapacity = 10_000\n";
        let tuned = Tuned::default().live(format!("http://{upstream}")).settings(settings);
        let server = format!(
            "memory = \"{memory}MiB\"\nmax_connections_per_client = 2000\ntrusted_proxies = [\"{PROXY}\"]"
        );
        tuned.server(&server).builder().policy(POLICY).write(folder.path());
        let (process, room) = Process::serve_with_files(folder.path(), files);
        let said = format!(
            "requests over HTTP/2: {files} open files, {memory} MiB of memory, of it 19 MiB for keys"
        );
        assert!(room.contains(&said), "{room}");
        let (address, ops) = (process.address(), process.ops_address());
        Self { folder, process, address, ops, memory }
    }

    /// Keys of one organisation, for those who attack; and a key of another one.
    fn keys<const N: usize>(&self) -> ([String; N], String) {
        let greedy = [(); N].map(|()| create_key(self.folder.path()));
        let made = keygate(self.folder.path(), &["orgs", "create", "Other Ltd"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let words = ["keys", "create", "--all-scopes", "--name", "a key", "--org", "Other Ltd"];
        (greedy, create_key_by(keygate(self.folder.path(), &words)))
    }

    fn metric(&self, series: &str) -> usize {
        value(&scrape(self.ops), series).unwrap() as usize
    }

    fn cuts(&self) -> usize {
        self.metric("keygate_connections_cut_total{reason=\"memory\"}")
    }

    /// Asserts that a customer with `key`, probes and operators are served.
    #[track_caller]
    fn assert_serves_others(&self, key: &str) {
        let call = Call::get("/things").key(key);
        for _ in 0..10 {
            let answer = fetch(self.address, &call);
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!(http2::fetch(self.address, Transport::Http2, &call).status, 200);
        assert_eq!(fetch(self.ops, &Call::get("/readyz")).status, 200);
        let listed = keygate(self.folder.path(), &["keys", "list"]).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    }

    /// Asserts that the process stayed under the figure; returns the most that it had, in MiB.
    #[track_caller]
    fn assert_small(&self) -> u64 {
        let most = self.process.memory("VmHWM:") >> 20;
        assert!(most < self.memory / 8 * 7, "{most} MiB");
        most
    }
}

/// The client of each key attacks from a site of its own, with so many connections together. Returns the most memory that the
/// process had, in MiB, and how many connections were cut.
fn attacked<const CLIENTS: usize>(files: usize, connections: usize, attack: Attack) -> (u64, usize) {
    let gateway = Planned::start(files, MEMORY);
    let (greedy, other) = gateway.keys::<CLIENTS>();
    let attackers = Attackers::start(gateway.address, &greedy, connections / CLIENTS, attack);
    let begun = Instant::now();
    let is_done = || {
        if is_long() { begun.elapsed() > Duration::from_secs(5) } else { attackers.made() >= connections }
    };
    let rounds = if is_long() { 5 } else { 20 };
    // Without cuts, these rounds are enough to hold all that can be held.
    for round in 0.. {
        gateway.assert_serves_others(&other);
        if round >= rounds && is_done() || round > 200 && !is_long() {
            break;
        }
    }
    gateway.assert_serves_others(&other);
    let most = gateway.assert_small();
    drop(attackers);
    gateway.assert_serves_others(&other);
    (most, gateway.cuts())
}

#[test]
fn answers_that_one_client_does_not_read_stay_under_the_figure() {
    attacked::<1>(1024, 200, Attack::Unread);
}

#[test]
fn answers_that_twenty_clients_do_not_read_stay_under_the_figure() {
    attacked::<20>(1024, 200, Attack::Unread);
}

#[test]
fn header_lists_and_bodies_stay_under_it_too() {
    for (attack, connections) in [(Attack::Lists, 100), (Attack::Bodies, 20)] {
        attacked::<1>(1024, connections, attack);
    }
}

#[test]
fn more_connections_with_more_descriptors_stay_under_it_too() {
    const ALL: [Attack; 6] =
        [Attack::Unread, Attack::Lists, Attack::Bodies, Attack::Head, Attack::Download, Attack::Socket];
    if !is_long() {
        return;
    }
    for files in [20_000, 4000, 1024] {
        for attack in ALL {
            // More of the first two are an attack on the processor: 25,600 requests at once, and clients that come back at once.
            let at_most = if matches!(attack, Attack::Unread | Attack::Lists) { 256 } else { 800 };
            let connections = (files / 4).min(at_most);
            let one = attacked::<1>(files, connections, attack);
            let twenty = attacked::<20>(files, connections, attack);
            println!(
                "{files} descriptors, {connections} connections, {attack:?}: MiB and cuts {one:?}, of twenty clients {twenty:?}"
            );
        }
    }
}

/// A client that keeps one connection over HTTP/2.
struct Kept {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
}

impl Kept {
    fn connect(gateway: SocketAddr, from: &str) -> Self {
        let runtime = runtime();
        let sender = runtime.block_on(async {
            let stream = connected_from(from.parse().unwrap(), gateway).await.unwrap();
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender
        });
        Self { runtime, sender }
    }

    /// Asserts that all of these calls at once are served on its connection.
    fn assert_served(&self, calls: impl Iterator<Item = Call>) {
        let statuses = self.runtime.block_on(async {
            let mut all = tokio::task::JoinSet::new();
            for call in calls {
                let request = request(Transport::Http2, &call).unwrap();
                let mut sender = self.sender.clone();
                all.spawn(async move {
                    let answer = sender.send_request(request.map(Full::new)).await.unwrap();
                    read(answer).await.status
                });
            }
            all.join_all().await
        });
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }
}

#[test]
fn a_good_client_keeps_its_connection_beside_one_that_holds_the_most_and_is_cut() {
    let gateway = Planned::start(1024, LITTLE);
    let (greedy, other) = gateway.keys::<1>();
    let good = Kept::connect(gateway.address, "127.0.80.1");
    let attackers = Attackers::start(gateway.address, &greedy, 30, Attack::Lists);
    let call = Call::get("/things").key(&other).field("x-large", &"x".repeat(20 << 10));
    let ask = || good.assert_served(std::iter::repeat_n(call.clone(), 5));
    (0..10).for_each(|_| ask());
    eventually("a connection was cut", || {
        ask();
        gateway.cuts() >= 1
    });
    let told = gateway.process.err_line("cutting an HTTP/2 connection");
    assert!(told.contains("127.0.100.1, holds the most memory"), "{told}");
    gateway.assert_small();
    if is_long() {
        eventually("more were cut, and others made", || {
            ask();
            gateway.cuts() >= 10 && attackers.made() > 40
        });
    }
}

#[test]
fn a_trusted_proxy_is_not_cut_before_others_and_its_clients_are_who_it_says() {
    let gateway = Planned::start(1024, LITTLE);
    let (greedy, other) = gateway.keys::<1>();
    let proxy = Kept::connect(gateway.address, PROXY);
    let _attackers = Attackers::start(gateway.address, &greedy, 30, Attack::Lists);
    // Many clients at once: more than a client of its own may hold undisturbed.
    let of_clients = || {
        let call = Call::get("/things").key(&other).field("x-large", &"x".repeat(20 << 10));
        (1..=10).map(move |n| call.clone().field("x-forwarded-for", &format!("203.0.113.{n}")))
    };
    (0..10).for_each(|_| proxy.assert_served(of_clients()));
    eventually("a connection was cut", || {
        proxy.assert_served(of_clients());
        gateway.cuts() >= 1
    });
    let record = gateway.process.out_line("203.0.113.10");
    assert!(record.contains("\"http.response.status_code\":200"), "{record}");
    let told = gateway.process.err_line("cutting an HTTP/2 connection");
    assert!(told.contains("127.0.100.1, holds the most memory"), "{told}");
}

/// Sends pairs of frames: a long one to an upstream that reads it, and one of a single byte to an upstream that reads nothing.
/// Returns how many it could send before a stream was reset.
async fn send_far_apart(gateway: SocketAddr, client: u8, key: &str, pairs: usize) -> std::io::Result<usize> {
    let mut stream = connected(gateway, client).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let authorization = format!("Bearer {key}");
    let fields = [("authorization", &*authorization), ("content-length", "100000000")];
    stream.write_all(&frame(HEADERS, 4, 1, &block("/things/sink", &fields))).await?;
    stream.write_all(&frame(HEADERS, 4, 3, &block("/things/held", &fields))).await?;
    let (read, mut write) = stream.into_split();
    let windows = Windows::follow(read);
    let (long, short) = (frame(DATA, 0, 1, &[b'x'; 8000]), frame(DATA, 0, 3, b"x"));
    // The buffers of the sockets take some megabytes before anything waits at keygate.
    let filling = frame(DATA, 0, 3, &[b'x'; 8000]);
    while windows.wait(3, 16_000, Duration::from_secs(2)).await {
        write.write_all(&filling).await?;
        windows.spend(3, 8000);
    }
    for sent in 0..pairs {
        if !windows.wait(1, 8000, Duration::from_secs(20)).await {
            return Ok(sent);
        }
        write.write_all(&[&*long, &short].concat()).await?;
        windows.spend(1, 8000);
        windows.spend(3, 1);
    }
    Ok(pairs)
}

/// How many bytes a connection may send, and each of its streams 1 and 3.
struct Windows(Arc<[AtomicI64; 4]>, Arc<AtomicBool>);

impl Windows {
    /// Follows what the gateway sends, until it resets a stream or answers.
    fn follow(mut read: OwnedReadHalf) -> Self {
        let (windows, is_over) = (Arc::new([65_535; 4].map(AtomicI64::new)), Arc::<AtomicBool>::default());
        let followed = Self(Arc::clone(&windows), Arc::clone(&is_over));
        tokio::spawn(async move {
            let mut head = [0; 9];
            while read.read_exact(&mut head).await.is_ok() && ![RESET, HEADERS].contains(&head[3]) {
                let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
                let _ = read.read_exact(&mut payload).await;
                if head[3] == WINDOW_UPDATE {
                    let more = u32::from_be_bytes(payload[..4].try_into().unwrap());
                    windows[usize::from(head[8])].fetch_add(more.into(), Ordering::SeqCst);
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
        followed
    }

    /// Waits until a stream may send so many bytes; false if it may not in time, or no longer.
    async fn wait(&self, stream: usize, bytes: i64, patience: Duration) -> bool {
        let begun = Instant::now();
        let may = |n: usize| self.0[n].load(Ordering::SeqCst) >= bytes;
        let is_decided = || self.is_over() || may(0) && may(stream);
        while !is_decided() && begun.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        may(0) && may(stream) && !self.is_over()
    }

    fn spend(&self, stream: usize, bytes: i64) {
        [0, stream].into_iter().for_each(|n| {
            self.0[n].fetch_sub(bytes, Ordering::SeqCst);
        });
    }

    fn is_over(&self) -> bool {
        self.1.load(Ordering::SeqCst)
    }
}

#[test]
fn short_frames_that_nobody_reads_do_not_keep_what_lies_between_them() {
    const CONNECTIONS: u8 = 4;
    // 20 MiB on each connection, where memory is plenty.
    const PAIRS: usize = 2500;
    let gateway = Planned::start(1024, 1024);
    let ([key], other) = gateway.keys::<1>();
    gateway.assert_serves_others(&other);
    let before = gateway.process.memory("VmRSS:") >> 20;
    let sent = runtime().block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for client in 0..CONNECTIONS {
            let (address, key) = (gateway.address, key.clone());
            all.spawn(async move { send_far_apart(address, client, &key, PAIRS).await.unwrap() });
        }
        all.join_all().await
    });
    let most = gateway.process.memory("VmHWM:") >> 20;
    assert!(sent.iter().all(|sent| (100..PAIRS).contains(sent)), "{sent:?} pairs until the stream is reset");
    assert!(most < before + 40, "{before} MiB before, {most} MiB at most");
    eventually("each reset is counted", || {
        gateway.metric("keygate_streams_reset_total{code=\"memory\"}") == usize::from(CONNECTIONS)
    });
    gateway.assert_serves_others(&other);
}

#[test]
fn requests_without_a_place_are_refused_like_others_and_other_clients_are_served() {
    let gateway = Planned::start(1024, LITTLE);
    let (greedy, other) = gateway.keys::<8>();
    let refused = Arc::<AtomicUsize>::default();
    let asking = {
        let (address, refused) = (gateway.address, Arc::clone(&refused));
        thread::spawn(move || {
            runtime().block_on(async {
                let mut all = tokio::task::JoinSet::new();
                for key in greedy {
                    all.spawn(ask(address, key, Arc::clone(&refused)));
                }
                all.join_all().await;
            });
        })
    };
    let crowded = |reason| gateway.metric(&format!("keygate_requests_crowded_total{{reason=\"{reason}\"}}"));
    // 800 at once from one site, which can have three eighths of some 190 places.
    eventually("some get no place", || crowded("requests_exhausted") >= 100);
    gateway.assert_serves_others(&other);
    let record = gateway.process.out_line("requests_exhausted");
    assert!(record.contains("503"), "{record}");
    eventually("each of them was told to come back later", || {
        refused.load(Ordering::SeqCst) == crowded("requests_exhausted") + crowded("share_exhausted")
    });
    gateway.assert_serves_others(&other);
    drop(gateway);
    asking.join().unwrap();
}

/// Sends a hundred requests that the upstream does not answer on one connection, and counts the answers that say to come back
/// later.
async fn ask(gateway: SocketAddr, key: String, refused: Arc<AtomicUsize>) {
    let stream = connected(gateway, 0).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let call = Call::get("/things/held").key(&key);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let request = request(Transport::Http2, &call).unwrap().map(Full::new);
        let (mut sender, refused) = (sender.clone(), Arc::clone(&refused));
        asked.spawn(async move {
            let Ok(answer) = sender.send_request(request).await else { return };
            let answer = read(answer).await;
            let is_later = answer.status == 503 && answer.field("retry-after").is_some();
            assert!(is_later && answer.text().contains("service_unavailable"), "{}", answer.text());
            refused.fetch_add(1, Ordering::SeqCst);
        });
    }
    asked.join_all().await;
}
