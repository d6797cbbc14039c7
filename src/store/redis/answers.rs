//! Kept answers, in Redis.

use super::scripts::Call;
use super::{Inner, Redis};
use crate::store::answers::Answers;
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;

impl Answers for Redis {
    fn find(&self, index: [u8; 32], now: UnixMillis) -> StoreFuture<'_, Result<Option<Vec<u8>>, StoreFault>> {
        Box::pin(self.inner.answer(index, now))
    }
}

impl Inner {
    async fn answer(&self, index: [u8; 32], now: UnixMillis) -> Result<Option<Vec<u8>>, StoreFault> {
        let call = Call::new(&self.scripts.read, [self.names.meta(), self.names.answer(&index)]);
        let Some(kept) = self.ask(&call).await?.bytes().map_err(|error| self.fault(error))? else {
            return Ok(None);
        };
        let (ends_at, sealed) =
            kept.split_first_chunk().ok_or_else(|| self.fault("a kept answer is cut short"))?;
        // Redis drops it by its own clock, which need not be ours.
        Ok((u64::from_be_bytes(*ends_at) > now.0).then(|| sealed.to_vec()))
    }
}
