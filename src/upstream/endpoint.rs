//! An endpoint: one server of an upstream, as the configuration names it.
//!
//! Everything that decides where bytes go, and what proves that they reach the right server, is part of an
//! endpoint. Connections are pooled per endpoint, so endpoints that differ in any of this never share one.

use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustls_pki_types::ServerName;
use thiserror::Error;

use crate::vocabulary::network::{InvalidServer, Server};

/// One server of an upstream, written `http://host:port`, `https://host:port` or `unix:/path`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    scheme: Scheme,
    address: Address,
}

/// How bytes travel to an endpoint, and what proves that it is the right server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http://`: plain text. There is no proof; the network between must be trusted. `unix:`: plain text within the
    /// machine. The proof is who may write into the folder of the socket.
    Http,
    /// `https://`: TLS. The server has a certificate for this name, which it is asked for (SNI, if it is no address).
    Https(ServerName<'static>),
}

/// Where an endpoint listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A name to resolve, or an IP address without brackets.
    Tcp { host: Box<str>, port: u16 },
    /// The path of a socket on this machine, from the root.
    Unix(Box<Path>),
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidEndpoint {
    #[error("write an endpoint as http://host:port, https://host:port or unix:/path")]
    Form,
    #[error("write an endpoint as http://host:port, https://host:port or unix:/path; {0}")]
    Server(#[from] InvalidServer),
    #[error("no certificate can be for this host: name the server by its DNS name or its IP address")]
    NoName,
    #[error(
        "name a socket by its path from the root, of at most {LONGEST_PATH} bytes, as in unix:/run/api.sock"
    )]
    Socket,
    #[error(
        "write the address as http://host:port/path; TLS and sockets of this machine are for upstreams only"
    )]
    OnlyHttp,
    #[error("an endpoint has no path, query or user: keygate forwards the path that it authorised")]
    NotAnOrigin,
}

/// The longest path of a socket, in bytes: `sun_path` of unix(7), without the zero at its end.
const LONGEST_PATH: usize = 107;

impl Scheme {
    const fn default_port(&self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https(_) => 443,
        }
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https(_) => "https",
        }
    }
}

impl Endpoint {
    /// # Errors
    /// [`InvalidEndpoint`], whose text says what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::of_socket(path);
        }
        let (authority, has_tls) = match text.strip_prefix("https://") {
            Some(authority) => (authority, true),
            None => (text.strip_prefix("http://").ok_or(InvalidEndpoint::Form)?, false),
        };
        if authority.contains(['/', '?', '#', '@']) {
            return Err(InvalidEndpoint::NotAnOrigin);
        }
        let Server { host, port } = Server::parse(authority)?;
        let scheme = if has_tls {
            let name = ServerName::try_from(host.to_string()).map_err(|_| InvalidEndpoint::NoName)?;
            Scheme::Https(name)
        } else {
            Scheme::Http
        };
        let address = Address::Tcp { host, port: port.unwrap_or(scheme.default_port()) };
        Ok(Self { scheme, address })
    }

    fn of_socket(path: &str) -> Result<Self, InvalidEndpoint> {
        let is_path = path.starts_with('/') && !path.starts_with("//") && !path.ends_with('/');
        if !is_path || path.len() > LONGEST_PATH || path.contains('\0') {
            return Err(InvalidEndpoint::Socket);
        }
        let path = Path::new(OsStr::from_bytes(path.as_bytes()));
        Ok(Self { scheme: Scheme::Http, address: Address::Unix(path.into()) })
    }

    #[must_use]
    pub const fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    #[must_use]
    pub const fn has_tls(&self) -> bool {
        matches!(self.scheme, Scheme::Https(_))
    }

    /// Its name and port, where it has a name, and not an address or a socket.
    #[must_use]
    pub fn name(&self) -> Option<(&str, u16)> {
        match &self.address {
            Address::Tcp { host, port } if self.literal().is_none() => Some((host, *port)),
            Address::Tcp { .. } | Address::Unix(_) => None,
        }
    }

    /// Its address, where that is what the configuration gives.
    #[must_use]
    pub fn literal(&self) -> Option<SocketAddr> {
        match &self.address {
            Address::Tcp { host, port } => host.parse().ok().map(|ip| SocketAddr::new(ip, *port)),
            Address::Unix(_) => None,
        }
    }

    /// The same server, whose certificate is for `name`. Without TLS there is nothing to verify, and nothing changes.
    #[must_use]
    pub fn verified_as(self, name: &ServerName<'static>) -> Self {
        match self.scheme {
            Scheme::Http => self,
            Scheme::Https(_) => Self { scheme: Scheme::Https(name.clone()), ..self },
        }
    }

    /// Its name in records and metrics: `host:port`, or `unix:/path`.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.address {
            Address::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Its own Host field: `host:port`, without the port that is usual for TLS. A socket has no name of its own, so it is
    /// `localhost` there, as with other proxies.
    #[must_use]
    pub fn host_field(&self) -> String {
        let label = self.label();
        match &self.address {
            Address::Tcp { port: 443, .. } if self.has_tls() => {
                label.strip_suffix(":443").unwrap_or(&label).to_owned()
            }
            Address::Tcp { .. } => label,
            Address::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Whether both lead to the same server, however it is spoken to. Names are not resolved.
    #[must_use]
    pub fn is_same_server(&self, other: &Self) -> bool {
        match (&self.address, &other.address) {
            (Address::Tcp { host, port }, Address::Tcp { host: other_host, port: other_port }) => {
                port == other_port && host.eq_ignore_ascii_case(other_host)
            }
            (Address::Unix(path), Address::Unix(other)) => is_same_file(path, other),
            (Address::Tcp { .. }, Address::Unix(_)) | (Address::Unix(_), Address::Tcp { .. }) => false,
        }
    }
}

/// Whether both paths are one, also by way of links, as far as their folders are there.
#[must_use]
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| {
        let of_folder = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
        path.canonicalize().ok().or_else(of_folder)
    };
    one == other || real(one).is_some_and(|one| real(other) == Some(one))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp { .. } => write!(f, "{}://{}", self.scheme.word(), self.label()),
            Address::Unix(_) => f.write_str(&self.label()),
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
            ("https://api.internal", "api.internal", 443),
            ("https://[::1]:9000", "::1", 9000),
        ] {
            let endpoint = Endpoint::parse(good).unwrap();
            assert_eq!(*endpoint.address(), Address::Tcp { host: host.into(), port });
            assert!(endpoint.to_string().starts_with(good), "{endpoint}");
        }
        for (bad, cause) in [
            ("https://api/v1", InvalidEndpoint::NotAnOrigin),
            ("https://user@api", InvalidEndpoint::NotAnOrigin),
            ("https://a..b", InvalidEndpoint::NoName),
            ("unix:", InvalidEndpoint::Socket),
            ("unix:api.sock", InvalidEndpoint::Socket),
            ("unix://run/api.sock", InvalidEndpoint::Socket),
            ("unix:/run/", InvalidEndpoint::Socket),
            ("unix:@api", InvalidEndpoint::Socket),
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
    fn a_socket_is_a_path_that_fits_into_the_address_of_one() {
        let endpoint = Endpoint::parse("unix:/run/api.sock").unwrap();
        assert_eq!(*endpoint.address(), Address::Unix(Path::new("/run/api.sock").into()));
        assert_eq!(
            (endpoint.to_string(), endpoint.label()),
            (endpoint.label(), "unix:/run/api.sock".to_owned())
        );
        let path = |length| format!("unix:/{}", "a".repeat(length - 1));
        assert!(Endpoint::parse(&path(LONGEST_PATH)).is_ok());
        assert_eq!(Endpoint::parse(&path(LONGEST_PATH + 1)), Err(InvalidEndpoint::Socket));
    }

    #[test]
    fn the_host_of_an_endpoint_is_what_its_url_names() {
        for (endpoint, host) in [
            ("http://api.internal", "api.internal:80"),
            ("https://api.internal", "api.internal"),
            ("https://api.internal:8443", "api.internal:8443"),
            ("http://api.internal:443", "api.internal:443"),
            ("https://[::1]", "[::1]"),
            ("unix:/run/api.sock", "localhost"),
        ] {
            assert_eq!(Endpoint::parse(endpoint).unwrap().host_field(), host, "{endpoint}");
        }
    }

    #[test]
    fn the_name_of_the_certificate_is_that_of_the_url_or_another() {
        let name = |text: &str| ServerName::try_from(text.to_owned()).unwrap();
        let endpoint = Endpoint::parse("https://10.0.0.5:8443").unwrap();
        assert_eq!(*endpoint.scheme(), Scheme::Https(name("10.0.0.5")));
        let named = endpoint.clone().verified_as(&name("api.internal"));
        assert_eq!(*named.scheme(), Scheme::Https(name("api.internal")));
        assert!(named != endpoint && named.is_same_server(&endpoint));
        let plain = Endpoint::parse("http://10.0.0.5:8443").unwrap();
        assert_eq!(plain.clone().verified_as(&name("api.internal")), plain);
    }

    #[test]
    fn a_server_is_the_same_in_any_case_of_its_name() {
        let endpoint = |text: &str| Endpoint::parse(text).unwrap();
        assert!(endpoint("http://api").is_same_server(&endpoint("http://API:80")));
        assert!(!endpoint("http://api").is_same_server(&endpoint("http://api:81")));
        assert!(!endpoint("http://api").is_same_server(&endpoint("http://api2")));
        assert!(endpoint("http://api:443").is_same_server(&endpoint("https://api")));
        assert!(endpoint("unix:/a").is_same_server(&endpoint("unix:/a")));
        assert!(!endpoint("unix:/a").is_same_server(&endpoint("unix:/b")));
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let socket = |path: &Path| endpoint(&format!("unix:{}", path.display()));
        assert!(socket(&file).is_same_server(&socket(&link)));
    }
}
