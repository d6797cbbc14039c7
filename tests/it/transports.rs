//! The wire suite over every transport.
//!
//! A test connects to its gateway through `fetch` and `connect`. Each run uses one transport: HTTP/1.1 in plain
//! text, unless `KEYGATE_TEST_TRANSPORT` names another. Calls use it; exact bytes are sent as HTTP/1.1, within TLS
//! if the transport has TLS. These tests run the modules of the suite again for each of the other transports. To run
//! one of their failures alone: `KEYGATE_TEST_TRANSPORT=tls-http2 cargo test --test it guard::`.

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::harness::Transport;
use crate::harness::transport::VARIABLE;

/// The modules whose tests pass over every transport.
const SUITE: [&str; 12] = [
    "api_story::",
    "authentication::",
    "contract_errors::",
    "contract_routes::",
    "drain::",
    "environments::",
    "forwarding::",
    "guard::",
    "header_rules::",
    "limits::",
    "streaming::",
    "trailers::",
];

#[test]
fn the_wire_suite_passes_over_http2_on_plain_text() {
    run(Transport::Http2);
}

#[test]
fn the_wire_suite_passes_over_tls_with_http1() {
    run(Transport::TlsHttp1);
}

#[test]
fn the_wire_suite_passes_over_tls_with_http2() {
    run(Transport::TlsHttp2);
}

/// Some of these tests measure time, and each run has threads for all processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn run(transport: Transport) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(SUITE)
        .env(VARIABLE, transport.name())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "over {}:\n{told}", transport.name());
    assert!(!told.contains(" 0 passed"), "no test has these names: {SUITE:?}");
}
