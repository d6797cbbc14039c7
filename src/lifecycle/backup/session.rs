//! A backup while it is taken from the gateway: the store hands its pieces over, and the operator takes the file in parts. The
//! store waits for the operator, so little is in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::format::Writer;
use crate::lifecycle::acts::Act;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::{Lifecycle, Origin};
use crate::store::keeper::Place;
use crate::store::whole::{Head, Piece};
use crate::store::{Store, StoreFault};
use crate::vocabulary::key::record::Sealer;

/// The bytes of a part of the file, roughly.
const PART: usize = 1 << 20;
/// Batches of pieces, and parts, that wait.
const WAITING: usize = 4;
/// A backup whose next part nobody takes for so long is given up when another one is begun.
const LEFT: Duration = Duration::from_secs(60);

/// What a complete backup has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUp {
    pub organizations: u64,
    pub keys: u64,
    /// In all audit trails.
    #[serde(rename = "events")]
    pub audit_records: u64,
    /// The number of the last event before the moment that it shows.
    pub event: u64,
    /// The format of its records.
    pub format: String,
}

/// A part of the file.
#[derive(Debug)]
pub struct BackupPart {
    pub bytes: Vec<u8>,
    /// Of the last part.
    pub done: Option<BackedUp>,
}

type Parts = mpsc::Receiver<Result<BackupPart, StoreFault>>;

/// The backup that is being taken. There is one at a time.
#[derive(Debug, Default)]
pub(in crate::lifecycle) struct Backups(Mutex<Option<Session>>);

#[derive(Debug)]
struct Session {
    id: u64,
    parts: Arc<tokio::sync::Mutex<Parts>>,
    asked: Instant,
}

impl Backups {
    fn lock(&self) -> MutexGuard<'_, Option<Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle {
    /// Begins a backup, says so in the operators' trail, and returns its id.
    ///
    /// # Errors
    /// [`LifecycleError::BackupRuns`], or if the store cannot answer.
    pub async fn begin_backup(&self, origin: &Origin) -> Result<u64, LifecycleError> {
        let id = self.start_backup().await?;
        self.record_act(origin, Act::BackupBegun).await;
        Ok(id)
    }

    async fn start_backup(&self) -> Result<u64, LifecycleError> {
        let status = self.keeper().status().await;
        if let (None, Some(trouble)) = (&status.found, status.trouble) {
            return Err(StoreFault::failed(trouble).into());
        }
        if status.format.is_some_and(|format| format > status.keeps) {
            // It could not tell what leads to a record of a newer release.
            return Err(LifecycleError::NewerStore);
        }
        let now = self.clock.mono();
        let mut running = self.backups.lock();
        if running.as_ref().is_some_and(|session| now.saturating_duration_since(session.asked) < LEFT) {
            return Err(LifecycleError::BackupRuns);
        }
        let pepper = status.pepper.and_then(|pepper| pepper.current);
        let writer =
            Writer::begin(self.now(), status.found.as_deref().unwrap_or_default(), pepper.as_deref());
        let (out, parts) = mpsc::channel(WAITING);
        tokio::spawn(take(
            Arc::clone(&self.store),
            Sealer::under(self.settings.peppers.clone()),
            writer,
            out,
        ));
        let id = fastrand::u64(1..);
        *running = Some(Session { id, parts: Arc::new(tokio::sync::Mutex::new(parts)), asked: now });
        Ok(id)
    }

    /// The next part of a backup.
    ///
    /// # Errors
    /// [`LifecycleError::NoBackup`], or if the store cannot answer; then the backup is over.
    pub async fn next_of_backup(&self, id: u64) -> Result<BackupPart, LifecycleError> {
        let parts = {
            let mut running = self.backups.lock();
            let session =
                running.as_mut().filter(|session| session.id == id).ok_or(LifecycleError::NoBackup)?;
            session.asked = self.clock.mono();
            Arc::clone(&session.parts)
        };
        let part = parts.lock().await.recv().await;
        let is_last = !matches!(&part, Some(Ok(BackupPart { done: None, .. })));
        let mut running = self.backups.lock();
        if let Some(session) = running.as_mut().filter(|session| session.id == id) {
            session.asked = self.clock.mono();
            if is_last {
                *running = None;
            }
        }
        Ok(part.ok_or(LifecycleError::NoBackup)??)
    }
}

/// Takes everything from the store and hands the file over, part by part.
async fn take(
    store: Arc<dyn Store>,
    sealer: Sealer,
    mut writer: Writer,
    out: mpsc::Sender<Result<BackupPart, StoreFault>>,
) {
    let (handing, mut pieces) = mpsc::channel(WAITING);
    let dumping = tokio::spawn(async move { store.keeper().dump(handing).await });
    let mut tally = Tally::default();
    while let Some(batch) = pieces.recv().await {
        for piece in batch {
            tally.count(&piece);
            writer.piece(&piece);
        }
        // If nobody takes it, the store is told by its next piece.
        if writer.len() >= PART
            && out.send(Ok(BackupPart { bytes: writer.take(), done: None })).await.is_err()
        {
            return;
        }
    }
    let dumped = dumping.await.unwrap_or_else(|error| Err(StoreFault::failed(error)));
    let last = dumped.and_then(|head| {
        let done = Some(tally.finish(&head));
        let bytes = writer.finish(head, &sealer).map_err(StoreFault::failed)?;
        Ok(BackupPart { bytes, done })
    });
    let _ = out.send(last).await;
}

/// Counts what is told. Records behind [`Piece::Newer`] may be told a second time.
#[derive(Default)]
struct Tally {
    done: BackedUp,
    places: std::collections::HashSet<Place>,
}

impl Tally {
    fn count(&mut self, piece: &Piece) {
        match piece {
            Piece::Record { of, .. } => {
                if self.places.insert(*of) {
                    let count = match of {
                        Place::Org(_) => &mut self.done.organizations,
                        Place::Key(_) => &mut self.done.keys,
                    };
                    *count += 1;
                }
            }
            Piece::Entries { entries, .. } => self.done.audit_records += entries.len() as u64,
            Piece::Used { .. } | Piece::News { .. } | Piece::Gone(_) | Piece::Newer => {}
        }
    }

    fn finish(self, head: &Head) -> BackedUp {
        BackedUp { event: head.event, format: head.format.to_string(), ..self.done }
    }
}
