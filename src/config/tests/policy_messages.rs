//! Messages about mistakes in a policy.

use super::*;

/// A route with these lines, an id and a path.
fn route(id: &str, lines: &str) -> String {
    format!("[[route]]\nid = \"{id}\"\npaths = [\"/{id}\"]\n{lines}\n")
}

#[test]
fn a_route_says_who_may_use_it_and_who_answers() {
    let policy = [
        "scopes = [\"jobs:read\"]\n".to_owned(),
        route("a", "methods = [\"GET\"]\nupstream = \"api\""),
        route("b", "methods = [\"GET\"]\nscopes = []\nupstream = \"api\""),
        route("c", "methods = [\"GET\"]\nscopes = [\"jobs:raed\"]\nupstream = \"ap\""),
        route("d", "methods = [\"GET\"]\npublic = true\nany_key = true\nupstream = \"api\""),
        route("e", "methods = [\"GET\"]\npublic = false\nserve = \"keys.liste\""),
        route("f", "methods = [\"GET\"]\nany_key = true"),
        route("g", "methods = [\"GET\"]\nany_key = true\nserve = \"keys.list\"\nupstream = \"api\""),
    ];
    assert_says(
        about_policy(&policy.concat()),
        &[
            "etc/policy.toml:2:1: route[a]: the route has no access rule; add scopes = […], any_scope = […], any_key = \
                 true or public = true",
            "etc/policy.toml:11:10: route[b].scopes: the list is empty; list at least one scope: with an empty list, \
                 every request would be refused",
            "etc/policy.toml:17:11: route[c].scopes[0]: \"jobs:raed\" is not in the list `scopes` at the top of the \
                 file; did you mean `jobs:read`?",
            "etc/policy.toml:18:12: route[c].upstream: there is no upstream \"ap\"; did you mean `api`?",
            "etc/policy.toml:24:11: route[d].any_key: `public` is also set; remove one of the two",
            "etc/policy.toml:30:10: route[e].public: only true is allowed; remove the key instead",
            "etc/policy.toml:31:9: route[e].serve: there is no operation \"keys.liste\"; did you mean `keys.list`?",
            "etc/policy.toml:32:1: route[f]: the route has no target; add upstream = \"…\" or serve = \"…\"",
            "etc/policy.toml:42:9: route[g].serve: `upstream` is also set; remove one of the two",
        ],
    );
}

#[test]
fn ids_methods_and_paths_have_their_forms() {
    let policy = "\
[[route]]
id = \"Jobs Read\"
methods = [\"get\", \"TRACE\", \"CONNECT\", \"prop\", \"GET\", \"GET\"]
paths = [\"v1\", \"/a//b\", \"/a/%41\", \"/{*rest}/x\", \"/a;b\"]
any_key = true
upstream = \"api\"
retries = 3
[[route]]
methods = []
any_key = true
upstream = \"api\"
";
    assert_says(
        about_policy(policy),
        &[
            "etc/policy.toml:2:6: route[Jobs Read].id: invalid value \"Jobs Read\"; write 1 to 64 characters from \
                 a-z 0-9 . _ - that do not begin with _",
            "etc/policy.toml:3:12: route[Jobs Read].methods[0]: \"get\" is not a method; did you mean \"GET\"?",
            "etc/policy.toml:3:19: route[Jobs Read].methods[1]: TRACE cannot be forwarded safely; remove it",
            "etc/policy.toml:3:28: route[Jobs Read].methods[2]: CONNECT cannot be forwarded safely; remove it",
            "etc/policy.toml:3:39: route[Jobs Read].methods[3]: \"prop\" is not a method; write it in upper case, as \
                 in \"GET\"",
            "etc/policy.toml:3:54: route[Jobs Read].methods[5]: duplicate; remove one",
            "etc/policy.toml:4:10: route[Jobs Read].paths[0]: invalid value \"v1\"; a path starts with a slash; write \
                 \"/v1\"",
            "etc/policy.toml:4:16: route[Jobs Read].paths[1]: invalid value \"/a//b\"; the segment \"\" has two readings; write \
                 \"/a/b\": a path has no empty or dot segments, no needless percent-encoding and no `;`",
            "etc/policy.toml:4:25: route[Jobs Read].paths[2]: invalid value \"/a/%41\"; the segment \"%41\" has two readings; \
                 write \"/a/A\": a path has no empty or dot segments, no needless percent-encoding and no `;`",
            "etc/policy.toml:4:35: route[Jobs Read].paths[3]: invalid value \"/{*rest}/x\"; a rest parameter \
                 `{*name}` stands last",
            "etc/policy.toml:4:49: route[Jobs Read].paths[4]: invalid value \"/a;b\"; the segment \"a;b\" has two readings: \
                 a path has no empty or dot segments, no needless percent-encoding and no `;`",
            "etc/policy.toml:7:1: route[Jobs Read].retries: unknown key `retries`; the keys here are `id`, \
                 `methods`, `paths`, `other_methods`, `public`, `any_key`, `scopes`, `any_scope`, `environment`, \
                 `upstream`, `serve`, `forward_authorization`, `encoded_slash`, `literal`, `websocket`, \
                 `grpc_web`, `retry`, `connect_timeout`, `answer_timeout`, `stream_idle_timeout`, `total_timeout`, `on_partition`, `browser_keys`, `body_limit`",
            "etc/policy.toml:8:1: route[1].id: missing; give the route a name for logs and metrics, as in id = \
                 \"jobs.read\"",
            "etc/policy.toml:8:1: route[1].paths: missing; list at least one path, as in [\"/v1/jobs\"]",
            "etc/policy.toml:9:11: route[1].methods: the list is empty; list at least one method, as in [\"GET\"]",
        ],
    );
}

#[test]
fn an_id_is_no_label_of_keygates_own() {
    let said = about_policy(&route("_none", "methods = [\"GET\"]\nany_key = true\nupstream = \"api\""));
    assert!(said.contains("do not begin with _"), "{said}");
}

#[test]
fn two_routes_never_claim_one_request() {
    let any = "any_key = true\nupstream = \"api\"\n";
    let policy = format!(
        "[[route]]\nid = \"a\"\nmethods = [\"GET\"]\npaths = [\"/v1/{{x}}\"]\n{any}\
             [[route]]\nid = \"b\"\nmethods = [\"POST\", \"GET\"]\npaths = [\"/v1/{{y}}\"]\n{any}\
             [[route]]\nid = \"c\"\nmethods = [\"HEAD\"]\npaths = [\"/v1/{{x}}\"]\n{any}\
             [[route]]\nid = \"a\"\nmethods = [\"PUT\"]\npaths = [\"/v1/{{x}}\"]\n{any}"
    );
    assert_says(
        about_policy(&policy),
        &[
            "etc/policy.toml:7:1: route[b]: routes \"a\" and \"b\" both claim GET /v1/{y}; remove it from one of them",
            "etc/policy.toml:13:1: route[c]: route \"c\" claims HEAD /v1/{x}, but HEAD follows GET, which is route \
                 \"a\"; list HEAD beside GET in one route, or remove it",
            "etc/policy.toml:19:1: route[a]: two routes are called \"a\"; give each its own id; the other is in line \
                 1",
        ],
    );
}

#[test]
fn keygates_own_operations_are_asked_as_they_can_be_served() {
    let policy = [
        route("a", "methods = [\"GET\"]\npublic = true\nserve = \"keys.list\""),
        route("b", "methods = [\"GET\"]\nany_key = true\nserve = \"keys.revoke\""),
        "[[route]]\nid = \"c\"\nmethods = [\"GET\"]\npaths = [\"/c/{*id}\"]\nany_key = true\nserve = \
                 \"keys.get\"\n"
            .to_owned(),
        "[[route]]\nid = \"d\"\nmethods = [\"GET\"]\npaths = [\"/d/{id}\"]\nany_key = true\nserve = \
                 \"keys.list\"\n"
            .to_owned(),
        route(
            "e",
            "methods = [\"POST\"]\npublic = true\nserve = \"signup\"\nenvironment = \"live\"\nencoded_slash = true\nliteral = true",
        ),
        route("f", "methods = [\"POST\"]\nany_key = true\nupstream = \"api\"\nenvironment = \"test\""),
    ];
    assert_says(
        about_policy(&policy.concat()),
        &[
            "etc/policy.toml:5:10: route[a].public: keys.list acts for the owner of a key, so the route cannot be \
                 public; write scopes = […] instead",
            "etc/policy.toml:9:9: route[b].paths: keys.revoke reads the key's id from the path; write one {id} in /b",
            "etc/policy.toml:10:11: route[b].methods: keys.revoke does not accept GET; write POST or DELETE",
            "etc/policy.toml:16:9: route[c].paths: keys.get reads the key's id from the path; write one {id} in \
                 /c/{*id}",
            "etc/policy.toml:22:9: route[d].paths: keys.list reads nothing from the path; write /d/{id} without \
                 braces",
            "etc/policy.toml:31:15: route[e].environment: only valid on a public route to an upstream; remove it",
            "etc/policy.toml:32:17: route[e].encoded_slash: only valid on a route to an upstream; remove it",
            "etc/policy.toml:33:11: route[e].literal: only valid on a route to an upstream; remove it",
            "etc/policy.toml:40:15: route[f].environment: only valid on a public route to an upstream; remove it",
        ],
    );
}

#[test]
fn the_times_of_a_route_fit_together_and_are_for_upstreams() {
    let policy = [
        route(
            "a",
            "methods = [\"GET\"]\nany_key = true\nupstream = \"api\"\nanswer_timeout = \"10s\"\ntotal_timeout = \"9s\"",
        ),
        route(
            "b",
            "methods = [\"GET\"]\nany_key = true\nserve = \"keys.list\"\nanswer_timeout = \"10s\"\ntotal_timeout = \"off\"",
        ),
    ];
    assert_says(
        about_policy(&policy.concat()),
        &[
            "etc/policy.toml:8:17: route[a].total_timeout: is over before `answer_timeout` (10s), which is a part of it; make it \
             longer, or `answer_timeout` shorter",
            "etc/policy.toml:15:18: route[b].answer_timeout: only valid on a route to an upstream; remove it",
            "etc/policy.toml:16:17: route[b].total_timeout: only valid on a route to an upstream; remove it",
        ],
    );
}

#[test]
fn scopes_are_declared_and_there_are_routes() {
    assert_says(
        about_policy(&route("a", "methods = [\"GET\"]\nscopes = [\"x\"]\nupstream = \"api\"")),
        &[
            "etc/policy.toml:1:1: scopes: missing; list every scope of your API, as in scopes = [\"jobs:read\"]",
        ],
    );
    assert_says(
        about_policy("scopes = [\"a\", \"A b\"]\n[route]\nid = \"x\"\n"),
        &[
            "etc/policy.toml:1:16: scopes[1]: invalid value \"A b\"; \"A b\" is not a scope: use 1 to 64 characters \
                 of a-z 0-9 _ . : - as in \"jobs:read\"",
            "etc/policy.toml:2:1: route: expected a list of sections, found a section; write a list, route = \
                 [{ … }], or [[route]] for each of them",
        ],
    );
    assert_says(
        about_policy(""),
        &[
            "etc/policy.toml:1:1: route: missing; without a route, every request is refused; add a [[route]] section",
        ],
    );
}

#[test]
fn methods_have_no_wildcard() {
    assert_says(
        about_policy(&route("a", "methods = [\"*\"]\nany_key = true\nupstream = \"api\"")),
        &[
            "etc/policy.toml:4:12: route[a].methods[0]: \"*\" is not a method; there is no wildcard: list the methods, as \
                 in [\"GET\", \"POST\", \"PUT\", \"PATCH\", \"DELETE\"]",
        ],
    );
}
