//! The addresses on which the gateway itself listens: no other listener may have them, and no request may be sent there.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::upstream::endpoint::{Address, Endpoint};

/// A listener of this gateway, and the key of its address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) key: &'static str,
    pub(super) address: SocketAddr,
}

/// The key of the listener that has the same address, or one that includes it.
pub(super) fn taken(own: &[Own], address: SocketAddr) -> Option<&'static str> {
    let (ip, port) = (address.ip().to_canonical(), address.port());
    let overlaps = |one: &&Own| {
        let other = one.address.ip().to_canonical();
        port != 0 && one.address.port() == port && (ip == other || includes(ip, other) || includes(other, ip))
    };
    own.iter().find(overlaps).map(|one| one.key)
}

/// The key of the listener that an endpoint leads to. Names are not resolved, except for `localhost`.
pub(super) fn reached(own: &[Own], endpoint: &Endpoint) -> Option<&'static str> {
    let Address::Tcp { host, port } = endpoint.address();
    own.iter().find(|one| one.address.port() == *port && leads_to(host, one.address.ip())).map(|one| one.key)
}

/// Whether a listener on `wide` takes connections to `ip`; `[::]` takes those over IPv4 too.
fn includes(wide: IpAddr, ip: IpAddr) -> bool {
    wide.is_unspecified() && (wide.is_ipv6() || ip.is_ipv4())
}

fn leads_to(host: &str, listener: IpAddr) -> bool {
    let listener = listener.to_canonical();
    match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if ip == listener => true,
        // A connection to the unspecified address comes to this machine.
        Ok(ip) if ip.is_unspecified() => listener.is_loopback() || listener.is_unspecified(),
        Ok(ip) => includes(listener, ip) && is_of_this_machine(ip),
        Err(_) => {
            // RFC 6761, section 6.3.
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            let is_local = host == "localhost" || host.ends_with(".localhost");
            is_local && (listener.is_loopback() || listener.is_unspecified())
        }
    }
}

/// Whether a socket can have this address. Nothing is sent.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_leads_to_a_listener_by_every_name_of_this_machine() {
        for (listen, endpoint, reaches) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080", true),
            ("127.0.0.1:8080", "http://localhost:8080", true),
            ("127.0.0.1:8080", "http://LOCALHOST.:8080", true),
            ("127.0.0.1:8080", "http://api.localhost:8080", true),
            ("127.0.0.1:8080", "http://0.0.0.0:8080", true),
            ("127.0.0.1:8080", "http://127.0.0.2:8080", false),
            ("127.0.0.1:8080", "http://127.0.0.1:8081", false),
            ("127.0.0.1:80", "http://127.0.0.1", true),
            ("0.0.0.0:8080", "http://127.0.0.2:8080", true),
            ("0.0.0.0:8080", "http://192.0.2.1:8080", false),
            ("0.0.0.0:8080", "http://[::1]:8080", false),
            ("[::1]:8080", "http://[::1]:8080", true),
            ("[::]:8080", "http://127.0.0.1:8080", true),
            ("[::]:8080", "http://api.internal:8080", false),
            ("10.0.0.4:8080", "http://127.0.0.1:8080", false),
            ("127.0.0.1:0", "http://127.0.0.1:80", false),
        ] {
            let own = [Own { key: "server.listen", address: listen.parse().unwrap() }];
            assert_eq!(
                reached(&own, &Endpoint::parse(endpoint).unwrap()).is_some(),
                reaches,
                "{listen} {endpoint}"
            );
        }
    }
}
