//! Organisations in arguments: by their id, or by their name if no other has it.

use super::operator::{Failure, Session, unexpected};
use super::program::quoted;
use super::secrecy::{NOT_AN_ARGUMENT, looks_secret};
use crate::lifecycle::{OrgView, UnreadableView};
use crate::operators::admin::{Command, OrgCommand, Reply};
use crate::vocabulary::id::OrgId;
use crate::vocabulary::text::Unseen;

/// The number of organisations that one request for a list returns.
const PAGE: usize = 500;

/// An organisation as an argument names it.
#[derive(Clone, Debug)]
pub(super) enum OrgName {
    Id(OrgId),
    Name(String),
}

impl OrgName {
    /// # Errors
    /// For an empty text, and for a secret.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        match (OrgId::parse(text), text.trim()) {
            (Ok(id), _) => Ok(Self::Id(id)),
            (Err(_), "") => Err("write the id or the name of an organisation"),
            (Err(_), name) if looks_secret(name) => Err(NOT_AN_ARGUMENT),
            (Err(_), name) => Ok(Self::Name(name.to_owned())),
        }
    }

    /// The organisation's id. An id is taken as it is; a name is looked for among all organisations.
    ///
    /// # Errors
    /// If no organisation or more than one has the name.
    pub(super) async fn id(&self, session: &mut Session<'_>) -> Result<OrgId, Failure> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Name(name) => find(name, session).await?.ok_or_else(|| nobody(name)),
        }
    }
}

pub(super) fn nobody(name: &str) -> Failure {
    format!("there is no organisation {name:?}; `keygate orgs list` shows all of them").into()
}

/// The one organisation with this name.
///
/// # Errors
/// If more than one has it.
pub(super) async fn find(name: &str, session: &mut Session<'_>) -> Result<Option<OrgId>, Failure> {
    let (mut found, mut after) = (Vec::new(), None);
    while let Some(Orgs { orgs, .. }) = next_orgs(&mut after, session).await? {
        found.extend(orgs.into_iter().filter(|org| org.name == name).map(|org| org.id));
    }
    if let [_, _, ..] = found[..] {
        let ids: Vec<String> = found.iter().map(ToString::to_string).collect();
        return Err(format!(
            "{} organisations have the name {name:?}: {}; name one by its id",
            ids.len(),
            ids.join(", ")
        )
        .into());
    }
    Ok(found.first().copied())
}

/// A page of organisations, without and with those that cannot be read.
pub(super) struct Orgs {
    pub(super) orgs: Vec<OrgView>,
    pub(super) unreadable: Vec<UnreadableView>,
}

/// The next page of organisations; `None` after the last.
pub(super) async fn next_orgs(
    after: &mut Option<OrgId>,
    session: &mut Session<'_>,
) -> Result<Option<Orgs>, Failure> {
    let command = OrgCommand::List { after: *after, limit: PAGE };
    let Reply::Orgs { orgs, unreadable } = session.ask(Command::Orgs(command)).await? else {
        return Err(unexpected());
    };
    let is_empty = orgs.is_empty() && unreadable.is_empty();
    let last_unreadable = unreadable.last().and_then(|org| OrgId::parse(&org.id).ok());
    *after = orgs.last().map(|org| org.id).into_iter().chain(last_unreadable).min().or(*after);
    Ok(Some(Orgs { orgs, unreadable }).filter(|_| !is_empty))
}

/// An organisation for people: its name and its id, or the id alone if the name cannot be told.
pub(super) async fn described(id: OrgId, session: &mut Session<'_>) -> String {
    match session.ask(Command::Orgs(OrgCommand::Show { id })).await {
        Ok(Reply::Org { org, .. }) => format!("{} ({id})", org.name),
        _ => id.to_string(),
    }
}

/// Organisations as arguments of `--org`, for a message.
pub(super) fn as_arguments(orgs: &[OrgView]) -> String {
    let one = |org: &OrgView| {
        let others = orgs.iter().filter(|other| other.name == org.name).count();
        let can_be_typed = OrgName::parse(&org.name).is_ok() && Unseen::first_in(&org.name).is_none();
        if others == 1 && can_be_typed {
            format!("--org {}", quoted(&org.name))
        } else {
            format!("--org {}", org.id)
        }
    };
    orgs.iter().map(one).collect::<Vec<_>>().join(" or ")
}

/// An organisation.
///
/// # Errors
/// As [`Session::ask`].
pub(super) async fn show(id: OrgId, session: &mut Session<'_>) -> Result<OrgView, Failure> {
    match session.ask(Command::Orgs(OrgCommand::Show { id })).await? {
        Reply::Org { org, .. } => Ok(org),
        _ => Err(unexpected()),
    }
}
