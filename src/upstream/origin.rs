//! What an answer says of its server's own origin, where the server was asked by another host than the client's.
//!
//! Such a server redirects to `http://10.0.0.12:9100/next`, which a client cannot reach and need not know. That becomes `/next`:
//! a reference without an origin keeps the scheme, host and port that the client used (RFC 9110, section 10.2.2), whatever
//! stands in front of keygate. References to other servers pass as they are.

use http::header::{CONTENT_LOCATION, Entry, LOCATION};
use http::{HeaderMap, HeaderValue};

/// The Host field of requests to a server, and by which hosts the server may name itself.
#[derive(Debug)]
pub(super) struct OwnHost {
    pub(super) sent: HeaderValue,
    /// That of the endpoint, which its server may know from elsewhere.
    pub(super) of_endpoint: HeaderValue,
}

impl OwnHost {
    /// Removes the server's origin from the references of its answer.
    pub(super) fn leave_out(&self, headers: &mut HeaderMap) {
        for name in [LOCATION, CONTENT_LOCATION] {
            // Most answers have none, and `entry` would make room for it.
            if headers.contains_key(&name)
                && let Entry::Occupied(mut values) = headers.entry(name)
            {
                for value in values.iter_mut() {
                    if let Some(relative) = self.relative(value.as_bytes()) {
                        *value = relative;
                    }
                }
            }
        }
    }

    /// The reference without its origin; `None` where that is not the server's.
    fn relative(&self, reference: &[u8]) -> Option<HeaderValue> {
        let plain = || after(reference, b"http://").map(|rest| (rest, ":80"));
        let (rest, default_port) = after(reference, b"https://").map(|rest| (rest, ":443")).or_else(plain)?;
        let end = rest.iter().position(|byte| b"/?#\\".contains(byte)).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let is_own = [&self.sent, &self.of_endpoint]
            .into_iter()
            .any(|own| is_same(authority, own.as_bytes(), default_port));
        // Clients ignore a tab, so it could hide what comes next.
        if !is_own || rest.contains(&b'\t') {
            return None;
        }
        let before: &[u8] = match rest {
            // Two slashes would begin another host, and browsers take a backslash for a slash. A segment `.` is no part of the path.
            [b'/', b'/' | b'\\', ..] => b"/.",
            [b'/', ..] => b"",
            [b'\\', ..] => return None,
            _ => b"/",
        };
        HeaderValue::from_bytes(&[before, rest].concat()).ok()
    }
}

/// What is behind `beginning`, in whichever case that is written.
fn after<'t>(text: &'t [u8], beginning: &[u8]) -> Option<&'t [u8]> {
    text.split_at_checked(beginning.len())
        .and_then(|(begun, rest)| begun.eq_ignore_ascii_case(beginning).then_some(rest))
}

/// Whether two hosts are the same, where `:port` may be left out.
fn is_same(one: &[u8], other: &[u8], default_port: &str) -> bool {
    let bare = |host: &[u8]| host.strip_suffix(default_port.as_bytes()).unwrap_or(host).to_ascii_lowercase();
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(reference: &str) -> String {
        let own = OwnHost {
            sent: HeaderValue::from_static("API.internal"),
            of_endpoint: HeaderValue::from_static("10.0.0.12:9100"),
        };
        let mut headers = HeaderMap::new();
        for name in [LOCATION, CONTENT_LOCATION] {
            headers.append(name.clone(), HeaderValue::from_str(reference).unwrap());
            headers.append(name, HeaderValue::from_static("/second"));
        }
        own.leave_out(&mut headers);
        let of = |name| {
            headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of(LOCATION), of(CONTENT_LOCATION));
        assert_eq!(of(LOCATION)[1], "/second");
        of(LOCATION).swap_remove(0)
    }

    #[test]
    fn a_reference_to_the_server_keeps_what_is_behind_its_origin() {
        for (reference, expected) in [
            ("http://10.0.0.12:9100/a/b?c=d#e", "/a/b?c=d#e"),
            ("https://10.0.0.12:9100/a", "/a"),
            ("HTTPS://api.INTERNAL/a", "/a"),
            ("https://api.internal:443/a", "/a"),
            ("http://api.internal:80/a", "/a"),
            ("http://api.internal", "/"),
            ("http://api.internal?a", "/?a"),
            ("http://api.internal#a", "/#a"),
        ] {
            assert_eq!(left(reference), expected, "{reference}");
        }
    }

    #[test]
    fn a_reference_to_another_server_passes_as_it_is() {
        for reference in [
            "/a",
            "a",
            "?a",
            "//api.internal/a",
            "http:/api.internal/a",
            "ftp://api.internal/a",
            "http://api.internal.example.com/a",
            "http://api.internal@example.com/a",
            "http://example.com@api.internal/a",
            "http://api.internal:443/a",
            "http://10.0.0.12:9101/a",
            "http://10.0.0.12/a",
        ] {
            assert_eq!(left(reference), reference);
        }
    }

    #[test]
    fn no_reference_leads_to_another_host_than_before() {
        for (reference, expected) in [
            ("http://api.internal//example.com/a", "/.//example.com/a"),
            ("http://api.internal/\\example.com/a", "/./\\example.com/a"),
            ("http://api.internal\\/example.com", "http://api.internal\\/example.com"),
            ("http://api.internal/\t/example.com", "http://api.internal/\t/example.com"),
        ] {
            assert_eq!(left(reference), expected, "{reference}");
        }
    }
}
