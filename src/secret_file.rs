//! Files with secrets: they are refused if other users can read them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

/// Why a secret cannot be read from its file. `what` is the setting or option that names the file.
#[derive(Debug, Error)]
pub enum SecretFileError {
    #[error("cannot read {what} {path}: {cause}")]
    Io { what: &'static str, path: PathBuf, cause: io::Error },
    #[error("{what} {path} can be read by others: chmod 600 {path}")]
    Exposed { what: &'static str, path: PathBuf },
}

/// The whole file.
///
/// # Errors
/// When the file cannot be read, or others can read it too.
pub fn read(what: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let failed = |cause| SecretFileError::Io { what, path: path.to_owned(), cause };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Exposed { what, path: path.to_owned() });
    }
    fs::read(path).map(Zeroizing::new).map_err(failed)
}
