//! The store: it is opened at the start, corrected where it has lost a revocation, and told of the end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::control::BLOCKED_AT_MOST;
use crate::config::StoreSettings;
use crate::lifecycle::{Lifecycle, LifecycleError, Origin};
use crate::store::embedded::{self, Embedded, Verified};
use crate::store::keeper::{Place, Remembrance};
use crate::store::redis::{self, Redis};
use crate::store::whole::Fill;
use crate::store::{LEASE, Store, StoreFault};
use crate::telemetry::{Event, Notice};
use crate::vocabulary::clock::Clock;
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

/// Opens the store that the configuration names. Its work in the background runs on `control`. The clock, and all copies of it,
/// follow the store's.
///
/// # Errors
/// [`StoreError`] says what to do. A Redis that is down is no error: the store begins to answer when Redis is
/// up.
pub fn open_store(
    settings: &StoreSettings,
    sealer: Sealer,
    control: &Handle,
    clock: &Clock,
) -> Result<Arc<dyn Store>, StoreError> {
    match settings {
        StoreSettings::Embedded(settings) => {
            Ok(Arc::new(Embedded::open_at(settings, sealer, clock.clone())?))
        }
        StoreSettings::Redis(settings) => {
            Ok(Arc::new(Redis::open_at((**settings).clone(), sealer, control.clone(), clock.clone())?))
        }
    }
}

/// Opens a file that was just verified, which is not read as a whole again.
///
/// # Errors
/// As [`open_store`].
pub(super) fn open_verified(
    verified: &Verified,
    sealer: Sealer,
    clock: &Clock,
) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(Embedded::open_verified(verified, sealer, clock.clone())?))
}

/// Opens the store that the configuration names, only to read it: the file of an embedded store stays as it is.
///
/// # Errors
/// As [`open_store`], and when there is no file of an embedded store.
pub fn open_store_to_read(
    settings: &StoreSettings,
    sealer: Sealer,
    control: &Handle,
    clock: &Clock,
) -> Result<Arc<dyn Store>, StoreError> {
    match settings {
        StoreSettings::Embedded(settings) => {
            Ok(Arc::new(Embedded::open_to_read(settings, sealer, clock.clone())?))
        }
        StoreSettings::Redis(_) => open_store(settings, sealer, control, clock),
    }
}

/// The empty place that the configuration names, to restore a backup into it.
///
/// # Errors
/// As [`open_store`].
pub fn open_to_fill(
    settings: &StoreSettings,
    sealer: Sealer,
    control: &Handle,
) -> Result<Box<dyn Fill>, StoreError> {
    match settings {
        StoreSettings::Embedded(settings) => Ok(Box::new(embedded::Filling::new(settings, sealer))),
        StoreSettings::Redis(settings) => {
            let store = Redis::open((**settings).clone(), sealer, control.clone())?;
            Ok(Box::new(redis::Filling::new(&store)))
        }
    }
}

/// How often writing a lost revocation is tried, and the pause between two tries. If it fails every time, the key
/// is reported again when a client presents it.
const REVOKED_TRIES: usize = 50;
const REVOKED_PAUSE: Duration = Duration::from_millis(100);
/// For how many keys a gateway that may not write logs that the store has lost their revocation.
const SAID_AT_MOST: usize = 65_536;

/// Attends to keys that this process knows to be revoked, while the store, which has lost its last changes, does
/// not. A gateway that may write revokes them again. A gateway that may not refuses them too, and logs it.
pub(super) async fn attend_revived(lifecycle: Option<Arc<Lifecycle>>, mut revived: mpsc::Receiver<KeyId>) {
    let mut keys = Vec::new();
    // A key is reported every time a client presents it.
    let mut said = HashSet::new();
    while revived.recv_many(&mut keys, 64).await > 0 {
        keys.sort_unstable();
        keys.dedup();
        for key in keys.drain(..) {
            match &lifecycle {
                Some(lifecycle) => {
                    let line = || format!("the store has lost the revocation of {key}: revoking it again");
                    Event::RevocationLost.log(lifecycle.clock().mono(), line);
                    revoke_again(lifecycle, key).await;
                }
                None if said.len() < SAID_AT_MOST && said.insert(key) => Notice::RevocationNotKept.log(&format!(
                    "the store has lost the revocation of {key}: it is refused here; a gateway of role full must revoke it again"
                )),
                None => {}
            }
        }
    }
}

/// Attends to records that are older in the store than this process remembers: the remembered ones count here, and a
/// gateway that may write writes them again.
pub(super) async fn attend_set_back(
    store: Arc<dyn Store>,
    lifecycle: Option<Arc<Lifecycle>>,
    mut reported: mpsc::Receiver<Place>,
    clock: Clock,
) {
    let mut places = Vec::new();
    while reported.recv_many(&mut places, 64).await > 0 {
        let some: HashSet<Place> = places.drain(..).collect();
        for place in some {
            // An answer that a change has overtaken looks like an older record. It is none any more.
            let found = store.keeper().compare(place).await;
            let (lost, event) = match found {
                Ok(Remembrance::RevocationLost) => ("the revocation", Event::RevocationLost),
                Ok(Remembrance::ChangeLost) => ("the last change", Event::ChangeLost),
                // If the store does not answer, the next lookup reports it.
                Ok(Remembrance::Agrees) | Err(_) => continue,
            };
            let then = match &lifecycle {
                Some(_) => "this gateway remembers it and writes it again",
                None => "it holds here; a gateway of role full must write it again",
            };
            event.log(clock.mono(), || {
                format!(
                    "the store has lost {lost} of {place}: {then}. Redis failed over, an older backup was restored (`keygate store \
                     accept --older` accepts that), or somebody has put an old record back"
                )
            });
            if let Some(lifecycle) = &lifecycle {
                restore(lifecycle, place).await;
            }
        }
    }
}

async fn restore(lifecycle: &Lifecycle, place: Place) {
    for _ in 0..REVOKED_TRIES {
        match lifecycle.restore(place).await {
            Ok(()) => return,
            Err(_) => tokio::time::sleep(REVOKED_PAUSE).await,
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

/// Gives the lease up at the end, after the last request has been answered: until then every change that takes a
/// right away must wait for this gateway. A store that does not answer now does not hold the end up.
pub(super) async fn take_leave(store: &dyn Store, lifecycle: Option<&Lifecycle>) {
    let leaving = async {
        let left = tokio::time::timeout(BLOCKED_AT_MOST, store.keeper().leave()).await;
        if let Err(fault) = left.unwrap_or(Err(StoreFault::TimedOut)) {
            Notice::LeaseNotGivenUp.log(&format!(
                "the lease could not be given up: {fault}; until it ends, within {LEASE:?}, changes wait for this gateway"
            ));
        }
    };
    let writing_usage = async {
        let Some(lifecycle) = lifecycle else { return };
        // If it fails, the use of keys in the last minute is lost.
        let _ = tokio::time::timeout(BLOCKED_AT_MOST, lifecycle.write_usage()).await;
    };
    tokio::join!(leaving, writing_usage);
}
