//! Commands that are printed for the user to type.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;

/// The program as the user called it, for commands that it prints: by a path, or by the name that a shell finds.
pub(super) struct Program(String);

impl Program {
    /// `first` is the first argument of the process.
    pub(super) fn called(first: Option<&OsString>) -> Self {
        let called = first.map(|name| name.to_string_lossy()).filter(|name| name.contains('/'));
        Self(called.map_or_else(|| "keygate".to_owned(), |path| word(&path).into_owned()))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text as one word of a shell's command, in quotes if it needs them.
pub(super) fn word(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text.into() } else { quoted(text).into() }
}

/// The same, always in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_named_by_the_path_that_it_was_called_by() {
        for (called, named) in [
            (Some("target/debug/keygate"), "target/debug/keygate"),
            (Some("./keygate"), "./keygate"),
            (Some("/home/an Ada's/keygate"), "'/home/an Ada'\\''s/keygate'"),
            (Some("keygate"), "keygate"),
            (Some(""), "keygate"),
            (None, "keygate"),
        ] {
            assert_eq!(Program::called(called.map(OsString::from).as_ref()).to_string(), named);
        }
    }
}
