//! A request with a test key never reaches a live upstream, and a request with a live key never reaches a test
//! upstream, on any route and after any failure.

use std::sync::atomic::{AtomicUsize, Ordering};

use keygate::vocabulary::key::Environment;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::harness::{Call, ClosedPort, Gateway, Reply, Upstream};

/// Both upstreams behind every kind of route; `/sandbox` sends those without a key to test.
const POLICY: &str = r#"
scopes = ["a", "b"]
[[route]]
id = "scoped"
methods = ["GET", "POST"]
paths = ["/scoped/{*rest}"]
scopes = ["a"]
upstream = "first"
[[route]]
id = "any"
methods = ["GET", "POST"]
paths = ["/any/{*rest}"]
any_key = true
upstream = "second"
[[route]]
id = "open"
methods = ["GET", "POST"]
paths = ["/open/{*rest}"]
public = true
upstream = "first"
[[route]]
id = "open.kept"
methods = ["GET", "POST"]
paths = ["/kept/{*rest}"]
public = true
forward_authorization = true
upstream = "second"
[[route]]
id = "sandbox"
methods = ["GET", "POST"]
paths = ["/sandbox/{*rest}"]
public = true
environment = "test"
upstream = "second"
"#;

const ROUTES: [&str; 5] = ["scoped", "any", "open", "kept", "sandbox"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Valid,
    /// Valid, but without the scope of `/scoped`.
    Narrow,
    Revoked,
    Truncated,
    Mistyped,
    WithJunk,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    /// `None` for a request without a key.
    key: Option<(Environment, State)>,
    route: &'static str,
    post: bool,
    /// Sent on the previous connection, or on a new one.
    kept: bool,
    gateway: usize,
}

fn request() -> impl Strategy<Value = Request> {
    let environment = prop_oneof![Just(Environment::Live), Just(Environment::Test)];
    let state = prop_oneof![
        3 => Just(State::Valid),
        1 => Just(State::Narrow),
        1 => Just(State::Revoked),
        1 => Just(State::Truncated),
        1 => Just(State::Mistyped),
        1 => Just(State::WithJunk),
    ];
    let key = proptest::option::weighted(0.9, (environment, state));
    (key, proptest::sample::select(&ROUTES[..]), any::<bool>(), any::<bool>(), 0..2_usize)
        .prop_map(|(key, route, post, kept, gateway)| Request { key, route, post, kept, gateway })
}

/// One upstream of one gateway, and its environment.
struct Side {
    environment: Environment,
    upstream: Upstream,
}

struct World {
    gateway: Gateway,
    /// `first` live, `first` test, `second` live, `second` test.
    sides: Vec<Side>,
    /// The secrets by environment: of a valid key, a narrow one, a revoked one.
    secrets: [[String; 3]; 2],
}

impl World {
    fn start(host: &str) -> Self {
        let sides: Vec<Side> = [Environment::Live, Environment::Test, Environment::Live, Environment::Test]
            .map(|environment| Side { environment, upstream: Upstream::start(environment.as_str()) })
            .into();
        let mut settings = String::new();
        for (name, sides) in ["first", "second"].iter().zip(sides.chunks(2)) {
            settings += &format!(
                "[upstreams.{name}]\nlive = [\"{}\"]\ntest = [\"{}\"]\nhost = \"{host}\"\n",
                sides[0].upstream.url(),
                sides[1].upstream.url()
            );
        }
        let gateway = Gateway::builder().settings(&settings).policy(POLICY).start();
        let secrets = Environment::ALL.map(|environment| {
            let valid = gateway.key(environment, None, None);
            let narrow = gateway.key(environment, Some(&["b"]), None);
            let revoked = gateway.key(environment, None, None);
            gateway.revoke(&revoked);
            [valid.secret, narrow.secret, revoked.secret]
        });
        Self { gateway, sides, secrets }
    }

    fn token(&self, environment: Environment, state: State) -> String {
        let [valid, narrow, revoked] = &self.secrets[environment as usize];
        match state {
            State::Valid => valid.clone(),
            State::Narrow => narrow.clone(),
            State::Revoked => revoked.clone(),
            State::Truncated => valid[..valid.len() - 3].to_owned(),
            State::Mistyped => format!("{}_", &valid[..valid.len() - 1]),
            State::WithJunk => format!("{valid} junk"),
        }
    }
}

/// The result of a request by the contract: a status, and the environment of the upstream.
fn expected(request: &Request) -> (u16, Option<Environment>) {
    let without_key = match request.route {
        "open" | "kept" => Some(Environment::Live),
        "sandbox" => Some(Environment::Test),
        _ => None,
    };
    if let Some(default) = without_key {
        // No key is needed, but a key that is sent decides the environment.
        return (200, Some(request.key.map_or(default, |(environment, _)| environment)));
    }
    match request.key {
        Some((environment, State::Valid)) => (200, Some(environment)),
        Some((_, State::Narrow)) if request.route == "scoped" => (403, None),
        Some((environment, State::Narrow)) => (200, Some(environment)),
        _ => (401, None),
    }
}

#[test]
fn no_request_crosses_from_one_environment_into_the_other() {
    let worlds = [World::start("client"), World::start("endpoint")];
    let marker = AtomicUsize::new(0);
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let requests = proptest::collection::vec(request(), 1..12);
    let outcome = runner.run(&requests, |requests| {
        let mut wires = [worlds[0].gateway.connect(), worlds[1].gateway.connect()];
        for request in requests {
            let world = &worlds[request.gateway];
            let target = format!("/{}/{}", request.route, marker.fetch_add(1, Ordering::Relaxed));
            let mut call = if request.post { Call::post(&target, "body") } else { Call::get(&target) };
            if let Some((environment, state)) = request.key {
                call = call.key(&world.token(environment, state));
            }
            let answer = if request.kept {
                wires[request.gateway].call(&call).expect("the connection is kept")
            } else {
                world.gateway.fetch(&call)
            };
            let mut reached = None;
            for Side { environment, upstream } in &world.sides {
                for seen in upstream.seen() {
                    prop_assert!(reached.is_none(), "{:?} reached two upstreams", request);
                    prop_assert!(seen.request_line().contains(&target));
                    reached = Some(*environment);
                }
                upstream.forget();
            }
            if let (Some(reached), Some((presented, _))) = (reached, request.key) {
                prop_assert_eq!(reached, presented, "{:?} presents a key of the other environment", request);
            }
            prop_assert_eq!((answer.status, reached), expected(&request), "{:?}", request);
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn while_an_environment_is_unreachable_its_requests_are_502_and_go_nowhere_else() {
    let (closed, up) = (ClosedPort::reserve(), Upstream::start("up"));
    for down in Environment::ALL {
        let (live, test) = match down {
            Environment::Live => (closed.url(), up.url()),
            Environment::Test => (up.url(), closed.url()),
        };
        let gateway = Gateway::builder()
            .policy(POLICY)
            .upstream("first", &live, &test)
            .upstream("second", &live, &test)
            .start();
        let key = gateway.key(down, None, None);
        let connections = up.connections();
        let mut wire = gateway.connect();
        for _ in 0..3 {
            for route in ROUTES {
                let call = Call::get(&format!("/{route}/x")).key(&key.secret);
                wire.call(&call).unwrap().refusal(502, "bad_gateway");
                gateway.fetch(&call).refusal(502, "bad_gateway");
            }
        }
        assert_eq!(up.connections(), connections, "{down} keys went to the other environment");
        // The other environment is not affected.
        let other = if down == Environment::Live { Environment::Test } else { Environment::Live };
        let key = gateway.key(other, None, None);
        assert_eq!(gateway.fetch(&Call::get("/scoped/x").key(&key.secret)).status, 200);
    }
}

#[test]
fn while_an_environment_breaks_off_its_requests_are_502_and_go_nowhere_else() {
    let (live, test) = (Upstream::start("live"), Upstream::with(|_| Reply::BytesThenClose(Vec::new())));
    let gateway = Gateway::builder()
        .policy(POLICY)
        .upstream("first", &live.url(), &test.url())
        .upstream("second", &live.url(), &test.url())
        .start();
    let key = gateway.test_key();
    for _ in 0..3 {
        for route in ROUTES {
            gateway.fetch(&Call::get(&format!("/{route}/x")).key(&key.secret)).refusal(502, "bad_gateway");
        }
    }
    assert_eq!((live.connections(), test.seen().len()), (0, 15));
}
