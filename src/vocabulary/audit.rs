//! The audit trail: every change with its principal and origin, and every sign of trouble, as a chain.
//!
//! An audit record is what the trail holds; an event is the store's, by which caches learn of a change
//! (`store::events`).
//!
//! Every organisation has its own trail; the operator's trail has the records that concern no organisation. An
//! [`Entry`] carries a MAC over its own number and text and over the previous MAC, under a key that is kept outside the
//! store. So an entry that was altered, removed or moved is detected, and with a head that was exported to the log, so
//! is a missing end. Old entries are trimmed by age; a [`Link`] remains of them, from which the chain continues.

use std::fmt;
use std::net::IpAddr;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{AuditRecordId, KeyId, OrgId, RequestId};
use crate::vocabulary::key::pepper::Age;
use crate::vocabulary::key::record::RecordFormat;
use crate::vocabulary::key::{Environment, Pepper, Peppers};

/// A trail, by its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trail {
    /// Records that concern no organisation.
    Operator,
    Org(OrgId),
}

impl Trail {
    /// # Errors
    /// Anything but `operator` and an organisation's id.
    pub fn parse(text: &str) -> Result<Self, crate::vocabulary::id::InvalidId> {
        if text == "operator" { Ok(Self::Operator) } else { OrgId::parse(text).map(Self::Org) }
    }

    /// The organisation's 16 bytes; 16 zeros, which no organisation has, for the operator.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        match self {
            Self::Operator => [0; 16],
            Self::Org(org) => org.to_bytes(),
        }
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Org(org) => fmt::Display::fmt(org, f),
        }
    }
}

impl Serialize for Trail {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Trail {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The type of an audit record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum AuditKind {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl AuditKind {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

kinds! {
    OrgCreated = "org.created",
    OrgVerified = "org.verified",
    OrgSuspended = "org.suspended",
    OrgResumed = "org.resumed",
    OrgRenamed = "org.renamed",
    KeyCreated = "key.created",
    KeyUpdated = "key.updated",
    KeyRotated = "key.rotated",
    KeyDisabled = "key.disabled",
    KeyEnabled = "key.enabled",
    KeyRevoked = "key.revoked",
    /// A change holds at the gateways that the record counts.
    ChangePropagated = "change.propagated",
    /// Keys were imported; the record counts them.
    KeysImported = "keys.imported",
    /// A caller asked for more rights than its key has.
    EscalationRefused = "escalation.refused",
    /// A browser sent a live key, so every reader of the page can have its secret.
    KeyInBrowser = "key.in_browser",
    /// Old records were removed. Without such a record, a trail that does not begin with number 1 was cut off.
    AuditTrimmed = "audit.trimmed",
    StoreAccepted = "store.accepted",
    /// Keys with another prefix are accepted from now on.
    PrefixAccepted = "prefix.accepted",
    /// Keys with a prefix are not accepted any more; no key had it.
    PrefixRemoved = "prefix.removed",
    StoreMigrated = "store.migrated",
    /// The file of the embedded store was copied into a smaller one.
    StoreCompacted = "store.compacted",
    /// The pepper was replaced: from this record on, the trail is under the new one.
    StoreResealed = "store.resealed",
    /// An operator began to take a backup of the store, with everything in it.
    BackupBegun = "store.backup_begun",
    /// A new process asked for the place of a gateway, which began to hand over.
    TakeOverBegun = "gateway.take_over_begun",
}

impl AuditKind {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }

    /// The format that a gateway must keep to read such a record.
    #[must_use]
    pub const fn needs(self) -> RecordFormat {
        match self {
            Self::OrgRenamed => RecordFormat::RENAMES,
            Self::BackupBegun | Self::TakeOverBegun | Self::StoreCompacted => RecordFormat::ACTS,
            _ => RecordFormat::FIRST,
        }
    }
}

impl fmt::Display for AuditKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How records name the principal that asked for a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PrincipalName {
    ApiKey {
        id: KeyId,
    },
    /// A person at the command line or with a named token.
    Operator {
        name: String,
    },
    /// A caller without a key, who signed up.
    Signup,
    /// keygate itself.
    Gateway,
}

impl fmt::Display for PrincipalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKey { id } => fmt::Display::fmt(id, f),
            Self::Operator { name } => f.write_str(name),
            Self::Signup => f.write_str("signup"),
            Self::Gateway => f.write_str("keygate"),
        }
    }
}

/// An audit record, as it is written. It never holds a secret or a digest. It is never written back, so the fields of a
/// newer release are ignored; a new kind is written only when every gateway can read it
/// ([`Mutation::needs`](crate::store::Mutation::needs)).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub id: AuditRecordId,
    pub kind: AuditKind,
    pub at: UnixMillis,
    pub actor: PrincipalName,
    /// The client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// The environment of the target key; `None` if the record concerns the whole organisation. A test key sees only
    /// records of test keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// The id of the key or organisation that was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The changed fields, as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<serde_json::Value>,
    /// The changed fields, as they are now; for a sign of trouble, what was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<serde_json::Value>,
}

/// A place in a chain: an entry's number and its MAC. The first entry follows [`Link::ORIGIN`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub number: u64,
    pub mac: [u8; 32],
}

impl Link {
    pub const LEN: usize = 40;
    /// Where every chain begins.
    pub const ORIGIN: Self = Self { number: 0, mac: [0; 32] };

    /// The number, eight bytes big-endian, then the MAC.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (number, mac) = bytes.split_at_mut(8);
        number.copy_from_slice(&self.number.to_be_bytes());
        mac.copy_from_slice(&self.mac);
        bytes
    }

    /// `None` for bytes that are no link.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (number, mac) = bytes.split_first_chunk()?;
        Some(Self { number: u64::from_be_bytes(*number), mac: mac.try_into().ok()? })
    }
}

/// `17:` and the MAC in hexadecimal digits: the form in which heads are exported.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.number)?;
        self.mac.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Link {
    type Err = InvalidLink;

    fn from_str(text: &str) -> Result<Self, InvalidLink> {
        let (number, digits) = text.split_once(':').ok_or(InvalidLink)?;
        let mut mac = [0; 32];
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(InvalidLink);
        }
        for (byte, pair) in mac.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| InvalidLink)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| InvalidLink)?;
        }
        let link = Self { number: number.parse().map_err(|_| InvalidLink)?, mac };
        // The numbers of the standard library may have a sign, leading zeros and capitals.
        if link.to_string() == text { Ok(link) } else { Err(InvalidLink) }
    }
}

impl Serialize for Link {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a head is a number, a colon and 64 hexadecimal digits")]
pub struct InvalidLink;

/// A record in its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub link: Link,
    /// The [`AuditRecord`] as JSON.
    pub text: Vec<u8>,
}

/// When the record of an entry was made, read from its text without anything else of it: `None` if that does not tell. The first
/// such field is the record's own; what others chose comes behind it. Stores look for it in the same way.
#[must_use]
pub fn recorded_at(text: &[u8]) -> Option<UnixMillis> {
    const FIELD: &[u8] = b"\"at\":";
    let rest = &text[memchr::memmem::find(text, FIELD)? + FIELD.len()..];
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok().map(UnixMillis)
}

/// The entry that a mutation adds to a trail, if `after` is still the trail's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    pub trail: Trail,
    pub after: Link,
    pub entry: Entry,
}

/// Both ends of a trail as the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// The last entry that was trimmed, [`Link::ORIGIN`] where none was.
    pub checkpoint: Link,
    /// The newest entry; in an empty trail, the checkpoint.
    pub head: Link,
}

impl Ends {
    pub const LEN: usize = 2 * Link::LEN;

    /// The checkpoint, then the head.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (checkpoint, head) = bytes.split_at_mut(Link::LEN);
        checkpoint.copy_from_slice(&self.checkpoint.to_bytes());
        head.copy_from_slice(&self.head.to_bytes());
        bytes
    }

    /// `None` for bytes that are no ends.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (checkpoint, head) = bytes.split_at_checked(Link::LEN)?;
        Some(Self { checkpoint: Link::from_bytes(checkpoint)?, head: Link::from_bytes(head)? })
    }
}

impl Default for Ends {
    fn default() -> Self {
        Self { checkpoint: Link::ORIGIN, head: Link::ORIGIN }
    }
}

/// Makes the links of chains and checks them.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    keys: Peppers,
}

/// Why an entry does not follow another.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Break {
    #[error("is missing")]
    Missing,
    #[error("was altered, or belongs elsewhere")]
    Altered,
}

impl Chain {
    /// Without a key the chain has plain hashes: it shows damage, but an attacker who can rewrite the store can rewrite
    /// the chain too, except for heads that were exported.
    #[must_use]
    pub fn new(key: Option<Pepper>) -> Self {
        Self::under(Peppers::new(key))
    }

    /// New entries are made under the current one of these keys, old ones may be under each.
    #[must_use]
    pub const fn under(keys: Peppers) -> Self {
        Self { keys }
    }

    #[must_use]
    pub fn has_key(&self) -> bool {
        self.keys.are_set()
    }

    /// Whether the newest entry of each trail is under the current key. Then a trail that ends under an older one was cut
    /// off, and continued by somebody who has the old key.
    #[must_use]
    pub fn ends_under_its_current_key(&self) -> bool {
        self.knows_when_keys_changed() && self.keys.before().is_none()
    }

    /// Whether all gateways changed their keys at one moment, so that no entry is followed by one under an older key.
    #[must_use]
    pub fn knows_when_keys_changed(&self) -> bool {
        self.keys.are_learnt()
    }

    /// Whether `other` makes the same links.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.keys.share_current(&other.keys)
    }

    /// The entry that follows `after` in `trail`.
    #[must_use]
    pub fn extend(&self, trail: Trail, after: Link, text: Vec<u8>) -> Append {
        // No trail gets so long; a manipulated store could claim it.
        let number = after.number.saturating_add(1);
        let mac = mac(self.keys.current().as_ref(), trail, &after, number, &text);
        Append { trail, after, entry: Entry { link: Link { number, mac }, text } }
    }

    /// Whether `entry` is the one after `after`, and the age of the key that says so. Along a trail, no key is followed by
    /// an older one: whoever has only an old key can add nothing.
    ///
    /// # Errors
    /// [`Break`], if it is not.
    pub fn check(&self, trail: Trail, after: &Link, entry: &Entry) -> Result<Age, Break> {
        self.check_below(trail, after, entry, Age::CURRENT)
    }

    /// As [`Chain::check`], for an entry that is followed by one under a key of this age. It matters where a key was in use
    /// twice.
    ///
    /// # Errors
    /// As [`Chain::check`].
    pub fn check_below(&self, trail: Trail, after: &Link, entry: &Entry, age: Age) -> Result<Age, Break> {
        let number = entry.link.number;
        if after.number.checked_add(1) != Some(number) {
            return Err(Break::Missing);
        }
        let fits = |key: Option<&Pepper>| mac(key, trail, after, number, &entry.text) == entry.link.mac;
        let keys = self.keys.all();
        let fitting = if keys.is_empty() {
            fits(None).then_some(Age::CURRENT)
        } else {
            let ages = (age.0..keys.len()).chain(0..age.0);
            ages.map(Age).find(|age| fits(keys.get(age.0)))
        };
        fitting.ok_or(Break::Altered)
    }
}

fn mac(key: Option<&Pepper>, trail: Trail, after: &Link, number: u64, text: &[u8]) -> [u8; 32] {
    const PURPOSE: &str = "keygate audit chain\0";
    let parts = [&trail.to_bytes()[..], &after.mac, &number.to_be_bytes(), text];
    match key {
        Some(key) => {
            let mut mac: Hmac<Sha256> = key.hmac(PURPOSE);
            parts.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes().into()
        }
        None => {
            let mut hash = Sha256::new();
            hash.update(PURPOSE);
            parts.iter().for_each(|part| Digest::update(&mut hash, part));
            hash.finalize().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail() -> Trail {
        Trail::Org(OrgId::from_bytes([1; 16]))
    }

    fn chains() -> [Chain; 2] {
        [Chain::default(), Chain::new(Some(Pepper::new(vec![3; 32]).unwrap()))]
    }

    fn three(chain: &Chain) -> Vec<Entry> {
        let mut after = Link::ORIGIN;
        ["a", "b", "c"]
            .map(|text| {
                let append = chain.extend(trail(), after, text.into());
                after = append.entry.link;
                append.entry
            })
            .to_vec()
    }

    fn verify(chain: &Chain, entries: &[Entry]) -> Result<Link, Break> {
        entries
            .iter()
            .try_fold(Link::ORIGIN, |after, entry| chain.check(trail(), &after, entry).map(|_| entry.link))
    }

    #[test]
    fn fields_of_a_newer_release_are_ignored() {
        let json = serde_json::json!({
            "id": "evt_01J9ZQ6T5N8XKD3V4WPYB7C2HM",
            "kind": "key.revoked",
            "at": 7,
            "actor": { "type": "operator", "name": "ada", "role": "keys" },
            "reason": "leaked",
        });
        let record: AuditRecord = serde_json::from_value(json).unwrap();
        assert_eq!(record.actor, PrincipalName::Operator { name: "ada".to_owned() });
    }

    #[test]
    fn a_chain_holds_until_anything_in_it_is_changed() {
        for chain in chains() {
            let entries = three(&chain);
            assert_eq!(verify(&chain, &entries), Ok(entries[2].link));
            let mut altered = entries.clone();
            altered[1].text = b"B".to_vec();
            assert_eq!(verify(&chain, &altered), Err(Break::Altered));
            let mut missing = entries.clone();
            missing.remove(1);
            assert_eq!(verify(&chain, &missing), Err(Break::Missing));
            let mut swapped = entries.clone();
            swapped.swap(0, 1);
            assert!(verify(&chain, &swapped).is_err());
            let mut renumbered = entries;
            renumbered.remove(1);
            renumbered[1].link.number = 2;
            assert_eq!(verify(&chain, &renumbered), Err(Break::Altered));
        }
    }

    #[test]
    fn an_entry_of_one_trail_or_key_does_not_fit_another() {
        let [plain, keyed] = chains();
        let entry = three(&keyed).remove(0);
        assert_eq!(keyed.check(Trail::Operator, &Link::ORIGIN, &entry), Err(Break::Altered));
        assert_eq!(plain.check(trail(), &Link::ORIGIN, &entry), Err(Break::Altered));
        let other = Chain::new(Some(Pepper::new(vec![4; 32]).unwrap()));
        assert_eq!(other.check(trail(), &Link::ORIGIN, &entry), Err(Break::Altered));
        assert!(keyed.is_same(&keyed) && plain.is_same(&plain));
        assert!(!keyed.is_same(&other) && !keyed.is_same(&plain));
    }

    #[test]
    fn a_link_survives_its_two_forms() {
        let link = Link { number: 17, mac: [0xa5; 32] };
        assert_eq!(link.to_string().parse(), Ok(link));
        assert_eq!(Link::from_bytes(&link.to_bytes()), Some(link));
        for bad in ["", "17", "17:a5", &format!("x:{}", "a5".repeat(32)), &format!("1:{}", "é".repeat(32))] {
            assert_eq!(bad.parse::<Link>(), Err(InvalidLink), "{bad}");
        }
        assert_eq!(Link::from_bytes(&[0; 39]), None);
        let ends = Ends { checkpoint: Link { number: 16, mac: [1; 32] }, head: link };
        assert_eq!(Ends::from_bytes(&ends.to_bytes()), Some(ends));
        assert_eq!(Ends::from_bytes(&[0; Ends::LEN]), Some(Ends::default()));
        assert_eq!(Ends::from_bytes(&[0; 79]), None);
    }

    #[test]
    fn a_kind_is_written_by_its_name() {
        for kind in AuditKind::ALL {
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("\"{kind}\""));
            assert_eq!(AuditKind::parse(kind.as_str()), Some(*kind));
        }
    }
}
