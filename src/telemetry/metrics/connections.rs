//! Open client connections, by the protocol that they speak.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use prometheus::proto::MetricFamily;

use super::cell::change;
use super::family::gauges;

/// The protocol of a client connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Not known yet: the TLS handshake is under way, or no byte has come.
    Opening,
    Http1,
    Http2,
    WebSocket,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Opening, Self::Http1, Self::Http2, Self::WebSocket];

    const fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::WebSocket => "websocket",
        }
    }
}

/// One thread's open connections, by [`Protocol`].
#[derive(Debug, Default)]
pub(super) struct OpenConnections([AtomicI64; Protocol::ALL.len()]);

/// A client connection, counted until this is dropped. It stays on its thread.
#[derive(Debug)]
pub struct Connected {
    open: Arc<OpenConnections>,
    protocol: Cell<Protocol>,
}

impl Connected {
    pub(super) fn new(open: Arc<OpenConnections>) -> Self {
        change(&open.0[Protocol::Opening as usize], 1);
        Self { open, protocol: Cell::new(Protocol::Opening) }
    }

    /// The connection speaks this protocol from now on.
    pub fn speaks(&self, protocol: Protocol) {
        change(&self.open.0[self.protocol.replace(protocol) as usize], -1);
        change(&self.open.0[protocol as usize], 1);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        change(&self.open.0[self.protocol.get() as usize], -1);
    }
}

pub(super) fn family<'t>(threads: &(impl Iterator<Item = &'t OpenConnections> + Clone)) -> MetricFamily {
    let open = |protocol: Protocol| -> i64 {
        threads.clone().map(|open| open.0[protocol as usize].load(Ordering::Relaxed)).sum()
    };
    let series = Protocol::ALL
        .map(|protocol| ([("listener", "server"), ("protocol", protocol.label())], open(protocol) as f64));
    gauges(
        "keygate_connections",
        "Open client connections, by protocol; \"opening\" until it is known.",
        series,
    )
}
