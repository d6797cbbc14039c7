//! Everything at once, from outside: one binary, a module per subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod cli_check;
