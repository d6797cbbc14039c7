//! Identifiers: a prefix for the kind, followed by a ULID (<https://github.com/ulid/spec>).
//!
//! They are public: headers, answers and logs contain them. Because none is a secret, the random part comes from
//! a fast generator, not a cryptographic one. The clock part makes identifiers sort by age.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use ulid::{ULID_LEN, Ulid};

use crate::vocabulary::clock::UnixMillis;

/// Draws identifiers. One per thread, seeded by the operating system. Identifiers sort in the order in which one source
/// draws them, also within one millisecond.
#[derive(Debug)]
pub struct IdSource {
    random: fastrand::Rng,
    last: u128,
    /// All further ones come after this one.
    floor: u128,
}

impl Default for IdSource {
    fn default() -> Self {
        Self { random: fastrand::Rng::new(), last: 0, floor: 0 }
    }
}

impl IdSource {
    /// A source with a fixed seed, for tests.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), last: 0, floor: 0 }
    }

    fn draw(&mut self, now: UnixMillis) -> Ulid {
        let drawn = u128::from_be_bytes(Ulid::from_parts(now.0, self.random.u128(..)).to_bytes());
        let same_moment = drawn >> RANDOM_BITS == self.last >> RANDOM_BITS;
        // A random step, so that two identifiers do not tell how many were drawn between them; it is small enough not to
        // reach the clock part.
        let next = self.last.saturating_add(u128::from(self.random.u32(1..)));
        self.last = if same_moment { next } else { drawn };
        if self.last <= self.floor {
            self.last = self.floor.saturating_add(u128::from(self.random.u32(1..)));
            self.floor = self.last;
        }
        Ulid::from_bytes(self.last.to_be_bytes())
    }

    /// Has all further identifiers sort after this one, which another source has drawn by a clock that is ahead.
    /// One that no clock draws is left out of account.
    pub fn go_on_after(&mut self, id: [u8; 16]) {
        if id < UNDRAWN {
            self.floor = self.floor.max(u128::from_be_bytes(id));
        }
    }
}

/// The first sixteen bytes that no clock draws: of the year 10000. An imported identifier may be anything, and orders nothing
/// from here on.
pub const UNDRAWN: [u8; 16] = ((253_402_300_800_000_u128) << RANDOM_BITS).to_be_bytes();

/// The length of a ULID's random part.
const RANDOM_BITS: u32 = 80;

/// A text is not an identifier of the expected kind.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "expected `{prefix}` followed by the 26 characters of a ULID, as in {prefix}01J9ZQ6T5N8XKD3V4WPYB7C2HM"
)]
pub struct InvalidId {
    prefix: &'static str,
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Ulid);

        impl $name {
            pub const PREFIX: &'static str = $prefix;
            /// Length of the text form, in bytes.
            pub const LEN: usize = $prefix.len() + ULID_LEN;

            #[must_use]
            pub fn draw(source: &mut IdSource, now: UnixMillis) -> Self {
                Self(source.draw(now))
            }

            /// # Errors
            /// Anything but the prefix and 26 upper-case Crockford digits: an identifier has one spelling.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let invalid = InvalidId { prefix: $prefix };
                let digits = text.strip_prefix($prefix).ok_or(invalid)?;
                let invalid = InvalidId { prefix: $prefix };
                let ulid = Ulid::from_string(digits).map_err(|_| InvalidId { prefix: $prefix })?;
                let mut canonical = [0; ULID_LEN];
                if ulid.array_to_str(&mut canonical) == digits { Ok(Self(ulid)) } else { Err(invalid) }
            }

            /// The sixteen bytes, big-endian: they sort as the text does.
            #[must_use]
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.to_bytes()
            }

            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Ulid::from_bytes(bytes))
            }

            /// The text form without an allocation.
            #[must_use]
            pub fn to_array(self) -> [u8; Self::LEN] {
                let mut text = [0; Self::LEN];
                let (prefix, digits) = text.split_at_mut($prefix.len());
                prefix.copy_from_slice($prefix.as_bytes());
                let mut ulid = [0; ULID_LEN];
                self.0.array_to_str(&mut ulid);
                digits.copy_from_slice(&ulid);
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut ulid = [0; ULID_LEN];
                f.write_str($prefix)?;
                f.write_str(self.0.array_to_str(&mut ulid))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }
    };
}

identifier!(
    /// An organisation: the owner of keys and data.
    OrgId,
    "org_"
);
identifier!(
    /// A key; it stays the same through rotations and tells nothing of the secret.
    KeyId,
    "key_"
);
impl OrgId {
    /// In the place of an organisation that is not known. No organisation has this id.
    pub const NOBODY: Self = Self::from_bytes([0; 16]);
}

impl KeyId {
    /// When it was drawn.
    #[must_use]
    pub const fn made_at(self) -> UnixMillis {
        UnixMillis(self.0.timestamp_ms())
    }
}

identifier!(
    /// An audit record.
    AuditRecordId,
    "evt_"
);
identifier!(
    /// One request and its answer: in the error envelope, in `x-request-id` in both directions, in the log.
    RequestId,
    "req_"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_identifier_has_one_spelling() {
        let id = KeyId::draw(&mut IdSource::seeded(1), UnixMillis(1_790_000_000_000));
        let text = id.to_string();
        assert_eq!(text.len(), KeyId::LEN);
        assert_eq!(KeyId::parse(&text), Ok(id));
        for other in [
            text.to_lowercase(),
            text.to_uppercase(),
            format!("{text} "),
            text.replacen("key_", "org_", 1),
            text.replacen("key_", "", 1),
            "key_8ZZZZZZZZZZZZZZZZZZZZZZZZZ".to_owned(),
            "key_O1J9ZQ6T5N8XKD3V4WPYB7C2HM".to_owned(),
            String::new(),
        ] {
            assert!(KeyId::parse(&other).is_err(), "{other}");
        }
    }

    #[test]
    fn what_is_drawn_within_one_millisecond_keeps_its_order() {
        let mut ids = IdSource::seeded(1);
        let drawn: Vec<KeyId> =
            [5, 5, 5, 6, 6, 9].map(|millis| KeyId::draw(&mut ids, UnixMillis(millis))).to_vec();
        assert!(drawn.is_sorted_by(|earlier, later| earlier < later), "{drawn:?}");
    }

    proptest! {
        #[test]
        fn bytes_text_and_order_agree(a in any::<u128>(), b in any::<u128>()) {
            let (a, b) = (OrgId::from_bytes(a.to_be_bytes()), OrgId::from_bytes(b.to_be_bytes()));
            prop_assert_eq!(OrgId::parse(&a.to_string()), Ok(a));
            prop_assert_eq!(a.to_string().into_bytes(), a.to_array().to_vec());
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = RequestId::parse(&text);
        }
    }

    #[test]
    fn a_source_goes_on_after_an_id_of_a_clock_that_is_ahead() {
        let (mut ahead, mut ids) = (IdSource::seeded(3), IdSource::seeded(4));
        let drawn = KeyId::draw(&mut ahead, UnixMillis(1_900_000_000_000));
        ids.go_on_after(drawn.to_bytes());
        let mut drawn = vec![drawn];
        drawn.extend(
            [1_800_000_000_000, 1_800_000_000_001, 1_900_000_000_000, 1_900_000_000_001]
                .map(|at| KeyId::draw(&mut ids, UnixMillis(at))),
        );
        assert!(drawn.is_sorted_by(|one, next| one < next), "{drawn:?}");
        assert!(drawn.iter().all(|id| id.to_bytes() < UNDRAWN));
    }
}
