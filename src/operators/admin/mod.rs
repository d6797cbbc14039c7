//! The operator's API: a closed list of commands. The gateway that holds the store carries them out, or a command
//! that opened the store itself.
//!
//! Each request is `POST /v1/command` with an [`Order`] as JSON. There are two ways to send it:
//!
//! - The Unix socket ([`Server`]) has mode 0600: a user who may open it may do everything. The system says which
//!   user that is, and the audit trail names that user, after the name that the operator claims.
//! - TCP ([`Remote`]) needs a token from a file. The token names the operator, whatever the order says, and what the
//!   operator may do: its [`Grant`].

mod answer;
mod client;
mod execute;
mod order;
mod remote;
mod reply;
mod role;
mod socket;
mod token;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::small_server::Limits;
use crate::lifecycle::{Lifecycle, Origin};
use crate::vocabulary::network::CannotListen;

pub use client::{ClientError, Way, call};
pub use execute::execute;
pub use order::{AuditCommand, Command, KeyCommand, Order, OrgCommand, StoreCommand, UpstreamCommand};
pub use remote::{Host, InvalidHost, Remote, RemoteSettings};
pub use reply::{Reach, Reply, Secret, ServerView};
pub use role::{Grant, InvalidRole, Role};
pub use socket::{Passed, Server};
pub use token::{InvalidTokenName, NewToken, Token, TokenFileError, TokenName, Tokens};

/// What the servers of the API ask to carry commands out.
#[derive(Clone)]
pub struct Desk {
    pub lifecycle: Arc<Lifecycle>,
    /// What is known of upstreams at this moment.
    pub servers: Arc<dyn Fn() -> Vec<ServerView> + Send + Sync>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The path of the socket, which has mode 0600; `None` for no socket.
    pub socket: Option<PathBuf>,
    /// Where the API is served over TCP; `None` for nowhere.
    pub remote: Option<RemoteSettings>,
}

/// Why the API cannot be served.
#[derive(Debug, Error)]
pub enum BindError {
    #[error("another gateway answers on the admin socket {0}; give each gateway its own admin.socket")]
    InUse(PathBuf),
    #[error("{0} exists and is not a socket; set admin.socket to another path")]
    NoSocket(PathBuf),
    #[error(
        "the admin socket {path} that the service manager passes is open to others than its owner (mode {mode:04o}): set \
         SocketMode=0600 in its unit"
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error(transparent)]
    Address(#[from] CannotListen),
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    #[error(
        "cannot make the admin socket {path}: {cause}; set admin.socket to a path in a folder that keygate may write to"
    )]
    Io { path: PathBuf, cause: io::Error },
}

/// How long a command may take to arrive: its head, and then its body.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// The same over TCP, where strangers can connect: the head with its token must come sooner.
const REMOTE_LIMITS: Limits = Limits { head_timeout: Duration::from_secs(10), ..LIMITS };
/// For operators. No command is nearly as long as the limit; the longest import a batch of keys.
const LIMITS: Limits = Limits {
    connections: 32,
    head_timeout: COMMAND_TIMEOUT,
    write_timeout: Duration::from_secs(30),
    body: 16 << 20,
};

/// The origin of a command on this machine: the user id that the system gives, after the name that the operator
/// claims. The name tells apart people who share a user.
#[must_use]
pub fn local_operator(claimed: &str, uid: u32) -> Origin {
    const LONGEST: usize = 64;
    let harmless = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if (1..=LONGEST).contains(&claimed.len()) && claimed.chars().all(harmless) {
        Origin::operator(&format!("{claimed} (uid {uid})"))
    } else {
        Origin::operator(&format!("uid {uid}"))
    }
}

/// The origin of a command over TCP: the operator that the token was made for, as far as the token reaches.
fn remote_operator(token: &Token, address: IpAddr) -> Origin {
    let name = token.name.as_str();
    let origin = match &token.grant.orgs {
        None => Origin::operator(name),
        Some(orgs) => Origin::operator_of(name, Arc::clone(orgs)),
    };
    Origin { address: Some(address), ..origin }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Principal;

    #[test]
    fn a_name_that_an_operator_claims_never_hides_who_the_system_says_they_are() {
        let named = |claimed: &str| match local_operator(claimed, 7).principal {
            Principal::Operator(name) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(named("ada"), "ada (uid 7)");
        for odd in ["", "ada (uid 0)", "a\nb", "ädä", &"a".repeat(65)] {
            assert_eq!(named(odd), "uid 7", "{odd:?}");
        }
    }
}
