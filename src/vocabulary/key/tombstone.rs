//! The end of a key whose record cannot be read.
//!
//! An operator can take the rights of such a key away without reading anything of it: a tombstone takes the record's place.
//! It is an ordinary sealed record of a revoked key, so every release can read it. Nothing of the old record is believed:
//! the tombstone has no secret, no scope and no organisation, because whose the key was cannot be proved.
//!
//! The digests of the key's secrets go on leading to its place. A lookup that ends at a tombstone finds no key. A release
//! that does not know tombstones misses the digest in the record, and lets nobody in either.

use serde::Deserialize;

use super::Environment;
use super::record::{Further, HEAD, KeyRecord, revision};
use super::scope::ScopeSet;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};

const NAME: &str = "(its record could not be read)";

impl KeyRecord {
    /// The record that takes the place of one that cannot be read. `why` is the operator's note.
    #[must_use]
    pub fn tombstone(id: KeyId, by: String, at: UnixMillis, why: String) -> Self {
        Self {
            id,
            org: OrgId::NOBODY,
            name: NAME.to_owned(),
            // It may have been either; nothing depends on it.
            environment: Environment::Live,
            scopes: ScopeSet::default(),
            secrets: Vec::new(),
            created_at: id.made_at(),
            created_by: by,
            expires_at: None,
            disabled_at: None,
            revoked_at: Some(at),
            allowed_addresses: Vec::new(),
            owner: None,
            note: Some(why),
            further: Further::default(),
        }
    }

    /// Whether this is a tombstone: keygate makes no other record of nobody's key.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.org == OrgId::NOBODY && self.revoked_at.is_some() && self.secrets.is_empty()
    }
}

/// The revision of a tombstone in the place of these bytes. Their own is not proved, so it may be the highest that there is.
#[must_use]
pub fn revision_after(unreadable: &[u8]) -> u64 {
    revision(unreadable).unwrap_or_default().saturating_add(1)
}

/// The organisation that the bytes of an unreadable record name, if they name one. It is not proved: good for nothing but
/// removing the key from that organisation's count of live keys.
#[must_use]
pub fn claimed_org(sealed: &[u8]) -> Option<OrgId> {
    #[derive(Deserialize)]
    struct Claim {
        org: OrgId,
    }
    let content = sealed.get(HEAD..)?;
    // What follows the JSON is the seal, if there is one.
    let mut claims = serde_json::Deserializer::from_slice(content).into_iter::<Claim>();
    claims.next()?.ok().map(|claim| claim.org)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::id::IdSource;
    use crate::vocabulary::key::Pepper;
    use crate::vocabulary::key::record::{RecordFormat, Sealer, Stored};

    #[test]
    fn every_release_can_read_a_tombstone_and_it_opens_nothing() {
        let id = KeyId::draw(&mut IdSource::seeded(1), UnixMillis(1_790_000_000_000));
        let stone = KeyRecord::tombstone(id, "ada".to_owned(), UnixMillis(2), "cut short".to_owned());
        assert!(stone.is_tombstone() && stone.format() == RecordFormat::FIRST);
        assert_eq!(stone.created_at, UnixMillis(1_790_000_000_000));
        let sealer = Sealer::new(Some(Pepper::new(vec![1; 32]).unwrap()));
        let sealed = sealer.seal(4, &stone).unwrap();
        assert_eq!(sealer.open_at::<KeyRecord>(&id.to_bytes(), &sealed).unwrap().record, stone);
        let revoked = KeyRecord { org: OrgId::from_bytes([1; 16]), ..stone };
        assert!(!revoked.is_tombstone());
    }

    #[test]
    fn what_unreadable_bytes_claim_is_read_from_any_bytes() {
        let org = OrgId::from_bytes([7; 16]);
        let with = |content: &str, seal: &[u8]| [&[9; HEAD], content.as_bytes(), seal].concat();
        let json = format!(r#"{{"name":"x","org":"{org}","odd":1.5}}"#);
        for seal in [&[][..], &[0; 32], &[0xff; 32]] {
            assert_eq!(claimed_org(&with(&json, seal)), Some(org));
        }
        for nothing in ["", "{", "{}", "[]", r#"{"org":"x"}"#] {
            assert_eq!(claimed_org(&with(nothing, &[1; 32])), None, "{nothing}");
        }
        assert_eq!(claimed_org(b"short"), None);
    }
}
