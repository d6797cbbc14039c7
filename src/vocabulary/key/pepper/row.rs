//! The row of a store about its pepper, and what does not fit it.

use std::fmt;

use thiserror::Error;

use super::{Check, draw_hex};

/// What a store says of its pepper: one line of text in its `meta`.
///
/// `1`, then each after a blank: a name that changes with the row, which is a number that grows, a `-` and random digits; the salt; the check value of the current pepper, or
/// `none` for a store without one; that of the pepper before while records under it remain, else `-`; the peppers before,
/// newest first, each encrypted under the current one.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) text: Box<str>,
    pub(super) name: Box<str>,
    pub(super) number: u64,
    pub(super) salt: String,
    pub(super) current: Option<Check>,
    pub(super) before: Option<Check>,
    pub(super) wrapped: Vec<String>,
}

const VERSION: &str = "1";
const NO_PEPPER: &str = "none";
const NOTHING_BEFORE: &str = "-";

impl Row {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some(VERSION) {
            return None;
        }
        let (name, salt) = (words.next()?, words.next()?);
        let number = name.split('-').next()?.parse().ok()?;
        let check = |word: &str, nothing| match word {
            word if word == nothing => Some(None),
            word => Check::parse(word).map(Some),
        };
        let (current, before) = (check(words.next()?, NO_PEPPER)?, check(words.next()?, NOTHING_BEFORE)?);
        let wrapped = words.map(str::to_owned).collect();
        Some(Self {
            text: text.into(),
            name: name.into(),
            number,
            salt: salt.to_owned(),
            current,
            before,
            wrapped,
        })
    }

    /// The number and the salt of the row after this one.
    pub(super) fn next(&self) -> (u64, String) {
        (self.number.saturating_add(1), self.salt.clone())
    }

    /// Whether a store has said this before it said `other`.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        self.salt == other.salt && self.number < other.number
    }

    /// A row that follows another one, or the first.
    pub(super) fn draw(
        (number, salt): (u64, String),
        current: Option<Check>,
        before: Option<Check>,
        wrapped: Vec<String>,
    ) -> Result<Self, getrandom::Error> {
        let name = format!("{number}-{}", draw_hex::<8>()?);
        let current_word = current.as_ref().map_or(NO_PEPPER, Check::as_str);
        let before_word = before.as_ref().map_or(NOTHING_BEFORE, Check::as_str);
        let words = [VERSION, &name, &salt, current_word, before_word];
        let text = words.into_iter().chain(wrapped.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        Ok(Self { text: text.into(), name: name.into(), number, salt, current, before, wrapped })
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Row").field(&self.name).finish()
    }
}

/// Why the peppers that the configuration names are not those of the store.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Misfit {
    #[error(
        "{file}: the store was made without a pepper, and under one no key of it opens: remove the setting; `keygate store \
         migrate` moves keys to a store with a pepper"
    )]
    NotWanted { file: Box<str> },
    #[error(
        "the store was made under a pepper (check value {expected}), and the configuration names none: set keys.pepper_file \
         to the file that has it"
    )]
    Missing { expected: Check },
    #[error(
        "{file}: this is not the pepper of the store, and under it no key of the store opens: its check value is {found}, and \
         the store's is {expected}; bring the right file back"
    )]
    Another { file: Box<str>, found: Check, expected: Check },
    #[error(
        "records under the pepper before remain in the store (check value {expected}): name its file second in \
         keys.pepper_files until `keygate store reseal` has moved them"
    )]
    BeforeMissing { expected: Check },
    /// The store has no row, and its records show it.
    #[error("{file}: the records of the store do not open under this pepper: bring the right file back")]
    Sealed { file: Box<str> },
    #[error(
        "the records of the store have a seal, and the configuration names no pepper: set keys.pepper_file to the file that \
         has it"
    )]
    SealedWithout,
    #[error(
        "what the store says of its pepper cannot be read: it was written by a newer keygate, or changed by hand"
    )]
    Unreadable,
}
