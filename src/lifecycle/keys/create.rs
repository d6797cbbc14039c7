//! New keys.

use std::time::Duration;

use crate::lifecycle::Lifecycle;
use crate::lifecycle::audit::Draft;
use crate::lifecycle::authority::{Authority, Standing};
use crate::lifecycle::change::Decided;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::idempotency::{Idempotency, Keep, Outcome, keep_answer, key_of};
use crate::lifecycle::input::new_key::{NewKey, Texts};
use crate::lifecycle::keys::Made;
use crate::lifecycle::prefixes::Minting;
use crate::lifecycle::principal::{Origin, Principal};
use crate::lifecycle::turn::Lane;
use crate::store::indexes::Room;
use crate::store::quotas::Quota;
use crate::store::{Change, Mutation};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{Further, KeyRecord};
use crate::vocabulary::rejection::FieldError;

/// When a key is made, and what its secret begins with.
pub(in crate::lifecycle) struct Making<'m> {
    pub(in crate::lifecycle) now: UnixMillis,
    pub(in crate::lifecycle) minting: &'m Minting,
}

/// New keys of an organisation within a minute.
const NEW_KEYS: u32 = 600;
const MINUTE: Duration = Duration::from_secs(60);

impl Lifecycle {
    /// Begins a request for a new secret: reads the standing of the principal, and the answer to the same request
    /// where it was carried out before. That answer comes before everything that is judged of the request now, such as
    /// a time that lay in the future then, or a scope that existed then. But a caller that could not get the secret in
    /// it now does not get it again; the answer stays. `target` is the key that is to be rotated.
    ///
    /// # Errors
    /// [`LifecycleError::IdempotencyMismatch`] for another request under the same name; why the caller may not act, or
    /// may not hold the secret in the answer; a fault of the store.
    pub async fn begin(
        &self,
        origin: &Origin,
        target: Option<KeyId>,
        request: Option<&Idempotency>,
    ) -> Result<Outcome<Standing>, LifecycleError> {
        let begun = self.load_standing(origin, request).await;
        begun.inspect_err(|error| self.note_refusal(origin, target, error))
    }

    /// Reads who asks, and the answer that is kept for the same request.
    pub(super) async fn load_standing(
        &self,
        origin: &Origin,
        request: Option<&Idempotency>,
    ) -> Result<Outcome<Standing>, LifecycleError> {
        let standing = Standing::load(&self.store, origin).await?;
        let authority = standing.admit(origin, self.now())?;
        if let Some(request) = request
            && let Some(sealed) = self.store.answers().find(request.index(), self.clock.kept()).await?
        {
            let answer = request.open(&sealed)?;
            let key = self.visible(authority, key_of(&answer)?).await?;
            authority.check_hears_again(&key.record)?;
            return Ok(Outcome::Repeated(answer));
        }
        Ok(Outcome::Fresh(standing))
    }

    /// Creates a key. Its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// [`LifecycleError`]; then no key was created, except after a fault of the store, which leaves that open.
    pub async fn create_key(&self, origin: &Origin, new: NewKey) -> Result<Made, LifecycleError> {
        let standing = self.begin(origin, None, None).await?.fresh()?;
        self.create_key_once(origin, standing, &new, None).await?.fresh()
    }

    /// Creates a key, once for all requests that are the same. `standing` is from [`Lifecycle::begin`].
    ///
    /// # Errors
    /// As [`Lifecycle::create_key`].
    pub async fn create_key_once(
        &self,
        origin: &Origin,
        standing: Standing,
        new: &NewKey,
        keep: Option<Keep<'_>>,
    ) -> Result<Outcome<Made>, LifecycleError> {
        let keep = keep.as_ref();
        let minting = self.minting().await.inspect_err(|error| self.note_refusal(origin, None, error))?;
        let decide = |begun: &Outcome<Standing>, now: UnixMillis| {
            let standing = match begun {
                Outcome::Repeated(answer) => return Ok(Decided::nothing(Outcome::Repeated(answer.clone()))),
                Outcome::Fresh(standing) => standing,
            };
            let authority = standing.admit(origin, now)?;
            let made = self.draft_key(origin, authority, new, &Making { now, minting: &minting })?;
            let mutation = Mutation {
                key: Some(Change::Insert(made.key.clone())),
                seen: authority.seen(None),
                room: self.room(origin, new.org, self.clock.kept()),
                answer: keep_answer(keep, &made.key, &made.secret, self.clock.kept())?,
                newest: true,
                ..Mutation::default()
            };
            let draft = Draft::of_key(AuditKind::KeyCreated, &made.key).after(self.describe(&made.key));
            Ok(Decided::commit(mutation, draft, Outcome::Fresh(made)))
        };
        let load = || self.load_standing(origin, keep.map(|keep| keep.request));
        let first = Some(Outcome::Fresh(standing));
        let created = self.change(Lane::Making.of(Trail::Org(new.org)), origin, first, load, decide).await;
        created.map(|(outcome, _)| outcome).inspect_err(|error| self.note_refusal(origin, None, error))
    }

    /// The room that a key needs in its organisation to make another one. Operators need none.
    fn room(&self, origin: &Origin, org: OrgId, now: UnixMillis) -> Option<Room> {
        let Principal::Key(calling) = &origin.principal else { return None };
        let most = self.settings.max_per_org;
        let pace = Quota { name: format!("keys:{org}"), limit: NEW_KEYS, window: MINUTE };
        // With a limit of one key, that is the one.
        Some(Room { now, most, maker: calling.id, most_of_maker: most.div_ceil(2), pace })
    }

    /// All mistakes in a new key that do not depend on its maker.
    #[must_use]
    pub fn mistakes_in_new(&self, new: &NewKey) -> Vec<FieldError> {
        new.check(&self.vocabulary(), self.now()).err().unwrap_or_default()
    }

    /// The new key, if its maker may have it.
    pub(in crate::lifecycle) fn draft_key(
        &self,
        origin: &Origin,
        authority: Authority<'_>,
        new: &NewKey,
        &Making { now, minting }: &Making<'_>,
    ) -> Result<Made, LifecycleError> {
        let vocabulary = self.vocabulary();
        let Texts { name, owner, note } = new.check(&vocabulary, now).map_err(LifecycleError::Invalid)?;
        let scopes = new.scopes.clone().unwrap_or_else(|| authority.scopes(&vocabulary));
        let mut key = KeyRecord {
            id: self.draw(|ids| KeyId::draw(ids, now)),
            org: new.org,
            name,
            environment: new.environment,
            scopes,
            secrets: Vec::new(),
            created_at: now,
            created_by: origin.principal.name().to_string(),
            expires_at: new.expires_at,
            disabled_at: None,
            revoked_at: None,
            allowed_addresses: new.allowed_addresses.clone(),
            owner,
            note,
            further: Further::default(),
        };
        authority.bequeath(&mut key);
        authority.check_covers(&key)?;
        let secret = self.mint(&mut key, minting)?;
        Ok(Made { key, secret, propagation: None })
    }
}
