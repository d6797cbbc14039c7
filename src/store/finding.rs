//! Findings about a store, for operators.

/// One thing that was found, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It is as it should be.
    Fine(String),
    /// It works, but is not as it should be.
    Warning(String),
    /// It does not work.
    Broken(String),
}
