//! Words about upstreams: the number of one, which requests may be sent to it twice, and the state of a server.

use serde::{Deserialize, Serialize};

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
}

impl ServerState {
    /// Whether nothing is known to be wrong.
    #[must_use]
    pub const fn is_healthy(self) -> bool {
        matches!(self, Self::InUse | Self::Suspected)
    }
}
