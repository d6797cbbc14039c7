//! Lines of the log that strangers, one client or an outage could write by the thousand: the first are there at once, the
//! others are counted, and the log says how many there were.

#![expect(clippy::print_stdout, reason = "what was counted is told")]

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::harness::desk::write_secret;
use crate::harness::http2::{CONTINUATION, Frames, HEADERS, block, frame};
use crate::harness::metrics::{scrape, value};
use crate::harness::process::{create_key_by, keygate};
use crate::harness::traffic::{once_each, with_status};
use crate::harness::transport::CERTIFICATE;
use crate::harness::{
    Call, GatewayBuilder, Process, RedisServer, Reply, Tuned, Upstream, Wire, create_key, eventually, fetch,
    guess, refusing,
};

/// Lines of one event within ten seconds.
const AT_ONCE: usize = 5;
const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"\n";

/// A gateway, and what was logged of one event.
struct Flooded {
    process: Process,
    address: SocketAddr,
    ops: SocketAddr,
    _folder: TempDir,
}

impl Flooded {
    #[track_caller]
    fn start(builder: &GatewayBuilder, folder: TempDir) -> Self {
        builder.write(folder.path());
        let process = Process::serve(folder.path());
        let (address, ops) = (process.address(), process.ops_address());
        Self { process, address, ops, _folder: folder }
    }

    fn withheld(&self, event: &str) -> usize {
        let series = format!("keygate_log_lines_withheld_total{{event=\"{event}\"}}");
        value(&scrape(self.ops), &series).unwrap_or(0.0) as usize
    }

    /// Ends the gateway, and returns its log.
    fn log(self) -> Vec<String> {
        self.process.end().1.lines().map(str::to_owned).collect()
    }
}

/// How many lines of an event were written, in how many windows; and how many more were told of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    written: usize,
    windows: usize,
    told: usize,
}

/// `part` is in each line of the event, and in the lines about others.
fn tally(log: &[String], part: &str) -> Tally {
    let mut tally = Tally { windows: 1, ..Tally::default() };
    for line in log.iter().filter(|line| line.contains(part)) {
        let others =
            line.split_once(": and ").and_then(|(_, rest)| rest.split_once(" more like this in the last "));
        match others {
            Some((count, _)) => {
                tally.told += count.parse::<usize>().unwrap();
                tally.windows += 1;
            }
            None => tally.written += 1,
        }
    }
    tally
}

/// Of this number of events few have a line, and the others are counted in the log and in metrics.
#[track_caller]
fn assert_throttled(log: &[String], part: &str, events: usize, withheld: usize) {
    let Tally { written, windows, told } = tally(log, part);
    println!("{part}: {events} events, {written} lines in {windows} windows at most, {told} told of");
    assert!((1..=AT_ONCE * windows).contains(&written), "{part}: {written} lines\n{log:#?}");
    assert_eq!((written + told, told), (events, withheld), "{part}: {log:#?}");
}

#[test]
fn while_redis_is_down_strangers_and_clients_write_a_handful_of_lines() {
    let (live, test, mut redis) = (Upstream::start("live"), Upstream::start("test"), RedisServer::start());
    let store =
        format!("[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n", redis.url());
    let builder = GatewayBuilder::default()
        .settings(&format!(
            "{OPS}[signup]\nenabled = true\nper_network_and_hour = 100000\nper_day = 100000\n{store}"
        ))
        .api(&live, &test);
    let folder = TempDir::new().unwrap();
    builder.write(folder.path());
    let key = create_key(folder.path());
    let flooded = Flooded::start(&builder, folder);
    eventually("the key is known", || fetch(flooded.address, &Call::get("/v1/jobs").key(&key)).status == 200);
    redis.kill();

    let stranger = |_| Call::get("/v1/jobs").key(&guess());
    let (answers, took) = once_each(flooded.address, 2000, 8, stranger);
    assert_eq!(with_status(&answers, 503), 2000);
    let signup =
        |n| Call::post("/v1/auth/signup", format!("{{\"name\":\"x\",\"email\":\"a{n}@example.com\"}}"));
    let (signups, _) = once_each(flooded.address, 500, 8, signup);
    let create = |n| Call::post("/v1/api_keys", format!("{{\"name\":\"key {n}\"}}")).key(&key);
    let (creations, _) = once_each(flooded.address, 200, 4, create);
    let failed = with_status(&signups, 503) + with_status(&creations, 503);
    println!("2,000 unknown keys in {took:?}; {failed} operations failed for the store");
    assert!(failed > 100, "{failed}");

    let withheld = flooded.withheld("operation_unavailable");
    let log = flooded.log();
    assert_throttled(&log, "an operation could not be carried out", failed, withheld);
    let lookups = tally(&log, "keys cannot be looked up");
    assert!((1..=AT_ONCE * lookups.windows).contains(&lookups.written), "{lookups:?}");
    assert!(log.len() < 60, "{} lines:\n{log:#?}", log.len());
}

#[test]
fn clients_beyond_a_limit_of_connections_write_a_handful_of_lines() {
    const REFUSED: usize = 200;
    for (limit, part, event) in [
        (
            "max_connections = 100\nmax_connections_per_client = 4",
            "server.max_connections_per_client",
            "client_full",
        ),
        (
            "max_connections = 4\nmax_connections_per_client = 4",
            "server.max_connections is",
            "connections_full",
        ),
    ] {
        let settings = format!("[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n{limit}\n{OPS}");
        let builder = GatewayBuilder::default().settings(&settings).upstream("api", &refusing(), &refusing());
        let flooded = Flooded::start(&builder, TempDir::new().unwrap());
        let mut held: Vec<Wire> = (0..4).map(|_| Wire::connect(flooded.address)).collect();
        for wire in &mut held {
            assert_eq!(wire.call(&Call::get("/v1/jobs")).unwrap().status, 401);
        }
        for _ in 0..REFUSED {
            assert!(Wire::connect(flooded.address).is_closed());
        }
        let withheld = flooded.withheld(event);
        assert_throttled(&flooded.log(), part, REFUSED, withheld);
    }
}

#[test]
fn abused_http_2_connections_write_a_handful_of_lines() {
    const ABUSED: usize = 12;
    let live = Upstream::start("live");
    let builder = Tuned::default().live(live.url()).settings(OPS).builder();
    let flooded = Flooded::start(&builder, TempDir::new().unwrap());
    for _ in 0..ABUSED {
        // A head that never ends.
        let mut frames = Frames::connect_to(flooded.address);
        frames.send(HEADERS, 1, 1, &block("/things", &[]));
        let field = [&[0, 1, b'x', 100][..], &[b'v'; 100]].concat();
        let part = frame(CONTINUATION, 0, 1, &field.repeat(100));
        while frames.try_send(&part).is_ok() {}
    }
    let cuts = || value(&scrape(flooded.ops), "keygate_connections_cut_total{reason=\"flood\"}").unwrap();
    eventually("all are cut", || cuts() == ABUSED as f64);
    let withheld = flooded.withheld("connection_cut");
    assert_throttled(&flooded.log(), "cutting an HTTP/2 connection", ABUSED, withheld);
}

const TWO_UPSTREAMS: &str = r#"
scopes = ["all"]
[[route]]
id = "hostile"
methods = ["GET", "POST"]
paths = ["/hostile/{*rest}"]
any_key = true
upstream = "hostile"
[[route]]
id = "other"
methods = ["GET", "POST"]
paths = ["/other/{*rest}"]
any_key = true
upstream = "other"
"#;

/// Answers in the way that the target names.
fn misbehaving() -> Upstream {
    Upstream::with(|seen| match seen.request_line() {
        line if line.contains("/invalid") => Reply::raw("HTTP/1.1 2x0 OK\r\n\r\n"),
        line if line.contains("/broken") => {
            Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec())
        }
        _ => Reply::BytesThenClose(Vec::new()),
    })
}

#[test]
fn a_hostile_upstream_writes_a_handful_of_lines_and_hides_none_of_another() {
    const REQUESTS: usize = 60;
    let (hostile, other) = (misbehaving(), misbehaving());
    let builder = GatewayBuilder::default()
        .policy(TWO_UPSTREAMS)
        .settings(OPS)
        .upstream("hostile", &hostile.url(), &refusing())
        .upstream("other", &other.url(), &refusing());
    let folder = TempDir::new().unwrap();
    builder.write(folder.path());
    let key = create_key(folder.path());
    let flooded = Flooded::start(&builder, folder);
    let post = |target: &str| fetch(flooded.address, &Call::post(target, "{}").key(&key));
    for _ in 0..REQUESTS {
        assert_eq!(post("/hostile/invalid").status, 502);
        assert_eq!(post("/hostile/silent").status, 502);
        assert!(!post("/hostile/broken").complete);
    }
    assert_eq!(post("/other/invalid").status, 502);
    assert_eq!(post("/other/silent").status, 502);
    assert!(!post("/other/broken").complete);
    let events = ["upstream_invalid_answer", "upstream_broke_off", "upstream_broken_body"];
    let withheld = events.map(|event| flooded.withheld(event));
    let log = flooded.log();
    let parts = [
        "an answer that cannot be passed on",
        "broke off before it answered",
        "broke off in the middle of an answer",
    ];
    for (part, withheld) in parts.into_iter().zip(withheld) {
        let (of_other, of_hostile): (Vec<_>, Vec<_>) = log.iter().cloned().partition(|line| {
            line.contains("upstream other ") || line.contains(&format!("upstream {} ", other.url()))
        });
        assert_throttled(&of_hostile, part, REQUESTS, withheld);
        assert_eq!(tally(&of_other, part), Tally { written: 1, windows: 1, told: 0 }, "{part}");
    }
}

#[test]
fn strangers_and_operators_without_rights_write_a_handful_of_lines_each() {
    const COMMANDS: usize = 50;
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"\ntokens_file = \"admin-tokens\"\nallowed_hosts = [\"api.example.com\"]\n";
    let builder = GatewayBuilder::default().settings(&format!("{OPS}{admin}")).upstream(
        "api",
        &refusing(),
        &refusing(),
    );
    let folder = TempDir::new().unwrap();
    let made =
        keygate(folder.path(), &["admin", "token", "reader", "--role", "read", "--json"]).output().unwrap();
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    write_secret(&folder.path().join("admin-tokens"), made["line"].as_str().unwrap());
    builder.write(folder.path());
    let process = Process::serve(folder.path());
    let address = process.address();
    let ops = process.ops_address();
    let line = process.err_line("admin API on http://");
    let admin: SocketAddr = line.rsplit("http://").next().unwrap().parse().unwrap();
    let flooded = Flooded { process, address, ops, _folder: folder };
    let body = r#"{"operator":"ada","command":{"orgs":{"create":{"name":"x"}}}}"#;
    for _ in 0..COMMANDS {
        assert_eq!(fetch(admin, &Call::post("/v1/command", body).key("kgadmin_wrong")).status, 401);
        let lacking = Call::post("/v1/command", body).key(made["token"].as_str().unwrap());
        assert_eq!(fetch(admin, &lacking).status, 403);
    }
    let withheld = ["admin_stranger", "admin_lacking"].map(|event| flooded.withheld(event));
    let log = flooded.log();
    let (strangers, lacking): (Vec<_>, Vec<_>) =
        log.into_iter().partition(|line| line.contains("no valid token"));
    assert_throttled(&strangers, "the admin API refused a command", COMMANDS, withheld[0]);
    assert_throttled(&lacking, "the admin API refused a command", COMMANDS, withheld[1]);
}

#[test]
fn a_receiver_of_news_that_refuses_every_other_one_writes_a_handful_of_lines() {
    const NEWS: usize = 40;
    let number = AtomicUsize::new(0);
    let receiver = Upstream::with(move |_| match number.fetch_add(1, Ordering::SeqCst) % 2 {
        0 => Reply::raw("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"),
        _ => Reply::ok(""),
    });
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let outbox = format!("[outbox]\nurl = \"{}/news\"\nkey_file = \"outbox-key\"\n", receiver.url());
    let signup = "[signup]\nenabled = true\nper_network_and_hour = 100000\nper_day = 100000\n";
    let builder = GatewayBuilder::default().settings(&format!("{OPS}{signup}{outbox}")).api(&live, &test);
    let folder = TempDir::new().unwrap();
    write_secret(&folder.path().join("outbox-key"), "a key of thirty-two bytes or more");
    builder.write(folder.path());
    create_key_by(keygate(
        folder.path(),
        &["keys", "create", "--all-scopes", "--name", "x", "--org", "Example Ltd"],
    ));
    let flooded = Flooded::start(&builder, folder);
    for n in 0..NEWS {
        let body = format!("{{\"name\":\"x\",\"email\":\"a{n}@example.com\"}}");
        assert_eq!(fetch(flooded.address, &Call::post("/v1/auth/signup", body)).status, 200);
    }
    eventually("all were sent", || receiver.seen().len() >= NEWS);
    let withheld = flooded.withheld("news_not_delivered");
    let Tally { written, windows, told } = tally(&flooded.log(), "could not be delivered");
    assert!((1..=AT_ONCE * windows).contains(&written), "{written} lines");
    assert!(
        told >= withheld && withheld >= NEWS / 2 - AT_ONCE * windows,
        "{told} told of, {withheld} counted"
    );
}

#[test]
fn refused_handshakes_and_messages_and_scrapes_of_nothing_write_no_line() {
    const EACH: usize = 100;
    let tls = "tls = [{ cert = \"server.pem\", key = \"server-key.pem\" }]";
    for tls in [tls, ""] {
        let folder = TempDir::new().unwrap();
        CERTIFICATE.write(folder.path(), "server");
        let settings = format!("[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n{tls}\n{OPS}");
        let builder = GatewayBuilder::default().settings(&settings).upstream("api", &refusing(), &refusing());
        builder.write(folder.path());
        let process = Process::serve(folder.path());
        let line = process.err_line("listening on http");
        let address = line.split("://").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let flooded = Flooded { ops: process.ops_address(), address, process, _folder: folder };
        for bytes in
            ["\u{16}\u{3}\u{1}\0\u{5}xxxxx", "no HTTP\r\n\r\n", "GET / HTTP/1.1\r\nbad field\r\n\r\n"]
        {
            for _ in 0..EACH {
                let mut stream = TcpStream::connect(flooded.address).unwrap();
                stream.write_all(bytes.as_bytes()).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let _ = Wire::from(stream).rest();
            }
        }
        for _ in 0..EACH {
            assert_eq!(fetch(flooded.ops, &Call::get("/nothing")).status, 404);
        }
        let log = flooded.log();
        assert!(log.len() < 10, "{log:#?}");
    }
}
