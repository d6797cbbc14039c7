//! The side of the old process: it is asked, and hands over.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::hatch_beside;
use super::line::Line;
use super::protocol::{Act, Message, Moment, News, Passed, STEP, StoreKind};
use crate::app::inherited::Inherited;
use crate::config::{Config, StoreSettings};
use crate::store::embedded;
use crate::telemetry::Notice;

/// The bound hand-over socket. Its file is removed when this is dropped, unless another process has put its own there.
#[derive(Debug)]
pub(in crate::app) struct Hatch {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Hatch {
    /// Binds it beside the admin socket; `None` where there is no admin socket. One of another process is replaced. Must be
    /// called inside the control runtime.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(in crate::app) fn open(admin_socket: Option<&Path>) -> io::Result<Option<Self>> {
        let Some(path) = admin_socket.map(hatch_beside) else { return Ok(None) };
        // Bound under another name first, so that no other user can connect before the mode is set.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}.new", std::process::id()));
        let listener = UnixListener::bind(&fresh)?;
        let published = fs::set_permissions(&fresh, Permissions::from_mode(0o600))
            .and_then(|()| fs::symlink_metadata(&fresh))
            .and_then(|made| fs::rename(&fresh, &path).map(|()| made.ino()));
        let inode = published.inspect_err(|_| drop(fs::remove_file(&fresh)))?;
        Ok(Some(Self { listener, path, inode }))
    }
}

impl Drop for Hatch {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Waits to be asked for the sockets of this gateway.
#[derive(Debug)]
pub(in crate::app) struct HandOver {
    asked: mpsc::Receiver<Handing>,
    task: JoinHandle<()>,
}

impl HandOver {
    /// Must be called inside the control runtime.
    pub(in crate::app) fn offer(hatch: Hatch, config: &Config, sockets: Vec<(Passed, OwnedFd)>) -> Self {
        let (tell, asked) = mpsc::channel(1);
        let offer = Offer { store: StoreFile::of(config), sockets };
        Self { asked, task: tokio::spawn(attend(hatch, Arc::new(offer), tell)) }
    }

    /// Waits until a new process has got so far that this one is to end.
    pub(in crate::app) async fn asked(&mut self) -> Handing {
        match self.asked.recv().await {
            Some(handing) => handing,
            None => std::future::pending().await,
        }
    }
}

/// The duplicates of the sockets are closed with it.
impl Drop for HandOver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is handed over.
#[derive(Debug)]
struct Offer {
    store: StoreFile,
    sockets: Vec<(Passed, OwnedFd)>,
}

#[derive(Debug)]
enum StoreFile {
    Embedded(PathBuf),
    Redis,
}

impl StoreFile {
    fn of(config: &Config) -> Self {
        match &config.store {
            StoreSettings::Embedded(settings) => Self::Embedded(settings.path.clone()),
            StoreSettings::Redis(_) => Self::Redis,
        }
    }

    const fn kind(&self) -> StoreKind {
        match self {
            Self::Embedded(_) => StoreKind::Embedded,
            Self::Redis => StoreKind::Redis,
        }
    }
}

/// Attends to one new process after the other, until one has got so far that this one is to end.
async fn attend(hatch: Hatch, offer: Arc<Offer>, tell: mpsc::Sender<Handing>) {
    loop {
        let Ok((stream, _)) = hatch.listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let offer = Arc::clone(&offer);
        let speaking = tokio::task::spawn_blocking(move || speak(stream, offer));
        if let Ok(Ok(Some(handing))) = speaking.await {
            // Whoever waits for it holds the other end.
            let _ = tell.send(handing).await;
            return;
        }
    }
}

/// The pause after a connection could not be accepted.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

fn speak(stream: UnixStream, offer: Arc<Offer>) -> io::Result<Option<Handing>> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    let line = Line::over(stream);
    if !line.is_of_own_user()? {
        Notice::HandOver.log("another user asked for the sockets of this gateway: refused");
        return Ok(None);
    }
    let mut moment = Moment::Begun;
    loop {
        let (next, act) = moment.next(&news(&line), offer.store.kind());
        moment = next;
        match act {
            Act::Offer => {
                let (sockets, descriptors) = offer
                    .sockets
                    .iter()
                    .map(|(passed, socket)| (passed.clone(), socket.as_fd()))
                    .unzip::<_, _, Vec<_>, Vec<_>>();
                line.send(&Message::Sockets { sockets }, &descriptors)?;
                let (uid, pid) = line.other()?;
                Notice::HandOver.log(&format!(
                    "a new process asked for the sockets of this gateway, and got them: uid {uid}, pid {pid}"
                ));
            }
            Act::Refuse(why) => {
                Notice::HandOver.log(&format!("a new process asked for the sockets of this gateway: {why}"));
                line.send(&Message::Refused { why: why.to_owned() }, &[])?;
                return Ok(None);
            }
            // Its last word may have come from a process that is dead since.
            Act::Drain | Act::Yield if !line.is_broken() => {
                return Ok(Some(Handing { line, moment, act, offer }));
            }
            Act::Drain | Act::Yield | Act::GoOn | Act::PassStore | Act::Resume { .. } => {
                Notice::HandOver.log("the new process is gone before it was ready: going on");
                return Ok(None);
            }
        }
    }
}

fn news(line: &Line) -> News {
    match line.receive(STEP) {
        Ok((message, _)) => News::Said(message),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            News::Late
        }
        Err(_) => News::Gone,
    }
}

/// A new process that is about to take this one's place.
#[derive(Debug)]
pub(in crate::app) struct Handing {
    line: Line,
    moment: Moment,
    act: Act,
    offer: Arc<Offer>,
}

impl Handing {
    /// Whether the new process serves already, so that this one accepts no more at once.
    pub(in crate::app) fn is_served(&self) -> bool {
        self.act == Act::Yield
    }

    /// Who asked: the ids of the user and of the process.
    pub(in crate::app) fn asked_by(&self) -> io::Result<(u32, i32)> {
        self.line.other()
    }

    /// Tells the new process that the sockets are its own. Says whether it lives to hear it.
    pub(in crate::app) fn confirm(&self) -> bool {
        !self.line.is_broken() && self.line.send(&Message::Yours, &[]).is_ok()
    }

    /// After this process has closed its file: passes it, and waits for the new process. Returns the sockets if it did not
    /// come to serve, so that this one must begin anew.
    pub(in crate::app) fn pass_store(mut self) -> Option<Inherited> {
        let drained = if self.line.is_broken() { News::Gone } else { News::Drained };
        let mut news = drained;
        loop {
            let (next, act) = self.moment.next(&news, self.offer.store.kind());
            self.moment = next;
            match act {
                Act::PassStore => {
                    let file = match &self.offer.store {
                        StoreFile::Embedded(path) => embedded::FileMark::of(path).ok(),
                        StoreFile::Redis => None,
                    };
                    let sent = self.line.send(&Message::Store { file }, &[]);
                    news = if sent.is_ok() { self.wait_for_it() } else { News::Gone };
                }
                Act::Yield if self.confirm() => return None,
                Act::Yield => return Some(self.resume(true)),
                Act::Resume { end_other } => return Some(self.resume(end_other)),
                Act::Offer | Act::Refuse(_) | Act::Drain | Act::GoOn => return None,
            }
        }
    }

    fn wait_for_it(&self) -> News {
        Notice::HandOver.log("the file of the store is closed and passed: waiting for the new process");
        news(&self.line)
    }

    /// The sockets, with which this process begins anew, because the new one did not come to serve.
    pub(in crate::app) fn resume(&self, end_other: bool) -> Inherited {
        if end_other {
            self.line.end_other();
        }
        if let StoreFile::Embedded(path) = &self.offer.store {
            embedded::wait_until_let_go(path);
        }
        Notice::HandOver.log("the new process did not come to serve: beginning anew with the same sockets");
        self.sockets()
    }

    fn sockets(&self) -> Inherited {
        let sockets = self.offer.sockets.iter();
        let duplicates = sockets.filter_map(|(passed, socket)| {
            Some((passed.name.clone(), passed.is_kept, socket.try_clone().ok()?))
        });
        Inherited::handed_over(duplicates)
    }
}
