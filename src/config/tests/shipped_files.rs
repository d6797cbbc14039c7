//! The shipped files agree with the code.

use rustls_pki_types::ServerName;

use super::*;
use crate::tls::client::{Files, Trust};

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
/// Secrets have one file, or several while they are replaced. The complete file of a cluster shows the latter.
const ONE_SECRET: &[&str] = &["# The file with the pepper", "# The file with the key"];
const MANY_SECRETS: &[&str] = &["# Instead of `pepper_file`", "# Instead of `key_file`"];
/// What only servers with TLS have.
const WITH_TLS: &str = "# With https:// servers";
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
                // The address of a single Redis asks for TLS, and the file's example does not.
                let one_or_many = if kind == "cluster" { ONE_SECRET } else { MANY_SECRETS };
                let is_other = others.iter().chain(one_or_many).any(|other| sentence.starts_with(other))
                    || (kind == "redis" && section == "[store.tls]")
                    || (kind != "cluster" && sentence.starts_with(WITH_TLS));
                if !is_other {
                    lines.push(key.to_owned());
                }
            }
            Some(heading) if heading.starts_with('[') => lines.push(heading.to_owned()),
            // One of them has TLS to its upstreams.
            None if kind == "cluster" && line.contains("http://") => {
                lines.push(line.replace("http://", "https://"));
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

/// The defaults, and the file's examples for keys without a default.
fn default_redis(place: redis::Place, tls: Option<redis::TlsFiles>) -> StoreSettings {
    StoreSettings::Redis(Box::new(redis::Settings {
        username: Some("keygate".to_owned()),
        password_file: Some("etc/redis-password".into()),
        memory_file: Some("etc/keygate.memory".into()),
        tls,
        ..redis::Settings::at(place)
    }))
}

/// The nodes in the file's examples, at this port.
fn nodes(port: u16) -> Vec<redis::Node> {
    (5..8).map(|n| redis::Node::parse(&format!("10.0.0.{n}:{port}")).unwrap()).collect()
}

/// The files in the examples for one environment.
fn tls_files(name: &str) -> Files {
    let file = |what: &str| PathBuf::from(format!("etc/{name}-{what}.pem"));
    Files { trust: Trust::Authorities(file("ca")), client: Some((file("client"), file("client-key"))) }
}

/// What a check asks in the example of the file; there is no default.
fn question() -> upstream::Question {
    let statuses = [200, 204].map(|status| http::StatusCode::from_u16(status).unwrap());
    let path = http::uri::PathAndQuery::from_static("/healthz");
    upstream::Question::Http { method: Method::GET, path, statuses: statuses.into() }
}

fn assert_defaults(
    config: &Config,
    store: &StoreSettings,
    (workers, pepper_files, audit_key_files): (Option<usize>, Vec<PathBuf>, Vec<PathBuf>),
) {
    let listener = listener::Settings {
        workers: workers.and_then(std::num::NonZeroUsize::new),
        // No default either: the file shows an example.
        memory: workers.map(|_| 1 << 30),
        ..listener::Settings::default()
    };
    assert_eq!(config.listener, listener);
    assert_eq!(config.watchdog, watchdog::Settings::default());
    assert_eq!(config.gateway, gateway::Settings::default());
    assert_eq!(config.keys, KeySettings { pepper_files, audit_key_files, ..KeySettings::default() });
    assert_eq!(config.store, *store);
    assert_eq!(config.cache, cache::Settings::default());
    // Their files have none either.
    let log_file = |name: &str| workers.map(|_| Path::new("etc").join(name));
    assert_eq!(config.log, LogSettings { file: log_file("keygate.log"), ..LogSettings::default() });
    let records = RecordSettings { file: log_file("requests.jsonl"), ..RecordSettings::default() };
    assert_eq!(config.records, records);
    assert_eq!(config.drain, DrainSettings::default());
    // These have no default, so the file shows examples.
    assert_eq!(
        config.admin,
        crate::operators::admin::Settings { socket: Some("etc/keygate.sock".into()), remote: None }
    );
    assert_eq!(config.retention, RetentionSettings::default());
    // Only the complete file of a cluster has two peppers, and upstreams with TLS.
    let has_tls = config.keys.pepper_files.len() > 1;
    let (scheme, tls) =
        if has_tls { ("https", ["api", "api-test"].map(tls_files)) } else { ("http", Default::default()) };
    let endpoint = |port, name: &str| {
        let endpoint = Endpoint::parse(&format!("{scheme}://127.0.0.1:{port}")).unwrap();
        vec![endpoint.verified_as(&ServerName::try_from(name.to_owned()).unwrap())]
    };
    let upstream = upstream::Settings {
        name: "api".into(),
        live: endpoint(9000, "api.internal"),
        test: endpoint(9001, "api-test.internal"),
        weights: [vec![1], vec![1]],
        names: upstream::Ages::default(),
        // The number has no default.
        life: upstream::Life { requests: workers.map(|_| 10_000), ..upstream::Life::default() },
        tls,
        host: HostField::default(),
        protocol: upstream::Protocol::default(),
        timeouts: Timeouts::default(),
        // No default either, but for those that wait.
        limits: workers.map_or_else(upstream::Limits::default, |_| upstream::Limits {
            connections: Some(250),
            requests: Some(200),
            ..upstream::Limits::default()
        }),
        checks: Some(upstream::Checks {
            question: workers.map(|_| question()),
            ..upstream::Checks::default()
        }),
    };
    assert_eq!(config.upstreams, [upstream]);
}

#[test]
fn the_shipped_file_sets_nothing_but_the_defaults() {
    let config = load(DEFAULT_CONFIGURATION, FIRSTHAND_POLICY, &[]).unwrap();
    assert_defaults(&config, &default_embedded(), (None, Vec::new(), Vec::new()));
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
        let config = load(&complete(kind), FIRSTHAND_POLICY, &[]).unwrap();
        let many = usize::from(kind == "cluster") + 1;
        let files = |names: [&str; 2]| names[..many].iter().map(|name| Path::new("etc").join(name)).collect();
        let secrets = (files(["pepper", "old-pepper"]), files(["audit-key", "old-audit-key"]));
        assert_defaults(&config, &store, (Some(4), secrets.0, secrets.1));
        let files = tls::Files { certificate: "etc/cert.pem".into(), key: "etc/key.pem".into() };
        assert_eq!(config.tls.certificates, [files], "there is no default to show");
    }
}

#[test]
fn every_key_of_the_reader_stands_in_the_shipped_file_and_no_other() {
    let report = Report::default();
    let files = |path: &Path| file(path, "", FIRSTHAND_POLICY);
    translate(&complete("embedded"), Path::new("etc/keygate.toml"), Vec::new(), &files, &report).0.unwrap();
    let of_configuration = |key: &&String| key.contains('.') && !key.contains('[');
    let asked: BTreeSet<String> = report.asked.borrow().iter().filter(of_configuration).cloned().collect();

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

/// The table of the API's contract: methods, paths, access (a scope, `public` or `any_key`), target.
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
    ("GET", "/v1/billing/credits", "billing:read or usage:read", "upstream"),
    ("GET", "/v1/billing/transactions", "billing:read or usage:read", "upstream"),
    ("POST", "/v1/billing/credits/purchase", "billing:write", "upstream"),
    ("GET", "/v1/organization/settings", "usage:read", "upstream"),
];

#[test]
fn the_shipped_policy_is_the_contract() {
    let config = load(DEFAULT_CONFIGURATION, FIRSTHAND_POLICY, &[]).unwrap();
    let mut policy = BTreeSet::new();
    for route in config.routes.routes() {
        let access = match &route.access {
            Access::Public { .. } => "public".to_owned(),
            Access::AnyKey => "any key".to_owned(),
            Access::Scopes(needs) => match &needs.any {
                None => needs.all.to_string(),
                Some(any) if needs.all.is_empty() => any.to_string(),
                Some(any) => format!("{} and {any}", needs.all),
            },
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
    let config = load(DEFAULT_CONFIGURATION, FIRSTHAND_POLICY, &[]).unwrap();
    assert_eq!(
        config.scopes.to_string(),
        "audit:read billing:read billing:write jobs:read jobs:write keys:manage usage:read webhooks:read \
             webhooks:write"
    );
}

#[test]
fn bodies_of_keygates_own_operations_are_small() {
    let config = load(DEFAULT_CONFIGURATION, FIRSTHAND_POLICY, &[]).unwrap();
    for route in config.routes.routes() {
        let own = matches!(route.target, Target::Operation(_));
        assert_eq!(route.body_limit, own.then_some(64 << 10), "{}", route.id);
    }
    let config = load(DEFAULT_CONFIGURATION, STARTER_POLICY, &[]).unwrap();
    for route in config.routes.routes().iter().filter(|route| matches!(route.target, Target::Operation(_))) {
        assert_eq!(route.body_limit, Some(64 << 10), "{}", route.id);
    }
}

#[test]
fn the_starter_policy_explains_every_word_of_a_route() {
    // The message for an unknown word names all that there are.
    let wrong = STARTER_POLICY.replacen("\npublic = true\n", "\npublic = true\nunheard-of = 1\n", 1);
    let mistakes = load(DEFAULT_CONFIGURATION, &wrong, &[]).unwrap_err().to_string();
    let words: Vec<&str> =
        mistakes.split_once("the keys here are ").unwrap().1.split('`').skip(1).step_by(2).collect();
    assert!(words.len() >= 16, "{mistakes}");
    for word in words {
        let assigned = format!(" {word} = ");
        let explained = STARTER_POLICY.lines().any(|line| line.starts_with('#') && line.contains(&assigned));
        assert!(explained, "{word} is not explained");
    }
}

#[test]
fn the_starter_policy_offers_the_api_for_keys_and_no_signup() {
    let config = load(DEFAULT_CONFIGURATION, STARTER_POLICY, &[]).unwrap();
    let is_served = |operation: &Operation| {
        config.routes.routes().iter().any(|route| route.target == Target::Operation(*operation))
    };
    let missing: Vec<&str> =
        Operation::ALL.into_iter().filter(|operation| !is_served(operation)).map(Operation::name).collect();
    assert_eq!(missing, ["signup"]);
}
