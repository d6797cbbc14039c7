//! The JSON body of an operation, read field by field: every mistake is found, not just the first.

use std::fmt;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use crate::lifecycle::parse_network;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::scope::{Scope, ScopeSet};
use crate::vocabulary::rejection::{FieldError, Rejection};

/// The longest part of an unknown field's name in an answer, in characters.
const SHOWN: usize = 64;

/// The fields of a body, taken out one by one.
pub(super) struct Body {
    fields: Vec<(String, Value)>,
    errors: Vec<FieldError>,
}

impl Body {
    /// Takes one JSON object; an empty body is an object without fields.
    ///
    /// # Errors
    /// 400 for anything else, and for an object with a duplicate field, because two parsers could read different values.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Rejection> {
        let fields = if bytes.is_empty() {
            Vec::new()
        } else {
            serde_json::from_slice::<Fields>(bytes).map_err(|_| Rejection::InvalidBody)?.0
        };
        Ok(Self { fields, errors: Vec::new() })
    }

    /// The value of a field; `None` if it is absent or invalid.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Value) -> Result<T, &'static str>,
    ) -> Option<T> {
        let at = self.fields.iter().position(|(field, _)| field == name)?;
        let (_, value) = self.fields.swap_remove(at);
        read(&value).map_err(|message| self.errors.push(FieldError::new(name, message))).ok()
    }

    /// The same for a required field.
    pub(super) fn require<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Value) -> Result<T, &'static str>,
    ) -> Option<T> {
        let (there, before) = (self.fields.len(), self.errors.len());
        let value = self.take(name, read);
        if self.fields.len() == there && self.errors.len() == before {
            self.errors.push(FieldError::new(name, "is missing"));
        }
        value
    }

    /// Whether there was no mistake so far, and no unknown field is left.
    pub(super) const fn is_clean(&self) -> bool {
        self.fields.is_empty() && self.errors.is_empty()
    }

    /// Reports every mistake, also unknown fields.
    pub(super) fn finish(self) -> Result<(), Rejection> {
        self.finish_with(Vec::new())
    }

    /// The same, with further mistakes in the values. A field has at most one mistake: the first.
    pub(super) fn finish_with(self, more: Vec<FieldError>) -> Result<(), Rejection> {
        let Self { fields, mut errors } = self;
        let fresh: Vec<FieldError> =
            more.into_iter().filter(|error| errors.iter().all(|known| known.field != error.field)).collect();
        errors.extend(fresh);
        errors.extend(fields.into_iter().map(|(name, _)| FieldError {
            field: name.chars().take(SHOWN).collect::<String>().into(),
            message: "is not a field of this request".into(),
        }));
        if errors.is_empty() { Ok(()) } else { Err(Rejection::Invalid(errors.into())) }
    }
}

struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields: Vec<(String, Value)> = Vec::new();
                while let Some((name, value)) = map.next_entry()? {
                    if fields.iter().any(|(field, _)| *field == name) {
                        return Err(A::Error::custom("duplicate field"));
                    }
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Once)
    }
}

pub(super) fn text(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err("must be a string"),
    }
}

/// A string, or null for none.
pub(super) fn nullable_text(value: &Value) -> Result<Option<String>, &'static str> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        _ => Err("must be a string or null"),
    }
}

pub(super) fn time(value: &Value) -> Result<UnixMillis, &'static str> {
    const MESSAGE: &str = "must be a time in RFC 3339, as in 2030-01-31T12:00:00Z";
    UnixMillis::parse(value.as_str().ok_or(MESSAGE)?).map_err(|_| MESSAGE)
}

/// A time, or null for none.
pub(super) fn nullable_time(value: &Value) -> Result<Option<UnixMillis>, &'static str> {
    if value.is_null() { Ok(None) } else { time(value).map(Some) }
}

pub(super) fn scopes(value: &Value) -> Result<ScopeSet, &'static str> {
    const MESSAGE: &str = "must be a list of scopes, as in [\"jobs:read\"]";
    let Value::Array(values) = value else { return Err(MESSAGE) };
    let scope = |value: &Value| value.as_str().and_then(|text| Scope::parse(text).ok()).ok_or(MESSAGE);
    values.iter().map(scope).collect()
}

pub(super) fn networks(value: &Value) -> Result<Vec<IpNet>, &'static str> {
    const MESSAGE: &str = "must be a list of networks or addresses, as in [\"192.0.2.0/24\"]";
    let Value::Array(values) = value else { return Err(MESSAGE) };
    values.iter().map(|value| parse_network(value.as_str().ok_or(MESSAGE)?)).collect()
}

pub(super) fn seconds(value: &Value) -> Result<Duration, &'static str> {
    value.as_u64().map(Duration::from_secs).ok_or("must be a whole number of seconds")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn errors(body: Body) -> Vec<String> {
        match body.finish() {
            Ok(()) => Vec::new(),
            Err(Rejection::Invalid(errors)) => errors.iter().map(ToString::to_string).collect(),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let mut body = Body::parse(br#"{"name": 1, "scopes": "x", "extra": {}}"#).unwrap();
        assert_eq!(body.require("name", text), None);
        assert_eq!(body.require("email", text), None);
        assert_eq!(body.take("scopes", scopes), None);
        assert_eq!(body.take("note", nullable_text), None);
        assert_eq!(
            errors(body),
            [
                "name: must be a string",
                "email: is missing",
                "scopes: must be a list of scopes, as in [\"jobs:read\"]",
                "extra: is not a field of this request",
            ]
        );
    }

    #[test]
    fn a_body_that_is_ambiguous_or_no_object_is_refused() {
        for bad in [&b"[]"[..], b"1", b"{", b"{}{}", br#"{"a":1,"a":2}"#, br#"{"a":1,"\u0061":2}"#, b"\xff"] {
            assert!(matches!(Body::parse(bad), Err(Rejection::InvalidBody)), "{bad:?}");
        }
        let deep = [b"{\"a\":".to_vec(), b"[".repeat(10_000), b"]".repeat(10_000), b"}".to_vec()].concat();
        assert!(Body::parse(&deep).is_err());
        assert!(Body::parse(b"").is_ok() && Body::parse(b" {} ").is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(mut body) = Body::parse(&bytes) {
                let _ = body.take("a", time);
                let _ = body.finish();
            }
        }
    }
}
