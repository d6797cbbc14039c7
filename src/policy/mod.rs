//! The policy: which requests may pass, and why.
//!
//! Pure: no socket, no store, no metric, no clock. The request path and the tools call the same functions. A request
//! becomes a [`request::CanonicalRequest`] with one reading; the [`route::RouteTable`] finds the one route that it
//! falls under; the [`decision`] says whether its sender may use it.

pub mod access;
pub mod decision;
pub mod explain;
pub mod foreign;
mod path;
pub mod pattern;
mod reading;
pub mod request;
pub mod route;
mod rule;
#[cfg(test)]
mod search_tests;
mod spelling;
pub mod target;
mod tree;
pub mod wider;

pub use self::path::unescaped_in;
