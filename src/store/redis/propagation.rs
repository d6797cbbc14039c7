//! How far an event has come among the gateways, and which of them are worth waiting for.
//!
//! A gateway that was killed keeps its lease for up to 10 s. Every change would wait for it in vain. So a gateway that has let
//! several callers in a row wait to their end is only reported, until it confirms something again. Each change that it has
//! not confirmed is asked about once more beside the request, and there it is waited for: this shows that it is back.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Inner;
use super::scripts::{Call, Reply};
use crate::store::events::Seq;
use crate::store::{Awaited, LEASE, Propagation, StoreFault};
use crate::telemetry::Event;

/// The longest pause between two looks at the leases while a request waits.
const PAUSE_AT_MOST: Duration = Duration::from_millis(10);
/// Whoever waits longer looks less often: after each look this part of the time so far passes.
const PART: u32 = 16;
/// How many callers in a row wait in vain for a gateway before it is not waited for any more.
const IN_VAIN: u32 = 3;
/// A shorter wait tells nothing about a gateway.
const TELLING: Duration = Duration::from_millis(50);

/// How often in a row callers have waited for each gateway in vain. It names only gateways that are behind.
#[derive(Debug, Default)]
pub(super) struct Unresponsive(Mutex<HashMap<Box<str>, u32>>);

impl Unresponsive {
    /// Notes which gateways have not confirmed an event. All others confirm events.
    fn note_behind(&self, behind: &[Box<str>]) {
        let mut counts = self.lock();
        if !counts.is_empty() {
            counts.retain(|gateway, _| behind.contains(gateway));
        }
    }

    /// Whether one of them is worth waiting for.
    fn is_any_worth_waiting(&self, behind: &[Box<str>]) -> bool {
        let counts = self.lock();
        behind.iter().any(|gateway| counts.get(gateway).is_none_or(|count| *count < IN_VAIN))
    }

    /// Notes that a caller has waited for these in vain. Returns those that nobody waits for from now on.
    fn note_in_vain(&self, behind: &[Box<str>]) -> Vec<Box<str>> {
        let mut counts = self.lock();
        let mut given_up = Vec::new();
        for gateway in behind {
            let count = counts.entry(gateway.clone()).or_default();
            *count = count.saturating_add(1);
            if *count == IN_VAIN {
                given_up.push(gateway.clone());
            }
        }
        given_up
    }

    /// A count stays right if somebody panicked while it was changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// For how long this gateway may let keys in, from a renewal of its lease on, if it hears nothing more. Nothing if it
    /// lets none in without a lease.
    pub(super) fn lets_in_for(&self) -> Duration {
        let beyond = Duration::from_millis(self.serves_without_lease.load(Ordering::Relaxed));
        if beyond.is_zero() { beyond } else { LEASE.saturating_add(beyond) }
    }

    /// Asks repeatedly: this costs little, and only changes pay for it.
    pub(super) async fn propagation(
        &self,
        event: Seq,
        within: Duration,
        awaited: Awaited,
    ) -> Result<Propagation, StoreFault> {
        let begun = self.clock.mono();
        let mut pause = Duration::from_millis(1);
        loop {
            let found = self.count_confirmed(event).await?;
            let took = self.clock.mono().saturating_duration_since(begun);
            let found = Propagation { took, ..found };
            self.unresponsive.note_behind(&found.awaited);
            let goes_on = match awaited {
                Awaited::Responsive => self.unresponsive.is_any_worth_waiting(&found.awaited),
                Awaited::All => !found.is_confirmed(),
            };
            if !goes_on {
                return Ok(found);
            }
            if took >= within {
                if awaited == Awaited::Responsive && within >= TELLING {
                    self.give_up(&found.awaited);
                }
                return Ok(found);
            }
            tokio::time::sleep(pause.min(within.saturating_sub(took))).await;
            pause = (pause * 2).min(PAUSE_AT_MOST.max(took / PART));
        }
    }

    fn give_up(&self, behind: &[Box<str>]) {
        for gateway in self.unresponsive.note_in_vain(behind) {
            Event::GatewaySilent.log(self.clock.mono(), || {
                format!(
                    "the gateway {gateway} has not confirmed {IN_VAIN} changes in a row: changes do not wait for it until it \
                     confirms one; its lease ends within 10 s if it does not run any more"
                )
            });
        }
    }

    async fn count_confirmed(&self, event: Seq) -> Result<Propagation, StoreFault> {
        let names = &self.names;
        let call = Call::new(&self.scripts.confirmed, [names.meta(), names.gateways(), names.serving()])
            .arg(event.to_string())
            .arg(names.leases());
        let mut reply = self.ask(&call).await?;
        if reply.meta.event.is_none_or(|last| last < event) {
            return Err(self.fault(format_args!("event {event} is not in the store")));
        }
        let mut confirmed = self.count(&mut reply)?;
        let awaited = self.named(&mut reply)?;
        let mut lapsed = self.named(&mut reply)?;
        // This one knows by itself how far it is.
        if lapsed.contains(&self.gateway) && self.ledger.position().last >= event {
            lapsed.retain(|gateway| *gateway != self.gateway);
            confirmed += 1;
        }
        let gateways = confirmed + awaited.len() + lapsed.len();
        Ok(Propagation { event, gateways, confirmed, awaited, lapsed, took: Duration::ZERO })
    }

    fn count(&self, reply: &mut Reply) -> Result<usize, StoreFault> {
        let text = reply.text().map_err(|error| self.fault(error))?;
        let count = text.and_then(|text| text.parse().ok());
        count.ok_or_else(|| self.fault("the number of gateways does not read"))
    }

    /// The names of gateways, behind their number.
    fn named(&self, reply: &mut Reply) -> Result<Vec<Box<str>>, StoreFault> {
        let mut named = Vec::new();
        for _ in 0..self.count(reply)? {
            let name = reply.text().map_err(|error| self.fault(error))?;
            named.push(name.ok_or_else(|| self.fault("the name of a gateway does not read"))?.into());
        }
        named.sort_unstable();
        Ok(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_waited_for_until_several_waits_in_a_row_were_in_vain_and_again_once_it_confirms() {
        let unresponsive = Unresponsive::default();
        let (dead, both): (Box<str>, [Box<str>; 2]) = ("dead".into(), ["dead".into(), "slow".into()]);
        let dead = [dead];
        for told in [0, 0, 1, 0] {
            assert_eq!(unresponsive.note_in_vain(&dead).len(), told, "it is told once");
        }
        assert!(!unresponsive.is_any_worth_waiting(&dead));
        assert!(unresponsive.is_any_worth_waiting(&both), "the other one has let nobody wait");
        assert!(!unresponsive.is_any_worth_waiting(&[]));
        unresponsive.note_behind(&both);
        assert!(!unresponsive.is_any_worth_waiting(&dead), "it is still behind");
        unresponsive.note_in_vain(&both[1..]);
        unresponsive.note_behind(&both[1..]);
        assert!(unresponsive.is_any_worth_waiting(&dead), "it has confirmed an event");
        assert_eq!(unresponsive.lock().len(), 1, "it names only those that are behind");
    }
}
