//! News that wait to be delivered, in Redis.
//!
//! Whoever can write to Redis could have anything signed for the upstream. So each news has a proof, and news without one,
//! which a gateway of an older release has written, are held until an operator accepts them.

use super::scripts::{Call, Reply};
use super::{Inner, Redis};
use crate::store::outbox::{News, Outbox};
use crate::store::whole::Piece;
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::proof::ProofOf;
use crate::vocabulary::key::record::Seal;

/// News that one script claims or tells. It bounds how long a script holds up all others.
const AT_ONCE: usize = 128;
/// Scripts that one claim takes at most, where news without a proof stand before the others.
const ROUNDS: usize = 64;
/// The bytes of a revision, before the proof.
const REV: usize = 8;

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
        let call = self.inner.writing(&self.inner.scripts.delivered, self.inner.places_of_news());
        let call = call.arg(org.to_string());
        Box::pin(async move { self.inner.write(&call).await.map(|_| ()) })
    }

    fn held(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<(u64, Vec<OrgId>), StoreFault>> {
        Box::pin(self.inner.held_news(after, limit))
    }

    fn release(&self, news: News, rev: u64) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(async move {
            let inner = &self.inner;
            let call = inner.writing(&inner.scripts.release_news, inner.places_of_news());
            let proof = inner.prove_news(&news, rev);
            let call = call.arg(news.org.to_string()).arg(news.body).arg(proof).arg(news.due.0.to_string());
            inner.write(&call).await.map(|_| ())
        })
    }
}

/// News as they stand in Redis.
pub(super) struct Written {
    pub(super) org: OrgId,
    body: Vec<u8>,
    /// The revision of the organisation's record, and the proof; empty for none.
    pub(super) proof: Vec<u8>,
}

impl Written {
    /// For a backup, which proves as a whole that they are ours.
    pub(super) fn into_piece(self, due: UnixMillis) -> Piece {
        Piece::News { org: self.org, due, body: self.body }
    }
}

impl Inner {
    fn places_of_news(&self) -> [String; 4] {
        let names = &self.names;
        [names.news(), names.news_due(), names.news_proofs(), names.news_held()]
    }

    /// The proof of news that were written with this revision of the organisation's record. Empty without a pepper.
    pub(super) fn prove_news(&self, News { org, body, .. }: &News, rev: u64) -> Vec<u8> {
        let rev = rev.to_be_bytes();
        let proof = self.sealer.prove(ProofOf::News, &[&org.to_bytes(), &rev, body]);
        proof.map_or_else(Vec::new, |proof| [&rev[..], &proof].concat())
    }

    /// Whether it is proven that keygate has written these news, and under which pepper.
    pub(super) fn judge_news(&self, Written { org, body, proof }: &Written) -> Option<Seal> {
        let (rev, proof) = proof.split_at(proof.len().min(REV));
        self.sealer.check_proof(ProofOf::News, &[&org.to_bytes(), rev, body], proof)
    }

    /// The same news under the pepper in force.
    pub(super) fn prove_anew(&self, Written { org, body, proof }: &Written) -> Vec<u8> {
        let rev = proof.first_chunk().copied().map_or(0, u64::from_be_bytes);
        self.prove_news(&News { org: *org, due: UnixMillis(0), body: body.clone() }, rev)
    }

    /// The news of these organisations, each with the time at which they are due.
    pub(super) async fn written_news(
        &self,
        orgs: &[OrgId],
    ) -> Result<Vec<Option<(Written, UnixMillis)>>, StoreFault> {
        let mut news = Vec::with_capacity(orgs.len());
        for batch in orgs.chunks(AT_ONCE) {
            let places = std::iter::once(self.names.meta()).chain(self.places_of_news());
            let call = Call::new(&self.scripts.news, places);
            let mut reply = self.ask(&batch.iter().fold(call, |call, org| call.arg(org.to_string()))).await?;
            for org in batch {
                let body = reply.bytes().map_err(|error| self.fault(error))?;
                let due = reply.text().map_err(|error| self.fault(error))?;
                let proof = reply.bytes().map_err(|error| self.fault(error))?.unwrap_or_default();
                // News without a time are never sent, so they count as absent.
                let due = due.and_then(|due| due.parse().ok()).map(UnixMillis);
                news.push(body.zip(due).map(|(body, due)| (Written { org: *org, body, proof }, due)));
            }
        }
        Ok(news)
    }

    async fn news(&self, orgs: Vec<OrgId>) -> Result<Vec<Option<News>>, StoreFault> {
        let judge = |(written, due): (Written, UnixMillis)| {
            match self.judge_news(&written) {
            Some(_) => Ok(News { org: written.org, due, body: written.body }),
            None => Err(self.fault(format_args!(
                "the news of {} have no proof that keygate has written them: `keygate store accept` judges them",
                written.org
            ))),
        }
        };
        let written = self.written_news(&orgs).await?;
        written.into_iter().map(|written| written.map(judge).transpose()).collect()
    }

    async fn backlog(&self) -> Result<u64, StoreFault> {
        let call = Call::new(&self.scripts.backlog, [self.names.meta(), self.names.news_due()]);
        self.read_count(&mut self.ask(&call).await?)
    }

    fn read_count(&self, reply: &mut Reply) -> Result<u64, StoreFault> {
        let count = reply.text().map_err(|error| self.fault(error))?;
        let count = count.and_then(|count| count.parse().ok());
        count.ok_or_else(|| self.fault("the number of news does not read"))
    }

    pub(super) async fn held_news(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> Result<(u64, Vec<OrgId>), StoreFault> {
        let start = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let call = Call::new(&self.scripts.held_news, [self.names.meta(), self.names.news_held()]);
        let mut reply = self.ask(&call.arg(start).arg(limit.min(AT_ONCE).to_string())).await?;
        let (count, mut orgs) = (self.read_count(&mut reply)?, Vec::new());
        while !reply.is_empty() {
            let org = reply.text().map_err(|error| self.fault(error))?;
            orgs.push(self.parse_org(org.as_deref())?);
        }
        Ok((count, orgs))
    }

    fn parse_org(&self, org: Option<&str>) -> Result<OrgId, StoreFault> {
        let org = org.and_then(|org| OrgId::parse(org).ok());
        org.ok_or_else(|| self.fault("news are of no organisation"))
    }

    /// News without a proof are held, and do not count.
    async fn claim_news(
        &self,
        now: UnixMillis,
        until: UnixMillis,
        limit: usize,
    ) -> Result<Vec<News>, StoreFault> {
        let mut claimed = Vec::new();
        for _ in 0..ROUNDS {
            let count = AT_ONCE.min(limit - claimed.len());
            let (news, held) = self.claim_some(now, until, count).await?;
            let is_last = news.len() + held.len() < count;
            claimed.extend(news);
            self.hold(&held).await?;
            if is_last || claimed.len() == limit {
                break;
            }
        }
        Ok(claimed)
    }

    /// At most so many due news: those with a proof, and those without.
    async fn claim_some(
        &self,
        now: UnixMillis,
        until: UnixMillis,
        count: usize,
    ) -> Result<(Vec<News>, Vec<Written>), StoreFault> {
        let names = &self.names;
        let call = self
            .writing(&self.scripts.claim_news, [names.news(), names.news_due(), names.news_proofs()])
            .arg(now.0.to_string())
            .arg(until.0.to_string())
            .arg(count.to_string());
        let mut reply = self.write(&call).await?;
        let (mut news, mut held) = (Vec::new(), Vec::new());
        while !reply.is_empty() {
            let org = reply.text().map_err(|error| self.fault(error))?;
            let body = reply.bytes().map_err(|error| self.fault(error))?.unwrap_or_default();
            let proof = reply.bytes().map_err(|error| self.fault(error))?.unwrap_or_default();
            let written = Written { org: self.parse_org(org.as_deref())?, body, proof };
            match self.judge_news(&written) {
                Some(_) => news.push(News { org: written.org, due: until, body: written.body }),
                None => held.push(written),
            }
        }
        Ok((news, held))
    }

    async fn hold(&self, held: &[Written]) -> Result<(), StoreFault> {
        if held.is_empty() {
            return Ok(());
        }
        let call = self.writing(&self.scripts.hold_news, self.places_of_news());
        let call = held.iter().fold(call, |call, Written { org, body, proof }| {
            call.arg(org.to_string()).arg(&**body).arg(&**proof)
        });
        self.write(&call).await.map(drop)
    }
}
