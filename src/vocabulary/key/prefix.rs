//! The first word of a key, and the words that the keys of one store begin with.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The first word of a key, as `fh` in `fh_live_sk_…`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(Box<str>);

/// The first words of ids and of operators' tokens, and the words that a key has in its middle. A key that began with one
/// of them would be taken for something else.
const TAKEN: [&str; 8] = ["key", "org", "req", "evt", "kgadmin", "live", "test", "sk"];

impl Prefix {
    /// # Errors
    /// Anything but 1 to 16 lower-case letters and digits that start with a letter; and a word that begins something
    /// else, such as the `key` of a key's id.
    pub fn parse(text: &str) -> Result<Self, InvalidPrefix> {
        let bytes = text.as_bytes();
        let well_formed = (1..=16).contains(&bytes.len())
            && bytes[0].is_ascii_lowercase()
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !well_formed {
            return Err(InvalidPrefix::Form);
        }
        if TAKEN.contains(&text) { Err(InvalidPrefix::Taken) } else { Ok(Self(text.into())) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Everything before the random digits, as in `fh_live_sk_`.
    #[must_use]
    pub fn head(&self, environment: super::Environment) -> String {
        format!("{self}_{environment}_sk_")
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self("fh".into())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Prefix {
    type Error = InvalidPrefix;

    fn try_from(text: String) -> Result<Self, InvalidPrefix> {
        Self::parse(&text)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.0.into()
    }
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidPrefix {
    #[error("a key prefix is 1 to 16 lower-case letters and digits and starts with a letter, as in \"fh\"")]
    Form,
    #[error(
        "this word begins an id or an operator's token, or stands in the middle of every key; take another, as in \"fh\""
    )]
    Taken,
}

/// The prefixes of one store's keys. The first is that of every secret which names none, such as those of a store that an
/// older release has made.
///
/// As a store keeps it: the words in the order in which they came, separated by blanks, a `-` before one that is not
/// accepted any more; and `?` at the front if there may be keys with other prefixes, because a release that did not write
/// prefixes down has made keys here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prefixes {
    words: Vec<Word>,
    is_complete: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Word {
    prefix: Prefix,
    is_accepted: bool,
}

const INCOMPLETE: &str = "?";
const RETIRED: char = '-';

impl Prefixes {
    /// The most that a store accepts at once, so that reading a key costs little; and the most that it remembers.
    pub const MOST: usize = 8;
    const MOST_REMEMBERED: usize = 64;

    /// The prefixes of a store whose keys all have this one, as far as is known; `is_complete` tells whether it is known.
    #[must_use]
    pub fn new(first: Prefix, is_complete: bool) -> Self {
        Self { words: vec![Word { prefix: first, is_accepted: true }], is_complete }
    }

    /// That of every secret which names none.
    #[must_use]
    pub fn first(&self) -> &Prefix {
        // There is always one: a list without words does not parse.
        &self.words[0].prefix
    }

    /// The accepted ones, the oldest first.
    pub fn accepted(&self) -> impl DoubleEndedIterator<Item = &Prefix> {
        self.words.iter().filter(|word| word.is_accepted).map(|word| &word.prefix)
    }

    /// Those that are not accepted any more.
    pub fn removed(&self) -> impl Iterator<Item = &Prefix> {
        self.words.iter().filter(|word| !word.is_accepted).map(|word| &word.prefix)
    }

    #[must_use]
    pub fn accepts(&self, prefix: &Prefix) -> bool {
        self.accepted().any(|accepted| accepted == prefix)
    }

    /// Whether no key of the store can have another prefix.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether there is nothing but the first. Such a list needs no gateway to know of it: it is what the configuration
    /// of each says.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.words.len() == 1
    }

    /// With this prefix too.
    ///
    /// # Errors
    /// [`TooManyPrefixes`].
    pub fn with(&self, prefix: &Prefix) -> Result<Self, TooManyPrefixes> {
        let mut words = self.words.clone();
        match words.iter_mut().find(|word| word.prefix == *prefix) {
            Some(word) => word.is_accepted = true,
            None => words.push(Word { prefix: prefix.clone(), is_accepted: true }),
        }
        let accepted = words.iter().filter(|word| word.is_accepted).count();
        if accepted > Self::MOST || words.len() > Self::MOST_REMEMBERED {
            return Err(TooManyPrefixes);
        }
        Ok(Self { words, is_complete: self.is_complete })
    }

    /// Without this prefix. It stays known, because old records may have it.
    #[must_use]
    pub fn without(&self, prefix: &Prefix) -> Self {
        let mut words = self.words.clone();
        words.iter_mut().filter(|word| word.prefix == *prefix).for_each(|word| word.is_accepted = false);
        Self { words, is_complete: self.is_complete }
    }

    /// The one that new keys get where the configuration wants `wanted`: that one, if it is accepted and every gateway
    /// knows it; else the newest that all of them know. `gateways` are the lists that the gateways use; `None` for one that
    /// knows of no list and accepts the prefix of its configuration only.
    #[must_use]
    pub fn to_mint(&self, wanted: &Prefix, gateways: &[Option<Self>]) -> &Prefix {
        let knows = |list: &Option<Self>, prefix: &Prefix| {
            list.as_ref().map_or(prefix == self.first(), |list| list.accepts(prefix))
        };
        let known_to_all = |prefix: &Prefix| gateways.iter().all(|list| knows(list, prefix));
        let own = self.accepted().find(|accepted| *accepted == wanted);
        let mut candidates = own.into_iter().chain(self.accepted().rev());
        let known = candidates.find(|prefix| known_to_all(prefix));
        known.or_else(|| self.accepted().next_back()).unwrap_or_else(|| self.first())
    }
}

impl fmt::Display for Prefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let front = (!self.is_complete).then(|| INCOMPLETE.to_owned());
        let words = self.words.iter().map(|Word { prefix, is_accepted }| {
            if *is_accepted { prefix.to_string() } else { format!("{RETIRED}{prefix}") }
        });
        f.write_str(&front.into_iter().chain(words).collect::<Vec<_>>().join(" "))
    }
}

impl FromStr for Prefixes {
    type Err = UnreadablePrefixes;

    fn from_str(text: &str) -> Result<Self, UnreadablePrefixes> {
        let mut words = Vec::new();
        let mut is_complete = true;
        for (n, word) in text.split(' ').enumerate() {
            if n == 0 && word == INCOMPLETE {
                is_complete = false;
                continue;
            }
            let retired = word.strip_prefix(RETIRED);
            let prefix = Prefix::parse(retired.unwrap_or(word)).map_err(|_| UnreadablePrefixes)?;
            words.push(Word { prefix, is_accepted: retired.is_none() });
        }
        let accepted = words.iter().filter(|word| word.is_accepted).count();
        let fits = !words.is_empty() && accepted <= Self::MOST && words.len() <= Self::MOST_REMEMBERED;
        if fits { Ok(Self { words, is_complete }) } else { Err(UnreadablePrefixes) }
    }
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "the store accepts {} prefixes already, which is the most; remove one that no key has any more with `keygate store \
     remove-prefix`",
    Prefixes::MOST
)]
pub struct TooManyPrefixes;

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the list of prefixes in the store does not read")]
pub struct UnreadablePrefixes;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::parse(text).unwrap()
    }

    fn list(text: &str) -> Prefixes {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_is_a_short_word_that_begins_nothing_else() {
        for good in ["a", "fh", "kg2", "abcdefghijklmnop", "keys", "testing"] {
            assert_eq!(prefix(good).as_str(), good);
        }
        for bad in ["", "2a", "FH", "a_b", "a-b", "ä", "abcdefghijklmnopq", "fh "] {
            assert_eq!(Prefix::parse(bad), Err(InvalidPrefix::Form), "{bad:?}");
        }
        for taken in TAKEN {
            assert_eq!(Prefix::parse(taken), Err(InvalidPrefix::Taken));
        }
    }

    #[test]
    fn a_list_grows_and_forgets_no_word() {
        let grown = list("fh").with(&prefix("kg")).unwrap();
        assert_eq!((grown.to_string(), grown.is_plain()), ("fh kg".to_owned(), false));
        let left = grown.without(&prefix("fh"));
        assert_eq!((left.to_string(), left.first().as_str()), ("-fh kg".to_owned(), "fh"));
        assert!(!left.accepts(&prefix("fh")) && left.accepts(&prefix("kg")));
        assert_eq!(left.with(&prefix("fh")).unwrap(), grown);
        assert_eq!(Prefixes::new(prefix("fh"), false).to_string(), "? fh");
        assert!(!list("? fh kg").is_complete() && list("fh").is_complete());
        let full = list("a b c d e f g h");
        assert_eq!(full.with(&prefix("i")), Err(TooManyPrefixes));
        assert!(full.without(&prefix("a")).with(&prefix("i")).is_ok());
        for bad in ["", "?", "fh  kg", "fh ?", "a b c d e f g h i", "--fh", "key"] {
            assert_eq!(bad.parse::<Prefixes>(), Err(UnreadablePrefixes), "{bad:?}");
        }
    }

    #[test]
    fn a_prefix_is_minted_only_when_every_gateway_knows_it() {
        let (all, kg) = (list("fh ab kg"), prefix("kg"));
        let knowing = |text: &str| Some(list(text));
        for (gateways, minted) in [
            (vec![], "kg"),
            (vec![knowing("fh ab kg"), knowing("fh ab kg")], "kg"),
            (vec![knowing("fh ab kg"), knowing("fh ab")], "ab"),
            (vec![knowing("fh ab"), knowing("fh")], "fh"),
            // An older release, which knows of no list.
            (vec![knowing("fh ab kg"), None], "fh"),
        ] {
            assert_eq!(all.to_mint(&kg, &gateways).as_str(), minted, "{gateways:?}");
        }
        assert_eq!(
            all.to_mint(&prefix("fh"), &[None]).as_str(),
            "fh",
            "the configuration's, though it is older"
        );
        assert_eq!(
            list("-fh ab").to_mint(&prefix("fh"), &[]).as_str(),
            "ab",
            "never one that is not accepted"
        );
        assert_eq!(list("fh").to_mint(&kg, &[]).as_str(), "fh", "not before the store has it");
    }

    proptest! {
        #[test]
        fn a_list_survives_the_store(text in "(\\? )?[a-d]( -?[e-h]{2,4}){0,5}") {
            if let Ok(list) = text.parse::<Prefixes>() {
                prop_assert_eq!(list.to_string(), text);
            }
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[-? a-z0-9A-Z]{0,40}") {
            let _ = text.parse::<Prefixes>();
        }
    }
}
