//! The answers to operators, as they are sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::lifecycle::{
    AuditRecordView, BackedUp, ImportedKey, KeyView, MovedKey, OrgView, UnreadableView, Verdict,
};
use crate::store::keeper::{Acceptance, Resealed, Status};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Prefix;

/// The answer to a command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Org(OrgView),
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
    },
    Key {
        key: KeyView,
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
    BackupBegun {
        id: u64,
    },
    BackupPart {
        /// In base64.
        bytes: String,
        /// Of the last part.
        done: Option<BackedUp>,
    },
    Failed {
        message: String,
    },
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

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}
