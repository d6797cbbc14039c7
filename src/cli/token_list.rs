//! `keygate admin token list`: who has which token, as `admin.tokens_file` has it.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Subcommand;
use rustix::termios::tcgetwinsize;
use serde_json::json;

use super::table::{Column, Table};
use super::{Outcome, load};
use crate::operators::admin::{Role, Token, TokenName, Tokens};
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::OrgId;

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// List the tokens in admin.tokens_file: their names, what they are good for, and when they expire
    List {
        /// The gateway's configuration file
        #[arg(long, short, value_name = "FILE", default_value = "keygate.toml")]
        config: PathBuf,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(
    action: &Action,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let Action::List { config, json } = action;
    let config = match load(config, environment, err)? {
        Ok(config) => config,
        Err(outcome) => return Ok(outcome),
    };
    let Some(remote) = config.admin.remote else {
        writeln!(err, "keygate: admin.listen is not set, so no token is good for anything")?;
        return Ok(Outcome::Refused);
    };
    let tokens = match Tokens::read(&remote.tokens_file) {
        Ok(tokens) => tokens,
        Err(error) => {
            writeln!(err, "keygate: {error}")?;
            return Ok(Outcome::Refused);
        }
    };
    let now = Clock::system().now().wall;
    if *json {
        tokens.iter().try_for_each(|token| writeln!(out, "{}", describe(token, now)))?;
    } else {
        print(&tokens, now, out)?;
    }
    Ok(Outcome::Done)
}

fn describe(token: &Token, now: UnixMillis) -> serde_json::Value {
    json!({
        "object": "admin_token",
        "name": token.name.as_str(),
        "role": token.grant.role.as_str(),
        "organization_ids": token.grant.orgs.as_deref(),
        "expires_at": token.ends_at.to_string(),
        "expired": token.ends_at <= now,
    })
}

fn print(tokens: &Tokens, now: UnixMillis, out: &mut impl Write) -> io::Result<()> {
    const COLUMNS: [Column; 5] = [
        Column::elastic("NAME", 12, TokenName::MAX_LEN, 9),
        Column::new("ROLE", Role::MAX_LEN, 8),
        Column::new("STATUS", 7, 7),
        Column::new("EXPIRES", 24, 6),
        Column::new("ORGANISATIONS", OrgId::LEN, 5),
    ];
    let stdout = io::stdout();
    let size = if stdout.is_terminal() { tcgetwinsize(&stdout).ok() } else { None };
    let width = size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
    let table = Table::new(&COLUMNS, width);
    out.write_all(table.head().as_bytes())?;
    for token in tokens.iter() {
        let orgs = token.grant.orgs.as_ref().map_or_else(
            || "all".to_owned(),
            |orgs| orgs.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        );
        let status = if token.ends_at <= now { "expired" } else { "valid" };
        let (role, ends_at) = (token.grant.role.as_str(), token.ends_at.to_string());
        let row = table.row(&[token.name.as_str(), role, status, &ends_at, &orgs]);
        out.write_all(row.as_bytes())?;
    }
    Ok(())
}
