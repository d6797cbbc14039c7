//! The prefixes that the keys of a store have, and the gateways that know them.
//!
//! The list is one text in the store's `meta`. Every gateway reads it with each heartbeat of its event link, and its lease
//! announces the list that all of its workers use. So whoever makes a key can see whether every gateway would accept it.
//!
//! A gateway refuses a prefix without a lookup only if its lease has announced the list by which it does, if it has read
//! no other list since, and if it is not cut off. Otherwise a prefix that another gateway has just added is looked up.

use tokio::sync::watch;

use super::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::record::KeyRecord;
use crate::vocabulary::key::{Digest, Prefix, Prefixes};

/// What a store says of its prefixes, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// `None` for a store in which no keygate has written them down.
    pub prefixes: Option<Prefixes>,
    /// Whether there are keys.
    pub has_keys: bool,
    /// The list that each gateway with a lease announces; `None` for one of an older release, which knows of no list. A
    /// gateway that has announced none yet is not among them: it looks keys of every prefix up.
    pub gateways: Vec<Option<Prefixes>>,
}

/// The prefixes of a store.
pub trait PrefixBook: Send + Sync {
    /// The list as it was last read here, by whatever way; `None` until then, and for a store without one.
    fn followed(&self) -> watch::Receiver<Option<Prefixes>>;

    fn register(&self) -> StoreFuture<'_, Result<Register, StoreFault>>;

    /// Begins to remove a prefix. Every new secret with it from now on, whoever makes it, ends the removal.
    fn begin_removal(&self, prefix: &Prefix) -> StoreFuture<'_, Result<(), StoreFault>>;

    /// Accepts a prefix no longer, if the store still has `before` and the removal of this prefix, which was begun last,
    /// has not ended; returns whether that was so. Later a secret with it cannot be written.
    fn remove(&self, before: Prefixes, prefix: &Prefix) -> StoreFuture<'_, Result<bool, StoreFault>>;

    /// Replaces the list, if the store still has `before`; returns whether it had.
    ///
    /// # Errors
    /// [`StoreFault::Outdated`] for a list of more than one word while a gateway holds a lease that would refuse keys with
    /// the others: one of an older release.
    fn rewrite(&self, before: Option<Prefixes>, after: Prefixes)
    -> StoreFuture<'_, Result<bool, StoreFault>>;

    /// Has the lease of this gateway announce this list, and returns when it does. Before the call every worker must accept
    /// these prefixes; only after it they may refuse others.
    fn announce(&self, prefixes: &Prefixes) -> StoreFuture<'_, ()>;
}

/// What a secret begins with, as far as it must be accepted where the secret is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins<'k> {
    With(&'k Prefix),
    /// With the first of the store's list.
    WithTheFirst,
    /// It opens nothing any more.
    WithAnything,
}

/// The digests of a key, each with what its secret begins with.
pub(super) fn digests(key: &KeyRecord, now: UnixMillis) -> Vec<(Digest, Begins<'_>)> {
    let each = key.secrets.iter().map(|secret| {
        let begins = match &secret.prefix {
            _ if !key.can_use(secret, now) => Begins::WithAnything,
            Some(prefix) => Begins::With(prefix),
            None => Begins::WithTheFirst,
        };
        (secret.digest, begins)
    });
    each.collect()
}
