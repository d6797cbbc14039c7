//! Which header fields cross the gateway: hop-by-hop first, identity last.
//!
//! A field is reserved if any upstream could take it for one of ours, or believes it
//! ([`believed`](crate::vocabulary::believed)): names are compared after every byte that is no letter or digit has become
//! the same one, since CGI and its heirs turn `X-Org_Id` and `x.org.id` into one variable. Reserved fields of the client's are removed on every route; then ours are set, or they
//! stay away. There is no third way.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{CONNECTION, COOKIE, HOST, TE, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::store::Found;
use crate::vocabulary::believed::{NAMES, Removed, RemovedSet, fold, is_of_family};
use crate::vocabulary::id::RequestId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::peer::Peer;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Fields for which room is made in a forwarded head. More room costs fewer instructions and more memory: with 24 a hit takes 200
/// instructions less, and a kept connection 3.5 KiB more.
const ROOM: usize = 14;

/// Meaningful between two neighbours only (RFC 9110, section 7.6.1, and what practice adds). `expect` is
/// answered here, `http2-settings` belongs to an upgrade that is never made.
const HOP_BY_HOP: [&str; 11] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
    "http2-settings",
];

/// Fields that describe a body. Other spellings of them are removed: `Content_Length` means nothing to keygate, but an
/// upstream may take it for the length.
const FRAMING: [&str; 2] = ["content-length", "content-type"];

/// Names that a trailer must not have (RFC 9110, section 6.5.1): framing, the kind of the body, rights, and how to read
/// the message. The head was acted on without them, and a recipient that merges trailers into the head would believe
/// them.
const NOT_IN_TRAILERS: [&str; 32] = [
    "age",
    "authentication-info",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expires",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authentication-info",
    "range",
    "refresh",
    "retry-after",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "vary",
    "warning",
    "www-authenticate",
];

/// Names of the identity headers, and whose forwarding headers count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub org_id: HeaderName,
    pub environment: HeaderName,
    pub key_id: HeaderName,
    pub scopes: HeaderName,
    pub request_id: HeaderName,
    /// Peers whose X-Forwarded-For is used. Empty: no X-Forwarded-For is used.
    pub trusted_proxies: Vec<IpNet>,
    /// Names that upstreams believe and that pass in this spelling if a trusted proxy sends them.
    pub keep_from_trusted: Vec<HeaderName>,
    /// Names that are removed beside those of the closed list.
    pub strip: Vec<HeaderName>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            org_id: HeaderName::from_static("x-org-id"),
            environment: HeaderName::from_static("x-environment"),
            key_id: HeaderName::from_static("x-key-id"),
            scopes: HeaderName::from_static("x-scopes"),
            request_id: HeaderName::from_static("x-request-id"),
            trusted_proxies: Vec::new(),
            keep_from_trusted: Vec::new(),
            strip: Vec::new(),
        }
    }
}

/// A key's identity headers for the upstream; their values are made once, and lie in one piece of memory.
#[derive(Debug)]
pub struct Identity {
    org_id: HeaderValue,
    environment: Environment,
    key_id: HeaderValue,
    scopes: HeaderValue,
}

impl From<&Found> for Identity {
    fn from(found: &Found) -> Self {
        // Ids and scopes are parsed into types whose text is plain ASCII; a value that were not would be left
        // empty.
        let value = |text: Bytes| {
            HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static(""))
        };
        let texts = [found.org.id.to_string(), found.key.id.to_string(), found.key.scopes.to_string()];
        let mut rest = Bytes::from(texts.concat().into_boxed_str().into_boxed_bytes());
        let [org_id, key_id, scopes] = texts.each_ref().map(|text| value(rest.split_to(text.len())));
        Self { org_id, environment: found.key.environment, key_id, scopes }
    }
}

const fn environment_value(environment: Environment) -> HeaderValue {
    HeaderValue::from_static(environment.as_str())
}

/// The rules for header fields, compiled once.
#[derive(Debug)]
pub struct HeaderRules {
    settings: Settings,
    /// Dropped from every request on its way up.
    removed: NameSet,
    /// Dropped too, but for the one spelling that means it.
    aliased: NameSet,
    /// Dropped from every answer on its way down.
    hop_by_hop: NameSet,
    /// Dropped from what comes behind an answer's body.
    not_in_trailers: NameSet,
    /// Those of the removed names that keygate itself sets.
    identity: NameSet,
    /// Whether the removal of a kind of fields was logged, by its number.
    logged: [AtomicBool; Removed::COUNT],
}

impl HeaderRules {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let Settings { org_id, environment, key_id, scopes, request_id, strip, .. } = &settings;
        let identity = [org_id, environment, key_id, scopes, request_id].map(HeaderName::as_str);
        let defaults = ["x-org-id", "x-environment", "x-key-id", "x-scopes", "x-request-id"];
        let identity = identity.into_iter().chain(defaults);
        let listed = NAMES.into_iter().filter(|name| !name.ends_with('*'));
        let added = strip.iter().map(HeaderName::as_str);
        let removed = HOP_BY_HOP.into_iter().chain(listed).chain(identity.clone()).chain(added);
        Self {
            removed: NameSet::new(removed.clone()),
            aliased: NameSet::new(FRAMING.into_iter()),
            hop_by_hop: NameSet::new(HOP_BY_HOP.into_iter()),
            not_in_trailers: NameSet::new(removed.chain(NOT_IN_TRAILERS)),
            identity: NameSet::new(identity),
            logged: [const { AtomicBool::new(false) }; Removed::COUNT],
            settings,
        }
    }

    /// Makes a client's fields into those of the upstream request. `identity` is `None` on public routes. Returns what was
    /// removed because upstreams believe it.
    pub fn forward(
        &self,
        headers: &mut HeaderMap,
        peer: &Peer,
        host: &HeaderValue,
        request_id: &HeaderValue,
        identity: Option<&Identity>,
    ) -> RemovedSet {
        let is_trusted = self.trusts(peer.address());
        let forwarding = Self::forwarding(headers, peer, host, is_trusted);
        remove_connection_options(headers);
        let mut removed = RemovedSet::default();
        for name in condemned(headers, |name| self.is_removed(name) || self.aliased.is_alias(name)) {
            if !is_trusted {
                removed.extend(self.kind(&name));
            } else if self.settings.keep_from_trusted.contains(&name) {
                continue;
            } else if ![X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST].contains(&name) {
                removed.extend(self.kind(&name));
            }
            headers.remove(name);
        }
        join_cookies(headers);
        // Room for all of ours and more: a full table is searched longer. hyper uses it again for what comes next.
        headers.reserve(ROOM);
        let Forwarding { for_, proto, host: forwarded_host } = forwarding;
        headers.insert(X_FORWARDED_FOR, for_);
        headers.insert(X_FORWARDED_PROTO, proto);
        headers.insert(X_FORWARDED_HOST, forwarded_host);
        headers.insert(HOST, host.clone());
        headers.insert(self.settings.request_id.clone(), request_id.clone());
        if let Some(identity) = identity {
            headers.insert(self.settings.org_id.clone(), identity.org_id.clone());
            headers.insert(self.settings.environment.clone(), environment_value(identity.environment));
            headers.insert(self.settings.key_id.clone(), identity.key_id.clone());
            headers.insert(self.settings.scopes.clone(), identity.scopes.clone());
        }
        removed
    }

    fn is_removed(&self, name: &str) -> bool {
        self.removed.contains(name) || is_of_family(name)
    }

    /// The kind of a removed field; `None` where it belongs to one hop or describes a body.
    fn kind(&self, name: &HeaderName) -> Option<Removed> {
        let name = name.as_str();
        if self.hop_by_hop.contains(name) || self.aliased.contains(name) {
            return None;
        }
        let own = || if self.identity.contains(name) { Removed::IDENTITY } else { Removed::ADDED };
        Some(Removed::named(name).unwrap_or_else(own))
    }

    /// Whether the removal of this kind was not logged yet. Says so once for each configuration.
    #[must_use]
    pub fn is_news(&self, removed: Removed) -> bool {
        !self.logged[removed.number()].swap(true, Ordering::Relaxed)
    }

    /// Makes an upstream's fields into those of the answer. A client that `takes_trailers` is told which come.
    pub fn answer(&self, headers: &mut HeaderMap, request_id: &HeaderValue, takes_trailers: bool) {
        let announced = if takes_trailers { self.announced_trailers(headers) } else { None };
        remove_connection_options(headers);
        remove_if(headers, |name| self.hop_by_hop.contains(name));
        if let Some(announced) = announced {
            headers.insert(TRAILER, announced);
        }
        self.name_answer(headers, request_id);
    }

    /// The trailers that an answer announces, without those that will not be let through.
    fn announced_trailers(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let fields = headers.get_all(TRAILER).iter();
        let names = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
        let names = names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
        let is_passed = |name: &str| !(self.not_in_trailers.contains(name) || is_of_family(name));
        let names: Vec<_> = names.filter(|name| is_passed(name.as_str())).collect();
        let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
        HeaderValue::try_from(names.join(", ")).ok().filter(|names| !names.is_empty())
    }

    /// Makes an upstream's trailers into those of the answer; there may be none left.
    pub fn trailers(&self, trailers: &mut HeaderMap) {
        remove_if(trailers, |name| self.not_in_trailers.contains(name) || is_of_family(name));
    }

    /// The one header that every answer has, of the upstream's or keygate's own.
    pub fn name_answer(&self, headers: &mut HeaderMap, request_id: &HeaderValue) {
        headers.insert(self.settings.request_id.clone(), request_id.clone());
    }

    /// Where the request came from first: the peer, or behind trusted proxies the rightmost address that is
    /// not one of them.
    #[must_use]
    pub fn client_address(&self, headers: &HeaderMap, peer: &Peer) -> IpAddr {
        let mut client = peer.address();
        if !self.trusts(client) {
            return client;
        }
        let fields = headers.get_all(X_FORWARDED_FOR).iter().rev();
        for address in fields.flat_map(|field| field.to_str().unwrap_or("?").rsplit(',')) {
            // Beyond an entry that does not read, nothing can be believed.
            let Some(address) = parse_forwarded_address(address.trim()) else { return client };
            client = address;
            if !self.trusts(client) {
                return client;
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.settings.trusted_proxies.iter().any(|network| network.contains(&address))
    }

    /// The forwarding fields: a trusted proxy's are continued, anybody else's are replaced.
    fn forwarding(headers: &HeaderMap, peer: &Peer, host: &HeaderValue, is_trusted: bool) -> Forwarding {
        let plain = Forwarding {
            for_: peer.forwarded_for().clone(),
            proto: HeaderValue::from_static(peer.scheme()),
            host: host.clone(),
        };
        if !is_trusted {
            return plain;
        }
        let mut chain = Vec::new();
        for field in headers.get_all(X_FORWARDED_FOR) {
            chain.extend_from_slice(field.as_bytes());
            chain.extend_from_slice(b", ");
        }
        chain.extend_from_slice(plain.for_.as_bytes());
        let last = |name| headers.get_all(name).iter().next_back().cloned();
        Forwarding {
            for_: HeaderValue::from_bytes(&chain).unwrap_or(plain.for_),
            proto: last(X_FORWARDED_PROTO).unwrap_or(plain.proto),
            host: last(X_FORWARDED_HOST).unwrap_or(plain.host),
        }
    }
}

struct Forwarding {
    for_: HeaderValue,
    proto: HeaderValue,
    host: HeaderValue,
}

/// An address in X-Forwarded-For as proxies write it: bare, in brackets, or with a port.
fn parse_forwarded_address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text
        .parse()
        .or_else(|_| text.parse().map(|socket: SocketAddr| socket.ip()))
        .or_else(|_| text.trim_start_matches('[').trim_end_matches(']').parse())
        .ok()?;
    Some(address.to_canonical())
}

/// Whether a client takes trailers (RFC 9110, section 10.1.4).
#[must_use]
pub(super) fn takes_trailers(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(TE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
    codings.into_iter().any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Asks an upstream for trailers, in fields from which everything hop-by-hop was removed.
pub(super) fn ask_for_trailers(headers: &mut HeaderMap) {
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONNECTION, HeaderValue::from_static("te"));
}

/// Removes what `Connection` names (RFC 9110, section 7.6.1), before anything of ours is set.
fn remove_connection_options(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let options: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|field| field.as_bytes().split(|byte| *byte == b','))
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .collect();
    for option in options {
        headers.remove(option);
    }
}

/// Makes one field of what HTTP/2 clients split for better compression (RFC 9113, section 8.2.3): to HTTP/1
/// several are malformed.
fn join_cookies(headers: &mut HeaderMap) {
    // Where no name occurs twice, nothing needs to be looked up.
    if headers.len() == headers.keys_len() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, whole);
    }
}

/// Names compared in the spelling that every upstream could fold them into.
#[derive(Debug)]
struct NameSet {
    /// Folded and sorted.
    names: Vec<Box<[u8]>>,
    /// For each length the first letters that occur: nearly every other name is told apart by these two
    /// alone.
    first_letters: Box<[u32]>,
}

impl NameSet {
    fn new<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let mut folded: Vec<Box<[u8]>> = names.map(|name| name.bytes().map(fold).collect()).collect();
        folded.sort_unstable();
        folded.dedup();
        let longest = folded.iter().map(|name| name.len()).max().unwrap_or(0);
        let mut first_letters = vec![0; longest + 1].into_boxed_slice();
        for name in &folded {
            first_letters[name.len()] |= name.first().map_or(0, |first| letter(*first));
        }
        Self { names: folded, first_letters }
    }

    fn contains(&self, name: &str) -> bool {
        let bytes = name.as_bytes();
        let Some(first) = bytes.first() else { return false };
        let letters = self.first_letters.get(bytes.len()).copied().unwrap_or(0);
        if letters & letter(fold(*first)) == 0 {
            return false;
        }
        let folded = || bytes.iter().map(|byte| fold(*byte));
        self.names.binary_search_by(|name| name.iter().copied().cmp(folded())).is_ok()
    }

    /// Whether it is another spelling of one of these names than their own.
    fn is_alias(&self, name: &str) -> bool {
        self.contains(name) && !self.names.iter().any(|own| **own == *name.as_bytes())
    }
}

/// The value of the request id for header fields.
#[must_use]
pub(super) fn request_id_value(id: RequestId) -> HeaderValue {
    // The text of an id is plain ASCII.
    HeaderValue::from_bytes(&id.to_array()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn remove_if(headers: &mut HeaderMap, is_condemned: impl Fn(&str) -> bool) {
    for name in condemned(headers, is_condemned) {
        headers.remove(name);
    }
}

/// Most requests have few such fields or none, so the list is seldom allocated.
fn condemned(headers: &HeaderMap, is_condemned: impl Fn(&str) -> bool) -> Vec<HeaderName> {
    headers.keys().filter(|name| is_condemned(name.as_str())).cloned().collect()
}

const fn letter(byte: u8) -> u32 {
    1 << (byte % 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer() -> Peer {
        Peer::new("192.0.2.1:5555".parse().unwrap())
    }

    fn rules(trusted: &[&str]) -> HeaderRules {
        let trusted_proxies = trusted.iter().map(|network| network.parse().unwrap()).collect();
        HeaderRules::new(Settings { trusted_proxies, ..Settings::default() })
    }

    fn forwarded(rules: &HeaderRules, fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let (host, id) = (HeaderValue::from_static("h"), HeaderValue::from_static("req_1"));
        rules.forward(&mut headers, &peer(), &host, &id, None);
        headers
    }

    #[test]
    fn a_reserved_name_is_removed_in_every_spelling() {
        for name in [
            "x-org-id",
            "X-Org-Id",
            "x_org_id",
            "X.Org_Id",
            "x-key!id",
            "x~scopes",
            "X-ENVIRONMENT",
            "x_forwarded_for",
            "x-real_ip",
            "FORWARDED",
            "x_http_method_override",
            "te",
            "proxy_connection",
        ] {
            let headers = forwarded(&rules(&[]), &[(name, "forged")]);
            assert!(!headers.values().any(|value| value == "forged"), "{name}");
        }
        for name in ["x-org", "x-org-ids", "xorgid", "accept", "cookie", "x-keyid", "user-agent"] {
            let headers = forwarded(&rules(&[]), &[(name, "mine")]);
            assert!(headers.values().any(|value| value == "mine"), "{name}");
        }
    }

    #[test]
    fn what_upstreams_believe_is_told_and_passes_only_as_it_is_kept_and_from_a_trusted_proxy() {
        let told = |trusted: &[&str], name: &'static str| {
            let mut rules = rules(trusted);
            rules.settings.keep_from_trusted = vec![HeaderName::from_static("cf-connecting-ip")];
            let mut headers = HeaderMap::from_iter([(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_static("sent"),
            )]);
            let (host, id) = (HeaderValue::from_static("h"), HeaderValue::from_static("req_1"));
            let removed = rules.forward(&mut headers, &peer(), &host, &id, None);
            (headers.values().any(|value| value == "sent"), removed.iter().map(Removed::label).next())
        };
        let network = &["192.0.2.0/24"][..];
        assert_eq!(told(&[], "cf-connecting-ip"), (false, Some("cf-connecting-ip")));
        assert_eq!(told(network, "cf-connecting-ip"), (true, None));
        assert_eq!(told(network, "cf_connecting_ip"), (false, Some("cf-connecting-ip")));
        assert_eq!(told(network, "x-auth-request-user"), (false, Some("x-auth-request-*")));
        assert_eq!(told(&[], "x-forwarded-for"), (false, Some("x-forwarded-for")));
        assert_eq!(told(&[], "x_org_id"), (false, Some("identity")));
        assert_eq!(told(&[], "proxy-authorization"), (false, None));
        assert_eq!(told(&[], "content_length"), (false, None));
        for passes in ["x-amzn-trace-id", "traceparent", "cf-ray", "tracestate", "x-b3-traceid", "baggage"] {
            assert_eq!(told(&[], passes), (true, None), "{passes}");
        }
    }

    #[test]
    fn a_field_of_the_framing_passes_in_its_own_spelling_only() {
        let sent = [
            ("content_length", "5"),
            ("content.type", "x"),
            ("content-type", "text/plain"),
            ("Content-Length", "3"),
        ];
        let headers = forwarded(&rules(&[]), &sent);
        assert_eq!(
            (&headers["content-length"], &headers["content-type"]),
            (&"3".parse().unwrap(), &"text/plain".parse().unwrap())
        );
        assert!(!headers.contains_key("content_length") && !headers.contains_key("content.type"));
    }

    #[test]
    fn a_renamed_identity_header_is_as_reserved_as_the_default_one() {
        let settings = Settings { org_id: HeaderName::from_static("acme-tenant"), ..Settings::default() };
        let rules = HeaderRules::new(settings);
        assert!(
            forwarded(&rules, &[("acme_tenant", "forged"), ("x-org-id", "forged")])
                .values()
                .all(|v| v != "forged")
        );
    }

    #[test]
    fn an_identity_header_of_any_length_is_reserved() {
        let long = format!("x-{}", "tenant-".repeat(30));
        let org_id = HeaderName::from_bytes(long.as_bytes()).unwrap();
        let rules = HeaderRules::new(Settings { org_id, ..Settings::default() });
        for spelling in [long.clone(), long.replace('-', "_")] {
            assert!(forwarded(&rules, &[(&spelling, "forged")]).values().all(|value| value != "forged"));
        }
    }

    #[test]
    fn connection_cannot_name_away_what_is_set_here() {
        let headers = forwarded(
            &rules(&[]),
            &[("connection", "x-request-id, x-drop-me,,close"), ("x-drop-me", "1"), ("connection", "host")],
        );
        assert_eq!(headers.get("x-request-id").unwrap(), "req_1");
        assert_eq!(headers.get("host").unwrap(), "h");
        assert!(!headers.contains_key("x-drop-me") && !headers.contains_key("connection"));
    }

    #[test]
    fn only_trusted_proxies_are_believed_about_the_client() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", HeaderValue::from_static("203.0.113.9, 198.51.100.7"));
        headers.append("x-forwarded-for", HeaderValue::from_static("10.0.0.2:443"));
        let client = |trusted: &[&str]| rules(trusted).client_address(&headers, &peer()).to_string();
        assert_eq!(client(&[]), "192.0.2.1");
        assert_eq!(client(&["10.0.0.0/8"]), "192.0.2.1", "the peer itself is not trusted");
        assert_eq!(client(&["192.0.2.0/24"]), "10.0.0.2");
        assert_eq!(client(&["192.0.2.0/24", "10.0.0.0/8"]), "198.51.100.7");
        assert_eq!(client(&["192.0.2.0/24", "10.0.0.0/8", "198.51.100.0/24"]), "203.0.113.9");
        headers.insert("x-forwarded-for", HeaderValue::from_static("203.0.113.9, nonsense"));
        assert_eq!(rules(&["192.0.2.0/24"]).client_address(&headers, &peer()).to_string(), "192.0.2.1");
    }

    #[test]
    fn forwarding_fields_are_continued_behind_a_trusted_proxy_and_replaced_otherwise() {
        let sent =
            [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "api")];
        let headers = forwarded(&rules(&["192.0.2.0/24"]), &sent);
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9, 192.0.2.1");
        assert_eq!(
            (&headers["x-forwarded-proto"], &headers["x-forwarded-host"]),
            (&"https".parse().unwrap(), &"api".parse().unwrap())
        );
        let headers = forwarded(&rules(&[]), &sent);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1");
        assert_eq!(
            (&headers["x-forwarded-proto"], &headers["x-forwarded-host"]),
            (&"http".parse().unwrap(), &"h".parse().unwrap())
        );
    }

    #[test]
    fn a_cookie_in_crumbs_becomes_one_field_and_other_fields_stay_apart() {
        let sent =
            [("cookie", "a=1"), ("accept", "x"), ("cookie", "b=2"), ("accept", "y"), ("cookie", "c=3")];
        let headers = forwarded(&rules(&[]), &sent);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
        assert_eq!(headers.get_all("accept").iter().collect::<Vec<_>>(), ["x", "y"]);
    }

    #[test]
    fn the_upstream_is_told_whether_the_client_came_over_tls() {
        let mut headers = HeaderMap::new();
        let (host, id) = (HeaderValue::from_static("h"), HeaderValue::from_static("req_1"));
        rules(&[]).forward(&mut headers, &peer().over_tls(), &host, &id, None);
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn trailers_are_announced_to_whoever_takes_them_without_those_that_stay_here() {
        let announced = |value: &'static str, takes| {
            let mut headers = HeaderMap::new();
            headers.append("trailer", HeaderValue::from_static("x-first"));
            headers.append("trailer", HeaderValue::from_static(value));
            rules(&[]).answer(&mut headers, &HeaderValue::from_static("req_1"), takes);
            headers.get("trailer").map(|names| names.to_str().unwrap().to_owned())
        };
        let asked = "Grpc-Status,, x_org.id , no name, Content_Type, trailer, x-sum";
        assert_eq!(announced(asked, true).as_deref(), Some("x-first, grpc-status, x-sum"));
        assert_eq!(announced(asked, false), None);
        let mut headers = HeaderMap::new();
        headers.append("trailer", HeaderValue::from_static("set-cookie"));
        rules(&[]).answer(&mut headers, &HeaderValue::from_static("req_1"), true);
        assert!(!headers.contains_key("trailer"), "none is left");
    }

    #[test]
    fn te_is_read_member_by_member() {
        let takes = |value: &'static str| {
            takes_trailers(&HeaderMap::from_iter([(TE, HeaderValue::from_static(value))]))
        };
        assert!(takes("trailers") && takes("gzip;q=0.5, Trailers") && takes(" trailers ,"));
        assert!(!takes("gzip") && !takes("trailers-not") && !takes(""));
    }

    proptest! {
        #[test]
        fn a_name_is_in_a_set_exactly_when_its_folded_form_is(name in "[a-zA-Z0-9._~!-]{1,20}") {
            let set = NameSet::new(["x-org-id", "te", "a-b"].into_iter());
            let folded: String = name.bytes().map(|byte| char::from(fold(byte))).collect();
            prop_assert_eq!(set.contains(&name), ["x-org-id", "te", "a-b"].contains(&folded.as_str()));
        }
    }
}
