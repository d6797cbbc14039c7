//! When the keys of full organisations were last counted.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::vocabulary::id::OrgId;

/// How often a full organisation's keys are counted anew: an older gateway may have revoked some.
const RECOUNT: Duration = Duration::from_secs(60 * 60);
/// Organisations whose last count is remembered.
const REMEMBERED: usize = 10_000;

/// When the keys of full organisations were last counted.
#[derive(Debug, Default)]
pub(super) struct Recounts(Mutex<HashMap<OrgId, Instant>>);

impl Recounts {
    /// Whether it is time to count again; then it counts as done.
    pub(super) fn is_due(&self, org: OrgId, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(&org).is_some_and(|last| now.saturating_duration_since(*last) < RECOUNT) {
            return false;
        }
        if last.len() >= REMEMBERED {
            last.clear();
        }
        last.insert(org, now);
        true
    }
}
