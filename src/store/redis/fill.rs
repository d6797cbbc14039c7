//! A store that a backup is restored into. Until the end its `schema` says that it is being restored, which no gateway of any
//! release takes for a store.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::scripts::{Call, Script};
use super::{Inner, Redis};
use crate::store::indexes::{Indexed, Live};
use crate::store::keeper::Place;
use crate::store::outbox::News;
use crate::store::whole::{Fill, FillError, Head, Piece};
use crate::store::{EmailClaim, StoreFuture};
use crate::vocabulary::audit::Trail;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord};

/// Pieces per script. It bounds how long the script blocks others.
const AT_ONCE: usize = 64;
/// How long one script may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store that is being filled.
pub struct Filling {
    inner: Arc<Inner>,
    name: Mutex<String>,
}

impl Filling {
    #[must_use]
    pub fn new(store: &Redis) -> Self {
        Self { inner: Arc::clone(&store.inner), name: Mutex::default() }
    }

    fn place(&self) -> String {
        format!("Redis at {}, cell {}", self.inner.connector.whereabouts(), self.inner.settings.cell)
    }

    fn call<'s>(&self, script: &'s Script) -> Call<'s> {
        let name = self.name.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Call::new(script, [self.inner.names.meta()]).arg(name)
    }

    async fn run(&self, call: &Call<'_>) -> Result<(), FillError> {
        let mut reply = self.inner.commands.run(call, PATIENCE).await?;
        match reply.text().map_err(|error| self.inner.fault(error))?.as_deref() {
            Some("done" | "begun") => Ok(()),
            Some("occupied") => Err(FillError::Occupied {
                place: self.place(),
                what: "there is a store, or what is left of one",
            }),
            Some("another") => Err(FillError::Begun { place: self.place() }),
            _ => Err(self.inner.fault("it is not marked as being restored any more").into()),
        }
    }

    async fn put(&self, pieces: Vec<Piece>) -> Result<(), FillError> {
        let mut pieces = pieces.into_iter().peekable();
        while pieces.peek().is_some() {
            let call = self.call(&self.inner.scripts.fill);
            let call =
                pieces.by_ref().take(AT_ONCE).fold(call, |call, piece| self.inner.fill_part(call, piece));
            self.run(&call).await?;
        }
        Ok(())
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").finish_non_exhaustive()
    }
}

impl Fill for Filling {
    fn begin<'f>(&'f self, head: &'f Head, name: &'f str) -> StoreFuture<'f, Result<(), FillError>> {
        Box::pin(async move {
            name.clone_into(&mut self.name.lock().unwrap_or_else(PoisonError::into_inner));
            let names = &self.inner.names;
            let places = [names.meta(), names.events(), names.keys(), names.orgs()];
            let places =
                places.into_iter().chain([names.entries(Trail::Operator), names.used(), names.news()]);
            let call = Call::new(&self.inner.scripts.begin_fill, places).arg(&*head.incarnation).arg(name);
            self.run(&call).await
        })
    }

    fn put(&self, pieces: Vec<Piece>) -> StoreFuture<'_, Result<(), FillError>> {
        Box::pin(self.put(pieces))
    }

    fn end<'f>(&'f self, head: &'f Head) -> StoreFuture<'f, Result<(), FillError>> {
        Box::pin(async move {
            let Head { incarnation, event, format, prefixes, peppers } = head;
            let call = self.call(&self.inner.scripts.end_fill).arg(&**incarnation).arg(event.to_string());
            let call = call.arg(format.to_string()).arg(prefixes.as_deref().unwrap_or_default());
            self.run(&call.arg(peppers.as_deref().unwrap_or_default()).durably()).await
        })
    }
}

impl Inner {
    /// The parts for a piece, as `fill.lua` reads them.
    fn fill_part<'s>(&self, call: Call<'s>, piece: Piece) -> Call<'s> {
        let names = &self.names;
        match piece {
            Piece::Record { of: Place::Org(id), sealed } => self.fill_org(call, id, sealed),
            Piece::Record { of: Place::Key(id), sealed } => self.fill_key(call, id, sealed),
            Piece::Used { key, usage } => field(call, names.used(), key.to_string(), usage),
            Piece::News { org, due, body } => {
                // The file as a whole has proved that they are ours. The revision in a proof is told by nobody.
                let proof = self.prove_news(&News { org, due, body: body.clone() }, 1);
                let call = field(call, names.news(), org.to_string(), body);
                let call = member(call, names.news_due(), due.0.to_string(), org.to_string());
                if proof.is_empty() { call } else { field(call, names.news_proofs(), org.to_string(), proof) }
            }
            Piece::Entries { trail, ends, entries } => {
                let call = value(call, names.ends(trail), ends.to_bytes());
                entries.into_iter().fold(call, |call, entry| {
                    let call = call.arg("entry").arg(names.entries(trail)).arg(entry.link.number.to_string());
                    call.arg(entry.link.mac).arg(entry.text)
                })
            }
            Piece::Gone(stone) => {
                let (grave, bytes, length) = self.stone(&stone);
                call.arg("stone").arg(grave).arg(bytes).arg(length)
            }
            Piece::Newer => call,
        }
    }

    fn fill_org<'s>(&self, call: Call<'s>, id: OrgId, sealed: Vec<u8>) -> Call<'s> {
        let opened = self.sealer.open_at::<OrgRecord>(&id.to_bytes(), &sealed).ok();
        let call = value(call, self.names.org(id), sealed);
        let call = member(call, self.names.orgs(), "0", id.to_string());
        let Some(email) = opened.as_ref().and_then(|org| org.record.email.as_ref()) else { return call };
        let claim = EmailClaim::under(self.sealer.peppers(), email, id);
        value(call, self.names.email(&claim.index), id.to_string())
    }

    /// What cannot be read, and a tombstone, is in the list of all keys alone.
    fn fill_key<'s>(&self, call: Call<'s>, id: KeyId, sealed: Vec<u8>) -> Call<'s> {
        let names = &self.names;
        let opened = self.sealer.open_at::<KeyRecord>(&id.to_bytes(), &sealed).ok().map(|key| key.record);
        let call = value(call, names.key(id), sealed);
        let mut call = member(call, names.keys(), "0", id.to_string());
        let Some(key) = opened.filter(|key| !key.is_tombstone()) else { return call };
        let indexed = Indexed::from(&key);
        for list in [names.keys_of(key.org), names.keys_in(key.org, key.environment)] {
            call = member(call, list, "0", id.to_string());
        }
        let until = match indexed.live {
            Live::Revoked => None,
            Live::Until(end) => Some(end.0.to_string()),
            Live::Always => Some("inf".to_owned()),
        };
        if let Some(until) = until {
            let made = indexed.maker.map(|maker| names.made_by(key.org, maker));
            for list in std::iter::once(names.live_keys(key.org)).chain(made) {
                call = member(call, list, until.clone(), id.to_string());
            }
        }
        let owner = format!("{}{id}", key.org);
        key.secrets.iter().fold(call, |call, secret| value(call, names.digest(&secret.digest), owner.clone()))
    }
}

fn value<'s>(call: Call<'s>, name: String, bytes: impl Into<Vec<u8>>) -> Call<'s> {
    call.arg("value").arg(name).arg(bytes)
}

fn member<'s>(call: Call<'s>, list: String, score: impl Into<Vec<u8>>, member: String) -> Call<'s> {
    call.arg("member").arg(list).arg(score).arg(member)
}

fn field<'s>(call: Call<'s>, hash: String, field: String, bytes: impl Into<Vec<u8>>) -> Call<'s> {
    call.arg("field").arg(hash).arg(field).arg(bytes)
}
