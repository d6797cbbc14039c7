//! How many connections there may be: in all, and from one client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, getrlimit};

use crate::telemetry;

/// How many connections there may be, and are.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    at_most: usize,
    per_client: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

impl ConnectionLimit {
    #[must_use]
    pub fn new(max_connections: usize, max_connections_per_client: usize) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // A connection can need a second descriptor, to the upstream; stores, logs and listeners need some
        // too.
        let at_most = usize::try_from(descriptors / 10 * 8 / 2).unwrap_or(usize::MAX);
        if at_most < max_connections {
            telemetry::log(&format!(
                "the limit of {descriptors} open files allows {at_most} connections, not the {max_connections} of server.max_connections; raise it (LimitNOFILE, ulimit -n)"
            ));
        }
        Self {
            at_most: at_most.min(max_connections),
            per_client: max_connections_per_client,
            taken: Arc::default(),
        }
    }

    /// A place for a connection from `address`; `None` when there is none. What is `trusted` counts only
    /// among all.
    #[must_use]
    pub fn take(&self, address: IpAddr, trusted: bool) -> Option<Slot> {
        let client = client_of(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= self.at_most {
            return None;
        }
        if !trusted {
            let held = taken.by_client.entry(client).or_default();
            if *held >= self.per_client {
                return None;
            }
            *held += 1;
        }
        taken.total += 1;
        Some(Slot { client: (!trusted).then_some(client), taken: Arc::clone(&self.taken) })
    }
}

/// A connection's place among those that may be open; given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    client: Option<IpAddr>,
    taken: Arc<Mutex<Taken>>,
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

/// Who counts as one client: an address, and of IPv6 the /64 that one customer commonly has.
const fn client_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_own_limit_and_all_together_have_one() {
        let limit = ConnectionLimit::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = limit.take(a, false);
        let second = limit.take(a, false);
        assert!(first.is_some() && second.is_some());
        assert!(limit.take(a, false).is_none());
        let third = limit.take(b, false);
        assert!(third.is_some());
        assert!(limit.take(b, false).is_none(), "the house is full");
        drop((first, third));
        assert!(limit.take(a, false).is_some());
        drop(second);
        assert_eq!(limit.taken.lock().unwrap().total, 0);
        assert!(limit.taken.lock().unwrap().by_client.is_empty());
    }

    #[test]
    fn a_trusted_proxy_stands_for_many_clients() {
        let limit = ConnectionLimit::new(10, 1);
        let proxy = "192.0.2.1".parse().unwrap();
        let held: Vec<_> = (0..10).map(|_| limit.take(proxy, true)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(limit.take(proxy, true).is_none());
    }

    #[test]
    fn addresses_of_one_64_are_one_client() {
        let limit = ConnectionLimit::new(10, 1);
        let _held = limit.take("2001:db8::1".parse().unwrap(), false).unwrap();
        assert!(limit.take("2001:db8::2".parse().unwrap(), false).is_none());
        assert!(limit.take("2001:db8:0:1::1".parse().unwrap(), false).is_some());
    }
}
