//! Whole configurations, and the whole text of what is said about the wrong ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use http::Method;
use proptest::prelude::*;

use super::*;
use crate::api::Operation;
use crate::gateway::route::{Access, Target};
use crate::key::Environment;
use crate::upstream::{Endpoint, HostField, Timeouts, UpstreamId};

const STORE: &str = "[store]\nkind = \"embedded\"\n";
const UPSTREAM: &str =
    "[upstreams.api]\nlive = [\"http://127.0.0.1:9000\"]\ntest = [\"http://127.0.0.1:9001\"]\n";
const POLICY: &str = "[policy]\nfile = \"policy.toml\"\n";
const ROUTE: &str = "[[route]]\nid = \"own\"\nmethods = [\"GET\"]\npaths = [\"/own\"]\nany_key = true\nserve = \"keys.self\"\n";

/// Loads `etc/keygate.toml` and `etc/policy.toml` from these texts.
fn load(toml: &str, policy: &str, environment: &[(&str, &str)]) -> Result<Config, Mistakes> {
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    Config::load_from(&|path| file(path, toml, policy), Path::new("etc/keygate.toml"), environment)
}

fn file(path: &Path, toml: &str, policy: &str) -> io::Result<String> {
    match path.to_str() {
        Some("etc/keygate.toml") => Ok(toml.to_owned()),
        Some("etc/policy.toml") => Ok(policy.to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such file")),
    }
}

/// A sound configuration with `lines` before it.
fn around(lines: &str) -> String {
    format!("{lines}\n{STORE}{UPSTREAM}{POLICY}")
}

fn mistakes(toml: &str, policy: &str, environment: &[(&str, &str)]) -> String {
    load(toml, policy, environment).map_or_else(|mistakes| mistakes.to_string(), |_| "none".to_owned())
}

/// What is said about lines of `keygate.toml` before an otherwise sound configuration.
fn about(lines: &str) -> String {
    mistakes(&around(lines), ROUTE, &[])
}

/// What is said about a policy.
fn about_policy(policy: &str) -> String {
    mistakes(&around(""), policy, &[])
}

#[track_caller]
fn assert_says(said: impl fmt::Display, expected: &[&str]) {
    assert_eq!(format!("\n{said}\n"), format!("\n{}\n", expected.join("\n")));
}

mod shipped_files {
    use super::*;

    /// The kinds of store, a kind of Redis for each way to find it; and what the sentences of the keys that do
    /// not go with it begin with.
    const KINDS: [(&str, &[&str]); 4] = [
        ("embedded", &["# With kind = \"redis\"", "# With `sentinels`"]),
        ("redis", &["# With kind = \"embedded\"", OTHERWISE_FOUND, "# With `sentinels`"]),
        ("sentinels", &["# With kind = \"embedded\"", URL, CLUSTER]),
        (
            "cluster",
            &[
                "# With kind = \"embedded\"",
                URL,
                "# With kind = \"redis\", instead of `url`: the sentinels",
                "# With `sentinels`",
            ],
        ),
    ];
    const URL: &str = "# With kind = \"redis\": where the Redis is";
    const OTHERWISE_FOUND: &str = "# With kind = \"redis\", instead of `url`";
    const CLUSTER: &str = "# With kind = \"redis\", instead of `url`: some nodes of a cluster";

    /// `keygate.toml` with every key set that goes with this kind of store.
    fn complete(kind: &str) -> String {
        let others = KINDS.iter().find(|(name, _)| *name == kind).unwrap().1;
        let mut lines: Vec<String> = Vec::new();
        let (mut sentence, mut section) = ("", "");
        for line in DEFAULT_CONFIGURATION.lines() {
            match line.strip_prefix('#') {
                Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => {
                    // TLS to the one Redis is asked for in its address, and the file shows one without.
                    let is_other = others.iter().any(|other| sentence.starts_with(other))
                        || (kind == "redis" && section == "[store.tls]");
                    if !is_other {
                        lines.push(key.to_owned());
                    }
                }
                _ if line.starts_with("kind = ") => {
                    let kind = if kind == "embedded" { kind } else { "redis" };
                    lines.push(format!("kind = \"{kind}\""));
                }
                _ => lines.push(line.to_owned()),
            }
            if line.starts_with('[') {
                section = line;
            }
            sentence = line;
        }
        lines.join("\n")
    }

    fn default_embedded() -> StoreSettings {
        let path = Path::new("etc").join(embedded::Settings::default().path);
        StoreSettings::Embedded(embedded::Settings { path })
    }

    /// With the examples for what has no default.
    fn default_redis(place: redis::Place, tls: Option<redis::TlsFiles>) -> StoreSettings {
        StoreSettings::Redis(Box::new(redis::Settings {
            username: Some("keygate".to_owned()),
            password_file: Some("etc/redis-password".into()),
            tls,
            ..redis::Settings::at(place)
        }))
    }

    /// The nodes that the file shows, at this port.
    fn nodes(port: u16) -> Vec<redis::Node> {
        (5..8).map(|n| redis::Node::parse(&format!("10.0.0.{n}:{port}")).unwrap()).collect()
    }

    fn assert_defaults(
        config: &Config,
        store: &StoreSettings,
        (workers, pepper_file, audit_key_file): (Option<usize>, Option<PathBuf>, Option<PathBuf>),
    ) {
        let listener = listener::Settings {
            workers: workers.and_then(std::num::NonZeroUsize::new),
            ..listener::Settings::default()
        };
        assert_eq!(config.listener, listener);
        assert_eq!(config.connection, connection::Settings::default());
        assert_eq!(config.gateway, gateway::Settings::default());
        assert_eq!(config.keys, KeySettings { pepper_file, audit_key_file, ..KeySettings::default() });
        assert_eq!(config.store, *store);
        assert_eq!(config.cache, cache::Settings::default());
        assert_eq!(config.request_log, RequestLog::default());
        assert_eq!(config.drain, DrainSettings::default());
        // These have no default; the file has to show something.
        assert_eq!(
            config.admin,
            crate::admin::Settings { socket: Some("etc/keygate.sock".into()), remote: None }
        );
        assert_eq!(config.retention, RetentionSettings::default());
        let endpoint = |text| vec![Endpoint::parse(text).unwrap()];
        let upstream = upstream::Settings {
            name: "api".into(),
            live: endpoint("http://127.0.0.1:9000"),
            test: endpoint("http://127.0.0.1:9001"),
            host: HostField::default(),
            timeouts: Timeouts::default(),
        };
        assert_eq!(config.upstreams, [upstream]);
    }

    #[test]
    fn the_shipped_file_sets_nothing_but_the_defaults() {
        let config = load(DEFAULT_CONFIGURATION, DEFAULT_POLICY, &[]).unwrap();
        assert_defaults(&config, &default_embedded(), (None, None, None));
        assert_eq!(config.tls, tls::Settings::default());
    }

    #[test]
    fn what_the_shipped_file_shows_in_comments_are_the_defaults() {
        let sentinels = redis::Sentinels {
            nodes: nodes(26379),
            master: "mymaster".to_owned(),
            username: Some("keygate".to_owned()),
            password_file: Some("etc/sentinel-password".into()),
        };
        let client = ("etc/redis-client.pem".into(), "etc/redis-client-key.pem".into());
        let tls = redis::TlsFiles { ca: "etc/redis-ca.pem".into(), client: Some(client) };
        for (kind, store) in [
            ("embedded", default_embedded()),
            ("redis", default_redis(redis::Settings::default().place, None)),
            ("sentinels", default_redis(redis::Place::Sentinel(sentinels), Some(tls.clone()))),
            ("cluster", default_redis(redis::Place::Cluster(nodes(6379)), Some(tls))),
        ] {
            let config = load(&complete(kind), DEFAULT_POLICY, &[]).unwrap();
            assert_defaults(
                &config,
                &store,
                (Some(4), Some("etc/pepper".into()), Some("etc/audit-key".into())),
            );
            let files = tls::Files { certificate: "etc/cert.pem".into(), key: "etc/key.pem".into() };
            assert_eq!(config.tls.certificates, [files], "there is no default to show");
        }
    }

    #[test]
    fn every_key_of_the_reader_stands_in_the_shipped_file_and_no_other() {
        let report = Report::default();
        let files = |path: &Path| file(path, "", DEFAULT_POLICY);
        translate(&complete("embedded"), Path::new("etc/keygate.toml"), Vec::new(), &files, &report).unwrap();
        let of_configuration = |key: &&String| key.contains('.') && !key.contains('[');
        let asked: BTreeSet<String> =
            report.asked.borrow().iter().filter(of_configuration).cloned().collect();

        let mut shown = BTreeSet::new();
        let mut section = String::new();
        let complete = KINDS.map(|(kind, _)| complete(kind)).join("\n");
        for line in complete.lines().filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[') {
                name.trim_end_matches(']').clone_into(&mut section);
            } else if let Some((key, _)) = line.split_once(" = ") {
                shown.insert(format!("{section}.{key}"));
            }
        }
        assert_eq!(shown, asked);
    }

    #[test]
    fn every_key_of_the_shipped_file_has_one_sentence() {
        let lines: Vec<&str> = DEFAULT_CONFIGURATION.lines().collect();
        let is_key = |line: &str| line.trim_start_matches('#').starts_with(|c: char| c.is_ascii_lowercase());
        for pair in lines.windows(2).filter(|pair| is_key(pair[1])) {
            let sentence = pair[0].starts_with("# ") && pair[0].trim_end_matches(')').ends_with('.');
            assert!(sentence, "{} is not explained by {:?}", pair[1], pair[0]);
        }
    }

    /// The table of the API's contract: methods, paths, scope (or who may use it), who serves it.
    const CONTRACT: [(&str, &str, &str, &str); 27] = [
        ("POST", "/v1/auth/signup", "public", "signup"),
        ("POST", "/v1/api_keys", "keys:manage", "keys.create"),
        ("GET", "/v1/api_keys", "keys:manage", "keys.list"),
        ("GET", "/v1/api_keys/self", "any key", "keys.self"),
        ("GET", "/v1/api_keys/{id}", "keys:manage", "keys.get"),
        ("PATCH", "/v1/api_keys/{id}", "keys:manage", "keys.update"),
        ("POST", "/v1/api_keys/{id}/rotate", "keys:manage", "keys.rotate"),
        ("POST", "/v1/api_keys/{id}/revoke", "keys:manage", "keys.revoke"),
        ("DELETE", "/v1/api_keys/{id}", "keys:manage", "keys.revoke"),
        ("GET", "/v1/audit_events", "audit:read", "audit.list"),
        ("GET", "/v1/jobs /v1/jobs/{id} /v1/jobs/{id}/files", "jobs:read", "upstream"),
        ("GET", "/v1/jobs/{id}/submissions", "jobs:read", "upstream"),
        ("GET", "/v1/submissions /v1/submissions/summary", "jobs:read", "upstream"),
        ("GET", "/v1/submissions/{id}", "jobs:read", "upstream"),
        ("GET", "/v1/jobs/{id}/audit", "audit:read", "upstream"),
        ("POST", "/v1/jobs /v1/jobs/{id}/cancel /v1/jobs/{id}/rate", "jobs:write", "upstream"),
        ("GET", "/v1/webhook_endpoints /v1/webhook_endpoints/{id}", "webhooks:read", "upstream"),
        ("GET", "/v1/webhook_events", "webhooks:read", "upstream"),
        ("POST", "/v1/webhook_endpoints", "webhooks:write", "upstream"),
        ("POST", "/v1/webhook_endpoints/{id}/rotate_secret", "webhooks:write", "upstream"),
        ("POST", "/v1/webhook_events/{id}/replay", "webhooks:write", "upstream"),
        ("PATCH", "/v1/webhook_endpoints/{id}", "webhooks:write", "upstream"),
        ("DELETE", "/v1/webhook_endpoints/{id}", "webhooks:write", "upstream"),
        ("GET", "/v1/billing/credits", "billing:read", "upstream"),
        ("GET", "/v1/billing/transactions", "billing:read", "upstream"),
        ("POST", "/v1/billing/credits/purchase", "billing:write", "upstream"),
        ("GET", "/v1/organization/settings", "usage:read", "upstream"),
    ];

    #[test]
    fn the_shipped_policy_is_the_contract() {
        let config = load(DEFAULT_CONFIGURATION, DEFAULT_POLICY, &[]).unwrap();
        let mut policy = BTreeSet::new();
        for route in config.routes.routes() {
            let access = match &route.access {
                Access::Public { .. } => "public".to_owned(),
                Access::AnyKey => "any key".to_owned(),
                Access::Scopes(scopes) => scopes.to_string(),
            };
            let server = match route.target {
                Target::Upstream(_) => "upstream",
                Target::Operation(operation) => operation.name(),
            };
            assert!(!route.forward_authorization && !route.encoded_slash, "{}", route.id);
            for method in &route.methods {
                for pattern in &route.patterns {
                    policy.insert(format!("{method} {pattern} {access} {server}"));
                }
            }
        }
        let contract = CONTRACT.iter().flat_map(|(method, paths, access, server)| {
            paths.split(' ').map(move |path| format!("{method} {path} {access} {server}"))
        });
        assert_eq!(policy, contract.collect());
    }

    #[test]
    fn the_shipped_vocabulary_is_that_of_the_contract() {
        let config = load(DEFAULT_CONFIGURATION, DEFAULT_POLICY, &[]).unwrap();
        assert_eq!(
            config.scopes.to_string(),
            "audit:read billing:read billing:write jobs:read jobs:write keys:manage usage:read webhooks:read \
             webhooks:write"
        );
    }

    #[test]
    fn bodies_of_keygates_own_operations_are_small() {
        let config = load(DEFAULT_CONFIGURATION, DEFAULT_POLICY, &[]).unwrap();
        for route in config.routes.routes() {
            let own = matches!(route.target, Target::Operation(_));
            assert_eq!(route.body_limit, own.then_some(64 << 10), "{}", route.id);
        }
    }
}

mod translation {
    use super::*;

    #[test]
    fn every_setting_arrives_where_it_belongs() {
        let config = load(
            r#"
            server = { listen = "0.0.0.0:80", plaintext = "behind a TLS terminator", workers = 2 }
            limits = { target = "4KiB", head = 2048, fields = 50, body = "1GiB" }
            [identity_headers]
            org_id = "X-Org"
            [keys]
            prefix = "kg"
            pepper_file = "/run/pepper"
            [store]
            kind = "embedded"
            path = "data/keys.redb"
            [upstreams]
            b = { live = ["http://b"], shared = true, host = "endpoint", answer_timeout = "2m" }
            a = { live = ["http://a:1", "http://a:2"], test = ["http://a:3"] }
            [policy]
            file = "policy.toml"
            [log]
            requests = "json"
            "#,
            &ROUTE.replace("serve = \"keys.self\"", "upstream = \"b\""),
            &[],
        )
        .unwrap();
        assert_eq!(config.listener.listen.to_string(), "0.0.0.0:80");
        assert_eq!(config.listener.workers.unwrap().get(), 2);
        let limits = gateway::guard::Limits { target: 4096, head: 2048, fields: 50, body: 1 << 30 };
        assert_eq!(config.gateway.limits, limits);
        assert_eq!(config.gateway.headers.org_id, "x-org");
        assert_eq!(config.keys.prefix.as_str(), "kg");
        assert_eq!(config.keys.pepper_file, Some("/run/pepper".into()));
        let StoreSettings::Embedded(store) = &config.store else { panic!("{:?}", config.store) };
        assert_eq!(store.path, Path::new("etc/data/keys.redb"), "starts at the folder of the file");
        assert_eq!(config.request_log, RequestLog::Json);
        assert_eq!(config.admin.socket, None);

        let upstream = &config.upstreams[1];
        assert_eq!((&*upstream.name, upstream.host), ("b", HostField::Endpoint));
        assert_eq!(upstream.live, upstream.test);
        assert_eq!(upstream.timeouts.answer, Duration::from_secs(120));
        assert_eq!(config.routes.routes()[0].target, Target::Upstream(UpstreamId(1)));
    }

    #[test]
    fn the_environment_adds_and_overrides() {
        let environment = [
            ("KEYGATE__SERVER__LISTEN", "127.0.0.1:1"),
            ("keygate__cache__capacity", "7"),
            ("KEYGATE__KEYS__PREFIX", "k1"),
            ("KEYGATE__STORE__PATH", "7"),
            ("KEYGATE__UPSTREAMS__API__LIVE", "[\"http://live\"]"),
            ("KEYGATE__UPSTREAMS__MORE__LIVE", "['http://more']"),
            ("KEYGATE__UPSTREAMS__MORE__SHARED", "true"),
            ("KEYGATE_CONFIG", "something else"),
            ("PATH", "/bin"),
        ];
        let config =
            load(&around("[server]\nlisten = \"127.0.0.1:9\"\nworkers = 3"), ROUTE, &environment).unwrap();
        assert_eq!(config.listener.listen.to_string(), "127.0.0.1:1");
        assert_eq!(config.listener.workers.unwrap().get(), 3);
        assert_eq!(config.cache.capacity, 7);
        assert_eq!(config.keys.prefix.as_str(), "k1");
        let StoreSettings::Embedded(store) = &config.store else { panic!("{:?}", config.store) };
        assert_eq!(store.path, Path::new("etc/7"), "text that reads as a number is still text");
        assert_eq!(config.upstreams[0].live, [Endpoint::parse("http://live").unwrap()]);
        assert_eq!(config.upstreams[1].test, [Endpoint::parse("http://more").unwrap()]);
    }

    #[test]
    fn a_variable_mends_a_mistake_of_the_file() {
        let broken = around("[server]\nlisten = 3");
        assert!(load(&broken, ROUTE, &[]).is_err());
        assert!(load(&broken, ROUTE, &[("KEYGATE__SERVER__LISTEN", "127.0.0.1:1")]).is_ok());
    }

    #[test]
    fn a_redis_is_described() {
        let toml = around("[keys]\npepper_file = \"pepper\"").replace(
            STORE,
            "[store]\nkind = \"redis\"\nurl = \"redis://redis:7000/2\"\nusername = \"gw\"\npassword_file = \"pw\"\n\
             cell = \"eu\"\nlookup_timeout = \"50ms\"\n",
        );
        let config = load(&toml, ROUTE, &[]).unwrap();
        let settings = redis::Settings {
            username: Some("gw".to_owned()),
            password_file: Some("etc/pw".into()),
            cell: redis::Cell::parse("eu").unwrap(),
            lookup_timeout: Duration::from_millis(50),
            ..redis::Settings::new(redis::Address::parse("redis://redis:7000/2").unwrap())
        };
        assert_eq!(config.store, StoreSettings::Redis(Box::new(settings)));
    }

    #[test]
    fn a_redis_is_found_in_one_way_and_over_tls_where_it_is_said() {
        let redis = |lines: &str| {
            let toml = around("[keys]\npepper_file = \"pepper\"")
                .replace(STORE, &format!("[store]\nkind = \"redis\"\n{lines}\n"));
            load(&toml, ROUTE, &[]).map(|config| config.store).map_err(|mistakes| mistakes.to_string())
        };
        let found = |lines: &str| match redis(lines) {
            Ok(StoreSettings::Redis(settings)) => (settings.place.to_string(), settings.tls),
            other => panic!("{other:?}"),
        };
        let ca = Some(redis::TlsFiles { ca: "etc/ca.pem".into(), client: None });
        let pair = Some(("etc/c.pem".into(), "/k.pem".into()));
        let both = Some(redis::TlsFiles { ca: "etc/ca.pem".into(), client: pair });
        for (lines, place, tls) in [
            ("url = \"redis://a:1\"", "a:1", None),
            ("url = \"rediss://a:1\"\ntls = { ca = \"ca.pem\" }", "a:1", ca),
            (
                "sentinels = [\"a:1\", \"b:2\"]\nmaster_name = \"m\"\n[store.tls]\nca = \"ca.pem\"\ncert = \"c.pem\"\n\
                 key = \"/k.pem\"",
                "the master `m` of the sentinels a:1, b:2",
                both,
            ),
            ("cluster = [\"[::1]:1\"]", "the cluster of [::1]:1", None),
        ] {
            assert_eq!(found(lines), (place.to_owned(), tls), "{lines}");
        }
        for (lines, mistake) in [
            ("", "store.url: missing; say where Redis is"),
            ("url = \"redis://a\"\ncluster = [\"a:1\"]", "store.cluster: stands beside `url`"),
            ("sentinels = [\"a:1\"]", "store.master_name: missing"),
            ("sentinels = []\nmaster_name = \"m\"", "store.sentinels: is empty"),
            ("sentinels = [\"a\"]\nmaster_name = \"m\"", "store.sentinels[0]: write host:port"),
            ("url = \"redis://a\"\nmaster_name = \"m\"", "store.master_name: belongs to `sentinels`"),
            (
                "sentinels = [\"a:1\"]\nmaster_name = \"m\"\nsentinel_username = \"u\"",
                "store.sentinel_password_file: missing",
            ),
            ("url = \"rediss://a\"", "store.tls.ca: missing"),
            ("url = \"redis://a\"\ntls = { ca = \"ca.pem\" }", "store.url: asks for no TLS"),
            ("url = \"rediss://a\"\ntls = { ca = \"ca.pem\", key = \"k\" }", "store.tls.cert: missing"),
            ("cluster = [\"a:1\"]\ntls = { cert = \"c\", key = \"k\" }", "store.tls.ca: missing"),
            ("cluster = [\"a:1\"]\ntls = { verify = false }", "store.tls.verify: unknown key"),
        ] {
            let mistakes = redis(lines).unwrap_err();
            assert!(mistakes.contains(mistake) && mistakes.lines().count() == 1, "{lines}: {mistakes}");
        }
        let embedded = format!("{STORE}tls = {{ ca = \"ca.pem\" }}\n");
        let refused = load(&around("").replace(STORE, &embedded), ROUTE, &[]).unwrap_err().to_string();
        assert!(refused.contains("store.tls.ca: belongs to kind = \"redis\""), "{refused}");
    }

    #[test]
    fn a_public_route_goes_live_unless_it_says_test() {
        let route = |more: &str| {
            let policy = format!(
                "[[route]]\nid = \"p\"\nmethods = [\"GET\"]\npaths = [\"/p\"]\npublic = true\nupstream = \"api\"\n{more}"
            );
            load(&around(""), &policy, &[]).unwrap().routes.routes()[0].clone()
        };
        assert_eq!(route("").access, Access::Public { environment: Environment::Live });
        let test = route("environment = \"test\"\nforward_authorization = true\nencoded_slash = true");
        assert_eq!(test.access, Access::Public { environment: Environment::Test });
        assert!(test.forward_authorization && test.encoded_slash);
    }

    #[test]
    fn methods_and_operations_are_taken_by_name() {
        let policy = DEFAULT_POLICY.replace("[\"PATCH\", \"DELETE\"]", "[\"PATCH\", \"PROPFIND\"]");
        let config = load(DEFAULT_CONFIGURATION, &policy, &[]).unwrap();
        let methods = |id: &str| {
            config.routes.routes().iter().find(|route| &*route.id == id).map(|route| route.methods.clone())
        };
        let propfind = Method::from_bytes(b"PROPFIND").unwrap();
        assert_eq!(methods("webhooks.change"), Some(vec![Method::PATCH, propfind]));
        for operation in Operation::ALL {
            let serves = |target| target == Target::Operation(operation);
            assert!(config.routes.routes().iter().any(|route| serves(route.target)), "{operation:?}");
        }
    }
}

mod messages {
    use super::*;

    #[test]
    fn all_mistakes_are_told_at_once() {
        let toml = "\
[server]
lisen = \"0.0.0.0:80\"
workers = \"four\"
idle_timeout = 75
head_timeout = \"0s\"
[cache]
ttl = \"soon\"
[upstreams.api]
live = [\"http://a\", 3]
[logg]
requests = \"text\"
";
        assert_says(
            mistakes(toml, ROUTE, &[("KEYGATE__LOG__REQUESTS", "jsn"), ("KEYGATE__NO__SUCH", "1")]),
            &[
                "etc/keygate.toml:1:1: store.kind: missing; say where keys are kept: kind = \"embedded\" for one file \
                 on this machine, \"redis\" for several gateways",
                "etc/keygate.toml:1:1: policy.file: missing; name the file of routes: file = \"policy.toml\"",
                "etc/keygate.toml:2:1: server.lisen: unknown key `lisen`; did you mean `listen`?",
                "etc/keygate.toml:3:11: server.workers: expected an integer, found a string; write a number without \
                 quotes",
                "etc/keygate.toml:4:16: server.idle_timeout: expected a duration, found an integer; write a number \
                 and a unit in quotes, as in \"75s\", \"5m\" or \"24h\"",
                "etc/keygate.toml:5:16: server.head_timeout: \"0s\" is out of range; choose from 1ms to 1day",
                "etc/keygate.toml:7:7: cache.ttl: \"soon\" is not a duration; write a number and a unit in quotes, as \
                 in \"75s\", \"5m\" or \"24h\"",
                "etc/keygate.toml:8:1: upstreams.api.test: missing; say where requests with test keys go: test = \
                 [\"http://127.0.0.1:9001\"], or shared = true to send them to `live`, knowingly",
                "etc/keygate.toml:9:21: upstreams.api.live[1]: expected a string, found an integer; put it in quotes",
                "etc/keygate.toml:10:2: logg: unknown key `logg`; did you mean `log`?",
                "KEYGATE__LOG__REQUESTS: log.requests: \"jsn\" is not known here; did you mean \"json\"?",
                "KEYGATE__NO__SUCH: no: unknown key `no`; the keys here are `server`, `limits`, `identity_headers`, \
                 `keys`, `audit`, `store`, `cache`, `upstreams`, `policy`, `admin`, `outbox`, `signup`, `ops`, `log`",
            ],
        );
    }

    #[test]
    fn an_admin_api_over_tcp_needs_tokens_and_does_not_leave_the_machine_unasked() {
        assert_says(
            about("[admin]\nlisten = \"0.0.0.0:9465\"\nallowed_hosts = [\"http://admin.example\"]"),
            &[
                "etc/keygate.toml:1:1: admin.tokens_file: missing; name the file of tokens that `keygate admin token` \
                 makes lines for",
                "etc/keygate.toml:2:10: admin.listen: 0.0.0.0:9465 is not loopback, and tokens and keys would cross the \
                 network in plain text; listen on loopback, or put a TLS terminator before it and say plaintext = \
                 \"behind a TLS terminator\"",
                "etc/keygate.toml:3:18: admin.allowed_hosts[0]: \"http://admin.example\" does not do; a host is a name or \
                 an address without a port, as in \"localhost\" or \"[::1]\"",
            ],
        );
        let listen = "[admin]\nlisten = \"127.0.0.1:9465\"\ntokens_file = \"tokens\"";
        let config = load(&around(listen), ROUTE, &[]).unwrap();
        let remote = crate::admin::RemoteSettings {
            listen: "127.0.0.1:9465".parse().unwrap(),
            tokens_file: "etc/tokens".into(),
            allowed_hosts: crate::admin::RemoteSettings::loopback_hosts(),
        };
        assert_eq!(config.admin, crate::admin::Settings { socket: None, remote: Some(remote) });
    }

    #[test]
    fn a_text_that_is_not_toml_is_told_without_what_follows_from_it() {
        assert_says(
            mistakes(
                "[server]\nlisten = \nworkers = four\nlimit = 3\n[stor\nkind = 1\n[cache]\nttl = 1",
                ROUTE,
                &[],
            ),
            &[
                "etc/keygate.toml:2:10: this is not TOML: string values must be quoted, expected literal string; \
                 write it as TOML",
                "etc/keygate.toml:3:11: this is not TOML: invalid boolean, expected `false`; write it as TOML",
                "etc/keygate.toml:4:1: server.limit: unknown key `limit`; the keys here are `listen`, `workers`, \
                 `max_connections`, `max_connections_per_client`, `handshake_timeout`, `head_timeout`, `idle_timeout`, \
                 `write_timeout`, `tls`, `plaintext`, `trusted_proxies`, `body_idle_timeout`, `drain_delay`, `drain_timeout`",
                "etc/keygate.toml:5:6: this is not TOML: unclosed table, expected `]`; write it as TOML",
                "etc/keygate.toml:8:7: cache.ttl: expected a duration, found an integer; write a number and a unit in \
                 quotes, as in \"75s\", \"5m\" or \"24h\"",
            ],
        );
    }

    #[test]
    fn plain_text_off_loopback_must_be_said() {
        let listen = "0.0.0.0:80 is not loopback, and keys would cross the network in plain text; set tls, \
                      listen on loopback, or put a TLS terminator before it and say plaintext = \"behind a TLS terminator\"";
        assert_says(
            about("[server]\nlisten = \"0.0.0.0:80\""),
            &[&format!("etc/keygate.toml:2:10: server.listen: {listen}")],
        );
        assert_says(
            mistakes(&around(""), ROUTE, &[("KEYGATE__SERVER__LISTEN", "0.0.0.0:80")]),
            &[&format!("KEYGATE__SERVER__LISTEN: server.listen: {listen}")],
        );
        assert_says(
            about("[server]\nlisten = \"[::]:80\"\nplaintext = \"yes\""),
            &[
                "etc/keygate.toml:3:13: server.plaintext: says something else; if it is so, write plaintext = \
               \"behind a TLS terminator\"",
            ],
        );
        assert_eq!(about("[server]\nlisten = \"[::]:80\"\nplaintext = \"behind a TLS terminator\""), "none");
        assert_eq!(about("[server]\nlisten = \"[::1]:80\""), "none");
        let tls = "tls = [{ cert = \"c\", key = \"k\" }]";
        assert_eq!(about(&format!("[server]\nlisten = \"[::]:443\"\n{tls}")), "none");
    }

    #[test]
    fn a_certificate_has_a_file_and_a_key() {
        let config = load(
            &around(
                "[server]\n[[server.tls]]\ncert = \"a.pem\"\nkey = \"/run/a.key\"\n[[server.tls]]\ncert = \"b\"\nkey = \"c\"",
            ),
            ROUTE,
            &[],
        );
        let files =
            |certificate: &str, key: &str| tls::Files { certificate: certificate.into(), key: key.into() };
        assert_eq!(
            config.unwrap().tls.certificates,
            [files("etc/a.pem", "/run/a.key"), files("etc/b", "etc/c")]
        );
        assert_says(
            about("[server]\ntls = [{ cert = \"a\" }, { cert = \"b\", key = 1, keys = \"c\" }]"),
            &[
                "etc/keygate.toml:2:8: server.tls[a].key: missing; name the PEM file with the certificate's private key",
                "etc/keygate.toml:2:44: server.tls[b].key: expected a string, found an integer; put it in quotes",
                "etc/keygate.toml:2:47: server.tls[b].keys: unknown key `keys`; did you mean `key`?",
            ],
        );
        assert_eq!(about("[server]\ntls = []"), "none");
        assert!(about("[server]\nlisten = \"0.0.0.0:80\"\ntls = []").contains("is not loopback"));
        assert_says(
            about("[server]\ntls = { cert = \"a\", key = \"b\" }"),
            &[
                "etc/keygate.toml:2:7: server.tls: expected sections [[server.tls]], found a section; double the brackets",
            ],
        );
    }

    #[test]
    fn trusted_proxies_are_named() {
        assert_eq!(
            about("[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"192.0.2.7\", \"fd00::/8\"]"),
            "none"
        );
        assert_says(
            about(
                "[server]\ntrusted_proxies = [\"0.0.0.0/0\", \"10.1.2.3/8\", \"lb\",\n  \"10.0.0.1\", \"10.0.0.1/32\"]",
            ),
            &[
                "etc/keygate.toml:2:20: server.trusted_proxies[0]: \"0.0.0.0/0\" does not do; it trusts everybody, so \
                 any client could claim any address; name your proxies",
                "etc/keygate.toml:2:33: server.trusted_proxies[1]: \"10.1.2.3/8\" does not do; the network is \
                 10.0.0.0/8; write that, or the address alone",
                "etc/keygate.toml:2:47: server.trusted_proxies[2]: \"lb\" does not do; write a network or an address, \
                 as in \"10.0.0.0/8\" or \"192.0.2.7\"",
                "etc/keygate.toml:3:15: server.trusted_proxies[4]: stands twice in this list; leave one out",
            ],
        );
    }

    #[test]
    fn sizes_and_counts_are_in_range() {
        assert_says(
            about(
                "[limits]\ntarget = 0\nhead = \"32MB\"\nfields = -1\nbody = \"0B\"\n[cache]\ncapacity = 1.5",
            ),
            &[
                "etc/keygate.toml:2:10: limits.target: 0 is out of range; choose from 256B to 63KiB",
                "etc/keygate.toml:3:8: limits.head: \"32MB\" is not a size; write bytes, as in 65536, or a unit in \
                 quotes: \"64KiB\", \"128MiB\", \"1GiB\"",
                "etc/keygate.toml:4:10: limits.fields: -1 is out of range; choose from 8 to 10000",
                "etc/keygate.toml:5:8: limits.body: \"0B\" is out of range; choose from 1B to 1024GiB",
                "etc/keygate.toml:7:12: cache.capacity: expected an integer, found a decimal number; write a number \
                 without quotes",
            ],
        );
    }

    #[test]
    fn identity_headers_are_headers_of_their_own() {
        assert_says(
            about(
                "[identity_headers]\norg_id = \"X_Key.Id\"\nenvironment = \"Transfer-Encoding\"\nscopes = \"Content_Type\"\n\
                 request_id = \"X Id\"",
            ),
            &[
                "etc/keygate.toml:2:10: identity_headers.org_id: an upstream could read the header x_key.id as that \
                 of `key_id`; choose names that differ",
                "etc/keygate.toml:3:15: identity_headers.environment: \"Transfer-Encoding\" does not do; this header \
                 has a meaning of its own; choose another, as in \"X-Org-Id\"",
                "etc/keygate.toml:4:10: identity_headers.scopes: \"Content_Type\" does not do; this header has a \
                 meaning of its own; choose another, as in \"X-Org-Id\"",
                "etc/keygate.toml:5:14: identity_headers.request_id: \"X Id\" does not do; write a header name, as in \
                 \"X-Org-Id\"",
            ],
        );
    }

    #[test]
    fn an_environment_has_an_upstream_of_its_own() {
        let toml =
            |upstreams: &str| mistakes(&format!("{STORE}{POLICY}[upstreams]\n{upstreams}"), ROUTE, &[]);
        assert_eq!(toml("a = { live = [\"http://a\"], shared = true }"), "none");
        assert_says(
            toml(
                "a = { live = [\"http://a\"], test = [] }\n\
                 b = { live = [\"http://A:80\"], test = [\"http://a\"] }\n\
                 c = { live = [\"http://a\"], test = [\"http://b\"], shared = true }\n\
                 d = { test = [\"https://user:hunter2@d\"] }\n\
                 e = 3\n\
                 F = { live = [\"http://a\"], shared = true, keepalive = true }",
            ),
            &[
                "etc/keygate.toml:6:35: upstreams.a.test: is empty; name at least one, as in \
                 [\"http://127.0.0.1:9000\"]",
                "etc/keygate.toml:7:38: upstreams.b.test: http://a:80 stands in `live` too, so test keys would reach \
                 it; separate them, or leave out `test` and write shared = true, knowingly",
                "etc/keygate.toml:8:58: upstreams.c.shared: true sends test keys to `live`; leave out either `test` \
                 or `shared`",
                "etc/keygate.toml:9:5: upstreams.d.live: missing; name at least one, as in \
                 [\"http://127.0.0.1:9000\"]",
                "etc/keygate.toml:9:15: upstreams.d.test[0]: not an endpoint; https to an upstream is not supported: \
                 put both on one machine or one private network and use http://",
                "etc/keygate.toml:10:5: upstreams.e: expected a section, found an integer; write a heading in \
                 brackets and its keys beneath it",
                "etc/keygate.toml:11:5: upstreams.F: the name of an upstream is 1 to 64 of a-z 0-9 _ -; rename it",
                "etc/keygate.toml:11:43: upstreams.F.keepalive: unknown key `keepalive`; the keys here are `live`, \
                 `test`, `shared`, `host`, `connect_timeout`, `answer_timeout`, `idle_timeout`, `stream_idle_timeout`",
            ],
        );
    }

    #[test]
    fn a_variable_is_told_by_its_name() {
        let environment = [
            ("KEYGATE__", "1"),
            ("KEYGATE__A__B__C__D__E", "1"),
            ("KEYGATE__CACHE__CAPACITY", "secret"),
            ("KEYGATE__SERVER", "127.0.0.1:1"),
            ("KEYGATE__SERVR__LISTEN", "secret"),
            ("KEYGATE__SERVR__WORKERS", "3"),
            ("KEYGATE__SERVER__LISTEN__PORT", "1"),
            ("KEYGATE__SERVER__TRUSTED_PROXIES", "10.0.0.0/8"),
            ("KEYGATE__STORE__PASSWORD", "secret"),
            ("KEYGATE__STORE__KIND", "{ redis = 1 }"),
            ("KEYGATE__LOG__REQUESTS", "off"),
            ("keygate__log__requests", "text"),
        ];
        assert_says(
            mistakes(&around("[server]\nlisten = \"127.0.0.1:9\""), ROUTE, &environment),
            &[
                "KEYGATE__: the name has an empty part; write it as KEYGATE__SECTION__KEY",
                "KEYGATE__A__B__C__D__E: a.b.c.d.e: no key lies so deep; take one underscore within a name, two \
                 between names",
                "KEYGATE__CACHE__CAPACITY: cache.capacity: expected an integer, found a string; write a number \
                 without quotes",
                "KEYGATE__SERVER: server: this is a section; name one of its keys",
                "KEYGATE__SERVER__LISTEN__PORT: server.listen.port: it would be part of a string; take the name of a \
                 key in a section",
                "KEYGATE__SERVER__TRUSTED_PROXIES: server.trusted_proxies: expected a list, found a string; write it \
                 as [\"…\", \"…\"]",
                "KEYGATE__SERVR__LISTEN: servr: unknown key `servr`; did you mean `server`?",
                "KEYGATE__SERVR__WORKERS: servr.workers: `servr` is unknown; mend the name of the variable",
                "KEYGATE__STORE__KIND: store.kind: a variable sets one key; write one variable for each key of the \
                 table",
                "KEYGATE__STORE__PASSWORD: store.password: unknown key `password`; the keys here are `kind`, `path`, \
                 `url`, `sentinels`, `cluster`, `master_name`, `sentinel_username`, `sentinel_password_file`, `tls`, \
                 `username`, `password_file`, `cell`, `connect_timeout`, `lookup_timeout`, `command_timeout`, \
                 `allow_without_pepper`",
                "keygate__log__requests: log.requests: KEYGATE__LOG__REQUESTS sets the same key; keep one of them",
            ],
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_by_its_name() {
        assert_says(
            mistakes(&format!("{STORE}{UPSTREAM}[policy]\nfile = \"none.toml\""), ROUTE, &[]),
            &["etc/keygate.toml:7:8: policy.file: etc/none.toml cannot be read: no such file"],
        );
        let mistakes = Config::load(Path::new("no/such/keygate.toml"), []).unwrap_err();
        assert!(mistakes.is_unreadable());
        assert_says(
            mistakes,
            &[
                "no/such/keygate.toml: cannot be read: No such file or directory (os error 2); name a configuration \
               file with --config",
            ],
        );
    }

    #[test]
    fn a_store_is_of_one_kind() {
        let store = |lines: &str| mistakes(&format!("[store]\n{lines}{UPSTREAM}{POLICY}"), ROUTE, &[]);
        assert_says(
            store("kind = \"embedded\"\nurl = \"redis://a\"\n"),
            &["etc/keygate.toml:3:7: store.url: belongs to kind = \"redis\"; leave it out"],
        );
        assert_says(
            store("kind = \"redis\"\npath = \"keys.redb\"\nusername = \"gw\"\n"),
            &[
                "etc/keygate.toml:1:1: store.url: missing; say where Redis is: url = \"redis://127.0.0.1:6379\", or sentinels = […], or \
                 cluster = […]",
                "etc/keygate.toml:1:1: store.password_file: missing; name the file with the password of `username`",
                "etc/keygate.toml:1:1: store: who can write to Redis could make keys; give keys.pepper_file, or say \
                 allow_without_pepper = true",
                "etc/keygate.toml:3:8: store.path: belongs to kind = \"embedded\"; leave it out",
            ],
        );
        let unsealed = "allow_without_pepper = true\n";
        assert_says(store(&format!("kind = \"redis\"\nurl = \"redis://a\"\n{unsealed}")), &["none"]);
        for (url, said) in [
            (
                "redis://u:hunter2@a",
                "leave user and password out of it; write `username` and `password_file`",
            ),
            (
                "localhost:6379",
                "write redis://host:port, as in \"redis://127.0.0.1:6379\", or rediss:// for TLS",
            ),
        ] {
            let said = format!("etc/keygate.toml:3:7: store.url: {said}");
            assert_says(store(&format!("kind = \"redis\"\nurl = \"{url}\"\n{unsealed}")), &[&said]);
        }
    }

    #[test]
    fn no_mistake_shows_a_secret() {
        let secrets = "[store]\npassword = \"hunter2\"\n[keys]\npepper = \"hunter2\"\npepper_file = [\"hunter2\"]\n\
                       accept_without_checksum = \"hunter2\"\n[upstreams.a]\nlive = [\"http://u:hunter2@h\"]\n\
                       test = \"hunter2\"\nhost = \"http://u:hunter2@h\"\n[server]\nplaintext = \"hunter2\"\nworkers = hunter2\n[cache\n hunter2";
        let said = mistakes(secrets, ROUTE, &[("KEYGATE__STORE__PEPPER", "hunter2")]);
        assert!(said.lines().count() > 8, "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

mod policy_messages {
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
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic_or_refuse_without_a_reason(
        text in "(?s).{0,200}",
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40),
        name in "(?i)KEYGATE__[A-Z_é]{0,20}",
        value in "(?s).{0,40}",
    ) {
        let pieces = pieces.concat();
        for toml in [text.as_str(), &pieces, &around(&pieces)] {
            for policy in [text.as_str(), &pieces, ROUTE] {
                if let Err(mistakes) = load(toml, policy, &[(&name, &value)]) {
                    prop_assert!(!mistakes.is_empty(), "refused without a reason");
                }
            }
        }
    }
}

const PIECES: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "\"",
    "'",
    "\n",
    "\r\n",
    "#",
    " ",
    "é",
    "\u{0}",
    "\"\"\"",
    "1",
    "-1",
    "1e9",
    "0x",
    "9999999999999999999999999999999999999999",
    "nan",
    "true",
    "false",
    "1979-05-27",
    "server",
    "listen",
    "workers",
    "limits",
    "body",
    "upstreams",
    "api",
    "live",
    "shared",
    "policy",
    "file",
    "route",
    "id",
    "methods",
    "paths",
    "scopes",
    "public",
    "any_key",
    "upstream",
    "serve",
    "body_limit",
    "\"GET\"",
    "\"/a/{id}\"",
    "\"64KiB\"",
    "\"75s\"",
    "\"99999999999999999999GiB\"",
    "\"9999999999999999y\"",
    "\"http://a\"",
    "\"keys.list\"",
    "\"policy.toml\"",
];
