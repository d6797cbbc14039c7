//! The target of a route: an upstream, or an operation of keygate's own.

pub use crate::vocabulary::upstream::UpstreamId;

/// The target of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Upstream(UpstreamId),
    Operation(Operation),
}

/// The operations that keygate itself serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Signup,
    CreateKey,
    ListKeys,
    GetOwnKey,
    GetKey,
    UpdateKey,
    RotateKey,
    RevokeKey,
    ListAuditRecords,
}

impl Operation {
    pub const ALL: [Self; 9] = [
        Self::Signup,
        Self::CreateKey,
        Self::ListKeys,
        Self::GetOwnKey,
        Self::GetKey,
        Self::UpdateKey,
        Self::RotateKey,
        Self::RevokeKey,
        Self::ListAuditRecords,
    ];

    /// Its name in the policy, after `serve =`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Signup => "signup",
            Self::CreateKey => "keys.create",
            Self::ListKeys => "keys.list",
            Self::GetOwnKey => "keys.self",
            Self::GetKey => "keys.get",
            Self::UpdateKey => "keys.update",
            Self::RotateKey => "keys.rotate",
            Self::RevokeKey => "keys.revoke",
            Self::ListAuditRecords => "audit.list",
        }
    }

    /// Whether the request's body says what is wanted. The body of any other operation is not read.
    #[must_use]
    pub const fn takes_body(self) -> bool {
        matches!(self, Self::Signup | Self::CreateKey | Self::UpdateKey | Self::RotateKey)
    }

    /// Whether it can take rights away. Then no limit refuses it, and it is carried out also if its caller leaves.
    #[must_use]
    pub const fn takes_away(self) -> bool {
        matches!(self, Self::RevokeKey | Self::UpdateKey)
    }

    /// Whether the same request twice would make two of something.
    #[must_use]
    pub const fn makes_something(self) -> bool {
        matches!(self, Self::CreateKey | Self::RotateKey)
    }
}
