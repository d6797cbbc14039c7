//! The operator's side of the embedded store.

use std::sync::Arc;
use std::thread;

use tokio::sync::oneshot;

use super::compaction::{Copier, is_large};
use super::{Embedded, lock, mending};
use crate::store::compaction::{Compacted, NotCompacted, Occasion};
use crate::store::graves::Graves;
use crate::store::keeper::{Acceptance, Keeper, LinkState, Place, Resealed, Status, Vitals};
use crate::store::prefixes::PrefixBook;
use crate::store::whole::{Head, Pieces};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::key::{Misfit, Peppers};

/// There is nothing to accept, and no other gateway.
impl Keeper for Embedded {
    fn link_state(&self) -> LinkState {
        LinkState::Up
    }

    /// Only one process can open the file.
    fn vitals(&self) -> Vitals {
        Vitals {
            breakers: vec![("file", self.file.fault().is_some())],
            is_full: Some(self.file.is_full()),
            ..Vitals::default()
        }
    }

    fn leave(&self) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(async { Ok(()) })
    }

    fn status(&self) -> StoreFuture<'_, Status> {
        let meta = self.read(|snapshot| Ok((snapshot.incarnation()?, snapshot.format()?)));
        let full = self.file.is_full().then(|| mending::full(&self.path).to_string());
        Box::pin(async move {
            let (found, format, trouble) = match meta.await {
                Ok((found, format)) => (Some(found), Some(format), full),
                Err(fault) => (None, None, Some(fault.to_string())),
            };
            let (place, events) = (self.path.display().to_string(), Some(lock(&self.published).event));
            let keeps = self.sealer.keeps();
            let prefixes = self.prefixes.borrow().as_ref().map(ToString::to_string);
            let pepper = self.sealer.peppers().status();
            Status {
                place,
                trouble,
                known: found.clone(),
                found,
                events,
                format,
                keeps,
                prefixes,
                pepper,
                ..Status::default()
            }
        })
    }

    fn begin(&self) -> StoreFuture<'_, Result<bool, StoreFault>> {
        Box::pin(async { Ok(false) })
    }

    fn accept(&self, _: bool) -> StoreFuture<'_, Result<Acceptance, StoreFault>> {
        let incarnation = self.read(|snapshot| snapshot.incarnation());
        Box::pin(async move {
            let store = incarnation.await?;
            Ok(Acceptance { store, changed: false, news: 0, news_removed: 0 })
        })
    }

    /// Any order that writes something notes it.
    fn note_time(&self) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.write(|_, _| Ok(()))
    }

    fn prefixes(&self) -> &dyn PrefixBook {
        self
    }

    fn graves(&self) -> &dyn Graves {
        self
    }

    /// A file whose pepper does not fit is not opened.
    fn is_fit(&self) -> bool {
        true
    }

    fn misfit(&self) -> StoreFuture<'_, Result<Option<Misfit>, StoreFault>> {
        Box::pin(async { Ok(None) })
    }

    fn reseal(&self, after: Option<Place>) -> StoreFuture<'_, Result<Resealed, StoreFault>> {
        self.write(move |tables, sealer| tables.reseal(sealer, after))
    }

    fn finish_reseal(&self) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.write(|tables, sealer| tables.finish_reseal(sealer))
    }

    fn keep_peppers_of(&self, other: Peppers) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.write(move |tables, sealer| tables.keep_peppers_of(sealer, &other))
    }

    fn dump(&self, out: Pieces) -> StoreFuture<'_, Result<Head, StoreFault>> {
        self.read(move |snapshot| snapshot.dump(&out))
    }

    /// A thread of its own does it, to its end even if the caller goes away.
    fn compact(&self, occasion: Occasion) -> StoreFuture<'_, Result<Compacted, NotCompacted>> {
        Box::pin(async move {
            if self.is_read_only {
                return Err(NotCompacted::ReadOnly);
            }
            // Before it begins: an operator's order is refused while another one runs.
            if occasion == Occasion::ByItself && !is_large(&self.path) {
                return Err(NotCompacted::Little);
            }
            let begun = self.compaction.begin()?;
            // From the next transaction on the writer notes what it changes, and this one is after those under way.
            self.note_time().await?;
            let orders = self.orders.as_ref().ok_or(NotCompacted::Closed)?.downgrade();
            let copier = Copier {
                file: Arc::clone(&self.file),
                begun,
                orders,
                path: self.path.clone(),
                keeps: self.sealer.keeps(),
                clock: self.clock.clone(),
            };
            let (answer, outcome) = oneshot::channel();
            thread::Builder::new()
                .name("store-copier".to_owned())
                .spawn(move || answer.send(copier.run(occasion)))
                .map_err(StoreFault::failed)?;
            // redb panicked over a damaged page.
            let outcome =
                outcome.await.unwrap_or(Err(StoreFault::failed("the copying was broken off").into()));
            if let Err(NotCompacted::Fault(_) | NotCompacted::Uncopied(_)) = &outcome {
                self.look();
            }
            outcome
        })
    }
}
