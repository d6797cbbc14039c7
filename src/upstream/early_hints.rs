//! What an upstream tells before its answer: the links of its interim answers with the status 103 (RFC 8297).
//!
//! Only `Link` is passed on. Such an answer comes before anything is known of the one that follows it, so nothing in it may change what
//! the client does with that; a link lets it fetch a style sheet early. Other interim answers end here: 100 is keygate's own
//! to say, and 102 tells the client nothing.

use std::fmt::Debug;

use http::HeaderValue;

/// A client that takes early hints.
///
/// Clients over HTTP/1.1 are none. Many of them read an interim answer that they do not know as the answer itself, for example
/// Python's `http.client`, on which `requests` stands (RFC 8297, section 3, warns of them).
pub trait EarlyHints: Debug {
    /// Passes the values of `Link` on, in an answer before the answer. Where they cannot be sent at once they may be dropped.
    fn pass(&self, links: Vec<HeaderValue>);
}
