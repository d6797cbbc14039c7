//! Which sites mostly guess: their lookups found no key.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use crate::vocabulary::network::ClientSite;

/// Sites that are remembered at most. Two that fall on one slot forget each other, which costs a few lookups.
const SITES: usize = 4096;
/// Wrong keys from which on a site may be said to guess: everybody mistypes.
const WRONG: u8 = 16;
/// Answers after which all before count half.
const ANSWERS: u8 = 64;

/// The outcomes of the last lookups of each site.
#[derive(Debug, Default)]
pub(super) struct Repute {
    /// Empty until the first answer.
    slots: Vec<Option<Answers>>,
    /// With a key of its own, so that nobody can choose whose slot he takes.
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Answers {
    site: ClientSite,
    found: u8,
    wrong: u8,
}

impl Repute {
    /// A lookup of this site has found a key, or there is none.
    pub(super) fn note(&mut self, site: ClientSite, found: bool) {
        if self.slots.is_empty() {
            self.slots.resize(SITES, None);
        }
        let slot = self.slot(site);
        let own = self.slots[slot].filter(|answers| answers.site == site);
        let mut answers = own.unwrap_or(Answers { site, found: 0, wrong: 0 });
        if found {
            answers.found += 1;
        } else {
            answers.wrong += 1;
        }
        if answers.found + answers.wrong >= ANSWERS {
            (answers.found, answers.wrong) = (answers.found / 2, answers.wrong / 2);
        }
        self.slots[slot] = Some(answers);
    }

    /// Whether most of its last lookups found no key.
    pub(super) fn is_guessing(&self, site: ClientSite) -> bool {
        let answers = self.slots.get(self.slot(site)).copied().flatten();
        answers.is_some_and(|answers| {
            answers.site == site && answers.wrong >= WRONG && answers.wrong > answers.found
        })
    }

    fn slot(&self, site: ClientSite) -> usize {
        // The remainder is below the number of slots.
        (self.hasher.hash_one(site) % SITES as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::network::ClientNetwork;

    fn site(number: u8) -> ClientSite {
        ClientNetwork::of(std::net::IpAddr::from([192, 0, number, 1])).site()
    }

    #[test]
    fn a_site_guesses_while_most_of_its_last_lookups_found_nothing() {
        let mut repute = Repute::default();
        let mut note = |wrong: usize, found: usize| {
            (0..wrong).for_each(|_| repute.note(site(1), false));
            (0..found).for_each(|_| repute.note(site(1), true));
            repute.is_guessing(site(1))
        };
        assert!(!note(15, 0), "anybody mistypes");
        assert!(note(1, 0));
        assert!(note(0, 15));
        assert!(!note(0, 1), "half of them");
        assert!(note(10_000, 0));
        assert!(!note(0, 64), "what it did before counts less and less");
        assert!(!repute.is_guessing(site(2)));
    }

    #[test]
    fn many_sites_need_no_more_room_than_some() {
        let mut repute = Repute::default();
        for number in 0..100_000_u32 {
            let address = std::net::IpAddr::from((10 << 24 | number << 8).to_be_bytes());
            repute.note(ClientNetwork::of(address).site(), false);
        }
        assert_eq!(repute.slots.len(), SITES);
    }
}
