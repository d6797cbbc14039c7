//! A view of a file that keeps all writes in memory.
//!
//! redb repairs a file while it opens it: it may rewrite the header before it finds that the rest cannot be repaired.
//! So the embedded store opens a file twice, first on a [`Rehearsal`]. A file that is refused there was not touched.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// Reads the file, under its own lock; keeps writes in memory.
#[derive(Debug)]
pub(super) struct Rehearsal {
    file: FileBackend,
    overlay: Mutex<Overlay>,
}

#[derive(Debug)]
struct Overlay {
    len: u64,
    /// The shortest the file has been: what lies beyond reads as zeros, not as the file has it.
    shortest: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

const PAGE: usize = 4096;

impl Rehearsal {
    pub(super) fn new(file: FileBackend) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self { file, overlay: Mutex::new(Overlay { len, shortest: len, pages: BTreeMap::new() }) })
    }

    /// No code panics while it holds the lock, so a poisoned lock can be used.
    fn overlay(&self) -> MutexGuard<'_, Overlay> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page of the file, with zeros beyond its end.
    fn original(&self, page: u64, shortest: u64) -> io::Result<Box<[u8; PAGE]>> {
        let mut bytes = Box::new([0; PAGE]);
        let start = page * PAGE as u64;
        let there = usize::try_from(shortest.saturating_sub(start)).unwrap_or(PAGE).min(PAGE);
        if there > 0 {
            self.file.read(start, &mut bytes[..there])?;
        }
        Ok(bytes)
    }
}

/// The parts of `len` bytes at `offset`, page by page: page, where in it, where in the buffer.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = usize::try_from(at % PAGE as u64).unwrap_or(0);
        let part = done..len.min(done + PAGE - within);
        done = part.end;
        (!part.is_empty()).then_some((at / PAGE as u64, within, part))
    })
}

fn check_range(offset: u64, len: usize, end: u64) -> io::Result<()> {
    match offset.checked_add(len as u64) {
        Some(last) if last <= end => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

impl StorageBackend for Rehearsal {
    fn len(&self) -> io::Result<u64> {
        Ok(self.overlay().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let overlay = self.overlay();
        check_range(offset, out.len(), overlay.len)?;
        for (page, within, part) in parts(offset, out.len()) {
            let to = &mut out[part];
            let within = within..within + to.len();
            match overlay.pages.get(&page) {
                Some(bytes) => to.copy_from_slice(&bytes[within]),
                None => to.copy_from_slice(&self.original(page, overlay.shortest)?[within]),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut overlay = self.overlay();
        let kept = len.div_ceil(PAGE as u64);
        overlay.pages.retain(|page, _| *page < kept);
        // redb's layouts end on page boundaries; a page cut in two would have to be zeroed behind the cut.
        if let Some(cut) = overlay.pages.get_mut(&(len / PAGE as u64)) {
            cut[usize::try_from(len % PAGE as u64).unwrap_or(0)..].fill(0);
        }
        overlay.shortest = overlay.shortest.min(len);
        overlay.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut overlay = self.overlay();
        check_range(offset, data.len(), overlay.len)?;
        for (page, within, part) in parts(offset, data.len()) {
            let from = &data[part];
            let shortest = overlay.shortest;
            let bytes = match overlay.pages.entry(page) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(free) => free.insert(self.original(page, shortest)?),
            };
            bytes[within..within + from.len()].copy_from_slice(from);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bytes = prop_oneof![Just(1_usize), 1..3 * PAGE];
        let write = (0..20_000_u64, bytes, any::<u8>()).prop_map(|(at, n, b)| Step::Write(at, vec![b; n]));
        proptest::collection::vec(prop_oneof![3 => write, 1 => (0..30_000_u64).prop_map(Step::SetLen)], 0..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_reads_as_a_written_file_would_and_the_file_stays_as_it_was(start in 0..20_000_usize, steps in steps()) {
            let before: Vec<u8> = (0..start).map(|n| (n % 251) as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&before).unwrap();
            let rehearsal = Rehearsal::new(FileBackend::new(file.try_clone().unwrap()).unwrap()).unwrap();
            let mut expected = before.clone();
            for step in steps {
                match step {
                    Step::Write(at, data) => {
                        let to = usize::try_from(at).unwrap()..usize::try_from(at).unwrap() + data.len();
                        let done = rehearsal.write(at, &data);
                        match expected.get_mut(to) {
                            Some(to) => { done.unwrap(); to.copy_from_slice(&data); }
                            None => prop_assert!(done.is_err()),
                        }
                    }
                    Step::SetLen(len) => {
                        rehearsal.set_len(len).unwrap();
                        expected.resize(usize::try_from(len).unwrap(), 0);
                    }
                }
            }
            let mut read = vec![0; expected.len()];
            rehearsal.read(0, &mut read).unwrap();
            prop_assert!(read == expected);
            let mut after = vec![0; before.len()];
            FileBackend::new(file.try_clone().unwrap()).unwrap().read(0, &mut after).unwrap();
            prop_assert!(after == before && file.metadata().unwrap().len() == before.len() as u64);
        }
    }
}
