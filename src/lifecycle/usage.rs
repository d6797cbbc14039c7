//! The use of keys, gathered from all threads and written to the store once a minute: a busy key costs one write a
//! minute, and no request waits for it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::Lifecycle;
use super::error::LifecycleError;
use crate::vocabulary::clock::{AGREED, UnixMillis};
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::usage::{Usage, Used};

/// Keys whose use may wait to be written. The use of further keys is dropped: that happens only while the store cannot
/// answer, or if there are more active keys than can be written in a minute.
const WAITING: usize = 1_000_000;
/// Keys written at once.
const BATCH: usize = 512;

#[derive(Debug, Default)]
pub struct UsageLog(Mutex<HashMap<KeyId, Usage>>);

impl UsageLog {
    /// Adds a thread's notes.
    pub fn note(&self, used: impl Iterator<Item = Used>) {
        let mut waiting = None;
        for Used { key, usage } in used {
            // Locked only if there is something to note.
            let waiting =
                waiting.get_or_insert_with(|| self.0.lock().unwrap_or_else(PoisonError::into_inner));
            match waiting.remove(&key) {
                Some(before) => drop(waiting.insert(key, before.merge(usage))),
                None if waiting.len() < WAITING => drop(waiting.insert(key, usage)),
                None => {}
            }
        }
    }

    fn take(&self) -> HashMap<KeyId, Usage> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Lifecycle {
    /// The same by the store's clock, where this machine's is wrong: a moment that has not come yet would hide all later uses.
    fn dated(&self, used: &Used) -> Used {
        let (ahead, mut used) = (self.clock.ahead_of_store().unwrap_or_default(), used.clone());
        if u128::from(ahead.unsigned_abs()) > AGREED.as_millis() {
            used.usage.last_used_at = UnixMillis(used.usage.last_used_at.0.saturating_add_signed(-ahead));
        }
        used
    }

    #[must_use]
    pub const fn usage_log(&self) -> &UsageLog {
        &self.usage
    }

    /// Writes the uses since the last time to the store.
    ///
    /// # Errors
    /// When the store cannot answer; uses that were not written are kept for the next time.
    pub async fn write_usage(&self) -> Result<(), LifecycleError> {
        let mut waiting: Vec<Used> =
            self.usage.take().into_iter().map(|(key, usage)| Used { key, usage }).collect();
        while !waiting.is_empty() {
            let batch = waiting.split_off(waiting.len().saturating_sub(BATCH));
            if let Err(fault) =
                self.store.usage().note(batch.iter().map(|used| self.dated(used)).collect()).await
            {
                self.usage.note(batch.into_iter().chain(waiting));
                return Err(fault.into());
            }
        }
        Ok(())
    }
}
