//! `keygate admin`: tokens for operators who are elsewhere.

use std::io::{self, Write};
use std::time::Duration;

use clap::Subcommand;

use super::Outcome;
use crate::operators::admin::{NewToken, TokenName};
use crate::vocabulary::clock::Clock;

/// Make tokens for the admin API over TCP
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The token is printed once, on standard output; its line for admin.tokens_file, which does not reveal it, on standard error. \
Take the line out of the file again and the token is dead, without a restart.

Example:
  keygate admin token ci --expires-in 90d > token 2> line")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token and print it, once
    Token {
        /// Whom it is for; the audit trail names them so
        #[arg(value_name = "NAME", value_parser = TokenName::parse)]
        name: TokenName,
        /// When it ends
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
            writeln!(err, "keygate: the operating system gives no randomness: {error}")?;
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
