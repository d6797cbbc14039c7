//! `keygate completions`: scripts with which a shell completes commands and options.

use std::io::{self, Write};

use clap_complete::Shell;

use super::Outcome;

/// Print the completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keygate completions bash > /etc/bash_completion.d/keygate
  keygate completions zsh > ~/.zfunc/_keygate")]
pub(super) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(args: &Args, mut command: clap::Command, out: &mut impl Write) -> io::Result<Outcome> {
    // Written to memory first, because the generator panics if a write fails.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "keygate", &mut text);
    out.write_all(&text)?;
    Ok(Outcome::Done)
}
