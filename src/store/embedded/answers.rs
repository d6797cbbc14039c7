//! Kept answers, in the file.

use super::Embedded;
use super::tables::{ANSWERS, split_time};
use crate::store::answers::Answers;
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;

impl Answers for Embedded {
    fn find(&self, index: [u8; 32], now: UnixMillis) -> StoreFuture<'_, Result<Option<Vec<u8>>, StoreFault>> {
        self.read(move |snapshot| {
            let kept = snapshot.file.open_table(ANSWERS)?.get(&index)?.map(|kept| kept.value().to_vec());
            let Some(kept) = kept else { return Ok(None) };
            let (ends_at, sealed) =
                split_time(&kept).ok_or_else(|| StoreFault::failed("a kept answer is cut short"))?;
            Ok((ends_at > now).then(|| sealed.to_vec()))
        })
    }
}
