//! `/readyz`: a gateway is ready as long as some request could be let through, whatever its upstreams do; and it says what
//! is degraded.

use std::time::Duration;

use crate::harness::{
    Call, Chaos, ClosedPort, Gateway, RedisServer, TestKey, Upstream, Weather, eventually, fetch, is_linked,
};

/// After this time without a word of the store, routes that say so refuse keys.
const LEASE: Duration = Duration::from_secs(10);

const REFUSES: &str = r#"
[[route]]
id = "refuses"
methods = ["GET"]
paths = ["/refuses"]
any_key = true
upstream = "api"
on_partition = "refuse"
"#;
const SERVES: &str = r#"
[[route]]
id = "serves"
methods = ["GET"]
paths = ["/serves"]
any_key = true
upstream = "api"
on_partition = "serve"
"#;
const OPEN: &str = r#"
[[route]]
id = "open"
methods = ["GET"]
paths = ["/open"]
public = true
upstream = "api"
"#;

/// A gateway with these routes on a Redis, from which it can be cut off.
struct Scene {
    // First, so that it is dropped before its store.
    gateway: Gateway,
    chaos: Chaos,
    _redis: RedisServer,
}

impl Scene {
    #[track_caller]
    fn start(routes: &[&str], ops: &str) -> Self {
        let redis = RedisServer::start();
        let chaos = Chaos::before(redis.address());
        let gateway = Gateway::builder()
            .api(&Upstream::start("live"), &Upstream::start("test"))
            .policy(&format!("scopes = [\"a\"]\n{}", routes.concat()))
            .settings(&format!(
                "[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n\
                 [cache]\nttl = \"60s\"\nstale_window = \"5m\"\n[ops]\nlisten = \"127.0.0.1:0\"\n{ops}",
                chaos.url()
            ))
            .start();
        eventually("it is linked", || is_linked(&gateway));
        let scene = Self { gateway, chaos, _redis: redis };
        assert_eq!(scene.ready(""), (200, "ready\n".to_owned()));
        scene
    }

    fn ready(&self, query: &str) -> (u16, String) {
        let answer = fetch(self.gateway.ops_address(), &Call::get(&format!("/readyz{query}")));
        (answer.status, answer.text())
    }

    fn status(&self, target: &str, key: &TestKey) -> u16 {
        self.gateway.fetch(&Call::get(target).key(&key.secret)).status
    }

    /// Cuts the gateway off, for longer than its lease.
    #[track_caller]
    fn cut(&self) {
        self.turn_bad(Weather::Cut);
        self.gateway.advance(LEASE + Duration::from_secs(1));
    }

    #[track_caller]
    fn turn_bad(&self, weather: Weather) {
        self.chaos.turn(weather);
        eventually("the event link is down", || !is_linked(&self.gateway));
    }

    #[track_caller]
    fn recovers(&self) {
        self.chaos.turn(Weather::Fair);
        eventually("it is ready", || self.ready("").0 == 200);
    }
}

#[test]
fn a_gateway_that_is_cut_off_and_refuses_every_key_is_not_ready_and_says_what_is_degraded() {
    let scene = Scene::start(&[REFUSES], "");
    let key = scene.gateway.live_key();
    assert_eq!(scene.status("/refuses", &key), 200);
    scene.turn_bad(Weather::Cut);
    assert_eq!((scene.ready("").0, scene.status("/refuses", &key)), (200, 200), "its lease has not ended");
    scene.gateway.advance(LEASE + Duration::from_secs(1));
    assert_eq!(scene.status("/refuses", &key), 503);
    let (status, said) = scene.ready("");
    assert_eq!(status, 503);
    assert!(
        said.starts_with("not ready: the gateway is cut off from its store, and every route refuses"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
    let (status, said) = scene.ready("?verbose");
    assert_eq!(status, 503);
    for part in
        ["store: degraded: not heard from", "event link: degraded: changes made through other gateways"]
    {
        assert!(said.lines().any(|line| line.starts_with(part)), "{part}: {said}");
    }
    assert!(said.contains("\nupstreams: ok\n"), "{said}");
    scene.recovers();
    assert_eq!(scene.status("/refuses", &key), 200);
    eventually("all is well", || {
        let (status, said) = scene.ready("?verbose=1");
        status == 200 && said.lines().skip(1).all(|line| line.ends_with(": ok")) && said.lines().count() > 5
    });
}

#[test]
fn an_operator_may_want_a_cut_off_gateway_to_stay_ready() {
    let scene = Scene::start(&[REFUSES], "ready_when_cut_off = true");
    let key = scene.gateway.live_key();
    scene.cut();
    assert_eq!(scene.status("/refuses", &key), 503);
    assert_eq!(scene.ready(""), (200, "ready\n".to_owned()));
    assert!(scene.ready("?verbose").1.contains("store: degraded: not heard from"), "what it says stays true");
}

#[test]
fn a_route_that_needs_no_key_keeps_a_cut_off_gateway_ready() {
    let scene = Scene::start(&[REFUSES, OPEN], "");
    let key = scene.gateway.live_key();
    scene.cut();
    assert_eq!(scene.status("/refuses", &key), 503);
    assert_eq!(scene.gateway.fetch(&Call::get("/open")).status, 200);
    assert_eq!(scene.ready("").0, 200);
}

#[test]
fn a_route_that_serves_known_keys_keeps_a_cut_off_gateway_ready_until_no_key_is_known() {
    let scene = Scene::start(&[REFUSES, SERVES], "");
    let key = scene.gateway.live_key();
    assert_eq!(scene.status("/serves", &key), 200);
    scene.cut();
    assert_eq!((scene.status("/serves", &key), scene.status("/refuses", &key)), (200, 503));
    assert_eq!(scene.ready("").0, 200);
    scene.gateway.advance(Duration::from_secs(6 * 60));
    assert_eq!(scene.status("/serves", &key), 503, "its time is over");
    let (status, said) = scene.ready("");
    assert_eq!(status, 503);
    assert!(said.starts_with("not ready: the store does not answer, and no key is known here"), "{said}");
    scene.recovers();
    assert_eq!(scene.status("/serves", &key), 200);
}

#[test]
fn a_gateway_that_hears_of_no_changes_and_can_look_keys_up_is_as_ready_as_its_routes() {
    for (routes, expected) in [(&[REFUSES][..], 503), (&[REFUSES, SERVES], 200)] {
        let scene = Scene::start(routes, "");
        let key = scene.gateway.live_key();
        scene.turn_bad(Weather::Deaf);
        scene.gateway.advance(LEASE + Duration::from_secs(1));
        assert_eq!(scene.ready("").0, expected, "{routes:?}");
        let target = if expected == 200 { "/serves" } else { "/refuses" };
        assert_eq!(scene.status(target, &key), expected, "what the probe says is what a request gets");
    }
}

#[test]
fn upstreams_that_fail_make_no_gateway_unready() {
    let (live, test) = (ClosedPort::reserve(), ClosedPort::reserve());
    let gateway = Gateway::builder()
        .settings("[ops]\nlisten = \"127.0.0.1:0\"")
        .upstream("api", &live.url(), &test.url())
        .start();
    let ready = |query: &str| fetch(gateway.ops_address(), &Call::get(&format!("/readyz{query}")));
    let said = ready("?verbose").text();
    assert!(said.lines().skip(1).all(|line| line.ends_with(": ok")), "{said}");
    assert!(!said.contains("event link"), "the embedded store has none: {said}");
    for key in [gateway.test_key(), gateway.live_key()] {
        assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(&key.secret)).status, 502);
        assert_eq!((ready("").status, ready("").text().as_str()), (200, "ready\n"));
    }
    let said = ready("?verbose").text();
    let line = said
        .lines()
        .find(|line| line.starts_with("upstreams: degraded: "))
        .unwrap_or_else(|| panic!("{said}"));
    for url in [live.url(), test.url()] {
        assert!(line.contains(url.trim_start_matches("http://")), "{line}");
    }
}
