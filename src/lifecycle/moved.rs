//! Keys as they are moved between installations: by their digests alone, one line of JSON each.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{Further, KeyRecord, Secret};
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::key::{Digest, Environment, Prefix};

/// A key as it is moved. Exactly one of `sha256` and `digest` says which secret opens it.
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
    /// The digest of the secret under a pepper, and which pepper that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pepper_id: Option<String>,
    /// The secret's last characters, at most four, for its masked form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_four: Option<String>,
    /// What the secret begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// The previous secret, while a rotation overlaps.
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
    /// Fields of the record, and of its newest secret, that the exporting keygate did not know.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    pub ends_at: Time,
    #[serde(default, skip_serializing_if = "Further::is_empty")]
    pub further: Further,
}

/// Written as RFC 3339 in UTC; read with any offset.
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

/// The outcome of importing a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Imported {
    /// It is in the store now. In a rehearsal: it would be.
    New,
    /// It was there already, as it is described.
    Present,
    Refused {
        reason: String,
    },
}

/// The outcome of importing a key, and why the key, if it is there now, could not be used at this moment; `None` if
/// nothing but its shape can keep it from being used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedKey {
    #[serde(flatten)]
    pub outcome: Imported,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

impl Imported {
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}

/// The outcome for a key whose id or secret is that of `there`, a key in the store.
pub(super) fn compare(moved: &MovedKey, record: &KeyRecord, there: &KeyRecord) -> Imported {
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
        // A key that was stopped since is still the same key; a key that should be stopped and is not is another.
        ("disabled_at", record.disabled_at.is_some() && there.disabled_at.is_none()),
        ("revoked_at", record.revoked_at.is_some() && there.revoked_at.is_none()),
        ("owner", record.owner != there.owner),
        ("note", record.note != there.note),
        ("allowed_addresses", record.allowed_addresses != there.allowed_addresses),
        ("further", !moved.further.is_empty() && record.further != there.further),
    ];
    collision(&there.id, differences)
}

/// The outcome for a key whose id or secret is that of an earlier key.
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

/// The key as it is moved elsewhere; `None` for a record without a secret, of which keygate makes none. `first` is the
/// prefix of the secrets that name none.
pub(super) fn export(
    key: &KeyRecord,
    first: &Prefix,
    pepper_id: Option<&str>,
    now: UnixMillis,
) -> Option<MovedKey> {
    let plain = pepper_id.is_none();
    let newest = key.secrets.first()?;
    let last_four = |secret: &Secret| Some(secret.last_four.clone()).filter(|text| !text.is_empty());
    let prefix = |secret: &Secret| Some(secret.prefix.as_ref().unwrap_or(first).clone());
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
        prefix: prefix(newest),
        old_secret: older.map(|(old, ends_at)| MovedSecret {
            sha256: Some(old.digest).filter(|_| plain),
            digest: Some(old.digest).filter(|_| !plain),
            last_four: last_four(old),
            prefix: prefix(old),
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
