//! The pepper: the installation's secret beside the store, what it makes of keys, and the row of the store that says
//! which pepper belongs to it.
//!
//! A pepper that does not fit makes every good key an unknown one. So the store has a row with a check value, and
//! nothing is looked up or written under another pepper than the one that the row names.
//!
//! **A new pepper.** A digest is an HMAC over a hash of the key: without the key, nobody can make of it the digest under
//! another pepper. So a rotation leaves the digests that exist as they are, and keeps the pepper before, encrypted under
//! the new one, in the row. Whatever *proves* something moves to the new pepper: the seals of records, the index of
//! e-mail addresses, the audit trails. From then on the pepper before neither opens nor makes a record.

mod digester;
mod peppers;
mod row;

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use super::Digest;

pub use self::digester::Digester;
pub use self::peppers::{Full, PepperStatus, Peppers};
pub use self::row::Misfit;

/// A secret of the installation, at least 32 bytes, kept outside the store.
#[derive(Clone)]
pub struct Pepper(Zeroizing<Vec<u8>>);

impl Pepper {
    pub const MIN_LEN: usize = 32;

    /// # Errors
    /// Fewer than [`Pepper::MIN_LEN`] bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, PepperTooShort> {
        let bytes = Zeroizing::new(bytes);
        if bytes.len() < Self::MIN_LEN { Err(PepperTooShort) } else { Ok(Self(bytes)) }
    }

    /// HMAC-SHA-256 (RFC 2104) under this pepper, ready for input. `purpose` keeps the uses apart.
    pub(crate) fn hmac(&self, purpose: &'static str) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length (RFC 2104, section 2)")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(purpose.as_bytes());
        mac
    }

    fn digest(&self, sha256: &[u8; 32]) -> Digest {
        let mut mac = self.hmac("");
        mac.update(sha256);
        Digest(mac.finalize().into_bytes().into())
    }

    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// The check value, for a store with this salt. It helps no guess: a pepper has 32 bytes, and whoever reads the salt
    /// can test a guess on any record of the store as well.
    fn check(&self, salt: &str) -> Check {
        let mut mac = self.hmac("keygate pepper check\0");
        mac.update(salt.as_bytes());
        Check(hex(&mac.finalize().into_bytes()[..CHECK]))
    }

    /// The cipher for the peppers before this one, in a store with this salt.
    fn cipher(&self, salt: &str) -> Option<RandomizedNonceKey> {
        let mut mac = self.hmac("keygate pepper before\0");
        mac.update(salt.as_bytes());
        RandomizedNonceKey::new(&AES_256_GCM, &mac.finalize().into_bytes()).ok()
    }

    /// Another pepper, encrypted under this one.
    fn wrap(&self, salt: &str, other: &Self) -> Option<String> {
        let mut text = other.0.to_vec();
        let nonce =
            self.cipher(salt)?.seal_in_place_append_tag(Aad::from(salt.as_bytes()), &mut text).ok()?;
        Some(format!("{}{}", hex(nonce.as_ref()), hex(&text)))
    }

    fn unwrap(&self, salt: &str, wrapped: &str) -> Option<Self> {
        let bytes = unhex(wrapped)?;
        let (nonce, text) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut text = Zeroizing::new(text.to_vec());
        let cipher = self.cipher(salt)?;
        let opened = cipher.open_in_place(Nonce::from(nonce), Aad::from(salt.as_bytes()), &mut text).ok()?;
        Self::new(opened.to_vec()).ok()
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(redacted)")
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("a pepper has at least {} bytes", Pepper::MIN_LEN)]
pub struct PepperTooShort;

/// A pepper by its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age(pub usize);

impl Age {
    pub const CURRENT: Self = Self(0);
}

/// Bytes of a check value: enough to tell peppers apart.
const CHECK: usize = 8;
/// Bytes of the salt of a store.
const SALT: usize = 16;
/// The check value of a pepper, in hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check(String);

impl Check {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        (unhex(text)?.len() == CHECK).then(|| Self(text.to_owned()))
    }
}

/// Half of it, for people. Without the salt, which only the store has, it tells nothing.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..CHECK).unwrap_or_default())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|n| char::from(b"0123456789abcdef"[usize::from(n)]))
        .collect()
}

pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|n| u8::try_from(n).ok())).collect::<Option<_>>()?;
    digits
        .len()
        .is_multiple_of(2)
        .then(|| digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn draw_hex<const BYTES: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(hex(&bytes))
}
