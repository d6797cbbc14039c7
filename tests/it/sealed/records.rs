//! Records: an old one that is put back, with its good seal, gives nobody back what was taken away.

use std::fs;
use std::path::Path;
use std::time::Duration;

use keygate::vocabulary::id::OrgId;

use super::{done, folder, metric, on, upstreams};
use crate::harness::desk::in_redis;
use crate::harness::process::{Process, create_key, keygate};
use crate::harness::{
    Call, Gateway, GatewayBuilder, RedisServer, TestKey, Upstream, eventually, fetch, is_linked, operator,
    status,
};

type Upstreams = (Upstream, Upstream);

fn start(redis: &RedisServer, upstreams: &Upstreams, org: Option<OrgId>) -> Gateway {
    let builder: GatewayBuilder = on(redis, upstreams).settings("[cache]\nnegative_ttl = \"1ms\"");
    let gateway = match org {
        Some(org) => builder.org(org).start_in(folder()),
        None => builder.start_in(folder()),
    };
    eventually("it is linked", || is_linked(&gateway));
    gateway
}

fn key_name(key: &TestKey) -> String {
    format!("{{kg}}:id:{}", key.id())
}

fn org_name(gateway: &Gateway) -> String {
    format!("{{kg}}:org:{}", gateway.org)
}

/// Keeps a record as it is now.
fn save(redis: &RedisServer, name: &str) {
    redis.command(&["COPY", name, &format!("saved:{name}"), "REPLACE"]);
}

/// Puts back the record that was kept. Its seal is good.
fn put_back(redis: &RedisServer, name: &str) {
    assert_eq!(redis.command(&["COPY", &format!("saved:{name}"), name, "REPLACE"]), ":1\r\n");
}

/// Lets everything that is cached grow old.
fn expire(gateway: &Gateway) {
    gateway.advance(Duration::from_secs(61));
}

fn suspend(gateway: &Gateway) {
    gateway.block_on(gateway.lifecycle().suspend_org(&operator(), gateway.org)).unwrap();
}

fn disable(gateway: &Gateway, key: &TestKey) {
    gateway.block_on(gateway.lifecycle().disable_key(&operator(), key.id())).unwrap();
}

fn remembers(gateway: &Gateway, records: f64) {
    eventually("it remembers", || metric(gateway, "keygate_records_remembered") >= Some(records));
}

const SET_BACK: &str = "keygate_records_set_back_total{found_by=\"memory\"}";

#[test]
fn an_old_record_that_is_put_back_undoes_nothing_and_is_written_anew() {
    let (redis, upstreams) = (RedisServer::start(), upstreams());
    let gateway = start(&redis, &upstreams, None);
    let [revoked, disabled, good] = [(); 3].map(|()| gateway.live_key());
    let narrowed = gateway.key_with(&["jobs:read", "keys:manage"]);
    for key in [&revoked, &disabled, &narrowed, &good] {
        save(&redis, &key_name(key));
        assert_eq!(status(&gateway, key), 200);
    }
    gateway.revoke(&revoked);
    disable(&gateway, &disabled);
    let narrow = Call::new("PATCH", &format!("/v1/api_keys/{}", narrowed.id())).key(&good.secret);
    let narrow = Call { body: br#"{"scopes":["keys:manage"]}"#.to_vec(), ..narrow }
        .field("content-type", "application/json");
    assert_eq!(gateway.fetch(&narrow).status, 200);
    let refused = |gateway: &Gateway| [&revoked, &disabled, &narrowed].map(|key| status(gateway, key));
    assert_eq!(refused(&gateway), [401, 401, 403]);
    let revision = |key: &TestKey| {
        let script = "return {string.byte(redis.call('GET', ARGV[1]), 10)}";
        redis.command(&["EVAL", script, "0", &key_name(key)])
    };
    let [before, _] = [revision(&narrowed), revision(&disabled)];
    for key in [&revoked, &disabled, &narrowed] {
        put_back(&redis, &key_name(key));
    }
    assert_ne!(revision(&narrowed), before);
    expire(&gateway);
    assert_eq!(refused(&gateway), [401, 401, 403], "at once, and not when they are written anew");
    assert_eq!(status(&gateway, &good), 200);
    eventually("they are written anew", || metric(&gateway, SET_BACK) >= Some(3.0));
    let record = |key: &TestKey| redis.command(&["GET", &key_name(key)]);
    eventually("also in Redis", || {
        record(&revoked).contains("revoked_at")
            && record(&disabled).contains("disabled_at")
            && !record(&narrowed).contains("jobs:read")
    });
    let events = done(gateway.folder(), &["audit", "list", "--json", "--limit", "500"]);
    let restored =
        events.lines().filter(|line| line.contains("older record than a gateway remembered")).count();
    assert!(restored >= 3, "{events}");
    done(gateway.folder(), &["audit", "verify"]);
    // Nothing is wrong any more, and what an operator gives back is given.
    gateway.block_on(gateway.lifecycle().enable_key(&operator(), disabled.id())).unwrap();
    eventually("it works again", || status(&gateway, &disabled) == 200);
}

#[test]
fn a_suspension_stays_where_the_events_are_deleted_and_the_only_gateway_is_restarted() {
    let (redis, upstreams) = (RedisServer::start(), upstreams());
    let mut gateway = start(&redis, &upstreams, None);
    let [revoked, other] = [(); 2].map(|()| gateway.live_key());
    for name in [key_name(&revoked), org_name(&gateway)] {
        save(&redis, &name);
    }
    assert_eq!(status(&gateway, &other), 200);
    gateway.revoke(&revoked);
    suspend(&gateway);
    assert_eq!((status(&gateway, &revoked), status(&gateway, &other)), (401, 403));
    // While it runs nobody notices, and then it is restarted.
    redis.command(&["DEL", "{kg}:events"]);
    redis.command(&["HSET", "{kg}:meta", "event", "0"]);
    for name in [key_name(&revoked), org_name(&gateway)] {
        put_back(&redis, &name);
    }
    gateway.restart();
    assert_eq!((status(&gateway, &revoked), status(&gateway, &other)), (401, 403));
    eventually("both are written anew", || {
        redis.command(&["GET", &key_name(&revoked)]).contains("revoked_at")
            && redis.command(&["GET", &org_name(&gateway)]).contains("suspended_at")
    });
    gateway.block_on(gateway.lifecycle().resume_org(&operator(), gateway.org)).unwrap();
    eventually("it is resumed", || status(&gateway, &other) == 200);
    assert_eq!(status(&gateway, &revoked), 401);
}

#[test]
fn every_gateway_remembers_what_was_taken_away_at_another() {
    let (redis, upstreams) = (RedisServer::start(), upstreams());
    let first = start(&redis, &upstreams, None);
    let second = start(&redis, &upstreams, Some(first.org));
    let [disabled, good] = [(); 2].map(|()| first.live_key());
    save(&redis, &key_name(&disabled));
    disable(&first, &disabled);
    remembers(&second, 1.0);
    drop(first);
    put_back(&redis, &key_name(&disabled));
    // It was never used here before.
    assert_eq!((status(&second, &disabled), status(&second, &good)), (401, 200));
    eventually("it is written anew", || {
        redis.command(&["GET", &key_name(&disabled)]).contains("disabled_at")
    });
}

#[test]
fn a_change_of_a_record_that_was_put_back_is_made_on_what_is_remembered() {
    let (redis, upstreams) = (RedisServer::start(), upstreams());
    let gateway = start(&redis, &upstreams, None);
    let manager = gateway.live_key();
    suspend(&gateway);
    gateway.block_on(gateway.lifecycle().resume_org(&operator(), gateway.org)).unwrap();
    save(&redis, &org_name(&gateway));
    suspend(&gateway);
    put_back(&redis, &org_name(&gateway));
    let by = operator();
    let renamed = gateway.block_on(gateway.lifecycle().rename_org(&by, gateway.org, "another name"));
    assert!(renamed.unwrap().record.suspended_at.is_some());
    assert_eq!(status(&gateway, &manager), 403);
    // A key whose old record is put back creates no key with the scopes that it had.
    gateway.block_on(gateway.lifecycle().resume_org(&operator(), gateway.org)).unwrap();
    let narrowed = gateway.key_with(&["jobs:read", "keys:manage"]);
    save(&redis, &key_name(&narrowed));
    let json =
        |call: Call, body: &str| Call { body: body.into(), ..call }.field("content-type", "application/json");
    let narrow = Call::new("PATCH", &format!("/v1/api_keys/{}", narrowed.id())).key(&manager.secret);
    assert_eq!(gateway.fetch(&json(narrow, r#"{"scopes":["keys:manage"]}"#)).status, 200);
    put_back(&redis, &key_name(&narrowed));
    expire(&gateway);
    let create = |scope: &str| {
        let call = Call::new("POST", "/v1/api_keys").key(&narrowed.secret);
        gateway.fetch(&json(call, &format!(r#"{{"name":"new","scopes":["{scope}"]}}"#))).status
    };
    // The routes of the API for keys refuse all keys until the gateway has heard of events again.
    eventually("it may create", || create("keys:manage") == 200);
    assert_eq!(create("jobs:read"), 403);
}

/// An event that somebody else wrote into the stream.
fn forge_event(redis: &RedisServer, subjects: &str) {
    let script = "local number = redis.call('HINCRBY', '{kg}:meta', 'event', 1) \
                  local subjects = string.gsub(ARGV[1], '..', function(pair) return string.char(tonumber(pair, 16)) end) \
                  redis.call('XADD', '{kg}:events', number .. '-0', 'subjects', subjects, 'mark', string.rep('a', 32))";
    redis.command(&["EVAL", script, "0", subjects]);
}

#[test]
fn a_forged_event_revokes_no_key() {
    let (redis, upstreams) = (RedisServer::start(), upstreams());
    let mut gateway = start(&redis, &upstreams, None);
    let second = start(&redis, &upstreams, Some(gateway.org));
    let key = gateway.live_key();
    assert_eq!((status(&gateway, &key), status(&second, &key)), (200, 200));
    let digest: String =
        key.record.secrets[0].digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    forge_event(&redis, &format!("03{digest}"));
    for gateway in [&gateway, &second] {
        remembers(gateway, 1.0);
        assert_eq!(status(gateway, &key), 200, "it was looked up again");
        expire(gateway);
        assert_eq!(status(gateway, &key), 200);
    }
    gateway.restart();
    assert_eq!(status(&gateway, &key), 200);
    assert!(!redis.command(&["GET", &key_name(&key)]).contains("revoked_at"));
}

/// Redis itself loses its last changes, as in a fail-over to a replica that lacked them.
#[test]
fn what_a_fail_over_lost_holds_and_is_written_again() {
    let (mut redis, upstreams) = (RedisServer::start(), upstreams());
    let gateway = start(&redis, &upstreams, None);
    let [disabled, good] = [(); 2].map(|()| gateway.live_key());
    let rotated = gateway.live_key();
    redis.command(&["SAVE"]);
    disable(&gateway, &disabled);
    let rotation = Call::post(&format!("/v1/api_keys/{}/rotate", rotated.id()), "").key(&good.secret);
    let answer = gateway.fetch(&rotation);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let fresh = answer.json()["secret"].as_str().or(answer.json()["api_key"].as_str()).unwrap().to_owned();
    redis.revive();
    eventually("it is linked", || is_linked(&gateway));
    expire(&gateway);
    eventually("it is asked again", || status(&gateway, &good) == 200);
    assert_eq!(status(&gateway, &disabled), 401);
    assert_eq!(status(&gateway, &rotated), 200, "the old secret overlaps");
    eventually("it is written again", || {
        redis.command(&["GET", &key_name(&disabled)]).contains("disabled_at")
    });
    let call = Call::get("/v1/jobs").key(&fresh);
    eventually("the new secret works again", || gateway.fetch(&call).status == 200);
}

/// The configuration of a process, and its key.
fn process_folder(redis: &RedisServer, live: &Upstream) -> tempfile::TempDir {
    let folder = folder();
    Gateway::builder()
        .settings("[admin]\nsocket = \"keygate.sock\"\n[ops]\nlisten = \"127.0.0.1:0\"")
        .settings(&in_redis(redis))
        .upstream("api", &live.url(), "http://127.0.0.1:10")
        .write(folder.path());
    folder
}

fn allowed(process: &Process, secret: &str) -> u16 {
    fetch(process.address(), &Call::get("/v1/jobs").key(secret)).status
}

fn only_key(folder: &Path) -> String {
    let listed = done(folder, &["keys", "list", "--json"]);
    let line = listed.lines().next().unwrap();
    serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn the_file_survives_a_crash_and_a_bad_file_is_told_and_stops_no_key() {
    let (redis, live) = (RedisServer::start(), Upstream::start("live"));
    let folder = process_folder(&redis, &live);
    let folder = folder.path();
    let secret = create_key(folder);
    let name = format!("{{kg}}:id:{}", only_key(folder));
    let file = folder.join("keygate.sock.memory");
    save(&redis, &name);
    let process = Process::serve(folder);
    let address = process.address();
    let call = Call::get("/v1/jobs").key(&secret);
    assert_eq!(fetch(address, &call).status, 200);
    done(folder, &["keys", "revoke", &only_key(folder), "--yes"]);
    assert_eq!(fetch(address, &call).status, 401);
    let id = only_key(folder);
    eventually("it is in the file", || fs::read_to_string(&file).is_ok_and(|text| text.contains(&id)));
    process.signal(rustix::process::Signal::KILL);
    drop(process);
    redis.command(&["DEL", "{kg}:events"]);
    put_back(&redis, &name);
    // A file that somebody changed proves nothing: that is told, and the good keys work.
    let good = fs::read(&file).unwrap();
    let other = create_key(folder);
    fs::write(&file, String::from_utf8(good.clone()).unwrap().replace(&id, "key_01ARZ3NDEKTSV4RRFFQ69G5FAV"))
        .unwrap();
    let process = Process::serve(folder);
    let told = process.err_line("keygate.sock.memory: what a gateway remembered");
    assert!(told.contains("it is damaged"), "{told}");
    assert_eq!(allowed(&process, &other), 200);
    process.signal(rustix::process::Signal::KILL);
    drop(process);
    // The file as it was: the key stays revoked.
    fs::write(&file, &good).unwrap();
    let process = Process::serve(folder);
    let address = process.address();
    assert_eq!(fetch(address, &call).status, 401);
    eventually("it is revoked again", || redis.command(&["GET", &name]).contains("revoked_at"));
    assert_eq!(fetch(address, &Call::get("/v1/jobs").key(&other)).status, 200);
}

#[test]
fn an_operator_who_restores_an_older_store_on_purpose_is_obeyed() {
    let (redis, live) = (RedisServer::start(), Upstream::start("live"));
    let folder = process_folder(&redis, &live);
    let folder = folder.path();
    let secret = create_key(folder);
    let call = Call::get("/v1/jobs").key(&secret);
    let id = only_key(folder);
    let name = format!("{{kg}}:id:{id}");
    save(&redis, &name);
    let mut process = Process::serve(folder);
    let address = process.address();
    done(folder, &["keys", "disable", &id]);
    assert_eq!(fetch(address, &call).status, 401);
    process.terminate();
    process.wait();
    assert!(fs::read_to_string(folder.join("keygate.sock.memory")).unwrap().contains(&id));
    put_back(&redis, &name);
    // Somebody else cannot say the operator's word.
    redis.command(&["HSET", "{kg}:meta", "older", &format!("4102444800000 {}", "00".repeat(32))]);
    let mut process = Process::serve(folder);
    let address = process.address();
    assert_eq!(fetch(address, &call).status, 401);
    eventually("it is written anew", || redis.command(&["GET", &name]).contains("disabled_at"));
    process.terminate();
    process.wait();
    put_back(&redis, &name);
    let told = done(folder, &["store", "accept", "--older", "--yes"]);
    assert!(told.contains("does not count any more"), "{told}");
    let process = Process::serve(folder);
    let address = process.address();
    eventually("it counts as it is", || fetch(address, &call).status == 200);
    let status = done(folder, &["store", "status"]);
    assert!(status.contains("the store had an older one 0 times"), "{status}");
    let ran = keygate(folder, &["store", "accept", "--older"]).output().unwrap();
    assert!(!ran.status.success(), "it asks first");
}
