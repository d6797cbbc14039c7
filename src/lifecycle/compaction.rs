//! Making the store smaller: an operator orders it, or the gateway does it by itself once a day.

use super::Lifecycle;
use super::acts::Act;
use super::error::LifecycleError;
use super::principal::Origin;
use crate::store::compaction::{Compacted, NotCompacted, Occasion};
use crate::telemetry::Notice;

impl Lifecycle {
    /// Compacts the store, and says so in the operators' trail. Returns when it is done.
    ///
    /// # Errors
    /// Why the store is as it was.
    pub async fn compact(&self, origin: &Origin) -> Result<Compacted, LifecycleError> {
        let done = self.keeper().compact(Occasion::Ordered).await.inspect_err(|why| {
            // The command may have gone away meanwhile; a compaction takes minutes.
            if !matches!(why, NotCompacted::Runs | NotCompacted::NoFile | NotCompacted::ReadOnly) {
                Notice::StoreNotCompacted.log(&format!("the store was not compacted for an operator: {why}"));
            }
        })?;
        Notice::StoreCompacted.log(&format!("the store was compacted for an operator: {}", done.told()));
        self.record_act(origin, Act::Compacted(done)).await;
        Ok(done)
    }

    /// Compacts a store half of which is free. The log says what came of it.
    pub(super) async fn compact_by_itself(&self) {
        match self.keeper().compact(Occasion::ByItself).await {
            Ok(done) => Notice::StoreCompacted
                .log(&format!("half of the store was free, and it was compacted: {}", done.told())),
            Err(
                NotCompacted::Little
                | NotCompacted::NoFile
                | NotCompacted::ReadOnly
                | NotCompacted::Runs
                | NotCompacted::Closed,
            ) => {}
            Err(why) => Notice::StoreNotCompacted.log(&format!(
                "half of the store is free, and it was not compacted: {why}; it is tried again in a day, and by `keygate \
                 store compact`"
            )),
        }
    }
}
