//! keygate: an edge gateway for API keys.

pub mod clock;
pub mod id;
pub mod key;
pub mod rejection;
pub mod store;
