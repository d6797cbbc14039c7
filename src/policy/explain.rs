//! Why a request falls under the route that it does, or under none.

use std::cmp::Ordering;
use std::fmt;

use http::Method;

use super::foreign::Others;
use super::pattern::{Pattern, Segment, parts};
use super::reading::Reading;
use super::request::CanonicalRequest;
use super::route::{Match, RouteTable, Routed};

pub use super::reading::{Ambiguity, OtherReading};

/// The result of [`RouteTable::find`], and the rules that came near.
#[derive(Clone, Debug)]
pub struct Explanation<'t> {
    pub found: Routed<'t>,
    /// The nearest first.
    pub near: Vec<Near<'t>>,
}

/// A pattern that comes near a request and does not get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near<'t> {
    pub rule: Match<'t>,
    pub pattern: &'t Pattern,
    pub why: RuledOut<'t>,
}

/// The reason why a request does not match a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuledOut<'t> {
    /// Nothing but this: the rule would get the request.
    Ambiguity(Ambiguity),
    /// The path is the pattern's, but the route does not take the method.
    Method,
    /// The path is the pattern's, but also that of a more specific pattern, which has the method too.
    Hidden { by: &'t Pattern },
    /// The path is the pattern's, but also that of a more specific pattern, which denies methods that it does not have.
    Denied { by: &'t Pattern },
    /// The path is the pattern's in this reading only.
    Reading(OtherReading),
    /// One segment is another, counted from 1.
    Segment { number: usize, wanted: &'t str, found: String },
    /// The path ends one segment too early.
    PathTooShort { wanted: &'t str },
    /// The path has one segment too many.
    PathTooLong { found: String },
}

impl RuledOut<'_> {
    /// How far away the rule is.
    const fn distance(&self) -> u8 {
        match self {
            Self::Ambiguity(_) => 0,
            Self::Method => 1,
            Self::Hidden { .. } | Self::Denied { .. } => 2,
            Self::Reading(_) => 3,
            Self::Segment { .. } => 4,
            Self::PathTooShort { .. } | Self::PathTooLong { .. } => 5,
        }
    }
}

impl fmt::Display for RuledOut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ambiguity(ambiguity) => write!(f, "{ambiguity}"),
            Self::Method => f.write_str("the route does not take this method"),
            Self::Hidden { by } => write!(f, "{by} is more specific and has this method too"),
            Self::Denied { by } => write!(f, "{by} is more specific and denies other methods"),
            Self::Reading(reading) => write!(f, "only another reading of the path matches ({reading})"),
            Self::Segment { number, wanted, found } => {
                write!(f, "segment {number} is {found:?} and not {wanted:?}")
            }
            Self::PathTooShort { wanted } => write!(f, "the path ends before {wanted:?}"),
            Self::PathTooLong { found } => write!(f, "the path goes on with {found:?}"),
        }
    }
}

impl RouteTable {
    /// As [`RouteTable::find`], with the rules that came near and what ruled each of them out.
    ///
    /// Looks at every pattern of the policy, so it is made for people and not for the request path.
    #[must_use]
    pub fn explain<B>(&self, request: &CanonicalRequest<B>) -> Explanation<'_> {
        let (path, found) = (request.path(), self.find(request));
        let rules = || {
            self.routes().iter().enumerate().flat_map(|(number, route)| {
                route
                    .patterns
                    .iter()
                    .map(move |pattern| (Match { number, route, others: Others::default() }, pattern))
            })
        };
        let last = self.last_pattern(path, request.method());
        let others = found.ok().flatten().map(|found| found.others.numbers()).unwrap_or_default();
        let mut near: Vec<Near<'_>> = rules()
            .filter_map(|(rule, pattern)| {
                let why = match last {
                    _ if others.contains(&Some(rule.number)) => RuledOut::Reading(OtherReading::Foreign),
                    _ if !pattern.matches(path) => rule_out_by_path(pattern, path)?,
                    _ if !rule.route.takes(request.method()) => RuledOut::Method,
                    Some(Last { pattern: last, has_method }) if last.segments() != pattern.segments() => {
                        if has_method {
                            RuledOut::Hidden { by: last }
                        } else {
                            RuledOut::Denied { by: last }
                        }
                    }
                    Some(_) | None => match found {
                        Ok(_) => return None,
                        Err(ambiguity) => RuledOut::Ambiguity(ambiguity),
                    },
                };
                Some(Near { rule, pattern, why })
            })
            .collect();
        near.sort_by_key(|near| near.why.distance());
        Explanation { found, near }
    }

    /// The most specific of the patterns that match the path and have the method, or deny it.
    fn last_pattern(&self, path: &str, method: &Method) -> Option<Last<'_>> {
        let lasts = self.routes().iter().filter_map(|route| {
            let has_method = route.takes(method);
            let patterns = route.patterns.iter().filter(|_| has_method || route.denies_other_methods);
            let matching = patterns.filter(|pattern| pattern.matches(path));
            let pattern = matching.min_by(|a, b| a.compare(b))?;
            Some(Last { pattern, has_method })
        });
        // One rule of a pattern may deny the method that another has.
        lasts.min_by(|a, b| a.pattern.compare(b.pattern).then(b.has_method.cmp(&a.has_method)))
    }
}

/// The pattern at which the search for a route ends.
#[derive(Clone, Copy)]
struct Last<'t> {
    pattern: &'t Pattern,
    has_method: bool,
}

/// The reason why a path does not match a pattern that comes near.
fn rule_out_by_path<'t>(pattern: &'t Pattern, path: &str) -> Option<RuledOut<'t>> {
    let decoded = |literal: &str, segment: &str| Reading::Decoded.of(segment) == Reading::Decoded.of(literal);
    let lax = |literal: &str, segment: &str| {
        Reading::Lax.of(segment).eq_ignore_ascii_case(&Reading::Decoded.of(literal))
    };
    if pattern.matches_as(path, decoded) {
        return Some(RuledOut::Reading(OtherReading::Decoded));
    }
    if pattern.matches_as(path, lax) {
        return Some(RuledOut::Reading(OtherReading::Lax));
    }
    let otherwise = match path.strip_suffix('/') {
        Some(without) => without.to_owned(),
        None => format!("{path}/"),
    };
    if pattern.matches_as(&otherwise, lax) {
        return Some(RuledOut::Reading(OtherReading::Slash));
    }
    rule_out_by_segments(pattern, path)
}

/// The one segment that makes the difference; `None` where more than one does.
fn rule_out_by_segments<'t>(pattern: &'t Pattern, path: &str) -> Option<RuledOut<'t>> {
    let (segments, parts): (_, Vec<&str>) = (pattern.segments(), parts(path).collect());
    let is_other = |(segment, part): &(&Segment, &&str)| match segment {
        Segment::Literal(text) => **text != ***part,
        Segment::Param => part.is_empty(),
        Segment::Rest => false,
    };
    let both = || segments.iter().zip(&parts);
    let others = both().filter(is_other).count();
    let goes_on = segments.last() == Some(&Segment::Rest);
    match (segments.len().cmp(&parts.len()), others) {
        (Ordering::Equal, 1) | (Ordering::Less, 1) if segments.len() == parts.len() || goes_on => {
            let at = both().position(|pair| is_other(&pair))?;
            let (wanted, found) = (pattern.segment_text(at), parts.get(at)?.to_string());
            // A single segment that differs says nothing, unless something else is the same.
            let shared = both().any(|pair| matches!(pair.0, Segment::Literal(_)) && !is_other(&pair));
            (shared || is_slip(wanted, &found)).then_some(RuledOut::Segment { number: at + 1, wanted, found })
        }
        (Ordering::Greater, 0) if segments.len() == parts.len() + 1 => {
            Some(RuledOut::PathTooShort { wanted: pattern.segment_text(parts.len()) })
        }
        (Ordering::Less, 0) if segments.len() + 1 == parts.len() => {
            Some(RuledOut::PathTooLong { found: (*parts.last()?).to_owned() })
        }
        _ => None,
    }
}

/// Whether one segment looks like a misspelling of another.
fn is_slip(wanted: &str, found: &str) -> bool {
    // The time grows with the product of the lengths, and nothing this long is a slip.
    found.len() <= 64
        && strsim::damerau_levenshtein(&wanted.to_lowercase(), &found.to_lowercase()) <= 1 + wanted.len() / 4
}

#[cfg(test)]
mod tests {
    use http::{Method, Request};
    use proptest::prelude::*;

    use super::*;
    use crate::policy::request::Limits;
    use crate::policy::route::tests::table;

    fn shown(table: &RouteTable, method: Method, path: &str) -> (String, Vec<String>) {
        let request = Request::builder().method(method).uri(path).header("host", "h").body(()).unwrap();
        let request = CanonicalRequest::parse(request, &Limits::default()).unwrap();
        let Explanation { found, near } = table.explain(&request);
        let found = match found {
            Ok(found) => found.map_or("-", |found| &found.route.id).to_owned(),
            Err(ambiguity) => format!("{ambiguity:?}"),
        };
        (found, near.iter().map(|near| format!("{}: {}", near.rule.route.id, near.why)).collect())
    }

    fn jobs() -> RouteTable {
        table(&[
            ("list", Method::GET, &["/v1/jobs"]),
            ("create", Method::POST, &["/v1/jobs"]),
            ("one", Method::GET, &["/v1/jobs/{id}"]),
            ("audit", Method::GET, &["/v1/jobs/audit"]),
            ("files", Method::GET, &["/files/{*path}"]),
        ])
    }

    #[track_caller]
    fn check(method: Method, path: &str, found: &str, near: &[&str]) {
        let (route, rules) = shown(&jobs(), method, path);
        assert_eq!(
            (&*route, &*rules),
            (found, &*near.iter().map(ToString::to_string).collect::<Vec<_>>()),
            "{path}"
        );
    }

    #[test]
    fn a_route_is_ruled_out_by_the_method() {
        check(
            Method::DELETE,
            "/v1/jobs",
            "-",
            &[
                "list: the route does not take this method",
                "create: the route does not take this method",
                "one: the path ends before \"{id}\"",
                "audit: the path ends before \"audit\"",
            ],
        );
        let (found, near) = shown(&jobs(), Method::HEAD, "/v1/jobs");
        assert_eq!((&*found, &*near[0]), ("list", "create: the route does not take this method"));
    }

    #[test]
    fn a_route_is_hidden_by_a_more_specific_one_with_the_same_method() {
        let (found, near) = shown(&jobs(), Method::GET, "/v1/jobs/audit");
        assert_eq!(
            (&*found, &*near[0]),
            ("audit", "one: /v1/jobs/audit is more specific and has this method too")
        );
        let (found, near) = shown(&jobs(), Method::DELETE, "/v1/jobs/audit");
        assert_eq!(found, "-");
        let method = "the route does not take this method";
        assert_eq!(near[..2], [format!("one: {method}"), format!("audit: {method}")]);
    }

    #[test]
    fn a_more_specific_route_without_the_method_hides_nothing_unless_it_denies_other_methods() {
        let table = table(&[
            ("wide", Method::GET, &["/v1/{*rest}"]),
            ("create", Method::POST, &["/v1/jobs"]),
            ("deny", Method::POST, &["/v1/keys"]),
        ]);
        let method = "the route does not take this method";
        let (found, near) = shown(&table, Method::GET, "/v1/jobs");
        assert_eq!((&*found, &*near[0]), ("wide", &*format!("create: {method}")));
        let (found, near) = shown(&table, Method::GET, "/v1/keys");
        assert_eq!(found, "-");
        assert_eq!(
            near[..2],
            [
                format!("deny: {method}"),
                "wide: /v1/keys is more specific and denies other methods".to_owned()
            ]
        );
    }

    #[test]
    fn a_route_is_ruled_out_by_one_segment() {
        check(Method::GET, "/v2/jobs/1", "-", &["one: segment 1 is \"v2\" and not \"v1\""]);
        check(Method::GET, "/file/a/b", "-", &["files: segment 1 is \"file\" and not \"files\""]);
        check(Method::GET, "/v1/jobs/1/log", "-", &["one: the path goes on with \"log\""]);
    }

    #[test]
    fn an_ambiguous_path_names_its_own_route_and_the_one_of_the_other_reading() {
        let lax = "decoded, in letters of any case, cut off at `;`, `?` or `#`";
        let (found, near) = shown(&jobs(), Method::GET, "/v1/jobs/Audit");
        assert_eq!(found, "Reading(Lax)");
        assert_eq!(
            near[..2],
            [
                format!("one: another reading of the path ({lax}) falls under another rule, or under none"),
                format!("audit: only another reading of the path matches ({lax})"),
            ]
        );
        let (found, near) = shown(&jobs(), Method::GET, "/v1/jobs/a%2Fb");
        assert_eq!(
            (&*found, &*near[0]),
            ("EncodedSlash", "one: no rule allows the encoded slash in the path")
        );
        let slash = "with the slash at its end added or removed";
        let (found, near) = shown(&jobs(), Method::GET, "/v1/jobs/");
        assert_eq!(found, "-");
        assert!(
            near.contains(&format!("list: only another reading of the path matches ({slash})")),
            "{near:?}"
        );
    }

    proptest! {
        /// Judged pattern by pattern, the winner is the one that the tree finds.
        #[test]
        fn an_explanation_agrees_with_the_table(
            rules in proptest::collection::btree_map(
                "(/(a|b|\\{x\\})){1,3}(/\\{\\*r\\})?|/\\{\\*r\\}|/",
                "(deny )?(GET|POST)",
                1..6,
            ),
            path in "(/[abc]){1,4}/?|/",
        ) {
            let ids: Vec<String> = rules.iter().map(|(path, kind)| format!("{kind} {path}")).collect();
            let paths: Vec<&str> = rules.keys().map(String::as_str).collect();
            let rules: Vec<_> = ids.iter().zip(&paths).map(|(id, path)| {
                let method = if id.contains("GET ") { Method::GET } else { Method::POST };
                (&**id, method, std::slice::from_ref(path))
            }).collect();
            let table = table(&rules);
            let request = Request::builder().uri(&path).header("host", "h").body(()).unwrap();
            let request = CanonicalRequest::parse(request, &Limits::default()).unwrap();
            let Explanation { found, near } = table.explain(&request);
            let matching = table.routes().iter().filter(|route| route.patterns[0].matches(&path));
            let winner = matching
                .filter(|route| route.takes(&Method::GET) || route.denies_other_methods)
                .min_by(|a, b| a.patterns[0].compare(&b.patterns[0]))
                .filter(|route| route.takes(&Method::GET))
                .map(|route| &*route.id);
            match found {
                Ok(found) => prop_assert_eq!(found.map(|found| &*found.route.id), winner),
                Err(_) => prop_assert!(
                    winner.is_none_or(|winner| near.iter().any(|near| &*near.rule.route.id == winner))
                ),
            }
            prop_assert!(near.iter().all(|near| Some(&*near.rule.route.id) != winner || found.is_err()));
        }
    }
}
