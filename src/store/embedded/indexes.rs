//! The indexes of keys: by environment, and of the live ones. A mutation keeps them; opening a file fills them where
//! an older release has written to it, which knows neither.

use std::ops::Bound;

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata};

use super::quotas::Window;
use super::tables::{
    ENVIRONMENT_KEYS, INDEXED, LAST_EVENT, LIVE_KEYS, META, ORG_KEYS, Tables, begin_write,
    environment_number, open_if_there,
};
use super::writer::Stop;
use crate::store::indexes::{Full, Indexed, Live, Room};
use crate::store::quotas::Quota;
use crate::store::{Change, CommitError, StoreFault};
use crate::telemetry::Notice;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::{KeyRecord, Sealer, Versioned};

/// Entries of expired keys that are removed with each new key. More than one, so that they become fewer.
const CLEARED: usize = 256;
const NO_MAKER: [u8; 16] = [0; 16];

/// Room that was found for a new key.
pub(super) struct Found {
    pace: Quota,
    window: Option<Window>,
    now: UnixMillis,
    org: OrgId,
    expired: Vec<[u8; 16]>,
}

impl Tables<'_> {
    pub(super) fn index(&mut self, org: OrgId, id: &[u8; 16], key: &Indexed) -> Result<(), Stop> {
        let org = org.to_bytes();
        self.environment_keys.insert((&org, environment_number(key.environment), id), ())?;
        let until = match key.live {
            Live::Revoked => {
                self.live_keys.remove((&org, id))?;
                return Ok(());
            }
            Live::Until(end) => end.0,
            Live::Always => u64::MAX,
        };
        let maker = key.maker.map_or(NO_MAKER, KeyId::to_bytes);
        self.live_keys.insert((&org, id), (until, &maker))?;
        Ok(())
    }

    /// Whether there is room for a new key. Reads no more live keys than there may be.
    pub(super) fn check_room(&self, room: &Room, change: &Change<KeyRecord>) -> Result<Found, Stop> {
        let (Change::Insert(key) | Change::Update { record: key, .. }) = change;
        let window = self.check_quota(&room.pace, room.now)?;
        let (org, maker) = (key.org.to_bytes(), room.maker.to_bytes());
        let now = self.surely(room.now);
        let (mut live, mut made, mut expired) = (0, 0, Vec::new());
        for entry in self.live_keys.range((&org, &[0; 16])..=(&org, &[u8::MAX; 16]))? {
            let (place, value) = entry?;
            let (until, by) = value.value();
            if until > now.0 {
                live += 1;
                made += u32::from(*by == maker);
            } else if expired.len() < CLEARED {
                expired.push(*place.value().1);
            }
            if live >= room.most {
                return Err(CommitError::Full(Full::Organisation).into());
            }
        }
        if made >= room.most_of_maker {
            return Err(CommitError::Full(Full::Maker).into());
        }
        Ok(Found { pace: room.pace.clone(), window, now: room.now, org: key.org, expired })
    }

    pub(super) fn take_room(&mut self, found: Found) -> Result<(), Stop> {
        let Found { pace, window, now, org, expired } = found;
        for id in expired {
            self.live_keys.remove((&org.to_bytes(), &id))?;
        }
        self.count(&pace, window, now)
    }
}

/// Keys that are entered in one transaction. It bounds the memory that a start takes.
const AT_ONCE: usize = 1024;

/// The place of a key among those of its organisation.
type At = ([u8; 16], [u8; 16]);

/// Fills the indexes anew if an older release has written to the file since they were right: step by step, and from the
/// beginning again after a crash in between.
pub(super) fn complete(database: &Database, sealer: &Sealer) -> Result<(), StoreFault> {
    if is_complete(database)? {
        return Ok(());
    }
    empty(database)?;
    let mut after = None;
    while let Some(last) = fill(database, sealer, after)? {
        after = Some(last);
    }
    Ok(())
}

/// Until they are filled, nothing says that they are right.
fn empty(database: &Database) -> Result<(), StoreFault> {
    let transaction = begin_write(database)?;
    transaction.open_table(META)?.remove(INDEXED)?;
    transaction.delete_table(ENVIRONMENT_KEYS)?;
    transaction.delete_table(LIVE_KEYS)?;
    drop(Tables::open(&transaction)?);
    Ok(transaction.commit()?)
}

/// Enters the next keys. Returns the last of them, or `None` when all are entered.
fn fill(database: &Database, sealer: &Sealer, after: Option<At>) -> Result<Option<At>, StoreFault> {
    let transaction = begin_write(database)?;
    let last = {
        let mut tables = Tables::open(&transaction)?;
        let places = tables.places_after(after)?;
        for (org, id) in &places {
            tables.enter(sealer, org, id)?;
        }
        if places.len() < AT_ONCE {
            let event = tables.meta.get(LAST_EVENT)?.map(|event| event.value().to_vec());
            if let Some(event) = event {
                tables.meta.insert(INDEXED, &event[..])?;
            }
        }
        places.last().copied().filter(|_| places.len() == AT_ONCE)
    };
    transaction.commit()?;
    Ok(last)
}

impl Tables<'_> {
    /// At most [`AT_ONCE`].
    fn places_after(&self, after: Option<At>) -> Result<Vec<At>, Stop> {
        let first = after.as_ref().map_or(Bound::Unbounded, |(org, id)| Bound::Excluded((org, id)));
        let range = self.org_keys.range::<(&[u8; 16], &[u8; 16])>((first, Bound::Unbounded))?;
        let places = range.take(AT_ONCE).map(|entry| entry.map(|(at, _)| (*at.value().0, *at.value().1)));
        Ok(places.collect::<Result<_, _>>()?)
    }

    fn enter(&mut self, sealer: &Sealer, org: &[u8; 16], id: &[u8; 16]) -> Result<(), Stop> {
        let key = self.keys.get(id)?.map(|bytes| sealer.open_at::<KeyRecord>(id, bytes.value()));
        if let Some(Ok(Versioned { record, .. })) = key {
            return self.index(OrgId::from_bytes(*org), id, &Indexed::from(&record));
        }
        // Whoever lists it is told of the fault, in both environments.
        Notice::IndexIncomplete.log("a key cannot be read, so its organisation's lists are incomplete");
        for environment in Environment::ALL {
            self.environment_keys.insert((org, environment_number(environment), id), ())?;
        }
        Ok(())
    }
}

/// An older release makes keys without their entries, and takes rights away without noting the event here.
fn is_complete(database: &Database) -> Result<bool, StoreFault> {
    let file = database.begin_read()?;
    let meta = file.open_table(META)?;
    let row = |name| Ok::<_, StoreFault>(meta.get(name)?.map(|row| row.value().to_vec()));
    let (event, indexed) = (row(LAST_EVENT)?, row(INDEXED)?);
    let by_environment = open_if_there(&file, ENVIRONMENT_KEYS)?;
    let indexed_keys = by_environment.as_ref().map(ReadableTableMetadata::len).transpose()?;
    Ok(event == indexed && indexed_keys == Some(file.open_table(ORG_KEYS)?.len()?))
}

#[cfg(test)]
mod tests {
    use redb::Builder;
    use redb::backends::InMemoryBackend;

    use super::super::open::lay_out;
    use super::*;
    use crate::store::{Change, Mutation};
    use crate::vocabulary::id::IdSource;
    use crate::vocabulary::key::record::{Further, OrgRecord};
    use crate::vocabulary::key::scope::ScopeSet;

    const AT: UnixMillis = UnixMillis(1_790_000_000_000);

    fn key(ids: &mut IdSource, org: OrgId, revoked: bool) -> KeyRecord {
        KeyRecord {
            id: KeyId::draw(ids, AT),
            org,
            name: "a key".to_owned(),
            environment: Environment::Test,
            scopes: ScopeSet::default(),
            secrets: Vec::new(),
            created_at: AT,
            created_by: "test".to_owned(),
            expires_at: None,
            disabled_at: None,
            revoked_at: revoked.then_some(AT),
            allowed_addresses: Vec::new(),
            owner: None,
            note: None,
            further: Further::default(),
        }
    }

    fn org(ids: &mut IdSource) -> OrgRecord {
        OrgRecord {
            id: OrgId::draw(ids, AT),
            name: "an organisation".to_owned(),
            created_at: AT,
            suspended_at: None,
            pending: false,
            email: None,
            further: Further::default(),
        }
    }

    fn lengths(database: &Database) -> (u64, u64) {
        let file = database.begin_read().unwrap();
        let by_environment = file.open_table(ENVIRONMENT_KEYS).unwrap();
        (by_environment.len().unwrap(), file.open_table(LIVE_KEYS).unwrap().len().unwrap())
    }

    #[test]
    fn a_file_that_an_older_release_has_written_gets_its_indexes() {
        let database = Builder::new().create_with_backend(InMemoryBackend::new()).unwrap();
        lay_out(&database).unwrap();
        assert!(is_complete(&database).unwrap());
        let (sealer, mut ids) = (Sealer::default(), IdSource::seeded(1));
        let org = org(&mut ids);
        let transaction = begin_write(&database).unwrap();
        {
            let mut tables = Tables::open(&transaction).unwrap();
            let insert = |mutation| tables.apply(&sealer, &mutation).map_err(StoreFault::from).unwrap();
            let keys = [false, true, false].map(|revoked| key(&mut ids, org.id, revoked));
            let with_org = Mutation { org: Some(Change::Insert(org.clone())), ..Mutation::default() };
            let mutations =
                keys.map(|key| Mutation { key: Some(Change::Insert(key)), ..Mutation::default() });
            [with_org].into_iter().chain(mutations).map(insert).for_each(drop);
        }
        transaction.commit().unwrap();
        assert!(is_complete(&database).unwrap());
        assert_eq!(lengths(&database), (3, 2));

        // It makes a key, and knows of no index.
        let transaction = begin_write(&database).unwrap();
        {
            let mut tables = Tables::open(&transaction).unwrap();
            let last = tables.environment_keys.last().unwrap().map(|(place, _)| {
                let (org, environment, id) = place.value();
                (*org, environment, *id)
            });
            let (org, environment, id) = last.unwrap();
            tables.environment_keys.remove((&org, environment, &id)).unwrap();
            let last =
                tables.live_keys.last().unwrap().map(|(place, _)| (*place.value().0, *place.value().1));
            let (org, id) = last.unwrap();
            tables.live_keys.remove((&org, &id)).unwrap();
        }
        transaction.commit().unwrap();
        complete(&database, &sealer).unwrap();
        assert_eq!(lengths(&database), (3, 2));

        // It revokes a key.
        let transaction = begin_write(&database).unwrap();
        {
            let mut tables = Tables::open(&transaction).unwrap();
            tables.meta.insert(LAST_EVENT, &1_u64.to_be_bytes()[..]).unwrap();
            tables.live_keys.insert((&org.id.to_bytes(), &[7; 16]), (u64::MAX, &NO_MAKER)).unwrap();
        }
        transaction.commit().unwrap();
        complete(&database, &sealer).unwrap();
        assert!(is_complete(&database).unwrap());
        assert_eq!(lengths(&database), (3, 2));
    }

    #[test]
    fn many_keys_are_entered_step_by_step_and_a_crash_in_between_loses_none() {
        let database = Builder::new().create_with_backend(InMemoryBackend::new()).unwrap();
        lay_out(&database).unwrap();
        let (sealer, mut ids) = (Sealer::default(), IdSource::seeded(1));
        let org = org(&mut ids);
        let keys = 2 * AT_ONCE as u64 + 1;
        let transaction = begin_write(&database).unwrap();
        {
            let mut tables = Tables::open(&transaction).unwrap();
            let with_org = Mutation { org: Some(Change::Insert(org.clone())), ..Mutation::default() };
            tables.apply(&sealer, &with_org).map_err(StoreFault::from).unwrap();
            for _ in 0..keys {
                let key = Some(Change::Insert(key(&mut ids, org.id, false)));
                tables
                    .apply(&sealer, &Mutation { key, ..Mutation::default() })
                    .map_err(StoreFault::from)
                    .unwrap();
            }
            tables.meta.insert(INDEXED, &7_u64.to_be_bytes()[..]).unwrap();
        }
        transaction.commit().unwrap();

        assert!(!is_complete(&database).unwrap());
        empty(&database).unwrap();
        let last = fill(&database, &sealer, None).unwrap();
        assert_eq!(lengths(&database), (AT_ONCE as u64, AT_ONCE as u64), "the keys of one step");
        assert!(last.is_some() && !is_complete(&database).unwrap(), "a crash here is seen");
        complete(&database, &sealer).unwrap();
        assert_eq!(lengths(&database), (keys, keys));
        assert!(is_complete(&database).unwrap());
    }
}
