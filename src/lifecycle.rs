//! A key's life: made, listed, revoked. Whoever asks for it (the API, an operator, `dev`), it happens here.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use thiserror::Error;

use crate::clock::{Clock, UnixMillis};
use crate::id::{IdSource, KeyId, OrgId};
use crate::key::record::{KeyRecord, OrgRecord, Secret, Versioned};
use crate::key::scope::ScopeSet;
use crate::key::{ApiKey, Digester, Environment, KeyFormat};
use crate::store::events::Subject;
use crate::store::keeper::Keeper;
use crate::store::{Change, CommitError, Mutation, Store, StoreFault};

/// Names are shown in tables and answers; longer ones would only hide what follows them.
const NAME_LEN: usize = 200;
/// How often a change is decided anew because the record moved under it.
const TRIES: usize = 16;

/// What a new key is to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub org: OrgId,
    pub name: String,
    pub environment: Environment,
    pub scopes: ScopeSet,
    pub expires_at: Option<UnixMillis>,
    /// Who makes it: a key id, or an operator's name.
    pub created_by: String,
}

#[derive(Debug, Error)]
pub enum LifecycleError {
    #[error("{field}: {message}")]
    Invalid { field: &'static str, message: &'static str },
    #[error("there is no organisation {0}")]
    NoOrg(OrgId),
    #[error("there is no key {0}")]
    NoKey(KeyId),
    #[error("{0} keeps changing; try again")]
    Contended(KeyId),
    #[error("the operating system gives no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// An identifier or a secret that was just drawn is taken already, which chance alone does not do.
    #[error("the store holds what was just drawn at random; check its data and the machine's randomness")]
    Collision,
}

/// The one way to change keys.
#[derive(Debug)]
pub struct Lifecycle {
    store: Arc<dyn Store>,
    format: KeyFormat,
    digester: Digester,
    /// The scopes that the policy knows.
    vocabulary: RwLock<ScopeSet>,
    ids: Mutex<IdSource>,
    clock: Clock,
}

impl Lifecycle {
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        format: KeyFormat,
        digester: Digester,
        vocabulary: ScopeSet,
        clock: Clock,
    ) -> Self {
        let vocabulary = RwLock::new(vocabulary);
        Self { store, format, digester, vocabulary, ids: Mutex::default(), clock }
    }

    /// Every scope that the policy knows.
    #[must_use]
    pub fn vocabulary(&self) -> ScopeSet {
        self.vocabulary.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on the policy knows these scopes. What a key already has, it keeps.
    pub fn set_vocabulary(&self, scopes: ScopeSet) {
        *self.vocabulary.write().unwrap_or_else(PoisonError::into_inner) = scopes;
    }

    /// The operator's side of the store.
    #[must_use]
    pub fn keeper(&self) -> &dyn Keeper {
        self.store.keeper()
    }

    /// # Errors
    /// [`LifecycleError`]; nothing was made then.
    pub async fn create_org(&self, name: &str) -> Result<OrgRecord, LifecycleError> {
        let created_at = self.clock.now().wall;
        let id = self.draw(|ids| OrgId::draw(ids, created_at));
        let org = OrgRecord { id, name: parse_name(name)?, created_at, suspended_at: None };
        let mutation = Mutation { org: Some(Change::Insert(org.clone())), ..Mutation::default() };
        match self.store.commit(mutation).await {
            Ok(_) => Ok(org),
            Err(CommitError::Fault(fault)) => Err(fault.into()),
            Err(CommitError::Conflict | CommitError::Exists | CommitError::Missing) => {
                Err(LifecycleError::Collision)
            }
        }
    }

    /// Makes a key. Its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// [`LifecycleError`]; nothing was made then, unless the store could not say.
    pub async fn create_key(&self, new: NewKey) -> Result<(KeyRecord, ApiKey), LifecycleError> {
        let created_at = self.clock.now().wall;
        if new.scopes.is_empty() {
            return Err(LifecycleError::Invalid { field: "scopes", message: "at least one scope is needed" });
        }
        if self.vocabulary().first_missing(&new.scopes).is_some() {
            return Err(LifecycleError::Invalid {
                field: "scopes",
                message: "the policy knows no such scope",
            });
        }
        if new.expires_at.is_some_and(|end| end <= created_at) {
            return Err(LifecycleError::Invalid { field: "expires_at", message: "must lie in the future" });
        }
        let secret = self.format.mint(new.environment)?;
        let digest = self.digester.digest(&secret.presented());
        let last_four = secret.last_four().map(char::from).iter().collect();
        let key = KeyRecord {
            id: self.draw(|ids| KeyId::draw(ids, created_at)),
            org: new.org,
            name: parse_name(&new.name)?,
            environment: new.environment,
            scopes: new.scopes,
            secrets: vec![Secret { digest, last_four, ends_at: None }],
            created_at,
            created_by: new.created_by,
            expires_at: new.expires_at,
            disabled_at: None,
            revoked_at: None,
        };
        let mutation = Mutation { key: Some(Change::Insert(key.clone())), ..Mutation::default() };
        match self.store.commit(mutation).await {
            Ok(_) => Ok((key, secret)),
            Err(CommitError::Missing) => Err(LifecycleError::NoOrg(key.org)),
            Err(CommitError::Fault(fault)) => Err(fault.into()),
            Err(CommitError::Conflict | CommitError::Exists) => Err(LifecycleError::Collision),
        }
    }

    /// Ends a key for ever. Repeating it is safe, and tells the caches again.
    ///
    /// # Errors
    /// [`LifecycleError`]. After a fault of the store, repeat it until it succeeds.
    pub async fn revoke_key(&self, id: KeyId) -> Result<KeyRecord, LifecycleError> {
        for _ in 0..TRIES {
            let Versioned { rev, record } = self.store.key(id).await?.ok_or(LifecycleError::NoKey(id))?;
            let revoked_at = Some(record.revoked_at.unwrap_or_else(|| self.clock.now().wall));
            let record = KeyRecord { revoked_at, ..record };
            let mutation = Mutation {
                subjects: record.secrets.iter().map(|secret| Subject::Revoked(secret.digest)).collect(),
                key: Some(Change::Update { rev, record: record.clone() }),
                ..Mutation::default()
            };
            match self.store.commit(mutation).await {
                Ok(_) => return Ok(record),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Missing) => return Err(LifecycleError::NoKey(id)),
                Err(CommitError::Fault(fault)) => return Err(fault.into()),
                Err(CommitError::Exists) => return Err(LifecycleError::Collision),
            }
        }
        Err(LifecycleError::Contended(id))
    }

    /// At most `limit` keys, newest first, after the key `after`.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn list_keys(
        &self,
        org: Option<OrgId>,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<KeyRecord>, LifecycleError> {
        let keys = self.store.keys(org, after, limit).await?;
        Ok(keys.into_iter().map(|key| key.record).collect())
    }

    /// At most `limit` organisations, newest first, after `after`.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn list_orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> Result<Vec<OrgRecord>, LifecycleError> {
        let orgs = self.store.orgs(after, limit).await?;
        Ok(orgs.into_iter().map(|org| org.record).collect())
    }

    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// How a key is shown after its creation: `fh_live_sk_…wxyz`.
    #[must_use]
    pub fn masked(&self, key: &KeyRecord) -> String {
        let last_four = key.secrets.first().map_or("", |secret| secret.last_four.as_str());
        format!("{}…{last_four}", self.format.head(key.environment))
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut IdSource) -> T) -> T {
        // Whatever a panic left of it is as random as before.
        draw(&mut self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn parse_name(name: &str) -> Result<String, LifecycleError> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > NAME_LEN || name.chars().any(char::is_control) {
        let message = "must be 1 to 200 characters without control characters";
        return Err(LifecycleError::Invalid { field: "name", message });
    }
    Ok(name.to_owned())
}
