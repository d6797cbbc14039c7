//! An unavailable store: under load and with any fault of Redis, known keys continue to work, unknown keys get 503
//! in time, and no valid key is called invalid.
//!
//! `KEYGATE_LONG=1 chrt --rr 1 cargo test --test it outages -- --include-ignored --nocapture --test-threads 1` is the long
//! form: a minute of each fault at 30 % of the machine's throughput. It needs root, and `unshare` and `nft` to drop packets.
//! `chrt` keeps other work of the machine from delaying requests, which would show in the slowest hundredth of them.

#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::traffic::{Outcome, at_rate, at_will, by_status, percentile, with_status};
use crate::harness::{
    Call, Chaos, Gateway, Process, RedisServer, TestKey, Upstream, Weather, create_key, eventually, fetch,
    guess, is_long, lenient,
};

const CONNECTIONS: usize = 4;
/// Requests a second with keys that are not known.
const UNKNOWN: u32 = 40;
/// The allowed growth of memory during an outage.
const GROWTH: u64 = 16 << 20;

/// The state of the store during a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    /// No lookup is answered.
    Nothing,
    /// Lookups may be answered.
    Lookups,
}

/// A gateway process, connected to Redis through a network that can fail; with known and unknown keys.
struct Scene {
    // First, so that it is dropped before its peers.
    gateway: Process,
    address: SocketAddr,
    proxy: Chaos,
    redis: RedisServer,
    admin: String,
    known: Vec<TestKey>,
    /// Valid keys that the gateway has not cached.
    cold: Vec<TestKey>,
    /// A key that was revoked while Redis was available.
    revoked: Option<TestKey>,
    upstream: Upstream,
    _folder: TempDir,
}

impl Scene {
    #[track_caller]
    fn start() -> Self {
        // A user for this gateway alone, so that its rights can be removed.
        let redis = RedisServer::with(&["--user", "keygate", "on", "nopass", "~*", "&*", "+@all"]);
        let (proxy, upstream) = (Chaos::before(redis.address()), Upstream::start("api"));
        let folder = TempDir::new().unwrap();
        let password = folder.path().join("password");
        fs::write(&password, "any").unwrap();
        fs::set_permissions(&password, PermissionsExt::from_mode(0o600)).unwrap();
        let store = |url: &str| {
            format!(
                "[store]\nkind = \"redis\"\nurl = \"{url}\"\nallow_without_pepper = true\n\
                 username = \"keygate\"\npassword_file = \"{}\"\n",
                password.display()
            )
        };
        // Shorter than even a short outage.
        let cache = if is_long() { "" } else { "[cache]\nttl = \"1s\"\n" };
        let builder = |settings: String| {
            // No test key is used here.
            Gateway::builder().upstream("api", &upstream.url(), "http://127.0.0.1:1").settings(&settings)
        };
        let (mut known, mut cold) = (Vec::new(), Vec::new());
        {
            let maker =
                builder(store(&redis.url()) + "connect_timeout = \"10s\"\ncommand_timeout = \"10s\"").start();
            known.extend((0..20).map(|_| maker.live_key()));
            cold.extend((0..40).map(|_| maker.live_key()));
        }
        builder(store(&proxy.url()) + cache).write(folder.path());
        let admin = create_key(folder.path());
        let gateway = Process::serve(folder.path());
        let address = gateway.address();
        let scene = Self {
            gateway,
            address,
            proxy,
            redis,
            admin,
            known,
            cold,
            revoked: None,
            upstream,
            _folder: folder,
        };
        for secret in scene.known.iter().map(|key| &key.secret).chain([&scene.admin]) {
            eventually("it is known", || scene.status(secret) == 200);
        }
        scene
    }

    fn status(&self, secret: &str) -> u16 {
        fetch(self.address, &request(secret)).status
    }

    /// Traffic with known keys, and beside it some with others.
    fn traffic(&self, rate: u32, span: Duration, others: &[String]) -> (Vec<Outcome>, Vec<Outcome>) {
        let known: Vec<Call> = self.known.iter().map(|key| request(&key.secret)).collect();
        let others: Vec<Call> = others.iter().map(|secret| request(secret)).collect();
        let address = self.address;
        thread::scope(|scope| {
            let others = &others;
            let beside = scope.spawn(move || {
                at_rate(address, UNKNOWN, span, CONNECTIONS, |n| others[n % others.len()].clone())
            });
            let known = at_rate(self.address, rate, span, CONNECTIONS, |n| known[n % known.len()].clone());
            (known, beside.join().unwrap())
        })
    }

    /// Alternately a valid key that is not cached, and a key that does not exist.
    fn others(&self) -> Vec<String> {
        self.cold
            .iter()
            .zip(guesses(self.cold.len()))
            .flat_map(|(key, guess)| [key.secret.clone(), guess])
            .collect()
    }

    /// The machine's throughput in requests per second.
    fn capacity(&self) -> u32 {
        let span = Duration::from_secs(3);
        let known: Vec<Call> = self.known.iter().map(|key| request(&key.secret)).collect();
        let done = at_will(self.address, span, CONNECTIONS, |n| known[n % known.len()].clone());
        self.upstream.forget();
        u32::try_from(done.len()).unwrap() / 3
    }
}

/// Keys that do not exist.
fn guesses(count: usize) -> Vec<String> {
    (0..count).map(|_| guess()).collect()
}

fn request(secret: &str) -> Call {
    Call::get("/v1/jobs").key(secret)
}

/// Begins and ends a fault under load, and compares the results with the promises.
fn endure(what: &str, left: Left, begin: impl FnOnce(&mut Scene), end: impl FnOnce(&mut Scene)) {
    let mut scene = Scene::start();
    let (rate, span) = if is_long() {
        (scene.capacity() * 3 / 10, Duration::from_secs(60))
    } else {
        (200, Duration::from_millis(1500))
    };
    let fair = |scene: &Scene| {
        let (known, _) = scene.traffic(rate, span / 2, &guesses(80));
        assert_eq!(with_status(&known, 200), known.len(), "{what}: without it");
        scene.upstream.forget();
        known
    };
    let mut fair_known = fair(&scene);
    let before = scene.gateway.memory("VmRSS:");

    begin(&mut scene);
    let (known, others) = scene.traffic(rate, span, &scene.others());
    let after = scene.gateway.memory("VmRSS:");
    scene.upstream.forget();
    let fresh = scene.cold.last().unwrap().secret.clone();
    end(&mut scene);
    let ended = Instant::now();
    eventually(&format!("after {what} a key is looked up"), || match scene.status(&fresh) {
        200 => true,
        503 => false,
        other => panic!("{what}: a good key got {other}"),
    });
    let recovered = ended.elapsed();

    if is_long() {
        fair_known.append(&mut fair(&scene));
    }
    let [p99, fair_p99] = [&known, &fair_known].map(|outcomes| percentile(outcomes, 99.0));
    let refused = percentile(&others, 100.0);
    println!(
        "{what}: {} of {} known keys let in at {rate}/s, p99 {p99:.2?}, {fair_p99:.2?} without it; others {:?} within \
         {refused:.1?}; back after {recovered:.2?}; {} KiB, then {} KiB",
        with_status(&known, 200),
        known.len(),
        by_status(&others),
        before >> 10,
        after >> 10,
    );
    assert_eq!(with_status(&known, 200), known.len(), "{what}: {:?}", by_status(&known));
    for Outcome { number, status, .. } in &others {
        let is_good = number % 2 == 0;
        match (status, left) {
            (503, _) => {}
            (200, Left::Lookups) if is_good => {}
            (401, Left::Lookups) if !is_good => {}
            _ => panic!("{what}: a {} key got {status}", if is_good { "good" } else { "made-up" }),
        }
    }
    assert!(refused < lenient(Duration::from_millis(150)), "{what}: {refused:?}");
    assert!(recovered < lenient(Duration::from_secs(1)), "{what}: {recovered:?}");
    assert!(after.saturating_sub(before) < GROWTH, "{what}: from {before} to {after} bytes");
    if is_long() {
        assert!(p99 < fair_p99.mul_f64(1.5), "{what}: p99 {p99:?}, {fair_p99:?} without it");
    }
    for key in &scene.known {
        eventually("a known key works", || match scene.status(&key.secret) {
            200 => true,
            503 => false,
            other => panic!("{what}: a known key got {other}"),
        });
    }
}

#[test]
fn killed() {
    endure(
        "killed",
        Left::Nothing,
        |scene| {
            scene.redis.command(&["SAVE"]);
            scene.redis.kill();
        },
        |scene| scene.redis.revive(),
    );
}

#[test]
fn stopped() {
    let (begin, end) = (
        |scene: &mut Scene| scene.redis.signal(Signal::STOP),
        |scene: &mut Scene| {
            scene.redis.signal(Signal::CONT);
        },
    );
    endure("stopped", Left::Nothing, begin, end);
}

#[test]
fn swallowing_everything() {
    let turn = |weather| move |scene: &mut Scene| scene.proxy.turn(weather);
    endure("swallowing everything", Left::Nothing, turn(Weather::Stalled), turn(Weather::Fair));
}

/// In a network namespace of this test, whose loopback drops the packets between the gateway and Redis, or its
/// replacement.
#[test]
#[ignore = "it needs root, unshare and nft; in its place, a proxy swallows everything"]
fn dropping_packets() {
    const INSIDE: &str = "KEYGATE_TEST_NETWORK";
    if std::env::var_os(INSIDE).is_none() {
        let this = std::env::current_exe().unwrap();
        let mut inside = Command::new("unshare");
        inside.args(["--net", "--"]).arg(this).args([
            "--exact",
            "outages::dropping_packets",
            "--nocapture",
            "--ignored",
        ]);
        let status = inside.env(INSIDE, "1").status().expect("unshare is installed");
        assert!(status.success(), "it failed in a network of its own, see above");
        return;
    }
    run("ip", "link set lo up");
    endure(
        "dropping packets",
        Left::Nothing,
        |scene| {
            run("nft", "add table inet outage");
            run("nft", "add chain inet outage out { type filter hook output priority 0 ; }");
            for side in ["dport", "sport"] {
                run("nft", &format!("add rule inet outage out tcp {side} {} drop", scene.proxy.port()));
            }
        },
        |_| run("nft", "delete table inet outage"),
    );
}

#[track_caller]
fn run(program: &str, arguments: &str) {
    let done = Command::new(program).args(arguments.split(' ')).output();
    let done = done.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(done.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn slow() {
    let turn = |weather| move |scene: &mut Scene| scene.proxy.turn(weather);
    let slow = Weather::Slow(Duration::from_millis(500));
    endure("slow, a second for each answer", Left::Nothing, turn(slow), turn(Weather::Fair));
}

#[test]
fn answering_errors() {
    let set = |rights: &'static str| {
        move |scene: &mut Scene| {
            assert_eq!(scene.redis.command(&["ACL", "SETUSER", "keygate", rights]), "+OK\r\n");
        }
    };
    endure("answering errors", Left::Nothing, set("-@all"), set("+@all"));
}

#[test]
fn out_of_memory() {
    let set = |size: &'static str| {
        move |scene: &mut Scene| {
            assert_eq!(scene.redis.command(&["CONFIG", "SET", "maxmemory", size]), "+OK\r\n");
        }
    };
    let begin = |scene: &mut Scene| {
        set("1mb")(scene);
        let make = Call::post("/v1/api_keys", r#"{"name":"one more"}"#).key(&scene.admin);
        fetch(scene.address, &make).refusal(503, "service_unavailable");
        let victim = scene.cold.remove(0);
        let revoke = Call::new("DELETE", &format!("/v1/api_keys/{}", victim.id())).key(&scene.admin);
        let answer = fetch(scene.address, &revoke);
        assert_eq!(answer.status, 204, "what takes rights away needs no room: {}", answer.text());
        eventually("it is refused", || match scene.status(&victim.secret) {
            401 => true,
            // On a busy machine, a lookup may exceed its time-out.
            503 => false,
            other => panic!("a revoked key got {other}"),
        });
    };
    endure("out of memory", Left::Lookups, begin, set("0"));
}

#[test]
fn read_only() {
    endure(
        "read-only",
        Left::Lookups,
        |scene| {
            assert_eq!(scene.redis.command(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
            let key = &scene.known[0];
            let revoke = Call::new("DELETE", &format!("/v1/api_keys/{}", key.id())).key(&scene.admin);
            fetch(scene.address, &revoke).refusal(503, "service_unavailable");
            assert_eq!(scene.status(&key.secret), 200, "nothing was done");
        },
        |scene| {
            scene.redis.command(&["REPLICAOF", "NO", "ONE"]);
        },
    );
}

#[test]
fn restarted_empty() {
    endure(
        "restarted empty",
        Left::Nothing,
        |scene| {
            scene.redis.command(&["SAVE"]);
            scene.redis.kill();
            let folder = scene.redis.folder();
            fs::rename(folder.join("dump.rdb"), folder.join("kept.rdb")).unwrap();
            scene.redis.revive();
        },
        |scene| {
            scene.redis.kill();
            let folder = scene.redis.folder();
            fs::rename(folder.join("kept.rdb"), folder.join("dump.rdb")).unwrap();
            scene.redis.revive();
        },
    );
}

#[test]
fn restored_from_an_old_dump() {
    endure(
        "restored from an old dump",
        Left::Lookups,
        |scene| {
            scene.redis.command(&["SAVE"]);
            let victim = scene.cold.remove(0);
            eventually("it is known", || scene.status(&victim.secret) == 200);
            let revoke = Call::new("DELETE", &format!("/v1/api_keys/{}", victim.id())).key(&scene.admin);
            assert_eq!(fetch(scene.address, &revoke).status, 204);
            scene.redis.kill();
            scene.redis.revive();
            assert_ne!(scene.status(&victim.secret), 200);
            scene.revoked = Some(victim);
        },
        |scene| {
            let revoked = scene.revoked.take().unwrap().secret;
            eventually("it is refused for good", || match scene.status(&revoked) {
                200 => panic!("it is back"),
                status => status == 401,
            });
        },
    );
}
