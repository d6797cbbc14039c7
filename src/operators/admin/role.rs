//! Roles of tokens: which commands the bearer of a token may give, and for which organisations.
//!
//! A command says what it asks for in [`Needs::of`], which names every command, so that a new one does not compile
//! until it is there. What a command names itself is judged here, before it is carried out. Where it names only a key,
//! its organisation is known later, and the lifecycle judges it: the operator's origin says how far the token reaches.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::order::{AuditCommand, Command, KeyCommand, OrgCommand, StoreCommand, UpstreamCommand};
use crate::vocabulary::audit::Trail;
use crate::vocabulary::id::OrgId;

/// The commands that a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Looking at organisations, keys, the audit trail and the store. Nothing that yields a secret or a digest.
    Read,
    /// Looking, and everything about keys: making, changing, revoking, importing, exporting.
    Keys,
    /// Looking, and the plans of organisations and keys. There are no commands for plans yet.
    Plans,
    /// Everything, also organisations and the store.
    All,
}

impl Role {
    /// The longest name, in characters.
    pub const MAX_LEN: usize = 5;
    pub const ALL: [Self; 4] = [Self::Read, Self::Keys, Self::Plans, Self::All];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Keys => "keys",
            Self::Plans => "plans",
            Self::All => "all",
        }
    }

    /// # Errors
    /// When there is no such role.
    pub fn parse(text: &str) -> Result<Self, InvalidRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(InvalidRole)
    }

    const fn allows(self, needed: Self) -> bool {
        matches!(
            (self, needed),
            (Self::All, _) | (_, Self::Read) | (Self::Keys, Self::Keys) | (Self::Plans, Self::Plans)
        )
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("write read, keys, plans or all")]
pub struct InvalidRole;

/// What the bearer of a token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub role: Role,
    /// The organisations that the token is bound to; `None` for all, also those to come.
    pub orgs: Option<Arc<[OrgId]>>,
}

impl Grant {
    /// Every command, for every organisation.
    pub const EVERYTHING: Self = Self { role: Role::All, orgs: None };

    /// Whether the bearer may give a command, as far as the command itself says.
    ///
    /// # Errors
    /// What the token lacks.
    pub(super) fn check(&self, command: &Command) -> Result<(), Lacking> {
        let Needs { role, about } = Needs::of(command);
        if !self.role.allows(role) {
            return Err(Lacking::Role { has: self.role, needs: role });
        }
        let Some(orgs) = &self.orgs else { return Ok(()) };
        match about {
            About::Judged => Ok(()),
            About::Org(org) if orgs.contains(&org) => Ok(()),
            About::Org(org) => Err(Lacking::Org(org)),
            About::Everybody => Err(Lacking::Everybody),
        }
    }
}

/// What a token lacks for a command.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum Lacking {
    #[error("this token has the role {has}, and the command needs {needs}")]
    Role { has: Role, needs: Role },
    #[error("this token is not for {0}")]
    Org(OrgId),
    #[error("this token is bound to organisations, and the command concerns all")]
    Everybody,
}

/// What a command asks for.
struct Needs {
    role: Role,
    about: About,
}

/// Whom a command concerns.
enum About {
    Org(OrgId),
    /// All organisations, or the installation itself.
    Everybody,
    /// The organisations of what it names, or of what it finds; judged when it is carried out.
    Judged,
}

impl Needs {
    const fn of(command: &Command) -> Self {
        match command {
            Command::Orgs(command) => Self::of_org(command),
            Command::Keys(command) => Self::of_key(command),
            Command::Audit(command) => Self::of_audit(command),
            Command::Store(command) => Self::of_store(command),
            // It tells of addresses within, and of no organisation.
            Command::Upstreams(UpstreamCommand::Status) => Self { role: Role::Read, about: About::Everybody },
        }
    }

    const fn of_org(command: &OrgCommand) -> Self {
        let (role, about) = match command {
            OrgCommand::Create { name: _ } => (Role::All, About::Everybody),
            OrgCommand::List { .. } => (Role::Read, About::Judged),
            OrgCommand::Show { id } => (Role::Read, About::Org(*id)),
            OrgCommand::Suspend { id }
            | OrgCommand::Resume { id }
            | OrgCommand::Verify { id }
            | OrgCommand::Rename { id, name: _ } => (Role::All, About::Org(*id)),
        };
        Self { role, about }
    }

    const fn of_key(command: &KeyCommand) -> Self {
        let (role, about) = match command {
            KeyCommand::Create(new) => (Role::Keys, About::Org(new.org)),
            KeyCommand::List { filter, .. } => (Role::Read, about(filter.org)),
            KeyCommand::Show { .. } | KeyCommand::Find { .. } | KeyCommand::Descendants { .. } => {
                (Role::Read, About::Judged)
            }
            KeyCommand::Update { .. }
            | KeyCommand::Rotate { .. }
            | KeyCommand::Disable { .. }
            | KeyCommand::Enable { .. }
            | KeyCommand::Revoke { .. }
            | KeyCommand::Import { .. }
            | KeyCommand::Check(_) => (Role::Keys, About::Judged),
            // It tells of gateways, and of no key.
            KeyCommand::Shapes | KeyCommand::Reach { .. } => (Role::Read, About::Judged),
            // Digests of imported secrets, which people may have chosen, can be guessed at.
            KeyCommand::Export { org, .. } => (Role::Keys, about(*org)),
        };
        Self { role, about }
    }

    const fn of_audit(command: &AuditCommand) -> Self {
        let (role, trail) = match command {
            AuditCommand::List { trail, .. }
            | AuditCommand::Export { trail, .. }
            | AuditCommand::Verify { trail, .. } => (Role::Read, trail),
            AuditCommand::Trim { trail } => (Role::All, trail),
        };
        let about = match trail {
            Trail::Org(org) => About::Org(*org),
            Trail::Operator => About::Everybody,
        };
        Self { role, about }
    }

    const fn of_store(command: &StoreCommand) -> Self {
        let (role, about) = match command {
            // Comes before the first key, and does nothing where there is a store.
            StoreCommand::Begin => (Role::Keys, About::Judged),
            StoreCommand::Status => (Role::Read, About::Everybody),
            StoreCommand::Accept
            | StoreCommand::AcceptOlder
            | StoreCommand::AcceptPrefix { .. }
            | StoreCommand::RemovePrefix { .. }
            | StoreCommand::Reseal { .. }
            | StoreCommand::FinishReseal
            | StoreCommand::Compact
            | StoreCommand::BeginBackup
            | StoreCommand::NextOfBackup { .. } => (Role::All, About::Everybody),
        };
        Self { role, about }
    }
}

const fn about(org: Option<OrgId>) -> About {
    match org {
        Some(org) => About::Org(org),
        None => About::Judged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_allows_itself_and_reading_and_all_allows_everything() {
        for has in Role::ALL {
            for needs in Role::ALL {
                let expected = has == needs || has == Role::All || needs == Role::Read;
                assert_eq!(has.allows(needs), expected, "{has} {needs}");
            }
            assert_eq!(Role::parse(has.as_str()), Ok(has));
        }
        assert_eq!(Role::parse("Read"), Err(InvalidRole));
    }
}
