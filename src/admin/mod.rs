//! The operator's API on a Unix socket.

use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where the socket is made, with mode 0600; `None` for no admin API.
    pub socket: Option<PathBuf>,
}
