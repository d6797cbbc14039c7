//! The embedded back end: redb, one file.

use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file that holds everything.
    pub path: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self { path: "keygate.redb".into() }
    }
}
