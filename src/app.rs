//! The whole process: wiring, and the way out.

use std::time::Duration;

/// How the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long requests are still accepted after "not ready" was announced, so that load balancers notice.
    pub delay: Duration,
    /// How long requests under way may then take. Long polls take 60 seconds.
    pub timeout: Duration,
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self { delay: Duration::from_secs(5), timeout: Duration::from_secs(70) }
    }
}
