//! Whole configurations, and the whole text of the messages about wrong ones.

mod any_text;
mod messages;
mod policy_messages;
mod shipped_files;
mod syntax;
mod translation;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use http::Method;

use super::*;
use crate::policy::access::Access;
use crate::policy::target::{Operation, Target};
use crate::upstream::{Endpoint, HostField, Timeouts, UpstreamId};
use crate::vocabulary::key::Environment;

const STORE: &str = "[store]\nkind = \"embedded\"\n";
const UPSTREAM: &str =
    "[upstreams.api]\nlive = [\"http://127.0.0.1:9000\"]\ntest = [\"http://127.0.0.1:9001\"]\n";
const POLICY: &str = "[policy]\nfile = \"policy.toml\"\n";
const ROUTE: &str = "[[route]]\nid = \"own\"\nmethods = [\"GET\"]\npaths = [\"/own\"]\nany_key = true\nserve = \"keys.self\"\n";

/// Loads `etc/keygate.toml` and `etc/policy.toml` from these texts.
fn load(toml: &str, policy: &str, environment: &[(&str, &str)]) -> Result<Config, Mistakes> {
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    Config::load_from(&|path| file(path, toml, policy), Path::new("etc/keygate.toml"), environment)
}

fn file(path: &Path, toml: &str, policy: &str) -> io::Result<Vec<u8>> {
    match path.to_str() {
        Some("etc/keygate.toml") => Ok(toml.as_bytes().to_vec()),
        Some("etc/policy.toml") => Ok(policy.as_bytes().to_vec()),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such file")),
    }
}

/// A valid configuration with `lines` before it.
fn around(lines: &str) -> String {
    format!("{lines}\n{STORE}{UPSTREAM}{POLICY}")
}

fn mistakes(toml: &str, policy: &str, environment: &[(&str, &str)]) -> String {
    load(toml, policy, environment).map_or_else(|mistakes| mistakes.to_string(), |_| "none".to_owned())
}

/// The messages about `lines` before a valid configuration.
fn about(lines: &str) -> String {
    mistakes(&around(lines), ROUTE, &[])
}

/// The messages about a policy.
fn about_policy(policy: &str) -> String {
    mistakes(&around(""), policy, &[])
}

#[track_caller]
fn assert_says(said: impl fmt::Display, expected: &[&str]) {
    assert_eq!(format!("\n{said}\n"), format!("\n{}\n", expected.join("\n")));
}
