//! Routes: which rule a canonical request falls under.
//!
//! A path belongs to exactly one pattern, the most specific that matches it: segment by segment from the
//! left, a literal before a parameter before a rest. Then the method picks the route among those of that
//! pattern. There is no falling through to a wider pattern when the method is missing, and what no rule names
//! is denied.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use http::Method;
use thiserror::Error;

use super::guard::{self, CanonicalRequest};
use crate::api::Operation;
use crate::store::cache::OnPartition;
use crate::upstream::UpstreamId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::Needs;
use crate::vocabulary::rejection::Unsafe;

/// One rule of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name in the policy, in logs and metrics.
    pub id: Box<str>,
    pub methods: Vec<Method>,
    pub patterns: Vec<Pattern>,
    pub access: Access,
    pub target: Target,
    /// Whether the upstream sees the client's Authorization field.
    pub forward_authorization: bool,
    /// Whether `%2F` and `%5C` may stand in a segment, as opaque data.
    pub encoded_slash: bool,
    /// Whether a request may become a WebSocket.
    pub websocket: bool,
    /// What becomes of its requests when the gateway is cut off from the store; `None` for what holds for all.
    pub on_partition: Option<OnPartition>,
    /// The largest body in bytes; `None` for the limit of all routes.
    pub body_limit: Option<u64>,
}

impl Route {
    /// What stands in the place of the path's first parameter. The patterns of a route that keygate serves have
    /// it in different places only where they differ in length.
    #[must_use]
    pub fn parameter<'p>(&self, path: &'p str) -> Option<&'p str> {
        let matching = self.patterns.iter().filter(|pattern| pattern.matches(path));
        matching.filter_map(|pattern| pattern.parameter(path)).next()
    }
}

/// Who may use a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody, without a key. The upstream is the one of the presented key's prefix, else of this
    /// environment.
    Public { environment: Environment },
    /// Any valid key.
    AnyKey,
    /// A key with these scopes. Never empty.
    Scopes(Needs),
}

impl Access {
    /// What it asks of a key's scopes, if anything.
    #[must_use]
    pub const fn needs(&self) -> Option<&Needs> {
        match self {
            Self::Scopes(needs) => Some(needs),
            Self::Public { .. } | Self::AnyKey => None,
        }
    }
}

/// Who answers on a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Upstream(UpstreamId),
    Operation(Operation),
}

/// A path pattern: literal segments, `{name}` for one segment, `{*name}` at the end for whatever is beneath.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Box<str>,
    segments: Vec<Segment>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Segment {
    Literal(Box<str>),
    Param,
    Rest,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidPattern {
    #[error("a path starts with a slash")]
    NoSlash,
    #[error(
        "{0:?} has two readings: write it without empty or dot segments, needless percent-encoding or `;`"
    )]
    NotCanonical(String),
    #[error(
        "{0:?} is neither a literal nor a parameter: a parameter is a whole segment, `{{name}}` or `{{*name}}`"
    )]
    Parameter(String),
    #[error("a rest parameter `{{*name}}` stands last")]
    RestNotLast,
}

impl Pattern {
    /// # Errors
    /// [`InvalidPattern`] says what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let path = text.strip_prefix('/').ok_or(InvalidPattern::NoSlash)?;
        let parts: Vec<&str> = if path.is_empty() { Vec::new() } else { path.split('/').collect() };
        let mut segments = Vec::with_capacity(parts.len());
        for (n, part) in parts.iter().enumerate() {
            let last = n + 1 == parts.len();
            let segment = Segment::parse(part, last)?;
            if segment == Segment::Rest && !last {
                return Err(InvalidPattern::RestNotLast);
            }
            segments.push(segment);
        }
        Ok(Self { text: text.into(), segments })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a canonical path has as many segments and the same literals.
    fn matches(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        parts.len() == self.segments.len()
            && self.segments.iter().zip(parts).all(|(segment, part)| match segment {
                Segment::Literal(text) => **text == *part,
                Segment::Param => !part.is_empty(),
                Segment::Rest => true,
            })
    }

    /// What stands in the place of the first parameter, in a path that this pattern matches.
    fn parameter<'p>(&self, path: &'p str) -> Option<&'p str> {
        let at = self.segments.iter().position(|segment| *segment == Segment::Param)?;
        path.strip_prefix('/')?.split('/').nth(at)
    }

    fn minds_trailing_slash(&self) -> bool {
        self.segments.last().is_some_and(|last| match last {
            Segment::Literal(text) => text.is_empty(),
            Segment::Param => false,
            Segment::Rest => true,
        })
    }
}

impl Segment {
    fn parse(part: &str, last: bool) -> Result<Self, InvalidPattern> {
        if let Some(inner) = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let (rest, name) = inner.strip_prefix('*').map_or((false, inner), |name| (true, name));
            let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            return match (named, rest) {
                (false, _) => Err(InvalidPattern::Parameter(part.to_owned())),
                (true, true) => Ok(Self::Rest),
                (true, false) => Ok(Self::Param),
            };
        }
        if part.contains(['{', '}']) {
            return Err(InvalidPattern::Parameter(part.to_owned()));
        }
        let canonical = guard::canonicalise(&format!("/{part}")).is_ok_and(|(path, shape)| {
            path[1..] == *part && !shape.cuts && !shape.encoded_slash && (!part.is_empty() || last)
        });
        if canonical {
            Ok(Self::Literal(part.into()))
        } else {
            Err(InvalidPattern::NotCanonical(part.to_owned()))
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Two rules that claim the same requests.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Conflict {
    #[error("routes {first:?} and {second:?} both claim {method} {pattern}")]
    SameRequest { first: Box<str>, second: Box<str>, method: Method, pattern: Pattern },
    #[error("route {second:?} claims HEAD {pattern}, but HEAD follows GET, which is route {first:?}")]
    HeadApartFromGet { first: Box<str>, second: Box<str>, pattern: Pattern },
    #[error("two routes are called {0:?}")]
    SameId(Box<str>),
}

/// All routes, compiled once and never changed.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
    root: Node,
    /// Whether a slash at the end can make a difference to any pattern.
    minds_trailing_slash: bool,
}

#[derive(Debug, Default)]
struct Node {
    /// Sorted by their canonical texts.
    literals: Vec<Literal>,
    param: Option<Box<Self>>,
    here: Vec<(Method, usize)>,
    rest: Vec<(Method, usize)>,
}

#[derive(Debug)]
struct Literal {
    text: Box<str>,
    /// The text as a server sees it that decodes segments.
    octets: Box<[u8]>,
    node: Node,
}

/// A route that was found.
#[derive(Clone, Copy, Debug)]
pub struct Match<'t> {
    /// Its place in the policy, from 0.
    pub number: usize,
    pub route: &'t Route,
}

/// In which spelling segments are compared with literals.
#[derive(Clone, Copy)]
enum Reading<'r> {
    /// As the canonical path stands. Notes whether a segment was a literal but for its case or encoding.
    Canonical { near_miss: &'r Cell<bool> },
    /// As an upstream sees it that decodes segments.
    Decoded,
    /// As the laxest upstream sees it: decoded, cut off at `;`, `?` or `#`, in letters of any case.
    Lax,
}

/// Which pattern is looked for: the path's own, or that of the same path with a slash behind it.
#[derive(Clone, Copy)]
enum End {
    Here,
    Beneath,
}

impl RouteTable {
    /// # Errors
    /// Every conflict between the routes.
    pub fn build(routes: Vec<Route>) -> Result<Self, Vec<Conflict>> {
        let mut table = Self::default();
        let mut conflicts = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            if routes[..index].iter().any(|earlier| earlier.id == route.id) {
                conflicts.push(Conflict::SameId(route.id.clone()));
            }
            for pattern in &route.patterns {
                let claims = table.root.claims(&pattern.segments);
                for method in &route.methods {
                    match claims.iter().find(|(claimed, _)| claimed == method) {
                        Some((_, first)) => conflicts.push(Conflict::SameRequest {
                            first: routes[*first].id.clone(),
                            second: route.id.clone(),
                            method: method.clone(),
                            pattern: pattern.clone(),
                        }),
                        None => claims.push((method.clone(), index)),
                    }
                }
                let claimed = |method| claims.iter().find(|(claimed, _)| *claimed == method).map(|(_, n)| *n);
                if let (Some(get), Some(head)) = (claimed(Method::GET), claimed(Method::HEAD))
                    && get != head
                    && (get == index || head == index)
                {
                    conflicts.push(Conflict::HeadApartFromGet {
                        first: routes[get].id.clone(),
                        second: routes[head].id.clone(),
                        pattern: pattern.clone(),
                    });
                }
            }
        }
        table.minds_trailing_slash =
            routes.iter().flat_map(|route| &route.patterns).any(Pattern::minds_trailing_slash);
        table.routes = routes;
        if conflicts.is_empty() { Ok(table) } else { Err(conflicts) }
    }

    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The route of a request, or `None`: denied.
    ///
    /// A path can be canonical here and still mean something else to an upstream that decodes it, cuts it off
    /// at `;` or at a decoded `?`, or cares for neither letters' case nor a trailing slash. All those
    /// readings must fall under the same route.
    ///
    /// # Errors
    /// [`Unsafe::PathTwoReadings`] where they do not; [`Unsafe::PathEncodedSlash`] where the route does not
    /// allow one.
    pub fn find<B>(&self, request: &CanonicalRequest<B>) -> Result<Option<Match<'_>>, Unsafe> {
        let (path, shape, method) = (request.path(), request.shape(), request.method());
        let near_miss = Cell::new(false);
        let found = self.find_reading(path, method, Reading::Canonical { near_miss: &near_miss }, End::Here);
        let find = |path, reading| self.find_reading(path, method, reading, End::Here);
        let Some(number) = found else {
            return if shape.encoded_slash { Err(Unsafe::PathEncodedSlash) } else { Ok(None) };
        };
        if shape.encoded_slash && !self.routes[number].encoded_slash {
            return Err(Unsafe::PathEncodedSlash);
        }
        if shape.cuts && has_vanishing_segment(path) {
            return Err(Unsafe::PathTwoReadings);
        }
        // Where nothing is decoded or cut off and no segment came near a literal, the laxest reading finds the
        // same: looking again would be a waste, since nearly every id has capitals.
        let is_lax = shape.cuts || shape.escapes || near_miss.get();
        if shape.escapes && find(path, Reading::Decoded) != found
            || is_lax && find(path, Reading::Lax) != found
        {
            return Err(Unsafe::PathTwoReadings);
        }
        let otherwise = match path.strip_suffix('/').filter(|_| shape.trailing_slash) {
            Some(without) => find(without, Reading::Lax),
            None if self.minds_trailing_slash => self.find_reading(path, method, Reading::Lax, End::Beneath),
            None => None,
        };
        if otherwise.is_some_and(|other| other != number) {
            return Err(Unsafe::PathTwoReadings);
        }
        Ok(Some(Match { number, route: &self.routes[number] }))
    }

    fn find_reading(&self, path: &str, method: &Method, reading: Reading<'_>, end: End) -> Option<usize> {
        let segments = path.strip_prefix('/').filter(|segments| !segments.is_empty());
        let claims = match segments {
            Some(_) => self.root.find(segments, reading, end)?,
            // The root is a slash already, and so all that is beneath it.
            None => non_empty(&self.root.here).or_else(|| self.root.beneath())?,
        };
        let claimed = |wanted: &Method| claims.iter().find(|(method, _)| method == wanted).map(|(_, n)| *n);
        // RFC 9110, section 9.3.2: HEAD is GET without the body, so it needs what GET needs.
        claimed(method).or_else(|| if *method == Method::HEAD { claimed(&Method::GET) } else { None })
    }
}

/// Whether a server that cuts segments off would find nothing between two slashes: what it makes of them
/// nobody knows.
fn has_vanishing_segment(path: &str) -> bool {
    path.split('/').any(|segment| !segment.is_empty() && Reading::Lax.of(segment).is_empty())
}

impl Node {
    /// Where the claims on a pattern are kept; makes the nodes on the way.
    fn claims(&mut self, segments: &[Segment]) -> &mut Vec<(Method, usize)> {
        match segments.split_first() {
            None => &mut self.here,
            Some((Segment::Rest, _)) => &mut self.rest,
            Some((Segment::Param, further)) => self.param.get_or_insert_default().claims(further),
            Some((Segment::Literal(text), further)) => {
                let at = match self.literals.binary_search_by(|literal| literal.text.cmp(text)) {
                    Ok(at) => at,
                    Err(at) => {
                        let octets = guard::decode(text).into();
                        self.literals
                            .insert(at, Literal { text: text.clone(), octets, node: Self::default() });
                        at
                    }
                };
                self.literals[at].node.claims(further)
            }
        }
    }

    /// The claims on the most specific pattern that matches. Visits each node at most once, so its cost is
    /// bounded by the policy's size, whatever the path.
    fn find(&self, path: Option<&str>, reading: Reading<'_>, end: End) -> Option<&[(Method, usize)]> {
        let Some(path) = path else {
            return match end {
                End::Here => non_empty(&self.here),
                End::Beneath => self.beneath(),
            };
        };
        let (segment, further) = match path.split_once('/') {
            Some((segment, further)) => (segment, Some(further)),
            None => (path, None),
        };
        self.literal(segment, reading)
            .and_then(|node| node.find(further, reading, end))
            .or_else(|| {
                // An empty last segment is a trailing slash, and no value for a parameter.
                let node = self.param.as_ref().filter(|_| !segment.is_empty())?;
                node.find(further, reading, end)
            })
            .or_else(|| match end {
                End::Here => non_empty(&self.rest),
                End::Beneath => None,
            })
    }

    /// The claims on this node's path with a slash behind it.
    fn beneath(&self) -> Option<&[(Method, usize)]> {
        let slashed = self.literals.first().filter(|literal| literal.text.is_empty());
        slashed.and_then(|literal| non_empty(&literal.node.here)).or_else(|| non_empty(&self.rest))
    }

    fn literal(&self, segment: &str, reading: Reading<'_>) -> Option<&Self> {
        let octets = reading.of(segment);
        let equal = |literal: &&Literal| *literal.octets == *octets;
        let similar = |literal: &&Literal| literal.octets.eq_ignore_ascii_case(&octets);
        let found = match reading {
            Reading::Canonical { near_miss } => {
                match self.literals.binary_search_by(|literal| (*literal.text).cmp(segment)) {
                    Ok(at) => Some(&self.literals[at]),
                    Err(_) => {
                        near_miss
                            .set(near_miss.get() || self.literals.iter().any(|literal| similar(&literal)));
                        None
                    }
                }
            }
            Reading::Decoded => self.literals.iter().find(equal),
            Reading::Lax => self.literals.iter().find(equal).or_else(|| self.literals.iter().find(similar)),
        };
        found.map(|literal| &literal.node)
    }
}

impl Reading<'_> {
    fn of(self, segment: &str) -> Cow<'_, [u8]> {
        match self {
            Self::Canonical { .. } => Cow::Borrowed(segment.as_bytes()),
            Self::Decoded => guard::decode(segment),
            Self::Lax => match guard::decode(segment) {
                Cow::Borrowed(octets) => Cow::Borrowed(guard::cut(octets)),
                Cow::Owned(octets) => Cow::Owned(guard::cut(&octets).to_vec()),
            },
        }
    }
}

const fn non_empty(claims: &Vec<(Method, usize)>) -> Option<&[(Method, usize)]> {
    if claims.is_empty() { None } else { Some(claims.as_slice()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::guard::Limits;
    use http::Request;

    fn route(id: &str, method: Method, paths: &[&str]) -> Route {
        Route {
            id: id.into(),
            methods: vec![method],
            patterns: paths.iter().map(|path| Pattern::parse(path).unwrap()).collect(),
            access: Access::AnyKey,
            target: Target::Operation(Operation::GetOwnKey),
            forward_authorization: false,
            encoded_slash: id.contains("slash"),
            on_partition: None,
            websocket: false,
            body_limit: None,
        }
    }

    fn table(routes: &[(&str, Method, &[&str])]) -> RouteTable {
        let routes = routes.iter().map(|(id, method, paths)| route(id, method.clone(), paths)).collect();
        RouteTable::build(routes).unwrap()
    }

    fn find(table: &RouteTable, method: Method, path: &str) -> Result<String, Unsafe> {
        let request = Request::builder().method(method).uri(path).header("host", "h").body(()).unwrap();
        let request = CanonicalRequest::parse(request, &Limits::default()).unwrap();
        table.find(&request).map(|found| found.map_or("-".to_owned(), |found| found.route.id.to_string()))
    }

    #[test]
    fn a_literal_wins_over_a_parameter_and_a_parameter_over_a_rest() {
        let table = table(&[
            ("rest", Method::GET, &["/a/{*rest}"]),
            ("param", Method::GET, &["/a/{x}"]),
            ("literal", Method::GET, &["/a/b"]),
            ("deep", Method::GET, &["/a/{x}/c"]),
            ("other", Method::GET, &["/a/b/d"]),
        ]);
        for (path, winner) in [
            ("/a/b", "literal"),
            ("/a/x", "param"),
            ("/a/x/y", "rest"),
            ("/a/b/c", "deep"),
            ("/a/b/d", "other"),
            ("/a/b/e", "rest"),
            ("/a", "-"),
            ("/a/", "rest"),
            ("/A/b", "-"),
            ("/ab", "-"),
            ("/", "-"),
        ] {
            assert_eq!(find(&table, Method::GET, path).as_deref(), Ok(winner), "{path}");
        }
    }

    #[test]
    fn a_path_belongs_to_one_pattern_whatever_the_method() {
        let table = table(&[
            ("summary", Method::GET, &["/s/summary"]),
            ("one", Method::GET, &["/s/{id}"]),
            ("remove", Method::DELETE, &["/s/{id}"]),
        ]);
        assert_eq!(find(&table, Method::DELETE, "/s/1").as_deref(), Ok("remove"));
        assert_eq!(find(&table, Method::DELETE, "/s/summary").as_deref(), Ok("-"));
        assert_eq!(find(&table, Method::HEAD, "/s/summary").as_deref(), Ok("summary"), "HEAD is GET");
        assert_eq!(find(&table, Method::OPTIONS, "/s/1").as_deref(), Ok("-"));
        assert_eq!(find(&table, Method::from_bytes(b"get").unwrap(), "/s/1").as_deref(), Ok("-"));
    }

    #[test]
    fn readings_that_fall_under_different_routes_are_refused() {
        let table = table(&[
            ("job", Method::GET, &["/jobs/{id}"]),
            ("cancel", Method::GET, &["/jobs/all:cancel"]),
            ("audit", Method::GET, &["/jobs/audit"]),
            ("files", Method::GET, &["/files/{*path}"]),
            ("secret", Method::GET, &["/files/secret"]),
            ("beneath", Method::GET, &["/files/private/{*path}"]),
        ]);
        for (path, expected) in [
            ("/jobs/all:cancel", Ok("cancel")),
            ("/jobs/all%3Acancel", Err(Unsafe::PathTwoReadings)),
            ("/jobs/%61udit", Ok("audit")),
            ("/jobs/audit;x=1", Err(Unsafe::PathTwoReadings)),
            ("/jobs/audit%3Bx", Err(Unsafe::PathTwoReadings)),
            ("/jobs/;x", Err(Unsafe::PathTwoReadings)),
            ("/jobs/1;x=1", Ok("job")),
            ("/jobs/a%40b", Ok("job")),
            ("/jobs/1/", Ok("-")),
            ("/jobs/Audit", Err(Unsafe::PathTwoReadings)),
            ("/jobs/AUDIT;x", Err(Unsafe::PathTwoReadings)),
            ("/jobs/audit%3Fa=1", Err(Unsafe::PathTwoReadings)),
            ("/jobs/audit%23", Err(Unsafe::PathTwoReadings)),
            ("/jobs/01JD3N0DEM0", Ok("job")),
            ("/jobs/what%3F", Ok("job")),
            ("/files/Secret/x", Ok("files")),
            ("/files/private/x", Ok("beneath")),
            ("/files/private;/%3Bx", Err(Unsafe::PathTwoReadings)),
            ("/files/x/;y/z", Err(Unsafe::PathTwoReadings)),
            ("/files/private/", Err(Unsafe::PathTwoReadings)),
            ("/files/private", Err(Unsafe::PathTwoReadings)),
            ("/files/", Ok("files")),
            ("/files/SECRET", Err(Unsafe::PathTwoReadings)),
            ("/files/secret/", Err(Unsafe::PathTwoReadings)),
            ("/files/public/", Ok("files")),
            ("/files/secret;v/", Err(Unsafe::PathTwoReadings)),
            ("/files/secret%2Fx", Err(Unsafe::PathEncodedSlash)),
            ("/nowhere/%2F", Err(Unsafe::PathEncodedSlash)),
        ] {
            assert_eq!(find(&table, Method::GET, path).as_deref(), expected.as_ref().copied(), "{path}");
        }
    }

    #[test]
    fn a_literal_with_capitals_is_no_less_one_than_others() {
        let table = table(&[("one", Method::GET, &["/x/{id}"]), ("all", Method::GET, &["/x/All"])]);
        assert_eq!(find(&table, Method::GET, "/x/All").as_deref(), Ok("all"));
        assert_eq!(find(&table, Method::GET, "/x/all").err(), Some(Unsafe::PathTwoReadings));
        assert_eq!(find(&table, Method::GET, "/x/aLL").err(), Some(Unsafe::PathTwoReadings));
        assert_eq!(find(&table, Method::GET, "/x/01JD").as_deref(), Ok("one"));
    }

    #[test]
    fn literals_that_differ_by_case_alone_stay_apart() {
        let table = table(&[("small", Method::GET, &["/x/a"]), ("capital", Method::GET, &["/x/A"])]);
        assert_eq!(find(&table, Method::GET, "/x/a").as_deref(), Ok("small"));
        assert_eq!(find(&table, Method::GET, "/x/A").as_deref(), Ok("capital"));
    }

    #[test]
    fn an_encoded_slash_passes_as_data_where_the_route_says_so() {
        let table = table(&[("slash", Method::GET, &["/objects/{name}"])]);
        assert_eq!(find(&table, Method::GET, "/objects/a%2fb").as_deref(), Ok("slash"));
        assert_eq!(find(&table, Method::GET, "/objects%2Fa").err(), Some(Unsafe::PathEncodedSlash));
    }

    #[test]
    fn two_rules_for_one_request_are_a_conflict() {
        let conflict = |a, b| RouteTable::build(vec![a, b]).unwrap_err();
        let same = conflict(route("a", Method::GET, &["/x/{id}"]), route("b", Method::GET, &["/x/{name}"]));
        assert_eq!(same[0].to_string(), r#"routes "a" and "b" both claim GET /x/{name}"#);
        let head = conflict(route("a", Method::GET, &["/x"]), route("b", Method::HEAD, &["/x"]));
        assert!(matches!(head[..], [Conflict::HeadApartFromGet { .. }]));
        let twice = conflict(route("a", Method::GET, &["/x"]), route("a", Method::GET, &["/y"]));
        assert_eq!(twice, [Conflict::SameId("a".into())]);
        assert!(RouteTable::build(vec![route("a", Method::GET, &["/x", "/x"])]).is_err());
    }

    #[test]
    fn a_pattern_is_written_in_one_way() {
        for good in ["/", "/v1/jobs", "/v1/jobs/{id}", "/files/{*path}", "/v1/", "/a%20b"] {
            assert!(Pattern::parse(good).is_ok(), "{good}");
        }
        for (bad, cause) in [
            ("v1", "starts with a slash"),
            ("", "starts with a slash"),
            ("//a", "two readings"),
            ("/a/../b", "two readings"),
            ("/%61", "two readings"),
            ("/a%2Fb", "two readings"),
            ("/a;b", "two readings"),
            ("/a b", "two readings"),
            ("/{id}.json", "whole segment"),
            ("/{}", "whole segment"),
            ("/{*rest}/x", "stands last"),
        ] {
            let error = Pattern::parse(bad).unwrap_err().to_string();
            assert!(error.contains(cause), "{bad}: {error}");
        }
    }
}
