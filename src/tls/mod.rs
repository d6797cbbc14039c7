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
