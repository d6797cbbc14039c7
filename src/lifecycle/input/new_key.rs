//! A key that is to be made.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::fields::Mistakes;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::rejection::FieldError;

/// The wanted properties of a new key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    pub org: OrgId,
    pub name: String,
    pub environment: Environment,
    /// `None` for all scopes of its maker.
    pub scopes: Option<ScopeSet>,
    pub expires_at: Option<UnixMillis>,
    pub allowed_addresses: Vec<IpNet>,
    pub owner: Option<String>,
    pub note: Option<String>,
}

impl NewKey {
    /// A key with all its maker's scopes, without an end, for every address.
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

    /// Checks everything that does not depend on the maker.
    ///
    /// # Errors
    /// Every mistake.
    pub(in crate::lifecycle) fn check(
        &self,
        vocabulary: &ScopeSet,
        now: UnixMillis,
    ) -> Result<Texts, Vec<FieldError>> {
        let mut mistakes = Mistakes::default();
        // The maker's own scopes need no check: the policy knew them when the maker got them.
        mistakes.scopes(self.scopes.as_ref().unwrap_or(vocabulary), vocabulary);
        if self.expires_at.is_some_and(|end| end <= now) {
            mistakes.add("expires_at", "must lie in the future");
        }
        mistakes.addresses(&self.allowed_addresses);
        let name = mistakes.name(&self.name);
        let owner = mistakes.owner(self.owner.as_deref());
        let note = mistakes.note(self.note.as_deref());
        mistakes.finish(name.map(|name| Texts { name, owner, note }))
    }
}

/// The checked texts of a new key.
#[derive(Debug)]
pub(in crate::lifecycle) struct Texts {
    pub(in crate::lifecycle) name: String,
    pub(in crate::lifecycle) owner: Option<String>,
    pub(in crate::lifecycle) note: Option<String>,
}
