//! The integration tests, one binary; a module per stage and resource.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod harness;

mod architecture;
mod authentication;
mod cli_check;
mod cli_run;
mod contract_errors;
mod contract_routes;
mod environments;
mod foreign_upstreams;
mod guard;
mod header_rules;
mod ops;
mod store_contract;
