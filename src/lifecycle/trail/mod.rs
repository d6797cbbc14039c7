//! Audit trails: read page by page, verified, trimmed.

mod compare;
mod list;
mod trim;
mod verify;

pub use self::list::{AuditFilter, AuditPage};
pub use self::trim::Trimming;
pub use self::verify::{Exported, Finding, Verdict};

use super::error::LifecycleError;
use crate::store::StoreFault;
use crate::vocabulary::audit::{AuditRecord, Entry};

/// Entries read at once.
const PAGE: usize = 256;

pub(super) fn parse(entry: &Entry) -> Result<AuditRecord, LifecycleError> {
    let unreadable = |error| StoreFault::failed(format_args!("audit record {}: {error}", entry.link.number));
    Ok(serde_json::from_slice(&entry.text).map_err(unreadable)?)
}
