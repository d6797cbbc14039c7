//! The search for a route, and the list of what a wider rule takes, against a naive search that judges every pattern
//! alone.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use http::{Method, Request};
use proptest::prelude::*;

use super::pattern::Pattern;
use super::request::{CanonicalRequest, Limits};
use super::route::tests::route;
use super::route::{Route, RouteTable};
use super::wider::left_to_wider;

/// Segments of paths: as they are sent, canonical, decoded, and as the least strict upstream reads them.
const SEGMENTS: [[&str; 4]; 14] = [
    ["a", "a", "a", "a"],
    ["A", "A", "A", "a"],
    ["%61", "a", "a", "a"],
    ["b", "b", "b", "b"],
    ["B", "B", "B", "b"],
    ["c:d", "c:d", "c:d", "c:d"],
    ["c%3Ad", "c%3Ad", "c:d", "c:d"],
    ["C:d", "C:d", "C:d", "c:d"],
    ["a;x", "a;x", "a;x", "a"],
    ["A%3bx", "A%3Bx", "A;x", "a"],
    ["B%3F", "B%3F", "B?", "b"],
    ["z", "z", "z", "z"],
    ["Z%23", "Z%23", "Z#", "z"],
    [";x", ";x", ";x", ""],
];
/// Literals of patterns. No two of them differ in case or encoding alone.
const LITERALS: [&str; 3] = ["a", "B", "c:d"];
const METHODS: [Method; 4] = [Method::GET, Method::HEAD, Method::POST, Method::DELETE];

/// A path: numbers of segments, and whether a slash ends it.
type Path = (Vec<usize>, bool);

fn spell((segments, slash): &Path, form: usize) -> Vec<String> {
    let end = slash.then(String::new);
    segments.iter().map(|number| SEGMENTS[*number][form].to_owned()).chain(end).collect()
}

/// The pattern's segments; none for the root.
fn segments(pattern: &Pattern) -> Vec<&str> {
    if pattern.as_str() == "/" { Vec::new() } else { pattern.as_str().split('/').skip(1).collect() }
}

fn is_rest(segment: &str) -> bool {
    segment.starts_with("{*")
}

fn rank(segment: &str) -> u8 {
    if is_rest(segment) { 2 } else { u8::from(segment.starts_with('{')) }
}

fn matches(pattern: &Pattern, path: &[String], is_same: impl Fn(&str, &str) -> bool) -> bool {
    let segments = segments(pattern);
    if let Some((last, before)) = segments.split_last()
        && is_rest(last)
    {
        let begins = || before.iter().zip(path).all(|(segment, part)| matches_one(segment, part, &is_same));
        return if path.is_empty() { before.is_empty() } else { path.len() > before.len() && begins() };
    }
    segments.len() == path.len()
        && segments.iter().zip(path).all(|(segment, part)| matches_one(segment, part, &is_same))
}

fn matches_one(segment: &str, part: &str, is_same: impl Fn(&str, &str) -> bool) -> bool {
    if rank(segment) == 1 { !part.is_empty() } else { is_same(segment, part) }
}

fn compare(one: &Pattern, other: &Pattern) -> Ordering {
    let ranks = |pattern| segments(pattern).into_iter().map(rank).collect::<Vec<_>>();
    ranks(one).cmp(&ranks(other))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Route(usize),
    /// A rule denies other methods.
    Denied,
    /// There is no rule.
    Nothing,
}

/// The most specific pattern that has the method, unless a more specific one denies it.
fn search(routes: &[Route], method: &Method, is_matched: impl Fn(&Pattern) -> bool) -> Expected {
    let mut matched: Vec<(usize, &Pattern)> = routes
        .iter()
        .enumerate()
        .flat_map(|(number, route)| route.patterns.iter().map(move |pattern| (number, pattern)))
        .filter(|(_, pattern)| is_matched(pattern))
        .collect();
    matched.sort_by(|(_, one), (_, other)| compare(one, other));
    for group in matched.chunk_by(|(_, one), (_, other)| compare(one, other).is_eq()) {
        let has = |method: &Method| group.iter().find(|(number, _)| routes[*number].methods.contains(method));
        let head_as_get = if *method == Method::HEAD { has(&Method::GET) } else { None };
        if let Some((number, _)) = has(method).or(head_as_get) {
            return Expected::Route(*number);
        }
        if group.iter().any(|(number, _)| routes[*number].denies_other_methods) {
            return Expected::Denied;
        }
    }
    Expected::Nothing
}

/// `None`: refused because of another reading.
fn expect(routes: &[Route], method: &Method, path: &Path) -> Option<Expected> {
    let [canonical, decoded, lax] = [1, 2, 3].map(|form| spell(path, form));
    let same_in_any_case = |literal: &str, part: &str| literal.eq_ignore_ascii_case(part);
    let found = search(routes, method, |pattern| matches(pattern, &canonical, |a, b| a == b));
    if !matches!(found, Expected::Route(_)) {
        return Some(Expected::Nothing);
    }
    let vanishes = canonical.iter().zip(&lax).any(|(whole, cut)| !whole.is_empty() && cut.is_empty());
    let decoded = search(routes, method, |pattern| matches(pattern, &decoded, |a, b| a == b));
    let in_lax = search(routes, method, |pattern| matches(pattern, &lax, same_in_any_case));
    if vanishes || decoded != found || in_lax != found {
        return None;
    }
    let slash = match lax.split_last() {
        None => found,
        Some((last, before)) if last.is_empty() => {
            search(routes, method, |pattern| matches(pattern, before, same_in_any_case))
        }
        Some(_) => {
            let slashed: Vec<String> = lax.iter().cloned().chain([String::new()]).collect();
            search(routes, method, |pattern| {
                // A rest that begins further up matches with and without the slash.
                segments(pattern).len() == slashed.len() && matches(pattern, &slashed, same_in_any_case)
            })
        }
    };
    (slash == Expected::Nothing || slash == found).then_some(found)
}

fn patterns() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        4 => proptest::sample::select(&LITERALS[..]).prop_map(str::to_owned),
        2 => Just("{x}".to_owned()),
    ];
    let end = proptest::sample::select(&["", "", "", "/", "/{*r}", "/{*r}"][..]);
    (proptest::collection::vec(segment, 0..4), end).prop_map(|(segments, end)| {
        let text: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        if text.is_empty() && end.is_empty() { "/".to_owned() } else { text + end }
    })
}

/// Rules of one method each, whose patterns and methods are distinct.
fn policies() -> impl Strategy<Value = Vec<Route>> {
    let rules =
        proptest::collection::btree_map((patterns(), 0..METHODS.len()), prop::bool::weighted(0.15), 1..9);
    rules.prop_map(|rules: BTreeMap<(String, usize), bool>| {
        let rule = |((path, method), denies): (&(String, usize), &bool)| {
            // HEAD apart from GET on one path would be a conflict.
            if METHODS[*method] == Method::HEAD && rules.contains_key(&(path.clone(), 0)) {
                return None;
            }
            let mut rule = route(&format!("{} {path}", METHODS[*method]), METHODS[*method].clone(), &[path]);
            rule.denies_other_methods = *denies;
            Some(rule)
        };
        rules.iter().filter_map(rule).collect()
    })
}

fn paths() -> impl Strategy<Value = Path> {
    (proptest::collection::vec(0..SEGMENTS.len(), 0..5), prop::bool::weighted(0.2))
        .prop_map(|(segments, slash)| (segments.clone(), slash && !segments.is_empty()))
}

fn request(method: &Method, target: &str) -> CanonicalRequest<()> {
    let request = Request::builder().method(method).uri(target).header("host", "h").body(()).unwrap();
    CanonicalRequest::parse(request, &Limits::default()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// A request goes on only if all readings lead to the rule that a naive search finds.
    #[test]
    fn the_tree_finds_what_a_naive_search_finds(
        routes in policies(),
        targets in proptest::collection::vec((paths(), 0..METHODS.len()), 8),
    ) {
        let table = RouteTable::build(routes.clone()).unwrap();
        for (path, method) in targets {
            let (method, target) = (&METHODS[method], format!("/{}", spell(&path, 0).join("/")));
            let found = match table.find(&request(method, &target)) {
                Ok(Some(found)) => Some(Expected::Route(found.number)),
                Ok(None) => Some(Expected::Nothing),
                Err(_) => None,
            };
            prop_assert_eq!(found, expect(&routes, method, &path), "{} {}", method, target);
        }
    }

    /// Every request that falls under a wider rule than the most specific of its path is in the list.
    #[test]
    fn what_a_wider_rule_takes_is_listed(
        routes in policies(),
        targets in proptest::collection::vec(proptest::collection::vec(0..SEGMENTS.len(), 0..5), 8),
    ) {
        let (left, more) = left_to_wider(&routes, 1_000);
        prop_assert!(!more);
        for segments in targets {
            let path = spell(&(segments, false), 1);
            let is_matched = |pattern: &Pattern| matches(pattern, &path, |a, b| a == b);
            for method in &METHODS {
                let Expected::Route(wide) = search(&routes, method, is_matched) else { continue };
                let matched = routes.iter().filter(|route| is_matched(&route.patterns[0]));
                let narrow = matched.min_by(|a, b| compare(&a.patterns[0], &b.patterns[0])).unwrap();
                let wide = &routes[wide];
                let is_listed = left.iter().any(|left| {
                    left.narrow.patterns[0].segments() == narrow.patterns[0].segments()
                        && left.wide.id == wide.id
                        && left.methods.iter().any(|listed| {
                            listed == method || *listed == Method::GET && *method == Method::HEAD
                        })
                        && (left.further_paths > 0 || left.paths.iter().any(is_matched))
                });
                let is_wider = !compare(&narrow.patterns[0], &wide.patterns[0]).is_eq();
                prop_assert_eq!(is_listed, is_wider, "{} /{}", method, path.join("/"));
            }
        }
    }
}

#[test]
fn the_list_names_two_rules_once_and_leaves_out_what_is_denied_or_taken_in_between() {
    let mut all = route("all", Method::GET, &["/{*rest}"]);
    all.methods.push(Method::DELETE);
    let routes = vec![
        all,
        route("things", Method::GET, &["/things/{id}"]),
        route("create", Method::POST, &["/a", "/b", "/c", "/d", "/e", "/things/new"]),
        route("deny", Method::POST, &["/denied"]),
    ];
    let shown = |most| {
        let (list, more) = left_to_wider(&routes, most);
        (list.iter().map(ToString::to_string).collect::<Vec<_>>(), more)
    };
    let line = |requests: &str, wide: &str, narrow: &str| {
        format!(
            "{requests}: taken by the wider rule {wide} (policy.toml:1), because {narrow} (policy.toml:1) does not have \
             the method; other_methods = \"deny\" in {narrow} refuses it"
        )
    };
    let expected = vec![
        line("DELETE /things/{id}", "all", "things"),
        line("GET DELETE /a /b /c and 2 more", "all", "create"),
        line("DELETE /things/new", "all", "create"),
        line("GET /things/new", "things", "create"),
    ];
    assert_eq!(shown(4), (expected.clone(), false));
    assert_eq!(shown(3), (expected[..3].to_vec(), true));
    assert!(RouteTable::build(routes).is_ok());
}
