//! keygate: an edge gateway for API keys.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connection;
pub mod gateway;
pub mod id;
pub mod key;
pub mod listener;
pub mod rejection;
pub mod store;
pub mod telemetry;
pub mod upstream;
