//! New secrets for keys.

use std::time::Duration;

use serde_json::json;

use super::{Made, Target, refuse_ended};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::audit::Draft;
use crate::lifecycle::authority::Standing;
use crate::lifecycle::change::Decided;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::idempotency::{Idempotency, Keep, Outcome, keep_answer};
use crate::lifecycle::principal::Origin;
use crate::lifecycle::turn::Lane;
use crate::store::events::Subject;
use crate::store::{Change, Mutation};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::record::{KeyRecord, Secret, Versioned};
use crate::vocabulary::rejection::FieldError;

/// How long the previous secret of a rotated key stays valid by default.
pub const OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest that it may stay valid.
pub const OVERLAP_AT_MOST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Lifecycle {
    /// Gives a key a new secret. The present one stays valid for `overlap`, at most [`OVERLAP_AT_MOST`]; the one
    /// before it ends at once.
    ///
    /// # Errors
    /// As [`Lifecycle::create_key`].
    pub async fn rotate_key(
        &self,
        origin: &Origin,
        id: KeyId,
        overlap: Duration,
    ) -> Result<Made, LifecycleError> {
        let standing = self.begin(origin, Some(id), None).await?.fresh()?;
        self.rotate_key_once(origin, standing, id, overlap, None).await?.fresh()
    }

    /// Rotates a key, once for all requests that are the same. `standing` is from [`Lifecycle::begin`].
    ///
    /// # Errors
    /// As [`Lifecycle::rotate_key`].
    pub async fn rotate_key_once(
        &self,
        origin: &Origin,
        standing: Standing,
        id: KeyId,
        overlap: Duration,
        keep: Option<Keep<'_>>,
    ) -> Result<Outcome<Made>, LifecycleError> {
        if overlap > OVERLAP_AT_MOST {
            let mistake = FieldError::new("overlap_seconds", "must be from 0 to 604800, seven days");
            return Err(LifecycleError::Invalid(vec![mistake]));
        }
        let rotated = self.try_rotate(origin, standing, id, overlap, keep.as_ref()).await;
        rotated.inspect_err(|error| self.note_refusal(origin, Some(id), error))
    }

    async fn try_rotate(
        &self,
        origin: &Origin,
        standing: Standing,
        id: KeyId,
        overlap: Duration,
        keep: Option<&Keep<'_>>,
    ) -> Result<Outcome<Made>, LifecycleError> {
        let key = self.visible(standing.admit(origin, self.now())?, id).await?;
        let minting = self.minting().await?;
        let line = Lane::Rotating.of(Trail::Org(key.record.org));
        let decide = |begun: &Outcome<Target>, now: UnixMillis| {
            let Target { standing, key: Versioned { rev, record: before } } = match begun {
                Outcome::Repeated(answer) => return Ok(Decided::nothing(Outcome::Repeated(answer.clone()))),
                Outcome::Fresh(target) => target,
            };
            let authority = standing.admit(origin, now)?;
            refuse_ended(before, now)?;
            authority.check_covers(before)?;
            let ends_at = now.plus(overlap);
            let mut key = KeyRecord { secrets: ended(&before.secrets, ends_at, now), ..before.clone() };
            let secret = self.mint(&mut key, &minting)?;
            let mutation = Mutation {
                subjects: rotated(before, &key, now),
                seen: authority.seen(Some(id)),
                answer: keep_answer(keep, &key, &secret, self.clock.kept())?,
                key: Some(Change::Update { rev: *rev, record: key.clone() }),
                ..Mutation::default()
            };
            let draft = Draft::of_key(AuditKind::KeyRotated, before)
                .before(json!({ "key": self.masked(before) }))
                .after(json!({ "key": self.masked(&key), "old_secret_ends_at": ends_at.to_string() }));
            Ok(Decided::commit(mutation, draft, Outcome::Fresh(Made { key, secret, propagation: None })))
        };
        let load = || self.load_rotation(origin, id, keep.map(|keep| keep.request));
        let first = Some(Outcome::Fresh(Target { standing, key }));
        let (outcome, propagation) = self.change(line, origin, first, load, decide).await?;
        Ok(outcome.map(|made| Made { propagation, ..made }))
    }

    async fn load_rotation(
        &self,
        origin: &Origin,
        id: KeyId,
        request: Option<&Idempotency>,
    ) -> Result<Outcome<Target>, LifecycleError> {
        let standing = match self.load_standing(origin, request).await? {
            Outcome::Repeated(answer) => return Ok(Outcome::Repeated(answer)),
            Outcome::Fresh(standing) => standing,
        };
        let key = self.visible(standing.admit(origin, self.now())?, id).await?;
        Ok(Outcome::Fresh(Target { standing, key }))
    }
}

/// The secrets of a key that gets a new one: the present secret until `ends_at`, and the very first one, which is not
/// valid any more. An imported key is recognised by its first secret: if its line is imported again, the secret, which
/// may have leaked, must not count as new.
fn ended(secrets: &[Secret], ends_at: UnixMillis, now: UnixMillis) -> Vec<Secret> {
    let end = |secret: &Secret, at: UnixMillis| {
        let ends_at = Some(secret.ends_at.map_or(at, |end| end.min(at)));
        Secret { ends_at, ..secret.clone() }
    };
    let present = secrets.first().map(|secret| end(secret, ends_at));
    let first = secrets.get(1..).and_then(<[Secret]>::last).map(|secret| end(secret, now));
    present.into_iter().chain(first).collect()
}

/// Everything that caches hold of a key that gets a new secret. A secret that ends with that may have leaked, and must
/// never be valid again.
fn rotated(before: &KeyRecord, after: &KeyRecord, now: UnixMillis) -> Vec<Subject> {
    let goes_on = |digest: &Digest| {
        let mut secrets = after.secrets.iter();
        secrets.any(|secret| secret.digest == *digest && secret.ends_at.is_none_or(|end| end > now))
    };
    let subject = |digest| if goes_on(&digest) { Subject::Digest(digest) } else { Subject::Revoked(digest) };
    before.secrets.iter().map(|secret| subject(secret.digest)).collect()
}
