//! `keygate serve --role proxy`, with the Redis user of the documentation: requests pass, revocations arrive, and
//! the proxy writes only its lease.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use keygate::config::FIRSTHAND_POLICY;
use keygate::store::keeper::LinkState;
use tempfile::TempDir;

use crate::harness::desk::write_secret;
use crate::harness::metrics::{scrape, value};
use crate::harness::process::keygate;
use crate::harness::{
    Call, Gateway, GatewayBuilder, Process, RedisServer, Transport, Upstream, eventually, fetch,
};

/// The operations of the shipped policy that keygate serves.
const SERVED: [(&str, &str); 10] = [
    ("POST", "/v1/auth/signup"),
    ("POST", "/v1/api_keys"),
    ("GET", "/v1/api_keys"),
    ("GET", "/v1/api_keys/self"),
    ("GET", "/v1/api_keys/key_01J00000000000000000000000"),
    ("PATCH", "/v1/api_keys/key_01J00000000000000000000000"),
    ("DELETE", "/v1/api_keys/key_01J00000000000000000000000"),
    ("POST", "/v1/api_keys/key_01J00000000000000000000000/rotate"),
    ("POST", "/v1/api_keys/key_01J00000000000000000000000/revoke"),
    ("GET", "/v1/audit_events"),
];

/// A route that matches all other paths.
const REST: &str = r#"
[[route]]
id = "rest"
methods = ["GET", "POST", "PATCH", "DELETE"]
paths = ["/v1/{*rest}"]
any_key = true
upstream = "api"
"#;

/// A Redis, two upstreams, and a folder for the proxy.
struct Scene {
    redis: RedisServer,
    upstreams: (Upstream, Upstream),
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let redis = RedisServer::with(&["--appendonly", "yes"]);
        let command = [&["ACL", "SETUSER", "proxy", "on", ">hunter2"], &rights()[..]].concat();
        assert_eq!(redis.command(&command), "+OK\r\n");
        let upstreams = (Upstream::start("live"), Upstream::start("test"));
        Self { redis, upstreams, folder: TempDir::new().unwrap() }
    }

    /// A Redis store with long time-outs for a busy machine; `user` logs in.
    fn builder(&self, user: &str) -> GatewayBuilder {
        let (live, test) = &self.upstreams;
        let url = self.redis.url();
        Gateway::builder().api(live, test).transport(Transport::Http1).settings(&format!(
            "[store]\nkind = \"redis\"\nurl = \"{url}\"\nallow_without_pepper = true\nconnect_timeout = \"10s\"\n\
             lookup_timeout = \"10s\"\ncommand_timeout = \"10s\"\n{user}\n[cache]\nlookup_timeout = \"10s\"\n\
             [ops]\nlisten = \"127.0.0.1:0\"\n[log]\nrequests = \"json\""
        ))
    }

    fn full(&self) -> Gateway {
        let full = self.builder("").settings("[keys]\nack_wait = \"20s\"").start();
        eventually("it has a lease", || full.lifecycle().keeper().link_state() == LinkState::Up);
        full
    }

    /// The proxy's configuration has all sections of a full gateway.
    fn write(&self, settings: &str) {
        write_secret(&self.folder.path().join("password"), "hunter2");
        self.builder("username = \"proxy\"\npassword_file = \"password\"")
            .settings(settings)
            .policy(&format!("{FIRSTHAND_POLICY}{REST}"))
            .write(self.folder.path());
    }

    /// Running, ready and linked.
    fn proxy(&self) -> Proxy {
        self.write(
            "[admin]\nsocket = \"admin.sock\"\nlisten = \"127.0.0.1:0\"\ntokens_file = \"no-such-tokens\"\n\
             [audit]\nkey_file = \"no-such-key\"\n[outbox]\nurl = \"http://127.0.0.1:1/\"\nkey_file = \"no-such-key\"\n\
             [signup]\nenabled = true",
        );
        let process = Process::keygate(self.folder.path(), &["serve", "--role", "proxy"]);
        let address = process.address();
        process.err_line("role proxy: forwards requests only");
        let ops = process.ops_address();
        eventually("it is linked", || value(&scrape(ops), "keygate_event_link_up") == Some(1.0));
        assert_eq!(fetch(ops, &Call::get("/readyz")).status, 200);
        Proxy { process, address, ops }
    }

    /// The commands that Redis refused to the proxy's user.
    fn refused(&self) -> String {
        self.redis.command(&["ACL", "LOG"])
    }
}

struct Proxy {
    process: Process,
    address: SocketAddr,
    ops: SocketAddr,
}

impl Proxy {
    fn status(&self, secret: &str) -> u16 {
        fetch(self.address, &Call::get("/v1/jobs").key(secret)).status
    }

    /// The newest record.
    fn record(&self) -> serde_json::Value {
        serde_json::from_str(&self.process.out_line("{")).unwrap()
    }
}

/// The line of the page on deployment.
fn rights() -> Vec<&'static str> {
    let readme = include_str!("../../deploy/README.md");
    let full = readme.lines().find(|line| line.starts_with("| a gateway | `~{kg}:* ")).unwrap();
    let rights = full.split('`').nth(1).unwrap();
    let line = readme.lines().find(|line| line.contains("`%R~{kg}:* ~{kg}:gateway*`")).unwrap();
    let keys = line.split('`').find(|part| part.starts_with("%R")).unwrap();
    keys.split(' ').chain(rights.split(' ').filter(|part| !part.starts_with('~'))).collect()
}

fn check(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output = keygate(folder, &[&["check", "--online"], arguments].concat()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn a_proxy_forwards_requests_and_answers_404_for_keygates_own_api() {
    let scene = Scene::new();
    let full = scene.full();
    let key = full.live_key();
    let id = key.id();
    full.drain(Duration::ZERO);
    let before = scene.redis.contents();
    let proxy = scene.proxy();
    // A full gateway records an event for a live key in a browser.
    let call = Call::get("/v1/jobs").key(&key.secret).field("Origin", "https://example.com");
    let answer = fetch(proxy.address, &call);
    assert_eq!((answer.status, proxy.record()["reason"].as_str()), (200, None));
    let seen = scene.upstreams.0.seen();
    assert_eq!(seen[0].value("x-key-id"), id.to_string());
    assert_eq!(seen.len(), 1);
    let mut routes = BTreeSet::new();
    for (method, path) in SERVED {
        let call = Call { body: b"{}".to_vec(), ..Call::new(method, path) };
        fetch(proxy.address, &call).refusal(401, "authentication_error");
        assert_eq!(proxy.record()["reason"], "key_missing");
        fetch(proxy.address, &call.key(&key.secret)).refusal(404, "not_found");
        let record = proxy.record();
        assert_eq!(record["reason"], "not_served_here");
        routes.insert(record["http.route"].as_str().unwrap().to_owned());
    }
    let served = FIRSTHAND_POLICY.lines().filter(|line| line.starts_with("serve = ")).count();
    assert_eq!(routes.len(), served, "every one of them: {routes:?}");
    assert_eq!(scene.upstreams.0.seen().len(), 1, "none of them went further");
    let refused = r#"keygate_auth_decisions_total{reason="not_served_here"}"#;
    eventually("they are counted", || value(&scrape(proxy.ops), refused) == Some(SERVED.len() as f64));
    assert!(!scene.folder.path().join("admin.sock").exists());
    let (_, told) = proxy.process.end();
    assert!(!told.contains("admin API"), "{told}");
    assert_eq!(scene.redis.contents(), before);
    assert_eq!(scene.refused(), "*0\r\n", "nothing else was tried either");
}

#[test]
fn a_proxy_applies_and_confirms_a_revocation_at_a_full_gateway() {
    let scene = Scene::new();
    let full = scene.full();
    let proxy = scene.proxy();
    let (key, other) = (full.live_key(), full.live_key());
    assert_eq!((proxy.status(&key.secret), proxy.status(&other.secret)), (200, 200));
    let call = Call::new("DELETE", &format!("/v1/api_keys/{}", key.id())).key(&other.secret);
    let answer = full.fetch(&call);
    assert_eq!(answer.status, 204, "{}", answer.text());
    let propagation = answer.field("keygate-propagation").unwrap();
    assert!(propagation.starts_with("confirmed=2/2; slowest_ms="), "{propagation}");
    assert_eq!((proxy.status(&key.secret), proxy.status(&other.secret)), (401, 200));
    proxy.process.end();
    let call = Call::new("DELETE", &format!("/v1/api_keys/{}", other.id())).key(&other.secret);
    let propagation = full.fetch(&call).field("keygate-propagation").unwrap().to_owned();
    assert!(propagation.starts_with("confirmed=1/1; slowest_ms="), "it has said that it goes: {propagation}");
    assert_eq!(scene.refused(), "*0\r\n");
}

/// Redis loses the revocation while no full gateway runs.
#[test]
fn a_revocation_that_redis_lost_stays_in_force_at_a_proxy_which_logs_it() {
    let scene = Scene::new();
    let full = scene.full();
    let proxy = scene.proxy();
    let key = full.live_key();
    let record = format!("{{kg}}:id:{}", key.id());
    assert_eq!(proxy.status(&key.secret), 200);
    scene.redis.command(&["COPY", &record, "before"]);
    full.revoke(&key);
    eventually("it arrives", || proxy.status(&key.secret) == 401);
    full.drain(Duration::ZERO);
    scene.redis.command(&["COPY", "before", &record, "REPLACE"]);
    scene.redis.command(&["DEL", "{kg}:events"]);
    let told = proxy.process.err_line("has lost the revocation");
    assert!(told.contains(&key.id().to_string()) && told.contains("it holds here"), "{told}");
    assert_eq!(proxy.status(&key.secret), 401);
    assert_eq!(scene.refused(), "*0\r\n");
}

#[test]
fn check_reports_the_missing_rights_of_the_user_for_each_role() {
    let scene = Scene::new();
    scene.write("");
    let (code, told) = check(scene.folder.path(), &["--role", "proxy"]);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("\nrole       proxy: forwards requests only"), "{told}");
    assert!(told.contains("fine       its user may do what a proxy does, and may not write"), "{told}");
    // Its lists of what a wider rule takes, and of other readings, name paths and rules, also those of the audit trail.
    let summary = || {
        told.lines().filter(|line| !["wider ", "literal ", "  "].iter().any(|list| line.starts_with(list)))
    };
    assert!(!summary().any(|line| line.contains("audit")), "{told}");
    let (code, told) = check(scene.folder.path(), &[]);
    assert!(code == 1 && told.contains("broken     its user may not run EVAL, EVALSHA, "), "{told}");
    assert!(told.contains(" on {kg}:meta: ") && told.contains("--role proxy"), "{told}");
    scene.redis.command(&["ACL", "SETUSER", "proxy", "resetkeys", "%R~{kg}:*"]);
    let (code, told) = check(scene.folder.path(), &["--role", "proxy"]);
    assert!(code == 1 && told.contains("broken     its user may not run EVAL, EVALSHA, "), "{told}");
    assert!(told.contains(" on {kg}:gateways: ") && !told.contains("{kg}:meta:"), "{told}");
    scene.redis.command(&["ACL", "SETUSER", "proxy", "~{kg}:*"]);
    let (code, told) = check(scene.folder.path(), &["--role", "proxy"]);
    assert!(code == 0 && told.contains("warning    its user may write to the store"), "{told}");
}

#[test]
fn a_proxy_needs_a_redis_store() {
    let folder = TempDir::new().unwrap();
    Gateway::builder().upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2").write(folder.path());
    for command in ["serve", "check"] {
        let output = keygate(folder.path(), &[command, "--role", "proxy"]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && told.contains("store.kind = \"redis\""), "{told}");
    }
    assert!(!folder.path().join("keygate.redb").exists());
}
