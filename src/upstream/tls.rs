//! TLS towards the servers of one environment of one upstream.
//!
//! Each environment of each upstream has an `Identity` of its own, with its own store of sessions: no session that a live key's
//! request began goes on with a test key's, and none goes on under other settings. The workers share it. A connection takes
//! its lock when it is opened, a request never.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Protocol, Settings};
use crate::tls::client::{self, Files, Loaded, tls_error};
use crate::vocabulary::key::Environment;

/// The sessions that are kept for one environment of an upstream, so that new connections need less of a handshake. Up to eight
/// are of one server's name.
const SESSIONS: usize = 256;
/// The most plain text that a connection holds until its socket takes it, in bytes: two records of TLS, as hyper keeps what it
/// has itself.
const UNSENT: usize = 32 << 10;

/// The names of the protocols in a handshake (ALPN).
pub(super) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// What a request needs of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// It asks for an upgrade, which HTTP/2 does not have.
    Http1,
}

/// Whom the servers must have their certificates from, and who keygate is to them.
pub(super) struct Identity {
    /// The section of the configuration, for messages.
    section: Box<str>,
    files: Files,
    /// For whatever the upstream's protocol is.
    connector: TlsConnector,
    /// For what only HTTP/1.1 has.
    for_http1: TlsConnector,
    digest: [u8; 32],
}

/// The section of the configuration for one environment of an upstream.
#[must_use]
pub fn section(upstream: &str, environment: Environment) -> String {
    format!("upstreams.{upstream}.{environment}_tls")
}

/// Why the files of an upstream cannot be used.
#[derive(Debug, Error)]
#[error("{section}: {cause}")]
pub struct LoadError {
    /// The section of the configuration that names the files.
    pub section: String,
    pub files: Files,
    pub cause: client::LoadError,
}

impl Identity {
    pub(super) fn load(upstream: &Settings, environment: Environment) -> Result<Self, Box<LoadError>> {
        let section = section(&upstream.name, environment);
        let has_tls = upstream.endpoints(environment).iter().any(super::Endpoint::has_tls);
        let files = if has_tls { upstream.tls[environment as usize].clone() } else { Files::default() };
        let loaded = if has_tls { Loaded::read(&files) } else { Loaded::trusting_nobody() };
        let (mut config, digest) = match loaded {
            Ok(Loaded { config, digest }) => (config, digest),
            Err(cause) => return Err(Box::new(LoadError { section, files, cause })),
        };
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let offering = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        let connector = offering(match upstream.protocol {
            Protocol::Auto => &[HTTP2, HTTP1],
            Protocol::Http1 => &[HTTP1],
            Protocol::Http2 => &[HTTP2],
        });
        Ok(Self { section: section.into(), files, connector, for_http1: offering(&[HTTP1]), digest })
    }

    /// Whether the files had the same content.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.files == other.files
    }

    /// Makes the handshake. There is no time limit in here.
    ///
    /// # Errors
    /// What is wrong, and what to do about it.
    pub(super) async fn handshake(
        &self,
        name: &ServerName<'static>,
        stream: TcpStream,
        needs: Needs,
    ) -> Result<TlsStream<TcpStream>, Box<str>> {
        let limit = |session: &mut rustls::ClientConnection| session.set_buffer_limit(Some(UNSENT));
        let connector = match needs {
            Needs::Nothing => &self.connector,
            Needs::Http1 => &self.for_http1,
        };
        let handshake = connector.connect_with(name.clone(), stream, limit).await;
        handshake.map_err(|error| self.explain(&error, name))
    }

    fn explain(&self, error: &io::Error, name: &ServerName<'static>) -> Box<str> {
        let shown = name.to_str();
        if tls_error(error).is_none() {
            return format!("{error}; see whether this is the port where it speaks TLS").into();
        }
        client::explain(error, &self.files, &self.section, Some(&shown)).into()
    }

    /// For a server that took the connection and did not end the handshake in time.
    pub(super) fn explain_silence(&self) -> Box<str> {
        "it did not end the handshake of TLS within connect_timeout; see whether this is the port where it speaks TLS"
            .into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("section", &self.section).finish_non_exhaustive()
    }
}
