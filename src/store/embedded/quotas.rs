//! Quotas of a store that one gateway has for itself: in its memory. A restart forgets them.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::UnixMillis;
use crate::store::side::{Admission, Quota};

/// Windows under way, by the name of their quota.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    windows: HashMap<String, Window>,
    /// How many windows there may be before those that have ended are looked for.
    enough: usize,
}

#[derive(Debug)]
struct Window {
    count: u32,
    ends_at: UnixMillis,
}

/// Windows that are not worth looking through.
const FEW: usize = 1024;

impl Quotas {
    pub(super) fn admit(&mut self, quotas: &[Quota], now: UnixMillis) -> Admission {
        self.forget_ended(now);
        let used_up = quotas.iter().filter_map(|quota| self.wait(quota, now)).max();
        if let Some(retry_after) = used_up {
            return Admission::Refused { retry_after };
        }
        for quota in quotas {
            let fresh = || Window { count: 0, ends_at: now.plus(quota.window) };
            let window = self.windows.entry(quota.name.clone()).or_insert_with(fresh);
            if window.ends_at <= now {
                *window = fresh();
            }
            window.count = window.count.saturating_add(1);
        }
        Admission::Admitted
    }

    /// How long to wait for a quota that is used up. Never longer than a window, should the clock have gone
    /// back.
    fn wait(&self, quota: &Quota, now: UnixMillis) -> Option<Duration> {
        let window = self.windows.get(&quota.name).filter(|window| window.ends_at > now);
        let count = window.map_or(0, |window| window.count);
        let left = window.map_or(quota.window, |window| Duration::from_millis(window.ends_at.0 - now.0));
        (count >= quota.limit).then(|| left.min(quota.window))
    }

    /// Looks through the windows each time their number has doubled, so that it costs a call next to nothing.
    fn forget_ended(&mut self, now: UnixMillis) {
        if self.windows.len() >= self.enough.max(FEW) {
            self.windows.retain(|_, window| window.ends_at > now);
            self.enough = 2 * self.windows.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_have_ended_are_forgotten() {
        let mut quotas = Quotas::default();
        for n in 0..100_000 {
            let quota = Quota { name: n.to_string(), limit: 1, window: Duration::from_millis(10) };
            assert_eq!(quotas.admit(&[quota], UnixMillis(n)), Admission::Admitted);
            assert!(quotas.windows.len() <= FEW);
        }
    }
}
