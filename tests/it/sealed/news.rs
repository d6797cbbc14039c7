//! News of organisations: only those are told, signed, to the upstream that keygate itself has written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keygate::vocabulary::id::OrgId;
use serde_json::Value;

use super::{done, folder, metric, on, upstreams};
use crate::harness::desk::write_secret;
use crate::harness::{Call, Gateway, RedisServer, Reply, Seen, Upstream, eventually};

const NEW_PEPPER: &str = "another pepper, which is at least 32 bytes long";

/// A receiver, and whether it takes news.
fn receiver() -> (Upstream, Arc<AtomicBool>) {
    let takes = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&takes);
    let receiver = Upstream::with(move |_| {
        if told.load(Ordering::SeqCst) {
            Reply::ok("")
        } else {
            Reply::raw("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        }
    });
    (receiver, takes)
}

fn telling(redis: &RedisServer, receiver: &Upstream, org: Option<OrgId>) -> Gateway {
    let folder = folder();
    write_secret(&folder.path().join("outbox-key"), "a key of thirty-two bytes or more");
    let url = receiver.url();
    let builder = on(redis, &upstreams())
        .settings("[signup]\nenabled = true")
        .settings(&format!("[outbox]\nurl = \"{url}/news\"\nkey_file = \"outbox-key\""));
    match org {
        Some(org) => builder.org(org).start_in(folder),
        None => builder.start_in(folder),
    }
}

fn sign_up(gateway: &Gateway, email: &str) -> String {
    let body = format!(r#"{{"name":"Ada","email":"{email}"}}"#);
    let answer = gateway.fetch(&Call::post("/v1/auth/signup", body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["organization_id"].as_str().unwrap().to_owned()
}

fn about<'s>(seen: &'s [Seen], org: &str) -> Vec<&'s Seen> {
    seen.iter().filter(|seen| seen.value("idempotency-key") == org).collect()
}

fn credits(seen: &Seen) -> Value {
    serde_json::from_slice::<Value>(&seen.body).unwrap()["data"]["credits_cents"].clone()
}

/// What the writer of Redis wants the upstream to read.
fn forged(org: &str) -> String {
    format!(r#"{{"type":"org.created","data":{{"organization_id":"{org}","credits_cents":999999}}}}"#)
}

fn write_news(redis: &RedisServer, org: &str, body: &str) {
    redis.command(&["HSET", "{kg}:news", org, body]);
    redis.command(&["ZADD", "{kg}:news:due", "0", org]);
}

#[test]
fn forged_news_are_never_told_by_running_restarted_or_several_gateways_and_their_number_is_shown() {
    let (redis, (receiver, takes)) = (RedisServer::start(), receiver());
    takes.store(true, Ordering::SeqCst);
    let mut first = telling(&redis, &receiver, None);
    let second = telling(&redis, &receiver, Some(first.org));
    let honest = sign_up(&first, "ada@example.com");
    eventually("honest news arrive", || about(&receiver.seen(), &honest).len() == 1);
    eventually("nothing waits", || redis.command(&["EXISTS", "{kg}:news"]) == ":0\r\n");
    // Of an organisation that exists and was told before, and of one that does not exist.
    let invented = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for org in [&*honest, invented] {
        write_news(&redis, org, &forged(org));
    }
    let held = |gateway: &Gateway| metric(gateway, "keygate_outbox_held");
    eventually("both gateways tell of them", || [&first, &second].iter().all(|at| held(at) == Some(2.0)));
    assert_eq!(metric(&first, "keygate_outbox_waiting"), Some(0.0));
    first.restart();
    first.advance(Duration::from_secs(120));
    let later = sign_up(&first, "bob@example.com");
    eventually("later news arrive", || about(&receiver.seen(), &later).len() == 1);
    let seen = receiver.seen();
    assert!(seen.iter().all(|seen| credits(seen) == 250), "{seen:#?}");
    assert_eq!(about(&seen, invented).len(), 0);
    let status = done(first.folder(), &["store", "status"]);
    assert!(status.contains("2 have no proof and are not told"), "{status}");
    // The operator's word: what is told then comes from the sealed record, and of no organisation that is not there.
    let told = done(first.folder(), &["store", "accept", "--yes"]);
    assert!(told.contains("news of 1 organizations were made anew"), "{told}");
    assert!(told.contains("news of 1 organizations that do not exist were removed"), "{told}");
    eventually("they are told", || about(&receiver.seen(), &honest).len() == 2);
    assert!(receiver.seen().iter().all(|seen| credits(seen) == 250));
    eventually("nothing is held", || held(&second) == Some(0.0));
    let events = done(first.folder(), &["audit", "list", "--operator", "--json"]);
    assert!(events.contains("store.accepted") && events.contains("\"news_removed\":1"), "{events}");
}

#[test]
fn news_that_wait_cannot_be_changed_or_moved_to_another_organisation() {
    let (redis, (receiver, takes)) = (RedisServer::start(), receiver());
    let gateway = telling(&redis, &receiver, None);
    let [one, other] = ["ada@example.com", "bob@example.com"].map(|email| sign_up(&gateway, email));
    eventually("both were refused", || {
        [&one, &other].iter().all(|org| !about(&receiver.seen(), org).is_empty())
    });
    redis.command(&["HSET", "{kg}:news", &one, &forged(&one)]);
    // Body and proof of the one, in the place of the other.
    let script = "for _, name in ipairs({'{kg}:news', '{kg}:news:proofs'}) do \
                  redis.call('HSET', name, ARGV[2], redis.call('HGET', name, ARGV[1])) end";
    redis.command(&["EVAL", script, "0", &one, &other]);
    receiver.forget();
    takes.store(true, Ordering::SeqCst);
    gateway.advance(Duration::from_secs(60));
    eventually("both are held", || metric(&gateway, "keygate_outbox_held") == Some(2.0));
    assert_eq!(about(&receiver.seen(), &one).len() + about(&receiver.seen(), &other).len(), 0);
    done(gateway.folder(), &["store", "accept", "--yes"]);
    eventually("both are told", || [&one, &other].iter().all(|org| !about(&receiver.seen(), org).is_empty()));
    assert!(receiver.seen().iter().all(|seen| credits(seen) == 250));
}

/// As a gateway of an older release writes them, beside this one.
#[test]
fn news_of_an_older_gateway_wait_for_the_operator_and_are_not_lost() {
    let (redis, (receiver, takes)) = (RedisServer::start(), receiver());
    let gateway = telling(&redis, &receiver, None);
    let org = sign_up(&gateway, "ada@example.com");
    eventually("they were refused", || !about(&receiver.seen(), &org).is_empty());
    redis.command(&["HDEL", "{kg}:news:proofs", &org]);
    receiver.forget();
    takes.store(true, Ordering::SeqCst);
    gateway.advance(Duration::from_secs(60));
    eventually("they are held", || metric(&gateway, "keygate_outbox_held") == Some(1.0));
    assert_eq!(about(&receiver.seen(), &org).len(), 0);
    done(gateway.folder(), &["store", "accept", "--yes"]);
    eventually("they are told", || about(&receiver.seen(), &org).len() == 1);
    let again = done(gateway.folder(), &["store", "accept", "--yes"]);
    assert!(again.contains("nothing to accept"), "{again}");
}

#[test]
fn news_that_wait_over_a_change_of_the_pepper_are_told() {
    let (redis, (receiver, takes)) = (RedisServer::start(), receiver());
    let mut gateway = telling(&redis, &receiver, None);
    let org = sign_up(&gateway, "ada@example.com");
    let (folder, path) = (gateway.folder().to_owned(), gateway.folder().join("keygate.toml"));
    write_secret(&folder.join("new"), NEW_PEPPER);
    let set = |line: &str| {
        let toml = std::fs::read_to_string(&path).unwrap();
        let old = toml.lines().find(|line| line.starts_with("pepper_file")).unwrap().to_owned();
        std::fs::write(&path, toml.replace(&old, line)).unwrap();
    };
    set("pepper_files = [\"new\", \"pepper\"]");
    gateway.restart();
    let status = || done(&folder, &["store", "status"]);
    eventually("the new pepper is in force", || status().contains("still needed"));
    done(&folder, &["store", "reseal"]);
    set("pepper_files = [\"new\"]");
    gateway.restart();
    takes.store(true, Ordering::SeqCst);
    receiver.forget();
    gateway.advance(Duration::from_secs(60));
    eventually("they are told", || about(&receiver.seen(), &org).len() == 1);
    assert_eq!(metric(&gateway, "keygate_outbox_held"), Some(0.0));
}
