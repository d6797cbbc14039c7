//! The file as a whole. It is told from one read transaction, which is one moment. It is filled under another name, and gets its
//! own when it is whole.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::{Database, ReadableTable};

use super::folder::sync_folder;
use super::open::{create_to_fill, lay_out_as};
use super::reads::Snapshot;
use super::tables::{
    AUDIT, AUDIT_ENDS, KEYS, LAST_EVENT, META, NEWS, ORGS, PEPPERS, PREFIXES, Tables, USAGE, begin_write,
    format, number, split_time,
};
use super::writer::Stop;
use super::{Embedded, OpenError, Settings};
use crate::store::indexes::Indexed;
use crate::store::keeper::Place;
use crate::store::outbox::News;
use crate::store::whole::{Fill, FillError, Head, Piece, Pieces, given_up};
use crate::store::{EmailClaim, Store, StoreFault, StoreFuture};
use crate::vocabulary::audit::{Ends, Entry, Link, Trail};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Sealer};

/// Pieces that are handed over at once.
const AT_ONCE: usize = 256;
/// Entries of a trail in one piece.
const ENTRIES: usize = 256;

impl Snapshot {
    /// Hands everything over.
    pub(super) fn dump(&self, out: &Pieces) -> Result<Head, StoreFault> {
        let head = self.head()?;
        let orgs = self.file.open_table(ORGS)?;
        let records =
            orgs.iter()?.map(|entry| entry.map(|(id, bytes)| (*id.value(), bytes.value().to_vec())));
        hand_over(out, records, |(id, sealed)| Piece::Record {
            of: Place::Org(OrgId::from_bytes(id)),
            sealed,
        })?;
        let keys = self.file.open_table(KEYS)?;
        let records =
            keys.iter()?.map(|entry| entry.map(|(id, bytes)| (*id.value(), bytes.value().to_vec())));
        hand_over(out, records, |(id, sealed)| Piece::Record {
            of: Place::Key(KeyId::from_bytes(id)),
            sealed,
        })?;
        let usage = self.file.open_table(USAGE)?;
        let used = usage.iter()?.map(|entry| entry.map(|(id, text)| (*id.value(), text.value().to_vec())));
        hand_over(out, used, |(id, text)| Piece::Used {
            key: KeyId::from_bytes(id),
            usage: String::from_utf8_lossy(&text).into_owned(),
        })?;
        self.tell_stones(|stones| {
            out.blocking_send(stones.into_iter().map(Piece::Gone).collect()).map_err(given_up)
        })?;
        self.dump_news(out)?;
        self.dump_trails(out)?;
        Ok(head)
    }

    fn head(&self) -> Result<Head, StoreFault> {
        let meta = self.file.open_table(META)?;
        let text = |name: &str| {
            let row = meta.get(name)?.map(|row| String::from_utf8_lossy(row.value()).into_owned());
            Ok::<_, StoreFault>(row)
        };
        let event = meta.get(LAST_EVENT)?.and_then(|event| number(event.value()));
        Ok(Head {
            incarnation: self.incarnation()?,
            event: event.unwrap_or_default(),
            format: format(meta.get(super::tables::FORMAT)?.as_ref().map(|row| row.value())),
            prefixes: text(PREFIXES)?,
            peppers: text(PEPPERS)?,
        })
    }

    fn dump_news(&self, out: &Pieces) -> Result<(), StoreFault> {
        let table = self.file.open_table(NEWS)?;
        let mut pieces = Vec::new();
        for entry in table.iter()? {
            let (org, kept) = entry?;
            if let Some((due, body)) = split_time(kept.value()) {
                pieces.push(Piece::News { org: OrgId::from_bytes(*org.value()), due, body: body.to_vec() });
            }
        }
        hand_over(out, pieces.into_iter().map(Ok), |piece| piece)
    }

    fn dump_trails(&self, out: &Pieces) -> Result<(), StoreFault> {
        let ends = self.file.open_table(AUDIT_ENDS)?;
        let entries = self.file.open_table(AUDIT)?;
        for row in ends.iter()? {
            let (place, bytes) = row?;
            let place = *place.value();
            let trail = if place == Trail::Operator.to_bytes() {
                Trail::Operator
            } else {
                Trail::Org(OrgId::from_bytes(place))
            };
            let unreadable =
                || StoreFault::failed(format_args!("the ends of the audit trail of {trail} do not read"));
            let ends = Ends::from_bytes(bytes.value()).ok_or_else(unreadable)?;
            let mut batch = Vec::new();
            for entry in entries.range((&place, &[0; 8])..=(&place, &[u8::MAX; 8]))? {
                let (at, bytes) = entry?;
                let (mac, text) = bytes.value().split_first_chunk().ok_or_else(unreadable)?;
                let link = Link { number: u64::from_be_bytes(*at.value().1), mac: *mac };
                batch.push(Entry { link, text: text.to_vec() });
                if batch.len() == ENTRIES {
                    let entries = std::mem::take(&mut batch);
                    out.blocking_send(vec![Piece::Entries { trail, ends, entries }]).map_err(given_up)?;
                }
            }
            out.blocking_send(vec![Piece::Entries { trail, ends, entries: batch }]).map_err(given_up)?;
        }
        Ok(())
    }
}

fn hand_over<T>(
    out: &Pieces,
    items: impl Iterator<Item = Result<T, redb::StorageError>>,
    piece: impl Fn(T) -> Piece,
) -> Result<(), StoreFault> {
    let mut batch = Vec::with_capacity(AT_ONCE);
    for item in items {
        batch.push(piece(item?));
        if batch.len() == AT_ONCE {
            out.blocking_send(std::mem::take(&mut batch)).map_err(given_up)?;
        }
    }
    if batch.is_empty() { Ok(()) } else { out.blocking_send(batch).map_err(given_up) }
}

/// A file that is being filled, beside the place where it will lie.
pub struct Filling {
    path: PathBuf,
    beside: PathBuf,
    sealer: Sealer,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    file: Option<Database>,
    /// The empty store that lies at the place. It stays open, so that no gateway takes it meanwhile.
    empty: Option<Embedded>,
}

impl Filling {
    #[must_use]
    pub fn new(settings: &Settings, sealer: Sealer) -> Self {
        let mut beside = settings.path.clone().into_os_string();
        beside.push(".restoring");
        Self { path: settings.path.clone(), beside: beside.into(), sealer, state: Mutex::default() }
    }

    /// Looks whether the place is free, or has an empty store.
    async fn look(&self) -> Result<(), FillError> {
        if !self.path.exists() {
            return Ok(());
        }
        let settings = Settings { path: self.path.clone() };
        let there = match Embedded::open_to_read(&settings, self.sealer.clone(), Clock::system()) {
            Ok(there) => there,
            // A file without a byte, which a command has left that wanted to open it.
            Err(OpenError::NotAStore { .. })
                if fs::metadata(&self.path).is_ok_and(|file| file.len() == 0) =>
            {
                return Ok(());
            }
            Err(error) => return Err(FillError::Unusable(error.to_string())),
        };
        let occupied = |what| FillError::Occupied { place: self.path.display().to_string(), what };
        if !there.list_orgs(None, 1).await?.is_empty() {
            return Err(occupied("it has organisations"));
        }
        if there.trails().ends(Trail::Operator).await? != Ends::default() {
            return Err(occupied("its operators' audit trail has records"));
        }
        self.lock().empty = Some(there);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, act: impl FnOnce(&mut Tables<'_>) -> Result<(), Stop>) -> Result<(), StoreFault> {
        let state = self.lock();
        let file = state.file.as_ref().ok_or_else(|| StoreFault::failed("the restore has not begun"))?;
        let transaction = begin_write(file)?;
        act(&mut Tables::open(&transaction)?)?;
        Ok(transaction.commit()?)
    }

    fn finish(&self, head: &Head) -> Result<(), StoreFault> {
        self.write(|tables| lay_out_as(tables, head))?;
        let mut state = self.lock();
        // Closed before it gets its name: whoever opens it then finds it free.
        state.file = None;
        fs::rename(&self.beside, &self.path).map_err(StoreFault::failed)?;
        sync_folder(&self.path).map_err(StoreFault::failed)?;
        state.empty = None;
        Ok(())
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Fill for Filling {
    /// What an earlier try has left is begun anew.
    fn begin<'f>(&'f self, head: &'f Head, _: &'f str) -> StoreFuture<'f, Result<(), FillError>> {
        Box::pin(async move {
            self.look().await?;
            if let Some(row) = &head.peppers {
                // The empty store may have said something else.
                self.sealer
                    .peppers()
                    .learn_anyway(row)
                    .map_err(|misfit| FillError::Unusable(misfit.to_string()))?;
            }
            remove(&self.beside).map_err(StoreFault::failed)?;
            let file =
                create_to_fill(&self.beside).map_err(|error| FillError::Unusable(error.to_string()))?;
            self.lock().file = Some(file);
            Ok(())
        })
    }

    fn put(&self, pieces: Vec<Piece>) -> StoreFuture<'_, Result<(), FillError>> {
        let put =
            self.write(|tables| pieces.into_iter().try_for_each(|piece| tables.put(&self.sealer, piece)));
        Box::pin(async move { Ok(put?) })
    }

    fn end<'f>(&'f self, head: &'f Head) -> StoreFuture<'f, Result<(), FillError>> {
        Box::pin(async move { Ok(self.finish(head)?) })
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Tables<'_> {
    fn put(&mut self, sealer: &Sealer, piece: Piece) -> Result<(), Stop> {
        match piece {
            Piece::Record { of: Place::Org(id), sealed } => self.put_org(sealer, id, &sealed),
            Piece::Record { of: Place::Key(id), sealed } => self.put_key(sealer, id, &sealed),
            Piece::Used { key, usage } => {
                self.usage.insert(&key.to_bytes(), usage.as_bytes())?;
                Ok(())
            }
            Piece::News { org, due, body } => self.write_news(&News { org, due, body }),
            Piece::Entries { trail, ends, entries } => {
                self.write_ends(trail, ends)?;
                entries.iter().try_for_each(|entry| self.write_entry(trail, entry))
            }
            Piece::Gone(stone) => self.write_stone(&stone),
            Piece::Newer => Ok(()),
        }
    }

    fn put_org(&mut self, sealer: &Sealer, id: OrgId, sealed: &[u8]) -> Result<(), Stop> {
        let place = id.to_bytes();
        self.orgs.insert(&place, sealed)?;
        let opened = sealer.open_at::<OrgRecord>(&place, sealed).ok();
        if let Some(email) = opened.as_ref().and_then(|org| org.record.email.as_ref()) {
            let claim = EmailClaim::under(sealer.peppers(), email, id);
            self.emails.insert(&claim.index, &place)?;
        }
        Ok(())
    }

    /// What cannot be read, and a tombstone, is in the list of all keys alone.
    fn put_key(&mut self, sealer: &Sealer, id: KeyId, sealed: &[u8]) -> Result<(), Stop> {
        let place = id.to_bytes();
        self.keys.insert(&place, sealed)?;
        let opened = sealer.open_at::<KeyRecord>(&place, sealed).ok().map(|key| key.record);
        let Some(key) = opened.filter(|key| !key.is_tombstone()) else { return Ok(()) };
        self.org_keys.insert((&key.org.to_bytes(), &place), ())?;
        self.index(key.org, &place, &Indexed::from(&key))?;
        for secret in &key.secrets {
            self.digests.insert(secret.digest.as_bytes(), &place)?;
        }
        Ok(())
    }
}
