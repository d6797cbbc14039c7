//! The prefixes of keys: which ones the store accepts, which one a new key gets, and how each key is shown.
//!
//! A configuration with another prefix refuses no key. Its prefix is added to those that the store accepts, and new keys
//! get it as soon as every gateway knows it: a gateway that does not would refuse them. A prefix stays accepted until an
//! operator removes it, and only one that no key has any more can be removed: to accept one costs a comparison, and to
//! forget one turns good keys into 401.

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::json;

use super::Lifecycle;
use super::audit::Draft;
use super::error::{LifecycleError, PrefixError};
use super::principal::Origin;
use crate::store::prefixes::Register;
use crate::store::{KeysOf, StoreFault};
use crate::telemetry::Notice;
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::key::record::{KeyRecord, Secret};
use crate::vocabulary::key::{Prefix, Prefixes};

/// How often a change of the list is tried when another gateway changes it at the same time.
const TRIES: usize = 16;
/// Keys read at once while a prefix is looked for.
const PAGE: usize = 256;

/// The prefixes as this process last read them.
#[derive(Debug, Default)]
pub(super) struct Known {
    list: RwLock<Option<Arc<Prefixes>>>,
    /// The prefix that new keys got last, for the log.
    minted: RwLock<Option<Prefix>>,
}

impl Known {
    fn list(&self) -> Option<Arc<Prefixes>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether this is another prefix than the last time.
    fn note_minted(&self, prefix: &Prefix) -> bool {
        let mut minted = self.minted.write().unwrap_or_else(PoisonError::into_inner);
        let is_other = minted.as_ref() != Some(prefix);
        *minted = Some(prefix.clone());
        is_other
    }
}

/// What a new secret begins with.
#[derive(Clone, Debug)]
pub(super) struct Minting {
    pub(super) prefix: Prefix,
    /// The same as the record of the secret names it.
    pub(super) named: Option<Prefix>,
}

impl Lifecycle {
    /// The accepted prefixes, as far as this process knows; until it has read them, that of the configuration.
    #[must_use]
    pub fn prefixes(&self) -> Arc<Prefixes> {
        self.known_prefixes
            .list()
            .unwrap_or_else(|| Arc::new(Prefixes::new(self.settings.prefix.clone(), false)))
    }

    /// Notes the prefixes as they were read.
    pub fn note_prefixes(&self, prefixes: Prefixes) {
        *self.known_prefixes.list.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(prefixes));
    }

    /// Reads the prefixes, for a process that does not follow them. It changes nothing.
    pub async fn read_prefixes(&self) {
        // A store that cannot answer says so to whatever is asked next.
        if let Ok(Register { prefixes: Some(prefixes), .. }) = self.keeper().prefixes().register().await {
            self.note_prefixes(prefixes);
        }
    }

    /// Adds the prefix of the configuration to those that the store accepts, and returns whether it is among them now.
    /// While that cannot be, for instance because a gateway of an older release runs, the log says why, and new keys get
    /// another prefix.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn propose_prefix(&self) -> Result<bool, LifecycleError> {
        let (list, _) = self.propose().await?;
        Ok(list.accepts(&self.settings.prefix))
    }

    async fn propose(&self) -> Result<(Prefixes, Register), LifecycleError> {
        let own = &self.settings.prefix;
        let (mut register, refusal) = match self.add_prefix(&Origin::gateway(), own).await {
            Ok(register) => (register, None),
            Err(LifecycleError::Store(StoreFault::Outdated(text))) => {
                (self.keeper().prefixes().register().await?, Some(text.to_string()))
            }
            Err(error @ LifecycleError::Prefix(_)) => {
                (self.keeper().prefixes().register().await?, Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        let list = register.prefixes.take().unwrap_or_else(|| Prefixes::new(own.clone(), false));
        if let Some(refusal) = refusal
            && self.known_prefixes.note_minted(list.to_mint(own, &register.gateways))
        {
            Notice::PrefixWaits.log(&format!("keys.prefix: {own} is not accepted yet: {refusal}"));
        }
        self.note_prefixes(list.clone());
        Ok((list, register))
    }

    /// Accepts a prefix, for an operator.
    ///
    /// # Errors
    /// When the store accepts too many already, or cannot answer, or a gateway of an older release holds a lease.
    pub async fn accept_prefix(&self, origin: &Origin, prefix: &Prefix) -> Result<Prefixes, LifecycleError> {
        let register = self.add_prefix(origin, prefix).await?;
        let list = register.prefixes.unwrap_or_else(|| Prefixes::new(prefix.clone(), false));
        self.note_prefixes(list.clone());
        Ok(list)
    }

    /// Accepts a prefix, unless that is so already. A store that names none gets that of the configuration first.
    async fn add_prefix(&self, origin: &Origin, prefix: &Prefix) -> Result<Register, LifecycleError> {
        for _ in 0..TRIES {
            let register = self.keeper().prefixes().register().await?;
            let after = match &register.prefixes {
                Some(list) if list.accepts(prefix) => return Ok(register),
                Some(list) => list.with(prefix).map_err(PrefixError::from)?,
                None => Prefixes::new(self.settings.prefix.clone(), !register.has_keys),
            };
            let is_first = register.prefixes.is_none();
            if !self.keeper().prefixes().rewrite(register.prefixes, after).await? {
                continue;
            }
            if !is_first {
                self.tell_change(origin, AuditKind::PrefixAccepted, prefix).await?;
                Notice::PrefixAccepted
                    .log(&format!("keys with the prefix {prefix} are accepted from now on"));
            } else if register.has_keys {
                Notice::PrefixesUnknown.log(&format!(
                    "the store did not say what its keys begin with, because an older release made them: they are shown \
                     with {}, and a key with another prefix is looked up too",
                    self.settings.prefix
                ));
            }
        }
        Err(LifecycleError::Contended(Trail::Operator))
    }

    /// Accepts a prefix no longer. It must be one that no key has which could still be used: so this takes no right away.
    ///
    /// # Errors
    /// [`PrefixError`], whose text says what to do; and when the store cannot answer.
    pub async fn remove_prefix(&self, origin: &Origin, prefix: &Prefix) -> Result<Prefixes, LifecycleError> {
        for _ in 0..TRIES {
            let register = self.keeper().prefixes().register().await?;
            let Some(list) = register.prefixes.filter(|list| list.accepts(prefix)) else {
                return Err(PrefixError::Absent(prefix.clone()).into());
            };
            if *prefix == self.settings.prefix {
                return Err(PrefixError::Configured(prefix.clone()).into());
            }
            let book = self.keeper().prefixes();
            // A key with it that comes from now on, at whichever gateway, is not counted, but ends the removal.
            book.begin_removal(prefix).await?;
            let keys = self.count_keys_with(&list, prefix).await?;
            if keys > 0 {
                return Err(PrefixError::InUse { prefix: prefix.clone(), keys }.into());
            }
            let after = list.without(prefix);
            if book.remove(list, prefix).await? {
                self.tell_change(origin, AuditKind::PrefixRemoved, prefix).await?;
                self.note_prefixes(after.clone());
                return Ok(after);
            }
        }
        Err(LifecycleError::Contended(Trail::Operator))
    }

    /// The keys that can still be used by a secret with this prefix: now, after they are enabled, or after an operator gave
    /// them a later end.
    async fn count_keys_with(&self, list: &Prefixes, prefix: &Prefix) -> Result<u64, LifecycleError> {
        let (mut count, mut after) = (0, None);
        loop {
            let keys = self.store.keys(KeysOf::All, after, PAGE).await?;
            let now = self.now();
            let begins = |secret: &Secret| secret.prefix.as_ref().unwrap_or_else(|| list.first()) == prefix;
            let has =
                |key: &KeyRecord| key.secrets.iter().any(|secret| begins(secret) && key.can_use(secret, now));
            count += keys.iter().filter(|key| has(&key.record)).count() as u64;
            after = keys.last().map(|key| key.record.id);
            if keys.len() < PAGE {
                return Ok(count);
            }
        }
    }

    async fn tell_change(
        &self,
        origin: &Origin,
        kind: AuditKind,
        prefix: &Prefix,
    ) -> Result<(), LifecycleError> {
        let draft = || Draft::about(kind, None, None).after(json!({ "prefix": prefix }));
        self.record(Trail::Operator, origin, draft).await
    }

    /// What a new secret begins with now. The store is asked only where the configuration's prefix is not the store's
    /// first, which every gateway knows.
    pub(super) async fn minting(&self) -> Result<Minting, LifecycleError> {
        let own = &self.settings.prefix;
        if let Some(list) = self.known_prefixes.list()
            && list.first() == own
            && list.accepts(own)
        {
            return Ok(Minting { prefix: own.clone(), named: None });
        }
        let (list, register) = self.propose().await?;
        let prefix = list.to_mint(own, &register.gateways).clone();
        if self.known_prefixes.note_minted(&prefix) {
            Notice::PrefixOfNewKeys.log(&if prefix == *own {
                format!("new keys begin with {prefix}")
            } else {
                format!("new keys begin with {prefix} until every gateway knows {own}")
            });
        }
        let named = Some(prefix.clone()).filter(|prefix| prefix != list.first());
        Ok(Minting { prefix, named })
    }

    /// How a key is shown after its creation: `fh_live_sk_…wxyz`.
    #[must_use]
    pub fn masked(&self, key: &KeyRecord) -> String {
        let secret = key.secrets.first();
        let last_four = secret.map_or("", |secret| secret.last_four.as_str());
        let list = self.prefixes();
        let prefix = secret.and_then(|secret| secret.prefix.as_ref()).unwrap_or_else(|| list.first());
        format!("{}…{last_four}", prefix.head(key.environment))
    }
}
