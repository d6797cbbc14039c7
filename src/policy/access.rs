//! The conditions of a route for the sender of a request.

use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::Needs;

/// The senders who may use a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a key. A request that names no environment goes to the upstream of this one.
    Public { environment: Environment },
    /// The holder of any valid key.
    AnyKey,
    /// The holder of a valid key with these scopes. Never empty.
    Scopes(Needs),
}

impl Access {
    /// The scopes that it asks for, if any.
    #[must_use]
    pub const fn needs(&self) -> Option<&Needs> {
        match self {
            Self::Scopes(needs) => Some(needs),
            Self::Public { .. } | Self::AnyKey => None,
        }
    }
}
