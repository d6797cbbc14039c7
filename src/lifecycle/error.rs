//! Why a change did not happen.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::store::StoreFault;
use crate::store::compaction::NotCompacted;
use crate::store::indexes::Full;
use crate::vocabulary::audit::Trail;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Prefix;
use crate::vocabulary::key::admission::Refusal;
use crate::vocabulary::key::prefix::TooManyPrefixes;
use crate::vocabulary::key::scope::Scope;
use crate::vocabulary::rejection::FieldError;

/// How a key would get more rights than its maker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escalation {
    /// A test key asks for a live key.
    LiveFromTest,
    /// The key would end later than its maker.
    OutlivesCaller,
    /// The key could be used from addresses that its maker may not use.
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

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::LiveFromTest => "live_from_test",
            Self::OutlivesCaller => "outlives_caller",
            Self::WiderAddresses => "wider_addresses",
        }
    }
}

/// Why a prefix is not accepted, or not removed.
#[derive(Debug, Error)]
pub enum PrefixError {
    #[error(transparent)]
    TooMany(#[from] TooManyPrefixes),
    #[error("{0} is not among the accepted prefixes; `keygate store status` lists them")]
    Absent(Prefix),
    #[error(
        "{0} is what keys.prefix of this gateway says; set another, restart every gateway, and try again"
    )]
    Configured(Prefix),
    #[error("{keys} keys that can still be used have the prefix {prefix}; rotate or revoke them first")]
    InUse { prefix: Prefix, keys: u64 },
}

#[derive(Debug, Error)]
pub enum LifecycleError {
    #[error("{}", list(.0))]
    Invalid(Vec<FieldError>),
    #[error("there is no organisation {0}; `keygate orgs list` shows all of them")]
    NoOrg(OrgId),
    /// The principal is bound to several organisations, and the request names none.
    #[error("this token is bound to several organisations; name one of them, as with --org")]
    OrgUnnamed,
    #[error(
        "there is no key {0}; `keygate keys list` shows all of them, without those that ended longer ago than store.keep_ended"
    )]
    NoKey(KeyId),
    #[error("a caller without a key can only sign up")]
    Stranger,
    /// The calling key may not act any more.
    #[error("the calling key is refused: {0}")]
    Caller(Refusal),
    #[error("the calling key lacks the scope {0}")]
    MissingScope(Scope),
    #[error("{}", .0.message())]
    Escalation(Escalation),
    /// The calling key's secret was rotated out.
    #[error("the calling key's secret was rotated out and ends at {0}; until then it can only revoke")]
    SecretEnding(UnixMillis),
    #[error("{0} is revoked")]
    Revoked(KeyId),
    #[error("{0} has expired; an operator can give it a later end")]
    Expired(KeyId),
    #[error("there are as many live keys as there may be")]
    Full(Full),
    #[error("the e-mail address is taken")]
    EmailTaken,
    #[error("the idempotency key was used for another request")]
    IdempotencyMismatch,
    #[error("too many attempts; the next is in {}", humantime::format_duration(*.retry_after))]
    QuotaExceeded { retry_after: Duration },
    /// Nothing was revoked.
    #[error(
        "{found} keys that are not revoked descend from {key}, which is not the number that was expected"
    )]
    Descendants { key: KeyId, found: usize },
    #[error("{0} keeps changing; try again")]
    Contended(Trail),
    /// Nobody waits for the change any more, and it had not begun.
    #[error("the caller has left")]
    CallerLeft,
    #[error("the operating system gives no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// The principal is bound to organisations, and nobody can tell whether a key is theirs.
    #[error(
        "the record of {key} cannot be read: {why}; so nobody can tell whose key it is, and only an operator for all \
         organisations can revoke it"
    )]
    Unprovable { key: KeyId, why: Arc<str> },
    /// A new random identifier or secret is in the store already, which does not happen by chance.
    #[error("the store holds what was just drawn at random; check its data and the machine's randomness")]
    Collision,
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error("the answer that is kept for this request cannot be read")]
    KeptAnswer,
    #[error(transparent)]
    NotCompacted(#[from] NotCompacted),
    #[error("a backup is being taken from this gateway already; wait for its end")]
    BackupRuns,
    #[error("the backup was broken off; begin it anew")]
    NoBackup,
    #[error("the store holds records of a newer release; take the backup from a gateway of that release")]
    NewerStore,
}

fn list(errors: &[FieldError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}
