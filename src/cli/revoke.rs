//! `keygate keys revoke`: keys, and with `--with-children` what was made with them.

use std::io::Write;

use super::Outcome;
use super::operator::{Failure, Session, unexpected};
use crate::operators::admin::{Command, KeyCommand, Reply};
use crate::vocabulary::id::KeyId;

/// How the operator is asked before keys are revoked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmation {
    /// The ids came on standard input, which cannot hold the answer too.
    pub(super) stdin: bool,
    /// Do not ask.
    pub(super) yes: bool,
}

pub(super) async fn revoke(
    ids: &[KeyId],
    with_children: bool,
    confirmation: Confirmation,
    session: &mut Session<'_>,
) -> Result<Outcome, Failure> {
    let mut targets = Vec::with_capacity(ids.len());
    for id in ids {
        targets.push((*id, if with_children { Some(count(*id, session).await?) } else { None }));
    }
    let Confirmation { stdin, yes } = confirmation;
    let question = question(&targets)?;
    if stdin {
        session.confirm_beside_stdin(&question, yes)?;
    } else {
        session.confirm(&question, yes)?;
    }
    let mut failed = 0_usize;
    for (id, children) in &targets {
        match revoke_one(*id, *children, session).await {
            Ok(()) => {}
            Err(Failure::Told(message)) => {
                failed += 1;
                session.remark(&format!("{id} was not revoked: {message}"));
            }
            Err(gone) => return Err(gone),
        }
    }
    if failed == 0 {
        return Ok(Outcome::Done);
    }
    Err(format!("{failed} of {} keys were not revoked", ids.len()).into())
}

/// The question for these keys, each with the number of keys that were made with it.
fn question(targets: &[(KeyId, Option<usize>)]) -> Result<String, Failure> {
    let children = targets.iter().find_map(|(_, children)| *children).map(|_| {
        let count: usize = targets.iter().filter_map(|(_, children)| *children).sum();
        format!(" and the {} made with {}", keys(count), if targets.len() == 1 { "it" } else { "them" })
    });
    let children = children.unwrap_or_default();
    match targets {
        [] => Err("standard input contains no key ids".into()),
        [(id, _)] => Ok(format!("Revoke {id}{children}? This cannot be undone.")),
        _ => Ok(format!("Revoke {}{children}? This cannot be undone.", keys(targets.len()))),
    }
}

fn keys(count: usize) -> String {
    if count == 1 { "1 key".to_owned() } else { format!("{count} keys") }
}

/// How many keys were made with a key and are not revoked.
async fn count(id: KeyId, session: &mut Session<'_>) -> Result<usize, Failure> {
    match session.ask(Command::Keys(KeyCommand::Descendants { id })).await? {
        Reply::Descendants { count } => Ok(count),
        _ => Err(unexpected()),
    }
}

/// Revokes a key, and no more than the confirmed number of keys that were made with it: fewer if some were revoked
/// with another key.
async fn revoke_one(id: KeyId, confirmed: Option<usize>, session: &mut Session<'_>) -> Result<(), Failure> {
    let descendants = match confirmed {
        Some(confirmed) => Some(count(id, session).await?.min(confirmed)),
        None => None,
    };
    let command = KeyCommand::Revoke { id, descendants };
    let Reply::Key { key } = session.ask(Command::Keys(command)).await? else { return Err(unexpected()) };
    if session.json {
        return session.print_json(&key);
    }
    let children = descendants.filter(|count| *count > 0);
    let children = children.map(|count| format!(", and {} made with it", keys(count))).unwrap_or_default();
    Ok(writeln!(session.out, "revoked {} ({}){children}", key.id, key.name)?)
}
