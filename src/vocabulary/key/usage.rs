//! When a key was last used, and which of its scopes were used. It is kept apart from the key's record, because it
//! changes often and never takes a right away.

use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::scope::ScopeSet;

/// The use of a key so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub last_used_at: UnixMillis,
    /// All scopes that routes have required of it since it was created.
    pub scopes: ScopeSet,
}

/// Use of a key that is not stored yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    pub key: KeyId,
    pub usage: Usage,
}

impl Usage {
    /// Both combined: the later time, all scopes.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            last_used_at: self.last_used_at.max(other.last_used_at),
            scopes: [self.scopes, other.scopes].into_iter().flat_map(Vec::from).collect(),
        }
    }
}

/// The form in a store: milliseconds, then the scopes, separated by spaces. Scopes are kept by name, so that a
/// changed policy does not change the meaning of stored use.
impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.last_used_at.0)?;
        self.scopes.iter().try_for_each(|scope| write!(f, " {scope}"))
    }
}

impl Usage {
    /// `None` for a text that [`Usage`] does not print.
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
