//! `keygate keys list`: which keys there are.

use std::cmp::Reverse;
use std::io::Write;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::operator::{Failure, Session, to_the_second, unexpected};
use super::org_name::OrgName;
use super::table::Column;
use super::{Outcome, duration};
use crate::lifecycle::{KeyFilter, KeyView, UnreadableView};
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
    let mut unreadable = 0_usize;
    loop {
        unreadable += page.entries.iter().filter(|entry| matches!(entry, Entry::Unreadable(_))).count();
        for entry in &page.entries {
            match entry {
                Entry::Key(key, _) if session.json => session.print_json(key)?,
                Entry::Unreadable(key) if session.json => session.print_json(key)?,
                entry => {
                    let row = row(entry);
                    let cells: Vec<&str> = row.iter().map(String::as_str).collect();
                    session.out.write_all(table.row(&cells).as_bytes())?;
                }
            }
        }
        let Some(after) = page.next else { break };
        page = read(&filter, Some(after), session).await?;
    }
    if unreadable > 0 {
        session.remark(&format!(
            "the records of {unreadable} keys cannot be read; such a key is answered with 503, and `keygate keys revoke` ends it"
        ));
    }
    Ok(Outcome::Done)
}

/// An entry of the list: a key with the name of its organisation, or one that cannot be read.
enum Entry {
    Key(Box<KeyView>, String),
    Unreadable(UnreadableView),
}

impl Entry {
    fn id(&self) -> String {
        match self {
            Self::Key(key, _) => key.id.to_string(),
            Self::Unreadable(key) => key.id.clone(),
        }
    }
}

/// Entries, newest first.
struct Page {
    entries: Vec<Entry>,
    next: Option<KeyId>,
}

async fn read(filter: &KeyFilter, after: Option<KeyId>, session: &mut Session<'_>) -> Result<Page, Failure> {
    let command = KeyCommand::List { filter: filter.clone(), after, limit: PAGE };
    let reply = session.ask(Command::Keys(command)).await?;
    let Reply::Keys { keys, next, organizations, unreadable } = reply else { return Err(unexpected()) };
    let named = |key: KeyView| {
        let name = organizations.get(&key.organization_id).cloned();
        let name = name.unwrap_or_else(|| key.organization_id.to_string());
        Entry::Key(key.into(), name)
    };
    let mut entries: Vec<Entry> = keys.into_iter().map(named).collect();
    if !unreadable.is_empty() {
        entries.extend(unreadable.into_iter().map(Entry::Unreadable));
        entries.sort_by_cached_key(|entry| Reverse(entry.id()));
    }
    Ok(Page { entries, next })
}

/// The cells of an entry, in the order of the columns.
fn row(entry: &Entry) -> [String; 11] {
    let (key, org) = match entry {
        Entry::Key(key, org) => (key, org),
        Entry::Unreadable(UnreadableView { id, status, reason, .. }) => {
            let mut row = [const { String::new() }; 11];
            (row[0], row[2], row[10]) = (id.clone(), status.clone(), format!("({reason})"));
            return row;
        }
    };
    let time = |time: &Option<String>| time.as_deref().map_or_else(|| "never".to_owned(), to_the_second);
    let scopes: Vec<&str> = key.scopes.iter().map(Scope::as_str).collect();
    [
        key.id.to_string(),
        key.key.clone(),
        key.status.clone(),
        key.environment.to_string(),
        org.clone(),
        scopes.join(","),
        time(&key.expires_at),
        time(&key.last_used_at),
        to_the_second(&key.created_at),
        key.owner.clone().unwrap_or_default(),
        key.name.clone(),
    ]
}
