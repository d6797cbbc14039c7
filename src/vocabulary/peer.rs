//! The client of a connection, as its socket shows it.

use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;

/// The other end of a client's connection. Behind a proxy this is the proxy.
#[derive(Clone, Debug)]
pub struct Peer {
    address: IpAddr,
    /// The address as X-Forwarded-For shows it; made once for a connection.
    forwarded_for: HeaderValue,
    /// The scheme as X-Forwarded-Proto shows it.
    scheme: &'static str,
}

impl Peer {
    /// The peer of a connection without TLS. An IPv4-mapped IPv6 address becomes the IPv4 address.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        let address = address.ip().to_canonical();
        // The text of an address has only characters that a field value may have.
        let forwarded_for = HeaderValue::try_from(address.to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { address, forwarded_for, scheme: "http" }
    }

    /// The same peer, on a connection with TLS.
    #[must_use]
    pub fn over_tls(self) -> Self {
        Self { scheme: "https", ..self }
    }

    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// The address as X-Forwarded-For shows it.
    #[must_use]
    pub const fn forwarded_for(&self) -> &HeaderValue {
        &self.forwarded_for
    }

    /// `http` or `https`, as X-Forwarded-Proto shows it.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        self.scheme
    }
}
