//! The interfaces for operators beside the command line: probes and metrics, the admin API, news of what happened to keys.

pub mod admin;
pub mod ops;
pub mod outbox;
mod paced;
mod small_server;

pub use small_server::Running;
