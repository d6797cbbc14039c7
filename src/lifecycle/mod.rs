//! A key's life, from birth to death, and that of its organisation. Whoever asks for a change (the API, an
//! operator, `dev`), it happens here.
//!
//! A change is decided on records as they were read, and committed only if they are still so: who asks
//! ([`Principal`]), what is changed, and where the audit trail ends. What moved meanwhile is read again and decided
//! anew. So nobody acts on a right that was taken away a moment before, and no change is without its audit record.

mod authority;
mod chores;
mod idempotency;
mod import;
mod keys;
mod migration;
mod orgs;
mod principal;
mod propagation;
mod rehearsal;
mod search;
mod trail;
mod trouble;
mod turn;
mod usage;
mod view;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use thiserror::Error;

use crate::store::keeper::Keeper;
use crate::store::{Store, StoreFault};
use crate::telemetry::metrics::ChangeMeter;
use crate::vocabulary::audit::{Chain, Trail};
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::{IdSource, KeyId, OrgId};
use crate::vocabulary::key::admission::Refusal;
use crate::vocabulary::key::record::KeyRecord;
use crate::vocabulary::key::scope::{Scope, ScopeSet};
use crate::vocabulary::key::{Digester, KeyFormat, Pepper};
use crate::vocabulary::rejection::FieldError;

pub use self::chores::RetentionSettings;
pub use self::idempotency::{Idempotency, Keep, Outcome};
pub use self::import::{Imported, MovedKey, MovedSecret, Time};
pub use self::keys::{KeyPage, Made, NewKey, OVERLAP, OVERLAP_AT_MOST, Patch, parse_network};
pub use self::migration::{Migration, MigrationError, Moved, migrate};
pub use self::orgs::{SignedUp, SignupSettings, parse_signup};
pub use self::principal::{CallingKey, Origin, Principal};
pub use self::propagation::Changed;
pub use self::rehearsal::{Marks, Rehearsal};
pub use self::search::{FoundKeys, KeyFilter, Owned};
pub use self::trail::{AuditFilter, AuditPage, Finding, Verdict};
pub use self::trouble::{Trouble, TroubleSeen};
pub use self::usage::UsageLog;
pub use self::view::{AuditRecordView, KeyView, OrgView, view_org};

use self::chores::Heads;
use self::propagation::Following;
use self::turn::Turns;

/// How often a change is decided anew because something moved under it.
const TRIES: usize = 16;

/// Why a key would get more than its maker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escalation {
    /// A test key asks for a live one.
    LiveFromTest,
    /// The key ends later than its maker.
    OutlivesCaller,
    /// The key may be used from where its maker may not.
    WiderAddresses,
}

impl Escalation {
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::LiveFromTest => "A test key cannot make live keys",
            Self::OutlivesCaller => "The key would end later than the calling key",
            Self::WiderAddresses => "The key could be used from more addresses than the calling key",
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::LiveFromTest => "live_from_test",
            Self::OutlivesCaller => "outlives_caller",
            Self::WiderAddresses => "wider_addresses",
        }
    }
}

#[derive(Debug, Error)]
pub enum LifecycleError {
    #[error("{}", list(.0))]
    Invalid(Vec<FieldError>),
    #[error("there is no organisation {0}")]
    NoOrg(OrgId),
    #[error("there is no key {0}")]
    NoKey(KeyId),
    #[error("without a key one can only sign up")]
    Stranger,
    /// The calling key may not act any more.
    #[error("the calling key is refused: {0}")]
    Caller(Refusal),
    #[error("the calling key lacks the scope {0}")]
    MissingScope(Scope),
    #[error("{}", .0.message())]
    Escalation(Escalation),
    #[error("{0} is revoked")]
    Revoked(KeyId),
    #[error("{0} has expired")]
    Expired(KeyId),
    #[error("the e-mail address is taken")]
    EmailTaken,
    #[error("the idempotency key was used for another request")]
    IdempotencyMismatch,
    #[error("too many attempts; the next is in {}", humantime::format_duration(*.retry_after))]
    QuotaExceeded { retry_after: Duration },
    #[error("{0} keeps changing; try again")]
    Contended(Trail),
    #[error("the operating system gives no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// An identifier or a secret that was just drawn is taken already, which chance alone does not do.
    #[error("the store holds what was just drawn at random; check its data and the machine's randomness")]
    Collision,
    #[error("the answer that is kept for this request cannot be read")]
    KeptAnswer,
}

fn list(errors: &[FieldError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl LifecycleError {
    fn invalid(field: &'static str, message: &'static str) -> Self {
        Self::Invalid(vec![FieldError::new(field, message)])
    }
}

/// What a lifecycle needs beside its store.
#[derive(Clone, Debug)]
pub struct Settings {
    pub format: KeyFormat,
    pub digester: Digester,
    /// The installation's secret, under which e-mail addresses are indexed.
    pub pepper: Option<Pepper>,
    pub chain: Chain,
    pub signup: SignupSettings,
    /// How long whoever takes a right away waits for all gateways to confirm it.
    pub ack_wait: Duration,
}

/// The one way to change keys.
#[derive(Debug)]
pub struct Lifecycle {
    store: Arc<dyn Store>,
    settings: Settings,
    /// The scopes that the policy knows.
    vocabulary: RwLock<ScopeSet>,
    ids: Mutex<IdSource>,
    turns: Turns,
    heads: Heads,
    troubles: Trouble,
    usage: UsageLog,
    following: Following,
    changes: Arc<ChangeMeter>,
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
            ids,
            turns,
            heads,
            troubles,
            usage,
            following: Following::default(),
            changes: Arc::default(),
            clock,
        }
    }

    /// Every scope that the policy knows.
    #[must_use]
    pub fn vocabulary(&self) -> ScopeSet {
        self.vocabulary.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on the policy knows these scopes. What a key already has, it keeps.
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

    /// Where signs of trouble are told.
    #[must_use]
    pub const fn troubles(&self) -> &Trouble {
        &self.troubles
    }

    /// How long changes take to every gateway.
    #[must_use]
    pub const fn change_meter(&self) -> &Arc<ChangeMeter> {
        &self.changes
    }

    /// How a key is shown after its creation: `fh_live_sk_…wxyz`.
    #[must_use]
    pub fn masked(&self, key: &KeyRecord) -> String {
        let last_four = key.secrets.first().map_or("", |secret| secret.last_four.as_str());
        format!("{}…{last_four}", self.settings.format.head(key.environment))
    }

    fn now(&self) -> UnixMillis {
        self.clock.now().wall
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut IdSource) -> T) -> T {
        // Whatever a panic left of it is as random as before.
        draw(&mut self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Names are shown in tables and answers; longer ones would only hide what follows them.
const NAME_LEN: usize = 200;
const NOTE_LEN: usize = 1000;

fn parse_name(name: &str) -> Result<String, FieldError> {
    let message = "must be 1 to 200 characters without control characters";
    let name = name.trim();
    if name.is_empty() || name.chars().count() > NAME_LEN || name.chars().any(char::is_control) {
        return Err(FieldError::new("name", message));
    }
    Ok(name.to_owned())
}

fn parse_owner(owner: &str) -> Result<String, FieldError> {
    parse_name(owner).map_err(|error| FieldError { field: "owner".into(), ..error })
}

fn parse_note(note: &str) -> Result<String, FieldError> {
    let control = |c: char| c.is_control() && c != '\n';
    if note.is_empty() || note.chars().count() > NOTE_LEN || note.chars().any(control) {
        return Err(FieldError::new("note", "must be 1 to 1000 characters without control characters"));
    }
    Ok(note.to_owned())
}
