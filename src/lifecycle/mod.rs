//! The life of keys and of their organisations: every change of them is decided here, for the API, for operators and
//! for `dev`. The one that asks is a [`Principal`]; `change.rs` has the steps of a change.

mod acceptance;
mod acts;
mod audit;
mod authority;
mod backup;
mod change;
mod chores;
mod compaction;
mod ended;
mod error;
mod idempotency;
mod import;
mod input;
mod keys;
mod migration;
mod moved;
mod orgs;
mod prefixes;
mod presence;
mod principal;
mod propagation;
mod rehearsal;
mod reseal;
mod restore;
mod search;
mod signup;
mod sweep;
mod trail;
mod trouble;
mod turn;
mod usage;
mod view;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::store::Store;
use crate::store::keeper::Keeper;
use crate::telemetry::metrics::ChangeMeter;
use crate::vocabulary::audit::Chain;
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::IdSource;
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::key::{Digester, KeyFormat, Peppers, Prefix};

pub use self::acts::Act;
pub use self::authority::Standing;
pub use self::backup::{BackedUp, BackupPart, BadBackup, RestoreError, Restored, restore};
pub use self::chores::RetentionSettings;
pub use self::error::{Escalation, LifecycleError, PrefixError};
pub use self::idempotency::{Idempotency, Keep, Outcome};
pub use self::input::fields::{parse_network, parse_signup};
pub use self::input::new_key::NewKey;
pub use self::input::patch::Patch;
pub use self::keys::{KeyPage, Made, OVERLAP, OVERLAP_AT_MOST};
pub use self::migration::{Migration, MigrationError, Moved, migrate};
pub use self::moved::{Imported, ImportedKey, MovedKey, MovedSecret, Time};
pub use self::orgs::OrgPage;
pub use self::presence::{Presence, Waiting};
pub use self::principal::{CallingKey, Origin, Principal};
pub use self::propagation::Changed;
pub use self::rehearsal::{Marks, Rehearsal};
pub use self::search::{FoundKeys, KeyFilter, Owned};
pub use self::signup::{SignedUp, SignupSettings};
pub use self::sweep::Swept;
pub use self::trail::{AuditFilter, AuditPage, Exported, Finding, Trimming, Verdict};
pub use self::trouble::{Trouble, TroubleSeen};
pub use self::usage::UsageLog;
pub use self::view::{AuditRecordView, KeyView, OrgView, UnreadableView, view_org};

use self::chores::Heads;
use self::keys::Lineages;
use self::propagation::Following;
use self::turn::Turns;

/// The settings of a lifecycle.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What new keys begin with, once every gateway accepts it.
    pub prefix: Prefix,
    pub format: KeyFormat,
    pub digester: Digester,
    /// The installation's secret, under which e-mail addresses are indexed.
    pub peppers: Peppers,
    pub chain: Chain,
    pub signup: SignupSettings,
    /// The most live keys of an organisation. Imports and operators may make more.
    pub max_per_org: u32,
    /// How long a change that takes a right away waits for all gateways to confirm it.
    pub ack_wait: Duration,
    /// How long audit records are kept.
    pub retention: Duration,
    /// How long keys that have ended are kept.
    pub keep_ended: Duration,
}

/// The one way to change keys.
#[derive(Debug)]
pub struct Lifecycle {
    store: Arc<dyn Store>,
    settings: Settings,
    /// The scopes that the policy knows.
    vocabulary: RwLock<ScopeSet>,
    known_prefixes: prefixes::Known,
    ids: Mutex<IdSource>,
    turns: Turns,
    lineages: Lineages,
    heads: Heads,
    troubles: Trouble,
    usage: UsageLog,
    following: Following,
    swept: Swept,
    trimming: Trimming,
    changes: Arc<ChangeMeter>,
    backups: backup::Backups,
    clock: Clock,
}

impl Lifecycle {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, settings: Settings, vocabulary: ScopeSet, clock: Clock) -> Self {
        let (ids, turns, heads) = (Mutex::default(), Turns::default(), Heads::default());
        let (troubles, usage) = (Trouble::default(), UsageLog::default());
        let vocabulary = RwLock::new(vocabulary);
        Self {
            store,
            settings,
            vocabulary,
            known_prefixes: prefixes::Known::default(),
            ids,
            turns,
            lineages: Lineages::default(),
            heads,
            troubles,
            usage,
            following: Following::default(),
            swept: Swept::default(),
            trimming: Trimming::default(),
            changes: Arc::default(),
            backups: backup::Backups::default(),
            clock,
        }
    }

    /// Every scope that the policy knows.
    #[must_use]
    pub fn vocabulary(&self) -> ScopeSet {
        self.vocabulary.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the scopes that the policy knows. Keys keep the scopes that they have.
    pub fn set_vocabulary(&self, scopes: ScopeSet) {
        *self.vocabulary.write().unwrap_or_else(PoisonError::into_inner) = scopes;
    }

    #[must_use]
    pub const fn signup_settings(&self) -> &SignupSettings {
        &self.settings.signup
    }

    /// Whether a key must end in a checksum to be looked up at all.
    #[must_use]
    pub const fn requires_checksum(&self) -> bool {
        self.settings.format.requires_checksum()
    }

    /// The operator's side of the store.
    #[must_use]
    pub fn keeper(&self) -> &dyn Keeper {
        self.store.keeper()
    }

    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The queue for signs of trouble.
    #[must_use]
    pub const fn troubles(&self) -> &Trouble {
        &self.troubles
    }

    /// How long changes take to every gateway.
    #[must_use]
    pub const fn change_meter(&self) -> &Arc<ChangeMeter> {
        &self.changes
    }

    fn now(&self) -> UnixMillis {
        self.clock.now().wall
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut IdSource) -> T) -> T {
        // After a panic the source is as random as before.
        draw(&mut self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
