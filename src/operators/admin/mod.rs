//! The operator's API: a closed list of commands, carried out by the gateway that holds the store, or by a
//! command that opened the store itself.
//!
//! Each request is `POST /v1/command` with an [`Order`] as JSON, over one of two ways:
//!
//! - The Unix socket ([`Server`]) has mode 0600: who may open it is who may do anything. The system says which
//!   user that is, and the trail names them by it, after the name that they gave themselves.
//! - TCP ([`Remote`]) asks for a token out of a file, which names the operator, whatever the order says.

mod client;
mod remote;
mod server;
mod token;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lifecycle::{
    AuditFilter, AuditRecordView, Imported, KeyFilter, KeyView, Lifecycle, LifecycleError, Made, MovedKey,
    NewKey, OrgView, Origin, Outcome, Owned, Patch, Verdict, view_org,
};
use crate::store::keeper::{Acceptance, Status};
use crate::vocabulary::audit::{Link, Trail};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;

pub use client::{ClientError, Way, call};
pub use remote::{Host, InvalidHost, Remote, RemoteSettings};
pub use server::{BindError, Server};
pub use token::{InvalidTokenName, NewToken, TokenFileError, TokenName};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where the socket is made, with mode 0600; `None` for no socket.
    pub socket: Option<PathBuf>,
    /// Where operators elsewhere reach it; `None` for nowhere.
    pub remote: Option<RemoteSettings>,
}

/// What somebody who goes by this name asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub operator: String,
    pub command: Command,
}

/// What an operator can ask for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Orgs(OrgCommand),
    Keys(KeyCommand),
    Audit(AuditCommand),
    Store(StoreCommand),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OrgCommand {
    Create { name: String },
    List { after: Option<OrgId>, limit: usize },
    Show { id: OrgId },
    Suspend { id: OrgId },
    Resume { id: OrgId },
    Verify { id: OrgId },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyCommand {
    Create(NewKey),
    List {
        filter: KeyFilter,
        after: Option<KeyId>,
        limit: usize,
    },
    Show {
        id: KeyId,
    },
    /// Whose secret has this SHA-256?
    Find {
        sha256: Digest,
    },
    Update {
        id: KeyId,
        patch: Patch,
    },
    Rotate {
        id: KeyId,
        /// How long the old secret goes on to open it.
        overlap_seconds: u64,
    },
    Disable {
        id: KeyId,
    },
    Enable {
        id: KeyId,
    },
    Revoke {
        id: KeyId,
    },
    Import {
        keys: Vec<MovedKey>,
        /// Change nothing, and tell what would happen.
        rehearsal: bool,
    },
    Export {
        org: Option<OrgId>,
        after: Option<KeyId>,
        limit: usize,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AuditCommand {
    /// Newest first, below the number `before`.
    List { trail: Trail, filter: AuditFilter, before: Option<u64>, limit: usize },
    /// Oldest first, above the number `after`.
    Export { trail: Trail, after: u64, limit: usize },
    /// Check a trail, also against heads of it that were exported.
    Verify { trail: Trail, exported: Vec<Link> },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StoreCommand {
    /// Make the store, if there is none and never was.
    Begin,
    Status,
    /// Take the store as it is for the right one.
    Accept,
}

/// What an operator is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Org(OrgView),
    Orgs {
        orgs: Vec<OrgView>,
    },
    /// The only reply with a secret in it.
    NewKey {
        key: KeyView,
        secret: Secret,
    },
    Key {
        key: KeyView,
    },
    Keys {
        keys: Vec<KeyView>,
        /// After which key the next page begins, if there is one.
        next: Option<KeyId>,
    },
    /// The key that a secret belongs to, and whether the secret opens it.
    KeyFound {
        key: KeyView,
        opens: bool,
    },
    KeyNotFound,
    Imported {
        outcomes: Vec<Imported>,
        /// Whether keys without keygate's checksum are refused before anybody looks for them.
        checksum_required: bool,
    },
    ExportedKeys {
        keys: Vec<MovedKey>,
        has_more: bool,
    },
    AuditRecords {
        records: Vec<AuditRecordView>,
        /// From which number the next page goes on, if there is one.
        next: Option<u64>,
    },
    Verdict(Verdict),
    StoreBegun {
        made: bool,
    },
    StoreStatus {
        status: Status,
    },
    StoreAccepted {
        acceptance: Acceptance,
    },
    Failed {
        message: String,
    },
}

/// A secret on its one way to its owner.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(zeroize::Zeroizing<String>);

impl Secret {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text.into())
    }

    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// Who a command on this machine is carried out for: the user that the system knows them by, after the name that
/// they gave themselves, which tells people apart who share a user.
#[must_use]
pub fn local_operator(claimed: &str, uid: u32) -> Origin {
    const LONGEST: usize = 64;
    let harmless = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if (1..=LONGEST).contains(&claimed.len()) && claimed.chars().all(harmless) {
        Origin::operator(&format!("{claimed} (uid {uid})"))
    } else {
        Origin::operator(&format!("uid {uid}"))
    }
}

/// Who a command from elsewhere is carried out for: whoever the token was made for.
fn remote_operator(token: &TokenName, address: IpAddr) -> Origin {
    Origin { address: Some(address), ..Origin::operator(token.as_str()) }
}

/// Carries a command out.
pub async fn execute(lifecycle: &Lifecycle, origin: &Origin, command: Command) -> Reply {
    let reply = match command {
        Command::Orgs(command) => on_orgs(lifecycle, origin, command).await,
        Command::Keys(command) => on_keys(lifecycle, origin, command).await,
        Command::Audit(command) => on_audit(lifecycle, command).await,
        Command::Store(command) => on_store(lifecycle, origin, command).await,
    };
    reply.unwrap_or_else(|error| Reply::Failed { message: error.to_string() })
}

async fn on_orgs(
    lifecycle: &Lifecycle,
    origin: &Origin,
    command: OrgCommand,
) -> Result<Reply, LifecycleError> {
    let org = match command {
        OrgCommand::List { after, limit } => {
            let orgs = lifecycle.list_orgs(after, limit).await?;
            return Ok(Reply::Orgs { orgs: orgs.iter().map(view_org).collect() });
        }
        OrgCommand::Create { name } => lifecycle.create_org(origin, &name).await?,
        OrgCommand::Show { id } => lifecycle.org(id).await?,
        OrgCommand::Suspend { id } => lifecycle.suspend_org(origin, id).await?.record,
        OrgCommand::Resume { id } => lifecycle.resume_org(origin, id).await?.record,
        OrgCommand::Verify { id } => lifecycle.verify_org(origin, id).await?.record,
    };
    Ok(Reply::Org(view_org(&org)))
}

async fn on_keys(
    lifecycle: &Lifecycle,
    origin: &Origin,
    command: KeyCommand,
) -> Result<Reply, LifecycleError> {
    let key = match command {
        KeyCommand::Show { id } => {
            let key = lifecycle.key(origin, id).await?;
            let propagation = lifecycle.last_propagation(key.org, id).await?;
            return Ok(Reply::Key { key: KeyView { propagation, ..lifecycle.view_used(&key).await? } });
        }
        KeyCommand::Update { id, patch } => lifecycle.update_key(origin, id, &patch).await?.record,
        KeyCommand::Disable { id } => lifecycle.disable_key(origin, id).await?.record,
        KeyCommand::Enable { id } => lifecycle.enable_key(origin, id).await?.record,
        KeyCommand::Revoke { id } => lifecycle.revoke_key(origin, id).await?.record,
        KeyCommand::Create(new) => return Ok(show_made(lifecycle, lifecycle.create_key(origin, new).await?)),
        KeyCommand::Rotate { id, overlap_seconds } => {
            let overlap = Duration::from_secs(overlap_seconds);
            return match lifecycle.rotate_key(origin, id, overlap, None).await? {
                Outcome::Fresh(made) => Ok(show_made(lifecycle, made)),
                Outcome::Repeated(_) => Err(LifecycleError::KeptAnswer),
            };
        }
        KeyCommand::List { filter, after, limit } => {
            let found = lifecycle.find_keys(origin, &filter, after, limit).await?;
            return Ok(Reply::Keys { keys: found.keys, next: found.next });
        }
        KeyCommand::Find { sha256 } => {
            let Some(Owned { key, opens }) = lifecycle.find_secret(*sha256.as_bytes()).await? else {
                return Ok(Reply::KeyNotFound);
            };
            return Ok(Reply::KeyFound { key: lifecycle.view_used(&key).await?, opens });
        }
        KeyCommand::Import { keys, rehearsal } => {
            let outcomes = lifecycle.import_keys(origin, keys, rehearsal).await?;
            return Ok(Reply::Imported { outcomes, checksum_required: lifecycle.requires_checksum() });
        }
        KeyCommand::Export { org, after, limit } => {
            let (keys, has_more) = lifecycle.export_keys(origin, org, after, limit).await?;
            return Ok(Reply::ExportedKeys { keys, has_more });
        }
    };
    Ok(Reply::Key { key: lifecycle.view_used(&key).await? })
}

async fn on_audit(lifecycle: &Lifecycle, command: AuditCommand) -> Result<Reply, LifecycleError> {
    let page = match command {
        AuditCommand::List { trail, filter, before, limit } => {
            lifecycle.audit_records(trail, filter, before, limit).await?
        }
        AuditCommand::Export { trail, after, limit } => {
            lifecycle.audit_records_after(trail, after, limit).await?
        }
        AuditCommand::Verify { trail, exported } => {
            return Ok(Reply::Verdict(lifecycle.verify_trail(trail, &exported).await?));
        }
    };
    Ok(Reply::AuditRecords { records: page.records, next: page.next })
}

async fn on_store(
    lifecycle: &Lifecycle,
    origin: &Origin,
    command: StoreCommand,
) -> Result<Reply, LifecycleError> {
    let keeper = lifecycle.keeper();
    Ok(match command {
        StoreCommand::Begin => Reply::StoreBegun { made: keeper.begin().await? },
        StoreCommand::Status => Reply::StoreStatus { status: keeper.status().await },
        StoreCommand::Accept => Reply::StoreAccepted { acceptance: lifecycle.accept_store(origin).await? },
    })
}

fn show_made(lifecycle: &Lifecycle, Made { key, secret, .. }: Made) -> Reply {
    let secret = Secret::new(secret.expose().to_owned());
    Reply::NewKey { key: lifecycle.view_key(&key, None), secret }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Principal;

    #[test]
    fn a_name_that_an_operator_claims_never_hides_who_the_system_says_they_are() {
        let named = |claimed: &str| match local_operator(claimed, 7).principal {
            Principal::Operator(name) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(named("ada"), "ada (uid 7)");
        for odd in ["", "ada (uid 0)", "a\nb", "ädä", &"a".repeat(65)] {
            assert_eq!(named(odd), "uid 7", "{odd:?}");
        }
    }
}
