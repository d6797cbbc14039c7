//! The operator's API: a closed list of commands, carried out here or, over a Unix socket, by the gateway
//! that holds the store.
//!
//! The socket has mode 0600: who may open it is who may do anything. Each request is `POST /v1/command` with
//! a [`Command`] as JSON.

mod client;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::id::{KeyId, OrgId};
use crate::key::Environment;
use crate::key::record::{self, KeyRecord, OrgRecord};
use crate::key::scope::{Scope, ScopeSet};
use crate::lifecycle::{Lifecycle, LifecycleError, NewKey};
use crate::store::keeper::{Acceptance, Status};

pub use client::{ClientError, call};
pub use server::{BindError, Server};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where the socket is made, with mode 0600; `None` for no admin API.
    pub socket: Option<PathBuf>,
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
        operator: String,
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

/// A key as it is shown: everything but its digests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyView {
    pub id: KeyId,
    pub organization_id: OrgId,
    pub name: String,
    pub key: String,
    pub environment: Environment,
    pub scopes: Vec<Scope>,
    pub status: String,
    pub created_at: String,
    pub created_by: String,
    pub expires_at: Option<String>,
    pub revoked_at: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OrgView {
    pub id: OrgId,
    pub name: String,
    pub created_at: String,
}

/// Carries a command out.
pub async fn execute(lifecycle: &Lifecycle, command: Command) -> Reply {
    match try_execute(lifecycle, command).await {
        Ok(reply) => reply,
        Err(error) => Reply::Failed { message: error.to_string() },
    }
}

async fn try_execute(lifecycle: &Lifecycle, command: Command) -> Result<Reply, LifecycleError> {
    match command {
        Command::CreateOrg { name } => Ok(Reply::Org(view_org(&lifecycle.create_org(&name).await?))),
        Command::ListOrgs { after, limit } => {
            let orgs = lifecycle.list_orgs(after, limit).await?;
            Ok(Reply::Orgs { orgs: orgs.iter().map(view_org).collect() })
        }
        Command::CreateKey { org, name, environment, scopes, expires_at, operator } => {
            let scopes = scopes.unwrap_or_else(|| lifecycle.vocabulary());
            let new = NewKey { org, name, environment, scopes, expires_at, created_by: operator };
            let (record, secret) = lifecycle.create_key(new).await?;
            let secret = Secret(secret.expose().to_owned().into());
            Ok(Reply::NewKey { key: view_key(lifecycle, &record), secret })
        }
        Command::ListKeys { org, after, limit } => {
            let keys = lifecycle.list_keys(org, after, limit).await?;
            Ok(Reply::Keys { keys: keys.iter().map(|key| view_key(lifecycle, key)).collect() })
        }
        Command::RevokeKey { id } => {
            Ok(Reply::Key { key: view_key(lifecycle, &lifecycle.revoke_key(id).await?) })
        }
        Command::BeginStore => Ok(Reply::StoreBegun { made: lifecycle.keeper().begin().await? }),
        Command::StoreStatus => Ok(Reply::StoreStatus { status: lifecycle.keeper().status().await }),
        Command::AcceptStore => Ok(Reply::StoreAccepted { acceptance: lifecycle.keeper().accept().await? }),
    }
}

fn view_key(lifecycle: &Lifecycle, key: &KeyRecord) -> KeyView {
    let status: record::Status = key.status_at(lifecycle.clock().now().wall);
    KeyView {
        id: key.id,
        organization_id: key.org,
        name: key.name.clone(),
        key: lifecycle.masked(key),
        environment: key.environment,
        scopes: key.scopes.iter().cloned().collect(),
        status: status.to_string(),
        created_at: key.created_at.to_string(),
        created_by: key.created_by.clone(),
        expires_at: key.expires_at.map(|at| at.to_string()),
        revoked_at: key.revoked_at.map(|at| at.to_string()),
    }
}

fn view_org(org: &OrgRecord) -> OrgView {
    OrgView { id: org.id, name: org.name.clone(), created_at: org.created_at.to_string() }
}
