//! Clients that take their time, as slowhttptest sends them: heads and bodies drop by drop, answers that are read drop by
//! drop, and connections that do nothing. They end with their time, and meanwhile others are served.
//!
//! `KEYGATE_LONG=1 cargo test --test it slow_clients:: -- --nocapture` has 10,000 idle connections, or as many as the limit
//! of open files leaves, and 1,000 slow ones.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot::{Sender, channel};
use tokio::time::sleep;

use crate::harness::http2::runtime;
use crate::harness::metrics::{scrape, value};
use crate::harness::traffic::{at_rate, percentile, with_status};
use crate::harness::{
    Call, Gateway, Manual, Process, Tuned, Wire, create_key, fetch, is_long, refusing, unhurried,
};

const POLICY: &str = r#"
scopes = ["a"]

[[route]]
id = "things"
methods = ["GET", "POST"]
paths = ["/things", "/things/{*rest}"]
any_key = true
upstream = "api"
"#;

/// Between two drops.
const DROP: Duration = Duration::from_millis(200);
/// More than the system's buffers take of an answer.
const MUCH: usize = 16 << 20;
/// Connections of one address; keygate's default allows 256.
const OF_ONE_ADDRESS: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Has an answer, and asks nothing more.
    Idle,
    /// Sends a head that does not end.
    Head,
    /// Sends a body that does not end.
    Body,
    /// Reads a long answer a few bytes at a time.
    Reading,
}

/// How many there are of each, and the settings that end them.
fn crowd() -> ([(Manner, usize); 4], &'static str) {
    if !is_long() {
        let few = [(Manner::Idle, 60), (Manner::Head, 20), (Manner::Body, 20), (Manner::Reading, 10)];
        return (few, "head_timeout = \"5s\"\nidle_timeout = \"3s\"\nwrite_timeout = \"1s\"");
    }
    // keygate gives clients half of its open files.
    let files =
        usize::try_from(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let idle = (files / 2).saturating_sub(1_300).min(10_000);
    let many = [(Manner::Idle, idle), (Manner::Head, 300), (Manner::Body, 400), (Manner::Reading, 300)];
    (many, "write_timeout = \"10s\"\nmax_connections = 12_000")
}

/// How many clients have begun, and how many of their bodies came to their end at the upstream.
#[derive(Debug, Default)]
struct Counts {
    begun: AtomicUsize,
    whole_bodies: AtomicUsize,
}

/// Answers at once, but for `/things/much`, which has a long answer. Reads bodies until they end.
fn upstream(counts: Arc<Counts>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&counts)));
            }
        });
    });
    address
}

async fn serve(mut stream: TcpStream, counts: Arc<Counts>) {
    let mut part = vec![0; 16 << 10];
    loop {
        let Ok(length @ 1..) = stream.read(&mut part).await else { return };
        let has = |word: &[u8]| part[..length].windows(word.len()).any(|window| window == word);
        if has(b"POST ") {
            // The client announces so many bytes.
            let mut left = MUCH;
            while let Ok(length @ 1..) = stream.read(&mut part).await {
                left = left.saturating_sub(length);
            }
            counts.whole_bodies.fetch_add(usize::from(left == 0), Ordering::SeqCst);
            return;
        }
        let length = if has(b"/much ") { MUCH } else { 4 };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let answer = [head.as_bytes(), b"fine", &vec![b'x'; length - 4]].concat();
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// A client of this manner until keygate closes its connection.
async fn be(manner: Manner, number: usize, to: SocketAddr, key: Arc<str>, counts: Arc<Counts>) {
    let socket = TcpSocket::new_v4().unwrap();
    if manner == Manner::Reading {
        socket.set_recv_buffer_size(4 << 10).unwrap();
    }
    let [high, low] = u16::try_from(number / OF_ONE_ADDRESS).unwrap().to_be_bytes();
    socket.bind((Ipv4Addr::new(127, 1 + high, low, 1), 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let authorization = format!("host: a\r\nauthorization: Bearer {key}\r\n");
    let begin = match manner {
        Manner::Idle => format!("GET /things HTTP/1.1\r\n{authorization}\r\n"),
        Manner::Head => format!("GET /things HTTP/1.1\r\n{authorization}x-drop: "),
        Manner::Body => format!("POST /things HTTP/1.1\r\n{authorization}content-length: {MUCH}\r\n\r\n"),
        Manner::Reading => format!("GET /things/much HTTP/1.1\r\n{authorization}\r\n"),
    };
    stream.write_all(begin.as_bytes()).await.unwrap();
    let (mut from, mut into) = stream.into_split();
    let mut few = [0; 16];
    if matches!(manner, Manner::Idle | Manner::Reading) {
        from.read_exact(&mut few).await.unwrap();
    }
    counts.begun.fetch_add(1, Ordering::SeqCst);
    match manner {
        Manner::Idle => while let Ok(1..) = from.read(&mut [0; 1 << 10]).await {},
        Manner::Reading => {
            while let Ok(1..) = from.read(&mut few).await {
                sleep(DROP).await;
            }
        }
        Manner::Head | Manner::Body => loop {
            tokio::select! {
                read = from.read(&mut few) => if !matches!(read, Ok(1..)) { return },
                () = sleep(DROP) => if into.write_all(b"x").await.is_err() { return },
            }
        },
    }
}

/// Begins so many clients of a manner, and waits until all have begun. They leave when the returned end is dropped.
fn begin(
    manner: Manner,
    numbers: Range<usize>,
    to: SocketAddr,
    key: &str,
    counts: &Arc<Counts>,
) -> Sender<()> {
    let (leave, left) = channel::<()>();
    let (key, all, own) = (Arc::<str>::from(key), Arc::clone(counts), Arc::clone(counts));
    let wanted = own.begun.load(Ordering::SeqCst) + numbers.len();
    thread::spawn(move || {
        runtime().block_on(async {
            for number in numbers {
                tokio::spawn(be(manner, number, to, Arc::clone(&key), Arc::clone(&all)));
                // So that what waits to be accepted finds its place.
                if number % 64 == 0 {
                    sleep(Duration::from_millis(20)).await;
                }
            }
            let _ = left.await;
        });
    });
    unhurried("all have begun", || own.begun.load(Ordering::SeqCst) == wanted);
    leave
}

#[test]
fn slow_and_idle_clients_end_with_their_time_and_others_are_served() {
    let (crowd, settings) = crowd();
    let counts = Arc::<Counts>::default();
    let folder = TempDir::new().unwrap();
    let settings = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\n{settings}\n[ops]\nlisten = \"127.0.0.1:0\"\n"
    );
    let live = format!("http://{}", upstream(Arc::clone(&counts)));
    Gateway::builder()
        .policy(POLICY)
        .settings(&settings)
        .upstream("api", &live, &refusing())
        .write(folder.path());
    let [key, other] = [(); 2].map(|()| create_key(folder.path()));
    let keygate = Process::serve(folder.path());
    let (address, ops) = (keygate.address(), keygate.ops_address());
    let open = || {
        let series = "keygate_connections{listener=\"server\",protocol=\"http1\"}";
        value(&scrape(ops), series).unwrap()
    };
    let (span, rate) = if is_long() { (Duration::from_secs(10), 200) } else { (Duration::from_secs(1), 50) };
    let others = || at_rate(address, rate, span, 2, |_| Call::get("/things").key(&other));
    let alone = others();
    let before = keygate.memory("VmRSS:");

    let mut number = 0;
    let held = crowd.map(|(manner, count)| {
        number += count;
        begin(manner, number - count..number, address, &key, &counts)
    });
    let most = open();
    let beside = others();
    assert_eq!(fetch(ops, &Call::get("/readyz")).status, 200);
    let grown = keygate.memory("VmRSS:").saturating_sub(before);
    println!(
        "{crowd:?}: {most} open at once, {} KiB of memory for each; p99 of {} requests of others {:.2?}, {:.2?} alone",
        (grown >> 10) / number as u64,
        beside.len(),
        percentile(&beside, 99.0),
        percentile(&alone, 99.0),
    );
    assert_eq!(with_status(&alone, 200), alone.len());
    assert_eq!(with_status(&beside, 200), beside.len());
    assert!(grown < number as u64 * (128 << 10) + (64 << 20), "{grown} bytes");

    // A body that comes drop by drop makes no pause: it lasts as long as its client.
    let bodies = crowd.iter().find(|(manner, _)| *manner == Manner::Body).unwrap().1;
    unhurried("all others are closed", || open() <= bodies as f64);
    assert_eq!(open(), bodies as f64);
    assert_eq!(with_status(&others(), 200), alone.len());
    drop(held);
    unhurried("their places come back", || open() == 0.0);
    assert_eq!(counts.whole_bodies.load(Ordering::SeqCst), 0, "no body was whole");
}

/// Time on processors so far, in hundredths of a second (proc(5), `utime` and `stime`).
fn busy(keygate: &Process) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", keygate.id())).unwrap();
    let behind_the_name = stat.rsplit(')').next().unwrap();
    behind_the_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn connections_that_one_side_has_half_closed_keep_no_processor_busy() {
    // No older keygate fails here: hyper 1.10.0 did (hyper#4085), and keygate began with a newer one.
    const WHILE: Duration = Duration::from_secs(2);
    let upstream = Manual::start();
    let folder = TempDir::new().unwrap();
    Tuned::default().live(upstream.url()).builder().write(folder.path());
    let key = create_key(folder.path());
    let keygate = Process::serve(folder.path());
    let address = keygate.address();
    let authorization = format!("host: a\r\nauthorization: Bearer {key}\r\n");
    let mut held = Vec::new();
    for begin in [
        String::new(),
        "GET /things HTTP/1.1\r\nhost".to_owned(),
        format!("GET /things HTTP/1.1\r\n{authorization}\r\n"),
        format!("POST /things HTTP/1.1\r\n{authorization}content-length: 9\r\n\r\nhalf"),
        format!("POST /things HTTP/1.1\r\n{authorization}transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    ] {
        let mut client = Wire::connect(address);
        client.send(begin.as_bytes());
        let served = begin.contains("Bearer").then(|| {
            let mut served = upstream.accept();
            served.request_head().unwrap();
            served
        });
        client.finish_sending();
        held.push((client, served));
    }
    // And from the other side: an answer that stops half way.
    let mut client = Wire::connect(address);
    client.send(format!("GET /things HTTP/1.1\r\n{authorization}\r\n").as_bytes());
    let mut served = upstream.accept();
    served.request_head().unwrap();
    served.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf");
    assert_eq!(client.head().unwrap().status, 200);
    served.finish_sending();
    held.push((client, Some(served)));

    let before = busy(&keygate);
    thread::sleep(WHILE);
    let used = busy(&keygate) - before;
    println!("{} half-closed connections: {used} hundredths of a second in {WHILE:?}", held.len());
    assert!(used < 40, "{used} hundredths of a second in {WHILE:?}");
    drop(held);
}
