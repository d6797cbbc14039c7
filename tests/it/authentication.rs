//! Authentication: all keys that are not valid get the same 401, with no more lookups than necessary.

use std::time::Duration;

use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};

use crate::harness::{Answer, Call, Gateway, TestKey, Upstream, Valve, Wire, eventually};

const BARE: &str = "Bearer realm=\"keygate\"";
const INVALID: &str = "Bearer realm=\"keygate\", error=\"invalid_token\"";

struct World {
    valve: Valve,
    live: Upstream,
    test: Upstream,
    gateway: Gateway,
}

impl World {
    fn start() -> Self {
        Self::with("")
    }

    fn with(settings: &str) -> Self {
        let valve = Valve::new();
        let (live, test) = (Upstream::start("live"), Upstream::start("test"));
        let gateway = Gateway::builder().settings(settings).api(&live, &test).store(valve.fitted()).start();
        Self { valve, live, test, gateway }
    }

    /// Sends the value as it is in the Authorization field.
    fn credentials(&self, value: &str) -> Answer {
        self.gateway.fetch(&Call::get("/v1/jobs").field("authorization", value))
    }

    fn key(&self, secret: &str) -> Answer {
        self.gateway.fetch(&Call::get("/v1/jobs").key(secret))
    }
}

fn mint(environment: Environment) -> String {
    KeyFormat::new(&Prefix::default(), false).mint(environment).unwrap().expose().to_owned()
}

/// The key with a correct checksum.
fn with_checksum(key: &str) -> String {
    const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let body = &key[..key.len() - 6];
    let mut rest = crc32fast::hash(body.as_bytes());
    let mut digits = [0; 6];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    format!("{body}{}", std::str::from_utf8(&digits).unwrap())
}

fn with_last_changed(key: &str) -> String {
    let changed = if key.ends_with('x') { 'y' } else { 'x' };
    format!("{}{changed}", &key[..key.len() - 1])
}

/// The whole answer, without its date and the request's id.
fn without_id(answer: &Answer) -> (String, Vec<(String, String)>, String) {
    let id = answer.field("x-request-id").unwrap().to_owned();
    let fields = answer.fields.iter().filter(|(name, _)| !matches!(name.as_str(), "date" | "x-request-id"));
    (answer.status_line.clone(), fields.cloned().collect(), answer.text().replace(&id, "ID"))
}

#[test]
fn all_invalid_keys_get_the_same_401() {
    let world = World::start();
    let gateway = &world.gateway;
    let valid = gateway.live_key().secret;
    let test = gateway.test_key().secret;
    let expired = gateway.expiring_key(Duration::from_secs(1));
    let revoked = gateway.live_key();
    gateway.revoke(&revoked);
    let disabled = gateway.live_key();
    gateway.block_on(world.valve.change_key(disabled.id(), |key| key.disabled_at = Some(UnixMillis(1))));
    let ended = gateway.live_key();
    gateway.block_on(world.valve.change_key(ended.id(), |key| key.secrets[0].ends_at = Some(UnixMillis(1))));
    gateway.advance(Duration::from_secs(2));

    let swapped = valid.replace("fh_live_", "fh_test_");
    let digits = &valid["fh_live_sk_".len()..];
    let bearer = |token: &str| format!("Bearer {token}");
    let rows = [
        ("unknown", bearer(&mint(Environment::Live))),
        ("unknown, test", bearer(&mint(Environment::Test))),
        ("expired", bearer(&expired.secret)),
        ("revoked", bearer(&revoked.secret)),
        ("disabled", bearer(&disabled.secret)),
        ("its secret has ended", bearer(&ended.secret)),
        ("the other environment's prefix", bearer(&swapped)),
        ("the other environment's prefix, checksum and all", bearer(&with_checksum(&swapped))),
        ("the other environment's prefix on a test key", bearer(&test.replace("fh_test_", "fh_live_"))),
        ("nonsense", bearer("nonsense")),
        ("the prefix alone", bearer("fh_live_sk_")),
        ("another prefix", bearer(&valid.replace("fh_", "sk_"))),
        ("another kind", bearer(&valid.replace("_sk_", "_pk_"))),
        ("without its prefix", bearer(digits)),
        ("truncated", bearer(&valid[..valid.len() - 1])),
        ("truncated to half", bearer(&valid[..valid.len() / 2])),
        ("truncated, checksum made to fit", bearer(&with_checksum(&valid[..valid.len() - 1]))),
        ("its last digit changed", bearer(&with_last_changed(&valid))),
        ("in lower case", bearer(&valid.to_lowercase())),
        ("in upper case", bearer(&valid.to_uppercase())),
        ("its prefix in upper case", bearer(&valid.replace("fh_live_sk_", "FH_LIVE_SK_"))),
        ("trailing junk", bearer(&format!("{valid}x"))),
        ("a trailing word", bearer(&format!("{valid} x"))),
        ("a trailing comma", bearer(&format!("{valid},"))),
        ("padding", bearer(&format!("{valid}="))),
        ("in quotes", bearer(&format!("\"{valid}\""))),
        ("as a parameter", bearer(&format!("token={valid}"))),
        ("a leading tab", format!("Bearer \t{valid}")),
        ("a tab for the blank", format!("Bearer\t{valid}")),
        ("a null byte's escape", bearer(&format!("{valid}%00"))),
        ("two tokens", bearer(&format!("{valid} {valid}"))),
        ("comma-joined with itself", format!("Bearer {valid}, Bearer {valid}")),
        ("comma-joined with another", format!("Bearer {}, Bearer {valid}", revoked.secret)),
        ("comma-joined with another scheme", format!("Basic eDp5, Bearer {valid}")),
        ("very long", bearer(&format!("{valid}{}", "x".repeat(8000)))),
        ("another scheme", format!("Basic {valid}")),
        ("another scheme that begins alike", format!("BearerX {valid}")),
        ("a scheme that ends alike", format!("XBearer {valid}")),
        ("no blank", format!("Bearer{valid}")),
        ("a colon for the blank", format!("Bearer: {valid}")),
        ("no scheme", valid.clone()),
        ("octets beyond ASCII", bearer(&format!("{valid}é"))),
    ];
    assert_eq!(world.key(&valid).status, 200, "the key they are made from is a good one");
    let expected = without_id(&world.key(&mint(Environment::Live)));
    for (what, credentials) in rows {
        let answer = world.credentials(&credentials);
        assert_eq!(answer.status, 401, "{what}: {}", answer.text());
        assert_eq!(answer.refusal(401, "authentication_error"), "Invalid or missing API key", "{what}");
        assert_eq!(answer.field("www-authenticate"), Some(INVALID), "{what}");
        assert_eq!(without_id(&answer), expected, "{what}");
    }
    assert_eq!(world.live.seen().len() + world.test.seen().len(), 1);
}

#[test]
fn without_credentials_the_401_is_the_same_but_its_challenge_is_bare() {
    let world = World::start();
    let missing = world.gateway.fetch(&Call::get("/v1/jobs"));
    assert_eq!(missing.refusal(401, "authentication_error"), "Invalid or missing API key");
    assert_eq!(missing.field("www-authenticate"), Some(BARE));
    let (line, mut fields, body) = without_id(&missing);
    for (name, value) in &mut fields {
        if name == "www-authenticate" {
            *value = INVALID.to_owned();
        }
    }
    assert_eq!((line, fields, body), without_id(&world.key("nonsense")));
    for empty in ["", "Bearer", "Bearer "] {
        world.credentials(empty).refusal(401, "authentication_error");
    }
    assert_eq!(world.valve.lookups(), 0);
}

#[test]
fn the_scheme_is_read_in_any_case_and_blanks_may_follow_it() {
    let world = World::start();
    let secret = world.gateway.live_key().secret;
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        assert_eq!(world.credentials(&format!("{scheme} {secret}")).status, 200, "{scheme}");
    }
    // RFC 9110, section 11.4: one blank or more.
    assert_eq!(world.credentials(&format!("Bearer   {secret}")).status, 200);
}

#[test]
fn two_authorization_fields_are_a_400() {
    let world = World::start();
    let valid = format!("Bearer {}", world.gateway.live_key().secret);
    for (first, second) in [
        (valid.as_str(), valid.as_str()),
        (&valid, "Bearer nonsense"),
        ("Basic eDp5", &valid),
        ("", &valid),
        (&valid, ""),
    ] {
        let call = Call::get("/v1/jobs").field("authorization", first).field("Authorization", second);
        let answer = world.gateway.fetch(&call);
        answer.refusal(400, "validation_error");
        assert_eq!(answer.field("www-authenticate"), None);
    }
    assert_eq!((world.live.connections(), world.valve.lookups()), (0, 0));
}

#[test]
fn a_malformed_key_costs_no_lookup() {
    let world = World::start();
    let valid = mint(Environment::Live);
    for token in [
        "nonsense",
        "fh_live_sk_",
        &valid[..valid.len() - 1],
        &with_last_changed(&valid),
        &valid.to_lowercase(),
        &format!("{valid}x"),
        &valid.replace("live", "test"),
        &"x".repeat(4000),
    ] {
        world.key(token).refusal(401, "authentication_error");
    }
    assert_eq!(world.valve.lookups(), 0);
    world.key(&valid).refusal(401, "authentication_error");
    assert_eq!(world.valve.lookups(), 1, "a well-formed one costs one");
}

#[test]
fn a_key_counts_in_the_authorization_field_and_nowhere_else() {
    let world = World::start();
    let secret = &world.gateway.live_key().secret;
    let get = Call::get;
    for (place, call) in [
        ("query", get(&format!("/v1/jobs?access_token={secret}&api_key={secret}&key={secret}"))),
        (
            "cookie",
            get("/v1/jobs").field("cookie", &format!("access_token={secret}; authorization=Bearer {secret}")),
        ),
        (
            "body",
            Call::post("/v1/jobs", format!("access_token={secret}"))
                .field("content-type", "application/x-www-form-urlencoded"),
        ),
        ("X-Api-Key", get("/v1/jobs").field("x-api-key", secret)),
        ("Api-Key", get("/v1/jobs").field("api-key", secret)),
        ("X-Authorization", get("/v1/jobs").field("x-authorization", &format!("Bearer {secret}"))),
        ("Proxy-Authorization", get("/v1/jobs").field("proxy-authorization", &format!("Bearer {secret}"))),
        ("an alias", get("/v1/jobs").field("authorization_", &format!("Bearer {secret}"))),
        (
            "X-Forwarded-Authorization",
            get("/v1/jobs").field("x-forwarded-authorization", &format!("Bearer {secret}")),
        ),
    ] {
        let answer = world.gateway.fetch(&call);
        assert_eq!(answer.status, 401, "{place}: {}", answer.text());
        answer.refusal(401, "authentication_error");
        assert_eq!(answer.field("www-authenticate"), Some(BARE), "{place}: no credentials came");
    }
    // A trailer is ignored, and userinfo makes the target unsafe.
    let mut wire = world.gateway.connect();
    wire.send(
        format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ntrailer: authorization\r\n\r\n\
             0\r\nauthorization: Bearer {secret}\r\n\r\n"
        )
        .as_bytes(),
    );
    wire.answer().unwrap().refusal(401, "authentication_error");
    let mut wire = world.gateway.connect();
    wire.send(format!("GET http://{secret}@h/v1/jobs HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes());
    assert_eq!(wire.answer().unwrap().status, 400);
    assert_eq!((world.live.connections(), world.valve.lookups()), (0, 0));
}

#[test]
fn a_cached_key_expires_on_time() {
    let world = World::start();
    let key = world.gateway.expiring_key(Duration::from_secs(40));
    let mut wire = world.gateway.connect();
    let mut fetch = || wire.call(&Call::get("/v1/jobs").key(&key.secret)).unwrap();
    assert_eq!(fetch().status, 200);
    world.gateway.advance(Duration::from_secs(20));
    assert_eq!(fetch().status, 200);
    world.gateway.advance(Duration::from_secs(20));
    fetch().refusal(401, "authentication_error");
    assert_eq!(world.valve.lookups(), 1, "judged on the request, not on a new lookup");
    assert_eq!(world.live.seen().len(), 2);
}

#[test]
fn a_revoked_key_is_refused_on_the_very_next_request_of_every_connection() {
    let world = World::start();
    let (key, other) = (world.gateway.live_key(), world.gateway.live_key());
    let call = Call::get("/v1/jobs").key(&key.secret);
    // Connections go to the least loaded worker, so eight of them keep both workers' own caches warm.
    let mut wires: Vec<Wire> = (0..8).map(|_| world.gateway.connect()).collect();
    for wire in &mut wires {
        assert_eq!(wire.call(&call).unwrap().status, 200);
        assert_eq!(wire.call(&Call::get("/v1/jobs").key(&other.secret)).unwrap().status, 200);
    }
    assert_eq!(world.valve.lookups(), 2, "both are cached everywhere");
    world.gateway.revoke(&key);
    for wire in &mut wires {
        wire.call(&call).unwrap().refusal(401, "authentication_error");
    }
    assert_eq!(world.live.seen().len(), 16);
    for wire in &mut wires {
        assert_eq!(wire.call(&Call::get("/v1/jobs").key(&other.secret)).unwrap().status, 200);
    }
    // It stays refused after its ttl, and after a second revocation.
    world.gateway.revoke(&key);
    world.gateway.advance(Duration::from_secs(61));
    world.gateway.fetch(&call).refusal(401, "authentication_error");
}

#[test]
fn a_suspended_organisation_stops_its_cached_keys_at_once() {
    let world = World::start();
    let keys = [world.gateway.live_key(), world.gateway.test_key()];
    for key in &keys {
        assert_eq!(world.key(&key.secret).status, 200);
    }
    let suspend = |at| {
        world.gateway.block_on(world.valve.change_org(world.gateway.org, |org| org.suspended_at = at));
    };
    suspend(Some(UnixMillis(1)));
    for key in &keys {
        world.key(&key.secret).refusal(403, "forbidden");
    }
    suspend(None);
    for key in &keys {
        assert_eq!(world.key(&key.secret).status, 200);
    }
}

const CROWD: &str = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\nmax_connections = 3000\n\
                     max_connections_per_client = 3000\n[cache]\nlookup_timeout = \"20s\"\n";

/// Requests of many clients, all sent, none answered. They match no route, so that a valid key gets 404 and no
/// upstream is needed.
fn crowd(world: &World, secret: &str, size: usize) -> Vec<Wire> {
    let request = format!("GET /nowhere HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {secret}\r\n\r\n");
    let wires: Vec<Wire> = (0..size)
        .map(|_| {
            let mut wire = world.gateway.connect();
            wire.send(request.as_bytes());
            wire
        })
        .collect();
    // Connections are served in order, so after these answers all of the other requests, or nearly all,
    // have been read.
    for _ in 0..4 {
        world.gateway.fetch(&Call::get("/nowhere")).refusal(401, "authentication_error");
    }
    wires
}

#[test]
fn a_thousand_first_requests_for_one_key_make_one_lookup() {
    let world = World::with(CROWD);
    let key = world.gateway.live_key();
    world.valve.hold();
    let wires = crowd(&world, &key.secret, 1000);
    eventually("a lookup is under way", || world.valve.held() == 1);
    world.valve.pass();
    for mut wire in wires {
        wire.answer().unwrap().refusal(404, "not_found");
    }
    assert_eq!(world.valve.lookups(), 1);
}

#[test]
fn a_lookup_survives_the_callers_who_began_it() {
    let world = World::with(CROWD);
    let key = world.gateway.live_key();
    world.valve.hold();
    let mut wires = crowd(&world, &key.secret, 50);
    eventually("a lookup is under way", || world.valve.held() == 1);
    // The first clients disconnect, including the one that began the lookup; keygate has noticed it when it answers the
    // next one.
    drop(wires.drain(..25));
    wires.extend(crowd(&world, &key.secret, 25));
    assert_eq!(world.valve.held(), 1, "it is still under way");
    world.valve.pass();
    for mut wire in wires {
        wire.answer().unwrap().refusal(404, "not_found");
    }
    assert_eq!(world.valve.lookups(), 1);
}

#[test]
fn a_lookup_whose_callers_all_hang_up_still_fills_the_cache() {
    let world = World::with(CROWD);
    let key = world.gateway.live_key();
    world.valve.hold();
    let wires = crowd(&world, &key.secret, 3);
    eventually("a lookup is under way", || world.valve.held() == 1);
    drop(wires);
    world.valve.pass();
    eventually("the lookup has ended", || world.valve.held() == 0);
    assert_eq!(world.key(&key.secret).status, 200);
    assert_eq!(world.valve.lookups(), 1);
}

/// A request whose lookup has read a good key and waits with its answer, while the key is revoked.
#[track_caller]
fn overtaken_by_a_revocation() -> (World, TestKey, Wire) {
    let world = World::with("[cache]\nlookup_timeout = \"20s\"");
    let key = world.gateway.live_key();
    world.valve.hold();
    let mut wire = world.gateway.connect();
    wire.send(&Call::get("/v1/jobs").key(&key.secret).to_bytes());
    eventually("the lookup has read a valid key", || world.valve.held() == 1);
    world.gateway.revoke(&key);
    (world, key, wire)
}

#[test]
fn a_lookup_that_began_before_a_revocation_is_not_served_after_it() {
    let (world, key, mut wire) = overtaken_by_a_revocation();
    world.valve.pass();
    wire.answer().unwrap().refusal(401, "authentication_error");
    assert_eq!(world.valve.lookups(), 2, "what was read is thrown away, and read again");
    world.key(&key.secret).refusal(401, "authentication_error");
    assert_eq!(world.live.connections(), 0);
}

#[test]
fn a_lookup_overtaken_by_a_revocation_while_the_store_goes_down_is_503_and_never_served() {
    let (world, key, mut wire) = overtaken_by_a_revocation();
    world.valve.fail();
    wire.answer().unwrap().refusal(503, "service_unavailable");
    world.valve.pass();
    world.key(&key.secret).refusal(401, "authentication_error");
    assert_eq!(world.live.connections(), 0);
}
