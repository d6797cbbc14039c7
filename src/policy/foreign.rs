//! Readings of a path that some routers have and others do not.
//!
//! Behind the rule `/v1/{*rest}`, Rails takes `/v1/admin.json` for `/v1/admin`, and an nginx that forwards `$uri` makes
//! `/v1/admin?/x` of `/v1/admin%3F/x`. Most paths with a dot or an encoded blank are names of files, so these readings
//! count only where the rule that was found has a parameter or a rest in the place that is read otherwise, and where
//! another rule claims the result. Then the sender must satisfy that rule too: a [`Match`](super::route::Match) names it.

use std::fmt;

use super::access::Access;
use super::path::Shape;
use super::pattern::{Pattern, Segment, parts};
use super::reading::{Ambiguity, OtherReading};
use super::rule::Route;
use super::target::Target;

/// The rules beside the one that was found which a request can fall under. A request with more is refused.
pub const MOST_OTHERS: usize = 2;
/// The readings of a path that are looked at; a path that has more is refused. The name of a file seldom has more than
/// three.
const MOST_READINGS: usize = 32;
/// The rules of one list that are shown.
const SHOWN: usize = 24;

pub(super) const REFUSED: Ambiguity = Ambiguity::Reading(OtherReading::Foreign);

/// The rules that other readings of a path fall under, each with its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others<'t>([Option<(usize, &'t Route)>; MOST_OTHERS]);

impl<'t> Others<'t> {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }

    pub(super) fn rules(self) -> impl Iterator<Item = &'t Route> {
        self.0.into_iter().flatten().map(|(_, route)| route)
    }

    pub(super) fn numbers(&self) -> [Option<usize>; MOST_OTHERS] {
        self.0.map(|other| other.map(|(number, _)| number))
    }

    /// # Errors
    /// When there are too many.
    pub(super) fn add(&mut self, number: usize, route: &'t Route) -> Result<(), Ambiguity> {
        let is_free = |place: &&mut Option<(usize, _)>| place.is_none_or(|(other, _)| other == number);
        *self.0.iter_mut().find(is_free).ok_or(REFUSED)? = Some((number, route));
        Ok(())
    }
}

/// For each rule, whether another one could claim a reading of its paths. Where none can, no path is read otherwise.
pub(super) fn with_rivals(routes: &[Route]) -> Vec<bool> {
    let has_rival = |(number, route): (usize, &Route)| {
        let others = || routes.iter().enumerate().filter(move |(other, _)| *other != number);
        reads_otherwise(route) && others().any(|(_, other)| is_rival(route, other))
    };
    routes.iter().enumerate().map(has_rival).collect()
}

fn reads_otherwise(route: &Route) -> bool {
    matches!(route.target, Target::Upstream(_)) && !route.literal
}

fn is_rival(route: &Route, other: &Route) -> bool {
    let shares_method = other.denies_other_methods
        || other.methods.iter().any(|method| route.takes(method))
        || route.methods.iter().any(|method| other.takes(method));
    shares_method && pairs(route, other).any(|(one, other)| one.may_be_read_as(other))
}

fn pairs<'r>(one: &'r Route, other: &'r Route) -> impl Iterator<Item = (&'r Pattern, &'r Pattern)> {
    one.patterns.iter().flat_map(|one| other.patterns.iter().map(move |other| (one, other)))
}

/// A segment of a reading. Its text is a part of the canonical path, so that no escape is decoded twice.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part<'p> {
    text: &'p str,
    /// Whether the rule has a parameter or a rest in its place.
    is_open: bool,
}

/// A step from one reading to another; `None` where it changes nothing.
type Step = for<'p> fn(&[Part<'p>]) -> Option<Vec<Part<'p>>>;

/// The readings of a canonical path other than the path itself, each a canonical path; `None` if there are too many.
///
/// Routers differ in what they do, so each step may be taken or left out: nginx may decode a path for a Rails behind it.
pub(super) fn readings(path: &str, pattern: &Pattern, shape: Shape, slashes: bool) -> Option<Vec<String>> {
    let is_open = |number: usize| !matches!(pattern.segments().get(number), Some(Segment::Literal(_)));
    let own: Vec<Part<'_>> =
        parts(path).enumerate().map(|(number, text)| Part { text, is_open: is_open(number) }).collect();
    let mut all = vec![own];
    if shape.escapes {
        take(&mut all, &[cut_path]);
        if slashes && shape.encoded_slash {
            take(&mut all, &[split_at_slashes, split_at_both_slashes]);
        }
    }
    if shape.cuts {
        take(&mut all, &[cut_segments]);
    }
    take(&mut all, &[trim_last, trim_all]);
    // At each dot: Rails takes what follows the last one, a `.:format` of Sinatra all that follows the first.
    let mut before = 0;
    while before < all.len() && all.len() <= MOST_READINGS {
        before = all.len();
        take(&mut all, &[drop_format]);
    }
    take(&mut all, &[trim_last]);
    (all.len() <= MOST_READINGS).then(|| all[1..].iter().map(|parts| join(parts)).collect())
}

/// Adds what each of the steps makes of the readings that there are. Adds no more than one too many.
fn take<'p>(all: &mut Vec<Vec<Part<'p>>>, steps: &[Step]) {
    let mut further = Vec::new();
    for reading in all.iter() {
        for changed in steps.iter().filter_map(|step| step(reading)).map(without_empty) {
            if !all.contains(&changed) && !further.contains(&changed) {
                further.push(changed);
            }
        }
    }
    all.append(&mut further);
    all.truncate(MOST_READINGS + 1);
}

/// Without empty segments, as servers merge slashes. An empty one at the end is a slash there, and stays.
fn without_empty(mut parts: Vec<Part<'_>>) -> Vec<Part<'_>> {
    let ends_with_slash = parts.last().is_some_and(|part| part.text.is_empty());
    parts.retain(|part| !part.text.is_empty());
    if ends_with_slash {
        parts.push(Part { text: "", is_open: true });
    }
    parts
}

fn join(parts: &[Part<'_>]) -> String {
    let mut path = String::new();
    for part in parts {
        path.push('/');
        path.push_str(part.text);
    }
    if path.is_empty() { "/".to_owned() } else { path }
}

/// Ends the whole path at a decoded `?` or `#`, as behind a proxy that forwards the decoded path.
fn cut_path<'p>(parts: &[Part<'p>]) -> Option<Vec<Part<'p>>> {
    let (at, text) = parts.iter().enumerate().find_map(|(at, part)| {
        let end = first_of(part.text, &["%3F", "%23"])?;
        Some((at, &part.text[..end]))
    })?;
    let mut cut = parts[..=at].to_vec();
    cut[at].text = text;
    Some(cut)
}

fn split_at_slashes<'p>(parts: &[Part<'p>]) -> Option<Vec<Part<'p>>> {
    split(parts, &["%2F"])
}

fn split_at_both_slashes<'p>(parts: &[Part<'p>]) -> Option<Vec<Part<'p>>> {
    split(parts, &["%2F", "%5C"])
}

fn split<'p>(parts: &[Part<'p>], slashes: &[&str]) -> Option<Vec<Part<'p>>> {
    let mut split = Vec::with_capacity(parts.len() + 1);
    for part in parts {
        let mut rest = *part;
        while let Some(end) = first_of(rest.text, slashes) {
            split.push(Part { text: &rest.text[..end], ..rest });
            rest.text = &rest.text[end + 3..];
        }
        split.push(rest);
    }
    (split.len() > parts.len()).then_some(split)
}

/// Ends each segment where some servers read parameters, or a query once it is decoded.
fn cut_segments<'p>(parts: &[Part<'p>]) -> Option<Vec<Part<'p>>> {
    change(parts, |text| first_of(text, &[";", "%3B", "%3F", "%23"]).map_or(text, |end| &text[..end]))
}

fn trim_last<'p>(parts: &[Part<'p>]) -> Option<Vec<Part<'p>>> {
    change_last(parts, trim)
}

fn trim_all<'p>(parts: &[Part<'p>]) -> Option<Vec<Part<'p>>> {
    change(parts, trim)
}

/// Without blanks and dots at the end, as file systems of Windows and servers behind them read a name.
fn trim(mut text: &str) -> &str {
    while let Some(shorter) = text.strip_suffix('.').or_else(|| text.strip_suffix("%20")) {
        text = shorter;
    }
    text
}

/// Without what follows the last dot of the last segment, as Rails and others read the format of the answer. A name that
/// begins with its only dot has none.
fn drop_format<'p>(parts: &[Part<'p>]) -> Option<Vec<Part<'p>>> {
    change_last(parts, |text| text.rfind('.').filter(|at| *at > 0).map_or(text, |at| &text[..at]))
}

fn change<'p>(parts: &[Part<'p>], by: impl Fn(&'p str) -> &'p str) -> Option<Vec<Part<'p>>> {
    let changed =
        |part: &Part<'p>| Part { text: if part.is_open { by(part.text) } else { part.text }, ..*part };
    let all: Vec<Part<'p>> = parts.iter().map(changed).collect();
    (all != parts).then_some(all)
}

/// As [`change`], for the last segment that is not the slash at the end.
fn change_last<'p>(parts: &[Part<'p>], by: impl Fn(&'p str) -> &'p str) -> Option<Vec<Part<'p>>> {
    let at = parts.iter().rposition(|part| !part.text.is_empty())?;
    let text = by(parts[at].text);
    if !parts[at].is_open || text.len() == parts[at].text.len() {
        return None;
    }
    let mut changed = parts.to_vec();
    changed[at].text = text;
    Some(changed)
}

/// Where the first of these stands in a text.
fn first_of(text: &str, wanted: &[&str]) -> Option<usize> {
    wanted.iter().filter_map(|wanted| text.find(wanted)).min()
}

/// A rule with paths that some routers read as those of narrower rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadAsNarrow<'r> {
    /// The rule that such paths fall under.
    pub wide: &'r Route,
    /// The narrower rules whose access is needed too.
    pub both: Vec<&'r Route>,
    /// Those that have another target, so that such a path is refused.
    pub refused: Vec<&'r Route>,
}

impl fmt::Display for ReadAsNarrow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wide, both, refused } = self;
        write!(
            f,
            "{} ({}): some routers read paths of it as those of other rules, as with \".json\" or \"%20\" at the end; \
             literal = true in {} if its upstream reads paths exactly",
            wide.id, wide.place, wide.id
        )?;
        for (what, narrow) in
            [("needs the access of both rules", both), ("refused, since the targets differ", refused)]
        {
            if !narrow.is_empty() {
                let shown: Vec<&str> = narrow.iter().take(SHOWN).map(|narrow| &*narrow.id).collect();
                write!(f, "\n           {what}: {}", shown.join(", "))?;
            }
            if narrow.len() > SHOWN {
                write!(f, " and {} more", narrow.len() - SHOWN)?;
            }
        }
        Ok(())
    }
}

/// The rules with paths that some routers read as those of narrower rules, in the order of the file. Leaves out narrower rules
/// that let in everybody whom the wider rule lets in. There are `most` entries at most; the flag tells whether there are
/// more.
#[must_use]
pub fn read_as_narrow(routes: &[Route], most: usize) -> (Vec<ReadAsNarrow<'_>>, bool) {
    let mut entries = Vec::new();
    for wide in routes.iter().filter(|wide| reads_otherwise(wide)) {
        let (both, refused): (Vec<&Route>, _) = routes
            .iter()
            .filter(|narrow| !std::ptr::eq(wide, *narrow) && is_rival(wide, narrow))
            .filter(|narrow| !lets_in_all(wide, narrow))
            .filter(|narrow| pairs(wide, narrow).any(|(of, path)| has_literal_within(of, wide, path)))
            .partition(|narrow| narrow.target == wide.target);
        if both.is_empty() && refused.is_empty() {
            continue;
        }
        if entries.len() == most {
            return (entries, true);
        }
        entries.push(ReadAsNarrow { wide, both, refused });
    }
    (entries, false)
}

/// Whether the narrow pattern has a literal where the wide one has a parameter or a rest.
fn has_literal_within(wide: &Pattern, rule: &Route, narrow: &Pattern) -> bool {
    let reaches = |length: usize| {
        length <= wide.segments().len()
            || rule.encoded_slash
            || wide.segments().last() == Some(&Segment::Rest)
    };
    let is_open = |number: usize| !matches!(wide.segments().get(number), Some(Segment::Literal(_)));
    let is_literal = |segment: &Segment| matches!(segment, Segment::Literal(text) if !text.is_empty());
    wide.may_be_read_as(narrow)
        && reaches(narrow.segments().len())
        && narrow
            .segments()
            .iter()
            .enumerate()
            .any(|(number, segment)| is_literal(segment) && is_open(number))
}

/// Whether everybody who may use one rule may use the other, and reaches the same target.
fn lets_in_all(wide: &Route, narrow: &Route) -> bool {
    let has_access = match (&wide.access, &narrow.access) {
        (_, Access::Public { .. }) | (Access::AnyKey | Access::Scopes(_), Access::AnyKey) => true,
        (Access::Scopes(wide), Access::Scopes(narrow)) => {
            let has_any = narrow.any.is_none() || narrow.any == wide.any || narrow.check(&wide.all).is_ok();
            wide.all.first_missing(&narrow.all).is_none() && has_any
        }
        (Access::Public { .. } | Access::AnyKey, _) => false,
    };
    has_access && wide.target == narrow.target
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::path::canonicalise;

    fn read(path: &str, pattern: &str, slashes: bool) -> Option<Vec<String>> {
        let (canonical, shape) = canonicalise(path).unwrap();
        readings(&canonical, &Pattern::parse(pattern).unwrap(), shape, slashes)
    }

    #[test]
    fn a_path_is_read_as_routers_read_it_where_the_pattern_has_no_literal() {
        for (path, pattern, expected) in [
            ("/v1/a", "/v1/{*r}", &[][..]),
            ("/v1.2/a", "/v1.2/{*r}", &[]),
            ("/v1/.well-known", "/v1/{*r}", &[]),
            ("/v1/a.json", "/v1/{*r}", &["/v1/a"]),
            ("/v1/a.json", "/v1/a.json", &[]),
            ("/v1/a.json/", "/v1/{*r}", &["/v1/a/"]),
            ("/v1/a%2ejson", "/v1/{*r}", &["/v1/a"]),
            ("/v1/a.b.c", "/v1/{*r}", &["/v1/a.b", "/v1/a"]),
            ("/v1/a.", "/v1/{x}", &["/v1/a"]),
            ("/v1/a%20./b%20", "/v1/{x}/{y}", &["/v1/a%20./b", "/v1/a/b"]),
            ("/v1/a%20.json", "/v1/{x}", &["/v1/a%20", "/v1/a"]),
            ("/v1/%20/a", "/v1/{*r}", &["/v1/a"]),
            ("/v1/...", "/v1/{*r}", &["/v1/", "/v1/..", "/v1/."]),
            ("/v1/x%3F/y", "/v1/{x}/y", &["/v1/x", "/v1/x/y"]),
            ("/v1/x.json%23y", "/v1/{x}", &["/v1/x.json", "/v1/x"]),
            ("/v1/x.json;v=1.2", "/v1/{x}", &["/v1/x.json", "/v1/x.json;v=1", "/v1/x"]),
            ("/v1/50%25.x", "/v1/{x}", &["/v1/50%25"]),
            ("/%20", "/{*r}", &["/"]),
            ("/", "/{*r}", &[]),
        ] {
            assert_eq!(read(path, pattern, false).unwrap(), expected, "{path}");
        }
        let split = read("/v1/a%2F%2Fb%5Cc/d.e", "/v1/{*r}", true).unwrap();
        assert_eq!(split[..2], ["/v1/a/b%5Cc/d.e", "/v1/a/b/c/d.e"]);
        assert_eq!(read("/v1/a%2Fb", "/v1/{*r}", false).unwrap(), [""; 0]);
    }

    #[test]
    fn a_path_of_all_kinds_at_once_has_too_many_readings() {
        assert_eq!(read("/v1/a%20%2Fb%5Cc.%20/d;x%20/e.f%20%3F/g.h;i", "/v1/{*r}", true), None);
    }
}
