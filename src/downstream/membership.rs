//! The connections of one worker: their number, and the signal to all of them to finish.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Waker};

use tokio::sync::Notify;

/// The open connections of one worker.
///
/// It belongs to one thread. Therefore a connection can ask on every poll whether the drain has begun: that
/// costs the read of a flag.
#[derive(Debug, Default)]
pub(super) struct Connections {
    draining: Cell<bool>,
    next: Cell<u64>,
    open: RefCell<HashMap<u64, Option<Waker>>>,
    all_closed: Notify,
}

impl Connections {
    /// Counts a connection in, before its task first runs. So the drain also waits for a connection that was
    /// handed over just before it.
    #[must_use]
    pub(super) fn join(self: &Rc<Self>) -> Member {
        let number = self.next.get();
        self.next.set(number + 1);
        self.open.borrow_mut().insert(number, None);
        Member { connections: Rc::clone(self), number, registered: Cell::new(false) }
    }

    /// Lets every connection finish its requests under way, and begin no other.
    pub(super) fn begin_drain(&self) {
        self.draining.set(true);
        for waker in self.open.borrow_mut().values_mut().filter_map(Option::take) {
            waker.wake();
        }
    }

    /// Waits until no connection is open.
    pub(super) async fn closed(&self) {
        while !self.open.borrow().is_empty() {
            self.all_closed.notified().await;
        }
    }
}

/// One connection among those of its worker. It leaves them when it is dropped.
#[derive(Debug)]
pub(super) struct Member {
    connections: Rc<Connections>,
    number: u64,
    registered: Cell<bool>,
}

impl Member {
    /// Whether the drain has begun. If it has not, the task is woken when it begins.
    pub(super) fn poll_drain(&self, cx: &Context<'_>) -> bool {
        if self.connections.draining.get() {
            return true;
        }
        // The waker of a task stays the same while its own runtime polls it.
        if !self.registered.replace(true) {
            self.connections.open.borrow_mut().insert(self.number, Some(cx.waker().clone()));
        }
        false
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut open = self.connections.open.borrow_mut();
        open.remove(&self.number);
        if open.is_empty() {
            self.connections.all_closed.notify_one();
        }
    }
}
