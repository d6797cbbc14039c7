//! A key that is to be imported.

use super::fields::{Mistakes, parse_network};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::moved::{MovedKey, MovedSecret};
use crate::lifecycle::principal::Origin;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::record::{Further, KeyRecord, RecordFormat, Secret};
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::key::{Digest, Prefix};
use crate::vocabulary::rejection::FieldError;

impl Lifecycle {
    /// The record that a line describes.
    ///
    /// # Errors
    /// Every mistake in the line.
    pub(in crate::lifecycle) fn read_moved(
        &self,
        origin: &Origin,
        vocabulary: &ScopeSet,
        moved: &MovedKey,
    ) -> Result<KeyRecord, Vec<FieldError>> {
        let (now, mut mistakes) = (self.now(), Mistakes::default());
        let created_at = moved.created_at.map_or(now, |at| at.0);
        mistakes.scopes(&moved.scopes, vocabulary);
        let name = mistakes.name(&moved.name);
        let owner = mistakes.owner(moved.owner.as_deref());
        let note = mistakes.note(moved.note.as_deref());
        let networks = moved.allowed_addresses.iter().map(|text| parse_network(text)).collect();
        let networks: Result<Vec<_>, &str> = networks;
        let networks = networks.map_err(|message| FieldError::new("allowed_addresses", message));
        let allowed_addresses = mistakes.keep(networks).unwrap_or_default();
        mistakes.addresses(&allowed_addresses);
        if created_at > now {
            mistakes.add("created_at", "must not lie in the future");
        }
        if moved.organization_id.is_none() {
            mistakes.add("organization_id", "is missing; add --org");
        }
        check_further(moved, &mut mistakes);
        let secrets = self.read_secrets(moved, &mut mistakes);
        let record = name.zip(moved.organization_id).map(|(name, org)| KeyRecord {
            id: moved.id.unwrap_or_else(|| self.draw(|ids| KeyId::draw(ids, created_at))),
            org,
            name,
            environment: moved.environment,
            scopes: moved.scopes.clone(),
            secrets,
            created_at,
            created_by: origin.principal.name().to_string(),
            expires_at: moved.expires_at.map(|at| at.0),
            disabled_at: moved.disabled_at.map(|at| at.0),
            revoked_at: moved.revoked_at.map(|at| at.0),
            allowed_addresses,
            owner,
            note,
            further: moved.further.clone(),
        });
        mistakes.finish(record)
    }

    /// The key's secret, and the previous one while a rotation overlaps.
    fn read_secrets(&self, moved: &MovedKey, mistakes: &mut Mistakes) -> Vec<Secret> {
        let pepper_id = moved.pepper_id.as_deref();
        let read =
            |sha256, digest, (last_four, prefix): (&Option<_>, &Option<_>), ends_at, further: &Further| {
                let digest = self.read_digest(sha256, digest, pepper_id)?;
                let last_four = parse_last_four(last_four.as_deref())?;
                let prefix = self.read_prefix(prefix.as_ref())?;
                Ok(Secret { digest, last_four, prefix, ends_at, further: further.clone() })
            };
        let shown = (&moved.last_four, &moved.prefix);
        let newest = read(moved.sha256, moved.digest, shown, None, &moved.secret_further);
        let older = moved.old_secret.as_ref().map(|old| {
            let MovedSecret { sha256, digest, last_four, prefix, ends_at, further } = old;
            read(*sha256, *digest, (last_four, prefix), Some(ends_at.0), further)
        });
        let secrets = [Some(newest), older].into_iter().flatten();
        secrets.filter_map(|secret| mistakes.keep(secret)).collect()
    }

    /// The prefix as the record names it.
    fn read_prefix(&self, prefix: Option<&Prefix>) -> Result<Option<Prefix>, FieldError> {
        let list = self.prefixes();
        let accepted: Vec<&Prefix> = list.accepted().collect();
        let one = match prefix {
            Some(prefix) if accepted.contains(&prefix) => prefix,
            Some(prefix) => {
                let text = format!(
                    "{prefix} is not accepted here, so the key would open nothing; `keygate store accept-prefix {prefix}` \
                     accepts it"
                );
                return Err(FieldError { field: "prefix".into(), message: text.into() });
            }
            None => match accepted[..] {
                [only] => only,
                _ => {
                    let text = "is missing, and keys here begin with several; write what the key begins with, or add --scheme";
                    return Err(FieldError::new("prefix", text));
                }
            },
        };
        Ok(Some(one).filter(|one| *one != list.first()).cloned())
    }

    fn read_digest(
        &self,
        sha256: Option<Digest>,
        digest: Option<Digest>,
        pepper_id: Option<&str>,
    ) -> Result<Digest, FieldError> {
        match (sha256, digest) {
            (Some(sha256), None) => Ok(self.settings.digester.convert(*sha256.as_bytes())),
            (None, Some(digest))
                if pepper_id.is_some() && self.settings.digester.pepper_id().as_deref() == pepper_id =>
            {
                Ok(digest)
            }
            (None, Some(_)) => {
                Err(FieldError::new("digest", "was made under another pepper than this gateway's"))
            }
            (Some(_), Some(_)) => Err(FieldError::new("sha256", "leave it or `digest` out")),
            (None, None) => {
                Err(FieldError::new("sha256", "is missing: the SHA-256 of the key in hexadecimal digits"))
            }
        }
    }
}

/// A field that is known here has its own place on the line, where it is checked.
fn check_further(moved: &MovedKey, mistakes: &mut Mistakes) {
    let old = moved.old_secret.as_ref().map(|old| &old.further);
    let of_secrets = [Some(&moved.secret_further), old].into_iter().flatten().flat_map(Further::names);
    let is_known = moved.further.names().any(|name| KeyRecord::FIELDS.contains(&name))
        || of_secrets.into_iter().any(|name| Secret::FIELDS.contains(&name));
    if is_known {
        mistakes.add("further", "names a field that this keygate knows; write it outside");
    }
    let formats =
        [Some(&moved.further), Some(&moved.secret_further), old].into_iter().flatten().map(Further::format);
    if formats.max() > Some(RecordFormat::CURRENT) {
        mistakes.add("further", "is of a record that only a newer keygate can keep; upgrade this one first");
    }
}

fn parse_last_four(text: Option<&str>) -> Result<String, FieldError> {
    let text = text.unwrap_or_default();
    // A store must not hold more of a secret than the masked form shows.
    if text.len() > 4 || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(FieldError::new(
            "last_four",
            "must be at most the last four letters and digits of the key",
        ));
    }
    Ok(text.to_owned())
}
