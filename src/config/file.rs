//! A TOML text as a tree whose values know their place in the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Document, Kind, Place, Report};

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
        }
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
    let lines = Lines::new(text, document, name);
    let (tree, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        let advice = match error.message() {
            "duplicate key" => "remove one of the two",
            _ => "correct the syntax",
        };
        let text = format!("invalid TOML: {}; {advice}", error.message());
        report.add(Kind::Syntax { until: lines.spoiled_until(at) }, &lines.place(at), "", text);
    }
    let content = Content::Table(lines.table(tree.get_ref()));
    Value { content, place: lines.place(0), raw: None }
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
}

impl<'t> Lines<'t> {
    fn new(text: &'t str, document: Document, name: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, document, name: name.into(), starts }
    }

    fn place(&self, offset: usize) -> Place {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.line(offset);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Place::File { document: self.document, name: Arc::clone(&self.name), line, column }
    }

    /// The last line that a syntax error makes unreadable: its own line, or the end of the section if the error
    /// is in the section's heading.
    fn spoiled_until(&self, offset: usize) -> usize {
        let line = self.line(offset);
        let is_heading = |line: &str| line.trim_start().starts_with('[');
        let mut texts = self.text.lines().skip(line - 1);
        if texts.next().is_some_and(is_heading) {
            line + texts.take_while(|text| !is_heading(text)).count()
        } else {
            line
        }
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
        let content = self.content(value.get_ref());
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
