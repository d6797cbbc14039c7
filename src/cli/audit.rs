//! `keygate audit`: listing, verifying and exporting the audit trail.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;

use super::Outcome;
use super::audit_list::list;
use super::operator::{Act, Failure, Session, unexpected};
use super::org_name::{OrgName, next_orgs};
use crate::lifecycle::{AuditFilter, AuditRecordView, Exported, Verdict};
use crate::operators::admin::{AuditCommand, Command, Reply};
use crate::store::trails::Trimmed;
use crate::vocabulary::audit::{AuditKind, Link, Trail};
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::OrgId;

/// The number of records that one request returns.
pub(super) const PAGE: usize = 500;
/// The number of heads of a trail that it is checked against. Each head covers all entries before it, so the newest
/// heads are enough.
const HEADS: usize = 1000;

/// List, verify and export the audit trail
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Every organisation has its own trail; the operator's trail has the records that concern no organisation. Once a minute, a gateway \
logs the heads of all trails that have changed (`audit head …`). Keep this log where processes that can write to the store cannot \
change it; with it, `verify --heads` also detects records that were removed from the end of a trail, or before the end of \
audit.retention.

Old records are removed by the gateways, by the clock of the store and of each trail at most a tenth in a day, so that a wrong clock \
or a wrong setting erases little before somebody notices; `trim` removes at once whatever is older than audit.retention.

Exit code: 0 on success, 1 if a trail has been altered, a key or an organization is older than its trail says, or the command failed.

Examples:
  keygate audit list --type key.revoked --since 7d
  keygate audit verify --heads /var/log/keygate.log
  keygate audit export --org 'Example Ltd' --since 30d > audit.jsonl")]
pub(super) enum Action {
    /// List audit records, newest first
    List {
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        which: Which,
        /// The largest number of records to list
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Check that no record has been altered, removed or added, and that no key or organization has rights that its trail says
    /// were taken away
    Verify {
        #[command(flatten)]
        whose: Whose,
        /// A gateway's log, which contains the heads, or - for standard input; can be repeated
        #[arg(long, value_name = "FILE")]
        heads: Vec<PathBuf>,
    },
    /// Remove all records that are older than audit.retention at once, instead of a tenth of each trail in a day
    Trim {
        #[command(flatten)]
        whose: Whose,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Print audit records as lines of JSON, trail by trail, oldest first
    Export {
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Whose {
    /// The trail of this organisation, by its id or its name; `all` for every trail, the operator's too [default: all]
    #[arg(long, value_name = "ORG", value_parser = parse_org)]
    org: Option<Orgs>,
    /// The operator's own trail
    #[arg(long, conflicts_with = "org")]
    operator: bool,
}

#[derive(Clone, Debug)]
enum Orgs {
    All,
    One(OrgName),
}

fn parse_org(text: &str) -> Result<Orgs, &'static str> {
    if text == "all" { Ok(Orgs::All) } else { OrgName::parse(text).map(Orgs::One) }
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Which {
    /// Only records of this type
    #[arg(long = "type", value_name = "TYPE", value_parser = kinds())]
    kind: Option<AuditKind>,
    /// Only records since this time: a date, as in 2026-01-31T12:00:00Z, or a duration before now, as in 7d
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<UnixMillis>,
    /// Only records before this time, in the same forms
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    until: Option<UnixMillis>,
}

impl Which {
    const fn filter(self) -> AuditFilter {
        AuditFilter { kind: self.kind, environment: None, from: self.since, until: self.until }
    }
}

/// The types of records as values that a shell completes.
fn kinds() -> impl TypedValueParser<Value = AuditKind> {
    let names = PossibleValuesParser::new(AuditKind::ALL.iter().map(|kind| kind.as_str()));
    names.try_map(|text| AuditKind::parse(&text).ok_or("write a type of audit records"))
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
            Self::List { whose, which, limit } => {
                let trails = Trails::of(&whose, session).await?;
                list(trails, which.filter(), limit, session).await
            }
            Self::Verify { whose, heads } => verify(&whose, &heads, session).await,
            Self::Trim { whose, yes } => {
                if !yes {
                    session
                        .confirm("Remove all audit records that are older than audit.retention, for ever?")?;
                }
                trim(&whose, session).await
            }
            Self::Export { whose, which } => {
                let mut trails = Trails::of(&whose, session).await?;
                while let Some((trail, _)) = trails.next(session).await? {
                    export(trail, which.filter(), session).await?;
                }
                Ok(Outcome::Done)
            }
        }
    }
}

/// The requested trails, one after another.
pub(super) enum Trails {
    One(Trail),
    /// The trails of all organisations, and then the operator's. `waiting` has the organisations that were read but not
    /// returned yet; the next ones come after `after`.
    All {
        waiting: Vec<(OrgId, String)>,
        after: Option<OrgId>,
    },
    None,
}

impl Trails {
    async fn of(whose: &Whose, session: &mut Session<'_>) -> Result<Self, Failure> {
        Ok(match whose {
            Whose { operator: true, .. } => Self::One(Trail::Operator),
            Whose { org: Some(Orgs::One(org)), .. } => Self::One(Trail::Org(org.id(session).await?)),
            Whose { org: Some(Orgs::All) | None, .. } => Self::All { waiting: Vec::new(), after: None },
        })
    }

    /// The next trail, and whose it is, for people.
    pub(super) async fn next(
        &mut self,
        session: &mut Session<'_>,
    ) -> Result<Option<(Trail, String)>, Failure> {
        let Self::All { waiting, after } = self else {
            return Ok(match std::mem::replace(self, Self::None) {
                Self::One(trail) => Some((trail, String::new())),
                Self::All { .. } | Self::None => None,
            });
        };
        if waiting.is_empty()
            && let Some(page) = next_orgs(after, session).await?
        {
            // A trail does not end with the record of its organisation.
            let lost = page.unreadable.iter().filter_map(|org| OrgId::parse(&org.id).ok());
            waiting.extend(lost.map(|org| (org, "(its record cannot be read)".to_owned())));
            waiting.extend(page.orgs.into_iter().rev().map(|org| (org.id, org.name)));
        }
        if let Some((org, name)) = waiting.pop() {
            return Ok(Some((Trail::Org(org), name)));
        }
        *self = Self::None;
        Ok(Some((Trail::Operator, "(operator)".to_owned())))
    }
}

/// An audit record and its trail.
#[derive(Debug, Serialize)]
pub(super) struct InTrail<'e> {
    pub(super) trail: Trail,
    #[serde(flatten)]
    pub(super) record: &'e AuditRecordView,
}

async fn export(trail: Trail, filter: AuditFilter, session: &mut Session<'_>) -> Result<(), Failure> {
    let mut after = 0;
    loop {
        let command = AuditCommand::Export { trail, filter, after, limit: PAGE };
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

async fn trim(whose: &Whose, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let mut trails = Trails::of(whose, session).await?;
    let mut removed = 0;
    while let Some((trail, _)) = trails.next(session).await? {
        match session.ask(Command::Audit(AuditCommand::Trim { trail })).await? {
            Reply::Trimmed { trimmed: Trimmed::Removed(now) } => {
                removed += now;
                if session.json {
                    session.print_json(&serde_json::json!({ "trail": trail, "removed": now }))?;
                }
            }
            Reply::Trimmed { trimmed: Trimmed::Held(held) } => {
                return Err(format!("no record was removed of {trail}: {held}").into());
            }
            _ => return Err(unexpected()),
        }
    }
    if !session.json {
        session.print_line(&format!("{removed} records removed"))?;
    }
    Ok(Outcome::Done)
}

async fn verify(whose: &Whose, logs: &[PathBuf], session: &mut Session<'_>) -> Result<Outcome, Failure> {
    // The logs are read before the trails: heads that are logged later may belong to newer records.
    let mut heads = Heads::default();
    for log in logs {
        heads.read(log)?;
    }
    let mut trails = Trails::of(whose, session).await?;
    let (mut checked, mut findings, mut count, mut keyed) = (0, 0_u64, 0_u64, true);
    while let Some((trail, _)) = trails.next(session).await? {
        let command = AuditCommand::Verify { trail, exported: heads.take(trail) };
        let Reply::Verdict(verdict) = session.ask(Command::Audit(command)).await? else {
            return Err(unexpected());
        };
        count += 1;
        checked += verdict.checked;
        findings += verdict.findings.len() as u64 + verdict.more_findings;
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
            session.print_line(&format!("{trail}: {GONE}"))?;
        }
    }
    if !keyed {
        session.remark(
            "neither audit.key_file nor keys.pepper_file is set: every process that can write to the store can forge \
                 a trail that passes this check, but not the heads in a log",
        );
    }
    if !session.json {
        session.print_line(&format!("{checked} records in {count} trails, {findings} findings"))?;
    }
    Ok(if findings == 0 { Outcome::Done } else { Outcome::Refused })
}

const GONE: &str = "is in the log, but its organisation is missing in the store";

fn show(verdict: &Verdict, session: &mut Session<'_>) -> Result<(), Failure> {
    if session.json {
        return session.print_json(verdict);
    }
    for finding in &verdict.findings {
        session.print_line(&format!("{}: record {} {}", verdict.trail, finding.number, finding.text))?;
    }
    if verdict.more_findings > 0 {
        session.print_line(&format!("{}: {} more findings", verdict.trail, verdict.more_findings))?;
    }
    Ok(())
}

/// The newest heads of each trail in a log, by number. Two different heads with one number are both kept: at least
/// one of them is wrong.
#[derive(Default)]
struct Heads(HashMap<Trail, BTreeMap<(u64, [u8; 32]), Exported>>);

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
            let rest = &line[at + MARK.len()..];
            let mut words = rest.split(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
            let trail = words.next().and_then(|word| Trail::parse(word).ok());
            let link = words.next().and_then(|word| word.parse::<Link>().ok());
            let (Some(trail), Some(link)) = (trail, link) else { continue };
            let heads = self.0.entry(trail).or_default();
            heads.insert((link.number, link.mac), Exported { link, at: made_at(rest) });
            if heads.len() > HEADS {
                heads.pop_first();
            }
        }
    }

    fn take(&mut self, trail: Trail) -> Vec<Exported> {
        self.0.remove(&trail).unwrap_or_default().into_values().collect()
    }

    /// The trails that were not taken.
    fn others(&self) -> impl Iterator<Item = Trail> {
        let mut trails: Vec<Trail> = self.0.keys().copied().collect();
        trails.sort_unstable();
        trails.into_iter()
    }
}

/// When the record of a head was made. `rest` is the line behind its mark; older releases wrote no time.
fn made_at(rest: &str) -> Option<UnixMillis> {
    let time = rest.split(' ').nth(2).filter(|word| *word == "at").and_then(|_| rest.split(' ').nth(3))?;
    let end = time.find(|c: char| !c.is_ascii_alphanumeric() && !":-.".contains(c)).unwrap_or(time.len());
    UnixMillis::parse(&time[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_found_in_the_lines_of_log_collectors() {
        let (org, mac) = (OrgId::from_bytes([7; 16]), "a5".repeat(32));
        let mut heads = Heads::default();
        for line in [
            &format!("2026-11-24T06:21:46.000Z info audit_head: audit head operator 3:{mac}"),
            &format!("Nov 24 06:21:46 host keygate[17]: keygate: audit head {org} 9:{mac}"),
            &format!(
                "{{\"msg\":\"keygate: audit head {org} 10:{mac} at 2026-09-21T14:13:20.123Z\",\"pid\":1}}"
            ),
            "keygate: audit head operator 4:short",
            "keygate: audit head",
            "nothing",
        ] {
            heads.pick(line);
        }
        let numbers = |heads: &mut Heads, trail| {
            heads.take(trail).iter().map(|head| (head.link.number, head.at)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&mut heads, Trail::Operator), [(3, None)]);
        assert_eq!(heads.others().collect::<Vec<_>>(), [Trail::Org(org)]);
        let at = Some(UnixMillis(1_790_000_000_123));
        assert_eq!(numbers(&mut heads, Trail::Org(org)), [(9, None), (10, at)]);
        assert_eq!(heads.others().count(), 0);
    }

    #[test]
    fn a_moment_is_a_date_or_a_duration_before_now() {
        assert_eq!(parse_moment("1970-01-01T00:00:01Z"), Ok(UnixMillis(1000)));
        assert!(parse_moment("1h").unwrap() < Clock::system().now().wall);
        assert!(parse_moment("yesterday").is_err());
    }
}
