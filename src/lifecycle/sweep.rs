//! The slow sweep: all records are compared with their trails, again and again, beside the requests.
//!
//! It finds what no gateway remembers any more. It reports and changes nothing: a trail could be forged, too, where it has
//! no key.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Lifecycle;
use crate::telemetry::{Event, Notice};
use crate::vocabulary::id::OrgId;

/// The pause after each page of a trail, of 256 audit records, and after 16 records. It bounds what a sweep costs the store:
/// 160 short reads a second.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause between two sweeps.
const REST: Duration = Duration::from_secs(60 * 60);
/// Organisations that are read at once.
const ORGS: usize = 64;
/// Records that are named in the log, each once.
const TOLD: usize = 4096;

/// The number of records that are older than their trails, as the last sweep found it, and as the present one has so far if
/// that is more.
#[derive(Clone, Debug, Default)]
pub struct Swept(Arc<AtomicU64>);

impl Swept {
    #[must_use]
    pub fn older(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sweeps until the last other owner of the lifecycle drops it.
pub(super) async fn sweep(lifecycle: Weak<Lifecycle>) {
    let mut told = HashSet::new();
    loop {
        let (mut older, mut after) = (0, None);
        loop {
            let Some(lifecycle) = lifecycle.upgrade() else { return };
            let Ok(orgs) = lifecycle.list_orgs(after, ORGS).await else {
                // The store cannot answer, which is logged elsewhere.
                drop(lifecycle);
                tokio::time::sleep(PAUSE * 10).await;
                continue;
            };
            after = orgs.last().map(|org| org.id);
            for org in orgs.iter().map(|org| org.id) {
                older += lifecycle.sweep_org(org, &mut told).await;
                lifecycle.swept.0.fetch_max(older, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
            if after.is_none() {
                lifecycle.swept.0.store(older, Ordering::Relaxed);
                break;
            }
        }
        tokio::time::sleep(REST).await;
    }
}

impl Lifecycle {
    /// What the sweeps have found.
    #[must_use]
    pub const fn swept(&self) -> &Swept {
        &self.swept
    }

    /// Logs what is wrong in an organisation, each finding once, and returns how much.
    async fn sweep_org(&self, org: OrgId, told: &mut HashSet<(OrgId, u64)>) -> u64 {
        let findings = match self.compare_with_trail(org, PAUSE).await {
            Ok(findings) => findings,
            Err(error) => {
                let line = || format!("cannot compare the records of {org} with their trail: {error}");
                Event::TrailNotCompared.log(self.clock().mono(), line);
                return 0;
            }
        };
        for finding in &findings {
            if told.len() < TOLD && told.insert((org, finding.number)) {
                Notice::TrailDiffers.log(&format!(
                    "the audit trail of {org}, record {}, {} (`keygate audit verify` shows all of these)",
                    finding.number, finding.text
                ));
            }
        }
        findings.len() as u64
    }
}
