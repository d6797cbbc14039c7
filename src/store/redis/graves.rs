//! Keys that are gone, in Redis: the stones of many names share a string, so that each takes little more than its own bytes.

use std::collections::HashMap;

use tokio::sync::mpsc;

use super::names::Names;
use super::scripts::{Call, Reply};
use super::{Inner, Redis};
use crate::store::graves::{AT_LEAST, Buried, Graves, Leaving, Marked, SHARE, Terms};
use crate::store::indexes::Indexed;
use crate::store::trails::{DAY, Held, Pace};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::AGREED;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::gone::{Gone, Stone};
use crate::vocabulary::key::record::RecordFormat;

/// Keys, stones or graves per script. It bounds how long the script blocks others.
const AT_ONCE: usize = 64;

impl Graves for Redis {
    fn find(&self, names: Vec<Gone>) -> StoreFuture<'_, Result<Vec<Marked>, StoreFault>> {
        Box::pin(self.inner.marks(names))
    }

    /// Several scripts run.
    fn bury(&self, keys: Vec<Leaving>, terms: Terms) -> StoreFuture<'_, Result<Buried, StoreFault>> {
        Box::pin(self.inner.bury(keys, terms))
    }

    fn stones(&self, out: mpsc::Sender<Vec<Stone>>) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(async move {
            let given_up = |_| StoreFault::failed("nobody takes the stones any more");
            for stones in self.inner.all_stones().await? {
                out.send(stones).await.map_err(given_up)?;
            }
            Ok(())
        })
    }

    fn put(&self, names: Vec<(Gone, Option<KeyId>)>) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(async move {
            for names in names.chunks(AT_ONCE) {
                let call = self.inner.writing(&self.inner.scripts.stones, []);
                let call = self.inner.format_part(call, RecordFormat::STONES);
                let call = names.iter().fold(call, |call, (of, maker)| {
                    self.inner.stone_part(call, &self.inner.sealer.stone(*of, *maker), String::new())
                });
                self.inner.write(&call).await?;
            }
            Ok(())
        })
    }
}

impl Inner {
    /// Where a stone is, its bytes with its name, and how long that is.
    pub(super) fn stone(&self, stone: &Stone) -> (String, Vec<u8>, String) {
        let name = stone.of.to_bytes();
        let length = name.len().to_string();
        (self.names.grave(stone.of), [name, stone.to_bytes()].concat(), length)
    }

    fn stone_part<'s>(&self, call: Call<'s>, stone: &Stone, pointer: String) -> Call<'s> {
        let (grave, bytes, length) = self.stone(stone);
        call.arg("stone").arg(grave).arg(bytes).arg(length).arg(pointer)
    }

    async fn marks(&self, names: Vec<Gone>) -> Result<Vec<Marked>, StoreFault> {
        let mut found = HashMap::new();
        let graves: Vec<String> = names.iter().map(|of| self.names.grave(*of)).collect();
        for stones in self.graves(&graves).await? {
            found.extend(stones.into_iter().map(|stone| (stone.of, stone)));
        }
        let mark = |of: &Gone| match found.get(of) {
            None => Marked::No,
            Some(stone) if self.sealer.proves(stone) => Marked::Gone { maker: stone.maker },
            Some(_) => Marked::Unproven,
        };
        Ok(names.iter().map(mark).collect())
    }

    /// The stones of some graves.
    async fn graves(&self, graves: &[String]) -> Result<Vec<Vec<Stone>>, StoreFault> {
        let mut all = Vec::with_capacity(graves.len());
        for graves in graves.chunks(AT_ONCE) {
            let places = std::iter::once(self.names.meta()).chain(graves.iter().cloned());
            let mut reply = self.ask(&Call::new(&self.scripts.read, places)).await?;
            for grave in graves {
                let bytes = reply.bytes().map_err(|error| self.fault(error))?.unwrap_or_default();
                all.push(parse(grave, &bytes));
            }
        }
        Ok(all)
    }

    /// All stones there are, in lists of which none is empty.
    pub(super) async fn all_stones(&self) -> Result<Vec<Vec<Stone>>, StoreFault> {
        let mut all = self.graves(&self.names.all_graves()).await?;
        all.retain(|stones| !stones.is_empty());
        Ok(all)
    }

    async fn bury(&self, keys: Vec<Leaving>, terms: Terms) -> Result<Buried, StoreFault> {
        let begun = self.clock.mono();
        let mut buried = 0;
        for keys in keys.chunks(AT_ONCE) {
            let own = terms.own.plus(self.clock.mono().saturating_duration_since(begun));
            match self.bury_some(keys, Terms { own, ..terms }).await? {
                Buried::Done(now) if now < keys.len() as u64 => return Ok(Buried::Done(buried + now)),
                Buried::Done(now) => buried += now,
                held @ Buried::Held(_) if buried == 0 => return Ok(held),
                Buried::Held(_) => break,
            }
        }
        Ok(Buried::Done(buried))
    }

    async fn bury_some(&self, keys: &[Leaving], terms: Terms) -> Result<Buried, StoreFault> {
        let places = [self.names.keys(), self.names.gone_today()];
        let call = self
            .writing(&self.scripts.bury, places)
            .arg(terms.own.0.to_string())
            .arg(AGREED.as_millis().to_string())
            .arg(AT_LEAST.to_string())
            .arg(SHARE.to_string())
            .arg(DAY.as_millis().to_string())
            .arg(terms.keep.as_millis().to_string())
            .arg(if terms.pace == Pace::AtOnce { "at once" } else { "" });
        let call = self.format_part(call, RecordFormat::STONES);
        let call = keys.iter().fold(call, |call, leaving| self.leaving_part(call, leaving));
        let mut reply = self.ask(&call).await?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        self.check_age(status.as_deref(), &mut reply)?;
        match status.as_deref() {
            Some("done") => Ok(Buried::Done(self.number(&mut reply)?.unsigned_abs())),
            Some("unread") => Ok(Buried::Held(Held::Unread)),
            Some("apart") => Ok(Buried::Held(Held::Apart { ahead: self.number(&mut reply)? })),
            _ => Err(self.changed()),
        }
    }

    fn number(&self, reply: &mut Reply) -> Result<i64, StoreFault> {
        let number = reply.text().map_err(|error| self.fault(error))?.and_then(|number| number.parse().ok());
        number.ok_or_else(|| self.fault("a number of keys does not read"))
    }

    fn leaving_part<'s>(&self, call: Call<'s>, Leaving { key, maker }: &Leaving) -> Call<'s> {
        let (names, record) = (&self.names, &key.record);
        let ended_at = record.ended_at().map_or_else(|| "inf".to_owned(), |end| end.0.to_string());
        let (org, id, live) = (record.org, record.id.to_string(), names.live_keys(record.org));
        let made =
            Indexed::from(record).maker.map_or_else(|| live.clone(), |maker| names.made_by(org, maker));
        let call = call.arg("leaving").key(names.key(record.id)).arg(key.rev.to_be_bytes());
        let call = call.arg(ended_at).arg(&*id).arg(format!("{org}{id}")).arg(names.keys());
        let call = self.lists_of(org).into_iter().fold(call, Call::arg);
        let call = call.arg(live).arg(made).arg(names.used());
        record.names().fold(call, |call, of| {
            let (maker, pointer) = match of {
                Gone::Key(_) => (*maker, String::new()),
                Gone::Secret(digest) => (None, names.digest(&digest)),
            };
            self.stone_part(call, &self.sealer.stone(of, maker), pointer)
        })
    }
}

/// The stones in a string. The name of the string tells which kind they are.
fn parse(grave: &str, bytes: &[u8]) -> Vec<Stone> {
    let name = if grave.contains(Names::GRAVES_OF_KEYS) { 16 } else { 32 };
    let stones = bytes.as_chunks::<{ Stone::LEN }>().0.iter();
    let parse = |stone: &[u8; Stone::LEN]| {
        let (name, rest) = stone.split_at(name);
        Gone::from_bytes(name).and_then(|of| Stone::from_bytes(of, rest))
    };
    stones.filter_map(parse).collect()
}
