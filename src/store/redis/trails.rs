//! Audit trails in Redis: a stream for the entries, and a string for both ends.

use std::time::Duration;

use super::reads::{NEWEST, PAGE};
use super::scripts::{Call, Reply};
use super::{Inner, Redis};
use crate::store::trails::{AT_LEAST, Allowance, DAY, Held, Pace, SHARE, Terms, Trails, Trimmed};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::audit::{Ends, Entry, Link, Trail};
use crate::vocabulary::clock::{AGREED, UnixMillis};

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

    fn allowance(&self, trail: Trail, own: UnixMillis) -> StoreFuture<'_, Result<Allowance, StoreFault>> {
        Box::pin(self.inner.allowance(trail, own))
    }

    /// Several scripts run; after each of them the trail is whole.
    fn trim(&self, trail: Trail, through: u64, terms: Terms) -> StoreFuture<'_, Result<Trimmed, StoreFault>> {
        Box::pin(self.inner.trim(trail, through, terms))
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

    /// The call that trims, up to the arguments that name what is removed.
    fn trimming(&self, trail: Trail, own: UnixMillis, retention: Duration) -> Call<'_> {
        let names = &self.names;
        let places = [names.entries(trail), names.ends(trail), names.trimmed_today(trail)];
        self.writing(&self.scripts.trim, places)
            .arg(own.0.to_string())
            .arg(AGREED.as_millis().to_string())
            .arg(AT_LEAST.to_string())
            .arg(SHARE.to_string())
            .arg(DAY.as_millis().to_string())
            .arg(retention.as_millis().to_string())
    }

    /// Numbers that the trimming script answers, or why it does nothing.
    async fn ask_to_trim<const N: usize>(
        &self,
        call: &Call<'_>,
    ) -> Result<Result<[u64; N], Held>, StoreFault> {
        let mut reply = self.ask(call).await?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        self.check_age(status.as_deref(), &mut reply)?;
        let mut next = || -> Result<i64, StoreFault> {
            let number = reply.text().map_err(|error| self.fault(error))?;
            let number = number.and_then(|number| number.parse().ok());
            number.ok_or_else(|| self.fault("a number about an audit trail does not read"))
        };
        match status.as_deref() {
            Some("done") => {
                let mut numbers = [0; N];
                for number in &mut numbers {
                    *number = next()?.unsigned_abs();
                }
                Ok(Ok(numbers))
            }
            Some("unread") => Ok(Err(Held::Unread)),
            Some("apart") => Ok(Err(Held::Apart { ahead: next()? })),
            _ => Err(self.changed()),
        }
    }

    async fn allowance(&self, trail: Trail, own: UnixMillis) -> Result<Allowance, StoreFault> {
        let call = self.trimming(trail, own, Duration::ZERO).arg("").arg("0").arg("");
        Ok(match self.ask_to_trim(&call).await? {
            Ok([now, entries]) => Allowance::Open { now: UnixMillis(now), entries },
            Err(held) => Allowance::Held(held),
        })
    }

    async fn trim(&self, trail: Trail, through: u64, terms: Terms) -> Result<Trimmed, StoreFault> {
        let Terms { own, retention, pace } = terms;
        let pace = if pace == Pace::AtOnce { "at once" } else { "" };
        let begun = self.clock.mono();
        let mut removed = 0;
        loop {
            let own = own.plus(self.clock.mono().saturating_duration_since(begun));
            let call = self.trimming(trail, own, retention);
            let call = call.arg(through.to_string()).arg(AT_ONCE.to_string()).arg(pace);
            match self.ask_to_trim(&call).await? {
                Ok([now]) => {
                    removed += now;
                    if now < AT_ONCE as u64 {
                        return Ok(Trimmed::Removed(removed));
                    }
                }
                Err(_) if removed > 0 => return Ok(Trimmed::Removed(removed)),
                Err(held) => return Ok(Trimmed::Held(held)),
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
