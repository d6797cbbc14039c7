//! Another configuration for a gateway that runs: what may change, and why it did not.
//!
//! A reload is swapped whole or not at all. What needs another socket, another thread or another store needs
//! a restart: a configuration that has one of those otherwise is refused, and the one before goes on.

use std::fmt;

use thiserror::Error;

use crate::config::{Config, KeySettings, Mistakes, StoreSettings};
use crate::downstream::listener;
use crate::downstream::tls;
use crate::lifecycle::{RetentionSettings, SignupSettings};
use crate::operators::admin;
use crate::operators::ops;
use crate::operators::outbox;
use crate::store::cache;
use crate::telemetry::RequestLog;

/// Where a gateway gets its configuration from when it is asked to read it again.
pub type Source = Box<dyn Fn() -> Result<Config, Mistakes>>;

/// Why a reload changed nothing.
#[derive(Debug, Error)]
pub enum Refused {
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
    #[error(transparent)]
    Tls(#[from] tls::LoadErrors),
    #[error(transparent)]
    Restart(#[from] NeedsRestart),
}

/// The settings that are not what they were, and cannot change while the gateway runs.
#[derive(Debug)]
pub struct NeedsRestart(Vec<&'static str>);

impl fmt::Display for NeedsRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.join(", ");
        write!(f, "only a restart changes {names}; restart, or put back what was there")
    }
}

impl std::error::Error for NeedsRestart {}

/// What only a restart changes.
#[derive(Debug)]
pub struct Fixed {
    listener: listener::Settings,
    has_tls: bool,
    keys: KeySettings,
    store: StoreSettings,
    cache: cache::Settings,
    signup: SignupSettings,
    outbox: Option<outbox::Settings>,
    retention: RetentionSettings,
    admin: admin::Settings,
    ops: ops::Settings,
    request_log: RequestLog,
}

impl Fixed {
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            listener: config.listener.clone(),
            has_tls: has_tls(config),
            keys: config.keys.clone(),
            store: config.store.clone(),
            cache: config.cache.clone(),
            signup: config.signup.clone(),
            outbox: config.outbox.clone(),
            retention: config.retention.clone(),
            admin: config.admin.clone(),
            ops: config.ops.clone(),
            request_log: config.request_log,
        }
    }

    /// # Errors
    /// Every setting that `other` has otherwise.
    pub fn compare(&self, other: &Config) -> Result<(), NeedsRestart> {
        let listener::Settings { listen, workers, max_connections, max_connections_per_client } =
            &self.listener;
        let KeySettings { prefix, accept_without_checksum, pepper_file, audit_key_file, ack_wait } =
            &self.keys;
        let same = [
            ("server.listen", *listen == other.listener.listen),
            ("server.workers", *workers == other.listener.workers),
            ("server.max_connections", *max_connections == other.listener.max_connections),
            (
                "server.max_connections_per_client",
                *max_connections_per_client == other.listener.max_connections_per_client,
            ),
            ("server.tls (from none to some, or back)", self.has_tls == has_tls(other)),
            ("keys.prefix", *prefix == other.keys.prefix),
            ("keys.accept_without_checksum", *accept_without_checksum == other.keys.accept_without_checksum),
            ("keys.pepper_file", *pepper_file == other.keys.pepper_file),
            ("keys.ack_wait", *ack_wait == other.keys.ack_wait),
            ("audit.key_file", *audit_key_file == other.keys.audit_key_file),
            ("audit.retention", self.retention == other.retention),
            ("[store]", self.store == other.store),
            ("[cache]", self.cache == other.cache),
            ("[signup]", self.signup == other.signup),
            ("[outbox]", self.outbox == other.outbox),
            ("[admin]", self.admin == other.admin),
            ("[ops]", self.ops == other.ops),
            ("log.requests", self.request_log == other.request_log),
        ];
        let differing: Vec<_> = same.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect();
        if differing.is_empty() { Ok(()) } else { Err(NeedsRestart(differing)) }
    }
}

const fn has_tls(config: &Config) -> bool {
    !config.tls.certificates.is_empty()
}
