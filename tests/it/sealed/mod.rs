//! Somebody can write to Redis and has no pepper. What such a writer forges, moves, or puts back is not acted upon.

mod news;
mod records;
mod trails;

use std::path::Path;

use tempfile::TempDir;

use crate::harness::desk::{in_redis, write_secret};
use crate::harness::metrics::{scrape, value};
use crate::harness::process::keygate;
use crate::harness::{Gateway, GatewayBuilder, RedisServer, Upstream};

const PEPPER: &str = "the pepper, which is at least 32 bytes long";

/// A folder with the pepper.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    write_secret(&folder.path().join("pepper"), PEPPER);
    folder
}

/// A gateway at this Redis with a pepper.
fn on(redis: &RedisServer, (live, test): &(Upstream, Upstream)) -> GatewayBuilder {
    let listeners = "[ops]\nlisten = \"127.0.0.1:0\"\n[admin]\nsocket = \"keygate.sock\"";
    Gateway::builder().api(live, test).settings(listeners).settings(&in_redis(redis))
}

fn upstreams() -> (Upstream, Upstream) {
    (Upstream::start("live"), Upstream::start("test"))
}

fn metric(gateway: &Gateway, name: &str) -> Option<f64> {
    value(&scrape(gateway.ops_address()), name)
}

/// The output of a command that succeeds.
#[track_caller]
fn done(folder: &Path, arguments: &[&str]) -> String {
    let ran = keygate(folder, arguments).output().unwrap();
    assert!(ran.status.success(), "{arguments:?}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}
