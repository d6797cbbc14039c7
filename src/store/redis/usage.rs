//! The use of keys, in Redis.

use super::scripts::Call;
use super::{Inner, Redis};
use crate::store::usage::Usage;
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::usage::{Usage as KeyUsage, Used};

/// Keys whose usage one script notes or tells. It bounds how long a script holds up all others.
const AT_ONCE: usize = 128;

impl Usage for Redis {
    fn note(&self, used: Vec<Used>) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(self.inner.note_usage(used))
    }

    fn of(&self, keys: Vec<KeyId>) -> StoreFuture<'_, Result<Vec<Option<KeyUsage>>, StoreFault>> {
        Box::pin(self.inner.usage(keys))
    }
}

impl Inner {
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

    async fn usage(&self, keys: Vec<KeyId>) -> Result<Vec<Option<KeyUsage>>, StoreFault> {
        let mut usage = Vec::with_capacity(keys.len());
        for batch in keys.chunks(AT_ONCE) {
            let call = Call::new(&self.scripts.usage, [self.names.meta(), self.names.used()]);
            let call = batch.iter().fold(call, |call, key| call.arg(key.to_string()));
            let mut reply = self.ask(&call).await?;
            for key in batch {
                let text = reply.text().map_err(|error| self.fault(error))?;
                let unreadable = || self.fault(format_args!("the usage of {key} does not read"));
                usage.push(text.map(|text| KeyUsage::parse(&text).ok_or_else(unreadable)).transpose()?);
            }
        }
        Ok(usage)
    }
}
