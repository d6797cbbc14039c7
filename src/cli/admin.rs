//! `keygate admin`: tokens for operators on other machines.

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;

use clap::Subcommand;

use super::{Outcome, duration, token_list};
use crate::operators::admin::{Grant, NewToken, Role, TokenName};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::OrgId;

/// Create and list tokens for the admin API over TCP
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The token goes to standard output, and is never shown again. Its line for admin.tokens_file goes to standard error; the line does \
not reveal the token. To end a token, remove its line from the file; no restart is needed.

Examples:
  keygate admin token ci --expires-in 90d > token 2> line
  keygate admin token support --role keys --org org_01J9ZQ6T5N8XKD3V4WPYB7C2HM > token 2> line
  keygate admin token list")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a token and print it, or list the tokens; a token is never shown again
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Token {
        #[command(subcommand)]
        list: Option<token_list::Action>,
        /// The operator who uses the token; the audit trail shows this name
        #[arg(value_name = "NAME", value_parser = TokenName::parse, required = true)]
        name: Option<TokenName>,
        /// The commands that the token is good for: read only looks; keys also makes, changes and revokes keys; plans also changes plans; all may do everything
        #[arg(long, value_name = "ROLE", value_parser = Role::parse, default_value = "all")]
        role: Role,
        /// The organisations that the token is good for, separated by commas [default: all]
        #[arg(long, value_name = "ORG_IDS", value_parser = OrgId::parse, value_delimiter = ',')]
        org: Vec<OrgId>,
        /// The time until the token expires
        #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = duration::parse_token_lifetime)]
        expires_in: Duration,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(
    args: Args,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let Action::Token { list, name, role, org, expires_in, json } = args.action;
    let name = match (list, name) {
        (Some(list), _) => return token_list::run(&list, environment, out, err),
        (None, Some(name)) => name,
        // The parser demands one of the two.
        (None, None) => return Ok(Outcome::Unusable),
    };
    let grant = Grant { role, orgs: Some(org).filter(|orgs| !orgs.is_empty()).map(Into::into) };
    let token = match NewToken::draw(&name, &grant, Clock::system().now().wall, expires_in) {
        Ok(token) => token,
        Err(error) => {
            writeln!(err, "keygate: the operating system provides no random bytes: {error}")?;
            return Ok(Outcome::Refused);
        }
    };
    if json {
        writeln!(out, "{}", serde_json::json!({ "token": token.expose(), "line": token.line() }))?;
    } else {
        writeln!(err, "{}", token.line())?;
        writeln!(out, "{}", token.expose())?;
    }
    Ok(Outcome::Done)
}
