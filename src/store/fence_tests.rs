//! The fence by itself. In a file of its own, because the fence's own is compiled a second time for its model.

use super::events::{EventSink, Subject};
use super::fence::{Fence, HELD_BYTES, Judgement};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;
use proptest::prelude::*;

fn digest(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

fn key(n: u8) -> KeyId {
    KeyId::from_bytes([n; 16])
}

fn org(n: u8) -> OrgId {
    OrgId::from_bytes([n; 16])
}

#[test]
fn an_event_touches_its_key_or_its_organisation_and_nobody_else() {
    let fence = Fence::default();
    let stamp = fence.stamp();
    assert_eq!(fence.judge(stamp, &digest(1), &key(1), org(1)), Judgement::Current);
    fence.apply(1, &[Subject::Digest(digest(1))]);
    assert_eq!(fence.judge(stamp, &digest(1), &key(1), org(1)), Judgement::Touched);
    assert_eq!(fence.judge(stamp, &digest(2), &key(2), org(1)), Judgement::Untouched(fence.stamp()));
    fence.apply(2, &[Subject::Org(org(1))]);
    assert_eq!(fence.judge(stamp, &digest(2), &key(2), org(1)), Judgement::Touched);
    assert_eq!(fence.judge(stamp, &digest(2), &key(2), org(2)), Judgement::Untouched(fence.stamp()));
    assert_eq!(fence.judge(fence.stamp(), &digest(1), &key(1), org(1)), Judgement::Current);
}

#[test]
fn an_event_about_a_key_touches_whatever_opens_it() {
    let fence = Fence::default();
    let stamp = fence.stamp();
    fence.apply(1, &[Subject::Key(key(1))]);
    for opens_it in [1, 2, 3] {
        assert_eq!(fence.judge(stamp, &digest(opens_it), &key(1), org(1)), Judgement::Touched);
    }
    assert_eq!(fence.judge(stamp, &digest(1), &key(2), org(1)), Judgement::Untouched(fence.stamp()));
}

#[test]
fn after_a_reset_nothing_from_before_is_trusted() {
    let fence = Fence::default();
    let stamp = fence.stamp();
    fence.reset(0);
    assert_eq!(fence.judge(stamp, &digest(1), &key(1), org(1)), Judgement::Touched);
    assert_eq!(fence.judge(fence.stamp(), &digest(1), &key(1), org(1)), Judgement::Current);
}

#[test]
fn what_is_remembered_of_changes_takes_no_more_memory_than_is_planned() {
    let fence = Fence::default();
    for n in 0..300_000_u32 {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&n.to_be_bytes());
        fence.apply(0, &[Subject::Revoked(Digest::from_bytes(digest))]);
    }
    let held = fence.held();
    assert!((HELD_BYTES / 2..=HELD_BYTES).contains(&held), "{held} bytes, {HELD_BYTES} are planned");
}

proptest! {
    /// The fence against a list of all events ever: it may ask for a load too many, never for one too
    /// few.
    #[test]
    fn a_bounded_memory_never_misses_an_event(
        events in proptest::collection::vec(proptest::option::weighted(0.9, (any::<bool>(), 0_u8..6)), 0..60),
        asked in proptest::collection::vec((0_usize..60, 0_u8..6, 0_u8..6), 1..40),
    ) {
        let fence = Fence::remembering(8);
        let mut stamps = vec![fence.stamp()];
        for event in &events {
            match event {
                Some((true, n)) => fence.apply(0, &[Subject::Digest(digest(*n))]),
                Some((false, n)) => fence.apply(0, &[Subject::Org(org(*n))]),
                None => fence.reset(0),
            }
            stamps.push(fence.stamp());
        }
        for (at, d, o) in asked {
            let at = at % stamps.len();
            let concerned = events[at..].iter().any(|event| match event {
                Some((true, n)) => *n == d,
                Some((false, n)) => *n == o,
                None => true,
            });
            let judgement = fence.judge(stamps[at], &digest(d), &key(d), org(o));
            if concerned {
                prop_assert_eq!(judgement, Judgement::Touched);
            }
            if events.len() - at <= 8 && !concerned {
                prop_assert_ne!(judgement, Judgement::Touched, "remembered, so no load is needed");
            }
        }
    }
}
