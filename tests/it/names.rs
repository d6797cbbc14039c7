//! Names of which one address answers nothing: the other is used, for the store, its sentinels, the outbox' receiver and
//! upstreams. Several good addresses share the requests, and a name whose addresses change is followed.

use std::cell::OnceCell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use keygate::vocabulary::key::Environment;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::front::{Front, server_config};
use crate::harness::metrics::{scrape, value};
use crate::harness::names::{Names, Swallowing};
use crate::harness::process::{create_key_by, keygate};
use crate::harness::sentinels::sentinel;
use crate::harness::{
    Answer, Authority, Call, Gateway, PAUSE, Process, RedisServer, Reply, Seen, SetOnDrop, Tuned, Upstream,
    eventually, fetch, guess, refusing,
};

const GOOD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const CHANGING: &str = "changing.test";
/// A name for each order of the two addresses.
const NAMES: [&str; 2] = ["good-first.test", "good-last.test"];

const ANY_KEY: &str = "scopes = [\"jobs:read\"]\n[[route]]\nid = \"things\"\nmethods = [\"GET\"]\npaths = [\"/things\"]\nany_key = true\nupstream = \"api\"\n";

/// How many requests of each kind must pass.
const COUNT: usize = 20;
/// Two attempts need less on a busy machine; a client of these tests waits longer.
const CONNECT_TIMEOUT: &str = "connect_timeout = \"10s\"";

/// A gateway process that knows the names.
struct Scene {
    address: SocketAddr,
    ops: OnceCell<SocketAddr>,
    key: String,
    process: Process,
    folder: TempDir,
    names: Names,
}

impl Scene {
    #[track_caller]
    fn start(tuned: Tuned) -> Self {
        Self::start_with(tuned, names())
    }

    #[track_caller]
    fn start_with(tuned: Tuned, names: Names) -> Self {
        let folder = TempDir::new().unwrap();
        tuned.builder().write(folder.path());
        Self::start_in(folder, names)
    }

    #[track_caller]
    fn start_in(folder: TempDir, names: Names) -> Self {
        let command = |arguments: &[&str]| {
            let mut command = keygate(folder.path(), arguments);
            names.told_to(&mut command);
            command
        };
        let key = create_key_by(command(&[
            "keys",
            "create",
            "--all-scopes",
            "--org",
            "Example Ltd",
            "--name",
            "a key",
        ]));
        let process = Process::start(command(&["serve"]));
        Self { address: process.address(), ops: OnceCell::new(), key, process, folder, names }
    }

    fn get(&self, path: &str) -> Answer {
        fetch(self.address, &Call::get(path).key(&self.key))
    }

    fn scraped(&self) -> String {
        scrape(*self.ops.get_or_init(|| self.process.ops_address()))
    }

    /// A series about the endpoint with the changing name; `more` are labels beside it.
    fn metric(&self, metric: &str, port: u16, more: &str) -> Option<f64> {
        let series =
            format!("keygate_upstream_{metric}{{upstream=\"api\",endpoint=\"{CHANGING}:{port}\"{more}}}");
        value(&self.scraped(), &series)
    }

    /// How often the log was to tell of this.
    fn told(&self, event: &str) -> Option<f64> {
        value(&self.scraped(), &format!("keygate_log_events_total{{event=\"{event}\"}}"))
    }

    /// What `keygate upstreams status` prints.
    fn status(&self) -> String {
        let output = keygate(self.folder.path(), &["upstreams", "status"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Of `COUNT` such requests, one after another, those with this status.
    fn count(&self, status: u16, call: impl Fn() -> Call) -> usize {
        (0..COUNT).filter(|_| fetch(self.address, &call()).status == status).count()
    }
}

fn names() -> Names {
    Names::new(&[(NAMES[0], &[GOOD, OTHER]), (NAMES[1], &[OTHER, GOOD])])
}

/// The other address with the port of `good`.
fn swallowing_beside(good: SocketAddr) -> Swallowing {
    assert_eq!(good.ip(), GOOD);
    Swallowing::at((OTHER, good.port()).into())
}

/// A gateway on Redis. `place` are the lines that say where it is.
fn on_redis(place: &str) -> Scene {
    // Patient, so that no busy machine makes a 503.
    let patience = "lookup_timeout = \"20s\"\n";
    Scene::start(Tuned::default().settings(&format!(
        "[cache]\n{patience}[store]\nkind = \"redis\"\n{place}\nallow_without_pepper = true\n\
         command_timeout = \"20s\"\n{CONNECT_TIMEOUT}\n{patience}"
    )))
}

/// Good keys and guesses are told apart, also after the connections to the store have ended.
#[track_caller]
fn assert_looks_up(scene: &Scene, redis: &RedisServer) {
    // No rule is for it.
    let good = || Call::get("/nowhere").key(&scene.key);
    let guessed = || Call::get("/nowhere").key(&guess());
    assert_eq!((scene.count(404, good), scene.count(401, guessed)), (COUNT, COUNT));
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    eventually("it is connected again", || fetch(scene.address, &guessed()).status == 401);
    assert_eq!(scene.count(401, guessed), COUNT, "after a new connection");
}

#[test]
fn a_store_is_found_behind_an_address_that_swallows_everything() {
    let redis = RedisServer::start();
    let _swallowing = swallowing_beside(redis.address());
    for name in NAMES {
        let scene = on_redis(&format!("url = \"redis://{name}:{}\"", redis.port()));
        assert_looks_up(&scene, &redis);
    }
}

#[test]
fn a_sentinel_is_found_behind_an_address_that_swallows_everything() {
    let master = RedisServer::start();
    let sentinel = sentinel(&master, "");
    let _swallowing = swallowing_beside(sentinel.address());
    for name in NAMES {
        let place = format!("sentinels = [\"{name}:{}\"]\nmaster_name = \"mymaster\"", sentinel.port());
        assert_looks_up(&on_redis(&place), &master);
    }
}

#[test]
fn news_reach_a_receiver_behind_an_address_that_swallows_everything() {
    for name in NAMES {
        let receiver = Upstream::start("taken");
        let _swallowing = swallowing_beside(receiver.address());
        let folder = TempDir::new().unwrap();
        let key = folder.path().join("outbox-key");
        fs::write(&key, "a key of thirty-two bytes or more").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let url = format!("http://{name}:{}/news", receiver.address().port());
        let builder = Gateway::builder()
            .settings("[signup]\nenabled = true")
            .settings(&format!("[outbox]\nurl = \"{url}\"\nkey_file = \"outbox-key\""))
            .upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2");
        builder.write(folder.path());
        let scene = Scene::start_in(folder, names());
        let orgs = ["ada", "bob", "eve"].map(|who| {
            let body = format!(r#"{{"name":"{who}","email":"{who}@example.com"}}"#);
            let answer = fetch(scene.address, &Call::post("/v1/auth/signup", body));
            answer.json()["organization_id"].as_str().unwrap().to_owned()
        });
        eventually("the news arrive", || {
            let seen = receiver.seen();
            orgs.iter().all(|org| seen.iter().any(|news| news.value("idempotency-key") == org))
        });
    }
}

/// The answer of an upstream that wants a new connection for each request.
fn closing(_: &Seen) -> Reply {
    Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_vec())
}

#[test]
fn requests_reach_an_upstream_behind_an_address_that_swallows_everything() {
    let upstream = Upstream::with(closing);
    let _swallowing = swallowing_beside(upstream.address());
    for name in NAMES {
        let url = format!("http://{name}:{}", upstream.address().port());
        let scene = Scene::start(Tuned::default().live(url).upstream(CONNECT_TIMEOUT));
        assert_eq!(scene.count(200, || Call::get("/things").key(&scene.key)), COUNT);
    }
}

#[test]
fn the_addresses_of_an_upstreams_name_share_the_requests() {
    let one = Upstream::with(closing);
    let other = Upstream::at((OTHER, one.address().port()).into(), closing);
    for name in NAMES {
        let url = format!("http://{name}:{}", one.address().port());
        let scene = Scene::start(Tuned::default().live(url).upstream(CONNECT_TIMEOUT));
        [&one, &other].into_iter().for_each(Upstream::forget);
        assert_eq!(scene.count(200, || Call::get("/things").key(&scene.key)), COUNT);
        let [of_one, of_other] = [&one, &other].map(|upstream| upstream.seen().len());
        assert_eq!(of_one + of_other, COUNT);
        // An address that a busy machine made late is avoided for a while.
        assert!(of_one >= COUNT / 4 && of_other >= COUNT / 4, "{of_one} and {of_other}");
    }
}

/// Two servers that have the same port at two addresses. At the path "/things/slow" the first one answers when it is told to.
fn a_pair() -> (Upstream, Upstream, Sender<()>) {
    let (go_on, waits) = channel();
    let waits = Mutex::new(waits);
    let one = Upstream::with(move |seen: &Seen| {
        if seen.request_line().contains("slow") {
            let _ = waits.lock().unwrap().recv();
        }
        Reply::ok("one")
    });
    let other = Upstream::at((OTHER, one.address().port()).into(), |_: &Seen| Reply::ok("other"));
    (one, other, go_on)
}

/// A gateway in front of an upstream with the changing name, of which it looks up the addresses often.
fn following(port: u16, addresses: &[IpAddr], settings: &str) -> Scene {
    let ages = "names_min_age = \"100ms\"\nnames_max_age = \"200ms\"";
    let url = format!("http://{CHANGING}:{port}");
    let tuned = Tuned::default().live(url).upstream(CONNECT_TIMEOUT).upstream(ages);
    let tuned = tuned
        .settings("[ops]\nlisten = \"127.0.0.1:0\"\n[admin]\nsocket = \"keygate.sock\"")
        .settings(settings);
    Scene::start_with(tuned, Names::new(&[(CHANGING, addresses)]))
}

#[test]
fn a_name_whose_addresses_change_under_load_is_followed_and_no_request_fails() {
    let (one, other, go_on) = a_pair();
    let scene = following(one.address().port(), &[GOOD], "");
    let (is_over, passed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (address, key) = (scene.address, &*scene.key);
    let get = |path: &str| fetch(address, &Call::get(path).key(key));
    thread::scope(|threads| {
        let over = SetOnDrop(&is_over);
        let load = || {
            while !is_over.load(Ordering::SeqCst) {
                let answer = get("/things");
                assert_eq!(answer.status, 200, "{}", answer.text());
                passed.fetch_add(1, Ordering::SeqCst);
                thread::sleep(PAUSE);
            }
        };
        let loads: Vec<_> = (0..4).map(|_| threads.spawn(load)).collect();
        let slow = threads.spawn(|| get("/things/slow"));
        eventually("a request waits at the first address", || {
            one.seen().iter().any(|seen| seen.request_line().contains("slow"))
        });
        for (addresses, new, old) in
            [(&[OTHER][..], &other, &one), (&[GOOD], &one, &other), (&[OTHER], &other, &one)]
        {
            new.forget();
            scene.names.change(&[(CHANGING, addresses)]);
            eventually("requests go to the new address", || !new.seen().is_empty());
            eventually("none goes to the old one", || {
                old.forget();
                (0..COUNT).for_each(|_| assert_eq!(get("/things").status, 200));
                old.seen().is_empty()
            });
        }
        go_on.send(()).unwrap();
        let answer = slow.join().unwrap();
        assert_eq!((answer.status, answer.text()), (200, "one".to_owned()), "what was under way has its end");
        drop(over);
        loads.into_iter().for_each(|load| load.join().unwrap());
    });
    assert!(passed.load(Ordering::SeqCst) > COUNT);
}

#[test]
fn addresses_of_both_kinds_share_the_requests_and_each_goes_when_the_name_has_it_no_more() {
    let one = Upstream::with(closing);
    let port = one.address().port();
    let other = Upstream::at((Ipv6Addr::LOCALHOST, port).into(), closing);
    let scene = following(port, &[GOOD, Ipv6Addr::LOCALHOST.into()], "");
    [&one, &other].into_iter().for_each(Upstream::forget);
    assert_eq!(scene.count(200, || Call::get("/things").key(&scene.key)), COUNT);
    let [of_one, of_other] = [&one, &other].map(|upstream| upstream.seen().len());
    assert!(of_one >= COUNT / 4 && of_other >= COUNT / 4, "{of_one} and {of_other}");
    let status = scene.status();
    assert!(status.contains(&format!("api {CHANGING}:{port} at ::1: in use")), "{status}");
    for (addresses, gone) in [(&[GOOD], &other), (&[Ipv6Addr::LOCALHOST.into()], &one)] {
        scene.names.change(&[(CHANGING, addresses)]);
        eventually("none goes to the other kind", || {
            gone.forget();
            assert_eq!(scene.count(200, || Call::get("/things").key(&scene.key)), COUNT);
            gone.seen().is_empty()
        });
    }
}

#[test]
fn of_a_name_with_many_addresses_sixty_four_are_used_and_the_log_says_so() {
    let upstream = Upstream::at((Ipv4Addr::UNSPECIFIED, 0).into(), closing);
    let port = upstream.address().port();
    let addresses: Vec<IpAddr> = (1..=70).map(|n| Ipv4Addr::new(127, 0, 1, n).into()).collect();
    let scene = following(port, &addresses, "[upstreams.api.check]\npath = \"/healthz\"");
    let used = |scene: &Scene| scene.status().matches(": in use").count();
    eventually("all that are used are known to be", || used(&scene) == 64);
    assert_eq!(scene.told("upstream_addresses"), Some(1.0));
    assert_eq!(scene.metric("addresses", port, ",state=\"healthy\""), Some(64.0));
    assert_eq!(scene.count(200, || Call::get("/things").key(&scene.key)), COUNT);
    scene.names.change(&[(CHANGING, &addresses[..3])]);
    eventually("the others are gone", || used(&scene) == 3);
}

#[test]
fn a_name_is_followed_over_tls_and_each_address_proves_the_name() {
    let (authority, other_authority) = (Authority::new(), Authority::new());
    let [one, other] = ["one", "other"].map(Upstream::start);
    let config = |authority: &Authority, name: &str| server_config(&authority.issue(&[name]));
    let front = Front::start(config(&authority, CHANGING), one.address());
    let port = front.address().port();
    let beside = Front::at((OTHER, port).into(), config(&authority, CHANGING), other.address());
    let folder = TempDir::new().unwrap();
    authority.write(folder.path(), "ca");
    let ages = "names_min_age = \"100ms\"\nnames_max_age = \"200ms\"\nconnect_timeout = \"20s\"";
    let tuned = Tuned::default().live(format!("https://{CHANGING}:{port}")).upstream(ages);
    tuned.settings("[upstreams.api.live_tls]\nca = \"ca.pem\"").builder().write(folder.path());
    let scene = Scene::start_in(folder, Names::new(&[(CHANGING, &[GOOD])]));
    let answer = || {
        let answer = scene.get("/things");
        (answer.status, answer.text())
    };
    assert_eq!(answer(), (200, "one".to_owned()));
    scene.names.change(&[(CHANGING, &[OTHER])]);
    eventually("the new address answers", || {
        let (status, text) = answer();
        assert_eq!(status, 200, "{text}");
        text == "other"
    });
    assert!(beside.handshakes().iter().all(|made| made.name.as_deref() == Some(CHANGING)));
    // A server at the new address that cannot prove the name gets no request.
    one.forget();
    front.renew(config(&other_authority, CHANGING));
    scene.names.change(&[(CHANGING, &[GOOD])]);
    eventually("it is refused", || answer().0 == 502);
    assert!(one.seen().is_empty());
}

#[test]
fn an_address_that_comes_is_checked_and_each_has_a_state_of_its_own() {
    let (one, other, _go_on) = a_pair();
    let port = one.address().port();
    let scene = following(port, &[GOOD], "[upstreams.api.check]\npath = \"/healthz\"\ninterval = \"100ms\"");
    assert_eq!(scene.get("/things").status, 200);
    let third = Ipv4Addr::new(127, 0, 0, 3).into();
    scene.names.change(&[(CHANGING, &[GOOD, OTHER, third])]);
    eventually("the new one is checked", || {
        other.seen().iter().any(|seen| seen.request_line().starts_with("GET /healthz "))
    });
    eventually("nobody is at the third", || scene.status().contains("127.0.0.3: passed over"));
    let status = scene.status();
    for used in ["127.0.0.1: in use", "127.0.0.2: in use"] {
        assert!(status.contains(&format!("api {CHANGING}:{port} at {used}")), "{status}");
    }
    assert_eq!(scene.count(200, || Call::get("/things").key(&scene.key)), COUNT);
    assert_eq!(scene.metric("healthy", port, ""), Some(1.0), "as long as one is");
    let addresses = |state: &str| scene.metric("addresses", port, &format!(",state=\"{state}\""));
    assert_eq!((addresses("healthy"), addresses("unhealthy")), (Some(2.0), Some(1.0)));
    scene.names.change(&[(CHANGING, &[GOOD])]);
    eventually("only what the name has is told of", || !scene.status().contains("127.0.0.3"));
}

#[test]
fn a_name_that_cannot_be_resolved_is_told_once_and_what_is_known_of_it_is_used() {
    let (one, _other, _go_on) = a_pair();
    let port = one.address().port();
    let scene = following(port, &[], "[log]\nrequests = \"json\"");
    let answer = scene.get("/things");
    assert_eq!(answer.refusal(502, "bad_gateway"), "The service behind this gateway could not be reached");
    assert!(scene.process.out_line("req_").contains("\"upstream_unresolved\""));
    assert_eq!(
        (scene.metric("name_resolved", port, ""), scene.metric("healthy", port, "")),
        (Some(0.0), Some(0.0))
    );
    assert_eq!(scene.told("upstream_unresolved"), Some(1.0));
    let status = scene.status();
    assert!(
        status.contains(&format!("api {CHANGING}:{port}: passed over: no address of its name is known\n")),
        "{status}"
    );

    scene.names.change(&[(CHANGING, &[GOOD])]);
    eventually("it is found", || scene.get("/things").status == 200);
    scene.process.err_line("can be resolved again");
    scene.names.change(&[]);
    eventually("it fails again", || scene.metric("name_resolved", port, "") == Some(0.0));
    assert_eq!(scene.count(200, || Call::get("/things").key(&scene.key)), COUNT);
    assert_eq!(scene.metric("healthy", port, ""), Some(1.0));
    assert_eq!(scene.told("upstream_unresolved"), Some(2.0), "once each time");

    // Settings of the upstream that are others do not make its addresses unknown.
    let file = scene.folder.path().join("keygate.toml");
    let settings = fs::read_to_string(&file).unwrap();
    fs::write(&file, settings.replace("names_max_age = \"200ms\"", "names_max_age = \"300ms\"")).unwrap();
    scene.process.signal(Signal::HUP);
    let applied = "keygate_config_reloads_total{result=\"applied\"}";
    eventually("the other settings are in force", || value(&scene.scraped(), applied) == Some(1.0));
    assert_eq!(scene.count(200, || Call::get("/things").key(&scene.key)), COUNT);
}

#[test]
fn a_connection_carries_as_many_requests_as_it_may_and_gets_as_old() {
    for (setting, connections) in [
        ("connection_max_requests = 4", 5..=7),
        ("connection_max_requests = 1", COUNT..=COUNT),
        ("connection_max_age = \"1ms\"", 2..=COUNT),
        ("connection_max_age = \"off\"", 1..=1),
    ] {
        let upstream = Upstream::start("taken");
        // No connection ends because a busy machine left it without use.
        let tuned =
            Tuned::default().live(upstream.url()).upstream("idle_timeout = \"10m\"").upstream(setting);
        let (gateway, key) = tuned.start();
        for _ in 0..COUNT {
            assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).status, 200);
            // Some milliseconds, so that a connection that may not get older has got older.
            thread::sleep(Duration::from_millis(2));
        }
        assert!(connections.contains(&upstream.connections()), "{setting}: {}", upstream.connections());
    }
}

#[test]
fn requests_are_shared_out_by_the_weights_of_the_servers() {
    let [heavy, light, none] = ["heavy", "light", "none"].map(Upstream::start);
    let (down, mut settings) = (refusing(), String::new());
    for (url, weight) in [(heavy.url(), 3), (light.url(), 1), (none.url(), 0)] {
        settings += &format!("{{ url = \"{url}\", weight = {weight} }}, ");
    }
    let builder = Gateway::builder().settings(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[upstreams.api]\nlive = [{settings}]\ntest = [\"{down}\"]"
    ));
    let gateway = builder.policy(ANY_KEY).start();
    let key = gateway.key(Environment::Live, Some(&["jobs:read"]), None).secret;
    for _ in 0..5 * COUNT {
        assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).status, 200);
    }
    let [heavy, light, none] = [&heavy, &light, &none].map(|server| server.seen().len());
    assert_eq!((heavy + light, none), (5 * COUNT, 0));
    // An answer may have reached the client before its thread has noted its end.
    assert!((2 * COUNT / 3..=2 * COUNT).contains(&light), "{heavy} and {light}");
}
