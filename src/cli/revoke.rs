//! `keygate keys revoke`: keys, and with `--with-children` what was made with them.

use std::io::{self, BufRead};

use super::Outcome;
use super::operator::{Failure, Session, to_the_second, unexpected};
use super::org_name;
use super::reach::Wait;
use crate::operators::admin::{Command, KeyCommand, Reach, Reply};
use crate::vocabulary::id::KeyId;
use crate::vocabulary::line_numbers::describe_lines;
use crate::vocabulary::text::escaped;

/// The most keys that a question shows one by one.
const SHOWN: usize = 20;

/// What is revoked with the keys, and how the operator is asked before.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) with_children: bool,
    /// The ids came on standard input, which cannot hold the answer too.
    pub(super) stdin: bool,
    /// Do not ask.
    pub(super) yes: bool,
    pub(super) wait: Wait,
}

pub(super) async fn revoke(
    mut ids: Vec<KeyId>,
    how: How,
    session: &mut Session<'_>,
) -> Result<Outcome, Failure> {
    let How { with_children, stdin, yes, wait } = how;
    if stdin {
        ids = read_ids(&mut io::stdin().lock())?;
    }
    if ids.is_empty() {
        return Err("standard input contains no key ids".into());
    }
    let mut targets = Vec::with_capacity(ids.len());
    for id in &ids {
        targets.push((*id, if with_children { Some(count(*id, session).await?) } else { None }));
    }
    if !yes {
        let question = question(&targets, session).await?;
        if stdin { session.confirm_beside_stdin(&question)? } else { session.confirm(&question)? }
    }
    // Several are revoked first, and waited for together.
    let (each, all) = if targets.len() == 1 { (wait, Wait::NONE) } else { (Wait::NONE, wait) };
    let (mut failed, mut last, mut is_known) = (0_usize, None, true);
    for (id, children) in &targets {
        match revoke_one(*id, *children, each, session).await {
            Ok(reach) => {
                is_known &= reach.is_some();
                last = reach.or(last);
            }
            Err(Failure::Told(message)) => {
                failed += 1;
                session.remark(&format!("{id} was not revoked: {message}"));
            }
            Err(gone) => return Err(gone),
        }
    }
    let outcome = wait_for_all(last.filter(|_| is_known), targets.len() - failed, all, session).await?;
    if failed == 0 {
        return Ok(outcome);
    }
    Err(format!("{failed} of {} keys were not revoked", ids.len()).into())
}

/// Waits for the gateways, and tells which have not confirmed all that was revoked. Whoever has confirmed the last change
/// has confirmed those before it.
async fn wait_for_all(
    last: Option<Reach>,
    revoked: usize,
    wait: Wait,
    session: &mut Session<'_>,
) -> Result<Outcome, Failure> {
    if revoked == 0 {
        return Ok(Outcome::Done);
    }
    let before = last.clone();
    let told = wait.follow(last, session).await?;
    if before != told.reach {
        if session.json {
            session.print_json(&serde_json::json!({ "object": "reach", "reach": told.reach }))?;
        } else {
            session.print_line(&format!("all {}: {}", keys(revoked), told.text()))?;
        }
    }
    if !session.json {
        told.remark(session);
    }
    Ok(told.outcome())
}

/// The question for these keys, each with the number of keys that were made with it. Several are shown above it, one on
/// each line.
async fn question(targets: &[(KeyId, Option<usize>)], session: &mut Session<'_>) -> Result<String, Failure> {
    let children = targets.iter().find_map(|(_, children)| *children).map(|_| {
        let count: usize = targets.iter().filter_map(|(_, children)| *children).sum();
        format!(" and the {} made with {}", keys(count), if targets.len() == 1 { "it" } else { "them" })
    });
    let children = children.unwrap_or_default();
    if let [(id, _)] = targets {
        let key = match describe(*id, session).await {
            Ok(key) => key,
            // There is nothing to ask about. The admin protocol has no other word for it than the message.
            Err(Failure::Told(message)) if message.starts_with(&format!("there is no key {id};")) => {
                return Err(Failure::Told(message));
            }
            // It may be one whose record cannot be read, which can be revoked all the same.
            Err(Failure::Told(message)) => format!("{id} ({message})"),
            Err(gone) => return Err(gone),
        };
        return Ok(format!("Revoke {key}{children}? This cannot be undone."));
    }
    for (id, _) in targets.iter().take(SHOWN) {
        let shown = match describe(*id, session).await {
            Ok(shown) => shown,
            Err(Failure::Told(message)) => format!("{id}: {message}"),
            Err(gone) => return Err(gone),
        };
        writeln!(session.err, "  {}", escaped(&shown))?;
    }
    if targets.len() > SHOWN {
        writeln!(session.err, "  … and {} more", targets.len() - SHOWN)?;
    }
    Ok(format!("Revoke these {}{children}? This cannot be undone.", keys(targets.len())))
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
async fn revoke_one(
    id: KeyId,
    confirmed: Option<usize>,
    wait: Wait,
    session: &mut Session<'_>,
) -> Result<Option<Reach>, Failure> {
    let descendants = match confirmed {
        Some(confirmed) => Some(count(id, session).await?.min(confirmed)),
        None => None,
    };
    let command = KeyCommand::Revoke { id, descendants };
    let Reply::Key { key, reach } = session.ask(Command::Keys(command)).await? else {
        return Err(unexpected());
    };
    let told = wait.follow(reach, session).await?;
    if session.json {
        told.print_key(key, session)?;
        return Ok(told.reach);
    }
    let children = descendants.filter(|count| *count > 0);
    let children = children.map(|count| format!(", and {} made with it", keys(count))).unwrap_or_default();
    session.print_line(&format!("revoked {} ({}){children}: {}", key.id, key.name, told.text()))?;
    Ok(told.reach)
}

/// A key, by what tells an operator whether it is the right one.
///
/// # Errors
/// If there is no such key.
pub(super) async fn describe(id: KeyId, session: &mut Session<'_>) -> Result<String, Failure> {
    let Reply::Key { key, .. } = session.ask(Command::Keys(KeyCommand::Show { id })).await? else {
        return Err(unexpected());
    };
    let org = org_name::described(key.organization_id, session).await;
    let owner = key.owner.map_or_else(|| "no owner".to_owned(), |owner| format!("owner {owner}"));
    let used = key
        .last_used_at
        .as_deref()
        .map_or_else(|| "never used".to_owned(), |at| format!("last used {}", to_the_second(at)));
    Ok(format!("{id} ({:?}, {owner}, organisation {org}, {}, {used})", key.name, key.status))
}

/// Reads ids from the output of `keys list`, or from any text with an id at the beginning of each line.
fn read_ids(lines: &mut impl BufRead) -> Result<Vec<KeyId>, Failure> {
    let (mut ids, mut wrong) = (Vec::new(), Vec::new());
    for (n, line) in lines.lines().enumerate() {
        let line = line.map_err(|error| format!("cannot read the ids: {error}"))?;
        let line = line.trim();
        if line.is_empty() || n == 0 && line.starts_with("ID ") {
            continue;
        }
        let id = if line.starts_with('{') {
            serde_json::from_str::<serde_json::Value>(line)
                .ok()
                .and_then(|key| Some(key.get("id")?.as_str()?.to_owned()))
        } else {
            line.split_whitespace().next().map(str::to_owned)
        };
        match id.and_then(|id| KeyId::parse(&id).ok()) {
            Some(id) => ids.push(id),
            None => wrong.push(n + 1),
        }
    }
    if !wrong.is_empty() {
        return Err(format!("no key id in {}; no key was revoked", describe_lines(&wrong)).into());
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_tables_and_from_json_and_a_line_without_an_id_is_an_error() {
        let (one, two) = ("key_01J9ZQ6T5N8XKD3V4WPYB7C2HM", "key_01J9ZQ6T5N8XKD3V4WPYB7C2HN");
        let read = |text: &str| read_ids(&mut text.as_bytes()).map_err(|failure| format!("{failure:?}"));
        let ids = vec![KeyId::parse(one).unwrap(), KeyId::parse(two).unwrap()];
        assert_eq!(read(&format!("ID   KEY\n{two}  fh_live_sk_…wxyz\n\n{one}\n{two}")), Ok(ids.clone()));
        assert_eq!(
            read(&format!("{{\"object\":\"api_key\",\"id\":\"{one}\"}}\n{{\"id\":\"{two}\"}}")),
            Ok(ids)
        );
        assert!(read(&format!("{one}\nfh_live_sk_")).unwrap_err().contains("line 2"));
        assert!(read(&format!("{{\"name\":\"x\"}}\n{one}\nnone")).unwrap_err().contains("lines 1 and 3"));
    }
}
