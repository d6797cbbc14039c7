//! A gateway of this release in front of records that only the next release may write.

use keygate::lifecycle::Imported;
use keygate::store::keeper::LinkState;
use keygate::vocabulary::id::OrgId;
use keygate::vocabulary::key::record::{KeyRecord, RecordFormat, Sealer};
use keygate::vocabulary::key::scope::Scope;
use keygate::vocabulary::key::{Digester, Environment, KeyFormat, Prefix};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::stores::lower_format_of;
use super::{NEXT, additions, embedded, extended, next, redis};
use crate::harness::process::keygate;
use crate::harness::{Call, Gateway, GatewayBuilder, RedisServer, Upstream, eventually, fetch, operator};
use crate::store_contract::{Maker, Shared, insert, new_key};

/// An organisation with keys that the next release has made, and their secrets.
struct Made {
    org: OrgId,
    /// A key like those of this release.
    admin: String,
    /// With unknown fields that every release can keep.
    extended: (KeyRecord, String),
    /// Only for those that know the format.
    next: (KeyRecord, String),
}

impl Made {
    async fn by(store: &Shared) -> Self {
        let made = Maker::new();
        let org = made.org();
        let key = || {
            let secret = KeyFormat::new(&Prefix::default(), false).mint(Environment::Live).unwrap();
            let scopes = ["jobs:read", "keys:manage"].map(|name| Scope::parse(name).unwrap());
            let digest = Digester::default().digest(&secret.presented());
            let key = made.key(org.id, &[digest]);
            let key =
                KeyRecord { environment: Environment::Live, scopes: scopes.into_iter().collect(), ..key };
            (key, secret.expose().to_owned())
        };
        let [(admin, secret), (one, one_secret), (other, other_secret)] = [key(), key(), key()];
        let (one, other) = (extended(&one), next(&other));
        insert(store, &org, &admin).await;
        store.commit(new_key(&one)).await.unwrap();
        store.commit(new_key(&other)).await.unwrap();
        Self { org: org.id, admin: secret, extended: (one, one_secret), next: (other, other_secret) }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn builder(org: OrgId) -> GatewayBuilder {
    Gateway::builder().api(&Upstream::start("live"), &Upstream::start("test")).org(org)
}

fn on(server: &RedisServer, org: OrgId) -> GatewayBuilder {
    builder(org).settings(&format!(
        "[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\nconnect_timeout = \"10s\"\n\
         command_timeout = \"10s\"\n[ops]\nlisten = \"127.0.0.1:0\"\n[admin]\nsocket = \"admin.sock\"",
        server.url()
    ))
}

/// What a call with this key and this body is answered with.
fn asked(gateway: &Gateway, key: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
    let mut call = Call::new(method, path).key(key);
    if let Some(body) = body {
        call = Call { body: body.to_string().into_bytes(), ..call.field("content-type", "application/json") };
    }
    let answer = gateway.fetch(&call);
    (answer.status, answer.text())
}

fn serves(gateway: &Gateway, key: &str) -> u16 {
    asked(gateway, key, "GET", "/v1/jobs", None).0
}

/// What a gateway of the release before does, in a store that it may join.
fn serves_everything_and_writes_what_it_can_keep(gateway: &Gateway, made: &Made) {
    let path = |key: &KeyRecord| format!("/v1/api_keys/{}", key.id);
    let ask = |method, key: &KeyRecord, body| asked(gateway, &made.admin, method, &path(key), body);
    let ((one, one_secret), (other, other_secret)) = (&made.extended, &made.next);
    for secret in [&made.admin, one_secret, other_secret] {
        assert_eq!(serves(gateway, secret), 200);
    }
    let renamed = json!({ "name": "renamed" });
    for (method, body) in [("PATCH", Some(&renamed)), ("DELETE", None)] {
        let (status, text) = ask(method, other, body);
        assert!(status == 503 && text.contains("\"type\""), "{method}: {status} {text}");
    }
    assert_eq!(serves(gateway, other_secret), 200);

    let (status, text) = ask("GET", one, None);
    assert!(status == 200 && !text.contains("plan") && !text.contains("hint"), "{text}");
    assert_eq!(ask("PATCH", one, Some(&renamed)).0, 200);
    let rotated = asked(gateway, &made.admin, "POST", &format!("{}/rotate", path(one)), Some(&json!({})));
    assert_eq!(rotated.0, 200, "{}", rotated.1);
    assert_eq!(serves(gateway, one_secret), 200, "while the rotation overlaps");
    assert_eq!(ask("DELETE", one, None).0, 204);
    assert_eq!(serves(gateway, one_secret), 401);
}

/// What is in the store afterwards, as the next release sees it.
async fn has_lost_nothing(store: &Shared, made: &Made) {
    let (one, other) = (&made.extended.0, &made.next.0);
    let kept = store.key(one.id).await.unwrap().unwrap().record;
    assert_eq!((kept.name.as_str(), kept.revoked_at.is_some()), ("renamed", true));
    assert_eq!(kept.further, additions());
    let old = kept.secrets.iter().find(|secret| secret.digest == one.secrets[0].digest).unwrap();
    assert_eq!(old.further, one.secrets[0].further);
    assert_eq!(store.key(other.id).await.unwrap().unwrap().record, *other);
}

#[test]
fn a_gateway_keeps_what_the_next_release_wrote_to_its_file() {
    let (folder, runtime) = (TempDir::new().unwrap(), runtime());
    let newer = Sealer::default().keeping(NEXT);
    let made = runtime.block_on(async { Made::by(&embedded(folder.path(), &newer)).await });
    let output = keygate_at(&folder, made.org, &["check", "--online"]);
    assert!(
        output.contains(&format!("holds records of format {NEXT}")) && output.contains("run the version"),
        "{output}"
    );
    lower_format_of(&folder);
    let gateway = builder(made.org).start_in(folder);
    serves_everything_and_writes_what_it_can_keep(&gateway, &made);
    // Under another name it outlives the gateway's folder.
    let kept = TempDir::new().unwrap();
    std::fs::hard_link(gateway.folder().join("keygate.redb"), kept.path().join("keygate.redb")).unwrap();
    drop(gateway);
    runtime.block_on(async { has_lost_nothing(&embedded(kept.path(), &newer), &made).await });
}

/// What a command says where a gateway would run in this folder; it fails.
#[track_caller]
fn keygate_at(folder: &TempDir, org: OrgId, arguments: &[&str]) -> String {
    builder(org).write(folder.path());
    let output = keygate(folder.path(), arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn unknown_fields_are_exported_and_imported() {
    let (folder, runtime) = (TempDir::new().unwrap(), runtime());
    let newer = Sealer::default().keeping(NEXT);
    let made = runtime.block_on(async { Made::by(&embedded(folder.path(), &newer)).await });
    lower_format_of(&folder);
    let source = builder(made.org).start_in(folder);
    let exported = source.block_on(source.lifecycle().export_keys(&operator(), None, None, 9)).unwrap().0;
    let one = exported.into_iter().find(|line| line.id == Some(made.extended.0.id)).unwrap();
    let line = serde_json::to_value(&one).unwrap();
    assert_eq!(
        line["further"],
        json!({ "labels": ["ci"], "plan": { "name": "free", "windows": [60, 3600] }, "until": null })
    );
    assert_eq!(line["secret_further"], json!({ "hint": "of another release" }));

    let target = Gateway::in_front_of(&Upstream::start("live"), &Upstream::start("test"));
    let import = |change: &dyn Fn(&mut Value)| {
        let mut line = line.clone();
        line["organization_id"] = json!(target.org);
        change(&mut line);
        let keys = vec![serde_json::from_value(line).unwrap()];
        target.block_on(target.lifecycle().import_keys(&operator(), keys, false)).unwrap().remove(0).outcome
    };
    for known in [json!({ "expires_at": 1 }), json!({ "scopes": [] })] {
        let outcome = import(&|line| line["further"] = known.clone());
        assert!(
            matches!(&outcome, Imported::Refused { reason } if reason.contains("further")),
            "{outcome:?}"
        );
    }
    assert_eq!(import(&|_| {}), Imported::New);
    assert_eq!(import(&|_| {}), Imported::Present);
    let there = target.block_on(target.lifecycle().key(&operator(), made.extended.0.id)).unwrap();
    assert_eq!(
        (there.further, &there.secrets[0].further),
        (additions(), &made.extended.0.secrets[0].further)
    );
    let outcome = import(&|line| line["further"] = json!({ "plan": "another" }));
    assert!(matches!(&outcome, Imported::Refused { reason } if reason.contains("differs in: further")));
}

#[test]
fn a_gateway_keeps_what_the_next_release_wrote_to_redis_and_writes_nothing_once_it_is_outgrown() {
    let (server, runtime) = (RedisServer::start(), runtime());
    let store = {
        let _entered = runtime.enter();
        redis(&server, &Sealer::default().keeping(NEXT))
    };
    let made = runtime.block_on(async {
        store.keeper().begin().await.unwrap();
        Made::by(&store).await
    });
    server.command(&["HSET", "{kg}:meta", "format", &RecordFormat::CURRENT.to_string()]);
    let gateway = on(&server, made.org).start();
    let linked = |gateway: &Gateway| gateway.lifecycle().keeper().link_state() == LinkState::Up;
    eventually("it is linked", || linked(&gateway));
    serves_everything_and_writes_what_it_can_keep(&gateway, &made);
    runtime.block_on(has_lost_nothing(&store, &made));

    server.command(&["HSET", "{kg}:meta", "format", &NEXT.to_string()]);
    for secret in [&made.admin, &made.next.1] {
        assert_eq!(serves(&gateway, secret), 200);
    }
    let new = json!({ "name": "new", "environment": "live", "scopes": ["jobs:read"] });
    assert_eq!(asked(&gateway, &made.admin, "POST", "/v1/api_keys", Some(&new)).0, 503);
    let text = said(&gateway, &["store", "status"], 1);
    for wanted in ["6 (this gateway keeps formats up to 5)", "keeps format 5", "it makes no changes"] {
        assert!(text.contains(wanted), "{wanted:?} in {text}");
    }

    // One that starts now does not join.
    let late = on(&server, made.org).start();
    assert_eq!(serves(&late, &made.admin), 503);
    assert_eq!(fetch(late.ops_address(), &Call::get("/readyz")).status, 503);
    assert!(!linked(&late));
    for (command, wanted) in [
        (["check", "--online"], "run the version that wrote them, or a newer one"),
        (["store", "status"], "run the version that wrote them, or a newer one"),
    ] {
        let text = said(&late, &command, 1);
        assert!(text.contains(wanted), "{text}");
    }
}

/// What a command says where this gateway runs.
#[track_caller]
fn said(gateway: &Gateway, arguments: &[&str], code: i32) -> String {
    let output = keygate(gateway.folder(), arguments).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}
