//! The command line: one file for each command.
//!
//! A command writes to the handles that it is given and returns its outcome. Only `main` ends the process.

mod admin;
mod audit;
mod audit_list;
mod backup;
mod check;
mod compact;
mod completions;
mod demo;
mod dev;
mod duration;
mod files;
mod init;
mod key_list;
mod keys;
mod migrate;
mod operator;
mod org_name;
mod orgs;
mod program;
mod reach;
mod reseal;
mod revoke;
mod secrecy;
mod serve;
mod shape;
mod store;
mod table;
mod token_list;
mod transfer;
mod unreachable;
mod upstreams;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::program::Program;
use crate::api::DESCRIPTION;
use crate::config::{Config, Mistakes};
use crate::store::Role;
use crate::telemetry::log_panics;

/// An API-key gateway: it checks the key of each request, forwards what the policy allows, and manages the keys
#[derive(Debug, Parser)]
#[command(
    name = "keygate",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "\
Examples:
  keygate dev                                     try it: demo upstreams and new keys
  keygate init gateway                            write a configuration into the folder `gateway`
  keygate check --config gateway/keygate.toml     show all mistakes in it
  keygate serve --config gateway/keygate.toml     run the gateway
  keygate keys create --name jobs --all-scopes    create a key; see `keygate keys --help`
  keygate orgs list                               list the organisations
  keygate audit verify                            check that the audit trail has not been altered
  keygate store status                            show the state of the store
  keygate upstreams status                        show which servers get requests

Environment variables override the configuration file: KEYGATE__SERVER__LISTEN=127.0.0.1:8000"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::Args),
    Serve(serve::Args),
    Check(check::Args),
    Init(init::Args),
    Keys(operator::Args<keys::Action>),
    Orgs(operator::Args<orgs::Action>),
    Audit(operator::Args<audit::Action>),
    Store(operator::Args<store::Action>),
    Upstreams(operator::Args<upstreams::Action>),
    Admin(admin::Args),
    Completions(completions::Args),
    /// Print the description of keygate's own API, as OpenAPI 3.1
    #[command(name = "openapi")]
    OpenApi,
}

/// The role of the gateway.
#[derive(Clone, Copy, Debug, clap::Args)]
struct RoleArg {
    /// The role of the gateway
    #[arg(long, value_name = "ROLE", value_enum, default_value_t = RoleName::Full)]
    role: RoleName,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RoleName {
    /// All functions
    Full,
    /// Only check and forward requests: no signup, no key API, no admin API, no outbox, no audit trail. A proxy reads
    /// from Redis, and writes only its own lease
    Proxy,
}

impl From<RoleArg> for Role {
    fn from(arg: RoleArg) -> Self {
        match arg.role {
            RoleName::Full => Self::Full,
            RoleName::Proxy => Self::Proxy,
        }
    }
}

/// The outcome of a command, which is the exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// 0: the command succeeded.
    Done,
    /// 1: the command failed, or its answer is no.
    Refused,
    /// 2: the arguments or the configuration cannot be read.
    Unusable,
    /// 3: the change is made, and some gateway with a lease has not confirmed it.
    Underway,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Refused => Self::FAILURE,
            Outcome::Unusable => Self::from(2),
            Outcome::Underway => Self::from(3),
        }
    }
}

/// Reads `arguments` as [`run`] does, and does nothing with them.
///
/// # Errors
/// The message that `run` would print: what is wrong, or the help that was asked for.
pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    Cli::try_parse_from(arguments).map(drop).map_err(|usage| usage.to_string())
}

/// Runs the command in `arguments`; the first argument is the name of the program.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitCode {
    log_panics();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let typed = secrecy::Typed::among(&arguments);
    let program = Program::called(arguments.first());
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(usage) => return print_usage(usage, &typed),
    };
    if !matches!(&cli.command, Command::Serve(args) if args.allow_core_dumps) {
        refuse_core_dumps();
    }
    // Not locked: while a gateway runs, its other threads also write.
    let (out, err) = (&mut io::stdout(), &mut secrecy::Hiding::new(io::stderr(), typed));
    let outcome = match cli.command {
        Command::Dev(args) => dev::run(&args, &program, environment, out, err),
        Command::Serve(args) => serve::run(&args, environment, err),
        Command::Check(args) => check::run(&args, environment, out, err),
        Command::Init(args) => init::run(&args, &program, out, err),
        Command::Keys(args) => operator::run(args, environment, out, err),
        Command::Orgs(args) => operator::run(args, environment, out, err),
        Command::Audit(args) => operator::run(args, environment, out, err),
        Command::Store(args) => operator::run(args, environment, out, err),
        Command::Upstreams(args) => operator::run(args, environment, out, err),
        Command::Admin(args) => admin::run(args, environment, out, err),
        Command::Completions(args) => completions::run(&args, Cli::command(), out),
        Command::OpenApi => write!(out, "{DESCRIPTION}").map(|()| Outcome::Done),
    };
    // The output cannot be written, so the error cannot be reported either.
    let outcome = outcome.and_then(|outcome| err.flush().map(|()| outcome));
    outcome.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Keeps the keys and secrets in this process's memory out of core files, and out of the reach of other processes of its
/// user (`PR_SET_DUMPABLE`, prctl(2)).
fn refuse_core_dumps() {
    // A kernel that knows the call takes this value of it.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// Loads a configuration. If it has mistakes, prints them and returns the outcome of the command.
fn load(
    path: &Path,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    err: &mut impl Write,
) -> io::Result<Result<Config, Outcome>> {
    match Config::load(path, environment) {
        Ok(config) => Ok(Ok(config)),
        Err(mistakes) => refuse(&mistakes, err).map(Err),
    }
}

/// Prints all mistakes of a configuration.
fn refuse(mistakes: &Mistakes, err: &mut impl Write) -> io::Result<Outcome> {
    let (count, outcome) = match mistakes.len() {
        _ if mistakes.is_unreadable() => (String::new(), Outcome::Unusable),
        1 => ("\n1 mistake\n".to_owned(), Outcome::Refused),
        n => (format!("\n{n} mistakes\n"), Outcome::Refused),
    };
    // If they cannot be written, the exit code is all that is left to tell.
    let _ = writeln!(err, "{mistakes}").and_then(|()| write!(err, "{count}"));
    Ok(outcome)
}

/// Prints help to standard output and succeeds, or prints a wrong argument to standard error and fails.
fn print_usage(usage: clap::Error, typed: &secrecy::Typed) -> ExitCode {
    let wrong = usage.use_stderr();
    let printed = typed.print_usage(usage).is_ok();
    if wrong {
        Outcome::Unusable.into()
    } else if printed {
        Outcome::Done.into()
    } else {
        Outcome::Refused.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(command: &clap::Command, look: &mut impl FnMut(&clap::Command)) {
        look(command);
        command.get_subcommands().for_each(|command| walk(command, look));
    }

    /// Clap breaks lines at the width of the terminal; a line break within a paragraph would stay in addition.
    #[test]
    fn help_paragraphs_have_no_line_breaks() {
        walk(&Cli::command(), &mut |command| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<&str> = help.lines().collect();
            let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
            for pair in lines.windows(2) {
                let broken = is_prose(pair[0]) && is_prose(pair[1]);
                assert!(!broken, "{}: {} / {}", command.get_name(), pair[0], pair[1]);
            }
            let widest = lines.iter().filter(|line| !is_prose(line)).map(|line| line.chars().count()).max();
            assert!(widest.unwrap_or(0) <= 100, "{}", command.get_name());
        });
    }

    #[test]
    fn every_command_and_argument_has_help() {
        walk(&Cli::command(), &mut |command| {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {argument}", command.get_name());
            }
        });
    }
}
