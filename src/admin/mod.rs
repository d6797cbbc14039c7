//! The operator's API: a closed list of commands, carried out here or, over a Unix socket, by the gateway
//! that holds the store.
//!
//! The socket has mode 0600: who may open it is who may do anything. Each request is `POST /v1/command` with
//! an [`Order`] as JSON.

mod client;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::id::{KeyId, OrgId};
use crate::key::Environment;
use crate::key::scope::ScopeSet;
use crate::lifecycle::{By, KeyView, Lifecycle, LifecycleError, Made, NewKey, OrgView, view_org};
use crate::store::keeper::{Acceptance, Status};

pub use client::{ClientError, call};
pub use server::{BindError, Server};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where the socket is made, with mode 0600; `None` for no admin API.
    pub socket: Option<PathBuf>,
}

/// What somebody by this name asks for; the audit trail names them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub operator: String,
    pub command: Command,
}

/// What an operator can ask for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    CreateOrg {
        name: String,
    },
    ListOrgs {
        after: Option<OrgId>,
        limit: usize,
    },
    CreateKey {
        org: OrgId,
        name: String,
        environment: Environment,
        /// `None` for every scope that the policy knows.
        scopes: Option<ScopeSet>,
        expires_at: Option<UnixMillis>,
    },
    ListKeys {
        org: Option<OrgId>,
        after: Option<KeyId>,
        limit: usize,
    },
    RevokeKey {
        id: KeyId,
    },
    /// Make the store, if there is none and never was.
    BeginStore,
    StoreStatus,
    /// Take the store as it is for the right one.
    AcceptStore,
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
    },
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
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// Carries a command out.
pub async fn execute(lifecycle: &Lifecycle, order: Order) -> Reply {
    match try_execute(lifecycle, order).await {
        Ok(reply) => reply,
        Err(error) => Reply::Failed { message: error.to_string() },
    }
}

async fn try_execute(lifecycle: &Lifecycle, order: Order) -> Result<Reply, LifecycleError> {
    let by = By::operator(&order.operator);
    match order.command {
        Command::CreateOrg { name } => Ok(Reply::Org(view_org(&lifecycle.create_org(&by, &name).await?))),
        Command::ListOrgs { after, limit } => {
            let orgs = lifecycle.list_orgs(after, limit).await?;
            Ok(Reply::Orgs { orgs: orgs.iter().map(view_org).collect() })
        }
        Command::CreateKey { org, name, environment, scopes, expires_at } => {
            let new = NewKey { scopes, expires_at, ..NewKey::named(org, &name, environment) };
            let Made { key, secret } = lifecycle.create_key(&by, new).await?;
            let secret = Secret(secret.expose().to_owned().into());
            Ok(Reply::NewKey { key: lifecycle.view_key(&key, None), secret })
        }
        Command::ListKeys { org, after, limit } => {
            let page = lifecycle.list_keys(&by, org, after, limit).await?;
            Ok(Reply::Keys { keys: lifecycle.view_keys(&page.keys).await? })
        }
        Command::RevokeKey { id } => {
            let key = lifecycle.revoke_key(&by, id).await?;
            Ok(Reply::Key { key: lifecycle.view_key(&key, None) })
        }
        Command::BeginStore => Ok(Reply::StoreBegun { made: lifecycle.keeper().begin().await? }),
        Command::StoreStatus => Ok(Reply::StoreStatus { status: lifecycle.keeper().status().await }),
        Command::AcceptStore => Ok(Reply::StoreAccepted { acceptance: lifecycle.keeper().accept().await? }),
    }
}
