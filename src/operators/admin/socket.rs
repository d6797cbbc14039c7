//! The Unix socket of the operator's API.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::{UnixListener, UnixStream};

use super::answer::answer;
use super::{BindError, Command, Desk, LIMITS, Settings, local_operator};
use crate::operators::small_server::{Running, SmallServer, Socket};
use crate::vocabulary::clock::Clock;

/// The bound Unix socket. Its file is removed when this is dropped, unless somebody else keeps the socket open.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    is_kept: bool,
    is_passed: Passed,
}

/// Whether the socket was passed to another process: then its file stays.
#[derive(Clone, Debug, Default)]
pub struct Passed(Arc<AtomicBool>);

impl Passed {
    /// The socket is another process's from now on.
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Server {
    /// Takes the socket that is there, or binds one; `None` where the settings name no socket. The file of a gateway that
    /// is gone is replaced. Must be called inside the control runtime.
    ///
    /// # Errors
    /// [`BindError`] says what to do.
    pub fn open(settings: &Settings, there: Option<(StdListener, bool)>) -> Result<Option<Self>, BindError> {
        let Some(path) = settings.socket.clone() else { return Ok(None) };
        there.map_or_else(|| Self::bind(path.clone()), |there| Self::take(path.clone(), there)).map(Some)
    }

    fn take(path: PathBuf, (there, is_kept): (StdListener, bool)) -> Result<Self, BindError> {
        let failed = |cause| BindError::Io { path: path.clone(), cause };
        let mode = std::fs::symlink_metadata(&path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(BindError::Exposed { path, mode });
        }
        let listener = there.set_nonblocking(true).and_then(|()| UnixListener::from_std(there));
        Ok(Self { listener: listener.map_err(failed)?, path, is_kept, is_passed: Passed::default() })
    }

    fn bind(path: PathBuf) -> Result<Self, BindError> {
        clear(&path)?;
        let failed = |cause| BindError::Io { path: path.clone(), cause };
        // Bound under another name first, so that no other user can connect before the mode is set.
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        let published = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&fresh, &path));
        if let Err(cause) = published {
            let _ = std::fs::remove_file(&fresh);
            return Err(failed(cause));
        }
        Ok(Self { listener, path, is_kept: false, is_passed: Passed::default() })
    }

    /// Whether a service manager keeps the socket open.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// By which it learns that its socket is another process's.
    #[must_use]
    pub fn passed(&self) -> Passed {
        self.is_passed.clone()
    }

    /// Starts to serve. Must be called inside the control runtime.
    pub fn start(self, desk: Desk, clock: Clock) -> Running {
        let server = SmallServer { socket: self, name: "the admin socket", limits: LIMITS, clock };
        server.start(move |uid, request| {
            let origin = move |claimed: &str, _: &Command| Ok(local_operator(claimed, uid));
            answer(desk.clone(), request, origin)
        })
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Socket for Server {
    type Stream = UnixStream;
    /// The user id of the client.
    type Client = u32;

    async fn accept(&self) -> io::Result<(UnixStream, u32)> {
        let (stream, _) = self.listener.accept().await?;
        // Every change must have an author.
        let uid = stream.peer_cred()?.uid();
        Ok((stream, uid))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.is_kept && !self.is_passed.0.load(Ordering::Relaxed) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes the file that is there, if it is the socket of a process that is gone.
fn clear(path: &Path) -> Result<(), BindError> {
    let failed = |cause| BindError::Io { path: path.to_owned(), cause };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => Err(BindError::NoSocket(path.to_owned())),
        Ok(_) if StdUnixStream::connect(path).is_ok() => Err(BindError::InUse(path.to_owned())),
        Ok(_) => std::fs::remove_file(path).map_err(failed),
    }
}
