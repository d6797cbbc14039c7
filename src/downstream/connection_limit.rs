//! How many connections there may be: in all, and from one client; and what counts as one client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use tokio::sync::watch;

use crate::telemetry::metrics::Unserved;

/// How many connections there may be, and how many there are.
#[derive(Clone, Debug)]
pub(super) struct ConnectionLimit {
    at_most: usize,
    per_client: usize,
    /// Each of these stands for many clients, so only the limit for all holds for it.
    trusted_proxies: watch::Receiver<Vec<IpNet>>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_client: HashMap<Client, usize>,
}

/// A client: one IPv4 address, or one IPv6 /64, which one customer commonly has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Client(IpAddr);

impl Client {
    const fn of(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        })
    }
}

impl ConnectionLimit {
    /// At most `max_connections`, which the process must have the descriptors for.
    #[must_use]
    pub(super) fn new(
        max_connections: usize,
        max_connections_per_client: usize,
        trusted_proxies: watch::Receiver<Vec<IpNet>>,
    ) -> Self {
        Self {
            at_most: max_connections,
            per_client: max_connections_per_client,
            trusted_proxies,
            taken: Arc::default(),
        }
    }

    /// A place for a connection from `address`.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(super) fn take(&self, address: IpAddr) -> Result<Slot, Unserved> {
        let trusted = self.trusted_proxies.borrow().iter().any(|network| network.contains(&address));
        let client = (!trusted).then(|| Client::of(address));
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= self.at_most {
            return Err(Unserved::MaxConnections);
        }
        if let Some(client) = client {
            let held = taken.by_client.entry(client).or_default();
            if *held >= self.per_client {
                return Err(Unserved::MaxConnectionsPerClient);
            }
            *held += 1;
        }
        taken.total += 1;
        Ok(Slot { client, taken: Arc::clone(&self.taken) })
    }
}

/// The place of a connection among those that may be open; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    client: Option<Client>,
    taken: Arc<Mutex<Taken>>,
}

impl Slot {
    /// Whether the connection is of a trusted proxy, and so of many clients.
    pub(super) const fn is_of_a_proxy(&self) -> bool {
        self.client.is_none()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        let Some(client) = self.client else { return };
        if let Some(held) = taken.by_client.get_mut(&client) {
            *held -= 1;
            if *held == 0 {
                taken.by_client.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(all: usize, per_client: usize, trusted: &[&str]) -> ConnectionLimit {
        let trusted = trusted.iter().map(|network| network.parse().unwrap()).collect();
        // The receiver keeps the last value although the sender is gone.
        ConnectionLimit::new(all, per_client, watch::channel(trusted).1)
    }

    #[test]
    fn a_client_has_its_own_limit_and_all_together_have_one() {
        let limit = limit(3, 2, &[]);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = limit.take(a);
        let second = limit.take(a);
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(limit.take(a).unwrap_err(), Unserved::MaxConnectionsPerClient);
        let third = limit.take(b);
        assert!(third.is_ok());
        assert_eq!(limit.take(b).unwrap_err(), Unserved::MaxConnections, "all places are taken");
        drop((first, third));
        assert!(limit.take(a).is_ok());
        drop(second);
        assert_eq!(limit.taken.lock().unwrap().total, 0);
        assert!(limit.taken.lock().unwrap().by_client.is_empty());
    }

    #[test]
    fn a_trusted_proxy_stands_for_many_clients() {
        let limit = limit(10, 1, &["192.0.2.0/24"]);
        let proxy = "192.0.2.1".parse().unwrap();
        let held: Vec<_> = (0..10).map(|_| limit.take(proxy)).collect();
        assert!(held.iter().all(Result::is_ok));
        assert!(limit.take(proxy).is_err());
    }

    #[test]
    fn addresses_of_one_64_are_one_client() {
        let limit = limit(10, 1, &[]);
        let _held = limit.take("2001:db8::1".parse().unwrap()).unwrap();
        assert!(limit.take("2001:db8::2".parse().unwrap()).is_err());
        assert!(limit.take("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }
}
