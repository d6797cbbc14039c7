//! Which rule a request falls under, by its path and its method, and which scopes a rule asks for.

use std::fs;

use keygate::config::{FIRSTHAND_POLICY, STARTER_POLICY};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::api::json_call;
use crate::harness::process::keygate;
use crate::harness::{Call, Gateway, Process, Upstream, World, create_key, fetch};

/// A rule for reading with a wide path, and one for creating with a path within it.
const ORDERS: &str = r#"
scopes = ["orders:read", "orders:write", "orders:admin"]

[[route]]
id = "api.read"
methods = ["GET"]
paths = ["/api/{*rest}"]
scopes = ["orders:read"]
upstream = "api"

[[route]]
id = "orders.create"
methods = ["POST"]
paths = ["/api/orders"]
scopes = ["orders:write"]
upstream = "api"
"#;

#[test]
fn a_path_with_a_rule_for_one_method_falls_under_the_wider_rule_with_every_other() {
    let world = World::with(ORDERS);
    let [reader, writer] = ["orders:read", "orders:write"].map(|scope| world.gateway.key_with(&[scope]));
    for (method, target, of_reader, of_writer) in [
        ("GET", "/api/orders", 200, 403),
        ("HEAD", "/api/orders", 200, 403),
        ("POST", "/api/orders", 403, 200),
        ("PUT", "/api/orders", 404, 404),
        ("OPTIONS", "/api/orders", 404, 404),
        ("GET", "/api/customers", 200, 403),
        ("POST", "/api/customers", 404, 404),
        ("POST", "/api/orders/1", 404, 404),
    ] {
        let row = format!("{method} {target}");
        assert_eq!(world.status(method, target, Some(&reader)), of_reader, "{row}");
        assert_eq!(world.status(method, target, Some(&writer)), of_writer, "{row}");
        assert_eq!(world.status(method, target, None), 401, "{row}");
    }
}

#[test]
fn a_rule_can_deny_the_methods_that_it_does_not_have() {
    let denying = ORDERS
        .replace("paths = [\"/api/orders\"]\n", "paths = [\"/api/orders\"]\nother_methods = \"deny\"\n");
    let world = World::with(&denying);
    let key = world.gateway.live_key();
    for (method, target, status) in [
        ("GET", "/api/orders", 404),
        ("HEAD", "/api/orders", 404),
        ("POST", "/api/orders", 200),
        ("GET", "/api/customers", 200),
        ("GET", "/api/orders/1", 200),
        // An upstream that ignores letters' case would take these for the path of the rule.
        ("GET", "/api/Orders", 400),
        ("GET", "/api/orders;v=1", 400),
    ] {
        assert_eq!(world.status(method, target, Some(&key)), status, "{method} {target}");
        assert_eq!(world.status(method, target, None), 401, "{method} {target}");
    }
}

#[test]
fn a_request_goes_on_only_if_every_reading_of_its_path_falls_under_the_same_rule() {
    let secret = "[[route]]\nid = \"secret\"\nmethods = [\"GET\"]\npaths = [\"/api/secret\", \"/api/box/{*rest}\"]\nscopes = \
                  [\"orders:admin\"]\nupstream = \"api\"\n";
    let world = World::with(&format!("{ORDERS}\n{secret}"));
    let key = world.gateway.key_with(&["orders:read", "orders:write"]);
    for (method, target, status) in [
        // In every reading, the rule for POST does not get them.
        ("GET", "/api/orders", 200),
        ("GET", "/api/Orders", 200),
        ("GET", "/api/orders;v=1", 200),
        ("GET", "/api/orders%3Bv", 200),
        ("GET", "/api/orders/", 200),
        // In one reading, a rule for POST gets it, and in another none.
        ("POST", "/api/Orders", 404),
        ("POST", "/api/orders;v=1", 404),
        // In one reading, the rule for GET with another scope gets them.
        ("GET", "/api/secret", 403),
        ("GET", "/api/Secret", 400),
        ("GET", "/api/secret;v", 400),
        ("HEAD", "/api/SECRET", 400),
        ("GET", "/api/secret/", 400),
        ("GET", "/api/box", 400),
        ("GET", "/api/Box/1", 400),
    ] {
        assert_eq!(world.status(method, target, Some(&key)), status, "{method} {target}");
        assert_eq!(world.status(method, target, None), 401, "{method} {target}");
    }
}

#[test]
fn one_public_rule_answers_the_preflight_requests_of_all_paths_and_opens_nothing_else() {
    let preflight = "[[route]]\nid = \"preflight\"\nmethods = [\"OPTIONS\"]\npaths = [\"/{*rest}\"]\npublic = \
                     true\nupstream = \"api\"\n";
    let world = World::with(&format!("{ORDERS}\n{preflight}"));
    let key = world.gateway.key_with(&["orders:admin"]);
    for target in ["/api/orders", "/api/customers", "/other"] {
        assert_eq!(world.status("OPTIONS", target, None), 200, "{target}");
        assert_eq!(world.status("OPTIONS", target, Some(&key)), 200, "{target}");
        for method in ["GET", "HEAD", "POST", "DELETE"] {
            assert_eq!(world.status(method, target, None), 401, "{method} {target}");
            assert!([403, 404].contains(&world.status(method, target, Some(&key))), "{method} {target}");
        }
    }
}

/// What `check` says about a policy.
#[track_caller]
fn checked(policy: &str) -> String {
    let folder = TempDir::new().unwrap();
    Gateway::builder()
        .policy(policy)
        .upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2")
        .write(folder.path());
    let output = keygate(folder.path(), &["check"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const PASSED_ON: &str = "GET /api/orders: taken by the wider rule api.read (policy.toml:4), because orders.create \
                         (policy.toml:11) does not have the method; other_methods = \"deny\" in orders.create refuses it";

#[test]
fn check_lists_what_falls_under_a_wider_rule_with_the_lines_of_both() {
    let told = checked(ORDERS);
    assert!(told.contains(&format!("\nwider      {PASSED_ON}\n")), "{told}");
    let denied = ORDERS.replace("[\"/api/orders\"]", "[\"/api/orders\"]\nother_methods = \"deny\"");
    for policy in [FIRSTHAND_POLICY, STARTER_POLICY, &denied] {
        let told = checked(policy);
        assert!(!told.contains("\nwider "), "{told}");
    }
}

#[test]
fn serve_and_a_reload_list_what_falls_under_a_wider_rule() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let folder = TempDir::new().unwrap();
    Gateway::builder().policy(ORDERS).api(&live, &test).write(folder.path());
    let secret = create_key(folder.path());
    let gateway = Process::serve(folder.path());
    gateway.err_line(PASSED_ON);
    let address = gateway.address();
    let status = || fetch(address, &Call::get("/api/orders").key(&secret)).status;
    assert_eq!(status(), 200);

    let policy = folder.path().join("policy.toml");
    fs::write(&policy, ORDERS.replace("[\"/api/orders\"]", "[\"/api/orders\"]\nother_methods = \"deny\""))
        .unwrap();
    gateway.signal(Signal::HUP);
    gateway.err_line("2 routes are in force");
    assert_eq!(status(), 404);
    fs::write(&policy, ORDERS).unwrap();
    gateway.signal(Signal::HUP);
    gateway.err_line("2 routes are in force");
    gateway.err_line(PASSED_ON);
    assert_eq!(status(), 200);
}

#[test]
fn the_lists_are_bounded_and_say_that_there_is_more() {
    let mut policy = ORDERS.to_owned();
    for n in 0..300 {
        policy += &format!(
            "[[route]]\nid = \"create.{n}\"\nmethods = [\"POST\"]\npaths = [\"/api/things/{n}\"]\nany_key = \
             true\nupstream = \"api\"\n"
        );
    }
    let told = checked(&policy);
    let listed = told.lines().filter(|line| line.starts_with("wider ")).count();
    assert_eq!(listed, 101, "100 and a line that says that there is more: {told}");
    assert!(told.ends_with("and more\n"), "{told}");

    let folder = TempDir::new().unwrap();
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    Gateway::builder().policy(&policy).api(&live, &test).write(folder.path());
    let gateway = Process::serve(folder.path());
    gateway.err_line("`keygate check` lists more");
    gateway.address();
}

/// The billing routes of the contract: either scope is enough.
const BILLING: &str = "/v1/billing/credits";

#[test]
fn one_of_several_scopes_is_enough_where_the_rule_says_so() {
    let world = World::with(FIRSTHAND_POLICY);
    let key = |scopes: &[&str]| world.gateway.key_with(scopes);
    for (scopes, status) in [
        // The public API's own example key.
        (&["jobs:read", "usage:read"][..], 200),
        (&["billing:read"], 200),
        (&["billing:read", "usage:read"], 200),
        (&["jobs:read"], 403),
        (&["billing:write"], 403),
    ] {
        assert_eq!(world.status("GET", BILLING, Some(&key(scopes))), status, "{scopes:?}");
    }
    let call = Call::get(BILLING).key(&key(&["jobs:read"]).secret);
    let message = world.gateway.fetch(&call).refusal(403, "authorization_error");
    assert_eq!(message, "This API key lacks the required scope: billing:read or usage:read");
}

#[test]
fn a_rule_can_ask_for_all_of_some_scopes_and_one_of_others() {
    let both = ORDERS.replace(
        "scopes = [\"orders:write\"]\n",
        "scopes = [\"orders:write\"]\nany_scope = [\"orders:read\", \"orders:admin\"]\n",
    );
    let world = World::with(&both);
    let asked = |scopes: &[&str]| {
        let key = world.gateway.key_with(scopes);
        let answer = world.gateway.fetch(&Call::post("/api/orders", "{}").key(&key.secret));
        if answer.status == 200 { String::new() } else { answer.refusal(403, "authorization_error") }
    };
    assert_eq!(asked(&["orders:write", "orders:read"]), "");
    assert_eq!(asked(&["orders:write", "orders:admin"]), "");
    let lacks = |scopes: &str| format!("This API key lacks the required scope: {scopes}");
    assert_eq!(asked(&["orders:write"]), lacks("orders:admin or orders:read"));
    assert_eq!(asked(&["orders:read", "orders:admin"]), lacks("orders:write"), "all of these come first");
}

/// Alternatives open a route; they never stand for one another in a key.
#[test]
fn a_key_gives_only_scopes_that_it_has_where_another_let_it_in() {
    let policy = FIRSTHAND_POLICY
        .replace("scopes = [\"keys:manage\"]\n", "any_scope = [\"keys:manage\", \"billing:write\"]\n");
    assert_ne!(policy, FIRSTHAND_POLICY);
    let world = World::with(&policy);
    let caller = world.gateway.key_with(&["billing:write", "usage:read"]);
    let make = |scopes: &[&str]| {
        let body = json!({ "name": "a child", "scopes": scopes });
        world.gateway.fetch(&json_call("POST", "/v1/api_keys", &body).key(&caller.secret))
    };
    for scopes in [&["keys:manage"][..], &["billing:read"], &["usage:read", "keys:manage"]] {
        let message = make(scopes).refusal(403, "authorization_error");
        assert!(message.ends_with(scopes.last().unwrap()), "{message}");
    }
    let child = make(&["usage:read"]).json();
    assert_eq!(child["scopes"], json!(["usage:read"]));
    let secret = child["secret"].as_str().unwrap();
    let id = child["id"].as_str().unwrap();
    // It may read billing data, as usage:read is enough for that, and it may manage no keys.
    let status = |call: Call, secret: &str| world.gateway.fetch(&call.key(secret)).status;
    assert_eq!(status(Call::get(BILLING), secret), 200);
    assert_eq!(status(Call::get("/v1/api_keys"), secret), 403);
    // The calling key loses the scope that let it in. The other alternative, which it never had, does not help.
    let narrowed =
        json_call("PATCH", &format!("/v1/api_keys/{}", caller.id()), &json!({ "scopes": ["usage:read"] }));
    assert_eq!(status(narrowed, &caller.secret), 200);
    assert_eq!(status(Call::new("DELETE", &format!("/v1/api_keys/{id}")), &caller.secret), 403);
    assert_eq!(make(&["usage:read"]).status, 403);
}

#[test]
fn check_refuses_alternatives_that_decide_nothing() {
    let folder = TempDir::new().unwrap();
    let policy = ORDERS.replace("scopes = [\"orders:read\"]\n", "any_scope = []\n").replace(
        "scopes = [\"orders:write\"]\n",
        "scopes = [\"orders:write\"]\nany_scope = [\"orders:write\", \"orders:raed\"]\n",
    );
    Gateway::builder()
        .policy(&policy)
        .upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2")
        .write(folder.path());
    let output = keygate(folder.path(), &["check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    for part in [
        "policy.toml:8:13: route[api.read].any_scope: the list is empty; ",
        "policy.toml:16:30: route[orders.create].any_scope[1]: \"orders:raed\" is not in the list `scopes`",
    ] {
        assert!(told.contains(part), "{told}");
    }
}
