//! `keygate orgs`: creating, listing, suspending, resuming and verifying organisations.

use std::io::Write;

use clap::Subcommand;

use super::Outcome;
use super::operator::{Act, Failure, Session, to_the_second, unexpected};
use super::table::Column;
use crate::lifecycle::OrgView;
use crate::operators::admin::{Command, OrgCommand, Reply, StoreCommand};
use crate::vocabulary::id::OrgId;

/// The number of organisations that one request for a list returns.
const PAGE: usize = 500;
/// The name of the organisation that is created with the first key.
const FIRST_ORG: &str = "default";

/// Create, list, suspend, resume and verify organisations
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  keygate orgs create 'Example Ltd'
  keygate orgs list
  keygate orgs suspend org_01J9ZQ6T5N8XKD3V4WPYB7C2HM")]
pub(super) enum Action {
    /// Create an organisation
    Create {
        /// The name of the organisation
        name: String,
    },
    /// List organisations, newest first
    List,
    /// Show an organisation
    Show {
        /// The id of the organisation
        #[arg(value_name = "ORG_ID", value_parser = OrgId::parse)]
        id: OrgId,
    },
    /// Refuse all keys of an organisation until it is resumed
    Suspend {
        /// The id of the organisation
        #[arg(value_name = "ORG_ID", value_parser = OrgId::parse)]
        id: OrgId,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Resume a suspended organisation
    Resume {
        /// The id of the organisation
        #[arg(value_name = "ORG_ID", value_parser = OrgId::parse)]
        id: OrgId,
    },
    /// Verify an organisation that signed up, so that its keys are accepted; needed with signup.verification = true
    Verify {
        /// The id of the organisation
        #[arg(value_name = "ORG_ID", value_parser = OrgId::parse)]
        id: OrgId,
    },
}

impl Act for Action {
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure> {
        let (command, done) = match self {
            Self::List => return list(session).await,
            Self::Create { name } => {
                begin(session).await?;
                (OrgCommand::Create { name }, Some("created"))
            }
            Self::Show { id } => (OrgCommand::Show { id }, None),
            Self::Suspend { id, yes } => {
                session.confirm(&format!("Refuse all requests with keys of {id}?"), yes)?;
                (OrgCommand::Suspend { id }, Some("suspended"))
            }
            Self::Resume { id } => (OrgCommand::Resume { id }, Some("resumed")),
            Self::Verify { id } => (OrgCommand::Verify { id }, Some("verified")),
        };
        let Reply::Org(org) = session.ask(Command::Orgs(command)).await? else { return Err(unexpected()) };
        match done {
            _ if session.json => session.print_json(&org)?,
            Some(done) => writeln!(session.out, "{done} {} ({})", org.id, org.name)?,
            None => session.print_fields(&[
                ("id", Some(org.id.to_string())),
                ("name", Some(org.name)),
                ("e-mail", org.email),
                ("status", Some(org.status)),
                ("created", Some(org.created_at)),
                ("suspended", org.suspended_at),
            ])?,
        }
        Ok(Outcome::Done)
    }
}

async fn list(session: &mut Session<'_>) -> Result<Outcome, Failure> {
    const COLUMNS: [Column; 5] = [
        Column::new("ID", OrgId::LEN, 9),
        Column::new("STATUS", 9, 8),
        Column::new("CREATED", 20, 3),
        Column::elastic("E-MAIL", 24, 32, 4),
        Column::new("NAME", 10, 7),
    ];
    let table = session.table(&COLUMNS)?;
    let mut after = None;
    while let Some(orgs) = next_orgs(&mut after, session).await? {
        for org in orgs {
            if session.json {
                session.print_json(&org)?;
                continue;
            }
            let (id, created) = (org.id.to_string(), to_the_second(&org.created_at));
            let email = org.email.as_deref().unwrap_or_default();
            session.out.write_all(table.row(&[&id, &org.status, &created, email, &org.name]).as_bytes())?;
        }
    }
    Ok(Outcome::Done)
}

/// The next page of organisations; `None` after the last.
pub(super) async fn next_orgs(
    after: &mut Option<OrgId>,
    session: &mut Session<'_>,
) -> Result<Option<Vec<OrgView>>, Failure> {
    let command = OrgCommand::List { after: *after, limit: PAGE };
    let Reply::Orgs { orgs } = session.ask(Command::Orgs(command)).await? else { return Err(unexpected()) };
    *after = orgs.last().map(|org| org.id).or(*after);
    Ok(Some(orgs).filter(|orgs| !orgs.is_empty()))
}

/// Creates the store if there never was one, before the first organisation or key is created.
async fn begin(session: &mut Session<'_>) -> Result<(), Failure> {
    if let Reply::StoreBegun { made: true } = session.ask(Command::Store(StoreCommand::Begin)).await? {
        session.remark("there was no store; created an empty one");
    }
    Ok(())
}

/// The organisation to use without `--org`: the only one, or a new one if there is none.
pub(super) async fn only_org(session: &mut Session<'_>) -> Result<OrgId, Failure> {
    begin(session).await?;
    match the_org(session).await? {
        Some(id) => Ok(id),
        None => {
            let command = OrgCommand::Create { name: FIRST_ORG.to_owned() };
            match session.ask(Command::Orgs(command)).await? {
                Reply::Org(org) => Ok(org.id),
                _ => Err(unexpected()),
            }
        }
    }
}

/// The only organisation, if there is exactly one.
///
/// # Errors
/// If there are several.
pub(super) async fn the_org(session: &mut Session<'_>) -> Result<Option<OrgId>, Failure> {
    let command = OrgCommand::List { after: None, limit: 2 };
    let Reply::Orgs { orgs } = session.ask(Command::Orgs(command)).await? else { return Err(unexpected()) };
    match orgs.as_slice() {
        [] => Ok(None),
        [OrgView { id, .. }] => Ok(Some(*id)),
        _ => {
            Err("there is more than one organisation; pass --org ORG_ID (`keygate orgs list` shows the ids)"
                .into())
        }
    }
}
