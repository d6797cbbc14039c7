//! The vocabulary of the rest of keygate: keys, ids, records, refusals, times, addresses. Values and rules, no I/O.

pub mod audit;
pub mod believed;
pub mod browser_keys;
pub mod cache_level;
pub mod clock;
mod closed;
pub mod grpc;
pub mod id;
pub mod key;
pub mod line_numbers;
pub mod memory_plan;
pub mod network;
pub mod partition;
pub mod peer;
pub mod reason;
pub mod rejection;
pub mod spelling;
pub mod text;
mod unsafe_message;
pub mod upstream;
