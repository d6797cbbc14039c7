//! Audit trails: reading, trimming and copying.

use std::time::Duration;

use keygate::store::trails::{Allowance, Held, Pace, Terms, Trimmed};
use keygate::store::{CommitError, StoreFault};
use keygate::vocabulary::audit::{Chain, Ends, Entry, Link, Trail};
use keygate::vocabulary::clock::{Clock, UnixMillis};
use keygate::vocabulary::id::OrgId;

use super::{Maker, Shared, only_audit};

const TRAIL: Trail = Trail::Operator;
/// More than any back end reads or removes at once.
const LONG: usize = 2600;

/// How the text of an entry begins that is of the first second of 1970.
const OLD: &[u8] = b"{\"at\":1,";

/// Trims everything that is old, whatever it is, as an operator does.
async fn trim(store: &Shared, trail: Trail, through: u64) -> Result<u64, StoreFault> {
    trim_on(store, trail, through, Pace::AtOnce).await
}

async fn trim_on(store: &Shared, trail: Trail, through: u64, pace: Pace) -> Result<u64, StoreFault> {
    let terms = Terms { own: Clock::system().own(), retention: Duration::from_secs(60), pace };
    match store.trails().trim(trail, through, terms).await? {
        Trimmed::Removed(removed) => Ok(removed),
        Trimmed::Held(held) => panic!("{held}"),
    }
}

/// A chain that continues after `after`.
fn entries(after: Link, count: usize) -> Vec<Entry> {
    let (made, chain, mut after) = (Maker::new(), Chain::default(), after);
    let mut next = || {
        let entry = chain.extend(TRAIL, after, [OLD, &made.text()].concat()).entry;
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
        assert_eq!(trim(&store, trail, 1).await, Ok(0));
        assert_eq!(store.trails().ends(trail).await, Ok(Ends::default()));
    }
}

pub(super) async fn trails_are_apart(store: Shared) {
    let (made, chain) = (Maker::new(), Chain::default());
    // With the first and the last possible number among them.
    let orgs = [[0; 16], [u8::MAX; 16], made.org().id.to_bytes()].map(|id| Trail::Org(OrgId::from_bytes(id)));
    let trails = [orgs[1], TRAIL, orgs[2]];
    for trail in trails {
        let append = chain.extend(trail, Link::ORIGIN, [OLD, trail.to_string().as_bytes()].concat());
        store.commit(only_audit(append)).await.unwrap();
    }
    assert_eq!(trim(&store, TRAIL, 1).await, Ok(1));
    for trail in [orgs[1], orgs[2]] {
        let texts: Vec<_> = all(&store, trail).await.into_iter().map(|entry| entry.text).collect();
        assert_eq!(texts, [[OLD, trail.to_string().as_bytes()].concat()]);
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
        assert_eq!(trim(&store, TRAIL, through).await, Ok(through - gone), "through {through}");
        gone = through;
        let rest = &written[usize::try_from(gone).unwrap()..];
        assert_eq!(all(&store, TRAIL).await, rest);
        let checkpoint = written[usize::try_from(gone).unwrap() - 1].link;
        assert_eq!(store.trails().ends(TRAIL).await, Ok(Ends { checkpoint, head }));
        // Numbers before and after the trail trim nothing.
        for absent in [0, 1, gone, LONG as u64 + 1, u64::MAX] {
            assert_eq!(trim(&store, TRAIL, absent).await, Ok(0), "through {absent}");
        }
        assert_eq!(store.trails().ends(TRAIL).await, Ok(Ends { checkpoint, head }));
    }
}

pub(super) async fn a_day_takes_a_tenth_of_a_trail_and_ten_entries_of_a_short_one(store: Shared) {
    let own = Clock::system().own();
    let written = written(&store, LONG).await;
    let left = async || match store.trails().allowance(TRAIL, own).await.unwrap() {
        Allowance::Open { entries, now } => {
            assert!(now.0.abs_diff(own.0) < 60_000);
            entries
        }
        Allowance::Held(held) => panic!("{held}"),
    };
    assert_eq!(left().await, LONG as u64 / 10);
    assert_eq!(trim_on(&store, TRAIL, 100, Pace::Daily).await, Ok(100));
    assert_eq!(left().await, LONG as u64 / 10 - 100);
    let head = written[LONG - 1].link.number;
    assert_eq!(trim_on(&store, TRAIL, head, Pace::Daily).await, Ok(LONG as u64 / 10 - 100));
    assert_eq!((left().await, trim_on(&store, TRAIL, head, Pace::Daily).await), (0, Ok(0)));
    assert_eq!(trim(&store, TRAIL, head).await, Ok(LONG as u64 - LONG as u64 / 10), "an operator wants it");

    let (short, chain, mut after) = (Trail::Org(OrgId::from_bytes([3; 16])), Chain::default(), Link::ORIGIN);
    for _ in 0..15 {
        let append = chain.extend(short, after, OLD.to_vec());
        after = append.entry.link;
        store.commit(only_audit(append)).await.unwrap();
    }
    assert_eq!(trim_on(&store, short, 15, Pace::Daily).await, Ok(10));
    assert_eq!(trim_on(&store, short, 15, Pace::Daily).await, Ok(0));
}

pub(super) async fn only_what_is_old_is_trimmed_up_to_the_first_that_is_not(store: Shared) {
    let own = Clock::system().own();
    let young = format!("{{\"at\":{}}}", own.0).into_bytes();
    let what_others_chose = format!("{{\"at\":{},\"target\":\"\\\"at\\\":1\"}}", own.0).into_bytes();
    let (old, unreadable) = (OLD.to_vec(), b"no record".to_vec());
    for (n, (texts, gone)) in [
        (vec![&old, &unreadable, &old, &young], 3),
        (vec![&old, &unreadable, &young, &old], 1),
        (vec![&young, &old, &old], 0),
        (vec![&what_others_chose], 0),
        (vec![&unreadable, &unreadable], 0),
    ]
    .into_iter()
    .enumerate()
    {
        let (trail, chain) = (Trail::Org(OrgId::from_bytes([n as u8 + 1; 16])), Chain::default());
        let mut after = Link::ORIGIN;
        for text in &texts {
            let append = chain.extend(trail, after, (*text).clone());
            after = append.entry.link;
            store.commit(only_audit(append)).await.unwrap();
        }
        assert_eq!(trim(&store, trail, texts.len() as u64).await, Ok(gone), "trail {n}");
    }
}

pub(super) async fn nothing_is_trimmed_while_the_clocks_differ_by_more_than_a_minute(store: Shared) {
    written(&store, 5).await;
    let now = Clock::system().own().0;
    for own in [UnixMillis(now + 402 * 86_400_000), UnixMillis(now + 61_000), UnixMillis(now - 61_000)] {
        let is_apart = |held: Held| matches!(held, Held::Apart { ahead } if ahead.abs_diff(own.0 as i64 - now as i64) < 1000);
        let allowance = store.trails().allowance(TRAIL, own).await.unwrap();
        assert!(matches!(allowance, Allowance::Held(held) if is_apart(held)), "{allowance:?}");
        for pace in [Pace::Daily, Pace::AtOnce] {
            let terms = Terms { own, retention: Duration::from_secs(86_400), pace };
            let trimmed = store.trails().trim(TRAIL, 5, terms).await.unwrap();
            assert!(matches!(trimmed, Trimmed::Held(held) if is_apart(held)), "{trimmed:?}");
        }
    }
    assert_eq!(all(&store, TRAIL).await.len(), 5);
}

pub(super) async fn a_trail_that_was_trimmed_to_nothing_goes_on(store: Shared) {
    let written = written(&store, 5).await;
    let head = written[4].link;
    assert_eq!(trim(&store, TRAIL, 5).await, Ok(5));
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
