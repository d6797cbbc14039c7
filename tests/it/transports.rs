//! The wire suite over every transport.
//!
//! A test connects to its gateway through `fetch` and `connect`. Each run uses one transport: HTTP/1.1 in plain
//! text, unless `KEYGATE_TEST_TRANSPORT` names another. Calls use it; exact bytes are sent as HTTP/1.1, within TLS
//! if the transport has TLS. These tests run the modules of the suite again for each of the other transports. To run
//! one of their failures alone: `KEYGATE_TEST_TRANSPORT=tls-http2 cargo test --test it guard::`.
//!
//! The same towards upstreams: `KEYGATE_TEST_UPSTREAMS=tls`, `unix` or `http2` puts a server in front of each ([`front`]). With
//! `KEYGATE_LONG=1` nearly the whole suite runs so.

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::harness::transport::VARIABLE;
use crate::harness::{Transport, front, is_long};

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

/// The modules that say what an upstream receives, what its answers may do, and that environments stay apart.
const TO_UPSTREAMS: [&str; 4] = ["environments::", "forwarding::", "header_rules::", "trailers::"];

/// Modules of what HTTP/1.1 is on the wire. `upstream_http2.rs` has what belongs there with HTTP/2.
const OF_HTTP1: [&str; 2] = ["hostile_upstreams::", "upstream_faults::"];

/// Those that the long form adds.
const TO_UPSTREAMS_TOO: [&str; 9] = [
    "api_story::",
    "authentication::",
    "contract_errors::",
    "contract_routes::",
    "drain::",
    "guard::",
    "limits::",
    "streaming::",
    "websocket::",
];

#[test]
fn what_upstreams_receive_and_answer_is_the_same_over_tls() {
    // Its 300 ms hold for the handshake too, which takes that long on a busy machine.
    run_to_upstreams(
        "tls",
        &OF_HTTP1,
        &["an_answer_that_does_not_begin_in_time_is_a_504_and_its_connection_is_closed"],
    );
}

#[test]
fn what_upstreams_receive_and_answer_is_the_same_through_a_socket() {
    run_to_upstreams("unix", &OF_HTTP1, &NOT_THROUGH_SOCKETS);
}

#[test]
fn what_upstreams_receive_and_answer_is_the_same_over_http2() {
    run_to_upstreams("http2", &[], &NOT_OVER_HTTP2);
}

/// Tests of what a front changes: it is a moment later than its upstream, and has an address of its own, by which metrics name it.
const NOT_BEHIND_FRONTS: [&str; 3] = [
    "a_reused_connection_that_the_upstream_closed_causes_no_error",
    "a_server_that_refuses_is_asked_rarely_by_requests_that_another_could_serve",
    "what_is_safe_is_sent_again_when_its_kept_connection_ends_without_a_byte",
];

/// The socket of a front takes connections also where its upstream does not. `upstream_sockets.rs` shows a socket that is not there.
const NOT_THROUGH_SOCKETS: [&str; 2] =
    ["while_one_server_is_down_the_other_serves", "no_100_is_sent_if_no_upstream_can_be_reached"];

/// Tests of what the bytes of HTTP/1.1 can say, or of a connection that carries one request, and those of a socket: the server in front
/// takes connections in any case.
const NOT_OVER_HTTP2: [&str; 9] = [
    "a_tunnel_has_its_place_until_it_ends",
    NOT_THROUGH_SOCKETS[0],
    NOT_THROUGH_SOCKETS[1],
    "a_body_of_unknown_length_arrives_whole_after_an_upstream_has_spoken_http_1_0",
    "a_connection_is_reused_only_after_a_fully_regular_answer",
    "a_kept_connection_carries_the_requests_of_two_keys_and_mixes_nothing",
    "an_answer_has_exactly_one_framing",
    "an_answer_that_its_upstream_breaks_off_is_never_completed",
    "fields_that_are_only_valid_in_a_head_are_removed_from_trailers",
];

/// `of_http1` are [`OF_HTTP1`], where that is spoken; the long form has the second one.
fn run_to_upstreams(link: &str, of_http1: &[&str], without: &[&str]) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let of_http1 = if is_long() { of_http1 } else { &of_http1[..of_http1.len().min(1)] };
    let more: &[&str] = if is_long() { &TO_UPSTREAMS_TOO } else { &[] };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(TO_UPSTREAMS.iter().chain(more).chain(of_http1))
        .args(NOT_BEHIND_FRONTS.iter().chain(without).flat_map(|name| ["--skip", name]))
        .env(front::VARIABLE, link)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "over {link}:\n{told}");
    assert!(!told.contains(" 0 passed"), "no test has these names");
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
