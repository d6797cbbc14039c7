//! Names of which one address answers nothing: the other is used, for the store, its sentinels, the outbox' receiver and
//! upstreams. Several good addresses share the requests.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use crate::harness::names::{Names, Swallowing};
use crate::harness::process::{create_key_by, keygate};
use crate::harness::sentinels::sentinel;
use crate::harness::{
    Call, Gateway, Process, RedisServer, Reply, Seen, Tuned, Upstream, eventually, fetch, guess,
};

const GOOD: Ipv4Addr = Ipv4Addr::LOCALHOST;
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// A name for each order of the two addresses.
const NAMES: [&str; 2] = ["good-first.test", "good-last.test"];

/// How many requests of each kind must pass.
const COUNT: usize = 20;
/// Two attempts need less on a busy machine; a client of these tests waits longer.
const CONNECT_TIMEOUT: &str = "connect_timeout = \"10s\"";

/// A gateway process that knows the names.
struct Scene {
    address: SocketAddr,
    key: String,
    _process: Process,
    _folder: TempDir,
    _names: Names,
}

impl Scene {
    #[track_caller]
    fn start(tuned: Tuned) -> Self {
        let (folder, names) = (TempDir::new().unwrap(), names());
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
        Self { address: process.address(), key, _process: process, _folder: folder, _names: names }
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
