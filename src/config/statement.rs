//! The lines of a TOML text that belong together: headings, and keys with their values. It is a guess, made from how
//! lines begin and where brackets and quotation marks end, for texts that are not TOML everywhere.

use std::fmt;

/// `[name]` or `[[name]]`, also if brackets are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heading {
    pub(super) name: String,
    /// Double brackets.
    pub(super) is_list: bool,
}

impl Heading {
    /// The heading that a line is, or was meant to be.
    pub(super) fn of(line: &str) -> Option<Self> {
        let line = line.split('#').next().unwrap_or_default().trim();
        let inner = line.trim_matches(['[', ']']);
        let is_name = |part: &str| !part.trim().is_empty() && part.trim().bytes().all(is_bare);
        let has_bracket = line.starts_with('[') || line.ends_with(']');
        if !has_bracket || !inner.split('.').all(is_name) {
            return None;
        }
        let is_list = line.starts_with("[[") || line.ends_with("]]");
        Some(Self { name: inner.split('.').map(str::trim).collect::<Vec<_>>().join("."), is_list })
    }
}

impl fmt::Display for Heading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, is_list } = self;
        if *is_list { write!(f, "[[{name}]]") } else { write!(f, "[{name}]") }
    }
}

const fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// The key with which a line begins, with the blanks before it; `None` if no `=` follows a key.
pub(super) fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let is_part = |part: &str| {
        let part = part.trim();
        let inner = part.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        match inner {
            Some(inner) => !inner.contains(['"', '\\']),
            None => !part.is_empty() && part.bytes().all(is_bare),
        }
    };
    key.split('.').all(is_part).then(|| key.trim_end())
}

/// What has no end within its statement, and where it begins: line and column, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    List((usize, usize)),
    Inline((usize, usize)),
    Quote((usize, usize)),
    LongText((usize, usize)),
}

/// Lines that belong together, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) open: Option<Opening>,
}

/// All statements of a text, up to the first that is wrong at least.
pub(super) struct Outline {
    lines: Vec<String>,
    statements: Vec<Statement>,
}

impl Outline {
    pub(super) fn new(lines: &[String]) -> Self {
        let (mut statements, mut line) = (Vec::new(), 0);
        while line < lines.len() {
            let statement = read(lines, line);
            line = statement.last + 1;
            statements.push(statement);
        }
        Self { lines: lines.to_vec(), statements }
    }

    /// The statement of a line. If the parser reads on beyond a statement that has no end, the error is in that one.
    pub(super) fn statement_at(&self, line: usize) -> Statement {
        let before = self.statements.iter().take_while(|statement| statement.first <= line);
        let is_blank = |at: usize| {
            let text = self.lines[at].trim_start();
            text.is_empty() || text.starts_with('#')
        };
        let reaches = |statement: &&Statement| match statement.open {
            Some(Opening::LongText(_)) => true,
            Some(Opening::List(_) | Opening::Inline(_)) => (statement.last + 1..line).all(is_blank),
            Some(Opening::Quote(_)) | None => false,
        };
        let found = before.clone().find(reaches).or_else(|| before.last());
        found.cloned().unwrap_or(Statement { first: 0, last: 0, open: None })
    }

    /// The headings, each with its line.
    pub(super) fn headings(&self) -> impl Iterator<Item = (usize, Heading)> {
        let firsts = self.statements.iter().map(|statement| statement.first);
        firsts.filter_map(|line| Heading::of(&self.lines[line]).map(|heading| (line, heading)))
    }

    /// The last of the lines behind this one that begin no statement: what is left of a value.
    pub(super) fn left_over(&self, line: usize) -> usize {
        let begins = |text: &&String| {
            text.trim().is_empty() || text.trim_start().starts_with('#') || begins_statement(text)
        };
        line + self.lines.iter().skip(line + 1).take_while(|text| !begins(text)).count()
    }

    /// The last line of the section whose heading is in this line.
    pub(super) fn section_end(&self, line: usize) -> usize {
        self.headings().map(|(at, _)| at).find(|at| *at > line).map_or(self.lines.len(), |next| next) - 1
    }
}

/// The statement that begins in this line. One with a bracket that is not closed ends before the next line that looks
/// like a statement and is not indented more. So does a long text without an end.
fn read(lines: &[String], first: usize) -> Statement {
    let indent = indent(&lines[first]);
    if Heading::of(&lines[first]).is_some() {
        return Statement { first, last: first, open: None };
    }
    let mut reader = Reader::default();
    let mut next = None;
    for (line, text) in lines.iter().enumerate().skip(first) {
        let is_next = line > first && self::indent(text) <= indent && begins_statement(text);
        if is_next && !matches!(reader.open.last(), Some(Opening::LongText(_))) {
            return Statement { first, last: line - 1, open: reader.quote.or_else(|| reader.open.pop()) };
        }
        if is_next {
            next.get_or_insert(line);
        }
        reader.read(line, text);
        if reader.open.is_empty() {
            return Statement { first, last: line, open: reader.quote };
        }
    }
    Statement { first, last: next.unwrap_or(lines.len()) - 1, open: reader.open.pop() }
}

fn begins_statement(line: &str) -> bool {
    Heading::of(line).is_some() || key_of(line).is_some()
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Follows brackets and texts through the lines of a statement.
#[derive(Default)]
struct Reader {
    open: Vec<Opening>,
    /// A text that has no end in its line.
    quote: Option<Opening>,
}

impl Reader {
    fn close(&mut self, is_its_own: impl Fn(&Opening) -> bool) {
        self.open.pop_if(|open| is_its_own(open));
    }

    fn read(&mut self, line: usize, text: &str) {
        let mut rest = text.char_indices().peekable();
        let mut column = 0;
        while let Some((at, c)) = rest.next() {
            let place = (line, column);
            column += 1;
            let long = [("\"\"\"", '"'), ("'''", '\'')].iter().find(|(mark, _)| text[at..].starts_with(mark));
            if let Some(Opening::LongText(_)) = self.open.last() {
                if long.is_some() {
                    self.open.pop();
                    rest.nth(1);
                    column += 2;
                }
                continue;
            }
            match c {
                '#' => return,
                '"' | '\'' if long.is_some() => {
                    self.open.push(Opening::LongText(place));
                    rest.nth(1);
                    column += 2;
                }
                '"' | '\'' => {
                    let mut is_ended = false;
                    while let Some((_, inner)) = rest.next() {
                        column += 1;
                        if inner == '\\' && c == '"' {
                            rest.next();
                            column += 1;
                        } else if inner == c {
                            is_ended = true;
                            break;
                        }
                    }
                    if !is_ended {
                        self.quote = Some(Opening::Quote(place));
                    }
                }
                '[' => self.open.push(Opening::List(place)),
                '{' => self.open.push(Opening::Inline(place)),
                ']' => self.close(|open| matches!(open, Opening::List(_))),
                '}' => self.close(|open| matches!(open, Opening::Inline(_))),
                _ => {}
            }
        }
    }
}
