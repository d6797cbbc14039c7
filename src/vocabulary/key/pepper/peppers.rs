//! The peppers of the configuration, and which of them the store names.

use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::row::{Misfit, Row};
use super::{Check, Pepper, SALT, draw_hex};
use crate::vocabulary::key::Digest;

/// The most peppers that a store keeps beside the current one. Each makes a lookup of a key that is not cached a little
/// longer.
const RETIRED: usize = 16;

/// What the configuration and the store say of the pepper, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PepperStatus {
    /// The check value of the current pepper; `None` for a store without one.
    pub current: Option<String>,
    /// The setting and the file that hold it.
    pub file: Option<String>,
    /// The file of a newer pepper, which is not in force yet.
    pub next: Option<String>,
    /// The file of the pepper before, while records under it remain.
    pub before: Option<String>,
    /// Files that are named in the configuration and that nothing needs any more.
    pub unneeded: Vec<String>,
    /// How many older peppers the store keeps, encrypted, for the digests that were made under them.
    pub kept: usize,
}

/// The peppers that the configuration names, and what the store says of them. All clones share what they have learnt.
#[derive(Clone, Debug, Default)]
pub struct Peppers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// As the configuration names them: the new one first.
    held: Vec<Held>,
    known: RwLock<Arc<InForce>>,
}

#[derive(Debug)]
struct Held {
    pepper: Pepper,
    /// The setting and the file, for messages.
    file: Box<str>,
}

/// The peppers with their tasks.
#[derive(Debug, Default)]
struct InForce {
    /// `None` until the store was asked.
    row: Option<Row>,
    /// New records and digests are made under it.
    current: Option<Pepper>,
    /// Its seals are still valid.
    before: Option<Pepper>,
    /// Digests may be under these; newest first.
    retired: Vec<Pepper>,
}

impl Peppers {
    /// At most one pepper, of no file.
    #[must_use]
    pub fn new(pepper: Option<Pepper>) -> Self {
        Self::of_files(pepper.map(|pepper| (pepper, String::new())).into_iter().collect())
    }

    /// The peppers of these files, the newest first.
    #[must_use]
    pub fn of_files(files: Vec<(Pepper, String)>) -> Self {
        let held: Vec<Held> =
            files.into_iter().map(|(pepper, file)| Held { pepper, file: file.into() }).collect();
        let mut peppers = held.iter().map(|held| held.pepper.clone());
        let current = peppers.next();
        let retired: Vec<Pepper> = peppers.collect();
        // Until the store was asked, whatever the configuration names counts.
        let known = InForce { row: None, current, before: retired.first().cloned(), retired };
        Self(Arc::new(Shared { held, known: RwLock::new(Arc::new(known)) }))
    }

    fn known(&self) -> Arc<InForce> {
        Arc::clone(&self.0.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn file(&self) -> Box<str> {
        self.0.held.first().map_or_else(Box::default, |held| held.file.clone())
    }

    /// Whether there is a pepper.
    #[must_use]
    pub fn are_set(&self) -> bool {
        !self.0.held.is_empty()
    }

    /// Whether this is the row that was learnt last.
    #[must_use]
    pub fn know(&self, row: &str) -> bool {
        self.known().row.as_ref().is_some_and(|known| *known.text == *row)
    }

    /// The name of the row that was learnt last; empty if none was. It changes with everything that a row says.
    #[must_use]
    pub fn row_name(&self) -> String {
        self.known().row.as_ref().map_or_else(String::new, |row| row.name.to_string())
    }

    /// Whether a row was learnt.
    #[must_use]
    pub fn are_learnt(&self) -> bool {
        self.known().row.is_some()
    }

    /// The row that was learnt last.
    #[must_use]
    pub fn row(&self) -> Option<String> {
        self.known().row.as_ref().map(|row| row.text.to_string())
    }

    /// Takes the word of the store. Returns whether it says something new. An older row than the known one is no news: it is an
    /// answer that was overtaken.
    ///
    /// # Errors
    /// [`Misfit`]; then what was known before stays.
    pub fn learn(&self, row: &str) -> Result<bool, Misfit> {
        self.learn_unless(row, Row::is_older_than)
    }

    /// Whether a row is older than the known one of the same store.
    #[must_use]
    pub fn is_older(&self, row: &str) -> bool {
        let known = self.known();
        let (Some(known), Some(row)) = (&known.row, Row::parse(row)) else { return false };
        row.is_older_than(known)
    }

    /// As [`Peppers::learn`], also for an older row: of a store that has lost its last changes.
    ///
    /// # Errors
    /// As [`Peppers::learn`].
    pub fn learn_anyway(&self, row: &str) -> Result<bool, Misfit> {
        self.learn_unless(row, |_, _| false)
    }

    /// Judges a row and takes it in as one step, under one lock: of several answers that come at the same moment, an older
    /// one must not replace a newer one that was taken in after the older one was judged.
    fn learn_unless(&self, text: &str, is_overtaken: impl Fn(&Row, &Row) -> bool) -> Result<bool, Misfit> {
        // Nearly always it is known, and then nobody has to wait for a writer.
        if self.know(text) {
            return Ok(false);
        }
        let row = Row::parse(text).ok_or(Misfit::Unreadable)?;
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        let is_no_news = |known: &Row| known.text == row.text || is_overtaken(&row, known);
        if known.row.as_ref().is_some_and(is_no_news) {
            return Ok(false);
        }
        *known = Arc::new(self.read(row)?);
        Ok(true)
    }

    /// The peppers with the tasks that a row gives them.
    fn read(&self, row: Row) -> Result<InForce, Misfit> {
        let current = self.find_current(&row)?;
        let before = match &row.before {
            None => None,
            Some(check) => Some(
                self.find(&row.salt, check)
                    .map(|held| held.pepper.clone())
                    .ok_or_else(|| Misfit::BeforeMissing { expected: check.clone() })?,
            ),
        };
        let retired = match &current {
            None => Vec::new(),
            Some(current) => row
                .wrapped
                .iter()
                .map(|wrapped| current.unwrap(&row.salt, wrapped))
                .collect::<Option<Vec<_>>>()
                .ok_or(Misfit::Unreadable)?,
        };
        Ok(InForce { row: Some(row), current, before, retired })
    }

    fn find_current(&self, row: &Row) -> Result<Option<Pepper>, Misfit> {
        match (&row.current, self.0.held.first()) {
            (None, None) => Ok(None),
            (None, Some(held)) => Err(Misfit::NotWanted { file: held.file.clone() }),
            (Some(expected), None) => Err(Misfit::Missing { expected: expected.clone() }),
            (Some(expected), Some(first)) => match self.find(&row.salt, expected) {
                Some(held) => Ok(Some(held.pepper.clone())),
                None => Err(Misfit::Another {
                    file: first.file.clone(),
                    found: first.pepper.check(&row.salt),
                    expected: expected.clone(),
                }),
            },
        }
    }

    fn find(&self, salt: &str, check: &Check) -> Option<&Held> {
        self.0.held.iter().find(|held| held.pepper.check(salt) == *check)
    }

    /// The check values of all peppers of the configuration, for the row that was learnt last; empty if none was.
    #[must_use]
    pub fn checks(&self) -> String {
        let known = self.known();
        let Some(row) = &known.row else { return String::new() };
        let checks = self.0.held.iter().map(|held| held.pepper.check(&row.salt).0);
        checks.collect::<Vec<_>>().join(" ")
    }

    /// The row of a new store.
    ///
    /// # Errors
    /// If the operating system gives no random bytes.
    pub fn first_row(&self) -> Result<String, getrandom::Error> {
        self.first_row_under(self.0.held.first())
    }

    fn first_row_under(&self, held: Option<&Held>) -> Result<String, getrandom::Error> {
        let salt = draw_hex::<SALT>()?;
        let current = held.map(|held| held.pepper.check(&salt));
        Ok(Row::draw((1, salt), current, None, Vec::new())?.text.into())
    }

    /// The row of a store that has none, by one of its records: `opens` tells whether that opens under a pepper, or without
    /// one. With several peppers in the configuration, it shows which is the current one.
    ///
    /// # Errors
    /// [`Misfit`] if it opens under none of them.
    pub fn row_by_record(&self, opens: impl Fn(Option<&Pepper>) -> bool) -> Result<String, Misfit> {
        let held = match self.0.held.iter().find(|held| opens(Some(&held.pepper))) {
            Some(held) => Some(held),
            None if self.0.held.is_empty() && opens(None) => None,
            None if self.0.held.is_empty() => return Err(Misfit::SealedWithout),
            None if opens(None) => return Err(Misfit::NotWanted { file: self.file() }),
            None => return Err(Misfit::Sealed { file: self.file() }),
        };
        self.first_row_under(held).map_err(|_| Misfit::Unreadable)
    }

    /// The row with which the first pepper of the configuration comes into force, and its check value. `None` if it is in
    /// force, or cannot come into force yet: records under the pepper before the current one remain.
    ///
    /// # Errors
    /// [`Full`]; or if the operating system gives no random bytes.
    pub fn next_row(&self) -> Result<Option<(String, Check)>, Full> {
        let known = self.known();
        let (Some(row), Some(current), Some(first)) = (&known.row, &known.current, self.0.held.first())
        else {
            return Ok(None);
        };
        if known.before.is_some() || first.pepper.is(current) {
            return Ok(None);
        }
        // One that comes back stands there twice: the order tells which entry of a trail may be under which.
        let retired: Vec<&Pepper> = std::iter::once(current).chain(&known.retired).collect();
        if retired.len() > RETIRED {
            return Err(Full);
        }
        let wrapped = retired.iter().map(|retired| first.pepper.wrap(&row.salt, retired));
        let wrapped = wrapped.collect::<Option<Vec<_>>>().ok_or(Full)?;
        let check = first.pepper.check(&row.salt);
        let before = Some(current.check(&row.salt));
        let next = Row::draw(row.next(), Some(check.clone()), before, wrapped).map_err(|_| Full)?;
        Ok(Some((next.text.into(), check)))
    }

    /// The row of a store in which no record is under the pepper before any more. `None` if there is no pepper before.
    ///
    /// # Errors
    /// If the operating system gives no random bytes.
    pub fn finished_row(&self) -> Result<Option<String>, getrandom::Error> {
        let known = self.known();
        let Some(row) = known.row.as_ref().filter(|row| row.before.is_some()) else { return Ok(None) };
        let finished = Row::draw(row.next(), row.current.clone(), None, row.wrapped.clone())?;
        Ok(Some(finished.text.into()))
    }

    /// The row of a store that gets keys of another store under the same pepper, with the older peppers of that one.
    /// `None` if the other store has none.
    ///
    /// # Errors
    /// [`Full`]; or if the operating system gives no random bytes.
    pub fn row_with_retired_of(&self, other: &Self) -> Result<Option<String>, Full> {
        let (known, theirs) = (self.known(), other.known());
        let (Some(row), Some(current)) = (&known.row, &known.current) else { return Ok(None) };
        let is_here = |pepper: &Pepper| known.retired.iter().any(|own| own.is(pepper));
        let more: Vec<&Pepper> = theirs.retired.iter().filter(|pepper| !is_here(pepper)).collect();
        if more.is_empty() {
            return Ok(None);
        }
        if known.retired.len() + more.len() > RETIRED {
            return Err(Full);
        }
        let wrapped = more.into_iter().map(|pepper| current.wrap(&row.salt, pepper));
        let wrapped = wrapped.collect::<Option<Vec<_>>>().ok_or(Full)?;
        let wrapped = row.wrapped.iter().cloned().chain(wrapped).collect();
        let next = Row::draw(row.next(), row.current.clone(), row.before.clone(), wrapped);
        next.map(|row| Some(row.text.into())).map_err(|_| Full)
    }

    /// Whether the current pepper is the same here and there.
    #[must_use]
    pub fn share_current(&self, other: &Self) -> bool {
        match (&self.known().current, &other.known().current) {
            (Some(own), Some(theirs)) => own.is(theirs),
            (None, None) => true,
            _ => false,
        }
    }

    /// What the row that was learnt last means for the files of the configuration; `None` if none was learnt.
    #[must_use]
    pub fn status(&self) -> Option<PepperStatus> {
        let known = self.known();
        let row = known.row.as_ref()?;
        let file_of = |pepper: &Option<Pepper>| {
            let pepper = pepper.as_ref()?;
            self.0.held.iter().find(|held| held.pepper.is(pepper)).map(|held| held.file.to_string())
        };
        let (file, before) = (file_of(&known.current), file_of(&known.before));
        let first = self.0.held.first().map(|held| held.file.to_string());
        let next = first.filter(|first| Some(first) != file.as_ref());
        let is_needed = |held: &&Held| {
            let name = Some(held.file.to_string());
            name == file || name == before || name == next
        };
        Some(PepperStatus {
            current: row.current.as_ref().map(Check::to_string),
            unneeded: self
                .0
                .held
                .iter()
                .filter(|held| !is_needed(held))
                .map(|held| held.file.to_string())
                .collect(),
            kept: known.retired.len(),
            file,
            next,
            before,
        })
    }

    /// The pepper under which records are sealed and indexes are written, and the one before while its seals are valid too:
    /// both of one moment.
    pub(crate) fn sealing(&self) -> (Option<Pepper>, Option<Pepper>) {
        let known = self.known();
        (known.current.clone(), known.before.clone())
    }

    /// The pepper for what is written now, `None` without one.
    #[must_use]
    pub fn current(&self) -> Option<Pepper> {
        self.known().current.clone()
    }

    /// All peppers under which something may have been written, from the newest to the oldest.
    #[must_use]
    pub fn all(&self) -> Vec<Pepper> {
        let known = self.known();
        known.current.iter().chain(&known.retired).cloned().collect()
    }

    /// The pepper before, whose entries in an index have not all been moved; `None` if there is none.
    #[must_use]
    pub fn before(&self) -> Option<Pepper> {
        self.known().before.clone()
    }
}

/// A store keeps at most 16 peppers beside the current one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "the store keeps {RETIRED} older peppers for keys that were made under them, which is the most: `keygate keys export` the \
     organisations, give their keys new secrets in a new store, and go on there"
)]
pub struct Full;

impl Peppers {
    /// All digests under which a store may have the key with this plain SHA-256; the likeliest first.
    #[must_use]
    pub fn digests(&self, sha256: &Digest) -> Vec<Digest> {
        let all = self.all();
        let mut digests = Vec::with_capacity(all.len().max(1));
        for digest in all.iter().map(|pepper| pepper.digest(&sha256.0)) {
            // A pepper that came back stands there twice.
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        }
        if digests.is_empty() { vec![*sha256] } else { digests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pepper(byte: u8) -> Pepper {
        Pepper::new(vec![byte; 32]).unwrap()
    }

    /// A process with the peppers of these files.
    fn process(bytes: &[u8]) -> Peppers {
        Peppers::of_files(bytes.iter().map(|byte| (pepper(*byte), format!("file {byte}"))).collect())
    }

    fn digests(peppers: &Peppers) -> Vec<Digest> {
        peppers.digests(&Digest::from_bytes([7; 32]))
    }

    #[test]
    fn of_rows_that_come_at_the_same_moment_the_newest_stays() {
        const ROWS: u64 = 8;
        let row = |number, salt: &str| {
            let check = pepper(1).check(salt);
            Row::draw((number, salt.to_owned()), Some(check), None, Vec::new()).unwrap().text
        };
        for round in 0..500 {
            let (peppers, salt) = (process(&[1]), format!("{round:032x}"));
            let together = std::sync::Barrier::new(usize::try_from(ROWS).unwrap());
            std::thread::scope(|scope| {
                for number in 1..=ROWS {
                    let (peppers, together, row) = (&peppers, &together, row(number, &salt));
                    scope.spawn(move || {
                        together.wait();
                        peppers.learn(&row).unwrap();
                    });
                }
            });
            assert!(peppers.row_name().starts_with(&format!("{ROWS}-")), "{}", peppers.row_name());
        }
    }

    #[test]
    fn a_row_fits_the_pepper_under_which_it_was_made_and_no_other() {
        let row = process(&[1]).first_row().unwrap();
        assert_eq!(process(&[1]).learn(&row), Ok(true));
        assert_eq!(process(&[2, 1]).learn(&row), Ok(true), "the second file has it");
        let Err(Misfit::Another { file, found, expected }) = process(&[2]).learn(&row) else {
            panic!("it fits")
        };
        assert_eq!((&*file, found == expected), ("file 2", false));
        assert!(matches!(process(&[]).learn(&row), Err(Misfit::Missing { .. })));
        let plain = process(&[]).first_row().unwrap();
        assert_eq!(process(&[]).learn(&plain), Ok(true));
        assert!(matches!(process(&[1]).learn(&plain), Err(Misfit::NotWanted { .. })));
        for odd in ["", "2 1-a b c -", "1 x b none -", "1 1-a b zz -", &row[..row.len() - 3]] {
            assert_eq!(process(&[1]).learn(odd), Err(Misfit::Unreadable), "{odd}");
        }
    }

    #[test]
    fn a_row_tells_no_two_stores_that_they_have_the_same_pepper() {
        let [one, other] = [(); 2].map(|()| process(&[1]).first_row().unwrap());
        let check = |row: &str| row.split(' ').nth(3).unwrap().to_owned();
        assert_ne!(check(&one), check(&other));
        let peppers = process(&[1]);
        peppers.learn(&one).unwrap();
        assert_eq!(peppers.status().unwrap().current.unwrap(), check(&one)[..8], "half of it is shown");
    }

    #[test]
    fn a_rotation_goes_through_its_stages() {
        let (old, row) = (process(&[1]), process(&[1]).first_row().unwrap());
        old.learn(&row).unwrap();
        assert_eq!(old.next_row(), Ok(None), "there is nothing newer");
        let both = process(&[2, 1]);
        both.learn(&row).unwrap();
        assert_eq!(digests(&both), digests(&old), "the new one is not in force");
        assert_eq!(both.status().unwrap().next.as_deref(), Some("file 2"));

        let (next, check) = both.next_row().unwrap().unwrap();
        assert!(both.checks().contains(check.as_str()) && !old.checks().contains(check.as_str()));
        assert_eq!((both.learn(&next), both.next_row()), (Ok(true), Ok(None)));
        assert_eq!(digests(&both), [digests(&process(&[2])), digests(&old)].concat());
        assert!(matches!(old.learn(&next), Err(Misfit::Another { .. })));
        assert!(matches!(process(&[2]).learn(&next), Err(Misfit::BeforeMissing { .. })));
        let status = both.status().unwrap();
        assert_eq!((status.before.as_deref(), status.unneeded.len()), (Some("file 1"), 0));

        let finished = both.finished_row().unwrap().unwrap();
        assert_eq!((both.learn(&finished), both.finished_row()), (Ok(true), Ok(None)));
        assert_eq!(both.status().unwrap().unneeded, ["file 1"]);
        let new = process(&[2]);
        assert_eq!(new.learn(&finished), Ok(true));
        assert_eq!(digests(&new), digests(&both), "the digests under the old one are still found");
        assert_eq!(new.sealing().1.map(|_| ()), None, "its seals are not");
    }

    #[test]
    fn an_overtaken_answer_changes_nothing() {
        let both = process(&[2, 1]);
        let row = process(&[1]).first_row().unwrap();
        both.learn(&row).unwrap();
        let (next, _) = both.next_row().unwrap().unwrap();
        both.learn(&next).unwrap();
        assert_eq!((both.learn(&row), both.row()), (Ok(false), Some(next)));
        assert_eq!(
            (both.learn_anyway(&row), both.row()),
            (Ok(true), Some(row)),
            "where the store was set back"
        );
        let another = process(&[1]).first_row().unwrap();
        assert_eq!(both.learn(&another), Ok(true), "another store");
    }

    #[test]
    fn a_store_keeps_the_peppers_of_many_rotations_and_not_of_any_number() {
        let mut row = process(&[0]).first_row().unwrap();
        for n in 1..=16_u8 {
            let peppers = process(&[n, n - 1]);
            peppers.learn(&row).unwrap();
            peppers.learn(&peppers.next_row().unwrap().unwrap().0).unwrap();
            row = peppers.finished_row().unwrap().unwrap();
        }
        let last = process(&[16]);
        last.learn(&row).unwrap();
        assert_eq!((digests(&last).len(), last.status().unwrap().kept), (17, 16));
        let more = process(&[17, 16]);
        more.learn(&row).unwrap();
        assert_eq!(more.next_row(), Err(Full));
    }

    #[test]
    fn a_pepper_can_come_back() {
        let mut row = process(&[1]).first_row().unwrap();
        for files in [[2, 1], [1, 2]] {
            let peppers = process(&files);
            peppers.learn(&row).unwrap();
            peppers.learn(&peppers.next_row().unwrap().unwrap().0).unwrap();
            row = peppers.finished_row().unwrap().unwrap();
        }
        let last = process(&[1]);
        last.learn(&row).unwrap();
        assert_eq!((last.all().len(), digests(&last).len()), (3, 2));
    }

    #[test]
    fn a_store_without_a_row_is_judged_by_a_record() {
        let under = |byte: u8| {
            move |other: Option<&Pepper>| {
                other.is_some_and(|other| other.is(&Pepper::new(vec![byte; 32]).unwrap()))
            }
        };
        let unsealed = |other: Option<&Pepper>| other.is_none();
        let row = process(&[2, 1]).row_by_record(under(1)).unwrap();
        assert_eq!(process(&[1]).learn(&row), Ok(true), "the record shows which of the two it is");
        assert!(matches!(process(&[2]).row_by_record(under(1)), Err(Misfit::Sealed { .. })));
        assert_eq!(process(&[]).row_by_record(under(1)), Err(Misfit::SealedWithout));
        assert!(matches!(process(&[1]).row_by_record(unsealed), Err(Misfit::NotWanted { .. })));
        assert!(process(&[]).row_by_record(unsealed).is_ok());
    }
}
