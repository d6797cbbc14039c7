//! The list of prefixes in `meta`, and what the leases announce of it.

use std::sync::PoisonError;

use tokio::sync::watch;

use super::scripts::{Call, Reply};
use super::{Inner, Redis};
use crate::store::prefixes::{PrefixBook, Register};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::key::record::RecordFormat;
use crate::vocabulary::key::{Prefix, Prefixes};

impl PrefixBook for Redis {
    fn followed(&self) -> watch::Receiver<Option<Prefixes>> {
        self.inner.prefixes.subscribe()
    }

    fn register(&self) -> StoreFuture<'_, Result<Register, StoreFault>> {
        Box::pin(self.inner.register())
    }

    fn rewrite(
        &self,
        before: Option<Prefixes>,
        after: Prefixes,
    ) -> StoreFuture<'_, Result<bool, StoreFault>> {
        Box::pin(async move { self.inner.rewrite(before.as_ref(), after, None).await })
    }

    fn begin_removal(&self, prefix: &Prefix) -> StoreFuture<'_, Result<(), StoreFault>> {
        let prefix = prefix.clone();
        Box::pin(async move {
            let inner = &self.inner;
            let call = inner.writing(&inner.scripts.begin_removal, []).arg(prefix.as_str());
            inner.write(&call).await.map(drop)
        })
    }

    fn remove(&self, before: Prefixes, prefix: &Prefix) -> StoreFuture<'_, Result<bool, StoreFault>> {
        let prefix = prefix.clone();
        Box::pin(
            async move { self.inner.rewrite(Some(&before), before.without(&prefix), Some(&prefix)).await },
        )
    }

    fn announce(&self, prefixes: &Prefixes) -> StoreFuture<'_, ()> {
        let text = prefixes.to_string();
        self.inner.announcing.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&text);
        Box::pin(async move {
            let mut announced = self.inner.announced.subscribe();
            // The store outlives its users, and with it the sender.
            let _ = announced.wait_for(|announced| *announced == text).await;
        })
    }
}

impl Inner {
    /// Notes the list as the store has it. One that does not read counts as none: then keys of every prefix are looked up.
    pub(super) fn note_prefixes(&self, text: Option<&str>) {
        let read = text.and_then(|text| text.parse().ok());
        self.prefixes.send_if_modified(|now| {
            let is_new = *now != read;
            *now = read;
            is_new
        });
    }

    /// The list that the lease is to announce; empty until every worker uses one.
    pub(super) fn announcing(&self) -> String {
        self.announcing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that the lease announces this list.
    pub(super) fn note_announced(&self, text: String) {
        self.announced.send_if_modified(|now| {
            let is_new = *now != text;
            *now = text;
            is_new
        });
    }

    async fn register(&self) -> Result<Register, StoreFault> {
        let names = &self.names;
        let call = Call::new(&self.scripts.prefixes, [names.meta(), names.gateways(), names.keys()])
            .arg(names.leases());
        let mut reply = self.ask(&call).await?;
        let text = |reply: &mut Reply| reply.text().map_err(|error| self.fault(error));
        let (list, keys) = (text(&mut reply)?, text(&mut reply)?);
        let unreadable = |error| self.fault(error);
        let prefixes: Option<Prefixes> = list.as_deref().map(str::parse).transpose().map_err(unreadable)?;
        let mut gateways = Vec::new();
        while let Some(format) = text(&mut reply)? {
            let announced = text(&mut reply)?.unwrap_or_default();
            if RecordFormat::named(Some(&format)) < RecordFormat::PREFIXES {
                gateways.push(None);
            } else if !announced.is_empty() {
                gateways.push(Some(announced.parse().map_err(unreadable)?));
            }
        }
        self.note_prefixes(list.as_deref());
        Ok(Register { prefixes, has_keys: keys.as_deref() != Some("0"), gateways })
    }

    async fn rewrite(
        &self,
        before: Option<&Prefixes>,
        after: Prefixes,
        removed: Option<&Prefix>,
    ) -> Result<bool, StoreFault> {
        let after_text = after.to_string();
        let call = self
            .writing(&self.scripts.rewrite_prefixes, [])
            .arg(before.map(Prefixes::to_string).unwrap_or_default())
            .arg(&*after_text)
            .arg(removed.map_or("", Prefix::as_str));
        let needed = if after.is_plain() { RecordFormat::FIRST } else { RecordFormat::PREFIXES };
        let mut reply = self.write(&self.format_part(call, needed).durably()).await?;
        let outcome = reply.text().map_err(|error| self.fault(error))?;
        let is_rewritten = outcome.as_deref() == Some("rewritten");
        if is_rewritten {
            self.note_prefixes(Some(&after_text));
        }
        Ok(is_rewritten)
    }
}
