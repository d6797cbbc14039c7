//! Three gateways on a Redis that fails over to a server without the last changes: chosen by sentinels, or in a
//! cluster that loses a node.
//!
//! `KEYGATE_LONG=1 cargo test --test it redis_fail_over -- --nocapture --test-threads 1` runs the long form, with
//! more fail-overs.

#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use keygate::store::Store;
use keygate::store::redis::Redis;
use keygate::vocabulary::key::record::{Sealer, Secret};
use tokio::runtime::Handle;

use crate::harness::cluster::Cluster;
use crate::harness::fail_over::{FailsOver, keep_replicas_out};
use crate::harness::sentinels::Watched;
use crate::harness::{
    Call, Gateway, GatewayBuilder, RedisServer, SetOnDrop, TestKey, Upstream, eventually, guess, is_linked,
    is_long, lenient, operator, status,
};

/// After this time, a key that a fail-over has restored is revoked again in the store.
const WRITTEN_BACK: Duration = Duration::from_secs(5);

/// After this time, lookups of uncached keys work again; on an idle machine within 1 s.
const LOOKED_UP: Duration = Duration::from_secs(3);

struct Trio<R> {
    // First, so that they are dropped before their peers.
    gateways: [Gateway; 3],
    redis: R,
    _upstreams: [Upstream; 2],
}

impl<R: FailsOver> Trio<R> {
    #[track_caller]
    fn start(redis: R) -> Self {
        let upstreams = [Upstream::start("live"), Upstream::start("test")];
        let on = |store: &str| -> GatewayBuilder {
            Gateway::builder().api(&upstreams[0], &upstreams[1]).settings(&format!(
                "[keys]\nack_wait = \"10s\"\n[cache]\nlookup_timeout = \"5s\"\n[store]\nkind = \"redis\"\n\
                 allow_without_pepper = true\nconnect_timeout = \"2s\"\nlookup_timeout = \"2s\"\n\
                 command_timeout = \"2s\"\n{store}"
            ))
        };
        let first = on(&redis.settings()).start();
        let second = on(&redis.settings()).org(first.org).start();
        let third = on(&redis.settings()).org(first.org).start();
        let gateways = [first, second, third];
        for gateway in &gateways {
            eventually("it is linked", || is_linked(gateway));
        }
        Self { gateways, redis, _upstreams: upstreams }
    }
}

fn request(secret: &str) -> Call {
    Call::get("/v1/jobs").key(secret)
}

mod that_loses_the_last_changes {
    use super::*;

    /// The pause between two requests of a client.
    const PACE: Duration = Duration::from_millis(1);

    /// The keys that clients present, and the answers that are allowed.
    struct Presented {
        secret: String,
        kind: Kind,
        /// Whether all gateways have confirmed its revocation.
        over: AtomicBool,
    }

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    enum Kind {
        Known,
        /// Its revocation is one of the lost changes.
        Revoked,
        /// The same for a secret that was rotated away.
        Rotated,
        /// The suspension of its organisation is one of the lost changes.
        Suspended,
        Guessed,
    }

    impl Presented {
        fn new(kind: Kind, secret: &str) -> Self {
            Self { secret: secret.to_owned(), kind, over: AtomicBool::new(false) }
        }

        fn end(&self) {
            self.over.store(true, Ordering::SeqCst);
        }

        /// `was_over`: whether its end was confirmed when the request was sent.
        fn judge(&self, gateway: usize, status: u16, was_over: bool) {
            let is_right = match (self.kind, status) {
                (Kind::Known, status) => status == 200,
                (_, 503) => true,
                (Kind::Guessed, status) => status == 401,
                (Kind::Suspended, status) => status == 403 || status == 200 && !was_over,
                (Kind::Revoked | Kind::Rotated, status) => status == 401 || status == 200 && !was_over,
            };
            assert!(is_right, "{:?} at gateway {gateway}: {status}, over: {was_over}", self.kind);
        }
    }

    /// The keys of one fail-over; their revocations are lost.
    struct Round {
        revoked: Vec<TestKey>,
        rotated: TestKey,
        suspended: TestKey,
        /// Valid keys that the gateways have not cached, one for each gateway.
        cold: [TestKey; 3],
    }

    const REVOKED: usize = 6;
    const KNOWN: usize = 12;

    #[test]
    fn a_fail_over_by_sentinels_restores_no_revoked_key_and_refuses_no_valid_key() {
        no_revoked_key_comes_back_and_no_good_one_is_called_wrong(Watched::start(), 12);
    }

    #[test]
    fn a_fail_over_in_a_cluster_restores_no_revoked_key_and_refuses_no_valid_key() {
        no_revoked_key_comes_back_and_no_good_one_is_called_wrong(Cluster::start(), 24);
    }

    /// The number of fail-overs in the long form.
    fn no_revoked_key_comes_back_and_no_good_one_is_called_wrong(redis: impl FailsOver, times: usize) {
        let fail_overs = if is_long() { times } else { 1 };
        let mut trio = Trio::start(redis);
        let known: Vec<TestKey> = (0..KNOWN).map(|_| trio.gateways[0].live_key()).collect();
        let rounds: Vec<Round> = (0..fail_overs).map(|_| Round::make(&trio.gateways[1])).collect();
        let presented = presented(&known, &rounds);
        let begun = Instant::now();
        let tally = under_load(&mut trio, &presented, |trio| {
            for (number, round) in rounds.iter().enumerate() {
                round.pass(number, trio, &presented);
            }
        });
        println!("{fail_overs} fail-overs in {:.1?}; answers: {tally:?}", begun.elapsed());
        assert!(tally[&(Kind::Known, 200)] > 100 * fail_overs, "the load was none");
        for gateway in &trio.gateways {
            known.iter().for_each(|key| eventually("it works", || status(gateway, key) == 200));
            for round in &rounds {
                assert!(round.revoked.iter().all(|key| status(gateway, key) == 401));
                assert_eq!(status(gateway, &round.rotated), 401);
                assert_eq!(status(gateway, &round.suspended), 403, "no change is lost");
            }
        }
    }

    fn presented(known: &[TestKey], rounds: &[Round]) -> Vec<Presented> {
        let known = known.iter().map(|key| Presented::new(Kind::Known, &key.secret));
        let ended = rounds.iter().flat_map(|round| {
            let revoked = round.revoked.iter().map(|key| Presented::new(Kind::Revoked, &key.secret));
            let rotated = Presented::new(Kind::Rotated, &round.rotated.secret);
            revoked.chain([rotated, Presented::new(Kind::Suspended, &round.suspended.secret)])
        });
        let guessed = (0..4).map(|_| Presented::new(Kind::Guessed, &guess()));
        known.chain(ended).chain(guessed).collect()
    }

    /// Every client presents all keys repeatedly, the known keys between all others.
    fn under_load<R: FailsOver>(
        trio: &mut Trio<R>,
        presented: &[Presented],
        act: impl FnOnce(&mut Trio<R>),
    ) -> BTreeMap<(Kind, u16), usize> {
        let (over, tally) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
        let (known, others): (Vec<&Presented>, Vec<&Presented>) =
            presented.iter().partition(|one| one.kind == Kind::Known);
        thread::scope(|scope| {
            for gateway in 0..3 {
                for presented in [known.clone(), others.clone()] {
                    let (mut wire, over, tally) = (trio.gateways[gateway].connect(), &over, &tally);
                    scope.spawn(move || {
                        for one in presented.iter().cycle() {
                            if over.load(Ordering::Relaxed) {
                                break;
                            }
                            let was_over = one.over.load(Ordering::SeqCst);
                            let status = wire.call(&request(&one.secret)).unwrap().status;
                            one.judge(gateway, status, was_over);
                            *tally.lock().unwrap().entry((one.kind, status)).or_default() += 1;
                            thread::sleep(PACE);
                        }
                    });
                }
            }
            let _end = SetOnDrop(&over);
            act(trio);
        });
        tally.into_inner().unwrap()
    }

    impl Round {
        fn make(gateway: &Gateway) -> Self {
            Self {
                revoked: (0..REVOKED).map(|_| gateway.live_key()).collect(),
                rotated: gateway.live_key(),
                suspended: gateway.key_in_another_org(),
                cold: [(); 3].map(|()| gateway.live_key()),
            }
        }

        fn pass(&self, number: usize, trio: &mut Trio<impl FailsOver>, presented: &[Presented]) {
            let (old, new) = (number % 2, 1 - number % 2);
            trio.redis.settle(old);
            keep_replicas_out(trio.redis.server(old));
            self.end(trio, presented);
            // A suspension can be undone, so gateways do not restore it from memory: a lost one stays lost.
            let suspended = presented.iter().find(|one| one.secret == self.suspended.secret).unwrap();
            suspended.over.store(false, Ordering::SeqCst);
            let killed = Instant::now();
            trio.redis.server_mut(old).kill();
            let announced = trio.redis.announced(new);
            let (written, looked_up) = thread::scope(|scope| {
                let looked_up = self.looked_up(&trio.gateways, announced, scope);
                let written = self.written_back(&trio.gateways[0], trio.redis.server(new), announced);
                (written, looked_up.into_iter().map(|looked_up| looked_up.join().unwrap()).max().unwrap())
            });
            println!(
                "fail-over {number}: announced {:.2?} after the kill, {} revocations written back {written:.2?} after that, keys \
                 that nobody had seen looked up {looked_up:.2?} after it",
                announced - killed,
                REVOKED + 1
            );
            assert!(written < lenient(WRITTEN_BACK), "{written:?}");
            assert!(looked_up < lenient(LOOKED_UP), "{looked_up:?}");
            trio.redis.revived(old);
            trio.redis.demoted(old);
        }

        /// Revokes all keys, at one gateway after another, and records those that all gateways have confirmed.
        fn end(&self, trio: &Trio<impl FailsOver>, presented: &[Presented]) {
            let note = |key: &TestKey| presented.iter().find(|one| one.secret == key.secret).unwrap().end();
            let all = "confirmed=3/3";
            for (n, key) in self.revoked.iter().enumerate() {
                let gateway = &trio.gateways[n % 3];
                let revoked =
                    gateway.block_on(gateway.lifecycle().revoke_key(&operator(), key.id())).unwrap();
                assert!(revoked.propagation.unwrap().to_string().starts_with(all));
                note(key);
            }
            let [a, b, _] = &trio.gateways;
            let rotation = format!("/v1/api_keys/{}/rotate", self.rotated.id());
            let call = Call::post(&rotation, r#"{"overlap_seconds":0}"#).key(&self.rotated.secret);
            let rotated = a.fetch(&call);
            assert_eq!(rotated.status, 200, "{}", rotated.text());
            assert!(rotated.field("keygate-propagation").unwrap().starts_with(all));
            note(&self.rotated);
            let org = self.suspended.record.org;
            let suspended = b.block_on(b.lifecycle().suspend_org(&operator(), org)).unwrap();
            assert!(suspended.propagation.unwrap().to_string().starts_with(all));
            note(&self.suspended);
            for gateway in &trio.gateways {
                assert!(self.revoked.iter().chain([&self.rotated]).all(|key| status(gateway, key) == 401));
                assert_eq!(status(gateway, &self.suspended), 403);
            }
        }

        /// The time from the announcement of the new master until each gateway accepts an uncached key.
        fn looked_up<'s>(
            &'s self,
            gateways: &[Gateway; 3],
            announced: Instant,
            scope: &'s Scope<'s, '_>,
        ) -> Vec<ScopedJoinHandle<'s, Duration>> {
            let looked_up = |(gateway, key): (&Gateway, &'s TestKey)| {
                let mut wire = gateway.connect();
                scope.spawn(move || {
                    eventually("a key is looked up", || {
                        match wire.call(&request(&key.secret)).unwrap().status {
                            200 => true,
                            503 => false,
                            wrong => panic!("{wrong} for a key that is good"),
                        }
                    });
                    announced.elapsed()
                })
            };
            gateways.iter().zip(&self.cold).map(looked_up).collect()
        }

        /// The time from the announcement of the new master until it has all revocations again.
        fn written_back(&self, gateway: &Gateway, master: &RedisServer, announced: Instant) -> Duration {
            let keys: Vec<_> = self.revoked.iter().chain([&self.rotated]).map(|key| &key.record).collect();
            let settings = master.settings();
            gateway.block_on(async move {
                let store = Redis::open(settings, Sealer::default(), Handle::current()).unwrap();
                let until = announced + 4 * WRITTEN_BACK;
                for before in keys {
                    let id = before.id;
                    // Of the rotated key it is the old secret that must end again.
                    let is_over = |secret: &Secret| {
                        secret.ends_at.is_some() && secret.digest == before.secrets[0].digest
                    };
                    loop {
                        let key =
                            store.key(id).await.unwrap().expect("it was there before the fail-over").record;
                        if key.revoked_at.is_some() || key.secrets.iter().any(is_over) {
                            break;
                        }
                        assert!(Instant::now() < until, "{id} is not revoked again");
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
                announced.elapsed()
            })
        }
    }
}
