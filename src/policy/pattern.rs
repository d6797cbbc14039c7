//! Path patterns, as a policy writes them.

use std::cmp::Ordering;
use std::fmt;

use thiserror::Error;

use super::path::decode;
use super::spelling;

/// A path pattern: literal segments, `{name}` for one segment, `{*name}` at the end for everything beneath.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Box<str>,
    segments: Vec<Segment>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Segment {
    Literal(Box<str>),
    Param,
    Rest,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidPattern {
    #[error("a path starts with a slash{}", write_it_as(.0))]
    NoSlash(Option<String>),
    #[error(
        "the segment {segment:?} has two readings{}: a path has no empty or dot segments, no needless percent-encoding and no `;`",
        write_it_as(.advice)
    )]
    NotCanonical { segment: String, advice: Option<String> },
    #[error("the segment {segment:?} is no parameter{}: {}", write_it_as(.advice), SYNTAX)]
    Parameter { segment: String, advice: Option<String> },
    #[error("a rest parameter `{{*name}}` stands last")]
    RestNotLast,
}

const SYNTAX: &str = "{id} is one whole segment, {*rest} at the end is everything beneath";

/// The advice with the whole path, where there is a path that could be meant.
fn write_it_as(path: &Option<String>) -> String {
    path.as_ref().map_or_else(String::new, |path| format!("; write {path:?}"))
}

impl Pattern {
    /// # Errors
    /// [`InvalidPattern`] says what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let advice = |path: &str| spelling::of_path(path).filter(|path| Segment::parse_all(path).is_ok());
        match Segment::parse_all(text) {
            Ok(segments) => Ok(Self { text: text.into(), segments }),
            Err(Wrong::NoSlash) => Err(InvalidPattern::NoSlash(advice(&format!("/{text}")))),
            Err(Wrong::RestNotLast) => Err(InvalidPattern::RestNotLast),
            Err(Wrong::Parameter(segment)) => {
                Err(InvalidPattern::Parameter { segment: segment.to_owned(), advice: advice(text) })
            }
            Err(Wrong::NotCanonical(segment)) => {
                Err(InvalidPattern::NotCanonical { segment: segment.to_owned(), advice: advice(text) })
            }
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The text of the segment with this number, counted from 0.
    pub(super) fn segment_text(&self, number: usize) -> &str {
        self.text.split('/').nth(number + 1).unwrap_or_default()
    }

    /// Whether a canonical path matches.
    pub(super) fn matches(&self, path: &str) -> bool {
        self.matches_as(path, |literal, segment| literal == segment)
    }

    /// Whether a canonical path with so many slashes may match.
    pub(super) fn may_have(&self, slashes: usize) -> bool {
        let segments = self.segments.len();
        segments == slashes || segments == 0 && slashes == 1 || self.segments.last() == Some(&Segment::Rest)
    }

    /// Whether a path matches where `is_same` tells which segments equal which literals.
    pub(super) fn matches_as(&self, path: &str, is_same: impl Fn(&str, &str) -> bool) -> bool {
        let mut parts = parts(path);
        for segment in &self.segments {
            let Some(part) = parts.next() else {
                // The root ends with a slash already, so whatever lies beneath it begins there.
                return *segment == Segment::Rest && path == "/";
            };
            match segment {
                Segment::Literal(text) if is_same(text, part) => {}
                Segment::Param if !part.is_empty() => {}
                Segment::Rest => return true,
                Segment::Literal(_) | Segment::Param => return false,
            }
        }
        parts.next().is_none()
    }

    /// Which of two patterns that match the same path is the more specific: less means more specific.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        let rank = |segment: &Segment| match segment {
            Segment::Literal(_) => 0,
            Segment::Param => 1,
            Segment::Rest => 2,
        };
        self.segments.iter().map(rank).cmp(other.segments.iter().map(rank))
    }

    /// Whether every path that `other` matches is matched by this pattern too.
    pub(super) fn covers(&self, other: &Self) -> bool {
        for (number, segment) in self.segments.iter().enumerate() {
            let Some(part) = other.segments.get(number) else {
                return *segment == Segment::Rest && number == 0;
            };
            let covered = match (segment, part) {
                (Segment::Rest, _) => return true,
                (Segment::Param, Segment::Literal(text)) => !text.is_empty(),
                (Segment::Literal(_) | Segment::Param, _) => segment == part,
            };
            if !covered {
                return false;
            }
        }
        self.segments.len() == other.segments.len()
    }

    /// The paths that both patterns match, as a pattern; `None` if there are none.
    pub(super) fn meet(&self, other: &Self) -> Option<Self> {
        if !self.overlaps(other, |one, other| one == other) {
            return None;
        }
        if self.segments.is_empty() || other.segments.is_empty() {
            return Self::parse("/").ok();
        }
        let length = self.segments.len().max(other.segments.len());
        let mut text = String::new();
        for number in 0..length {
            // A pattern that is shorter ends with a rest, which the segments of the other narrow down.
            let narrower = match (self.segments.get(number), other.segments.get(number)) {
                (Some(Segment::Literal(_)), _) | (Some(_), None) => self,
                (_, Some(Segment::Literal(_))) | (None, _) => other,
                (Some(Segment::Param), _) => self,
                (Some(Segment::Rest), Some(_)) => other,
            };
            text = text + "/" + narrower.segment_text(number);
        }
        Self::parse(&text).ok()
    }

    /// Whether there are paths that fall under both patterns, perhaps in different readings: letters' case and encoding
    /// make no difference.
    pub(super) fn overlaps_in_any_reading(&self, other: &Self) -> bool {
        self.overlaps(other, |one, other| decode(one).eq_ignore_ascii_case(&decode(other)))
    }

    /// Whether a reading that changes what stands in the place of a parameter or a rest of this pattern could match
    /// `other`. Says yes where it is not sure.
    pub(super) fn may_be_read_as(&self, other: &Self) -> bool {
        for (number, segment) in self.segments.iter().enumerate() {
            let Segment::Literal(text) = segment else { return true };
            match other.segments.get(number) {
                None => return false,
                Some(Segment::Rest) => return true,
                Some(Segment::Param) => {}
                Some(Segment::Literal(other)) if decode(text).eq_ignore_ascii_case(&decode(other)) => {}
                Some(Segment::Literal(_)) => return false,
            }
        }
        false
    }

    fn overlaps(&self, other: &Self, is_same: impl Fn(&str, &str) -> bool) -> bool {
        let length = self.segments.len().max(other.segments.len());
        for number in 0..length {
            let overlap = match (self.segments.get(number), other.segments.get(number)) {
                // The root ends with a slash already, so whatever lies beneath it begins there.
                (Some(Segment::Rest), None) | (None, Some(Segment::Rest)) => return number == 0,
                (None, _) | (_, None) => false,
                (Some(Segment::Rest), _) | (_, Some(Segment::Rest)) => return true,
                (Some(Segment::Literal(one)), Some(Segment::Literal(other))) => is_same(one, other),
                (Some(Segment::Literal(text)), Some(Segment::Param))
                | (Some(Segment::Param), Some(Segment::Literal(text))) => !text.is_empty(),
                (Some(Segment::Param), Some(Segment::Param)) => true,
            };
            if !overlap {
                return false;
            }
        }
        true
    }

    /// The segment of a path in the place of the first parameter, where the pattern matches the path.
    pub(super) fn parameter<'p>(&self, path: &'p str) -> Option<&'p str> {
        let at = self.segments.iter().position(|segment| *segment == Segment::Param)?;
        parts(path).nth(at).filter(|_| self.matches(path))
    }

    /// Whether a slash at the end of a path makes a difference to this pattern.
    pub(super) fn minds_trailing_slash(&self) -> bool {
        self.segments.last().is_some_and(|last| match last {
            Segment::Literal(text) => text.is_empty(),
            Segment::Param => false,
            Segment::Rest => true,
        })
    }
}

/// Why a text is no pattern, with the segment that is wrong.
enum Wrong<'t> {
    NoSlash,
    RestNotLast,
    Parameter(&'t str),
    NotCanonical(&'t str),
}

impl Segment {
    fn parse_all(text: &str) -> Result<Vec<Self>, Wrong<'_>> {
        let path = text.strip_prefix('/').ok_or(Wrong::NoSlash)?;
        let parts: Vec<&str> = if path.is_empty() { Vec::new() } else { path.split('/').collect() };
        let mut segments = Vec::with_capacity(parts.len());
        for (n, part) in parts.iter().enumerate() {
            let last = n + 1 == parts.len();
            let segment = Self::parse(part, last)?;
            if segment == Self::Rest && !last {
                return Err(Wrong::RestNotLast);
            }
            segments.push(segment);
        }
        Ok(segments)
    }

    fn parse(part: &str, last: bool) -> Result<Self, Wrong<'_>> {
        if let Some(inner) = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let (rest, name) = inner.strip_prefix('*').map_or((false, inner), |name| (true, name));
            return match (spelling::is_name(name), rest) {
                (false, _) => Err(Wrong::Parameter(part)),
                (true, true) => Ok(Self::Rest),
                (true, false) => Ok(Self::Param),
            };
        }
        if part.contains(['{', '}']) || spelling::is_foreign(part) {
            return Err(Wrong::Parameter(part));
        }
        if spelling::is_canonical(part) && (!part.is_empty() || last) {
            Ok(Self::Literal(part.into()))
        } else {
            Err(Wrong::NotCanonical(part))
        }
    }
}

/// The segments of a path; none for the root.
pub(super) fn parts(path: &str) -> impl Iterator<Item = &str> {
    let segments = path.strip_prefix('/').filter(|segments| !segments.is_empty());
    segments.into_iter().flat_map(|segments| segments.split('/'))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_written_in_one_way() {
        for good in [
            "/",
            "/v1/jobs",
            "/v1/jobs/{id}",
            "/files/{*path}",
            "/v1/",
            "/a%20b",
            "/all:cancel",
            "/$batch",
            "/~me",
            "/@me",
            "/a+b",
            "/%2A",
        ] {
            assert!(Pattern::parse(good).is_ok(), "{good}");
        }
        for (bad, cause, advice) in [
            ("v1", "starts with a slash", Some("/v1")),
            ("", "starts with a slash", Some("/")),
            ("v1/*", "starts with a slash", Some("/v1/{*rest}")),
            ("//a", "two readings", Some("/a")),
            ("/a//", "two readings", Some("/a/")),
            ("/a/./b", "two readings", Some("/a/b")),
            ("/a/../b", "two readings", None),
            ("/%61", "two readings", Some("/a")),
            ("/a%2Fb", "two readings", None),
            ("/a;b", "two readings", None),
            ("/a b", "two readings", Some("/a%20b")),
            ("/caf\u{e9}/{id}", "two readings", Some("/caf%C3%A9/{id}")),
            ("/caf%c3%a9", "two readings", Some("/caf%C3%A9")),
            ("/{id}.json", "no parameter", None),
            ("/{}", "no parameter", Some("/{id}")),
            ("/{*rest}/x", "stands last", None),
        ] {
            let error = Pattern::parse(bad).unwrap_err().to_string();
            assert!(error.contains(cause), "{bad}: {error}");
            let advised = error.split("; write \"").nth(1).and_then(|rest| rest.split('"').next());
            assert_eq!(advised, advice, "{bad}: {error}");
            assert!(advice.is_none_or(|path| Pattern::parse(path).is_ok()), "{bad}");
        }
    }

    #[test]
    fn wildcards_and_parameters_of_other_languages_are_refused() {
        for (foreign, advice) in [
            ("/static/*", "/static/{*rest}"),
            ("/static/**", "/static/{*rest}"),
            ("/static/.*", "/static/{*rest}"),
            ("/static/*path", "/static/{*path}"),
            ("/static/{path...}", "/static/{*path}"),
            ("/static/{path:.*}", "/static/{*path}"),
            ("/static/{**path}", "/static/{*path}"),
            ("/static/<path:rest>", "/static/{*rest}"),
            ("/static/<rest..>", "/static/{*rest}"),
            ("/static/[...slug]", "/static/{*slug}"),
            ("/static/:path*", "/static/{*path}"),
            ("/a/*/b", "/a/{id}/b"),
            ("/a/**/b", "/a/{id}/b"),
            ("/a/:id", "/a/{id}"),
            ("/a/:id?", "/a/{id}"),
            ("/a/:user/b/:id", "/a/{user}/b/{id}"),
            ("/a/<id>", "/a/{id}"),
            ("/a/<int:id>/b", "/a/{id}/b"),
            ("/a/{id:[0-9]+}", "/a/{id}"),
            ("/a/{id:int}", "/a/{id}"),
            ("/a/{id?}", "/a/{id}"),
            ("/a/{key-id}", "/a/{key_id}"),
            ("/a/{{id}}", "/a/{id}"),
            ("/a/${id}", "/a/{id}"),
            ("/a/[id]", "/a/{id}"),
        ] {
            let error = Pattern::parse(foreign).unwrap_err();
            let InvalidPattern::Parameter { advice: Some(advised), .. } = &error else {
                panic!("{foreign}: {error}")
            };
            assert_eq!(advised, advice, "{foreign}");
            assert!(Pattern::parse(advice).is_ok(), "{advice}");
            assert!(error.to_string().contains("{*rest}") && error.to_string().contains("{id}"), "{error}");
        }
        for foreign in ["/*.js", "/img-*", "/a/b*c", "/^a*$"] {
            let error = Pattern::parse(foreign).unwrap_err();
            assert!(matches!(error, InvalidPattern::Parameter { advice: None, .. }), "{foreign}: {error}");
        }
    }

    #[test]
    fn a_parameter_is_read_where_the_pattern_matches() {
        let parameter =
            |pattern: &str, path| Pattern::parse(pattern).unwrap().parameter(path).map(str::to_owned);
        assert_eq!(parameter("/keys/{id}/revoke", "/keys/key_1/revoke").as_deref(), Some("key_1"));
        for path in ["/keys/key_1", "/keys/key_1/rotate", "/keys//revoke", "/keys/key_1/revoke/now", "/"] {
            assert_eq!(parameter("/keys/{id}/revoke", path), None, "{path}");
        }
        assert_eq!(parameter("/keys", "/keys"), None);
    }
}
