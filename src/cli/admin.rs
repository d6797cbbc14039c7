//! `keygate admin`: tokens for operators on other machines.

use std::io::{self, Write};
use std::time::Duration;

use clap::Subcommand;

use super::Outcome;
use crate::operators::admin::{NewToken, TokenName};
use crate::vocabulary::clock::Clock;

/// Create tokens for the admin API over TCP
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The token goes to standard output, and is never shown again. Its line for admin.tokens_file goes to standard error; the line does \
not reveal the token. To end a token, remove its line from the file; no restart is needed.

Example:
  keygate admin token ci --expires-in 90d > token 2> line")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a token and print it; it is never shown again
    Token {
        /// The operator who uses the token; the audit trail shows this name
        #[arg(value_name = "NAME", value_parser = TokenName::parse)]
        name: TokenName,
        /// The time until the token expires
        #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = humantime::parse_duration)]
        expires_in: Duration,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: Args, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
    let Action::Token { name, expires_in, json } = args.action;
    let token = match NewToken::draw(&name, Clock::system().now().wall, expires_in) {
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
