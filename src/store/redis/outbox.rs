//! News that wait to be delivered, in Redis.

use super::scripts::Call;
use super::{Inner, Redis};
use crate::store::outbox::{News, Outbox};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;

/// News that one script claims or tells. It bounds how long a script holds up all others.
const AT_ONCE: usize = 128;

impl Outbox for Redis {
    fn claim(
        &self,
        now: UnixMillis,
        until: UnixMillis,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<News>, StoreFault>> {
        Box::pin(self.inner.claim_news(now, until, limit))
    }

    fn news(&self, orgs: Vec<OrgId>) -> StoreFuture<'_, Result<Vec<Option<News>>, StoreFault>> {
        Box::pin(self.inner.news(orgs))
    }

    fn backlog(&self) -> StoreFuture<'_, Result<u64, StoreFault>> {
        Box::pin(self.inner.backlog())
    }

    fn delivered(&self, org: OrgId) -> StoreFuture<'_, Result<(), StoreFault>> {
        let names = &self.inner.names;
        let call = self
            .inner
            .writing(&self.inner.scripts.delivered, [names.news(), names.news_due()])
            .arg(org.to_string());
        Box::pin(async move { self.inner.write(&call).await.map(|_| ()) })
    }
}

impl Inner {
    async fn news(&self, orgs: Vec<OrgId>) -> Result<Vec<Option<News>>, StoreFault> {
        let mut news = Vec::with_capacity(orgs.len());
        for batch in orgs.chunks(AT_ONCE) {
            let places = [self.names.meta(), self.names.news(), self.names.news_due()];
            let call = Call::new(&self.scripts.news, places);
            let mut reply = self.ask(&batch.iter().fold(call, |call, org| call.arg(org.to_string()))).await?;
            for org in batch {
                let body = reply.bytes().map_err(|error| self.fault(error))?;
                let due = reply.text().map_err(|error| self.fault(error))?;
                // News without a time are never sent, so they count as absent.
                let due = due.and_then(|due| due.parse().ok()).map(UnixMillis);
                news.push(body.zip(due).map(|(body, due)| News { org: *org, due, body }));
            }
        }
        Ok(news)
    }

    async fn backlog(&self) -> Result<u64, StoreFault> {
        let call = Call::new(&self.scripts.backlog, [self.names.meta(), self.names.news_due()]);
        let count = self.ask(&call).await?.text().map_err(|error| self.fault(error))?;
        let count = count.and_then(|count| count.parse().ok());
        count.ok_or_else(|| self.fault("the number of news does not read"))
    }

    async fn claim_news(
        &self,
        now: UnixMillis,
        until: UnixMillis,
        limit: usize,
    ) -> Result<Vec<News>, StoreFault> {
        let mut claimed = Vec::new();
        while claimed.len() < limit {
            let count = AT_ONCE.min(limit - claimed.len());
            let call = self
                .writing(&self.scripts.claim_news, [self.names.news(), self.names.news_due()])
                .arg(now.0.to_string())
                .arg(until.0.to_string())
                .arg(count.to_string());
            let mut reply = self.write(&call).await?;
            let before = claimed.len();
            while !reply.is_empty() {
                let org = reply.text().map_err(|error| self.fault(error))?;
                let body = reply.bytes().map_err(|error| self.fault(error))?.unwrap_or_default();
                let org = org.and_then(|org| OrgId::parse(&org).ok());
                let org = org.ok_or_else(|| self.fault("news are of no organisation"))?;
                claimed.push(News { org, due: until, body });
            }
            if claimed.len() - before < count {
                break;
            }
        }
        Ok(claimed)
    }
}
