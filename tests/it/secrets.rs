//! Secrets in requests of every kind appear nowhere afterwards: not in the gateway's output, not in its metrics,
//! not in its store.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};
use memchr::memmem;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::metrics::scrape;
use crate::harness::{
    Call, Gateway, Process, RedisServer, Reply, Transport, Upstream, Wire, create_key, fetch, http2, refusing,
};

/// Any key may do anything, also open a WebSocket.
const POLICY: &str = r#"
scopes = ["all"]

[[route]]
id = "everything"
methods = ["GET", "POST"]
paths = ["/", "/{*path}"]
any_key = true
websocket = true
upstream = "api"

[[route]]
id = "public"
methods = ["GET"]
paths = ["/public"]
public = true
upstream = "api"
"#;

/// This number of consecutive characters of a secret cannot occur by chance.
const PART: usize = 8;

/// The secrets of a test, and every part of them.
struct Planted {
    secrets: Vec<String>,
    parts: HashSet<Vec<u8>>,
}

impl Planted {
    fn new(secrets: Vec<String>) -> Self {
        let random = secrets.iter().map(|secret| secret.rsplit('_').next().unwrap().as_bytes());
        let parts = random.flat_map(|random| random.windows(PART)).map(<[u8]>::to_vec).collect();
        Self { secrets, parts }
    }

    /// The position of a part of a secret.
    fn find_in(&self, bytes: &[u8]) -> Option<usize> {
        bytes.windows(PART).position(|part| self.parts.contains(part))
    }

    #[track_caller]
    fn assert_not_in(&self, place: &str, bytes: &[u8]) {
        if let Some(at) = self.find_in(bytes) {
            let around = &bytes[at.saturating_sub(60)..bytes.len().min(at + 60)];
            panic!("a secret is in {place}: {}", String::from_utf8_lossy(around));
        }
    }
}

/// Well-formed keys that do not exist, and one that `keygate keys create` has created.
fn secrets(made: &str) -> Vec<String> {
    let format = KeyFormat::new(&Prefix::default(), false);
    let unknown = Environment::ALL.map(|environment| format.mint(environment).unwrap().expose().to_owned());
    let mut malformed = unknown[0].clone();
    malformed.pop();
    [made.to_owned(), malformed].into_iter().chain(unknown).collect()
}

/// Sends each secret in every part of a request.
fn plant(address: SocketAddr, secret: &str) {
    let kinds = [
        Call::get("/a").key(secret),
        Call::post("/a", secret).key(secret),
        Call::get("/a").field("authorization", &format!("Basic {secret}")),
        Call::get("/a").field("authorization", secret),
        Call::get("/a").field("authorization", &format!("Bearer {secret} and more")),
        Call::get("/a").field("authorization", &format!("Bearer\t{secret}")),
        Call::get("/a").key(secret).key(secret),
        Call::get(&format!("/a?api_key={secret}")),
        Call::get(&format!("/a?api_key={secret}")).key(secret),
        Call::get(&format!("/{secret}")),
        Call::get(&format!("/{secret}/../x")).key(secret),
        Call::get(&format!("/{secret}%zz")).key(secret),
        Call::get(&format!("/public/{secret}")),
        Call::get(&format!("/public?key={secret}")).key(secret),
        Call::get("/a").field("cookie", &format!("key={secret}")),
        Call::get("/a").field("x-api-key", secret).key(secret),
        Call::get("/a").field(&format!("x-{}", secret.replace('_', "-")), "1").key(secret),
        Call::get("/a").field("x-forwarded-for", secret).field("x-request-id", secret).key(secret),
        Call::get("/a").field("host", secret).key(secret),
        Call::get(&format!("http://{secret}@h/a")).key(secret),
        Call::new(&secret.replace('_', "-"), "/a").key(secret),
        Call::post("/a", "x").field("content-length", secret).key(secret),
        Call::post("/a", "x").field("transfer-encoding", secret).key(secret),
        Call::get("/a").field("x-large", &secret.repeat(2000)).key(secret),
        Call::get(&format!("/{}", secret.repeat(500))).key(secret),
        Call::get("/broken").key(secret),
    ];
    for call in &kinds {
        // The answer does not matter.
        let _ = Wire::connect(address).call(call);
        if http2::request(Transport::Http2, call).is_some() {
            http2::fetch(address, Transport::Http2, call);
        }
    }
    let mut socket = Wire::connect(address);
    let handshake = Call::websocket("/socket").field("sec-websocket-protocol", secret);
    socket.send(&handshake.key(secret).to_bytes());
    let _ = socket.head();
    socket.send(secret.as_bytes());
    for bytes in [
        format!("{secret}\r\n\r\n"),
        format!("GET /a HTTP/1.1\r\nhost: h\r\nauthorization : Bearer {secret}\r\n\r\n"),
        format!(
            "POST /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\nauthorization: {secret}\r\n\r\n"
        ),
        format!(
            "POST /a HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {secret}\r\ntransfer-encoding: chunked\r\n\r\n{secret}\r\n"
        ),
    ] {
        let mut wire = TcpStream::connect(address).unwrap();
        wire.write_all(bytes.as_bytes()).unwrap();
        let _ = wire.shutdown(std::net::Shutdown::Write);
        let _ = Wire::from(wire).rest();
    }
}

fn upstream() -> Upstream {
    Upstream::with(|seen| match seen.request_line() {
        line if line.contains("/socket") => Reply::BytesThenClose(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_vec(),
        ),
        line if line.contains("/broken") => Reply::BytesThenClose(b"HTTP/1.1 2".to_vec()),
        _ => Reply::ok("fine"),
    })
}

/// Runs a gateway process, sends secrets, and searches its output and its answers. Returns the secrets for the search
/// in its store.
fn leak_nothing(folder: &Path, store: &str, log: &str) -> Planted {
    let live = upstream();
    fs::write(folder.join("pepper"), "not a real pepper, but long enough to be one").unwrap();
    fs::set_permissions(folder.join("pepper"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let settings = format!(
        "[keys]\npepper_file = \"pepper\"\n{store}\n[admin]\nsocket = \"admin.sock\"\n[log]\nrequests = \"{log}\"\n\
         [ops]\nlisten = \"127.0.0.1:0\""
    );
    Gateway::builder()
        .settings(&settings)
        .policy(POLICY)
        .upstream("api", &live.url(), &refusing())
        .write(folder);
    let mut gateway = Process::serve(folder);
    let (address, ops) = (gateway.address(), gateway.ops_address());
    let planted = Planted::new(secrets(&create_key(folder)));
    for secret in &planted.secrets {
        plant(address, secret);
    }
    let worked = fetch(address, &Call::get("/a").key(&planted.secrets[0]));
    assert_eq!((worked.status, worked.text()), (200, "fine".to_owned()), "the planted key is a real one");
    planted.assert_not_in("the metrics", scrape(ops).as_bytes());
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0));
    let told = gateway.told();
    planted.assert_not_in("the gateway's output", told.as_bytes());
    let records = told.lines().filter(|line| line.contains("everything")).count();
    assert!(records > 4 * planted.secrets.len(), "requests are recorded: {told}");
    assert!(told.contains("broke off") && told.contains("cannot be reached"), "failures are logged: {told}");
    planted
}

#[test]
fn a_planted_secret_is_found_nowhere_with_the_embedded_store_and_a_log_in_json() {
    let folder = TempDir::new().unwrap();
    let planted =
        leak_nothing(folder.path(), "[store]\nkind = \"embedded\"\npath = \"keygate.redb\"", "json");
    let file = fs::read(folder.path().join("keygate.redb")).unwrap();
    let name = name_of_the_key(folder.path());
    assert!(
        file.windows(name.len()).any(|part| part == name.as_bytes()),
        "the file can be searched for text"
    );
    planted.assert_not_in("the store's file", &file);
}

#[test]
fn a_planted_secret_is_found_nowhere_with_redis_and_a_log_in_text() {
    let (folder, redis) = (TempDir::new().unwrap(), RedisServer::start());
    let store = format!("[store]\nkind = \"redis\"\nurl = \"{}\"", redis.url());
    let planted = leak_nothing(folder.path(), &store, "text");
    let (dump, values) = (redis.dump(), redis.values());
    for (place, bytes) in [("a dump of Redis", dump.as_slice()), ("the values in Redis", values.as_bytes())] {
        let text = String::from_utf8_lossy(bytes);
        assert!(
            text.contains("{kg}:id:key_") && text.contains("\"a key\""),
            "{place} can be searched for text"
        );
        planted.assert_not_in(place, bytes);
    }
}

/// The name of a key in the store.
fn name_of_the_key(folder: &Path) -> String {
    let list = crate::harness::process::keygate(folder, &["keys", "list", "--json"]).output().unwrap();
    let line = String::from_utf8(list.stdout).unwrap();
    let key: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    key["name"].as_str().unwrap().to_owned()
}

#[test]
fn the_search_finds_a_part_of_a_secret() {
    let planted = Planted::new(secrets("fh_live_sk_0123456789abcdefghijABCDEFGHIJxyzxyz"));
    assert_eq!(planted.find_in(b"fh_live_sk_0123456 and others"), None);
    for leak in ["01234567", "dump\0ABCDEFGHI\0", "?key=fh_live_sk_0123456789abcdefghij"] {
        assert!(planted.find_in(leak.as_bytes()).is_some(), "{leak}");
    }
}

/// A gateway with one key, started by a shell that allows core files; and whether one was written when it was aborted.
fn is_dumped(options: &str) -> bool {
    let folder = TempDir::new().unwrap();
    Gateway::builder().upstream("api", &refusing(), &refusing()).write(folder.path());
    let mut command = Command::new("sh");
    let serve = format!("ulimit -c unlimited; exec {} serve {options}", env!("CARGO_BIN_EXE_keygate"));
    command.args(["-c", &serve]).current_dir(folder.path());
    let mut gateway = Process::start(command);
    gateway.address();
    gateway.signal(Signal::ABORT);
    gateway.wait().core_dumped()
}

#[test]
fn a_gateway_leaves_no_core_file_unless_it_is_asked_to() {
    let folder = TempDir::new().unwrap();
    let here =
        Command::new("sh").args(["-c", "ulimit -c unlimited; kill -ABRT $$"]).current_dir(&folder).status();
    assert!(!is_dumped(""));
    // Where the machine writes none at all, there is none for the gateway either.
    assert_eq!(is_dumped("--allow-core-dumps"), here.unwrap().core_dumped());
}

/// All memory of a process that can be read and written.
fn memory(process: u32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let file = File::open(format!("/proc/{process}/mem")).unwrap();
    let ranges = maps.lines().filter(|line| line.contains(" rw")).filter_map(|line| {
        let (begin, end) = line.split(' ').next()?.split_once('-')?;
        Some((u64::from_str_radix(begin, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    });
    let mut all = Vec::new();
    for (begin, end) in ranges {
        let mut part = vec![0; usize::try_from(end - begin).unwrap()];
        // Some ranges belong to the kernel.
        if file.read_exact_at(&mut part, begin).is_ok() {
            all.append(&mut part);
        }
    }
    all
}

#[test]
fn new_secrets_are_not_in_memory_once_they_are_handed_over() {
    let folder = TempDir::new().unwrap();
    Gateway::builder()
        .upstream("api", &refusing(), &refusing())
        .settings("[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n")
        .write(folder.path());
    let admin = create_key(folder.path());
    let gateway = Process::keygate(folder.path(), &["serve", "--allow-core-dumps"]);
    let address = gateway.address();
    let create = Call::post("/v1/api_keys", "{\"name\":\"made and forgotten\"}").key(&admin);
    // On one connection: where several are open at a time, each has buffers of its own.
    let mut client = Wire::connect(address);
    let secrets: Vec<String> = (0..20)
        .map(|_| {
            let answer = client.call(&create).unwrap();
            assert_eq!(answer.status, 200);
            answer.json()["secret"].as_str().unwrap().to_owned()
        })
        .collect();
    let all = memory(gateway.id());
    let copies = |part: &str| memmem::find_iter(&all, part).count();
    let left: Vec<usize> = secrets.iter().map(|secret| copies(secret)).collect();
    // Of the name, which is no secret, each request leaves copies, so the search finds what there is.
    let of_the_name = copies("made and forgotten");
    assert!(of_the_name >= left.len(), "{of_the_name} copies of the name");
    // The library's buffers keep what went through them last.
    assert!(left.iter().filter(|copies| **copies > 0).count() <= 3, "{left:?}");
}
