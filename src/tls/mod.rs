//! TLS, the same for all who use it: towards clients, towards Redis, towards upstreams.
//!
//! | file | question |
//! |--|--|
//! | [`pem`] | What is in a file of certificates, or of a key? |
//! | [`client`] | Where keygate connects: whom does it trust, who is it, and why did a handshake fail? |
//!
//! How clients are served is in [`downstream::tls`](crate::downstream::tls). The library is rustls, and the cryptography AWS-LC's.

pub mod client;
pub mod pem;

use std::error::Error;
use std::fmt;

/// Every mistake in the files at once, each on a line of its own.
#[derive(Debug)]
pub struct LoadErrors<E>(pub Vec<E>);

impl<E: fmt::Display> fmt::Display for LoadErrors<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(E::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl<E: fmt::Debug + fmt::Display> Error for LoadErrors<E> {}
