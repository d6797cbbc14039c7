//! `keygate orgs`: creating, listing, renaming, suspending, resuming and verifying organisations.

use std::io::Write;

use clap::Subcommand;

use super::operator::{Act, Failure, Session, to_the_second, unexpected};
use super::org_name::{OrgName, Orgs, next_orgs};
use super::secrecy::parse_shown_text;
use super::table::Column;
use super::{Outcome, org_name};
use crate::lifecycle::OrgView;
use crate::operators::admin::{Command, OrgCommand, Reply, StoreCommand};
use crate::vocabulary::id::OrgId;

/// The most organisations that a message lists.
const LISTED: usize = 5;

/// Create, list, rename, suspend, resume and verify organisations
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  keygate orgs create 'Example Ltd'
  keygate orgs list
  keygate orgs rename 'Example Ltd' 'Example Group'
  keygate orgs suspend org_01J9ZQ6T5N8XKD3V4WPYB7C2HM")]
pub(super) enum Action {
    /// Create an organisation
    Create {
        /// The name of the organisation
        #[arg(value_name = "NAME", value_parser = parse_shown_text)]
        name: String,
    },
    /// List organisations, newest first
    List,
    /// Show an organisation
    Show {
        /// The organisation, by its id or its name
        #[arg(value_name = "ORG", value_parser = OrgName::parse)]
        org: OrgName,
    },
    /// Give an organisation another name
    Rename {
        /// The organisation, by its id or its name
        #[arg(value_name = "ORG", value_parser = OrgName::parse)]
        org: OrgName,
        /// The new name
        #[arg(value_name = "NAME", value_parser = parse_shown_text)]
        name: String,
    },
    /// Refuse all keys of an organisation until it is resumed
    Suspend {
        /// The organisation, by its id or its name
        #[arg(value_name = "ORG", value_parser = OrgName::parse)]
        org: OrgName,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Resume a suspended organisation
    Resume {
        /// The organisation, by its id or its name
        #[arg(value_name = "ORG", value_parser = OrgName::parse)]
        org: OrgName,
    },
    /// Verify an organisation that signed up, so that its keys are accepted; needed with signup.verification = true
    Verify {
        /// The organisation, by its id or its name
        #[arg(value_name = "ORG", value_parser = OrgName::parse)]
        org: OrgName,
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
            Self::Show { org } => (OrgCommand::Show { id: org.id(session).await? }, None),
            Self::Suspend { org, yes } => {
                let id = org.id(session).await?;
                if !yes {
                    let org = org_name::show(id, session).await?;
                    session.confirm(&format!(
                        "Refuse all requests with keys of {} ({id}, {}, created {})?",
                        org.name,
                        org.email.as_deref().unwrap_or("no e-mail address"),
                        to_the_second(&org.created_at)
                    ))?;
                }
                (OrgCommand::Suspend { id }, Some("suspended"))
            }
            Self::Rename { org, name } => {
                (OrgCommand::Rename { id: org.id(session).await?, name }, Some("renamed"))
            }
            Self::Resume { org } => (OrgCommand::Resume { id: org.id(session).await? }, Some("resumed")),
            Self::Verify { org } => (OrgCommand::Verify { id: org.id(session).await? }, Some("verified")),
        };
        let Reply::Org(org) = session.ask(Command::Orgs(command)).await? else { return Err(unexpected()) };
        match done {
            _ if session.json => session.print_json(&org)?,
            Some(done) => session.print_line(&format!("{done} {} ({})", org.id, org.name))?,
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
    let mut after = None;
    let mut page = next_orgs(&mut after, session).await?;
    let table = session.table(&COLUMNS)?;
    while let Some(Orgs { orgs, unreadable }) = page {
        for org in unreadable {
            session.remark(&format!("{} cannot be read: {}; none of its keys is let in", org.id, org.reason));
            if session.json {
                session.print_json(&org)?;
            } else {
                let reason = format!("({})", org.reason);
                session.out.write_all(table.row(&[&org.id, &org.status, "", "", &reason]).as_bytes())?;
            }
        }
        for org in orgs {
            if session.json {
                session.print_json(&org)?;
                continue;
            }
            let (id, created) = (org.id.to_string(), to_the_second(&org.created_at));
            let email = org.email.as_deref().unwrap_or_default();
            session.out.write_all(table.row(&[&id, &org.status, &created, email, &org.name]).as_bytes())?;
        }
        page = next_orgs(&mut after, session).await?;
    }
    Ok(Outcome::Done)
}

/// Creates the store if there never was one, before the first organisation or key is created.
async fn begin(session: &mut Session<'_>) -> Result<(), Failure> {
    if let Reply::StoreBegun { made: true } = session.ask(Command::Store(StoreCommand::Begin)).await? {
        session.remark("there was no store; created an empty one");
    }
    Ok(())
}

/// The organisation of a new key: the one that is named, or the only one. The first organisation of a store is created with
/// the name that is given.
///
/// # Errors
/// If it is not clear which organisation is meant.
pub(super) async fn owner_of_new_key(
    named: Option<&OrgName>,
    session: &mut Session<'_>,
) -> Result<OrgId, Failure> {
    if let Some(OrgName::Id(id)) = named {
        return Ok(*id);
    }
    begin(session).await?;
    let command = OrgCommand::List { after: None, limit: LISTED + 1 };
    let Reply::Orgs { orgs, .. } = session.ask(Command::Orgs(command)).await? else {
        return Err(unexpected());
    };
    match (named, orgs.as_slice()) {
        (Some(OrgName::Name(name)), []) => create_first(name, session).await,
        (Some(OrgName::Name(name)), _) => {
            org_name::find(name, session).await?.ok_or_else(|| org_name::nobody(name))
        }
        (_, []) => {
            Err("there is no organisation yet; name the first one, as in --org 'Example Ltd'".into())
        }
        (_, [OrgView { id, .. }]) => Ok(*id),
        (_, orgs) if orgs.len() > LISTED => Err(format!(
            "there are more than {LISTED} organisations; say whose key this is: pass --org with an id or a name \
             (`keygate orgs list` shows all)"
        )
        .into()),
        (_, orgs) => Err(format!(
            "there are {} organisations; say whose key this is: {}",
            orgs.len(),
            org_name::as_arguments(orgs)
        )
        .into()),
    }
}

async fn create_first(name: &str, session: &mut Session<'_>) -> Result<OrgId, Failure> {
    let command = OrgCommand::Create { name: name.to_owned() };
    let Reply::Org(org) = session.ask(Command::Orgs(command)).await? else { return Err(unexpected()) };
    session.remark(&format!("created the first organisation, {} ({})", org.name, org.id));
    Ok(org.id)
}
