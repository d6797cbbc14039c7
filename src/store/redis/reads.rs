//! Reading records: by a secret, by their names, and in lists.

use super::Inner;
use super::names::Names;
use super::remembered::Remembered;
use super::scripts::{Call, Reply};
use crate::store::unreadable::{self, Identified, MISSING, OF_ANOTHER, Unreadable};
use crate::store::{Found, KeysOf, StoreFault};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::record::{BadRecord, KeyRecord, OrgRecord, Stored, Versioned};

/// Records per script of a list. It bounds how long the script blocks others.
pub(super) const PAGE: usize = 256;
/// The script's word for an index in which keys are missing.
const UNINDEXED: &str = "unindexed";
/// How often a lookup is begun again because a new pepper came into force.
const TRIES: usize = 4;
/// The start of a list at its newest entry.
pub(super) const NEWEST: &str = "+";

impl Inner {
    pub(super) fn bad_record(&self, bad: BadRecord) -> StoreFault {
        match bad {
            BadRecord::Newer { .. } => bad.into(),
            bad => self.fault(bad),
        }
    }

    /// `None` only if our own store, with all events that are known here, has no such digest, or a tombstone is all that it
    /// leads to.
    pub(super) async fn lookup(&self, digest: Digest) -> Result<Option<Found>, StoreFault> {
        match self.look_up(&[digest]).await? {
            // A digest that exists does not depend on what the store says of its pepper.
            Looked::Renamed => self.look_up(&[digest]).await?.found(),
            looked => looked.found(),
        }
    }

    /// The same for a secret, whatever pepper its digest is under. If a new pepper comes into force meanwhile, the digests
    /// are made anew.
    pub(super) async fn lookup_secret(&self, fingerprint: &Digest) -> Result<Option<Found>, StoreFault> {
        for _ in 0..TRIES {
            match self.look_up(&self.sealer.peppers().digests(fingerprint)).await? {
                Looked::Renamed => {}
                looked => return looked.found(),
            }
        }
        Err(self.changed())
    }

    async fn look_up(&self, digests: &[Digest]) -> Result<Looked, StoreFault> {
        let last = self.ledger.position().last;
        let pointers = digests.iter().map(|digest| self.names.digest(digest));
        let call = Call::new(&self.scripts.lookup, std::iter::once(self.names.meta()).chain(pointers))
            .arg(self.names.with(""))
            .or_by_halves(&self.scripts.half);
        let mut reply = self.lookups.run(&call, self.settings.lookup_timeout).await?;
        self.ledger.recognise(&reply.meta, last).map_err(|stranger| self.fault(stranger))?;
        if self.learn(reply.text().map_err(|error| self.fault(error))?.as_deref())? {
            return Ok(Looked::Renamed);
        }
        let read = |reply: &mut Reply| reply.bytes().map_err(|error| self.fault(error));
        let Some(owner) = read(&mut reply)? else {
            // A pepper that does not fit finds no key at all.
            return self.check_fit().await.map(|()| Looked::Absent);
        };
        let (key, org) = (read(&mut reply)?, read(&mut reply)?);
        let (org_id, key_id) = self.parse_owner(&owner)?;
        let key: Versioned<KeyRecord> = self.promised(&key_id.to_bytes(), key)?;
        if key.record.is_tombstone() {
            return self.check_fit().await.map(|()| Looked::Absent);
        }
        let org: OrgRecord = self.promised(&org_id.to_bytes(), org)?.record;
        let secret = key.record.secrets.iter().find(|secret| digests.contains(&secret.digest));
        let Some(digest) = secret.map(|secret| secret.digest).filter(|_| key.record.org == org.id) else {
            return Err(self.fault("a digest leads to a key that does not have it"));
        };
        self.note_fit();
        Ok(Looked::Found(Box::new((key.rev, Found { key: key.record, org, digest }))))
    }

    /// The record of the key that a digest opens.
    pub(super) async fn key_of(&self, digest: Digest) -> Result<Option<Versioned<KeyRecord>>, StoreFault> {
        match self.look_up(&[digest]).await? {
            Looked::Found(found) => {
                let (rev, Found { key: record, .. }) = *found;
                Ok(Some(Versioned { rev, record }))
            }
            Looked::Absent | Looked::Renamed => Ok(None),
        }
    }

    pub(super) fn parse_owner(&self, owner: &[u8]) -> Result<(OrgId, KeyId), StoreFault> {
        let parts = owner.split_at_checked(OrgId::LEN).and_then(|(org, key)| {
            let (org, key) = (std::str::from_utf8(org).ok()?, std::str::from_utf8(key).ok()?);
            Some((OrgId::parse(org).ok()?, KeyId::parse(key).ok()?))
        });
        parts.ok_or_else(|| self.fault("a digest leads to nothing that keygate has written"))
    }

    /// A record, or what this gateway remembers in the place of an older one.
    pub(super) async fn record<T: Remembered>(
        &self,
        name: String,
        place: [u8; 16],
    ) -> Result<Option<Versioned<T>>, StoreFault> {
        let mut reply = self.ask(&Call::new(&self.scripts.read, [self.names.meta(), name])).await?;
        let bytes = reply.bytes().map_err(|error| self.fault(error))?;
        let stored = bytes.map(|bytes| self.unseal(&place, &bytes)).transpose()?;
        Ok(stored.map(|stored| self.newest_known(stored)))
    }

    fn newest_known<T: Remembered>(&self, stored: Versioned<T>) -> Versioned<T> {
        self.memory.newest(stored, self.clock.kept())
    }

    pub(super) fn unseal<T: Listed>(
        &self,
        place: &[u8; 16],
        bytes: &[u8],
    ) -> Result<Versioned<T>, StoreFault> {
        self.sealer.open_at(place, bytes).map_err(|bad| unreadable::fault::<T>(*place, bad))
    }

    /// The same of a record that another entry names, so that it must exist.
    pub(super) fn promised<T: Remembered>(
        &self,
        place: &[u8; 16],
        bytes: Option<Vec<u8>>,
    ) -> Result<Versioned<T>, StoreFault> {
        let missing = || StoreFault::unreadable(T::place_of(T::id_at(*place)), MISSING);
        let bytes = bytes.ok_or_else(missing)?;
        self.unseal(place, &bytes).map(|stored| self.newest_known(stored))
    }

    /// The newest keys of a list. That of an organisation keeps the tombstone of a key that it had.
    pub(super) async fn keys(
        &self,
        of: KeysOf,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<Entry<KeyRecord>>, StoreFault> {
        let (names, after) = (&self.names, after.map(|id| id.to_string()));
        let lists = match of {
            KeysOf::All => vec![names.keys()],
            KeysOf::Org(org) => vec![names.keys_of(org)],
            KeysOf::Environment(org, environment) => {
                [names.keys_in(org, environment)].into_iter().chain(self.lists_of(org)).collect()
            }
        };
        let records = names.with("id:");
        let mut listed = self.try_newest::<KeyRecord>(&lists, &records, after.clone(), limit).await?;
        if let (None, Some(org)) = (&listed, of.org()) {
            self.index(org, false).await?;
            listed = self.try_newest(&lists, &records, after, limit).await?;
        }
        let mut keys = listed.ok_or_else(|| self.changed())?;
        for key in &mut keys {
            let Ok(Versioned { record, .. }) = key else { continue };
            if of.org().is_some_and(|org| record.org != org) && !record.is_tombstone() {
                *key = Err(Unreadable { id: record.id, why: OF_ANOTHER.to_owned() });
            }
        }
        Ok(keys)
    }

    /// The newest records of an index, page by page.
    pub(super) async fn newest<T: Remembered>(
        &self,
        index: String,
        records: String,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<Entry<T>>, StoreFault> {
        Ok(self.try_newest(&[index], &records, after, limit).await?.unwrap_or_default())
    }

    /// The same for the first of these lists. The others show whether it is whole; `None` if it is not.
    async fn try_newest<T: Remembered>(
        &self,
        lists: &[String],
        records: &str,
        mut after: Option<String>,
        limit: usize,
    ) -> Result<Option<Vec<Entry<T>>>, StoreFault> {
        let mut listed = Vec::new();
        while listed.len() < limit {
            let count = PAGE.min(limit - listed.len());
            let from = after.map_or_else(|| NEWEST.to_owned(), |id| format!("({id}"));
            let places = std::iter::once(self.names.meta()).chain(lists.iter().cloned());
            let call = Call::new(&self.scripts.list, places).arg(records).arg(from).arg(count.to_string());
            let mut reply = self.ask(&call).await?;
            let before = listed.len();
            after = None;
            while !reply.is_empty() {
                let id = reply.text().map_err(|error| self.fault(error))?.unwrap_or_default();
                if id == UNINDEXED {
                    return Ok(None);
                }
                let bytes = reply.bytes().map_err(|error| self.fault(error))?;
                let place =
                    T::parse_place(&id).ok_or_else(|| self.fault("a list names what is no record"))?;
                let entry: Entry<T> = unreadable::entry(&self.sealer, place, bytes.as_deref());
                listed.push(entry.map(|stored| self.newest_known(stored)));
                after = Some(id);
            }
            if listed.len() - before < count {
                break;
            }
        }
        Ok(Some(listed))
    }
}

/// The outcome of asking Redis once.
enum Looked {
    /// With the revision of the key's record.
    Found(Box<(u64, Found)>),
    Absent,
    /// The store says something new of its pepper: the digests may be others now.
    Renamed,
}

impl Looked {
    fn found(self) -> Result<Option<Found>, StoreFault> {
        match self {
            Self::Found(found) => Ok(Some(found.1)),
            Self::Absent => Ok(None),
            Self::Renamed => Err(StoreFault::failed("the pepper changed under the lookup: try again")),
        }
    }
}

/// An entry of a list.
type Entry<T> = unreadable::Listed<T>;

/// A record that lists name by its id.
pub(super) trait Listed: Stored + Identified {
    fn id(&self) -> String;
    fn parse_place(id: &str) -> Option<[u8; 16]>;
    /// The list of all, and the prefix of the records' names.
    fn list(names: &Names) -> (String, String);
}

impl Listed for KeyRecord {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn parse_place(id: &str) -> Option<[u8; 16]> {
        KeyId::parse(id).ok().map(KeyId::to_bytes)
    }

    fn list(names: &Names) -> (String, String) {
        (names.keys(), names.with("id:"))
    }
}

impl Listed for OrgRecord {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn parse_place(id: &str) -> Option<[u8; 16]> {
        OrgId::parse(id).ok().map(OrgId::to_bytes)
    }

    fn list(names: &Names) -> (String, String) {
        (names.orgs(), names.with("org:"))
    }
}
