//! The handling of live keys that a browser sends.

/// What becomes of a request with a live key that a browser sent. Everybody who reads the page's code can have the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BrowserKeys {
    /// It is served, and the audit trail notes it once an hour for each key.
    #[default]
    Note,
    /// It is refused as well.
    Refuse,
}
