//! Certificates and private keys in PEM files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use crate::secret_file::{self, SecretFileError};

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
    #[error(transparent)]
    Key(#[from] SecretFileError),
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

/// The private key in a file that [`secret_file`] accepts.
///
/// # Errors
/// [`PemError`], whose text says what to do.
pub fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    let text = secret_file::read("the key", file)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|cause| match cause {
        pem::Error::NoItemsFound => PemError::NoKey(file.to_owned()),
        cause => PemError::Pem { file: file.to_owned(), cause },
    })
}
