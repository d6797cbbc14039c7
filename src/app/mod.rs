//! The whole gateway, put together: store, cache, workers, listeners. It is taken apart in order when it ends.

mod clocks;
mod control;
mod in_force;
mod inherited;
mod key_tools;
mod prefixes;
mod readiness;
mod reload;
mod room;
mod signals;
mod sockets;
mod start;
mod stop;
mod store;
mod take_over;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use tokio::sync::watch;

use crate::downstream::listener::Accepting;
use crate::downstream::worker::{DrainSettings, Worker};
use crate::lifecycle::Lifecycle;
use crate::operators::Running;
use crate::operators::admin::Passed;
use crate::operators::ops::Readiness;
use crate::store::Store;
use crate::telemetry::RecordWriter;
use crate::vocabulary::clock::Clock;

use in_force::InForce;
use reload::Fixed;
use take_over::HandOver;

pub use control::Control;
pub use inherited::{InheritError, Inherited};
pub use key_tools::{KeyTools, SecretError, read_secret};
pub use reload::{NeedsRestart, Refused, Source};
pub use signals::Signals;
pub use sockets::SocketError;
pub use start::{Belongings, StartError};
pub use stop::Ended;
pub use store::{StoreError, open_store, open_store_to_read, open_to_fill};
pub use take_over::{OldProcess, TakeOverError, Taken, take_over};

/// A running gateway.
#[derive(Debug)]
pub struct App {
    addresses: Addresses,
    readiness: Arc<Readiness>,
    /// The servers for operators.
    operators: Vec<Running>,
    /// `None` at a gateway that only lets requests through.
    lifecycle: Option<Arc<Lifecycle>>,
    store: Arc<dyn Store>,
    control: Control,
    accepting: Accepting,
    /// `None` where there is no admin socket, beside which it is asked for.
    hand_over: Option<HandOver>,
    admin_socket: Option<Passed>,
    workers: Arc<Vec<Worker>>,
    records: RecordWriter,
    drain: DrainSettings,
    fixed: Fixed,
    trusted_proxies: watch::Sender<Vec<IpNet>>,
    in_force: Arc<Mutex<InForce>>,
    clock: Clock,
}

/// Where a gateway listens. The ports are the real ones, also where the configuration said 0.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    public: SocketAddr,
    ops: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

impl App {
    /// Where it listens. The port is the real one, also when the configuration said 0.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.addresses.public
    }

    /// Where metrics and probes are; `None` where they are off.
    #[must_use]
    pub const fn ops_address(&self) -> Option<SocketAddr> {
        self.addresses.ops
    }

    /// Where the admin API is; `None` where it is not served over TCP.
    #[must_use]
    pub const fn admin_address(&self) -> Option<SocketAddr> {
        self.addresses.admin
    }

    /// Through which keys are changed here; `None` at a gateway that only lets requests through.
    #[must_use]
    pub const fn lifecycle(&self) -> Option<&Arc<Lifecycle>> {
        self.lifecycle.as_ref()
    }

    /// Runs a future on the control runtime and waits for it. Must not be called from a thread of a runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.control.handle().block_on(future)
    }
}
