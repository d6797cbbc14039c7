//! The integration tests, one binary; a module per stage and resource.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod harness;

mod architecture;
mod cli_check;
mod cli_run;
mod foreign_upstreams;
mod ops;
mod smoke;
mod store_contract;
