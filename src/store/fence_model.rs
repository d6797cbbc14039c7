//! The fence under loom: a map that stands for the store, a cache of one entry, and every order in which the
//! threads that use them can run.
//!
//! The fence's own file is compiled a second time here, with loom's types in the place of the standard
//! library's (`super::sync`), so it is the real one that is checked, in an ordinary test run.

use loom::sync::Arc;
use loom::sync::Mutex;
use loom::sync::atomic::AtomicBool;
use loom::thread;

use self::fence::{Fence, Judgement, Stamp};
use self::sync::Ordering;
use super::events::{self, EventSink, Subject};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;

#[expect(
    clippy::duplicate_mod,
    dead_code,
    unreachable_pub,
    reason = "it is written for the crate, and here is only its model"
)]
#[path = "fence.rs"]
mod fence;

mod sync {
    pub(super) use loom::sync::RwLock;
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
}

/// Three threads meet in more orders than are worth waiting for; this many times one is interrupted.
const INTERRUPTIONS: usize = 3;

const OURS: Digest = Digest::from_bytes([1; 32]);
const ANOTHER: Digest = Digest::from_bytes([2; 32]);
const ORG: OrgId = OrgId::from_bytes([1; 16]);
const KEY: KeyId = KeyId::from_bytes([1; 16]);

struct World {
    fence: Fence,
    /// The store: whether the key is alive.
    store: Mutex<bool>,
    /// The cache: with which stamp the key was read, and whether it was alive.
    cached: Mutex<Option<(Stamp, bool)>>,
    /// Whether somebody was told that the key is dead.
    confirmed: AtomicBool,
}

impl World {
    fn with(fence: Fence) -> Arc<Self> {
        Arc::new(Self {
            fence,
            store: Mutex::new(true),
            cached: Mutex::new(None),
            confirmed: AtomicBool::new(false),
        })
    }

    /// As `cache/loads.rs` does it.
    fn load(&self) {
        let stamp = self.fence.stamp();
        let alive = *self.store.lock().unwrap();
        if self.fence.judge(stamp, &OURS, &KEY, ORG) != Judgement::Touched {
            let alive = alive && !self.fence.is_revoked(&OURS);
            *self.cached.lock().unwrap() = Some((stamp, alive));
        }
    }

    /// As `cache/mod.rs` does it. Whether a request with the key is let in.
    fn admit(&self) -> bool {
        let Some((stamp, alive)) = *self.cached.lock().unwrap() else { return false };
        match self.fence.judge(stamp, &OURS, &KEY, ORG) {
            Judgement::Current => alive,
            Judgement::Untouched(renewed) => {
                if let Some((stamp, _)) = &mut *self.cached.lock().unwrap() {
                    *stamp = renewed.max(*stamp);
                }
                alive
            }
            Judgement::Touched => false,
        }
    }

    /// As a store does it: durable, then told, then confirmed.
    fn end(&self, subjects: &[Subject]) {
        *self.store.lock().unwrap() = false;
        self.fence.apply(0, subjects);
        self.confirmed.store(true, Ordering::Release);
    }

    /// Asks twice: the second time with what the first has left.
    fn assert_dead_means_dead(&self) {
        for _ in 0..2 {
            let confirmed = self.confirmed.load(Ordering::Acquire);
            assert!(!(self.admit() && confirmed), "a dead key is let in");
        }
    }
}

fn explore(fence: fn() -> Fence, change: fn(&World)) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(INTERRUPTIONS);
    model.check(move || {
        let world = World::with(fence());
        let (loading, changing) = (Arc::clone(&world), Arc::clone(&world));
        let threads = [thread::spawn(move || loading.load()), thread::spawn(move || change(&changing))];
        world.assert_dead_means_dead();
        for thread in threads {
            thread.join().unwrap();
        }
        world.assert_dead_means_dead();
        world.load();
        world.assert_dead_means_dead();
    });
}

#[test]
fn a_load_beside_a_revocation_leaves_nothing_that_lets_the_key_in() {
    explore(Fence::default, |world| world.end(&[Subject::Revoked(OURS)]));
}

#[test]
fn nor_does_one_beside_the_end_of_its_organisation() {
    explore(Fence::default, |world| world.end(&[Subject::Org(ORG)]));
}

#[test]
fn an_event_about_another_key_renews_no_dead_entry() {
    explore(Fence::default, |world| {
        world.fence.apply(0, &[Subject::Digest(ANOTHER)]);
        world.end(&[Subject::Digest(OURS)]);
        world.fence.apply(0, &[Subject::Digest(ANOTHER)]);
    });
}

#[test]
fn what_is_forgotten_counts_as_touched() {
    explore(
        || Fence::remembering(1),
        |world| {
            world.end(&[Subject::Digest(OURS)]);
            world.fence.apply(0, &[Subject::Digest(ANOTHER)]);
        },
    );
}

#[test]
fn a_store_that_forgets_a_revocation_brings_nothing_back() {
    explore(Fence::default, |world| {
        world.end(&[Subject::Revoked(OURS)]);
        *world.store.lock().unwrap() = true;
        world.fence.reset(0);
    });
}
