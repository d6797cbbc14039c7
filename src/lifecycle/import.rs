//! Moving keys in from elsewhere and out again, by their digests alone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::json;
use tokio::task::JoinSet;

use super::keys::{check_addresses, check_scopes, take};
use super::search::find_digest;
use super::turn::Draft;
use super::{
    FieldError, Lifecycle, LifecycleError, Origin, parse_name, parse_network, parse_note, parse_owner,
};
use crate::store::{CommitError, Store, StoreFault};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{Further, KeyRecord, Secret};
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::key::{Digest, Environment};

/// Lookups under way at once while keys are compared with what is there. A store takes its commands in turn, so
/// more would wait, and wait in front of those that requests need.
const LOOKUPS: usize = 64;

/// A key as it is moved: one line of JSON. Exactly one of `sha256` and `digest` says which secret opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovedKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<KeyId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<OrgId>,
    pub name: String,
    pub environment: Environment,
    pub scopes: ScopeSet,
    /// The SHA-256 of the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// What stands for the secret under a pepper, and which pepper that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pepper_id: Option<String>,
    /// The secret's last characters, at most four, for its masked form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_four: Option<String>,
    /// The secret before, while a rotation overlaps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_secret: Option<MovedSecret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Networks or single addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_addresses: Vec<String>,
    /// Fields of the record, and of its newest secret, that the keygate which exported it did not know.
    #[serde(default, skip_serializing_if = "Further::is_empty")]
    pub further: Further,
    #[serde(default, skip_serializing_if = "Further::is_empty")]
    pub secret_further: Further,
}

/// The older secret of a key; its digest is of the same kind as the newer one's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovedSecret {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_four: Option<String>,
    pub ends_at: Time,
    #[serde(default, skip_serializing_if = "Further::is_empty")]
    pub further: Further,
}

/// RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub UnixMillis);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        UnixMillis::parse(&text).map(Self).map_err(de::Error::custom)
    }
}

/// What became of a key that was to be moved in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Imported {
    /// It is in the store now; or would be, if this were no rehearsal.
    New,
    /// It was there already, as it is described.
    Present,
    Refused {
        reason: String,
    },
}

impl Imported {
    fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}

impl Lifecycle {
    /// Moves keys in, each for itself; the outcomes are in their order. What is there already and the same is left
    /// alone, so repeating it is safe. `rehearsal` changes nothing and tells what would happen if each key were alone;
    /// how they collide with each other is for a [`Rehearsal`](super::Rehearsal) to tell.
    ///
    /// # Errors
    /// When the store cannot answer: some of the keys may have been moved in then.
    pub async fn import_keys(
        &self,
        origin: &Origin,
        keys: Vec<MovedKey>,
        rehearsal: bool,
    ) -> Result<Vec<Imported>, LifecycleError> {
        let mut outcomes: Vec<Option<Imported>> = vec![None; keys.len()];
        let mut records = Vec::with_capacity(keys.len());
        let vocabulary = self.vocabulary();
        let missing = self.missing_orgs(&keys).await?;
        for (n, (moved, outcome)) in keys.iter().zip(&mut outcomes).enumerate() {
            match self.read_moved(origin, &vocabulary, moved) {
                Ok(record) if missing.contains(&record.org) => {
                    *outcome = Some(Imported::refused(LifecycleError::NoOrg(record.org).to_string()));
                }
                Ok(record) => records.push((n, record)),
                Err(errors) => {
                    *outcome = Some(Imported::refused(LifecycleError::Invalid(errors).to_string()));
                }
            }
        }
        // One look tells whether this was done before. Then it is worth looking at all of them first, so that the
        // trail does not tell of keys that were there; otherwise it would only be slow.
        let done_before = !self.taken(&keys, &records[..records.len().min(1)]).await?.is_empty();
        if rehearsal || done_before {
            records = self.settle_taken(&keys, records, &mut outcomes).await?;
        }
        if !rehearsal {
            records = self.insert(origin, records, &mut outcomes).await?;
            records = self.settle_taken(&keys, records, &mut outcomes).await?;
            for (n, _) in records {
                outcomes[n] = Some(Imported::refused("its id or its secret is another key's"));
            }
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or(Imported::New)).collect())
    }

    async fn missing_orgs(&self, keys: &[MovedKey]) -> Result<Vec<OrgId>, LifecycleError> {
        let mut orgs: Vec<OrgId> = keys.iter().filter_map(|key| key.organization_id).collect();
        orgs.sort_unstable();
        orgs.dedup();
        let mut missing = Vec::new();
        for org in orgs {
            if self.store.org(org).await?.is_none() {
                missing.push(org);
            }
        }
        Ok(missing)
    }

    /// Inserts records, and gives back those whose id or secret is taken.
    async fn insert(
        &self,
        origin: &Origin,
        records: Vec<(usize, KeyRecord)>,
        outcomes: &mut [Option<Imported>],
    ) -> Result<Vec<(usize, KeyRecord)>, LifecycleError> {
        // Told before it happens: should this process end in between, no key is in the store of which the trail
        // knows nothing.
        let mut counts: BTreeMap<OrgId, u64> = BTreeMap::new();
        for (_, record) in &records {
            *counts.entry(record.org).or_default() += 1;
        }
        for (org, count) in counts {
            self.record(Trail::Org(org), origin, || {
                Draft::of_org(AuditKind::KeysImported, org).after(json!({ "keys": count }))
            })
            .await?;
        }
        let inserted = self.store.import(records.iter().map(|(_, record)| record.clone()).collect()).await?;
        let mut taken = Vec::new();
        for ((n, record), inserted) in records.into_iter().zip(inserted) {
            match inserted {
                Ok(()) => outcomes[n] = Some(Imported::New),
                Err(CommitError::Exists) => taken.push((n, record)),
                Err(CommitError::Fault(fault)) => return Err(fault.into()),
                Err(error) => outcomes[n] = Some(Imported::refused(error.to_string())),
            }
        }
        Ok(taken)
    }

    /// Settles those whose id or secret is there already, and gives back the rest.
    async fn settle_taken(
        &self,
        keys: &[MovedKey],
        records: Vec<(usize, KeyRecord)>,
        outcomes: &mut [Option<Imported>],
    ) -> Result<Vec<(usize, KeyRecord)>, LifecycleError> {
        let mut taken = self.taken(keys, &records).await?;
        let mut rest = Vec::new();
        for (n, record) in records {
            match taken.remove(&n) {
                Some(there) => outcomes[n] = Some(compare(&keys[n], &record, &there)),
                None => rest.push((n, record)),
            }
        }
        Ok(rest)
    }

    /// What is in the store under the secrets, else the ids, of these records. An id that was just drawn is not
    /// looked for.
    async fn taken(
        &self,
        keys: &[MovedKey],
        records: &[(usize, KeyRecord)],
    ) -> Result<BTreeMap<usize, KeyRecord>, LifecycleError> {
        let (mut looking, mut taken) = (JoinSet::new(), BTreeMap::new());
        let keep = |found: Option<(usize, Option<KeyRecord>)>, taken: &mut BTreeMap<_, _>| {
            if let Some((n, Some(there))) = found {
                taken.insert(n, there);
            }
        };
        for (n, record) in records {
            if looking.len() == LOOKUPS {
                keep(next(&mut looking).await?, &mut taken);
            }
            let (n, id, store) = (*n, keys[*n].id, Arc::clone(&self.store));
            let digests: Vec<Digest> = record.secrets.iter().map(|secret| secret.digest).collect();
            looking.spawn(async move { find_either(&store, digests, id).await.map(|there| (n, there)) });
        }
        while !looking.is_empty() {
            keep(next(&mut looking).await?, &mut taken);
        }
        Ok(taken)
    }

    /// The record that a line describes.
    fn read_moved(
        &self,
        origin: &Origin,
        vocabulary: &ScopeSet,
        moved: &MovedKey,
    ) -> Result<KeyRecord, Vec<FieldError>> {
        let (now, mut errors) = (self.now(), Vec::new());
        let created_at = moved.created_at.map_or(now, |at| at.0);
        check_scopes(&moved.scopes, vocabulary, &mut errors);
        let name = take(parse_name(&moved.name), &mut errors);
        let owner = moved.owner.as_deref().and_then(|owner| take(parse_owner(owner), &mut errors));
        let note = moved.note.as_deref().and_then(|note| take(parse_note(note), &mut errors));
        let networks = moved.allowed_addresses.iter().map(|text| parse_network(text)).collect();
        let networks: Result<Vec<_>, &str> = networks;
        let networks = networks.map_err(|message| FieldError::new("allowed_addresses", message));
        let networks = take(networks, &mut errors).unwrap_or_default();
        check_addresses(&networks, &mut errors);
        if created_at > now {
            errors.push(FieldError::new("created_at", "must not lie in the future"));
        }
        let org = moved.organization_id.ok_or(FieldError::new("organization_id", "is missing; add --org"));
        let org = take(org, &mut errors);
        let pepper_id = moved.pepper_id.as_deref();
        check_further(moved, &mut errors);
        let read = |sha256, digest, last_four: &Option<String>, ends_at, further: &Further| {
            let digest = self.read_digest(sha256, digest, pepper_id)?;
            let last_four = parse_last_four(last_four.as_deref())?;
            Ok(Secret { digest, last_four, ends_at, further: further.clone() })
        };
        let newest = read(moved.sha256, moved.digest, &moved.last_four, None, &moved.secret_further);
        let older = moved
            .old_secret
            .as_ref()
            .map(|old| read(old.sha256, old.digest, &old.last_four, Some(old.ends_at.0), &old.further));
        let secrets = [Some(newest), older].into_iter().flatten();
        let secrets = secrets.filter_map(|secret| take(secret, &mut errors)).collect();
        let (Some(name), Some(org)) = (name, org) else { return Err(errors) };
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(KeyRecord {
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
            allowed_addresses: networks,
            owner,
            note,
            further: moved.further.clone(),
        })
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

    /// At most `limit` keys of one organisation or of all, after the key `after`, as they can be moved elsewhere;
    /// and whether there are more. With a pepper they fit only where the pepper is the same.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn export_keys(
        &self,
        origin: &Origin,
        org: Option<OrgId>,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<(Vec<MovedKey>, bool), LifecycleError> {
        let page = self.list_keys(origin, org, after, limit).await?;
        let (pepper_id, now) = (self.settings.digester.pepper_id(), self.now());
        let keys = page.keys.iter().filter_map(|key| export(key, pepper_id.as_deref(), now));
        Ok((keys.collect(), page.has_more))
    }
}

/// The next answer; a task that panicked has none.
async fn next<T: 'static>(looking: &mut JoinSet<Result<T, StoreFault>>) -> Result<Option<T>, StoreFault> {
    match looking.join_next().await {
        None => Ok(None),
        Some(Ok(found)) => found.map(Some),
        Some(Err(error)) => Err(StoreFault::failed(error)),
    }
}

async fn find_either(
    store: &Arc<dyn Store>,
    digests: Vec<Digest>,
    id: Option<KeyId>,
) -> Result<Option<KeyRecord>, StoreFault> {
    for digest in digests {
        if let Some(found) = find_digest(store, digest).await? {
            return Ok(Some(found.key.clone()));
        }
    }
    match id {
        Some(id) => Ok(store.key(id).await?.map(|key| key.record)),
        None => Ok(None),
    }
}

/// What to say of a key whose id or secret is taken by `there`.
fn compare(moved: &MovedKey, record: &KeyRecord, there: &KeyRecord) -> Imported {
    let same_secret = record.secrets.first().map(|secret| secret.digest)
        == there.secrets.first().map(|secret| secret.digest);
    let differences = [
        ("secret", !same_secret),
        ("id", moved.id.is_some_and(|id| id != there.id)),
        ("organization_id", record.org != there.org),
        ("name", record.name != there.name),
        ("environment", record.environment != there.environment),
        ("scopes", record.scopes != there.scopes),
        ("created_at", moved.created_at.is_some_and(|at| at.0 != there.created_at)),
        ("expires_at", record.expires_at != there.expires_at),
        // What was stopped since is still the same key; what should be stopped and is not is another.
        ("disabled_at", record.disabled_at.is_some() && there.disabled_at.is_none()),
        ("revoked_at", record.revoked_at.is_some() && there.revoked_at.is_none()),
        ("owner", record.owner != there.owner),
        ("note", record.note != there.note),
        ("allowed_addresses", record.allowed_addresses != there.allowed_addresses),
        ("further", !moved.further.is_empty() && record.further != there.further),
    ];
    collision(&there.id, differences)
}

/// What to say of a key whose id or secret is that of one that came before it.
pub(super) fn collision(
    there: &dyn fmt::Display,
    differences: impl IntoIterator<Item = (&'static str, bool)>,
) -> Imported {
    let differences = differences.into_iter().filter_map(|(field, differs)| differs.then_some(field));
    let differences: Vec<&str> = differences.collect();
    if differences.is_empty() {
        return Imported::Present;
    }
    Imported::refused(format!("there is {there} already, and it differs in: {}", differences.join(", ")))
}

/// A field that is known here has its own place on the line, where it is checked.
fn check_further(moved: &MovedKey, errors: &mut Vec<FieldError>) {
    let old = moved.old_secret.as_ref().map(|old| &old.further);
    let of_secrets = [Some(&moved.secret_further), old].into_iter().flatten().flat_map(Further::names);
    let is_known = moved.further.names().any(|name| KeyRecord::FIELDS.contains(&name))
        || of_secrets.into_iter().any(|name| Secret::FIELDS.contains(&name));
    if is_known {
        errors.push(FieldError::new("further", "names a field that this keygate knows; write it outside"));
    }
}

fn parse_last_four(text: Option<&str>) -> Result<String, FieldError> {
    let text = text.unwrap_or_default();
    // More of the secret than is shown anyway has no place in a store.
    if text.len() > 4 || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(FieldError::new(
            "last_four",
            "must be at most the last four letters and digits of the key",
        ));
    }
    Ok(text.to_owned())
}

/// `None` for a record without a secret, which none of ours is.
fn export(key: &KeyRecord, pepper_id: Option<&str>, now: UnixMillis) -> Option<MovedKey> {
    let plain = pepper_id.is_none();
    let newest = key.secrets.first()?;
    let last_four = |secret: &Secret| Some(secret.last_four.clone()).filter(|text| !text.is_empty());
    let older = key.secrets.get(1).and_then(|old| Some((old, old.ends_at.filter(|end| *end > now)?)));
    Some(MovedKey {
        id: Some(key.id),
        organization_id: Some(key.org),
        name: key.name.clone(),
        environment: key.environment,
        scopes: key.scopes.clone(),
        sha256: Some(newest.digest).filter(|_| plain),
        digest: Some(newest.digest).filter(|_| !plain),
        pepper_id: pepper_id.map(str::to_owned),
        last_four: last_four(newest),
        old_secret: older.map(|(old, ends_at)| MovedSecret {
            sha256: Some(old.digest).filter(|_| plain),
            digest: Some(old.digest).filter(|_| !plain),
            last_four: last_four(old),
            ends_at: Time(ends_at),
            further: old.further.clone(),
        }),
        created_at: Some(Time(key.created_at)),
        expires_at: key.expires_at.map(Time),
        disabled_at: key.disabled_at.map(Time),
        revoked_at: key.revoked_at.map(Time),
        owner: key.owner.clone(),
        note: key.note.clone(),
        allowed_addresses: key.allowed_addresses.iter().map(ToString::to_string).collect(),
        further: key.further.clone(),
        secret_further: newest.further.clone(),
    })
}
