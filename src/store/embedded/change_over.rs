//! The moment in which a new file takes the place of the old one. The writer does it between two transactions.

use std::collections::BTreeSet;

use redb::{Database, ReadableDatabase};

use super::copied;
use super::exchange::Ready;
use super::noted::Row;
use super::tables::begin_write;
use super::writer::Writer;
use crate::store::StoreFault;

impl Writer {
    /// Changes over to the new file, if one is ready. No change is answered from the new one before a power cut
    /// cannot bring the old one back.
    pub(super) fn change_over(&mut self) {
        let Some((ready, rows)) = self.compaction.take_ready() else { return };
        let begun = self.clock.mono();
        let Ready { copy, names, answer } = ready;
        let written = self.file.with(|old| complete(old, &copy, &rows));
        let renamed =
            written.and_then(|()| names.exchange(&*self.compaction.folder).map_err(StoreFault::failed));
        let changed = renamed.and_then(|()| {
            let old = self.file.exchange(copy)?;
            if let Err(error) = self.compaction.folder.sync(&names.path) {
                let fault = StoreFault::failed(format_args!("{}: {error}", names.path.display()));
                self.mender.give_up_file(&fault);
            }
            Ok(old)
        });
        let paused = self.clock.mono().saturating_duration_since(begun);
        // Nobody else takes the old file: then it is closed here.
        let _ = answer.send(changed.map(|old| (old, paused)));
        if self.mender.fault().is_some() {
            self.mend();
        }
    }
}

/// Makes the new file what the old one is.
fn complete(old: &Database, copy: &Database, rows: &BTreeSet<Row>) -> Result<(), StoreFault> {
    let from = old.begin_read()?;
    // In two phases, as every change.
    let to = begin_write(copy)?;
    copied::bring(&from, &to, rows)?;
    Ok(to.commit()?)
}
