//! The public socket: bound once; connections are counted here and handed to the workers.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Threads that serve connections; `None` for one per processor.
    pub workers: Option<NonZeroUsize>,
    /// Connections at once; never more than 80 % of the file descriptor limit.
    pub max_connections: usize,
    /// Connections at once from one address, or one /64 of IPv6.
    pub max_connections_per_client: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            workers: None,
            max_connections: 10_000,
            max_connections_per_client: 256,
        }
    }
}
