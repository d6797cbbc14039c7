//! Certificates and private keys in PEM files, for TLS towards clients and towards the store.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use zeroize::Zeroizing;

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum PemError {
    #[error("cannot read {file}: {cause}")]
    Io { file: PathBuf, cause: io::Error },
    #[error("{file} is no PEM: {cause}; it must hold text between BEGIN and END lines")]
    Pem { file: PathBuf, cause: pem::Error },
    #[error("there is no certificate in {0}; name the file with the certificate, and its chain behind it")]
    NoCertificate(PathBuf),
    #[error("there is no private key in {0}; name the file with the key of the certificate, not encrypted")]
    NoKey(PathBuf),
    #[error("{0} can be read by others: chmod 600 {0}")]
    Exposed(PathBuf),
}

/// Every certificate in a file, in the order of the file. There is at least one.
///
/// # Errors
/// [`PemError`], whose text says what to do.
pub fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let text = fs::read(file).map_err(|cause| PemError::Io { file: file.to_owned(), cause })?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|cause| PemError::Pem { file: file.to_owned(), cause })?;
    if chain.is_empty() { Err(PemError::NoCertificate(file.to_owned())) } else { Ok(chain) }
}

/// The private key in a file that only its owner can read.
///
/// # Errors
/// [`PemError`], whose text says what to do.
pub fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    let failed = |cause| PemError::Io { file: file.to_owned(), cause };
    if is_exposed(&fs::metadata(file).map_err(failed)?) {
        return Err(PemError::Exposed(file.to_owned()));
    }
    let text = Zeroizing::new(fs::read(file).map_err(failed)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|cause| match cause {
        pem::Error::NoItemsFound => PemError::NoKey(file.to_owned()),
        cause => PemError::Pem { file: file.to_owned(), cause },
    })
}

/// Whether others than its owner can read a key. Where the owner is root, a group may read it: that is how
/// orchestrators and certificate tools give a key to a process that is not root.
fn is_exposed(metadata: &Metadata) -> bool {
    let others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    metadata.mode() & others != 0
}
