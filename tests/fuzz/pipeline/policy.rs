//! A policy with narrow rules beside wide ones, and a reading of it of our own: which rules concern a path, however an
//! upstream reads it.

use std::fmt::Write as _;

use super::identity::Key;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Public,
    AnyKey,
    Scope(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    name: &'static str,
    methods: &'static [&'static str],
    paths: &'static [&'static str],
    pub(crate) access: Access,
    pub(crate) upstream: &'static str,
    /// Further lines of the rule.
    more: &'static str,
}

const fn rule(
    name: &'static str,
    methods: &'static [&'static str],
    paths: &'static [&'static str],
    access: Access,
    upstream: &'static str,
) -> Rule {
    Rule { name, methods, paths, access, upstream, more: "" }
}

const fn with(more: &'static str, rule: Rule) -> Rule {
    Rule { more, ..rule }
}

pub(crate) const SCOPES: [&str; 4] = ["read", "write", "files", "admin"];

use Access::{AnyKey, Public, Scope};

/// No literal has a dot, a blank or an escape, so that no reading changes one.
const RULES: [Rule; 18] = [
    rule("open", &["GET", "POST"], &["/v1/open/{*rest}"], Public, "api"),
    rule("open.closed", &["GET"], &["/v1/open/closed"], Scope("admin"), "api"),
    rule("list", &["GET"], &["/v1/things"], Scope("read"), "api"),
    rule("add", &["POST"], &["/v1/things"], Scope("write"), "api"),
    rule("one", &["GET", "PUT"], &["/v1/things/{id}"], Scope("read"), "api"),
    rule("remove", &["DELETE"], &["/v1/things/{id}"], Scope("admin"), "api"),
    rule("audit", &["GET"], &["/v1/things/{id}/audit"], Scope("admin"), "api"),
    with(DENY, rule("things.admin", &["GET", "POST"], &["/v1/things/admin"], Scope("admin"), "api")),
    with(SLASH, rule("files", &["GET", "PUT"], &["/v1/files/{*path}"], Scope("files"), "files")),
    rule("private", &["GET", "PUT"], &["/v1/files/private/{*path}"], Scope("admin"), "files"),
    with(LITERAL, rule("exact", &["GET", "POST"], &["/v1/exact/{*rest}"], Scope("read"), "api")),
    rule("exact.admin", &["GET"], &["/v1/exact/admin"], Scope("admin"), "api"),
    with(FORWARDED, rule("any", &["GET", "POST"], &["/v1/any"], AnyKey, "api")),
    rule("other", &["GET"], &["/v1/other/{x}"], Scope("read"), "files"),
    rule("other.api", &["GET"], &["/v1/other/api"], Scope("read"), "api"),
    rule("wide", &["GET", "POST", "PATCH"], &["/v1/{*rest}"], Scope("read"), "api"),
    rule("admin", &["GET", "POST", "DELETE"], &["/admin", "/admin/{*rest}"], Scope("admin"), "api"),
    rule("root", &["GET"], &["/"], AnyKey, "api"),
];
const DENY: &str = "other_methods = \"deny\"\n";
const SLASH: &str = "encoded_slash = true\n";
const LITERAL: &str = "literal = true\n";
const FORWARDED: &str = "forward_authorization = true\n";

/// The text of policy.toml.
pub(crate) fn toml() -> String {
    let mut toml = format!("scopes = {SCOPES:?}\n");
    for Rule { name, methods, paths, access, upstream, more } in RULES {
        let access = match access {
            Public => "public = true".to_owned(),
            AnyKey => "any_key = true".to_owned(),
            Scope(scope) => format!("scopes = [{scope:?}]"),
        };
        let _ = write!(
            toml,
            "[[route]]\nid = {name:?}\nmethods = {methods:?}\npaths = {paths:?}\n{access}\nupstream = {upstream:?}\n{more}"
        );
    }
    toml
}

/// What a path falls under in one reading.
#[derive(Clone, Copy, Debug)]
enum Claim {
    Nothing,
    Denied(&'static str),
    Rule(&'static Rule),
}

impl Rule {
    fn takes(&self, method: &str) -> bool {
        self.methods.contains(&method) || method == "HEAD" && self.methods.contains(&"GET")
    }

    pub(crate) fn forwards_authorization(&self) -> bool {
        self.more == FORWARDED
    }

    /// # Errors
    /// Why a sender with this key may not use it.
    fn admits(&self, key: Option<&Key>) -> Result<(), String> {
        match (self.access, key) {
            (Public, _) | (AnyKey, Some(_)) => Ok(()),
            (Scope(scope), Some(key)) if key.scopes.contains(&scope) => Ok(()),
            (access, key) => Err(format!(
                "rule {} asks for {access:?} of {}",
                self.name,
                key.map_or("nobody", |key| key.name)
            )),
        }
    }
}

/// The rule of a canonical path, if its sender may use that rule and every other one that some router finds for the path.
///
/// # Errors
/// The rule and the reading for which that is not so.
pub(crate) fn judge(method: &str, path: &str, key: Option<&Key>) -> Result<&'static Rule, String> {
    let Claim::Rule(own) = find(&exactly(path), method, Spelling::Canonical) else {
        return Err(format!("no rule has {method} {path}"));
    };
    own.admits(key)?;
    let router_readings = if own.more == LITERAL { readings_of_all(path) } else { readings_of_routers(path) };
    for reading in router_readings {
        for (spelling, reading) in [toggled(&reading), (Spelling::Lax, reading)] {
            match find(&reading, method, spelling) {
                Claim::Nothing => {}
                Claim::Denied(name) => {
                    return Err(format!("read as {reading:?} it is denied by {name}"));
                }
                Claim::Rule(other) => {
                    other.admits(key).map_err(|why| format!("read as {reading:?}: {why}"))?;
                    if other.upstream != own.upstream {
                        return Err(format!("read as {reading:?} it belongs to upstream {}", other.upstream));
                    }
                }
            }
        }
    }
    Ok(own)
}

type Segments = Vec<String>;

fn exactly(path: &str) -> Segments {
    path[1..].split('/').map(str::to_owned).collect()
}

/// With a slash at the end, or without it.
fn toggled(segments: &Segments) -> (Spelling, Segments) {
    let mut toggled = segments.clone();
    if toggled.len() > 1 && toggled.last().is_some_and(String::is_empty) {
        toggled.pop();
        (Spelling::Lax, toggled)
    } else {
        toggled.push(String::new());
        (Spelling::Slashed, toggled)
    }
}

/// How segments are compared with a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    Canonical,
    /// In letters of any case.
    Lax,
    /// The same, with a slash at the end that the path does not have: what begins further up has the path itself already.
    Slashed,
}

fn find(segments: &Segments, method: &str, spelling: Spelling) -> Claim {
    let mut claims: Vec<(Vec<u8>, &'static Rule)> = Vec::new();
    for rule in &RULES {
        claims
            .extend(rule.paths.iter().filter_map(|pattern| Some((rank(pattern, segments, spelling)?, rule))));
    }
    // A literal before a parameter before a rest, from the left.
    claims.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (at, (rank, rule)) in claims.iter().enumerate() {
        if rule.takes(method) {
            return Claim::Rule(rule);
        }
        let same = claims[at + 1..].iter().any(|(other, beside)| other == rank && beside.takes(method));
        if rule.more == DENY && !same {
            return Claim::Denied(rule.name);
        }
    }
    Claim::Nothing
}

/// How special a pattern is that matches; smaller is more special.
fn rank(pattern: &str, segments: &Segments, spelling: Spelling) -> Option<Vec<u8>> {
    let mut rank = Vec::new();
    let mut segments = segments.iter();
    for part in pattern[1..].split('/') {
        if part.starts_with("{*") {
            segments.next()?;
            rank.push(2);
            return (spelling != Spelling::Slashed || segments.next().is_none()).then_some(rank);
        }
        let segment = segments.next()?;
        if part.starts_with('{') {
            if segment.is_empty() {
                return None;
            }
            rank.push(1);
        } else if part == segment || spelling != Spelling::Canonical && part.eq_ignore_ascii_case(segment) {
            rank.push(0);
        } else {
            return None;
        }
    }
    segments.next().is_none().then_some(rank)
}

/// The readings that count in any case: decoded, and cut off in each segment at `;`, `?` or `#`.
fn readings_of_all(path: &str) -> Vec<Segments> {
    let decoded: Segments = exactly(path).iter().map(|segment| decode(segment)).collect();
    vec![cut_segments(&decoded), decoded]
}

/// The readings of chains of routers, each step taken or left out: a proxy that forwards the decoded path, a server that cuts
/// parameters off, file systems of Windows, routers that read a format at a dot.
fn readings_of_routers(path: &str) -> Vec<Segments> {
    let mut readings = readings_of_all(path);
    let behind_proxy = decode(path);
    let whole = behind_proxy.split(['?', '#']).next().unwrap_or_default();
    for slashes in [&['/'][..], &['/', '\\']] {
        for text in [&behind_proxy, whole] {
            readings.push(merged(text.trim_start_matches('/').split(slashes).map(str::to_owned).collect()));
        }
    }
    for step in [cut_segments, trim_last, trim_all] {
        let further: Vec<_> = readings.iter().map(|reading| merged(step(reading))).collect();
        readings.extend(further);
    }
    let further: Vec<_> = readings.iter().flat_map(without_formats).collect();
    readings.extend(further);
    let further: Vec<_> = readings.iter().map(|reading| merged(trim_last(reading))).collect();
    readings.extend(further);
    readings.sort();
    readings.dedup();
    readings
}

fn decode(text: &str) -> String {
    let (mut octets, bytes) = (Vec::new(), text.as_bytes());
    let mut at = 0;
    while at < bytes.len() {
        let escape = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escape.filter(|_| bytes[at] == b'%') {
            Some(octet) => {
                octets.push(octet);
                at += 3;
            }
            None => {
                octets.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&octets).into_owned()
}

/// Without empty segments but for the last.
fn merged(mut segments: Segments) -> Segments {
    let last = segments.pop().unwrap_or_default();
    segments.retain(|segment| !segment.is_empty());
    segments.push(last);
    segments
}

fn cut_segments(segments: &Segments) -> Segments {
    segments
        .iter()
        .map(|segment| segment.split([';', '?', '#']).next().unwrap_or_default().to_owned())
        .collect()
}

fn trim(segment: &str) -> String {
    segment.trim_end_matches(['.', ' ']).to_owned()
}

fn trim_all(segments: &Segments) -> Segments {
    segments.iter().map(|segment| trim(segment)).collect()
}

/// The place of the last segment that is not the slash at the end.
fn last_of(segments: &Segments) -> Option<usize> {
    segments.iter().rposition(|segment| !segment.is_empty())
}

fn trim_last(segments: &Segments) -> Segments {
    let mut trimmed = segments.clone();
    if let Some(last) = last_of(segments) {
        trimmed[last] = trim(&trimmed[last]);
    }
    trimmed
}

/// Without what follows a dot of the last segment, for each of its dots but the first character.
fn without_formats(segments: &Segments) -> Vec<Segments> {
    let Some(last) = last_of(segments) else { return Vec::new() };
    let dots = segments[last].match_indices('.').filter(|(at, _)| *at > 0);
    let cut = |(at, _)| {
        let mut cut = segments.clone();
        cut[last].truncate(at);
        cut
    };
    dots.map(cut).collect()
}
