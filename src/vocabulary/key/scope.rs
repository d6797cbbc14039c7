//! Scopes: the rights of a key. Routes require them by name.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One scope, as in `jobs:read`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope(Box<str>);

impl Scope {
    /// # Errors
    /// Anything but 1 to 64 characters of `a-z 0-9 _ . : -` that begin with a letter or digit. So a scope needs no
    /// escaping in a header.
    pub fn parse(text: &str) -> Result<Self, InvalidScope> {
        let bytes = text.as_bytes();
        let allowed = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.:-".contains(b);
        let well_formed =
            (1..=64).contains(&bytes.len()) && bytes[0].is_ascii_alphanumeric() && bytes.iter().all(allowed);
        if well_formed { Ok(Self(text.into())) } else { Err(InvalidScope(text.to_owned())) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Scope {
    type Error = InvalidScope;

    fn try_from(text: String) -> Result<Self, InvalidScope> {
        Self::parse(&text)
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.0.into()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a scope: use 1 to 64 characters of a-z 0-9 _ . : - as in \"jobs:read\"")]
pub struct InvalidScope(String);

/// A set of scopes, sorted. Empty means nothing is allowed, never everything.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(from = "Vec<Scope>", into = "Vec<Scope>")]
pub struct ScopeSet(Box<[Scope]>);

impl ScopeSet {
    /// The first scope of `wanted` that is not in this set.
    #[must_use]
    pub fn first_missing<'w>(&self, wanted: &'w Self) -> Option<&'w Scope> {
        wanted.0.iter().find(|scope| self.0.binary_search(scope).is_err())
    }

    /// The first scope that is in both sets.
    #[must_use]
    pub fn first_common<'s>(&'s self, other: &Self) -> Option<&'s Scope> {
        self.0.iter().find(|scope| other.0.binary_search(scope).is_ok())
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut scopes: Vec<Scope> = scopes.into_iter().collect();
        scopes.sort_unstable();
        scopes.dedup();
        Self(scopes.into())
    }
}

impl From<Vec<Scope>> for ScopeSet {
    fn from(scopes: Vec<Scope>) -> Self {
        scopes.into_iter().collect()
    }
}

impl From<ScopeSet> for Vec<Scope> {
    fn from(set: ScopeSet) -> Self {
        set.0.into()
    }
}

/// Separated by single spaces, as in OAuth (RFC 6749, section 3.3).
impl fmt::Display for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, scope) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            f.write_str(scope.as_str())?;
        }
        Ok(())
    }
}

/// Scopes of which one is enough. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOf(ScopeSet);

impl OneOf {
    /// `None` for an empty set, of which nothing is enough.
    #[must_use]
    pub fn new(scopes: ScopeSet) -> Option<Self> {
        if scopes.is_empty() { None } else { Some(Self(scopes)) }
    }

    #[must_use]
    pub const fn scopes(&self) -> &ScopeSet {
        &self.0
    }
}

impl From<Scope> for OneOf {
    fn from(scope: Scope) -> Self {
        Self([scope].into_iter().collect())
    }
}

/// For people, as in `a:x, b:x or c:x`.
impl fmt::Display for OneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes = &self.0.0;
        for (n, scope) in scopes.iter().enumerate() {
            match scopes.len() - n {
                _ if n == 0 => {}
                1 => f.write_str(" or ")?,
                _ => f.write_str(", ")?,
            }
            f.write_str(scope.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> ScopeSet {
        names.iter().map(|name| Scope::parse(name).unwrap()).collect()
    }

    #[test]
    fn an_empty_set_allows_nothing_and_asks_for_nothing() {
        let wanted = set(&["jobs:read"]);
        assert_eq!(ScopeSet::default().first_missing(&wanted), Some(&Scope::parse("jobs:read").unwrap()));
        assert_eq!(ScopeSet::default().first_missing(&ScopeSet::default()), None);
    }

    #[test]
    fn every_wanted_scope_must_be_held() {
        let held = set(&["webhooks:read", "jobs:read"]);
        assert_eq!(held.first_missing(&set(&["jobs:read"])), None);
        assert_eq!(held.first_missing(&set(&["jobs:read", "webhooks:read"])), None);
        assert!(held.first_missing(&set(&["jobs:read", "jobs:write"])).is_some());
        assert!(held.first_missing(&set(&["jobs"])).is_some(), "a scope is no prefix of another");
    }

    #[test]
    fn alternatives_are_named_with_or_between_them() {
        let shown = |names: &[&str]| OneOf::new(set(names)).map(|one_of| one_of.to_string());
        assert_eq!(shown(&["a:x"]).as_deref(), Some("a:x"));
        assert_eq!(shown(&["b:x", "a:x"]).as_deref(), Some("a:x or b:x"));
        assert_eq!(shown(&["c:x", "b:x", "a:x"]).as_deref(), Some("a:x, b:x or c:x"));
        assert_eq!(shown(&[]), None);
    }

    #[test]
    fn a_scope_can_stand_in_a_header_as_it_is() {
        for bad in ["", "Jobs:read", "jobs read", "jobs:read\r\nx: y", ":jobs", &"a".repeat(65), "jobs,read"]
        {
            assert!(Scope::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(set(&["b:x", "a:x", "b:x"]).to_string(), "a:x b:x");
    }
}
