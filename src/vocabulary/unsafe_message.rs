//! Messages that have two readings, or none: why a request cannot be forwarded safely.

use std::borrow::Cow;
use std::fmt;

use crate::vocabulary::reason::Reason;
use crate::vocabulary::text::deceives;

/// The reason why a request cannot be forwarded safely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsafe {
    /// No message of HTTP/1.1 at all.
    NotHttp,
    /// A TLS handshake where plain HTTP is spoken.
    TlsHandshake,
    /// A request line that is not a method, a target and a version, with one blank between.
    RequestLine,
    MethodCharacter,
    Version,
    /// A header field that is none: its name or its value has an octet that it cannot have.
    FieldMalformed,
    /// A CR in a header field that is not a part of its line's end.
    FieldCarriageReturn,
    ContentLength,
    TargetForm,
    /// A target that the parser refused, and that nobody has kept.
    TargetUnread,
    TargetFragment,
    MethodConnect,
    PathCharacter(Unescaped),
    QueryCharacter(Unescaped),
    PathEscape,
    PathEncodedSlash,
    PathEmptySegment,
    PathDotSegment,
    PathNotUtf8,
    PathDoubleEncoding,
    /// Decoded once, or with `;` parameters or a trailing slash cut off, the path falls under another rule.
    PathTwoReadings,
    HostMissing,
    HostRepeated,
    HostInvalid,
    HostMismatch,
    AuthorizationRepeated,
    TransferEncoding,
    Expect,
}

/// A part of a request target that must be written in another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unescaped {
    Character(char),
    /// An octet that is no part of UTF-8.
    Octet(u8),
}

impl Unescaped {
    /// The first of these octets that is not allowed, where `allowed` says so of an ASCII character, and every other
    /// character is not.
    #[must_use]
    pub fn first_in(octets: &[u8], allowed: impl Fn(u8) -> bool) -> Option<Self> {
        let at = octets.iter().position(|octet| !(octet.is_ascii() && allowed(*octet)))?;
        Some(Self::at_start_of(&octets[at..]))
    }

    /// The character that these octets begin with. There must be one.
    fn at_start_of(octets: &[u8]) -> Self {
        let character = octets.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next());
        character.map_or_else(|| Self::Octet(octets.first().copied().unwrap_or_default()), Self::Character)
    }
}

/// Its name and its percent-encoding, for a message.
impl fmt::Display for Unescaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut encoded = [0; 4];
        let octets: &[u8] = match self {
            Self::Character(character) => character.encode_utf8(&mut encoded).as_bytes(),
            Self::Octet(octet) => std::slice::from_ref(octet),
        };
        match self {
            Self::Character(' ') => f.write_str("a blank")?,
            Self::Character(character) if character.is_control() => f.write_str("a control character")?,
            Self::Character(character) if deceives(*character) => write!(f, "U+{:04X}", *character as u32)?,
            Self::Character(character) => write!(f, "'{character}'")?,
            Self::Octet(_) => f.write_str("an octet that is not UTF-8")?,
        }
        f.write_str(", which must be percent-encoded as ")?;
        octets.iter().try_for_each(|octet| write!(f, "%{octet:02X}"))
    }
}

impl Unsafe {
    pub(super) fn message(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::PathCharacter(unescaped) => return Cow::Owned(format!("The path has {unescaped}")),
            Self::QueryCharacter(unescaped) => return Cow::Owned(format!("The query has {unescaped}")),
            Self::NotHttp => "This is not HTTP/1.1",
            Self::TlsHandshake => "This is a TLS handshake, and plain HTTP is spoken here",
            Self::RequestLine => {
                "The request line must be a method, a target and HTTP/1.1, with one blank between"
            }
            Self::MethodCharacter => "The method has a character that a method cannot have",
            Self::Version => "The HTTP version is not supported",
            Self::FieldMalformed => "A header field has a character that it cannot have there",
            Self::FieldCarriageReturn => {
                "A header field has a carriage return that does not end its line; a key that was read from a file may end \
                 with one"
            }
            Self::ContentLength => "The Content-Length field must be one number",
            Self::TargetForm => "The request target must be an absolute path",
            Self::TargetUnread => "The request target has a character that must be percent-encoded",
            Self::TargetFragment => {
                "The request target has '#', which must be percent-encoded as %23; a fragment is not sent"
            }
            Self::MethodConnect => "CONNECT is not supported",
            Self::PathEscape => "The path has an invalid percent-encoding",
            Self::PathEncodedSlash => "The path has an encoded slash or backslash",
            Self::PathEmptySegment => "The path has an empty segment",
            Self::PathDotSegment => "The path has a dot segment",
            Self::PathNotUtf8 => "The path is not UTF-8",
            Self::PathDoubleEncoding => "The path is percent-encoded twice",
            Self::PathTwoReadings => "The path is ambiguous",
            Self::HostMissing => "The Host field is missing",
            Self::HostRepeated => "There is more than one Host field",
            Self::HostInvalid => "The Host field is invalid",
            Self::HostMismatch => "The Host field and the request target disagree",
            Self::AuthorizationRepeated => "There is more than one Authorization field",
            Self::TransferEncoding => "The transfer coding is not supported",
            Self::Expect => "The expectation is not supported",
        })
    }

    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::NotHttp | Self::TlsHandshake => Reason::NotHttp,
            Self::RequestLine => Reason::RequestLine,
            Self::MethodCharacter => Reason::MethodCharacter,
            Self::Version => Reason::HttpVersion,
            Self::FieldMalformed => Reason::FieldMalformed,
            Self::FieldCarriageReturn => Reason::FieldCarriageReturn,
            Self::ContentLength => Reason::ContentLength,
            Self::TargetForm | Self::TargetUnread => Reason::TargetForm,
            Self::TargetFragment => Reason::TargetFragment,
            Self::MethodConnect => Reason::MethodConnect,
            Self::PathCharacter(_) => Reason::PathCharacter,
            Self::QueryCharacter(_) => Reason::QueryCharacter,
            Self::PathEscape => Reason::PathEscape,
            Self::PathEncodedSlash => Reason::PathEncodedSlash,
            Self::PathEmptySegment => Reason::PathEmptySegment,
            Self::PathDotSegment => Reason::PathDotSegment,
            Self::PathNotUtf8 => Reason::PathNotUtf8,
            Self::PathDoubleEncoding => Reason::PathDoubleEncoding,
            Self::PathTwoReadings => Reason::PathTwoReadings,
            Self::HostMissing => Reason::HostMissing,
            Self::HostRepeated => Reason::HostRepeated,
            Self::HostInvalid => Reason::HostInvalid,
            Self::HostMismatch => Reason::HostMismatch,
            Self::AuthorizationRepeated => Reason::AuthorizationRepeated,
            Self::TransferEncoding => Reason::TransferEncoding,
            Self::Expect => Reason::Expect,
        }
    }
}
