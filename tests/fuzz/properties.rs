//! What must hold for whatever bytes come: one function for each fuzz target, which panics where it does not.
//!
//! The fuzzer calls them, and so does the test suite, with the seeds beside this file and changes of them by chance. So
//! they are compiled and exercised wherever the suite is.

#[path = "pipeline/mod.rs"]
pub(crate) mod pipeline;

use std::net::SocketAddr;
use std::path::Path;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use keygate::config::{Config, DEFAULT_CONFIGURATION, FIRSTHAND_POLICY};
use keygate::gateway::headers::{HeaderRules, Identity, Settings};
use keygate::lifecycle::{MovedKey, parse_network};
use keygate::policy::pattern::Pattern;
use keygate::policy::request::{CanonicalRequest, Limits};
use keygate::policy::route::RouteTable;
use keygate::store::{Found, redis};
use keygate::upstream::Endpoint;
use keygate::vocabulary::audit::{Chain, Ends, Entry, Link, Trail};
use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::id::{IdSource, KeyId, OrgId};
use keygate::vocabulary::key::record::{Email, Further, KeyRecord, OrgRecord, RecordFormat, Sealer, Stored};
use keygate::vocabulary::key::scope::{Scope, ScopeSet};
use keygate::vocabulary::key::usage::Usage;
use keygate::vocabulary::key::{Digest, Environment, KeyFormat, Pepper, Prefix};
use keygate::vocabulary::network::Server;
use keygate::vocabulary::peer::Peer;

/// A target of the fuzzer. Its seeds are in seeds/NAME.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) holds: fn(&[u8]),
}

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "request", holds: request },
    Target { name: "answer", holds: answer },
    Target { name: "key", holds: key },
    Target { name: "record", holds: record },
    Target { name: "trail", holds: trail },
    Target { name: "configuration", holds: configuration },
    Target { name: "vocabulary", holds: vocabulary },
    Target { name: "moved_key", holds: moved_key },
    Target { name: "pipeline", holds: pipeline },
];

/// Whatever a client sends, what reaches the upstreams is what it may have forwarded, and each request has one answer.
pub(crate) fn pipeline(data: &[u8]) {
    pipeline::holds(data);
}

/// A request that passes the guard has one reading, and what is made of it for the upstream has the identity
/// that keygate gave, once, in no other spelling, and nothing that speaks of a single hop.
pub(crate) fn request(data: &[u8]) {
    let Some(request) = parse_request(data) else { return };
    let Ok(canonical) = CanonicalRequest::parse(request, &Limits::default()) else { return };
    let path = canonical.path().to_owned();
    assert_canonical(&path);
    let again = Request::builder().method(canonical.method()).uri(&path).header(HOST, "again").body(());
    let again = CanonicalRequest::parse(again.unwrap(), &Limits::default());
    assert_eq!(
        again.expect("a canonical path is taken").path(),
        path,
        "canonicalising again changes nothing"
    );
    let _ = shipped_routes().find(&canonical);

    let rules = HeaderRules::new(Settings {
        trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
        ..Settings::default()
    });
    let identity = Identity::from(&found());
    for address in ["192.0.2.1:1", "10.0.0.1:1"] {
        let peer = Peer::new(address.parse::<SocketAddr>().unwrap());
        let mut headers = canonical.headers().clone();
        let _ = rules.client_address(&headers, &peer);
        let (host, id) = (HeaderValue::from_static("api"), HeaderValue::from_static("req_own"));
        rules.forward(&mut headers, &peer, &host, &id, Some(&identity));
        assert_upstream_fields(&headers);
    }
}

/// Method and target on the first line, then fields.
fn parse_request(data: &[u8]) -> Option<Request<()>> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let method = Method::from_bytes(words.next()?).ok()?;
    let mut request = Request::builder().method(method).uri(words.next()?).body(()).ok()?;
    *request.headers_mut() = fields(lines);
    Some(request)
}

fn fields<'d>(lines: impl Iterator<Item = &'d [u8]>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn assert_canonical(path: &str) {
    assert!(path.starts_with('/') && !path.contains(['\\', '?', '#', ' ']), "{path}");
    let segments: Vec<&str> = path[1..].split('/').collect();
    let (last, before) = segments.split_last().unwrap();
    assert!(before.iter().all(|segment| !segment.is_empty()), "an empty segment in {path}");
    for segment in before.iter().chain([last]) {
        let name = segment.split(';').next().unwrap();
        assert!(!matches!(name, "." | ".."), "a dot segment in {path}");
    }
    for (at, _) in path.match_indices('%') {
        let digits = path.get(at + 1..at + 3).expect("an escape is whole");
        let octet = u8::from_str_radix(digits, 16).expect("an escape has hexadecimal digits");
        assert!(!digits.bytes().any(|digit| digit.is_ascii_lowercase()), "lower-case digits in {path}");
        let unreserved = octet.is_ascii_alphanumeric() || b"-._~".contains(&octet);
        assert!(!unreserved && octet != 0, "a needless escape in {path}");
    }
}

fn assert_upstream_fields(headers: &HeaderMap) {
    let fold = |name: &str| name.to_ascii_lowercase().replace(['_', '.'], "-");
    let of = found();
    let scopes = of.key.scopes.to_string();
    for (name, value) in [
        ("x-org-id", of.org.id.to_string()),
        ("x-key-id", of.key.id.to_string()),
        ("x-environment", "live".to_owned()),
        ("x-scopes", scopes),
        ("x-request-id", "req_own".to_owned()),
        ("host", "api".to_owned()),
    ] {
        let alike: Vec<_> = headers.iter().filter(|(other, _)| fold(other.as_str()) == name).collect();
        assert!(matches!(alike[..], [(own, sent)] if *own == name && *sent == value), "{name}: {alike:?}");
    }
    for name in [CONNECTION, UPGRADE, TE, TRAILER, TRANSFER_ENCODING] {
        assert!(!headers.contains_key(&name), "{name} goes no further than one hop");
    }
    for name in headers.keys() {
        let folded = fold(name.as_str());
        assert!(!(folded == "content-length" && name != CONTENT_LENGTH), "{name} could be read as a length");
        assert_ne!(folded, "transfer-encoding");
    }
}

/// What is kept of an upstream's fields is none that speaks of a single hop, and the answer has its one name.
pub(crate) fn answer(data: &[u8]) {
    let rules = HeaderRules::new(Settings::default());
    let id = HeaderValue::from_static("req_own");
    for takes_trailers in [false, true] {
        let mut headers = fields(data.split(|byte| *byte == b'\n'));
        let mut trailers = headers.clone();
        rules.answer(&mut headers, &id, takes_trailers);
        for name in [CONNECTION, UPGRADE, TE, TRANSFER_ENCODING] {
            assert!(!headers.contains_key(&name), "{name} goes no further than one hop");
        }
        assert_eq!(headers.get_all("x-request-id").iter().collect::<Vec<_>>(), [&id]);
        assert!(takes_trailers || !headers.contains_key(TRAILER));
        rules.trailers(&mut trailers);
        for name in ["content-length", "x-org-id", "x_org_id", "set-cookie", "host", "x-request-id"] {
            assert!(!trailers.contains_key(name), "{name} has no place in trailers");
        }
    }
}

/// A key is what has the checksum of its own text; one changed character makes another key of it, or none.
pub(crate) fn key(data: &[u8]) {
    let strict = KeyFormat::new(&Prefix::default(), false);
    let lax = KeyFormat::new(&Prefix::default(), true);
    let _ = strict.named_environment(data);
    match strict.parse(data) {
        Ok(_) => {
            assert!(lax.parse(data).is_ok(), "who takes keys without a checksum takes those with one");
            assert_eq!(data.len(), Prefix::default().head(Environment::Live).len() + 38);
            let mut other = data.to_vec();
            let last = other.len() - 1;
            other[last] = if other[last] == b'0' { b'1' } else { b'0' };
            assert!(strict.parse(&other).is_err(), "the checksum counts");
        }
        Err(_) if lax.parse(data).is_ok() => {
            assert!(data.starts_with(b"fh_live_sk_") || data.starts_with(b"fh_test_sk_"));
        }
        Err(_) => {}
    }
}

/// A record that opens is sealed to one that opens alike, and none opens under a pepper that it was not sealed with.
pub(crate) fn record(data: &[u8]) {
    record_of_kind::<KeyRecord>(data);
    record_of_kind::<OrgRecord>(data);
}

fn record_of_kind<T: Stored + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let plain = Sealer::new(None);
    let sealed = Sealer::new(Some(pepper()));
    // As it stands, and as the content of a record whose head is right.
    let mut framed = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    framed.extend_from_slice(data);
    let _ = keygate::vocabulary::key::record::revision(data);
    for bytes in [data, &framed] {
        assert!(sealed.open::<T>(bytes).is_err(), "nobody guesses a seal");
        let Ok(opened) = plain.open::<T>(bytes) else { continue };
        if opened.record.format() > RecordFormat::CURRENT {
            assert!(plain.seal(opened.rev, &opened.record).is_err(), "it would lose what it does not know");
            continue;
        }
        let again = plain.seal(opened.rev, &opened.record).unwrap();
        assert_eq!(plain.open::<T>(&again).unwrap(), opened);
        let under_pepper = sealed.seal(opened.rev, &opened.record).unwrap();
        assert_eq!(sealed.open_at::<T>(&opened.record.place(), &under_pepper).unwrap(), opened);
        assert!(plain.open::<T>(&under_pepper).is_err());
        let mut elsewhere = opened.record.place();
        elsewhere[15] ^= 1;
        assert!(sealed.open_at::<T>(&elsewhere, &under_pepper).is_err(), "a record stays in its place");
    }
}

/// The ends of a trail have one text and one form in bytes; an entry is no other's successor.
pub(crate) fn trail(data: &[u8]) {
    if let Some(link) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<Link>().ok()) {
        assert_eq!(link.to_string().as_bytes(), data, "a link is written in one way");
        assert_eq!(Link::from_bytes(&link.to_bytes()), Some(link));
    }
    if let Some(ends) = Ends::from_bytes(data) {
        assert_eq!(&ends.to_bytes()[..], data);
    }
    let Some((link, text)) = data.split_at_checked(Link::LEN) else { return };
    let Some(link) = Link::from_bytes(link) else { return };
    let chain = Chain::new(Some(pepper()));
    let entry = Entry { link, text: text.to_vec() };
    assert!(chain.check(Trail::Operator, &Link::ORIGIN, &entry).is_err(), "nobody guesses a link");
    assert!(chain.check(Trail::Operator, &link, &entry).is_err(), "an entry does not follow itself");
}

/// Whatever a configuration or a policy says, it is taken or its mistakes are told, each with its place.
pub(crate) fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // What stands behind a NUL is a policy under the shipped configuration.
    let (configuration, policy) = match text.strip_prefix('\0') {
        Some(policy) => (DEFAULT_CONFIGURATION, policy),
        None => (&*text, FIRSTHAND_POLICY),
    };
    let files = |path: &Path| {
        Ok(if path.ends_with("keygate.toml") { configuration } else { policy }.as_bytes().to_vec())
    };
    if let Err(mistakes) = Config::load_from(&files, Path::new("/etc/keygate.toml"), []) {
        assert!(!mistakes.to_string().trim().is_empty(), "what is refused is explained");
    }
}

/// What has a text has one: what reads is written as it was read.
pub(crate) fn vocabulary(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let same = |written: String| assert_eq!(written, text);
    let _ = OrgId::parse(text).map(|id| same(id.to_string()));
    let _ = KeyId::parse(text).map(|id| same(id.to_string()));
    let _ = Scope::parse(text).map(|scope| same(scope.to_string()));
    let _ = Email::parse(text).map(|email| same(email.to_string()));
    let _ = Trail::parse(text).map(|trail| same(trail.to_string()));
    let _ = Pattern::parse(text).map(|pattern| same(pattern.as_str().to_owned()));
    let _ = Prefix::parse(text);
    if let Ok(at) = UnixMillis::parse(text) {
        assert_eq!(UnixMillis::parse(&at.to_string()), Ok(at));
    }
    if let Ok(network) = parse_network(text) {
        assert_eq!(parse_network(&network.to_string()), Ok(network));
    }
    if let Some(usage) = Usage::parse(text) {
        assert_eq!(Usage::parse(&usage.to_string()), Some(usage));
    }
    if let Ok(Server { host, .. }) = Server::parse(text) {
        let within_brackets = host.parse::<std::net::Ipv6Addr>().is_ok();
        assert_eq!(host.contains([':', '[', ']']), within_brackets, "{host}");
    }
    if let Ok(endpoint) = Endpoint::parse(text) {
        assert_eq!(Endpoint::parse(&endpoint.to_string()), Ok(endpoint));
    }
    if let Ok(address) = redis::Address::parse(text) {
        let scheme = if address.encrypted() { "rediss" } else { "redis" };
        assert_eq!(redis::Address::parse(&format!("{scheme}://{address}")), Ok(address));
    }
}

/// A key that can be imported is exported unchanged.
pub(crate) fn moved_key(data: &[u8]) {
    if let Ok(key) = serde_json::from_slice::<MovedKey>(data) {
        let line = serde_json::to_vec(&key).unwrap();
        assert_eq!(serde_json::from_slice::<MovedKey>(&line).unwrap(), key);
    }
}

fn pepper() -> Pepper {
    Pepper::new(b"a pepper for nothing but these properties".to_vec()).unwrap()
}

fn shipped_routes() -> RouteTable {
    let files = |path: &Path| {
        Ok(if path.ends_with("policy.toml") { FIRSTHAND_POLICY } else { DEFAULT_CONFIGURATION }
            .as_bytes()
            .to_vec())
    };
    Config::load_from(&files, Path::new("/etc/keygate.toml"), []).expect("it ships well").routes
}

/// A key and an organisation, the same in every run.
fn found() -> Found {
    let (mut ids, now) = (IdSource::seeded(1), UnixMillis(1_790_000_000_000));
    let org = OrgRecord {
        id: OrgId::draw(&mut ids, now),
        name: "Acme".to_owned(),
        created_at: now,
        suspended_at: None,
        pending: false,
        email: None,
        further: Further::default(),
    };
    let key = KeyRecord {
        id: KeyId::draw(&mut ids, now),
        org: org.id,
        name: "a key".to_owned(),
        environment: Environment::Live,
        scopes: ScopeSet::from_iter([Scope::parse("jobs:read").unwrap()]),
        secrets: Vec::new(),
        created_at: now,
        created_by: "operator".to_owned(),
        expires_at: None,
        disabled_at: None,
        revoked_at: None,
        allowed_addresses: Vec::new(),
        owner: None,
        note: None,
        further: Further::default(),
    };
    let digest = Digest::from_bytes([7; 32]);
    Found { key, org, digest }
}
