//! The network of a client, for limits; and the text forms of server addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// The network that one customer or attacker commonly controls: a /24 of IPv4, a /64 of IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClientNetwork(IpAddr);

/// The networks that share a turn where clients take turns: a /24 of IPv4, a /48 of IPv6. One customer can have a whole
/// /48 (RFC 6177, section 2), and that is 65,536 networks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientSite(IpAddr);

impl ClientNetwork {
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() >> 8 << 8)),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        })
    }

    #[must_use]
    pub const fn site(self) -> ClientSite {
        ClientSite(match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 80 << 80)),
        })
    }
}

impl ClientSite {
    /// Whether it holds many networks, and not just one.
    #[must_use]
    pub const fn has_networks(self) -> bool {
        self.0.is_ipv6()
    }
}

impl std::fmt::Display for ClientSite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let prefix = if self.0.is_ipv4() { 24 } else { 48 };
        write!(f, "{}/{prefix}", self.0)
    }
}

impl std::fmt::Display for ClientNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let prefix = if self.0.is_ipv4() { 24 } else { 64 };
        write!(f, "{}/{prefix}", self.0)
    }
}

/// A server in settings: `host:port`, or the host alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// A name, or an address without brackets.
    pub host: Box<str>,
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidServer {
    #[error("the host must be a name, an IPv4 address or an IPv6 address in brackets")]
    Host,
    #[error("the port must be a number from 1 to 65535, in digits only and without leading zeros")]
    Port,
}

impl Server {
    /// # Errors
    /// [`InvalidServer`] names the invalid part.
    pub fn parse(text: &str) -> Result<Self, InvalidServer> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (address, rest) = bracketed.split_once(']').ok_or(InvalidServer::Host)?;
                let address: Ipv6Addr = address.parse().map_err(|_| InvalidServer::Host)?;
                (address.to_string().into(), rest)
            }
            None => {
                let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                if !is_host(name) {
                    return Err(InvalidServer::Host);
                }
                (name.into(), rest)
            }
        };
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return Err(InvalidServer::Host),
            Some(digits) => Some(parse_number(digits).filter(|port| *port > 0).ok_or(InvalidServer::Port)?),
        };
        Ok(Self { host, port })
    }
}

/// A name, or an IPv4 address in its usual form. `010.0.0.1` and `10.1` are refused: a resolver takes them as
/// addresses, but rarely as those that were meant.
fn is_host(text: &str) -> bool {
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return text.parse::<Ipv4Addr>().is_ok();
    }
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// A number in its shortest form. The standard library also accepts a sign and leading zeros, which other parsers
/// read differently.
pub fn parse_number<N: std::str::FromStr + ToString>(text: &str) -> Option<N> {
    text.parse().ok().filter(|number: &N| number.to_string() == text)
}

/// An address to listen on; port 0 means any free port.
///
/// # Errors
/// [`InvalidAddress`] says what to write instead.
pub fn parse_address(text: &str) -> Result<SocketAddr, InvalidAddress> {
    let port = text.rsplit(':').next().and_then(parse_number::<u16>).ok_or(InvalidAddress)?;
    text.parse().ok().filter(|address: &SocketAddr| address.port() == port).ok_or(InvalidAddress)
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("write an address and a port, as in \"127.0.0.1:8080\"")]
pub struct InvalidAddress;

/// Why a listener cannot have its address.
#[derive(Debug, Error)]
#[error("cannot listen on {listen}: {cause}; {}", self.advice())]
pub struct CannotListen {
    pub listen: SocketAddr,
    pub cause: io::Error,
    /// The setting that names the address, as in `server.listen`.
    pub key: &'static str,
}

impl CannotListen {
    fn advice(&self) -> String {
        /// Linux' default for `net.ipv4.ip_unprivileged_port_start`.
        const FREE_FOR_ALL: u16 = 1024;
        let Self { listen, cause, key } = self;
        let set = format!("set {key} (KEYGATE__{})", key.replace('.', "__").to_ascii_uppercase());
        match cause.kind() {
            io::ErrorKind::PermissionDenied if listen.port() < FREE_FOR_ALL => format!(
                "ports below {FREE_FOR_ALL} need the right CAP_NET_BIND_SERVICE, and deploy/README.md shows how to give it; or \
                     {set} to a higher port"
            ),
            io::ErrorKind::AddrInUse => {
                format!("another process listens there; stop it, or {set} to an address that is free")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!(
                    "this machine does not have the address; {set} to one that it has, or to 0.0.0.0 for all"
                )
            }
            _ => format!("{set} to another address"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_a_host_and_perhaps_a_port() {
        for (text, host, port) in [
            ("10.0.0.5:6379", "10.0.0.5", Some(6379)),
            ("a_b.internal-1", "a_b.internal-1", None),
            ("1.example:1", "1.example", Some(1)),
            ("[::1]:65535", "::1", Some(65535)),
            ("[0:0::1]", "::1", None),
        ] {
            assert_eq!(Server::parse(text), Ok(Server { host: host.into(), port }), "{text}");
        }
        for host in [
            "",
            ":1",
            "[]:1",
            "[junk]:80",
            "[::1",
            "[::1]80",
            "[10.0.0.5]:80",
            "[::1%1]:80",
            "::1",
            "10.1:80",
            "010.0.0.1",
            "10.0.0.256",
            "6379",
            "a b",
            "a,b:80",
            "a%20b",
            "me@a",
            "a/b",
            "\u{e4}.example",
            "[[::1]]:1",
        ] {
            assert_eq!(Server::parse(host), Err(InvalidServer::Host), "{host}");
        }
        for port in ["", "0", "+80", "-80", "080", " 80", "80 ", "65536", "8o", "80:80", "\u{664}"] {
            assert_eq!(Server::parse(&format!("a:{port}")), Err(InvalidServer::Port), "{port}");
            assert_eq!(Server::parse(&format!("[::1]:{port}")), Err(InvalidServer::Port), "{port}");
        }
    }

    #[test]
    fn an_address_to_listen_on_is_written_in_digits() {
        for text in ["127.0.0.1:8080", "[::1]:80", "0.0.0.0:0"] {
            assert_eq!(parse_address(text).unwrap().to_string(), text);
        }
        for text in [
            "127.0.0.1:+80",
            "127.0.0.1:080",
            "127.0.0.1:00",
            "127.0.0.1: 80",
            "127.0.0.1",
            "localhost:80",
            "::1:80",
            "[::1]",
            "127.0.0.1:65536",
            "",
        ] {
            assert_eq!(parse_address(text), Err(InvalidAddress), "{text}");
        }
    }

    #[test]
    fn an_address_that_cannot_be_had_comes_with_advice() {
        let told = |kind: io::ErrorKind, listen: &str| {
            let listen = listen.parse().unwrap();
            CannotListen { listen, cause: kind.into(), key: "server.listen" }.to_string()
        };
        for (kind, listen, said) in [
            (
                io::ErrorKind::PermissionDenied,
                "0.0.0.0:443",
                "cannot listen on 0.0.0.0:443: permission denied; ports below 1024 need the right CAP_NET_BIND_SERVICE, and \
                 deploy/README.md shows how to give it; or set server.listen (KEYGATE__SERVER__LISTEN) to a higher port",
            ),
            (
                io::ErrorKind::AddrInUse,
                "127.0.0.1:8080",
                "cannot listen on 127.0.0.1:8080: address in use; another process listens there; stop it, or set \
                 server.listen (KEYGATE__SERVER__LISTEN) to an address that is free",
            ),
            (
                io::ErrorKind::AddrNotAvailable,
                "192.0.2.1:8080",
                "cannot listen on 192.0.2.1:8080: address not available; this machine does not have the address; set \
                 server.listen (KEYGATE__SERVER__LISTEN) to one that it has, or to 0.0.0.0 for all",
            ),
        ] {
            assert_eq!(told(kind, listen), said);
        }
    }

    #[test]
    fn neighbours_share_a_network() {
        let of = |text: &str| ClientNetwork::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("192.0.2.254"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.7"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("2001:db8::1").site(), of("2001:db8:0:1::1").site());
        assert_ne!(of("2001:db8::1").site(), of("2001:db8:1::1").site());
        assert_eq!(of("192.0.2.1").site(), of("::ffff:192.0.2.7").site());
        assert_ne!(of("192.0.2.1").site(), of("192.0.3.1").site());
        assert_eq!(of("192.0.2.1").to_string(), "192.0.2.0/24");
        assert_eq!(of("2001:db8::1").to_string(), "2001:db8::/64");
        assert_eq!(of("192.0.2.1").site().to_string(), "192.0.2.0/24");
        assert_eq!(of("2001:db8:1:2::1").site().to_string(), "2001:db8:1::/48");
        assert!(of("2001:db8::1").site().has_networks() && !of("192.0.2.1").site().has_networks());
    }
}
