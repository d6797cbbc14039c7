//! The client's side: from the socket to a request that the gateway can handle, and back.

pub mod connection;
pub mod connection_limit;
pub mod http2;
pub mod listener;
pub mod preface;
pub mod tls;
pub mod worker;
