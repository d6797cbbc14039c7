//! Sections: readers of the configuration take their values from them.
//!
//! A section remembers which keys were asked for; the keys that are left when its reader returns are unknown.
//! Every mistake is reported, and reading continues.

use super::file::{Content, Entry, Table, Value};
use super::mistake::{Kind, Place, Report, suggestion, ticked};

/// Runs `reader` on the root of a tree, and reports the keys that it did not ask for.
pub(super) fn read<T>(root: Value, report: &Report, reader: impl FnOnce(&mut Section<'_>) -> T) -> T {
    Section::new(report, String::new(), root).run(reader)
}

/// A table of the tree while it is being read.
pub(super) struct Section<'r> {
    report: &'r Report,
    /// The names from the root to this table, as in `upstreams.api`.
    path: String,
    place: Place,
    /// Whether the value is not a table at all; then no key is reported as missing.
    broken: bool,
    /// The keys that were not asked for yet.
    entries: Table,
    /// The keys that were asked for, each with its place if the file has it.
    asked: Vec<(&'static str, Option<Place>)>,
}

impl<'r> Section<'r> {
    /// Reports a value that is not a table, and continues with an empty table.
    fn new(report: &'r Report, path: String, value: Value) -> Self {
        let kind = value.kind();
        let Value { content, place, .. } = value;
        let (entries, broken) = match content {
            Content::Table(entries) => (entries, false),
            Content::Unread => (Table::new(), true),
            _ => {
                let text = format!(
                    "expected a section, found {kind}; write a heading in brackets and put its keys below it"
                );
                report.add(Kind::Wrong, &place, &path, text);
                (Table::new(), true)
            }
        };
        Self { report, path, place, broken, entries, asked: Vec::new() }
    }

    fn run<T>(mut self, reader: impl FnOnce(&mut Self) -> T) -> T {
        let result = reader(&mut self);
        let known: Vec<&str> = self.asked.iter().map(|(key, _)| *key).collect();
        for (key, entry) in &self.entries {
            let text = format!("unknown key {}; {}", ticked(key), suggestion(key, "keys here", &known));
            self.report.add(Kind::Wrong, &entry.key, &self.path_of(key), text);
            self.refuse_variables(&self.path_of(key), entry);
        }
        result
    }

    /// Reports every variable within an unknown section by its own name, at any depth.
    fn refuse_variables(&self, within: &str, entry: &Entry) {
        let Content::Table(table) = &entry.value.content else { return };
        for (key, inner) in table {
            let path = format!("{within}.{key}");
            if matches!(inner.key, Place::Variable { .. }) && inner.key != entry.key {
                let text = format!("unknown section {}; correct the name of the variable", ticked(within));
                self.report.add(Kind::Wrong, &inner.key, &path, text);
            }
            self.refuse_variables(&path, inner);
        }
    }

    fn path_of(&self, key: &str) -> String {
        let key = key.escape_debug();
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.report.asked.borrow_mut().insert(self.path_of(key));
        let value = self.entries.remove(key).map(|entry| entry.value);
        if let Some(value) = &value {
            self.report.places.borrow_mut().push((self.path_of(key), value.place.clone()));
        }
        self.asked.push((key, value.as_ref().map(|value| value.place.clone())));
        value
    }

    /// Whether the file has a key that was asked for, with a valid or an invalid value.
    pub(super) fn given(&self, key: &str) -> bool {
        self.asked.iter().any(|(asked, place)| *asked == key && place.is_some())
    }

    /// Reports a mistake in a key that was asked for, or in the section if the file does not have the key.
    pub(super) fn wrong(&self, key: &str, text: impl Into<String>) {
        let place = self.asked.iter().find(|(asked, _)| *asked == key).and_then(|(_, place)| place.as_ref());
        let path = if place.is_some() { self.path_of(key) } else { self.path.clone() };
        self.report.add(Kind::Wrong, place.unwrap_or(&self.place), &path, text.into());
    }

    /// Reports that a key has a value which is allowed, and rarely meant.
    pub(super) fn warn(&self, key: &str, text: impl Into<String>) {
        let place = self.asked.iter().find(|(asked, _)| *asked == key).and_then(|(_, place)| place.as_ref());
        self.report.add(Kind::Warning, place.unwrap_or(&self.place), &self.path_of(key), text.into());
    }

    /// Reports a missing key.
    pub(super) fn missing(&self, key: &str, advice: &str) {
        self.lack(&self.path_of(key), format!("missing; {advice}"));
    }

    /// Reports something missing that concerns the section as a whole.
    pub(super) fn lacks(&self, text: impl Into<String>) {
        self.lack(&self.path, text.into());
    }

    fn lack(&self, path: &str, text: String) {
        if !self.broken {
            self.report.add(Kind::Missing, &self.place, path, text);
        }
    }

    /// The value of a key; `None` if it is missing or wrong.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.take(key).filter(|value| !value.is_unread())?;
        read(&value).map_err(|text| self.report.add(Kind::Wrong, &value.place, &self.path_of(key), text)).ok()
    }

    /// The value of a key; its default if it is missing or wrong.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// The value of a required key; `advice` says what to add if it is missing.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        advice: &str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.optional(key, read);
        if !self.given(key) {
            self.missing(key, advice);
        }
        value
    }

    /// The values of a list without duplicates; `None` if the list is missing or anything in it is wrong.
    pub(super) fn list<T: PartialEq>(
        &mut self,
        key: &'static str,
        read: impl FnMut(&Value) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let (list, is_whole) = self.list_in_part(key, read);
        is_whole.then_some(list)
    }

    /// The right values of a list, and whether it is there and everything in it is right.
    fn list_in_part<T: PartialEq>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&Value) -> Result<T, String>,
    ) -> (Vec<T>, bool) {
        let Some(value) = self.take(key).filter(|value| !value.is_unread()) else {
            return (Vec::new(), false);
        };
        let path = self.path_of(key);
        let Content::List(values) = &value.content else {
            let text = format!("expected a list, found {}; write it as [\"…\", \"…\"]", value.kind());
            self.report.add(Kind::Wrong, &value.place, &path, text);
            return (Vec::new(), false);
        };
        let mut list = Vec::with_capacity(values.len());
        for (n, value) in values.iter().enumerate() {
            match read(value) {
                Ok(item) if list.contains(&item) => {
                    let text = "duplicate; remove one".to_owned();
                    self.report.add(Kind::Wrong, &value.place, &format!("{path}[{n}]"), text);
                }
                Ok(item) => list.push(item),
                Err(text) => self.report.add(Kind::Wrong, &value.place, &format!("{path}[{n}]"), text),
            }
        }
        let is_whole = list.len() == values.len();
        (list, is_whole)
    }

    /// As [`Section::list`]; an empty list is a mistake.
    pub(super) fn filled<T: PartialEq>(
        &mut self,
        key: &'static str,
        advice: &str,
        read: impl FnMut(&Value) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let (list, is_whole) = self.filled_in_part(key, advice, read);
        is_whole.then_some(list)
    }

    pub(super) fn filled_in_part<T: PartialEq>(
        &mut self,
        key: &'static str,
        advice: &str,
        read: impl FnMut(&Value) -> Result<T, String>,
    ) -> (Vec<T>, bool) {
        let (list, is_whole) = self.list_in_part(key, read);
        if is_whole && list.is_empty() {
            self.wrong(key, format!("the list is empty; {advice}"));
            return (list, false);
        }
        (list, is_whole)
    }

    /// As [`Section::filled`]; a missing list is a mistake too. Returns what is right of it, and whether all is.
    pub(super) fn required_list<T: PartialEq>(
        &mut self,
        key: &'static str,
        advice: &str,
        read: impl FnMut(&Value) -> Result<T, String>,
    ) -> (Vec<T>, bool) {
        let list = self.filled_in_part(key, advice, read);
        if !self.given(key) {
            self.missing(key, advice);
        }
        list
    }

    /// Whether the value is no section, so that nothing in it could be read.
    pub(super) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// The name by which messages tell this section from others of its list.
    pub(super) fn label(&self) -> &str {
        self.path.split_once('[').map_or(&*self.path, |(_, label)| label.trim_end_matches(']'))
    }

    /// A section within this one; an empty section if it is missing.
    pub(super) fn section<T>(&mut self, key: &'static str, reader: impl FnOnce(&mut Self) -> T) -> T {
        let empty = || Value { content: Content::Table(Table::new()), place: self.place.clone(), raw: None };
        let value = self.entries.remove(key).map_or_else(empty, |entry| entry.value);
        self.asked.push((key, None));
        Self::new(self.report, self.path_of(key), value).run(reader)
    }

    /// All sections within this one, in the order of their names.
    pub(super) fn named<T>(&mut self, mut reader: impl FnMut(&str, &mut Self) -> T) -> Vec<T> {
        std::mem::take(&mut self.entries)
            .into_iter()
            .map(|(name, entry)| {
                let path = self.path_of(&name);
                Self::new(self.report, path, entry.value).run(|section| reader(&name, section))
            })
            .collect()
    }

    /// The sections of an array of tables, in their order. Messages name each section by the value of its key
    /// `label`.
    pub(super) fn repeated<T>(
        &mut self,
        key: &'static str,
        label: &str,
        mut reader: impl FnMut(&mut Self) -> T,
    ) -> Vec<T> {
        let Some(value) = self.take(key).filter(|value| !value.is_unread()) else { return Vec::new() };
        let Content::List(values) = value.content else {
            self.wrong(
                key,
                format!(
                    "expected a list of sections, found {}; write a list, {key} = [{{ … }}], or [[{}]] for each of them",
                    value.kind(),
                    self.path_of(key)
                ),
            );
            return Vec::new();
        };
        let mut results = Vec::with_capacity(values.len());
        for (n, value) in values.into_iter().enumerate() {
            let name = value.label(label).unwrap_or_else(|| n.to_string());
            let path = format!("{}[{name}]", self.path_of(key));
            results.push(Self::new(self.report, path, value).run(&mut reader));
        }
        results
    }

    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// Reports a mistake that was found after reading, at `place`, or at this section without one.
    pub(super) fn wrong_at(&self, place: Option<&Place>, path: &str, text: String) {
        self.report.add(Kind::Wrong, place.unwrap_or(&self.place), path, text);
    }
}
