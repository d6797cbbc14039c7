//! The promises of the Redis store beyond the contract: each mutation is complete or absent with any fault of
//! Redis, and a key is never called absent by a store that is not the expected one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keygate::secret_file::SecretFileError;
use keygate::store::events::Subject;
use keygate::store::indexes::{Full, Room};
use keygate::store::keeper::{Keeper, LinkState};
use keygate::store::quotas::{Admission, Quota};
use keygate::store::redis::{Address, OpenError, Redis, Settings};
use keygate::store::trails::{Allowance, Held, Pace, Terms, Trimmed};
use keygate::store::{CommitError, Committed, KeysOf, Lookup, Mutation, Store, StoreFault};
use keygate::vocabulary::audit::{Chain, Ends, Link, Trail};
use keygate::vocabulary::clock::Clock;
use keygate::vocabulary::id::OrgId;
use keygate::vocabulary::key::record::{KeyRecord, OrgRecord, Sealer, Versioned};
use keygate::vocabulary::key::usage::{Usage, Used};
use keygate::vocabulary::key::{Digest, Environment, Pepper};
use tokio::runtime::Handle;

use crate::harness::{Chaos, PATIENCE, RedisServer, Weather, lenient, soon};
use crate::store_contract::{
    Call, Heard, Maker, NOW, Shared, assert_found, event, insert, insert_org, inserted, new_key, new_org,
    only_audit, update_key, with_digests, with_every_part,
};

/// The rights that the page on deployment names.
pub(crate) const RIGHTS: &str = "~{kg}:* +@read +@write +@connection -@dangerous -function +eval +evalsha +eval_ro +evalsha_ro +info +time";

fn open(server: &RedisServer) -> Shared {
    open_at(&server.url())
}

fn open_at(url: &str) -> Shared {
    Arc::new(open_with(patient(url), Sealer::default()))
}

fn open_with(settings: Settings, sealer: Sealer) -> Redis {
    Redis::open(settings, sealer, Handle::current()).unwrap()
}

/// Waits as long as a loaded machine takes.
fn patient(url: &str) -> Settings {
    Settings {
        connect_timeout: PATIENCE,
        lookup_timeout: PATIENCE,
        command_timeout: PATIENCE,
        ..Settings::new(Address::parse(url).unwrap())
    }
}

async fn begun(server: &RedisServer) -> Shared {
    let store = open(server);
    assert_eq!(store.keeper().begin().await, Ok(true));
    store
}

async fn linked(store: &Shared) {
    soon("the event link is up", async || store.keeper().link_state() == LinkState::Up).await;
}

fn assert_unavailable(lookup: &Lookup) -> String {
    match lookup {
        Lookup::Unavailable(fault) => fault.to_string(),
        other => panic!("{other:?}"),
    }
}

fn revocation(key: &KeyRecord) -> Mutation {
    let subjects = key.secrets.iter().map(|secret| Subject::Digest(secret.digest)).collect();
    let revoked = KeyRecord { revoked_at: Some(NOW), ..key.clone() };
    Mutation { subjects, ..update_key(1, &revoked) }
}

fn quota() -> Quota {
    Quota { name: "signups:192.0.2.0/24".to_owned(), limit: 5, window: Duration::from_secs(3600) }
}

mod all_or_nothing {
    use super::*;

    #[tokio::test]
    async fn a_redis_with_full_memory_refuses_new_keys_and_accepts_revocations() {
        let server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        let (org, digest) = (made.org(), made.digest());
        let key = made.key(org.id, &[digest]);
        insert(&store, &org, &key).await;
        server.command(&["CONFIG", "SET", "maxmemory", "1"]);
        let before = server.contents();
        let append = Chain::default().extend(Trail::Operator, Link::ORIGIN, b"x".to_vec());
        let audited = Mutation { audit: Some(append.clone()), ..revocation(&key) };
        for refused in
            [new_key(&made.key(org.id, &[made.digest()])), new_org(&made.org()), only_audit(append.clone())]
        {
            let refusal = store.commit(refused).await.unwrap_err();
            assert!(refusal.to_string().contains("OOM"), "{refusal}");
        }
        assert_eq!(server.contents(), before);
        assert_eq!(store.commit(audited).await, Ok(Committed { event: Some(1) }));
        assert!(matches!(store.lookup(digest).await, Lookup::Found(found) if found.key.revoked_at.is_some()));
        assert_eq!(store.trails().entries(Trail::Operator, None, 9).await, Ok(vec![append.entry]));
        server.command(&["CONFIG", "SET", "maxmemory", "0"]);
        store.commit(new_key(&made.key(org.id, &[made.digest()]))).await.unwrap();
    }

    /// Memory runs out at a different point each time.
    #[tokio::test]
    async fn a_mutation_is_complete_or_absent_wherever_memory_runs_out() {
        let server = RedisServer::start();
        let (store, made, chain) = (begun(&server).await, Maker::new(), Chain::default());
        let info = server.command(&["INFO", "memory"]);
        let used: u64 =
            info.split("used_memory:").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
        let (mut whole, mut none, mut head) = (0, 0, Link::ORIGIN);
        for step in 0..150 {
            server.command(&["CONFIG", "SET", "maxmemory", &(used + step * 2048).to_string()]);
            // With an event, the mutation would count as one that removes rights, and would be executed anyway.
            let mutation =
                Mutation { subjects: vec![], ..with_every_part(&made, &chain, Trail::Operator, head) };
            let outcome = store.commit(mutation.clone()).await;
            assert_eq!(is_whole(&store, &server, &mutation).await, outcome.is_ok(), "{outcome:?}");
            match outcome {
                Ok(_) => (whole, head) = (whole + 1, mutation.audit.unwrap().entry.link),
                Err(_) => none += 1,
            }
            assert_eq!(store.trails().ends(Trail::Operator).await.unwrap().head, head);
        }
        println!("{whole} went in, {none} were refused");
        assert!(whole > 0 && none > 0, "{whole} {none}");
        assert_eq!(chain_length(&store, &chain).await, whole);
    }

    /// A gateway of an older release on the same Redis enters keys into the lists that it knows, and into no others.
    #[tokio::test]
    async fn keys_that_an_older_gateway_writes_are_listed_and_counted() {
        let server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        let org = made.org();
        insert_org(&store, &org).await;
        let mut keys: Vec<KeyRecord> = (0..600).map(|_| made.key(org.id, &[made.digest()])).collect();
        store.import(keys.clone()).await.unwrap();
        let list = |name: &str| format!("{{kg}}:org:{}:{name}", org.id);
        for forgotten in ["keys:test", "keys:live", "live"] {
            server.command(&["DEL", &list(forgotten)]);
        }
        keys.sort_by_key(|key| std::cmp::Reverse(key.id));
        let of_tests = KeysOf::Environment(org.id, Environment::Test);
        let listed = store.keys(of_tests, None, 1000).await.unwrap();
        assert!(listed.iter().map(|key| &key.record).eq(&keys));
        assert_eq!(store.keys(KeysOf::Environment(org.id, Environment::Live), None, 9).await, Ok(vec![]));

        // It makes a key, which nobody lists here before another key needs room.
        let theirs = made.key(org.id, &[made.digest()]);
        store.commit(new_key(&theirs)).await.unwrap();
        for forgotten in ["keys:test", "live"] {
            server.command(&["ZREM", &list(forgotten), &theirs.id.to_string()]);
        }
        let create = |most: u32| Mutation {
            room: Some(Room { most, ..made.room(keys[0].id) }),
            ..new_key(&made.key(org.id, &[made.digest()]))
        };
        // It revokes one.
        store.commit(update_key(1, &KeyRecord { revoked_at: Some(NOW), ..keys[7].clone() })).await.unwrap();
        server.command(&["ZADD", &list("live"), "+inf", &keys[7].id.to_string()]);
        assert_eq!(store.commit(create(601)).await, Ok(Committed { event: None }), "600 are live, not 601");
        assert_eq!(store.commit(create(601)).await, Err(CommitError::Full(Full::Organisation)));
        assert_eq!(store.keys(of_tests, None, 1000).await.unwrap().len(), 602);
    }

    /// Whether a mutation with all parts is complete; fails if only some parts are present.
    async fn is_whole(store: &Shared, server: &RedisServer, mutation: &Mutation) -> bool {
        let (org, key) = inserted(mutation);
        let (email, answer) = (mutation.email.unwrap(), mutation.answer.clone().unwrap());
        let (entry, news) = (mutation.audit.clone().unwrap().entry, mutation.news.clone().unwrap());
        let whole = is_whole_key(store, key).await;
        assert_eq!(store.org(org.id).await.unwrap().is_some(), whole);
        assert_eq!(store.answers().find(answer.index, NOW).await, Ok(whole.then_some(answer.sealed)));
        let at = store.trails().entries(Trail::Operator, Some(entry.link.number + 1), 1).await.unwrap();
        assert_eq!(at.contains(&entry), whole);
        let there = |command: &[&str]| u8::from(server.command(command) != "$-1\r\n");
        let email: String = email.index.iter().map(|byte| format!("{byte:02x}")).collect();
        let org = news.org.to_string();
        let places = [
            there(&["GET", &format!("{{kg}}:email:{email}")]),
            there(&["HGET", "{kg}:news", &org]),
            there(&["ZSCORE", "{kg}:news:due", &org]),
        ];
        assert_eq!(places, [u8::from(whole); 3]);
        whole
    }

    /// The same for a key.
    async fn is_whole_key(store: &Shared, key: &KeyRecord) -> bool {
        let record = store.key(key.id).await.unwrap().is_some();
        for secret in &key.secrets {
            assert_eq!(matches!(store.lookup(secret.digest).await, Lookup::Found(_)), record);
        }
        let (org, environment) = (key.org, key.environment);
        for of in [KeysOf::All, KeysOf::Org(org), KeysOf::Environment(org, environment)] {
            let listed = store.keys(of, None, usize::MAX).await.unwrap();
            assert_eq!(listed.iter().any(|listed| listed.record.id == key.id), record);
        }
        record
    }

    /// The number of entries in the operator's trail, which has no gap.
    async fn chain_length(store: &Shared, chain: &Chain) -> u64 {
        let mut entries = store.trails().entries(Trail::Operator, None, usize::MAX).await.unwrap();
        entries.reverse();
        let head = entries.iter().try_fold(Link::ORIGIN, |after, entry| {
            chain.check(Trail::Operator, &after, entry).map(|_| entry.link)
        });
        let head = head.unwrap();
        assert_eq!(store.trails().ends(Trail::Operator).await, Ok(Ends { checkpoint: Link::ORIGIN, head }));
        head.number
    }

    #[tokio::test]
    async fn a_mutation_is_complete_or_absent_and_events_have_no_gap_if_connections_are_killed() {
        let server = Arc::new(RedisServer::start());
        let (store, made, heard) = (begun(&server).await, Maker::new(), Heard::default());
        let chain = Chain::default();
        store.subscribe(heard.sink());
        let killer = Killer::of(&server);
        let (mut done, mut open) = (0, 0);
        let mut mutations = Vec::new();
        // Until enough mutations have succeeded and enough have failed.
        let patience = Instant::now() + PATIENCE;
        while done < 60 || open < 5 {
            assert!(Instant::now() < patience, "{done} confirmed, {open} left open");
            let Ok(ends) = store.trails().ends(Trail::Operator).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let mutation = with_every_part(&made, &chain, Trail::Operator, ends.head);
            let outcome = store.commit(mutation.clone()).await;
            match &outcome {
                Ok(Committed { event }) => {
                    assert!(event.is_some());
                    done += 1;
                }
                Err(CommitError::Fault(_)) => {
                    open += 1;
                    // Otherwise the breaker alone would fail the next ones.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                // An unanswered mutation was executed after the end was read.
                Err(CommitError::Conflict) => {}
                Err(other) => panic!("{other}"),
            }
            mutations.push((mutation, outcome.is_ok()));
        }
        killer.stop();
        works_again(&store).await;
        let mut there = 0;
        for (mutation, told) in mutations {
            let whole = is_whole(&store, &server, &mutation).await;
            assert!(whole || !told, "what was confirmed is there");
            there += u64::from(whole);
        }
        println!("mutations under fire: {done} confirmed, {open} left open, {there} there");
        assert_eq!(chain_length(&store, &chain).await, there);
        soon("every event arrives", async || last_event(&heard) == there).await;
        linked(&store).await;
        assert_eq!(store.commit(event(made.org().id)).await, Ok(Committed { event: Some(there + 1) }));
        // Each event once and in order, from the number at which it was told to begin again.
        let mut expected = 0;
        for call in heard.all() {
            match call {
                Call::Reset(seq) => expected = seq + 1,
                Call::Apply(seq, _) => {
                    assert_eq!(seq, expected);
                    expected += 1;
                }
            }
        }
    }

    /// Kills all connections repeatedly.
    struct Killer {
        over: Arc<AtomicBool>,
        thread: std::thread::JoinHandle<()>,
    }

    impl Killer {
        fn of(server: &Arc<RedisServer>) -> Self {
            let (over, server) = (Arc::new(AtomicBool::new(false)), Arc::clone(server));
            let until = Arc::clone(&over);
            let thread = std::thread::spawn(move || {
                let mut rng = fastrand::Rng::with_seed(3);
                while !until.load(Ordering::Relaxed) {
                    server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
                    std::thread::sleep(Duration::from_micros(rng.u64(..10_000)));
                }
            });
            Self { over, thread }
        }

        fn stop(self) {
            self.over.store(true, Ordering::Relaxed);
            self.thread.join().unwrap();
        }
    }

    async fn works_again(store: &Shared) {
        let digest = Digest::from_bytes([0; 32]);
        soon("lookups work again", async || matches!(store.lookup(digest).await, Lookup::Absent)).await;
        soon("commands work again", async || store.orgs(None, 1).await.is_ok()).await;
    }

    #[tokio::test]
    async fn an_import_with_killed_connections_has_no_partial_key_and_can_be_repeated() {
        let server = Arc::new(RedisServer::start());
        let (store, made) = (begun(&server).await, Maker::new());
        let org = made.org();
        insert_org(&store, &org).await;
        let keys: Vec<KeyRecord> = (0..20_000).map(|_| made.key(org.id, &[made.digest()])).collect();
        let killer = Killer::of(&server);
        let (mut faults, mut outcomes) = (0, Vec::new());
        let mut rest = keys.chunks(4000).peekable();
        let patience = Instant::now() + PATIENCE;
        while let Some(some) = rest.peek() {
            assert!(Instant::now() < patience, "{faults} faults, {} imported", outcomes.len());
            match store.import(some.to_vec()).await {
                Ok(told) => {
                    outcomes.extend(told);
                    rest.next();
                }
                Err(_) if faults < 5 => {
                    faults += 1;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                // Memory is sufficient again.
                Err(_) => {
                    faults += 1;
                    break;
                }
            }
        }
        killer.stop();
        works_again(&store).await;
        for some in rest {
            outcomes.extend(store.import(some.to_vec()).await.unwrap());
        }
        println!("an import under fire: {faults} faults");
        assert!(faults > 0);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(()) | Err(CommitError::Exists))));
        assert_eq!(store.keys(KeysOf::All, None, usize::MAX).await.unwrap().len(), keys.len());
        assert_eq!(store.keys(KeysOf::Org(org.id), None, usize::MAX).await.unwrap().len(), keys.len());
        for key in keys.iter().step_by(7) {
            assert_found(&store, key.secrets[0].digest, key, &org).await;
        }
    }

    fn last_event(heard: &Heard) -> u64 {
        match heard.all().last() {
            Some(Call::Reset(seq) | Call::Apply(seq, _)) => *seq,
            None => 0,
        }
    }

    #[tokio::test]
    async fn of_64_processes_that_update_one_rev_exactly_one_wins() {
        let server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        let org = made.org();
        let key = made.key(org.id, &[made.digest()]);
        insert(&store, &org, &key).await;
        let stores: Vec<Shared> = (0..64).map(|_| open(&server)).collect();
        let chain = Chain::default();
        for rev in 1..=3 {
            let head = store.trails().ends(Trail::Operator).await.unwrap().head;
            let writers = stores.iter().enumerate().map(|(writer, store)| {
                let (store, name) = (Arc::clone(store), format!("{rev} by {writer}"));
                let mine = KeyRecord { name: name.clone(), ..with_digests(&key, &[made.digest()]) };
                let parts = with_every_part(&made, &chain, Trail::Operator, head);
                let mutation =
                    Mutation { org: None, ..Mutation { key: update_key(rev, &mine).key, ..parts } };
                tokio::spawn(async move { (name, store.commit(mutation).await) })
            });
            let mut winners = Vec::new();
            for writer in writers.collect::<Vec<_>>() {
                match writer.await.unwrap() {
                    (name, Ok(_)) => winners.push(name),
                    (_, Err(refusal)) => assert_eq!(refusal, CommitError::Conflict),
                }
            }
            let now = store.key(key.id).await.unwrap().unwrap();
            assert_eq!((now.rev, vec![now.record.name.clone()]), (rev + 1, winners));
            assert!(is_whole_key(&store, &now.record).await);
            for (pattern, left) in [("k", 1), ("email", rev), ("idem", rev)] {
                let found = server.command(&["KEYS", &format!("{{kg}}:{pattern}:*")]);
                assert!(found.starts_with(&format!("*{left}\r\n")), "the losers left nothing: {found}");
            }
            assert_eq!(server.command(&["HLEN", "{kg}:news"]), format!(":{rev}\r\n"));
            assert_eq!(chain_length(&store, &chain).await, rev);
        }
    }

    #[tokio::test]
    async fn foreign_data_at_a_mutations_keys_fails_it_before_it_writes() {
        let mutation = with_every_part(&Maker::new(), &Chain::default(), Trail::Operator, Link::ORIGIN);
        let (org, key) = inserted(&mutation);
        let answer: String =
            mutation.answer.as_ref().unwrap().index.iter().map(|b| format!("{b:02x}")).collect();
        for (place, harm) in [
            ("{kg}:keys".to_owned(), &["SET", "x"][..]),
            ("{kg}:orgs".to_owned(), &["SET", "x"]),
            (format!("{{kg}}:org:{}:keys", org.id), &["SET", "x"]),
            (format!("{{kg}}:id:{}", key.id), &["SADD", "x"]),
            (format!("{{kg}}:idem:{answer}"), &["SADD", "x"]),
            (format!("{{kg}}:idem:{answer}"), &["SET", "short"]),
            ("{kg}:audit:operator".to_owned(), &["SET", "x"]),
            ("{kg}:audit:operator:ends".to_owned(), &["SADD", "x"]),
            ("{kg}:news".to_owned(), &["SET", "x"]),
            ("{kg}:news:due".to_owned(), &["SET", "x"]),
            ("{kg}:events".to_owned(), &["SET", "x"]),
        ] {
            let server = RedisServer::start();
            let store = begun(&server).await;
            server.command(&[harm[0], &place, harm[1]]);
            let before = server.contents();
            assert!(matches!(store.commit(mutation.clone()).await, Err(CommitError::Fault(_))), "{place}");
            assert_eq!(server.contents(), before, "{place}");
        }
    }

    #[tokio::test]
    async fn an_audit_trail_that_goes_on_past_its_end_fails_a_mutation_before_it_writes() {
        for entry in ["1-0", "7-0", "1-3"] {
            let server = RedisServer::start();
            let store = begun(&server).await;
            server.command(&["XADD", "{kg}:audit:operator", entry, "mac", "x"]);
            let before = server.contents();
            let mutation = with_every_part(&Maker::new(), &Chain::default(), Trail::Operator, Link::ORIGIN);
            let refused = store.commit(mutation).await.unwrap_err();
            assert!(refused.to_string().contains("past its end"), "{refused}");
            assert_eq!(server.contents(), before);
            assert!(store.trails().entries(Trail::Operator, None, 1).await.is_err(), "nor does it read");
        }
    }

    /// Redis evicts keys with an expiry first.
    #[tokio::test]
    async fn only_answers_and_quotas_expire() {
        let server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        let mutation = with_every_part(&made, &Chain::default(), Trail::Operator, Link::ORIGIN);
        store.commit(mutation.clone()).await.unwrap();
        let used = Used { key: inserted(&mutation).1.id, usage: Usage::parse("7 a").unwrap() };
        store.usage().note(vec![used]).await.unwrap();
        store.quotas().admit(vec![quota()], NOW).await.unwrap();
        let mut expiring = 0;
        for (key, _) in server.contents() {
            let left = server.command(&["PTTL", &key]);
            let left: i64 = left.trim_start_matches(':').trim().parse().unwrap();
            if key.contains(":idem:") || key.contains(":quota:") {
                expiring += 1;
                assert!((3_000_000..=3_600_000).contains(&left), "{key} {left}");
            } else {
                assert_eq!(left, -1, "{key}");
            }
        }
        assert_eq!(expiring, 3);
    }

    #[tokio::test]
    async fn a_stream_ahead_of_its_numbers_fails_a_mutation_before_it_writes() {
        let server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        server.command(&["XADD", "{kg}:events", "7-0", "mark", "x"]);
        let before = server.contents();
        assert!(matches!(store.commit(event(made.org().id)).await, Err(CommitError::Fault(_))));
        assert_eq!(server.contents(), before);
    }

    #[tokio::test]
    async fn a_mutation_is_executed_although_its_caller_left() {
        let server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        let orgs: Vec<OrgRecord> = (0..20).map(|_| made.org()).collect();
        for org in &orgs {
            let mut commit = store.commit(new_org(org));
            let polled =
                std::future::poll_fn(|context| std::task::Poll::Ready(commit.as_mut().poll(context)));
            drop(polled.await);
        }
        soon("all are there", async || store.orgs(None, 100).await.unwrap().len() == orgs.len()).await;
    }

    #[tokio::test]
    async fn scripts_are_loaded_again_if_redis_lost_them() {
        let server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        let (org, digest) = (made.org(), made.digest());
        let key = made.key(org.id, &[digest]);
        insert(&store, &org, &key).await;
        server.command(&["SCRIPT", "FLUSH"]);
        assert_found(&store, digest, &key, &org).await;
        store.commit(update_key(1, &key)).await.unwrap();
    }
}

mod whose_store_it_is {
    use super::*;

    /// No request gets an answer as from the expected store.
    async fn assert_refuses_everything(
        store: &Shared,
        org: &OrgRecord,
        key: &KeyRecord,
        stranger: Digest,
    ) -> String {
        for digest in [key.secrets[0].digest, stranger] {
            assert_unavailable(&store.lookup(digest).await);
        }
        assert!(store.key(key.id).await.is_err() && store.org(org.id).await.is_err());
        assert!(store.keys(KeysOf::All, None, 1).await.is_err() && store.orgs(None, 1).await.is_err());
        let mutations = [update_key(1, key), revocation(key), event(org.id), new_org(&Maker::new().org())];
        for mutation in mutations {
            assert!(matches!(store.commit(mutation).await, Err(CommitError::Fault(_))));
        }
        assert!(store.import(vec![key.clone()]).await.is_err());
        let (trails, trail) = (store.trails(), Trail::Operator);
        assert!(trails.ends(trail).await.is_err() && trails.entries(trail, None, 1).await.is_err());
        let terms = Terms { own: NOW, retention: Duration::ZERO, pace: Pace::AtOnce };
        assert!(trails.trim(trail, 1, terms).await.is_err() && trails.allowance(trail, NOW).await.is_err());
        assert!(trails.restore(trail, Ends::default(), vec![]).await.is_err());
        let used = Used { key: key.id, usage: Usage::parse("7").unwrap() };
        assert!(
            store.answers().find([1; 32], NOW).await.is_err()
                && store.usage().of(vec![key.id]).await.is_err()
        );
        assert!(
            store.usage().note(vec![used]).await.is_err()
                && store.quotas().admit(vec![quota()], NOW).await.is_err()
        );
        assert!(
            store.outbox().claim(NOW, NOW, 1).await.is_err()
                && store.outbox().delivered(org.id).await.is_err()
        );
        assert_eq!(store.keeper().begin().await, Ok(false));
        store.keeper().status().await.trouble.unwrap()
    }

    #[tokio::test]
    async fn before_there_is_a_store_nothing_is_absent() {
        let server = RedisServer::start();
        let (store, made) = (open(&server), Maker::new());
        let told = assert_unavailable(&store.lookup(made.digest()).await);
        assert!(told.contains("keygate keys create") && told.contains("keygate store accept"), "{told}");
        let refused = store.commit(new_org(&made.org())).await;
        assert!(matches!(refused, Err(CommitError::Fault(_))), "no request makes a store: {refused:?}");
        assert_eq!(server.contents(), []);
        assert_eq!(store.keeper().begin().await, Ok(true));
        assert_eq!(open(&server).keeper().begin().await, Ok(false), "it is there already");
        assert!(matches!(store.lookup(made.digest()).await, Lookup::Absent));
    }

    #[tokio::test]
    async fn an_emptied_redis_knows_no_key_until_the_operator_accepts_it() {
        let mut server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        let (org, digest, stranger) = (made.org(), made.digest(), made.digest());
        let key = made.key(org.id, &[digest]);
        insert(&store, &org, &key).await;
        for restarted in [false, true] {
            if restarted {
                server.revive();
                soon("it is back", async || {
                    !assert_unavailable(&store.lookup(digest).await).contains("refused")
                        && store.keeper().status().await.trouble.unwrap().contains("store accept")
                })
                .await;
            } else {
                server.command(&["FLUSHALL"]);
            }
            let told = assert_refuses_everything(&store, &org, &key, stranger).await;
            assert!(told.contains("keygate store accept"), "{told}");
            assert_eq!(server.contents(), [], "nothing was written by being asked");
            assert!(store.keeper().accept(false).await.unwrap().changed);
            assert!(matches!(store.lookup(digest).await, Lookup::Absent));
            assert_eq!(store.keeper().status().await.trouble, None);
            insert(&store, &org, &key).await;
            assert_found(&store, digest, &key, &org).await;
        }
    }

    #[tokio::test]
    async fn an_acceptance_applies_to_all_gateways_that_knew_the_same_store_and_no_other() {
        let (server, elsewhere) = (RedisServer::start(), RedisServer::start());
        let proxy = Chaos::before(server.address());
        let (first, second, third) = (begun(&server).await, open(&server), open_at(&proxy.url()));
        let (made, heard) = (Maker::new(), Heard::default());
        let stranger = open(&elsewhere);
        assert_eq!(stranger.keeper().begin().await, Ok(true));
        second.subscribe(heard.sink());
        third.subscribe(Heard::default().sink());
        linked(&second).await;
        linked(&third).await;
        // One of the gateways is disconnected when it happens.
        proxy.turn(Weather::Cut);
        server.command(&["FLUSHALL"]);
        soon("it is noticed", async || second.keeper().link_state() != LinkState::Up).await;
        assert!(first.keeper().accept(false).await.unwrap().changed);
        assert!(!first.keeper().accept(false).await.unwrap().changed);
        proxy.turn(Weather::Fair);
        linked(&second).await;
        linked(&third).await;
        for store in [&second, &third] {
            assert!(matches!(store.lookup(made.digest()).await, Lookup::Absent));
        }
        assert_eq!(heard.all(), [Call::Reset(0), Call::Reset(0)], "what was cached belongs to the old store");
    }

    #[tokio::test]
    async fn another_store_in_its_place_is_not_used_until_it_is_accepted() {
        let (server, other) = (RedisServer::start(), RedisServer::start());
        let (store, made) = (begun(&server).await, Maker::new());
        let (org, digest) = (made.org(), made.digest());
        let key = made.key(org.id, &[digest]);
        insert(&store, &org, &key).await;
        // All its data moves to another server, as if its name pointed to another address.
        let theirs = begun(&other).await.keeper().status().await.found.unwrap();
        server.command(&["FLUSHALL"]);
        server.command(&["HSET", "{kg}:meta", "incarnation", &theirs, "schema", "1", "event", "0"]);
        let told = assert_refuses_everything(&store, &org, &key, made.digest()).await;
        assert!(told.contains(&theirs), "{told}");
        let accepted = store.keeper().accept(false).await.unwrap();
        assert_eq!((accepted.store, accepted.changed), (theirs, true));
        assert!(matches!(store.lookup(digest).await, Lookup::Absent));
    }

    #[tokio::test]
    async fn data_without_meta_is_not_an_empty_store() {
        let server = RedisServer::start();
        let made = Maker::new();
        insert_org(&begun(&server).await, &made.org()).await;
        server.command(&["DEL", "{kg}:meta"]);
        let store = open(&server);
        assert_eq!(store.keeper().begin().await, Ok(false));
        assert_unavailable(&store.lookup(made.digest()).await);
    }

    #[tokio::test]
    async fn a_store_of_a_newer_schema_is_refused() {
        let server = RedisServer::start();
        begun(&server).await;
        server.command(&["HSET", "{kg}:meta", "schema", "2"]);
        let store = open(&server);
        let told = assert_unavailable(&store.lookup(Maker::new().digest()).await);
        assert!(told.contains("newer keygate (schema 2"), "{told}");
        assert!(store.keeper().accept(false).await.is_err());
        assert!(store.commit(new_org(&Maker::new().org())).await.is_err());
    }

    #[tokio::test]
    async fn under_another_pepper_a_key_is_unavailable_rather_than_absent() {
        let server = RedisServer::start();
        let sealer = |byte| Sealer::new(Some(Pepper::new(vec![byte; 32]).unwrap()));
        let open = |sealer| -> Shared { Arc::new(open_with(server.settings(), sealer)) };
        let made = Maker::new();
        let (org, digest) = (made.org(), made.digest());
        let key = made.key(org.id, &[digest]);
        let store = open(sealer(1));
        store.keeper().begin().await.unwrap();
        insert(&store, &org, &key).await;
        for other in [sealer(2), Sealer::default()] {
            let store = open(other);
            assert_unavailable(&store.lookup(digest).await);
            assert!(store.key(key.id).await.is_err() && store.org(org.id).await.is_err());
            assert!(
                store.keys(KeysOf::All, None, 1).await.is_err()
                    && store.keys(KeysOf::Org(org.id), None, 1).await.is_err()
            );
            assert!(matches!(store.commit(update_key(1, &key)).await, Err(CommitError::Fault(_))));
        }
        assert_found(&store, digest, &key, &org).await;
    }

    #[tokio::test]
    async fn a_missing_record_of_a_listed_key_is_unavailable_rather_than_absent() {
        let names = |key: &KeyRecord| {
            let digest: String =
                key.secrets[0].digest.as_bytes().iter().map(|b| format!("{b:02x}")).collect();
            [format!("{{kg}}:id:{}", key.id), format!("{{kg}}:org:{}", key.org), format!("{{kg}}:k:{digest}")]
        };
        for harm in 0..5 {
            let server = RedisServer::start();
            let (store, made) = (begun(&server).await, Maker::new());
            let (org, digest) = (made.org(), made.digest());
            let (key, other) = (made.key(org.id, &[digest]), made.key(org.id, &[made.digest()]));
            insert(&store, &org, &key).await;
            store.commit(new_key(&other)).await.unwrap();
            let ([record, org_record, pointer], [other_record, _, other_pointer]) =
                (names(&key), names(&other));
            match harm {
                0 => server.command(&["DEL", &record]),
                1 => server.command(&["DEL", &org_record]),
                2 => server.command(&["COPY", &other_pointer, &pointer, "REPLACE"]),
                3 => server.command(&["COPY", &other_record, &record, "REPLACE"]),
                _ => server.command(&["SET", &pointer, "nonsense"]),
            };
            assert_unavailable(&store.lookup(digest).await);
        }
    }
}

mod events {
    use super::*;

    /// Two processes on one Redis; the connection of the second can be broken.
    async fn two(server: &RedisServer) -> (Shared, Shared, Heard, Chaos) {
        let proxy = Chaos::before(server.address());
        let (first, second, heard) = (begun(server).await, open_at(&proxy.url()), Heard::default());
        second.subscribe(heard.sink());
        linked(&second).await;
        (first, second, heard, proxy)
    }

    fn org() -> OrgId {
        Maker::new().org().id
    }

    #[tokio::test]
    async fn of_one_process_reach_the_other_once_and_in_order() {
        let server = RedisServer::start();
        let (first, second, heard, _proxy) = two(&server).await;
        let org = org();
        for _ in 0..50 {
            tokio::join!(first.commit(event(org)), second.commit(event(org)), first.commit(event(org)))
                .0
                .unwrap();
        }
        soon("all arrived", async || heard.all().len() == 151).await;
        let expected = (1..=150).map(|seq| Call::Apply(seq, vec![Subject::Org(org)]));
        assert!(std::iter::once(Call::Reset(0)).chain(expected).eq(heard.all()));
    }

    #[tokio::test]
    async fn that_were_missed_are_applied_when_the_link_is_back() {
        let server = RedisServer::start();
        let (first, second, heard, proxy) = two(&server).await;
        let org = org();
        proxy.turn(Weather::Cut);
        soon("the link is down", async || second.keeper().link_state() != LinkState::Up).await;
        for _ in 0..3 {
            first.commit(event(org)).await.unwrap();
        }
        assert_eq!(heard.all(), [Call::Reset(0)]);
        proxy.turn(Weather::Fair);
        soon("all arrived", async || heard.all().len() == 4).await;
        let expected = (1..=3).map(|seq| Call::Apply(seq, vec![Subject::Org(org)]));
        assert!(std::iter::once(Call::Reset(0)).chain(expected).eq(heard.all()));
    }

    #[tokio::test]
    async fn that_were_missed_and_are_gone_put_everything_in_doubt() {
        let server = RedisServer::start();
        let (first, second, heard, proxy) = two(&server).await;
        let org = org();
        proxy.turn(Weather::Cut);
        soon("the link is down", async || second.keeper().link_state() != LinkState::Up).await;
        for _ in 0..3 {
            first.commit(event(org)).await.unwrap();
        }
        server.command(&["XTRIM", "{kg}:events", "MAXLEN", "1"]);
        proxy.turn(Weather::Fair);
        soon("it knows of the gap", async || heard.all().last() == Some(&Call::Reset(3))).await;
        first.commit(event(org)).await.unwrap();
        soon("it goes on", async || matches!(heard.all().last(), Some(Call::Apply(4, _)))).await;
    }

    /// As after a fail-over to a replica that had not received the last event: the store goes on from before
    /// it.
    #[tokio::test]
    async fn that_a_store_lost_after_they_were_applied_put_everything_in_doubt() {
        let server = RedisServer::start();
        let (first, second, heard, _proxy) = two(&server).await;
        let own = Heard::default();
        first.subscribe(own.sink());
        linked(&first).await;
        let org = org();
        for _ in 0..3 {
            first.commit(event(org)).await.unwrap();
        }
        soon("all arrived", async || heard.all().len() == 4).await;
        let stream = server.command(&["XRANGE", "{kg}:events", "1-0", "1-0"]);
        let mark = stream.rsplit("\r\n").nth(1).unwrap().to_owned();
        server.command(&["DEL", "{kg}:events"]);
        server.command(&["XADD", "{kg}:events", "1-0", "subjects", "", "mark", &mark]);
        server.command(&["HSET", "{kg}:meta", "event", "1"]);
        for heard in [&heard, &own] {
            soon("it is noticed", async || heard.all().last() == Some(&Call::Reset(1))).await;
        }
        soon("mutations work again", async || first.commit(event(org)).await.is_ok()).await;
        soon("and arrive", async || matches!(heard.all().last(), Some(Call::Apply(2, _)))).await;
        assert!(matches!(second.lookup(Maker::new().digest()).await, Lookup::Absent));
    }

    /// The same, but the store went on: the numbers alone would look right.
    #[tokio::test]
    async fn of_the_same_numbers_that_are_others_put_everything_in_doubt() {
        let server = RedisServer::start();
        let (first, _second, heard, _proxy) = two(&server).await;
        for _ in 0..2 {
            first.commit(event(org())).await.unwrap();
        }
        soon("all arrived", async || heard.all().len() == 3).await;
        server.command(&["DEL", "{kg}:events"]);
        for id in ["1-0", "2-0"] {
            server.command(&["XADD", "{kg}:events", id, "subjects", "", "mark", "another"]);
        }
        soon("it is noticed", async || heard.all().last() == Some(&Call::Reset(2))).await;
    }

    #[tokio::test]
    async fn that_do_not_read_put_everything_in_doubt() {
        let server = RedisServer::start();
        let (_first, _second, heard, _proxy) = two(&server).await;
        server.command(&["HSET", "{kg}:meta", "event", "1"]);
        server.command(&["XADD", "{kg}:events", "1-0", "subjects", "\u{9}what is this", "mark", "m"]);
        soon("it is noticed", async || heard.all().last() == Some(&Call::Reset(1))).await;
    }
}

mod the_way_there {
    use super::*;

    #[tokio::test]
    async fn a_store_opens_while_redis_is_down_and_works_once_it_is_up() {
        let server = RedisServer::start();
        begun(&server).await;
        let proxy = Chaos::before(server.address());
        proxy.turn(Weather::Cut);
        let (store, heard, made) = (open_at(&proxy.url()), Heard::default(), Maker::new());
        store.subscribe(heard.sink());
        assert_unavailable(&store.lookup(made.digest()).await);
        assert!(store.commit(new_org(&made.org())).await.is_err());
        proxy.turn(Weather::Fair);
        linked(&store).await;
        soon("lookups work", async || matches!(store.lookup(made.digest()).await, Lookup::Absent)).await;
        soon("mutations work", async || store.commit(event(made.org().id)).await.is_ok()).await;
    }

    #[tokio::test]
    async fn a_lookup_answers_in_time_and_never_absent_with_any_network_fault() {
        let server = RedisServer::start();
        begun(&server).await;
        for weather in
            [Weather::Cut, Weather::Stalled, Weather::HalfAnswers, Weather::Slow(Duration::from_millis(400))]
        {
            let proxy = Chaos::before(server.address());
            let settings = Settings::new(Address::parse(&proxy.url()).unwrap());
            let (store, digest) = (Arc::new(open_with(settings, Sealer::default())), Maker::new().digest());
            soon("it works", async || matches!(store.lookup(digest).await, Lookup::Absent)).await;
            proxy.turn(weather);
            let mut slowest = Duration::ZERO;
            for n in 0..30 {
                let begun = Instant::now();
                let lookup = store.lookup(digest).await;
                slowest = slowest.max(begun.elapsed());
                // An answer that was already on its way is valid.
                assert!(n == 0 || matches!(lookup, Lookup::Unavailable(_)), "{weather:?}: {lookup:?}");
            }
            println!("{weather:?}: the slowest of 30 lookups took {slowest:?}");
            assert!(slowest < lenient(Duration::from_millis(500)), "{weather:?}: {slowest:?}");
            proxy.turn(Weather::Fair);
            soon("it works again", async || matches!(store.lookup(digest).await, Lookup::Absent)).await;
        }
    }

    #[tokio::test]
    async fn after_several_failed_lookups_redis_is_not_asked_for_a_while() {
        let server = RedisServer::start();
        begun(&server).await;
        let proxy = Chaos::before(server.address());
        let settings = Settings::new(Address::parse(&proxy.url()).unwrap());
        let (store, digest) = (open_with(settings, Sealer::default()), Maker::new().digest());
        proxy.turn(Weather::Stalled);
        for _ in 0..3 {
            assert_eq!(assert_unavailable(&store.lookup(digest).await), StoreFault::TimedOut.to_string());
        }
        let begun = Instant::now();
        for _ in 0..100 {
            assert_unavailable(&store.lookup(digest).await);
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "at 100 ms each: {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_replica_is_refused() {
        let server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        let port = server.address().port().to_string();
        let replica = RedisServer::with(&["--replicaof", "127.0.0.1", &port]);
        let told = assert_unavailable(&open(&replica).lookup(made.digest()).await);
        assert!(told.contains("it is a replica"), "{told}");
        // A server that has just stopped being the master accepts no mutation either; the store looks for the master again.
        server.command(&["REPLICAOF", "127.0.0.1", "1"]);
        assert!(store.commit(new_org(&made.org())).await.is_err());
        let told = store.keys(KeysOf::All, None, 1).await.unwrap_err().to_string();
        assert!(told.contains("it is a replica"), "{told}");
    }

    #[tokio::test]
    async fn a_password_comes_from_a_file_of_its_own_and_is_never_shown() {
        let server = RedisServer::with(&["--requirepass", "hunter2"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let settings = Settings { password_file: Some(file.clone()), ..server.settings() };
        let open = || Redis::open(settings.clone(), Sealer::default(), Handle::current());
        assert!(matches!(open().unwrap_err(), OpenError::Password(SecretFileError::Io { .. })));
        fs::write(&file, "hunter2\n").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        let refused = open().unwrap_err();
        assert!(matches!(refused, OpenError::Password(SecretFileError::Exposed { .. })), "{refused}");
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let store = open().unwrap();
        assert_eq!(store.begin().await, Ok(true));
        assert!(!format!("{store:?} {:?}", store.status().await).contains("hunter2"));
        fs::write(&file, "hunter3").unwrap();
        let wrong = open().unwrap();
        let told = assert_unavailable(&wrong.lookup(Maker::new().digest()).await);
        assert!(!told.contains("hunter") && told.contains("store.password_file"), "{told}");
        let without = open_with(server.settings(), Sealer::default());
        assert_unavailable(&without.lookup(Maker::new().digest()).await);
        fs::write(&file, "two\nlines").unwrap();
        assert!(matches!(open().unwrap_err(), OpenError::NoPassword { .. }));
    }

    #[tokio::test]
    async fn a_user_with_the_documented_rights_is_enough() {
        assert!(include_str!("../../deploy/README.md").contains(RIGHTS));
        everything_works_with(RIGHTS).await;
    }

    #[tokio::test]
    async fn a_user_without_the_right_to_time_is_enough() {
        everything_works_with(RIGHTS.strip_suffix(" +time").unwrap()).await;
    }

    async fn everything_works_with(rights: &str) {
        let server = RedisServer::start();
        let mut command = vec!["ACL", "SETUSER", "gateway", "on", ">hunter2"];
        command.extend(rights.split(' '));
        assert_eq!(server.command(&command), "+OK\r\n");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "hunter2").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let settings =
            Settings { username: Some("gateway".to_owned()), password_file: Some(file), ..server.settings() };
        let (store, heard, made) = (open_with(settings, Sealer::default()), Heard::default(), Maker::new());
        let store: Shared = Arc::new(store);
        assert_eq!(store.keeper().begin().await, Ok(true));
        store.subscribe(heard.sink());
        linked(&store).await;
        let (org, digest) = (made.org(), made.digest());
        let key = made.key(org.id, &[digest]);
        insert(&store, &org, &key).await;
        assert_found(&store, digest, &key, &org).await;
        assert_eq!(store.commit(revocation(&key)).await, Ok(Committed { event: Some(1) }));
        assert_eq!(store.keys(KeysOf::All, None, 10).await.unwrap().len(), 1);
        let everything = with_every_part(&made, &Chain::default(), Trail::Operator, Link::ORIGIN);
        store.commit(everything.clone()).await.unwrap();
        store.import(vec![made.key(org.id, &[made.digest()])]).await.unwrap().remove(0).unwrap();
        let trails = store.trails();
        assert_eq!(trails.entries(Trail::Operator, None, 9).await.unwrap().len(), 1);
        // Without the right to TIME nobody can tell how old a record is.
        let own = Clock::system().own();
        let terms = Terms { own, retention: Duration::ZERO, pace: Pace::AtOnce };
        let (allowance, trimmed) =
            (trails.allowance(Trail::Operator, own).await, trails.trim(Trail::Operator, 1, terms).await);
        if rights.contains("+time") {
            assert!(matches!(allowance, Ok(Allowance::Open { entries: 10, .. })), "{allowance:?}");
            assert_eq!(trimmed, Ok(Trimmed::Removed(0)), "its text does not tell how old it is");
        } else {
            assert_eq!(allowance, Ok(Allowance::Held(Held::Unread)));
            assert_eq!(trimmed, Ok(Trimmed::Held(Held::Unread)));
        }
        let ends = trails.ends(Trail::Operator).await.unwrap();
        trails.restore(Trail::Operator, ends, vec![]).await.unwrap();
        store.usage().note(vec![Used { key: key.id, usage: Usage::parse("7 a").unwrap() }]).await.unwrap();
        assert!(store.usage().of(vec![key.id]).await.unwrap()[0].is_some());
        assert!(store.answers().find(everything.answer.unwrap().index, NOW).await.unwrap().is_some());
        assert_eq!(store.quotas().admit(vec![quota()], NOW).await, Ok(Admission::Admitted));
        let news = store.outbox().claim(NOW, NOW, 9).await.unwrap();
        store.outbox().delivered(news[0].org).await.unwrap();
        server.command(&["FLUSHALL"]);
        assert!(store.keeper().accept(false).await.unwrap().changed);
        linked(&store).await;
    }

    /// Reads and events, and writing to the list of gateways.
    #[tokio::test]
    async fn a_read_only_user_serves_requests_and_changes_nothing() {
        const KEYS: &str = "%R~{kg}:* ~{kg}:gateway*";
        assert!(include_str!("../../deploy/README.md").contains(&format!("`{KEYS}`")));
        let server = RedisServer::start();
        let (all, made) = (begun(&server).await, Maker::new());
        let (org, digest) = (made.org(), made.digest());
        let key = made.key(org.id, &[digest]);
        insert(&all, &org, &key).await;
        let rights = RIGHTS.replace("~{kg}:*", KEYS);
        let mut command = vec!["ACL", "SETUSER", "proxy", "on", ">hunter2"];
        command.extend(rights.split(' '));
        assert_eq!(server.command(&command), "+OK\r\n");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "hunter2").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let settings =
            Settings { username: Some("proxy".to_owned()), password_file: Some(file), ..server.settings() };
        let (proxy, heard) = (Arc::new(open_with(settings, Sealer::default())) as Shared, Heard::default());
        proxy.subscribe(heard.sink());
        linked(&proxy).await;
        assert_found(&proxy, digest, &key, &org).await;
        all.commit(event(org.id)).await.unwrap();
        soon("the event arrives", async || matches!(heard.all().last(), Some(Call::Apply(1, _)))).await;
        let before = server.contents();
        for refused in [new_org(&made.org()), revocation(&key), event(org.id)] {
            let refusal = proxy.commit(refused).await.unwrap_err().to_string();
            assert!(refusal.to_lowercase().contains("no permissions"), "{refusal}");
        }
        assert_eq!(server.contents(), before);
        let may = |command: &[&str]| {
            !server.command(&[&["ACL", "DRYRUN", "proxy"], command].concat()).contains("has no permissions")
        };
        assert!(
            may(&["SET", "{kg}:gateway:one", "7", "PX", "10000"])
                && may(&["SADD", "{kg}:gateways", "one"])
                && may(&["GET", "{kg}:meta"])
        );
        for forbidden in
            [&["SET", "{kg}:meta", "x"][..], &["GET", "other"], &["FLUSHALL"], &["CONFIG", "GET", "x"]]
        {
            assert!(!may(forbidden), "{forbidden:?}");
        }
    }

    #[tokio::test]
    async fn an_idle_connection_that_was_closed_costs_no_mutation() {
        let server = RedisServer::start();
        let (store, made) = (begun(&server).await, Maker::new());
        for _ in 0..3 {
            insert_org(&store, &made.org()).await;
            server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            assert!(matches!(store.lookup(made.digest()).await, Lookup::Absent));
            // Longer than a connection is used without a check. That is a span of the store's own clock, and no state.
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
    }

    #[tokio::test]
    async fn stores_of_two_cells_share_a_redis_and_nothing_else() {
        let server = RedisServer::start();
        let cell =
            |name| Settings { cell: keygate::store::redis::Cell::parse(name).unwrap(), ..server.settings() };
        let stores: Vec<Shared> =
            ["a", "b"].map(|name| Arc::new(open_with(cell(name), Sealer::default())) as Shared).into();
        let made = Maker::new();
        let org = made.org();
        for store in &stores {
            assert_eq!(store.keeper().begin().await, Ok(true));
        }
        insert_org(&stores[0], &org).await;
        assert_eq!(stores[0].org(org.id).await, Ok(Some(Versioned { rev: 1, record: org.clone() })));
        assert_eq!(stores[1].org(org.id).await, Ok(None));
    }
}
