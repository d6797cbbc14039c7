//! keygate: an edge gateway for API keys.
//!
//! # Life of a request
//!
//! A connection is accepted by the [`downstream::listener`], which has a place for it or closes it, and goes to the least
//! loaded [`downstream::worker`]. There a [`downstream::connection`] makes the [`downstream::tls`] handshake where there is one, finds out which
//! HTTP the client speaks, and runs hyper over the socket and a watchdog over both; on HTTP/2 every stream is
//! a task ([`downstream::http2`]). Each request then passes the stages of the [`gateway`], all of them in one function,
//! [`gateway::handle`]:
//!
//! | stage | takes | makes | refuses with |
//! |---|---|---|---|
//! | guard | a request | a [`CanonicalRequest`](policy::request::CanonicalRequest): one reading | 400, 414, 431 |
//! | route | a canonical request | the one [`Route`](policy::route::Route) it falls under, or none | 400 |
//! | authenticate | its Authorization field | the holder of a key, through the [`store::cache`] | 401, 403, 503 |
//! | authorize | holder and route | a permit | 404, 403 |
//! | forward | a permit | the answer of an [`upstream`] | 413, 502, 504 |
//! | respond | an answer or a [`Rejection`](vocabulary::rejection::Rejection) | bytes, and one record in [`telemetry`] | |
//!
//! # Layers
//!
//! Imports point one way, and a test keeps it so: [`vocabulary`] is without I/O, and so is the [`policy`] above it; then
//! [`store`], [`upstream`], [`telemetry`]; then [`gateway`], [`api`], [`lifecycle`], [`operators`]; then the sockets of [`downstream`];
//! [`app`] puts everything together from a [`config`] and says what of that may change while it runs, and [`cli`]
//! is what a person meets.

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod dial;
pub mod downstream;
pub mod gateway;
pub mod lifecycle;
pub mod operators;
pub mod policy;
pub mod secret_file;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod vocabulary;
