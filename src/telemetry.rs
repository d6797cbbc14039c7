//! What keygate tells its operator.

/// How the record of each request is written to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestLog {
    #[default]
    Text,
    Json,
    Off,
}
