//! Environment variables override the configuration file: `KEYGATE__SERVER__LISTEN` sets `listen` in `[server]`.
//!
//! Two underscores separate the parts of a name, case does not matter, and a value that is not TOML is text.

use std::ffi::OsString;

use super::file::{self, Content, Entry, Table, Value};
use super::mistake::{Kind, Place, Report};
use crate::vocabulary::spelling::nearest;

const PREFIX: &str = "KEYGATE__";
/// The depth of the deepest key of the configuration.
const DEEPEST: usize = 4;

/// The variables `KEYGATE__SECTION__KEY` of an environment, in the order of their names, and the names of all others.
pub(super) fn variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> (Vec<(String, OsString)>, Vec<String>) {
    let (mut variables, mut others) = (Vec::new(), Vec::new());
    for (name, value) in environment {
        let name = name.to_string_lossy().into_owned();
        if name.get(..PREFIX.len()).is_some_and(|head| head.eq_ignore_ascii_case(PREFIX)) {
            variables.push((name, value));
        } else {
            others.push(name);
        }
    }
    variables.sort();
    (variables, others)
}

/// Lets variables override the tree of a file.
pub(super) fn overlay(root: &mut Value, variables: Vec<(String, OsString)>, report: &Report) {
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
        return Err(format!("the name has an empty part; write {PREFIX}SECTION__KEY"));
    }
    if keys.len() > DEEPEST {
        return Err(
            "too many parts; write two underscores between two names, and one within a name".to_owned()
        );
    }
    let value = variable(value, place)?;
    let mut at = root;
    for key in keys {
        let kind = at.kind();
        let Content::Table(table) = &mut at.content else {
            return Err(format!(
                "the name goes on behind a key, which holds {kind}; remove the last part of the name"
            ));
        };
        let section = || Value { content: Content::Table(Table::new()), place: place.clone(), raw: None };
        at = &mut table.entry(key).or_insert_with(|| Entry { key: place.clone(), value: section() }).value;
    }
    match &at.content {
        // The loop above created an empty table here if there was no key.
        Content::Table(table) if !(table.is_empty() && at.place == *place) => {
            Err("this is a section; name one of its keys".to_owned())
        }
        _ if matches!(at.place, Place::Variable { .. }) && at.place != *place => {
            Err(format!("{} sets the same key; remove one of the two variables", at.place))
        }
        _ => {
            *at = value;
            Ok(())
        }
    }
}

/// Reports variables of an environment that have no effect, though they seem to mean a key: `KEYGATE_SERVER_LISTEN`.
/// `set` are the names of the variables that have one.
pub(super) fn tell_near_misses(names: &[String], set: &[String], report: &Report) {
    let known = known(report);
    let is_set = |variable: &String| set.iter().any(|name| name.eq_ignore_ascii_case(variable));
    for name in names.iter().filter(|name| *name != ADMIN_TOKEN && !is_of_an_orchestrator(name)) {
        let meant = meant(name, &known);
        // Somebody who has set the right one too may use this one for purposes of their own.
        if !meant.is_empty() && !meant.iter().any(is_set) {
            let place = Place::Variable { name: name.as_str().into() };
            let text = format!("the variable has no effect; {}", did_you_mean(&meant));
            report.add(Kind::Ignored, &place, "", text);
        }
    }
}

/// Says of variables that set no key which key they probably mean: `KEYGATE__SERVER_LISTEN`.
pub(super) fn advise(names: &[String], report: &Report) {
    let known = known(report);
    for name in names {
        let place = Place::Variable { name: name.as_str().into() };
        let meant: Vec<String> = meant(name, &known);
        if !meant.is_empty() && !meant.iter().any(|variable| variable.eq_ignore_ascii_case(name)) {
            report.advise(&place, &did_you_mean(&meant));
        }
    }
}

fn did_you_mean(variables: &[String]) -> String {
    format!("did you mean {}?", variables.join(" or "))
}

/// The keys of the configuration, as in `server.listen`.
fn known(report: &Report) -> Vec<String> {
    let asked = report.asked.borrow();
    asked.iter().filter(|key| key.contains('.') && !key.contains('[')).cloned().collect()
}

/// Read by the commands, and no key of the configuration.
const ADMIN_TOKEN: &str = "KEYGATE_ADMIN_TOKEN";

/// Whether an orchestrator sets such a variable for a service: `KEYGATE_SERVICE_HOST`, `KEYGATE_PORT_8080_TCP_ADDR`.
fn is_of_an_orchestrator(name: &str) -> bool {
    name.split('_').any(|part| part.eq_ignore_ascii_case("port")) || name.ends_with("_SERVICE_HOST")
}

/// The variables that somebody probably means who writes this one.
fn meant(name: &str, known: &[String]) -> Vec<String> {
    /// In characters: shorter names, such as `url`, may well be meant for other programs.
    const SHORTEST: usize = 6;
    const MISTYPED: usize = 2;
    let whole = squeezed(name);
    let first = name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let (rest, is_certain) = match whole.strip_prefix("keygate") {
        Some(rest) => (rest, true),
        None if nearest(first, ["keygate"]).is_some() => (&whole[squeezed(first).len()..], false),
        None => return Vec::new(),
    };
    let those = |is_meant: &dyn Fn(&str) -> bool| -> Vec<String> {
        known.iter().filter(|key| is_meant(key)).map(|key| variable_of(key)).collect()
    };
    let exactly = those(&|key| squeezed(key) == rest);
    if !exactly.is_empty() || !is_certain {
        return exactly;
    }
    let of_a_section = those(&|key| {
        let last = key.rsplit('.').next().unwrap_or_default();
        last.len() >= SHORTEST && squeezed(last) == rest
    });
    if !of_a_section.is_empty() || rest.len() > LONGEST {
        return of_a_section;
    }
    those(&|key| strsim::damerau_levenshtein(&squeezed(key), rest) <= MISTYPED)
}

/// Longer names are no typing errors, and comparing them would take long.
const LONGEST: usize = 64;

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// The letters and digits of a name, in lower case.
fn squeezed(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// A variable's value: TOML if it parses as TOML, else text.
fn variable(value: OsString, place: &Place) -> Result<Value, String> {
    let raw = value.into_string().map_err(|_| "the value is not UTF-8; encode it as UTF-8".to_owned())?;
    let as_text = || Value { content: Content::Text(raw.clone()), place: place.clone(), raw: None };
    let mut read = file::parse_value(&raw, place).unwrap_or_else(as_text);
    if matches!(read.content, Content::Table(_)) {
        return Err("the value is a table; set each of its keys by a variable of its own".to_owned());
    }
    read.raw = Some(raw);
    Ok(read)
}
