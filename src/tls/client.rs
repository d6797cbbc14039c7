//! TLS where keygate is the client: whom it trusts, who it is, and why a handshake failed.
//!
//! Versions 1.2 and 1.3. The files are read once, and again only where somebody says so: a connection never waits for a disk.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::pem::{PemError, read_certificates, read_key};

/// Whom a server must have its certificate from, and the certificate that we show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    pub trust: Trust,
    /// Our certificate and its key, for a server that asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Which authorities are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those that the system trusts: `SSL_CERT_FILE` and `SSL_CERT_DIR`, or else where the distribution keeps them.
    #[default]
    System,
    /// Those in this file, in PEM, and no others.
    Authorities(PathBuf),
    /// Any server with any certificate. Whoever can redirect a connection reads and changes everything on it.
    Anyone,
}

/// Why the files cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("{0}; give the certificates of authorities, and a client certificate with its own key")]
    Unusable(#[from] rustls::Error),
    #[error(
        "the system has no certificates of authorities{0}; install them (ca-certificates), or name a file with `ca`"
    )]
    NoSystemRoots(String),
}

/// The content of the files.
#[derive(Debug)]
pub struct Loaded {
    /// Without ALPN, and with the library's store of sessions, which belongs to this value and its clones.
    pub config: ClientConfig,
    /// Of everything that was read: two that are equal make the same connections.
    pub digest: [u8; 32],
}

impl Loaded {
    /// # Errors
    /// [`LoadError`], whose text says what to do.
    pub fn read(files: &Files) -> Result<Self, LoadError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut content = Content::default();
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])?;
        let config = match &files.trust {
            Trust::Anyone => {
                config.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
            }
            Trust::Authorities(file) => {
                let authorities = read_certificates(file)?;
                let mut roots = RootCertStore::empty();
                for authority in authorities {
                    content.add(&authority);
                    roots.add(authority)?;
                }
                config.with_root_certificates(roots)
            }
            Trust::System => config.with_root_certificates(system_roots(&mut content)?),
        };
        let config = match &files.client {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let (chain, key) = (read_certificates(certificate)?, read_key(key)?);
                chain.iter().for_each(|certificate| content.add(certificate));
                content.add(key.secret_der());
                config.with_client_auth_cert(chain, key)?
            }
        };
        Ok(Self { config, digest: content.0.finalize().into() })
    }

    /// Without a single authority, so that every handshake fails: for a place where none is made.
    ///
    /// # Errors
    /// Of the library.
    pub fn trusting_nobody() -> Result<Self, LoadError> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        Ok(Self { config, digest: [0; 32] })
    }
}

/// Certificates of the system that the library cannot read are left out, as other programs do.
fn system_roots(content: &mut Content) -> Result<RootCertStore, LoadError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    for authority in found.certs {
        content.add(&authority);
        let _ = roots.add(authority);
    }
    if roots.is_empty() {
        let causes = found.errors.iter().take(3).fold(String::new(), |mut causes, error| {
            let _ = write!(causes, ": {error}");
            causes
        });
        return Err(LoadError::NoSystemRoots(causes));
    }
    Ok(roots)
}

/// A hash of the pieces that were read, each with its length.
#[derive(Default)]
struct Content(Sha256);

impl Content {
    fn add(&mut self, piece: &[u8]) {
        self.0.update((piece.len() as u64).to_be_bytes());
        self.0.update(piece);
    }
}

/// Takes any certificate. The server must still have the key of the one that it shows.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The error of TLS in an error of a stream, if it is one.
#[must_use]
pub fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Why TLS failed, and what to do about it. `section` is the section of the configuration that names the files, and `name` the
/// name that was verified; `None` after the handshake.
#[must_use]
pub fn explain(error: &io::Error, files: &Files, section: &str, name: Option<&str>) -> String {
    use CertificateError as Bad;
    use rustls::Error as Tls;
    match tls_error(error) {
        Some(Tls::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => match files.trust {
            Trust::System => format!(
                "its certificate is from no authority that the system trusts: name the file of its authority in {section}.ca, or \
                 check which server answers there"
            ),
            Trust::Authorities(_) | Trust::Anyone => format!(
                "its certificate is from no authority in {section}.ca: name the right file, or check which server answers there"
            ),
        },
        Some(Tls::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. })) => {
            format!(
                "its certificate is not for {}: use a name that it contains, or issue one for this name",
                name.unwrap_or_default()
            )
        }
        Some(Tls::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
            "its certificate has expired: renew it".to_owned()
        }
        Some(Tls::InvalidMessage(_)) => {
            "it does not speak TLS: use its TLS port, or remove TLS from the configuration".to_owned()
        }
        Some(Tls::AlertReceived(alert)) => {
            explain_alert(*alert, &format!("{section}.cert and {section}.key"))
        }
        _ => error.to_string(),
    }
}

/// Why TLS failed after the handshake, and what to do about it.
#[must_use]
pub fn explain_later(error: &rustls::Error) -> String {
    match error {
        rustls::Error::AlertReceived(alert) => {
            explain_alert(*alert, "`cert` and `key` in its section for TLS")
        }
        error => error.to_string(),
    }
}

/// What a server means that ends TLS with this alert. `keys` are those of the configuration that name our certificate.
fn explain_alert(alert: AlertDescription, keys: &str) -> String {
    match alert {
        AlertDescription::CertificateRequired => format!("it demands a client certificate: give {keys}"),
        alert => format!("it refuses our side of TLS ({alert:?}): check {keys}"),
    }
}
