//! The client's side: from the socket to a request that the gateway can handle, and back.

mod activity;
mod allowance;
mod arrivals;
pub mod connection;
mod connection_limit;
mod fields;
mod frames;
mod framing;
mod held;
mod hint;
mod http1_stream;
pub mod http2;
mod http2_stream;
pub mod in_memory;
mod ledger;
mod lingering;
pub mod listener;
mod membership;
mod preface;
mod refusal;
pub mod tls;
mod together;
pub mod watchdog;
pub mod worker;
