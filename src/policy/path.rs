//! Paths with one reading.
//!
//! A path is normalised once (RFC 3986, section 6.2.2: needless percent-encoding decoded, hexadecimal digits in upper
//! case). A path that two parsers could read in two ways is refused, except where the [`Shape`] notes what is left for
//! the route to judge.

use std::borrow::Cow;

use crate::vocabulary::rejection::{Unescaped, Unsafe};

/// The parts of a canonical path that a less strict parser could still read in another way; see
/// [`RouteTable::find`](super::route::RouteTable::find).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Percent-encoded octets remain: those that are not unreserved.
    pub(super) escapes: bool,
    /// Among them a slash or a backslash.
    pub(super) encoded_slash: bool,
    /// A `;`, a `?` or a `#`, plain or encoded, where some servers end a path or a segment.
    pub(super) cuts: bool,
    /// A dot in the last segment, or at the end of any segment, or before its parameters.
    pub(super) dots: bool,
    /// The path ends with a slash, and is more than one.
    pub(super) trailing_slash: bool,
}

/// Normalises a path.
///
/// # Errors
/// Why the path has more than one reading, or none; the first reason from the left.
pub(super) fn canonicalise(path: &str) -> Result<(Cow<'_, str>, Shape), Unsafe> {
    let segments = path.strip_prefix('/').ok_or(Unsafe::TargetForm)?;
    let mut shape = Shape::default();
    let mut rewritten: Option<String> = None;
    let mut rest = Some(segments);
    while let Some(remaining) = rest {
        let (segment, next) = match remaining.split_once('/') {
            Some((segment, next)) => (segment, Some(next)),
            None => (remaining, None),
        };
        if segment.is_empty() {
            if next.is_some() {
                return Err(Unsafe::PathEmptySegment);
            }
            shape.trailing_slash = !segments.is_empty();
        } else {
            let is_last = next.is_none_or(str::is_empty);
            let canonical = check_segment(segment, is_last, &mut shape)?;
            if canonical.is_some() && rewritten.is_none() {
                // Everything before this segment is canonical already.
                rewritten = Some(path[..path.len() - remaining.len()].to_owned());
            }
            if let Some(text) = &mut rewritten {
                text.push_str(canonical.as_deref().unwrap_or(segment));
            }
        }
        if let (Some(text), Some(_)) = (&mut rewritten, next) {
            text.push('/');
        }
        rest = next;
    }
    Ok((rewritten.map_or(Cow::Borrowed(path), Cow::Owned), shape))
}

/// The canonical form of one segment; `None` where it is canonical already.
fn check_segment(segment: &str, is_last: bool, shape: &mut Shape) -> Result<Option<String>, Unsafe> {
    let (mut escaped, mut dotted) = (false, false);
    for byte in segment.bytes() {
        match CLASS[usize::from(byte)] {
            Class::Plain => {}
            Class::Dot => dotted = true,
            Class::Semicolon => shape.cuts = true,
            Class::Percent => escaped = true,
            Class::Forbidden => return Err(forbidden_in(segment)),
        }
    }
    if !escaped {
        if dotted && is_dot_segment(segment.as_bytes()) {
            return Err(Unsafe::PathDotSegment);
        }
        shape.dots |= dotted && (is_last || ends_with_dot(segment));
        return Ok(None);
    }
    let canonical = normalise_escapes(segment)?;
    shape.dots |= ends_with_dot(&canonical) || is_last && canonical.contains('.');
    let decoded = decode(&canonical);
    check_decoded(&decoded, shape)?;
    shape.escapes |= canonical.contains('%');
    Ok((canonical != segment).then_some(canonical))
}

/// Whether a dot is the last character, perhaps once parameters are cut off. Encoded ones are escapes.
fn ends_with_dot(segment: &str) -> bool {
    segment.ends_with('.') || segment.contains(".;")
}

/// Names the character that a path cannot have as it is.
#[cold]
fn forbidden_in(path: &str) -> Unsafe {
    unescaped_in(path.as_bytes()).map_or(Unsafe::TargetForm, Unsafe::PathCharacter)
}

/// The first character of a path that it cannot have as it is.
#[must_use]
pub fn unescaped_in(path: &[u8]) -> Option<Unescaped> {
    Unescaped::first_in(path, |octet| octet == b'/' || !matches!(CLASS[usize::from(octet)], Class::Forbidden))
}

/// Decodes what needs no encoding and writes the other escapes with upper-case digits.
fn normalise_escapes(segment: &str) -> Result<String, Unsafe> {
    let mut canonical = String::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            canonical.push(char::from(byte));
            continue;
        }
        let (high, low) = (bytes.next().and_then(hex_value), bytes.next().and_then(hex_value));
        let (Some(high), Some(low)) = (high, low) else { return Err(Unsafe::PathEscape) };
        let octet = high << 4 | low;
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            canonical.push(char::from(octet));
        } else if octet.is_ascii_control() {
            return Err(Unsafe::PathEscape);
        } else {
            canonical.push('%');
            canonical.extend([high, low].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])));
        }
    }
    Ok(canonical)
}

/// The segment as an upstream reads it that decodes once.
fn check_decoded(decoded: &[u8], shape: &mut Shape) -> Result<(), Unsafe> {
    if std::str::from_utf8(decoded).is_err() {
        return Err(Unsafe::PathNotUtf8);
    }
    let still_encoded =
        |three: &[u8]| three[0] == b'%' && hex_value(three[1]).is_some() && hex_value(three[2]).is_some();
    if decoded.windows(3).any(still_encoded) {
        return Err(Unsafe::PathDoubleEncoding);
    }
    let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
    shape.encoded_slash |= decoded.iter().any(is_slash);
    shape.cuts |= decoded.iter().any(|byte| CUTS.contains(byte));
    if decoded.split(is_slash).any(is_dot_segment) { Err(Unsafe::PathDotSegment) } else { Ok(()) }
}

/// Whether a segment is `.` or `..`, also with parameters, which some servers cut off first (`..;x`).
fn is_dot_segment(segment: &[u8]) -> bool {
    matches!(cut(segment), b"." | b"..")
}

/// Where a segment, or the whole path, ends for some servers: at parameters, or at a query or a fragment once it is
/// decoded.
const CUTS: &[u8] = b";?#";

/// The part of a decoded segment that such a server reads.
pub(super) fn cut(segment: &[u8]) -> &[u8] {
    segment.split(|byte| CUTS.contains(byte)).next().unwrap_or(segment)
}

/// The octets of a canonical segment, with every escape decoded.
pub(super) fn decode(segment: &str) -> Cow<'_, [u8]> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment.as_bytes());
    }
    let mut octets = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (bytes.next().and_then(hex_value), bytes.next().and_then(hex_value));
            octets.push(high.unwrap_or(0) << 4 | low.unwrap_or(0));
        } else {
            octets.push(byte);
        }
    }
    Cow::Owned(octets)
}

const fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[derive(Clone, Copy)]
enum Class {
    Plain,
    Dot,
    Semicolon,
    Percent,
    Forbidden,
}

/// By octet, what `pchar` of RFC 3986, section 3.3, allows.
const CLASS: [Class; 256] = {
    let mut table = [Class::Forbidden; 256];
    let plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,=:@";
    let mut n = 0;
    while n < plain.len() {
        table[plain[n] as usize] = Class::Plain;
        n += 1;
    }
    table[b'.' as usize] = Class::Dot;
    table[b';' as usize] = Class::Semicolon;
    table[b'%' as usize] = Class::Percent;
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(path: &str) -> Result<String, Unsafe> {
        canonicalise(path).map(|(path, _)| path.into_owned())
    }

    #[test]
    fn a_path_that_is_canonical_already_is_passed_on_as_it_is() {
        for path in
            ["/", "/v1/jobs", "/v1/jobs/", "/a:b@c/d,e=f/~x", "/caf%C3%A9", "/a%20b", "/..a/.b/c..", "/..."]
        {
            assert!(matches!(canonicalise(path), Ok((Cow::Borrowed(same), _)) if same == path), "{path}");
        }
    }

    #[test]
    fn needless_encoding_is_undone_and_needed_encoding_is_written_one_way() {
        assert_eq!(canonical("/v1/%6Aobs/x"), Ok("/v1/jobs/x".to_owned()));
        assert_eq!(canonical("/%61/%62/%63"), Ok("/a/b/c".to_owned()));
        assert_eq!(canonical("/a%c3%a9%7e/b"), Ok("/a%C3%A9~/b".to_owned()));
    }

    #[test]
    fn a_path_with_two_readings_is_refused() {
        for (path, cause) in [
            ("", Unsafe::TargetForm),
            ("*", Unsafe::TargetForm),
            ("v1/jobs", Unsafe::TargetForm),
            ("//v1/jobs", Unsafe::PathEmptySegment),
            ("/v1//jobs", Unsafe::PathEmptySegment),
            ("/v1/jobs//", Unsafe::PathEmptySegment),
            ("/v1/../jobs", Unsafe::PathDotSegment),
            ("/v1/./jobs", Unsafe::PathDotSegment),
            ("/v1/..", Unsafe::PathDotSegment),
            ("/v1/%2e%2E/jobs", Unsafe::PathDotSegment),
            ("/v1/.%2e", Unsafe::PathDotSegment),
            ("/v1/..;/jobs", Unsafe::PathDotSegment),
            ("/v1/..%3Bx/jobs", Unsafe::PathDotSegment),
            ("/v1/a%2F..%2Fb", Unsafe::PathDotSegment),
            ("/v1/..%5Cb", Unsafe::PathDotSegment),
            ("/v1/a\\b", Unsafe::PathCharacter(Unescaped::Character('\\'))),
            ("/v1/a b", Unsafe::PathCharacter(Unescaped::Character(' '))),
            ("/v1/a\"b", Unsafe::PathCharacter(Unescaped::Character('"'))),
            ("/v1/{a}", Unsafe::PathCharacter(Unescaped::Character('{'))),
            ("/v1/a|b", Unsafe::PathCharacter(Unescaped::Character('|'))),
            ("/v1/é", Unsafe::PathCharacter(Unescaped::Character('é'))),
            ("/v1/a#b", Unsafe::PathCharacter(Unescaped::Character('#'))),
            ("/v1/%", Unsafe::PathEscape),
            ("/v1/%4", Unsafe::PathEscape),
            ("/v1/%zz", Unsafe::PathEscape),
            ("/v1/%u002e", Unsafe::PathEscape),
            ("/v1/a%00", Unsafe::PathEscape),
            ("/v1/a%0d%0ab", Unsafe::PathEscape),
            ("/v1/%7f", Unsafe::PathEscape),
            ("/v1/%c0%ae", Unsafe::PathNotUtf8),
            ("/v1/%c0%af", Unsafe::PathNotUtf8),
            ("/v1/%ff", Unsafe::PathNotUtf8),
            ("/v1/%252e%252e", Unsafe::PathDoubleEncoding),
            ("/v1/%25%32%65", Unsafe::PathDoubleEncoding),
        ] {
            assert_eq!(canonical(path), Err(cause), "{path}");
        }
    }

    #[test]
    fn an_encoded_slash_is_reported_so_that_the_route_can_refuse_it() {
        for path in ["/a%2Fb", "/a%2fb", "/a%5Cb"] {
            let (_, shape) = canonicalise(path).unwrap();
            assert!(shape.encoded_slash && shape.escapes, "{path}");
        }
    }

    proptest! {
        #[test]
        fn canonicalising_twice_changes_nothing_and_nothing_panics(path in "/[a-c%2eEfF5cC0-9/;.~é\\\\]{0,24}") {
            if let Ok((once, shape)) = canonicalise(&path) {
                let (twice, same) = canonicalise(&once).unwrap();
                prop_assert_eq!(&once, &twice);
                prop_assert_eq!(shape, same);
            }
        }

        #[test]
        fn a_canonical_path_decodes_to_what_the_original_decodes_to(path in "(/[a-z%]{0,3}(%[2-7][0-9a-fA-F]){0,3}){1,4}") {
            if let Ok((once, _)) = canonicalise(&path) {
                prop_assert_eq!(decode(&once), decode(&path));
            }
        }
    }
}
