//! Quotas, in the file: a client that can make a gateway restart gets no more than others.
//!
//! A window is a row with its end and its count. Ended windows are removed when others are counted.

use std::time::Duration;

use redb::ReadableTable;

use super::Embedded;
use super::reads::Snapshot;
use super::tables::{Bytes, QUOTAS, Tables, open_if_there, split_time};
use super::writer::Stop;
use crate::store::quotas::{Admission, Quota, Quotas};
use crate::store::{CommitError, StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;

/// Ended windows that are removed with each count. More than one, so that they become fewer.
const CLEARED: usize = 8;

#[derive(Clone, Copy)]
pub(super) struct Window {
    ends_at: UnixMillis,
    count: u32,
}

impl Quotas for Embedded {
    /// Looks first, because a look costs no sync: a flood of what is refused writes nothing.
    fn admit(&self, quotas: Vec<Quota>, now: UnixMillis) -> StoreFuture<'_, Result<Admission, StoreFault>> {
        Box::pin(async move {
            let looked_at = quotas.clone();
            match self.read(move |snapshot| snapshot.wait(&looked_at, now)).await? {
                Some(retry_after) => Ok(Admission::Refused { retry_after }),
                None => self.write(move |tables, _| tables.admit(&quotas, now)).await,
            }
        })
    }
}

impl Snapshot {
    /// How long to wait for the quotas that are used up, if any are.
    pub(super) fn wait(&self, quotas: &[Quota], now: UnixMillis) -> Result<Option<Duration>, StoreFault> {
        let mut longest = None;
        let table = open_if_there(&self.file, QUOTAS)?;
        for quota in quotas {
            let window = table.as_ref().map(|table| window(table, quota)).transpose()?.flatten();
            longest = longest.max(wait(quota, window, now));
        }
        Ok(longest)
    }
}

impl Tables<'_> {
    pub(super) fn admit(&mut self, quotas: &[Quota], now: UnixMillis) -> Result<Admission, Stop> {
        let mut windows = Vec::with_capacity(quotas.len());
        let mut longest = None;
        for quota in quotas {
            let window = window(&*self.quotas, quota)?;
            longest = longest.max(wait(quota, window, now));
            windows.push(window);
        }
        if let Some(retry_after) = longest {
            return Ok(Admission::Refused { retry_after });
        }
        for (quota, window) in quotas.iter().zip(windows) {
            self.count(quota, window, now)?;
        }
        Ok(Admission::Admitted)
    }

    /// The present window of a quota, if it is not used up.
    pub(super) fn check_quota(&self, quota: &Quota, now: UnixMillis) -> Result<Option<Window>, Stop> {
        let window = window(&*self.quotas, quota)?;
        match wait(quota, window, now) {
            Some(retry_after) => Err(CommitError::TooFast { retry_after }.into()),
            None => Ok(window),
        }
    }

    pub(super) fn count(
        &mut self,
        quota: &Quota,
        before: Option<Window>,
        now: UnixMillis,
    ) -> Result<(), Stop> {
        self.clear_windows(now)?;
        let under_way = before.filter(|window| window.ends_at > now);
        let Window { ends_at, count } =
            under_way.unwrap_or(Window { ends_at: now.plus(quota.window), count: 0 });
        if let Some(before) = before {
            self.quota_ends.remove((&before.ends_at.0.to_be_bytes(), &*quota.name))?;
        }
        let (end, count) = (ends_at.0.to_be_bytes(), count.saturating_add(1).to_be_bytes());
        self.quotas.insert(&*quota.name, &[&end[..], &count].concat()[..])?;
        self.quota_ends.insert((&end, &*quota.name), ())?;
        Ok(())
    }

    fn clear_windows(&mut self, now: UnixMillis) -> Result<(), Stop> {
        for _ in 0..CLEARED {
            let first = self.quota_ends.first()?;
            let first = first.map(|(place, _)| (*place.value().0, place.value().1.to_owned()));
            let Some((end, name)) = first.filter(|(end, _)| u64::from_be_bytes(*end) <= now.0) else { break };
            self.quota_ends.remove((&end, &*name))?;
            self.quotas.remove(&*name)?;
        }
        Ok(())
    }
}

/// The last window of a quota, which may have ended. One that cannot be read counts as none.
fn window(
    table: &impl ReadableTable<&'static str, Bytes>,
    quota: &Quota,
) -> Result<Option<Window>, redb::StorageError> {
    let kept = table.get(&*quota.name)?;
    Ok(kept.and_then(|kept| {
        let (ends_at, count) = split_time(kept.value())?;
        Some(Window { ends_at, count: u32::from_be_bytes(count.try_into().ok()?) })
    }))
}

/// How long to wait for a quota that is used up. Never longer than a window, even if the clock was set back.
fn wait(quota: &Quota, window: Option<Window>, now: UnixMillis) -> Option<Duration> {
    let window = window.filter(|window| window.ends_at > now);
    let count = window.map_or(0, |window| window.count);
    let left = window.map_or(quota.window, |window| Duration::from_millis(window.ends_at.0 - now.0));
    (count >= quota.limit).then(|| left.min(quota.window))
}
