//! Behind a real HAProxy: departures of some clients cost the others nothing, and gateways are replaced one after the
//! other without a failed request.
//!
//! `KEYGATE_LONG=1 cargo test --test it haproxy:: -- --nocapture --test-threads 1` (needs `apt-get install haproxy redis-server`).
//! The short forms are at the wire: [`crate::over_http2abuse`] and [`crate::drain_delay`].

use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::haproxy::Haproxy;
use crate::harness::http2::{DATA, Frames, GOAWAY, HEADERS, RESET};
use crate::harness::metrics::{scrape, value};
use crate::harness::{
    Call, Process, RedisServer, SetOnDrop, Tuned, Upstream, Wire, create_key, eventually, fetch,
    free_address, is_long, unhurried,
};

/// Those that leave, and those that stay.
const LEAVE: u32 = 1000;
const STAY: u32 = 5;

#[test]
fn a_thousand_departures_over_one_haproxy_leave_the_others_alone() {
    if !is_long() {
        return;
    }
    let (say, words) = channel();
    let live = Upstream::of_events(words);
    let ops = "[ops]\nlisten = \"127.0.0.1:0\"";
    let (gateway, key) = Tuned::default().live(live.url()).settings(ops).start();
    let front = free_address();
    let configuration = format!(
        "frontend f\n bind {front} proto h2\n default_backend g\nbackend g\n server g {} proto h2\n",
        gateway.address()
    );
    let _haproxy = Haproxy::start(&configuration, &[front]);
    let open = |frames: &mut Frames, stream: u32, target: &str| {
        frames.get(stream, target, &key);
        while frames.until(DATA).expect("an event").stream != stream {}
    };
    let (mut staying, mut leaving) = (Frames::connect_to(front), Frames::connect_to(front));
    for n in 0..STAY {
        open(&mut staying, 2 * n + 1, "/things/stay");
    }
    let begun = Instant::now();
    let mut connections: f64 = 0.0;
    for n in 0..LEAVE {
        open(&mut leaving, 2 * n + 1, "/things/leave");
        leaving.send(RESET, 0, 2 * n + 1, &8_u32.to_be_bytes());
        if n % 100 == 0 {
            let series = "keygate_connections{listener=\"server\",protocol=\"http2\"}";
            connections = connections.max(value(&scrape(gateway.ops_address()), series).unwrap());
        }
    }
    eventually("keygate knows that they have left", || {
        value(&scrape(gateway.ops_address()), "keygate_requests_in_flight") == Some(f64::from(STAY))
    });
    for _ in 0..STAY {
        say.send(": still\n").unwrap();
    }
    for _ in 0..STAY {
        assert_eq!(staying.until(DATA).expect("they go on").payload, b": still\n");
    }
    let text = scrape(gateway.ops_address());
    for reason in ["cancelled_requests", "streams_reset", "flood"] {
        let series = format!("keygate_connections_cut_total{{reason=\"{reason}\"}}");
        assert_eq!(value(&text, &series), Some(0.0), "{series}");
    }
    println!(
        "{LEAVE} departures in {:?} over at most {connections} connections; {STAY} of {STAY} stayed",
        begun.elapsed()
    );
    assert!(connections < 5.0, "they share connections");
}

// ---- A rolling restart

const ROUNDS: usize = 10;
/// The pause of each client between two requests.
const PAUSE: Duration = Duration::from_millis(20);

/// One of two gateways on one Redis, at its own addresses.
struct Member {
    folder: TempDir,
    address: SocketAddr,
    ops: SocketAddr,
    key: String,
    process: Process,
}

impl Member {
    fn start(redis: &RedisServer, live: &Upstream) -> Self {
        let (folder, address, ops) = (TempDir::new().unwrap(), free_address(), free_address());
        let settings = format!(
            "[ops]\nlisten = \"{ops}\"\n[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n",
            redis.url()
        );
        let tuned = Tuned::default().live(live.url()).server("drain_delay = \"2s\"").settings(&settings);
        tuned.builder().write(folder.path());
        let file = folder.path().join("keygate.toml");
        let toml = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, toml.replacen("127.0.0.1:0", &address.to_string(), 1)).unwrap();
        // It also begins the store.
        let key = create_key(folder.path());
        let process = Process::serve(folder.path());
        Self { folder, address, ops, key, process }
    }

    fn is_ready(&self) -> bool {
        TcpStream::connect(self.ops).is_ok() && fetch(self.ops, &Call::get("/readyz")).status == 200
    }

    /// Stops it as an operator would, and starts it again. Returns when it gets traffic.
    fn restart(&mut self) -> Duration {
        let begun = Instant::now();
        self.process.terminate();
        assert_eq!(self.process.wait().code(), Some(0));
        let took = begun.elapsed();
        self.process = Process::serve(self.folder.path());
        unhurried("it is ready", || self.is_ready());
        let served = || {
            let text = scrape(self.ops);
            let of_things =
                text.lines().filter(|line| line.starts_with("keygate_requests_total{route=\"things\""));
            of_things.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
        };
        unhurried("HAProxy sends it requests", || served() > 20.0);
        took
    }
}

/// A client that sends one request after the other.
type Client = fn(SocketAddr, &Traffic<'_>);

struct Traffic<'t> {
    key: &'t str,
    stop: &'t AtomicBool,
    sent: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Traffic<'_> {
    fn goes_on(&self) -> bool {
        thread::sleep(PAUSE);
        !self.stop.load(Ordering::SeqCst)
    }

    fn call(&self) -> Call {
        Call::get("/things").key(self.key)
    }

    fn note(&self, outcome: Result<(), String>) {
        self.sent.fetch_add(1, Ordering::SeqCst);
        if let Err(failure) = outcome {
            self.failures.lock().unwrap().push(failure);
        }
    }
}

/// HTTP/1.1, a new connection for each request.
fn new_connections(to: SocketAddr, traffic: &Traffic<'_>) {
    while traffic.goes_on() {
        let answer = Wire::connect(to).call(&traffic.call().field("connection", "close"));
        traffic.note(judge(answer.map(|answer| answer.status)));
    }
}

/// HTTP/1.1, on a connection for as long as the other side lets it.
fn kept_connections(to: SocketAddr, traffic: &Traffic<'_>) {
    let mut wire = Wire::connect(to);
    while traffic.goes_on() {
        let answer = wire.call(&traffic.call());
        let ends = answer.as_ref().is_none_or(|answer| answer.field("connection") == Some("close"));
        traffic.note(judge(answer.map(|answer| answer.status)));
        if ends {
            wire = Wire::connect(to);
        }
    }
}

/// HTTP/2, on a connection until a GOAWAY comes.
fn http2(to: SocketAddr, traffic: &Traffic<'_>) {
    let (mut frames, mut stream) = (Frames::connect_to(to), 1);
    while traffic.goes_on() {
        let sent = frames.try_send(&crate::harness::http2::get(stream, "/things", traffic.key));
        let mut outcome = sent.map_err(|error| error.to_string());
        let (mut is_told, mut ends) = (false, outcome.is_err());
        while !ends {
            match frames.next() {
                Some(frame) if frame.kind == GOAWAY => is_told = true,
                Some(frame) if frame.stream == stream => {
                    if frame.kind == RESET {
                        outcome = Err(format!("reset with {:?}", frame.payload));
                    }
                    // ":status: 200" has an index of its own (RFC 7541, appendix A).
                    if frame.kind == HEADERS && !frame.payload.contains(&0x88) {
                        outcome = Err(format!("an answer of {:?}", frame.payload));
                    }
                    ends = frame.kind == RESET || frame.flags & 1 == 1;
                }
                Some(_) => {}
                None => {
                    outcome = Err("the connection ended".to_owned());
                    ends = true;
                }
            }
        }
        let failed = outcome.is_err();
        traffic.note(outcome);
        stream += 2;
        if is_told || failed {
            (frames, stream) = (Frames::connect_to(to), 1);
        }
    }
}

fn judge(status: Option<u16>) -> Result<(), String> {
    match status {
        Some(200) => Ok(()),
        Some(status) => Err(format!("status {status}")),
        None => Err("no answer".to_owned()),
    }
}

#[test]
fn a_rolling_restart_behind_haproxy_fails_no_request() {
    if !is_long() {
        return;
    }
    let (redis, live) = (RedisServer::start(), Upstream::start("live"));
    let mut gateways = [Member::start(&redis, &live), Member::start(&redis, &live)];
    unhurried("both are ready", || gateways.iter().all(Member::is_ready));
    let key = gateways[0].key.clone();

    let [http1, over_http2, tcp] = [(); 3].map(|()| free_address());
    let server = |n: usize, options: &str| {
        let Member { address, ops, .. } = &gateways[n];
        format!(
            " server g{n} {address} {options} check addr {} port {} inter 200ms fall 2 rise 1\n",
            ops.ip(),
            ops.port()
        )
    };
    let backend = |name: &str, options: &str| {
        let check = "option httpchk GET /readyz\n http-check expect status 200\n";
        format!("backend {name}\n {check}{}{}", server(0, options), server(1, options))
    };
    let configuration = format!(
        "frontend f1\n bind {http1}\n default_backend b1\n{}\
         frontend f2\n bind {over_http2} proto h2\n default_backend b2\n{}\
         frontend f3\n mode tcp\n bind {tcp}\n default_backend b3\n{} mode tcp\n",
        backend("b1", ""),
        backend("b2", "proto h2 check-proto h1"),
        backend("b3", ""),
    );
    let _haproxy = Haproxy::start(&configuration, &[http1, tcp]);
    eventually("HAProxy sees them", || {
        Wire::connect(http1).call(&Call::get("/things").key(&key)).is_some_and(|answer| answer.status == 200)
    });

    let stop = AtomicBool::new(false);
    let clients: [(&str, Client, SocketAddr); 6] = [
        ("HTTP/1.1 through HTTP/1.1, new connections", new_connections, http1),
        ("HTTP/1.1 through HTTP/1.1, kept", kept_connections, http1),
        ("HTTP/2 through HTTP/2, kept", http2, over_http2),
        ("HTTP/1.1 through TCP, new connections", new_connections, tcp),
        ("HTTP/1.1 through TCP, kept", kept_connections, tcp),
        ("HTTP/2 through TCP, kept", http2, tcp),
    ];
    let traffics = clients.each_ref().map(|_| Traffic {
        key: &key,
        stop: &stop,
        sent: AtomicUsize::new(0),
        failures: Mutex::default(),
    });
    let mut drains = Vec::new();
    thread::scope(|scope| {
        for ((_, client, to), traffic) in clients.iter().zip(&traffics) {
            for _ in 0..4 {
                scope.spawn(|| client(*to, traffic));
            }
        }
        let _over = SetOnDrop(&stop);
        for _ in 0..ROUNDS {
            drains.extend(gateways.iter_mut().map(Member::restart));
        }
    });
    for ((name, ..), traffic) in clients.iter().zip(&traffics) {
        let failures = traffic.failures.lock().unwrap();
        println!(
            "{name}: {} requests, {} failed {failures:?}",
            traffic.sent.load(Ordering::SeqCst),
            failures.len()
        );
    }
    println!("{ROUNDS} rounds; stopping took {:?} to {:?}", drains.iter().min(), drains.iter().max());
    assert!(traffics.iter().all(|traffic| traffic.failures.lock().unwrap().is_empty()));
    assert!(traffics.iter().all(|traffic| traffic.sent.load(Ordering::SeqCst) > 100 * ROUNDS));
}
