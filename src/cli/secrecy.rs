//! Secrets that somebody types as an argument by mistake: no message repeats them.

use std::ffi::OsString;
use std::io::{self, Write};

use clap::error::{ContextKind, ContextValue};

use crate::vocabulary::id::{KeyId, OrgId};

/// What stands in the place of a secret.
const HIDDEN: &str = "…";
/// The middle of every key, whatever its prefix.
const KEY_MARK: &str = "_sk_";
/// The beginning of every operator's token.
const TOKEN_MARK: &str = "kgadmin_";
/// The shortest run of letters and digits that counts as a secret without a mark. Ids, which are no secrets, are
/// recognised by their form.
const RANDOM_LEN: usize = 20;

/// The message for a secret in the place of an id.
pub(super) const NOT_AN_ARGUMENT: &str = "this looks like a secret, and other users of this machine can see arguments; \
     `keygate keys show --secret-stdin` reads a secret from standard input and shows its key";

/// Parses the id of a key.
///
/// # Errors
/// The form of an id. The text itself is not repeated.
pub(super) fn parse_key_id(text: &str) -> Result<KeyId, String> {
    KeyId::parse(text)
        .map_err(|error| if looks_secret(text) { NOT_AN_ARGUMENT.to_owned() } else { error.to_string() })
}

/// A name or a note, which is shown to people.
///
/// # Errors
/// If it has a key or a token in it.
pub(super) fn parse_shown_text(text: &str) -> Result<String, &'static str> {
    if words(text).any(is_marked) {
        return Err("this has a secret in it, and other people read it");
    }
    Ok(text.to_owned())
}

/// Whether a text has a key in it, a token, or another long random word.
pub(super) fn looks_secret(text: &str) -> bool {
    secrets_in(text).next().is_some()
}

/// The words of a text: a key or a token is one word.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
}

fn secrets_in(text: &str) -> impl Iterator<Item = &str> {
    words(text).filter(|word| KeyId::parse(word).is_err() && OrgId::parse(word).is_err()).flat_map(|word| {
        let marked = Some(word).filter(|word| is_marked(word));
        let runs = word.split(['_', '-']).filter(|run| is_random(run));
        marked.into_iter().chain(runs)
    })
}

fn is_marked(word: &str) -> bool {
    let behind = |mark: &str| word.find(mark).is_some_and(|at| word.len() > at + mark.len());
    behind(KEY_MARK) || word.starts_with(TOKEN_MARK) && behind(TOKEN_MARK)
}

fn is_random(run: &str) -> bool {
    let has = |class: fn(&u8) -> bool| run.as_bytes().iter().any(class);
    run.len() >= RANDOM_LEN && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic)
}

/// The secrets among the arguments of this process.
#[derive(Clone, Debug, Default)]
pub(super) struct Typed(Vec<String>);

impl Typed {
    pub(super) fn among(arguments: &[OsString]) -> Self {
        let texts: Vec<_> = arguments.iter().skip(1).map(|argument| argument.to_string_lossy()).collect();
        let mut secrets: Vec<String> =
            texts.iter().flat_map(|text| secrets_in(text)).map(str::to_owned).collect();
        // A longer one first: it may have a shorter one in it.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self(secrets)
    }

    fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), HIDDEN))
    }

    /// Prints a wrong argument to standard error, or help to standard output, without a secret, and without what stands
    /// in the place of an id: it may be a secret of any form.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub(super) fn print_usage(&self, mut usage: clap::Error) -> io::Result<()> {
        let of_an_id = matches!(usage.get(ContextKind::InvalidArg), Some(ContextValue::String(argument))
            if argument.contains("KEY_ID") || argument.contains("ORG"));
        if of_an_id && usage.get(ContextKind::InvalidValue).is_some() {
            usage.insert(ContextKind::InvalidValue, ContextValue::String(HIDDEN.to_owned()));
        }
        if self.0.is_empty() || !usage.use_stderr() {
            return usage.print();
        }
        io::stderr().write_all(self.hide(&usage.render().to_string()).as_bytes())
    }
}

/// An output that hides the secrets among the arguments. Lines are written whole, because a secret may come in parts.
#[derive(Debug)]
pub(super) struct Hiding<W> {
    output: W,
    typed: Typed,
    waiting: Vec<u8>,
}

impl<W: Write> Hiding<W> {
    pub(super) const fn new(output: W, typed: Typed) -> Self {
        Self { output, typed, waiting: Vec::new() }
    }

    fn release(&mut self) -> io::Result<()> {
        let text = self.typed.hide(&String::from_utf8_lossy(&self.waiting));
        self.waiting.clear();
        self.output.write_all(text.as_bytes())
    }
}

impl<W: Write> Write for Hiding<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.typed.0.is_empty() {
            return self.output.write(bytes);
        }
        self.waiting.extend_from_slice(bytes);
        if bytes.contains(&b'\n') {
            self.release()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.release()?;
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tokens_and_long_random_words_are_secrets_and_ids_and_names_are_not() {
        for secret in [
            "fh_live_sk_0123456789abcdefghijABCDEFGHIJ01abcDEF",
            "acme_test_sk_x",
            "--org=fh_live_sk_0123",
            "kgadmin_0123456789012345678901234567890123456789",
            "sk-4bC2eF6hJ8kL0mN2pQ4rS6tU8",
            "key_01J9ZQ6T5N8XKD3V4WPYB7C2H",
            "0123456789abcdef0123456789abcdef",
        ] {
            assert!(looks_secret(secret), "{secret}");
        }
        for harmless in [
            "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM",
            "org_01J9ZQ6T5N8XKD3V4WPYB7C2HM",
            "fh_live_sk_",
            "kgadmin_",
            "Example Ltd of 2026",
            "http://127.0.0.1:9465",
            "a-long-name-of-a-service-with-a-2",
            "/etc/keygate/keygate.toml",
            "2026-01-31T12:00:00Z",
        ] {
            assert!(!looks_secret(harmless), "{harmless}");
        }
    }

    #[test]
    fn an_output_hides_a_secret_that_is_written_in_parts() {
        let secret = "fh_live_sk_0123456789";
        let typed = Typed::among(&["keygate".into(), format!("--org={secret}").into()]);
        let mut written = Vec::new();
        let mut hiding = Hiding::new(&mut written, typed);
        for part in ["no organisation ", "fh_live_sk_01234", "56789\nmore: ", secret] {
            hiding.write_all(part.as_bytes()).unwrap();
        }
        hiding.flush().unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), "no organisation …\nmore: …");
    }
}
