//! The API's description (OpenAPI 3.1), and checks of answers against it.
//!
//! Only the keywords of JSON Schema that the description uses are supported; any other keyword fails the test. An
//! object must have no property that the description does not name.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::Value;

use super::client::{Answer, Call};

static DESCRIPTION: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(keygate::api::DESCRIPTION).expect("the description is JSON"));

/// Keywords of a schema that do not affect validity.
const REMARKS: [&str; 3] = ["description", "examples", "default"];

pub(crate) fn description() -> &'static Value {
    &DESCRIPTION
}

/// The target of `$ref`, or the value itself.
pub(crate) fn resolve(value: &'static Value) -> &'static Value {
    let Some(reference) = value.get("$ref") else { return value };
    let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
    description().pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

/// Asserts that an answer matches the description in every part.
#[track_caller]
pub(crate) fn assert_described(call: &Call, answer: &Answer) {
    if let Err(cause) = check_answer(call, answer) {
        panic!("{} {}: {cause}\n{} {}", call.method, call.target, answer.status, answer.text());
    }
}

fn check_answer(call: &Call, answer: &Answer) -> Result<(), String> {
    let path = call.target.split('?').next().unwrap();
    let method = if call.method == "HEAD" { "get".to_owned() } else { call.method.to_lowercase() };
    let operation = operation(path, &method).ok_or("it is not described")?;
    let response = operation["responses"].get(answer.status.to_string()).ok_or("no such status")?;
    let response = resolve(response);
    for (name, header) in response["headers"].as_object().unwrap() {
        let header = resolve(header);
        let Some(value) = answer.field(&name.to_lowercase()) else {
            if header["required"] == false {
                continue;
            }
            return Err(format!("{name} is missing"));
        };
        let schema = resolve(&header["schema"]);
        let value = if schema["type"] == "integer" { value.parse().ok() } else { Some(value.into()) };
        check(schema, &value.ok_or_else(|| format!("{name} is no number"))?, name)?;
    }
    match response.get("content") {
        None if answer.body.is_empty() => Ok(()),
        None => Err("there is a body".to_owned()),
        Some(_) if answer.field("content-type") != Some("application/json") => {
            Err("its type is not JSON".to_owned())
        }
        Some(_) if call.method == "HEAD" && answer.body.is_empty() => Ok(()),
        Some(content) => check(&content["application/json"]["schema"], &answer.json(), "body"),
    }
}

/// The operation of a path, found as a router does: a literal before a parameter.
fn operation(path: &str, method: &str) -> Option<&'static Value> {
    let parts: Vec<&str> = path.split('/').collect();
    let matches = |template: &str| {
        let template: Vec<&str> = template.split('/').collect();
        template.len() == parts.len()
            && template.iter().zip(&parts).all(|(own, part)| own.starts_with('{') || own == part)
    };
    let paths = description()["paths"].as_object().unwrap();
    let found = paths.iter().filter(|(template, _)| matches(template));
    found.min_by_key(|(template, _)| template.matches('{').count())?.1.get(method)
}

/// Checks a value against a schema.
///
/// # Errors
/// The place and the reason of a mismatch.
pub(crate) fn check(schema: &'static Value, value: &Value, at: &str) -> Result<(), String> {
    check_words(schema, value, at)?;
    let Some(object) = value.as_object() else { return Ok(()) };
    let Some(known) = properties(schema) else { return Ok(()) };
    match object.keys().find(|name| !known.contains(name.as_str())) {
        Some(name) => Err(format!("{at}.{name} is not described")),
        None => Ok(()),
    }
}

/// All properties that a schema names; `None` if it allows any, or refers to other schemas.
fn properties(schema: &'static Value) -> Option<BTreeSet<&'static str>> {
    let schema = resolve(schema);
    if schema.get("oneOf").is_some() || schema.get("additionalProperties") == Some(&Value::Bool(true)) {
        return None;
    }
    let own = schema.get("properties").and_then(Value::as_object);
    let mut known: BTreeSet<&str> = own.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    for part in schema.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        known.extend(properties(part)?);
    }
    Some(known)
}

fn check_words(schema: &'static Value, value: &Value, at: &str) -> Result<(), String> {
    let no = |cause: String| Err(format!("{at} is {value}: {cause}"));
    for (word, wanted) in schema.as_object().unwrap() {
        let holds = match word.as_str() {
            "$ref" => {
                check_words(resolve(schema), value, at)?;
                true
            }
            "type" => is_of_type(wanted, value),
            "const" => value == wanted,
            "enum" => wanted.as_array().unwrap().contains(value),
            "required" => wanted.as_array().unwrap().iter().all(|name| {
                value.as_object().is_none_or(|object| object.contains_key(name.as_str().unwrap()))
            }),
            "properties" => {
                for (name, schema) in wanted.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(schema, value, &format!("{at}.{name}"))?;
                    }
                }
                true
            }
            "items" => {
                for (n, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(wanted, value, &format!("{at}[{n}]"))?;
                }
                true
            }
            "allOf" => {
                for schema in wanted.as_array().unwrap() {
                    check_words(schema, value, at)?;
                }
                true
            }
            "oneOf" => {
                let schemas = wanted.as_array().unwrap().iter();
                schemas.filter(|schema| check(schema, value, at).is_ok()).count() == 1
            }
            "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= number(wanted)),
            "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= number(wanted)),
            "minLength" => value.as_str().is_none_or(|text| text.chars().count() as u64 >= number(wanted)),
            "maxLength" => value.as_str().is_none_or(|text| text.chars().count() as u64 <= number(wanted)),
            "minimum" => value.as_u64().is_none_or(|n| n >= number(wanted)),
            "maximum" => value.as_u64().is_none_or(|n| n <= number(wanted)),
            "pattern" => value.as_str().is_none_or(|text| matches(wanted.as_str().unwrap(), text)),
            "format" if wanted == "date-time" => value.as_str().is_none_or(is_time),
            "additionalProperties" => true,
            word if REMARKS.contains(&word) => true,
            word => panic!("the description uses {word}, which these tests do not understand"),
        };
        if !holds {
            return no(format!("{word} says {wanted}"));
        }
    }
    Ok(())
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn is_of_type(wanted: &Value, value: &Value) -> bool {
    match wanted.as_str() {
        None => wanted.as_array().unwrap().iter().any(|wanted| is_of_type(wanted, value)),
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some(other) => panic!("there is no type {other}"),
    }
}

/// In UTC, with milliseconds, so that a time has one spelling.
fn is_time(text: &str) -> bool {
    text.len() == "2030-01-31T12:00:00.000Z".len() && humantime::parse_rfc3339(text).is_ok()
}

/// The regular expressions that the description has: `^`, classes and groups of words with or without a count,
/// plain characters, `$`. A class ends where another character begins, so nothing is ever tried twice.
fn matches(pattern: &str, text: &str) -> bool {
    let whole = pattern.strip_prefix('^').and_then(|pattern| pattern.strip_suffix('$'));
    let (mut pattern, mut text) = (whole.expect("a pattern of the whole"), text);
    while let Some(first) = pattern.chars().next() {
        let rest = match first {
            '[' => {
                let (class, after) = pattern[1..].split_once(']').unwrap();
                let (least, most, after) = count(after);
                pattern = after;
                let found = text.chars().take(most).take_while(|c| is_in(class, *c)).map(char::len_utf8);
                let (number, length) = found.fold((0, 0), |(n, sum), len| (n + 1, sum + len));
                (number >= least).then(|| &text[length..])
            }
            '(' => {
                let (words, after) = pattern[1..].split_once(')').unwrap();
                pattern = after;
                words.split('|').find_map(|word| text.strip_prefix(word))
            }
            plain => {
                pattern = &pattern[plain.len_utf8()..];
                text.strip_prefix(plain)
            }
        };
        let Some(rest) = rest else { return false };
        text = rest;
    }
    text.is_empty()
}

/// The count after a class, and the rest.
fn count(pattern: &str) -> (usize, usize, &str) {
    let Some(counted) = pattern.strip_prefix('{') else { return (1, 1, pattern) };
    let (counts, after) = counted.split_once('}').unwrap();
    let (least, most) = counts.split_once(',').unwrap_or((counts, counts));
    (least.parse().unwrap(), most.parse().unwrap(), after)
}

fn is_in(class: &str, c: char) -> bool {
    let class: Vec<char> = class.chars().collect();
    let range = |at: usize| class.get(at + 1) == Some(&'-') && at + 2 < class.len();
    let mut at = 0;
    while at < class.len() {
        let (first, last, step) =
            if range(at) { (class[at], class[at + 2], 3) } else { (class[at], class[at], 1) };
        if (first..=last).contains(&c) {
            return true;
        }
        at += step;
    }
    false
}

#[test]
fn patterns_take_what_they_say_and_nothing_else() {
    let id = "^key_[0-9A-HJKMNP-TV-Z]{26}$";
    assert!(matches(id, "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM"));
    for bad in ["key_01J9ZQ6T5N8XKD3V4WPYB7C2H", "key_01J9ZQ6T5N8XKD3V4WPYB7C2HMM", "key_", "org_01J9ZQ6T5N8"]
    {
        assert!(!matches(id, bad), "{bad}");
    }
    assert!(!matches(id, "key_01J9ZQ6T5N8XKD3V4WPYB7C2HU"), "no U in Crockford's alphabet");
    let masked = "^[a-z0-9]{1,16}_(live|test)_sk_…[0-9A-Za-z]{4}$";
    assert!(matches(masked, "fh_test_sk_…aB3x") && !matches(masked, "fh_dev_sk_…aB3x"));
    let scope = "^[a-z0-9][a-z0-9_.:-]{0,63}$";
    assert!(matches(scope, "jobs:read") && matches(scope, "a") && matches(scope, "a-b"));
    assert!(!matches(scope, "Jobs") && !matches(scope, ""));
}
