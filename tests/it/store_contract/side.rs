//! The data that a store keeps beside keys.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keygate::store::Mutation;
use keygate::store::side::{Admission, News, Quota};
use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::id::KeyId;
use keygate::vocabulary::key::record::{KeyRecord, Versioned};
use keygate::vocabulary::key::usage::{Usage, Used};

use super::{Call, Heard, Maker, NOW, Shared, event, insert, insert_org, new_key};

fn used(key: KeyId, text: &str) -> Used {
    Used { key, usage: Usage::parse(text).unwrap() }
}

async fn usage_of(store: &Shared, key: KeyId) -> Option<String> {
    store.side().usage(vec![key]).await.unwrap().remove(0).map(|usage| usage.to_string())
}

pub(super) async fn usage_is_merged(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    let key = made.key(org.id, &[]);
    insert(&store, &org, &key).await;
    assert_eq!(usage_of(&store, key.id).await, None);
    for (noted, known) in [
        ("1700000000000", "1700000000000"),
        ("1700000000500 jobs:read", "1700000000500 jobs:read"),
        ("1700000000400 jobs:write a.b", "1700000000500 a.b jobs:read jobs:write"),
        ("1700000000400", "1700000000500 a.b jobs:read jobs:write"),
        ("1700000000501 jobs:read", "1700000000501 a.b jobs:read jobs:write"),
        ("999", "1700000000501 a.b jobs:read jobs:write"),
    ] {
        store.side().note_usage(vec![used(key.id, noted)]).await.unwrap();
        assert_eq!(usage_of(&store, key.id).await.as_deref(), Some(known), "after {noted}");
    }
    // Two of one key in one go.
    let twice = vec![used(key.id, "1700000000600 x"), used(key.id, "5 y")];
    store.side().note_usage(twice).await.unwrap();
    let known = usage_of(&store, key.id).await.unwrap();
    assert_eq!(known, "1700000000600 a.b jobs:read jobs:write x y");
}

pub(super) async fn of_a_key_that_is_not_there_no_usage_is_kept(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    let (key, other) = (made.key(org.id, &[]), made.key(org.id, &[]));
    insert(&store, &org, &key).await;
    store.side().note_usage(vec![used(other.id, "7 a"), used(key.id, "8 b")]).await.unwrap();
    store.commit(new_key(&other)).await.unwrap();
    assert_eq!(usage_of(&store, other.id).await, None);
    assert_eq!(usage_of(&store, key.id).await.as_deref(), Some("8 b"));
}

pub(super) async fn usage_of_many_keys_comes_in_their_order(store: Shared) {
    let made = Maker::new();
    let org = made.org();
    insert_org(&store, &org).await;
    // More than any back end notes or tells at once.
    let keys: Vec<KeyRecord> = (0..300).map(|_| made.key(org.id, &[])).collect();
    store.import(keys.clone()).await.unwrap();
    let noted = keys.iter().enumerate().step_by(3).map(|(n, key)| used(key.id, &format!("{n} s{n}")));
    store.side().note_usage(noted.collect()).await.unwrap();
    let told = store.side().usage(keys.iter().map(|key| key.id).collect()).await.unwrap();
    let told: Vec<_> = told.into_iter().map(|usage| usage.map(|usage| usage.to_string())).collect();
    let expected: Vec<_> = (0..300).map(|n| (n % 3 == 0).then(|| format!("{n} s{n}"))).collect();
    assert_eq!(told, expected);
    assert_eq!(store.side().usage(vec![]).await, Ok(vec![]));
    store.side().note_usage(vec![]).await.unwrap();
}

pub(super) async fn usage_is_no_event_and_leaves_the_record(store: Shared) {
    let (made, heard) = (Maker::new(), Heard::default());
    let org = made.org();
    let key = made.key(org.id, &[]);
    insert(&store, &org, &key).await;
    store.subscribe(heard.sink());
    store.side().note_usage(vec![used(key.id, "8 b")]).await.unwrap();
    assert_eq!(store.key(key.id).await, Ok(Some(Versioned { rev: 1, record: key })));
    assert_eq!(store.commit(event(org.id)).await.unwrap().event, Some(1));
    assert_eq!(heard.all().first(), Some(&Call::Reset(0)));
}

fn later(by: u64) -> UnixMillis {
    UnixMillis(NOW.0 + by)
}

async fn tell(store: &Shared, news: &News) {
    store.commit(Mutation { news: Some(news.clone()), ..Mutation::default() }).await.unwrap();
}

pub(super) async fn news_are_claimed_once_and_come_back_until_they_are_delivered(store: Shared) {
    let made = Maker::new();
    let news = |due: u64| News { org: made.org().id, due: later(due), body: made.text() };
    let (first, second, third) = (news(10), news(20), news(30));
    for news in [&third, &first, &second] {
        tell(&store, news).await;
    }
    let claim =
        async |now, limit| store.side().claim_news(later(now), later(now + 100), limit).await.unwrap();
    let claimed = |news: &News, now: u64| News { due: later(now + 100), ..news.clone() };
    assert_eq!(claim(9, 10).await, []);
    assert_eq!(claim(10, 10).await, [claimed(&first, 10)]);
    assert_eq!(claim(30, 1).await, [claimed(&second, 30)], "the longest due first");
    assert_eq!(claim(30, 0).await, []);
    assert_eq!(claim(30, 10).await, [claimed(&third, 30)]);
    assert_eq!(claim(109, 10).await, []);
    assert_eq!(claim(110, 10).await, [claimed(&first, 110)], "it was not delivered");
    store.side().delivered(first.org).await.unwrap();
    store.side().delivered(second.org).await.unwrap();
    assert_eq!(claim(1000, 10).await, [claimed(&third, 1000)]);
    store.side().delivered(third.org).await.unwrap();
    store.side().delivered(third.org).await.unwrap();
    assert_eq!(claim(9000, 10).await, []);
    tell(&store, &first).await;
    assert_eq!(claim(9000, 10).await, [claimed(&first, 9000)]);
}

pub(super) async fn news_are_told_without_being_claimed(store: Shared) {
    let made = Maker::new();
    // More than any back end tells at once.
    let all: Vec<News> =
        (0..300).map(|n| News { org: made.org().id, due: later(n), body: made.text() }).collect();
    for news in all.iter().step_by(2) {
        tell(&store, news).await;
    }
    let orgs = || all.iter().map(|news| news.org).collect::<Vec<_>>();
    let expected: Vec<_> =
        all.iter().enumerate().map(|(n, news)| (n % 2 == 0).then(|| news.clone())).collect();
    for _ in 0..2 {
        assert_eq!(store.side().news(orgs()).await.unwrap(), expected);
    }
    assert_eq!(store.side().claim_news(later(0), later(900), 10).await.unwrap().len(), 1);
    let told = store.side().news(vec![all[0].org]).await.unwrap();
    assert_eq!(told, [Some(News { due: later(900), ..all[0].clone() })], "as it was claimed");
    assert_eq!(store.side().news(vec![]).await, Ok(vec![]));
}

pub(super) async fn of_concurrent_claims_each_gets_other_news(store: Shared) {
    const NEWS: usize = 300;
    let made = Maker::new();
    let mut all = BTreeSet::new();
    for chunk in 0..3 {
        let orgs: Vec<_> = (0..NEWS / 3).map(|_| made.org().id).collect();
        all.extend(orgs.iter().copied());
        let told = orgs.into_iter().map(|org| {
            let (store, news) = (Arc::clone(&store), News { org, due: later(chunk), body: vec![1] });
            tokio::spawn(async move { tell(&store, &news).await })
        });
        for told in told.collect::<Vec<_>>() {
            told.await.unwrap();
        }
    }
    let claims = [1, 7, 150, NEWS, NEWS].map(|limit| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.side().claim_news(later(5), later(6), limit).await.unwrap() })
    });
    let mut claimed = Vec::new();
    for claim in claims {
        claimed.extend(claim.await.unwrap().into_iter().map(|news| news.org));
    }
    assert_eq!(claimed.len(), NEWS, "none twice");
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), all);
}

pub(super) async fn newer_news_of_an_organisation_take_the_place_of_older(store: Shared) {
    let org = Maker::new().org().id;
    tell(&store, &News { org, due: later(1), body: b"older".to_vec() }).await;
    tell(&store, &News { org, due: later(5), body: b"newer".to_vec() }).await;
    assert_eq!(store.side().claim_news(later(4), later(9), 10).await, Ok(vec![]));
    let newer = News { org, due: later(9), body: b"newer".to_vec() };
    assert_eq!(store.side().claim_news(later(5), later(9), 10).await, Ok(vec![newer]));
}

pub(super) async fn news_are_counted_until_they_are_delivered(store: Shared) {
    let made = Maker::new();
    let orgs: Vec<_> = (0..3).map(|_| made.org().id).collect();
    assert_eq!(store.side().backlog().await, Ok(0));
    for org in &orgs {
        tell(&store, &News { org: *org, due: later(5), body: b"news".to_vec() }).await;
    }
    tell(&store, &News { org: orgs[0], due: later(5), body: b"newer".to_vec() }).await;
    assert_eq!(store.side().backlog().await, Ok(3), "due or not, and one of each organisation");
    assert_eq!(store.side().claim_news(later(5), later(9), 2).await.unwrap().len(), 2);
    assert_eq!(store.side().backlog().await, Ok(3), "claimed or not");
    for (n, org) in orgs.iter().enumerate() {
        assert_eq!(store.side().delivered(*org).await, Ok(()));
        assert_eq!(store.side().backlog().await, Ok(2 - n as u64));
    }
}

const WINDOW: Duration = Duration::from_secs(3600);

fn quota(name: &str, limit: u32) -> Quota {
    Quota { name: name.to_owned(), limit, window: WINDOW }
}

async fn admit(store: &Shared, now: UnixMillis, quotas: &[Quota]) -> Option<Duration> {
    match store.side().admit(quotas.to_vec(), now).await.unwrap() {
        Admission::Admitted => None,
        Admission::Refused { retry_after } => Some(retry_after),
    }
}

pub(super) async fn quotas_admit_exactly_as_many_as_they_say(store: Shared) {
    let callers = (0..64).map(|caller| {
        let store = Arc::clone(&store);
        // Under a quota of its own too, as a signup is under its network's and under that of all.
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
