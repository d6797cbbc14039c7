//! `[upstreams.NAME]`: the servers that requests go to, for live keys and for test keys.

use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode};
use rustls_pki_types::ServerName;

use super::file::{Content, Value};
use super::mistake::quoted;
use super::own::{Own, is_admin_socket, reached, reached_by_name};
use super::section::Section;
use super::value::{DAY, INSTANT, choice, count, duration, flag, text};
use crate::tls::client::{Files, Trust};
use crate::upstream::{
    Ages, Checks, Endpoint, HostField, Life, Limits, Protocol, Question, Settings, Timeouts,
};
use crate::vocabulary::network::Server;
use crate::vocabulary::upstream::Total;

const PROTOCOLS: [(&str, Protocol); 3] =
    [("auto", Protocol::Auto), ("http1", Protocol::Http1), ("http2", Protocol::Http2)];

/// The greatest weight of a server. Turns are shared out among as many places as the weights have together.
const MOST_WEIGHT: u16 = 100;

/// An upstream's name and settings. Routes may use the name even if the settings are wrong.
pub(super) struct Named {
    pub(super) name: Box<str>,
    pub(super) settings: Option<Settings>,
}

/// What an upstream's section is read beside.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    /// The folder of the configuration.
    pub(super) folder: &'a Path,
    /// The gateway's listeners, which are no upstreams.
    pub(super) own: &'a [Own],
    /// Nor is the socket of operators.
    pub(super) admin_socket: Option<&'a Path>,
}

pub(super) fn read(name: &str, section: &mut Section<'_>, around: Around<'_>) -> Named {
    let named = |settings| Named { name: name.into(), settings };
    let well_formed = (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    if !well_formed {
        section.wrong("", "invalid name; write 1 to 64 characters from a-z 0-9 _ -");
    }
    let endpoints = endpoints(section, around);
    let host = section.or("host", HostField::default(), host);
    let protocol = section.or("protocol", Protocol::default(), choice(&PROTOCOLS));
    let timeouts = timeouts(section);
    let (names, life) = (ages(section), life(section));
    let limits = limits(section, protocol);
    let checks = checks(section, protocol);
    let [of_live, of_test] = ["live_tls", "test_tls"].map(|key| tls(key, section, around.folder));
    let Some((live, test)) = endpoints else { return named(None) };
    let ((live, live_weights), (test, test_weights)) = (apart(live), apart(test));
    let is_shared = !section.given("test");
    if is_shared && of_test.is_given {
        section.wrong(
            "",
            "`test_tls` is for servers in `test`, and with shared = true there are none; `live_tls` holds for test keys too; remove \
             `test_tls`",
        );
    }
    let of_test = if is_shared { of_live.clone() } else { of_test };
    let asks_grpc =
        checks.as_ref().is_some_and(|checks| matches!(checks.question, Some(Question::Grpc { .. })));
    let plain = live.iter().chain(&test).find(|endpoint| !endpoint.has_tls());
    if let Some(plain) = plain.filter(|_| asks_grpc && protocol == Protocol::Auto) {
        section.wrong(
            "protocol",
            format!(
                "\"auto\" speaks HTTP/1.1 to {plain}, and the check with method = \"GRPC\" needs HTTP/2; write \"http2\""
            ),
        );
    }
    let live = of_live.applied("live", live, section);
    let test = if is_shared { live.clone() } else { of_test.applied("test", test, section) };
    named(Some(Settings {
        name: name.into(),
        live,
        test,
        weights: [live_weights, test_weights],
        names,
        life,
        tls: [of_live.files, of_test.files],
        host,
        protocol,
        timeouts,
        limits,
        checks,
    }))
}

/// Reads `[upstreams.NAME.check]`.
fn checks(section: &mut Section<'_>, protocol: Protocol) -> Option<Checks> {
    const LONGEST: Duration = Duration::from_hours(1);
    /// `None`: the health protocol of gRPC.
    const METHODS: [(&str, Option<Method>); 3] =
        [("GET", Some(Method::GET)), ("HEAD", Some(Method::HEAD)), ("GRPC", None)];
    section.section("check", |section| {
        let is_on = section.or("enabled", true, flag);
        let default = Checks::default();
        let path = section.optional("path", check_path);
        let method = section.or("method", Some(Method::GET), choice(&METHODS));
        let statuses = section.list("status", check_status).unwrap_or_default();
        for key in ["method", "status"] {
            if section.given(key) && !section.given("path") {
                section.wrong(key, "has no effect without `path`: a check without a path only connects");
            }
        }
        if method.is_none() && protocol == Protocol::Http1 {
            section.wrong(
                "method",
                "\"GRPC\" needs HTTP/2; write protocol = \"http2\" for the upstream, or \"auto\"",
            );
        }
        if method.is_none() && section.given("status") {
            section.wrong(
                "status",
                "has no effect with method = \"GRPC\", whose answers say whether a server serves; remove it",
            );
        }
        let question = path.and_then(|path| match method {
            Some(method) => Some(Question::Http { method, path, statuses }),
            None => service(&path, section).map(|service| Question::Grpc { service }),
        });
        let least = Duration::from_millis(100);
        let checks = Checks {
            question,
            interval: section.or("interval", default.interval, duration(least..=LONGEST)),
            timeout: section.or("timeout", default.timeout, duration(INSTANT..=LONGEST)),
            failures: section.or("failures", default.failures, count(1..=100)),
            successes: section.or("successes", default.successes, count(1..=100)),
        };
        is_on.then_some(checks)
    })
}

fn check_path(value: &Value) -> Result<PathAndQuery, String> {
    let given = text(value)?;
    let path = given.starts_with('/').then(|| PathAndQuery::try_from(&*given).ok()).flatten();
    path.ok_or_else(|| format!("invalid value {}; write a path, as in \"/healthz\"", quoted(&given)))
}

/// The service of gRPC that a path names: "/" is the server as a whole.
fn service(path: &PathAndQuery, section: &Section<'_>) -> Option<Box<str>> {
    let name = path.as_str().trim_start_matches('/');
    let is_name = name.len() <= Question::LONGEST_SERVICE
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !is_name {
        section.wrong(
            "path",
            "names no service of gRPC; write a slash and the service, as in \"/acme.v1.Things\", or \"/\" for the server as a whole",
        );
    }
    is_name.then(|| name.into())
}

fn check_status(value: &Value) -> Result<StatusCode, String> {
    let given = count(200..=599)(value)?;
    StatusCode::from_u16(given).map_err(|error| error.to_string())
}

/// The Host field: one of two words, or a name. A name of one word needs a port, else a word with a typing error would be one.
fn host(value: &Value) -> Result<HostField, String> {
    const ADVICE: &str = "write \"client\", \"endpoint\" or a name with a dot or a port, as in \"api.internal\" or \"api:8000\"";
    let given = text(value)?;
    match &*given {
        "client" => return Ok(HostField::Client),
        "endpoint" => return Ok(HostField::Endpoint),
        _ => {}
    }
    let is_name = given.contains(['.', ':']) && Server::parse(&given).is_ok();
    let name = HeaderValue::try_from(&*given).ok().filter(|_| is_name);
    name.map(HostField::Named).ok_or_else(|| format!("invalid value {}; {ADVICE}", quoted(&given)))
}

/// TLS to the endpoints of one environment.
#[derive(Clone)]
struct Tls {
    files: Files,
    /// The name that their certificates are for, instead of their own.
    name: Option<ServerName<'static>>,
    is_given: bool,
}

/// Reads `[upstreams.NAME.live_tls]`, or the one for test keys.
fn tls(key: &'static str, section: &mut Section<'_>, folder: &Path) -> Tls {
    const KEYS: [&str; 5] = ["ca", "server_name", "cert", "key", "verify"];
    const VERIFY: [(&str, bool); 2] = [("full", true), ("dangerously-off", false)];
    section.section(key, |section| {
        let ca = section.optional("ca", text).map(|path| folder.join(path));
        let name = section.optional("server_name", server_name);
        let [cert, key] = ["cert", "key"].map(|key| section.optional(key, text).map(|path| folder.join(path)));
        let is_verified = section.or("verify", true, choice(&VERIFY));
        if section.given("cert") != section.given("key") {
            let (missing, there) = if section.given("key") { ("cert", "key") } else { ("key", "cert") };
            section.missing(
                missing,
                &format!("a client certificate needs `cert` and `key`; add it, or remove `{there}`"),
            );
        }
        if !is_verified {
            if section.given("ca") {
                section.wrong("ca", "has no effect with verify = \"dangerously-off\"; remove one of the two");
            }
            section.warn(
                "verify",
                "the certificates of these servers are not verified: whoever can redirect a connection reads and changes what \
                 passes, keys of clients too where they are forwarded; give `ca` instead",
            );
        }
        let trust = match ca {
            _ if !is_verified => Trust::Anyone,
            Some(file) => Trust::Authorities(file),
            None => Trust::System,
        };
        let is_given = KEYS.iter().any(|key| section.given(key));
        Tls { files: Files { trust, client: cert.zip(key) }, name, is_given }
    })
}

fn server_name(value: &Value) -> Result<ServerName<'static>, String> {
    let given = text(value)?;
    ServerName::try_from(given.clone()).map_err(|_| {
        let given = quoted(&given);
        format!("invalid value {given}; write a DNS name, as in \"api.internal\", or an IP address")
    })
}

impl Tls {
    /// These endpoints, as they are verified. What is said about TLS must be for all of them.
    fn applied(&self, key: &str, endpoints: Vec<Endpoint>, section: &Section<'_>) -> Vec<Endpoint> {
        if let Some(plain) = endpoints.iter().find(|endpoint| self.is_given && !endpoint.has_tls()) {
            section.wrong(
                key,
                format!(
                    "{plain} is plain text, but `{key}_tls` is set; write https://, or remove `{key}_tls`"
                ),
            );
        }
        let verified = |endpoint: Endpoint| match &self.name {
            Some(name) => endpoint.verified_as(name),
            None => endpoint,
        };
        endpoints.into_iter().map(verified).collect()
    }
}

/// An endpoint as it is listed.
#[derive(Clone)]
struct Listed {
    endpoint: Endpoint,
    weight: u16,
}

impl PartialEq for Listed {
    /// The same endpoint twice is a mistake, whatever its weights are.
    fn eq(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint
    }
}

fn apart(listed: Vec<Listed>) -> (Vec<Endpoint>, Vec<u16>) {
    listed.into_iter().map(|Listed { endpoint, weight }| (endpoint, weight)).unzip()
}

/// Reports what is listed and does not stand to reason.
fn judge_listed(key: &str, listed: &[Listed], section: &Section<'_>, around: Around<'_>) {
    for Listed { endpoint, .. } in listed {
        // A warning, because another machine may give the name another meaning.
        if let Some(own) = reached_by_name(around.own, endpoint) {
            section.warn(
                key,
                format!(
                    "{endpoint} is this gateway itself ({own}) by the names that this machine has in /etc/hosts and for itself, so \
                     requests would come back to it; name the address of your API"
                ),
            );
        }
    }
    if !listed.is_empty() && listed.iter().all(|listed| listed.weight == 0) {
        section.wrong(
            key,
            "every server has the weight 0, so none would get a request; give one of them a weight from 1 to 100",
        );
    }
}

/// The endpoints for live keys and for test keys. The same for both only if the file says so.
fn endpoints(section: &mut Section<'_>, around: Around<'_>) -> Option<(Vec<Listed>, Vec<Listed>)> {
    const EMPTY: &str = "list at least one endpoint, as in [\"http://127.0.0.1:9000\"]";
    let endpoint = |value: &Value| listed(value, around);
    let (live, live_is_right) = section.required_list("live", EMPTY, endpoint);
    let (test, test_is_right) = section.filled_in_part("test", EMPTY, endpoint);
    judge_listed("live", &live, section, around);
    judge_listed("test", &test, section, around);
    let shared = section.or("shared", false, flag);
    match (section.given("test"), shared) {
        (true, true) => {
            section.wrong(
                "shared",
                "true sends test keys to `live`, but `test` is also set; remove one of the two",
            );
            None
        }
        (false, true) => live_is_right.then(|| (live.clone(), live)),
        (false, false) => {
            section.missing(
                "test",
                "name the servers for test keys: test = [\"http://127.0.0.1:9001\"]; or write shared = true to send \
                     test keys to `live`",
            );
            None
        }
        (true, false) => {
            let is_live =
                |test: &&Listed| live.iter().any(|live| live.endpoint.is_same_server(&test.endpoint));
            if let Some(Listed { endpoint: both, .. }) = test.iter().find(is_live) {
                section.wrong(
                    "test",
                    format!(
                        "{both} is also in `live`, so test keys would reach a live server; use two servers, or \
                             remove `test` and write shared = true"
                    ),
                );
            }
            (live_is_right && test_is_right).then_some((live, test))
        }
    }
}

/// An endpoint, alone or as `{ url = "…", weight = 3 }`.
fn listed(value: &Value, around: Around<'_>) -> Result<Listed, String> {
    const FORM: &str = "write { url = \"http://127.0.0.1:9000\", weight = 3 }";
    let Content::Table(table) = &value.content else {
        return endpoint(value, around).map(|endpoint| Listed { endpoint, weight: 1 });
    };
    if let Some(key) = table.keys().find(|key| !["url", "weight"].contains(&key.as_str())) {
        return Err(format!("unknown key `{}`; {FORM}", key.escape_debug()));
    }
    let url = table.get("url").ok_or_else(|| format!("`url` is missing; {FORM}"))?;
    let weight = table.get("weight").map_or(Ok(1), |weight| count(0..=MOST_WEIGHT)(&weight.value));
    Ok(Listed {
        endpoint: endpoint(&url.value, around).map_err(|text| format!("url: {text}"))?,
        weight: weight.map_err(|text| format!("weight: {text}"))?,
    })
}

/// Never shows the text, because it could contain a password.
fn endpoint(value: &Value, around: Around<'_>) -> Result<Endpoint, String> {
    let endpoint = Endpoint::parse(&text(value)?).map_err(|error| format!("invalid endpoint; {error}"))?;
    if is_admin_socket(around.admin_socket, &endpoint) {
        return Err(format!(
            "{endpoint} is this gateway's socket for operators (admin.socket), where clients would be operators; name the \
             socket of your API"
        ));
    }
    match reached(around.own, &endpoint) {
        Some(key) => Err(format!(
            "{endpoint} is this gateway itself ({key}), so requests would come back to it; name the address of your API"
        )),
        None => Ok(endpoint),
    }
}

fn limits(section: &mut Section<'_>, protocol: Protocol) -> Limits {
    const MOST: usize = 1 << 16;
    let limits = Limits {
        connections: section.optional("max_connections", count(1..=MOST)),
        requests: section.optional("max_requests", count(1..=MOST)),
        waiting: section.or("max_waiting", Limits::default().waiting, count(0..=MOST)),
        are_connections_shared: protocol != Protocol::Http1,
    };
    if let (Some(connections), Some(requests)) = (limits.connections, limits.requests)
        && requests > connections
        && !limits.are_connections_shared
    {
        section.wrong(
            "max_requests",
            format!(
                "each request in flight needs a connection, and `max_connections` allows {connections}; write a number up to that, or \
                 raise `max_connections`"
            ),
        );
    }
    let is_shared = limits.are_connections_shared;
    if is_shared && limits.connections.is_some() && limits.requests.is_none() {
        section.warn(
            "max_connections",
            "requests share these connections, and nothing keeps one key from taking every place on them; add `max_requests`",
        );
    }
    let is_limited = section.given("max_requests") || section.given("max_connections") && !is_shared;
    if section.given("max_waiting") && !is_limited {
        section.wrong(
            "max_waiting",
            match is_shared {
                false => {
                    "has no effect without `max_requests` or `max_connections`: no request waits; add one of them, or remove it"
                }
                true => "has no effect without `max_requests`: no request waits; add that, or remove it",
            },
        );
    }
    limits
}

fn ages(section: &mut Section<'_>) -> Ages {
    let default = Ages::default();
    let least = Duration::from_millis(100);
    let ages = Ages {
        least: section.or("names_min_age", default.least, duration(least..=DAY)),
        greatest: section.or("names_max_age", default.greatest, duration(least..=DAY)),
    };
    if ages.least > ages.greatest {
        let key = if section.given("names_min_age") { "names_min_age" } else { "names_max_age" };
        let [least, greatest] = [ages.least, ages.greatest].map(humantime::format_duration);
        section.wrong(
            key,
            format!("`names_min_age` ({least}) is longer than `names_max_age` ({greatest}); make one of them shorter or longer"),
        );
    }
    ages
}

fn life(section: &mut Section<'_>) -> Life {
    const MOST: u32 = 1_000_000_000;
    Life {
        age: section.or("connection_max_age", Life::default().age, total),
        requests: section.optional("connection_max_requests", count(1..=MOST)),
    }
}

fn timeouts(section: &mut Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    let timeouts = Timeouts {
        connect: section.or("connect_timeout", default.connect, duration(INSTANT..=DAY)),
        answer: section.or("answer_timeout", default.answer, duration(INSTANT..=DAY)),
        idle: section.or("idle_timeout", default.idle, duration(Duration::ZERO..=DAY)),
        stream_idle: section.or("stream_idle_timeout", default.stream_idle, duration(INSTANT..=DAY)),
        total: section.or("total_timeout", default.total, total),
        silence: section.or("ping_after", default.silence, duration(Duration::from_secs(1)..=DAY)),
    };
    let answer = section.given("answer_timeout").then_some(timeouts.answer);
    refuse_short_total(section, answer, timeouts.total);
    timeouts
}

/// A duration, or "off".
pub(super) fn total(value: &Value) -> Result<Total, String> {
    match &value.content {
        Content::Text(text) if text == "off" => Ok(Total::Unlimited),
        _ => duration(INSTANT..=DAY)(value).map(Total::AtMost).map_err(|text| format!("{text}, or \"off\"")),
    }
}

/// Reports a time for the whole of a request that is over before its answer, `answer`, must have begun.
pub(super) fn refuse_short_total(section: &Section<'_>, answer: Option<Duration>, total: Total) {
    let (Some(answer), Total::AtMost(total)) = (answer, total) else { return };
    if total < answer {
        let answer = humantime::format_duration(answer);
        section.wrong(
            "total_timeout",
            format!("is over before `answer_timeout` ({answer}), which is a part of it; make it longer, or `answer_timeout` shorter"),
        );
    }
}
