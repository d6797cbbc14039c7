//! `keygate upstreams`: which servers get requests.

use clap::Subcommand;

use super::Outcome;
use super::operator::{Act, Failure, Session, unexpected};
use crate::operators::admin::{Command, Reply, ServerView, UpstreamCommand};
use crate::vocabulary::upstream::ServerState;

/// Show which servers of the upstreams get requests, as the running gateway sees it
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Exit code: 0 if each server gets requests, 1 if one does not, or if no gateway answers.

Examples:
  keygate upstreams status
  keygate upstreams status --json")]
pub(super) enum Action {
    /// Show each server, and whether it gets requests
    Status,
}

impl Act for Action {
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure> {
        let Self::Status = self;
        let command = Command::Upstreams(UpstreamCommand::Status);
        let Reply::Upstreams { servers } = session.ask(command).await? else { return Err(unexpected()) };
        for server in &servers {
            if session.json {
                session.print_json(server)?;
            } else {
                session.print_line(&describe(server))?;
            }
        }
        let all_are_used = servers.iter().all(|server| server.state.is_healthy());
        Ok(if all_are_used { Outcome::Done } else { Outcome::Refused })
    }
}

fn describe(server: &ServerView) -> String {
    let ServerView { upstream, server, state } = server;
    let state = match state {
        ServerState::InUse => "in use",
        ServerState::Suspected => "in use; a request had no answer, and the next check asks whether any has",
        ServerState::Unreachable => "passed over: it cannot be connected to",
        ServerState::FailsChecks => "passed over: it fails its checks; the log says why",
        ServerState::FailsRequests => {
            "passed over: requests of several organisations got no proper answer there"
        }
        ServerState::Unresolved => "passed over: no address of its name is known",
    };
    format!("{upstream} {server}: {state}")
}
