//! Upstreams from other projects: Python's file server, and httpbin behind gunicorn.
//!
//! `KEYGATE_LONG=1 cargo test --test it foreign_upstreams -- --nocapture` also stops one of three processes under load.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::metrics::{scrape, value};
use crate::harness::process::Process;
use crate::harness::traffic::{Outcome, at_rate};
use crate::harness::{Authority, Call, Gateway, Tuned, eventually, free_address, is_long, unhurried};

/// Any key may send any request.
const POLICY: &str = r#"
scopes = ["all"]

[[route]]
id = "everything"
methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
paths = ["/", "/{*path}"]
scopes = ["all"]
upstream = "api"
"#;

/// A Python with the packages that `tests/run` installs; plain `python3` has only the file server.
pub(crate) fn python() -> Command {
    Command::new(std::env::var_os("KEYGATE_TEST_PYTHON").unwrap_or_else(|| "python3".into()))
}

fn start(arguments: impl Fn(u16) -> Vec<String>, folder: &Path) -> (Process, SocketAddr) {
    let address = free_address();
    let mut command = python();
    command.args(arguments(address.port())).current_dir(folder);
    let process = Process::start(command);
    eventually("the server listens", || TcpStream::connect(address).is_ok());
    (process, address)
}

fn file_server(port: u16) -> Vec<String> {
    ["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()].map(str::to_owned).to_vec()
}

/// The same server, but it keeps connections, and the queue of those that it has not accepted is longer than five.
fn patient_file_server(port: u16) -> Vec<String> {
    let script = format!(
        "import http.server as h\nh.ThreadingHTTPServer.request_queue_size = 1000\n\
         h.SimpleHTTPRequestHandler.protocol_version = 'HTTP/1.1'\n\
         h.ThreadingHTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
    );
    vec!["-c".to_owned(), script]
}

fn in_front_of(live: SocketAddr, test: SocketAddr) -> Gateway {
    Gateway::builder()
        .policy(POLICY)
        .upstream("api", &format!("http://{live}"), &format!("http://{test}"))
        .start()
}

#[test]
fn files_of_pythons_server_are_forwarded_by_environment() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(folders[0].path().join("where.txt"), "live").unwrap();
    fs::write(folders[1].path().join("where.txt"), "test").unwrap();
    fs::write(folders[0].path().join("large.bin"), &large).unwrap();
    let (_live, live) = start(file_server, folders[0].path());
    let (_test, test) = start(file_server, folders[1].path());
    let gateway = in_front_of(live, test);
    let (live_key, test_key) = (gateway.live_key().secret, gateway.test_key().secret);
    assert_eq!(gateway.fetch(&Call::get("/where.txt").key(&live_key)).text(), "live");
    assert_eq!(gateway.fetch(&Call::get("/where.txt").key(&test_key)).text(), "test");
    assert_eq!(gateway.fetch(&Call::get("/large.bin").key(&live_key)).body, large);
    let head = gateway.fetch(&Call::new("HEAD", "/large.bin").key(&live_key));
    assert_eq!(head.field("content-length"), Some("12000000"));
    assert_eq!(gateway.fetch(&Call::get("/nothing").key(&live_key)).status, 404);
    assert_eq!(gateway.fetch(&Call::post("/where.txt", "x").key(&live_key)).status, 501);
    assert_eq!(gateway.fetch(&Call::get("/where.txt")).status, 401);
}

#[test]
fn httpbin_receives_the_request_and_the_client_receives_its_answer() {
    let Some(_) = std::env::var_os("KEYGATE_TEST_PYTHON") else {
        panic!("run this suite with `bash tests/run`, which installs httpbin");
    };
    let folder = TempDir::new().unwrap();
    let (_httpbin, address) = start(
        |port| {
            let bind = format!("127.0.0.1:{port}");
            ["-m", "gunicorn", "--bind", &bind, "--threads", "4", "--keep-alive", "5", "httpbin:app"]
                .map(str::to_owned)
                .to_vec()
        },
        folder.path(),
    );
    let gateway = in_front_of(address, free_address());
    let key = gateway.live_key();
    let fetch = |call: Call| gateway.fetch(&call.key(&key.secret));

    let anything = fetch(
        Call::post("/anything?a=1&a=2&b=%20", "hello").field("x-org-id", "forged").field("x-mine", "kept"),
    )
    .json();
    assert_eq!(anything["data"], "hello");
    assert_eq!(anything["args"], serde_json::json!({ "a": ["1", "2"], "b": " " }));
    assert_eq!(anything["headers"]["X-Org-Id"], gateway.org.to_string());
    assert_eq!(anything["headers"]["X-Mine"], "kept");
    assert!(anything["headers"].get("Authorization").is_none(), "{anything}");
    for status in [200, 201, 400, 404, 418, 500, 503] {
        assert_eq!(fetch(Call::get(&format!("/status/{status}"))).status, status);
    }
    assert_eq!(fetch(Call::get("/gzip")).field("content-encoding"), Some("gzip"));
    assert_eq!(fetch(Call::get("/redirect-to?url=%2Fget")).field("location"), Some("/get"));
    assert_eq!(fetch(Call::get("/bytes/100000")).body.len(), 100_000);
    assert_eq!(fetch(Call::get("/stream/20")).text().lines().count(), 20);
    assert_eq!(fetch(Call::get("/delay/1")).status, 200);
    assert_eq!(fetch(Call::new("DELETE", "/delete")).status, 200);
    let cookies = fetch(Call::get("/cookies/set?a=1&b=2"));
    assert_eq!(cookies.fields.iter().filter(|(name, _)| name == "set-cookie").count(), 2);
}

/// The statuses of uploads of 4 MiB to a server that answers before it has read them.
fn uploads(gateway: &Gateway, key: &str, target: &str, count: usize) -> Vec<u16> {
    let upload = |_| {
        let mut client = gateway.connect();
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n",
            4 << 20
        );
        client.send(head.as_bytes());
        for _ in 0..256 {
            if client.try_send(&[b'x'; 16 << 10]).is_err() {
                break;
            }
        }
        client.answer().map_or(0, |answer| answer.status)
    };
    (0..count).map(upload).collect()
}

#[test]
fn an_early_answer_of_pythons_server_reaches_a_client_that_is_still_sending() {
    let folder = TempDir::new().unwrap();
    let (_live, live) = start(file_server, folder.path());
    let gateway = in_front_of(live, free_address());
    let key = gateway.live_key().secret;
    assert_eq!(uploads(&gateway, &key, "/upload", 30), [501; 30]);
}

#[test]
fn an_early_answer_of_gunicorn_reaches_a_client_that_is_still_sending() {
    let Some(_) = std::env::var_os("KEYGATE_TEST_PYTHON") else {
        panic!("run this suite with `bash tests/run`, which installs gunicorn");
    };
    let folder = TempDir::new().unwrap();
    let app = "def app(environ, start_response):\n    \
               start_response('413 Content Too Large', [('Content-Length', '9')])\n    return [b'too large']\n";
    fs::write(folder.path().join("early.py"), app).unwrap();
    let server = |port: u16| {
        ["-m", "gunicorn", "--workers", "1", "--bind", &format!("127.0.0.1:{port}"), "early:app"]
            .map(str::to_owned)
            .to_vec()
    };
    let (_live, live) = start(server, folder.path());
    let gateway = in_front_of(live, free_address());
    let key = gateway.live_key().secret;
    assert_eq!(uploads(&gateway, &key, "/upload", 30), [413; 30]);
}

#[test]
fn a_process_that_is_stopped_is_passed_over_and_has_its_turn_again_when_it_goes_on() {
    const RATE: u32 = 100;
    const SPAN: Duration = Duration::from_secs(45);
    /// Tries of the stopped process: after one second, two, four, and so on.
    const TRIES: usize = 5;
    if !is_long() {
        return;
    }
    let servers: Vec<(Process, SocketAddr, TempDir)> = (0..3)
        .map(|number: usize| {
            let folder = TempDir::new().unwrap();
            fs::write(folder.path().join("things"), number.to_string()).unwrap();
            let (process, address) = start(patient_file_server, folder.path());
            (process, address, folder)
        })
        .collect();
    let tuned =
        Tuned::default().upstream("answer_timeout = \"2s\"").settings("[ops]\nlisten = \"127.0.0.1:0\"");
    let tuned = servers.iter().fold(tuned, |tuned, (_, address, _)| tuned.live(format!("http://{address}")));
    let (gateway, key) = tuned.start();
    let (hanging, endpoint, _) = &servers[1];
    let series = format!("keygate_upstream_healthy{{upstream=\"api\",endpoint=\"{endpoint}\"}}");
    let (front, ops) = (gateway.address(), gateway.ops_address());
    let is_in_use = || value(&scrape(ops), &series) == Some(1.0);
    let call = Call::get("/things").key(&key);
    // When the first request was due, by which the outcomes tell theirs.
    let begun = OnceLock::new();
    let (outcomes, [stopped, passed_over, goes_on, back]) = thread::scope(|scope| {
        let load = scope.spawn(|| {
            at_rate(front, RATE, SPAN, 128, |_| {
                begun.get_or_init(Instant::now);
                call.clone()
            })
        });
        let since = || begun.get().map_or(Duration::ZERO, Instant::elapsed);
        let after = |pause: u64, signal| {
            thread::sleep(Duration::from_secs(pause));
            hanging.signal(signal);
            since()
        };
        eventually("the load begins", || begun.get().is_some());
        let stopped = after(3, Signal::STOP);
        unhurried("it is passed over", || !is_in_use());
        let passed_over = since();
        let goes_on = after(10, Signal::CONT);
        unhurried("it is in use again", is_in_use);
        let moments = [stopped, passed_over, goes_on, since()];
        (load.join().unwrap(), moments)
    });
    // When those were due that failed, and their statuses.
    let failed = |from: Duration, to: Duration| -> Vec<(Duration, u16)> {
        let due = |outcome: &Outcome| Duration::from_secs_f64(outcome.number as f64 / f64::from(RATE));
        let all = outcomes.iter().map(|outcome| (due(outcome), outcome.status));
        all.filter(|(due, status)| (from..to).contains(due) && *status != 200).collect()
    };
    let (until_known, tries) = (failed(Duration::ZERO, passed_over), failed(passed_over, SPAN));
    println!(
        "stopped at {stopped:.2?}, passed over at {passed_over:.2?}: {} requests failed until then, {} after it, of {}; \
         goes on at {goes_on:.2?}, in use again at {back:.2?}",
        until_known.len(),
        tries.len(),
        outcomes.len()
    );
    // A request that is late may meet the stopped process although it was due before.
    assert_eq!(failed(Duration::ZERO, stopped - Duration::from_secs(1)), [], "before it stopped");
    assert!(tries.len() <= TRIES, "{tries:?}");
    assert_eq!(failed(back, SPAN), [], "after it went on");
    let mut answers = [0; 3];
    for _ in 0..30 {
        answers[gateway.fetch(&call).text().parse::<usize>().unwrap()] += 1;
    }
    assert_eq!(answers, [10; 3]);
}

/// The field of httpbin's answer to these calls, which is what it received.
#[track_caller]
fn assert_httpbin_answers(gateway: &Gateway) {
    let key = gateway.live_key().secret;
    for n in 0..5 {
        let body = format!("body {n}");
        let answer = gateway.fetch(&Call::post("/anything", body.clone()).key(&key)).json();
        assert_eq!(answer["data"], body);
        assert_eq!(answer["headers"]["X-Org-Id"], gateway.org.to_string());
    }
    let bytes = gateway.fetch(&Call::get("/stream-bytes/100000?chunk_size=1000").key(&key));
    assert_eq!((bytes.status, bytes.body.len(), bytes.complete), (200, 100_000, true));
}

/// httpbin behind gunicorn with these arguments, in this folder.
fn gunicorn(folder: &Path, arguments: &[&str]) -> Process {
    let mut command = python();
    command
        .args(["-m", "gunicorn", "--threads", "4", "--keep-alive", "5"])
        .args(arguments)
        .arg("httpbin:app");
    command.current_dir(folder);
    Process::start(command)
}

#[test]
fn httpbin_is_reached_over_pythons_tls() {
    let (folder, authority, address) = (TempDir::new().unwrap(), Authority::new(), free_address());
    authority.write(folder.path(), "ca");
    authority.issue(&["127.0.0.1"]).write(folder.path(), "server");
    let bind = ["--bind", &address.to_string(), "--certfile", "server.pem", "--keyfile", "server-key.pem"];
    let _httpbin = gunicorn(folder.path(), &bind);
    eventually("the server listens", || TcpStream::connect(address).is_ok());
    let toml = format!(
        "[upstreams.api]\nlive = [\"https://{address}\"]\nshared = true\n[upstreams.api.live_tls]\nca = \"ca.pem\"\n"
    );
    assert_httpbin_answers(&Gateway::builder().policy(POLICY).settings(&toml).start_in(folder));
}

#[test]
fn httpbin_is_reached_through_a_socket_of_gunicorn() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("api.sock");
    let _httpbin = gunicorn(folder.path(), &["--bind", "unix:api.sock"]);
    eventually("the server listens", || UnixStream::connect(&socket).is_ok());
    let toml = format!("[upstreams.api]\nlive = [\"unix:{}\"]\nshared = true\n", socket.display());
    assert_httpbin_answers(&Gateway::builder().policy(POLICY).settings(&toml).start_in(folder));
}

/// In the long form alone, since it needs nginx.
#[test]
fn nginx_with_tls_resumes_sessions_and_changes_its_certificate_under_load() {
    if !is_long() {
        return;
    }
    let (folder, authority, address) = (TempDir::new().unwrap(), Authority::new(), free_address());
    authority.write(folder.path(), "ca");
    authority.issue(&["gateway"]).write(folder.path(), "client");
    authority.issue(&["127.0.0.1"]).write(folder.path(), "server");
    let configuration = format!(
        "daemon off;\npid nginx.pid;\nerror_log error.log;\nworker_processes 2;\nevents {{}}\nhttp {{\naccess_log off;\n\
         client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\nuwsgi_temp_path uwsgi;\n\
         scgi_temp_path scgi;\nkeepalive_requests 10;\nserver {{\nlisten {address} ssl;\nssl_certificate server.pem;\n\
         ssl_certificate_key server-key.pem;\nssl_client_certificate ca.pem;\nssl_verify_client on;\n\
         location / {{ return 200 \"$ssl_session_reused $ssl_client_verify $ssl_client_s_dn\"; }}\n}}\n}}\n"
    );
    fs::write(folder.path().join("nginx.conf"), configuration).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder.path()).args(["-c", "nginx.conf"]);
    let nginx = Process::start(command);
    eventually("nginx listens", || TcpStream::connect(address).is_ok());
    let toml = format!(
        "[upstreams.api]\nlive = [\"https://{address}\"]\nshared = true\n[upstreams.api.live_tls]\nca = \"ca.pem\"\n\
         cert = \"client.pem\"\nkey = \"client-key.pem\"\n"
    );
    let gateway = Gateway::builder().policy(POLICY).settings(&toml).start_in(folder);
    let key = gateway.live_key().secret;
    let (until, changes) = (Instant::now() + Duration::from_secs(20), Duration::from_secs(4));
    let (mut next, mut count, mut resumed) = (Instant::now() + changes, 0, 0);
    while Instant::now() < until {
        let answer = gateway.fetch(&Call::get("/").key(&key));
        assert_eq!(answer.status, 200, "after {count}: {}", answer.text());
        assert!(answer.text().contains(" SUCCESS "), "{}", answer.text());
        resumed += usize::from(answer.text().starts_with("r "));
        count += 1;
        if Instant::now() >= next {
            authority.issue(&["127.0.0.1"]).write(gateway.folder(), "server");
            nginx.signal(Signal::HUP);
            next += changes;
        }
    }
    println!(
        "nginx: {count} requests over 5 certificates, {resumed} of them in resumed sessions, none failed"
    );
    assert!(resumed * 2 > count, "{resumed} of {count}");
}
