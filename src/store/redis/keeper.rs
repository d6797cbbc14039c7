//! The operator's side: what state the store is in, and the gateways that hold a lease.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::ledger::Incarnation;
use super::scripts::{Call, Meta, Reply};
use super::{Inner, Redis};
use crate::store::graves::Graves;
use crate::store::keeper::{
    Acceptance, Keeper, Lapsed, Lease, LinkState, Place, Remembrance, Resealed, Standing, Status,
    UnreadableFile, Vitals,
};
use crate::store::prefixes::PrefixBook;
use crate::store::whole::{Head, Pieces};
use crate::store::{LEASE, StoreFault, StoreFuture};
use crate::telemetry::Notice;
use crate::vocabulary::audit::Trail;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::pepper::{hex, unhex};
use crate::vocabulary::key::proof::ProofOf;
use crate::vocabulary::key::record::RecordFormat;
use crate::vocabulary::key::{Misfit, Peppers};

/// The format of a new store. It rises when something is written that needs a later one.
const FORMAT_OF_NEW: RecordFormat = RecordFormat::OPEN;

impl Keeper for Redis {
    fn link_state(&self) -> LinkState {
        self.inner.link_state()
    }

    fn vitals(&self) -> Vitals {
        self.inner.vitals()
    }

    fn reread_files(&self) -> Result<(), UnreadableFile> {
        self.inner.connector.reread_files().map_err(UnreadableFile::new)
    }

    fn leave(&self) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(self.inner.leave())
    }

    fn serve_without_lease(&self, within: Duration) {
        let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.inner.serves_without_lease.store(within, Ordering::Relaxed);
    }

    fn status(&self) -> StoreFuture<'_, Status> {
        Box::pin(self.inner.status())
    }

    fn begin(&self) -> StoreFuture<'_, Result<bool, StoreFault>> {
        Box::pin(self.inner.begin())
    }

    fn accept(&self, older: bool) -> StoreFuture<'_, Result<Acceptance, StoreFault>> {
        Box::pin(self.inner.accept(older))
    }

    fn set_back(&self) -> Option<mpsc::Receiver<Place>> {
        self.inner.memory.reported()
    }

    fn compare(&self, place: Place) -> StoreFuture<'_, Result<Remembrance, StoreFault>> {
        Box::pin(self.inner.compare(place))
    }

    fn is_set_back(&self, place: Place) -> bool {
        self.inner.memory.is_set_back(place)
    }

    fn prefixes(&self) -> &dyn PrefixBook {
        self
    }

    fn graves(&self) -> &dyn Graves {
        self
    }

    fn is_fit(&self) -> bool {
        self.inner.is_fit() || !self.inner.may_look.load(Ordering::Relaxed)
    }

    fn misfit(&self) -> StoreFuture<'_, Result<Option<Misfit>, StoreFault>> {
        Box::pin(self.inner.misfit())
    }

    fn reseal(&self, after: Option<Place>) -> StoreFuture<'_, Result<Resealed, StoreFault>> {
        Box::pin(self.inner.reseal(after))
    }

    fn finish_reseal(&self) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(self.inner.finish_reseal())
    }

    fn keep_peppers_of(&self, other: Peppers) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(self.inner.keep_peppers_of(other))
    }

    fn dump(&self, out: Pieces) -> StoreFuture<'_, Result<Head, StoreFault>> {
        Box::pin(Arc::clone(&self.inner).dump(out))
    }
}

impl Inner {
    pub(super) async fn leave(self: &Arc<Self>) -> Result<(), StoreFault> {
        *self.left.lock().await = true;
        self.note_lease(None);
        self.write_memory().await;
        let call = Call::new(&self.scripts.leave, self.places_of_lease()).arg(&*self.gateway);
        self.commands.run(&call, self.settings.command_timeout).await.map(drop)
    }

    /// All gateways, and everything that this one's lease consists of.
    pub(super) fn places_of_lease(&self) -> [String; 7] {
        let (names, gateway) = (&self.names, &self.gateway);
        let (lease, format) = (names.lease(gateway), names.lease_format(gateway));
        let (prefixes, peppers) = (names.lease_prefixes(gateway), names.lease_peppers(gateway));
        [names.gateways(), lease, format, prefixes, peppers, names.serving(), names.lease_serves(gateway)]
    }

    pub(super) fn vitals(&self) -> Vitals {
        let now = self.clock.mono();
        let renewal = *self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let held = renewal.filter(|renewal| now.saturating_duration_since(renewal.asked) < LEASE);
        let links = [("lookups", &self.lookups), ("commands", &self.commands)];
        Vitals {
            is_full: None,
            standing: held.map_or(Standing::Out, |renewal| Standing::Among(renewal.leases)),
            lapsed: held.map(|renewal| renewal.lapsed),
            breakers: links.map(|(name, link)| (name, link.turns_away().is_some())).to_vec(),
            is_suspect: Some(self.tenure.is_in_doubt()),
            memory: Some(self.memory.vitals()),
        }
    }

    async fn status(&self) -> Status {
        let position = self.ledger.position();
        let known = position.known.as_ref().map(ToString::to_string);
        let keeps = self.sealer.keeps();
        let place = format!("Redis at {}, cell {}", self.connector.whereabouts(), self.settings.cell);
        let call = Call::new(&self.scripts.watch, [self.names.meta(), self.names.events()])
            .arg(position.last.to_string());
        let memory = Some(self.memory.vitals());
        let unknown = Status { place, known, keeps, memory, ..Status::default() };
        let mut reply = match self.commands.run(&call, self.settings.command_timeout).await {
            Err(fault) => return Status { trouble: Some(fault.to_string()), ..unknown },
            Ok(reply) => reply,
        };
        let prefixes = read_prefixes(&mut reply);
        let Meta { incarnation: found, event: events, format, .. } = reply.meta.clone();
        let judged = self.ledger.recognise(&reply.meta, position.last);
        let outdated = (format > keeps).then(|| StoreFault::outdated(format, keeps).to_string());
        let trouble = judged.err().map(|stranger| stranger.to_string()).or(outdated);
        let misfit = self.misfit().await.ok().flatten();
        let trouble = trouble.or(misfit.map(|misfit| misfit.to_string()));
        // A list of gateways that cannot be read is no trouble of the store.
        let (gateways, lapsed) = self.gateways().await.unwrap_or_default();
        let format = found.is_some().then_some(format);
        let pepper = self.sealer.peppers().status();
        let held_news = self.held_news(None, 1).await.map_or(0, |(count, _)| count);
        Status { trouble, found, events, format, prefixes, pepper, held_news, gateways, lapsed, ..unknown }
    }

    /// The gateways that hold a lease, by name; and those whose lease has lapsed while they may let keys in.
    async fn gateways(&self) -> Result<(Vec<Lease>, Vec<Lapsed>), StoreFault> {
        let names = &self.names;
        let call = Call::new(&self.scripts.gateways, [names.meta(), names.gateways(), names.serving()])
            .arg(names.leases());
        let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
        let mut gateways = Vec::new();
        while let Some(gateway) = reply.text().map_err(|error| self.fault(error))? {
            let event = reply.text().map_err(|error| self.fault(error))?;
            let event = event.and_then(|event| event.parse().ok());
            let event = event.ok_or_else(|| self.fault("the number in a lease does not read"))?;
            let format = RecordFormat::named(reply.text().map_err(|error| self.fault(error))?.as_deref());
            let prefixes = reply.text().map_err(|error| self.fault(error))?.unwrap_or_default();
            let own = *gateway == *self.gateway;
            gateways.push(Lease { gateway, event, own, format, prefixes });
        }
        gateways.sort_unstable_by(|one, other| one.gateway.cmp(&other.gateway));
        let mut lapsed = Vec::new();
        while let Some(gateway) = reply.text().map_err(|error| self.fault(error))? {
            let left_behind = reply.text().map_err(|error| self.fault(error))?.unwrap_or_default();
            let event = left_behind.split(' ').next().and_then(|event| event.parse().ok());
            let event = event.ok_or_else(|| self.fault("what a gateway left behind does not read"))?;
            let left = reply.text().map_err(|error| self.fault(error))?;
            let serves_for_ms = left.and_then(|left| left.parse().ok()).unwrap_or_default();
            lapsed.push(Lapsed { gateway, event, serves_for_ms });
        }
        lapsed.sort_unstable_by(|one, other| one.gateway.cmp(&other.gateway));
        Ok((gateways, lapsed))
    }

    /// Makes the store if there is none and none was known.
    async fn begin(&self) -> Result<bool, StoreFault> {
        if self.ledger.position().known.is_none() {
            let names = &self.names;
            let fresh = Incarnation::draw().map_err(|error| self.fault(error))?;
            let places = [names.meta(), names.events(), names.keys(), names.orgs()];
            let places =
                places.into_iter().chain([names.entries(Trail::Operator), names.used(), names.news()]);
            let row = self.sealer.peppers().first_row().map_err(|error| self.fault(error))?;
            let call = Call::new(&self.scripts.begin, places).arg(fresh.as_str());
            let (older, now) = self.word_for_older();
            let call = call.arg(FORMAT_OF_NEW.to_string()).arg(&*row).arg(older);
            let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
            if reply.text().map_err(|error| self.fault(error))?.as_deref() == Some("begun") {
                self.ledger.recognise(&reply.meta, 0).map_err(|stranger| self.fault(stranger))?;
                self.learn(Some(&row))?;
                self.memory.forget_before(now);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The word that records older than gateways remember count until now, and this moment.
    fn word_for_older(&self) -> (String, UnixMillis) {
        let now = self.clock.kept();
        let proof = self.sealer.prove(ProofOf::Acceptance, &self.parts_of_acceptance(&now.0.to_be_bytes()));
        (format!("{} {}", now.0, hex(&proof.unwrap_or_default())), now)
    }

    fn parts_of_acceptance<'p>(&'p self, at: &'p [u8; 8]) -> [&'p [u8]; 2] {
        [at, self.settings.cell.as_str().as_bytes()]
    }

    /// Forgets what was remembered before an operator accepted older records, if the word for it is proven.
    pub(super) fn hear_acceptance(&self, word: Option<&str>) {
        let Some((at, proof)) = word.and_then(|word| word.split_once(' ')) else { return };
        let (Ok(at), Some(proof)) = (at.parse(), unhex(proof)) else { return };
        let parts = u64::to_be_bytes(at);
        let parts = self.parts_of_acceptance(&parts);
        if self.sealer.check_proof(ProofOf::Acceptance, &parts, &proof).is_none() {
            return;
        }
        if let Some(forgotten) = self.memory.forget_before(UnixMillis(at)).filter(|forgotten| *forgotten > 0)
        {
            Notice::StoreAccepted.log(&format!(
                "an operator has accepted the store as it is: {forgotten} changed records that this gateway remembered do not \
                 count any more"
            ));
        }
    }

    async fn compare(&self, place: Place) -> Result<Remembrance, StoreFault> {
        // An operator may have accepted the older record while this gateway did not run.
        let call = Call::new(&self.scripts.watch, [self.names.meta(), self.names.events()]).arg("0");
        let mut reply = self.ask(&call).await?;
        let word = (0..5).try_for_each(|_| reply.text().map(drop)).and_then(|()| reply.text());
        self.hear_acceptance(word.map_err(|error| self.fault(error))?.as_deref());
        if !self.is_set_back(place).await? {
            return Ok(Remembrance::Agrees);
        }
        self.memory.count_set_back();
        let is_revoked = self.memory.is_revoked(place);
        Ok(if is_revoked { Remembrance::RevocationLost } else { Remembrance::ChangeLost })
    }

    async fn accept(&self, older: bool) -> Result<Acceptance, StoreFault> {
        let (word, now) = self.word_for_older();
        let known = self.ledger.position().known;
        let fresh = Incarnation::draw().map_err(|error| self.fault(error))?;
        let call = Call::new(&self.scripts.accept, [self.names.meta(), self.names.events()])
            .arg(known.as_ref().map_or("", Incarnation::as_str))
            .arg(fresh.as_str())
            .arg(FORMAT_OF_NEW.to_string())
            .arg(self.sealer.keeps().to_string())
            .arg(self.sealer.peppers().first_row().map_err(|error| self.fault(error))?)
            .arg(word)
            .arg(if older { "1" } else { "" });
        let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        if reply.meta.format > self.sealer.keeps() {
            return Err(StoreFault::outdated(reply.meta.format, self.sealer.keeps()));
        }
        let found = reply.meta.incarnation.clone().unwrap_or_default();
        if status.as_deref() != Some("refused") {
            self.ledger.adopt(&found, reply.meta.event.unwrap_or_default());
        }
        self.ledger.recognise(&reply.meta, 0).map_err(|stranger| self.fault(stranger))?;
        let changed = status.as_deref() != Some("kept");
        if changed || older {
            self.memory.forget_before(now);
        }
        Ok(Acceptance { store: found, changed, news: 0, news_removed: 0 })
    }
}

/// The prefixes in the answer of the watching script, behind three other texts; `None` if there are none.
fn read_prefixes(reply: &mut Reply) -> Option<String> {
    (0..3).try_for_each(|_| reply.text().map(drop)).ok()?;
    reply.text().ok().flatten()
}
