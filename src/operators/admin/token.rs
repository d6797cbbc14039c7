//! Tokens of operators for the API over TCP: they are made here, kept as digests in a file, and looked up there.
//!
//! A line of the file is a name, the SHA-256 of the token in hexadecimal digits, and the time when it ends, separated
//! by blanks. Empty lines and lines that begin with `#` are ignored. Two tokens may have the same name, so that a
//! token can be replaced without a gap.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::secret_file::{self, SecretFileError};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::{Digest, random_token};

/// The beginning of every token. It distinguishes tokens from keys, for people and for scanners.
const HEAD: &str = "kgadmin_";
/// Random base62 digits: 238 bits.
const DIGITS: usize = 40;

/// The name of the operator that a token is for, as the audit trail has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenName(Box<str>);

impl TokenName {
    /// # Errors
    /// When it is not 1 to 64 letters, digits, dots, dashes and underscores.
    pub fn parse(text: &str) -> Result<Self, InvalidTokenName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let well_formed = (1..=64).contains(&text.len()) && text.bytes().all(allowed);
        if well_formed { Ok(Self(text.into())) } else { Err(InvalidTokenName) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a token's name is 1 to 64 letters, digits, dots, dashes and underscores")]
pub struct InvalidTokenName;

/// A token that was just made.
pub struct NewToken {
    secret: Zeroizing<String>,
    line: String,
}

impl NewToken {
    /// Draws a token that ends after `life`.
    ///
    /// # Errors
    /// When the operating system gives no random numbers.
    pub fn draw(name: &TokenName, now: UnixMillis, life: Duration) -> Result<Self, getrandom::Error> {
        let secret = random_token(HEAD, DIGITS, 0)?;
        let digest: String =
            Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!("{} {digest} {}", name.as_str(), now.plus(life));
        Ok(Self { secret, line })
    }

    /// The token itself, to be shown once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.secret
    }

    /// Its line in the file of tokens.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewToken(redacted)")
    }
}

#[derive(Debug, Error)]
pub enum TokenFileError {
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error(
        "admin.tokens_file {path}, line {line}: expected a name, 64 hexadecimal digits and a time, as `keygate admin token` \
         prints them"
    )]
    Line { path: PathBuf, line: usize },
}

/// The tokens of a file.
#[derive(Debug)]
pub(super) struct Tokens(Vec<Token>);

#[derive(Debug)]
struct Token {
    name: TokenName,
    digest: Digest,
    ends_at: UnixMillis,
}

impl Tokens {
    /// # Errors
    /// When the file cannot be read, when others can read it too, or when a line is not a token.
    pub(super) fn read(path: &Path) -> Result<Self, TokenFileError> {
        let bytes = secret_file::read("admin.tokens_file", path)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let parse = |(n, line)| {
            parse(line).ok_or_else(|| TokenFileError::Line { path: path.to_owned(), line: n + 1 })
        };
        lines.map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// The name of this token; `None` when it is unknown or has ended. It takes the same time for every token.
    pub(super) fn find(&self, presented: &[u8], now: UnixMillis) -> Option<&TokenName> {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        let mut found = None;
        for token in &self.0 {
            let valid = token.digest.as_bytes().ct_eq(&digest) & Choice::from(u8::from(token.ends_at > now));
            if bool::from(valid) {
                found = Some(&token.name);
            }
        }
        found
    }
}

fn parse(line: &str) -> Option<Token> {
    let mut parts = line.split_ascii_whitespace();
    let (name, digest, ends_at) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Token {
        name: TokenName::parse(name).ok()?,
        digest: serde_json::from_value(digest.into()).ok()?,
        ends_at: UnixMillis::parse(ends_at).ok()?,
    })
    .filter(|_| parts.next().is_none())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_token_is_found_until_it_ends_and_no_other_is() {
        let [ada, bob] = ["ada", "bob"].map(|name| TokenName::parse(name).unwrap());
        let tokens = [
            NewToken::draw(&ada, NOW, HOUR).unwrap(),
            NewToken::draw(&bob, NOW, HOUR * 2).unwrap(),
            NewToken::draw(&ada, NOW, HOUR * 3).unwrap(),
        ];
        let text = format!("# ours\n\n{}\n{}\n {} \n", tokens[0].line(), tokens[1].line(), tokens[2].line());
        let read = Tokens::read(file(&text, 0o600).path()).unwrap();
        let find = |n: usize, now| read.find(tokens[n].expose().as_bytes(), now);
        assert_eq!([0, 1, 2].map(|n| find(n, NOW)), [Some(&ada), Some(&bob), Some(&ada)]);
        assert_eq!([0, 1, 2].map(|n| find(n, NOW.plus(HOUR))), [None, Some(&bob), Some(&ada)]);
        assert_eq!(read.find(b"", NOW), None);
        assert_eq!(read.find(tokens[0].line().as_bytes(), NOW), None);
        assert!(!text.contains(&tokens[0].expose()[8..]), "the file holds digests alone");
    }

    #[test]
    fn a_file_that_others_can_read_or_that_has_a_bad_line_is_refused() {
        let line = NewToken::draw(&TokenName::parse("ada").unwrap(), NOW, HOUR).unwrap().line().to_owned();
        let error = Tokens::read(file(&line, 0o644).path()).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        for bad in ["ada", "ada 12 2026-01-01T00:00:00Z", &line.replace("ada", "a/b"), &format!("{line} x")] {
            let error = Tokens::read(file(&format!("{line}\n{bad}"), 0o600).path()).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{bad}: {error}");
        }
    }
}
