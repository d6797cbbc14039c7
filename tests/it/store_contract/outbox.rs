//! Notifications that wait to be delivered.

use std::collections::BTreeSet;
use std::sync::Arc;

use keygate::store::Mutation;
use keygate::store::outbox::News;

use super::{Maker, Shared, later};

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
    let claim = async |now, limit| store.outbox().claim(later(now), later(now + 100), limit).await.unwrap();
    let claimed = |news: &News, now: u64| News { due: later(now + 100), ..news.clone() };
    assert_eq!(claim(9, 10).await, []);
    assert_eq!(claim(10, 10).await, [claimed(&first, 10)]);
    assert_eq!(claim(30, 1).await, [claimed(&second, 30)], "the longest due first");
    assert_eq!(claim(30, 0).await, []);
    assert_eq!(claim(30, 10).await, [claimed(&third, 30)]);
    assert_eq!(claim(109, 10).await, []);
    assert_eq!(claim(110, 10).await, [claimed(&first, 110)], "it was not delivered");
    store.outbox().delivered(first.org).await.unwrap();
    store.outbox().delivered(second.org).await.unwrap();
    assert_eq!(claim(1000, 10).await, [claimed(&third, 1000)]);
    store.outbox().delivered(third.org).await.unwrap();
    store.outbox().delivered(third.org).await.unwrap();
    assert_eq!(claim(9000, 10).await, []);
    tell(&store, &first).await;
    assert_eq!(claim(9000, 10).await, [claimed(&first, 9000)]);
}

pub(super) async fn news_are_told_without_being_claimed(store: Shared) {
    let made = Maker::new();
    // More than any back end returns at once.
    let all: Vec<News> =
        (0..300).map(|n| News { org: made.org().id, due: later(n), body: made.text() }).collect();
    for news in all.iter().step_by(2) {
        tell(&store, news).await;
    }
    let orgs = || all.iter().map(|news| news.org).collect::<Vec<_>>();
    let expected: Vec<_> =
        all.iter().enumerate().map(|(n, news)| (n % 2 == 0).then(|| news.clone())).collect();
    for _ in 0..2 {
        assert_eq!(store.outbox().news(orgs()).await.unwrap(), expected);
    }
    assert_eq!(store.outbox().claim(later(0), later(900), 10).await.unwrap().len(), 1);
    let told = store.outbox().news(vec![all[0].org]).await.unwrap();
    assert_eq!(told, [Some(News { due: later(900), ..all[0].clone() })], "as it was claimed");
    assert_eq!(store.outbox().news(vec![]).await, Ok(vec![]));
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
        tokio::spawn(async move { store.outbox().claim(later(5), later(6), limit).await.unwrap() })
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
    assert_eq!(store.outbox().claim(later(4), later(9), 10).await, Ok(vec![]));
    let newer = News { org, due: later(9), body: b"newer".to_vec() };
    assert_eq!(store.outbox().claim(later(5), later(9), 10).await, Ok(vec![newer]));
}

pub(super) async fn news_that_a_wrong_clock_has_put_off_are_told(store: Shared) {
    const YEAR: u64 = 402 * 86_400_000;
    let org = Maker::new().org().id;
    tell(&store, &News { org, due: later(0), body: b"news".to_vec() }).await;
    let claim = async |now, until| store.outbox().claim(later(now), later(until), 10).await.unwrap().len();
    // A gateway whose clock is far ahead takes them, and cannot deliver them.
    assert_eq!(claim(YEAR, YEAR + 30_000).await, 1);
    assert_eq!(claim(5, 30_005).await, 1);
    assert_eq!(claim(5, 30_005).await, 0, "now they are claimed");
    assert_eq!(claim(30_005, 60_005).await, 1);
}

pub(super) async fn news_are_counted_until_they_are_delivered(store: Shared) {
    let made = Maker::new();
    let orgs: Vec<_> = (0..3).map(|_| made.org().id).collect();
    assert_eq!(store.outbox().backlog().await, Ok(0));
    for org in &orgs {
        tell(&store, &News { org: *org, due: later(5), body: b"news".to_vec() }).await;
    }
    tell(&store, &News { org: orgs[0], due: later(5), body: b"newer".to_vec() }).await;
    assert_eq!(store.outbox().backlog().await, Ok(3), "due or not, and one of each organisation");
    assert_eq!(store.outbox().claim(later(5), later(9), 2).await.unwrap().len(), 2);
    assert_eq!(store.outbox().backlog().await, Ok(3), "claimed or not");
    for (n, org) in orgs.iter().enumerate() {
        assert_eq!(store.outbox().delivered(*org).await, Ok(()));
        assert_eq!(store.outbox().backlog().await, Ok(2 - n as u64));
    }
}
