//! Mistakes in the configuration: the place, the key, what is wrong and what to do.
//!
//! Readers add mistakes to a [`Report`] and continue, so that one run shows all of them. A mistake never shows
//! a value that could be a secret.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::FileSettings;
use crate::policy::route::RulePlace;
use crate::vocabulary::spelling::nearest;

/// All mistakes in a configuration, in the order of its files and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    list: Vec<Mistake>,
    unreadable: bool,
    /// `None` where no configuration was read.
    settings: Option<Box<FileSettings>>,
}

impl Mistakes {
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let place = Place::Whole { name: path.display().to_string().into() };
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => "give the user that keygate runs as the right to read it",
            io::ErrorKind::IsADirectory => "name the file in this folder",
            _ => "name the configuration file with --config",
        };
        let text = format!("cannot read the file: {error}; {advice}");
        Self { list: vec![Mistake { place, key: String::new(), text }], unreadable: true, settings: None }
    }

    /// An option of the command line that does not fit the configuration.
    pub(super) fn of_command_line(option: &'static str, text: &str) -> Self {
        Self::from(vec![Mistake::of_command_line(option, text)])
    }

    pub(super) fn knowing(self, settings: FileSettings) -> Self {
        Self { settings: Some(Box::new(settings)), ..self }
    }

    /// The settings that name files, as far as they are right. `None` if no configuration was read.
    #[must_use]
    pub fn settings(&self) -> Option<&FileSettings> {
        self.settings.as_deref()
    }

    /// These mistakes and more, in the order of the files and lines.
    #[must_use]
    pub fn and(mut self, more: impl IntoIterator<Item = Mistake>) -> Self {
        self.list.extend(more);
        self.list.sort_by(|a, b| a.place.cmp(&b.place));
        self
    }

    /// Whether the configuration file itself could not be read, so that nothing was checked.
    #[must_use]
    pub const fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    #[must_use]
    pub const fn len(&self) -> usize {
        self.list.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.list.iter()
    }
}

impl From<Vec<Mistake>> for Mistakes {
    fn from(list: Vec<Mistake>) -> Self {
        Self { list: Vec::new(), unreadable: false, settings: None }.and(list)
    }
}

impl std::error::Error for Mistakes {}

/// One mistake per line.
impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, mistake) in self.list.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

/// What does not keep a gateway from starting, and its operator should know. In the order of the files and lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// Variables that have no effect, though they seem to be meant for keygate.
    pub ignored: Vec<Mistake>,
    /// Settings that are allowed, and rarely meant.
    pub warnings: Vec<Mistake>,
}

/// One mistake, printed as `FILE:LINE:COLUMN: KEY.PATH: what is wrong; what to do`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    place: Place,
    key: String,
    text: String,
}

impl Mistake {
    /// A mistake in the file that the first of these keys names which the configuration has.
    #[must_use]
    pub fn in_file(places: &Places, keys: &[&str], text: String) -> Self {
        let given = keys.iter().find_map(|key| places.of(key));
        let (key, place) =
            given.unwrap_or_else(|| (keys.first().copied().unwrap_or_default(), &places.whole));
        Self { place: place.clone(), key: key.to_owned(), text }
    }

    /// A mistake in the file that a key of a list's section names. `number` is that of the section, from 0.
    #[must_use]
    pub fn in_file_of(places: &Places, list: &str, key: &str, number: Option<usize>, text: String) -> Self {
        let given = number.and_then(|number| places.in_list(list, key, number));
        let (key, place) = given.unwrap_or((list, &places.whole));
        Self { place: place.clone(), key: key.to_owned(), text }
    }

    pub(super) fn of_command_line(option: &'static str, text: &str) -> Self {
        let place = Place::Whole { name: option.into() };
        Self { place, key: String::new(), text: text.to_owned() }
    }
}

/// The keys of a configuration, each with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    list: Vec<(String, Place)>,
    whole: Place,
}

impl Default for Places {
    fn default() -> Self {
        Self { list: Vec::new(), whole: Place::Whole { name: "the configuration".into() } }
    }
}

impl Places {
    fn of(&self, key: &str) -> Option<(&str, &Place)> {
        self.list.iter().find(|(path, _)| path == key).map(|(path, place)| (path.as_str(), place))
    }

    /// A key in the section with this number, from 0, of a list.
    fn in_list(&self, list: &str, key: &str, number: usize) -> Option<(&str, &Place)> {
        let end = format!("].{key}");
        let is_in = |path: &str| {
            path.strip_prefix(list).is_some_and(|rest| rest.starts_with('[')) && path.ends_with(&end)
        };
        let mut found = self.list.iter().filter(|(path, _)| is_in(path));
        found.nth(number).map(|(path, place)| (path.as_str(), place))
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// The place of a key or value. The order is that of the output: by file and line, then the environment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Whole { name: Arc<str> },
    File { document: Document, name: Arc<str>, line: usize, column: usize },
    Variable { name: Arc<str> },
}

/// One of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Document {
    Configuration,
    Policy,
}

impl Place {
    /// The same for a rule of the policy, which is always written in a file.
    pub(super) fn rule_place(&self) -> RulePlace {
        match self {
            Self::File { name, line, .. } => RulePlace { file: Arc::clone(name), line: *line },
            Self::Whole { name } | Self::Variable { name } => RulePlace { file: Arc::clone(name), line: 1 },
        }
    }

    const fn document(&self) -> Option<Document> {
        match self {
            Self::File { document, .. } => Some(*document),
            Self::Whole { .. } | Self::Variable { .. } => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole { name } | Self::Variable { name } => f.write_str(name),
            Self::File { name, line, column, .. } => write!(f, "{name}:{line}:{column}"),
        }
    }
}

/// The mistakes that readers have found so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    found: RefCell<Vec<(Kind, Mistake)>>,
    incomplete: RefCell<BTreeSet<Document>>,
    /// The keys that the file has, in the order in which they were read.
    pub(super) places: RefCell<Vec<(String, Place)>>,
    /// All keys that were asked for: the keys that there are.
    pub(super) asked: RefCell<BTreeSet<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something required is missing.
    Missing,
    /// Something present is wrong.
    Wrong,
    /// A variable that has no effect.
    Ignored,
    /// Something present is allowed, and rarely meant.
    Warning,
}

impl Report {
    pub(super) fn add(&self, kind: Kind, place: &Place, key: &str, text: String) {
        let mistake = Mistake { place: place.clone(), key: key.to_owned(), text };
        self.found.borrow_mut().push((kind, mistake));
    }

    /// Gives another advice to mistakes at a place, unless they have a better one already.
    pub(super) fn advise(&self, at: &Place, advice: &str) {
        for (_, mistake) in self.found.borrow_mut().iter_mut().filter(|(_, mistake)| mistake.place == *at) {
            if let Some((wrong, known)) = mistake.text.split_once("; ")
                && !known.starts_with("did you mean")
            {
                mistake.text = format!("{wrong}; {advice}");
            }
        }
    }

    pub(super) fn places(&self, file: &Path) -> Places {
        let whole = Place::Whole { name: file.display().to_string().into() };
        Places { list: self.places.borrow().clone(), whole }
    }

    /// Some keys of this file could not be read at all.
    pub(super) fn note_incomplete(&self, document: Document) {
        self.incomplete.borrow_mut().insert(document);
    }

    pub(super) fn is_incomplete(&self, document: Document) -> bool {
        self.incomplete.borrow().contains(&document)
    }

    /// The mistakes, without missing keys in a file some keys of which could not be read. With a mistake, a variable
    /// that has no effect is one too, and perhaps the cause.
    pub(super) fn finish(self) -> (Mistakes, Remarks) {
        let (found, incomplete) = (self.found.into_inner(), self.incomplete.into_inner());
        let follows = |kind: Kind, place: &Place| {
            kind == Kind::Missing && place.document().is_some_and(|document| incomplete.contains(&document))
        };
        let (mut list, mut remarks) = (Vec::new(), Remarks::default());
        for (kind, mistake) in found.into_iter().filter(|(kind, m)| !follows(*kind, &m.place)) {
            match kind {
                Kind::Ignored => remarks.ignored.push(mistake),
                Kind::Warning => remarks.warnings.push(mistake),
                Kind::Missing | Kind::Wrong => list.push(mistake),
            }
        }
        if !list.is_empty() {
            list.append(&mut remarks.ignored);
        }
        for list in [&mut list, &mut remarks.ignored, &mut remarks.warnings] {
            list.sort_by(|a, b| a.place.cmp(&b.place));
            list.dedup();
        }
        (Mistakes { list, unreadable: false, settings: None }, remarks)
    }
}

/// `"text"` for a message: escaped, and cut if it is long.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

/// `` `name` `` for a message: escaped, and cut if it is long.
pub(super) fn ticked(name: &str) -> String {
    format!("`{}`", shortened(name).escape_debug())
}

fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    // A URL with a user may contain a password.
    if let Some((scheme, rest)) = text.split_once("://")
        && rest.contains('@')
    {
        return format!("{scheme}://…");
    }
    let mut short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// ``did you mean `x`?``, or the list of all candidates.
pub(super) fn suggestion(name: &str, what: &str, candidates: &[&str]) -> String {
    match nearest(name, candidates.iter().copied()) {
        Some(near) => format!("did you mean {}?", ticked(near)),
        None if candidates.is_empty() => format!("there are no {what}"),
        None => {
            let all: Vec<String> = candidates.iter().map(|candidate| ticked(candidate)).collect();
            format!("the {what} are {}", all.join(", "))
        }
    }
}
