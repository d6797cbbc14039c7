//! Notes which keys are used. The notes are written to the store elsewhere.
//!
//! Where the same key was noted within the same minute with the same route, by any thread, a request costs two comparisons.

use std::cell::RefCell;

use super::authorize::Permit;
use super::caller::Caller;
use super::exchange::Exchange;
use crate::lifecycle::UsageLog;
use crate::vocabulary::key::usage::{Usage, Used};

/// Notes that may wait for the next sweep, at most a second away. More are dropped.
const NOTES: usize = 65_536;
/// Notes that are handed over in one go, which takes 0.1 ms, while requests wait.
const AT_ONCE: usize = 256;

/// A thread's notes since the last sweep.
#[derive(Debug, Default)]
pub(super) struct UsageNotes(RefCell<Vec<Used>>);

impl UsageNotes {
    /// Gives some of them to `log`, which writes them to the store; tells whether there are more.
    pub(super) fn hand_over(&self, log: &UsageLog) -> bool {
        let mut notes = self.0.borrow_mut();
        let kept = notes.len().saturating_sub(AT_ONCE);
        log.note(notes.drain(kept..));
        !notes.is_empty()
    }
}

/// Notes the use of a key, at a gateway that can write it to the store.
pub(super) fn note(exchange: &Exchange, permit: &Permit<'_>) {
    let gateway = exchange.gateway();
    if gateway.api.is_none() {
        return;
    }
    let (Caller::Holder(known), Some(route)) = (permit.caller(), exchange.route()) else { return };
    let at = exchange.started().wall;
    let routes = exchange.snapshot().routes().routes().len();
    if known.prepared.common.noted.is_new(at, route, routes) {
        let mut notes = gateway.usage.0.borrow_mut();
        if notes.len() < NOTES {
            let needs = permit.route().access.needs();
            let scopes = needs.map(|needs| needs.used_of(&known.found.key.scopes)).unwrap_or_default();
            notes.push(Used { key: known.found.key.id, usage: Usage { last_used_at: at, scopes } });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::clock::UnixMillis;
    use crate::vocabulary::id::KeyId;
    use crate::vocabulary::key::scope::ScopeSet;

    #[test]
    fn notes_are_handed_over_some_at_a_time_until_there_are_none() {
        let (notes, log) = (UsageNotes::default(), UsageLog::default());
        let usage = Usage { last_used_at: UnixMillis(17), scopes: ScopeSet::default() };
        let used = |number| Used { key: KeyId::from_bytes([number; 16]), usage: usage.clone() };
        notes.0.borrow_mut().extend((0..2 * AT_ONCE + 1).map(|number| used(number as u8)));
        assert_eq!([(); 4].map(|()| notes.hand_over(&log)), [true, true, false, false]);
    }
}
