//! Keys: made, listed, narrowed, rotated, stopped.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use super::authority::Authority;
use super::idempotency::{Idempotency, Keep, Outcome};
use super::propagation::Changed;
use super::trouble::TroubleSeen;
use super::turn::{Draft, Settled};
use super::{Lifecycle, LifecycleError, Origin, Principal, parse_name, parse_note, parse_owner};
use crate::store::answers::KeptAnswer;
use crate::store::events::Subject;
use crate::store::{Change, Mutation, Propagation};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::admission::Refusal;
use crate::vocabulary::key::record::{Further, KeyRecord, Secret, Status, Versioned};
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::key::{ApiKey, Digest, Environment};
use crate::vocabulary::rejection::FieldError;

/// How long the answer to a request that may be sent twice is kept.
const ANSWER_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the old secret of a rotated key goes on to open it, where nothing else is asked for, and at most.
pub const OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);
pub const OVERLAP_AT_MOST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Networks in a key's list; every request of the key is compared with each.
const ADDRESSES: usize = 100;
/// Keys read at once while a list is put together.
const PAGE: usize = 256;

/// What a new key is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    pub org: OrgId,
    pub name: String,
    pub environment: Environment,
    /// `None` for all that its maker has.
    pub scopes: Option<ScopeSet>,
    pub expires_at: Option<UnixMillis>,
    pub allowed_addresses: Vec<IpNet>,
    pub owner: Option<String>,
    pub note: Option<String>,
}

impl NewKey {
    /// A key with all its maker's scopes that does not end and may be used from anywhere.
    #[must_use]
    pub fn named(org: OrgId, name: &str, environment: Environment) -> Self {
        Self {
            org,
            name: name.to_owned(),
            environment,
            scopes: None,
            expires_at: None,
            allowed_addresses: Vec::new(),
            owner: None,
            note: None,
        }
    }
}

/// What is to be different about a key; `None` leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Some(None)`, JSON's `null`, takes it away; so for the note.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub owner: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub note: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<ScopeSet>,
    /// `Some(None)`: it is not to end.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub expires_at: Option<Option<UnixMillis>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_addresses: Option<Vec<IpNet>>,
}

/// Tells `null` from a field that is not there.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(field: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(field).map(Some)
}

/// A key that was just made or rotated, with the only copy of its secret.
#[derive(Debug)]
pub struct Made {
    pub key: KeyRecord,
    pub secret: ApiKey,
    /// How far the end of the secret before it has come, where there was one.
    pub propagation: Option<Propagation>,
}

/// Some keys, newest first.
#[derive(Debug)]
pub struct KeyPage {
    pub keys: Vec<KeyRecord>,
    pub has_more: bool,
}

/// A network, or a single address. Of IPv4 in IPv6 clothes it is one of IPv4, as the addresses are that it is
/// compared with.
///
/// # Errors
/// What to write instead.
pub fn parse_network(text: &str) -> Result<IpNet, &'static str> {
    let net: Option<IpNet> =
        text.parse().ok().or_else(|| text.parse().ok().map(|address: IpAddr| address.into()));
    net.map(|net| canonical(net.trunc())).ok_or("must be networks such as 192.0.2.0/24 or single addresses")
}

fn canonical(net: IpNet) -> IpNet {
    let mapped = match net.addr() {
        IpAddr::V6(address) => address.to_ipv4_mapped().zip(net.prefix_len().checked_sub(96)),
        IpAddr::V4(_) => None,
    };
    let mapped = mapped.and_then(|(address, prefix)| IpNet::new(address.into(), prefix).ok());
    mapped.unwrap_or(net)
}

impl Lifecycle {
    /// Makes a key. Its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// [`LifecycleError`]; nothing was made then, unless the store could not say.
    pub async fn create_key(&self, origin: &Origin, new: NewKey) -> Result<Made, LifecycleError> {
        match self.create_key_once(origin, new, None).await? {
            Outcome::Fresh(made) => Ok(made),
            Outcome::Repeated(_) => Err(LifecycleError::KeptAnswer),
        }
    }

    /// Makes a key, once for all requests that are the same.
    ///
    /// # Errors
    /// As [`Lifecycle::create_key`].
    pub async fn create_key_once(
        &self,
        origin: &Origin,
        new: NewKey,
        keep: Option<Keep<'_>>,
    ) -> Result<Outcome<Made>, LifecycleError> {
        let made = self.try_create(origin, new, keep).await;
        made.inspect_err(|error| self.note_refusal(origin, None, error))
    }

    async fn try_create(
        &self,
        origin: &Origin,
        new: NewKey,
        keep: Option<Keep<'_>>,
    ) -> Result<Outcome<Made>, LifecycleError> {
        let mut turn = self.turn(Trail::Org(new.org), origin).await;
        loop {
            let now = turn.next()?;
            let authority = Authority::load(&self.store, origin, now).await?;
            if let Some(answer) = self.kept_answer(keep.as_ref(), now).await? {
                return Ok(Outcome::Repeated(answer));
            }
            let made = self.draft_key(origin, &authority, &new, now)?;
            let mutation = Mutation {
                key: Some(Change::Insert(made.key.clone())),
                seen: authority.seen(None),
                answer: keep_answer(keep.as_ref(), &made, now)?,
                ..Mutation::default()
            };
            let draft = Draft::of_key(AuditKind::KeyCreated, &made.key).after(self.describe(&made.key));
            match turn.commit(mutation, draft).await? {
                Settled::Done { .. } => return Ok(Outcome::Fresh(made)),
                Settled::Again => {}
                Settled::Missing => return Err(LifecycleError::NoOrg(new.org)),
                Settled::EmailTaken => return Err(LifecycleError::Collision),
            }
        }
    }

    /// All that is wrong with a new key, whoever asks for it.
    #[must_use]
    pub fn mistakes_in_new(&self, new: &NewKey) -> Vec<FieldError> {
        check_new(new, &self.vocabulary(), self.now()).err().unwrap_or_default()
    }

    /// The new key, if its maker may have it.
    pub(super) fn draft_key(
        &self,
        origin: &Origin,
        authority: &Authority,
        new: &NewKey,
        now: UnixMillis,
    ) -> Result<Made, LifecycleError> {
        let vocabulary = self.vocabulary();
        let Texts { name, owner, note } =
            check_new(new, &vocabulary, now).map_err(LifecycleError::Invalid)?;
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
        let secret = self.mint(&mut key)?;
        Ok(Made { key, secret, propagation: None })
    }

    /// Gives a key a new secret, before those that it has.
    fn mint(&self, key: &mut KeyRecord) -> Result<ApiKey, LifecycleError> {
        let secret = self.settings.format.mint(key.environment)?;
        let digest = self.settings.digester.digest(&secret.presented());
        let last_four = secret.last_four().map(char::from).iter().collect();
        key.secrets.insert(0, Secret { digest, last_four, ends_at: None, further: Further::default() });
        Ok(secret)
    }

    /// The key as whoever asks sees it.
    ///
    /// # Errors
    /// [`LifecycleError::NoKey`] also for a key that is not theirs to see.
    pub async fn key(&self, origin: &Origin, id: KeyId) -> Result<KeyRecord, LifecycleError> {
        let authority = Authority::load(&self.store, origin, self.now()).await?;
        Ok(self.visible(&authority, id).await?.record)
    }

    async fn visible(
        &self,
        authority: &Authority,
        id: KeyId,
    ) -> Result<Versioned<KeyRecord>, LifecycleError> {
        let key = match authority.own(id) {
            // As its caller was judged by, not as it became a moment later.
            Some(own) => Some(own.clone()),
            None => self.store.key(id).await?,
        };
        key.filter(|key| authority.sees(&key.record)).ok_or(LifecycleError::NoKey(id))
    }

    /// At most `limit` keys, newest first, after the key `after`: those that whoever asks may see, of one
    /// organisation or, for an operator, of all.
    ///
    /// # Errors
    /// When the store cannot answer, or the caller is dead.
    pub async fn list_keys(
        &self,
        origin: &Origin,
        org: Option<OrgId>,
        mut after: Option<KeyId>,
        limit: usize,
    ) -> Result<KeyPage, LifecycleError> {
        let authority = Authority::load(&self.store, origin, self.now()).await?;
        let org = match &origin.principal {
            Principal::Key(caller) => Some(caller.org),
            Principal::Operator(_) | Principal::Stranger | Principal::Gateway => org,
        };
        let mut keys = Vec::new();
        loop {
            let wanted = PAGE.min(limit.saturating_add(1));
            let page = self.store.keys(org, after, wanted).await?;
            after = page.last().map(|key| key.record.id);
            let last = page.len() < wanted;
            keys.extend(page.into_iter().map(|key| key.record).filter(|key| authority.sees(key)));
            if keys.len() > limit || last {
                let has_more = keys.len() > limit;
                keys.truncate(limit);
                return Ok(KeyPage { keys, has_more });
            }
        }
    }

    /// Changes what may be changed about a key without giving it more.
    ///
    /// # Errors
    /// [`LifecycleError`]; nothing was changed then, unless the store could not say.
    pub async fn update_key(
        &self,
        origin: &Origin,
        id: KeyId,
        patch: &Patch,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        self.change_key(origin, id, AuditKind::KeyUpdated, |authority, key, now| {
            refuse_ended(key, now)?;
            let vocabulary = self.vocabulary();
            authority.check_covers(key)?;
            // Before what is wrong with it for anybody: whoever asks for more than they have is told so, and on.
            authority.check_gives(&wanted(patch, key, &vocabulary))?;
            apply(patch, key, &vocabulary, now).map_err(LifecycleError::Invalid)
        })
        .await
    }

    /// All that is wrong with a patch of this key.
    ///
    /// # Errors
    /// [`LifecycleError::NoKey`] also for a key that is not theirs to see; a dead caller; a fault of the store.
    pub async fn mistakes_in_patch(
        &self,
        origin: &Origin,
        id: KeyId,
        patch: &Patch,
    ) -> Result<Vec<FieldError>, LifecycleError> {
        let key = self.key(origin, id).await?;
        Ok(apply(patch, &key, &self.vocabulary(), self.now()).err().unwrap_or_default())
    }

    /// Makes a key open nothing until it is enabled again.
    ///
    /// # Errors
    /// As [`Lifecycle::update_key`].
    pub async fn disable_key(
        &self,
        origin: &Origin,
        id: KeyId,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        self.change_key(origin, id, AuditKind::KeyDisabled, |_, key, now| {
            refuse_ended(key, now)?;
            Ok(KeyRecord { disabled_at: Some(key.disabled_at.unwrap_or(now)), ..key.clone() })
        })
        .await
    }

    /// Takes a disabling back.
    ///
    /// # Errors
    /// As [`Lifecycle::update_key`].
    pub async fn enable_key(&self, origin: &Origin, id: KeyId) -> Result<Changed<KeyRecord>, LifecycleError> {
        self.change_key(origin, id, AuditKind::KeyEnabled, |authority, key, now| {
            refuse_ended(key, now)?;
            authority.check_covers(key)?;
            Ok(KeyRecord { disabled_at: None, ..key.clone() })
        })
        .await
    }

    /// Ends a key for ever. Repeating it is safe, and tells the caches again.
    ///
    /// # Errors
    /// [`LifecycleError`]. After a fault of the store, repeat it until it succeeds.
    pub async fn revoke_key(&self, origin: &Origin, id: KeyId) -> Result<Changed<KeyRecord>, LifecycleError> {
        self.change_key(origin, id, AuditKind::KeyRevoked, |_, key, now| {
            Ok(KeyRecord { revoked_at: Some(key.revoked_at.unwrap_or(now)), ..key.clone() })
        })
        .await
    }

    /// Gives a key a new secret. The one that it has goes on to open it for `overlap`; one from before that
    /// ends at once.
    ///
    /// # Errors
    /// As [`Lifecycle::create_key`].
    pub async fn rotate_key(
        &self,
        origin: &Origin,
        id: KeyId,
        overlap: Duration,
        keep: Option<Keep<'_>>,
    ) -> Result<Outcome<Made>, LifecycleError> {
        if overlap > OVERLAP_AT_MOST {
            return Err(LifecycleError::invalid("overlap_seconds", "must be from 0 to 604800, seven days"));
        }
        let org = self.org_of(id).await?;
        let rotated = self.try_rotate(origin, org, id, overlap, keep).await;
        rotated.inspect_err(|error| self.note_refusal(origin, Some(id), error))
    }

    async fn try_rotate(
        &self,
        origin: &Origin,
        org: OrgId,
        id: KeyId,
        overlap: Duration,
        keep: Option<Keep<'_>>,
    ) -> Result<Outcome<Made>, LifecycleError> {
        let mut turn = self.turn(Trail::Org(org), origin).await;
        loop {
            let now = turn.next()?;
            let authority = Authority::load(&self.store, origin, now).await?;
            if let Some(answer) = self.kept_answer(keep.as_ref(), now).await? {
                return Ok(Outcome::Repeated(answer));
            }
            let Versioned { rev, record: before } = self.visible(&authority, id).await?;
            refuse_ended(&before, now)?;
            authority.check_covers(&before)?;
            let ends_at = now.plus(overlap);
            let mut key = KeyRecord { secrets: ended(&before.secrets, ends_at, now), ..before.clone() };
            let secret = self.mint(&mut key)?;
            let made = Made { key, secret, propagation: None };
            let mutation = Mutation {
                subjects: rotated(&before, &made.key, now),
                seen: authority.seen(Some(id)),
                answer: keep_answer(keep.as_ref(), &made, now)?,
                key: Some(Change::Update { rev, record: made.key.clone() }),
                ..Mutation::default()
            };
            let draft = Draft::of_key(AuditKind::KeyRotated, &before)
                .before(json!({ "key": self.masked(&before) }))
                .after(json!({ "key": self.masked(&made.key), "old_secret_ends_at": ends_at.to_string() }));
            match turn.commit(mutation, draft).await? {
                Settled::Done { event } => {
                    drop(turn);
                    let propagation = self
                        .propagate(Trail::Org(org), Some(before.environment), id.to_string(), event)
                        .await;
                    return Ok(Outcome::Fresh(Made { propagation, ..made }));
                }
                Settled::Again => {}
                Settled::Missing => return Err(LifecycleError::NoKey(id)),
                Settled::EmailTaken => return Err(LifecycleError::Collision),
            }
        }
    }

    /// Changes a key's record as `decide` says, and tells the caches.
    async fn change_key(
        &self,
        origin: &Origin,
        id: KeyId,
        kind: AuditKind,
        decide: impl Fn(&Authority, &KeyRecord, UnixMillis) -> Result<KeyRecord, LifecycleError>,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        let org = self.org_of(id).await?;
        let changed = self.try_change(origin, org, id, kind, decide).await;
        changed.inspect_err(|error| self.note_refusal(origin, Some(id), error))
    }

    async fn try_change(
        &self,
        origin: &Origin,
        org: OrgId,
        id: KeyId,
        kind: AuditKind,
        decide: impl Fn(&Authority, &KeyRecord, UnixMillis) -> Result<KeyRecord, LifecycleError>,
    ) -> Result<Changed<KeyRecord>, LifecycleError> {
        let mut turn = self.turn(Trail::Org(org), origin).await;
        loop {
            let now = turn.next()?;
            let authority = Authority::load(&self.store, origin, now).await?;
            let Versioned { rev, record: before } = self.visible(&authority, id).await?;
            let record = decide(&authority, &before, now)?;
            let draft =
                Draft::of_key(kind, &before).difference(&self.describe(&before), &self.describe(&record));
            let mutation = Mutation {
                subjects: if record.revoked_at.is_some() { revoked(&before) } else { subjects(&before) },
                seen: authority.seen(Some(id)),
                key: Some(Change::Update { rev, record: record.clone() }),
                ..Mutation::default()
            };
            match turn.commit(mutation, draft).await? {
                Settled::Done { event } => {
                    drop(turn);
                    let propagation = self
                        .propagate(Trail::Org(org), Some(before.environment), id.to_string(), event)
                        .await;
                    return Ok(Changed { record, propagation });
                }
                Settled::Again => {}
                Settled::Missing => return Err(LifecycleError::NoKey(id)),
                Settled::EmailTaken => return Err(LifecycleError::Collision),
            }
        }
    }

    /// Whose key it is, which never changes.
    async fn org_of(&self, id: KeyId) -> Result<OrgId, LifecycleError> {
        Ok(self.store.key(id).await?.ok_or(LifecycleError::NoKey(id))?.record.org)
    }

    /// The answer to a request that was carried out before. It comes before all that is judged by the present: a
    /// time that lay in the future then, or a scope that there was.
    ///
    /// # Errors
    /// [`LifecycleError::IdempotencyMismatch`] for another request under the same name; a dead caller; a fault of
    /// the store.
    pub async fn answered(
        &self,
        origin: &Origin,
        request: &Idempotency,
    ) -> Result<Option<Vec<u8>>, LifecycleError> {
        let now = self.now();
        Authority::load(&self.store, origin, now).await?;
        self.find_answer(request, now).await
    }

    async fn kept_answer(
        &self,
        keep: Option<&Keep<'_>>,
        now: UnixMillis,
    ) -> Result<Option<Vec<u8>>, LifecycleError> {
        match keep {
            Some(Keep { request, .. }) => self.find_answer(request, now).await,
            None => Ok(None),
        }
    }

    async fn find_answer(
        &self,
        request: &Idempotency,
        now: UnixMillis,
    ) -> Result<Option<Vec<u8>>, LifecycleError> {
        let sealed = self.store.answers().find(request.index(), now).await?;
        sealed.map(|sealed| request.open(&sealed)).transpose()
    }

    /// Whoever asks for more than they have is trouble; that they are told no is not enough.
    fn note_refusal(&self, origin: &Origin, key: Option<KeyId>, error: &LifecycleError) {
        let Principal::Key(caller) = &origin.principal else { return };
        let wanted = match error {
            LifecycleError::MissingScope(scope) | LifecycleError::Caller(Refusal::MissingScope(scope)) => {
                json!({ "missing_scope": scope })
            }
            LifecycleError::Escalation(escalation) => json!({ "escalation": escalation.as_str() }),
            _ => return,
        };
        self.troubles.report(TroubleSeen {
            // Another organisation's trail is none of theirs to write in.
            trail: Trail::Org(caller.org),
            kind: AuditKind::EscalationRefused,
            origin: origin.clone(),
            environment: caller.environment,
            target: key.map(|key| key.to_string()),
            seen: wanted,
        });
    }
}

fn keep_answer(
    keep: Option<&Keep<'_>>,
    made: &Made,
    now: UnixMillis,
) -> Result<Option<KeptAnswer>, LifecycleError> {
    let Some(Keep { request, render }) = keep else { return Ok(None) };
    let sealed = request.seal(&zeroize::Zeroizing::new(render(&made.key, &made.secret)))?;
    let ends_at = now.plus(ANSWER_KEPT);
    Ok(Some(KeptAnswer { index: request.index(), sealed, made_at: now, ends_at }))
}

/// The secrets of a key that gets a new one: the present one until `ends_at`, and the first of all, which opens
/// nothing any more. A key that was moved in is known by it: should its line be moved in again, the secret, which may
/// have leaked, must not be taken for a new one.
fn ended(secrets: &[Secret], ends_at: UnixMillis, now: UnixMillis) -> Vec<Secret> {
    let end = |secret: &Secret, at: UnixMillis| {
        let ends_at = Some(secret.ends_at.map_or(at, |end| end.min(at)));
        Secret { ends_at, ..secret.clone() }
    };
    let present = secrets.first().map(|secret| end(secret, ends_at));
    let first = secrets.get(1..).and_then(<[Secret]>::last).map(|secret| end(secret, now));
    present.into_iter().chain(first).collect()
}

/// Everything that is cached of a key.
fn subjects(key: &KeyRecord) -> Vec<Subject> {
    key.secrets.iter().map(|secret| Subject::Digest(secret.digest)).collect()
}

/// The same when it gets a new secret. One that ends with that may have leaked, and is never to open it again.
fn rotated(before: &KeyRecord, after: &KeyRecord, now: UnixMillis) -> Vec<Subject> {
    let goes_on = |digest: &Digest| {
        let mut secrets = after.secrets.iter();
        secrets.any(|secret| secret.digest == *digest && secret.ends_at.is_none_or(|end| end > now))
    };
    let subject = |digest| if goes_on(&digest) { Subject::Digest(digest) } else { Subject::Revoked(digest) };
    before.secrets.iter().map(|secret| subject(secret.digest)).collect()
}

/// The same of a key that has ended for good, which the caches remember should the store forget it.
fn revoked(key: &KeyRecord) -> Vec<Subject> {
    key.secrets.iter().map(|secret| Subject::Revoked(secret.digest)).collect()
}

/// What has ended for good stays as it is.
fn refuse_ended(key: &KeyRecord, now: UnixMillis) -> Result<(), LifecycleError> {
    match key.status_at(now) {
        Status::Revoked => Err(LifecycleError::Revoked(key.id)),
        Status::Expired => Err(LifecycleError::Expired(key.id)),
        Status::Active | Status::Disabled => Ok(()),
    }
}

pub(super) fn check_scopes(scopes: &ScopeSet, vocabulary: &ScopeSet, errors: &mut Vec<FieldError>) {
    if scopes.is_empty() {
        errors.push(FieldError::new("scopes", "at least one scope is needed"));
    } else if let Some(unknown) = vocabulary.first_missing(scopes) {
        let message = format!("there is no scope {unknown}").into();
        errors.push(FieldError { field: "scopes".into(), message });
    }
}

pub(super) fn check_addresses(addresses: &[IpNet], errors: &mut Vec<FieldError>) {
    if addresses.len() > ADDRESSES {
        errors.push(FieldError::new("allowed_addresses", "must be at most 100 networks"));
    }
}

pub(super) fn take<T>(parsed: Result<T, FieldError>, errors: &mut Vec<FieldError>) -> Option<T> {
    parsed.map_err(|error| errors.push(error)).ok()
}

/// What is written of a key in its owner's own words.
struct Texts {
    name: String,
    owner: Option<String>,
    note: Option<String>,
}

fn check_new(new: &NewKey, vocabulary: &ScopeSet, now: UnixMillis) -> Result<Texts, Vec<FieldError>> {
    let mut errors = Vec::new();
    // Those of the maker need no check: they were in the vocabulary when it was given them.
    check_scopes(new.scopes.as_ref().unwrap_or(vocabulary), vocabulary, &mut errors);
    if new.expires_at.is_some_and(|end| end <= now) {
        errors.push(FieldError::new("expires_at", "must lie in the future"));
    }
    check_addresses(&new.allowed_addresses, &mut errors);
    let name = take(parse_name(&new.name), &mut errors);
    let owner = new.owner.as_deref().and_then(|owner| take(parse_owner(owner), &mut errors));
    let note = new.note.as_deref().and_then(|note| take(parse_note(note), &mut errors));
    match name {
        Some(name) if errors.is_empty() => Ok(Texts { name, owner, note }),
        _ => Err(errors),
    }
}

/// What a patch would make a key be able to do, whether or not it may; scopes that there are not, give nothing.
fn wanted(patch: &Patch, key: &KeyRecord, vocabulary: &ScopeSet) -> KeyRecord {
    let scopes = patch.scopes.clone().filter(|scopes| vocabulary.first_missing(scopes).is_none());
    KeyRecord {
        scopes: scopes.unwrap_or_else(|| key.scopes.clone()),
        expires_at: patch.expires_at.unwrap_or(key.expires_at),
        allowed_addresses: patch.allowed_addresses.clone().unwrap_or_else(|| key.allowed_addresses.clone()),
        ..key.clone()
    }
}

/// The key as the patch wants it. Scopes and life only ever become less.
fn apply(
    patch: &Patch,
    key: &KeyRecord,
    vocabulary: &ScopeSet,
    now: UnixMillis,
) -> Result<KeyRecord, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut patched = key.clone();
    if let Some(name) = patch.name.as_deref().and_then(|name| take(parse_name(name), &mut errors)) {
        patched.name = name;
    }
    if let Some(owner) = &patch.owner {
        patched.owner = owner.as_deref().and_then(|owner| take(parse_owner(owner), &mut errors));
    }
    if let Some(note) = &patch.note {
        patched.note = note.as_deref().and_then(|note| take(parse_note(note), &mut errors));
    }
    if let Some(scopes) = &patch.scopes {
        let before = errors.len();
        check_scopes(scopes, vocabulary, &mut errors);
        if errors.len() == before && key.scopes.first_missing(scopes).is_some() {
            errors.push(FieldError::new("scopes", "can only become fewer; make a new key for more"));
        }
        patched.scopes = scopes.clone();
    }
    if let Some(expires_at) = patch.expires_at {
        let later = match (key.expires_at, expires_at) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(end)) => end > before,
        };
        if later {
            errors.push(FieldError::new("expires_at", "can only become earlier; make a new key for longer"));
        } else if expires_at.is_some_and(|end| end <= now) {
            errors
                .push(FieldError::new("expires_at", "must lie in the future; revoke the key to end it now"));
        }
        patched.expires_at = expires_at;
    }
    if let Some(addresses) = &patch.allowed_addresses {
        check_addresses(addresses, &mut errors);
        patched.allowed_addresses.clone_from(addresses);
    }
    if errors.is_empty() { Ok(patched) } else { Err(errors) }
}
