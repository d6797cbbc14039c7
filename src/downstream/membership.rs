//! The connections of one worker: their number, and the signals to all of them that the process ends.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::held::{Held, Owner};
use super::together::{Allowed, Together};
use crate::gateway::Departure;
use crate::telemetry::Event;
use crate::vocabulary::network::ClientSite;

/// How far the end of the process has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    #[default]
    Serving,
    /// Clients are told that their connections end, and every request is still served.
    Leaving,
    /// The requests under way are finished, and no other is begun.
    Finishing,
    /// Streams have had their share of the time.
    Closing,
}

/// The open connections of one worker.
///
/// It belongs to one thread. Therefore a connection can ask on every poll how far the end has come: that costs the read
/// of a byte.
#[derive(Debug, Default)]
pub(super) struct Connections {
    stage: Cell<Stage>,
    next: Cell<u64>,
    all_closed: Notify,
    /// Those that are open.
    together: Rc<Together>,
}

impl Connections {
    /// Counts a connection in, before its task first runs. So the drain also waits for a connection that was
    /// handed over just before it. `site` is its client's; `None` for a trusted proxy.
    #[must_use]
    pub(super) fn join(self: &Rc<Self>, site: Option<ClientSite>) -> Member {
        let number = self.next.get();
        self.next.set(number + 1);
        let held = Held::new(site.map_or(Owner::Proxy(number), Owner::Site), &self.together);
        self.together.join(number, &held);
        Member { connections: Rc::clone(self), number, held, registered: Cell::new(false) }
    }

    /// Tells every connection how far the end has come. It never goes back.
    pub(super) fn advance(&self, to: Stage) {
        self.stage.set(self.stage.get().max(to));
        self.together.wake_all();
    }

    /// For a worker whose clients may have so much together.
    pub(super) fn new(allowed: Arc<Allowed>) -> Self {
        Self { together: Together::new(allowed), ..Self::default() }
    }

    /// Waits until no connection is open.
    pub(super) async fn closed(&self) {
        while !self.together.is_empty() {
            self.all_closed.notified().await;
        }
    }
}

/// One connection among those of its worker. It leaves them when it is dropped.
#[derive(Debug)]
pub(super) struct Member {
    connections: Rc<Connections>,
    number: u64,
    held: Rc<Held>,
    registered: Cell<bool>,
}

impl Member {
    /// What the connection holds.
    pub(super) const fn held(&self) -> &Rc<Held> {
        &self.held
    }

    /// How far the end has come.
    pub(super) fn stage(&self) -> Stage {
        self.connections.stage.get()
    }

    /// How far the end has come. The task is woken when it goes on, and when the connection must go.
    pub(super) fn poll_stage(&self, cx: &Context<'_>) -> Stage {
        // The waker of a task stays the same while its own runtime polls it.
        if !self.registered.replace(true) {
            self.held.task().remember(cx);
        }
        self.stage()
    }

    /// The duty of a tunnel that began at the stage `begun`. One that was begun while clients were told to leave is told
    /// only when that time is over: until then a load balancer could bring its client back here again and again.
    pub(super) fn poll_departure(&self, cx: &Context<'_>, begun: Stage) -> Departure {
        match self.poll_stage(cx) {
            Stage::Closing => Departure::Over,
            Stage::Finishing => Departure::Asked,
            Stage::Leaving if begun == Stage::Serving => Departure::Asked,
            Stage::Leaving | Stage::Serving => Departure::NotYet,
        }
    }

    /// Logs that the connection is cut, unless many were a moment ago.
    pub(super) fn log_cut(&self, line: impl FnOnce() -> String) {
        Event::ConnectionCut.log(Instant::now().into_std(), line);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.held.leave();
        self.connections.together.leave(self.number);
        if self.connections.together.is_empty() {
            self.connections.all_closed.notify_one();
        }
    }
}
