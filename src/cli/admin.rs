//! `keygate admin`: tokens for operators on other machines.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::secrecy::parse_shown_text;
use super::{Outcome, duration, token_list};
use crate::operators::admin::{Grant, NewToken, Role, TokenName};
use crate::secret_file::{self, SecretFileError};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::OrgId;

/// Create and list tokens for the admin API over TCP
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The token goes to standard output, and is never shown again. Its line belongs into the file that admin.tokens_file names; the line \
does not reveal the token. To end a token, remove its line from the file; no restart is needed.

Examples:
  keygate admin token ci --add /etc/keygate/admin-tokens > token
  keygate admin token ci --expires-in 30d > token 2> line
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
        #[arg(value_name = "NAME", value_parser = parse_name, required = true)]
        name: Option<TokenName>,
        /// The commands that the token is good for: read only looks; keys also makes, changes and revokes keys; plans also changes plans; all may do everything
        #[arg(long, value_name = "ROLE", value_parser = roles(), default_value = "all")]
        role: Role,
        /// The organisations that the token is good for, separated by commas [default: all]
        #[arg(long, value_name = "ORG_IDS", value_parser = OrgId::parse, value_delimiter = ',')]
        org: Vec<OrgId>,
        /// The time until the token expires
        #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = duration::parse_token_lifetime)]
        expires_in: Duration,
        /// Add its line to this file, the gateway's admin.tokens_file; a file that is missing is made with mode 0600
        #[arg(long, value_name = "FILE")]
        add: Option<PathBuf>,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
}

/// The roles as values that a shell completes.
fn roles() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::ALL.map(Role::as_str)).try_map(|text| Role::parse(&text))
}

fn parse_name(text: &str) -> Result<TokenName, String> {
    TokenName::parse(&parse_shown_text(text)?).map_err(|error| error.to_string())
}

pub(super) fn run(
    args: Args,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let Action::Token { list, name, role, org, expires_in, add, json } = args.action;
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
    if let Some(Err(message)) = add.as_deref().map(|path| add_line(path, token.line())) {
        writeln!(err, "keygate: {message}")?;
        return Ok(Outcome::Refused);
    }
    if json {
        writeln!(out, "{}", serde_json::json!({ "token": token.expose(), "line": token.line() }))?;
    } else {
        match &add {
            Some(path) => {
                writeln!(err, "added {} to {}; the token is shown only now:", name.as_str(), path.display())?;
            }
            None => writeln!(err, "{}", token.line())?,
        }
        writeln!(out, "{}", token.expose())?;
    }
    Ok(Outcome::Done)
}

/// Adds a line to a file of tokens. The file must be one that a gateway would read.
fn add_line(path: &Path, line: &str) -> Result<(), String> {
    let before = match secret_file::read("--add", path) {
        Err(SecretFileError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => None,
        read => Some(read.map_err(|error| error.to_string())?),
    };
    // The last line of a file that was edited by hand may have no end.
    let gap = if before.is_none_or(|text| text.is_empty() || text.ends_with(b"\n")) { "" } else { "\n" };
    let added = OpenOptions::new().append(true).create(true).mode(0o600).open(path).and_then(|mut file| {
        file.write_all(format!("{gap}{line}\n").as_bytes())?;
        file.sync_all()
    });
    added.map_err(|error| format!("cannot write {}: {error}", path.display()))
}
