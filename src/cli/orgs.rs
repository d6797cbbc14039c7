//! `keygate orgs`: creating, listing, renaming, suspending, resuming and verifying organisations.

use std::io::Write;

use clap::Subcommand;

use super::operator::{Act, Failure, Session, to_the_second, unexpected};
use super::org_name::{OrgName, Orgs, next_orgs};
use super::reach::{Wait, WithReach};
use super::secrecy::parse_shown_text;
use super::table::Column;
use super::{Outcome, org_name};
use crate::lifecycle::OrgView;
use crate::operators::admin::{Command, OrgCommand, Reach, Reply, StoreCommand};
use crate::vocabulary::id::OrgId;

/// The most organisations that a message lists.
const LISTED: usize = 5;

/// Create, list, rename, suspend, resume and verify organisations
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Suspending, resuming and verifying say how far the change has come among the gateways, as in confirmed=2/3: two of three have applied it.

Exit code: 0 on success; 1 if anything failed; 2 if the arguments or the configuration cannot be read; 3 if the change is made, and a gateway with a lease has not confirmed it yet.

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
        #[command(flatten)]
        wait: Wait,
    },
    /// Resume a suspended organisation
    Resume {
        /// The organisation, by its id or its name
        #[arg(value_name = "ORG", value_parser = OrgName::parse)]
        org: OrgName,
        #[command(flatten)]
        wait: Wait,
    },
    /// Verify an organisation that signed up, so that its keys are accepted; needed with signup.verification = true
    Verify {
        /// The organisation, by its id or its name
        #[arg(value_name = "ORG", value_parser = OrgName::parse)]
        org: OrgName,
        #[command(flatten)]
        wait: Wait,
    },
}

impl Act for Action {
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure> {
        match self {
            Self::List => list(session).await,
            Self::Create { name } => {
                begin(session).await?;
                let org = ask(OrgCommand::Create { name }, session).await?.0;
                say(&org, "created", session)
            }
            Self::Show { org } => show(&org_name::show(org.id(session).await?, session).await?, session),
            Self::Rename { org, name } => {
                let id = org.id(session).await?;
                let org = ask(OrgCommand::Rename { id, name }, session).await?.0;
                say(&org, "renamed", session)
            }
            Self::Suspend { org, yes, wait } => {
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
                change(OrgCommand::Suspend { id }, "suspended", wait, session).await
            }
            Self::Resume { org, wait } => {
                let id = org.id(session).await?;
                change(OrgCommand::Resume { id }, "resumed", wait, session).await
            }
            Self::Verify { org, wait } => {
                let id = org.id(session).await?;
                change(OrgCommand::Verify { id }, "verified", wait, session).await
            }
        }
    }
}

async fn ask(command: OrgCommand, session: &mut Session<'_>) -> Result<(OrgView, Option<Reach>), Failure> {
    match session.ask(Command::Orgs(command)).await? {
        Reply::Org { org, reach } => Ok((org, reach)),
        _ => Err(unexpected()),
    }
}

fn say(org: &OrgView, done: &str, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    if session.json {
        session.print_json(org)?;
    } else {
        session.print_line(&format!("{done} {} ({})", org.id, org.name))?;
    }
    Ok(Outcome::Done)
}

fn show(org: &OrgView, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    if session.json {
        session.print_json(org)?;
        return Ok(Outcome::Done);
    }
    session.print_fields(&[
        ("id", Some(org.id.to_string())),
        ("name", Some(org.name.clone())),
        ("e-mail", org.email.clone()),
        ("status", Some(org.status.clone())),
        ("created", Some(org.created_at.clone())),
        ("suspended", org.suspended_at.clone()),
    ])?;
    Ok(Outcome::Done)
}

/// Makes a change that gateways must hear of, waits for them, and tells how far it has come.
async fn change(
    command: OrgCommand,
    done: &str,
    wait: Wait,
    session: &mut Session<'_>,
) -> Result<Outcome, Failure> {
    let (org, reach) = ask(command, session).await?;
    let told = wait.follow(reach, session).await?;
    if session.json {
        session.print_json(&WithReach { record: &org, reach: told.reach.as_ref() })?;
    } else {
        session.print_line(&format!("{done} {} ({}): {}", org.id, org.name, told.text()))?;
        told.remark(session);
    }
    Ok(told.outcome())
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
    let org = ask(command, session).await?.0;
    session.remark(&format!("created the first organisation, {} ({})", org.name, org.id));
    Ok(org.id)
}
