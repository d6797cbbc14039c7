//! Readers of single values: each takes a [`Value`] and returns its content, or a message that says what to write
//! instead.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::file::{Content, Value};
use super::mistake::quoted;
use crate::vocabulary::network::parse_address;
use crate::vocabulary::spelling::nearest;

/// The shortest time-out that is allowed.
pub(super) const INSTANT: Duration = Duration::from_millis(1);
/// The longest time-out that is allowed.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest time for which anything is kept.
pub(super) const CENTURY: Duration = Duration::from_secs(36_525 * 24 * 60 * 60);

pub(super) fn text(value: &Value) -> Result<String, String> {
    as_text(value).map(str::to_owned).ok_or_else(|| wrong_kind(value, "a string", "put it in quotes"))
}

pub(super) fn flag(value: &Value) -> Result<bool, String> {
    match value.content {
        Content::Boolean(yes) => Ok(yes),
        _ => Err(wrong_kind(value, "true or false", "write it without quotes")),
    }
}

/// A flag that has a meaning only if it is true.
pub(super) fn only_true(value: &Value) -> Result<(), String> {
    if flag(value)? { Ok(()) } else { Err("only true is allowed; remove the key instead".to_owned()) }
}

/// A text that `parse` reads. The message shows the text, so never use this for a secret.
pub(super) fn parsed<T, E: fmt::Display>(
    parse: impl Fn(&str) -> Result<T, E>,
) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let text = text(value)?;
        parse(&text).map_err(|error| format!("invalid value {}; {error}", quoted(&text)))
    }
}

/// One of several words.
pub(super) fn choice<T: Clone>(words: &[(&str, T)]) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let given = text(value)?;
        if let Some((_, chosen)) = words.iter().find(|(word, _)| *word == given) {
            return Ok(chosen.clone());
        }
        let advice = match nearest(&given, words.iter().map(|(word, _)| *word)) {
            Some(near) => format!("did you mean {}?", quoted(near)),
            None => {
                let all: Vec<String> = words.iter().map(|(word, _)| quoted(word)).collect();
                format!("write {}", all.join(" or "))
            }
        };
        Err(format!("invalid value {}; {advice}", quoted(&given)))
    }
}

pub(super) fn address(value: &Value) -> Result<SocketAddr, String> {
    parsed(parse_address)(value)
}

/// An address, or "off".
pub(super) fn address_or_off(value: &Value) -> Result<Option<SocketAddr>, String> {
    let advice = "write an address and a port, as in \"127.0.0.1:9464\", or \"off\"";
    let parse = |text: &str| match text {
        "off" => Ok(None),
        address => parse_address(address).map(Some).map_err(|_| advice),
    };
    parsed(parse)(value)
}

pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Result<Duration, String> {
    const ADVICE: &str = "write a number and a unit in quotes, as in \"75s\", \"5m\" or \"24h\"";
    move |value| {
        let text = as_text(value).ok_or_else(|| wrong_kind(value, "a duration", ADVICE))?;
        let duration = humantime::parse_duration(text)
            .map_err(|_| format!("{} is not a duration; {ADVICE}", quoted(text)))?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let [least, most] = [*range.start(), *range.end()].map(humantime::format_duration);
        Err(format!("{} is out of range; write a value from {least} to {most}", quoted(text)))
    }
}

pub(super) fn count<N>(range: RangeInclusive<N>) -> impl Fn(&Value) -> Result<N, String>
where
    N: Copy + PartialOrd + fmt::Display + TryFrom<i128>,
{
    move |value| {
        let Content::Integer(given) = value.content else {
            return Err(wrong_kind(value, "an integer", "write a number without quotes"));
        };
        N::try_from(given).ok().filter(|n| range.contains(n)).ok_or_else(|| {
            format!("{given} is out of range; write a value from {} to {}", range.start(), range.end())
        })
    }
}

/// A number of bytes: an integer, or a text with a unit.
pub(super) fn size<N>(range: RangeInclusive<N>) -> impl Fn(&Value) -> Result<N, String>
where
    N: Copy + PartialOrd + TryFrom<u64> + TryInto<u64>,
{
    const ADVICE: &str = "write bytes, as in 65536, or a unit in quotes: \"64KiB\", \"128MiB\", \"1GiB\"";
    move |value| {
        let (shown, bytes) = match &value.content {
            Content::Integer(n) => (n.to_string(), u64::try_from(*n).ok()),
            Content::Text(text) => {
                let bytes =
                    parse_size(text).ok_or_else(|| format!("{} is not a size; {ADVICE}", quoted(text)))?;
                (quoted(text), Some(bytes))
            }
            _ => return Err(wrong_kind(value, "a size", ADVICE)),
        };
        bytes.and_then(|bytes| N::try_from(bytes).ok()).filter(|n| range.contains(n)).ok_or_else(|| {
            let [least, most] =
                [*range.start(), *range.end()].map(|n| Bytes(n.try_into().unwrap_or(u64::MAX)));
            format!("{shown} is out of range; write a value from {least} to {most}")
        })
    }
}

const UNITS: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = UNITS
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|number| (number.trim_end(), *shift)))
        .unwrap_or((text, 0));
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(1 << shift)
}

/// A number of bytes, printed with the largest unit that divides it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, shift): &&(&str, u32)| self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift);
        match UNITS.iter().find(whole) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// The text of a string, or of a variable, which may be meant as text although it parses as another kind.
fn as_text(value: &Value) -> Option<&str> {
    match &value.content {
        Content::Text(text) => Some(text),
        Content::Integer(_) | Content::Boolean(_) | Content::Decimal | Content::Time => value.raw.as_deref(),
        Content::List(_) | Content::Table(_) | Content::Unread => None,
    }
}

fn wrong_kind(value: &Value, expected: &str, advice: &str) -> String {
    format!("expected {expected}, found {}; {advice}", value.kind())
}
