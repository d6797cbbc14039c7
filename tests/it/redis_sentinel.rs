//! Redis with sentinels: the gateway follows the master, and uses no other server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use keygate::store::keeper::{Keeper, LinkState};
use keygate::store::redis::{Node, Place, Redis, Sentinels, Settings};
use keygate::store::{Lookup, Store};
use keygate::vocabulary::key::record::Sealer;
use rustix::process::Signal;
use tokio::runtime::Handle;

use crate::harness::fail_over::{FailsOver, Pair, assert_prompt, keep_replicas_out};
use crate::harness::sentinels::{Watched, sentinel};
use crate::harness::{PATIENCE, RedisServer, unhurried};
use crate::store_contract::{Heard, Maker, insert};

fn place(sentinels: &[&RedisServer]) -> Sentinels {
    let nodes = sentinels.iter().map(|sentinel| Node::parse(&sentinel.address().to_string()).unwrap());
    Sentinels { nodes: nodes.collect(), master: "mymaster".to_owned(), username: None, password_file: None }
}

fn open(sentinels: Sentinels) -> Redis {
    let settings = Settings {
        connect_timeout: PATIENCE,
        lookup_timeout: PATIENCE,
        command_timeout: PATIENCE,
        ..Settings::at(Place::Sentinel(sentinels))
    };
    Redis::open(settings, Sealer::default(), Handle::current()).unwrap()
}

async fn soon(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "it never came to pass that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

mod fail_over {
    use super::*;

    #[test]
    fn a_killed_master_is_replaced_by_its_replica_and_no_valid_key_is_refused() {
        let mut watched = Watched::start();
        let pair = Pair::start(&watched.settings());
        watched.settle(0);
        let (took, seen) = pair.under_load(|clients| {
            watched.servers[0].kill();
            clients.unavailable();
            let announced = watched.announced(1);
            let took = clients.looked_up_since(announced);
            // The old master restarts empty, and is a master until the sentinels change it.
            watched.revived(0);
            // The gateway must not use it as the master until then.
            watched.demoted(0);
            took
        });
        println!("master killed: keys looked up again {took:?} after the new one was announced; {seen:?}");
        assert_prompt(took);
        pair.assert_takes_changes();
    }

    #[test]
    fn a_hanging_master_is_replaced_by_its_replica() {
        let watched = Watched::start();
        let pair = Pair::start(&watched.settings());
        watched.settle(0);
        let (took, seen) = pair.under_load(|clients| {
            watched.servers[0].signal(Signal::STOP);
            clients.unavailable();
            let announced = watched.announced(1);
            let took = clients.looked_up_since(announced);
            // It continues as the master that it was, with its old connections.
            watched.servers[0].signal(Signal::CONT);
            watched.demoted(0);
            took
        });
        println!("master stopped: keys looked up again {took:?} after the new one was announced; {seen:?}");
        assert_prompt(took);
        pair.assert_takes_changes();
    }

    #[test]
    fn a_master_that_becomes_a_replica_is_left_at_once() {
        let watched = Watched::start();
        let pair = Pair::start(&watched.settings());
        watched.settle(0);
        let (took, seen) = pair.under_load(|_| {
            let answer = watched.sentinels[0].command(&["SENTINEL", "FAILOVER", "mymaster"]);
            assert!(answer.contains("+OK"), "{answer}");
            let announced = watched.announced(1);
            // A server that becomes a replica closes no connection, and continues to answer with old data.
            unhurried("both have left", || pair.are_at(watched.servers[1].address()));
            let left = announced.elapsed();
            unhurried("nobody looks up there any more", || !is_asked(&watched.servers[0]));
            left
        });
        println!("master asked to step down: left {took:?} after the new one was announced; {seen:?}");
        assert_prompt(took);
        pair.assert_takes_changes();
    }
}

/// Whether a lookup reached this server within the last second.
fn is_asked(server: &RedisServer) -> bool {
    let clients = server.command(&["CLIENT", "LIST", "TYPE", "NORMAL"]);
    clients.lines().any(|client| client.contains(" idle=0 ") && client.contains(" cmd=evalsha_ro "))
}

mod whose_word_counts {
    use super::*;

    /// The sentinels have another master; the old one does not know it and closes no connection.
    #[tokio::test]
    async fn an_old_master_that_stays_a_master_is_left_when_the_sentinels_name_another() {
        let servers = [RedisServer::start(), RedisServer::start()];
        let sentinel = sentinel(&servers[0], "");
        let (store, heard, made) = (open(place(&[&sentinel])), Heard::default(), Maker::new());
        assert_eq!(store.begin().await, Ok(true));
        store.subscribe(heard.sink());
        soon("the event link is up", async || store.link_state() == LinkState::Up).await;
        assert!(matches!(store.lookup(made.digest()).await, Lookup::Absent));
        sentinel.command(&["SENTINEL", "REMOVE", "mymaster"]);
        sentinel.command(&["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", &servers[1].port(), "1"]);
        // The other server is empty, so that an answer shows which server was asked.
        soon("the other one is asked", async || match store.lookup(made.digest()).await {
            Lookup::Absent => false,
            Lookup::Unavailable(fault) => fault.to_string().contains("the store is gone"),
            Lookup::Found(_) => panic!("there is no such key"),
        })
        .await;
        assert!(store.status().await.place.contains(&servers[1].address().to_string()));
    }

    #[tokio::test]
    async fn wrong_dead_and_silent_sentinels_do_not_hide_the_master() {
        let (master, dead, silent) = (RedisServer::start(), RedisServer::start(), RedisServer::start());
        let replica = RedisServer::with(&["--replicaof", "127.0.0.1", &master.port()]);
        let honest = sentinel(&master, "");
        let [naming_a_replica, naming_the_dead] = [&replica, &dead].map(|server| sentinel(server, ""));
        let gone = RedisServer::start();
        let unreachable = gone.address();
        drop(gone);
        drop(dead);
        silent.signal(Signal::STOP);
        let sentinels = place(&[&naming_the_dead, &naming_a_replica, &silent, &honest]);
        let nodes = [vec![Node::parse(&unreachable.to_string()).unwrap()], sentinels.nodes].concat();
        let settings = Settings {
            lookup_timeout: PATIENCE,
            connect_timeout: Duration::from_secs(4),
            command_timeout: PATIENCE,
            ..Settings::at(Place::Sentinel(Sentinels { nodes, ..place(&[]) }))
        };
        let store = Redis::open(settings, Sealer::default(), Handle::current()).unwrap();
        assert_eq!(store.begin().await, Ok(true));
        let status = store.status().await;
        assert!(
            status.trouble.is_none() && status.place.contains(&master.address().to_string()),
            "{status:?}"
        );
        silent.signal(Signal::CONT);
    }

    #[tokio::test]
    async fn without_a_master_the_reason_is_reported() {
        let master = RedisServer::start();
        let sentinel = sentinel(&master, "");
        let store = open(Sentinels { master: "other".to_owned(), ..place(&[&sentinel]) });
        let told = store.begin().await.unwrap_err().to_string();
        assert!(told.contains("no master `other`: check store.master_name"), "{told}");
        let settings = place(&[&sentinel]);
        drop(sentinel);
        let told = open(settings).begin().await.unwrap_err().to_string();
        assert!(told.contains("no sentinel names a master") && told.contains("refused"), "{told}");
    }

    #[tokio::test]
    async fn sentinels_have_a_password_of_their_own() {
        let (master, folder) =
            (RedisServer::with(&["--requirepass", "hunter2"]), tempfile::tempdir().unwrap());
        let file = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
            Some(file)
        };
        let sentinel = sentinel(&master, "sentinel auth-pass mymaster hunter2\nrequirepass hunter3");
        let open = |of_sentinels: &str| {
            let password_file = file("sentinels", of_sentinels);
            let settings = Settings {
                password_file: file("redis", "hunter2"),
                connect_timeout: PATIENCE,
                command_timeout: PATIENCE,
                ..Settings::at(Place::Sentinel(Sentinels { password_file, ..place(&[&sentinel]) }))
            };
            Redis::open(settings, Sealer::default(), Handle::current()).unwrap()
        };
        assert_eq!(open("hunter3").begin().await, Ok(true));
        let told = open("hunter2").begin().await.unwrap_err().to_string();
        assert!(told.contains("store.sentinel_password_file") && !told.contains("hunter"), "{told}");
    }

    #[tokio::test]
    async fn a_user_with_the_documented_rights_can_ask_the_sentinels() {
        const RIGHTS: &str = "+@connection +sentinel|master";
        assert!(include_str!("../../deploy/README.md").contains(&format!("`{RIGHTS}`")));
        let (master, folder) = (RedisServer::start(), tempfile::tempdir().unwrap());
        let file = folder.path().join("password");
        fs::write(&file, "hunter3").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let sentinel = sentinel(&master, "");
        let mut command = vec!["ACL", "SETUSER", "gateway", "on", ">hunter3"];
        command.extend(RIGHTS.split(' '));
        assert_eq!(sentinel.command(&command), "+OK\r\n");
        let who = (Some("gateway".to_owned()), Some(file));
        let store = open(Sentinels { username: who.0, password_file: who.1, ..place(&[&sentinel]) });
        assert_eq!(store.begin().await, Ok(true));
    }

    #[tokio::test]
    async fn a_fail_over_that_lost_events_is_noticed() {
        let mut watched = Watched::start();
        let sentinels: Vec<&RedisServer> = watched.sentinels.iter().collect();
        let (store, heard, made) = (open(place(&sentinels)), Heard::default(), Maker::new());
        assert_eq!(store.begin().await, Ok(true));
        let org = made.org();
        let key = made.key(org.id, &[made.digest()]);
        let store: crate::store_contract::Shared = std::sync::Arc::new(store);
        insert(&store, &org, &key).await;
        store.subscribe(heard.sink());
        soon("the event link is up", async || store.keeper().link_state() == LinkState::Up).await;
        store.commit(crate::store_contract::event(org.id)).await.unwrap();
        watched.settle(0);
        // The link to the replica is cut, so it does not get the following changes.
        keep_replicas_out(&watched.servers[0]);
        store.commit(crate::store_contract::event(org.id)).await.unwrap();
        watched.servers[0].kill();
        soon("everything is to be looked up again", async || {
            heard.all().last() == Some(&crate::store_contract::Call::Reset(1))
        })
        .await;
    }
}
