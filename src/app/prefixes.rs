//! Keeps the gateway in step with the prefixes that its store accepts: the workers accept them, the lease says so, and
//! the configuration's own is added to them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;

use crate::downstream::worker::Worker;
use crate::gateway::Shapes;
use crate::lifecycle::Lifecycle;
use crate::store::Store;
use crate::vocabulary::key::{KeyFormat, Prefix, Prefixes};

/// The pause before the configuration's prefix is proposed again, after the store did not answer, or refused it because a
/// gateway of an older release runs.
const AGAIN: Duration = Duration::from_secs(1);

/// What follows the prefixes.
#[derive(Debug)]
pub(super) struct Followers {
    pub(super) store: Arc<dyn Store>,
    pub(super) lifecycle: Option<Weak<Lifecycle>>,
    pub(super) workers: Weak<Vec<Worker>>,
    /// What keys look like, whatever their prefix.
    pub(super) format: KeyFormat,
    /// The prefix of the configuration.
    pub(super) own: Prefix,
}

/// Runs as long as the workers do.
pub(super) async fn follow(followers: Followers) {
    let propose = propose(followers.lifecycle.clone(), &*followers.store);
    tokio::select! {
        () = adopt(&followers) => {}
        () = propose => {}
    }
}

async fn adopt(followers: &Followers) {
    let book = followers.store.keeper().prefixes();
    let mut followed = book.followed();
    loop {
        let prefixes = followed.borrow_and_update().clone();
        if let Some(prefixes) = prefixes {
            if let Some(lifecycle) = followers.lifecycle.as_ref().and_then(Weak::upgrade) {
                lifecycle.note_prefixes(prefixes.clone());
            }
            // First everything is accepted that the list has, and others are looked up; then the lease says which list this
            // is; then others are refused. So no gateway makes keys that this one would refuse.
            if !accept(followers, &prefixes, None).await {
                return;
            }
            let mut later = followed.clone();
            tokio::select! {
                () = book.announce(&prefixes) => {
                    accept(followers, &prefixes, Some(followed.clone())).await;
                }
                _ = later.changed() => continue,
            }
        }
        if followed.changed().await.is_err() {
            return;
        }
    }
}

/// Returns when every worker accepts these prefixes, and whether there are workers. `only_these`: others are refused, for as
/// long as the store has no other list.
async fn accept(
    Followers { workers, format, own, .. }: &Followers,
    prefixes: &Prefixes,
    only_these: Option<watch::Receiver<Option<Prefixes>>>,
) -> bool {
    let (done, mut all_done) = unbounded_channel();
    {
        let Some(workers) = workers.upgrade() else { return false };
        let shapes = Arc::new(Shapes { format: format.accepting(prefixes, own), only_these });
        workers.iter().for_each(|worker| worker.accept(Arc::clone(&shapes), done.clone()));
    }
    drop(done);
    // Nothing is ever sent. It ends when the last worker has dropped its sender.
    let _ = all_done.recv().await;
    true
}

/// Adds the configuration's prefix to those of the store, and again if another gateway has removed it. A gateway that
/// only lets requests through makes no keys, so it adds none.
async fn propose(lifecycle: Option<Weak<Lifecycle>>, store: &dyn Store) {
    let Some(lifecycle) = lifecycle else { return std::future::pending().await };
    let mut followed = store.keeper().prefixes().followed();
    loop {
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        followed.mark_unchanged();
        let is_accepted = lifecycle.propose_prefix().await.unwrap_or(false);
        drop(lifecycle);
        if !is_accepted {
            tokio::time::sleep(AGAIN).await;
        } else if followed.changed().await.is_err() {
            return;
        }
    }
}
