//! `keygate store compact`: the file of the embedded store becomes smaller.

use super::Outcome;
use super::operator::{Failure, Session, unexpected};
use crate::operators::admin::{Command, Reply, StoreCommand};

pub(super) async fn run(session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let Reply::StoreCompacted { done } = session.ask(Command::Store(StoreCommand::Compact)).await? else {
        return Err(unexpected());
    };
    if session.json {
        session.print_json(&done)?;
    } else {
        session.print_line(&format!("compacted: {}", done.told()))?;
    }
    Ok(Outcome::Done)
}
