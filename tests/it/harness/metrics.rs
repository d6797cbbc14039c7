//! The metrics of a gateway.

use std::net::SocketAddr;

use super::{Call, fetch};

/// The text of a scrape.
#[track_caller]
pub(crate) fn scrape(ops: SocketAddr) -> String {
    let answer = fetch(ops, &Call::get("/metrics"));
    assert_eq!(answer.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    answer.text()
}

/// The value of a series, written as in the text.
pub(crate) fn value(text: &str, series: &str) -> Option<f64> {
    let line =
        text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}
