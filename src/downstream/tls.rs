//! TLS towards clients: which certificate a connection gets, and the handshake.
//!
//! Versions 1.2 and 1.3; HTTP/2 or HTTP/1.1 by ALPN; resumption by tickets only, so every worker can continue a
//! session that another began, and no session is kept in memory. The cryptography is AWS-LC's. It is named here
//! and never taken from a process-wide default.
//!
//! A client gets the first certificate that covers the name it asks for (SNI). A certificate with the name itself
//! comes before one with a wildcard. A client that asks for no name, or for a name that no certificate covers,
//! gets the first certificate of the list and decides for itself: its error about a name that does not match says
//! more than a broken handshake.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::{EndEntityCert, KeyUsage};

use crate::telemetry::metrics::Unserved;
use crate::tls::LoadErrors;
use crate::tls::pem::{PemError, read_certificates, read_key};
use crate::vocabulary::clock::UnixMillis;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The first is the default. Empty: plain text.
    pub certificates: Vec<Files>,
}

/// The files of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate and the chain behind it, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}

/// The versions of HTTP within TLS, by their ALPN names.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Makes handshakes with the certificates, which were read and checked before.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: TlsAcceptor,
    certificates: Arc<[Certificate]>,
}

impl Acceptor {
    /// Reads the files that the settings name; `None` where they name none.
    ///
    /// # Errors
    /// Every mistake in every file.
    pub fn load(settings: &Settings) -> Result<Option<Self>, LoadErrors<LoadError>> {
        if settings.certificates.is_empty() {
            return Ok(None);
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut errors = Vec::new();
        let mut certificates = Vec::new();
        let mut by_name = ByName::default();
        for (n, files) in settings.certificates.iter().enumerate() {
            match Certificate::load(files, &provider) {
                Ok((certificate, _)) if n > 0 && certificate.names.is_empty() => {
                    errors.push(LoadError::Nameless(certificate.file));
                }
                Ok((certificate, key)) => {
                    by_name.add(&certificate.names, key);
                    certificates.push(certificate);
                }
                Err(found) => errors.extend(found),
            }
        }
        if !errors.is_empty() {
            return Err(LoadErrors(errors));
        }
        let config = configuration(provider, by_name).map_err(|error| LoadErrors(vec![error]))?;
        Ok(Some(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificates: certificates.into() }))
    }

    /// The certificates that were read, in the order of the settings.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// Makes the handshake, and says whether it agreed on HTTP/2. There is no time limit in here.
    ///
    /// # Errors
    /// When the client went away, does not speak TLS, or speaks no version or cipher of it that is supported here.
    pub(super) async fn accept<S>(&self, stream: S) -> Result<(Stream<S>, bool), Unserved>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = self.acceptor.accept(stream).await.map_err(|error| why_unserved(&error))?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
        Ok((Stream::Tls(Box::new(stream)), is_http2))
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// Why a handshake failed.
fn why_unserved(error: &io::Error) -> Unserved {
    match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        None => Unserved::HandshakeBrokenOff,
        Some(rustls::Error::InvalidMessage(_)) => Unserved::NotTls,
        Some(rustls::Error::AlertReceived(_)) => Unserved::TlsRefused,
        Some(rustls::Error::PeerIncompatible(_)) => Unserved::TlsUnsupported,
        Some(_) => Unserved::TlsFailed,
    }
}

fn configuration(provider: Arc<CryptoProvider>, by_name: ByName) -> Result<ServerConfig, LoadError> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(LoadError::Library)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(by_name));
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(LoadError::Library)?;
    // It would keep only sessions without tickets, behind a lock that all workers share.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

#[derive(Debug, Error)]
pub enum LoadError {
    #[error("server.tls: {0}")]
    File(#[from] PemError),
    #[error(
        "server.tls: the key in {key} does not belong to the first certificate in {certificate}; name a pair that belongs together, \
         with the server's own certificate first in its file"
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("server.tls: the certificate in {certificate} with the key in {key} cannot be used: {cause}")]
    Unusable { certificate: PathBuf, key: PathBuf, cause: rustls::Error },
    #[error(
        "server.tls: the certificate in {0} has no DNS name, so no client would get it; remove it, or put it first"
    )]
    Nameless(PathBuf),
    #[error("server.tls: {0}")]
    Library(rustls::Error),
}

/// A certificate's data for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub file: PathBuf,
    /// The DNS names that it is for, in lower case; a wildcard begins with `*.`.
    pub names: Vec<String>,
    pub not_before: UnixMillis,
    pub not_after: UnixMillis,
}

impl Certificate {
    fn load(files: &Files, provider: &CryptoProvider) -> Result<(Self, Arc<CertifiedKey>), Vec<LoadError>> {
        match (read_certificates(&files.certificate), read_key(&files.key)) {
            (Ok(chain), Ok(key)) => Self::join(files, chain, key, provider).map_err(|error| vec![error]),
            (chain, key) => Err(chain.err().into_iter().chain(key.err()).map(LoadError::from).collect()),
        }
    }

    fn join(
        files: &Files,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<(Self, Arc<CertifiedKey>), LoadError> {
        let (certificate, key_file) = (files.certificate.clone(), files.key.clone());
        let pair = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                LoadError::Mismatch { certificate: certificate.clone(), key: key_file.clone() }
            }
            cause => LoadError::Unusable { certificate: certificate.clone(), key: key_file.clone(), cause },
        })?;
        let described = Self::describe(&files.certificate, &pair.cert[0]).map_err(|_| {
            let cause = rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding);
            LoadError::Unusable { certificate, key: key_file, cause }
        })?;
        Ok((described, Arc::new(pair)))
    }

    fn describe(file: &Path, der: &CertificateDer<'_>) -> Result<Self, webpki::Error> {
        let certificate = EndEntityCert::try_from(der)?;
        let [not_before, not_after] = validity(&certificate)?;
        let names = certificate.valid_dns_names().map(str::to_ascii_lowercase).collect();
        Ok(Self { file: file.to_owned(), names, not_before, not_after })
    }

    /// Why clients will refuse it at this time, and what to do about that; `None` when they will not.
    #[must_use]
    pub fn complaint(&self, now: UnixMillis) -> Option<String> {
        let file = self.file.display();
        if now > self.not_after {
            let end = self.not_after;
            return Some(format!("server.tls: the certificate in {file} expired on {end}; renew it"));
        }
        (now < self.not_before).then(|| {
            let begin = self.not_before;
            format!(
                "server.tls: the certificate in {file} is not valid before {begin}; correct the clock, or wait"
            )
        })
    }
}

/// From when until when a certificate is valid.
fn validity(certificate: &EndEntityCert<'_>) -> Result<[UnixMillis; 2], webpki::Error> {
    // The library gives these times only in its errors: about a time before the first, or after the second.
    let judge = |seconds| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        certificate.verify_for_usage(&[], &[], &[], time, KeyUsage::server_auth(), None, None).err()
    };
    let millis = |time: UnixTime| UnixMillis(time.as_secs().saturating_mul(1000));
    let not_before = match judge(0) {
        Some(webpki::Error::CertNotValidYet { not_before, .. }) => millis(not_before),
        Some(error @ webpki::Error::InvalidCertValidity) => return Err(error),
        _ => UnixMillis(0),
    };
    let not_after = match judge(u64::MAX) {
        Some(webpki::Error::CertExpired { not_after, .. }) => millis(not_after),
        Some(error) => return Err(error),
        None => UnixMillis(u64::MAX),
    };
    Ok([not_before, not_after])
}

/// The certificates by the names they cover.
#[derive(Debug, Default)]
struct ByName {
    default: Option<Arc<CertifiedKey>>,
    names: HashMap<String, Arc<CertifiedKey>>,
    /// By the part after `*.`, which covers exactly one label.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    fn add(&mut self, names: &[String], key: Arc<CertifiedKey>) {
        for name in names {
            let (map, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcards, parent),
                None => (&mut self.names, name.as_str()),
            };
            map.entry(name.to_owned()).or_insert_with(|| Arc::clone(&key));
        }
        self.default.get_or_insert(key);
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let parent = || name.split_once('.').map_or("", |(_, parent)| parent);
        self.names.get(name).or_else(|| self.wildcards.get(parent()))
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.find(&name.to_ascii_lowercase()));
        named.or(self.default.as_ref()).cloned()
    }
}

/// The bytes of a client without TLS, whether or not TLS protects them on the wire.
#[derive(Debug)]
pub(super) enum Stream<S> {
    Plain(S),
    Tls(Box<TlsStream<S>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
