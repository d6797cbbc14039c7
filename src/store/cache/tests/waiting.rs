//! Requests that wait for the turn of their lookup.

use super::*;

/// Longer than any test: only the test ends a lookup.
const NEVER: Duration = Duration::from_secs(3600);

fn bench(max_lookups: usize, max_waiting: usize) -> Bench {
    let settings = Settings { max_lookups, lookup_timeout: NEVER, ..Settings::default() };
    Bench::with_queue(settings, max_waiting)
}

/// Lets the lookups go on that were stopped, and those that come.
fn release(bench: &Bench) {
    let mut books = bench.model.books();
    books.stepped = false;
    books.waiting.drain(..).for_each(|step| {
        let _ = step.send(());
    });
}

/// The outcomes of the requests, in their order.
async fn all(asked: Vec<JoinHandle<&'static str>>) -> Vec<&'static str> {
    let mut told = Vec::new();
    for one in asked {
        told.push(one.await.unwrap());
    }
    told
}

/// Runs a test in which lookups stop until it releases them.
fn stopped(bench: &Bench, test: impl AsyncFnOnce()) {
    bench.model.books().stepped = true;
    LocalSet::new().block_on(&bench.runtime, test());
}

#[test]
fn requests_beyond_the_places_wait_for_their_turn() {
    let bench = bench(2, 100);
    let good: Vec<Digest> = (0..20).map(|n| bench.model.make(n, 1)).collect();
    stopped(&bench, async || {
        let asked: Vec<_> = good.iter().map(|digest| bench.begin(*digest)).collect();
        turns().await;
        assert_eq!((bench.model.lookups(), bench.cache.waiting()), (2, 18));
        release(&bench);
        assert_eq!(all(asked).await, ["store"; 20]);
        assert_eq!((bench.model.lookups(), bench.cache.waiting()), (20, 0));
    });
}

#[test]
fn keys_that_are_known_and_must_be_looked_up_again_wait_too() {
    let bench = bench(2, 100);
    let good: Vec<Digest> = (0..20).map(|n| bench.model.make(n, 1)).collect();
    good.iter().for_each(|digest| assert_eq!(bench.ask(*digest), "store"));
    // Events are missing: nothing that was known may be used without asking.
    bench.model.books().sinks.iter().for_each(|sink| sink.reset(0));
    stopped(&bench, async || {
        let guesses: Vec<_> = (100..110).map(|n| bench.begin(digest_of(n))).collect();
        let asked: Vec<_> = good.iter().map(|digest| bench.begin(*digest)).collect();
        turns().await;
        assert_eq!(bench.cache.waiting(), 8 + 18, "each kind has places of its own");
        release(&bench);
        assert_eq!(all(asked).await, ["store"; 20]);
        assert_eq!(all(guesses).await, ["absent"; 10]);
    });
}

#[test]
fn a_known_key_that_may_be_served_stale_waits_for_no_place() {
    let bench = bench(1, 100);
    let good: Vec<Digest> = (0..5).map(|n| bench.model.make(n, 1)).collect();
    good.iter().for_each(|digest| assert_eq!(bench.ask(*digest), "store"));
    bench.advance(61);
    stopped(&bench, async || {
        let first = bench.begin(good[0]);
        turns().await;
        assert_eq!(all(good[1..].iter().map(|digest| bench.begin(*digest)).collect()).await, ["stale"; 4]);
        assert_eq!(bench.cache.waiting(), 0);
        release(&bench);
        assert_eq!(first.await.unwrap(), "store");
    });
}

#[test]
fn who_waits_for_the_same_key_joins_one_load() {
    let bench = bench(1, 100);
    let [first, second] = [1, 2].map(|n| bench.model.make(n, 1));
    stopped(&bench, async || {
        let asked: Vec<_> = [(1, first), (1, second), (2, second), (3, second)]
            .map(|(from, digest)| bench.begin_from(from, digest))
            .into();
        turns().await;
        assert_eq!(bench.cache.waiting(), 3);
        release(&bench);
        assert_eq!(all(asked).await, ["store"; 4]);
        assert_eq!(bench.model.lookups(), 2);
    });
}

#[test]
fn a_request_whose_client_has_gone_leaves_the_queue() {
    let bench = bench(1, 100);
    let good: Vec<Digest> = (0..5).map(|n| bench.model.make(n, 1)).collect();
    stopped(&bench, async || {
        let mut asked: Vec<_> = good.iter().map(|digest| bench.begin(*digest)).collect();
        turns().await;
        asked.drain(1..4).for_each(|asked| asked.abort());
        turns().await;
        assert_eq!(bench.cache.waiting(), 1);
        release(&bench);
        assert_eq!(all(asked).await, ["store"; 2]);
        assert_eq!(bench.model.lookups(), 2, "nobody looks up what nobody waits for");
    });
}

#[test]
fn the_first_lookup_that_fails_answers_all_who_wait() {
    let bench = bench(1, 100);
    stopped(&bench, async || {
        let asked: Vec<_> = (0..50).map(|n| bench.begin_from(n, digest_of(n.into()))).collect();
        turns().await;
        assert_eq!(bench.cache.waiting(), 49);
        bench.model.fail(true);
        release(&bench);
        assert_eq!(all(asked).await, ["unavailable"; 50]);
        assert_eq!(
            (bench.model.lookups(), bench.cache.waiting()),
            (2, 0),
            "once more, as the first may have been unlucky"
        );
    });
}

#[test]
fn a_lookup_that_times_out_while_others_are_answered_ends_nobodys_wait() {
    let bench = bench(2, 100);
    let good: Vec<Digest> = (0..10).map(|n| bench.model.make(n, 1)).collect();
    stopped(&bench, async || {
        let asked: Vec<_> = good.iter().map(|digest| bench.begin(*digest)).collect();
        turns().await;
        // The second is answered, and the third begins in its place.
        for _ in 0..2 {
            bench.model.step(1);
            turns().await;
        }
        assert_eq!((bench.model.lookups(), bench.cache.waiting()), (3, 7));
        bench.model.books().slow = true;
        bench.model.step(0);
        turns().await;
        bench.model.books().slow = false;
        release(&bench);
        let told = all(asked).await;
        assert_eq!((told[0], &told[1..]), ("unavailable", &["store"; 9][..]));
    });
}

#[test]
fn who_waited_when_a_lookup_failed_tries_once_more() {
    let bench = bench(1, 100);
    let good: Vec<Digest> = (0..5).map(|n| bench.model.make(n, 1)).collect();
    stopped(&bench, async || {
        let asked: Vec<_> = good.iter().map(|digest| bench.begin(*digest)).collect();
        turns().await;
        bench.model.fail(true);
        bench.model.step(0);
        turns().await;
        bench.model.fail(false);
        release(&bench);
        assert_eq!(all(asked).await, ["unavailable", "store", "store", "store", "store"]);
    });
}

#[test]
fn a_lookup_that_panics_leaves_nobody_waiting_for_ever() {
    let bench = bench(1, 100);
    let good: Vec<Digest> = (0..5).map(|n| bench.model.make(n, 1)).collect();
    stopped(&bench, async || {
        let asked: Vec<_> = good.iter().map(|digest| bench.begin(*digest)).collect();
        turns().await;
        bench.model.books().panics = true;
        release(&bench);
        assert_eq!(all(asked).await, ["store"; 5]);
    });
}

#[test]
fn nobody_waits_longer_than_a_lookup_may_take() {
    const SLOW: Duration = Duration::from_millis(10);
    let settings = Settings { max_lookups: 1, lookup_timeout: 100 * SLOW, ..Settings::default() };
    let bench = Bench::with(settings);
    let good: Vec<Digest> = (0..400).map(|n| bench.model.make(n, 1)).collect();
    stopped(&bench, async || {
        let asked: Vec<_> = good.iter().map(|digest| bench.begin(*digest)).collect();
        turns().await;
        while !asked.iter().all(JoinHandle::is_finished) {
            tokio::time::sleep(SLOW).await;
            // A lookup stops twice.
            bench.model.step(0);
        }
        let told = all(asked).await;
        assert_eq!(told[0], "store");
        assert!(told.contains(&"exhausted"), "{told:?}");
        assert_eq!(bench.cache.waiting(), 0);
    });
}

#[test]
fn a_full_queue_refuses_at_once_whose_network_waits_most() {
    let bench = bench(1, 3);
    stopped(&bench, async || {
        let asked: Vec<_> = (0..4).map(|n| bench.begin_from(1, digest_of(n))).collect();
        turns().await;
        assert_eq!(bench.cache.waiting(), 3);
        assert_eq!(bench.begin_from(1, digest_of(10)).await.unwrap(), "exhausted");
        let other = bench.begin_from(2, digest_of(20));
        turns().await;
        assert!(asked[3].is_finished(), "the last one made room");
        release(&bench);
        assert_eq!(all(asked).await, ["absent", "absent", "absent", "exhausted"]);
        assert_eq!(other.await.unwrap(), "absent");
    });
}

#[test]
fn a_flood_of_guesses_takes_neither_the_turns_of_others_nor_the_room_of_known_keys() {
    let bench = bench(16, 1000);
    let known: Vec<Digest> = (0..8).map(|n| bench.model.make(n, 1)).collect();
    known.iter().for_each(|digest| assert_eq!(bench.ask(*digest), "store"));
    bench.advance(50);
    for n in 100..140 {
        assert_eq!(bench.ask(digest_of(n)), "absent");
    }
    let before = bench.model.lookups();
    let new_lookups = || bench.model.lookups() - before;
    stopped(&bench, async || {
        let mut asked: Vec<_> = (1000..1100).map(|n| bench.begin(digest_of(n))).collect();
        turns().await;
        assert_eq!((new_lookups(), bench.cache.waiting()), (2, 98), "an eighth");
        asked.extend((2000..2014).map(|n| bench.begin_from(2, digest_of(n))));
        turns().await;
        assert_eq!((new_lookups(), bench.cache.waiting()), (16, 98), "nobody else guesses");
        // Known keys are served, and loaded again in the room that is theirs.
        let told = all(known.iter().map(|digest| bench.begin(*digest)).collect()).await;
        assert_eq!(told, ["thread"; 8]);
        turns().await;
        assert_eq!(new_lookups(), 16 + 4);
        // Past their time they are no guesses either.
        bench.advance(11);
        asked.extend(known.iter().map(|digest| bench.begin(*digest)));
        turns().await;
        assert_eq!(new_lookups(), 16 + 8);
        release(&bench);
        let told = all(asked).await;
        assert_eq!((&told[..114], &told[114..]), (&["absent"; 114][..], &["store"; 8][..]));
    });
}
