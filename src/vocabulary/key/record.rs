//! The records of a key and of its organisation, and the bytes in which a store keeps them.
//!
//! # How records grow
//!
//! Gateways of two releases run beside each other on one store while an installation is upgraded. So each release
//! keeps what the next one writes. A number, the [format](RecordFormat), says which release can keep what; a release
//! that adds to the records raises [`RecordFormat::CURRENT`]. There are four degrees, and whoever adds something
//! chooses the mildest that is safe:
//!
//! 1. **A field that an older gateway may ignore and copy.** Every gateway keeps unknown fields of a record and of each
//!    secret in it ([`Further`]): it reads them, ignores them, and writes them back with every change. Such a record has
//!    [`RecordFormat::OPEN`] at least, because a gateway of the first format cannot read it.
//! 2. **A record that an older gateway must not write**, because another field would have to change too. The writer
//!    calls [`Further::require`] with its format. An older gateway serves such a record and refuses to write it.
//! 3. **A store that an older gateway must not write at all**, because it would leave out an index or a kind of audit
//!    record. The store's own number, `format` in its `meta`, says so. It rises in the same transaction that writes
//!    the first record of that format (or the first [mutation that needs
//!    it](crate::store::Mutation::needs)), and never falls. A gateway that cannot keep the store's format does not
//!    join; one that is running goes on serving and writes nothing.
//! 4. **A record that an older gateway must not even serve**, because an unknown field restricts the key. The first
//!    byte of the sealed record rises: an older gateway cannot open it and answers 503 for this key.
//!
//! **Nothing is written before everybody can keep it.** With every lease a gateway announces the highest format that it
//! can keep. A store takes a record of a higher format than its own only when every lease announces that format;
//! until then the change is refused and names the gateway that must be upgraded. A lease without an announcement
//! counts as [`RecordFormat::FIRST`]. The embedded store has one gateway, so it takes such a record at once.
//!
//! An unknown field is null, a boolean, an integer of 64 bits, a text, a list, or an object of these. Its name must
//! stay unused in all other releases. All unknown fields survive `store migrate`, and `keys export` with `keys import`.
//!
//! Other stored formats do not grow in place. What is never read and written back (an audit record, a notification, a kept answer)
//! ignores unknown fields; texts of a fixed form (usage, quotas, the ends of a trail) stay as they are, and new content
//! gets a place of its own.

use std::fmt;

use hmac::Mac;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use thiserror::Error;

pub use super::further::{Further, RecordFormat};
use super::scope::ScopeSet;
use super::{Digest, Environment, Pepper, Peppers, Prefix};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};

/// Everything that the store knows of one key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyRecord {
    pub id: KeyId,
    pub org: OrgId,
    pub name: String,
    pub environment: Environment,
    pub scopes: ScopeSet,
    /// Its secrets, newest first: the current one; the one before, which also opens the key while a rotation
    /// overlaps; and the very first one.
    pub secrets: Vec<Secret>,
    pub created_at: UnixMillis,
    /// Its maker: a key id, or the name of an operator.
    pub created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMillis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_at: Option<UnixMillis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<UnixMillis>,
    /// The networks that it may be used from; empty for any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_addresses: Vec<IpNet>,
    /// The person or team that answers for it, in the organisation's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Fields of another release.
    #[serde(flatten)]
    pub further: Further,
}

/// One secret of a key, as its digest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Secret {
    pub digest: Digest,
    /// The last four characters of the secret, for masked forms.
    pub last_four: String,
    /// What the secret begins with; `None` for the first of the store's [`Prefixes`](super::Prefixes). Only a store in
    /// which every gateway follows the prefixes has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// When it stops opening the key. An older secret has this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<UnixMillis>,
    /// Fields of another release.
    #[serde(flatten)]
    pub further: Further,
}

/// The state of a key as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Active,
    Disabled,
    Expired,
    Revoked,
}

impl Secret {
    /// The names of its fields, as they are written.
    pub const FIELDS: [&str; 4] = ["digest", "last_four", "prefix", "ends_at"];

    fn format(&self) -> RecordFormat {
        let own = if self.prefix.is_some() { RecordFormat::PREFIXES } else { RecordFormat::FIRST };
        self.further.format().max(own)
    }
}

impl Status {
    pub const ALL: [Self; 4] = [Self::Active, Self::Disabled, Self::Expired, Self::Revoked];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl KeyRecord {
    /// The names of its fields, as they are written.
    pub const FIELDS: [&str; 14] = [
        "id",
        "org",
        "name",
        "environment",
        "scopes",
        "secrets",
        "created_at",
        "created_by",
        "expires_at",
        "disabled_at",
        "revoked_at",
        "allowed_addresses",
        "owner",
        "note",
    ];

    /// Whether one of its secrets can still be used: now, after the key is enabled, or after an operator gave it a later
    /// end.
    #[must_use]
    pub fn can_use(&self, secret: &Secret, now: UnixMillis) -> bool {
        self.revoked_at.is_none() && secret.ends_at.is_none_or(|end| end > now)
    }

    #[must_use]
    pub fn status_at(&self, now: UnixMillis) -> Status {
        if self.revoked_at.is_some() {
            Status::Revoked
        } else if self.expires_at.is_some_and(|end| end <= now) {
            Status::Expired
        } else if self.disabled_at.is_some() {
            Status::Disabled
        } else {
            Status::Active
        }
    }
}

/// An organisation: the owner of keys.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OrgRecord {
    pub id: OrgId,
    pub name: String,
    pub created_at: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_at: Option<UnixMillis>,
    /// It has signed up and is not verified yet. Until then its keys open nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// The address of its signup. No two organisations have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<Email>,
    /// Fields of another release.
    #[serde(flatten)]
    pub further: Further,
}

/// An e-mail address of a form that mail can be sent to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Email(Box<str>);

impl Email {
    /// The longest that a mail server accepts; bytes (RFC 5321, section 4.5.3.1.3, less the angle brackets).
    pub const MAX_LEN: usize = 254;

    /// Accepts a valid e-mail address of the HTML standard, with a dot in its domain. The quoted strings and comments
    /// of RFC 5322 are refused.
    ///
    /// # Errors
    /// [`InvalidEmail`] for anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidEmail> {
        let (local, domain) = text.rsplit_once('@').ok_or(InvalidEmail)?;
        let local_char = |b: u8| b.is_ascii_alphanumeric() || b".!#$%&'*+/=?^_`{|}~-".contains(&b);
        let dots = |text: &str| text.split('.').all(|part| !part.is_empty());
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let well_formed = text.len() <= Self::MAX_LEN
            && (1..=64).contains(&local.len())
            && local.bytes().all(local_char)
            && dots(local)
            && domain.contains('.')
            && domain.split('.').all(label);
        if well_formed { Ok(Self(text.into())) } else { Err(InvalidEmail) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its entry in the index of taken addresses; upper and lower case are the same. With a pepper the index reveals
    /// no address.
    #[must_use]
    pub fn index(&self, pepper: Option<&Pepper>) -> [u8; 32] {
        let folded = self.0.to_ascii_lowercase();
        match pepper {
            None => sha2::Sha256::digest(folded.as_bytes()).into(),
            Some(pepper) => {
                let mut mac = pepper.hmac("keygate e-mail index\0");
                mac.update(folded.as_bytes());
                mac.finalize().into_bytes().into()
            }
        }
    }
}

impl TryFrom<String> for Email {
    type Error = InvalidEmail;

    fn try_from(text: String) -> Result<Self, InvalidEmail> {
        Self::parse(&text)
    }
}

impl From<Email> for String {
    fn from(email: Email) -> Self {
        email.0.into()
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("not an e-mail address, as in ada@example.com")]
pub struct InvalidEmail;

/// A record with the number of its last change. The next change must name this number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned<T> {
    pub rev: u64,
    pub record: T,
}

/// A record that has a place in the store.
pub trait Stored: Serialize + DeserializeOwned {
    /// The kind of record, as the MAC covers it.
    const KIND: &'static str;
    /// The place that the MAC covers: sealed bytes that were moved to another id do not open.
    fn place(&self) -> [u8; 16];
    /// The format that its writer must be able to keep.
    fn format(&self) -> RecordFormat;
}

impl Stored for KeyRecord {
    const KIND: &'static str = "keygate record key\0";

    fn place(&self) -> [u8; 16] {
        self.id.to_bytes()
    }

    fn format(&self) -> RecordFormat {
        let of_secrets = self.secrets.iter().map(Secret::format);
        of_secrets.fold(self.further.format(), RecordFormat::max)
    }
}

impl Stored for OrgRecord {
    const KIND: &'static str = "keygate record org\0";

    fn place(&self) -> [u8; 16] {
        self.id.to_bytes()
    }

    fn format(&self) -> RecordFormat {
        self.further.format()
    }
}

/// How the bytes of a sealed record are laid out.
const LAYOUT: u8 = 1;
const SEAL_NONE: u8 = 0;
const SEAL_HMAC: u8 = 1;
/// Layout, seal, revision.
pub(super) const HEAD: usize = 10;
const MAC: usize = 32;

/// Writes records to bytes and reads them back.
///
/// Layout 1: `01`, the kind of seal (`00` none, `01` HMAC), the revision as eight bytes big-endian, the record as
/// JSON, and with a pepper 32 bytes of HMAC-SHA-256 over all of it and the record's place. The revision has a fixed
/// offset, so that a script in the store can compare it without reading the rest.
#[derive(Clone, Debug)]
pub struct Sealer {
    peppers: Peppers,
    keeps: RecordFormat,
}

/// The pepper under which a record was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    /// The current one, or none in a store that has none.
    Current,
    /// The one before: the record is to be sealed anew.
    Before,
}

/// The revision of a sealed record, whether or not it opens; `None` for bytes that are too short.
#[must_use]
pub fn revision(sealed: &[u8]) -> Option<u64> {
    let [_, _, rev @ ..] = *sealed.first_chunk::<HEAD>()?;
    Some(u64::from_be_bytes(rev))
}

/// Why bytes cannot be read, or a record cannot be written. A lookup of such a record is *unavailable*, never
/// *absent*.
#[derive(Debug, Error)]
pub enum BadRecord {
    #[error("the record's layout {0} is unknown: it was written by a newer keygate")]
    Layout(u8),
    /// The record can be read, but this keygate must not write it: it does not know everything in it.
    #[error(
        "the record has format {found}, and this keygate keeps formats up to {kept}: make the change at a gateway of the \
         newer version"
    )]
    Newer { found: RecordFormat, kept: RecordFormat },
    #[error("the record is cut short")]
    Short,
    #[error("the record's seal does not match: another pepper, or it was changed outside keygate")]
    Seal,
    #[error("the record cannot be parsed: {0}")]
    Content(#[from] serde_json::Error),
}

impl Sealer {
    #[must_use]
    pub fn new(pepper: Option<Pepper>) -> Self {
        Self::under(Peppers::new(pepper))
    }

    #[must_use]
    pub const fn under(peppers: Peppers) -> Self {
        Self { peppers, keeps: RecordFormat::CURRENT }
    }

    #[must_use]
    pub const fn peppers(&self) -> &Peppers {
        &self.peppers
    }

    /// The same, for a release that keeps formats up to this one. For tests of two releases side by side.
    #[must_use]
    pub fn keeping(mut self, format: RecordFormat) -> Self {
        self.keeps = format;
        self
    }

    /// The highest format that this process can keep.
    #[must_use]
    pub const fn keeps(&self) -> RecordFormat {
        self.keeps
    }

    /// # Errors
    /// [`BadRecord::Newer`] for a record of a format that this process cannot keep. Otherwise if the record cannot be
    /// written as JSON, which does not happen to our records.
    pub fn seal<T: Stored>(&self, rev: u64, record: &T) -> Result<Vec<u8>, BadRecord> {
        let format = record.format();
        if format > self.keeps {
            return Err(BadRecord::Newer { found: format, kept: self.keeps });
        }
        let (current, _) = self.peppers.sealing();
        let mut bytes = vec![LAYOUT, if current.is_some() { SEAL_HMAC } else { SEAL_NONE }];
        bytes.extend_from_slice(&rev.to_be_bytes());
        serde_json::to_writer(&mut bytes, record)?;
        if let Some(pepper) = current {
            let mac = mac::<T>(&pepper, &record.place(), &bytes).finalize();
            bytes.extend_from_slice(&mac.into_bytes());
        }
        Ok(bytes)
    }

    /// # Errors
    /// [`BadRecord`] for bytes that [`Sealer::seal`] with the same pepper has not written.
    pub fn open<T: Stored>(&self, bytes: &[u8]) -> Result<Versioned<T>, BadRecord> {
        self.open_sealed(bytes).map(|(stored, _)| stored)
    }

    /// As [`Sealer::open`]. Also tells which seal the record has.
    ///
    /// # Errors
    /// As [`Sealer::open`].
    pub fn open_sealed<T: Stored>(&self, bytes: &[u8]) -> Result<(Versioned<T>, Seal), BadRecord> {
        let (current, before) = self.peppers.sealing();
        match (open_under(current.as_ref(), bytes), &before) {
            (Err(BadRecord::Seal), Some(before)) => {
                open_under(Some(before), bytes).map(|stored| (stored, Seal::Before))
            }
            (opened, _) => opened.map(|stored| (stored, Seal::Current)),
        }
    }

    /// Opens the record that is stored at `place`. A writer with access to the store could have moved a sealed record
    /// there from another place.
    ///
    /// # Errors
    /// As [`Sealer::open`], and for a record of another place.
    pub fn open_at<T: Stored>(&self, place: &[u8; 16], bytes: &[u8]) -> Result<Versioned<T>, BadRecord> {
        let stored: Versioned<T> = self.open(bytes)?;
        if stored.record.place() == *place { Ok(stored) } else { Err(BadRecord::Seal) }
    }
}

/// Opens a record under this pepper, or without one.
///
/// # Errors
/// [`BadRecord`], if it was not sealed so.
pub fn open_under<T: Stored>(pepper: Option<&Pepper>, bytes: &[u8]) -> Result<Versioned<T>, BadRecord> {
    let head: &[u8; HEAD] = bytes.first_chunk().ok_or(BadRecord::Short)?;
    let [layout, seal, rev @ ..] = *head;
    if layout != LAYOUT {
        return Err(BadRecord::Layout(layout));
    }
    let expected = if pepper.is_some() { SEAL_HMAC } else { SEAL_NONE };
    if seal != expected {
        return Err(BadRecord::Seal);
    }
    let sealed = if pepper.is_some() { bytes.len().saturating_sub(MAC) } else { bytes.len() };
    let payload = bytes.get(HEAD..sealed).ok_or(BadRecord::Short)?;
    let record: T = serde_json::from_slice(payload)?;
    if let Some(pepper) = pepper {
        let mac = mac::<T>(pepper, &record.place(), &bytes[..sealed]);
        mac.verify_slice(&bytes[sealed..]).map_err(|_| BadRecord::Seal)?;
    }
    Ok(Versioned { rev: u64::from_be_bytes(rev), record })
}

fn mac<T: Stored>(pepper: &Pepper, place: &[u8; 16], bytes: &[u8]) -> hmac::Hmac<sha2::Sha256> {
    let mut mac = pepper.hmac(T::KIND);
    mac.update(place);
    mac.update(bytes);
    mac
}

impl Default for Sealer {
    fn default() -> Self {
        Self::new(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::id::IdSource;
    use crate::vocabulary::key::scope::Scope;
    use proptest::prelude::*;

    fn record() -> KeyRecord {
        let (mut ids, now) = (IdSource::seeded(7), UnixMillis(1_790_000_000_000));
        KeyRecord {
            id: KeyId::draw(&mut ids, now),
            org: OrgId::draw(&mut ids, now),
            name: "a key".to_owned(),
            environment: Environment::Test,
            scopes: ScopeSet::from_iter([Scope::parse("jobs:read").unwrap()]),
            secrets: vec![
                Secret {
                    digest: Digest::from_bytes([1; 32]),
                    last_four: "wxyz".to_owned(),
                    prefix: None,
                    ends_at: None,
                    further: Further::default(),
                },
                Secret {
                    digest: Digest::from_bytes([2; 32]),
                    last_four: "abcd".to_owned(),
                    prefix: None,
                    ends_at: Some(UnixMillis(500)),
                    further: Further::default(),
                },
            ],
            created_at: now,
            created_by: "test".to_owned(),
            expires_at: None,
            disabled_at: None,
            revoked_at: None,
            allowed_addresses: Vec::new(),
            owner: None,
            note: None,
            further: Further::default(),
        }
    }

    fn sealers() -> [Sealer; 2] {
        [Sealer::default(), Sealer::new(Some(Pepper::new(vec![9; 32]).unwrap()))]
    }

    #[test]
    fn a_record_survives_the_store() {
        for sealer in sealers() {
            let bytes = sealer.seal(42, &record()).unwrap();
            assert_eq!((&bytes[2..10], revision(&bytes)), (&42_u64.to_be_bytes()[..], Some(42)));
            assert_eq!(sealer.open::<KeyRecord>(&bytes).unwrap(), Versioned { rev: 42, record: record() });
        }
    }

    #[test]
    fn a_sealed_record_opens_under_its_own_pepper_and_unchanged_only() {
        let [plain, sealed] = sealers();
        let bytes = sealed.seal(1, &record()).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(sealed.open::<KeyRecord>(&changed).is_err(), "byte {at}");
        }
        let other = Sealer::new(Some(Pepper::new(vec![8; 32]).unwrap()));
        assert!(matches!(other.open::<KeyRecord>(&bytes), Err(BadRecord::Seal)));
        assert!(matches!(plain.open::<KeyRecord>(&bytes), Err(BadRecord::Seal)));
        let unsealed = plain.seal(1, &record()).unwrap();
        assert!(
            matches!(sealed.open::<KeyRecord>(&unsealed), Err(BadRecord::Seal)),
            "a seal cannot be left off"
        );
    }

    #[test]
    fn the_names_of_all_fields_are_listed() {
        let some = Some(UnixMillis(1));
        let mut full = KeyRecord {
            expires_at: some,
            disabled_at: some,
            revoked_at: some,
            allowed_addresses: vec!["192.0.2.0/24".parse().unwrap()],
            owner: Some("o".to_owned()),
            note: Some("n".to_owned()),
            ..record()
        };
        let names = |json: serde_json::Value| {
            json.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(serde_json::to_value(&full).unwrap()), KeyRecord::FIELDS.map(str::to_owned).into());
        full.secrets[1].prefix = Some(Prefix::default());
        let secret = serde_json::to_value(&full.secrets[1]).unwrap();
        assert_eq!(names(secret), Secret::FIELDS.map(str::to_owned).into());
    }

    /// The record as another release would write it: with these fields more, in it and in its first secret.
    fn with_further(further: &str, in_secret: &str) -> Vec<u8> {
        let json = serde_json::to_string(&record()).unwrap();
        let json = json.replacen("\"wxyz\"", &format!("\"wxyz\"{in_secret}"), 1);
        let json = format!("{}{further}}}", json.strip_suffix('}').unwrap());
        [&[LAYOUT, SEAL_NONE, 0, 0, 0, 0, 0, 0, 0, 1], json.as_bytes()].concat()
    }

    #[test]
    fn unknown_fields_survive_a_change() {
        let [plain, _] = sealers();
        let bytes = with_further(",\"plan\":{\"name\":\"free\"}", ",\"label\":\"ci\"");
        let Versioned { rev, record: before } = plain.open::<KeyRecord>(&bytes).unwrap();
        let changed = KeyRecord { name: "another".to_owned(), ..before.clone() };
        let again = plain.open::<KeyRecord>(&plain.seal(rev + 1, &changed).unwrap()).unwrap().record;
        assert_eq!(KeyRecord { name: before.name.clone(), ..again }, before);
        assert_ne!(before, record(), "they count when records are compared");
    }

    #[test]
    fn a_record_of_a_newer_format_is_read_and_not_written() {
        let [plain, _] = sealers();
        let newer = RecordFormat::new(RecordFormat::CURRENT.number() + 1);
        let named = format!(",\"format\":{newer}");
        for bytes in [with_further(&named, ""), with_further("", &named)] {
            let record = plain.open::<KeyRecord>(&bytes).unwrap().record;
            assert_eq!(record.format(), newer);
            let refused = plain.seal(2, &record).unwrap_err();
            assert!(matches!(refused, BadRecord::Newer { found, .. } if found == newer), "{refused}");
            assert!(plain.clone().keeping(newer).seal(2, &record).is_ok());
        }
    }

    #[test]
    fn a_record_of_another_layout_is_refused_rather_than_guessed_at() {
        let [plain, _] = sealers();
        let mut bytes = plain.seal(1, &record()).unwrap();
        bytes[0] = 2;
        assert!(matches!(plain.open::<KeyRecord>(&bytes), Err(BadRecord::Layout(2))));
    }

    #[test]
    fn an_e_mail_address_is_one_that_mail_can_be_sent_to() {
        for good in ["ada@example.com", "a.b+c@mail.example.org", "x@a-b.co", "O'Neil@Example.COM"] {
            assert_eq!(Email::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "ada@localhost",
            "a@b@",
            "a b@example.com",
            "ada@-a.com",
            "ada@a..com",
            ".a@example.com",
            "a..b@example.com",
            "a@example.com\r\nbcc: x@y.z",
            "ädä@example.com",
            "\"a\"@example.com",
            &format!("{}@example.com", "a".repeat(65)),
            &format!("a@{}.com", "b".repeat(250)),
        ] {
            assert!(Email::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_address_in_other_letters_is_the_same_address() {
        let [one, other] = ["Ada@Example.com", "ada@example.COM"].map(|text| Email::parse(text).unwrap());
        let pepper = Pepper::new(vec![1; 32]).unwrap();
        assert_eq!(one.index(None), other.index(None));
        assert_eq!(one.index(Some(&pepper)), other.index(Some(&pepper)));
        assert_ne!(one.index(None), one.index(Some(&pepper)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for sealer in sealers() {
                let _ = sealer.open::<KeyRecord>(&bytes);
                let _ = sealer.open::<OrgRecord>(&bytes);
            }
        }
    }
}
