//! What operators meet beside the command line: probes and metrics, the admin API, news of what happened to keys.

pub mod admin;
pub mod ops;
pub mod outbox;
