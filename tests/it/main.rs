//! The integration tests, one binary; a module per stage and resource.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod harness;

mod authentication;
mod contract_errors;
mod contract_routes;
mod environments;
mod guard;
mod header_rules;
mod store_contract;
