//! One client connection.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From a request's first byte to the end of its head.
    pub head_timeout: Duration,
    /// How long a connection may wait for its next request; above the 60 seconds of common load balancers.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of an answer that is ready for it.
    pub write_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(300),
        }
    }
}
