//! The key as clients have it: its format, its environment, its digest.
//!
//! `{prefix}_{live|test}_sk_` + 32 base62 digits (190 bits from the operating system) + 6 base62 digits of the CRC-32
//! of everything before them. With the checksum a malformed or mistyped key is refused without a lookup, and a secret
//! scanner can tell a key from noise.

pub mod admission;
pub mod further;
pub mod gone;
pub mod pepper;
pub mod prefix;
pub mod proof;
pub mod record;
pub mod scope;
pub mod tombstone;
pub mod usage;

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

pub use self::pepper::{Digester, Misfit, Pepper, PepperStatus, PepperTooShort, Peppers};
pub use self::prefix::{InvalidPrefix, Prefix, Prefixes};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_DIGITS: usize = 32;
const CHECKSUM_DIGITS: usize = 6;
/// The number of digits that an imported key without a checksum may have behind its prefix.
const IMPORTED_DIGITS: std::ops::RangeInclusive<usize> = 16..=128;

/// Live or test. The prefix of the key names it. It decides the upstream, and nothing crosses from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    Live,
    Test,
}

impl Environment {
    pub const ALL: [Self; 2] = [Self::Live, Self::Test];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The format of the keys of this installation: parses those that clients present.
#[derive(Clone, Debug)]
pub struct KeyFormat {
    /// What keys begin with, before their random digits. The prefix of new keys comes first.
    heads: Box<[Head]>,
    accept_without_checksum: bool,
    /// Whether no key of this installation can begin with anything else.
    is_complete: bool,
}

#[derive(Clone, Debug)]
struct Head {
    text: Box<str>,
    environment: Environment,
}

impl KeyFormat {
    /// The format of keys with one prefix. Nothing says that there are no keys with others.
    /// `accept_without_checksum` also accepts imported keys, which have no CRC.
    #[must_use]
    pub fn new(prefix: &Prefix, accept_without_checksum: bool) -> Self {
        Self { heads: heads([prefix]), accept_without_checksum, is_complete: false }
    }

    /// The same, for the prefixes of a store. `own` is read fastest.
    #[must_use]
    pub fn accepting(&self, prefixes: &Prefixes, own: &Prefix) -> Self {
        let own_first = prefixes.accepted().filter(|prefix| *prefix == own);
        let others = prefixes.accepted().filter(|prefix| *prefix != own);
        Self {
            heads: heads(own_first.chain(others)),
            accept_without_checksum: self.accept_without_checksum,
            is_complete: prefixes.is_complete(),
        }
    }

    /// Whether a key without a checksum is refused without a lookup.
    #[must_use]
    pub const fn requires_checksum(&self) -> bool {
        !self.accept_without_checksum
    }

    /// Whether a key with another prefix than these is no key of this installation, as far as was known when the list was
    /// read.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// A new key with the prefix that comes first.
    ///
    /// # Errors
    /// If the operating system gives no random bytes.
    pub fn mint(&self, environment: Environment) -> Result<ApiKey, getrandom::Error> {
        let head = self.heads.iter().find(|head| head.environment == environment);
        ApiKey::with_head(head.map_or("", |head| &head.text), environment)
    }

    /// The environment whose prefix occurs anywhere in the credentials, whether or not they contain a key; test if
    /// both occur.
    #[must_use]
    pub fn named_environment(&self, credentials: &[u8]) -> Option<Environment> {
        let names = |environment: &Environment| {
            let mut heads = self.heads.iter().filter(|head| head.environment == *environment);
            heads.any(|head| {
                let head = head.text.as_bytes();
                credentials.windows(head.len()).any(|part| part == head)
            })
        };
        [Environment::Test, Environment::Live].into_iter().find(names)
    }

    /// Judges a presented token by its form alone.
    ///
    /// # Errors
    /// [`Malformed`], for every cause alike.
    pub fn parse<'a>(&self, token: &'a [u8]) -> Result<PresentedKey<'a>, Malformed> {
        for Head { text, environment } in &self.heads {
            if let Some(digits) = token.strip_prefix(text.as_bytes()) {
                return self.judge(token, digits, *environment);
            }
        }
        Err(Malformed)
    }

    /// The same, with any prefix: for a key that may be of a prefix which is not known here yet.
    ///
    /// # Errors
    /// As [`KeyFormat::parse`].
    pub fn parse_any<'a>(&self, token: &'a [u8]) -> Result<PresentedKey<'a>, Malformed> {
        let end = token.iter().position(|byte| *byte == b'_').ok_or(Malformed)?;
        let (prefix, rest) = token.split_at(end);
        str::from_utf8(prefix).ok().and_then(|text| Prefix::parse(text).ok()).ok_or(Malformed)?;
        for environment in Environment::ALL {
            if let Some(digits) = rest.strip_prefix(format!("_{environment}_sk_").as_bytes()) {
                return self.judge(token, digits, environment);
            }
        }
        Err(Malformed)
    }

    fn judge<'a>(
        &self,
        token: &'a [u8],
        digits: &[u8],
        environment: Environment,
    ) -> Result<PresentedKey<'a>, Malformed> {
        if !digits.iter().all(u8::is_ascii_alphanumeric) {
            return Err(Malformed);
        }
        let body = token.len().saturating_sub(CHECKSUM_DIGITS);
        let checked = digits.len() == RANDOM_DIGITS + CHECKSUM_DIGITS
            && token[body..] == checksum_digits(&token[..body]);
        let imported = self.accept_without_checksum && IMPORTED_DIGITS.contains(&digits.len());
        if checked || imported { Ok(PresentedKey { token, environment }) } else { Err(Malformed) }
    }
}

fn heads<'p>(prefixes: impl IntoIterator<Item = &'p Prefix>) -> Box<[Head]> {
    let of = |prefix: &Prefix| {
        let prefix = prefix.clone();
        Environment::ALL.map(|environment| Head { text: prefix.head(environment).into(), environment })
    };
    prefixes.into_iter().flat_map(of).collect()
}

/// `head` and `digits` random base62 digits, in a buffer with `room` more bytes.
///
/// # Errors
/// If the operating system gives no random bytes.
pub(crate) fn random_token(
    head: &str,
    digits: usize,
    room: usize,
) -> Result<Zeroizing<String>, getrandom::Error> {
    let mut text = Zeroizing::new(String::with_capacity(head.len() + digits + room));
    text.push_str(head);
    let mut pool = Zeroizing::new([0_u8; 2 * RANDOM_DIGITS]);
    while text.len() < head.len() + digits {
        getrandom::fill(&mut pool[..])?;
        // Six bits give 64 values; two of them are no digit and are dropped, so that all digits are equally likely.
        let drawn = pool.iter().filter_map(|byte| BASE62.get(usize::from(byte & 63)));
        let missing = head.len() + digits - text.len();
        text.extend(drawn.take(missing).map(|digit| char::from(*digit)));
    }
    Ok(text)
}

/// A token that does not have the format of a key of this installation.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("malformed key")]
pub struct Malformed;

fn checksum_digits(bytes: &[u8]) -> [u8; CHECKSUM_DIGITS] {
    let mut rest = crc32fast::hash(bytes);
    let mut digits = [b'0'; CHECKSUM_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// A new secret. It is wiped when dropped and never printed; only [`ApiKey::expose`] returns it.
pub struct ApiKey {
    text: Zeroizing<String>,
    environment: Environment,
}

impl ApiKey {
    /// A new key.
    ///
    /// # Errors
    /// If the operating system gives no random bytes.
    pub fn mint(prefix: &Prefix, environment: Environment) -> Result<Self, getrandom::Error> {
        Self::with_head(&prefix.head(environment), environment)
    }

    fn with_head(head: &str, environment: Environment) -> Result<Self, getrandom::Error> {
        let mut text = random_token(head, RANDOM_DIGITS, CHECKSUM_DIGITS)?;
        let checksum = checksum_digits(text.as_bytes());
        text.extend(checksum.map(char::from));
        Ok(Self { text, environment })
    }

    /// The secret itself, for the one answer that shows it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn presented(&self) -> PresentedKey<'_> {
        PresentedKey { token: self.text.as_bytes(), environment: self.environment }
    }

    /// The last four characters, which every masked form shows.
    #[must_use]
    pub fn last_four(&self) -> [u8; 4] {
        self.presented().last_four()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}, redacted)", self.environment)
    }
}

/// A well-formed key as a request presents it. It may be unknown.
#[derive(Clone, Copy)]
pub struct PresentedKey<'a> {
    token: &'a [u8],
    environment: Environment,
}

impl PresentedKey<'_> {
    /// The bytes themselves, to derive keys that only its holder can derive.
    pub(crate) const fn expose(&self) -> &[u8] {
        self.token
    }

    /// The plain SHA-256 of the key.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.token).into()
    }

    /// The name of the key within this process, which its caches use: the plain SHA-256. It does not depend on the pepper,
    /// and never leaves the process.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        Digest(self.sha256())
    }

    /// The environment that the prefix names. The record must name the same.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// The last four characters.
    #[must_use]
    pub fn last_four(&self) -> [u8; 4] {
        let mut last = [b'?'; 4];
        for (to, from) in last.iter_mut().rev().zip(self.token.iter().rev()) {
            *to = *from;
        }
        last
    }
}

impl fmt::Debug for PresentedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresentedKey({}, redacted)", self.environment)
    }
}

/// The digest of a secret, which stores and caches have in its place. Compared in constant time.
#[derive(Clone, Copy, Eq, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        self.0.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word))
    }

    /// Eight bytes of it as a number. A digest is uniformly distributed, so these are a hash already.
    #[must_use]
    pub const fn leading(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        // All words are compared before one decides. Byte by byte it costs 340 instructions on every hit.
        let differing =
            self.words().zip(other.words()).fold(0, |differing, (own, other)| differing | (own ^ other));
        differing.ct_eq(&0).into()
    }
}

impl std::hash::Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.leading());
    }
}

/// Two bytes are enough to tell digests apart while debugging; the whole would be the store's lookup key.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            hex.extend([byte >> 4, byte & 15].map(|n| char::from(b"0123456789abcdef"[usize::from(n)])));
        }
        serializer.serialize_str(&hex)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hex = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> =
            hex.chars().map(|c| c.to_digit(16).and_then(|n| u8::try_from(n).ok())).collect();
        let bytes: Option<Vec<u8>> =
            digits.map(|digits| digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect());
        bytes
            .filter(|_| hex.len() == 64)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a digest is 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmac::Mac;
    use proptest::prelude::*;

    fn format(accept_without_checksum: bool) -> KeyFormat {
        KeyFormat::new(&Prefix::parse("fh").unwrap(), accept_without_checksum)
    }

    #[test]
    fn a_minted_key_has_the_documented_shape_and_parses() {
        for environment in Environment::ALL {
            let key = format(false).mint(environment).unwrap();
            assert_eq!(key.expose().len(), 11 + 32 + 6);
            assert!(key.expose().starts_with(&format!("fh_{environment}_sk_")));
            let presented = format(false).parse(key.expose().as_bytes()).unwrap();
            assert_eq!(presented.environment(), environment);
            assert!(key.expose().as_bytes().ends_with(&presented.last_four()));
        }
    }

    #[test]
    fn a_key_prints_nothing_of_itself() {
        let key = format(false).mint(Environment::Live).unwrap();
        let shown =
            format!("{key:?} {:?} {:?}", key.presented(), Digester::default().digest(&key.presented()));
        assert!(!shown.contains(&key.expose()[11..20]));
        assert!(shown.contains("redacted"));
    }

    #[test]
    fn a_key_of_the_other_environment_or_prefix_does_not_pass_for_this_one() {
        let key = format(false).mint(Environment::Live).unwrap();
        let moved = key.expose().replacen("live", "test", 1);
        assert_eq!(format(false).parse(moved.as_bytes()).unwrap_err(), Malformed);
        let other = KeyFormat::new(&Prefix::parse("acme").unwrap(), false);
        assert_eq!(other.parse(key.expose().as_bytes()).unwrap_err(), Malformed);
    }

    #[test]
    fn each_accepted_prefix_names_its_environment_and_none_reads_as_another() {
        let prefixes: Prefixes = "fh -old kg fhx".parse().unwrap();
        let all = format(false).accepting(&prefixes, &Prefix::parse("kg").unwrap());
        assert!(
            all.mint(Environment::Live).unwrap().expose().starts_with("kg_live_sk_"),
            "its own comes first"
        );
        for (prefix, accepted) in [("fh", true), ("old", false), ("kg", true), ("fhx", true), ("x", false)] {
            for environment in Environment::ALL {
                let key = ApiKey::mint(&Prefix::parse(prefix).unwrap(), environment).unwrap();
                let token = key.expose().as_bytes();
                let read = all.parse(token).map(|key| key.environment());
                assert_eq!(read, if accepted { Ok(environment) } else { Err(Malformed) }, "{prefix}");
                assert_eq!(all.parse_any(token).unwrap().environment(), environment);
                assert_eq!(all.named_environment(token), accepted.then_some(environment));
            }
        }
        let key = format(false).mint(Environment::Live).unwrap();
        for other in ["key", "FH", "", "f h"] {
            let moved = key.expose().replacen("fh", other, 1);
            assert_eq!(all.parse_any(moved.as_bytes()).unwrap_err(), Malformed, "{other}");
        }
    }

    #[test]
    fn a_key_without_a_checksum_passes_only_where_the_settings_say_so() {
        let imported = b"fh_live_sk_0123456789abcdef0123456789";
        assert!(format(false).parse(imported).is_err());
        assert!(format(true).parse(imported).is_ok());
        assert!(format(true).parse(b"fh_live_sk_tooshort").is_err());
    }

    #[test]
    fn digests_are_equal_where_all_256_bits_are() {
        let bytes: [u8; 32] = std::array::from_fn(|at| at as u8);
        assert_eq!(Digest::from_bytes(bytes), Digest::from_bytes(bytes));
        for bit in 0..256 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Digest::from_bytes(bytes), Digest::from_bytes(other), "bit {bit}");
        }
    }

    #[test]
    fn digests_are_sha_256_and_with_a_pepper_hmac_sha_256_of_it() {
        let format = format(true);
        let key = format.parse(b"fh_test_sk_0000000000000000").unwrap();
        let plain = Digester::default().digest(&key);
        assert_eq!(plain.as_bytes()[..], Sha256::digest(b"fh_test_sk_0000000000000000")[..]);
        let pepper = Pepper::new(vec![7; 32]).unwrap();
        let peppered = Digester::new(Some(pepper.clone())).digest(&key);
        let mut mac = pepper.hmac("");
        mac.update(plain.as_bytes());
        assert_eq!(peppered.as_bytes()[..], mac.finalize().into_bytes()[..]);
    }

    proptest! {
        #[test]
        fn one_changed_byte_makes_a_key_malformed(at in 0_usize..49, to in any::<u8>()) {
            let key = format(false).mint(Environment::Test).unwrap();
            let mut token = key.expose().as_bytes().to_vec();
            prop_assume!(token[at] != to);
            token[at] = to;
            prop_assert_eq!(format(false).parse(&token).unwrap_err(), Malformed);
        }

        #[test]
        fn no_token_makes_the_parser_panic(token in proptest::collection::vec(any::<u8>(), 0..80), tail in "[0-9A-Za-z]{0,140}") {
            let _ = format(true).parse(&token);
            let _ = format(true).parse_any(&token);
            let _ = format(true).parse(format!("fh_live_sk_{tail}").as_bytes());
        }
    }
}
