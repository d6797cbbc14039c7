//! What is kept of a key that ended long ago: that its id and its secrets must not come back.
//!
//! A *stone* stands for one of these names, in 48 bytes. The stone of a key also says which key made it, so that the way from a
//! key to those that it has made does not end at one that is gone. Stones stay for as long as the pepper under which the
//! digests were made is one of the store's, and a store keeps [all its peppers](super::pepper).

use hmac::Mac;

use super::Digest;
use super::proof::{ProofOf, mac};
use super::record::{KeyRecord, Sealer};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;

/// A name that no key may have any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gone {
    Key(KeyId),
    Secret(Digest),
}

/// What stands in the place of a key that is gone, or of one of its secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stone {
    pub of: Gone,
    /// Of a key: the nearest of its makers that was not gone itself; `None` if no key has made it.
    pub maker: Option<KeyId>,
    /// The first half of the proof of both; zeros in a store without a pepper.
    pub proof: [u8; Self::PROOF],
}

impl Gone {
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Key(id) => id.to_bytes().to_vec(),
            Self::Secret(digest) => digest.as_bytes().to_vec(),
        }
    }

    /// `None` for anything that is neither 16 nor 32 bytes long.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let key = <[u8; 16]>::try_from(bytes).map(|id| Self::Key(KeyId::from_bytes(id)));
        key.or_else(|_| bytes.try_into().map(|digest| Self::Secret(Digest::from_bytes(digest)))).ok()
    }
}

impl Stone {
    pub const PROOF: usize = 16;
    /// The bytes of a stone, with its name.
    pub const LEN: usize = 48;

    /// What follows the name: of a key its maker, then the proof.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&maker_bytes(self.of, self.maker)[..], &self.proof].concat()
    }

    /// `None` for bytes that are none.
    #[must_use]
    pub fn from_bytes(of: Gone, bytes: &[u8]) -> Option<Self> {
        let (maker, proof) = bytes.split_last_chunk()?;
        let maker = match (of, maker) {
            (Gone::Secret(_), []) => None,
            (Gone::Key(_), maker) => {
                Some(<[u8; 16]>::try_from(maker).ok()?).filter(|maker| *maker != [0; 16])
            }
            (Gone::Secret(_), _) => return None,
        };
        Some(Self { of, maker: maker.map(KeyId::from_bytes), proof: *proof })
    }
}

fn maker_bytes(of: Gone, maker: Option<KeyId>) -> Vec<u8> {
    match of {
        Gone::Key(_) => maker.map_or([0; 16], KeyId::to_bytes).to_vec(),
        Gone::Secret(_) => Vec::new(),
    }
}

impl KeyRecord {
    /// Since when the key opens nothing any more and never will, unless an operator gives an expired one a later end; `None` for
    /// one that may, and for a [tombstone](super::tombstone), of which nobody knows the secrets.
    #[must_use]
    pub fn ended_at(&self) -> Option<UnixMillis> {
        if self.is_tombstone() {
            return None;
        }
        [self.revoked_at, self.expires_at].into_iter().flatten().min()
    }

    /// The names that must not come back when the key is gone.
    pub fn names(&self) -> impl Iterator<Item = Gone> {
        let secrets = self.secrets.iter().map(|secret| Gone::Secret(secret.digest));
        std::iter::once(Gone::Key(self.id)).chain(secrets)
    }
}

impl Sealer {
    /// The stone for a name.
    #[must_use]
    pub fn stone(&self, of: Gone, maker: Option<KeyId>) -> Stone {
        let proof = self.prove(ProofOf::Gone, &[&of.to_bytes(), &maker_bytes(of, maker)]);
        let proof = proof.as_deref().and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        Stone { of, maker, proof }
    }

    /// Whether keygate has made a stone, under whichever pepper of the store. Without a pepper every one counts.
    #[must_use]
    pub fn proves(&self, stone: &Stone) -> bool {
        let all = self.peppers().all();
        let (name, maker) = (stone.of.to_bytes(), maker_bytes(stone.of, stone.maker));
        let fits = |pepper| mac(pepper, ProofOf::Gone, &[&name, &maker]).verify_truncated_left(&stone.proof);
        all.is_empty() || all.iter().any(|pepper| fits(pepper).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::key::Pepper;

    #[test]
    fn a_stone_is_read_as_it_was_written_and_proves_its_name_and_its_maker() {
        let (key, maker) = (KeyId::from_bytes([1; 16]), KeyId::from_bytes([2; 16]));
        let under = |byte| Sealer::new(Some(Pepper::new(vec![byte; 32]).unwrap()));
        for (of, maker) in [
            (Gone::Key(key), Some(maker)),
            (Gone::Key(key), None),
            (Gone::Secret(Digest::from_bytes([3; 32])), None),
        ] {
            let stone = under(1).stone(of, maker);
            assert_eq!(of.to_bytes().len() + stone.to_bytes().len(), Stone::LEN);
            assert_eq!(Stone::from_bytes(of, &stone.to_bytes()), Some(stone));
            assert_eq!(Gone::from_bytes(&of.to_bytes()), Some(of));
            assert!(under(1).proves(&stone) && !under(2).proves(&stone));
            let moved = Stone { of: Gone::Key(KeyId::from_bytes([4; 16])), ..stone };
            let another = Stone { maker: Some(key), ..stone };
            assert!(!under(1).proves(&moved));
            assert!(matches!(of, Gone::Secret(_)) || !under(1).proves(&another));
            let plain = Sealer::new(None).stone(of, maker);
            assert_eq!(plain.proof, [0; Stone::PROOF]);
            assert!(Sealer::new(None).proves(&plain) && !under(1).proves(&plain));
        }
        assert_eq!(Gone::from_bytes(&[0; 17]), None);
        assert_eq!(Stone::from_bytes(Gone::Key(key), &[0; 16]), None);
    }
}
