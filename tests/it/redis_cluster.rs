//! Redis Cluster: all data of a cell is in one slot, and the gateway follows the slot to its node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keygate::store::events::Subject;
use keygate::store::finding::Finding;
use keygate::store::indexes::Room;
use keygate::store::keeper::{Keeper, LinkState};
use keygate::store::redis::{Node, Place, Redis, Settings};
use keygate::store::{Change, CommitError, Lookup, Mutation, Role, Store};
use keygate::vocabulary::key::Digest;
use keygate::vocabulary::key::record::{KeyRecord, OrgRecord, Sealer};
use tokio::runtime::Handle;

use crate::harness::cluster::{Cluster, SLOT, id};
use crate::harness::fail_over::{FailsOver, Pair, assert_prompt};
use crate::harness::{PATIENCE, RedisServer, soon, unhurried};
use crate::redis_store::RIGHTS;
use crate::store_contract::{
    Heard, Maker, NOW, Shared, assert_found, insert, new_key, new_org, update_key, update_org,
};

/// The store's slot and its keys while they move, as with `redis-cli --cluster reshard`.
struct Move<'c> {
    from: &'c RedisServer,
    to: &'c RedisServer,
}

impl<'c> Move<'c> {
    fn begin(from: &'c RedisServer, to: &'c RedisServer) -> Self {
        let slot = SLOT.to_string();
        assert_eq!(to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]), "+OK\r\n");
        assert_eq!(from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]), "+OK\r\n");
        Self { from, to }
    }

    /// Some of the keys that have not moved yet.
    fn left(&self, count: usize) -> Vec<String> {
        let keys = self.from.command(&["CLUSTER", "GETKEYSINSLOT", &SLOT.to_string(), &count.to_string()]);
        keys.split("\r\n").filter(|line| line.starts_with('{')).map(str::to_owned).collect()
    }

    fn migrate(&self, keys: &[impl AsRef<str>]) {
        self.send(&["KEYS"], keys);
    }

    /// Also keeps the keys at their old node.
    fn copy(&self, keys: &[impl AsRef<str>]) {
        self.send(&["COPY", "KEYS"], keys);
    }

    fn send(&self, how: &[&str], keys: &[impl AsRef<str>]) {
        let port = self.to.port();
        let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
        let command = [&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "REPLACE"], how, &keys].concat();
        let answer = self.from.command(&command);
        // Some keys may have expired.
        assert!(answer == "+OK\r\n" || answer == "+NOKEY\r\n", "{answer}");
    }

    /// Moves the remaining keys, and tells every node the new owner of the slot.
    fn finish(self) {
        loop {
            let keys = self.left(10);
            if keys.is_empty() {
                break;
            }
            self.migrate(&keys);
        }
        let (slot, id) = (SLOT.to_string(), id(self.to));
        for node in [self.to, self.from] {
            assert_eq!(node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]), "+OK\r\n");
        }
    }
}

async fn linked(store: &dyn Store) {
    soon("the event link is up", async || store.keeper().link_state() == LinkState::Up).await;
}

#[test]
fn a_moving_slot_and_a_killed_owner_make_no_valid_key_invalid() {
    let mut cluster = Cluster::start();
    let slot = cluster.nodes[0].command(&["CLUSTER", "KEYSLOT", "{kg}:meta"]);
    assert_eq!(slot, format!(":{SLOT}\r\n"));
    let pair = Pair::start(&cluster.settings());
    let (took, seen) = pair.under_load(|clients| {
        let (from, to) = (cluster.server(0), &cluster.nodes[1]);
        Move::begin(from, to).finish();
        let moved = Instant::now();
        let took = clients.looked_up_since(moved);
        unhurried("both have followed", || pair.are_at(to.address()));
        took
    });
    println!("slot moved: keys looked up again {took:?} after the move; {seen:?}");
    assert_prompt(took);
    pair.assert_takes_changes();

    cluster.nodes[1].command(&["WAIT", "1", "20000"]);
    let (took, seen) = pair.under_load(|clients| {
        cluster.nodes[1].kill();
        clients.unavailable();
        let replica = cluster.replica_of(1);
        unhurried("its replica has taken over", || {
            replica.command(&["INFO", "replication"]).contains("role:master")
        });
        clients.looked_up_since(Instant::now())
    });
    println!("owner killed: keys looked up again {took:?} after its replica took over; {seen:?}");
    assert_prompt(took);
    pair.assert_takes_changes();
}

#[tokio::test]
async fn no_key_is_called_absent_while_a_slot_moves() {
    let cluster = Cluster::start();
    let store: Shared = Arc::new(cluster.open());
    assert_eq!(store.keeper().begin().await, Ok(true));
    let (heard, made) = (Heard::default(), Maker::new());
    store.subscribe(heard.sink());
    linked(&*store).await;
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    assert_found(&store, digest, &key, &org).await;
    assert!(store.keeper().status().await.place.contains(&cluster.server(0).address().to_string()));
    let moving = Move::begin(cluster.server(0), &cluster.nodes[1]);
    for moved in [&["meta"][..], &["orgs", "keys"]] {
        moving.migrate(&named(moved));
        assert_found(&store, digest, &key, &org).await;
        assert_unavailable(&store, made.digest()).await;
        let refused = store.commit(new_org(&made.org())).await;
        assert!(matches!(refused, Err(CommitError::Fault(_))), "{refused:?}");
    }
    moving.finish();
    assert_found(&store, digest, &key, &org).await;
    assert!(matches!(store.lookup(made.digest()).await, Lookup::Absent));
    linked(&*store).await;
    store.commit(crate::store_contract::event(org.id)).await.unwrap();
    assert_eq!(
        heard.all().last().map(|call| matches!(call, crate::store_contract::Call::Apply(1, _))),
        Some(true)
    );
}

/// In any order of moving the keys, the newest record is found after each of them, and a key that does not exist is not called
/// absent.
#[tokio::test]
async fn a_lookup_combines_keys_from_both_nodes_of_a_moving_slot() {
    let cluster = Cluster::start();
    let store: Shared = Arc::new(cluster.open());
    assert_eq!(store.keeper().begin().await, Ok(true));
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let mut key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    let names = parts(&digest, &key);
    let (mut from, mut to) = (cluster.server(0), &cluster.nodes[1]);
    for (n, order) in orders(names.len()).into_iter().enumerate() {
        let rev = store.key(key.id).await.unwrap().unwrap().rev;
        key.name = format!("round {n}");
        let update = Change::Update { rev, record: key.clone() };
        store.commit(Mutation { key: Some(update), ..Mutation::default() }).await.unwrap();
        let moving = Move::begin(from, to);
        for moved in order {
            moving.migrate(&[&names[moved]]);
            assert_found(&store, digest, &key, &org).await;
            assert_unavailable(&store, made.digest()).await;
        }
        moving.finish();
        cluster.agrees_on(to);
        assert_found(&store, digest, &key, &org).await;
        assert!(matches!(store.lookup(made.digest()).await, Lookup::Absent));
        (from, to) = (to, from);
    }
}

/// Old copies of keys: left after a move, or restored by a fail-over.
#[tokio::test]
async fn the_copy_on_the_node_with_the_stores_state_counts() {
    let cluster = Cluster::start();
    let store: Shared = Arc::new(cluster.open());
    assert_eq!(store.keeper().begin().await, Ok(true));
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let mut key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    store.commit(crate::store_contract::event(org.id)).await.unwrap();
    let [meta, pointer, record, _] = parts(&digest, &key);
    let moving = Move::begin(cluster.server(0), &cluster.nodes[1]);
    moving.copy(&[&record]);
    key.revoked_at = Some(NOW);
    let update = Change::Update { rev: 1, record: key.clone() };
    store.commit(Mutation { key: Some(update), ..Mutation::default() }).await.unwrap();
    moving.migrate(&[pointer]);
    assert_found(&store, digest, &key, &org).await;
    // It would be unclear which copy counts.
    moving.copy(&[&meta]);
    assert_unavailable(&store, digest).await;
    moving.migrate(&[record, meta]);
    assert_found(&store, digest, &key, &org).await;
    moving.finish();
    assert_found(&store, digest, &key, &org).await;
}

/// The lists of an organisation's keys need not exist, or may have moved already.
#[tokio::test]
async fn rights_are_taken_away_while_a_slot_moves_whatever_lists_are_there() {
    let cluster = Cluster::start();
    let store: Shared = Arc::new(cluster.open());
    assert_eq!(store.keeper().begin().await, Ok(true));
    let made = Maker::new();
    let mut tenants = Vec::new();
    for _ in 0..2 {
        let (org, digest) = (made.org(), made.digest());
        let key = made.key(org.id, &[digest]);
        insert(&store, &org, &key).await;
        let child = KeyRecord { created_by: key.id.to_string(), ..made.key(org.id, &[made.digest()]) };
        store.commit(new_key(&child)).await.unwrap();
        tenants.push((org, key, child));
    }
    store.commit(crate::store_contract::event(tenants[0].0.id)).await.unwrap();
    let lists = |n: usize| {
        let (org, key, _) = &tenants[n];
        ["keys:test".to_owned(), "live".to_owned(), format!("made:{}", key.id)]
            .map(|list| format!("{{kg}}:org:{}:{list}", org.id))
    };
    // As a gateway of an older release leaves it.
    let absent = lists(0);
    assert_eq!(cluster.server(0).command(&["DEL", &absent[0], &absent[1], &absent[2]]), ":3\r\n");
    let moving = Move::begin(cluster.server(0), &cluster.nodes[1]);
    moving.migrate(&[&lists(1)[..], &named(&["keys", "orgs"])].concat());
    for (org, key, child) in &tenants {
        for key in [child, key] {
            let record = KeyRecord { revoked_at: Some(NOW), ..key.clone() };
            let subjects = vec![Subject::Revoked(key.secrets[0].digest)];
            store.commit(Mutation { subjects, ..update_key(1, &record) }).await.expect("it is revoked");
        }
        let suspended = OrgRecord { suspended_at: Some(NOW), ..org.clone() };
        let subjects = vec![Subject::Org(org.id)];
        store.commit(Mutation { subjects, ..update_org(1, &suspended) }).await.expect("it is suspended");
    }
    moving.finish();
    for (org, key, child) in &tenants {
        for key in [key, child] {
            let Lookup::Found(found) = store.lookup(key.secrets[0].digest).await else { panic!("{key:?}") };
            assert_eq!((found.key.revoked_at, found.org.suspended_at), (Some(NOW), Some(NOW)));
        }
        // Both were entered into the lists, or taken out of them, when these were needed.
        let room = Room { most: 1, most_of_maker: 1, ..made.room(key.id) };
        let new = made.key(org.id, &[made.digest()]);
        store.commit(Mutation { room: Some(room), ..new_key(&new) }).await.expect("there is room for one");
    }
}

/// The names of the keys that a lookup reads.
fn parts(digest: &Digest, key: &KeyRecord) -> [String; 4] {
    let digest: String = digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    ["meta".to_owned(), format!("k:{digest}"), format!("id:{}", key.id), format!("org:{}", key.org)]
        .map(|name| format!("{{kg}}:{name}"))
}

/// All permutations of this length.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![Vec::new()] };
    let with_last =
        |order: Vec<usize>| (0..=order.len()).map(move |at| [&order[..at], &[last], &order[at..]].concat());
    orders(last).into_iter().flat_map(with_last).collect()
}

fn named(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("{{kg}}:{name}")).collect()
}

async fn assert_unavailable(store: &Shared, digest: Digest) {
    let lookup = store.lookup(digest).await;
    assert!(matches!(lookup, Lookup::Unavailable(_)), "{lookup:?}");
}

#[test]
fn a_slot_that_moves_slowly_under_load_costs_no_known_key_its_lookup() {
    /// The pause between two keys of the slot.
    const PAUSE: Duration = Duration::from_millis(50);
    let cluster = Cluster::start();
    let pair = Pair::start(&cluster.settings());
    let (from, to) = (cluster.server(0), &cluster.nodes[1]);
    let (took, seen) = pair.under_load(|clients| {
        let (begun, moving, mut rng) = (Instant::now(), Move::begin(from, to), fastrand::Rng::new());
        loop {
            let mut left = moving.left(1000);
            if left.is_empty() {
                break;
            }
            moving.migrate(&[left.swap_remove(rng.usize(..left.len()))]);
            std::thread::sleep(PAUSE);
        }
        moving.finish();
        let took = begun.elapsed();
        clients.looked_up_since(Instant::now());
        took
    });
    println!("slot moved in {took:?}, one key after the other: {seen:?}");
    // On a busy machine, some lookups may exceed the shipped time-outs.
    assert!(seen.unavailable * 20 < seen.looked_up, "{seen:?}");
    pair.assert_takes_changes();

    // The other way to move the slot: all keys at once.
    let replica = cluster.replica_of(1);
    let (took, seen) = pair.under_load(|clients| {
        assert_eq!(replica.command(&["CLUSTER", "FAILOVER"]), "+OK\r\n");
        unhurried("both have followed", || pair.are_at(replica.address()));
        clients.looked_up_since(Instant::now())
    });
    println!("slot handed to a replica: looked up {took:?} after; {seen:?}");
    pair.assert_takes_changes();
}

#[tokio::test]
async fn replicas_are_never_used_and_lost_seeds_do_not_matter() {
    let mut cluster = Cluster::start();
    let store = cluster.open();
    assert_eq!(store.begin().await, Ok(true));
    cluster.nodes[1].kill();
    let made = Maker::new();
    assert!(matches!(store.lookup(made.digest()).await, Lookup::Absent));
    let replica = Node::parse(&cluster.replica_of(0).address().to_string()).unwrap();
    let settings = Settings {
        connect_timeout: PATIENCE,
        lookup_timeout: PATIENCE,
        command_timeout: PATIENCE,
        ..Settings::at(Place::Cluster(vec![replica]))
    };
    let through_a_replica = Redis::open(settings, Sealer::default(), Handle::current()).unwrap();
    assert!(matches!(through_a_replica.lookup(made.digest()).await, Lookup::Absent));
    let place = through_a_replica.status().await.place;
    assert!(place.starts_with(&format!("Redis at {}", cluster.server(0).address())), "{place}");
}

#[tokio::test]
async fn a_user_with_the_documented_rights_is_enough() {
    const BESIDES: &str = "+cluster|slots";
    assert!(include_str!("../../deploy/README.md").contains(&format!("`{BESIDES}` besides")));
    let (cluster, folder) = (Cluster::start(), tempfile::tempdir().unwrap());
    let file = folder.path().join("password");
    fs::write(&file, "hunter2").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    for node in &cluster.nodes {
        let mut command = vec!["ACL", "SETUSER", "gateway", "on", ">hunter2", BESIDES];
        command.extend(RIGHTS.split(' '));
        assert_eq!(node.command(&command), "+OK\r\n");
    }
    let settings =
        Settings { username: Some("gateway".to_owned()), password_file: Some(file), ..cluster.patient() };
    let store = Redis::open(settings, Sealer::default(), Handle::current()).unwrap();
    assert_eq!(store.begin().await, Ok(true));
    let findings = store.inspect(Role::Full).await;
    assert!(!findings.iter().any(|finding| matches!(finding, Finding::Broken(_))), "{findings:?}");
    let store: Shared = Arc::new(store);
    store.subscribe(Heard::default().sink());
    linked(&*store).await;
    let made = Maker::new();
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    assert_found(&store, digest, &key, &org).await;
    let moving = Move::begin(cluster.server(0), &cluster.nodes[1]);
    moving.migrate(&["{kg}:meta"]);
    assert_found(&store, digest, &key, &org).await;
    moving.finish();
}

#[tokio::test]
async fn without_a_cluster_the_reason_is_reported() {
    let alone = RedisServer::start();
    let seeds = vec![Node::parse(&alone.address().to_string()).unwrap()];
    let settings = Settings { command_timeout: PATIENCE, ..Settings::at(Place::Cluster(seeds)) };
    let store = Redis::open(settings, Sealer::default(), Handle::current()).unwrap();
    let told = store.begin().await.unwrap_err().to_string();
    assert!(told.contains("cluster support disabled"), "{told}");
}
