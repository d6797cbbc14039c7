//! Header fields: identity cannot be forged, hop-by-hop fields are removed, and all others are unchanged.

use keygate::vocabulary::believed::NAMES;
use rustix::process::Signal;

use crate::harness::metrics::{scrape, value};
use crate::harness::{
    Answer, Call, Gateway, GatewayBuilder, Process, Reply, Seen, Transport, Upstream, create_key, fetch,
};

/// A route of each kind of access; `/kept` forwards the credentials.
const POLICY: &str = r#"
scopes = ["a:read", "b:write"]
[[route]]
id = "keyed"
methods = ["GET", "POST"]
paths = ["/keyed"]
scopes = ["a:read"]
upstream = "api"
[[route]]
id = "kept"
methods = ["GET"]
paths = ["/kept"]
any_key = true
upstream = "api"
forward_authorization = true
[[route]]
id = "open"
methods = ["GET"]
paths = ["/open"]
public = true
upstream = "api"
"#;

const SERVER: &str = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n";
const IDENTITY: [&str; 4] = ["x-org-id", "x-environment", "x-key-id", "x-scopes"];

struct World {
    live: Upstream,
    _test: Upstream,
    gateway: Gateway,
    secret: String,
}

impl World {
    fn start() -> Self {
        Self::with(Gateway::builder())
    }

    fn with(builder: GatewayBuilder) -> Self {
        Self::before(builder, Upstream::start("live"))
    }

    fn before(builder: GatewayBuilder, live: Upstream) -> Self {
        let test = Upstream::start("test");
        let gateway = builder.policy(POLICY).api(&live, &test).start();
        let secret = gateway.live_key().secret;
        Self { live, _test: test, gateway, secret }
    }

    /// The request that the upstream receives for `target` with these fields, with or without a key.
    #[track_caller]
    fn seen(&self, target: &str, fields: &[(&str, &str)]) -> Seen {
        let mut call = Call::get(target);
        if target != "/open" {
            call = call.key(&self.secret);
        }
        for (name, value) in fields {
            call = call.field(name, value);
        }
        self.live.forget();
        let answer = self.gateway.fetch(&call);
        assert_eq!(answer.status, 200, "{target} with {fields:?}: {}", answer.text());
        self.live.only()
    }
}

fn sorted(lines: &[String]) -> Vec<String> {
    let mut lines = lines.to_vec();
    lines.sort();
    lines
}

#[test]
fn a_simple_request_arrives_with_exactly_these_fields() {
    let world = World::start();
    let key = world.gateway.key_with(&["b:write", "a:read"]);
    let call = Call::get("/keyed?q=1").key(&key.secret).field("accept", "*/*").field("X-Own", "Mine  too");
    let answer = world.gateway.fetch(&call);
    let seen = world.live.only();
    assert_eq!(seen.request_line(), "GET /keyed?q=1 HTTP/1.1");
    let scopes = key.record.scopes.to_string();
    let expected = [
        "accept: */*".to_owned(),
        "host: api.example.com".to_owned(),
        "x-environment: live".to_owned(),
        "x-forwarded-for: 127.0.0.1".to_owned(),
        "x-forwarded-host: api.example.com".to_owned(),
        format!("x-forwarded-proto: {}", world.gateway.transport().scheme()),
        format!("x-key-id: {}", key.id()),
        format!("x-org-id: {}", world.gateway.org),
        "x-own: Mine  too".to_owned(),
        format!("x-request-id: {}", answer.field("x-request-id").unwrap()),
        format!("x-scopes: {scopes}"),
    ];
    assert_eq!(sorted(&seen.head[1..]), expected);
    assert!(scopes == "a:read b:write" || scopes == "b:write a:read", "{scopes}");
}

#[test]
fn the_identity_of_a_test_key_names_its_environment() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder().policy(POLICY).api(&live, &test).start();
    let key = gateway.test_key();
    assert_eq!(gateway.fetch(&Call::get("/keyed").key(&key.secret)).status, 200);
    let seen = test.only();
    assert_eq!(seen.value("x-environment"), "test");
    assert_eq!(seen.value("x-key-id"), key.id().to_string());
    assert_eq!(seen.value("x-org-id"), gateway.org.to_string());
}

#[test]
fn a_public_request_arrives_with_exactly_these_fields_and_no_identity() {
    let world = World::start();
    let call = Call::get("/open");
    let answer = world.gateway.fetch(&call);
    let expected = [
        "host: api.example.com".to_owned(),
        "x-forwarded-for: 127.0.0.1".to_owned(),
        "x-forwarded-host: api.example.com".to_owned(),
        format!("x-forwarded-proto: {}", world.gateway.transport().scheme()),
        format!("x-request-id: {}", answer.field("x-request-id").unwrap()),
    ];
    assert_eq!(sorted(&world.live.only().head[1..]), expected);
    // On a public route, a key is not forwarded, and its identity is not set.
    world.live.forget();
    assert_eq!(world.gateway.fetch(&call.key(&world.secret)).status, 200);
    let names = world.live.only().names();
    assert!(!names.iter().any(|name| name == "authorization" || IDENTITY.contains(&&**name)), "{names:?}");
}

/// Spellings that an upstream could fold into `name`.
fn spellings(name: &str) -> Vec<String> {
    let title =
        name.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect::<Vec<_>>().join("-");
    let mixed = |marks: &str| {
        let mut marks = marks.chars().cycle();
        name.chars().map(|c| if c == '-' { marks.next().unwrap_or('-') } else { c }).collect::<String>()
    };
    vec![
        name.to_owned(),
        name.to_uppercase(),
        title.replace('-', "_"),
        title,
        mixed("_"),
        mixed("."),
        mixed("_-"),
        mixed("-_"),
        mixed("._"),
        mixed("-."),
        mixed("~"),
        mixed("!_"),
        name.to_uppercase().replace('-', "_"),
    ]
}

#[test]
fn forged_identity_is_removed_in_every_spelling_on_every_kind_of_route() {
    let world = World::start();
    for target in ["/keyed", "/kept", "/open"] {
        for name in IDENTITY.into_iter().chain(["x-request-id"]) {
            for spelling in spellings(name) {
                let seen = world.seen(target, &[(&spelling, "forged"), (&spelling, "forged again")]);
                let forged = seen.head.iter().any(|line| line.contains("forged"));
                assert!(!forged, "{spelling} on {target}: {:#?}", seen.head);
                if target == "/open" && name != "x-request-id" {
                    assert_eq!(seen.values(name), [""; 0], "{spelling} on {target}");
                } else {
                    seen.value(name);
                }
            }
        }
    }
}

#[test]
fn names_that_only_resemble_a_reserved_one_pass() {
    let world = World::start();
    for name in ["x-org", "x-org-ids", "xorgid", "x-org-id2", "x-key-idx", "x-my-scopes", "org-id"] {
        for target in ["/keyed", "/open"] {
            assert_eq!(world.seen(target, &[(name, "mine")]).value(name), "mine");
        }
    }
}

#[test]
fn the_connection_field_cannot_remove_keygates_headers() {
    let world = World::start();
    let named = "x-org-id, X-Environment, x-key-id, x-scopes, x-request-id, host, x-forwarded-for, \
                 x-forwarded-proto, x-forwarded-host, authorization, content-length";
    for target in ["/keyed", "/open"] {
        let seen = world.seen(target, &[("connection", named), ("Connection", "X-Org-Id, HOST")]);
        assert_eq!(seen.value("host"), "api.example.com");
        assert_eq!(seen.value("x-forwarded-for"), "127.0.0.1");
        assert_eq!(seen.value("x-forwarded-host"), "api.example.com");
        seen.value("x-request-id");
        if target == "/keyed" {
            assert_eq!(seen.value("x-org-id"), world.gateway.org.to_string());
            assert_eq!(seen.value("x-environment"), "live");
            assert!(IDENTITY.iter().all(|name| seen.values(name).len() == 1), "{:#?}", seen.head);
        }
        assert_eq!(seen.values("connection"), [""; 0]);
    }
    // A client cannot remove Content-Length through Connection either.
    world.live.forget();
    let post = Call::post("/keyed", "body").key(&world.secret).field("connection", "content-length");
    assert_eq!(world.gateway.fetch(&post).status, 200);
    let seen = world.live.only();
    assert_eq!((seen.body.as_slice(), seen.complete), (&b"body"[..], true));
}

#[test]
fn hop_by_hop_fields_and_those_that_connection_names_are_removed() {
    let world = World::start();
    let fields = [
        ("connection", "keep-alive, X-Named,,  x-other"),
        ("connection", "close-not"),
        ("x-named", "hop"),
        ("X-Other", "hop"),
        ("close-not", "hop"),
        ("keep-alive", "timeout=5, hop"),
        ("proxy-connection", "hop"),
        ("proxy-authorization", "Basic hop"),
        ("proxy-authenticate", "hop"),
        ("te", "gzip, hop"),
        ("trailer", "x-hop"),
        ("upgrade", "websocket, hop"),
        ("http2-settings", "hop"),
        ("Proxy_Connection", "hop"),
        ("x-kept", "end-to-end"),
    ];
    for target in ["/keyed", "/open"] {
        let seen = world.seen(target, &fields);
        assert!(!seen.head.iter().any(|line| line.contains("hop")), "{:#?}", seen.head);
        assert!(!seen.names().iter().any(|name| name == "connection"), "{:#?}", seen.head);
        assert_eq!(seen.value("x-kept"), "end-to-end");
    }
}

#[test]
fn hop_by_hop_fields_of_an_answer_are_removed() {
    let answer = "HTTP/1.1 200 OK\r\nconnection: x-named, keep-alive\r\nx-named: hop\r\nkeep-alive: timeout=5, hop\r\n\
                  proxy-authenticate: hop\r\nproxy-connection: hop\r\nupgrade: hop\r\nte: hop\r\ntrailer: x-hop\r\n\
                  x-kept: end-to-end\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nserver: origin\r\ncontent-length: 2\r\n\r\nok";
    let world = World::before(Gateway::builder(), Upstream::with(move |_| Reply::raw(answer)));
    let answer = world.gateway.fetch(&Call::get("/keyed").key(&world.secret));
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert!(!answer.fields.iter().any(|(_, value)| value.contains("hop")), "{:#?}", answer.fields);
    let kept = |name| values(&answer, name);
    assert_eq!(kept("x-kept"), ["end-to-end"]);
    assert_eq!(kept("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(kept("server"), ["origin"]);
    assert_eq!(kept("connection"), [""; 0]);
}

fn values<'a>(answer: &'a Answer, name: &str) -> Vec<&'a str> {
    answer.fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect()
}

#[test]
fn an_answer_has_only_keygates_request_id() {
    let answer =
        "HTTP/1.1 200 OK\r\nx-request-id: theirs\r\nX-Request-Id: theirs too\r\ncontent-length: 0\r\n\r\n";
    let world = World::before(Gateway::builder(), Upstream::with(move |_| Reply::raw(answer)));
    for target in ["/keyed", "/open"] {
        world.live.forget();
        let mut call = Call::get(target).field("x-request-id", "the client's");
        if target == "/keyed" {
            call = call.key(&world.secret);
        }
        let answer = world.gateway.fetch(&call);
        let seen = world.live.only();
        let id = seen.value("x-request-id");
        assert!(keygate::vocabulary::id::RequestId::parse(id).is_ok(), "{id}");
        assert_eq!(values(&answer, "x-request-id"), [id]);
    }
}

#[test]
fn credentials_are_removed_unless_the_route_forwards_them() {
    let world = World::start();
    assert_eq!(world.seen("/keyed", &[]).values("authorization"), [""; 0]);
    let seen = world.seen("/kept", &[]);
    assert_eq!(seen.value("authorization"), format!("Bearer {}", world.secret));
    for target in ["/keyed", "/kept", "/open"] {
        let seen = world.seen(target, &[("proxy-authorization", "Basic eDp5"), ("cookie", "a=b")]);
        assert_eq!(seen.values("proxy-authorization"), [""; 0]);
        assert_eq!(seen.value("cookie"), "a=b");
    }
    let secret_elsewhere = |seen: &Seen| {
        seen.head.iter().filter(|line| line.contains(&world.secret)).count()
            - seen.values("authorization").len()
    };
    assert_eq!(secret_elsewhere(&seen), 0);
    // Connection can remove the credentials, but not replace them.
    let seen = world.seen("/kept", &[("connection", "authorization")]);
    assert_eq!(seen.values("authorization"), [""; 0]);
    assert_eq!(seen.value("x-org-id"), world.gateway.org.to_string());
}

#[test]
fn renamed_identity_headers_are_set_and_as_reserved_as_the_default_names() {
    let world = World::with(Gateway::builder().settings(
        "[identity_headers]\norg_id = \"Acme-Tenant\"\nenvironment = \"Acme-Env\"\nkey_id = \"Acme-Key\"\n\
         scopes = \"Acme-May\"\nrequest_id = \"Acme-Trace\"",
    ));
    let renamed = ["acme-tenant", "acme-env", "acme-key", "acme-may", "acme-trace"];
    let seen = world.seen("/keyed", &[]);
    assert_eq!(seen.value("acme-tenant"), world.gateway.org.to_string());
    assert_eq!(seen.value("acme-env"), "live");
    assert!(seen.value("acme-key").starts_with("key_"));
    assert!(seen.value("acme-may").contains("a:read"));
    let answer = world.gateway.fetch(&Call::get("/keyed"));
    assert_eq!((answer.status, answer.field("x-request-id")), (401, None));
    assert_eq!(answer.field("acme-trace"), answer.json()["error"]["request_id"].as_str());
    for target in ["/keyed", "/open"] {
        for name in renamed.into_iter().chain(IDENTITY).chain(["x-request-id"]) {
            for spelling in spellings(name) {
                let seen = world.seen(target, &[(&spelling, "forged")]);
                let forged = seen.head.iter().any(|line| line.contains("forged"));
                assert!(!forged, "{spelling} on {target}: {:#?}", seen.head);
            }
        }
    }
}

/// Fields with which a client could claim another address, path or method.
const CLAIMS: [&str; 15] = [
    "forwarded",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-forwarded-method",
    "x-forwarded-server",
    "x-forwarded_for",
    "x_forwarded_proto",
    "x-real-ip",
    "X_Real_IP",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-http-method-override",
    "x-http-method",
];

#[test]
fn without_trusted_proxies_forwarding_fields_are_replaced_or_removed() {
    for builder in [
        Gateway::builder(),
        Gateway::builder().settings(&format!("{SERVER}trusted_proxies = [\"10.0.0.0/8\", \"::1\"]")),
    ] {
        let world = World::with(builder);
        let mut fields: Vec<(&str, &str)> = CLAIMS.iter().map(|name| (*name, "claimed")).collect();
        fields.extend([
            ("x-forwarded-for", "claimed"),
            ("x-forwarded-for", "claimed"),
            ("x-forwarded-proto", "claimed"),
            ("x-forwarded-host", "claimed"),
        ]);
        for target in ["/keyed", "/open"] {
            let seen = world.seen(target, &fields);
            assert!(!seen.head.iter().any(|line| line.contains("claimed")), "{:#?}", seen.head);
            assert_eq!(seen.value("x-forwarded-for"), "127.0.0.1");
            assert_eq!(seen.value("x-forwarded-proto"), world.gateway.transport().scheme());
            assert_eq!(seen.value("x-forwarded-host"), "api.example.com");
        }
    }
}

#[test]
fn behind_a_trusted_proxy_its_forwarding_fields_are_continued_and_nothing_more() {
    let world =
        World::with(Gateway::builder().settings(&format!("{SERVER}trusted_proxies = [\"127.0.0.0/8\"]")));
    let seen = world.seen(
        "/keyed",
        &[
            ("x-forwarded-for", "203.0.113.9, 198.51.100.7"),
            ("x-forwarded-for", "10.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "public.example.com"),
        ],
    );
    assert_eq!(seen.value("x-forwarded-for"), "203.0.113.9, 198.51.100.7, 10.1.1.1, 127.0.0.1");
    assert_eq!(seen.value("x-forwarded-proto"), "https");
    assert_eq!(seen.value("x-forwarded-host"), "public.example.com");
    assert_eq!(seen.value("host"), "api.example.com");
    let seen = world.seen("/open", &[]);
    assert_eq!(seen.value("x-forwarded-for"), "127.0.0.1");
    assert_eq!(seen.value("x-forwarded-proto"), world.gateway.transport().scheme());
    for name in CLAIMS {
        let seen = world.seen("/keyed", &[(name, "claimed")]);
        assert!(!seen.head.iter().any(|line| line.contains("claimed")), "{name}: {:#?}", seen.head);
    }
    // Not even a trusted proxy can set identity headers.
    let seen = world.seen("/keyed", &[("x-org-id", "forged"), ("x-request-id", "forged")]);
    assert!(!seen.head.iter().any(|line| line.contains("forged")), "{:#?}", seen.head);
}

#[test]
fn a_key_does_not_apply_to_the_next_request_on_the_connection() {
    let world = World::start();
    let other = world.gateway.key_with(&["a:read"]);
    let mut wire = world.gateway.connect();
    let keyed = Call::get("/keyed");
    for _ in 0..3 {
        for (id, secret) in [(None, &world.secret), (Some(other.id()), &other.secret)] {
            assert_eq!(wire.call(&keyed.clone().key(secret)).unwrap().status, 200);
            let seen = world.live.seen().pop().unwrap();
            if let Some(id) = id {
                assert_eq!(seen.value("x-key-id"), id.to_string());
                assert_eq!(seen.value("x-scopes"), "a:read");
            }
            assert_eq!(wire.call(&Call::get("/open")).unwrap().status, 200);
            assert_eq!(world.live.seen().pop().unwrap().values("x-key-id"), [""; 0]);
            wire.call(&keyed).unwrap().refusal(401, "authentication_error");
        }
    }
    // Pipelined, in one piece.
    world.live.forget();
    let request =
        |secret: &str| format!("GET /keyed HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {secret}\r\n\r\n");
    let (mine, theirs) = (request(&world.secret), request(&other.secret));
    wire.send(format!("{mine}{theirs}GET /keyed HTTP/1.1\r\nhost: h\r\n\r\n{mine}").as_bytes());
    let statuses: Vec<u16> = (0..4).map(|_| wire.answer().unwrap().status).collect();
    assert_eq!(statuses, [200, 200, 401, 200]);
    let seen = world.live.seen();
    let ids: Vec<&str> = seen.iter().map(|seen| seen.value("x-key-id")).collect();
    assert_eq!(ids.len(), 3);
    assert_eq!((ids[0] == ids[2], ids[1]), (true, &*other.id().to_string()));
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn a_name_that_upstreams_believe_is_removed_in_every_spelling_and_what_traces_a_request_passes() {
    for transport in [Transport::Http1, Transport::Http2] {
        let world = World::with(Gateway::builder().transport(transport));
        for name in NAMES {
            let name = name.replace('*', "Access-Token");
            for spelling in [name.clone(), name.replace('-', "_"), name.replacen('-', ".", 1)] {
                for target in ["/keyed", "/open"] {
                    let seen = world.seen(target, &[(&spelling, "forged")]);
                    assert!(
                        !seen.head.iter().any(|line| line.contains("forged")),
                        "{spelling}: {:#?}",
                        seen.head
                    );
                }
            }
        }
        for name in [
            "x-amzn-trace-id",
            "traceparent",
            "tracestate",
            "cf-ray",
            "x-b3-traceid",
            "baggage",
            "x-auth-request",
        ] {
            assert_eq!(world.seen("/keyed", &[(name, "mine")]).value(name), "mine");
        }
    }
}

#[test]
fn what_a_trusted_proxy_sends_is_kept_where_the_configuration_says_so_and_in_that_spelling_only() {
    let settings = "[request_headers]\nkeep_from_trusted = [\"CF-Connecting-IP\", \"X-Auth-Request-User\"]\nstrip = \
                    [\"X-Debug\"]\n";
    for (trusted, kept) in [("127.0.0.0/8\", \"::1", &["1"][..]), ("192.0.2.0/24", &[])] {
        for transport in [Transport::Http1, Transport::Http2] {
            let server = format!("{SERVER}trusted_proxies = [\"{trusted}\"]\n");
            let world =
                World::with(Gateway::builder().settings(&server).settings(settings).transport(transport));
            let seen = world.seen(
                "/keyed",
                &[
                    ("cf-connecting-ip", "1"),
                    ("cf_connecting_ip", "2"),
                    ("x-auth-request-user", "1"),
                    ("x-auth-request-email", "2"),
                    ("true-client-ip", "2"),
                    ("x_debug", "2"),
                    ("x-debug", "2"),
                ],
            );
            assert_eq!(seen.values("cf-connecting-ip"), kept, "{trusted}");
            assert_eq!(seen.values("x-auth-request-user"), kept, "{trusted}");
            for name in ["cf_connecting_ip", "x-auth-request-email", "true-client-ip", "x_debug", "x-debug"] {
                assert_eq!(seen.values(name), [""; 0], "{name} from {trusted}");
            }
        }
    }
}

#[test]
fn a_removed_name_is_counted_for_each_request_and_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    Gateway::builder()
        .policy(POLICY)
        .settings("[ops]\nlisten = \"127.0.0.1:0\"\n[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\n")
        .api(&live, &test)
        .write(folder.path());
    let key = create_key(folder.path());
    let gateway = Process::serve(folder.path());
    let (address, ops) = (gateway.address(), gateway.ops_address());
    for _ in 0..5 {
        let call =
            Call::get("/keyed").key(&key).field("X_Forwarded_User", "root").field("cf-connecting-ip", "::1");
        assert_eq!(fetch(address, &call.field("x-org-id", "mine")).status, 200);
    }
    let text = scrape(ops);
    for name in ["x-forwarded-user", "cf-connecting-ip", "identity"] {
        let series = format!("keygate_request_headers_removed_total{{name=\"{name}\"}}");
        assert_eq!(value(&text, &series), Some(5.0), "{name}");
    }
    gateway.signal(Signal::TERM);
    let (_, said) = gateway.end();
    for name in ["x-forwarded-user", "cf-connecting-ip", "identity"] {
        let told = said.lines().filter(|line| line.contains(&format!("upstreams believe ({name})"))).count();
        assert_eq!(told, 1, "{name}: {said}");
    }
}
