//! Mistakes in the configuration: the place, the key, what is wrong and what to do.
//!
//! Readers add mistakes to a [`Report`] and continue, so that one run shows all of them. A mistake never shows
//! a value that could be a secret.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::policy::route::RulePlace;
use crate::vocabulary::spelling::nearest;

/// All mistakes in a configuration, in the order of its files and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    list: Vec<Mistake>,
    unreadable: bool,
}

impl Mistakes {
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let place = Place::Whole { name: path.display().to_string().into() };
        let text = format!("cannot read the file: {error}; name the configuration file with --config");
        Self { list: vec![Mistake { place, key: String::new(), text }], unreadable: true }
    }

    /// An option of the command line that does not fit the configuration.
    pub(super) fn of_command_line(option: &'static str, text: &str) -> Self {
        let place = Place::Whole { name: option.into() };
        Self { list: vec![Mistake { place, key: String::new(), text: text.to_owned() }], unreadable: false }
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
    /// Whether `other` is in the same file, between this line and the line `until`.
    fn covers(&self, until: usize, other: &Self) -> bool {
        match (self, other) {
            (Self::File { document, line, .. }, Self::File { document: there, line: at, .. }) => {
                document == there && (line..=&until).contains(&at)
            }
            _ => false,
        }
    }

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
    /// All keys that were asked for: the keys that there are.
    pub(super) asked: RefCell<std::collections::BTreeSet<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Invalid TOML. Mistakes from this line to the line `until` may only follow from it, so they are dropped.
    Syntax { until: usize },
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

    /// The mistakes, without those that may only follow from invalid TOML: other mistakes in the same lines, and
    /// missing keys in the same file. With a mistake, a variable that has no effect is one too, and perhaps the cause.
    pub(super) fn finish(self) -> (Mistakes, Remarks) {
        let found = self.found.into_inner();
        let syntax: Vec<(usize, Place)> = found
            .iter()
            .filter_map(|(kind, mistake)| match kind {
                Kind::Syntax { until } => Some((*until, mistake.place.clone())),
                Kind::Missing | Kind::Wrong | Kind::Ignored | Kind::Warning => None,
            })
            .collect();
        let follows = |kind: Kind, place: &Place| match kind {
            Kind::Syntax { .. } | Kind::Ignored | Kind::Warning => false,
            Kind::Missing => syntax.iter().any(|(_, at)| at.document() == place.document()),
            Kind::Wrong => syntax.iter().any(|(until, at)| at.covers(*until, place)),
        };
        let (mut list, mut remarks) = (Vec::new(), Remarks::default());
        for (kind, mistake) in found.into_iter().filter(|(kind, m)| !follows(*kind, &m.place)) {
            match kind {
                Kind::Ignored => remarks.ignored.push(mistake),
                Kind::Warning => remarks.warnings.push(mistake),
                Kind::Syntax { .. } | Kind::Missing | Kind::Wrong => list.push(mistake),
            }
        }
        if !list.is_empty() {
            list.append(&mut remarks.ignored);
        }
        for list in [&mut list, &mut remarks.ignored, &mut remarks.warnings] {
            list.sort_by(|a, b| a.place.cmp(&b.place));
            list.dedup();
        }
        (Mistakes { list, unreadable: false }, remarks)
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
