//! What the release before wrote, byte for byte, in either store, with and without a pepper.
//!
//! `fixtures/records/format-2` is the recording. To record a new release under a folder of its own, change
//! [`RELEASE`] and run these tests once with `KEYGATE_RECORD=1`. What is random (the store's name, the marks of events)
//! is recorded as zeros.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keygate::store::answers::KeptAnswer;
use keygate::store::events::Subject;
use keygate::store::outbox::News;
use keygate::store::quotas::{Admission, Quota};
use keygate::store::{Change, CommitError, Committed, EmailClaim, KeysOf, Mutation};
use keygate::vocabulary::audit::{Chain, Ends, Link, Trail};
use keygate::vocabulary::key::record::{Email, KeyRecord, OrgRecord, Sealer, Versioned};
use keygate::vocabulary::key::scope::Scope;
use keygate::vocabulary::key::usage::{Usage, Used};
use keygate::vocabulary::key::{Digest, Pepper};
use redb::{Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, Value, WriteTransaction};
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use super::{embedded, extended, pepper, redis as open_redis};
use crate::harness::RedisServer;
use crate::store_contract::{Maker, NOW, Shared, assert_found, update_key};

/// The release that is recorded.
const RELEASE: &str = "format-2";

/// Everything that a store keeps, the same every time.
struct Everything {
    org: OrgRecord,
    /// As it is after its last change.
    key: KeyRecord,
    email: EmailClaim,
    answer: KeptAnswer,
    append: keygate::vocabulary::audit::Append,
    news: News,
    usage: Usage,
    quota: Quota,
}

impl Everything {
    fn new(pepper: Option<&Pepper>) -> Self {
        let made = Maker::new();
        let digest = |byte| Digest::from_bytes([byte; 32]);
        let email = Email::parse("ada@example.com").unwrap();
        let org = OrgRecord { email: Some(email.clone()), pending: true, ..made.org() };
        let mut key = made.key(org.id, &[digest(0x11), digest(0x22)]);
        key.scopes =
            ["jobs:read", "keys:manage"].map(|name| Scope::parse(name).unwrap()).into_iter().collect();
        key.secrets[1].ends_at = Some(NOW.plus(Duration::from_secs(60)));
        key.expires_at = Some(NOW.plus(Duration::from_secs(3600)));
        key.disabled_at = Some(NOW);
        key.allowed_addresses = vec!["192.0.2.0/24".parse().unwrap()];
        key.owner = Some("billing".to_owned());
        key.note = Some("a note\nin two lines".to_owned());
        let ends_at = NOW.plus(Duration::from_secs(3600));
        Self {
            email: EmailClaim { index: email.index(pepper), before: None, org: org.id },
            answer: KeptAnswer { index: [0x33; 32], sealed: vec![0x44; 8], made_at: NOW, ends_at },
            append: Chain::new(pepper.cloned()).extend(Trail::Operator, Link::ORIGIN, b"an entry".to_vec()),
            news: News { org: org.id, due: NOW, body: b"{\"type\":\"org.created\"}".to_vec() },
            usage: Usage::parse("1790000000000 jobs:read").unwrap(),
            quota: Quota { name: "signup".to_owned(), limit: 2, window: Duration::from_secs(60) },
            org,
            key,
        }
    }

    fn subjects(&self) -> Vec<Subject> {
        let digest = self.key.secrets[0].digest;
        vec![Subject::Digest(digest), Subject::Org(self.org.id), Subject::Revoked(self.key.secrets[1].digest)]
    }

    async fn write_to(&self, store: &Shared) {
        let first = KeyRecord { disabled_at: None, ..self.key.clone() };
        let inserted = Mutation {
            org: Some(Change::Insert(self.org.clone())),
            key: Some(Change::Insert(first)),
            email: Some(self.email),
            answer: Some(self.answer.clone()),
            audit: Some(self.append.clone()),
            news: Some(self.news.clone()),
            ..Mutation::default()
        };
        store.commit(inserted).await.unwrap();
        let changed = Mutation { subjects: self.subjects(), ..update_key(1, &self.key) };
        assert_eq!(store.commit(changed).await, Ok(Committed { event: Some(1) }));
        let used = vec![Used { key: self.key.id, usage: self.usage.clone() }];
        store.usage().note(used).await.unwrap();
        assert_eq!(store.quotas().admit(vec![self.quota.clone()], NOW).await, Ok(Admission::Admitted));
    }

    /// Everything is there and goes on.
    async fn is_in(&self, store: &Shared) {
        let Self { org, key, email, answer, append, news, usage, quota } = self;
        assert_found(store, key.secrets[0].digest, key, org).await;
        assert_eq!(
            store.keys(KeysOf::All, None, 9).await,
            Ok(vec![Versioned { rev: 2, record: key.clone() }])
        );
        let of_its_environment = KeysOf::Environment(org.id, key.environment);
        let listed = store.keys(of_its_environment, None, 9).await;
        assert_eq!(
            listed,
            Ok(vec![Versioned { rev: 2, record: key.clone() }]),
            "an index that it lacks is filled"
        );
        assert_eq!(store.orgs(None, 9).await, Ok(vec![Versioned { rev: 1, record: org.clone() }]));
        let claim = Mutation { email: Some(*email), ..Mutation::default() };
        assert_eq!(store.commit(claim).await, Err(CommitError::EmailTaken));
        assert_eq!(store.answers().find(answer.index, NOW).await, Ok(Some(answer.sealed.clone())));
        assert_eq!(store.usage().of(vec![key.id]).await, Ok(vec![Some(usage.clone())]));
        let told = store.outbox().news(vec![org.id]).await;
        if let Err(fault) = told {
            // Without a proof they wait until an operator accepts them.
            assert!(fault.to_string().contains("`keygate store accept`"));
            assert_eq!(store.outbox().claim(NOW, NOW, 9).await, Ok(vec![]));
            assert_eq!(store.outbox().held(None, 9).await, Ok((1, vec![org.id])));
            store.outbox().release(news.clone(), 1).await.unwrap();
        }
        assert_eq!(store.outbox().news(vec![org.id]).await, Ok(vec![Some(news.clone())]));
        let ends = Ends { checkpoint: Link::ORIGIN, head: append.entry.link };
        assert_eq!(store.trails().ends(Trail::Operator).await, Ok(ends));
        assert_eq!(store.trails().entries(Trail::Operator, None, 9).await, Ok(vec![append.entry.clone()]));
        let admitted = async || store.quotas().admit(vec![quota.clone()], NOW).await.unwrap();
        assert_eq!(admitted().await, Admission::Admitted);
        assert!(matches!(admitted().await, Admission::Refused { .. }), "it was counted once before");
        let grown = KeyRecord { name: "renamed".to_owned(), ..extended(key) };
        let change = Mutation { subjects: self.subjects(), ..update_key(2, &grown) };
        assert_eq!(store.commit(change).await, Ok(Committed { event: Some(2) }));
        assert_found(store, key.secrets[1].digest, &grown, org).await;
    }
}

/// The recording of this name, made now if it is asked for.
fn recorded(name: &str, now: &str) -> String {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/it/fixtures/records", RELEASE].iter().collect();
    if std::env::var_os("KEYGATE_RECORD").is_some() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), now).unwrap();
    }
    fs::read_to_string(folder.join(name)).unwrap()
}

fn peppers() -> [(&'static str, Option<Pepper>); 2] {
    [("plain", None), ("pepper", Some(pepper()))]
}

#[tokio::test]
async fn what_the_release_before_wrote_to_a_file_is_opened_and_written_the_same() {
    for (name, pepper) in peppers() {
        let (everything, sealer) = (Everything::new(pepper.as_ref()), Sealer::new(pepper));
        let folder = TempDir::new().unwrap();
        everything.write_to(&embedded(folder.path(), &sealer)).await;
        // The newest time that the store knows came later. The release before leaves the row as it is.
        let is_time = |row: &&str| row.starts_with("meta 74696d65 ");
        let rows = dump_file(folder.path());
        let now: String = rows.split_inclusive('\n').filter(|row| !is_time(row)).collect();
        let before = recorded(&format!("embedded.{name}.txt"), &now);
        assert_eq!(now, before, "nothing in it is new");
        let folder = TempDir::new().unwrap();
        load_file(folder.path(), &before);
        everything.is_in(&embedded(folder.path(), &sealer)).await;
    }
}

#[tokio::test]
async fn what_the_release_before_wrote_to_redis_is_opened_and_written_the_same() {
    for (name, pepper) in peppers() {
        let (everything, sealer) = (Everything::new(pepper.as_ref()), Sealer::new(pepper));
        let server = RedisServer::start();
        let store = open_redis(&server, &sealer);
        assert_eq!(store.keeper().begin().await, Ok(true));
        everything.write_to(&store).await;
        let now = dump_redis(&server).await;
        let before = recorded(&format!("redis.{name}.txt"), &now);
        assert_eq!(now, before, "nothing in it is new");
        let server = RedisServer::start();
        load_redis(&server, &before).await;
        everything.is_in(&open_redis(&server, &sealer)).await;
    }
}

/// Does something with every table of the file.
macro_rules! each_table {
    ($act:ident($($argument:expr),*)) => {
        $act::<&str, &[u8]>("meta", $($argument),*);
        $act::<&[u8; 16], &[u8]>("keys", $($argument),*);
        $act::<&[u8; 32], &[u8; 16]>("digests", $($argument),*);
        $act::<&[u8; 16], &[u8]>("orgs", $($argument),*);
        $act::<(&[u8; 16], &[u8; 16]), ()>("org_keys", $($argument),*);
        $act::<&[u8; 32], &[u8; 16]>("emails", $($argument),*);
        $act::<&[u8; 8], &[u8]>("events", $($argument),*);
        $act::<(&[u8; 16], &[u8; 8]), &[u8]>("audit", $($argument),*);
        $act::<&[u8; 16], &[u8]>("audit_ends", $($argument),*);
        $act::<&[u8; 32], &[u8]>("answers", $($argument),*);
        $act::<(&[u8; 8], &[u8; 32]), ()>("answer_ends", $($argument),*);
        $act::<&[u8; 16], &[u8]>("usage", $($argument),*);
        $act::<&[u8; 16], &[u8]>("news", $($argument),*);
        $act::<(&[u8; 8], &[u8; 16]), ()>("news_due", $($argument),*);
        $act::<&str, &[u8]>("quotas", $($argument),*);
        $act::<(&[u8; 8], &str), ()>("quota_ends", $($argument),*);
    };
}

/// A line for each row: its table, its key and its value.
fn dump_file(folder: &Path) -> String {
    let file = redb::Database::open(folder.join("keygate.redb")).unwrap();
    let (read, mut lines) = (file.begin_read().unwrap(), String::new());
    each_table!(dump_table(&read, &mut lines));
    lines
}

fn dump_table<K: Key + 'static, V: Value + 'static>(name: &str, read: &ReadTransaction, lines: &mut String) {
    let table = read.open_table(TableDefinition::<'_, K, V>::new(name)).unwrap();
    for row in table.iter().unwrap() {
        let (key, value) = row.unwrap();
        let (key, value) = (key.value(), value.value());
        let (key, mut value) = (hex(K::as_bytes(&key).as_ref()), hex(V::as_bytes(&value).as_ref()));
        // An older release does not keep the one; the other is random, and is written where it is missing.
        if key == hex(b"indexed") || key == hex(b"peppers") {
            continue;
        }
        if key == hex(b"incarnation") {
            value = "0".repeat(value.len());
        }
        writeln!(lines, "{name} {key} {value}").unwrap();
    }
}

fn load_file(folder: &Path, lines: &str) {
    let path = folder.join("keygate.redb");
    let file = redb::Database::create(&path).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let write = file.begin_write().unwrap();
    each_table!(load_table(&write, lines));
    write.commit().unwrap();
}

fn load_table<K: Key + 'static, V: Value + 'static>(name: &str, write: &WriteTransaction, lines: &str) {
    let mut table = write.open_table(TableDefinition::<'_, K, V>::new(name)).unwrap();
    for line in lines.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == name {
            let (key, value) = (unhex(words[1]), unhex(words[2]));
            table.insert(K::from_bytes(&key), V::from_bytes(&value)).unwrap();
        }
    }
}

async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn ask<T: redis::FromRedisValue>(connection: &mut MultiplexedConnection, words: &[&str]) -> T {
    redis::cmd(words[0]).arg(&words[1..]).query_async(connection).await.unwrap()
}

/// An entry of a stream: its id and its fields.
type Entry = (String, Vec<(String, Vec<u8>)>);

/// A line for each command that makes it what it is.
async fn dump_redis(server: &RedisServer) -> String {
    let mut redis = connect(server).await;
    let mut names: Vec<String> = ask(&mut redis, &["KEYS", "*"]).await;
    // An older release does not keep these indexes; a newer one fills them where they are missing. Nor has it proofs.
    let newer = [":keys:live", ":keys:test", ":live", ":news:proofs"];
    names.retain(|name| !newer.iter().any(|index| name.ends_with(index)));
    names.sort_unstable();
    let mut lines = String::new();
    let mut line = |command: &str, words: &[&[u8]]| {
        let words: Vec<String> = words.iter().map(|word| hex(word)).collect();
        writeln!(lines, "{command} {}", words.join(" ")).unwrap();
    };
    for name in &names {
        let kind: String = ask(&mut redis, &["TYPE", name]).await;
        let place = name.as_bytes();
        match &*kind {
            "string" => line("SET", &[place, &ask::<Vec<u8>>(&mut redis, &["GET", name]).await]),
            "hash" => {
                let fields: BTreeMap<String, Vec<u8>> = ask(&mut redis, &["HGETALL", name]).await;
                // What it says of its pepper is random, and each release that knows it writes it where it is missing.
                for (field, value) in
                    fields.into_iter().filter(|(field, _)| field != "peppers" && field != "older")
                {
                    let value = if field == "incarnation" { vec![b'0'; value.len()] } else { value };
                    line("HSET", &[place, field.as_bytes(), &value]);
                }
            }
            "zset" => {
                let members: Vec<(String, String)> =
                    ask(&mut redis, &["ZRANGE", name, "0", "-1", "WITHSCORES"]).await;
                for (member, score) in members {
                    line("ZADD", &[place, score.as_bytes(), member.as_bytes()]);
                }
            }
            "stream" => {
                let entries: Vec<Entry> = ask(&mut redis, &["XRANGE", name, "-", "+"]).await;
                for (id, fields) in entries {
                    let mut words = vec![place.to_vec(), id.into_bytes()];
                    for (field, value) in fields.into_iter().filter(|(field, _)| field != "proof") {
                        let is_random = field == "mark" || field == "written";
                        let value = if is_random { vec![b'0'; value.len()] } else { value };
                        words.extend([field.into_bytes(), value]);
                    }
                    line("XADD", &words.iter().map(Vec::as_slice).collect::<Vec<_>>());
                }
            }
            other => panic!("{name} is {other}: record it too"),
        }
    }
    lines
}

async fn load_redis(server: &RedisServer, lines: &str) {
    let mut redis = connect(server).await;
    for line in lines.lines() {
        let mut words = line.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            command.arg(unhex(word));
        });
        let _: redis::Value = command.query_async(&mut redis).await.unwrap();
    }
}

/// In hexadecimal digits; nothing is `-`.
fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if digits.is_empty() { "-".to_owned() } else { digits }
}

fn unhex(digits: &str) -> Vec<u8> {
    let digits = digits.trim_start_matches('-').as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
