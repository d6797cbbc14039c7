//! The integration tests, one binary; a module per stage and resource.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]
#![expect(clippy::disallowed_methods, reason = "tests wait and measure by the real clock")]

mod harness;

mod api_audit;
mod api_description;
mod api_escalation;
mod api_idempotency;
mod api_model;
mod api_secrets;
mod api_shapes;
mod api_signup;
mod api_story;
mod api_trips;
mod api_use;
mod architecture;
mod authentication;
mod cli_audit;
mod cli_check;
mod cli_check_online;
mod cli_import;
mod cli_migrate;
mod cli_operators;
mod cli_run;
mod cold_start;
mod contract_errors;
mod contract_routes;
mod documentation;
mod drain;
mod durability;
mod environments;
mod flood;
mod foreign_upstreams;
mod formats;
mod forwarding;
mod fuzz;
mod guard;
mod header_rules;
mod http2;
mod leases;
mod left_behind;
mod limits;
mod memory;
mod open_streams;
mod ops;
mod outages;
mod outbox;
mod parser;
mod prometheus;
mod propagation;
mod redis_cluster;
mod redis_fail_over;
mod redis_gateways;
mod redis_sentinel;
mod redis_store;
mod redis_tls;
mod reload;
mod role_proxy;
mod secrets;
mod store_contract;
mod streaming;
mod tls;
mod trailers;
mod transports;
mod websocket;
