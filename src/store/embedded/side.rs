//! What the file keeps beside keys.

use std::ops::Bound;

use redb::{ReadableTable, ReadableTableMetadata};

use super::Embedded;
use super::reads::Snapshot;
use super::tables::{ANSWERS, Id, NEWS, NEWS_DUE, Number, Tables, USAGE};
use super::writer::Stop;
use crate::store::side::{Admission, News, Quota, Side};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::usage::{Usage, Used};

impl Side for Embedded {
    fn answer(
        &self,
        index: [u8; 32],
        now: UnixMillis,
    ) -> StoreFuture<'_, Result<Option<Vec<u8>>, StoreFault>> {
        self.read(move |snapshot| {
            let kept = snapshot.file.open_table(ANSWERS)?.get(&index)?.map(|kept| kept.value().to_vec());
            let Some(kept) = kept else { return Ok(None) };
            let (ends_at, sealed) =
                split_time(&kept).ok_or_else(|| StoreFault::failed("a kept answer is cut short"))?;
            Ok((ends_at > now).then(|| sealed.to_vec()))
        })
    }

    fn note_usage(&self, used: Vec<Used>) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.write(move |tables, _| used.iter().try_for_each(|used| tables.note_usage(used)))
    }

    fn usage(&self, keys: Vec<KeyId>) -> StoreFuture<'_, Result<Vec<Option<Usage>>, StoreFault>> {
        self.read(move |snapshot| snapshot.usage(&keys))
    }

    /// Looks first, because a look costs no sync.
    fn claim_news(
        &self,
        now: UnixMillis,
        until: UnixMillis,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<News>, StoreFault>> {
        Box::pin(async move {
            if !self.read(move |snapshot| snapshot.has_news(now)).await? {
                return Ok(Vec::new());
            }
            self.write(move |tables, _| tables.claim_news(now, until, limit)).await
        })
    }

    fn news(&self, orgs: Vec<OrgId>) -> StoreFuture<'_, Result<Vec<Option<News>>, StoreFault>> {
        self.read(move |snapshot| snapshot.news(&orgs))
    }

    fn backlog(&self) -> StoreFuture<'_, Result<u64, StoreFault>> {
        self.read(|snapshot| Ok(snapshot.file.open_table(NEWS_DUE)?.len()?))
    }

    fn delivered(&self, org: OrgId) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.write(move |tables, _| tables.remove_news(org))
    }

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

impl Tables<'_> {
    fn note_usage(&mut self, used: &Used) -> Result<(), Stop> {
        let place = used.key.to_bytes();
        if self.keys.get(&place)?.is_none() {
            return Ok(());
        }
        // What does not read is as good as nothing.
        let known = self.usage.get(&place)?.and_then(|text| parse_usage(text.value()));
        let merged = known.iter().cloned().fold(used.usage.clone(), Usage::merge);
        if known.as_ref() != Some(&merged) {
            self.usage.insert(&place, merged.to_string().as_bytes())?;
        }
        Ok(())
    }

    fn claim_news(&mut self, now: UnixMillis, until: UnixMillis, limit: usize) -> Result<Vec<News>, Stop> {
        let due: Vec<_> = due_at(&self.news_due, now)?.take(limit).collect::<Result<_, _>>()?;
        let mut claimed = Vec::new();
        for (due, org) in due {
            let kept = self.news.get(&org.to_bytes())?.map(|kept| kept.value().to_vec());
            if let Some((_, body)) = kept.as_deref().and_then(split_time) {
                let news = News { org, due: until, body: body.to_vec() };
                self.write_news(&news)?;
                claimed.push(news);
            } else {
                self.news_due.remove((&due.0.to_be_bytes(), &org.to_bytes()))?;
            }
        }
        Ok(claimed)
    }

    pub(super) fn write_news(&mut self, news: &News) -> Result<(), Stop> {
        self.remove_news(news.org)?;
        let (org, due) = (news.org.to_bytes(), news.due.0.to_be_bytes());
        self.news.insert(&org, &[&due[..], &news.body].concat()[..])?;
        self.news_due.insert((&due, &org), ())?;
        Ok(())
    }

    fn remove_news(&mut self, org: OrgId) -> Result<(), Stop> {
        let org = org.to_bytes();
        let due = self.news.remove(&org)?.and_then(|kept| split_time(kept.value()).map(|(due, _)| due));
        if let Some(due) = due {
            self.news_due.remove((&due.0.to_be_bytes(), &org))?;
        }
        Ok(())
    }
}

impl Snapshot {
    fn usage(&self, keys: &[KeyId]) -> Result<Vec<Option<Usage>>, StoreFault> {
        let table = self.file.open_table(USAGE)?;
        let usage = |key: &KeyId| {
            let Some(text) = table.get(&key.to_bytes())? else { return Ok(None) };
            let unreadable = || StoreFault::failed(format_args!("the usage of {key} does not read"));
            parse_usage(text.value()).map(Some).ok_or_else(unreadable)
        };
        keys.iter().map(usage).collect()
    }

    fn news(&self, orgs: &[OrgId]) -> Result<Vec<Option<News>>, StoreFault> {
        let table = self.file.open_table(NEWS)?;
        let news = |org: &OrgId| {
            let kept = table.get(&org.to_bytes())?;
            let kept = kept.as_ref().and_then(|kept| split_time(kept.value()));
            Ok(kept.map(|(due, body)| News { org: *org, due, body: body.to_vec() }))
        };
        orgs.iter().map(news).collect()
    }

    fn has_news(&self, now: UnixMillis) -> Result<bool, StoreFault> {
        let table = self.file.open_table(NEWS_DUE)?;
        Ok(due_at(&table, now)?.next().transpose()?.is_some())
    }
}

/// Whose news are due, the longest due first.
fn due_at<'t>(
    table: &'t impl ReadableTable<(Number, Id), ()>,
    now: UnixMillis,
) -> Result<impl Iterator<Item = Result<(UnixMillis, OrgId), redb::StorageError>> + 't, redb::StorageError> {
    let end = (&now.0.to_be_bytes(), &[u8::MAX; 16]);
    let range = table.range::<(&[u8; 8], &[u8; 16])>((Bound::Unbounded, Bound::Included(end)))?;
    Ok(range.map(|place| {
        let (place, _) = place?;
        let (due, org) = place.value();
        Ok((UnixMillis(u64::from_be_bytes(*due)), OrgId::from_bytes(*org)))
    }))
}

fn parse_usage(text: &[u8]) -> Option<Usage> {
    std::str::from_utf8(text).ok().and_then(Usage::parse)
}

/// A time, and what stands behind it.
pub(super) fn split_time(bytes: &[u8]) -> Option<(UnixMillis, &[u8])> {
    bytes.split_first_chunk().map(|(time, rest)| (UnixMillis(u64::from_be_bytes(*time)), rest))
}
