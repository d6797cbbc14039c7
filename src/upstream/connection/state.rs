//! What the driver of a shared connection and its requests know of it.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

use super::measured::Traffic;

/// How many streams keygate resets on a connection before that takes no more requests. Servers that count allow 20 at once or
/// more.
const RESETS: usize = 16;
#[derive(Debug)]
pub(super) struct State {
    pub(super) in_flight: Cell<usize>,
    /// The requests that may be in flight. One, until the server has said how many.
    pub(super) allowed: Cell<usize>,
    /// Whether it takes no more requests.
    pub(super) is_closed: Cell<bool>,
    /// Whether the server has said how many it allows.
    pub(super) is_settled: Cell<bool>,
    /// How many streams were reset here.
    pub(super) resets: Cell<usize>,
    /// Told when it takes a request, or ends.
    pub(super) changed: Rc<Notify>,
    pub(super) traffic: Rc<Traffic>,
}

impl State {
    /// A stream was reset here.
    pub(super) fn note_reset(&self) {
        self.resets.set(self.resets.get() + 1);
        if self.resets.get() >= RESETS {
            self.is_closed.set(true);
        }
    }
}
