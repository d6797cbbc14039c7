//! The way of a request.

pub mod guard;
pub mod headers;
pub mod route;

use std::time::Duration;

/// What the request path is told by the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub limits: guard::Limits,
    pub headers: headers::Settings,
    /// How long a client may pause while it sends a body.
    pub body_idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: guard::Limits::default(),
            headers: headers::Settings::default(),
            body_idle_timeout: Duration::from_secs(30),
        }
    }
}
