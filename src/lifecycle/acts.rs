//! What operators do without changing a key or an organisation. The operators' trail tells of it all the same.

use std::time::Duration;

use serde_json::json;

use super::Lifecycle;
use super::audit::Draft;
use super::principal::Origin;
use crate::store::compaction::Compacted;
use crate::telemetry::Notice;
use crate::vocabulary::audit::{AuditKind, Trail};

/// How long an act waits for its record: a store that takes no changes must not keep anybody from a backup of it.
const WITHIN: Duration = Duration::from_secs(2);

/// An act of an operator that changes no key and no organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    BackupBegun,
    /// The process with the id `to` takes the place of the one with the id `from`.
    TakeOverBegun {
        from: u32,
        to: i32,
    },
    Compacted(Compacted),
}

impl Act {
    const fn kind(self) -> AuditKind {
        match self {
            Self::BackupBegun => AuditKind::BackupBegun,
            Self::TakeOverBegun { .. } => AuditKind::TakeOverBegun,
            Self::Compacted(_) => AuditKind::StoreCompacted,
        }
    }

    fn draft(self) -> Draft {
        let draft = Draft::about(self.kind(), None, None);
        match self {
            Self::BackupBegun => draft,
            Self::TakeOverBegun { from, to } => {
                draft.before(json!({ "pid": from })).after(json!({ "pid": to }))
            }
            Self::Compacted(Compacted { bytes_before, bytes_after, .. }) => {
                draft.after(json!({ "bytes_before": bytes_before, "bytes_after": bytes_after }))
            }
        }
    }
}

impl Lifecycle {
    /// Says in the operators' trail what an operator does. The act goes on where that is not possible within 2 s, and the log
    /// says so.
    pub async fn record_act(&self, origin: &Origin, act: Act) {
        let why = match tokio::time::timeout(WITHIN, self.try_to_record(origin, act)).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(_) => format!("the store has not taken it within {WITHIN:?}"),
        };
        let (kind, name) = (act.kind(), origin.principal.name());
        Notice::ActNotRecorded
            .log(&format!("the operators' audit trail has no record {kind} of {name}: {why}"));
    }

    async fn try_to_record(&self, origin: &Origin, act: Act) -> Result<(), String> {
        // The format of the store stays as it is, so that an older release can take over again. Until then, no gateway may
        // find in the trail what it cannot read.
        let status = self.keeper().status().await;
        if let Some(older) = status.gateways.iter().find(|lease| lease.format < act.kind().needs()) {
            return Err(format!(
                "the gateway {} is of an older release and could not read it",
                older.gateway
            ));
        }
        let recorded = self.record(Trail::Operator, origin, || act.draft()).await;
        recorded.map_err(|error| error.to_string())
    }
}
