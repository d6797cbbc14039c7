//! The route table of the contract, row by row: the access rule, the target, and a refusal of everything else.

use std::collections::HashMap;

use keygate::vocabulary::key::Environment;

use crate::harness::{Call, Gateway, Reply, TestKey, Upstream};

const SCOPES: [&str; 9] = [
    "jobs:read",
    "jobs:write",
    "webhooks:read",
    "webhooks:write",
    "keys:manage",
    "billing:read",
    "billing:write",
    "audit:read",
    "usage:read",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    AnyKey,
    Scope(&'static str),
    /// Either of two scopes.
    Either(&'static str, &'static str),
}

impl Needs {
    /// Each set of scopes that is enough, and no more than that.
    fn enough(self) -> Vec<&'static str> {
        match self {
            Self::Nothing | Self::AnyKey => Vec::new(),
            Self::Scope(scope) => vec![scope],
            Self::Either(one, other) => vec![one, other],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Keygate,
    Upstream,
}

type Row = (&'static [&'static str], &'static [&'static str], Needs, By);

/// The table of the contract.
const TABLE: [Row; 19] = [
    (&["POST"], &["/v1/auth/signup"], Needs::Nothing, By::Keygate),
    (&["POST", "GET"], &["/v1/api_keys"], Needs::Scope("keys:manage"), By::Keygate),
    (&["GET"], &["/v1/api_keys/self"], Needs::AnyKey, By::Keygate),
    (&["GET", "PATCH"], &["/v1/api_keys/{id}"], Needs::Scope("keys:manage"), By::Keygate),
    (&["POST"], &["/v1/api_keys/{id}/rotate"], Needs::Scope("keys:manage"), By::Keygate),
    (&["POST"], &["/v1/api_keys/{id}/revoke"], Needs::Scope("keys:manage"), By::Keygate),
    (&["DELETE"], &["/v1/api_keys/{id}"], Needs::Scope("keys:manage"), By::Keygate),
    (&["GET"], &["/v1/audit_events"], Needs::Scope("audit:read"), By::Keygate),
    (
        &["GET"],
        &["/v1/jobs", "/v1/jobs/{id}", "/v1/jobs/{id}/files", "/v1/jobs/{id}/submissions"],
        Needs::Scope("jobs:read"),
        By::Upstream,
    ),
    (
        &["GET"],
        &["/v1/submissions", "/v1/submissions/summary", "/v1/submissions/{id}"],
        Needs::Scope("jobs:read"),
        By::Upstream,
    ),
    (&["GET"], &["/v1/jobs/{id}/audit"], Needs::Scope("audit:read"), By::Upstream),
    (
        &["POST"],
        &["/v1/jobs", "/v1/jobs/{id}/cancel", "/v1/jobs/{id}/rate"],
        Needs::Scope("jobs:write"),
        By::Upstream,
    ),
    (
        &["GET"],
        &["/v1/webhook_endpoints", "/v1/webhook_endpoints/{id}", "/v1/webhook_events"],
        Needs::Scope("webhooks:read"),
        By::Upstream,
    ),
    (
        &["POST"],
        &[
            "/v1/webhook_endpoints",
            "/v1/webhook_endpoints/{id}/rotate_secret",
            "/v1/webhook_events/{id}/replay",
        ],
        Needs::Scope("webhooks:write"),
        By::Upstream,
    ),
    (&["PATCH", "DELETE"], &["/v1/webhook_endpoints/{id}"], Needs::Scope("webhooks:write"), By::Upstream),
    (
        &["GET"],
        &["/v1/billing/credits", "/v1/billing/transactions"],
        Needs::Either("billing:read", "usage:read"),
        By::Upstream,
    ),
    (&["POST"], &["/v1/billing/credits/purchase"], Needs::Scope("billing:write"), By::Upstream),
    (&["GET"], &["/v1/organization/settings"], Needs::Scope("usage:read"), By::Upstream),
    // HEAD is GET without the body (RFC 9110, section 9.3.2); one row stands for all here, the rest have a
    // test of their own.
    (&["HEAD"], &["/v1/jobs"], Needs::Scope("jobs:read"), By::Upstream),
];

/// One request of the table.
#[derive(Clone, Debug)]
struct Request {
    method: &'static str,
    target: String,
    needs: Needs,
    by: By,
}

impl Request {
    fn call(&self) -> Call {
        match self.method {
            "POST" | "PATCH" => Call::new(self.method, &self.target).field("content-length", "0"),
            method => Call::new(method, &self.target),
        }
    }

    /// The row in a failure's message.
    fn row(&self) -> String {
        format!("{} {} ({:?})", self.method, self.target, self.needs)
    }
}

fn requests() -> Vec<Request> {
    let mut requests = Vec::new();
    for (methods, paths, needs, by) in TABLE {
        for method in methods {
            for path in paths {
                let target = path.replace("{id}", "01JZ8Q4V6T");
                requests.push(Request { method, target, needs, by });
            }
        }
    }
    requests
}

fn forwarded() -> impl Iterator<Item = Request> {
    requests().into_iter().filter(|request| request.by == By::Upstream)
}

fn keys_of(scopes: impl Fn(&str) -> Vec<&'static str>, gateway: &Gateway) -> HashMap<&'static str, TestKey> {
    SCOPES.iter().map(|scope| (*scope, gateway.key_with(&scopes(scope)))).collect()
}

/// Answers with its name in a header, since an answer to HEAD has no body.
fn named(name: &'static str) -> Upstream {
    Upstream::with(move |seen| {
        let body = if seen.request_line().starts_with("HEAD ") { "" } else { "ok" };
        Reply::raw(&format!("HTTP/1.1 200 OK\r\nserved-by: {name}\r\ncontent-length: 2\r\n\r\n{body}"))
    })
}

struct World {
    live: Upstream,
    test: Upstream,
    gateway: Gateway,
}

impl World {
    fn start() -> Self {
        let (live, test) = (named("live"), named("test"));
        let gateway = Gateway::in_front_of(&live, &test);
        Self { live, test, gateway }
    }

    #[track_caller]
    fn assert_nothing_reached_an_upstream(&self) {
        assert_eq!(self.live.seen().len() + self.test.seen().len(), 0);
        assert_eq!((self.live.connections(), self.test.connections()), (0, 0), "not even a connection");
    }
}

#[test]
fn a_request_with_the_routes_scope_reaches_the_upstream_of_its_environment() {
    let World { live, test, gateway } = World::start();
    for (environment, right, wrong) in [(Environment::Live, &live, &test), (Environment::Test, &test, &live)]
    {
        let keys: HashMap<&str, TestKey> =
            SCOPES.iter().map(|scope| (*scope, gateway.key(environment, Some(&[scope]), None))).collect();
        wrong.forget();
        for request in forwarded() {
            for scope in request.needs.enough() {
                let answer = gateway.fetch(&request.call().key(&keys[scope].secret));
                assert_eq!(answer.status, 200, "{}: {}", request.row(), answer.text());
                assert_eq!(answer.field("served-by"), Some(environment.as_str()), "{}", request.row());
                let seen = right.only();
                let line = format!("{} {} HTTP/1.1", request.method, request.target);
                assert_eq!(seen.request_line(), line, "{}", request.row());
                assert_eq!(seen.value("x-scopes"), scope, "{}", request.row());
                right.forget();
            }
        }
        assert_eq!(wrong.seen().len(), 0, "{environment} keys reached the other environment");
    }
}

#[test]
fn a_request_without_the_routes_scope_is_a_403_that_names_the_scope() {
    let world = World::start();
    for request in requests() {
        let lacking = request.needs.enough();
        if lacking.is_empty() {
            continue;
        }
        let others: Vec<&str> = SCOPES.into_iter().filter(|scope| !lacking.contains(scope)).collect();
        let key = world.gateway.key_with(&others);
        let answer = world.gateway.fetch(&request.call().key(&key.secret));
        assert_eq!(answer.status, 403, "{}: {}", request.row(), answer.text());
        if request.method != "HEAD" {
            let message = answer.refusal(403, "authorization_error");
            let named = format!("scope: {}", lacking.join(" or "));
            assert!(message.ends_with(&named), "{}: {message}", request.row());
        }
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn without_a_key_every_request_but_the_public_one_is_refused_with_401() {
    let world = World::start();
    for request in requests() {
        let answer = world.gateway.fetch(&request.call());
        if request.needs == Needs::Nothing {
            assert_ne!(answer.status, 401, "{}", request.row());
            continue;
        }
        assert_eq!(answer.status, 401, "{}: {}", request.row(), answer.text());
        if request.method != "HEAD" {
            answer.refusal(401, "authentication_error");
        }
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn keygate_answers_its_own_operations_for_keys_with_their_scopes() {
    let world = World::start();
    let keys = keys_of(|scope| SCOPES.into_iter().filter(|name| *name == scope).collect(), &world.gateway);
    for request in requests().into_iter().filter(|request| request.by == By::Keygate) {
        let callers: Vec<Call> = match request.needs {
            Needs::Nothing => vec![request.call()],
            Needs::AnyKey => keys.values().map(|key| request.call().key(&key.secret)).collect(),
            Needs::Scope(_) | Needs::Either(..) => {
                let enough = request.needs.enough().into_iter();
                enough.map(|scope| request.call().key(&keys[scope].secret)).collect()
            }
        };
        for call in callers {
            let answer = world.gateway.fetch(&call);
            // Signup is disabled, no key has this id, and the bodies are empty.
            let expected = match (request.needs, request.method) {
                (Needs::Nothing, _) => 404,
                _ if request.target.contains("01JZ8Q4V6T") => 404,
                (_, "POST") => 400,
                _ => 200,
            };
            assert_eq!(answer.status, expected, "{}: {}", request.row(), answer.text());
            assert_eq!(answer.field("cache-control"), Some("no-store"), "{}", request.row());
        }
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn a_path_without_a_route_is_404_with_a_valid_key_and_401_without_one() {
    let world = World::start();
    let key = world.gateway.live_key();
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/"),
        ("GET", "/v1/nothing"),
        ("GET", "/v2/jobs"),
        ("GET", "/metrics"),
        ("GET", "/livez"),
        // Other case, and segments with other ends.
        ("GET", "/v1/Jobs"),
        ("GET", "/V1/jobs"),
        ("GET", "/v1/jobsx"),
        ("GET", "/v1/job"),
        ("GET", "/xv1/jobs"),
        ("GET", "/v1/jobs/"),
        ("GET", "/v1/jobs/1/"),
        ("GET", "/v1/jobs.json"),
        // Deeper paths, and paths between two rows.
        ("GET", "/v1/jobs/1/2"),
        ("GET", "/v1/jobs/1/files/2"),
        ("GET", "/v1/jobs/1/auditx"),
        ("GET", "/v1/billing"),
        ("GET", "/v1/organization"),
        ("GET", "/v1/webhook_events/1"),
        ("GET", "/v1/api_keys/1/2"),
        // Methods that a path of the table does not have.
        ("PUT", "/v1/jobs"),
        ("DELETE", "/v1/jobs"),
        ("DELETE", "/v1/jobs/1"),
        ("PATCH", "/v1/jobs/1"),
        ("POST", "/v1/jobs/1"),
        ("GET", "/v1/jobs/1/cancel"),
        ("POST", "/v1/jobs/1/audit"),
        ("POST", "/v1/submissions"),
        ("PUT", "/v1/webhook_endpoints/1"),
        ("POST", "/v1/webhook_endpoints/1"),
        ("DELETE", "/v1/webhook_endpoints"),
        ("POST", "/v1/webhook_events"),
        ("GET", "/v1/billing/credits/purchase"),
        ("POST", "/v1/billing/credits"),
        ("PATCH", "/v1/api_keys/self"),
        ("DELETE", "/v1/api_keys/self"),
        ("PUT", "/v1/organization/settings"),
        ("DELETE", "/v1/api_keys"),
        ("GET", "/v1/api_keys/1/rotate"),
        ("POST", "/v1/audit_events"),
        ("GET", "/v1/auth/signup"),
        ("POST", "/v1/auth/login"),
    ] {
        let call = Call::new(method, target);
        let stranger = world.gateway.fetch(&call);
        assert_eq!(stranger.status, 401, "{method} {target}: {}", stranger.text());
        stranger.refusal(401, "authentication_error");
        let holder = world.gateway.fetch(&call.key(&key.secret));
        assert_eq!(holder.status, 404, "{method} {target}: {}", holder.text());
        holder.refusal(404, "not_found");
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn changing_the_organisations_settings_is_denied_to_a_key_with_all_scopes() {
    let world = World::start();
    let call = Call::new("PATCH", "/v1/organization/settings").field("content-length", "0");
    world.gateway.fetch(&call).refusal(401, "authentication_error");
    for key in [world.gateway.live_key(), world.gateway.test_key()] {
        world.gateway.fetch(&call.clone().key(&key.secret)).refusal(404, "not_found");
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn head_needs_the_scope_of_get() {
    let world = World::start();
    let own = keys_of(|scope| SCOPES.into_iter().filter(|name| *name == scope).collect(), &world.gateway);
    let gets: Vec<Request> = forwarded().filter(|request| request.method == "GET").collect();
    for request in &gets {
        let lacking = request.needs.enough();
        let others: Vec<&str> = SCOPES.into_iter().filter(|scope| !lacking.contains(scope)).collect();
        let other = world.gateway.key_with(&others);
        let head = Call::new("HEAD", &request.target);
        let row = format!("HEAD for {}", request.row());
        assert_eq!(world.gateway.fetch(&head).status, 401, "{row}");
        assert_eq!(world.gateway.fetch(&head.clone().key(&other.secret)).status, 403, "{row}");
    }
    world.assert_nothing_reached_an_upstream();
    for request in &gets {
        for scope in request.needs.enough() {
            let answer = world.gateway.fetch(&Call::new("HEAD", &request.target).key(&own[scope].secret));
            assert_eq!(
                (answer.status, answer.field("content-length")),
                (200, Some("2")),
                "{}",
                request.row()
            );
            assert_eq!(world.live.only().request_line(), format!("HEAD {} HTTP/1.1", request.target));
            world.live.forget();
        }
    }
    // A path without GET has no HEAD.
    let answer = world
        .gateway
        .fetch(&Call::new("HEAD", "/v1/billing/credits/purchase").key(&world.gateway.live_key().secret));
    assert_eq!(answer.status, 404);
}

#[test]
fn options_trace_lower_case_and_unknown_methods_are_denied() {
    let world = World::start();
    let key = world.gateway.live_key();
    for method in
        ["OPTIONS", "TRACE", "get", "Get", "post", "PROPFIND", "GETX", "M-SEARCH", "QUERY", "LINK", "X"]
    {
        for target in ["/v1/jobs", "/v1/jobs/1", "/v1/organization/settings"] {
            let call = Call::new(method, target).field("origin", "https://app.example.com");
            let stranger = world.gateway.fetch(&call);
            assert_eq!(stranger.status, 401, "{method} {target}");
            stranger.refusal(401, "authentication_error");
            let holder = world.gateway.fetch(&call.key(&key.secret));
            assert_eq!(holder.status, 404, "{method} {target}");
            holder.refusal(404, "not_found");
            assert!(!holder.text().contains(&key.secret), "{method} reflects the key");
        }
    }
    world.assert_nothing_reached_an_upstream();
}
