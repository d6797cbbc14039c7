//! The answer to what the parser of HTTP/1 refused: why it did, and the bytes of the answer.
//!
//! hyper's error says which part it could not read. The bytes of that part say the rest.

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use http_body_util::BodyExt;

use crate::gateway::ResponseBody;
use crate::policy;
use crate::policy::request::Limits;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::rejection::{Rejection, Unescaped, Unsafe};

/// A head that hyper could not parse.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unread<'b> {
    /// The request line, as far as it has come; its CR may be there. Empty if it is not known.
    pub(super) line: &'b [u8],
    /// The bytes that hyper has left in its buffer: the head, unless it was parsed and only then refused.
    pub(super) left: &'b [u8],
}

impl Unread<'_> {
    /// The method, where there is one.
    pub(super) fn method(self) -> Option<Method> {
        let (method, _) = split_once(self.line, b' ')?;
        Method::from_bytes(method).ok()
    }

    /// Why hyper refused it.
    pub(super) fn rejection(self, error: &hyper::Error, limits: &Limits) -> Rejection {
        if error.is_parse_too_large() {
            let target = split_once(self.line, b' ').map_or(0, |(_, target)| target.trim_ascii_end().len());
            let is_too_long = target > limits.target + VERSION.len();
            return if is_too_long { Rejection::TargetTooLong } else { Rejection::HeadTooLarge };
        }
        if error.is_parse_version_h2() {
            return Rejection::Unsafe(Unsafe::Version);
        }
        // There is no other way to ask it. Tests send each of these.
        Rejection::Unsafe(match error.to_string().as_str() {
            "URI too long" => return Rejection::TargetTooLong,
            "invalid URI" if self.line.is_empty() => Unsafe::TargetUnread,
            "invalid HTTP method parsed" => self.in_method(),
            "invalid URI" | "invalid HTTP version parsed" => self.in_request_line(),
            "invalid HTTP header parsed" => self.in_fields(),
            "invalid content-length parsed" => Unsafe::ContentLength,
            "invalid transfer-encoding parsed" | "unexpected transfer-encoding parsed" => {
                Unsafe::TransferEncoding
            }
            _ => Unsafe::RequestLine,
        })
    }

    fn in_method(self) -> Unsafe {
        if self.left.starts_with(TLS_HANDSHAKE) {
            Unsafe::TlsHandshake
        } else if self.line.ends_with(VERSION) || self.line.trim_ascii_end().ends_with(VERSION) {
            Unsafe::MethodCharacter
        } else {
            Unsafe::NotHttp
        }
    }

    fn in_request_line(self) -> Unsafe {
        let line = self.line.strip_suffix(b"\r").unwrap_or(self.line);
        let parts = split_once(line, b' ').and_then(|(_, rest)| {
            let blank = rest.iter().rposition(|byte| *byte == b' ')?;
            Some((&rest[..blank], &rest[blank + 1..]))
        });
        let Some((target, version)) = parts.filter(|(target, _)| !target.is_empty()) else {
            return Unsafe::RequestLine;
        };
        if !version.starts_with(b"HTTP/") || target.starts_with(b" ") || target.ends_with(b" ") {
            return Unsafe::RequestLine;
        }
        if let Some(refused) = in_target(target) {
            return refused;
        }
        if matches!(version, b"HTTP/1.1" | b"HTTP/1.0") { Unsafe::TargetForm } else { Unsafe::Version }
    }

    fn in_fields(self) -> Unsafe {
        let mut rest = self.left;
        while let Some(at) = rest.iter().position(|byte| *byte == b'\r') {
            rest = &rest[at + 1..];
            if rest.first().is_some_and(|next| *next != b'\n') {
                return Unsafe::FieldCarriageReturn;
            }
        }
        Unsafe::FieldMalformed
    }
}

/// The beginning of a TLS record with a handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: &[u8] = b"\x16\x03";
/// The end of a request line, with its blank.
const VERSION: &[u8] = b" HTTP/1.1";

/// The first character that a target cannot have as it is: in the path by RFC 3986, in the query as far as the parsers
/// carry it.
fn in_target(target: &[u8]) -> Option<Unsafe> {
    let (path, query) = split_once(target, b'?').unwrap_or((target, b""));
    // Of a target with an authority only the path is judged like that.
    let authority = path.windows(3).position(|three| three == b"://").map_or(0, |at| at + 3);
    if let Some(unescaped) = policy::unescaped_in(&path[authority..]) {
        return Some(Unsafe::PathCharacter(unescaped));
    }
    let is_carried = |octet: u8| octet.is_ascii_graphic() && !matches!(octet, b'"' | b'<' | b'>');
    let not_utf8 = query.utf8_chunks().find_map(|chunk| chunk.invalid().first().copied());
    let unescaped = not_utf8.map(Unescaped::Octet);
    let unescaped = unescaped.or_else(|| {
        let ascii: Vec<u8> = query.iter().copied().filter(u8::is_ascii).collect();
        Unescaped::first_in(&ascii, is_carried)
    });
    unescaped.map(Unsafe::QueryCharacter)
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// The bytes of an answer behind which the connection is closed. `is_head` leaves the body out.
pub(super) async fn to_bytes(answer: Response<ResponseBody>, is_head: bool, now: UnixMillis) -> BytesMut {
    let (head, mut body) = answer.into_parts();
    let mut whole = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    let mut bytes = status_line(head.version, head.status);
    let length = HeaderValue::from(whole.len());
    let mut field = |name: &HeaderName, value: &HeaderValue| {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    };
    for (name, value) in head.headers.iter().filter(|(name, _)| *name != http::header::CONNECTION) {
        field(name, value);
    }
    field(&http::header::CONTENT_LENGTH, &length);
    field(&http::header::CONNECTION, &HeaderValue::from_static("close"));
    if let Ok(date) = HeaderValue::try_from(now.http_date()) {
        field(&http::header::DATE, &date);
    }
    bytes.extend_from_slice(b"\r\n");
    if !is_head {
        bytes.extend_from_slice(&whole);
    }
    bytes
}

fn status_line(version: Version, status: StatusCode) -> BytesMut {
    let phrase = status.canonical_reason().unwrap_or_default();
    BytesMut::from(format!("{version:?} {} {phrase}\r\n", status.as_str()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn character(character: char) -> Unescaped {
        Unescaped::Character(character)
    }

    #[test]
    fn the_first_character_that_must_be_encoded_is_found_in_path_and_query() {
        for (target, expected) in [
            (&b"/a"[..], None),
            (b"/a?{}[]|^`\\'", None),
            ("/a?é".as_bytes(), None),
            (b"http://h:80/a", None),
            (b"/a<b?\"", Some(Unsafe::PathCharacter(character('<')))),
            (b"/a?b\"<", Some(Unsafe::QueryCharacter(character('"')))),
            ("/a?é b".as_bytes(), Some(Unsafe::QueryCharacter(character(' ')))),
            ("/é".as_bytes(), Some(Unsafe::PathCharacter(character('é')))),
            (b"/\xc3", Some(Unsafe::PathCharacter(Unescaped::Octet(0xc3)))),
            (b"/?\xff", Some(Unsafe::QueryCharacter(Unescaped::Octet(0xff)))),
            (b"http://h/a`", Some(Unsafe::PathCharacter(character('`')))),
        ] {
            assert_eq!(in_target(target), expected, "{}", String::from_utf8_lossy(target));
        }
    }

    #[test]
    fn a_request_line_says_what_is_wrong_with_it() {
        for (line, expected) in [
            ("GET /a HTTP/1.2\r", Unsafe::Version),
            ("GET /a HTTP/3", Unsafe::Version),
            ("GET /a", Unsafe::RequestLine),
            ("GET ", Unsafe::RequestLine),
            ("GET /a http/1.1", Unsafe::RequestLine),
            ("GET  /a HTTP/1.1", Unsafe::RequestLine),
            ("GET /a  HTTP/1.1", Unsafe::RequestLine),
            ("GET /a b HTTP/1.1", Unsafe::PathCharacter(character(' '))),
            ("GET a:b:c HTTP/1.1\r", Unsafe::TargetForm),
        ] {
            let unread = Unread { line: line.as_bytes(), left: b"" };
            assert_eq!(unread.in_request_line(), expected, "{line:?}");
        }
    }
}
