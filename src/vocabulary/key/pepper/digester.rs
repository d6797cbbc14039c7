//! From a presented key to its digest.

use hmac::Mac;

use super::{Pepper, Peppers, hex};
use crate::vocabulary::key::{Digest, PresentedKey};

/// Turns a presented key into its digest: `SHA-256(key)`, or with a pepper `HMAC-SHA-256(pepper, SHA-256(key))`, so
/// that the hashes of an existing system can be imported without the keys.
#[derive(Clone, Debug, Default)]
pub struct Digester {
    peppers: Peppers,
}

impl Digester {
    #[must_use]
    pub fn new(pepper: Option<Pepper>) -> Self {
        Self::under(Peppers::new(pepper))
    }

    #[must_use]
    pub const fn under(peppers: Peppers) -> Self {
        Self { peppers }
    }

    #[must_use]
    pub fn digest(&self, key: &PresentedKey<'_>) -> Digest {
        self.convert(key.sha256())
    }

    /// An identifier of the pepper, and of the older ones that its store keeps. It reveals nothing about them. `None`
    /// without a pepper.
    #[must_use]
    pub fn pepper_id(&self) -> Option<String> {
        let all = self.peppers.all();
        let (current, retired) = all.split_first()?;
        let mut mac = current.hmac("keygate pepper id\0");
        retired.iter().for_each(|pepper| mac.update(&pepper.0));
        Some(hex(&mac.finalize().into_bytes()[..8]))
    }

    /// Whether digests made by this one can be turned into those of `other`.
    #[must_use]
    pub fn leads_to(&self, other: &Self) -> bool {
        !self.peppers.are_set() || self.pepper_id() == other.pepper_id()
    }

    /// Converts a digest of this one to that of `other`, if this one [leads](Self::leads_to) to it.
    #[must_use]
    pub fn carry(&self, digest: Digest, other: &Self) -> Digest {
        if self.peppers.are_set() { digest } else { other.convert(digest.0) }
    }

    /// Converts the plain SHA-256 of a key to the digest that is stored.
    #[must_use]
    pub fn convert(&self, sha256: [u8; 32]) -> Digest {
        self.peppers.current().map_or(Digest(sha256), |pepper| pepper.digest(&sha256))
    }
}
