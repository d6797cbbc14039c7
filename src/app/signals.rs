//! The signals that end a gateway, and those on which it reads its configuration or opens the files of its log again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::control::Control;
use super::reload::Source;
use super::take_over::{HandOver, Handing};
use crate::config::{Config, Mistakes};

/// The signals that a gateway acts on. They are watched before any other process can know of it. One watch serves
/// for the first signal and the second: with two, a signal that comes between them would be lost.
pub struct Signals {
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
    pub(super) reopen: Signal,
    pub(super) reload: Option<(Signal, Source)>,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}

/// The action for a signal.
pub(super) enum Asked {
    End,
    Reload(Box<Result<Config, Mistakes>>),
    Reopen,
    HandOver(Box<Handing>),
}

impl Signals {
    /// From now on a signal waits for [`App::run_until_signalled`](super::App::run_until_signalled) and does not kill
    /// the process.
    pub(super) fn watch(control: &Control, source: Option<Source>) -> io::Result<Self> {
        let _entered = control.handle().enter();
        let hangup = |source| signal(SignalKind::hangup()).map(|hangup| (hangup, source));
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reopen: signal(SignalKind::user_defined1())?,
            reload: source.map(hangup).transpose()?,
        })
    }

    pub(super) async fn next(&mut self, hand_over: Option<&mut HandOver>) -> Asked {
        let reload = async {
            match &mut self.reload {
                Some((hangup, source)) => {
                    hangup.recv().await;
                    source()
                }
                None => std::future::pending().await,
            }
        };
        let handing = async {
            match hand_over {
                Some(hand_over) => hand_over.asked().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end(&mut self.terminate, &mut self.interrupt) => Asked::End,
            handing = handing => Asked::HandOver(Box::new(handing)),
            read = reload => Asked::Reload(Box::new(read)),
            _ = self.reopen.recv() => Asked::Reopen,
        }
    }
}

pub(super) async fn end(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
