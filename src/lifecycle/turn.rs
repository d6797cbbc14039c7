//! Turns: changes to one organisation are made one after the other, and those that take rights away come first, then new
//! secrets for keys, which end others.
//!
//! An audit record follows the last record of its trail, so of two changes to one organisation only one can be
//! committed on the same end; the other is decided again. Within a process the changes take turns, so that this
//! happens only between gateways. Each trail has its own turns: nobody waits for another organisation.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::principal::{Origin, Principal};
use crate::vocabulary::audit::Trail;

/// The lane of a change. Whoever waits in an earlier one overtakes all that wait in a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Lane {
    /// Operators, and keygate itself, take rights away.
    Operators,
    /// Keys take rights away: they revoke and narrow.
    Taking,
    /// Keys get new secrets, which end others.
    Rotating,
    /// Everything else.
    Making,
}

impl Lane {
    /// The lane of a change that takes rights away.
    pub(super) const fn taking(origin: &Origin) -> Self {
        match origin.principal {
            Principal::Operator(_) | Principal::OperatorOf(..) | Principal::Gateway => Self::Operators,
            Principal::Key(_) | Principal::Stranger => Self::Taking,
        }
    }

    /// In a line of this lane.
    pub(super) const fn of(self, trail: Trail) -> Line {
        Line { trail, lane: self }
    }
}

/// Where a change waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) trail: Trail,
    lane: Lane,
}

impl Line {
    /// Whether the change takes rights away.
    pub(super) const fn takes_away(self) -> bool {
        matches!(self.lane, Lane::Operators | Lane::Taking)
    }
}

/// The turns to change trails. The lock is never held while somebody waits.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The trails that are being changed, each with those that wait for it.
    waiting: Mutex<BTreeMap<Trail, Waiting>>,
    joined: AtomicU64,
}

/// First by lane, then as they came.
type Waiting = BTreeMap<(Lane, u64), oneshot::Sender<()>>;

/// The turn to change a trail. It passes on when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    trail: Trail,
}

/// A place among those that wait.
struct Place<'t> {
    turns: &'t Turns,
    trail: Trail,
    at: (Lane, u64),
    /// `None` once the turn has come.
    called: Option<oneshot::Receiver<()>>,
}

impl Turns {
    /// Waits for the turn. Whoever stops waiting leaves the line.
    pub(super) async fn take(&self, line: Line) -> Turn<'_> {
        if let Some(place) = self.join(line) {
            place.wait().await;
        }
        Turn { turns: self, trail: line.trail }
    }

    /// `None` if it is the turn of the one who asks.
    fn join(&self, line: Line) -> Option<Place<'_>> {
        match self.lock().entry(line.trail) {
            Entry::Vacant(free) => {
                free.insert(Waiting::new());
                None
            }
            Entry::Occupied(mut waiting) => {
                let (call, called) = oneshot::channel();
                let at = (line.lane, self.joined.fetch_add(1, Ordering::Relaxed));
                waiting.get_mut().insert(at, call);
                Some(Place { turns: self, trail: line.trail, at, called: Some(called) })
            }
        }
    }

    fn pass_on(&self, trail: Trail) {
        let mut all = self.lock();
        let next = all.get_mut(&trail).and_then(Waiting::pop_first);
        match next {
            // One that leaves at this very moment passes the turn on as it goes.
            Some((_, call)) => drop(call.send(())),
            None => drop(all.remove(&trail)),
        }
    }

    /// Nothing panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Trail, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    async fn wait(mut self) {
        if let Some(called) = &mut self.called {
            // The other end is dropped only after it has called.
            let _ = called.await;
        }
        self.called = None;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.called.is_none() {
            return;
        }
        let left = self.turns.lock().get_mut(&self.trail).and_then(|waiting| waiting.remove(&self.at));
        if left.is_none() {
            // It was called meanwhile.
            self.turns.pass_on(self.trail);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.pass_on(self.trail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::clock::UnixMillis;
    use crate::vocabulary::id::{IdSource, OrgId};
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn polled<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn those_who_take_rights_away_come_first_and_operators_before_all() {
        let turns = Turns::default();
        let line = |lane: Lane| lane.of(Trail::Operator);
        let first = polled(pin!(turns.take(line(Lane::Making)))).unwrap();
        let lanes = [Lane::Making, Lane::Taking, Lane::Rotating, Lane::Operators, Lane::Taking, Lane::Making];
        let mut waiting: Vec<_> = lanes.into_iter().map(|lane| Box::pin(turns.take(line(lane)))).collect();
        for one in &mut waiting {
            assert!(polled(one.as_mut()).is_none());
        }
        let mut turn = first;
        for next in [3, 1, 4, 2, 0, 5] {
            drop(turn);
            let called: Vec<usize> = (0..waiting.len()).filter(|n| *n == next).collect();
            assert_eq!(called, [next]);
            turn = polled(waiting[next].as_mut()).unwrap();
        }
        drop(turn);
        drop(waiting);
        assert!(turns.lock().is_empty(), "nothing is kept of a trail that nobody changes");
    }

    #[test]
    fn whoever_leaves_the_line_holds_nobody_up() {
        let turns = Turns::default();
        let line = Lane::Making.of(Trail::Operator);
        let first = polled(pin!(turns.take(line))).unwrap();
        let [mut leaving, mut called, mut last] = [(); 3].map(|()| Box::pin(turns.take(line)));
        for one in [&mut leaving, &mut called, &mut last] {
            assert!(polled(one.as_mut()).is_none());
        }
        drop(leaving);
        drop(first);
        // It is the turn of this one, which has not looked yet.
        drop(called);
        assert!(polled(last.as_mut()).is_some());
    }

    #[test]
    fn no_trail_waits_for_another() {
        let turns = Turns::default();
        let mut ids = IdSource::seeded(1);
        let trails: Vec<Trail> =
            (0..1000).map(|_| Trail::Org(OrgId::draw(&mut ids, UnixMillis(1)))).collect();
        let held: Vec<Turn<'_>> = trails
            .iter()
            .map(|trail| polled(pin!(turns.take(Lane::Making.of(*trail)))).expect("it is free"))
            .collect();
        drop(held);
        assert!(turns.lock().is_empty());
    }
}
