//! Tokens of operators for the API over TCP: they are made here, kept as digests in a file, and looked up there.
//!
//! A line of the file is a name, the SHA-256 of the token in hexadecimal digits, the time when it ends, its role, and
//! the organisations that it is bound to with commas between them, all separated by blanks. Without organisations the
//! token is for all. Without a role it may do everything: such lines are of releases that had no roles, and a release
//! that has none reads no other. Empty lines and lines that begin with `#` are ignored. Two tokens may have the same
//! name, so that a token can be replaced without a gap.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;
use zeroize::Zeroizing;

use super::role::{Grant, Role};
use crate::secret_file::{self, SecretFileError};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::{Digest, random_token};
use crate::vocabulary::line_numbers::describe_lines;

/// The beginning of every token. It distinguishes tokens from keys, for people and for scanners.
const HEAD: &str = "kgadmin_";
/// Random base62 digits: 238 bits.
const DIGITS: usize = 40;

/// The name of the operator that a token is for, as the audit trail has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenName(Box<str>);

impl TokenName {
    /// The longest name, in characters.
    pub const MAX_LEN: usize = 64;

    /// # Errors
    /// When it is not 1 to 64 letters, digits, dots, dashes and underscores.
    pub fn parse(text: &str) -> Result<Self, InvalidTokenName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let well_formed = (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed);
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
    /// Draws a token that ends after `life`, and may do what `grant` says.
    ///
    /// # Errors
    /// When the operating system gives no random numbers.
    pub fn draw(
        name: &TokenName,
        grant: &Grant,
        now: UnixMillis,
        life: Duration,
    ) -> Result<Self, getrandom::Error> {
        let secret = random_token(HEAD, DIGITS, 0)?;
        let digest: String =
            Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut line = format!("{} {digest} {}", name.as_str(), now.plus(life));
        if *grant != Grant::EVERYTHING {
            line += &format!(" {}", grant.role);
        }
        if let Some(orgs) = &grant.orgs {
            let orgs: Vec<String> = orgs.iter().map(ToString::to_string).collect();
            line += &format!(" {}", orgs.join(","));
        }
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
        "admin.tokens_file {path}, {}: expected a name, 64 hexadecimal digits and a time, perhaps a role and organisations, as \
         `keygate admin token` prints them",
        describe_lines(lines)
    )]
    Lines { path: PathBuf, lines: Vec<usize> },
}

/// The tokens of a file.
#[derive(Debug)]
pub struct Tokens(Vec<Token>);

/// A token, without its secret.
#[derive(Clone, Debug)]
pub struct Token {
    pub name: TokenName,
    pub grant: Grant,
    pub ends_at: UnixMillis,
    digest: Digest,
}

impl Tokens {
    /// # Errors
    /// When the file cannot be read, when others can read it too, or when lines are not tokens: all of them are named.
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let bytes = secret_file::read("admin.tokens_file", path)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let (mut tokens, mut wrong) = (Vec::new(), Vec::new());
        for (n, line) in lines {
            match parse(line) {
                Some(token) => tokens.push(token),
                None => wrong.push(n + 1),
            }
        }
        if wrong.is_empty() {
            Ok(Self(tokens))
        } else {
            Err(TokenFileError::Lines { path: path.to_owned(), lines: wrong })
        }
    }

    /// All of them, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.iter()
    }

    /// This token; `None` when it is unknown or has ended. It takes the same time for every token.
    pub(super) fn find(&self, presented: &[u8], now: UnixMillis) -> Option<&Token> {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        let mut found = None;
        for token in &self.0 {
            let valid = token.digest.as_bytes().ct_eq(&digest) & Choice::from(u8::from(token.ends_at > now));
            if bool::from(valid) {
                found = Some(token);
            }
        }
        found
    }
}

fn parse(line: &str) -> Option<Token> {
    let mut parts = line.split_ascii_whitespace();
    let (name, digest, ends_at) = (parts.next()?, parts.next()?, parts.next()?);
    let grant = match (parts.next(), parts.next()) {
        (None, _) => Grant::EVERYTHING,
        (Some(role), None) => Grant { role: Role::parse(role).ok()?, orgs: None },
        (Some(role), Some(orgs)) => {
            let orgs: Option<Vec<OrgId>> = orgs.split(',').map(|org| OrgId::parse(org).ok()).collect();
            Grant { role: Role::parse(role).ok()?, orgs: Some(orgs?.into()) }
        }
    };
    Some(Token {
        name: TokenName::parse(name).ok()?,
        grant,
        ends_at: UnixMillis::parse(ends_at).ok()?,
        digest: serde_json::from_value(digest.into()).ok()?,
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
            NewToken::draw(&ada, &Grant::EVERYTHING, NOW, HOUR).unwrap(),
            NewToken::draw(&bob, &Grant::EVERYTHING, NOW, HOUR * 2).unwrap(),
            NewToken::draw(&ada, &Grant::EVERYTHING, NOW, HOUR * 3).unwrap(),
        ];
        let text = format!("# ours\n\n{}\n{}\n {} \n", tokens[0].line(), tokens[1].line(), tokens[2].line());
        let read = Tokens::read(file(&text, 0o600).path()).unwrap();
        let find = |n: usize, now| read.find(tokens[n].expose().as_bytes(), now).map(|token| &token.name);
        assert_eq!([0, 1, 2].map(|n| find(n, NOW)), [Some(&ada), Some(&bob), Some(&ada)]);
        assert_eq!([0, 1, 2].map(|n| find(n, NOW.plus(HOUR))), [None, Some(&bob), Some(&ada)]);
        assert!(read.find(b"", NOW).is_none());
        assert!(read.find(tokens[0].line().as_bytes(), NOW).is_none());
        assert!(!text.contains(&tokens[0].expose()[8..]), "the file holds digests alone");
    }

    #[test]
    fn a_file_that_others_can_read_or_that_has_a_bad_line_is_refused() {
        let ada = TokenName::parse("ada").unwrap();
        let line = NewToken::draw(&ada, &Grant::EVERYTHING, NOW, HOUR).unwrap().line().to_owned();
        let error = Tokens::read(file(&line, 0o644).path()).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        for bad in [
            "ada",
            "ada 12 2026-01-01T00:00:00Z",
            &line.replace("ada", "a/b"),
            &format!("{line} x"),
            &format!("{line} read all"),
            &format!("{line} read ,"),
            &format!("{line} read org_01J9ZQ6T5N8XKD3V4WPYB7C2HM x"),
        ] {
            let error = Tokens::read(file(&format!("{line}\n{bad}"), 0o600).path()).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{bad}: {error}");
        }
    }

    #[test]
    fn every_wrong_line_is_named() {
        let ada = TokenName::parse("ada").unwrap();
        let line = NewToken::draw(&ada, &Grant::EVERYTHING, NOW, HOUR).unwrap().line().to_owned();
        let lines = |text: &str| {
            let error = Tokens::read(file(text, 0o600).path()).unwrap_err().to_string();
            error.split_once(", line").unwrap().1.split_once(": expected a name").unwrap().0.to_owned()
        };
        assert_eq!(lines(&format!("{line}\n\nbad\n# fine\n")), " 3");
        assert_eq!(lines(&format!("bad\n{line}\nbad\nbad\n")), "s 1, 3 and 4");
    }

    #[test]
    fn a_line_says_what_its_token_may_do_and_one_without_a_role_is_for_everything() {
        let ada = TokenName::parse("ada").unwrap();
        let org = |text| OrgId::parse(text).unwrap();
        let orgs = [org("org_01J9ZQ6T5N8XKD3V4WPYB7C2HM"), org("org_01J9ZQ6T5N8XKD3V4WPYB7C2HN")];
        for grant in [
            Grant::EVERYTHING,
            Grant { role: Role::Read, orgs: None },
            Grant { role: Role::All, orgs: Some([orgs[0]].into()) },
            Grant { role: Role::Keys, orgs: Some(orgs.into()) },
        ] {
            let token = NewToken::draw(&ada, &grant, NOW, HOUR).unwrap();
            assert_eq!(parse(token.line()).unwrap().grant, grant);
            let parts = token.line().split(' ').count();
            assert_eq!(parts == 3, grant == Grant::EVERYTHING, "what an older keygate reads too");
        }
    }
}
