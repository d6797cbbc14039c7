//! `keygate audit list`: the newest records of one trail, or of all.

use std::io::Write;

use super::Outcome;
use super::audit::{InTrail, PAGE, Trails};
use super::operator::{Failure, Session, to_the_second, unexpected};
use super::table::Column;
use crate::lifecycle::{AuditFilter, AuditRecordView};
use crate::operators::admin::{AuditCommand, Command, Reply};
use crate::vocabulary::audit::Trail;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;

const COLUMNS: [Column; 7] = [
    Column::new("TIME", 20, 9),
    Column::elastic("TYPE", 14, 18, 8),
    Column::elastic("BY", 10, KeyId::LEN, 6),
    Column::elastic("FROM", 15, 24, 2),
    Column::elastic("ORGANISATION", 12, 24, 1),
    Column::new("TARGET", KeyId::LEN, 7),
    Column::new("NOW", 12, 3),
];

/// A record, and whose trail it is in.
struct Listed {
    trail: Trail,
    whose: String,
    record: AuditRecordView,
}

pub(super) async fn list(
    mut trails: Trails,
    filter: AuditFilter,
    limit: usize,
    session: &mut Session<'_>,
) -> Result<Outcome, Failure> {
    let mut newest: Vec<Listed> = Vec::new();
    while let Some((trail, whose)) = trails.next(session).await? {
        // What is older than all of the newest records so far is of no use.
        let oldest = newest.get(limit.saturating_sub(1)).map(|listed| &listed.record.created_at);
        let oldest = oldest.and_then(|at| UnixMillis::parse(at).ok());
        let filter = AuditFilter { from: filter.from.max(oldest), ..filter };
        let records = read(trail, filter, limit, session).await?;
        newest.extend(records.into_iter().map(|record| Listed { trail, whose: whose.clone(), record }));
        // Times have one length, so they sort as texts. The records of a trail keep their order.
        newest.sort_by(|one, other| other.record.created_at.cmp(&one.record.created_at));
        newest.truncate(limit);
    }
    let table = session.table(&COLUMNS)?;
    for Listed { trail, whose, record } in &newest {
        if session.json {
            session.print_json(&InTrail { trail: *trail, record })?;
            continue;
        }
        let (at, by) = (to_the_second(&record.created_at), record.actor.to_string());
        let from = record.ip_address.as_deref().unwrap_or_default();
        let target = record.target.as_deref().unwrap_or_default();
        let row = table.row(&[&at, &record.r#type, &by, from, whose, target, &changes(record)]);
        session.out.write_all(row.as_bytes())?;
    }
    Ok(Outcome::Done)
}

/// The newest records of a trail, at most `limit`.
async fn read(
    trail: Trail,
    filter: AuditFilter,
    limit: usize,
    session: &mut Session<'_>,
) -> Result<Vec<AuditRecordView>, Failure> {
    let (mut read, mut before) = (Vec::new(), None);
    while read.len() < limit {
        let command = AuditCommand::List { trail, filter, before, limit: (limit - read.len()).min(PAGE) };
        let Reply::AuditRecords { records, next } = session.ask(Command::Audit(command)).await? else {
            return Err(unexpected());
        };
        read.extend(records);
        if next.is_none() {
            break;
        }
        before = next;
    }
    Ok(read)
}

/// The state after the change, according to the record.
fn changes(record: &AuditRecordView) -> String {
    let fields = record.after.as_ref().and_then(|after| after.as_object()).into_iter().flatten();
    let shown = fields.map(|(name, value)| match value.as_str() {
        Some(text) => format!("{name}={text}"),
        None => format!("{name}={value}"),
    });
    shown.collect::<Vec<_>>().join(" ")
}
