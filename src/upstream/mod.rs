//! Where requests go: named upstreams, each with its endpoints for live and for test keys.
//!
//! | file | question |
//! |--|--|
//! | [`endpoint`] | What is an endpoint? |
//! | `select` | Which endpoint gets a request, and which one after it? |
//! | [`loaded`] | What is an upstream whose files were read? |
//! | `retry` | Is a request sent again? |
//! | `repeats` | How many requests may be sent twice? |
//! | `servers` | Which servers does an upstream have at the moment, as one thread sees them? |
//! | [`names`] | Which addresses does the name of an endpoint have? |
//! | `dial` | How does a stream to an endpoint come about? |
//! | [`tls`] | What proves an endpoint to keygate, and keygate to it? |
//! | `connection` | How does a request travel over a stream, and which library speaks the protocol? |
//! | `pool` | Which connections does a thread keep? |
//! | `sharing` | Which connection carries one more request beside others, and who opens the next? |
//! | [`budget`] | How many connections may the process have? |
//! | [`bounds`] | How many requests and connections may an upstream have? |
//! | `waiting` | How long does a request wait for its answer? |
//! | [`send`] | What are the steps from a request to its answer? |
//! | [`early_hints`] | What does an upstream tell before its answer? |
//! | `origin` | What does an answer say of its server's own address? |
//! | [`answer`] | What came back, and may its connection carry another request? |
//! | [`request_body`] | How does a client's body reach the upstream? |
//! | [`health`] | What is known of an endpoint, and is it passed over? |
//! | `witnesses` | Does a server answer nobody properly? |
//! | `check` | How is an endpoint looked at that has no request? |
//! | `grpc_health` | What is a server of gRPC asked then? |
//!
//! Names of the HTTP library's client stand only in `connection`.

pub mod answer;
pub mod bounds;
pub mod budget;
mod check;
pub mod client_body;
mod connection;
mod dial;
pub mod early_hints;
pub mod endpoint;
pub mod error;
mod grpc_health;
pub mod health;
mod idle_timer;
pub mod loaded;
pub mod names;
mod origin;
mod pool;
mod repeats;
pub mod request_body;
mod retry;
mod select;
pub mod send;
mod servers;
mod sharing;
pub mod tls;
mod waiting;
mod witnesses;

use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode};

use crate::tls::client::Files;
use crate::vocabulary::key::Environment;

pub use self::bounds::Limits;
pub use self::endpoint::{Endpoint, InvalidEndpoint};
pub use self::names::Ages;
pub use self::pool::Life;

pub use crate::vocabulary::upstream::{Retries, Terms, Total, UpstreamId};

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub name: Box<str>,
    /// Where requests with live keys go. Never empty.
    pub live: Vec<Endpoint>,
    /// Where requests with test keys go. Never empty.
    pub test: Vec<Endpoint>,
    /// By environment, those of its endpoints in the same order. Never all 0.
    pub weights: [Vec<u16>; 2],
    /// How old what is known of the names of its endpoints may be.
    pub names: Ages,
    pub life: Life,
    /// By environment: for its endpoints with TLS.
    pub tls: [Files; 2],
    pub host: HostField,
    pub protocol: Protocol,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// `None`: endpoints are not checked.
    pub checks: Option<Checks>,
}

impl Settings {
    #[must_use]
    pub fn endpoints(&self, environment: Environment) -> &[Endpoint] {
        match environment {
            Environment::Live => &self.live,
            Environment::Test => &self.test,
        }
    }

    /// The endpoints to which requests go, with their weights. One without a weight in the list has that of most, 1.
    pub fn weighted(&self, environment: Environment) -> impl Iterator<Item = (&Endpoint, u16)> {
        let weights = self.weights[environment as usize].iter().copied().chain(std::iter::repeat(1));
        self.endpoints(environment).iter().zip(weights).filter(|(_, weight)| *weight > 0)
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

/// What is spoken to the servers of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Over TLS what the server prefers of HTTP/2 and HTTP/1.1 (ALPN, RFC 7301); HTTP/1.1 over plain text.
    Auto,
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, over plain text too, where nothing is asked before (RFC 9113, section 3.3). What only HTTP/1.1 has, which
    /// is a WebSocket's upgrade, goes over HTTP/1.1.
    Http2,
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
    pub total: Total,
    /// Over HTTP/2: how long nothing may come from a server while requests wait for it, before it is asked whether it is
    /// there. Many servers of gRPC end a connection whose client asks more often than each five minutes.
    pub silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(75),
            idle: Duration::from_secs(4),
            stream_idle: Duration::from_secs(300),
            total: Total::Unlimited,
            silence: Duration::from_mins(6),
        }
    }
}

/// How an upstream's endpoints are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checks {
    /// What is asked; `None` to connect only.
    pub question: Option<Question>,
    /// From the beginning of one check to the next, by a tenth more or less by chance.
    pub interval: Duration,
    /// For all of a check.
    pub timeout: Duration,
    /// Checks in a row that must fail before an endpoint is passed over.
    pub failures: u32,
    /// Checks in a row that must pass before it is in use again.
    pub successes: u32,
}

/// What a check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    Http {
        method: Method,
        path: PathAndQuery,
        /// The statuses with which an endpoint passes. Empty: each from 200 to 299.
        statuses: Vec<StatusCode>,
    },
    /// The health protocol of gRPC.
    Grpc {
        /// Empty: the server as a whole. At most [`Question::LONGEST_SERVICE`] bytes.
        service: Box<str>,
    },
}

impl Question {
    pub const LONGEST_SERVICE: usize = grpc_health::LONGEST;
}

impl Default for Checks {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { question: None, interval: second, timeout: second, failures: 2, successes: 1 }
    }
}

impl Checks {
    /// Whether endpoints of a list of so many are checked.
    pub(super) const fn concern(&self, endpoints: usize) -> bool {
        endpoints > 1 || self.question.is_some()
    }
}
