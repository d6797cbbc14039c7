//! Filling an empty store from a backup. The file is read twice: first as a whole, so that nothing of a damaged or changed file
//! comes into a store; then into the store, which serves nobody before its end.

use std::collections::HashMap;
use std::io::{BufReader, Read, Seek, SeekFrom};

use serde::Serialize;
use thiserror::Error;

use super::format::{BadBackup, Part, Reader};
use crate::store::keeper::Place;
use crate::store::whole::{Fill, FillError, Head, Piece};
use crate::vocabulary::audit::{Ends, Trail};
use crate::vocabulary::key::Misfit;
use crate::vocabulary::key::pepper::hex;
use crate::vocabulary::key::proof::ProofOf;
use crate::vocabulary::key::record::{RecordFormat, Sealer};

/// Pieces that are put in at once.
const AT_ONCE: usize = 1024;

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// When the backup was begun.
    pub made_at: String,
    /// The id of the store.
    pub store: String,
    pub organizations: u64,
    pub keys: u64,
    /// In all audit trails.
    #[serde(rename = "events")]
    pub audit_records: u64,
}

/// Why a backup was not restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    #[error("{0}")]
    Bad(#[from] BadBackup),
    #[error("the backup takes the pepper that its store had: {0}")]
    Pepper(#[from] Misfit),
    #[error(
        "the backup has records of format {found}, and this keygate keeps formats up to {kept}: restore it with the version that \
         made it, or a newer one"
    )]
    Newer { found: RecordFormat, kept: RecordFormat },
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// What the first reading has found.
struct Surveyed {
    head: Head,
    /// The name of the restore: another one is of another backup.
    name: String,
    /// Records that were told again, as they are told last.
    newer: HashMap<Place, Vec<u8>>,
    ends: HashMap<Trail, Ends>,
}

/// Restores a backup into an empty store. `tell` is told the progress.
///
/// # Errors
/// [`RestoreError`], which says what to do. Nothing was written if the backup is bad, or the store is not empty.
pub async fn restore(
    mut input: impl Read + Seek,
    sealer: &Sealer,
    fill: &dyn Fill,
    tell: &mut dyn FnMut(&Restored),
) -> Result<Restored, RestoreError> {
    let surveyed = survey(BufReader::with_capacity(1 << 20, &mut input), sealer)?;
    input.seek(SeekFrom::Start(0)).map_err(BadBackup::Io)?;
    let mut reader = Reader::begin(BufReader::with_capacity(1 << 20, input))?;
    let made_at = reader.line.split(' ').nth(3).unwrap_or_default().to_owned();
    let mut done = Restored { made_at, store: surveyed.head.incarnation.clone(), ..Restored::default() };
    fill.begin(&surveyed.head, &surveyed.name).await?;
    let mut batch = Vec::with_capacity(AT_ONCE);
    let mut is_newer = false;
    while let Part::Piece(piece) = reader.next()? {
        is_newer |= piece == Piece::Newer;
        if let Some(piece) = surveyed.wanted(piece, is_newer) {
            done.count(&piece);
            batch.push(piece);
        }
        if batch.len() == AT_ONCE {
            fill.put(std::mem::take(&mut batch)).await?;
            tell(&done);
        }
    }
    for (of, sealed) in &surveyed.newer {
        let piece = Piece::Record { of: *of, sealed: sealed.clone() };
        done.count(&piece);
        batch.push(piece);
    }
    fill.put(batch).await?;
    fill.end(&surveyed.head).await?;
    Ok(done)
}

/// Reads the whole file, and checks that it is what keygate has written, under the pepper of the configuration.
fn survey(input: impl Read, sealer: &Sealer) -> Result<Surveyed, RestoreError> {
    let mut reader = Reader::begin(input)?;
    let (mut newer, mut ends, mut is_newer) = (HashMap::new(), HashMap::new(), false);
    let mut told = None;
    let (hash, proof) = loop {
        match reader.next()? {
            Part::Piece(Piece::Newer) => is_newer = true,
            Part::Piece(Piece::Record { of, sealed }) if is_newer => drop(newer.insert(of, sealed)),
            Part::Piece(Piece::Entries { trail, ends: now, .. }) => drop(ends.insert(trail, now)),
            Part::Piece(_) => {}
            Part::Head(head) => told = Some(head),
            Part::End { hash, proof } => break (hash, proof),
        }
    };
    let head = told.ok_or(BadBackup::Short)?;
    if head.format > sealer.keeps() {
        return Err(RestoreError::Newer { found: head.format, kept: sealer.keeps() });
    }
    if let Some(row) = &head.peppers {
        sealer.peppers().learn_anyway(row)?;
    }
    if sealer.check_proof(ProofOf::Backup, &[&hash], &proof).is_none() {
        return Err(BadBackup::Unproven.into());
    }
    Ok(Surveyed { head, name: hex(&hash), newer, ends })
}

impl Surveyed {
    /// A piece as it is to be put in, if it is.
    fn wanted(&self, piece: Piece, is_newer: bool) -> Option<Piece> {
        match piece {
            Piece::Newer => None,
            Piece::Record { of, .. } if is_newer || self.newer.contains_key(&of) => None,
            Piece::Entries { trail, ends, mut entries } => {
                // What was trimmed while the trail was copied may have gaps.
                let ends = self.ends.get(&trail).copied().unwrap_or(ends);
                entries.retain(|entry| entry.link.number > ends.checkpoint.number);
                Some(Piece::Entries { trail, ends, entries })
            }
            piece => Some(piece),
        }
    }
}

impl Restored {
    fn count(&mut self, piece: &Piece) {
        match piece {
            Piece::Record { of: Place::Org(_), .. } => self.organizations += 1,
            Piece::Record { of: Place::Key(_), .. } => self.keys += 1,
            Piece::Entries { entries, .. } => self.audit_records += entries.len() as u64,
            Piece::Used { .. } | Piece::News { .. } | Piece::Gone(_) | Piece::Newer => {}
        }
    }
}
