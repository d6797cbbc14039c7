//! When a key was last used, and which of its scopes: apart from its record, because it changes all the time
//! and takes no right away.

use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::scope::ScopeSet;

/// What is known of a key's use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub last_used_at: UnixMillis,
    /// Every scope that a route has asked of it since it was made.
    pub scopes: ScopeSet,
}

/// Use of a key that is yet to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    pub key: KeyId,
    pub usage: Usage,
}

impl Usage {
    /// Both together: the later moment, all scopes.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            last_used_at: self.last_used_at.max(other.last_used_at),
            scopes: [self.scopes, other.scopes].into_iter().flat_map(Vec::from).collect(),
        }
    }
}

/// As a store keeps it: the milliseconds, then each scope, separated by blanks. Scopes by name, so that a
/// policy may change without the past changing its meaning.
impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.last_used_at.0)?;
        self.scopes.iter().try_for_each(|scope| write!(f, " {scope}"))
    }
}

impl Usage {
    /// `None` for what [`Usage`] does not print.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let last_used_at = UnixMillis(parts.next()?.parse().ok()?);
        let scopes =
            parts.map(crate::vocabulary::key::scope::Scope::parse).collect::<Result<ScopeSet, _>>().ok()?;
        Some(Self { last_used_at, scopes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_survives_the_store_and_grows_only() {
        let usage = |text: &str| Usage::parse(text).unwrap();
        assert_eq!(usage("17 a:x b:y").to_string(), "17 a:x b:y");
        assert_eq!(usage("17").scopes, ScopeSet::default());
        assert_eq!(usage("17 b").merge(usage("9 a")), usage("17 a b"));
        for bad in ["", "x", "1 A", "1  a"] {
            assert_eq!(Usage::parse(bad), None, "{bad:?}");
        }
    }
}
