//! `keygate init`: a configuration and a policy to start from.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Outcome;
use super::program::{Program, word};
use crate::config::{DEFAULT_CONFIGURATION, FIRSTHAND_POLICY, STARTER_POLICY};

/// Write keygate.toml and policy.toml to start from; files that exist are left as they are
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The policy has a health check, two sample routes and the API for keys. Its comments explain every word of a policy.

Exit code: 0 if both files were written, 1 if one exists already or cannot be written.

Examples:
  keygate init
  keygate init /etc/keygate
  keygate init --example firsthand demo")]
pub(super) struct Args {
    /// The folder; it is made if it is missing
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// Write the whole policy of an API that exists, in place of the short one
    #[arg(long, value_name = "NAME")]
    example: Option<Example>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Example {
    /// FirstHandAPI: jobs, submissions, webhooks, billing
    Firsthand,
}

impl Args {
    /// The policy's text, what is to be done about it, and a scope of it.
    const fn policy(&self) -> (&'static str, &'static str, &'static str) {
        match self.example {
            None => (STARTER_POLICY, "Replace its sample routes by yours.", "reports:read"),
            Some(Example::Firsthand) => {
                (FIRSTHAND_POLICY, "Its routes are those of FirstHandAPI.", "jobs:read")
            }
        }
    }
}

pub(super) fn run(
    args: &Args,
    program: &Program,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let configuration = args.folder.join("keygate.toml");
    let policy = args.folder.join("policy.toml");
    let (policy_text, policy_advice, scope) = args.policy();
    let files = [(&configuration, DEFAULT_CONFIGURATION), (&policy, policy_text)];
    if let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        writeln!(err, "{} exists already, nothing was written; name another folder", path.display())?;
        return Ok(Outcome::Refused);
    }
    if let Err(error) = fs::create_dir_all(&args.folder) {
        writeln!(err, "{} cannot be made: {error}; name another folder", args.folder.display())?;
        return Ok(Outcome::Refused);
    }
    for (path, text) in files {
        if let Err(error) = write_new(path, text) {
            writeln!(err, "{} cannot be written: {error}", path.display())?;
            return Ok(Outcome::Refused);
        }
    }
    let (typed, configuration, policy) =
        (configuration.to_string_lossy(), configuration.display(), policy.display());
    let typed = word(&typed);
    write!(
        out,
        "Wrote {configuration} and {policy}.

Next:
  1. Say in {configuration} where your API is: `live` and `test` under [upstreams.api].
  2. Say in {policy} who may do what. {policy_advice}
  3. {program} check --config {typed}
  4. {program} serve --config {typed}
  5. {program} keys create --config {typed} --org 'Example Ltd' --name 'my service' --scopes {scope}
"
    )?;
    Ok(Outcome::Done)
}

/// Fails if the file exists, even if it was made a moment ago.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    File::create_new(path)?.write_all(text.as_bytes())
}
