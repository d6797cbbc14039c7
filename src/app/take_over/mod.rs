//! A running gateway hands its sockets over to a new process (`keygate serve --take-over`), and then ends.
//!
//! The two speak over a Unix socket beside the admin socket, with mode 0600; only the user of the gateway, and root, may
//! ask. [`protocol`] has the messages and, for each moment, what the death or the silence of the other side means.
//!
//! Several gateways may share a Redis. There the new process is ready and accepts before the old one begins to drain. The
//! file of an embedded store has one user. There the old process finishes its requests first, and closes the file; meanwhile
//! connections are accepted as long as something of before is under way, and then they wait in the socket. The new one
//! has prepared all but the file by then. It opens it without verifying it again: the old one has had it to itself, has
//! verified it when it began, and closed it in order, and the length, the time of the last change and the identity of the
//! file, which come with it, show that it is the same.

mod line;
mod new;
mod old;
mod protocol;

use std::path::{Path, PathBuf};

pub use new::{OldProcess, TakeOverError, Taken, take_over};
pub(super) use old::{HandOver, Handing, Hatch};
pub(super) use protocol::Passed;

/// Where a gateway with this admin socket is asked to hand over.
fn hatch_beside(admin_socket: &Path) -> PathBuf {
    let mut path = admin_socket.as_os_str().to_owned();
    path.push(".handover");
    path.into()
}
