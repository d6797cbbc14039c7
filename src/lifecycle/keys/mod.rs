//! Keys: created, listed, updated, rotated, revoked. Here is what several of these share.

pub(super) mod create;
mod descendants;
mod list;
mod revoke;
mod rotate;
mod update;

pub(super) use self::descendants::Lineages;
pub use self::list::KeyPage;
pub use self::rotate::{OVERLAP, OVERLAP_AT_MOST};

use super::Lifecycle;
use super::audit::Draft;
use super::authority::{Authority, Standing};
use super::change::Decided;
use super::error::LifecycleError;
use super::prefixes::Minting;
use super::principal::Origin;
use super::propagation::Changed;
use super::turn::Lane;
use crate::store::events::Subject;
use crate::store::{Change, Mutation, Propagation, Seen};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::ApiKey;
use crate::vocabulary::key::record::{Further, KeyRecord, Secret, Status, Versioned};

/// A key that was just created or rotated, with the only copy of its secret.
#[derive(Debug)]
pub struct Made {
    pub key: KeyRecord,
    pub secret: ApiKey,
    /// How far the end of the previous secret has come; `None` for a new key.
    pub propagation: Option<Propagation>,
}

/// A key that is to be changed, and the standing of the principal who asks.
#[derive(Debug)]
struct Target {
    standing: Standing,
    key: Versioned<KeyRecord>,
}

impl Lifecycle {
    /// Changes a key's record as `decide` says, and tells the caches.
    async fn change_key(
        &self,
        origin: &Origin,
        lane: Lane,
        id: KeyId,
        kind: AuditKind,
        decide: impl Fn(Authority<'_>, &KeyRecord, UnixMillis) -> Result<KeyRecord, LifecycleError>,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        let changed = self.try_change_key(origin, lane, id, kind, decide).await;
        changed.inspect_err(|error| self.note_refusal(origin, Some(id), error))
    }

    async fn try_change_key(
        &self,
        origin: &Origin,
        lane: Lane,
        id: KeyId,
        kind: AuditKind,
        decide: impl Fn(Authority<'_>, &KeyRecord, UnixMillis) -> Result<KeyRecord, LifecycleError>,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        let target = self.load_target(origin, id).await?;
        if target.key.record.is_tombstone() {
            return Err(LifecycleError::Revoked(id));
        }
        let line = lane.of(Trail::Org(target.key.record.org));
        let decide = |Target { standing, key }: &Target, now: UnixMillis| {
            let authority = standing.admit(origin, now)?;
            let record = decide(authority, &key.record, now)?;
            let (mutation, draft) = self.replace(kind, key, &record, authority.seen(Some(id)));
            Ok(Decided::commit(mutation, draft, record))
        };
        let load = || self.load_target(origin, id);
        let (record, propagation) = self.change(line, origin, Some(target), load, decide).await?;
        Ok(Changed { record, propagation })
    }

    /// The mutation that replaces a key's record, and its audit record. `seen` is what else the decision rests on.
    fn replace(
        &self,
        kind: AuditKind,
        key: &Versioned<KeyRecord>,
        record: &KeyRecord,
        seen: Vec<Seen>,
    ) -> (Mutation, Draft) {
        let Versioned { rev, record: before } = key;
        let draft = Draft::of_key(kind, before).difference(&self.describe(before), &self.describe(record));
        let mutation = Mutation {
            subjects: if record.revoked_at.is_some() { revoked(before) } else { subjects(before) },
            seen,
            key: Some(Change::Update { rev: *rev, record: record.clone() }),
            ..Mutation::default()
        };
        (mutation, draft)
    }

    /// Reads who asks, and the key.
    ///
    /// # Errors
    /// [`LifecycleError::NoKey`] also for a key that the principal may not see; why the caller may not act; a fault
    /// of the store.
    async fn load_target(&self, origin: &Origin, id: KeyId) -> Result<Target, LifecycleError> {
        let standing = Standing::load(&self.store, origin).await?;
        let key = self.visible(standing.admit(origin, self.now())?, id).await?;
        Ok(Target { standing, key })
    }

    /// The key, if the principal may see it. Its own key is not read again.
    async fn visible(
        &self,
        authority: Authority<'_>,
        id: KeyId,
    ) -> Result<Versioned<KeyRecord>, LifecycleError> {
        let key = match authority.own(id) {
            Some(own) => Some(own.clone()),
            None => self.store.key(id).await?,
        };
        key.filter(|key| authority.sees(&key.record)).ok_or(LifecycleError::NoKey(id))
    }

    /// Gives a key a new secret, in front of those that it has.
    fn mint(&self, key: &mut KeyRecord, minting: &Minting) -> Result<ApiKey, LifecycleError> {
        let secret = ApiKey::mint(&minting.prefix, key.environment)?;
        let digest = self.settings.digester.digest(&secret.presented());
        let last_four = secret.last_four().map(char::from).iter().collect();
        let (prefix, further) = (minting.named.clone(), Further::default());
        key.secrets.insert(0, Secret { digest, last_four, prefix, ends_at: None, further });
        Ok(secret)
    }
}

/// Everything that caches hold of a key.
fn subjects(key: &KeyRecord) -> Vec<Subject> {
    key.secrets.iter().map(|secret| Subject::Digest(secret.digest)).collect()
}

/// Everything that caches hold of a key as it is now.
pub(super) fn subjects_of(key: &KeyRecord) -> Vec<Subject> {
    if key.revoked_at.is_some() { revoked(key) } else { subjects(key) }
}

/// The same for a revoked key. The caches remember its secrets in case the store forgets the revocation.
fn revoked(key: &KeyRecord) -> Vec<Subject> {
    key.secrets.iter().map(|secret| Subject::Revoked(secret.digest)).collect()
}

/// A revoked or expired key cannot be changed.
fn refuse_ended(key: &KeyRecord, now: UnixMillis) -> Result<(), LifecycleError> {
    match key.status_at(now) {
        Status::Revoked => Err(LifecycleError::Revoked(key.id)),
        Status::Expired => Err(LifecycleError::Expired(key.id)),
        Status::Active | Status::Disabled => Ok(()),
    }
}
