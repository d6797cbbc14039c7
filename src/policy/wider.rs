//! Requests that a narrow pattern leaves to a wider one, because it has no rule for their method.
//!
//! With `GET /api/{*rest}` and `POST /api/orders`, the wide rule takes `GET /api/orders`. Perhaps its author means that,
//! and perhaps the narrow rule was meant to be all that there is. So these requests are listed for the operator.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;

use http::Method;

use super::pattern::Pattern;
use super::rule::Route;
use super::tree::Claims;

/// The paths of one entry that are shown.
const PATHS: usize = 3;

/// Requests that the most specific pattern of their path leaves to a wider one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftToWider<'r> {
    /// The rule of the most specific pattern; the first of them in the file.
    pub narrow: &'r Route,
    /// The rule that takes the requests.
    pub wide: &'r Route,
    pub methods: Vec<Method>,
    /// The first of their paths, as patterns. Never empty.
    pub paths: Vec<Pattern>,
    /// The number of paths that are not among them.
    pub further_paths: usize,
}

impl fmt::Display for LeftToWider<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { narrow, wide, .. } = self;
        for method in &self.methods {
            write!(f, "{method} ")?;
        }
        let paths: Vec<&str> = self.paths.iter().map(Pattern::as_str).collect();
        f.write_str(&paths.join(" "))?;
        if self.further_paths > 0 {
            write!(f, " and {} more", self.further_paths)?;
        }
        write!(
            f,
            ": taken by the wider rule {} ({}), because {} ({}) does not have the method; other_methods = \"deny\" in {} \
             refuses it",
            wide.id, wide.place, narrow.id, narrow.place, narrow.id
        )
    }
}

/// The requests that fall under a wider rule although a narrower pattern matches their path, in the order of the file.
/// Each entry is for two rules. There are `most` entries at most; the flag tells whether there are more.
///
/// Compares every pattern with every other, so it is made for people and not for the request path.
#[must_use]
pub fn left_to_wider(routes: &[Route], most: usize) -> (Vec<LeftToWider<'_>>, bool) {
    let (all, mut entries) = (distinct(routes), Vec::new());
    for narrow in all.iter().filter(|rules| !rules.claims.ends_search) {
        for wide in all.iter().filter(|wide| narrow.is_narrower_than(wide)) {
            let Some((paths, takers)) = left(narrow, wide, &all) else { continue };
            for (number, methods) in takers {
                let left = LeftToWider {
                    narrow: &routes[narrow.first],
                    wide: &routes[number],
                    methods,
                    paths: vec![paths.clone()],
                    further_paths: 0,
                };
                add(&mut entries, left);
            }
            if entries.len() > most {
                entries.truncate(most);
                return (entries, true);
            }
        }
    }
    (entries, false)
}

fn add<'r>(entries: &mut Vec<LeftToWider<'r>>, left: LeftToWider<'r>) {
    let same = |entry: &&mut LeftToWider<'r>| {
        (&entry.narrow.id, &entry.wide.id, &entry.methods) == (&left.narrow.id, &left.wide.id, &left.methods)
    };
    match entries.iter_mut().find(same) {
        Some(entry) if entry.paths.len() < PATHS => entry.paths.extend(left.paths),
        Some(entry) => entry.further_paths += 1,
        None => entries.push(left),
    }
}

/// The patterns at which a search may end, because no wider pattern takes another method.
pub(super) fn without_wider(routes: &[Route]) -> Vec<&Pattern> {
    let all = distinct(routes);
    let ends = |narrow: &&Rules<'_>| !all.iter().any(|wide| narrow.may_leave_to(wide));
    all.iter().filter(ends).map(|rules| rules.pattern).collect()
}

/// The rules of one pattern.
struct Rules<'r> {
    pattern: &'r Pattern,
    /// The number of the first of them.
    first: usize,
    claims: Claims,
}

impl Rules<'_> {
    /// Whether its pattern wins where both match a path.
    fn is_narrower_than(&self, other: &Self) -> bool {
        self.pattern.compare(other.pattern) == Ordering::Less
    }

    /// Whether a search that came here and did not find the method could find it there, or that it is denied there, in
    /// any reading of a path.
    fn may_leave_to(&self, other: &Self) -> bool {
        let mut methods = other.claims.by_method.iter();
        let has_more = other.claims.denies || methods.any(|(method, _)| self.claims.taker(method).is_none());
        if !has_more || !self.pattern.overlaps_in_any_reading(other.pattern) {
            return false;
        }
        // Where their literals are only alike, either may be tried after the other.
        let are_ordered = self.pattern.meet(other.pattern).is_some();
        !(are_ordered && other.is_narrower_than(self))
    }
}

/// All patterns, each with its rules. Of the claims, `ends_search` is set where a rule denies other methods.
fn distinct(routes: &[Route]) -> Vec<Rules<'_>> {
    let (mut all, mut numbers) = (Vec::<Rules<'_>>::new(), HashMap::new());
    for (number, route) in routes.iter().enumerate() {
        for pattern in &route.patterns {
            let at = *numbers.entry(pattern.segments()).or_insert(all.len());
            if at == all.len() {
                all.push(Rules { pattern, first: number, claims: Claims::default() });
            }
            all[at].claims.add(route, number);
        }
    }
    all
}

/// Numbers of routes, each with methods that it takes.
type Takers = Vec<(usize, Vec<Method>)>;

/// The paths that both patterns match, and the routes of the wide one that take them.
fn left(narrow: &Rules<'_>, wide: &Rules<'_>, all: &[Rules<'_>]) -> Option<(Pattern, Takers)> {
    let more = || wide.claims.by_method.iter().filter(|(method, _)| narrow.claims.taker(method).is_none());
    more().next()?;
    let paths = narrow.pattern.meet(wide.pattern)?;
    let covering: Vec<&Rules<'_>> = all.iter().filter(|rules| rules.pattern.covers(&paths)).collect();
    if covering.iter().any(|rules| rules.is_narrower_than(narrow)) {
        // The narrow pattern is the most specific one of none of these paths.
        return None;
    }
    let is_between = |rules: &Rules<'_>| narrow.is_narrower_than(rules) && rules.is_narrower_than(wide);
    let between: Vec<&Claims> =
        covering.iter().filter(|rules| is_between(rules)).map(|rules| &rules.claims).collect();
    let mut takers = Takers::new();
    for (method, number) in more() {
        if between.iter().any(|claims| claims.ends_search || claims.taker(method).is_some()) {
            continue;
        }
        match takers.iter_mut().find(|(route, _)| route == number) {
            Some((_, methods)) => methods.push(method.clone()),
            None => takers.push((*number, vec![method.clone()])),
        }
    }
    Some((paths, takers))
}
