//! The commands of operators, as they are sent.

use serde::{Deserialize, Serialize};

use crate::lifecycle::{AuditFilter, Exported, KeyFilter, MovedKey, NewKey, Patch};
use crate::store::events::Seq;
use crate::store::keeper::Place;
use crate::vocabulary::audit::Trail;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::{Digest, Prefix};

/// A command, with the name that the operator goes by.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub operator: String,
    /// Why; the audit record of a change has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub command: Command,
}

/// A command of an operator.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Orgs(OrgCommand),
    Keys(KeyCommand),
    Audit(AuditCommand),
    Store(StoreCommand),
    Upstreams(UpstreamCommand),
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
    Rename { id: OrgId, name: String },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyCommand {
    Create(NewKey),
    /// Tell the mistakes in a new key, whose organisation is not looked at, and change nothing.
    Check(NewKey),
    List {
        filter: KeyFilter,
        after: Option<KeyId>,
        limit: usize,
    },
    Show {
        id: KeyId,
    },
    /// Find the key whose secret has this SHA-256.
    Find {
        sha256: Digest,
    },
    Update {
        id: KeyId,
        patch: Patch,
    },
    Rotate {
        id: KeyId,
        /// How long the old secret still opens the key.
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
        /// Also the keys that were made with it, of which there must be this number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        descendants: Option<usize>,
    },
    /// Count the keys that were made with a key and are not revoked.
    Descendants {
        id: KeyId,
    },
    /// Say how far a change has come, by the event in the answer to it, once every gateway with a lease has confirmed it or
    /// this time is over.
    Reach {
        event: Seq,
        within_ms: u64,
    },
    /// Say what a key must look like.
    Shapes,
    Import {
        keys: Vec<MovedKey>,
        /// Change nothing, and report what would happen.
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
    Export {
        trail: Trail,
        #[serde(default, skip_serializing_if = "AuditFilter::wants_all")]
        filter: AuditFilter,
        after: u64,
        limit: usize,
    },
    /// Check a trail, also against its heads that were exported.
    Verify { trail: Trail, exported: Vec<Exported> },
    /// Remove all records that are older than the retention, at once.
    Trim { trail: Trail },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StoreCommand {
    /// Create the store, if there is none and never was one.
    Begin,
    Status,
    /// Accept the store as it is as the right one.
    Accept,
    /// The same, also where its records are older than gateways remember.
    AcceptOlder,
    /// Accept keys with this prefix too.
    AcceptPrefix {
        prefix: Prefix,
    },
    /// Accept keys with this prefix no longer, if there are none.
    RemovePrefix {
        prefix: Prefix,
    },
    /// Seal some records anew, from this one on.
    Reseal {
        after: Option<Place>,
    },
    /// Note that nothing is left to reseal.
    FinishReseal,
    /// Make the store smaller, while it serves.
    Compact,
    BeginBackup,
    /// Give the next part of a backup that was begun.
    NextOfBackup {
        id: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum UpstreamCommand {
    /// Say what is known of each server. Only a running gateway can.
    Status,
}
