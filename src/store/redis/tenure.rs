//! Whether the server that keys are looked up at is still the one that takes changes.
//!
//! A master that was cut off from its replicas, or demoted, goes on answering lookups with outdated data. Its answer
//! to a write shows this. The heartbeat is such a write; while no heartbeat succeeds, the server of the lookups is
//! asked separately, over their own connection. The answers of a suspected server count for less
//! ([`EventSink::suspect`](crate::store::events::EventSink::suspect)).
//!
//! Not every refusal is a sign. A master whose disk fails, whose memory is full, or which denies us a right, is still
//! the only master. So is one that lacks replicas, while the servers that would choose another say that it is the
//! master.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ::redis::RedisError;

use super::Inner;
use super::scripts::Call;
use super::settings::Node;
use crate::store::LEASE;
use crate::telemetry::Event;

/// Whether a server is believed to be the master.
#[derive(Debug)]
pub(super) struct Tenure(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When it last proved to be the master; before the first proof, when this process began.
    shown: Instant,
    in_doubt: bool,
}

impl Tenure {
    pub(super) const fn begin(now: Instant) -> Self {
        Self(Mutex::new(State { shown: now, in_doubt: false }))
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.lock().in_doubt
    }

    /// Notes that it was the master at this moment. Returns whether that was in doubt.
    fn show(&self, at: Instant) -> bool {
        let mut state = self.lock();
        state.shown = state.shown.max(at);
        std::mem::take(&mut state.in_doubt)
    }

    /// Notes a doubt. Returns since when it may not have been the master, if the doubt is new.
    fn doubt(&self) -> Option<Instant> {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.in_doubt, true);
        (!before).then_some(state.shown)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes that the server accepted a change that was sent at this moment, or that others vouch for it.
pub(super) fn confirm(inner: &Inner, asked: Instant) {
    if inner.tenure.show(asked) {
        inner.ledger.suspect(None);
        let place = inner.connector.whereabouts();
        let line = || format!("Redis at {place} takes changes: what it says of keys counts again");
        Event::StoreDoubted.log(inner.clock.mono(), line);
    }
}

/// Asks the server of the lookups, if there is one, whether it would accept a change. The call changes nothing.
pub(super) async fn question(inner: &Inner) {
    let names = &inner.names;
    // Event 0 is never later than what a lease names, so nothing is written.
    let places = [names.lease(&inner.gateway), names.lease_serves(&inner.gateway)];
    let call = Call::new(&inner.scripts.confirm, places).arg("0").arg("").arg(names.events());
    let asked = inner.clock.mono();
    match inner.lookups.sound(&call, inner.settings.command_timeout).await {
        Some((_, Ok(_))) => confirm(inner, asked),
        Some((node, Err(error))) => match error.code().and_then(Refusal::of) {
            Some(Refusal::LacksReplicas) if inner.connector.vouches_for(&node).await => confirm(inner, asked),
            Some(_) => suspect(inner, &node, &error),
            None => {}
        },
        None => {}
    }
}

fn suspect(inner: &Inner, node: &Node, error: &RedisError) {
    if let Some(since) = inner.tenure.doubt() {
        inner.ledger.suspect(Some(since));
        Event::StoreDoubted.log(inner.clock.mono(), || {
            format!(
                "Redis at {node} answers lookups and takes no changes, so that another may have taken its place ({error}): \
                 what it says of keys counts until {LEASE:?} after the last heartbeat"
            )
        });
    }
}

/// A refusal that raises doubt.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It is no longer the master, or has lost the majority of the cluster.
    Deposed,
    /// It has fewer replicas than its minimum: they may have another master by now, or be dead.
    LacksReplicas,
}

impl Refusal {
    fn of(code: &str) -> Option<Self> {
        match code {
            "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" => Some(Self::Deposed),
            "NOREPLICAS" => Some(Self::LacksReplicas),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::vocabulary::clock::Clock;

    #[test]
    fn doubt_begins_where_the_server_was_last_seen_to_be_the_master() {
        let start = Clock::system().mono();
        let tenure = Tenure::begin(start);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(!tenure.show(later(3)) && !tenure.is_in_doubt());
        assert_eq!((tenure.doubt(), tenure.doubt()), (Some(later(3)), None));
        assert!(tenure.is_in_doubt());
        assert!(tenure.show(later(9)) && !tenure.is_in_doubt());
        assert!(!tenure.show(later(5)), "an answer that was long under way");
        assert_eq!(tenure.doubt(), Some(later(9)));
    }

    #[test]
    fn a_master_that_cannot_write_is_a_master_still() {
        for code in ["OOM", "MISCONF", "NOPERM", "LOADING", "BUSY", "ERR"] {
            assert_eq!(Refusal::of(code), None, "{code}");
        }
        for code in ["READONLY", "MASTERDOWN", "CLUSTERDOWN"] {
            assert_eq!(Refusal::of(code), Some(Refusal::Deposed), "{code}");
        }
        assert_eq!(Refusal::of("NOREPLICAS"), Some(Refusal::LacksReplicas));
    }
}
