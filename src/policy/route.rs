//! Routes: which rule a canonical request falls under.
//!
//! A path belongs to exactly one pattern, the most specific that matches it: segment by segment from the left, a literal
//! before a parameter before a rest. Then the method picks the route among those of that pattern. A method that is
//! missing there is not looked for at a wider pattern. A request that no rule names is denied.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use http::Method;
use thiserror::Error;

use super::access::Access;
use super::pattern::Pattern;
use super::reading::{Ambiguity, OtherReading, Reading, has_vanishing_segment};
use super::request::CanonicalRequest;
use super::target::Target;
use super::tree::{End, Node};
use crate::vocabulary::partition::OnPartition;
use crate::vocabulary::upstream::Retries;

/// One rule of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name in the policy, in logs and metrics.
    pub id: Box<str>,
    pub place: RulePlace,
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
    /// Which requests may be sent to the upstream twice.
    pub retries: Retries,
    /// The handling of its requests while the gateway is cut off from the store; `None` for the setting of all routes.
    pub on_partition: Option<OnPartition>,
    /// The largest body in bytes; `None` for the limit of all routes.
    pub body_limit: Option<u64>,
}

impl Route {
    /// The segment of `path` in the place of the pattern's first parameter. The patterns of a route that keygate
    /// serves have it in different places only where they differ in length.
    #[must_use]
    pub fn parameter<'p>(&self, path: &'p str) -> Option<&'p str> {
        self.patterns.iter().find_map(|pattern| pattern.parameter(path))
    }

    /// Whether a request with this method is meant. HEAD is GET without the body, so it needs what GET needs (RFC
    /// 9110, section 9.3.2).
    #[must_use]
    pub fn takes(&self, method: &Method) -> bool {
        self.methods.contains(method) || *method == Method::HEAD && self.methods.contains(&Method::GET)
    }
}

/// Where a rule is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RulePlace {
    /// The policy file, as the configuration names it.
    pub file: Arc<str>,
    /// The line of the rule's `[[route]]`, from 1.
    pub line: usize,
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
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
    /// Whether a slash at the end makes a difference to any pattern.
    minds_trailing_slash: bool,
}

/// A route that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match<'t> {
    /// Its number in the policy, from 0.
    pub number: usize,
    pub route: &'t Route,
}

/// The result of [`RouteTable::find`]: the route of a request, `None` where there is none.
pub type Routed<'t> = Result<Option<Match<'t>>, Ambiguity>;

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
                let claims = table.root.claims(pattern.segments());
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
    /// A path can be canonical and still mean something else to an upstream that decodes it, cuts it off at `;` or at a
    /// decoded `?`, or ignores letters' case or a slash at the end. All those readings must fall under the same route.
    ///
    /// # Errors
    /// The reading that does not, or the encoded slash that the route does not allow.
    pub fn find<B>(&self, request: &CanonicalRequest<B>) -> Routed<'_> {
        let (path, shape, method) = (request.path(), request.shape(), request.method());
        let near_miss = Cell::new(false);
        let found = self.find_reading(path, method, Reading::Canonical { near_miss: &near_miss }, End::Here);
        let find = |path, reading| self.find_reading(path, method, reading, End::Here);
        let Some(number) = found else {
            return if shape.encoded_slash { Err(Ambiguity::EncodedSlash) } else { Ok(None) };
        };
        if shape.encoded_slash && !self.routes[number].encoded_slash {
            return Err(Ambiguity::EncodedSlash);
        }
        if shape.cuts && has_vanishing_segment(path) {
            return Err(Ambiguity::VanishingSegment);
        }
        if shape.escapes && find(path, Reading::Decoded) != found {
            return Err(Ambiguity::Reading(OtherReading::Decoded));
        }
        // Where nothing is decoded or cut off and no segment came near a literal, the lax reading finds the same. Looking
        // again would be a waste, since nearly every id has capitals.
        let is_lax = shape.cuts || shape.escapes || near_miss.get();
        if is_lax && find(path, Reading::Lax) != found {
            return Err(Ambiguity::Reading(OtherReading::Lax));
        }
        let otherwise = match path.strip_suffix('/').filter(|_| shape.trailing_slash) {
            Some(without) => find(without, Reading::Lax),
            None if self.minds_trailing_slash => self.find_reading(path, method, Reading::Lax, End::Beneath),
            None => None,
        };
        if otherwise.is_some_and(|other| other != number) {
            return Err(Ambiguity::Reading(OtherReading::Slash));
        }
        Ok(Some(Match { number, route: &self.routes[number] }))
    }

    fn find_reading(&self, path: &str, method: &Method, reading: Reading<'_>, end: End) -> Option<usize> {
        let segments = path.strip_prefix('/').filter(|segments| !segments.is_empty());
        let claims = self.root.find_from_root(segments, reading, end)?;
        let claimed = |wanted: &Method| claims.iter().find(|(method, _)| method == wanted).map(|(_, n)| *n);
        // As in `Route::takes`.
        claimed(method).or_else(|| if *method == Method::HEAD { claimed(&Method::GET) } else { None })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::policy::request::Limits;
    use crate::policy::target::Operation;
    use crate::vocabulary::rejection::Unsafe;
    use http::Request;

    pub(in crate::policy) fn route(id: &str, method: Method, paths: &[&str]) -> Route {
        Route {
            id: id.into(),
            place: RulePlace { file: "policy.toml".into(), line: 1 },
            methods: vec![method],
            patterns: paths.iter().map(|path| Pattern::parse(path).unwrap()).collect(),
            access: Access::AnyKey,
            target: Target::Operation(Operation::GetOwnKey),
            forward_authorization: false,
            encoded_slash: id.contains("slash"),
            on_partition: None,
            websocket: false,
            retries: Retries::default(),
            body_limit: None,
        }
    }

    pub(in crate::policy) fn table(routes: &[(&str, Method, &[&str])]) -> RouteTable {
        let routes = routes.iter().map(|(id, method, paths)| route(id, method.clone(), paths)).collect();
        RouteTable::build(routes).unwrap()
    }

    fn find(table: &RouteTable, method: Method, path: &str) -> Result<String, Unsafe> {
        let request = Request::builder().method(method).uri(path).header("host", "h").body(()).unwrap();
        let request = CanonicalRequest::parse(request, &Limits::default()).unwrap();
        let found = table.find(&request).map_err(Ambiguity::refusal)?;
        Ok(found.map_or("-".to_owned(), |found| found.route.id.to_string()))
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
}
