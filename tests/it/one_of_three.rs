//! One of three servers has a fault, under steady load: what may be repeated does not fail, nothing is done twice, and
//! the server gets requests again when it is well. The servers are processes of gunicorn; in the long form of Node, and of nginx
//! with TLS, too, where they are installed.
//!
//! `KEYGATE_LONG=1 cargo test --test it one_of_three:: -- --nocapture --test-threads 1` keeps each fault for 12 s, and compares the
//! times of answers with those before it.

#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, sink};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::foreign_upstreams::python;
use crate::harness::http2::runtime;
use crate::harness::metrics::{scrape, value};
use crate::harness::names::Swallowing;
use crate::harness::{
    Authority, Call, Gateway, PATIENCE, Process, SetOnDrop, Transport, Tuned, Wire, eventually, is_long,
    own_address, unhurried,
};
use crate::other_routers::is_installed;

/// Clients that send one request after another.
const CLIENTS: usize = 8;
/// The pause between two looks at the gateway's metrics, which cost it more than requests do.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// Each of so many requests is a POST.
const POSTS: usize = 4;
/// Longer than a check needs to find out, and shorter than anybody wants to wait.
const ANSWER: Duration = Duration::from_secs(15);

/// Notes the mark of each request, and fails while there is a file `failing`. So do the next ones.
const APP: &str = r#"
import os

def app(environ, start_response):
    if os.path.exists("failing"):
        status = "503 Service Unavailable"
    else:
        status = "200 OK"
        with open("posts" if environ["REQUEST_METHOD"] == "POST" else "others", "a") as file:
            file.write(environ.get("HTTP_X_MARK", "") + "\n")
    start_response(status, [("content-length", "4")])
    return [b"fine"]
"#;
const SCRIPT: &str = r#"
const fs = require("fs");
require("http").createServer((request, response) => {
  request.resume();
  if (fs.existsSync("failing")) {
    response.statusCode = 503;
  } else {
    fs.appendFileSync(request.method === "POST" ? "posts" : "others", (request.headers["x-mark"] || "") + "\n");
  }
  response.setHeader("content-length", 4);
  response.end("fine");
}).listen(Number(process.argv[2]), process.argv[3]);
"#;
/// With TLS.
const NGINX: &str = r#"
daemon off;
pid nginx.pid;
error_log error.log;
worker_processes 2;
events {}
http {
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  log_format mark "$http_x_mark";
  map $request_method:$status $is_post { default 0; POST:200 1; }
  map $request_method:$status $is_other { default 0; GET:200 1; }
  access_log posts mark if=$is_post;
  access_log others mark if=$is_other;
  server {
    listen ADDRESS ssl;
    ssl_certificate server.pem;
    ssl_certificate_key server-key.pem;
    location / {
      if (-f FOLDER/failing) { return 503; }
      return 200 "fine";
    }
  }
}
"#;

/// Whose servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gunicorn,
    Node,
    Nginx,
}

impl Kind {
    /// The long form has those that this machine has.
    fn all() -> Vec<Self> {
        let of_long_form = [(Self::Node, "node"), (Self::Nginx, "nginx")];
        let (there, missing): (Vec<_>, Vec<_>) =
            of_long_form.into_iter().filter(|_| is_long()).partition(|(_, program)| is_installed(program));
        if !missing.is_empty() {
            println!("missing: {missing:?}");
        }
        [Self::Gunicorn].into_iter().chain(there.into_iter().map(|(kind, _)| kind)).collect()
    }
}

/// The pause of a client. In the suite, other tests need the processors too.
fn between_requests() -> Duration {
    Duration::from_millis(if is_long() { 25 } else { 150 })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Refuses,
    SwallowsConnections,
    HangsAfterAccepting,
    IsStopped,
    ResetsAfterTheHead,
    AnswersWith503,
    FlapsEveryTwoSeconds,
}

macro_rules! with_one_of_three_that {
    ($($name:ident: $fault:ident)*) => {
        $(#[test] fn $name() { Kind::all().into_iter().for_each(|kind| endured(kind, Fault::$fault)); })*
    };
}

with_one_of_three_that! {
    a_server_that_refuses_costs_nobody_an_answer: Refuses
    a_server_that_swallows_connections_costs_nobody_an_answer: SwallowsConnections
    a_server_that_hangs_after_accepting_costs_no_get_its_answer: HangsAfterAccepting
    a_server_that_is_stopped_costs_no_get_its_answer: IsStopped
    a_server_that_resets_after_the_head_is_passed_over: ResetsAfterTheHead
    a_server_that_answers_with_503_is_passed_over: AnswersWith503
    a_server_that_flaps_costs_nobody_an_answer: FlapsEveryTwoSeconds
}

// ---- Servers

struct Server {
    kind: Kind,
    folder: TempDir,
    address: SocketAddr,
    process: Option<Process>,
}

impl Server {
    fn new(kind: Kind, authority: &Authority) -> Self {
        let (folder, address) = (TempDir::new().unwrap(), own_address());
        authority.issue(&[&address.ip().to_string()]).write(folder.path(), "server");
        let nginx = NGINX.replace("ADDRESS", &address.to_string());
        let nginx = nginx.replace("FOLDER", folder.path().to_str().unwrap());
        for (name, content) in [("app.py", APP), ("app.js", SCRIPT), ("nginx.conf", &nginx)] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let mut server = Self { kind, folder, address, process: None };
        server.start();
        server
    }

    fn command(&self) -> Command {
        match self.kind {
            Kind::Gunicorn => {
                let mut command = python();
                command.args([
                    "-m",
                    "gunicorn",
                    "--threads",
                    "8",
                    "--keep-alive",
                    "5",
                    "--no-control-socket",
                ]);
                command.args(["--bind", &self.address.to_string(), "app:app"]);
                command
            }
            Kind::Node => {
                let mut command = Command::new("node");
                command.args(["app.js", &self.address.port().to_string(), &self.address.ip().to_string()]);
                command
            }
            Kind::Nginx => {
                let mut command = Command::new("nginx");
                command.arg("-p").arg(self.folder.path()).args(["-c", "nginx.conf"]);
                command
            }
        }
    }

    fn url(&self) -> String {
        let scheme = if self.kind == Kind::Nginx { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    fn start(&mut self) {
        let mut command = self.command();
        command.current_dir(self.folder.path());
        // It has children: a signal is for them all.
        command.process_group(0);
        self.process = Some(Process::start(command));
        unhurried("the server listens", || TcpStream::connect(self.address).is_ok());
    }

    fn signal(&self, signal: Signal) {
        let group = self.process.as_ref().map(|process| i32::try_from(process.id()).unwrap());
        if let Some(group) = group.and_then(Pid::from_raw) {
            let _ = kill_process_group(group, signal);
        }
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        drop(self.process.take());
        eventually("its port is free", || TcpListener::bind(self.address).is_ok());
    }

    fn has(&self, file: &str) -> bool {
        self.folder.path().join(file).exists()
    }

    fn fail(&self, fails: bool) {
        let file = self.folder.path().join("failing");
        if fails { fs::write(file, "").unwrap() } else { fs::remove_file(file).unwrap() }
    }

    /// The marks of POSTs.
    fn posts(&self) -> Vec<String> {
        let posts = fs::read_to_string(self.folder.path().join("posts")).unwrap_or_default();
        posts.lines().map(str::to_owned).collect()
    }

    /// Whether a request reaches it from now on.
    fn is_asked(&self) -> bool {
        let noted = || fs::metadata(self.folder.path().join("others")).map_or(0, |file| file.len());
        let before = noted();
        thread::sleep(between_requests());
        noted() > before
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        self.signal(Signal::KILL);
    }
}

/// Takes each connection, and hands it on; until it is dropped.
struct Taking(Arc<AtomicBool>, Option<thread::JoinHandle<()>>);

impl Taking {
    fn at(address: SocketAddr, each: fn(TcpStream)) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let taking = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(thread::spawn(move || each(stream))),
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Self(is_over, Some(taking))
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

fn hang(mut stream: TcpStream) {
    stream.set_nonblocking(false).unwrap();
    let _ = std::io::copy(&mut stream, &mut sink());
}

fn reset_after_the_head(mut stream: TcpStream) {
    stream.set_nonblocking(false).unwrap();
    let (mut head, mut part) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(n @ 1..) => head.extend_from_slice(&part[..n]),
            _ => return,
        }
    }
    stream.set_nonblocking(true).unwrap();
    runtime().block_on(async { tokio::net::TcpStream::from_std(stream).unwrap().set_zero_linger().unwrap() });
}

impl Fault {
    /// What it is that stays for as long as the fault does.
    fn begin(self, server: &mut Server) -> Box<dyn std::any::Any> {
        match self {
            Self::Refuses => server.kill(),
            Self::SwallowsConnections => {
                server.kill();
                return Box::new(Swallowing::at(server.address));
            }
            Self::HangsAfterAccepting => {
                server.kill();
                return Box::new(Taking::at(server.address, hang));
            }
            Self::ResetsAfterTheHead => {
                server.kill();
                return Box::new(Taking::at(server.address, reset_after_the_head));
            }
            Self::IsStopped | Self::FlapsEveryTwoSeconds => server.signal(Signal::STOP),
            Self::AnswersWith503 => server.fail(true),
        }
        Box::new(())
    }

    fn end(self, server: &mut Server, held: Box<dyn std::any::Any>) {
        drop(held);
        match self {
            Self::IsStopped | Self::FlapsEveryTwoSeconds => server.signal(Signal::CONT),
            Self::AnswersWith503 => server.fail(false),
            _ => server.start(),
        }
    }

    fn stays(self) -> Duration {
        match self {
            _ if is_long() => Duration::from_secs(12),
            // Found out twice: at first nobody listens.
            Self::HangsAfterAccepting => Duration::from_secs(8),
            _ => Duration::from_secs(2),
        }
    }

    /// The checks that find it.
    const fn checks(self) -> &'static str {
        match self {
            Self::AnswersWith503 => "[upstreams.api.check]\npath = \"/healthz\"\n",
            _ => "",
        }
    }

    /// How many GETs may fail because of it, until it is known.
    const fn failing_gets(self) -> usize {
        match self {
            // In flight when the process died, on a new connection: its server may have been brought down by the request.
            Self::Refuses | Self::SwallowsConnections | Self::HangsAfterAccepting => CLIENTS,
            // They wait, and go elsewhere when it is known.
            Self::IsStopped | Self::FlapsEveryTwoSeconds => 0,
            // Each is answered at once, so there is no other bound than the time until the checks have found out.
            Self::ResetsAfterTheHead | Self::AnswersWith503 => usize::MAX,
        }
    }
}

// ---- Load

#[derive(Clone, Debug)]
struct Outcome {
    /// From the beginning of the load.
    sent: Duration,
    took: Duration,
    /// 0 if the answer was cut.
    status: u16,
    /// The mark of a POST.
    post: Option<String>,
}

/// What all clients got, until it is over.
struct Load<'a> {
    gateway: SocketAddr,
    transport: Transport,
    key: &'a str,
    begun: Instant,
    is_over: &'a AtomicBool,
    outcomes: Mutex<Vec<Outcome>>,
    numbers: AtomicUsize,
}

impl Load<'_> {
    fn run(&self) {
        thread::scope(|scope| (0..CLIENTS).for_each(|_| drop(scope.spawn(|| self.client()))));
    }

    fn client(&self) {
        let mut wire = Wire::connect_over(self.gateway, self.transport);
        while !self.is_over.load(Ordering::Relaxed) {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let post = number.is_multiple_of(POSTS).then(|| format!("post {number}"));
            let call = match &post {
                Some(mark) => Call::post("/things", "a body").field("x-mark", mark),
                None => Call::get("/things"),
            };
            let sent = self.begun.elapsed();
            // A server that dies with the head of its answer sent leaves a cut one, and the connection ends.
            let answer = wire.call(&call.key(self.key)).filter(|answer| answer.complete);
            let (took, status) =
                (self.begun.elapsed() - sent, answer.as_ref().map_or(0, |answer| answer.status));
            self.outcomes.lock().unwrap().push(Outcome { sent, took, status, post });
            if answer.is_none_or(|answer| answer.field("connection") == Some("close")) {
                wire = Wire::connect_over(self.gateway, self.transport);
            }
            thread::sleep(between_requests());
        }
    }
}

// ---- The test

fn is_in_use(gateway: &Gateway, server: &Server) -> bool {
    let series = format!("keygate_upstream_healthy{{upstream=\"api\",endpoint=\"{}\"}}", server.address);
    value(&scrape(gateway.ops_address()), &series) == Some(1.0)
}

/// The same, for who asks again and again.
fn looks_in_use(gateway: &Gateway, server: &Server) -> bool {
    thread::sleep(BETWEEN_LOOKS);
    is_in_use(gateway, server)
}

/// When what happened.
struct Moments {
    faulty: Duration,
    /// The server was known to be faulty.
    known: Duration,
    /// Before the fault ended.
    well: Duration,
}

fn endured(kind: Kind, fault: Fault) {
    println!("{kind:?}:");
    let (authority, folder) = (Authority::new(), TempDir::new().unwrap());
    authority.write(folder.path(), "ca");
    let mut servers = [(); 3].map(|()| Server::new(kind, &authority));
    let tuned = servers.iter().fold(Tuned::default(), |tuned, server| tuned.live(server.url()));
    let tls = if kind == Kind::Nginx { "[upstreams.api.live_tls]\nca = \"ca.pem\"\n" } else { "" };
    let gateway = tuned
        .upstream(&format!("answer_timeout = \"{}s\"", ANSWER.as_secs()))
        .settings(&format!("[ops]\nlisten = \"127.0.0.1:0\"\n{tls}{}", fault.checks()))
        .builder()
        .start_in(folder);
    let key = gateway.live_key().secret;
    let (begun, is_over) = (Instant::now(), AtomicBool::new(false));
    let load = Load {
        gateway: gateway.address(),
        transport: gateway.transport(),
        key: &key,
        begun,
        is_over: &is_over,
        outcomes: Mutex::default(),
        numbers: AtomicUsize::new(0),
    };
    let moments = thread::scope(|scope| {
        let _over = SetOnDrop(&is_over);
        scope.spawn(|| load.run());
        come_and_go(fault, &gateway, &mut servers, begun)
    });
    judge(fault, &moments, &load.outcomes.into_inner().unwrap(), &servers);
}

/// The fault of one of them comes, and goes.
fn come_and_go(fault: Fault, gateway: &Gateway, servers: &mut [Server; 3], begun: Instant) -> Moments {
    unhurried("all of them are asked", || {
        servers.iter().all(|server| server.has("others") && server.has("posts"))
    });
    if is_long() {
        thread::sleep(fault.stays());
    }
    let faulty = begun.elapsed();
    let mut held = fault.begin(&mut servers[0]);
    if fault == Fault::FlapsEveryTwoSeconds {
        for _ in 0..3 {
            thread::sleep(Duration::from_secs(2));
            fault.end(&mut servers[0], held);
            thread::sleep(Duration::from_secs(2));
            held = fault.begin(&mut servers[0]);
        }
    } else {
        unhurried("it is passed over", || !looks_in_use(gateway, &servers[0]));
    }
    let first = begun.elapsed();
    let known = first.max(last_passed_over(gateway, &servers[0], begun, fault.stays()));
    let well = begun.elapsed();
    fault.end(&mut servers[0], held);
    unhurried("it is in use again", || looks_in_use(gateway, &servers[0]));
    println!(
        "{fault:?}: faulty at {faulty:.2?}, known at {known:.2?}, well at {well:.2?}, in use at {:.2?}",
        begun.elapsed()
    );
    unhurried("it is asked again", || servers[0].is_asked());
    Moments { faulty, known, well }
}

/// When it was passed over for the last time within so long. It is in the end.
fn last_passed_over(gateway: &Gateway, server: &Server, begun: Instant, stays: Duration) -> Duration {
    let (until, mut last, mut was_in_use) = (begun.elapsed() + stays, Duration::ZERO, false);
    while was_in_use || begun.elapsed() < until {
        assert!(begun.elapsed() < until + PATIENCE, "it is not passed over");
        let is_in_use = is_in_use(gateway, server);
        if was_in_use && !is_in_use {
            last = begun.elapsed();
        }
        was_in_use = is_in_use;
        thread::sleep(BETWEEN_LOOKS);
    }
    last
}

fn judge(fault: Fault, moments: &Moments, outcomes: &[Outcome], servers: &[Server; 3]) {
    let failed = |is_post: bool, from: Duration, to: Duration| -> BTreeMap<u16, usize> {
        let mut failed = BTreeMap::new();
        let those =
            outcomes.iter().filter(|outcome| outcome.post.is_some() == is_post && outcome.status != 200);
        for outcome in those.filter(|outcome| (from..to).contains(&outcome.sent)) {
            *failed.entry(outcome.status).or_default() += 1;
        }
        failed
    };
    let (never, end) = (BTreeMap::new(), Duration::MAX);
    let [gets, posts] = [false, true].map(|is_post| failed(is_post, moments.faulty, moments.known));
    println!(
        "{fault:?}: of {} requests, until it was known, failed GETs {gets:?}, POSTs {posts:?}",
        outcomes.len()
    );
    for is_post in [false, true] {
        // A request that is sent just before may meet the fault.
        assert_eq!(
            failed(is_post, Duration::ZERO, moments.faulty.saturating_sub(ANSWER / 2)),
            never,
            "before it"
        );
        // It comes and goes, and closes kept connections that were unused meanwhile: what is sent then may not be repeated if it is a POST.
        let may_fail = is_post && fault == Fault::FlapsEveryTwoSeconds;
        let since_known = failed(is_post, moments.known, end);
        assert!(may_fail || since_known == never, "after it was known; POST: {is_post}; {since_known:?}");
    }
    let failed_gets: usize = failed(false, Duration::ZERO, end).values().sum();
    assert!(failed_gets <= fault.failing_gets(), "{failed_gets} GETs failed");
    assert_nothing_was_done_twice(outcomes, servers);
    if is_long() && fault != Fault::FlapsEveryTwoSeconds {
        let before = percentile_99(outcomes, Duration::ZERO, moments.faulty);
        let after = percentile_99(outcomes, moments.faulty + Duration::from_secs(5), moments.well);
        println!(
            "{fault:?}: 99 % within {before:.2?} before it, within {after:.2?} five seconds after it began"
        );
        assert!(after < 2 * before, "{after:?}, and {before:?} before it");
    }
}

/// Each POST at one server at most, and each that was answered well at one.
fn assert_nothing_was_done_twice(outcomes: &[Outcome], servers: &[Server; 3]) {
    let mut done: BTreeMap<String, usize> = BTreeMap::new();
    servers.iter().flat_map(Server::posts).for_each(|post| *done.entry(post).or_default() += 1);
    let twice: Vec<_> = done.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    for outcome in outcomes.iter().filter(|outcome| outcome.status == 200) {
        assert!(outcome.post.iter().all(|post| done.contains_key(post)), "{outcome:?}");
    }
}

fn percentile_99(outcomes: &[Outcome], from: Duration, to: Duration) -> Duration {
    let those = outcomes.iter().filter(|outcome| (from..to).contains(&outcome.sent));
    let mut took: Vec<Duration> = those.map(|outcome| outcome.took).collect();
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}
