//! What is said about mistakes in a policy.

use super::*;

/// A route with these lines besides id and path.
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
            "etc/policy.toml:2:1: route[a]: says nowhere who may use it; add scopes = […], any_key = true or \
                 public = true",
            "etc/policy.toml:11:10: route[b].scopes: is empty; name at least one: an empty list would let nobody \
                 through",
            "etc/policy.toml:17:11: route[c].scopes[0]: \"jobs:raed\" is not among the `scopes` at the top of the \
                 file; did you mean `jobs:read`?",
            "etc/policy.toml:18:12: route[c].upstream: there is no upstream \"ap\"; did you mean `api`?",
            "etc/policy.toml:24:11: route[d].any_key: `public` already says who may use this route; keep one of \
                 them",
            "etc/policy.toml:30:10: route[e].public: false says nothing here; leave the key out",
            "etc/policy.toml:31:9: route[e].serve: keygate does not serve \"keys.liste\"; did you mean \
                 `keys.list`?",
            "etc/policy.toml:32:1: route[f]: says nowhere who answers; add upstream = \"…\" or serve = \"…\"",
            "etc/policy.toml:42:9: route[g].serve: `upstream` already says who answers on this route; keep one of \
                 them",
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
            "etc/policy.toml:2:6: route[Jobs Read].id: \"Jobs Read\" does not do; a route's id is 1 to 64 of a-z \
                 0-9 . _ - and does not begin with _",
            "etc/policy.toml:3:12: route[Jobs Read].methods[0]: \"get\" is not a method; did you mean \"GET\"?",
            "etc/policy.toml:3:19: route[Jobs Read].methods[1]: TRACE cannot be forwarded safely; leave it out",
            "etc/policy.toml:3:28: route[Jobs Read].methods[2]: CONNECT cannot be forwarded safely; leave it out",
            "etc/policy.toml:3:39: route[Jobs Read].methods[3]: \"prop\" is not a method; write it in upper case, \
                 as in \"GET\"",
            "etc/policy.toml:3:54: route[Jobs Read].methods[5]: stands twice in this list; leave one out",
            "etc/policy.toml:4:10: route[Jobs Read].paths[0]: \"v1\" does not do; a path starts with a slash",
            "etc/policy.toml:4:16: route[Jobs Read].paths[1]: \"/a//b\" does not do; \"\" has two readings: write \
                 it without empty or dot segments, needless percent-encoding or `;`",
            "etc/policy.toml:4:25: route[Jobs Read].paths[2]: \"/a/%41\" does not do; \"%41\" has two readings: \
                 write it without empty or dot segments, needless percent-encoding or `;`",
            "etc/policy.toml:4:35: route[Jobs Read].paths[3]: \"/{*rest}/x\" does not do; a rest parameter \
                 `{*name}` stands last",
            "etc/policy.toml:4:49: route[Jobs Read].paths[4]: \"/a;b\" does not do; \"a;b\" has two readings: \
                 write it without empty or dot segments, needless percent-encoding or `;`",
            "etc/policy.toml:7:1: route[Jobs Read].retries: unknown key `retries`; the keys here are `id`, \
                 `methods`, `paths`, `public`, `any_key`, `scopes`, `environment`, `upstream`, `serve`, \
                 `forward_authorization`, `encoded_slash`, `websocket`, `on_partition`, `body_limit`",
            "etc/policy.toml:8:1: route[1].id: missing; name the route for logs and metrics, as in id = \
                 \"jobs.read\"",
            "etc/policy.toml:8:1: route[1].paths: missing; name at least one, as in [\"/v1/jobs\"]",
            "etc/policy.toml:9:11: route[1].methods: is empty; name at least one, as in [\"GET\"]",
        ],
    );
}

#[test]
fn an_id_is_no_label_of_keygates_own() {
    let said = about_policy(&route("_none", "methods = [\"GET\"]\nany_key = true\nupstream = \"api\""));
    assert!(said.contains("does not begin with _"), "{said}");
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
            "etc/policy.toml:7:1: route[b]: routes \"a\" and \"b\" both claim GET /v1/{y}; give the request to \
                 one of them",
            "etc/policy.toml:13:1: route[c]: route \"c\" claims HEAD /v1/{x}, but HEAD follows GET, which is \
                 route \"a\"; name HEAD beside GET in one route, or leave it out",
            "etc/policy.toml:19:1: route[a]: two routes are called \"a\"; give each a name of its own",
        ],
    );
}

#[test]
fn keygates_own_operations_are_asked_as_they_can_be_served() {
    let policy = [
            route("a", "methods = [\"GET\"]\npublic = true\nserve = \"keys.list\""),
            route("b", "methods = [\"GET\"]\nany_key = true\nserve = \"keys.revoke\""),
            "[[route]]\nid = \"c\"\nmethods = [\"GET\"]\npaths = [\"/c/{*id}\"]\nany_key = true\nserve = \"keys.get\"\n".to_owned(),
            "[[route]]\nid = \"d\"\nmethods = [\"GET\"]\npaths = [\"/d/{id}\"]\nany_key = true\nserve = \"keys.list\"\n".to_owned(),
            route("e", "methods = [\"POST\"]\npublic = true\nserve = \"signup\"\nenvironment = \"live\"\nencoded_slash = true"),
            route("f", "methods = [\"POST\"]\nany_key = true\nupstream = \"api\"\nenvironment = \"test\""),
        ];
    assert_says(
        about_policy(&policy.concat()),
        &[
            "etc/policy.toml:5:10: route[a].public: keys.list acts for a key's owner; ask for a scope, as in \
                 scopes = […]",
            "etc/policy.toml:9:9: route[b].paths: keys.revoke takes the key's id from the path; /b needs one {id}",
            "etc/policy.toml:10:11: route[b].methods: keys.revoke is not asked with GET; write POST or DELETE",
            "etc/policy.toml:16:9: route[c].paths: keys.get takes the key's id from the path; /c/{*id} needs one \
                 {id}",
            "etc/policy.toml:22:9: route[d].paths: keys.list takes nothing from the path; write /d/{id} without \
                 braces",
            "etc/policy.toml:31:15: route[e].environment: only chooses the upstream of requests without a key, on \
                 a public route; leave it out",
            "etc/policy.toml:32:17: route[e].encoded_slash: only means something on the way to an upstream; leave \
                 it out",
            "etc/policy.toml:39:15: route[f].environment: only chooses the upstream of requests without a key, on \
                 a public route; leave it out",
        ],
    );
}

#[test]
fn scopes_are_declared_and_there_are_routes() {
    assert_says(
        about_policy(&route("a", "methods = [\"GET\"]\nscopes = [\"x\"]\nupstream = \"api\"")),
        &[
            "etc/policy.toml:1:1: scopes: missing; declare every scope that there is, as in scopes = [\"jobs:read\"]",
        ],
    );
    assert_says(
        about_policy("scopes = [\"a\", \"A b\"]\n[route]\nid = \"x\"\n"),
        &[
            "etc/policy.toml:1:16: scopes[1]: \"A b\" does not do; \"A b\" is not a scope: use 1 to 64 of a-z 0-9 \
                 _ . : - as in \"jobs:read\"",
            "etc/policy.toml:2:1: route: expected sections [[route]], found a section; double the brackets",
        ],
    );
    assert_says(
        about_policy(""),
        &[
            "etc/policy.toml:1:1: route: missing; without a route every request is refused; add one under [[route]]",
        ],
    );
}
