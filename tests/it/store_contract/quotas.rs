//! Quotas.

use std::sync::Arc;
use std::time::Duration;

use keygate::store::quotas::{Admission, Quota};
use keygate::vocabulary::clock::UnixMillis;

use super::{NOW, Shared, later};

const WINDOW: Duration = Duration::from_secs(3600);

fn quota(name: &str, limit: u32) -> Quota {
    Quota { name: name.to_owned(), limit, window: WINDOW }
}

async fn admit(store: &Shared, now: UnixMillis, quotas: &[Quota]) -> Option<Duration> {
    match store.quotas().admit(quotas.to_vec(), now).await.unwrap() {
        Admission::Admitted => None,
        Admission::Refused { retry_after } => Some(retry_after),
    }
}

pub(super) async fn quotas_admit_exactly_as_many_as_they_say(store: Shared) {
    let callers = (0..64).map(|caller| {
        let store = Arc::clone(&store);
        // With a second quota too, as a signup counts for its network and for all.
        let quotas = [quota("signups:all", 40), quota(&format!("signups:2001:db8::{caller}/64"), 5)];
        tokio::spawn(async move { admit(&store, NOW, &quotas).await })
    });
    let mut admitted = 0;
    for caller in callers.collect::<Vec<_>>() {
        match caller.await.unwrap() {
            None => admitted += 1,
            Some(wait) => assert_eq!(wait, WINDOW),
        }
    }
    assert_eq!(admitted, 40);
}

pub(super) async fn a_quota_begins_anew_after_its_window(store: Shared) {
    let quotas = [quota("a", 2)];
    assert_eq!(admit(&store, NOW, &quotas).await, None);
    assert_eq!(admit(&store, later(1000), &quotas).await, None);
    assert_eq!(admit(&store, later(1000), &quotas).await, Some(WINDOW - Duration::from_secs(1)));
    assert_eq!(admit(&store, later(3_599_999), &quotas).await, Some(Duration::from_millis(1)));
    assert_eq!(admit(&store, later(3_600_000), &quotas).await, None);
    assert_eq!(admit(&store, later(3_600_000), &quotas).await, None);
    assert_eq!(admit(&store, later(3_600_000), &quotas).await, Some(WINDOW));
    assert_eq!(admit(&store, NOW, &quotas).await, Some(WINDOW), "never longer than a window");
    assert_eq!(admit(&store, NOW, &[quota("b", 2)]).await, None, "another's is another");
}

pub(super) async fn quotas_go_on_in_a_store_that_is_opened_again(store: Shared, reopen: impl Fn() -> Shared) {
    let (few, many) = (quota("signup:192.0.2.0/24", 2), quota("signup", 3));
    let both = [few.clone(), many.clone()];
    assert_eq!(admit(&store, NOW, &both).await, None);
    drop(store);
    let store = reopen();
    assert_eq!(admit(&store, later(1000), &both).await, None, "the second of two, and of three");
    drop(store);
    let store = reopen();
    let left = Some(WINDOW - Duration::from_secs(2));
    assert_eq!(admit(&store, later(2000), &both).await, left);
    assert_eq!(admit(&store, later(2000), std::slice::from_ref(&many)).await, None, "the third of three");
    drop(store);
    let store = reopen();
    assert_eq!(admit(&store, later(2000), &[many]).await, left);
    assert_eq!(admit(&store, later(3_600_000), &both).await, None, "a window that ended meanwhile");
}

pub(super) async fn who_is_refused_by_one_quota_counts_under_none(store: Shared) {
    let (few, many) = (quota("few", 1), quota("many", 3));
    assert_eq!(admit(&store, NOW, &[few.clone(), many.clone()]).await, None);
    for order in [[few.clone(), many.clone()], [many.clone(), few.clone()]] {
        for _ in 0..5 {
            assert_eq!(admit(&store, later(1000), &order).await, Some(WINDOW - Duration::from_secs(1)));
        }
    }
    assert_eq!(admit(&store, later(2000), std::slice::from_ref(&many)).await, None);
    assert_eq!(admit(&store, later(2000), std::slice::from_ref(&many)).await, None);
    let short = Quota { window: Duration::from_secs(10), ..quota("short", 0) };
    let longest = admit(&store, later(3000), &[short, many]).await;
    assert_eq!(longest, Some(WINDOW - Duration::from_secs(3)), "of several, the longest wait");
    assert_eq!(admit(&store, NOW, &[]).await, None);
}

pub(super) async fn a_quota_of_none_admits_nobody(store: Shared) {
    for _ in 0..2 {
        assert_eq!(admit(&store, NOW, &[quota("none", 0)]).await, Some(WINDOW));
    }
}
