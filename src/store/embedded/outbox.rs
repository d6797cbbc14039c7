//! News that wait to be delivered, in the file.

use std::ops::Bound;

use redb::{ReadableTable, ReadableTableMetadata};

use super::Embedded;
use super::reads::Snapshot;
use super::tables::{Id, NEWS, NEWS_DUE, Number, Tables, split_time};
use super::writer::Stop;
use crate::store::outbox::{News, Outbox};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::{AGREED, UnixMillis};
use crate::vocabulary::id::OrgId;

impl Outbox for Embedded {
    /// Looks first, because a look costs no sync.
    fn claim(
        &self,
        now: UnixMillis,
        until: UnixMillis,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<News>, StoreFault>> {
        Box::pin(async move {
            if !self.read(move |snapshot| snapshot.has_news(now, until)).await? {
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
}

impl Tables<'_> {
    fn claim_news(&mut self, now: UnixMillis, until: UnixMillis, limit: usize) -> Result<Vec<News>, Stop> {
        let due: Vec<_> = due_at(&*self.news_due, now, until)?.take(limit).collect::<Result<_, _>>()?;
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
    fn news(&self, orgs: &[OrgId]) -> Result<Vec<Option<News>>, StoreFault> {
        let table = self.file.open_table(NEWS)?;
        let news = |org: &OrgId| {
            let kept = table.get(&org.to_bytes())?;
            let kept = kept.as_ref().and_then(|kept| split_time(kept.value()));
            Ok(kept.map(|(due, body)| News { org: *org, due, body: body.to_vec() }))
        };
        orgs.iter().map(news).collect()
    }

    fn has_news(&self, now: UnixMillis, until: UnixMillis) -> Result<bool, StoreFault> {
        let table = self.file.open_table(NEWS_DUE)?;
        Ok(due_at(&table, now, until)?.next().transpose()?.is_some())
    }
}

/// The organisations whose news are due, the longest due first; then those that are due later than any that is claimed now will
/// be again: a wrong clock has put them there.
fn due_at<'t>(
    table: &'t impl ReadableTable<(Number, Id), ()>,
    now: UnixMillis,
    until: UnixMillis,
) -> Result<impl Iterator<Item = Result<(UnixMillis, OrgId), redb::StorageError>> + 't, redb::StorageError> {
    let end = (&now.0.to_be_bytes(), &[u8::MAX; 16]);
    let range = table.range::<(&[u8; 8], &[u8; 16])>((Bound::Unbounded, Bound::Included(end)))?;
    let start = (&until.plus(AGREED).0.to_be_bytes(), &[u8::MAX; 16]);
    let astray = table.range::<(&[u8; 8], &[u8; 16])>((Bound::Excluded(start), Bound::Unbounded))?;
    Ok(range.chain(astray).map(|place| {
        let (place, _) = place?;
        let (due, org) = place.value();
        Ok((UnixMillis(u64::from_be_bytes(*due)), OrgId::from_bytes(*org)))
    }))
}
