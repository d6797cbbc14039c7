//! An endpoint: one server of an upstream, as the configuration names it.
//!
//! Everything that decides where bytes go, and what proves that they reach the right server, is part of an
//! endpoint. Connections are pooled per endpoint, so endpoints that differ in any of this never share one.

use std::fmt;

use thiserror::Error;

use crate::vocabulary::network::{InvalidServer, Server};

/// One server of an upstream, written `http://host:port`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    scheme: Scheme,
    address: Address,
}

/// How bytes travel to an endpoint, and what proves that it is the right server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http://`: plain text. There is no proof; the network between must be trusted.
    Http,
}

/// Where an endpoint listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A name to resolve, or an IP address without brackets.
    Tcp { host: Box<str>, port: u16 },
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

impl Scheme {
    const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
        }
    }
}

impl Endpoint {
    /// # Errors
    /// [`InvalidEndpoint`], whose text says what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        if text.starts_with("https://") {
            return Err(InvalidEndpoint::Https);
        }
        let authority = text.strip_prefix("http://").ok_or(InvalidEndpoint::Form)?;
        if authority.contains(['/', '?', '#', '@']) {
            return Err(InvalidEndpoint::NotAnOrigin);
        }
        let scheme = Scheme::Http;
        let Server { host, port } = Server::parse(authority)?;
        let address = Address::Tcp { host, port: port.unwrap_or(scheme.default_port()) };
        Ok(Self { scheme, address })
    }

    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// `host:port`, as it is written in a Host field.
    #[must_use]
    pub fn authority(&self) -> String {
        let Address::Tcp { host, port } = &self.address;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Whether both lead to the same server, however it is spoken to. Names are not resolved.
    #[must_use]
    pub fn is_same_server(&self, other: &Self) -> bool {
        let Address::Tcp { host, port } = &self.address;
        let Address::Tcp { host: other_host, port: other_port } = &other.address;
        port == other_port && host.eq_ignore_ascii_case(other_host)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Http => write!(f, "http://{}", self.authority()),
        }
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
            assert_eq!(*endpoint.address(), Address::Tcp { host: host.into(), port });
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

    #[test]
    fn a_server_is_the_same_in_any_case_of_its_name() {
        let endpoint = |text| Endpoint::parse(text).unwrap();
        assert!(endpoint("http://api").is_same_server(&endpoint("http://API:80")));
        assert!(!endpoint("http://api").is_same_server(&endpoint("http://api:81")));
        assert!(!endpoint("http://api").is_same_server(&endpoint("http://api2")));
    }
}
