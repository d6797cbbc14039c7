//! The answers to operators, as they are sent.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lifecycle::{
    AuditRecordView, BackedUp, ImportedKey, KeyView, MovedKey, OrgView, UnreadableView, Verdict,
};
use crate::store::Propagation;
use crate::store::compaction::Compacted;
use crate::store::events::Seq;
use crate::store::keeper::{Acceptance, Resealed, Status};
use crate::store::trails::Trimmed;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Prefix;
use crate::vocabulary::upstream::ServerState;

/// The answer to a command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Org {
        #[serde(flatten)]
        org: OrgView,
        /// How far a change has come; `None` where the store could not tell, and for what is no change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reach: Option<Reach>,
    },
    Orgs {
        orgs: Vec<OrgView>,
        /// Those in between that cannot be read.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unreadable: Vec<UnreadableView>,
    },
    /// The only reply that holds a secret.
    NewKey {
        key: KeyView,
        secret: Secret,
        /// The same of the end of the secret before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reach: Option<Reach>,
    },
    Key {
        key: KeyView,
        /// The same; of a key that is only shown, of its last change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reach: Option<Reach>,
    },
    Reach {
        reach: Reach,
    },
    /// A key that is to be made has no mistakes.
    NoMistakes,
    Keys {
        keys: Vec<KeyView>,
        /// The key after which the next page begins; `None` on the last page.
        next: Option<KeyId>,
        /// The names of their organisations.
        #[serde(default)]
        organizations: BTreeMap<OrgId, String>,
        /// Those in between that cannot be read.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unreadable: Vec<UnreadableView>,
    },
    /// The key that a secret belongs to, and whether the secret opens it.
    KeyFound {
        key: KeyView,
        opens: bool,
    },
    KeyNotFound,
    /// The number of keys that were made with a key and are not revoked.
    Descendants {
        count: usize,
    },
    Imported {
        outcomes: Vec<ImportedKey>,
        /// Whether keys without keygate's checksum are refused without a lookup.
        checksum_required: bool,
    },
    /// What a key must look like to be looked up at all.
    KeyShapes {
        prefixes: Vec<Prefix>,
        checksum_required: bool,
    },
    ExportedKeys {
        keys: Vec<MovedKey>,
        has_more: bool,
        /// Those in between that cannot be read.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unreadable: Vec<UnreadableView>,
    },
    AuditRecords {
        records: Vec<AuditRecordView>,
        /// The number from which the next page goes on; `None` on the last page.
        next: Option<u64>,
    },
    Verdict(Verdict),
    Trimmed {
        trimmed: Trimmed,
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
    /// The prefixes that the store accepts now.
    Prefixes {
        accepted: Vec<Prefix>,
    },
    StoreResealed {
        done: Resealed,
    },
    ResealFinished,
    StoreCompacted {
        done: Compacted,
    },
    BackupBegun {
        id: u64,
    },
    BackupPart {
        /// In base64.
        bytes: String,
        /// Of the last part.
        done: Option<BackedUp>,
    },
    Upstreams {
        servers: Vec<ServerView>,
    },
    Failed {
        message: String,
    },
}

/// One server of an upstream, as a gateway sees it at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    pub upstream: Box<str>,
    /// `host:port`, or `unix:/path`.
    pub server: Box<str>,
    pub state: ServerState,
}

/// How far a change has come among the gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The number of its event.
    pub event: Seq,
    /// All gateways that may let keys in.
    pub gateways: usize,
    pub confirmed: usize,
    /// The names of those that hold a lease and have not confirmed it.
    pub awaited: Vec<Box<str>>,
    /// The names of those whose lease has lapsed without being given up, and that may not know of it.
    pub lapsed: Vec<Box<str>>,
    pub slowest_ms: u64,
}

impl Reach {
    /// Whether every gateway with a lease has confirmed it.
    #[must_use]
    pub const fn is_confirmed(&self) -> bool {
        self.awaited.is_empty() && self.confirmed + self.lapsed.len() >= self.gateways
    }
}

impl From<Propagation> for Reach {
    fn from(propagation: Propagation) -> Self {
        let Propagation { event, gateways, confirmed, awaited, lapsed, took } = propagation;
        let slowest_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Self { event, gateways, confirmed, awaited, lapsed, slowest_ms }
    }
}

/// As [`Propagation`] is shown.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event, gateways, confirmed, awaited, lapsed, slowest_ms } = self.clone();
        let took = Duration::from_millis(slowest_ms);
        fmt::Display::fmt(&Propagation { event, gateways, confirmed, awaited, lapsed, took }, f)
    }
}

/// A secret on its way to its owner, the only time that it is shown.
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

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}
