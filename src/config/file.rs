//! A TOML text as a tree whose values know their place in the file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::encoding::{self, WrongEncoding};
use super::mistake::{Document, Kind, Place, Report};
use super::repair::{Repaired, SyntaxError, repair};

/// A value and its place.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) content: Content,
    pub(super) place: Place,
    /// The text of a variable: it may be meant as text although it parses as a number.
    pub(super) raw: Option<String>,
}

#[derive(Debug)]
pub(super) enum Content {
    Text(String),
    Integer(i128),
    Boolean(bool),
    List(Vec<Value>),
    Table(Table),
    Decimal,
    Time,
    /// It was in a syntax error, which is reported.
    Unread,
}

pub(super) type Table = BTreeMap<String, Entry>;

#[derive(Debug)]
pub(super) struct Entry {
    /// The place of the key.
    pub(super) key: Place,
    pub(super) value: Value,
}

impl Value {
    /// The kind of the value, for a message. It never shows the value.
    pub(super) const fn kind(&self) -> &'static str {
        match self.content {
            Content::Text(_) => "a string",
            Content::Integer(_) => "an integer",
            Content::Boolean(_) => "true or false",
            Content::List(_) => "a list",
            Content::Table(_) => "a section",
            Content::Decimal => "a decimal number",
            Content::Time => "a date or time",
            Content::Unread => "an unreadable value",
        }
    }

    /// Whether its mistake is reported already.
    pub(super) const fn is_unread(&self) -> bool {
        matches!(self.content, Content::Unread)
    }

    /// Sets the place of the value, and of all values in it.
    fn move_to(&mut self, place: &Place) {
        self.place = place.clone();
        if let Content::List(values) = &mut self.content {
            for value in values {
                value.move_to(place);
            }
        }
    }

    /// The text of a key, if this is a table that has the key.
    pub(super) fn label(&self, key: &str) -> Option<String> {
        let Content::Table(table) = &self.content else { return None };
        match &table.get(key)?.value.content {
            Content::Text(text) if text.len() <= 64 => Some(text.escape_debug().to_string()),
            _ => None,
        }
    }
}

/// The tree of a TOML text, without the parts that cannot be parsed; those are reported.
pub(super) fn parse(text: &str, document: Document, name: &str, report: &Report) -> Value {
    let Repaired { text, errors, unread, is_incomplete } = repair(text);
    let lines = Lines { unread, ..Lines::new(&text, document, name) };
    if is_incomplete {
        report.note_incomplete(document);
    }
    for SyntaxError { line, column, text } in errors {
        report.add(Kind::Wrong, &lines.place_of(line, column), "", text);
    }
    let (tree, _) = DeTable::parse_recoverable(&text);
    let content = Content::Table(lines.table(tree.get_ref()));
    Value { content, place: lines.place(0), raw: None }
}

/// The text of a file. If it is in another encoding, that is reported, and what can be read is returned.
pub(super) fn decode(bytes: &[u8], document: Document, name: &str, report: &Report) -> String {
    let (text, wrong) = encoding::decode(bytes);
    if let Some(WrongEncoding { offset, text: message }) = wrong {
        report.add(Kind::Wrong, &Lines::new(&text, document, name).place(offset), "", message);
    }
    text
}

/// A single TOML value at `place`; `None` if it is not TOML.
pub(super) fn parse_value(text: &str, place: &Place) -> Option<Value> {
    let read = DeValue::parse(text).ok()?;
    let mut value = Lines::new(text, Document::Configuration, "").value(&read);
    value.move_to(place);
    Some(value)
}

/// Finds the line and the column of a byte offset.
struct Lines<'t> {
    text: &'t str,
    document: Document,
    name: Arc<str>,
    starts: Vec<usize>,
    /// The lines whose values cannot be read, counted from 0.
    unread: BTreeSet<usize>,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str, document: Document, name: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, document, name: name.into(), starts, unread: BTreeSet::new() }
    }

    fn place(&self, offset: usize) -> Place {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.line(offset);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Place::File { document: self.document, name: Arc::clone(&self.name), line, column }
    }

    /// Line and column counted from 0.
    fn place_of(&self, line: usize, column: usize) -> Place {
        let name = Arc::clone(&self.name);
        Place::File { document: self.document, name, line: line + 1, column: column + 1 }
    }

    /// Counted from 1.
    fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset).max(1)
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
        let start = value.span().start;
        let is_unread = self.unread.contains(&(self.line(start) - 1));
        let content = if is_unread { Content::Unread } else { self.content(value.get_ref()) };
        Value { content, place: self.place(value.span().start), raw: None }
    }

    fn content(&self, value: &DeValue<'_>) -> Content {
        match value {
            DeValue::String(text) => Content::Text(text.to_string()),
            // A larger number is out of every range, so any large value will do.
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
