//! Audit trails: reading, trimming and copying.

use keygate::store::CommitError;
use keygate::vocabulary::audit::{Chain, Ends, Entry, Link, Trail};
use keygate::vocabulary::id::OrgId;

use super::{Maker, Shared, only_audit};

const TRAIL: Trail = Trail::Operator;
/// More than any back end reads or removes at once.
const LONG: usize = 2600;

/// A chain that continues after `after`.
fn entries(after: Link, count: usize) -> Vec<Entry> {
    let (made, chain, mut after) = (Maker::new(), Chain::default(), after);
    let mut next = || {
        let entry = chain.extend(TRAIL, after, made.text()).entry;
        after = entry.link;
        entry
    };
    (0..count).map(|_| next()).collect()
}

fn whole(entries: &[Entry]) -> Ends {
    Ends { checkpoint: Link::ORIGIN, head: entries.last().unwrap().link }
}

async fn written(store: &Shared, count: usize) -> Vec<Entry> {
    let entries = entries(Link::ORIGIN, count);
    store.trails().restore(TRAIL, whole(&entries), entries.clone()).await.unwrap();
    entries
}

async fn all(store: &Shared, trail: Trail) -> Vec<Entry> {
    let mut entries = store.trails().entries(trail, None, usize::MAX).await.unwrap();
    entries.reverse();
    entries
}

pub(super) async fn a_trail_nobody_wrote_to_is_empty(store: Shared) {
    for trail in [TRAIL, Trail::Org(OrgId::from_bytes([1; 16]))] {
        assert_eq!(store.trails().ends(trail).await, Ok(Ends::default()));
        assert_eq!(store.trails().entries(trail, None, 10).await, Ok(vec![]));
        assert_eq!(store.trails().entries(trail, Some(7), 10).await, Ok(vec![]));
        assert_eq!(store.trails().trim(trail, 1).await, Ok(0));
        assert_eq!(store.trails().ends(trail).await, Ok(Ends::default()));
    }
}

pub(super) async fn trails_are_apart(store: Shared) {
    let (made, chain) = (Maker::new(), Chain::default());
    // With the first and the last possible number among them.
    let orgs = [[0; 16], [u8::MAX; 16], made.org().id.to_bytes()].map(|id| Trail::Org(OrgId::from_bytes(id)));
    let trails = [orgs[1], TRAIL, orgs[2]];
    for trail in trails {
        let append = chain.extend(trail, Link::ORIGIN, trail.to_string().into());
        store.commit(only_audit(append)).await.unwrap();
    }
    assert_eq!(store.trails().trim(TRAIL, 1).await, Ok(1));
    for trail in [orgs[1], orgs[2]] {
        let texts: Vec<_> = all(&store, trail).await.into_iter().map(|entry| entry.text).collect();
        assert_eq!(texts, [trail.to_string().into_bytes()]);
    }
    assert_eq!(all(&store, TRAIL).await, []);
}

pub(super) async fn entries_are_paged_newest_first(store: Shared) {
    let written = written(&store, LONG).await;
    assert_eq!(store.trails().ends(TRAIL).await, Ok(whole(&written)));
    for limit in [100, 256, 257, 1024, LONG, usize::MAX] {
        let (mut listed, mut before) = (Vec::new(), None);
        loop {
            let page = store.trails().entries(TRAIL, before, limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            before = Some(last.link.number);
            listed.extend(page);
        }
        assert!(listed.iter().rev().eq(&written), "by {limit}");
    }
    for before in [0, 1] {
        assert_eq!(store.trails().entries(TRAIL, Some(before), 10).await, Ok(vec![]));
    }
    assert_eq!(store.trails().entries(TRAIL, None, 0).await, Ok(vec![]));
    assert_eq!(store.trails().entries(TRAIL, Some(u64::MAX), 1).await.unwrap(), written[LONG - 1..]);
}

pub(super) async fn trimming_removes_exactly_those_and_leaves_the_checkpoint(store: Shared) {
    let written = written(&store, LONG).await;
    let head = written[LONG - 1].link;
    let mut gone = 0;
    for through in [1, 2, 10, 2100] {
        assert_eq!(store.trails().trim(TRAIL, through).await, Ok(through - gone), "through {through}");
        gone = through;
        let rest = &written[usize::try_from(gone).unwrap()..];
        assert_eq!(all(&store, TRAIL).await, rest);
        let checkpoint = written[usize::try_from(gone).unwrap() - 1].link;
        assert_eq!(store.trails().ends(TRAIL).await, Ok(Ends { checkpoint, head }));
        // Numbers before and after the trail trim nothing.
        for absent in [0, 1, gone, LONG as u64 + 1, u64::MAX] {
            assert_eq!(store.trails().trim(TRAIL, absent).await, Ok(0), "through {absent}");
        }
        assert_eq!(store.trails().ends(TRAIL).await, Ok(Ends { checkpoint, head }));
    }
}

pub(super) async fn a_trail_that_was_trimmed_to_nothing_goes_on(store: Shared) {
    let written = written(&store, 5).await;
    let head = written[4].link;
    assert_eq!(store.trails().trim(TRAIL, 5).await, Ok(5));
    assert_eq!(all(&store, TRAIL).await, []);
    assert_eq!(store.trails().ends(TRAIL).await, Ok(Ends { checkpoint: head, head }));
    let chain = Chain::default();
    let again = chain.extend(TRAIL, Link::ORIGIN, b"again".to_vec());
    assert_eq!(store.commit(only_audit(again)).await, Err(CommitError::Conflict), "it does not begin anew");
    let next = chain.extend(TRAIL, head, b"next".to_vec());
    store.commit(only_audit(next.clone())).await.unwrap();
    assert_eq!(all(&store, TRAIL).await, std::slice::from_ref(&next.entry));
    assert_eq!(store.trails().ends(TRAIL).await, Ok(Ends { checkpoint: head, head: next.entry.link }));
}

pub(super) async fn a_trail_is_restored_in_pieces_and_repeating_one_changes_nothing(store: Shared) {
    let trimmed = Link { number: 41, mac: [7; 32] };
    let moved = entries(trimmed, LONG);
    let ends = Ends { checkpoint: trimmed, head: moved[LONG - 1].link };
    let mut there = 0;
    for piece in [&moved[..0], &moved[..1], &moved[1..1500], &moved[1000..1600], &moved[1600..]] {
        store.trails().restore(TRAIL, ends, piece.to_vec()).await.unwrap();
        there += piece.len();
        // A missing later event is detected.
        assert_eq!(store.trails().ends(TRAIL).await, Ok(ends));
    }
    assert_eq!(there, LONG + 500);
    store.trails().restore(TRAIL, ends, moved.clone()).await.unwrap();
    assert_eq!(all(&store, TRAIL).await, moved);
    let next = Chain::default().extend(TRAIL, ends.head, b"next".to_vec());
    store.commit(only_audit(next.clone())).await.unwrap();
    assert_eq!(store.trails().ends(TRAIL).await, Ok(Ends { head: next.entry.link, ..ends }));
}

pub(super) async fn a_trail_is_not_restored_over_another_or_out_of_order(store: Shared) {
    let moved = entries(Link::ORIGIN, 6);
    let ends = whole(&moved);
    store.trails().restore(TRAIL, ends, moved[..4].to_vec()).await.unwrap();
    let other = Ends { head: Link { number: 6, mac: [1; 32] }, ..ends };
    let altered = Entry { text: b"other".to_vec(), ..moved[4].clone() };
    let beyond = entries(ends.head, 1);
    for (refused, ends, piece) in [
        ("another trail", other, moved[4..].to_vec()),
        ("backwards", ends, vec![moved[5].clone(), moved[4].clone()]),
        ("twice the same", ends, vec![moved[4].clone(), moved[4].clone()]),
        ("other than what is there", ends, vec![Entry { link: moved[2].link, ..altered.clone() }]),
        ("beyond the head", ends, beyond),
    ] {
        assert!(store.trails().restore(TRAIL, ends, piece).await.is_err(), "{refused}");
        assert_eq!(all(&store, TRAIL).await, moved[..4], "{refused}");
    }
    store.trails().restore(TRAIL, ends, moved[4..].to_vec()).await.unwrap();
    assert_eq!(all(&store, TRAIL).await, moved);
}

/// Copying a store does not hide that its trail was altered.
pub(super) async fn what_is_missing_from_a_trail_is_missing_from_its_copy(store: Shared) {
    let mut moved = entries(Link::ORIGIN, 6);
    let ends = whole(&moved);
    moved.pop();
    moved.remove(2);
    store.trails().restore(TRAIL, ends, moved.clone()).await.unwrap();
    assert_eq!(all(&store, TRAIL).await, moved);
    assert_eq!(store.trails().ends(TRAIL).await, Ok(ends));
}
