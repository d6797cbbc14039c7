//! Client connections: the open ones, by the protocol that they speak, and those that keygate cut.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus::proto::MetricFamily;

use super::cell::{add, change, read};
use super::family::{counters, gauges};

/// The protocol of a client connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Not known yet: the TLS handshake is under way, or no byte has come.
    Opening,
    Http1,
    Http2,
    WebSocket,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Opening, Self::Http1, Self::Http2, Self::WebSocket];

    const fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::WebSocket => "websocket",
        }
    }
}

/// The excess for which a client's connection was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// It cancelled requests that it had just begun.
    CancelledRequests,
    /// It made keygate reset streams: by malformed requests, or frames for streams that had ended.
    StreamsReset,
    /// It sent too much of what h2 itself limits: parts of a head, resets, small frames.
    Flood,
    /// It held much memory while the process had too little. The only one over HTTP/1.1 too.
    Memory,
}

impl Excess {
    const ALL: [Self; 4] = [Self::CancelledRequests, Self::StreamsReset, Self::Flood, Self::Memory];

    const fn label(self) -> &'static str {
        match self {
            Self::CancelledRequests => "cancelled_requests",
            Self::StreamsReset => "streams_reset",
            Self::Flood => "flood",
            Self::Memory => "memory",
        }
    }

    /// The excess in words, for a log line.
    #[must_use]
    pub const fn described(self) -> &'static str {
        match self {
            Self::CancelledRequests => "cancels too many requests that it has just begun",
            Self::StreamsReset => "makes keygate reset too many streams",
            Self::Flood => "sends too many frames of a kind that costs more than it carries",
            Self::Memory => "holds the most memory, and there is too little",
        }
    }
}

/// One thread's cut HTTP/2 connections, by [`Excess`].
#[derive(Debug, Default)]
pub(super) struct CutConnections([AtomicU64; Excess::ALL.len()]);

impl CutConnections {
    pub(super) fn count(&self, why: Excess) {
        add(&self.0[why as usize], 1);
    }
}

/// Why a client's connection ended before its first request, without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// `server.max_connections`, or the limit of open files.
    MaxConnections,
    /// `server.max_connections_per_client`.
    MaxConnectionsPerClient,
    HandshakeTimeout,
    /// The client closed the connection during the TLS handshake.
    HandshakeBrokenOff,
    /// The client speaks something else than TLS.
    NotTls,
    /// The client supports no version or cipher that is supported here.
    TlsUnsupported,
    /// The client refused the handshake, for instance because it does not trust the certificate.
    TlsRefused,
    /// The handshake failed for another reason.
    TlsFailed,
    /// The client agreed on HTTP/2 in the handshake, and then spoke something else.
    Preface,
    /// The first head did not come in time.
    HeadTimeout,
}

impl Unserved {
    const ALL: [Self; 10] = [
        Self::MaxConnections,
        Self::MaxConnectionsPerClient,
        Self::HandshakeTimeout,
        Self::HandshakeBrokenOff,
        Self::NotTls,
        Self::TlsUnsupported,
        Self::TlsRefused,
        Self::TlsFailed,
        Self::Preface,
        Self::HeadTimeout,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::MaxConnections => "max_connections",
            Self::MaxConnectionsPerClient => "max_connections_per_client",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakeBrokenOff => "handshake_broken_off",
            Self::NotTls => "not_tls",
            Self::TlsUnsupported => "tls_unsupported",
            Self::TlsRefused => "tls_refused",
            Self::TlsFailed => "tls_failed",
            Self::Preface => "preface",
            Self::HeadTimeout => "head_timeout",
        }
    }
}

/// One thread's connections that ended without a request, by [`Unserved`].
#[derive(Debug, Default)]
pub(super) struct UnservedConnections([AtomicU64; Unserved::ALL.len()]);

impl UnservedConnections {
    pub(super) fn count(&self, why: Unserved) {
        add(&self.0[why as usize], 1);
    }
}

/// Why a stream was reset, and not by the client: h2 did it by itself, with this error code (RFC 9113, section 7), or its body kept
/// too much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamError {
    Protocol,
    FlowControl,
    StreamClosed,
    FrameSize,
    RefusedStream,
    EnhanceYourCalm,
    Other,
    Memory,
}

impl StreamError {
    const ALL: [Self; 8] = [
        Self::Protocol,
        Self::FlowControl,
        Self::StreamClosed,
        Self::FrameSize,
        Self::RefusedStream,
        Self::EnhanceYourCalm,
        Self::Other,
        Self::Memory,
    ];

    const fn of(code: u8) -> Self {
        match code {
            1 => Self::Protocol,
            3 => Self::FlowControl,
            5 => Self::StreamClosed,
            6 => Self::FrameSize,
            7 => Self::RefusedStream,
            11 => Self::EnhanceYourCalm,
            _ => Self::Other,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Protocol => "protocol_error",
            Self::FlowControl => "flow_control_error",
            Self::StreamClosed => "stream_closed",
            Self::FrameSize => "frame_size_error",
            Self::RefusedStream => "refused_stream",
            Self::EnhanceYourCalm => "enhance_your_calm",
            Self::Other => "other",
            Self::Memory => "memory",
        }
    }
}

/// One thread's streams that were reset, by `StreamError`.
#[derive(Debug, Default)]
pub struct ResetStreams([AtomicU64; StreamError::ALL.len()]);

impl ResetStreams {
    /// h2 has reset a stream with this error code. To be called by the thread that the counts belong to.
    pub fn count(&self, code: u8) {
        add(&self.0[StreamError::of(code) as usize], 1);
    }

    /// A stream was reset because its body kept too much memory. To be called by the same thread.
    pub fn count_for_memory(&self) {
        add(&self.0[StreamError::Memory as usize], 1);
    }
}

/// One thread's open connections, by [`Protocol`].
#[derive(Debug, Default)]
pub(super) struct OpenConnections([AtomicI64; Protocol::ALL.len()]);

/// A client connection, counted until this is dropped. It stays on its thread.
#[derive(Debug)]
pub struct Connected {
    open: Arc<OpenConnections>,
    protocol: Cell<Protocol>,
}

impl Connected {
    pub(super) fn new(open: Arc<OpenConnections>) -> Self {
        change(&open.0[Protocol::Opening as usize], 1);
        Self { open, protocol: Cell::new(Protocol::Opening) }
    }

    /// The connection speaks this protocol from now on.
    pub fn speaks(&self, protocol: Protocol) {
        change(&self.open.0[self.protocol.replace(protocol) as usize], -1);
        change(&self.open.0[protocol as usize], 1);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        change(&self.open.0[self.protocol.get() as usize], -1);
    }
}

pub(super) fn family<'t>(threads: &(impl Iterator<Item = &'t OpenConnections> + Clone)) -> MetricFamily {
    let open = |protocol: Protocol| -> i64 {
        threads.clone().map(|open| open.0[protocol as usize].load(Ordering::Relaxed)).sum()
    };
    let series = Protocol::ALL
        .map(|protocol| ([("listener", "server"), ("protocol", protocol.label())], open(protocol) as f64));
    gauges(
        "keygate_connections",
        "Open client connections, by protocol; \"opening\" until it is known.",
        series,
    )
}

pub(super) fn unserved_family<'t>(
    threads: &(impl Iterator<Item = &'t UnservedConnections> + Clone),
) -> MetricFamily {
    let unserved =
        |why: Unserved| -> u64 { threads.clone().map(|unserved| read(&unserved.0[why as usize])).sum() };
    counters(
        "keygate_connections_refused_total",
        "Client connections that ended before their first request without an answer, by cause.",
        Unserved::ALL.map(|why| ([("reason", why.label())], unserved(why))),
    )
}

pub(super) fn cut_family<'t>(threads: &(impl Iterator<Item = &'t CutConnections> + Clone)) -> MetricFamily {
    let cut = |why: Excess| -> u64 { threads.clone().map(|cut| read(&cut.0[why as usize])).sum() };
    counters(
        "keygate_connections_cut_total",
        "HTTP/2 connections that were cut because the client did something in excess.",
        Excess::ALL.map(|why| ([("reason", why.label())], cut(why))),
    )
}

pub(super) fn reset_family<'t>(threads: &(impl Iterator<Item = &'t ResetStreams> + Clone)) -> MetricFamily {
    let reset = |why: StreamError| -> u64 { threads.clone().map(|reset| read(&reset.0[why as usize])).sum() };
    counters(
        "keygate_streams_reset_total",
        "HTTP/2 streams that were reset because what came on them was no request, or against the protocol, or kept too much memory.",
        StreamError::ALL.map(|why| ([("code", why.label())], reset(why))),
    )
}
