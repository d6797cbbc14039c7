//! The integration tests, one binary; a module per stage and resource.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]
#![expect(clippy::disallowed_methods, reason = "tests wait and measure by the real clock")]

mod harness;

mod drain;
mod forwarding;
mod limits;
mod memory;
mod smoke;
mod store_contract;
mod streaming;
