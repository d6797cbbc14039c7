//! From an endpoint to an open stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::endpoint::{Address, Endpoint, Scheme};
use crate::dial::{self, Preference};
use crate::vocabulary::clock::Clock;

/// An open stream to an endpoint, on which nothing was said yet.
pub(super) type Stream = TcpStream;

/// Opens streams to one endpoint.
#[derive(Debug)]
pub(super) struct Dialer {
    endpoint: Endpoint,
    server: dial::Dialer,
}

impl Dialer {
    /// Each attempt beside the first takes one of `places`.
    pub(super) fn new(endpoint: Endpoint, places: Arc<Semaphore>) -> Self {
        let Address::Tcp { host, port } = endpoint.address();
        let server = dial::Dialer::new(host, *port, Preference::InTurn).sharing(places);
        Self { endpoint, server }
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether new streams may lead to another address than those before.
    pub(super) fn may_move(&self) -> bool {
        self.server.has_name()
    }

    /// Opens a stream. See [`dial::Dialer::dial`].
    ///
    /// # Errors
    /// Of the resolver, or of the last address that failed. There is no time limit here.
    pub(super) async fn dial(&self, within: Duration, clock: &Clock) -> io::Result<Stream> {
        match self.endpoint.scheme() {
            Scheme::Http => self.server.dial(within, clock).await,
        }
    }
}
