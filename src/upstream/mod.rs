//! Where requests go: named upstreams, each with its endpoints for live and for test keys.

pub mod health;
pub mod pool;

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::vocabulary::key::Environment;
use crate::vocabulary::network::{InvalidServer, Server};

/// An upstream of the configuration, by its place in the list of upstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub name: Box<str>,
    /// Where requests with live keys go. Never empty.
    pub live: Vec<Endpoint>,
    /// Where requests with test keys go. Never empty.
    pub test: Vec<Endpoint>,
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
}

/// What the upstream sees in the Host field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostField {
    /// What the client sent.
    #[default]
    Client,
    /// The endpoint's own host and port.
    Endpoint,
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

/// One server of an upstream, written `http://host:port`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: Box<str>,
    port: u16,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidEndpoint {
    #[error("write an endpoint as http://host:port")]
    Form,
    #[error("write an endpoint as http://host:port; {0}")]
    Server(#[from] InvalidServer),
    #[error(
        "https to an upstream is not supported: put both on one machine or one private network and use http://"
    )]
    Https,
    #[error("an endpoint has no path, query or user: keygate forwards the path that it authorised")]
    NotAnOrigin,
}

impl Endpoint {
    /// # Errors
    /// [`InvalidEndpoint`] says what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        if text.starts_with("https://") {
            return Err(InvalidEndpoint::Https);
        }
        let authority = text.strip_prefix("http://").ok_or(InvalidEndpoint::Form)?;
        if authority.contains(['/', '?', '#', '@']) {
            return Err(InvalidEndpoint::NotAnOrigin);
        }
        let Server { host, port } = Server::parse(authority)?;
        Ok(Self { host, port: port.unwrap_or(80) })
    }

    /// The host as it is resolved: a name, or an address without brackets.
    #[must_use]
    pub const fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, as it stands in a Host field.
    #[must_use]
    pub fn authority(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_origin() {
        for (good, host, port) in [
            ("http://127.0.0.1:9000", "127.0.0.1", 9000),
            ("http://api.internal", "api.internal", 80),
            ("http://[::1]:9000", "::1", 9000),
        ] {
            let endpoint = Endpoint::parse(good).unwrap();
            assert_eq!((endpoint.host(), endpoint.port()), (host, port));
            assert!(endpoint.to_string().starts_with(good), "{endpoint}");
        }
        for (bad, cause) in [
            ("https://api", InvalidEndpoint::Https),
            ("http://api/v1", InvalidEndpoint::NotAnOrigin),
            ("http://user@api", InvalidEndpoint::NotAnOrigin),
            ("api:80", InvalidEndpoint::Form),
            ("http://", InvalidServer::Host.into()),
            ("http://a b", InvalidServer::Host.into()),
            ("http://[junk]:80", InvalidServer::Host.into()),
            ("http://api:", InvalidServer::Port.into()),
            ("http://api:0", InvalidServer::Port.into()),
            ("http://api:+80", InvalidServer::Port.into()),
            ("http://api:99999", InvalidServer::Port.into()),
        ] {
            assert_eq!(Endpoint::parse(bad), Err(cause), "{bad}");
        }
    }
}
