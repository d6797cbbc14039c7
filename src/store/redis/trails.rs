//! Audit trails in Redis: a stream for the entries, and a string for both ends.

use super::reads::{NEWEST, PAGE};
use super::scripts::{Call, Reply};
use super::{Inner, Redis};
use crate::store::trails::Trails;
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::audit::{Ends, Entry, Link, Trail};

/// Entries per script that removes or writes. It bounds how long the script blocks others.
const AT_ONCE: usize = 256;

impl Trails for Redis {
    fn ends(&self, trail: Trail) -> StoreFuture<'_, Result<Ends, StoreFault>> {
        Box::pin(self.inner.ends(trail))
    }

    fn entries(
        &self,
        trail: Trail,
        before: Option<u64>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Entry>, StoreFault>> {
        Box::pin(self.inner.entries(trail, before, limit))
    }

    /// Several scripts run; after each of them the trail is whole.
    fn trim(&self, trail: Trail, through: u64) -> StoreFuture<'_, Result<u64, StoreFault>> {
        Box::pin(self.inner.trim(trail, through))
    }

    fn restore(
        &self,
        trail: Trail,
        ends: Ends,
        entries: Vec<Entry>,
    ) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(self.inner.restore(trail, ends, entries))
    }
}

impl Inner {
    async fn ends(&self, trail: Trail) -> Result<Ends, StoreFault> {
        let call = Call::new(&self.scripts.read, [self.names.meta(), self.names.ends(trail)]);
        let ends = self.ask(&call).await?.bytes().map_err(|error| self.fault(error))?;
        let unreadable = || self.fault("the ends of an audit trail do not read");
        ends.map_or(Ok(Ends::default()), |bytes| Ends::from_bytes(&bytes).ok_or_else(unreadable))
    }

    pub(super) async fn entries(
        &self,
        trail: Trail,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreFault> {
        let (mut entries, mut before) = (Vec::new(), before);
        // Redis accepts no range that ends before the first possible entry.
        while entries.len() < limit && before != Some(0) {
            let count = PAGE.min(limit - entries.len());
            let from = before.map_or_else(|| NEWEST.to_owned(), |number| format!("({number}-0"));
            let call = Call::new(&self.scripts.entries, [self.names.meta(), self.names.entries(trail)])
                .arg(from)
                .arg(count.to_string());
            let mut reply = self.ask(&call).await?;
            let found = entries.len();
            while !reply.is_empty() {
                entries.push(self.entry(&mut reply)?);
            }
            if entries.len() - found < count {
                break;
            }
            before = entries.last().map(|entry: &Entry| entry.link.number);
        }
        Ok(entries)
    }

    fn entry(&self, reply: &mut Reply) -> Result<Entry, StoreFault> {
        let mut next = || reply.bytes().map_err(|error| self.fault(error));
        let (id, mac, text) = (next()?, next()?, next()?);
        let id = id.and_then(|id| String::from_utf8(id).ok()).unwrap_or_default();
        let number = id.strip_suffix("-0").and_then(|number| number.parse().ok());
        let mac = mac.and_then(|mac| mac.try_into().ok());
        match (number, mac, text) {
            (Some(number), Some(mac), Some(text)) => Ok(Entry { link: Link { number, mac }, text }),
            _ => Err(self.fault(format_args!("entry {id} of an audit trail does not read"))),
        }
    }

    async fn trim(&self, trail: Trail, through: u64) -> Result<u64, StoreFault> {
        let mut removed = 0;
        loop {
            let places = [self.names.entries(trail), self.names.ends(trail)];
            let call =
                self.writing(&self.scripts.trim, places).arg(through.to_string()).arg(AT_ONCE.to_string());
            let now = self.write(&call).await?.text().map_err(|error| self.fault(error))?;
            let now: u64 = now
                .and_then(|now| now.parse().ok())
                .ok_or_else(|| self.fault("the number of trimmed entries does not read"))?;
            removed += now;
            if now < AT_ONCE as u64 {
                return Ok(removed);
            }
        }
    }

    async fn restore(&self, trail: Trail, ends: Ends, entries: Vec<Entry>) -> Result<(), StoreFault> {
        let mut entries = entries.into_iter();
        let mut first = true;
        loop {
            let batch: Vec<Entry> = entries.by_ref().take(AT_ONCE).collect();
            if batch.is_empty() && !first {
                return Ok(());
            }
            first = false;
            let places = [self.names.entries(trail), self.names.ends(trail)];
            let mut call = self.writing(&self.scripts.restore, places).arg(ends.to_bytes());
            for Entry { link, text } in batch {
                call = call.arg(link.number.to_string()).arg(link.mac).arg(text);
            }
            self.write(&call).await?;
        }
    }
}
