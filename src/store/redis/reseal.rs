//! Sealing records anew, after a new pepper has come into force.

use super::Inner;
use super::reads::{Listed, NEWEST};
use super::scripts::Call;
use crate::store::keeper::{Place, Resealed};
use crate::store::{EmailClaim, StoreFault};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Peppers;
use crate::vocabulary::key::record::{BadRecord, KeyRecord, OrgRecord, Seal};

/// Records per script. It bounds how long the script blocks others.
const PAGE: usize = 64;

/// Some records of a list.
struct Page<T> {
    ids: Vec<String>,
    unreadable: usize,
    /// Those under the current pepper.
    current: Vec<T>,
    /// Those under the pepper before: as they are, sealed anew, and open.
    stale: Vec<(Vec<u8>, Vec<u8>, T)>,
}

impl<T> Page<T> {
    /// The last one, if more may follow.
    fn last(&self) -> Option<&str> {
        self.ids.last().filter(|_| self.ids.len() == PAGE).map(String::as_str)
    }
}

impl Inner {
    pub(super) async fn reseal(&self, after: Option<Place>) -> Result<Resealed, StoreFault> {
        match after {
            None => self.reseal_orgs(None).await,
            Some(Place::Org(org)) => self.reseal_orgs(Some(org)).await,
            Some(Place::Key(key)) => self.reseal_keys(Some(key)).await,
        }
    }

    async fn reseal_orgs(&self, after: Option<OrgId>) -> Result<Resealed, StoreFault> {
        // Before the page: if something else is known of the pepper when the page is sealed, the script refuses.
        let mut call = self.writing(&self.scripts.reseal, []);
        let page: Page<OrgRecord> = self.page(after.map(|id| id.to_string()).as_deref()).await?;
        for (before, anew, org) in &page.stale {
            call = call.arg("record").key(self.names.org(org.id)).arg(&**before).arg(&**anew);
        }
        // Also of those whose seal is new: a change has sealed the record, and left the address where it was.
        let entries = self.email_entries(&page);
        for (entry, before, org) in &entries {
            call = call.arg("email").key(entry.clone()).key(before.clone()).arg(org.to_string());
        }
        let orgs: Vec<OrgId> = page.ids.iter().filter_map(|id| OrgId::parse(id).ok()).collect();
        let news = self.written_news(&orgs).await?.into_iter().flatten().map(|(news, _)| news);
        let news: Vec<_> = news.filter(|news| self.judge_news(news) == Some(Seal::Before)).collect();
        for news in &news {
            call = call.arg("news").key(self.names.news_proofs()).arg(news.org.to_string());
            call = call.arg(&*news.proof).arg(self.prove_anew(news));
        }
        let moved = self.replace(&call, page.stale.len() + entries.len() + news.len()).await?;
        let last = page.last().and_then(|id| OrgId::parse(id).ok());
        let mut done =
            Resealed { looked_at: page.ids.len(), moved, unreadable: page.unreadable, next: None, orgs };
        match last {
            Some(last) => done.next = Some(Place::Org(last)),
            None => {
                let keys = self.reseal_keys(None).await?;
                done.looked_at += keys.looked_at;
                done.moved += keys.moved;
                done.unreadable += keys.unreadable;
                done.next = keys.next;
            }
        }
        Ok(done)
    }

    async fn reseal_keys(&self, after: Option<KeyId>) -> Result<Resealed, StoreFault> {
        let mut call = self.writing(&self.scripts.reseal, []);
        let page: Page<KeyRecord> = self.page(after.map(|id| id.to_string()).as_deref()).await?;
        for (before, anew, key) in &page.stale {
            call = call.arg("record").key(self.names.key(key.id)).arg(&**before).arg(&**anew);
        }
        let moved = self.replace(&call, page.stale.len()).await?;
        let next = page.last().and_then(|id| KeyId::parse(id).ok()).map(Place::Key);
        let (looked_at, unreadable) = (page.ids.len(), page.unreadable);
        Ok(Resealed { looked_at, moved, unreadable, next, orgs: Vec::new() })
    }

    /// For each address in the index that may be under the pepper before: its entry, the one before, and whose it is.
    fn email_entries(&self, page: &Page<OrgRecord>) -> Vec<(String, String, OrgId)> {
        let orgs = page.current.iter().chain(page.stale.iter().map(|(_, _, org)| org));
        let claims = orgs.filter_map(|org| {
            let EmailClaim { index, before, org } =
                EmailClaim::under(self.sealer.peppers(), org.email.as_ref()?, org.id);
            Some((self.names.email(&index), self.names.email(&before?), org))
        });
        claims.collect()
    }

    /// Runs the script, if it has anything to do.
    async fn replace(&self, call: &Call<'_>, parts: usize) -> Result<usize, StoreFault> {
        if parts == 0 {
            return Ok(0);
        }
        let moved = self.write(call).await?.text().map_err(|error| self.fault(error))?;
        Ok(moved.and_then(|moved| moved.parse().ok()).unwrap_or_default())
    }

    /// Records of a list after one of them, newest first.
    async fn page<T: Listed>(&self, after: Option<&str>) -> Result<Page<T>, StoreFault> {
        let from = after.map_or_else(|| NEWEST.to_owned(), |id| format!("({id}"));
        let (index, records) = T::list(&self.names);
        let call = Call::new(&self.scripts.list, [self.names.meta(), index]);
        let mut reply = self.ask(&call.arg(records).arg(from).arg(PAGE.to_string())).await?;
        let mut page = Page { ids: Vec::new(), unreadable: 0, current: Vec::new(), stale: Vec::new() };
        while !reply.is_empty() {
            let id = reply.text().map_err(|error| self.fault(error))?.unwrap_or_default();
            let bytes = reply.bytes().map_err(|error| self.fault(error))?.unwrap_or_default();
            match self.sealer.open_sealed::<T>(&bytes) {
                Ok((stored, Seal::Current)) => page.current.push(stored.record),
                Ok((stored, Seal::Before)) => {
                    let anew =
                        self.sealer.seal(stored.rev, &stored.record).map_err(|bad| self.bad_record(bad))?;
                    page.stale.push((bytes, anew, stored.record));
                }
                Err(BadRecord::Seal | BadRecord::Short) => page.unreadable += 1,
                Err(bad) => return Err(self.bad_record(bad)),
            }
            page.ids.push(id);
        }
        Ok(page)
    }

    async fn has_stale<T: Listed>(&self) -> Result<bool, StoreFault> {
        let mut after: Option<String> = None;
        loop {
            let page: Page<T> = self.page(after.as_deref()).await?;
            if !page.stale.is_empty() {
                return Ok(true);
            }
            after = page.last().map(str::to_owned);
            if after.is_none() {
                return Ok(false);
            }
        }
    }

    pub(super) async fn finish_reseal(&self) -> Result<(), StoreFault> {
        let Some(row) = self.sealer.peppers().finished_row().map_err(|error| self.fault(error))? else {
            return Ok(());
        };
        if self.has_stale::<OrgRecord>().await? || self.has_stale::<KeyRecord>().await? {
            return Err(self.fault("records under the pepper before remain: reseal them first"));
        }
        self.note_word(&row).await
    }

    pub(super) async fn keep_peppers_of(&self, other: Peppers) -> Result<(), StoreFault> {
        // The word of this store may not have been heard yet.
        if let Some(misfit) = self.misfit().await? {
            return Err(self.fault(misfit));
        }
        match self.sealer.peppers().row_with_retired_of(&other).map_err(|full| self.fault(full))? {
            Some(row) => self.note_word(&row).await,
            None => Ok(()),
        }
    }

    async fn note_word(&self, row: &str) -> Result<(), StoreFault> {
        self.write(&self.write_word(row, None).durably()).await?;
        self.learn(Some(row)).map(drop)
    }
}
