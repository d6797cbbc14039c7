//! What an operator should know of a store before keys are entrusted to it.

/// One thing that was found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Fine(String),
    /// It works, and is not as it should be.
    Warning(String),
    /// It would not work.
    Broken(String),
}
