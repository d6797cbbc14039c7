//! The store: opened at the start, put right where it has forgotten a revocation, and told at the end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::control::BLOCKED_AT_MOST;
use crate::config::StoreSettings;
use crate::lifecycle::{Lifecycle, LifecycleError, Origin};
use crate::store::embedded::{self, Embedded};
use crate::store::redis::{self, Redis};
use crate::store::{LEASE, Store, StoreFault};
use crate::telemetry;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::record::Sealer;

/// Why there is no store.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error(transparent)]
    Embedded(#[from] embedded::OpenError),
    #[error(transparent)]
    Redis(#[from] redis::OpenError),
}

/// Opens the store that the configuration names. What it has to do beside its answers it does on `control`.
///
/// # Errors
/// [`StoreError`] says what to do. A Redis that is down is no error: the store begins to answer once it is
/// up.
pub fn open_store(
    settings: &StoreSettings,
    sealer: Sealer,
    control: &Handle,
) -> Result<Arc<dyn Store>, StoreError> {
    match settings {
        StoreSettings::Embedded(settings) => Ok(Arc::new(Embedded::open(settings, sealer)?)),
        StoreSettings::Redis(settings) => {
            Ok(Arc::new(Redis::open((**settings).clone(), sealer, control.clone())?))
        }
    }
}

/// Opens the store that the configuration names, only to be read: of an embedded one the file stays as it is.
///
/// # Errors
/// As [`open_store`], and where there is no embedded store.
pub fn open_store_to_read(
    settings: &StoreSettings,
    sealer: Sealer,
    control: &Handle,
) -> Result<Arc<dyn Store>, StoreError> {
    match settings {
        StoreSettings::Embedded(settings) => Ok(Arc::new(Embedded::open_to_read(settings, sealer)?)),
        StoreSettings::Redis(_) => open_store(settings, sealer, control),
    }
}

/// How often writing a revocation again is tried, and how long it waits in between. A key that is still not
/// written then is reported again when somebody presents it.
const REVOKED_TRIES: usize = 50;
const REVOKED_PAUSE: Duration = Duration::from_millis(100);
/// Revived keys that a gateway tells of which can do nothing about them.
const SAID_AT_MOST: usize = 65_536;

/// Attends to what this process knows to be revoked, and a store that lost its last changes does not. Whoever may
/// write to it does so; whoever may not refuses the key all the same, and says what it saw.
pub(super) async fn attend_revived(lifecycle: Option<Arc<Lifecycle>>, mut revived: mpsc::Receiver<KeyId>) {
    let mut keys = Vec::new();
    // A key is reported whenever somebody presents it.
    let mut said = HashSet::new();
    while revived.recv_many(&mut keys, 64).await > 0 {
        keys.sort_unstable();
        keys.dedup();
        for key in keys.drain(..) {
            match &lifecycle {
                Some(lifecycle) => {
                    telemetry::log(&format!(
                        "the store has forgotten that {key} is revoked: it is revoked again"
                    ));
                    revoke_again(lifecycle, key).await;
                }
                None if said.len() < SAID_AT_MOST && said.insert(key) => telemetry::log(&format!(
                    "the store has forgotten that {key} is revoked: it is refused here, and a full gateway is to revoke it again"
                )),
                None => {}
            }
        }
    }
}

async fn revoke_again(lifecycle: &Lifecycle, key: KeyId) {
    for _ in 0..REVOKED_TRIES {
        match lifecycle.revoke_key(&Origin::gateway(), key).await {
            Ok(_) | Err(LifecycleError::NoKey(_)) => return,
            Err(_) => tokio::time::sleep(REVOKED_PAUSE).await,
        }
    }
}

/// What the store is told at the end, once the last request has been answered: until then whoever takes a right
/// away has to wait for this gateway. A store that is away now cannot be told, and keeps nobody here.
pub(super) async fn take_leave(store: &dyn Store, lifecycle: Option<&Lifecycle>) {
    let leaving = async {
        let left = tokio::time::timeout(BLOCKED_AT_MOST, store.keeper().leave()).await;
        if let Err(fault) = left.unwrap_or(Err(StoreFault::TimedOut)) {
            telemetry::log(&format!(
                "the lease could not be given up: {fault}; until it ends, within {LEASE:?}, changes wait for this gateway"
            ));
        }
    };
    let writing_usage = async {
        let Some(lifecycle) = lifecycle else { return };
        // Where it cannot be written, what was used since the last minute is forgotten.
        let _ = tokio::time::timeout(BLOCKED_AT_MOST, lifecycle.write_usage()).await;
    };
    tokio::join!(leaving, writing_usage);
}
