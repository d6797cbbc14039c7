//! Two releases on one store: what each writes, keeps, serves and refuses. The rule is in
//! `keygate::vocabulary::key::record`. In `recorded` what the release before has written; in `stores` two stores of
//! two releases side by side; in `gateways` what clients and operators see.
//!
//! A store that keeps a higher format than this release is the next release; the release itself is then the one before.

mod gateways;
mod recorded;
mod stores;

use std::path::Path;
use std::sync::Arc;

use keygate::store::embedded::{Embedded, Settings};
use keygate::store::redis::Redis;
use keygate::store::{CommitError, StoreFault};
use keygate::vocabulary::key::Pepper;
use keygate::vocabulary::key::record::{Further, KeyRecord, RecordFormat, Sealer};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::harness::RedisServer;
use crate::store_contract::Shared;

/// The format of the next release.
const NEXT: RecordFormat = RecordFormat::new(RecordFormat::CURRENT.number() + 1);

fn pepper() -> Pepper {
    Pepper::new(b"a pepper for nothing but these records".to_vec()).unwrap()
}

fn sealers() -> [Sealer; 2] {
    [Sealer::default(), Sealer::new(Some(pepper()))]
}

fn further(fields: Value) -> Further {
    serde_json::from_value(fields).unwrap()
}

/// Fields of the next release that every release can keep.
fn additions() -> Further {
    further(json!({ "plan": { "name": "free", "windows": [60, 3600] }, "labels": ["ci"], "until": null }))
}

/// The key with such fields, in its newest secret too.
fn extended(key: &KeyRecord) -> KeyRecord {
    let mut key = KeyRecord { further: additions(), ..key.clone() };
    key.secrets[0].further = further(json!({ "hint": "of another release" }));
    key
}

/// The key as only the next release may write it.
fn next(key: &KeyRecord) -> KeyRecord {
    let mut key = extended(key);
    key.further.require(NEXT);
    key
}

fn embedded(folder: &Path, sealer: &Sealer) -> Shared {
    let settings = Settings { path: folder.join("keygate.redb") };
    Arc::new(Embedded::open(&settings, sealer.clone()).unwrap())
}

fn redis(server: &RedisServer, sealer: &Sealer) -> Shared {
    Arc::new(Redis::open(server.settings(), sealer.clone(), Handle::current()).unwrap())
}

/// What the refusal of a change says that a gateway is too old for.
#[track_caller]
fn outdated<T: std::fmt::Debug>(refused: Result<T, CommitError>) -> String {
    match refused.unwrap_err() {
        CommitError::Fault(StoreFault::Outdated(text)) => text.to_string(),
        other => panic!("{other:?}"),
    }
}
