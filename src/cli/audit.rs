//! `keygate audit`: listing, verifying and exporting the audit trail.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::Outcome;
use super::operator::{Act, Failure, Session, to_the_second, unexpected};
use super::orgs::{next_orgs, the_org};
use super::table::Column;
use crate::lifecycle::{AuditFilter, AuditRecordView, Verdict};
use crate::operators::admin::{AuditCommand, Command, Reply};
use crate::vocabulary::audit::{AuditKind, Link, Trail};
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::{KeyId, OrgId};

/// The number of records that one request for a list returns.
const PAGE: usize = 500;
/// The number of heads of a trail that it is checked against. Each head covers all entries before it, so the newest
/// heads are enough.
const HEADS: usize = 1000;

/// List, verify and export the audit trail
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Every organisation has its own trail; the operator's trail has the records that concern no organisation. Once a minute, a gateway \
logs the heads of all trails that have changed (`audit head …`). Keep this log where processes that can write to the store cannot \
change it; with it, `verify --heads` also detects records that were removed from the end of a trail.

Exit code: 0 on success, 1 if a trail has been altered or the command failed.

Examples:
  keygate audit list --type key.revoked --since 7d
  keygate audit verify --heads /var/log/keygate.log
  keygate audit export --org org_01J9ZQ6T5N8XKD3V4WPYB7C2HM > audit.jsonl")]
pub(super) enum Action {
    /// List audit records, newest first
    List {
        #[command(flatten)]
        whose: Whose,
        /// Only records of this type, as in key.rotated
        #[arg(long = "type", value_name = "TYPE", value_parser = parse_kind)]
        kind: Option<AuditKind>,
        /// Only records since this time: a date, as in 2026-01-31T12:00:00Z, or a duration before now, as in 7d
        #[arg(long, value_name = "TIME", value_parser = parse_moment)]
        since: Option<UnixMillis>,
        /// Only records before this time, in the same forms
        #[arg(long, value_name = "TIME", value_parser = parse_moment)]
        until: Option<UnixMillis>,
        /// The largest number of records to list
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Check that no record has been altered, removed or added
    Verify {
        #[command(flatten)]
        whose: Whose,
        /// A gateway's log, which contains the heads, or - for standard input; can be repeated
        #[arg(long, value_name = "FILE")]
        heads: Vec<PathBuf>,
    },
    /// Print audit records as lines of JSON, oldest first
    Export {
        #[command(flatten)]
        whose: Whose,
    },
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Whose {
    /// The trail of this organisation, or `all` [default: all; with `list`: the only organisation, and not `all`]
    #[arg(long, value_name = "ORG_ID", value_parser = parse_org)]
    org: Option<Orgs>,
    /// The operator's own trail
    #[arg(long, conflicts_with = "org")]
    operator: bool,
}

#[derive(Clone, Copy, Debug)]
enum Orgs {
    All,
    One(OrgId),
}

fn parse_org(text: &str) -> Result<Orgs, crate::vocabulary::id::InvalidId> {
    if text == "all" { Ok(Orgs::All) } else { OrgId::parse(text).map(Orgs::One) }
}

fn parse_kind(text: &str) -> Result<AuditKind, String> {
    AuditKind::parse(text).ok_or_else(|| {
        let all: Vec<&str> = AuditKind::ALL.iter().map(|kind| kind.as_str()).collect();
        format!("the record types are {}", all.join(", "))
    })
}

fn parse_moment(text: &str) -> Result<UnixMillis, &'static str> {
    if let Ok(at) = UnixMillis::parse(text) {
        return Ok(at);
    }
    let ago = humantime::parse_duration(text);
    let ago =
        ago.map_err(|_| "write a date, as in 2026-01-31T12:00:00Z, or a duration before now, as in 7d")?;
    Ok(Clock::system().now().wall.minus(ago))
}

impl Act for Action {
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure> {
        match self {
            Self::List { whose, kind, since, until, limit } => {
                let trail = match whose {
                    Whose { operator: true, .. } => Trail::Operator,
                    Whose { org: Some(Orgs::One(org)), .. } => Trail::Org(org),
                    Whose { org: Some(Orgs::All), .. } => {
                        return Err("`audit list` shows one trail: pass --org ORG_ID or --operator".into());
                    }
                    Whose { org: None, .. } => the_org(session).await?.map_or(Trail::Operator, Trail::Org),
                };
                list(trail, AuditFilter { kind, environment: None, from: since, until }, limit, session).await
            }
            Self::Verify { whose, heads } => verify(whose, &heads, session).await,
            Self::Export { whose } => {
                let mut trails = Trails::of(whose);
                while let Some(trail) = trails.next(session).await? {
                    export(trail, session).await?;
                }
                Ok(Outcome::Done)
            }
        }
    }
}

/// The requested trails, one after another.
enum Trails {
    One(Trail),
    /// The trails of all organisations, and then the operator's. `waiting` has the organisations that were read but not
    /// returned yet; the next ones come after `after`.
    All {
        waiting: Vec<OrgId>,
        after: Option<OrgId>,
    },
    None,
}

impl Trails {
    const fn of(whose: Whose) -> Self {
        match whose {
            Whose { operator: true, .. } => Self::One(Trail::Operator),
            Whose { org: Some(Orgs::One(org)), .. } => Self::One(Trail::Org(org)),
            Whose { org: Some(Orgs::All) | None, .. } => Self::All { waiting: Vec::new(), after: None },
        }
    }

    async fn next(&mut self, session: &mut Session<'_>) -> Result<Option<Trail>, Failure> {
        let Self::All { waiting, after } = self else {
            return Ok(match std::mem::replace(self, Self::None) {
                Self::One(trail) => Some(trail),
                Self::All { .. } | Self::None => None,
            });
        };
        if waiting.is_empty() {
            let orgs = next_orgs(after, session).await?.unwrap_or_default();
            waiting.extend(orgs.iter().rev().map(|org| org.id));
        }
        if let Some(org) = waiting.pop() {
            return Ok(Some(Trail::Org(org)));
        }
        *self = Self::None;
        Ok(Some(Trail::Operator))
    }
}

async fn list(
    trail: Trail,
    filter: AuditFilter,
    limit: usize,
    session: &mut Session<'_>,
) -> Result<Outcome, Failure> {
    const COLUMNS: [Column; 6] = [
        Column::new("TIME", 20, 9),
        Column::elastic("TYPE", 14, 18, 8),
        Column::elastic("BY", 10, KeyId::LEN, 6),
        Column::elastic("FROM", 15, 24, 2),
        Column::new("TARGET", KeyId::LEN, 7),
        Column::new("NOW", 12, 3),
    ];
    let table = session.table(&COLUMNS)?;
    let (mut before, mut left) = (None, limit);
    while left > 0 {
        let command = AuditCommand::List { trail, filter, before, limit: left.min(PAGE) };
        let Reply::AuditRecords { records, next } = session.ask(Command::Audit(command)).await? else {
            return Err(unexpected());
        };
        left = left.saturating_sub(records.len());
        for record in records {
            if session.json {
                session.print_json(&InTrail { trail, record: &record })?;
                continue;
            }
            let (at, by) = (to_the_second(&record.created_at), record.actor.to_string());
            let from = record.ip_address.as_deref().unwrap_or_default();
            let target = record.target.as_deref().unwrap_or_default();
            let row = table.row(&[&at, &record.r#type, &by, from, target, &changes(&record)]);
            session.out.write_all(row.as_bytes())?;
        }
        if next.is_none() {
            break;
        }
        before = next;
    }
    Ok(Outcome::Done)
}

/// The state after the change, according to the record.
fn changes(record: &AuditRecordView) -> String {
    let fields = record.after.as_ref().and_then(|after| after.as_object()).into_iter().flatten();
    let shown = fields.map(|(name, value)| match value.as_str() {
        Some(text) => format!("{name}={text}"),
        None => format!("{name}={value}"),
    });
    shown.collect::<Vec<_>>().join(" ").replace('\n', "\\n")
}

/// An audit record and its trail.
#[derive(Serialize)]
struct InTrail<'e> {
    trail: Trail,
    #[serde(flatten)]
    record: &'e AuditRecordView,
}

async fn export(trail: Trail, session: &mut Session<'_>) -> Result<(), Failure> {
    let mut after = 0;
    loop {
        let command = AuditCommand::Export { trail, after, limit: PAGE };
        let Reply::AuditRecords { records, next } = session.ask(Command::Audit(command)).await? else {
            return Err(unexpected());
        };
        for record in &records {
            session.print_json(&InTrail { trail, record })?;
        }
        match next {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

async fn verify(whose: Whose, logs: &[PathBuf], session: &mut Session<'_>) -> Result<Outcome, Failure> {
    // The logs are read before the trails: heads that are logged later may belong to newer records.
    let mut heads = Heads::default();
    for log in logs {
        heads.read(log)?;
    }
    let mut trails = Trails::of(whose);
    let (mut checked, mut findings, mut count, mut keyed) = (0, 0, 0_u64, true);
    while let Some(trail) = trails.next(session).await? {
        let command = AuditCommand::Verify { trail, exported: heads.take(trail) };
        let Reply::Verdict(verdict) = session.ask(Command::Audit(command)).await? else {
            return Err(unexpected());
        };
        count += 1;
        checked += verdict.checked;
        findings += verdict.findings.len();
        keyed = verdict.keyed;
        show(&verdict, session)?;
    }
    // A trail in the log that is not in the store was removed together with its organisation.
    for trail in
        heads.others().filter(|_| matches!(whose, Whose { org: None | Some(Orgs::All), operator: false }))
    {
        findings += 1;
        if session.json {
            session.print_json(&serde_json::json!({ "trail": trail, "findings": [{ "text": GONE }] }))?;
        } else {
            writeln!(session.out, "{trail}: {GONE}")?;
        }
    }
    if !keyed {
        session.remark(
            "neither audit.key_file nor keys.pepper_file is set: every process that can write to the store can forge \
                 a trail that passes this check, but not the heads in a log",
        );
    }
    if !session.json {
        writeln!(session.out, "{checked} records in {count} trails, {findings} findings")?;
    }
    Ok(if findings == 0 { Outcome::Done } else { Outcome::Refused })
}

const GONE: &str = "is in the log, but its organisation is missing in the store";

fn show(verdict: &Verdict, session: &mut Session<'_>) -> Result<(), Failure> {
    if session.json {
        return session.print_json(verdict);
    }
    for finding in &verdict.findings {
        writeln!(session.out, "{}: record {} {}", verdict.trail, finding.number, finding.text)?;
    }
    Ok(())
}

/// The newest heads of each trail in a log, by number. Two different heads with one number are both kept: at least
/// one of them is wrong.
#[derive(Default)]
struct Heads(HashMap<Trail, BTreeMap<(u64, [u8; 32]), Link>>);

impl Heads {
    fn read(&mut self, path: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| format!("cannot read {}: {error}", path.display());
        let input: Box<dyn BufRead> = if path.as_os_str() == "-" {
            Box::new(BufReader::new(io::stdin()))
        } else {
            Box::new(BufReader::new(File::open(path).map_err(failed)?))
        };
        for line in input.split(b'\n') {
            self.pick(&String::from_utf8_lossy(&line.map_err(failed)?));
        }
        Ok(())
    }

    /// Reads a head from a line; a log collector may have added text around it.
    fn pick(&mut self, line: &str) {
        const MARK: &str = "audit head ";
        for (at, _) in line.match_indices(MARK) {
            let mut words =
                line[at + MARK.len()..].split(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
            let trail = words.next().and_then(|word| Trail::parse(word).ok());
            let link = words.next().and_then(|word| word.parse().ok());
            let (Some(trail), Some(link)) = (trail, link) else { continue };
            let Link { number, mac } = link;
            let heads = self.0.entry(trail).or_default();
            heads.insert((number, mac), link);
            if heads.len() > HEADS {
                heads.pop_first();
            }
        }
    }

    fn take(&mut self, trail: Trail) -> Vec<Link> {
        self.0.remove(&trail).unwrap_or_default().into_values().collect()
    }

    /// The trails that were not taken.
    fn others(&self) -> impl Iterator<Item = Trail> {
        let mut trails: Vec<Trail> = self.0.keys().copied().collect();
        trails.sort_unstable();
        trails.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_found_in_the_lines_of_log_collectors() {
        let (org, mac) = (OrgId::from_bytes([7; 16]), "a5".repeat(32));
        let mut heads = Heads::default();
        for line in [
            &format!("keygate: audit head operator 3:{mac}"),
            &format!("Nov 24 06:21:46 host keygate[17]: keygate: audit head {org} 9:{mac}"),
            &format!("{{\"msg\":\"keygate: audit head {org} 10:{mac}\",\"pid\":1}}"),
            "keygate: audit head operator 4:short",
            "keygate: audit head",
            "nothing",
        ] {
            heads.pick(line);
        }
        let numbers =
            |heads: &mut Heads, trail| heads.take(trail).iter().map(|link| link.number).collect::<Vec<_>>();
        assert_eq!(numbers(&mut heads, Trail::Operator), [3]);
        assert_eq!(heads.others().collect::<Vec<_>>(), [Trail::Org(org)]);
        assert_eq!(numbers(&mut heads, Trail::Org(org)), [9, 10]);
        assert_eq!(heads.others().count(), 0);
    }

    #[test]
    fn a_moment_is_a_date_or_a_duration_before_now() {
        assert_eq!(parse_moment("1970-01-01T00:00:01Z"), Ok(UnixMillis(1000)));
        assert!(parse_moment("1h").unwrap() < Clock::system().now().wall);
        assert!(parse_moment("yesterday").is_err());
    }
}
