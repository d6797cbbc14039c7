//! The readings of a canonical path: what a less strict upstream may make of it.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use super::path::{cut, decode};
use crate::vocabulary::rejection::Unsafe;

/// In which spelling segments are compared with literals.
#[derive(Clone, Copy)]
pub(super) enum Reading<'r> {
    /// As the canonical path is written. Notes whether a segment differed from a literal only in letters' case or in its
    /// encoding.
    Canonical { near_miss: &'r Cell<bool> },
    /// As an upstream reads the path that decodes its segments.
    Decoded,
    /// As the least strict upstream reads the path: decoded, cut off at `;`, `?` or `#`, in letters of any case.
    Lax,
}

impl Reading<'_> {
    /// The octets of a segment in this reading.
    pub(super) fn of(self, segment: &str) -> Cow<'_, [u8]> {
        match self {
            Self::Canonical { .. } => Cow::Borrowed(segment.as_bytes()),
            Self::Decoded => decode(segment),
            Self::Lax => match decode(segment) {
                Cow::Borrowed(octets) => Cow::Borrowed(cut(octets)),
                Cow::Owned(octets) => Cow::Owned(cut(&octets).to_vec()),
            },
        }
    }
}

/// Whether an upstream that cuts segments off would find nothing between two slashes. What it makes of that is not
/// known.
pub(super) fn has_vanishing_segment(path: &str) -> bool {
    path.split('/').any(|segment| !segment.is_empty() && Reading::Lax.of(segment).is_empty())
}

/// A reading of a path that is not the canonical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherReading {
    /// Percent-encoded octets are decoded.
    Decoded,
    /// Decoded, cut off at `;`, `?` or `#`, in letters of any case.
    Lax,
    /// As [`OtherReading::Lax`], with a slash at the end that the path does not have, or without the one that it has.
    Slash,
    /// One of those that some routers have; see [`foreign`](super::foreign).
    Foreign,
}

impl fmt::Display for OtherReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decoded => "decoded",
            Self::Lax => "decoded, in letters of any case, cut off at `;`, `?` or `#`",
            Self::Slash => "with the slash at its end added or removed",
            Self::Foreign => {
                "of some routers: cut off at an encoded `?` or `#`, without blanks and dots at the end of a segment, \
                 without what follows a dot of the last segment, with decoded slashes"
            }
        })
    }
}

/// Why a canonical path is still refused: an upstream could take it for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguity {
    /// There is an encoded slash or backslash, and no route for the path, or one that does not allow it.
    EncodedSlash,
    /// Nothing is left of a segment once it is cut off at `;`, `?` or `#`.
    VanishingSegment,
    /// In this reading the path falls under another route, or under none.
    Reading(OtherReading),
}

impl Ambiguity {
    /// The refusal of the request.
    #[must_use]
    pub const fn refusal(self) -> Unsafe {
        match self {
            Self::EncodedSlash => Unsafe::PathEncodedSlash,
            Self::VanishingSegment | Self::Reading(_) => Unsafe::PathTwoReadings,
        }
    }
}

impl fmt::Display for Ambiguity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EncodedSlash => f.write_str("no rule allows the encoded slash in the path"),
            Self::VanishingSegment => {
                f.write_str("a segment of the path is empty once it is cut off at `;`, `?` or `#`")
            }
            Self::Reading(reading) => {
                write!(f, "another reading of the path ({reading}) falls under another rule, or under none")
            }
        }
    }
}
