//! Advice for patterns that are not written in the policy's way: which path their author probably meant.
//!
//! Other routers write `*`, `:id` or `<id>`. These are characters of a path like any other, so they would match as they
//! stand, and the rule would never be used.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::path::{canonicalise, unescaped_in};

/// Whether a segment without braces is a wildcard or a parameter in the language of another router.
pub(super) fn is_foreign(segment: &str) -> bool {
    let is_within = |first, last| segment.starts_with(first) && segment.ends_with(last);
    segment.contains('*') || segment.starts_with(':') || is_within('<', '>') || is_within('[', ']')
}

/// Whether a segment has one reading, and so matches as it is written.
pub(super) fn is_canonical(segment: &str) -> bool {
    canonicalise(&format!("/{segment}"))
        .is_ok_and(|(path, shape)| path[1..] == *segment && !shape.cuts && !shape.encoded_slash)
}

/// Whether this can be the name of a parameter.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The pattern that is probably meant; `None` if that is not clear. It may still be no pattern.
pub(super) fn of_path(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
    let mut path = String::new();
    for (n, part) in parts.iter().enumerate() {
        let is_last = n + 1 == parts.len();
        match *part {
            "" if !is_last => continue,
            "." => continue,
            _ => {}
        }
        path.push('/');
        path.push_str(&of_segment(part, is_last)?);
    }
    Some(path)
}

fn of_segment(segment: &str, is_last: bool) -> Option<Cow<'_, str>> {
    if is_foreign(segment) || segment.contains(['{', '}']) {
        return parameter(segment, is_last).map(Cow::Owned);
    }
    if is_canonical(segment) {
        return Some(segment.into());
    }
    let mut encoded = String::with_capacity(segment.len());
    for c in segment.chars() {
        let mut octets = [0; 4];
        let octets = c.encode_utf8(&mut octets).as_bytes();
        if unescaped_in(octets).is_some() {
            octets.iter().for_each(|octet| {
                let _ = write!(encoded, "%{octet:02X}");
            });
        } else {
            encoded.push(c);
        }
    }
    let path = format!("/{encoded}");
    let (path, shape) = canonicalise(&path).ok()?;
    (!shape.cuts && !shape.encoded_slash).then(|| path[1..].to_owned().into())
}

/// The parameter that a segment means in another language; `None` if it is only part of the segment.
fn parameter(segment: &str, is_last: bool) -> Option<String> {
    const OPENING: [&str; 5] = [":", "{", "<", "[", "${"];
    const CLOSING: [&str; 3] = ["}", ">", "]"];
    let inner = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    if inner.is_some_and(|inner| is_name(inner.strip_prefix('*').unwrap_or(inner))) {
        return Some(segment.to_owned());
    }
    let is_rest = segment.contains('*') || segment.contains("..") || segment.starts_with("<path:");
    let is_whole = segment.bytes().all(|b| b"*.".contains(&b))
        || segment.strip_prefix('*').is_some_and(is_name)
        || OPENING.iter().any(|opening| segment.starts_with(opening))
            && (segment.starts_with(':') || CLOSING.iter().any(|closing| segment.ends_with(closing)));
    let (before, after) =
        segment.split_once(':').filter(|(before, _)| !before.is_empty()).unwrap_or((segment, ""));
    // Flask and its kin write the kind first, `<int:id>`; most others write it last, `{id:int}`.
    let named = if segment.starts_with('<') && !after.is_empty() { after } else { before };
    let named = named.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_').replace('-', "_");
    if !is_whole || !(named.is_empty() || is_name(&named)) {
        return None;
    }
    Some(match (is_rest && is_last, named.as_str()) {
        (true, "") => "{*rest}".to_owned(),
        (true, name) => format!("{{*{name}}}"),
        (false, "") => "{id}".to_owned(),
        (false, name) => format!("{{{name}}}"),
    })
}
