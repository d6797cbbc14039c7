//! Fields of a record that this keygate does not know, and the format that a record needs its writer to keep.
//! The rule for both is in [`record`](super::record).

use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The format of a record: a number that grows with what records can hold. A gateway that can keep one format can
/// keep every lower one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordFormat(u16);

impl RecordFormat {
    /// The first format. A gateway that announces no format keeps this one only: an unknown field made a record
    /// unreadable then.
    pub const FIRST: Self = Self(1);
    /// The same fields; unknown fields are kept.
    pub const OPEN: Self = Self(2);
    /// Keys begin with several words, and secrets name theirs. A gateway that keeps no more than [`RecordFormat::OPEN`]
    /// accepts the prefix of its configuration only, and would refuse the others.
    pub const PREFIXES: Self = Self(3);
    /// Trails can have records of organisations that were renamed.
    pub const RENAMES: Self = Self::PREFIXES;
    /// The same records, which may be sealed under a pepper that replaced another: a gateway that knows only one pepper must
    /// not join.
    pub const PEPPERS: Self = Self(4);
    /// The same records, and [stones](super::gone) in the place of keys that ended long ago. A gateway that does not know them
    /// would let such a key come back with an import.
    pub const STONES: Self = Self(5);
    /// Trails can have records of what operators did without changing anything: backups, and processes that took over.
    pub const ACTS: Self = Self::STONES;
    /// The highest format that this release can keep.
    pub const CURRENT: Self = Self::STONES;
    /// The highest number. It stands for a number that cannot be read.
    pub const MAX: Self = Self(u16::MAX);

    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// A format as a store or a lease names it. Without a name it is the first; a name that is not a number is
    /// [`RecordFormat::MAX`], so that it is never taken for one that is known.
    #[must_use]
    pub fn named(text: Option<&str>) -> Self {
        text.map_or(Self::FIRST, |text| text.parse().map_or(Self::MAX, Self).max(Self::FIRST))
    }
}

impl Default for RecordFormat {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for RecordFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fields of a record that this keygate does not know, and the record's [format](RecordFormat). They are
/// written back as they were read. Nothing prints or reads their values.
///
/// Most records have none: then this takes one word and no allocation.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Further(Option<Box<Fields>>);

#[derive(Clone, Default, PartialEq, Eq)]
struct Fields {
    format: RecordFormat,
    unknown: Map<String, Value>,
}

/// The name of the record's format among its fields.
const FORMAT: &str = "format";
/// The most unknown fields that one record, or one secret in it, can have.
const MOST_FIELDS: usize = 64;
/// The most that their names and values may take together; bytes, each value counted with [`OVERHEAD`] more.
const MOST_BYTES: usize = 16 << 10;
const OVERHEAD: usize = 8;

impl Further {
    /// The format that a writer of the record must be able to keep: the one that the record names, and at least
    /// [`RecordFormat::OPEN`] if there are unknown fields.
    #[must_use]
    pub fn format(&self) -> RecordFormat {
        let of = |fields: &Fields| {
            if fields.unknown.is_empty() { RecordFormat::FIRST } else { RecordFormat::OPEN }
        };
        self.0.as_ref().map_or(RecordFormat::FIRST, |fields| fields.format.max(of(fields)))
    }

    /// From now on the record is written only by a keygate that can keep `format`. It never becomes lower again.
    pub fn require(&mut self, format: RecordFormat) {
        if format > self.format() {
            self.0.get_or_insert_default().format = format;
        }
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The names of the unknown fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|fields| fields.unknown.keys()).map(String::as_str)
    }
}

/// The number of fields: their values are another release's to show.
impl fmt::Debug for Further {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Further({} fields, format {})", self.names().count(), self.format())
    }
}

impl Serialize for Further {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(fields) = &self.0 {
            if fields.format > RecordFormat::FIRST {
                map.serialize_entry(FORMAT, &fields.format)?;
            }
            fields.unknown.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Further {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Further;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the further fields of a record")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Further, A::Error> {
        let mut fields = Fields::default();
        let mut room = MOST_BYTES;
        while let Some(name) = map.next_key::<String>()? {
            if name == FORMAT {
                fields.format = map.next_value::<RecordFormat>()?.max(RecordFormat::FIRST);
                continue;
            }
            let value = map.next_value::<Value>()?;
            let weight = weigh(&value).ok_or_else(|| de::Error::custom("an unknown field has a fraction"))?;
            room = room
                .checked_sub(weight + name.len())
                .filter(|_| fields.unknown.len() < MOST_FIELDS)
                .ok_or_else(|| de::Error::custom("the unknown fields are too many or too long"))?;
            if fields.unknown.insert(name, value).is_some() {
                return Err(de::Error::custom("an unknown field stands twice"));
            }
        }
        let none = fields == Fields::default();
        Ok(Further((!none).then(|| Box::new(fields))))
    }
}

/// Roughly how many bytes a value takes. `None` for a number that is not an integer of 64 bits: it may not survive
/// being read and written.
fn weigh(value: &Value) -> Option<usize> {
    let content = match value {
        Value::Null | Value::Bool(_) => 0,
        Value::Number(number) if number.is_f64() => return None,
        Value::Number(_) => OVERHEAD,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weigh).sum::<Option<usize>>()?,
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| Some(name.len() + weigh(value)?)).sum::<Option<usize>>()?
        }
    };
    Some(content + OVERHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        known: u8,
        #[serde(flatten)]
        further: Further,
    }

    fn read(json: &str) -> Result<Record, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn unknown_fields_are_written_back_and_their_values_are_not_printed() {
        let json = r#"{"known":1,"format":7,"list":[1,{"a":null}],"text":"hush","top":18446744073709551615}"#;
        let record = read(json).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), json);
        assert_eq!(record.further.format(), RecordFormat::new(7));
        assert_eq!(record.further.names().collect::<Vec<_>>(), ["list", "text", "top"]);
        let shown = format!("{record:?}");
        assert!(shown.contains("3 fields") && !shown.contains("hush"), "{shown}");
        assert_ne!(record, read(r#"{"known":1,"format":7}"#).unwrap());
    }

    #[test]
    fn a_record_without_unknown_fields_takes_no_memory_for_them() {
        for json in [r#"{"known":1}"#, r#"{"known":1,"format":1}"#, r#"{"known":1,"format":0}"#] {
            let record = read(json).unwrap();
            assert!(record.further.is_empty());
            assert_eq!(serde_json::to_string(&record).unwrap(), r#"{"known":1}"#);
        }
        assert_eq!(size_of::<Further>(), size_of::<usize>());
    }

    #[test]
    fn a_format_only_grows() {
        let mut further = Further::default();
        further.require(RecordFormat::FIRST);
        assert!(further.is_empty());
        further.require(RecordFormat::new(5));
        further.require(RecordFormat::new(3));
        assert_eq!(further.format(), RecordFormat::new(5));
        let open = read(r#"{"known":1,"list":[]}"#).unwrap().further;
        assert_eq!(open.format(), RecordFormat::OPEN, "a keygate of the first format could not read it");
    }

    #[test]
    fn what_would_not_survive_or_has_no_bound_is_refused() {
        let many: String = (0..=MOST_FIELDS).map(|n| format!(",\"f{n}\":0")).collect();
        let long = "x".repeat(MOST_BYTES);
        for further in [
            ",\"a\":1.5",
            ",\"a\":[1e400]",
            ",\"a\":18446744073709551616",
            ",\"a\":{\"b\":0.1}",
            ",\"a\":1,\"a\":2",
            ",\"known\":2",
            ",\"format\":-1",
            ",\"format\":\"3\"",
            ",\"format\":65536",
            &many,
            &format!(",\"a\":\"{long}\""),
        ] {
            assert!(read(&format!("{{\"known\":1{further}}}")).is_err(), "{further}");
        }
    }

    #[test]
    fn a_format_that_cannot_be_read_is_never_one_that_is_known() {
        assert_eq!(RecordFormat::named(None), RecordFormat::FIRST);
        assert_eq!(RecordFormat::named(Some("2")), RecordFormat::OPEN);
        assert_eq!(RecordFormat::named(Some("0")), RecordFormat::FIRST);
        for odd in ["", "x", "-1", "70000"] {
            assert_eq!(RecordFormat::named(Some(odd)), RecordFormat::MAX, "{odd}");
        }
    }
}
