//! Why a request got no answer, and why a body did not end as it should.

use std::io;

use thiserror::Error;

/// Why a request got no answer.
#[derive(Debug)]
pub enum SendError {
    /// Nothing of the request was sent: no endpoint could be connected to.
    Unreachable,
    /// Nothing of the request was sent: no endpoint has an address, because no name of theirs could be resolved.
    Unresolved,
    /// Nothing of the request was sent: an endpoint could be connected to, but there was no handshake of TLS with it.
    NoTls,
    /// Nothing of the request was sent: the process has as many connections to upstreams as it may.
    Crowded,
    /// Nothing of the request was sent: the upstream has as many connections as it may.
    Full,
    /// The connection ended, or proved not to speak HTTP as expected, before a whole answer head had come. The request
    /// may have been carried out.
    BrokeOff(BrokenOff),
    /// The answer's head did not come in time. The request may have been carried out.
    TimedOut,
    /// The client's body failed before the answer came.
    Body(BodyError),
}

/// How a connection ended before a whole answer head had come.
#[derive(Debug, Error)]
pub enum BrokenOff {
    #[error("the connection was closed before an answer came")]
    Closed,
    /// The upstream said something that is no answer.
    #[error("{0}")]
    Malformed(Box<str>),
    #[error("the connection failed: {0}")]
    Io(io::ErrorKind),
    /// TLS ended with an error: with version 1.3 a server judges our certificate after the handshake.
    #[error("TLS failed: {0}")]
    Tls(Box<str>),
    /// Another cause, in the words of the library that speaks the protocol.
    #[error("{0}")]
    Other(Box<str>),
}

/// Why there is no stream to an endpoint. Nothing was sent.
#[derive(Debug, Error)]
pub(super) enum Unopened {
    #[error("{0}")]
    Connect(io::Error),
    /// The handshake failed; the text says why, and what to do.
    #[error("{0}")]
    Tls(Box<str>),
}

/// Why there is no connection for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLease {
    /// The endpoint cannot be connected to.
    Unreachable,
    /// The endpoint can be connected to, and there was no handshake of TLS.
    NoTls,
    /// The process has as many connections as it may.
    Crowded,
    /// The upstream has as many as it may.
    Full,
}

/// Why a body ended before its end. The connection it was written to is cut, so that the receiver sees that
/// the body is incomplete.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BodyError {
    #[error("the body is larger than allowed")]
    TooLarge,
    #[error("the body stopped arriving")]
    Stalled,
    #[error("the body broke off")]
    Broken,
}
