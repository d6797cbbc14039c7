//! What Redis keeps beside keys.

use std::time::Duration;

use super::scripts::Call;
use super::{Inner, Redis};
use crate::store::side::{Admission, News, Quota, Side};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::usage::{Usage, Used};

/// Keys whose usage one script notes or tells, and news that one claims; it bounds how long it holds everybody
/// else up.
const AT_ONCE: usize = 128;

impl Side for Redis {
    fn answer(
        &self,
        index: [u8; 32],
        now: UnixMillis,
    ) -> StoreFuture<'_, Result<Option<Vec<u8>>, StoreFault>> {
        Box::pin(self.inner.answer(index, now))
    }

    fn note_usage(&self, used: Vec<Used>) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(self.inner.note_usage(used))
    }

    fn usage(&self, keys: Vec<KeyId>) -> StoreFuture<'_, Result<Vec<Option<Usage>>, StoreFault>> {
        Box::pin(self.inner.usage(keys))
    }

    fn claim_news(
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

    fn admit(&self, quotas: Vec<Quota>, now: UnixMillis) -> StoreFuture<'_, Result<Admission, StoreFault>> {
        Box::pin(self.inner.admit(quotas, now))
    }
}

impl Inner {
    async fn answer(&self, index: [u8; 32], now: UnixMillis) -> Result<Option<Vec<u8>>, StoreFault> {
        let call = Call::new(&self.scripts.read, [self.names.meta(), self.names.answer(&index)]);
        let Some(kept) = self.ask(&call).await?.bytes().map_err(|error| self.fault(error))? else {
            return Ok(None);
        };
        let (ends_at, sealed) =
            kept.split_first_chunk().ok_or_else(|| self.fault("a kept answer is cut short"))?;
        // Redis drops it by its own clock, which need not be ours.
        Ok((u64::from_be_bytes(*ends_at) > now.0).then(|| sealed.to_vec()))
    }

    async fn note_usage(&self, used: Vec<Used>) -> Result<(), StoreFault> {
        for batch in used.chunks(AT_ONCE) {
            let mut call = self.writing(&self.scripts.note_usage, [self.names.used()]);
            for Used { key, usage } in batch {
                call = call.key(self.names.key(*key)).arg(key.to_string()).arg(usage.to_string());
            }
            self.write(&call).await?;
        }
        Ok(())
    }

    async fn usage(&self, keys: Vec<KeyId>) -> Result<Vec<Option<Usage>>, StoreFault> {
        let mut usage = Vec::with_capacity(keys.len());
        for batch in keys.chunks(AT_ONCE) {
            let call = Call::new(&self.scripts.usage, [self.names.meta(), self.names.used()]);
            let call = batch.iter().fold(call, |call, key| call.arg(key.to_string()));
            let mut reply = self.ask(&call).await?;
            for key in batch {
                let text = reply.text().map_err(|error| self.fault(error))?;
                let unreadable = || self.fault(format_args!("the usage of {key} does not read"));
                usage.push(text.map(|text| Usage::parse(&text).ok_or_else(unreadable)).transpose()?);
            }
        }
        Ok(usage)
    }

    async fn news(&self, orgs: Vec<OrgId>) -> Result<Vec<Option<News>>, StoreFault> {
        let mut news = Vec::with_capacity(orgs.len());
        for batch in orgs.chunks(AT_ONCE) {
            let places = [self.names.meta(), self.names.news(), self.names.news_due()];
            let call = Call::new(&self.scripts.news, places);
            let mut reply = self.ask(&batch.iter().fold(call, |call, org| call.arg(org.to_string()))).await?;
            for org in batch {
                let body = reply.bytes().map_err(|error| self.fault(error))?;
                let due = reply.text().map_err(|error| self.fault(error))?;
                // News without a time are never sent, as if they were not there.
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

    async fn admit(&self, quotas: Vec<Quota>, now: UnixMillis) -> Result<Admission, StoreFault> {
        let places = quotas.iter().map(|quota| self.names.quota(&quota.name));
        let call = self.writing(&self.scripts.admit, places).arg(now.0.to_string());
        let call = quotas.iter().fold(call, |call, quota| {
            call.arg(quota.limit.to_string()).arg(quota.window.as_millis().to_string())
        });
        let mut reply = self.ask(&call).await?;
        let mut next = || reply.text().map_err(|error| self.fault(error));
        match next()?.as_deref() {
            Some("done") => Ok(Admission::Admitted),
            Some("used up") => {
                let wait = next()?.and_then(|wait| wait.parse().ok()).map(Duration::from_millis);
                let retry_after = wait.ok_or_else(|| self.fault("the wait for a quota does not read"))?;
                Ok(Admission::Refused { retry_after })
            }
            _ => Err(self.changed()),
        }
    }
}
