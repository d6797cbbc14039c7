//! The door: a request becomes a [`CanonicalRequest`], or a refusal before any key is looked at.
//!
//! What is judged here is what is forwarded. A path is normalised once (RFC 3986, section 6.2.2: needless
//! percent-encoding decoded, hexadecimal digits in upper case); everything that two parsers could read in two
//! ways is refused. The query is opaque: forwarded byte for byte, decided on by nobody.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, EXPECT, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};

use crate::vocabulary::rejection::{Rejection, Unsafe};

/// How large a request may be. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The request target: path and query.
    pub target: usize,
    /// Names and values of all header fields together.
    pub head: usize,
    /// Number of header fields.
    pub fields: usize,
    /// The body, where its route sets no limit of its own.
    pub body: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { target: 8 << 10, head: 32 << 10, fields: 100, body: 128 << 20 }
    }
}

/// A request with one reading. Routes match on it and the upstream request is built from it; nothing else is.
#[derive(Debug)]
pub struct CanonicalRequest<B> {
    method: Method,
    target: PathAndQuery,
    shape: Shape,
    host: HeaderValue,
    headers: HeaderMap,
    body: B,
}

/// What in a path a laxer parser could still read in another way; see `RouteTable::find`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Percent-encoded octets remain: those that are not unreserved.
    pub(super) escapes: bool,
    /// Among them a slash or a backslash.
    pub(super) encoded_slash: bool,
    /// A `;`, a `?` or a `#`, plain or encoded, where some servers end a path or a segment.
    pub(super) cuts: bool,
    /// The path ends with a slash, and is more than one.
    pub(super) trailing_slash: bool,
}

/// The parts of a canonical request for forwarding.
#[derive(Debug)]
pub(super) struct Parts<B> {
    pub(super) method: Method,
    pub(super) target: PathAndQuery,
    pub(super) host: HeaderValue,
    pub(super) headers: HeaderMap,
    pub(super) body: B,
}

impl<B> CanonicalRequest<B> {
    /// # Errors
    /// A refusal with status 400, 414 or 431 for whatever cannot be forwarded safely.
    pub fn parse(request: Request<B>, limits: &Limits) -> Result<Self, Rejection> {
        let (mut head, body) = request.into_parts();
        if let Some(credentials) = head.headers.get_mut(AUTHORIZATION) {
            // Printing these fields shows no key.
            credentials.set_sensitive(true);
        }
        if head.method == Method::CONNECT {
            return Err(Rejection::Unsafe(Unsafe::MethodConnect));
        }
        check_size(&head.uri, &head.headers, limits)?;
        check_framing(&head.headers, head.version)?;
        let host = parse_host(&head.uri, &head.headers)?;
        let (target, shape) = parse_target(head.uri)?;
        Ok(Self { method: head.method, target, shape, host, headers: head.headers, body })
    }

    #[must_use]
    pub const fn method(&self) -> &Method {
        &self.method
    }

    /// The canonical path: starts with a slash, no empty and no dot segments, nothing encoded without need.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the path was judged when this value was made")]
    pub fn path(&self) -> &str {
        self.target.path()
    }

    pub(super) const fn shape(&self) -> Shape {
        self.shape
    }

    #[must_use]
    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(super) fn into_parts(self) -> Parts<B> {
        let Self { method, target, shape: _, host, headers, body } = self;
        Parts { method, target, host, headers, body }
    }
}

fn check_size(uri: &Uri, headers: &HeaderMap, limits: &Limits) -> Result<(), Rejection> {
    if uri.path_and_query().is_some_and(|target| target.as_str().len() > limits.target) {
        return Err(Rejection::TargetTooLong);
    }
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > limits.fields || size > limits.head {
        return Err(Rejection::HeadTooLarge);
    }
    Ok(())
}

/// Refuses requests that the parser accepts, but that a stricter or more lenient peer would read differently.
fn check_framing(headers: &HeaderMap, version: Version) -> Result<(), Rejection> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        // RFC 9112, section 6.1: HTTP/1.0 has no transfer codings; and `gzip, chunked` is a body nobody here
        // decodes.
        let one_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
        if !one_chunked || version < Version::HTTP_11 {
            return Err(Rejection::Unsafe(Unsafe::TransferEncoding));
        }
    }
    let mut expectations = headers.get_all(EXPECT).iter();
    if let Some(expectation) = expectations.next()
        && !(expectation.as_bytes().eq_ignore_ascii_case(b"100-continue") && expectations.next().is_none())
    {
        return Err(Rejection::Unsafe(Unsafe::Expect));
    }
    if headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Rejection::Unsafe(Unsafe::AuthorizationRepeated));
    }
    Ok(())
}

/// RFC 9112, section 3.2: exactly one Host, and the target's authority where there is one must say the same.
fn parse_host(uri: &Uri, headers: &HeaderMap) -> Result<HeaderValue, Rejection> {
    if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(Rejection::Unsafe(Unsafe::TargetForm));
    }
    let mut fields = headers.get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(Rejection::Unsafe(Unsafe::HostRepeated));
    }
    let authority = uri.authority().map(Authority::as_str);
    let host = match (authority, field) {
        (None, None) => return Err(Rejection::Unsafe(Unsafe::HostMissing)),
        (None, Some(field)) => field.clone(),
        (Some(authority), field) => {
            if field.is_some_and(|field| !field.as_bytes().eq_ignore_ascii_case(authority.as_bytes())) {
                return Err(Rejection::Unsafe(Unsafe::HostMismatch));
            }
            HeaderValue::from_str(authority).map_err(|_| Rejection::Unsafe(Unsafe::HostInvalid))?
        }
    };
    if is_host(host.as_bytes()) { Ok(host) } else { Err(Rejection::Unsafe(Unsafe::HostInvalid)) }
}

/// `uri-host [ ":" port ]` of RFC 9110, section 7.2, without userinfo and without the octets that only a
/// generic URI allows.
fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !host.ends_with(b"]") => (&host[..colon], &host[colon + 1..]),
        _ => (host, &b""[..]),
    };
    let named = match name.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
        Some(literal) => {
            std::str::from_utf8(literal).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
        }
        None => name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte)),
    };
    named && !name.is_empty() && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

#[expect(clippy::disallowed_methods, reason = "the one place where a raw path is read")]
fn parse_target(uri: Uri) -> Result<(PathAndQuery, Shape), Rejection> {
    let target = uri.into_parts().path_and_query.ok_or(Rejection::Unsafe(Unsafe::TargetForm))?;
    let (canonical, shape) = canonicalise(target.path()).map_err(Rejection::Unsafe)?;
    let Cow::Owned(mut rewritten) = canonical else { return Ok((target, shape)) };
    if let Some(query) = target.query() {
        rewritten.push('?');
        rewritten.push_str(query);
    }
    let target = PathAndQuery::try_from(rewritten).map_err(|_| Rejection::Unsafe(Unsafe::PathCharacter))?;
    Ok((target, shape))
}

/// Normalises a path, or says why it has no one reading.
///
/// # Errors
/// The first offence in the path.
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
            let canonical = check_segment(segment, &mut shape)?;
            if canonical.is_some() && rewritten.is_none() {
                // Everything before this segment stands already as it is to be.
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

/// The canonical form of one segment, where it differs from what came.
fn check_segment(segment: &str, shape: &mut Shape) -> Result<Option<String>, Unsafe> {
    let mut escaped = false;
    for byte in segment.bytes() {
        match CLASS[usize::from(byte)] {
            Class::Plain => {}
            Class::Semicolon => shape.cuts = true,
            Class::Percent => escaped = true,
            Class::Forbidden => return Err(Unsafe::PathCharacter),
        }
    }
    if !escaped {
        return if is_dot_segment(segment.as_bytes()) { Err(Unsafe::PathDotSegment) } else { Ok(None) };
    }
    let canonical = normalise_escapes(segment)?;
    let decoded = decode(&canonical);
    check_decoded(&decoded, shape)?;
    shape.escapes |= canonical.contains('%');
    Ok((canonical != segment).then_some(canonical))
}

/// Decodes what needs no encoding and writes the rest with upper-case digits.
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

/// `.` and `..`, also with the parameters that some servers cut off first (`..;x`).
fn is_dot_segment(segment: &[u8]) -> bool {
    matches!(cut(segment), b"." | b"..")
}

/// Where some servers take a segment, or the whole path, to end: at parameters, or once decoded at a query or
/// a fragment.
const CUTS: &[u8] = b";?#";

/// The decoded segment up to where such a server stops reading it.
pub(super) fn cut(segment: &[u8]) -> &[u8] {
    segment.split(|byte| CUTS.contains(byte)).next().unwrap_or(segment)
}

/// The octets of a canonical segment.
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
    Semicolon,
    Percent,
    Forbidden,
}

/// `pchar` of RFC 3986, section 3.3, by octet.
const CLASS: [Class; 256] = {
    let mut table = [Class::Forbidden; 256];
    let plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,=:@";
    let mut n = 0;
    while n < plain.len() {
        table[plain[n] as usize] = Class::Plain;
        n += 1;
    }
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
    fn what_has_two_readings_is_refused() {
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
            ("/v1/a\\b", Unsafe::PathCharacter),
            ("/v1/a b", Unsafe::PathCharacter),
            ("/v1/a\"b", Unsafe::PathCharacter),
            ("/v1/{a}", Unsafe::PathCharacter),
            ("/v1/a|b", Unsafe::PathCharacter),
            ("/v1/é", Unsafe::PathCharacter),
            ("/v1/a#b", Unsafe::PathCharacter),
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

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        for good in
            ["api.example.com", "localhost:8080", "127.0.0.1", "[::1]", "[::1]:80", "a_b.internal", "h:"]
        {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ":80",
            "user@host",
            "a b",
            "a,b",
            "a/b",
            "h:port",
            "h:123456",
            "[::1",
            "[x]",
            "é",
            "a:1:2",
            "[::1]x",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
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
