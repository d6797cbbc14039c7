//! `keygate store reseal`, and what `keygate store status` says of peppers.

use serde_json::json;

use super::Outcome;
use super::operator::{Failure, Session, unexpected};
use crate::operators::admin::{Command, Reply, StoreCommand};
use crate::store::keeper::{Resealed, Status};
use crate::vocabulary::key::PepperStatus;

/// How often everything is gone through before the command gives up.
const ROUNDS: usize = 8;

pub(super) async fn run(session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let before = status(session).await?;
    if let Some(trouble) = before.trouble {
        return Err(trouble.into());
    }
    let pepper =
        before.pepper.ok_or("the store does not say which pepper belongs to it: is there a store?")?;
    if pepper.before.is_none() {
        return match pepper.next {
            Some(next) => Err(format!(
                "the pepper of {next} is not in force yet: restart every gateway with both files in keys.pepper_files; the \
                 logs of the gateways say for which one it waits"
            )
            .into()),
            None => told(session, &Resealed::default(), &pepper),
        };
    }
    let mut all = Resealed::default();
    for _ in 0..ROUNDS {
        let moved = round(session, &mut all).await?;
        // A record that was changed while it was looked at is under the new pepper. The store looks at all of them once more.
        if moved == 0 {
            break;
        }
    }
    match session.ask(Command::Store(StoreCommand::FinishReseal)).await? {
        Reply::ResealFinished => {}
        _ => return Err(unexpected()),
    }
    let after = status(session).await?.pepper.ok_or_else(unexpected)?;
    told(session, &all, &after)
}

pub(super) async fn status(session: &mut Session<'_>) -> Result<Status, Failure> {
    match session.ask(Command::Store(StoreCommand::Status)).await? {
        Reply::StoreStatus { status } => Ok(status),
        _ => Err(unexpected()),
    }
}

/// Goes through all records once, and returns how many were moved.
async fn round(session: &mut Session<'_>, all: &mut Resealed) -> Result<usize, Failure> {
    let (mut after, mut looked_at, mut moved, mut unreadable) = (None, 0, 0, 0);
    loop {
        let Reply::StoreResealed { done } =
            session.ask(Command::Store(StoreCommand::Reseal { after })).await?
        else {
            return Err(unexpected());
        };
        looked_at += done.looked_at;
        moved += done.moved;
        unreadable += done.unreadable;
        session.show_progress(&format!("{looked_at} records looked at, {moved} moved"));
        after = done.next;
        if after.is_none() {
            break;
        }
    }
    all.looked_at = looked_at;
    all.moved += moved;
    all.unreadable = unreadable;
    Ok(moved)
}

fn told(session: &mut Session<'_>, done: &Resealed, pepper: &PepperStatus) -> Result<Outcome, Failure> {
    if session.json {
        let Resealed { looked_at, moved, unreadable, .. } = done;
        let said =
            json!({ "looked_at": looked_at, "moved": moved, "unreadable": unreadable, "pepper": pepper });
        session.print_json(&said)?;
        return Ok(Outcome::Done);
    }
    if done.looked_at > 0 {
        session.print_line(&format!(
            "{} records, {} of them moved to the new pepper",
            done.looked_at, done.moved
        ))?;
    } else {
        let why = if pepper.current.is_some() {
            "everything is under the pepper in force"
        } else {
            "the store has no pepper"
        };
        session.print_line(&format!("nothing to move: {why}"))?;
    }
    if done.unreadable > 0 {
        session.remark(&format!(
            "{} records open under no pepper: they were changed outside keygate, and no gateway serves them",
            done.unreadable
        ));
    }
    for file in &pepper.unneeded {
        session.print_line(&format!("no longer needed: {file}; remove it from the configuration"))?;
    }
    Ok(Outcome::Done)
}

/// The lines about peppers.
pub(super) fn describe_pepper(pepper: &PepperStatus) -> Vec<(&'static str, String)> {
    let PepperStatus { current, file, next, before, unneeded, kept } = pepper;
    let Some(current) = current else { return vec![("pepper", "none".to_owned())] };
    let kept = if *kept > 0 {
        format!(", {kept} older kept in the store for the digests under them")
    } else {
        String::new()
    };
    let file = file.as_deref().unwrap_or_default();
    let mut lines = vec![("pepper", format!("{file} (check value {current}){kept}"))];
    lines.extend(next.iter().map(|next| ("new", format!("{next}: waits until every gateway has it"))));
    lines.extend(
        before.iter().map(|before| ("old", format!("{before}: still needed; run `keygate store reseal`"))),
    );
    lines.extend(unneeded.iter().map(|file| ("old", format!("{file}: no longer needed; remove it"))));
    lines
}
