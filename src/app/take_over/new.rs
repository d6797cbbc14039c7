//! The side of the new process: it asks, and takes over.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::hatch_beside;
use super::line::Line;
use super::protocol::{Message, STEP, StoreKind, VERSION};
use crate::app::inherited::Inherited;
use crate::config::{Config, StoreSettings};
use crate::store::embedded::{self, Verified};
use crate::telemetry::Notice;

/// How long the old process may take to finish its requests: longer than any drain.
const DRAIN: Duration = Duration::from_secs(24 * 60 * 60);

/// Why nothing was taken over.
#[derive(Debug, Error)]
pub enum TakeOverError {
    #[error("--take-over needs admin.socket: the running gateway is asked beside it")]
    NoAdminSocket,
    #[error("the running gateway does not hand over: {0}")]
    Refused(String),
    #[error("cannot ask the running gateway at {}: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
}

/// What the new process begins with.
#[derive(Debug, Default)]
pub struct Taken {
    pub line: OldProcess,
    /// Its sockets.
    pub inherited: Option<Inherited>,
    /// The file of an embedded store, as the old process left it.
    pub verified: Option<Verified>,
}

/// Asks the running gateway for its sockets, and with an embedded store waits until its file is closed. Where no gateway
/// runs, nothing is taken.
///
/// # Errors
/// When a gateway runs and does not hand over.
pub fn take_over(config: &Config) -> Result<Taken, TakeOverError> {
    let path = hatch_beside(config.admin.socket.as_deref().ok_or(TakeOverError::NoAdminSocket)?);
    let failed = |cause| TakeOverError::Io { path: path.clone(), cause };
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Notice::HandOver
                .log("no gateway runs here that could be taken over: starting as without --take-over");
            return Ok(Taken::default());
        }
        Err(error) => return Err(failed(error)),
    };
    let line = Line::over(stream);
    if !line.is_of_own_user().map_err(failed)? {
        return Err(TakeOverError::Refused("it belongs to another user".to_owned()));
    }
    let store = match &config.store {
        StoreSettings::Embedded(_) => StoreKind::Embedded,
        StoreSettings::Redis(_) => StoreKind::Redis,
    };
    let asked = line.send(&Message::Ask { version: VERSION, store }, &[]).and_then(|()| line.receive(STEP));
    let inherited = match asked {
        Ok((Message::Sockets { sockets }, descriptors)) => {
            let named = sockets.into_iter().zip(descriptors);
            Inherited::handed_over(named.map(|(passed, socket)| (passed.name, passed.is_kept, socket)))
        }
        Ok((Message::Refused { why }, _)) => return Err(TakeOverError::Refused(why)),
        // It has died meanwhile, and its sockets with it.
        Err(error) if is_death(&error) => {
            if let StoreSettings::Embedded(settings) = &config.store {
                embedded::wait_until_let_go(&settings.path);
            }
            return Ok(Taken::default());
        }
        Ok(_) => return Err(failed(io::ErrorKind::InvalidData.into())),
        Err(error) => return Err(failed(error)),
    };
    let mut taken = Taken { line: OldProcess(Some(line)), inherited: Some(inherited), verified: None };
    if let StoreSettings::Embedded(settings) = &config.store {
        taken.wait_for_store(settings)?;
    }
    Ok(taken)
}

/// Whether the other side of the connection has died: also before it had read what was said to it.
fn is_death(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// The connection to the process that is replaced, if there is one.
#[derive(Debug, Default)]
pub struct OldProcess(Option<Line>);

impl Taken {
    fn wait_for_store(&mut self, settings: &embedded::Settings) -> Result<(), TakeOverError> {
        let Some(line) = &self.line.0 else { return Ok(()) };
        Notice::HandOver.log("waiting until the old process has finished its requests");
        match line.send(&Message::Prepared, &[]).and_then(|()| line.receive(DRAIN)) {
            Ok((Message::Store { file }, _)) => {
                self.verified = file.and_then(|mark| embedded::as_left(settings, &mark));
                Ok(())
            }
            Ok((Message::Refused { why }, _)) => Err(TakeOverError::Refused(why)),
            // It has died: the file is verified as after any crash.
            Ok(_) | Err(_) => {
                embedded::wait_until_let_go(&settings.path);
                self.line = OldProcess::default();
                Ok(())
            }
        }
    }

    /// Whether a gateway runs that this one is to replace.
    #[must_use]
    pub const fn is_some(&self) -> bool {
        self.line.0.is_some()
    }
}

impl OldProcess {
    /// Tells the old process that connections are accepted here.
    ///
    /// # Errors
    /// When it does not let this process have its place.
    pub fn serving(&self) -> Result<(), TakeOverError> {
        let Some(line) = &self.0 else { return Ok(()) };
        // If it is gone, it may have said why before.
        let _ = line.send(&Message::Serving, &[]);
        match line.receive(STEP) {
            Ok((Message::Refused { why }, _)) => Err(TakeOverError::Refused(why)),
            // Without a word it has died, and this process is the only one.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
