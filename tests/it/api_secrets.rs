//! A secret is shown once, in the answer to its creation. Nothing that keygate stores or prints contains it.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::harness::api::{ApiKey, sign_up};
use crate::harness::process::{Process, keygate};
use crate::harness::{Call, Gateway, RedisServer, Upstream, fetch};

/// The searched texts: the secret, and its random part. Short parts would be found by chance.
fn forms(secret: &str) -> Vec<String> {
    let digits = secret.rsplit('_').next().unwrap();
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    vec![secret.to_owned(), digits[..12].to_owned(), digits[20..32].to_owned(), hex]
}

#[track_caller]
fn assert_clean(what: &str, bytes: &[u8], secrets: &[String]) {
    for (number, form) in secrets.iter().flat_map(|secret| forms(secret)).enumerate() {
        assert!(!has(bytes, &form), "{what} has form {} of secret {}", number % 4, number / 4);
    }
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    found
}

/// A process on these settings; secrets are made, rotated, repeated and used, and then searched for in all that it
/// tells. Gives the secrets, and the id of their key, which must be found.
fn live_and_search(folder: &Path, store: &str) -> (Vec<String>, String) {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let settings = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\nmax_connections = 100\ndrain_delay = \"0s\"\n{store}\n[ops]\nlisten = \"127.0.0.1:0\"\n\
         [log]\nrequests = \"json\"\n[signup]\nenabled = true\n"
    );
    Gateway::builder().settings(&settings).api(&live, &test).write(folder);
    assert!(
        keygate(folder, &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "first"])
            .output()
            .unwrap()
            .status
            .success()
    );
    let process = Process::serve(folder);
    let (address, ops) = (process.address(), process.ops_address());
    let ask = |call: Call| {
        let answer = fetch(address, &call);
        let id = answer.field("x-request-id").unwrap().to_owned();
        (answer, id)
    };
    let (answer, _) = ask(sign_up("ada@example.com"));
    let root = answer.json()["api_key"].as_str().unwrap().to_owned();
    let create = Call::post("/v1/api_keys", json!({ "name": "a key" }).to_string())
        .key(&root)
        .field("idempotency-key", "a-name-of-the-test");
    let made = ApiKey::of(&ask(create.clone()).0);
    assert_eq!(ApiKey::of(&ask(create).0).secret, made.secret);
    let rotate =
        Call::post(&format!("{}/rotate", made.path()), "").key(&root).field("idempotency-key", "another");
    let rotated = ApiKey::of(&ask(rotate.clone()).0);
    assert_eq!(ApiKey::of(&ask(rotate).0).secret, rotated.secret);
    // Whatever is done with a key, and whatever is wrong with it.
    let mut last = String::new();
    for secret in [&root, &made.secret, &rotated.secret] {
        for call in [
            Call::get("/v1/jobs"),
            Call::get("/v1/api_keys/self"),
            Call::get("/v1/nothing"),
            Call::get(&format!("/v1/jobs?key={secret}")),
            Call::get(&format!("/v1/api_keys/{secret}")),
            Call::get(&format!("/v1/api_keys?cursor={secret}")),
            Call::post("/v1/api_keys", json!({ "name": secret, secret: 1 }).to_string()),
            Call::get("/v1/jobs").field("origin", "https://example.com"),
        ] {
            last = ask(call.key(secret)).1;
        }
        ask(Call::get("/v1/jobs").key(&secret[..secret.len() - 1]));
    }
    let metrics = fetch(ops, &Call::get("/metrics"));
    let secrets = vec![root, made.secret.clone(), rotated.secret];
    assert_clean("/metrics", &metrics.body, &secrets);
    let (records, log) = process.end();
    assert!(records.contains(&last), "{records}");
    assert_clean("the records", records.as_bytes(), &secrets);
    assert_clean("the log", log.as_bytes(), &secrets);
    (secrets, made.id)
}

/// Whether the search finds text that is not secret: a stored record is plain JSON.
fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

#[test]
fn no_secret_is_in_the_embedded_store_the_records_or_the_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let (secrets, id) = live_and_search(folder.path(), "");
    let files = files(folder.path());
    assert!(files.iter().any(|(name, bytes)| name.ends_with("keygate.redb") && has(bytes, &id)));
    for (name, bytes) in files {
        assert_clean(&name, &bytes, &secrets);
    }
}

#[test]
fn no_secret_is_in_redis_the_records_or_the_metrics() {
    let redis = RedisServer::with(&["--rdbcompression", "no", "--appendonly", "yes"]);
    let folder = tempfile::tempdir().unwrap();
    let store = format!("[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true", redis.url());
    let (secrets, id) = live_and_search(folder.path(), &store);
    assert!(redis.command(&["SAVE"]).contains("+OK"));
    let dump = redis.folder().join("dump.rdb");
    assert!(has(&fs::read(&dump).unwrap(), &id), "it is not compressed");
    for (name, bytes) in files(redis.folder()).into_iter().chain(files(folder.path())) {
        assert_clean(&name, &bytes, &secrets);
    }
}
