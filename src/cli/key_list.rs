//! `keygate keys list`: which keys there are.

use std::io::Write;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::operator::{Failure, Session, to_the_second, unexpected};
use super::org_name::OrgName;
use super::table::Column;
use super::{Outcome, duration};
use crate::lifecycle::{KeyFilter, KeyView};
use crate::operators::admin::{Command, KeyCommand, Reply};
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::Status;
use crate::vocabulary::key::scope::Scope;

/// The number of keys that one request for a list returns.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// Only keys of this organisation, by its id or its name
    #[arg(long, value_name = "ORG", value_parser = OrgName::parse)]
    org: Option<OrgName>,
    /// Only keys for which this person or team is responsible
    #[arg(long)]
    owner: Option<String>,
    /// Only live keys, or only test keys
    #[arg(long, value_name = "ENVIRONMENT", value_parser = environments())]
    environment: Option<Environment>,
    /// Only keys with this status
    #[arg(long, value_name = "STATUS", value_parser = statuses())]
    status: Option<Status>,
    /// Only keys that have not been used for this time, as in 90d; for a key that was never used, its age counts
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    unused: Option<Duration>,
    /// Only keys that are older than this, as in 365d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    older_than: Option<Duration>,
    /// Only keys that will expire within this time, as in 14d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    expires_within: Option<Duration>,
}

/// The environments as values that a shell completes.
pub(super) fn environments() -> impl TypedValueParser<Value = Environment> {
    let names = PossibleValuesParser::new(Environment::ALL.map(Environment::as_str));
    let named = |text: String| Environment::ALL.into_iter().find(|one| one.as_str() == text);
    names.try_map(move |text| named(text).ok_or("write live or test"))
}

/// The states of keys as values that a shell completes.
fn statuses() -> impl TypedValueParser<Value = Status> {
    let names = PossibleValuesParser::new(Status::ALL.map(Status::as_str));
    let named = |text: String| Status::ALL.into_iter().find(|one| one.as_str() == text);
    names.try_map(move |text| named(text).ok_or("write active, disabled, expired or revoked"))
}

const COLUMNS: [Column; 11] = [
    Column::new("ID", KeyId::LEN, 9),
    Column::new("KEY", 16, 7),
    Column::new("STATUS", 8, 8),
    Column::new("ENV", 4, 3),
    Column::elastic("ORGANISATION", 12, 24, 4),
    Column::elastic("SCOPES", 12, 40, 2),
    Column::new("EXPIRES", 20, 3),
    Column::new("LAST USED", 20, 5),
    Column::new("CREATED", 20, 1),
    Column::elastic("OWNER", 12, 24, 2),
    Column::new("NAME", 10, 6),
];

pub(super) async fn list(filter: Filter, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let Filter { org, owner, environment, status, unused, older_than, expires_within } = filter;
    let org = match org {
        Some(org) => Some(org.id(session).await?),
        None => None,
    };
    let filter =
        KeyFilter { org, owner, environment, status, unused_for: unused, older_than, expires_within };
    let mut page = read(&filter, None, session).await?;
    let table = session.table(&COLUMNS)?;
    loop {
        for (key, org) in &page.keys {
            if session.json {
                session.print_json(key)?;
            } else {
                let row = row(key, org);
                let cells: Vec<&str> = row.iter().map(String::as_str).collect();
                session.out.write_all(table.row(&cells).as_bytes())?;
            }
        }
        let Some(after) = page.next else { return Ok(Outcome::Done) };
        page = read(&filter, Some(after), session).await?;
    }
}

/// Keys with their organisations' names.
struct Page {
    keys: Vec<(KeyView, String)>,
    next: Option<KeyId>,
}

async fn read(filter: &KeyFilter, after: Option<KeyId>, session: &mut Session<'_>) -> Result<Page, Failure> {
    let command = KeyCommand::List { filter: filter.clone(), after, limit: PAGE };
    let Reply::Keys { keys, next, organizations } = session.ask(Command::Keys(command)).await? else {
        return Err(unexpected());
    };
    let named = |key: KeyView| {
        let name = organizations.get(&key.organization_id).cloned();
        let name = name.unwrap_or_else(|| key.organization_id.to_string());
        (key, name)
    };
    Ok(Page { keys: keys.into_iter().map(named).collect(), next })
}

/// The cells of a key, in the order of the columns.
fn row(key: &KeyView, org: &str) -> [String; 11] {
    let time = |time: &Option<String>| time.as_deref().map_or_else(|| "never".to_owned(), to_the_second);
    let scopes: Vec<&str> = key.scopes.iter().map(Scope::as_str).collect();
    [
        key.id.to_string(),
        key.key.clone(),
        key.status.clone(),
        key.environment.to_string(),
        org.to_owned(),
        scopes.join(","),
        time(&key.expires_at),
        time(&key.last_used_at),
        to_the_second(&key.created_at),
        key.owner.clone().unwrap_or_default(),
        key.name.clone(),
    ]
}
