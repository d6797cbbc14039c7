//! Routes: which rule a canonical request falls under.
//!
//! It is the rule with the most specific pattern among those that match the path and have the method: segment by segment
//! from the left, a literal before a parameter before a rest. A rule can deny the methods that it does not have; then
//! wider patterns do not count for its paths. A request that no rule names is denied.

use std::cell::Cell;

use http::Method;
use thiserror::Error;

use super::access::Access;
use super::foreign::{MOST_OTHERS, Others, REFUSED, readings, with_rivals};
use super::path::Shape;
use super::pattern::Pattern;
use super::reading::{Ambiguity, OtherReading, Reading, has_vanishing_segment};
use super::request::CanonicalRequest;
use super::tree::{End, Found, Node, Search};
use super::wider::without_wider;

pub use super::rule::{Route, RulePlace};

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

/// A conflict, with the numbers of both routes, from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    pub first: usize,
    /// The later one, or that with the HEAD.
    pub second: usize,
    pub conflict: Conflict,
}

/// All routes, compiled once and never changed.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
    root: Node,
    /// Whether a slash at the end makes a difference to any pattern.
    minds_trailing_slash: bool,
    /// For each route, whether another one could claim a reading of its paths that only some routers have.
    has_rival: Vec<bool>,
}

/// A route that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match<'t> {
    /// Its number in the policy, from 0.
    pub number: usize,
    pub route: &'t Route,
    /// The rules under which some routers would find the request, mostly none. Its sender must satisfy them too.
    pub others: Others<'t>,
}

impl<'t> Match<'t> {
    /// All rules that the sender must satisfy, that of the route first.
    pub fn rules(self) -> impl Iterator<Item = &'t Route> {
        std::iter::once(self.route).chain(self.others.rules())
    }

    /// Whether the request needs no key.
    #[must_use]
    pub fn is_public(self) -> bool {
        self.rules().all(|rule| matches!(rule.access, Access::Public { .. }))
    }

    #[must_use]
    pub fn numbers(&self) -> RuleNumbers {
        RuleNumbers { route: self.number, others: self.others.numbers() }
    }
}

/// The numbers of the rules of a [`Match`], for as long as its table is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleNumbers {
    pub route: usize,
    others: [Option<usize>; MOST_OTHERS],
}

impl RuleNumbers {
    /// The rules, as in [`Match::rules`].
    pub fn of(self, table: &RouteTable) -> impl Iterator<Item = &Route> {
        let numbers = std::iter::once(self.route).chain(self.others.into_iter().flatten());
        numbers.filter_map(|number| table.routes.get(number))
    }
}

/// The result of [`RouteTable::find`]: the route of a request, `None` where there is none.
pub type Routed<'t> = Result<Option<Match<'t>>, Ambiguity>;

impl RouteTable {
    /// # Errors
    /// Every conflict between the routes.
    pub fn build(routes: Vec<Route>) -> Result<Self, Vec<Clash>> {
        let mut table = Self::default();
        let mut conflicts = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            if let Some(first) = routes[..index].iter().position(|earlier| earlier.id == route.id) {
                conflicts.push(Clash { first, second: index, conflict: Conflict::SameId(route.id.clone()) });
            }
            for pattern in &route.patterns {
                let claims = table.root.claims(pattern.segments());
                for method in &route.methods {
                    if let Some(first) = claims.named(method) {
                        let conflict = Conflict::SameRequest {
                            first: routes[first].id.clone(),
                            second: route.id.clone(),
                            method: method.clone(),
                            pattern: pattern.clone(),
                        };
                        conflicts.push(Clash { first, second: index, conflict });
                    }
                }
                claims.add(route, index);
                if let (Some(get), Some(head)) = (claims.named(&Method::GET), claims.named(&Method::HEAD))
                    && get != head
                    && (get == index || head == index)
                {
                    let conflict = Conflict::HeadApartFromGet {
                        first: routes[get].id.clone(),
                        second: routes[head].id.clone(),
                        pattern: pattern.clone(),
                    };
                    conflicts.push(Clash { first: get, second: head, conflict });
                }
            }
        }
        for pattern in without_wider(&routes) {
            table.root.claims(pattern.segments()).ends_search = true;
        }
        table.minds_trailing_slash =
            routes.iter().flat_map(|route| &route.patterns).any(Pattern::minds_trailing_slash);
        table.has_rival = with_rivals(&routes);
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
    /// Readings that only some routers have may fall under others, which the [`Match`] names; see
    /// [`foreign`](super::foreign).
    ///
    /// # Errors
    /// The reading that does not, or the encoded slash that the route does not allow.
    pub fn find<B>(&self, request: &CanonicalRequest<B>) -> Routed<'_> {
        let (path, shape) = (request.path(), request.shape());
        let near_miss = Cell::new(false);
        let find = |path, reading, end| self.search(path, Search { method: request.method(), reading, end });
        let found = find(path, Reading::Canonical { near_miss: &near_miss }, End::Here);
        let Some(Found::Route(number)) = found else {
            return if shape.encoded_slash { Err(Ambiguity::EncodedSlash) } else { Ok(None) };
        };
        if shape.encoded_slash && !self.routes[number].encoded_slash {
            return Err(Ambiguity::EncodedSlash);
        }
        if shape.cuts && has_vanishing_segment(path) {
            return Err(Ambiguity::VanishingSegment);
        }
        if shape.escapes && find(path, Reading::Decoded, End::Here) != found {
            return Err(Ambiguity::Reading(OtherReading::Decoded));
        }
        // Where nothing is decoded or cut off and no segment came near a literal, the lax reading finds the same. Looking
        // again would be a waste, since nearly every id has capitals.
        let is_lax = shape.cuts || shape.escapes || near_miss.get();
        if is_lax && find(path, Reading::Lax, End::Here) != found {
            return Err(Ambiguity::Reading(OtherReading::Lax));
        }
        let otherwise = match path.strip_suffix('/').filter(|_| shape.trailing_slash) {
            Some(without) => find(without, Reading::Lax, End::Here),
            None if self.minds_trailing_slash => find(path, Reading::Lax, End::Beneath),
            None => None,
        };
        // If no rule has the path in that reading, it is harmless.
        if !matches!(otherwise, None | Some(Found::Nothing)) && otherwise != found {
            return Err(Ambiguity::Reading(OtherReading::Slash));
        }
        let others = if (shape.dots || shape.escapes) && self.has_rival[number] {
            self.others(path, shape, request.method(), number)?
        } else {
            Others::default()
        };
        Ok(Some(Match { number, route: &self.routes[number], others }))
    }

    /// The other rules that claim a reading of a path which was found to fall under the rule with this number.
    ///
    /// # Errors
    /// When a reading falls under a rule that denies the method, or when there are too many of them.
    #[cold]
    fn others(
        &self,
        path: &str,
        shape: Shape,
        method: &Method,
        number: usize,
    ) -> Result<Others<'_>, Ambiguity> {
        let (mut others, route) = (Others::default(), &self.routes[number]);
        let matching = route.patterns.iter().filter(|pattern| pattern.matches(path));
        let Some(pattern) = matching.min_by(|one, other| one.compare(other)) else { return Ok(others) };
        for reading in readings(path, pattern, shape, route.encoded_slash).ok_or(REFUSED)? {
            for found in self.claims(&reading, method) {
                match found {
                    None | Some(Found::Nothing) => {}
                    Some(Found::Route(other)) if other == number => {}
                    Some(Found::Route(other)) => others.add(other, &self.routes[other])?,
                    Some(Found::Denied | Found::Torn) => return Err(REFUSED),
                }
            }
        }
        Ok(others)
    }

    /// What a path in one reading falls under: with and without regard to letters' case, and with the slash at its end
    /// added or removed.
    fn claims(&self, path: &str, method: &Method) -> [Option<Found>; 3] {
        let find = |path, reading, end| self.search(path, Search { method, reading, end });
        let otherwise = match path.strip_suffix('/') {
            Some(without) => find(without, Reading::Lax, End::Here),
            None => find(path, Reading::Lax, End::Beneath),
        };
        [find(path, Reading::Decoded, End::Here), find(path, Reading::Lax, End::Here), otherwise]
    }

    fn search(&self, path: &str, search: Search<'_>) -> Option<Found> {
        let segments = path.strip_prefix('/').filter(|segments| !segments.is_empty());
        self.root.find_from_root(segments, search)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::policy::access::Access;
    use crate::policy::request::Limits;
    use crate::policy::target::{Operation, Target};
    use crate::vocabulary::rejection::Unsafe;
    use crate::vocabulary::upstream::Terms;
    use http::Request;

    pub(in crate::policy) fn route(id: &str, method: Method, paths: &[&str]) -> Route {
        Route {
            id: id.into(),
            place: RulePlace { file: "policy.toml".into(), line: 1 },
            methods: vec![method],
            patterns: paths.iter().map(|path| Pattern::parse(path).unwrap()).collect(),
            denies_other_methods: id.contains("deny"),
            access: Access::AnyKey,
            target: Target::Operation(Operation::GetOwnKey),
            forward_authorization: false,
            encoded_slash: id.contains("slash"),
            literal: false,
            on_partition: None,
            browser_keys: None,
            websocket: false,
            grpc_web: false,
            terms: Terms::default(),
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
    fn a_pattern_without_the_method_hides_no_wider_one_that_has_it() {
        let table = table(&[
            ("summary", Method::GET, &["/s/summary"]),
            ("one", Method::GET, &["/s/{id}"]),
            ("remove", Method::DELETE, &["/s/{id}"]),
            ("rest", Method::PUT, &["/s/{*rest}"]),
        ]);
        assert_eq!(find(&table, Method::DELETE, "/s/1").as_deref(), Ok("remove"));
        assert_eq!(find(&table, Method::DELETE, "/s/summary").as_deref(), Ok("remove"));
        assert_eq!(find(&table, Method::PUT, "/s/summary").as_deref(), Ok("rest"));
        assert_eq!(find(&table, Method::PATCH, "/s/summary").as_deref(), Ok("-"));
        assert_eq!(find(&table, Method::HEAD, "/s/summary").as_deref(), Ok("summary"), "HEAD is GET");
        assert_eq!(find(&table, Method::OPTIONS, "/s/1").as_deref(), Ok("-"));
        assert_eq!(find(&table, Method::from_bytes(b"get").unwrap(), "/s/1").as_deref(), Ok("-"));
    }

    #[test]
    fn a_rule_that_denies_other_methods_hides_every_wider_one() {
        let mut denied = route("denied", Method::GET, &["/s/summary", "/t/{id}"]);
        denied.denies_other_methods = true;
        let table = RouteTable::build(vec![
            route("wide", Method::DELETE, &["/{*rest}"]),
            denied,
            route("beside", Method::POST, &["/s/summary"]),
            route("narrow", Method::PUT, &["/t/a"]),
        ])
        .unwrap();
        for (method, path, found) in [
            (Method::GET, "/s/summary", "denied"),
            (Method::HEAD, "/s/summary", "denied"),
            (Method::POST, "/s/summary", "beside"),
            (Method::DELETE, "/s/summary", "-"),
            (Method::DELETE, "/s/1", "wide"),
            (Method::DELETE, "/t/1", "-"),
            (Method::DELETE, "/t/a", "-"),
            (Method::GET, "/t/a", "denied"),
            (Method::DELETE, "/t/1/2", "wide"),
        ] {
            assert_eq!(find(&table, method.clone(), path).as_deref(), Ok(found), "{method} {path}");
        }
        let other_reading = find(&table, Method::DELETE, "/s/Summary");
        assert_eq!(other_reading.err(), Some(Unsafe::PathTwoReadings));
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
    fn a_literal_that_has_not_the_method_does_not_hide_one_of_other_case() {
        let table = table(&[
            ("small", Method::POST, &["/x/a", "/y/a"]),
            ("capital", Method::GET, &["/x/A", "/z/A/{q}"]),
            ("deep", Method::GET, &["/z/a/1"]),
            ("wide", Method::GET, &["/x/{id}", "/y/{id}", "/z/{p}/2"]),
            ("left", Method::GET, &["/w/Ab"]),
            ("right", Method::GET, &["/w/aB"]),
            ("both", Method::GET, &["/w/{id}"]),
        ]);
        let two = Err(Unsafe::PathTwoReadings);
        for (method, path, expected) in [
            (Method::GET, "/x/A", Ok("capital")),
            (Method::POST, "/x/a", Ok("small")),
            (Method::GET, "/x/a", two),
            (Method::GET, "/y/a", Ok("wide")),
            (Method::GET, "/y/A", Ok("wide")),
            (Method::GET, "/z/a/1", Ok("deep")),
            (Method::GET, "/z/a/2", two),
            (Method::GET, "/w/Ab", Ok("left")),
            (Method::GET, "/w/ab", two),
        ] {
            let found = find(&table, method.clone(), path);
            assert_eq!(found.as_deref(), expected.as_ref().copied(), "{method} {path}");
        }
    }

    #[test]
    fn an_encoded_slash_passes_as_data_where_the_route_says_so() {
        let table = table(&[("slash", Method::GET, &["/objects/{name}"])]);
        assert_eq!(find(&table, Method::GET, "/objects/a%2fb").as_deref(), Ok("slash"));
        assert_eq!(find(&table, Method::GET, "/objects%2Fa").err(), Some(Unsafe::PathEncodedSlash));
    }

    #[test]
    fn two_rules_for_one_request_are_a_conflict() {
        let conflict = |a, b| -> Vec<Conflict> {
            let clashes = RouteTable::build(vec![a, b]).unwrap_err();
            clashes.into_iter().map(|clash| clash.conflict).collect()
        };
        let same = conflict(route("a", Method::GET, &["/x/{id}"]), route("b", Method::GET, &["/x/{name}"]));
        assert_eq!(same[0].to_string(), r#"routes "a" and "b" both claim GET /x/{name}"#);
        let head = conflict(route("a", Method::GET, &["/x"]), route("b", Method::HEAD, &["/x"]));
        assert!(matches!(head[..], [Conflict::HeadApartFromGet { .. }]));
        let twice = conflict(route("a", Method::GET, &["/x"]), route("a", Method::GET, &["/y"]));
        assert_eq!(twice, [Conflict::SameId("a".into())]);
        assert!(RouteTable::build(vec![route("a", Method::GET, &["/x", "/x"])]).is_err());
    }
}
