//! The tools that every part which handles keys needs, made from the settings and the secrets that they name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::config::KeySettings;
use crate::lifecycle::{self, RetentionSettings, SignupSettings};
use crate::secret_file::{self, SecretFileError};
use crate::vocabulary::audit::Chain;
use crate::vocabulary::key::record::Sealer;
use crate::vocabulary::key::{Digester, KeyFormat, Pepper, Peppers, Prefix};

/// Why a secret of the installation cannot be used.
#[derive(Debug, Error)]
pub enum SecretError {
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error(
        "{what} {path} is too short: write at least 32 random bytes, for instance with `openssl rand -base64 48`"
    )]
    TooShort { what: &'static str, path: PathBuf },
    /// The mark would be a part of the secret.
    #[error(
        "{what} {path} begins with a byte-order mark, which an editor has put there and nobody sees: save it without one"
    )]
    Marked { what: &'static str, path: PathBuf },
}

impl SecretError {
    /// The setting that names the file.
    #[must_use]
    pub const fn what(&self) -> &'static str {
        match self {
            Self::File(error) => error.what(),
            Self::TooShort { what, .. } | Self::Marked { what, .. } => what,
        }
    }
}

/// The tools that every part which handles keys needs.
#[derive(Debug)]
pub struct KeyTools {
    pub prefix: Prefix,
    pub format: KeyFormat,
    pub sealer: Sealer,
    /// The peppers, which the sealer shares: what the store says of them is learnt once.
    pub peppers: Peppers,
    /// The key of the audit trail.
    pub chain: Chain,
    /// How long a change that takes a right away waits until all gateways have confirmed it.
    pub ack_wait: Duration,
    /// The most live keys of an organisation.
    pub max_per_org: u32,
}

impl KeyTools {
    /// Reads the secrets that the settings name.
    ///
    /// # Errors
    /// When a secret cannot be read, or is too short.
    pub fn new(settings: &KeySettings) -> Result<Self, SecretError> {
        let peppers = read_secrets("keys.pepper_file", &settings.pepper_files)?;
        let audit = read_secrets("audit.key_file", &settings.audit_key_files)?;
        Ok(Self {
            prefix: settings.prefix.clone(),
            format: KeyFormat::new(&settings.prefix, settings.accept_without_checksum),
            sealer: Sealer::under(peppers.clone()),
            chain: Chain::under(if audit.are_set() { audit } else { peppers.clone() }),
            peppers,
            ack_wait: settings.ack_wait,
            max_per_org: settings.max_per_org,
        })
    }

    /// The settings of a lifecycle.
    #[must_use]
    pub fn lifecycle(&self, signup: SignupSettings, retention: &RetentionSettings) -> lifecycle::Settings {
        lifecycle::Settings {
            prefix: self.prefix.clone(),
            format: self.format.clone(),
            digester: Digester::under(self.peppers.clone()),
            peppers: self.peppers.clone(),
            chain: self.chain.clone(),
            signup,
            max_per_org: self.max_per_org,
            ack_wait: self.ack_wait,
            retention: retention.retention,
            keep_ended: retention.keep_ended,
        }
    }
}

fn read_secrets(what: &'static str, files: &[PathBuf]) -> Result<Peppers, SecretError> {
    let read = |path: &PathBuf| Ok((read_secret(what, path)?, format!("{what} {}", path.display())));
    files.iter().map(read).collect::<Result<_, _>>().map(Peppers::of_files)
}

/// The byte-order marks of UTF-8 and of both kinds of UTF-16.
const MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];

/// The secret in a file.
///
/// # Errors
/// When it cannot be read, is too short, or begins with a byte-order mark.
pub fn read_secret(what: &'static str, path: &Path) -> Result<Pepper, SecretError> {
    let text = secret_file::read(what, path)?;
    if MARKS.iter().any(|mark| text.starts_with(mark)) {
        return Err(SecretError::Marked { what, path: path.to_owned() });
    }
    let too_short = |_| SecretError::TooShort { what, path: path.to_owned() };
    Pepper::new(text.trim_ascii_end().to_vec()).map_err(too_short)
}
