//! A new process takes over from a running gateway, `keygate serve --take-over`: no request fails, and whoever dies on the way,
//! one of the two serves.
//!
//! `KEYGATE_LONG=1 cargo test --release --test it take_over:: -- --nocapture` takes over 20 times with 500 streams open, and prints
//! what the clients saw and when each step was. Its times are for a machine that does nothing else: on a busy one the clients,
//! the upstream and both processes wait for a processor.

#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::process::keygate;
use crate::harness::restless::{Kinds, Load, PROMISED, store_in};
use crate::harness::{
    Call, PATIENCE, Process, RedisServer, Reply, Seen, Tuned, Upstream, Wire, create_key, eventually, fetch,
    is_long, lenient,
};

fn answer(seen: &Seen) -> Reply {
    if seen.request_line().contains("events") { Reply::events() } else { Reply::ok("live") }
}

struct Place {
    folder: TempDir,
    key: String,
    _live: Upstream,
}

/// A request that the upstream holds: it has begun, and may go.
struct Held {
    begun: Receiver<()>,
    go: Sender<()>,
}

impl Place {
    fn new(store: &str) -> Self {
        Self::before(Upstream::with(answer), store)
    }

    /// With the embedded store, before an upstream that holds what is slow.
    fn held() -> (Self, Held) {
        let ((tell_begun, begun), (go, may_go)) = (channel(), channel::<()>());
        let (tell_begun, may_go) = (Mutex::new(tell_begun), Mutex::new(may_go));
        let live = Upstream::with(move |seen| {
            if seen.request_line().contains("slow") {
                let _ = tell_begun.lock().unwrap().send(());
                let _ = may_go.lock().unwrap().recv();
            }
            answer(seen)
        });
        (Self::before(live, ""), Held { begun, go })
    }

    fn before(live: Upstream, store: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let server = "max_connections_per_client = 2000\ndrain_delay = \"1s\"";
        let settings = format!("[ops]\nlisten = \"127.0.0.1:0\"\n[admin]\nsocket = \"admin.sock\"\n{store}");
        Tuned::default().live(live.url()).server(server).settings(&settings).builder().write(folder.path());
        let key = create_key(folder.path());
        Self { folder, key, _live: live }
    }

    fn on(redis: &RedisServer) -> Self {
        Self::new(&store_in(redis))
    }

    fn serve(&self) -> Process {
        Process::serve(self.folder.path())
    }

    fn take_over(&self) -> Process {
        Process::keygate(self.folder.path(), &["serve", "--take-over"])
    }

    fn hatch(&self) -> PathBuf {
        self.folder.path().join("admin.sock.handover")
    }

    #[track_caller]
    fn is_served(&self, address: SocketAddr) {
        let answer = Wire::connect(address).call(&Call::get("/things").key(&self.key)).unwrap();
        assert_eq!(answer.text(), "live");
    }

    #[track_caller]
    fn takes_changes(&self) {
        let made =
            keygate(self.folder.path(), &["keys", "create", "--all-scopes", "--name", "another"]).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

fn taken_over(place: &Place) {
    let mut old = place.serve();
    let (address, ops) = (old.address(), old.ops_address());
    assert_eq!(std::fs::metadata(place.hatch()).unwrap().permissions().mode() & 0o777, 0o600);
    for _ in 0..2 {
        let mut kept = Wire::connect(address);
        assert_eq!(kept.call(&Call::get("/things").key(&place.key)).unwrap().text(), "live");
        let new = place.take_over();
        old.err_line("takes over");
        assert_eq!(kept.call(&Call::get("/things").key(&place.key)).unwrap().text(), "live");
        assert_eq!((new.address(), new.ops_address()), (address, ops), "the port is the same");
        place.is_served(address);
        assert_eq!(old.wait().code(), Some(0));
        assert_eq!(fetch(ops, &Call::get("/readyz")).status, 200);
        place.is_served(address);
        place.takes_changes();
        old = new;
    }
    old.terminate();
    assert_eq!(old.wait().code(), Some(0));
    assert!(!place.hatch().exists() && !place.folder.path().join("admin.sock").exists());
}

#[test]
fn an_embedded_gateway_is_taken_over_with_its_ports_its_store_and_its_admin_socket() {
    taken_over(&Place::new(""));
}

#[test]
fn a_gateway_whose_store_was_compacted_is_taken_over_with_the_new_file() {
    let place = Place::new("");
    let mut old = place.serve();
    place.is_served(old.address());
    for _ in 0..2 {
        let compacted = keygate(place.folder.path(), &["store", "compact"]).output().unwrap();
        assert!(compacted.status.success(), "{}", String::from_utf8_lossy(&compacted.stderr));
        place.takes_changes();
        let new = place.take_over();
        old.err_line("takes over");
        place.is_served(new.address());
        assert_eq!(old.wait().code(), Some(0));
        place.takes_changes();
        old = new;
    }
}

#[test]
fn a_gateway_on_redis_is_taken_over_with_its_ports_and_its_admin_socket() {
    let redis = RedisServer::start();
    taken_over(&Place::on(&redis));
}

#[test]
fn where_no_gateway_runs_it_starts_as_usual() {
    let place = Place::new("");
    let new = place.take_over();
    place.is_served(new.address());
}

#[test]
fn without_an_admin_socket_there_is_nothing_to_ask() {
    let folder = TempDir::new().unwrap();
    Tuned::default().builder().write(folder.path());
    let mut new = Process::keygate(folder.path(), &["serve", "--take-over"]);
    new.err_line("--take-over needs admin.socket");
    assert_eq!(new.wait().code(), Some(1));
}

/// What the operators' trail says of take-overs, newest first.
fn told_of_take_overs(place: &Place) -> Vec<Value> {
    let list = ["audit", "list", "--operator", "--type", "gateway.take_over_begun", "--json"];
    let listed = keygate(place.folder.path(), &list).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    String::from_utf8(listed.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn told_in_the_trail(place: &Place) {
    let mut old = place.serve();
    old.address();
    assert_eq!(told_of_take_overs(place), [Value::Null; 0]);
    let new = place.take_over();
    let said = old.err_line("and got them");
    new.address();
    assert_eq!(old.wait().code(), Some(0));
    let told = told_of_take_overs(place);
    let uid = rustix::process::getuid().as_raw();
    let [begun] = &told[..] else { panic!("{told:?}") };
    assert_eq!(begun["actor"], json!({ "type": "operator", "name": format!("uid {uid}") }));
    assert_eq!(
        (&begun["before"], &begun["after"]),
        (&json!({ "pid": old.id() }), &json!({ "pid": new.id() }))
    );
    assert!(said.ends_with(&format!("uid {uid}, pid {}", new.id())), "{said}");
    let verified = keygate(place.folder.path(), &["audit", "verify"]).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
}

#[test]
fn the_trail_of_the_operators_tells_who_took_over_from_an_embedded_gateway() {
    told_in_the_trail(&Place::new(""));
}

#[test]
fn the_trail_of_the_operators_tells_who_took_over_from_a_gateway_on_redis() {
    let redis = RedisServer::start();
    told_in_the_trail(&Place::on(&redis));
}

#[test]
fn a_take_over_goes_on_where_the_trail_takes_no_record_of_it() {
    let redis = RedisServer::start();
    let place = Place::on(&redis);
    let mut old = place.serve();
    let address = old.address();
    // As if a gateway of an older release had a lease.
    // A gateway that looks in between would remove one without a lease from the list.
    redis.command(&["SET", "{kg}:gateway:older", "0", "PX", "600000"]);
    redis.command(&["SADD", "{kg}:gateways", "older"]);
    let new = place.take_over();
    old.err_line("has no record gateway.take_over_begun");
    assert_eq!(new.address(), address);
    assert_eq!(old.wait().code(), Some(0));
    place.is_served(address);
}

#[test]
fn the_probe_tells_the_truth_while_the_file_of_an_embedded_gateway_passes() {
    let (place, Held { begun, go }) = Place::held();
    let mut old = place.serve();
    let (address, ops) = (old.address(), old.ops_address());
    let slow = || {
        let mut busy = Wire::connect(address);
        busy.send(&Call::get("/things/slow").key(&place.key).to_bytes());
        begun.recv_timeout(PATIENCE).unwrap();
        busy
    };
    let ready = || fetch(ops, &Call::get("/readyz")).status;
    let mut early = slow();
    let new = place.take_over();
    old.err_line("takes over");
    new.err_line("waiting until the old process");
    eventually("what begins now is told to leave", || {
        let answer = Wire::connect(address).call(&Call::get("/things").key(&place.key)).unwrap();
        answer.field("connection") == Some("close")
    });
    let mut late = slow();
    assert_eq!(ready(), 200, "it accepts, and its store is open");
    new.signal(Signal::STOP);
    go.send(()).unwrap();
    assert_eq!(early.answer().unwrap().text(), "live");
    eventually("the old process accepts no more, and says so", || ready() == 503);
    go.send(()).unwrap();
    assert_eq!(late.answer().unwrap().text(), "live");
    old.err_line("is closed and passed");
    // Nobody answers that it is ready before it is.
    let (mut probe, mut client) = (Wire::connect(ops), Wire::connect(address));
    probe.send(&Call::get("/readyz").to_bytes());
    client.send(&Call::get("/things").key(&place.key).to_bytes());
    new.signal(Signal::CONT);
    assert_eq!(client.answer().unwrap().text(), "live");
    assert_eq!(probe.answer().unwrap().status, 200);
    assert_eq!((new.address(), old.wait().code()), (address, Some(0)));
}

// ---- Deaths

fn say(stream: &UnixStream, message: &Value) {
    let text = message.to_string();
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    let mut stream = stream;
    stream.write_all(&[&length[..], text.as_bytes()].concat()).unwrap();
}

/// The next message, and the descriptors beside it.
fn hear(stream: &UnixStream) -> (Value, Vec<OwnedFd>) {
    let (mut length, mut stream) = ([0; 4], stream);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let read = recvmsg(stream, &mut [IoSliceMut::new(&mut length)], &mut beside, RecvFlags::CMSG_CLOEXEC)
        .unwrap()
        .bytes;
    stream.read_exact(&mut length[read..]).unwrap();
    let sockets = beside.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => sockets.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let sockets = sockets.collect();
    let mut text = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut text).unwrap();
    (serde_json::from_slice(&text).unwrap(), sockets)
}

fn ask(store: &str) -> Value {
    json!({ "say": "ask", "version": 1, "store": store })
}

#[test]
fn a_new_process_that_dies_early_changes_nothing() {
    let place = Place::new("");
    let mut old = place.serve();
    let address = old.address();
    for messages in 0..2 {
        let new = UnixStream::connect(place.hatch()).unwrap();
        if messages > 0 {
            say(&new, &ask("embedded"));
            let (told, sockets) = hear(&new);
            assert_eq!((&told["say"], sockets.len()), (&json!("sockets"), 3), "server, ops, admin socket");
        }
        drop(new);
        old.err_line("going on");
        place.is_served(address);
    }
    for wrong in [ask("redis"), json!({ "say": "ask", "version": 2, "store": "embedded" })] {
        let new = UnixStream::connect(place.hatch()).unwrap();
        say(&new, &wrong);
        assert_eq!(hear(&new).0["say"], "refused");
    }
    place.is_served(address);
    place.takes_changes();
    assert!(old.is_running());
}

/// Stops a process, and lets it go on once it stands still.
fn pause(process: &Process) {
    process.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", process.id());
    eventually("it stands still", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
    process.signal(Signal::CONT);
}

#[test]
fn a_process_that_stands_still_for_a_moment_is_not_taken_for_dead() {
    let place = Place::new("");
    let mut old = place.serve();
    old.address();
    let new = UnixStream::connect(place.hatch()).unwrap();
    say(&new, &ask("embedded"));
    let _sockets = hear(&new);
    pause(&old);
    say(&new, &json!({ "say": "prepared" }));
    assert_eq!(hear(&new).0["say"], "store");
    pause(&old);
    say(&new, &json!({ "say": "serving" }));
    assert_eq!(hear(&new).0["say"], "yours");
    assert_eq!(old.wait().code(), Some(0));
}

#[test]
fn a_new_process_that_dies_while_the_file_passes_has_the_old_one_begin_anew() {
    let place = Place::new("");
    let mut old = place.serve();
    let address = old.address();
    for has_the_file in [false, true] {
        let new = UnixStream::connect(place.hatch()).unwrap();
        say(&new, &ask("embedded"));
        let _sockets = hear(&new);
        say(&new, &json!({ "say": "prepared" }));
        old.err_line("takes over");
        if has_the_file {
            assert_eq!(hear(&new).0["say"], "store");
        }
        drop(new);
        old.err_line("beginning anew");
        assert_eq!(old.address(), address);
        place.is_served(address);
        place.takes_changes();
        assert!(old.is_running());
    }
}

#[test]
fn an_old_process_that_is_killed_on_the_way_leaves_its_sockets_to_the_new_one() {
    for before_the_file in [false, true] {
        let place = Place::new("");
        // The test plays the old process.
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let hatch = UnixListener::bind(place.hatch()).unwrap();
        let new = place.take_over();
        let (line, _) = hatch.accept().unwrap();
        assert_eq!(hear(&line).0, ask("embedded"));
        if before_the_file {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            let sockets = [server.as_fd()];
            assert!(beside.push(SendAncillaryMessage::ScmRights(&sockets)));
            let text =
                json!({ "say": "sockets", "sockets": [{ "name": "server", "is_kept": false }] }).to_string();
            let length = u32::try_from(text.len()).unwrap().to_be_bytes();
            sendmsg(&line, &[IoSlice::new(&length)], &mut beside, SendFlags::empty()).unwrap();
            (&line).write_all(text.as_bytes()).unwrap();
            assert_eq!(hear(&line).0["say"], "prepared");
        }
        drop((line, hatch));
        let served_at = new.address();
        assert_eq!(served_at == address, before_the_file);
        place.is_served(served_at);
    }
}

#[test]
fn either_process_may_be_killed_while_the_old_one_drains() {
    let redis = RedisServer::start();
    let place = Place::on(&redis);
    let mut old = place.serve();
    let address = old.address();
    let new = place.take_over();
    new.address();
    old.err_line("takes over");
    old.signal(Signal::KILL);
    old.wait();
    place.is_served(address);
    place.takes_changes();
}

/// The steps of a take-over with the embedded store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The new process asks, and the old one has not answered.
    Asked,
    /// The old one finishes a request, and the new one waits for it.
    Draining,
    /// The old one has closed the file and passed it, and the new one has not read that.
    Passed,
    /// The new one serves, and the old one has not read that.
    Serving,
}

/// Changes that were answered.
#[derive(Default)]
struct Answered {
    made: Vec<String>,
    revoked: Vec<String>,
}

impl Answered {
    #[track_caller]
    fn change(&mut self, place: &Place) {
        let path = place.folder.path();
        let run = |words: &[&str]| -> Value {
            let ran = keygate(path, &[words, &["--json"]].concat()).output().unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            serde_json::from_slice(&ran.stdout).unwrap()
        };
        let create = || run(&["keys", "create", "--all-scopes", "--name", "a key"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.made.push(text(&create()["secret"]));
        let made = create();
        run(&["keys", "revoke", &text(&made["key"]["id"]), "--yes"]);
        self.revoked.push(text(&made["secret"]));
    }

    #[track_caller]
    fn is_there(&self, address: SocketAddr) {
        for (keys, status) in [(&self.made, 200), (&self.revoked, 401)] {
            for key in keys {
                let answer = Wire::connect(address).call(&Call::get("/things").key(key)).unwrap();
                assert_eq!(answer.status, status);
            }
        }
    }
}

fn killed_at(step: Step, dies_old: bool) {
    let (place, Held { begun, go }) = Place::held();
    let mut answered = Answered::default();
    let mut old = place.serve();
    let address = old.address();
    answered.change(&place);
    let mut busy = Wire::connect(address);
    if step == Step::Asked {
        old.signal(Signal::STOP);
    } else {
        busy.send(&Call::get("/things/slow").key(&place.key).to_bytes());
        begun.recv_timeout(PATIENCE).unwrap();
    }
    let mut new = place.take_over();
    if step != Step::Asked {
        old.err_line("takes over");
        new.err_line("waiting until the old process");
        answered.change(&place);
    }
    if matches!(step, Step::Passed | Step::Serving) {
        new.signal(Signal::STOP);
        go.send(()).unwrap();
        old.err_line("is closed and passed");
    }
    if step == Step::Serving {
        old.signal(Signal::STOP);
        new.signal(Signal::CONT);
        assert_eq!(new.address(), address);
        answered.change(&place);
    }
    let (dies, lives) = if dies_old { (&mut old, &new) } else { (&mut new, &old) };
    dies.signal(Signal::KILL);
    dies.wait();
    lives.signal(Signal::CONT);
    // A request that waits holds nobody up any more.
    let _ = go.send(());
    let served_at = match (step, dies_old) {
        (Step::Asked, false) | (Step::Serving, true) => address,
        _ => lives.address(),
    };
    assert_eq!(served_at == address, step != Step::Asked || !dies_old, "the sockets are the same");
    answered.is_there(served_at);
    answered.change(&place);
    answered.is_there(served_at);
}

#[test]
fn a_process_that_is_killed_when_the_other_was_asked_leaves_one_that_serves_all_that_was_answered() {
    [true, false].into_iter().for_each(|dies_old| killed_at(Step::Asked, dies_old));
}

#[test]
fn a_process_that_is_killed_while_the_old_one_drains_leaves_one_that_serves_all_that_was_answered() {
    [true, false].into_iter().for_each(|dies_old| killed_at(Step::Draining, dies_old));
}

#[test]
fn a_process_that_is_killed_when_the_file_was_passed_leaves_one_that_serves_all_that_was_answered() {
    [true, false].into_iter().for_each(|dies_old| killed_at(Step::Passed, dies_old));
}

#[test]
fn a_process_that_is_killed_before_the_old_one_knows_that_the_new_one_serves_leaves_one_that_does() {
    [true, false].into_iter().for_each(|dies_old| killed_at(Step::Serving, dies_old));
}

#[test]
fn on_redis_a_new_process_that_dies_with_its_last_word_has_the_old_one_go_on() {
    let redis = RedisServer::start();
    let place = Place::on(&redis);
    let old = place.serve();
    let address = old.address();
    let new = UnixStream::connect(place.hatch()).unwrap();
    say(&new, &ask("redis"));
    let _sockets = hear(&new);
    old.signal(Signal::STOP);
    say(&new, &json!({ "say": "serving" }));
    drop(new);
    old.signal(Signal::CONT);
    old.err_line("going on");
    place.is_served(address);
    place.takes_changes();
}

// ---- Under load

fn under_load(place: &Place) {
    let (times, streams) = if is_long() { (20, 500) } else { (3, 30) };
    let mut old = place.serve();
    let address = old.address();
    let load = Load::begin(address, &place.key, Kinds { streams, ..Kinds::default() });
    load.begin_timing();
    for _ in 0..times {
        load.settle();
        let asked = load.age();
        let new = place.take_over();
        new.address();
        let served = load.age();
        assert_eq!(old.wait().code(), Some(0));
        let ended = load.age();
        println!("asked at {asked:?}, served by the new one at {served:?}, the old one ended at {ended:?}");
        if is_long() {
            println!("the old one said:\n{}", old.told());
        }
        old = new;
    }
    load.settle();
    let seen = load.end();
    println!("{seen}");
    assert_eq!(seen.failed, Vec::<String>::new());
    assert!(seen.lived.len() >= times * streams, "{} streams ended", seen.lived.len());
    assert!(seen.slowest <= lenient(PROMISED), "{:?}", seen.slow);
}

#[test]
fn an_embedded_gateway_is_taken_over_under_load_and_nothing_fails() {
    under_load(&Place::new(""));
}

#[test]
fn a_gateway_on_redis_is_taken_over_under_load_and_nothing_fails() {
    let redis = RedisServer::start();
    under_load(&Place::on(&redis));
}
