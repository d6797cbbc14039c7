//! Checks a Redis before it is used: version, eviction, persistence, replicas, rights, and the store in it. Changes
//! nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{FromRedisValue, RedisError, ServerErrorKind};
use tokio::time::timeout;

use super::Inner;
use super::ledger::{SCHEMA, Stranger};
use super::scripts::{self, Call, Script};
use super::topology::{Connected, Topology};
use crate::store::finding::Finding;
use crate::store::{Role, StoreFault};
use crate::vocabulary::clock::{TOLERATED, UnixMillis, ahead};
use crate::vocabulary::key::record::KeyRecord;
use Finding::{Broken, Fine, Warning};

/// The commands that call scripts which write; and those that call scripts which read, and read the events. The
/// commands inside a script are found in its text.
const WRITING: [&str; 2] = ["EVAL x 1", "EVALSHA x 1"];
const READING: [&str; 3] = ["EVAL_RO x 1", "EVALSHA_RO x 1", "XREAD STREAMS"];

pub(super) async fn inspect(inner: &Inner, role: Role) -> Vec<Finding> {
    let mut findings = guides(inner).await;
    let Connected { mut connection, node } = match inner.connector.connect().await {
        Ok(connected) => connected,
        Err(fault) => {
            findings.push(Broken(told(&fault)));
            return findings;
        }
    };
    let mut look = Look { inner, connection: &mut connection };
    match look.info().await {
        Ok(info) => {
            findings.push(Fine(format!("{node} answers, a master, {}", server(&info))));
            findings.push(eviction(&info));
            findings.push(look.persistence(&info).await);
            findings.extend(replicas(&info, inner.connector.topology()));
        }
        Err(fault) => {
            findings.push(Fine(format!("{node} answers, a master")));
            findings.push(Warning(format!(
                "INFO is not answered, so eviction, persistence and replicas are not seen ({}): give the user +info",
                told(&fault)
            )));
        }
    }
    findings.push(look.rights(role).await);
    findings.extend(look.clock().await);
    findings.extend(look.store().await);
    findings
}

/// The sentinels, or the nodes of the cluster.
async fn guides(inner: &Inner) -> Vec<Finding> {
    let (named, silent): (Vec<_>, Vec<_>) = inner.connector.hear().await.into_iter().partition(Result::is_ok);
    let mut named: Vec<String> = named.into_iter().flatten().map(|node| node.to_string()).collect();
    named.sort_unstable();
    named.dedup();
    let silent = silent.into_iter().filter_map(Result::err);
    let mut findings: Vec<Finding> = silent.map(|fault| Warning(told(&fault))).collect();
    if named.len() > 1 {
        findings.push(Warning(format!(
            "different masters are named: {}; this is normal during a fail-over; if it stays, one of them has outdated information",
            named.join(", ")
        )));
    }
    findings
}

/// The product and its version. Valkey also tells the version of Redis that it is compatible with.
fn server(info: &HashMap<String, String>) -> String {
    match (info.get("valkey_version"), info.get("redis_version")) {
        (Some(version), _) => format!("Valkey {version}"),
        (None, Some(version)) => format!("Redis {version}"),
        (None, None) => "of no version that it tells".to_owned(),
    }
}

fn eviction(info: &HashMap<String, String>) -> Finding {
    match info.get("maxmemory_policy").map(String::as_str) {
        Some("noeviction") => Fine("nothing is evicted when memory is full".to_owned()),
        policy => Warning(format!(
            "maxmemory-policy is {}: a key that is evicted is an unknown key; set it to noeviction",
            policy.unwrap_or("unknown")
        )),
    }
}

fn replicas(info: &HashMap<String, String>, topology: &Topology) -> Vec<Finding> {
    let number = |name: &str| info.get(name).and_then(|text| text.parse::<u64>().ok());
    let connected = number("connected_slaves").unwrap_or_default();
    // Redis tells this only if a minimum is set.
    match (connected, number("min_slaves_good_slaves")) {
        (_, Some(0)) => vec![Broken(
            "no replica keeps up, and with min-replicas-to-write it refuses every change: bring one back"
                .to_owned(),
        )],
        (connected, Some(good)) => {
            vec![Fine(format!("{good} of {connected} replicas keep up, and a minimum is set"))]
        }
        (0, None) if matches!(topology, Topology::Fixed(_)) => vec![],
        (0, None) => vec![Warning("there is no replica to fail over to: add one".to_owned())],
        (connected, None) => vec![Warning(format!(
            "{connected} replicas and no minimum: a master that is cut off from them goes on confirming changes that the \
             fail-over loses; set min-replicas-to-write to 1"
        ))],
    }
}

struct Look<'l> {
    inner: &'l Inner,
    connection: &'l mut MultiplexedConnection,
}

impl Look<'_> {
    async fn ask<T: FromRedisValue>(&mut self, words: &[&str]) -> Result<T, StoreFault> {
        let mut command = ::redis::cmd(words[0]);
        command.arg(&words[1..]);
        let patience = self.inner.settings.command_timeout;
        let answer = timeout(patience, command.query_async(self.connection)).await;
        answer.map_err(|_| StoreFault::TimedOut)?.map_err(|error: RedisError| self.inner.fault(error))
    }

    async fn info(&mut self) -> Result<HashMap<String, String>, StoreFault> {
        let info: String = self.ask(&["INFO"]).await?;
        let fields = info.lines().filter_map(|line| line.split_once(':'));
        Ok(fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    async fn persistence(&mut self, info: &HashMap<String, String>) -> Finding {
        let is = |name: &str, value: &str| info.get(name).is_some_and(|found| found == value);
        if is("aof_last_write_status", "err") || is("rdb_last_bgsave_status", "err") {
            return Warning("it could not write to its disk the last time: see its log".to_owned());
        }
        if is("aof_enabled", "1") {
            return Fine("changes are written to a log (appendonly)".to_owned());
        }
        let saves: Result<Vec<String>, StoreFault> = self.ask(&["CONFIG", "GET", "save"]).await;
        let what = match saves.as_deref() {
            Ok([_, times]) if times.is_empty() => "nothing is kept: every key ends with the process",
            Ok(_) => {
                "there are snapshots only: what came after the last one, revocations too, ends with the process"
            }
            Err(_) => "what came after the last snapshot, revocations too, ends with the process",
        };
        Warning(format!("appendonly is off, {what}; set appendonly yes"))
    }

    async fn rights(&mut self, role: Role) -> Finding {
        let inner = self.inner;
        let meta = inner.names.meta();
        let wanted = wanted(inner, role);
        let beyond = (role == Role::Proxy).then(|| format!("SET {meta} 0"));
        let call = wanted.iter().map(Wanted::words).chain(beyond);
        let call = call.fold(Call::new(&inner.scripts.rights, [meta.clone()]), Call::arg);
        let answer = timeout(inner.settings.command_timeout, call.send(self.connection)).await;
        let mut reply = match answer {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) if is_forbidden(&error) => {
                return Broken(format!("its user may not run scripts on {meta} ({error}): {GRANT}"));
            }
            Ok(Err(error)) => return Broken(format!("scripts do not run: {error}")),
            Err(_) => return Broken(told(&StoreFault::TimedOut)),
        };
        let mut forbidden = BTreeSet::new();
        while let Ok(Some(place)) = reply.text() {
            forbidden.extend(place.parse::<usize>());
        }
        judge(role, &wanted, &forbidden)
    }

    /// How the clock of this machine stands to that of Redis. Without an answer here there is none about the store either.
    async fn clock(&mut self) -> Option<Finding> {
        let clock = &self.inner.clock;
        let asked = clock.mono();
        let answer: Result<(u64, u64), StoreFault> = self.ask(&["TIME"]).await;
        let Ok((seconds, micros)) = answer else {
            return Some(Warning(
                "TIME is not answered: keys end by the clock of this machine, and old audit records are not removed; give the \
                 user +time"
                    .to_owned(),
            ));
        };
        let there = UnixMillis(seconds.saturating_mul(1000).saturating_add(micros / 1000));
        let ahead = ahead(clock.own(), there.plus(clock.mono().saturating_duration_since(asked) / 2));
        let by = Duration::from_millis(ahead.unsigned_abs());
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        Some(if by <= TOLERATED {
            Fine("its clock and that of this machine are in step".to_owned())
        } else {
            Warning(format!(
                "the clock of this machine is {} {way} that of Redis, by which keys end: set the one that is wrong",
                humantime::format_duration(Duration::from_secs(by.as_secs()))
            ))
        })
    }

    async fn store(&mut self) -> Vec<Finding> {
        let inner = self.inner;
        let call = Call::new(&inner.scripts.watch, [inner.names.meta(), inner.names.events()]).arg("0");
        let answer = timeout(inner.settings.command_timeout, call.send(self.connection)).await;
        let meta = match answer {
            Ok(Ok(reply)) => reply.meta,
            Ok(Err(error)) => return vec![Broken(format!("the store cannot be read: {error}"))],
            Err(_) => return vec![Broken(told(&StoreFault::TimedOut))],
        };
        let cell = &inner.settings.cell;
        let Some(incarnation) = &meta.incarnation else {
            return vec![Warning(format!(
                "there is no store in cell {cell} yet: `keygate keys create` makes it; if there was one, bring it back"
            ))];
        };
        let schema = meta.schema.unwrap_or_default();
        if schema != SCHEMA {
            return vec![Broken(format!(
                "the store was written by a newer keygate (schema {schema}, this one knows {SCHEMA}): run that version"
            ))];
        }
        let keeps = inner.sealer.keeps();
        if meta.format > keeps {
            return vec![Broken(Stranger::NewerFormat { found: meta.format, kept: keeps }.to_string())];
        }
        let events = meta.event.unwrap_or_default();
        let mut findings =
            vec![Fine(format!("cell {cell} holds the store {incarnation} with {events} events"))];
        if let Ok(Some(misfit)) = inner.misfit().await {
            findings.push(Broken(misfit.to_string()));
            return findings;
        }
        // The newest key stands for all.
        let newest = inner.newest::<KeyRecord>(inner.names.keys(), inner.names.with("id:"), None, 1).await;
        if let Err(fault) = newest {
            findings.push(Broken(format!("its keys cannot be read: {}", told(&fault))));
        }
        findings
    }
}

const GRANT: &str = "give it the rights that deploy/README.md lists";

/// A command that a gateway needs, and the key that it runs on.
struct Wanted {
    command: String,
    key: String,
}

impl Wanted {
    fn words(&self) -> String {
        let Self { command, key } = self;
        // Some commands take only keys.
        format!("{command} {key} {key} {key}")
    }
}

/// Everything that a gateway of this role runs. A proxy writes nothing but leases.
fn wanted(inner: &Inner, role: Role) -> Vec<Wanted> {
    let (meta, gateways) = (inner.names.meta(), inner.names.gateways());
    let scripts = &inner.scripts;
    let (reading, writing, written) = match role {
        Role::Full => (scripts.reading(), scripts.writing(), &meta),
        Role::Proxy => (scripts.reading_of_proxy(), scripts.writing_of_proxy(), &gateways),
    };
    let on = |key: &str, outside: &[&str], inside: &[&Script]| -> Vec<Wanted> {
        let outside = outside.iter().map(|command| (*command).to_owned());
        let inside = scripts::commands(inside).into_iter().map(|words| words.join(" "));
        outside.chain(inside).map(|command| Wanted { command, key: key.to_owned() }).collect()
    };
    on(written, &WRITING, &writing).into_iter().chain(on(&meta, &READING, &reading)).collect()
}

/// The finding for the numbers of the forbidden commands. For a proxy the last number is a command that it should not
/// be allowed.
fn judge(role: Role, wanted: &[Wanted], forbidden: &BTreeSet<usize>) -> Finding {
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let lacking = wanted.iter().enumerate().filter(|(place, _)| forbidden.contains(&(place + 1)));
    for (_, Wanted { command, key }) in lacking {
        let commands = missing.entry(key).or_default();
        let name = command.split(' ').next().unwrap_or_default();
        if !commands.contains(&name) {
            commands.push(name);
        }
    }
    let missing: Vec<String> =
        missing.into_iter().map(|(key, commands)| format!("{} on {key}", commands.join(", "))).collect();
    match (role, &missing[..]) {
        (Role::Full, []) => Fine("its user may do what keygate does".to_owned()),
        (Role::Proxy, []) if forbidden.contains(&(wanted.len() + 1)) => {
            Fine("its user may do what a proxy does, and may not write to the store".to_owned())
        }
        (Role::Proxy, []) => Warning(
            "its user may write to the store, which a proxy has no need of: deploy/README.md lists what it needs"
                .to_owned(),
        ),
        (Role::Full, missing) => Broken(format!(
            "its user may not run {}: {GRANT}, or run this gateway with --role proxy, and check it so",
            missing.join(", nor ")
        )),
        (Role::Proxy, missing) => {
            Broken(format!("its user may not run {}: {GRANT} for a proxy", missing.join(", nor ")))
        }
    }
}

fn is_forbidden(error: &RedisError) -> bool {
    error.kind() == ::redis::ErrorKind::Server(ServerErrorKind::NoPerm)
}

/// The fault without its prefix for the log.
fn told(fault: &StoreFault) -> String {
    match fault {
        StoreFault::Failed(cause) => cause.to_string(),
        fault => fault.to_string(),
    }
}
