//! Environment variables override the configuration file: `KEYGATE__SERVER__LISTEN` sets `listen` in `[server]`.
//!
//! Two underscores separate the parts of a name, case does not matter, and a value that is not TOML is text.

use std::ffi::OsString;

use super::file::{self, Content, Entry, Table, Value};
use super::mistake::{Kind, Place, Report};

const PREFIX: &str = "KEYGATE__";
/// The depth of the deepest key of the configuration.
const DEEPEST: usize = 4;

/// The variables `KEYGATE__SECTION__KEY` of an environment, in the order of their names.
pub(super) fn variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<(String, OsString)> {
    let mut variables: Vec<(String, OsString)> = environment
        .into_iter()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.get(..PREFIX.len()).is_some_and(|head| head.eq_ignore_ascii_case(PREFIX)))
        .collect();
    variables.sort();
    variables
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
