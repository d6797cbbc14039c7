//! Words about upstreams: the number of one, the terms of the requests to it, and the state of a server.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::closed::closed;

/// An upstream of the configuration, by its place in the list of upstreams, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

/// Which requests may be sent twice, where the first ended without a byte of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retries {
    /// None.
    Never,
    /// GET, HEAD and OPTIONS, which ask for no change (RFC 9110, section 9.2.1).
    #[default]
    Safe,
    /// Also PUT and DELETE, which change the same once or twice (RFC 9110, section 9.2.2).
    Idempotent,
}

/// Whether requests go to a server of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    InUse,
    /// Requests go there as before. One had no answer, and the next check finds out whether any has.
    Suspected,
    /// The last attempt to connect failed.
    Unreachable,
    FailsChecks,
    /// Requests of several organisations got no proper answer, and none has had one since.
    FailsRequests,
    /// No address of its name is known.
    Unresolved,
}

impl ServerState {
    /// Whether nothing is known to be wrong.
    #[must_use]
    pub const fn is_healthy(self) -> bool {
        matches!(self, Self::InUse | Self::Suspected)
    }

    /// Less is better.
    #[must_use]
    pub const fn severity(self) -> usize {
        self as usize
    }
}

closed! {
    /// Why a request was sent again, or would have been.
    Repetition:
    /// Its connection took nothing of it, or there was none.
    NotSent = "not_sent",
    /// Its kept connection ended without a byte of an answer.
    NotAnswered = "not_answered",
    /// It waited at an endpoint that failed its checks.
    PassedOver = "passed_over",
    /// None of these: it was not sent again, because as many were as may be.
    Withheld = "withheld",
}

/// What a route says of its requests to an upstream. A time that is `None` is the upstream's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    pub retries: Retries,
    /// For opening a connection.
    pub connect: Option<Duration>,
    /// From the last byte of the request to the head of the answer.
    pub answer: Option<Duration>,
    /// How long the body of an answer, or a WebSocket, may pause.
    pub stream_idle: Option<Duration>,
    pub total: Option<Total>,
}

/// How long a request may last: from the moment at which it may be forwarded to the end of its answer, or of its WebSocket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Total {
    #[default]
    Unlimited,
    AtMost(Duration),
}
