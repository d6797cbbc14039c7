//! `keygate completions`: scripts with which a shell completes commands and options.

use std::io::{self, Write};

use clap::ValueHint;
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

pub(super) fn run(args: &Args, command: clap::Command, out: &mut impl Write) -> io::Result<Outcome> {
    let mut command = hinted(command);
    // Written to memory first, because the generator panics if a write fails.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "keygate", &mut text);
    out.write_all(&text)?;
    Ok(Outcome::Done)
}

/// The command with the kind of value that each argument takes. Without it a shell offers files for every one.
fn hinted(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|argument| {
        let hint = match argument.get_value_names().and_then(|names| names.first()).map(|name| name.as_str())
        {
            Some("FILE") => ValueHint::FilePath,
            Some("DIR") => ValueHint::DirPath,
            _ => ValueHint::Other,
        };
        if argument.get_action().takes_values() { argument.value_hint(hint) } else { argument }
    });
    command.mut_subcommands(hinted)
}
