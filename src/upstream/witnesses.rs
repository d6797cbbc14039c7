//! Whether a server answers nobody properly, by what its requests came to: a check may find it well, since a check asks little.
//!
//! One client can ask for what its server never answers, or answers with 503. So it takes requests of [`ORGS`] organisations on
//! [`ROUTES`] routes, one after the other within [`WITHIN`], and not one proper answer of the server between them.

use std::time::{Duration, Instant};

use crate::vocabulary::id::OrgId;

/// How many organisations, and how many routes.
const ORGS: usize = 3;
const ROUTES: usize = 2;
/// How long what one request came to counts.
const WITHIN: Duration = Duration::from_secs(10);
/// What is remembered: of each organisation two routes.
const MOST: usize = 2 * ORGS;

/// The requests that got no proper answer since the last one.
#[derive(Debug, Default)]
pub(super) struct Witnesses(Vec<(OrgId, usize, Instant)>);

impl Witnesses {
    /// A request of this organisation on this route got no proper answer. Whether that makes enough of them.
    pub(super) fn add(&mut self, org: OrgId, route: usize, now: Instant) -> bool {
        let Self(all) = self;
        all.retain(|(of, on, at)| now.saturating_duration_since(*at) < WITHIN && (*of, *on) != (org, route));
        // Its oldest one goes: its others say no more.
        if all.iter().filter(|(of, ..)| *of == org).count() == ROUTES
            && let Some(oldest) = all.iter().position(|(of, ..)| *of == org)
        {
            all.remove(oldest);
        }
        if all.len() == MOST {
            all.remove(0);
        }
        all.push((org, route, now));
        let (mut orgs, mut routes): (Vec<_>, Vec<_>) =
            all.iter().map(|(org, route, _)| (*org, *route)).unzip();
        orgs.sort_unstable();
        orgs.dedup();
        routes.sort_unstable();
        routes.dedup();
        orgs.len() >= ORGS && routes.len() >= ROUTES
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::clock::Clock;

    fn org(number: u8) -> OrgId {
        OrgId::from_bytes([number; 16])
    }

    /// Whether the last of these requests, of an organisation on a route after so many seconds, makes enough of them; none
    /// before it may.
    fn convict(requests: &[(u8, usize, u64)]) -> bool {
        let (begin, mut witnesses) = (Clock::system().mono(), Witnesses::default());
        let mut outcomes = requests
            .iter()
            .map(|(of, on, at)| witnesses.add(org(*of), *on, begin + Duration::from_secs(*at)))
            .collect::<Vec<_>>();
        let last = outcomes.pop().unwrap();
        assert!(!outcomes.contains(&true), "{requests:?}");
        last
    }

    #[test]
    fn three_organisations_on_two_routes_are_enough() {
        assert!(convict(&[(1, 1, 0), (2, 1, 1), (3, 2, 2)]));
        assert!(convict(&[(1, 1, 0), (1, 2, 0), (2, 1, 0), (3, 1, 9)]));
        assert!(convict(&[(1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 1, 0), (4, 2, 0)]));
    }

    #[test]
    fn fewer_are_not_however_often_they_come() {
        let often = |requests: &[(u8, usize, u64)]| requests.repeat(20);
        for requests in [
            often(&[(1, 1, 0), (1, 2, 0), (1, 3, 0)]),
            often(&[(1, 1, 0), (2, 2, 0)]),
            often(&[(1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 1, 0), (5, 1, 0), (6, 1, 0), (7, 1, 0)]),
            vec![(1, 1, 0), (2, 2, 5), (3, 1, 10), (1, 2, 20), (2, 2, 25)],
        ] {
            assert!(!convict(&requests), "{requests:?}");
        }
    }

    #[test]
    fn who_asks_on_many_routes_drives_no_other_out() {
        let many = (0..50).map(|route| (9, route, 0));
        let requests: Vec<_> = [(1, 1, 0), (2, 1, 0)].into_iter().chain(many.clone()).collect();
        assert!(convict(&requests[..3]));
        let (begin, mut witnesses) = (Clock::system().mono(), Witnesses::default());
        witnesses.add(org(1), 1, begin);
        many.for_each(|(of, on, _)| assert!(!witnesses.add(org(of), on, begin)));
        assert!(witnesses.add(org(2), 1, begin));
        witnesses.clear();
        assert!(!witnesses.add(org(3), 2, begin));
    }
}
