//! A configuration file as a tree whose values know where they were written, and the sections that readers ask.
//!
//! [`parse`] makes the tree, [`overlay`] puts the environment over it, and [`read`] hands out its root as a
//! [`Section`]. A section remembers which keys were asked for: what is left over when its reader returns is an unknown key.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Document, Kind, Place, Report, suggestion, ticked};

const PREFIX: &str = "KEYGATE__";
/// No key of the configuration lies deeper.
const DEEPEST: usize = 4;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) content: Content,
    pub(super) place: Place,
    /// The text of a variable, which may have been meant as text although it reads as a number.
    pub(super) raw: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Text(String),
    Integer(i128),
    Boolean(bool),
    List(Vec<Value>),
    Table(Table),
    Decimal,
    Time,
}

pub(super) type Table = BTreeMap<String, Entry>;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where the key was written.
    key: Place,
    value: Value,
}

impl Value {
    /// What it is, for a message. Never what it says.
    pub(super) const fn kind(&self) -> &'static str {
        match self.content {
            Content::Text(_) => "a string",
            Content::Integer(_) => "an integer",
            Content::Boolean(_) => "true or false",
            Content::List(_) => "a list",
            Content::Table(_) => "a section",
            Content::Decimal => "a decimal number",
            Content::Time => "a date or time",
        }
    }
}

/// The tree of a TOML text, as far as it can be read.
pub(super) fn parse(text: &str, document: Document, name: &str, report: &Report) -> Value {
    let lines = Lines::new(text, document, name);
    let (tree, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let place = lines.place(error.span().map_or(0, |span| span.start));
        let text = format!("this is not TOML: {}; write it as TOML", error.message());
        report.add(Kind::Syntax, &place, "", text);
    }
    let content = Content::Table(lines.table(tree.get_ref()));
    Value { content, place: lines.place(0), raw: None }
}

/// Finds the line and column of a byte.
struct Lines<'t> {
    text: &'t str,
    document: Document,
    name: Arc<str>,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str, document: Document, name: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, document, name: name.into(), starts }
    }

    fn place(&self, offset: usize) -> Place {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|n| self.starts.get(n)).copied().unwrap_or_default();
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Place::File { document: self.document, name: Arc::clone(&self.name), line, column }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        table
            .iter()
            .map(|(key, value)| {
                let entry = Entry { key: self.place(key.span().start), value: self.value(value) };
                (key.get_ref().to_string(), entry)
            })
            .collect()
    }

    fn value(&self, value: &Spanned<DeValue<'_>>) -> Value {
        let content = self.content(value.get_ref());
        Value { content, place: self.place(value.span().start), raw: None }
    }

    fn content(&self, value: &DeValue<'_>) -> Content {
        match value {
            DeValue::String(text) => Content::Text(text.to_string()),
            // What is too large even for this is out of every range anyway.
            DeValue::Integer(n) => {
                Content::Integer(i128::from_str_radix(n.as_str(), n.radix()).unwrap_or(i128::MAX))
            }
            DeValue::Boolean(yes) => Content::Boolean(*yes),
            DeValue::Array(values) => Content::List(values.iter().map(|value| self.value(value)).collect()),
            DeValue::Table(table) => Content::Table(self.table(table)),
            DeValue::Float(_) => Content::Decimal,
            DeValue::Datetime(_) => Content::Time,
        }
    }
}

/// Puts the variables `KEYGATE__SECTION__KEY` of an environment over the tree of a file.
pub(super) fn overlay(
    root: &mut Value,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    report: &Report,
) {
    let mut variables: Vec<(String, OsString)> = environment
        .into_iter()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.get(..PREFIX.len()).is_some_and(|head| head.eq_ignore_ascii_case(PREFIX)))
        .collect();
    variables.sort();
    for (name, value) in variables {
        let place = Place::Variable { name: name.as_str().into() };
        let keys: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        let path = keys.join(".");
        if let Err(mistake) = override_one(root, keys, value, &place) {
            report.add(Kind::Wrong, &place, &path, mistake);
        }
    }
}

fn override_one(root: &mut Value, keys: Vec<String>, value: OsString, place: &Place) -> Result<(), String> {
    if keys.iter().any(String::is_empty) {
        return Err(format!("the name has an empty part; write it as {PREFIX}SECTION__KEY"));
    }
    if keys.len() > DEEPEST {
        return Err("no key lies so deep; take one underscore within a name, two between names".to_owned());
    }
    let value = variable(value, place)?;
    let mut at = root;
    for key in keys {
        let kind = at.kind();
        let Content::Table(table) = &mut at.content else {
            return Err(format!("it would be part of {kind}; take the name of a key in a section"));
        };
        let section = || Value { content: Content::Table(Table::new()), place: place.clone(), raw: None };
        at = &mut table.entry(key).or_insert_with(|| Entry { key: place.clone(), value: section() }).value;
    }
    match &at.content {
        // An empty one of this very place was made on the way here.
        Content::Table(table) if !(table.is_empty() && at.place == *place) => {
            Err("this is a section; name one of its keys".to_owned())
        }
        _ if matches!(at.place, Place::Variable { .. }) && at.place != *place => {
            Err(format!("{} sets the same key; keep one of them", at.place))
        }
        _ => {
            *at = value;
            Ok(())
        }
    }
}

/// A variable's value: TOML where it is TOML, else text.
fn variable(value: OsString, place: &Place) -> Result<Value, String> {
    let raw = value.into_string().map_err(|_| "the value is not UTF-8; write it as UTF-8".to_owned())?;
    let mut read = match DeValue::parse(&raw) {
        Ok(value) => Lines::new("", Document::Configuration, "").value(&value),
        Err(_) => Value { content: Content::Text(raw.clone()), place: place.clone(), raw: None },
    };
    if matches!(read.content, Content::Table(_)) {
        return Err("a variable sets one key; write one variable for each key of the table".to_owned());
    }
    read.move_to(place);
    read.raw = Some(raw);
    Ok(read)
}

impl Value {
    fn move_to(&mut self, place: &Place) {
        self.place = place.clone();
        if let Content::List(values) = &mut self.content {
            for value in values {
                value.move_to(place);
            }
        }
    }
}

/// Lets `reader` ask the root of a tree, and reports the keys that it did not ask for.
pub(super) fn read<T>(root: Value, report: &Report, reader: impl FnOnce(&mut Section<'_>) -> T) -> T {
    Section::new(report, String::new(), root).run(reader)
}

/// A table of the tree, while it is read.
pub(super) struct Section<'r> {
    report: &'r Report,
    /// Its name from the root on, as in `upstreams.api`.
    path: String,
    place: Place,
    /// What was not asked for yet.
    entries: Table,
    /// What was asked for, and where it stood if it was given.
    asked: Vec<(&'static str, Option<Place>)>,
}

impl<'r> Section<'r> {
    /// Reports a value that is no table, and goes on as if it were an empty one.
    fn new(report: &'r Report, path: String, value: Value) -> Self {
        let kind = value.kind();
        let Value { content, place, .. } = value;
        let entries = match content {
            Content::Table(entries) => entries,
            _ => {
                let text = format!(
                    "expected a section, found {kind}; write a heading in brackets and its keys beneath it"
                );
                report.add(Kind::Wrong, &place, &path, text);
                Table::new()
            }
        };
        Self { report, path, place, entries, asked: Vec::new() }
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

    /// Every variable is reported by its own name, however deep within an unknown section it leads.
    fn refuse_variables(&self, within: &str, entry: &Entry) {
        let Content::Table(table) = &entry.value.content else { return };
        for (key, inner) in table {
            let path = format!("{within}.{key}");
            if matches!(inner.key, Place::Variable { .. }) && inner.key != entry.key {
                let text = format!("{} is unknown; mend the name of the variable", ticked(within));
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
        #[cfg(test)]
        self.report.asked.borrow_mut().insert(self.path_of(key));
        let value = self.entries.remove(key).map(|entry| entry.value);
        self.asked.push((key, value.as_ref().map(|value| value.place.clone())));
        value
    }

    /// Whether a key that was asked for is there, be its value right or wrong.
    pub(super) fn given(&self, key: &str) -> bool {
        self.asked.iter().any(|(asked, place)| *asked == key && place.is_some())
    }

    /// Reports what is wrong with a key that was asked for; with the whole section if the key is not there.
    pub(super) fn wrong(&self, key: &str, text: impl Into<String>) {
        let place = self.asked.iter().find(|(asked, _)| *asked == key).and_then(|(_, place)| place.as_ref());
        let path = if place.is_some() { self.path_of(key) } else { self.path.clone() };
        self.report.add(Kind::Wrong, place.unwrap_or(&self.place), &path, text.into());
    }

    /// Reports that a key is not there.
    pub(super) fn missing(&self, key: &str, advice: &str) {
        self.report.add(Kind::Missing, &self.place, &self.path_of(key), format!("missing; {advice}"));
    }

    /// Reports what is wrong with the section as a whole.
    pub(super) fn lacks(&self, text: impl Into<String>) {
        self.report.add(Kind::Missing, &self.place, &self.path, text.into());
    }

    /// The value of a key, or `None` where it is not there or wrong.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.take(key)?;
        read(&value).map_err(|text| self.report.add(Kind::Wrong, &value.place, &self.path_of(key), text)).ok()
    }

    /// The value of a key, or its default.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// The value of a key that must be there; `advice` says what to add.
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

    /// The values of a list without doubles, or `None` where it is not there or anything in it is wrong.
    pub(super) fn list<T: PartialEq>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&Value) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = self.take(key)?;
        let path = self.path_of(key);
        let Content::List(values) = &value.content else {
            let text = format!("expected a list, found {}; write it as [\"…\", \"…\"]", value.kind());
            self.report.add(Kind::Wrong, &value.place, &path, text);
            return None;
        };
        let mut list = Vec::with_capacity(values.len());
        for (n, value) in values.iter().enumerate() {
            match read(value) {
                Ok(item) if list.contains(&item) => {
                    let text = "stands twice in this list; leave one out".to_owned();
                    self.report.add(Kind::Wrong, &value.place, &format!("{path}[{n}]"), text);
                }
                Ok(item) => list.push(item),
                Err(text) => self.report.add(Kind::Wrong, &value.place, &format!("{path}[{n}]"), text),
            }
        }
        (list.len() == values.len()).then_some(list)
    }

    /// As [`Section::list`], but an empty list is a mistake.
    pub(super) fn filled<T: PartialEq>(
        &mut self,
        key: &'static str,
        advice: &str,
        read: impl FnMut(&Value) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let list = self.list(key, read)?;
        if list.is_empty() {
            self.wrong(key, format!("is empty; {advice}"));
            return None;
        }
        Some(list)
    }

    /// As [`Section::filled`], but a missing list is a mistake too.
    pub(super) fn required_list<T: PartialEq>(
        &mut self,
        key: &'static str,
        advice: &str,
        read: impl FnMut(&Value) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let list = self.filled(key, advice, read);
        if !self.given(key) {
            self.missing(key, advice);
        }
        list
    }

    /// A section within this one; an empty one where it is not there.
    pub(super) fn section<T>(&mut self, key: &'static str, reader: impl FnOnce(&mut Self) -> T) -> T {
        let empty = || Value { content: Content::Table(Table::new()), place: self.place.clone(), raw: None };
        let value = self.entries.remove(key).map_or_else(empty, |entry| entry.value);
        self.asked.push((key, None));
        Self::new(self.report, self.path_of(key), value).run(reader)
    }

    /// Every section within this one, whatever its name, in the order of their names.
    pub(super) fn named<T>(&mut self, mut reader: impl FnMut(&str, &mut Self) -> T) -> Vec<T> {
        std::mem::take(&mut self.entries)
            .into_iter()
            .map(|(name, entry)| {
                let path = self.path_of(&name);
                Self::new(self.report, path, entry.value).run(|section| reader(&name, section))
            })
            .collect()
    }

    /// The sections of an array of tables, in their order. In messages each is called by its key `label`.
    pub(super) fn repeated<T>(
        &mut self,
        key: &'static str,
        label: &str,
        mut reader: impl FnMut(&mut Self) -> T,
    ) -> Vec<T> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let Content::List(values) = value.content else {
            self.wrong(
                key,
                format!("expected sections [[{key}]], found {}; double the brackets", value.kind()),
            );
            return Vec::new();
        };
        let mut results = Vec::with_capacity(values.len());
        for (n, value) in values.into_iter().enumerate() {
            let path = format!("{key}[{}]", value.label(label).unwrap_or_else(|| n.to_string()));
            results.push(Self::new(self.report, path, value).run(&mut reader));
        }
        results
    }

    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// Reports what became clear only when everything was read; with this section if `place` is not known.
    pub(super) fn wrong_at(&self, place: Option<&Place>, path: &str, text: String) {
        self.report.add(Kind::Wrong, place.unwrap_or(&self.place), path, text);
    }
}

impl Value {
    fn label(&self, key: &str) -> Option<String> {
        let Content::Table(table) = &self.content else { return None };
        match &table.get(key)?.value.content {
            Content::Text(text) if text.len() <= 64 => Some(text.escape_debug().to_string()),
            _ => None,
        }
    }
}
