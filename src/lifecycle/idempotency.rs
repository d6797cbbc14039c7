//! Answers that are given again to the same request.
//!
//! Such an answer holds a secret, so the store keeps it only sealed. Where it is kept and the key that opens it
//! are both derived (HKDF-SHA-256, RFC 5869) from the caller's own secret together with the idempotency key.
//! The store alone reveals neither the answer nor its caller, and the same idempotency key from another caller is
//! another request.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::LifecycleError;
use crate::store::answers::KeptAnswer;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::record::KeyRecord;
use crate::vocabulary::key::{ApiKey, PresentedKey};

/// How long the answer to a request that may be sent twice is kept.
const ANSWER_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
const SALT: &[u8] = b"keygate idempotency";
const FINGERPRINT: usize = 32;

/// A request that may be sent twice.
pub struct Idempotency {
    index: [u8; 32],
    key: Zeroizing<[u8; 32]>,
    /// A hash of the request's method, path and body, which must be the same the second time.
    fingerprint: [u8; FINGERPRINT],
}

impl std::fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Idempotency(redacted)")
    }
}

impl Idempotency {
    /// A request of `caller` under the idempotency key `name`.
    ///
    /// # Errors
    /// When the key derivation fails, which with these lengths it does not.
    pub fn derive(
        caller: &PresentedKey<'_>,
        name: &[u8],
        fingerprint: [u8; FINGERPRINT],
    ) -> Result<Self, LifecycleError> {
        let secret = Salt::new(HKDF_SHA256, SALT).extract(caller.expose());
        let index = expand(&secret, b"index", name)?;
        let key = Zeroizing::new(expand(&secret, b"key", name)?);
        Ok(Self { index, key, fingerprint })
    }

    pub(super) const fn index(&self) -> [u8; 32] {
        self.index
    }

    pub(super) fn seal(&self, answer: &[u8]) -> Result<Vec<u8>, LifecycleError> {
        let mut text = [&self.fingerprint[..], answer].concat();
        let nonce = self.cipher()?.seal_in_place_append_tag(Aad::from(self.index), &mut text);
        let nonce = nonce.map_err(|Unspecified| LifecycleError::KeptAnswer)?;
        Ok([&nonce.as_ref()[..], &text].concat())
    }

    /// # Errors
    /// [`LifecycleError::IdempotencyMismatch`] for the answer to another request.
    pub(super) fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, LifecycleError> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(LifecycleError::KeptAnswer)?;
        let mut text = Zeroizing::new(text.to_vec());
        let opened = self.cipher()?.open_in_place(Nonce::from(nonce), Aad::from(self.index), &mut text);
        let opened = opened.map_err(|Unspecified| LifecycleError::KeptAnswer)?;
        let (fingerprint, answer) =
            opened.split_first_chunk::<FINGERPRINT>().ok_or(LifecycleError::KeptAnswer)?;
        if *fingerprint == self.fingerprint {
            Ok(Zeroizing::new(answer.to_vec()))
        } else {
            Err(LifecycleError::IdempotencyMismatch)
        }
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, LifecycleError> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.key[..]).map_err(|Unspecified| LifecycleError::KeptAnswer)
    }
}

struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

fn expand(secret: &Prk, purpose: &[u8], name: &[u8]) -> Result<[u8; 32], LifecycleError> {
    let mut bytes = [0; 32];
    // The purposes are of different lengths and end with a byte that is in neither.
    let info = [purpose, b"\0", name];
    let expanded = secret.expand(&info, Bytes32).and_then(|okm| okm.fill(&mut bytes));
    expanded.map(|()| bytes).map_err(|Unspecified| LifecycleError::KeptAnswer)
}

/// How the answer to a request is kept.
pub struct Keep<'k> {
    pub request: &'k Idempotency,
    /// The answer's body: a JSON object with the key's `id`, by which the answer is judged when it is given again.
    pub render: &'k (dyn Fn(&KeyRecord, &ApiKey) -> Zeroizing<Vec<u8>> + Send + Sync),
}

impl std::fmt::Debug for Keep<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keep(redacted)")
    }
}

/// The outcome of a request that may be sent twice.
pub enum Outcome<T> {
    Fresh(T),
    /// The body of the answer to the first such request.
    Repeated(Zeroizing<Vec<u8>>),
}

impl<T: std::fmt::Debug> std::fmt::Debug for Outcome<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fresh(fresh) => f.debug_tuple("Fresh").field(fresh).finish(),
            Self::Repeated(_) => f.write_str("Repeated(redacted)"),
        }
    }
}

impl<T> Outcome<T> {
    pub(super) fn map<U>(self, map: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Fresh(fresh) => Outcome::Fresh(map(fresh)),
            Self::Repeated(answer) => Outcome::Repeated(answer),
        }
    }

    /// The outcome of a request without an idempotency key, to which no answer can be kept.
    pub(super) fn fresh(self) -> Result<T, LifecycleError> {
        match self {
            Self::Fresh(fresh) => Ok(fresh),
            Self::Repeated(_) => Err(LifecycleError::KeptAnswer),
        }
    }
}

/// The answer to be kept with a key that is created or rotated at the moment `now`.
pub(super) fn keep_answer(
    keep: Option<&Keep<'_>>,
    key: &KeyRecord,
    secret: &ApiKey,
    now: UnixMillis,
) -> Result<Option<KeptAnswer>, LifecycleError> {
    let Some(Keep { request, render }) = keep else { return Ok(None) };
    let sealed = request.seal(&render(key, secret))?;
    let ends_at = now.plus(ANSWER_KEPT);
    Ok(Some(KeptAnswer { index: request.index(), sealed, made_at: now, ends_at }))
}

/// The key whose secret a kept answer holds: every such answer is a JSON object with the key's `id`, in all releases.
pub(super) fn key_of(answer: &[u8]) -> Result<KeyId, LifecycleError> {
    #[derive(Deserialize)]
    struct About {
        id: KeyId,
    }
    let about: About = serde_json::from_slice(answer).map_err(|_| LifecycleError::KeptAnswer)?;
    Ok(about.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::key::{Environment, KeyFormat, Prefix};

    fn key() -> ApiKey {
        KeyFormat::new(&Prefix::default(), false).mint(Environment::Live).unwrap()
    }

    #[test]
    fn an_answer_opens_for_the_same_caller_and_request_only() {
        let (own, other) = (key(), key());
        let request = |key: &ApiKey, name: &[u8], body| {
            Idempotency::derive(&key.presented(), name, [body; 32]).unwrap()
        };
        let first = request(&own, b"n", 1);
        let sealed = first.seal(b"the answer").unwrap();
        let again = request(&own, b"n", 1);
        assert_eq!(again.index(), first.index());
        assert_eq!(*again.open(&sealed).unwrap(), b"the answer");
        assert!(matches!(request(&own, b"n", 2).open(&sealed), Err(LifecycleError::IdempotencyMismatch)));
        for stranger in [request(&other, b"n", 1), request(&own, b"m", 1)] {
            assert_ne!(stranger.index(), first.index());
            assert!(matches!(stranger.open(&sealed), Err(LifecycleError::KeptAnswer)));
        }
    }

    #[test]
    fn what_is_kept_is_never_the_same_twice_and_shows_nothing() {
        let request = Idempotency::derive(&key().presented(), b"n", [1; 32]).unwrap();
        let [one, two] = [(); 2].map(|()| request.seal(b"the answer").unwrap());
        assert_ne!(one, two);
        assert!(!one.windows(6).any(|part| part == b"answer"));
        for at in 0..one.len() {
            let mut changed = one.clone();
            changed[at] ^= 1;
            assert!(request.open(&changed).is_err(), "byte {at}");
        }
    }
}
