//! Files with secrets: they are refused if other users can read them. The same rule holds for every secret: peppers,
//! keys, passwords, tokens, and the private keys of certificates.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

/// The largest file that is read, in bytes. A larger one is not what its setting means.
const LARGEST: u64 = 4 << 20;

/// Why a secret cannot be read from its file. `what` is the setting or option that names the file.
#[derive(Debug, Error)]
pub enum SecretFileError {
    #[error("cannot read {what} {path}: {cause}")]
    Io { what: &'static str, path: PathBuf, cause: io::Error },
    #[error("{what} {path} can be read by others: chmod 600 {path}")]
    Exposed { what: &'static str, path: PathBuf },
    #[error("{what} {path} is larger than {} MiB: name the file with the secret", LARGEST >> 20)]
    TooLarge { what: &'static str, path: PathBuf },
}

impl SecretFileError {
    /// The setting or option that names the file.
    #[must_use]
    pub const fn what(&self) -> &'static str {
        match self {
            Self::Io { what, .. } | Self::Exposed { what, .. } | Self::TooLarge { what, .. } => what,
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. } | Self::Exposed { path, .. } | Self::TooLarge { path, .. } => path,
        }
    }
}

/// The open file, to read it bit by bit.
///
/// # Errors
/// When the file cannot be opened, or others can read it too.
pub fn open(what: &'static str, path: &Path) -> Result<File, SecretFileError> {
    let failed = |cause| SecretFileError::Io { what, path: path.to_owned(), cause };
    let file = File::open(path).map_err(failed)?;
    // Of the open file: another one could take its place between two looks at the path.
    let metadata = file.metadata().map_err(failed)?;
    if is_exposed(metadata.uid(), metadata.mode()) {
        return Err(SecretFileError::Exposed { what, path: path.to_owned() });
    }
    Ok(file)
}

/// The whole file.
///
/// # Errors
/// When the file cannot be read, or others can read it too, or it has more than 4 MiB.
pub fn read(what: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let failed = |cause| SecretFileError::Io { what, path: path.to_owned(), cause };
    let file = open(what, path)?;
    // With room for all of it from the start: a buffer that grows leaves copies of the secret behind.
    let room = usize::try_from(file.metadata().map_err(failed)?.len().min(LARGEST) + 1).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(SecretFileError::TooLarge { what, path: path.to_owned() });
    }
    Ok(bytes)
}

/// Whether others than its owner can use a file. Where the owner is root, the group may read it: that is how
/// orchestrators, such as Kubernetes with `fsGroup`, and certificate tools give a secret to a process that is not root.
const fn is_exposed(owner: u32, mode: u32) -> bool {
    mode & if owner == 0 { 0o037 } else { 0o077 } != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_may_read_a_file_that_root_owns_and_others_never() {
        for (owner, mode, exposed) in [
            (1000, 0o100_600, false),
            (1000, 0o100_400, false),
            (1000, 0o100_440, true),
            (1000, 0o100_604, true),
            (0, 0o100_600, false),
            (0, 0o100_440, false),
            (0, 0o100_640, false),
            (0, 0o100_660, true),
            (0, 0o100_444, true),
            (0, 0o100_644, true),
        ] {
            assert_eq!(is_exposed(owner, mode), exposed, "{owner} {mode:o}");
        }
    }
}
