//! Records compared with their trails: what no gateway remembers any more is found there.

use std::time::Duration;

use super::{done, folder, metric, on, upstreams};
use crate::harness::process::keygate;
use crate::harness::{Call, Gateway, RedisServer, TestKey, eventually, is_linked, operator, status};

const OLDER: &str = "keygate_records_older_than_trail";

/// A gateway that forgets what it knew when it ends.
fn forgetful(redis: &RedisServer, org: Option<keygate::vocabulary::id::OrgId>) -> Gateway {
    let builder = on(redis, &upstreams()).settings("memory_file = \"no/such/folder/memory\"");
    let gateway = match org {
        Some(org) => builder.org(org).start_in(folder()),
        None => builder.start_in(folder()),
    };
    eventually("it is linked", || is_linked(&gateway));
    gateway
}

fn patch(gateway: &Gateway, manager: &TestKey, key: &TestKey, body: &str) {
    let call = Call::new("PATCH", &format!("/v1/api_keys/{}", key.id())).key(&manager.secret);
    let call = Call { body: body.into(), ..call }.field("content-type", "application/json");
    let answer = gateway.fetch(&call);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn rotate(gateway: &Gateway, manager: &TestKey, key: &TestKey) {
    let call = Call::post(&format!("/v1/api_keys/{}/rotate", key.id()), "").key(&manager.secret);
    assert_eq!(gateway.fetch(&call).status, 200);
}

/// The exit code and the output of `audit verify`.
fn verify(gateway: &Gateway) -> (Option<i32>, String) {
    let ran = keygate(gateway.folder(), &["audit", "verify"]).output().unwrap();
    (ran.status.code(), String::from_utf8(ran.stdout).unwrap())
}

#[test]
fn a_record_that_is_older_than_its_trail_is_reported_by_the_sweep_and_by_audit_verify() {
    let redis = RedisServer::start();
    let mut gateway = forgetful(&redis, None);
    let manager = gateway.live_key();
    let [revoked, disabled, narrowed, bound, ending, rotated] = [(); 6].map(|()| gateway.live_key());
    let keys = [&revoked, &disabled, &narrowed, &bound, &ending, &rotated];
    let name = |key: &TestKey| format!("{{kg}}:id:{}", key.id());
    for key in keys {
        redis.command(&["COPY", &name(key), &format!("saved:{}", key.id())]);
    }
    gateway.revoke(&revoked);
    gateway.block_on(gateway.lifecycle().disable_key(&operator(), disabled.id())).unwrap();
    patch(&gateway, &manager, &narrowed, r#"{"scopes":["jobs:read"]}"#);
    patch(&gateway, &manager, &bound, r#"{"allowed_addresses":["192.0.2.0/24"]}"#);
    let end = gateway.now().plus(Duration::from_secs(3600)).to_string();
    patch(&gateway, &manager, &ending, &format!(r#"{{"expires_at":"{end}"}}"#));
    rotate(&gateway, &manager, &rotated);
    let (code, told) = verify(&gateway);
    assert_eq!(code, Some(0), "{told}");
    // No gateway runs that remembers.
    for key in keys {
        redis.command(&["COPY", &format!("saved:{}", key.id()), &name(key), "REPLACE"]);
    }
    redis.command(&["DEL", "{kg}:events"]);
    redis.command(&["HSET", "{kg}:meta", "event", "0"]);
    gateway.restart();
    let second = forgetful(&redis, Some(gateway.org));
    for gateway in [&gateway, &second] {
        eventually("all are found", || metric(gateway, OLDER) == Some(6.0));
        let (code, told) = verify(gateway);
        assert_eq!(code, Some(1), "{told}");
        for key in keys {
            assert!(told.contains(&format!("says of {}", key.id())), "{told}");
        }
        assert!(told.contains("status \"revoked\"") && told.contains("6 findings"), "{told}");
    }
    assert_eq!(status(&gateway, &revoked), 200, "nobody remembers: it is only told");
    // As the findings say.
    gateway.revoke(&revoked);
    assert_eq!(status(&gateway, &revoked), 401);
    let (_, told) = verify(&gateway);
    assert!(told.contains("5 findings"), "{told}");
}

#[test]
fn a_suspension_that_no_gateway_remembers_and_a_key_that_is_gone_are_reported() {
    let redis = RedisServer::start();
    let mut gateway = forgetful(&redis, None);
    let [gone, hidden] = [(); 2].map(|()| gateway.live_key());
    let org = format!("{{kg}}:org:{}", gateway.org);
    redis.command(&["COPY", &org, "saved"]);
    gateway.block_on(gateway.lifecycle().suspend_org(&operator(), gateway.org)).unwrap();
    redis.command(&["COPY", "saved", &org, "REPLACE"]);
    redis.command(&["DEL", &format!("{{kg}}:id:{}", gone.id())]);
    for key in [&gone, &hidden] {
        for list in ["{kg}:keys".to_owned(), format!("{org}:keys"), format!("{org}:keys:live")] {
            redis.command(&["ZREM", &list, &key.id().to_string()]);
        }
    }
    gateway.restart();
    eventually("both are found", || metric(&gateway, OLDER) == Some(2.0));
    let (code, told) = verify(&gateway);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("suspended true"), "{told}");
    assert!(told.contains(&format!("is about {}, which is missing", gone.id())), "{told}");
    assert!(!told.contains(&hidden.id().to_string()), "it is there, although no list has it: {told}");
}

#[test]
fn what_is_changed_as_it_may_be_is_no_finding() {
    let redis = RedisServer::start();
    let mut gateway = forgetful(&redis, None);
    let manager = gateway.live_key();
    let key = gateway.live_key();
    let lifecycle = |gateway: &Gateway| {
        let by = operator();
        gateway.block_on(async {
            let lifecycle = gateway.lifecycle();
            lifecycle.disable_key(&by, key.id()).await.unwrap();
            lifecycle.enable_key(&by, key.id()).await.unwrap();
            lifecycle.suspend_org(&by, gateway.org).await.unwrap();
            lifecycle.resume_org(&by, gateway.org).await.unwrap();
            lifecycle.rename_org(&by, gateway.org, "another name").await.unwrap();
        });
    };
    lifecycle(&gateway);
    patch(
        &gateway,
        &manager,
        &key,
        r#"{"scopes":["jobs:read","jobs:write"],"allowed_addresses":["127.0.0.0/8","192.0.2.7"]}"#,
    );
    patch(&gateway, &manager, &key, r#"{"scopes":["jobs:read"],"name":"narrow"}"#);
    for _ in 0..3 {
        rotate(&gateway, &manager, &key);
    }
    let edit = [
        "keys",
        "edit",
        &key.id().to_string(),
        "--expires-in",
        "30d",
        "--scopes",
        "jobs:read,jobs:write",
        "--reason",
        "wanted",
    ];
    done(gateway.folder(), &edit);
    gateway.revoke(&key);
    gateway.revoke(&key);
    let (code, told) = verify(&gateway);
    assert_eq!(code, Some(0), "{told}");
    gateway.restart();
    eventually("all is swept", || metric(&gateway, OLDER) == Some(0.0));
}
