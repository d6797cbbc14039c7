//! The query of an operation. The query of a forwarded request is the upstream's, and keygate does not read it.

use std::borrow::Cow;

use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::rejection::{FieldError, Rejection};

/// The length of a page, where the query does not say.
const LIMIT: usize = 20;
const LIMIT_AT_MOST: usize = 100;

/// The parameters, taken out one by one.
pub(super) struct Query<'q> {
    pairs: Vec<(Cow<'q, str>, Cow<'q, str>)>,
    errors: Vec<FieldError>,
}

impl<'q> Query<'q> {
    pub(super) fn parse(query: Option<&'q str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).collect();
        Self { pairs, errors: Vec::new() }
    }

    /// The value of a parameter; `None` if it is absent, duplicate or invalid.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
        message: &'static str,
    ) -> Option<T> {
        let at = self.pairs.iter().position(|(pair, _)| pair == name)?;
        let (_, value) = self.pairs.swap_remove(at);
        if self.pairs.iter().any(|(pair, _)| pair == name) {
            self.pairs.retain(|(pair, _)| pair != name);
            self.errors.push(FieldError::new(name, "is given twice"));
            return None;
        }
        let value = read(&value);
        if value.is_none() {
            self.errors.push(FieldError::new(name, message));
        }
        value
    }

    /// Whether a parameter is given and was not taken yet.
    pub(super) fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(pair, _)| pair == name)
    }

    /// Reports a mistake that one parameter alone does not show.
    pub(super) fn wrong(&mut self, name: &'static str, message: &'static str) {
        self.errors.push(FieldError::new(name, message));
    }

    pub(super) fn limit(&mut self) -> usize {
        let digits = |text: &&str| text.bytes().all(|b| b.is_ascii_digit());
        let read = |text: &str| {
            Some(text).filter(digits)?.parse().ok().filter(|limit| (1..=LIMIT_AT_MOST).contains(limit))
        };
        self.take("limit", read, "must be a number from 1 to 100").unwrap_or(LIMIT)
    }

    pub(super) fn time(&mut self, name: &'static str) -> Option<UnixMillis> {
        // A plus that is not percent-encoded is read as a blank.
        let read =
            |text: &str| UnixMillis::parse(text).or_else(|_| UnixMillis::parse(&text.replace(' ', "+"))).ok();
        self.take(name, read, "must be a time in RFC 3339, as in 2030-01-31T12:00:00Z")
    }

    pub(super) fn cursor<C: Cursor>(&mut self) -> Option<C> {
        self.take("cursor", |text| C::parse(text), "must be a next_cursor of an earlier page")
    }

    /// Reports every mistake, also unknown parameters: a misspelt filter must not let everything through.
    pub(super) fn finish(self) -> Result<(), Rejection> {
        let Self { pairs, mut errors } = self;
        errors.extend(pairs.into_iter().map(|(name, _)| FieldError {
            field: name.chars().take(64).collect::<String>().into(),
            message: "is not a parameter of this request".into(),
        }));
        if errors.is_empty() { Ok(()) } else { Err(Rejection::Invalid(errors.into())) }
    }
}

/// A place in a list, opaque to clients.
pub(super) trait Cursor: Sized {
    fn print(&self) -> String;
    fn parse(text: &str) -> Option<Self>;
}

impl Cursor for KeyId {
    fn print(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.to_bytes()))
    }

    fn parse(text: &str) -> Option<Self> {
        hexadecimal(text, 32).map(|number| Self::from_bytes(number.to_be_bytes()))
    }
}

/// An audit record's number.
impl Cursor for u64 {
    fn print(&self) -> String {
        format!("{self:016x}")
    }

    fn parse(text: &str) -> Option<Self> {
        hexadecimal(text, 16).and_then(|number| Self::try_from(number).ok())
    }
}

fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let well_formed = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    well_formed.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::clock::UnixMillis;
    use crate::vocabulary::id::IdSource;

    #[test]
    fn a_cursor_leads_back_to_its_place_and_other_texts_are_refused() {
        let id = KeyId::draw(&mut IdSource::seeded(3), UnixMillis(1_790_000_000_000));
        assert_eq!(<KeyId as Cursor>::parse(&id.print()), Some(id));
        assert_eq!(<u64 as Cursor>::parse(&17_u64.print()), Some(17));
        for bad in ["", "17", "zz", &"f".repeat(33), "+00000000000000f", &id.to_string()] {
            assert_eq!(<KeyId as Cursor>::parse(bad), None, "{bad}");
            assert_eq!(<u64 as Cursor>::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_time_may_have_an_offset_whose_plus_is_not_encoded() {
        for offset in ["%2B02:00", "+02:00"] {
            let text = format!("from=2026-09-21T16:13:20{offset}");
            assert_eq!(Query::parse(Some(&text)).time("from"), Some(UnixMillis(1_790_000_000_000)), "{text}");
        }
    }

    #[test]
    fn parameters_are_known_given_once_and_within_their_bounds() {
        for (query, wrong) in [
            ("limit=0", &["limit: must be a number from 1 to 100"][..]),
            ("limit=101", &["limit: must be a number from 1 to 100"]),
            ("limit=%2B5", &["limit: must be a number from 1 to 100"]),
            ("limit=1&limit=2", &["limit: is given twice"]),
            ("limti=5", &["limti: is not a parameter of this request"]),
            ("limit=5&cursor=x", &["cursor: must be a next_cursor of an earlier page"]),
            ("", &[]),
        ] {
            let mut parsed = Query::parse(Some(query));
            parsed.limit();
            parsed.cursor::<u64>();
            let errors = match parsed.finish() {
                Err(Rejection::Invalid(errors)) => errors.iter().map(ToString::to_string).collect(),
                _ => Vec::new(),
            };
            assert_eq!(errors, wrong, "{query}");
        }
    }
}
