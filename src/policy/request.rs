//! The guard: a request becomes a [`CanonicalRequest`], or is refused before any key is looked up.
//!
//! The request that is judged here is the one that is forwarded. A request that two parsers could read in two ways is
//! refused. The query is opaque: it is forwarded byte for byte, and no rule reads it.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, EXPECT, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};

use super::path::{Shape, canonicalise};
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

/// An extension of a request whose target came with a `#`. [`http::Uri`] cuts the rest off without a word.
#[derive(Clone, Copy, Debug)]
pub struct Fragment;

/// A request with one reading. Routes match on it and the upstream request is built from it; nothing else is.
#[derive(Debug)]
pub struct CanonicalRequest<B> {
    method: Method,
    target: PathAndQuery,
    shape: Shape,
    host: HeaderValue,
    headers: HeaderMap,
    version: Version,
    body: B,
}

/// The parts of a canonical request, from which the upstream request is built.
#[derive(Debug)]
pub struct Parts<B> {
    pub method: Method,
    /// Canonical path and opaque query.
    pub target: PathAndQuery,
    pub host: HeaderValue,
    pub headers: HeaderMap,
    /// Of the message that the client sent.
    pub version: Version,
    pub body: B,
}

impl<B> CanonicalRequest<B> {
    /// # Errors
    /// A refusal with status 400, 414 or 431 for a request that cannot be forwarded safely.
    pub fn parse(request: Request<B>, limits: &Limits) -> Result<Self, Rejection> {
        let (mut head, body) = request.into_parts();
        if let Some(credentials) = head.headers.get_mut(AUTHORIZATION) {
            // Printing these fields shows no key.
            credentials.set_sensitive(true);
        }
        if head.method == Method::CONNECT {
            return Err(Rejection::Unsafe(Unsafe::MethodConnect));
        }
        if head.extensions.get::<Fragment>().is_some() {
            return Err(Rejection::Unsafe(Unsafe::TargetFragment));
        }
        check_size(&head.uri, &head.headers, limits)?;
        // The one octet that `http` takes for a part of a name and RFC 9110, section 5.6.2, does not. httparse refuses it.
        if head.version == Version::HTTP_2 && head.headers.keys().any(|name| name.as_str().contains('"')) {
            return Err(Rejection::Unsafe(Unsafe::FieldMalformed));
        }
        check_framing(&head.headers, head.version)?;
        let host = parse_host(&head.uri, &head.headers)?;
        let (target, shape) = parse_target(head.uri)?;
        Ok(Self {
            method: head.method,
            target,
            shape,
            host,
            headers: head.headers,
            version: head.version,
            body,
        })
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

    pub fn into_parts(self) -> Parts<B> {
        let Self { method, target, shape: _, host, headers, version, body } = self;
        Parts { method, target, host, headers, version, body }
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
        // RFC 9112, section 6.1: HTTP/1.0 has no transfer codings. keygate decodes no other coding, so it cannot tell
        // where a body in `gzip, chunked` ends for the upstream.
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
    // Where no name occurs twice, none needs to be looked up.
    let repeats = headers.len() > headers.keys_len();
    if repeats && headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Rejection::Unsafe(Unsafe::AuthorizationRepeated));
    }
    Ok(())
}

/// RFC 9112, section 3.2: exactly one Host. A target with an authority must name the same host.
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

/// Whether it is `uri-host [ ":" port ]` of RFC 9110, section 7.2, without userinfo and without the octets that only
/// a generic URI allows.
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
    let Cow::Owned(mut rewritten) = canonical else {
        // Over HTTP/2 a target that is only a `#fragment` is empty once it is cut off. It reads as a slash, and would be
        // written as nothing.
        let target = if target.as_str() == "/" { PathAndQuery::from_static("/") } else { target };
        return Ok((target, shape));
    };
    if let Some(query) = target.query() {
        rewritten.push('?');
        rewritten.push_str(query);
    }
    let target = PathAndQuery::try_from(rewritten).map_err(|_| Rejection::Unsafe(Unsafe::TargetForm))?;
    Ok((target, shape))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
