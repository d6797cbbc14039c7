//! A TOML text with syntax errors, made readable: each error is told once, and the rest of the text can still be read.
//!
//! The parser goes on after an error as well as it can, but after a bracket that is missing it takes everything that
//! follows for a part of one list. So the first error is found, its statement is taken out, and the rest is parsed
//! again. The text keeps its lines, so places stay right.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use toml::de::DeTable;

use super::statement::{Heading, Opening, Outline, Statement, key_of};

/// Errors that are told; a text with more is probably no TOML at all.
const MOST: usize = 50;

/// A syntax error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Counted from 0.
    pub(super) line: usize,
    /// In characters, counted from 0.
    pub(super) column: usize,
    pub(super) text: String,
}

/// A text that can be parsed.
#[derive(Debug, Default)]
pub(super) struct Repaired {
    pub(super) text: String,
    pub(super) errors: Vec<SyntaxError>,
    /// Lines, counted from 0, whose value is only in the place of one that cannot be read.
    pub(super) unread: BTreeSet<usize>,
    /// Whether keys were taken out together with their values, so that a key which is missing may be one of them.
    pub(super) is_incomplete: bool,
}

pub(super) fn repair(text: &str) -> Repaired {
    let mut repair = Repair {
        lines: text.split('\n').map(str::to_owned).collect(),
        done: Repaired { text: text.to_owned(), ..Repaired::default() },
    };
    for _ in 0..MOST {
        let (_, errors) = DeTable::parse_recoverable(&repair.done.text);
        let first = errors.iter().min_by_key(|error| error.span().map_or(0, |span| span.start));
        let Some(error) = first else { return repair.done };
        let span = error.span().unwrap_or(0..0);
        let found = Found {
            message: error.message().to_owned(),
            name: repair.done.text.get(span.clone()).unwrap_or_default().to_owned(),
            place: repair.place(span.start),
        };
        repair.mend(&found);
        let text = repair.lines.join("\n");
        if text == repair.done.text {
            break;
        }
        repair.done.text = text;
    }
    Repaired { text: String::new(), is_incomplete: true, ..repair.done }
}

/// What the parser says.
struct Found {
    message: String,
    /// The text that it points at.
    name: String,
    /// Line and column.
    place: (usize, usize),
}

struct Repair {
    lines: Vec<String>,
    done: Repaired,
}

impl Repair {
    fn place(&self, offset: usize) -> (usize, usize) {
        let before = &self.done.text[..self.done.text.floor_char_boundary(offset)];
        let line = before.matches('\n').count();
        (line, before.rsplit('\n').next().unwrap_or_default().chars().count())
    }

    fn tell(&mut self, (line, column): (usize, usize), text: String) {
        self.done.errors.push(SyntaxError { line, column, text });
    }

    fn mend(&mut self, found: &Found) {
        let outline = Outline::new(&self.lines);
        let mut statement = outline.statement_at(found.place.0);
        let first = self.lines.get(statement.first).cloned().unwrap_or_default();
        if found.message == "duplicate key" {
            return self.mend_duplicate(found, &outline, &statement);
        }
        if let Some(heading) = Heading::of(&first) {
            let repaired = heading.to_string();
            self.tell(found.place, format!("invalid TOML: {}; write {repaired}", found.message));
            return self.replace_heading(statement.first, &repaired, &outline);
        }
        let is_beyond = found.place.0 > statement.last;
        let (place, text) = match &statement.open {
            Some(Opening::Quote(place)) if *place <= found.place => {
                (*place, unended("text", "the quotation mark"))
            }
            Some(Opening::LongText(place)) => (*place, unended("text", "its three quotation marks")),
            Some(Opening::List(place)) if is_beyond => (*place, unended("list", "]")),
            Some(Opening::Inline(place)) if is_beyond => (*place, unended("section", "}")),
            _ if found.message == "missing opening quote"
                || found.message.contains("invalid basic string") =>
            {
                (
                    found.place,
                    "invalid TOML: a quotation mark is missing in this line; put the text in quotes"
                        .to_owned(),
                )
            }
            _ => (found.place, explain(&first, &found.message)),
        };
        self.tell(place, text);
        statement.last = outline.left_over(statement.last);
        self.take_out(&statement);
    }

    /// Puts a value that can be parsed in the place of one that cannot, or removes the statement if it has no key.
    fn take_out(&mut self, statement: &Statement) {
        let key =
            key_of(&self.lines[statement.first]).filter(|_| !self.done.unread.contains(&statement.first));
        match key.map(|key| format!("{key} = 0")) {
            Some(line) => {
                self.blank(statement.first..=statement.last);
                self.lines[statement.first] = line;
                self.done.unread.insert(statement.first);
            }
            None => self.remove(statement.first..=statement.last),
        }
    }

    fn remove(&mut self, lines: RangeInclusive<usize>) {
        self.blank(lines);
        self.done.is_incomplete = true;
    }

    fn blank(&mut self, lines: RangeInclusive<usize>) {
        for line in lines {
            self.lines[line].clear();
            self.done.unread.remove(&line);
        }
    }

    /// If the heading is as it should be already, its section cannot be read.
    fn replace_heading(&mut self, line: usize, heading: &str, outline: &Outline) {
        if self.lines[line].trim() == heading {
            self.remove(line..=outline.section_end(line));
        } else {
            heading.clone_into(&mut self.lines[line]);
        }
    }

    fn mend_duplicate(&mut self, found: &Found, outline: &Outline, statement: &Statement) {
        let name = shown(&found.name);
        let line = statement.first;
        if let Some(heading) = Heading::of(&self.lines[line]) {
            let others = outline.headings().filter(|(other, _)| *other < line);
            let Some((earlier, other)) = others.filter(|(_, other)| other.name == heading.name).last() else {
                self.tell(
                    found.place,
                    format!("invalid TOML: `{name}` is not only a section; rename one of the two"),
                );
                return self.remove(line..=outline.section_end(line));
            };
            if other.is_list != heading.is_list {
                // One of them has lost brackets. A list of sections can have one section; a section cannot be a list.
                let (single, double) = if heading.is_list { (earlier, line) } else { (line, earlier) };
                let repaired = Heading { is_list: true, ..heading }.to_string();
                self.tell(
                    (single, 0),
                    format!(
                        "a heading with single brackets, and with double ones in line {}; write {repaired}",
                        double + 1
                    ),
                );
                repaired.clone_into(&mut self.lines[single]);
                return;
            }
            let text = format!(
                "{heading} stands twice, lines {} and {}; put its keys below one heading",
                earlier + 1,
                line + 1
            );
            self.tell((line, 0), text);
            return self.remove(line..=outline.section_end(line));
        }
        let heading = outline.headings().take_while(|(other, _)| *other < line).last();
        let begin = heading.as_ref().map_or(0, |(at, _)| at + 1);
        let same = |at: &usize| key_of(&self.lines[*at]).is_some_and(|key| key.trim() == name);
        let text = match ((begin..line).find(same), same(&line)) {
            (Some(earlier), true) => {
                let section = heading.map_or_else(String::new, |(_, heading)| format!(" in {heading}"));
                format!("`{name}` stands twice{section}, lines {} and {}; remove one", earlier + 1, line + 1)
            }
            _ => format!("`{name}` stands twice; remove one"),
        };
        let has_key = same(&line);
        self.tell(found.place, text);
        if has_key { self.blank(line..=statement.last) } else { self.take_out(statement) }
    }
}

/// The parser's message, or a better one where a value is missing, or is a text without quotation marks.
fn explain(line: &str, message: &str) -> String {
    let value = key_of(line).and_then(|key| line[key.len()..].trim_start().strip_prefix('='));
    let value = value.map(|value| value.split('#').next().unwrap_or_default().trim());
    let is_number = |value: &str| value.bytes().all(|b| b.is_ascii_digit() || b"+-._eExob:TZ".contains(&b));
    match value {
        Some("") => "invalid TOML: there is no value; write one behind the =".to_owned(),
        Some(text)
            if !text.starts_with(['"', '\'', '[', '{']) && (!is_number(text) || text.contains(':')) =>
        {
            "invalid TOML: a text stands in quotation marks; put it in quotes".to_owned()
        }
        _ => format!("invalid TOML: {message}; correct the syntax"),
    }
}

fn unended(what: &str, end: &str) -> String {
    format!("invalid TOML: the {what} that begins here has no end; write {end} behind it")
}

/// A key for a message.
fn shown(key: &str) -> String {
    key.chars().take(80).flat_map(char::escape_debug).collect()
}
