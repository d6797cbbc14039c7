//! Where requests go: named upstreams, each with its endpoints for live and for test keys.
//!
//! | file | question |
//! |--|--|
//! | [`endpoint`] | What is an endpoint? |
//! | `select` | Which endpoint gets a request, and which one after it? |
//! | [`loaded`] | What is an upstream whose files were read? |
//! | `retry` | Is a request sent again? |
//! | `dial` | How does a stream to an endpoint come about? |
//! | [`tls`] | What proves an endpoint to keygate, and keygate to it? |
//! | `connection` | How does a request travel over a stream, and which library speaks the protocol? |
//! | `pool` | Which connections does a thread keep? |
//! | [`budget`] | How many connections may the process have? |
//! | [`send`] | What are the steps from a request to its answer? |
//! | [`answer`] | What came back, and may its connection carry another request? |
//! | [`request_body`] | How does a client's body reach the upstream? |
//! | [`health`] | What is known of an endpoint, and is it passed over? |
//!
//! Names of the HTTP library's client stand only in `connection`.

pub mod answer;
pub mod budget;
pub mod client_body;
mod connection;
mod dial;
pub mod endpoint;
pub mod error;
pub mod health;
mod idle_timer;
pub mod loaded;
mod pool;
pub mod request_body;
mod retry;
mod select;
pub mod send;
pub mod tls;

use std::time::Duration;

use http::HeaderValue;

use crate::tls::client::Files;
use crate::vocabulary::key::Environment;

pub use self::endpoint::{Endpoint, InvalidEndpoint};

pub use crate::vocabulary::upstream::{Retries, UpstreamId};

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub name: Box<str>,
    /// Where requests with live keys go. Never empty.
    pub live: Vec<Endpoint>,
    /// Where requests with test keys go. Never empty.
    pub test: Vec<Endpoint>,
    /// By environment: for its endpoints with TLS.
    pub tls: [Files; 2],
    pub host: HostField,
    pub timeouts: Timeouts,
}

impl Settings {
    #[must_use]
    pub fn endpoints(&self, environment: Environment) -> &[Endpoint] {
        match environment {
            Environment::Live => &self.live,
            Environment::Test => &self.test,
        }
    }

    /// Whether a request may go to it over TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.live.iter().chain(&self.test).any(Endpoint::has_tls)
    }
}

/// The Host field for the upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostField {
    /// The client's own.
    #[default]
    Client,
    /// The endpoint's host and port.
    Endpoint,
    /// This one.
    Named(HeaderValue),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// From the last byte of the request to the answer's head. Long polls take 60 seconds.
    pub answer: Duration,
    /// How long an unused connection is kept; below the 5 seconds after which Node closes its side.
    pub idle: Duration,
    /// How long an answer's body may pause.
    pub stream_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(75),
            idle: Duration::from_secs(4),
            stream_idle: Duration::from_secs(300),
        }
    }
}
