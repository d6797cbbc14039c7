//! The clients' connections that are open, by what they speak.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus::proto::MetricFamily;

use super::cells::{Cells, change};
use super::family::gauges;

/// What a client's connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Not known yet: TLS is being agreed on, or nothing has come.
    Opening,
    Http1,
    Http2,
    WebSocket,
}

impl Protocol {
    pub(super) const ALL: [Self; 4] = [Self::Opening, Self::Http1, Self::Http2, Self::WebSocket];

    const fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::WebSocket => "websocket",
        }
    }
}

/// A client's connection, counted for as long as this lives. It stays on its thread.
#[derive(Debug)]
pub struct Connected {
    cells: Arc<Cells>,
    protocol: Cell<Protocol>,
}

impl Cells {
    /// A client has connected.
    #[must_use]
    pub fn connected(self: &Arc<Self>) -> Connected {
        change(&self.connections[Protocol::Opening as usize], 1);
        Connected { cells: Arc::clone(self), protocol: Cell::new(Protocol::Opening) }
    }
}

impl Connected {
    /// It has become clear what the connection speaks from now on.
    pub fn speaks(&self, protocol: Protocol) {
        change(&self.cells.connections[self.protocol.replace(protocol) as usize], -1);
        change(&self.cells.connections[protocol as usize], 1);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        change(&self.cells.connections[self.protocol.get() as usize], -1);
    }
}

pub(super) fn families(threads: &[Arc<Cells>]) -> [MetricFamily; 1] {
    let open = |protocol: Protocol| -> i64 {
        threads.iter().map(|cells| cells.connections[protocol as usize].load(Ordering::Relaxed)).sum()
    };
    let series = Protocol::ALL
        .map(|protocol| ([("listener", "server"), ("protocol", protocol.label())], open(protocol) as f64));
    [gauges(
        "keygate_connections",
        "Open client connections, by what they speak; opening until that is known.",
        series,
    )]
}
