//! The program: passes its arguments and its environment to the command line.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keygate::cli::run(std::env::args_os(), std::env::vars_os())
}
