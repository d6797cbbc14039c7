//! The addresses on which the gateway itself listens: no other listener may have them, and no request may be sent there.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::upstream::endpoint::{Address, Endpoint, is_same_file};

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

/// The key of the listener that an endpoint leads to on every machine: by an address, or by `localhost`.
pub(super) fn reached(own: &[Own], endpoint: &Endpoint) -> Option<&'static str> {
    let Address::Tcp { host, port } = endpoint.address() else { return None };
    own.iter().find(|one| one.address.port() == *port && leads_to(host, one.address.ip())).map(|one| one.key)
}

/// Whether an endpoint is the socket of operators, where every request would be an operator's, or what lies beside it under its
/// name: the socket by which a new process takes over.
pub(super) fn is_admin_socket(socket: Option<&Path>, endpoint: &Endpoint) -> bool {
    let (Some(socket), Address::Unix(path)) = (socket, endpoint.address()) else { return false };
    let beside = [socket.as_os_str().as_bytes(), b"."].concat();
    is_same_file(socket, path) || path.as_os_str().as_bytes().starts_with(&beside)
}

/// The key of the listener that an endpoint leads to by a name which this machine gives itself: in /etc/hosts, or as its host
/// name. DNS is not asked: where it does not answer, as on the machine of a build, a check would wait.
pub(super) fn reached_by_name(own: &[Own], endpoint: &Endpoint) -> Option<&'static str> {
    let Address::Tcp { host, port } = endpoint.address() else { return None };
    let has_port = |one: &Own| one.address.port() == *port;
    if host.parse::<IpAddr>().is_ok() || !own.iter().any(has_port) {
        return None;
    }
    let names = OwnNames::read();
    own.iter().find(|one| has_port(one) && names.lead_to(host, one.address.ip())).map(|one| one.key)
}

/// What this machine knows of names without asking another.
struct OwnNames {
    /// In the format of hosts(5).
    hosts: String,
    /// Its host name.
    machine: String,
}

impl OwnNames {
    /// Without a file there are no names.
    fn read() -> Self {
        let text = |path| {
            const LONGEST: u64 = 1 << 20;
            let mut bytes = Vec::new();
            let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes));
            read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        };
        Self { hosts: text("/etc/hosts"), machine: text("/proc/sys/kernel/hostname").trim().to_owned() }
    }

    fn lead_to(&self, host: &str, listener: IpAddr) -> bool {
        let host = host.trim_end_matches('.');
        let mut addresses = self.addresses(host).peekable();
        if addresses.peek().is_some() {
            return addresses.any(|ip| leads_to(&ip.to_string(), listener));
        }
        // Elsewhere than in the file, a machine's own name leads to the addresses that others know it by.
        !self.machine.is_empty()
            && host.eq_ignore_ascii_case(&self.machine)
            && !listener.to_canonical().is_loopback()
    }

    fn addresses(&self, host: &str) -> impl Iterator<Item = IpAddr> {
        self.hosts.lines().filter_map(move |line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(ip)
        })
    }
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
    fn a_name_leads_to_a_listener_if_this_machine_gives_it_to_itself() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1\tgate.internal GATE # api.internal\n\n192.0.2.1 api.internal api\nnonsense gate2\n";
        let names = OwnNames { hosts: hosts.to_owned(), machine: "node7".to_owned() };
        for (host, listener, leads) in [
            ("gate", "0.0.0.0", true),
            ("Gate.Internal.", "::", true),
            ("gate", "127.0.1.1", true),
            ("gate", "127.0.0.1", false),
            ("gate2", "0.0.0.0", false),
            ("api.internal", "0.0.0.0", false),
            ("node7", "0.0.0.0", true),
            ("NODE7.", "10.0.0.4", true),
            ("node7", "127.0.0.1", false),
            ("node7.internal", "0.0.0.0", false),
            ("elsewhere", "0.0.0.0", false),
        ] {
            assert_eq!(names.lead_to(host, listener.parse().unwrap()), leads, "{host} {listener}");
        }
        let nameless = OwnNames { hosts: String::new(), machine: String::new() };
        assert!(!nameless.lead_to("", "0.0.0.0".parse().unwrap()));
    }

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
